"""The terminal's view of a training: header, epochs, result."""

import math
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_cli.cli import console
from convnext_cli.cli.plan_view import (
    describe_data,
    describe_model,
    describe_sizes,
    describe_splits,
    list_decided,
    list_main_settings,
)
from convnext_cli.cli.signals import get_stopping_signal
from convnext_cli.errors import StoppedError
from convnext_cli.metrics.registry import METRICS
from convnext_cli.models.catalog import find_model
from convnext_cli.text import format_count, quote

if TYPE_CHECKING:
    from convnext_cli.metrics.registry import Metric
    from convnext_cli.tasks.task import Display
    from convnext_cli.training.events import (
        CrossValidationResult,
        EpochDone,
        Event,
        FinetuneResult,
        Planned,
        SplitMetrics,
        Started,
    )
    from convnext_cli.training.request import TrainRequest

VALUE_WIDTH = 6  # at least, of a metric of each epoch
MAX_HEADING = 20  # of such a metric; longer titles are shortened: a line of an epoch fits into 80 columns


def follow(
    request: "TrainRequest", *, is_verbose: bool = False, is_brief: bool = False
) -> "FinetuneResult | CrossValidationResult":
    """Train, show it, and return the result.

    The main settings are shown; all with source and reason if `is_verbose`, none if `is_brief`.

    Raises:
        StoppedError: a signal has arrived.
        ConvnextError: another subclass, with the remedy.
    """
    from convnext_cli.api import train
    from convnext_cli.runs.folder import RunFolder
    from convnext_cli.runs.folds import describe_resume

    view = _TrainingView(is_verbose=is_verbose, is_brief=is_brief)
    try:
        return console.run("fine-tuning", train(request), view.show)
    except KeyboardInterrupt as error:  # not during training steps, after which the training itself saves and stops
        begun = request.resume or view.begun
        remedy = describe_resume(RunFolder(begun)) if begun else "It had not begun; the same command starts it again"
        raise StoppedError("training interrupted", remedy, signal=get_stopping_signal()) from error


class _TrainingView:
    """Shows the events of a training, and keeps what later ones need."""

    begun: Path | None = None
    """The run, once it can be resumed."""

    def __init__(self, *, is_verbose: bool, is_brief: bool) -> None:
        self._is_verbose = is_verbose
        self._is_brief = is_brief
        self._planned: Planned | None = None
        self._epochs = 0

    def show(self, event: "Event", bar: console.Bar) -> None:
        """Show an event."""
        from convnext_cli.training.events import EpochDone, Planned, Started, StepDone

        match event:
            case Planned() if self._planned is None:
                _show_plan(event, is_verbose=self._is_verbose, is_brief=self._is_brief)
                self._planned = event
            case Planned():
                fold = f"fold {event.plan.settings.fold} of {event.plan.settings.folds}{_name_left_out(event)}"
                console.say(f"{fold}: {describe_splits(event.index)}", style="bold")
                self._planned = event
            case Started():
                self.begun = event.run
                self._epochs = event.plan.settings.epochs
                _show_started(event, self._planned)
            case StepDone():
                loss = "" if math.isnan(event.loss) else f", loss {event.loss:.3f}"
                done = (event.epoch - 1) * event.steps + event.step
                bar.update(done, self._epochs * event.steps, f"epoch {event.epoch}/{self._epochs}{loss}")
            case EpochDone():
                assert self._planned is not None
                console.say(_describe_epoch(event, self._epochs, self._planned.index.task.display))


def show_finished(finished: "FinetuneResult | CrossValidationResult") -> None:
    """Show the metrics, the run folder and the next command."""
    from convnext_cli.inference.calibration import describe_calibration
    from convnext_cli.runs.folder import RunFolder
    from convnext_cli.training.events import CrossValidationResult

    if isinstance(finished, CrossValidationResult):
        _show_folds(finished)
        return
    task = RunFolder(finished.run).read_config().read_task(finished.run)
    head = "" if finished.epoch else ", the head alone"
    kept = f"epoch {finished.epoch}{head} ({finished.selected_by})"
    if finished.val is None:
        console.show(f"Kept {kept}")
    else:
        values = ", ".join(
            f"{metric.title} {metric.format_with_unit(getattr(finished.val, metric.key))}"
            for metric in (METRICS[key] for key in reversed(task.display.epoch))
        )
        console.show(f"Kept {kept}: {values} on {format_count(finished.val.images, 'validation image')}")
    if (calibration := finished.calibration) and calibration.is_fitted:
        console.show(f"Calibrated with {describe_calibration(task, calibration)}")
    elif calibration:
        console.show(f"{task.display.uncalibrated.capitalize()}, because {calibration.unfitted_reason}")
    console.show(f"Run:  {finished.run}")
    console.show(f"Next: convnext eval {quote(finished.run)}")


