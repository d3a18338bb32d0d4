"""`convnext eval`: metrics of a run with confidence intervals, and comparisons of runs."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convnext_cli.cli import console
from convnext_cli.cli.drift import show_drift, show_recalibration
from convnext_cli.cli.options import JsonFlag, OptionValues, with_options
from convnext_cli.cli.predict import find_run
from convnext_cli.cli.subgroups import show_subgroups
from convnext_cli.cli.targets import show_points, show_targets
from convnext_cli.errors import RunError, UsageError
from convnext_cli.inference.request import EVAL_RUN, EvalRequest
from convnext_cli.metrics.registry import METRICS
from convnext_cli.options import DataOption, Option
from convnext_cli.runs.files import PREDICTIONS
from convnext_cli.text import capitalise, format_count, format_p, quote, shorten_name

if TYPE_CHECKING:
    from convnext_cli.inference.evaluation import Evaluation
    from convnext_cli.inference.per_group import GroupEvaluation
    from convnext_cli.metrics.comparison import Comparison
    from convnext_cli.metrics.intervals import Interval, Intervals
    from convnext_cli.metrics.summary import MetricSet
    from convnext_cli.tasks.task import Display

MAX_CONFUSION = 12  # classes that a screen has room for; --json and the report have all


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalFlags:
    """Options of the command alone."""

    paths: Annotated[
        tuple[Path, ...],
        DataOption(
            "Run folders; default: the newest run. Another folder is the data.",
            metavar="[RUN]... [DATA]",
            completion="run",
            is_argument=True,
        ),
    ] = ()
    report: Annotated[
        bool, Option("Write report.html, its plots and predictions.csv into the run.", is_common=True)
    ] = True
    as_json: JsonFlag = False


@with_options(EvalRequest, EvalFlags)
def evaluate(_context: typer.Context, values: OptionValues) -> None:
    """Evaluate or compare runs: metrics with 95% CIs, and a report. The report is written into the run."""
    flags = values.make(EvalFlags)
    runs, data = _sort_paths(flags.paths, values.get("data"))
    request = values.make(EvalRequest, runs=tuple(runs or [find_run(None, EVAL_RUN)]), data=data)
    evaluations = run_evaluations(request)
    comparisons = _compare(evaluations)
    if flags.as_json:
        first = evaluations[0].to_dict()
        console.show_json(first if len(evaluations) == 1 else _describe_all(evaluations, comparisons))
        for evaluation in evaluations if flags.report else ():
            write_report(evaluation)
        return
    for evaluation in evaluations:
        show_evaluation(evaluation)
        if flags.report:  # after the metrics: they are not lost where the report cannot be written
            console.show(f"Report: {console.shorten_path(write_report(evaluation))}")
            console.show(f"Predictions: {console.shorten_path(PREDICTIONS.path(evaluation.run))}")
    for evaluation, comparison in zip(evaluations[1:], comparisons, strict=True):
        _show_comparison(evaluations[0], evaluation, comparison)
    if len(evaluations) == 1:
        console.show(_summarise(evaluations[0]))
        command = f"convnext predict IMAGE --run {quote(console.shorten_path(evaluations[0].run))}"
        if request.save_calibration is not None:
            command += f" --calibration {quote(console.shorten_path(request.save_calibration))}"
        console.show(f"Next: {command}")


def _sort_paths(paths: tuple[Path, ...], data: Path | None) -> tuple[list[Path], Path | None]:
    """Return the run folders and the data among paths."""
    from convnext_cli.runs.folder import RunFolder

    for path in paths:
        if not path.exists():
            raise RunError(f"{path} does not exist", "Give a run folder, or a folder of images")
    runs = [path for path in paths if RunFolder(path).is_run]
    others = [*(path for path in paths if path not in runs), *([data] if data else [])]
    if len(others) > 1:
        names = ", ".join(map(str, others))
        raise UsageError(f"{names}: only one of these can be the data, and none is a run", "Give runs, and one DATA")
    return runs, others[0] if others else None


def _summarise(evaluation: "Evaluation") -> str:
    """Return the task's first metric with its interval, and the images it was measured on."""
    metric = METRICS[evaluation.task.display.headline]
    split = "" if evaluation.split == "all" else f"{evaluation.split} "
    value = getattr(evaluation.metrics, metric.key)
    estimate = metric.format_estimate(value, evaluation.intervals.overall[metric.key])
    return f"{capitalise(metric.title)} {estimate}, on {format_count(evaluation.metrics.images, f'{split}image')}"


