"""What the terminal shows of a training: its start, each epoch, its end."""

import math
from typing import TYPE_CHECKING, Any

from convnext_cli.cli import console
from convnext_cli.cli.options import describe_sizes, list_decided
from convnext_cli.models.catalog import find_model
from convnext_cli.text import quote

if TYPE_CHECKING:
    from convnext_cli.data.index import Index
    from convnext_cli.training.events import (
        CrossValidationResult,
        EpochDone,
        Event,
        FinetuneResult,
        Planned,
        Started,
    )
    from convnext_cli.training.request import TrainRequest

EPOCH_COLUMNS = (
    f"{'epoch':>9}  {'train loss':>10}  {'val loss':>8}  {'top-1 %':>7}  {'balanced %':>10}  {'images/s':>8}"
)

FOLD_FIGURES = {
    "balanced_accuracy": "balanced %", "top1": "top-1 %", "macro_f1": "macro F1 %", "macro_roc_auc": "ROC AUC %",
    "log_loss": "log loss",
}  # fmt: skip


def follow(
    request: "TrainRequest", *, onnx: bool = False, settings: bool = True
) -> "FinetuneResult | CrossValidationResult":
    """Train as a request says, show it, and return the result; `settings` shows the plan's table too."""
    from convnext_cli.api import train

    return console.run("fine-tuning", train(request, onnx=onnx), _TrainingView(settings=settings).show)


class _TrainingView:
    """Shows the events of a training, and remembers what later ones need."""

    def __init__(self, *, settings: bool) -> None:
        self._settings = settings
        self._planned: Planned | None = None
        self._epochs = 0

    def show(self, event: "Event", bar: console.Bar) -> None:
        """Show an event."""
        from convnext_cli.training.events import EpochDone, Planned, Started, StepDone

        match event:
            case Planned() if self._planned is None:
                _show_plan(event, settings=self._settings)
                self._planned = event
            case Planned():
                _show_next_fold(event)
                self._planned = event
            case Started():
                self._epochs = event.plan.settings.epochs
                _show_started(event, self._planned)
            case StepDone():
                loss = "" if math.isnan(event.loss) else f", loss {event.loss:.3f}"
                done = (event.epoch - 1) * event.steps + event.step
                bar.update(done, self._epochs * event.steps, f"epoch {event.epoch}/{self._epochs}{loss}")
            case EpochDone():
                console.say(_describe_epoch(event, self._epochs))


def show_finished(finished: "FinetuneResult | CrossValidationResult") -> None:
    """The final block: how good, where, what next."""
    from convnext_cli.training.events import CrossValidationResult

    if isinstance(finished, CrossValidationResult):
        _show_folds(finished)
        return
    kept = _describe_kept(finished)
    if finished.val is None:
        console.show(f"Kept {kept}")
    else:
        console.show(
            f"Kept {kept}: balanced accuracy {console.percent(finished.val.balanced_accuracy)}%, top-1 "
            f"{console.percent(finished.val.top1)}% on {finished.val.images} validation images"
        )
    if (fitted := finished.calibration) and fitted.log_loss:
        before, after = fitted.log_loss
        console.show(
            f"Calibrated by temperature {fitted.temperature:.2f}: validation log loss {before:.4f} to {after:.4f}"
        )
    elif fitted:
        console.show(f"Not calibrated, because {fitted.weak}")
    console.show(f"Run:  {finished.run}")
    console.show(f"Next: convnext eval {quote(finished.run)}")


def _describe_kept(finished: "FinetuneResult") -> str:
    if finished.epoch == 0:
        return "the head-only model: no epoch of fine-tuning was better"
    return f"epoch {finished.epoch} ({finished.selected_by})"


def _show_folds(found: "CrossValidationResult") -> None:
    """The figures of each fold, and their mean and spread."""
    columns = ["fold", "images", "kept", *FOLD_FIGURES.values()]
    rows: list[list[Any]] = []
    for fold in found.folds:
        figures = (_describe_figure(name, getattr(fold.val, name)) for name in FOLD_FIGURES)
        rows.append([fold.fold, fold.val.images, f"epoch {fold.epoch}", *figures])
    for part in ("mean", "sd"):
        values = {name: getattr(found.spread.get(name), part, None) for name in FOLD_FIGURES}
        rows.append([part, None, None, *(_describe_figure(name, value) for name, value in values.items())])
    console.show_table(columns, rows, numbers=columns)
    console.show(
        f"sd: standard deviation over {len(found.folds)} folds. Their training images overlap: it is no standard error"
    )
    console.show(f"Folds: {found.run}")
    console.show(
        f"eval averages the {len(found.folds)} models on a test split; without one, each image is predicted by the "
        "model that was not trained on it"
    )
    console.show(f"Next: convnext eval {quote(found.run)}")


def _describe_figure(name: str, value: float | None) -> str | None:
    return f"{value:.4f}" if name == "log_loss" and value is not None else console.percent(value)


def _show_next_fold(planned: "Planned") -> None:
    recipe = planned.plan.settings
    console.say(f"fold {recipe.fold} of {recipe.folds}: {describe_splits(count_splits(planned.index))}", style="bold")


def _show_plan(planned: "Planned", *, settings: bool) -> None:
    plan, index = planned.plan, planned.index
    console.say(f"{plan.model}", style="bold")
    fold = f"; fold {plan.settings.fold} of {plan.settings.folds}" if plan.settings.folds else ""
    console.say(f"{index.root}: {len(index.classes)} classes; {describe_splits(count_splits(index))}{fold}")
    architecture, recipe = find_model(plan.model)[0], plan.settings
    console.say(describe_sizes(architecture, recipe.image_size, recipe.in_chans, len(index.classes)))
    console.say(f"run: {planned.run}")
    if settings:
        console.log_table(["setting", "value", "from", "because"], list_decided(plan))
    for notice in planned.notices:
        console.notify(notice)


def _show_started(started: "Started", planned: "Planned | None") -> None:
    """Show the model, the device, and the settings that were measured since the plan was shown."""
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
    console.say(EPOCH_COLUMNS, style="bold")


def _describe_start(started: "Started") -> str:
    """Return where the parameters come from, in words."""
    if started.resumed_at is not None:
        return f"resumed after step {started.resumed_at:,}"
    if started.new_params == started.params:
        return "all newly initialised"
    origin = "pretrained weights" if started.plan.weights == "auto" else f"weights from {started.plan.weights}"
    new = f"{started.new_params:,} newly initialised" if started.new_params else "none newly initialised"
    return f"{origin}, {new}"


def _describe_epoch(event: "EpochDone", epochs: int) -> str:
    val = event.val
    losses = f"{event.train_loss:>10.4f}  {f'{val.log_loss:.4f}' if val else '-':>8}"
    shares = (
        f"{console.percent(val.top1) if val else '-':>7}  {console.percent(val.balanced_accuracy) if val else '-':>10}"
    )
    return f"{f'{event.epoch}/{epochs}':>9}  {losses}  {shares}  {event.images / event.seconds:>8.1f}"


def count_splits(index: "Index") -> dict[str, int]:
    """Images by split."""
    return {name: len(index.rows(name)) for name in ("train", "val", "test")}


def describe_splits(splits: dict[str, int]) -> str:
    """The same in words."""
    return ", ".join(f"{name} {count:,}" for name, count in splits.items()) + " images"