def _show_folds(result: "CrossValidationResult") -> None:
    """Show the metrics of each fold, their mean and standard deviation."""
    from convnext_cli.tasks.registry import TASKS

    metrics = [METRICS[key] for key in TASKS[result.task].display.folds]
    columns = ["fold", "images", "best", *(metric.heading for metric in metrics)]
    rows: list[list[Any]] = [
        [
            fold.fold,
            fold.val.images,
            f"epoch {fold.epoch}",
            *(metric.format(getattr(fold.val, metric.key)) for metric in metrics),
        ]
        for fold in result.folds
    ]
    for part in ("mean", "sd"):
        spread = (getattr(result.spread.get(metric.key), part, None) for metric in metrics)
        cells = (metric.format(value) for metric, value in zip(metrics, spread, strict=True))
        rows.append([part, None, None, *cells])
    console.show_table(columns, rows, numbers=columns)
    console.show(
        f"sd: standard deviation over {len(result.folds)} folds; their training images overlap, so it is "
        "not a standard error"
    )
    console.show(
        "The metrics are before calibration, on the validation images that chose the best epoch (where a fold has "
        "enough): they may be slightly too high"
    )
    if result.left_out:
        _show_left_out(result)
    console.show(f"Folds: {result.run}")
    if not result.left_out:
        console.show(
            f"eval averages the {len(result.folds)} models on the test split. Without one, each image is predicted by "
            "the model that was not trained on it"
        )
    console.show(f"Next: convnext eval {quote(result.run)}")


def _show_left_out(result: "CrossValidationResult") -> None:
    """Show the metrics on each left-out value beside those on the validation images of the others."""
    from convnext_cli.tasks.registry import TASKS

    metrics = [METRICS[key] for key in TASKS[result.task].display.folds[:3]]
    console.show("")
    console.show("Internal and external", style="bold")
    for metric in metrics:
        columns = ["images", "internal", "95% CI", "left-out images", "external", "95% CI "]
        rows = [
            [entry.name, *_list_estimate(entry.internal, metric), *_list_estimate(entry.external, metric)]
            for entry in result.left_out
        ]
        console.show_table([metric.heading, *columns], rows, numbers=columns)
    console.show(
        "internal: validation images of the other values, used to choose the epoch; external: all images of the value, "
        "which were left out of training"
    )


def _list_estimate(split: "SplitMetrics", metric: "Metric") -> list[str]:
    return [f"{split.images:,}", *metric.list_cells(split.values[metric.key], split.intervals.get(metric.key))]


def _name_left_out(planned: "Planned") -> str:
    """Return the value that a fold leaves out, in brackets; nothing for other folds."""
    settings, names = planned.plan.settings, planned.index.fold_names
    return f" (left out: {settings.leave_out} {names[(settings.fold or 1) - 1]})" if names else ""


def _show_plan(planned: "Planned", *, is_verbose: bool, is_brief: bool) -> None:
    plan, index = planned.plan, planned.index
    console.say(describe_model(plan), style="bold")
    number = f"; fold {plan.settings.fold} of {plan.settings.folds}{_name_left_out(planned)}"
    fold = number if plan.settings.folds else ""
    console.say(f"{describe_data(index)}{fold}")
    if is_verbose:
        console.say(describe_sizes(find_model(plan.model)[0], plan.settings, len(index.classes)))
        console.log_table(["setting", "value", "from", "reason"], list_decided(plan, index.task))
    elif not is_brief:
        console.log_table(["", ""], list_main_settings(plan))
        console.say(f"all settings: {console.shorten_path(planned.run)}/plan.toml, or --verbose", style="dim")
    console.say(f"run: {planned.run}")
    for notice in planned.notices:
        console.notify(notice)


def _show_started(started: "Started", planned: "Planned | None") -> None:
    """Show the model, the device, and the settings that were measured after the plan was made."""
    plan = started.plan
    license = f" (licence {started.license})" if started.license else ""
    console.say(f"{started.params / 1e6:.2f}M parameters; {_describe_start(started)}{license}")
    processes = f", {started.num_processes} processes" if started.num_processes > 1 else ""
    console.say(f"{started.device}, {started.precision}, {started.compute_config}{processes}")
    for name, choice in plan.choices.items():
        if planned is not None and choice.value != planned.plan.choices[name].value:
            console.say(f"{name} {choice.value}, from {choice.source}: {choice.reason}")
    for notice in started.notices:
        console.notify(notice)
    display = started.index.task.display
    loss = METRICS[display.loss]
    columns = [
        f"{'epoch':>9}",
        f"{'train loss':>10}",
        f"{f'val {loss.short}' if loss.has_target_unit else 'val loss':>8}",
        *(f"{head_epoch(METRICS[key]):>{VALUE_WIDTH}}" for key in display.epoch),
    ]
    console.say("  ".join([*columns, f"{'images/s':>8}"]), style="bold")


def _describe_start(started: "Started") -> str:
    """Return the origin of the parameters in words."""
    if started.resumed_at is not None:
        return f"resumed after step {started.resumed_at:,}"
    if started.new_params == started.params:
        return "all newly initialised"
    origin = "pretrained weights" if started.plan.weights == "auto" else f"weights from {started.plan.weights}"
    new = f"{started.new_params:,} newly initialised" if started.new_params else "none newly initialised"
    return f"{origin}, {new}"


def head_epoch(metric: "Metric") -> str:
    """Return the title of a metric's column in the table of epochs."""
    return metric.heading if len(metric.heading) <= MAX_HEADING else metric.short_heading


def _describe_epoch(event: "EpochDone", epochs: int, display: "Display") -> str:
    val, loss = event.val, METRICS[display.loss]
    metrics = [METRICS[key] for key in display.epoch]
    cells = [
        f"{f'{event.epoch}/{epochs}':>9}",
        f"{event.train_loss:>10.4f}",
        f"{loss.format(getattr(val, loss.key, None)):>8}",
        *(
            f"{metric.format(getattr(val, metric.key, None)):>{max(VALUE_WIDTH, len(head_epoch(metric)))}}"
            for metric in metrics
        ),
        f"{event.images / event.seconds:>8.1f}",
    ]
    return "  ".join(cells)