def run_evaluations(request: EvalRequest) -> "list[Evaluation]":
    """Evaluate with a progress bar, all runs on the images of the first."""
    from convnext_cli.api import evaluate_runs

    return console.run("evaluating", evaluate_runs(request))


def write_report(evaluation: "Evaluation") -> Path:
    """Write the report with a progress bar, and return its path."""
    from convnext_cli.api import report_evaluation

    return console.run("report", report_evaluation(evaluation))


def show_evaluation(evaluation: "Evaluation") -> None:
    """Show metrics, classes, confusion, targets and the gain of test-time augmentation."""
    metrics, intervals = evaluation.metrics, evaluation.intervals
    run, data = console.shorten_path(evaluation.run), console.shorten_path(evaluation.data)
    console.show(f"{run} on {data}, {evaluation.split}: {format_count(metrics.images, 'image')}", style="bold")
    if evaluation.test_number is not None:
        bias = " Choosing a model by these results biases them upward." if evaluation.test_number > 1 else ""
        console.show(f"Evaluation {evaluation.test_number} on the test split.{bias}")
    for note in evaluation.notes:
        console.notify(note)
    console.show("")
    console.show_table(
        ["metric", "", "95% CI"],
        (
            (METRICS[key].heading, *METRICS[key].list_cells(getattr(metrics, key), intervals.overall[key]))
            for key in evaluation.task.display.table
        ),
        numbers=["", "95% CI"],
    )
    unit = (
        format_count(intervals.units, "group")
        if intervals.clustered
        else "single images; groups, such as patients, are not known"
    )
    console.show(f"95% CI: bootstrap, {intervals.resamples:,} resamples of {unit}")
    _show_calibration(evaluation)
    display, groups = evaluation.task.display, evaluation.per_group
    _show_classes(display, metrics, intervals)
    _show_confusion(evaluation)
    show_targets(evaluation)
    _show_augmentation(evaluation)
    if groups is not None:
        _show_groups(evaluation, groups)
        _show_classes(display, groups.metrics, groups.intervals, unit="groups")
        show_points(groups.operating_points)
    if evaluation.subgroups is not None:
        show_subgroups(evaluation.subgroups)
    if evaluation.drift is not None:
        show_drift(evaluation.drift)
    if evaluation.recalibration is not None:
        show_recalibration(evaluation.recalibration, evaluation.task.display)


def _show_calibration(evaluation: "Evaluation") -> None:
    calibration, task = evaluation.calibration, evaluation.task
    if calibration and calibration.is_fitted:
        metrics = (METRICS[key] for _, key in task.display.calibration)
        before = ", ".join(
            f"{metric.title} {metric.format_with_unit(getattr(evaluation.uncalibrated, metric.key))}"
            for metric in metrics
        )
        console.show(
            f"Calibrated with {task.describe_calibration(calibration)} on {calibration.images:,} {evaluation.fitted_on}"
            f"{'; before: ' * bool(before)}{before}"
        )


def _show_classes(display: "Display", metrics: "MetricSet", intervals: "Intervals", unit: str = "images") -> None:
    """Show a row for each class, label or grade; `unit` is what is counted."""
    if not metrics.per_class:
        return
    console.show("")
    columns = [unit if title == "images" else title for _, title in display.class_counts]
    for number, key in enumerate(display.class_estimates):
        columns += [METRICS[key].short_heading, f"95% CI{' ' * number}"]
    columns += [METRICS[key].short_heading for key in display.class_values]
    console.show_table(
        [display.target_word, *columns],
        (
            (shorten_name(entry.name), *_list_class_cells(entry, class_intervals, display))
            for entry, class_intervals in zip(metrics.per_class, intervals.per_class, strict=True)
        ),
        numbers=columns,
        spare=[METRICS[key].short_heading for key in display.class_values if key != "roc_auc"],
        part="class",
    )


def _list_class_cells(metrics: Any, intervals: "Mapping[str, Interval | None]", display: "Display") -> list[str]:
    cells = [f"{getattr(metrics, field):,}" for field, _ in display.class_counts]
    for key in display.class_estimates:
        cells += METRICS[key].list_cells(getattr(metrics, key), intervals[key])
    return [*cells, *(METRICS[key].format(getattr(metrics, key)) for key in display.class_values)]


def _show_confusion(evaluation: "Evaluation") -> None:
    metrics = evaluation.metrics
    names = [shorten_name(entry.name) for entry in metrics.per_class]
    if len(names) > MAX_CONFUSION or not metrics.confusion:
        return
    console.show("")
    console.show_table(
        ["true \\ predicted", *names],
        ((name, *row) for name, row in zip(names, metrics.confusion, strict=True)),
        numbers=names,
    )


def _show_augmentation(evaluation: "Evaluation") -> None:
    if evaluation.augmentation is None:
        return
    console.show("")
    console.show(
        f"Test-time augmentation took {evaluation.augmentation.time_ratio:.1f} times as long; difference: "
        f"{evaluation.augmentation.gain.describe(evaluation.task.display.compared)}"
    )


def _show_groups(evaluation: "Evaluation", groups: "GroupEvaluation") -> None:
    """Show the pooling, and the metrics per image and per group."""
    console.show("")
    console.show(f"Per group: {groups.describe_groups()}", style="bold")
    console.show(groups.describe_pooling(evaluation.task))
    for note in groups.notes:
        console.notify(note)
    console.show("")
    columns, rows = ["per image", "95% CI", "per group", "95% CI "], []
    for metric in (METRICS[key] for key in evaluation.task.display.table):
        cells = [metric.heading]
        for unit in (evaluation, groups):
            cells += metric.list_cells(getattr(unit.metrics, metric.key), unit.intervals.overall[metric.key])
        rows.append(cells)
    console.show_table(["metric", *columns], rows, numbers=columns)


def _show_comparison(first: "Evaluation", second: "Evaluation", comparison: "Comparison") -> None:
    console.show("")
    console.show(f"{console.shorten_path(second.run)} compared with {console.shorten_path(first.run)}", style="bold")
    console.show(comparison.describe(first.task.display.compared))
    if comparison.p_value is None:
        return
    kind = "McNemar's test, by groups" if comparison.clustered else "McNemar's test"
    first_only = format_count(comparison.only_first_right or 0, "image")
    console.show(
        f"correct by the first run only: {first_only}, by the second only: {comparison.only_second_right}; "
        f"{kind}: p {format_p(comparison.p_value)}"
    )


def _compare(evaluations: "list[Evaluation]") -> "list[Comparison]":
    first, *others = evaluations
    comparisons: list[Comparison] = []
    if not others:
        return comparisons
    with console.progress("comparing") as bar:
        for other in others:
            bar.update(len(comparisons), len(others), "bootstrapping the 95% CIs")
            comparisons.append(first.images.compare(other.images))
    return comparisons


def _describe_all(evaluations: "list[Evaluation]", comparisons: "list[Comparison]") -> dict[str, object]:
    pairs = [
        {"first": evaluations[0].run, "second": second.run} | asdict(comparison)
        for second, comparison in zip(evaluations[1:], comparisons, strict=True)
    ]
    return {"runs": [evaluation.to_dict() for evaluation in evaluations], "comparisons": pairs}
