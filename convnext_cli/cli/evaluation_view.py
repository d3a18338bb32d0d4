"""The terminal's view of an evaluation: metrics, classes, targets, groups, subgroups, drift."""

from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from convnext_cli.cli import console
from convnext_cli.metrics.registry import METRICS, format_ci
from convnext_cli.text import capitalise, format_count, format_p, format_percent, shorten_name

if TYPE_CHECKING:
    from convnext_cli.inference.drift import Drift
    from convnext_cli.inference.evaluation import Evaluation
    from convnext_cli.inference.per_group import GroupEvaluation
    from convnext_cli.inference.recalibration import Recalibration
    from convnext_cli.inference.subgroups import Subgroup, SubgroupEvaluation, SubgroupMetric
    from convnext_cli.metrics.comparison import Comparison
    from convnext_cli.metrics.intervals import Interval, Intervals
    from convnext_cli.metrics.summary import MetricSet
    from convnext_cli.metrics.thresholds import OperatingPoint
    from convnext_cli.tasks.task import Display, Task

MAX_CONFUSION = 12  # classes that a screen has room for; --json and the report have all
RATES = (("recall", "sensitivity"), ("specificity", "specificity"))
VALUES = ("ppv", "npv", "positive_ratio", "negative_ratio")


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
    unknown = "" if intervals.clustered else "; groups, such as patients, are not known"
    console.show(f"95% CI: {intervals.method}{unknown}")
    _show_calibration(evaluation)
    display, groups = evaluation.task.display, evaluation.per_group
    _show_classes(display, metrics, intervals)
    _show_confusion(evaluation)
    _show_points(evaluation.operating_points, evaluation.task)
    for curve in evaluation.decision_curves:
        console.show(curve.describe(evaluation.task.describe_name(curve.name)))
    if (augmentation := evaluation.augmentation) is not None:
        console.show("")
        console.show(
            f"Test-time augmentation took {augmentation.time_ratio:.1f} times as long; difference: "
            f"{augmentation.gain.describe(display.compared)}"
        )
    if groups is not None:
        _show_groups(evaluation, groups)
        _show_classes(display, groups.metrics, groups.intervals, unit="groups")
        _show_points(groups.operating_points, evaluation.task, "per group: ")
    if evaluation.subgroups is not None:
        show_subgroups(evaluation.subgroups)
    if evaluation.drift is not None:
        _show_drift(evaluation.drift)
    if evaluation.recalibration is not None:
        _show_recalibration(evaluation.recalibration, display)


def _show_calibration(evaluation: "Evaluation") -> None:
    calibration, task = evaluation.calibration, evaluation.task
    if calibration and calibration.is_fitted:
        metrics = (METRICS[key] for _, key in task.display.calibration)
        before = ", ".join(
            f"{metric.title} {metric.format_with_unit(getattr(evaluation.uncalibrated, metric.key))}"
            for metric in metrics
        )
        images = f"{calibration.images:,} {evaluation.fitted_on} images"
        change = f"; uncalibrated: {before}" if before else ""
        console.show(f"Calibrated with {task.describe_calibration(calibration)} on {images}{change}")


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


def _show_points(points: "Sequence[OperatingPoint]", task: "Task", unit: str = "") -> None:
    """Show what each threshold reaches, and which targets are met; warnings have the missed ones."""
    from convnext_cli.metrics.thresholds import describe_met

    if not points:
        return
    columns = ["threshold %"]
    for number, (key, _) in enumerate(RATES):
        columns += [METRICS[key].short_heading, f"95% CI{' ' * number}"]
    values = [METRICS[key].short_heading for key in VALUES]
    console.show("")
    console.show_table(
        ["target", *columns, *values], map(_list_point_cells, points), numbers=[*columns, *values], spare=values[::-1]
    )
    prevalences = [
        f"{100 * point.prevalence:.3g}% of {task.describe_name(point.threshold.target.name)}"
        for point in points
        if point.prevalence is not None
    ]
    if prevalences:
        console.show(f"PPV and NPV at a prevalence of {', '.join(dict.fromkeys(prevalences))}")
    for point in points:
        if point.is_met:
            console.show(f"{capitalise(unit + describe_met(point))}.")


def _list_point_cells(point: "OperatingPoint") -> list[object]:
    cells: list[object] = [point.threshold.target, format_percent(point.threshold.threshold, 1)]
    for key, field in RATES:
        cells += METRICS[key].list_cells(getattr(point, field), getattr(point, f"{field}_interval"))
    return [*cells, *(METRICS[key].format(getattr(point, key)) for key in VALUES)]


def show_subgroups(evaluation: "SubgroupEvaluation") -> None:
    """Show the metrics of each subgroup, the gaps to the rest, and which of these are significant."""
    from convnext_cli.inference.subgroups import describe_gaps, list_notes

    console.show("")
    console.show("Subgroups", style="bold")
    notes = list_notes(evaluation)
    for grouping in evaluation.groupings:
        console.show(f"{grouping.attribute}: {'; '.join(notes[grouping.attribute])}")
    targets = list(dict.fromkeys(result.target for result in evaluation.groupings[0].subgroups[0].metrics))
    for target in targets:
        if target:
            console.show(f"{target}:")
        _show_subgroup_metrics(evaluation, target, has_counts=target == targets[0])
    for sentence in describe_gaps(evaluation):
        console.show(sentence)


def _show_subgroup_metrics(evaluation: "SubgroupEvaluation", target: str, *, has_counts: bool) -> None:
    """Show the metrics of a target, the subgroups' images before them if `has_counts`, and the gaps to the rest."""
    subgroups = [
        (f"{grouping.attribute} {subgroup.name}", subgroup, [m for m in subgroup.metrics if m.target == target])
        for grouping in evaluation.groupings
        for subgroup in grouping.subgroups
    ]
    headings = [METRICS[result.key].short_heading for result in subgroups[0][2]]
    unit = ["groups"] * (has_counts and evaluation.clustered)
    columns = ["images", *unit, *(["prevalence %", "95% CI"] if evaluation.positive else [])] if has_counts else []
    for number, heading in enumerate(headings, start=bool(evaluation.positive)):
        columns += [heading, f"95% CI{' ' * number}"]
    rows: list[list[Any]] = []
    for name, subgroup, metrics in subgroups:
        cells = [name, *(_list_subgroup_counts(subgroup, has_groups=evaluation.clustered) if has_counts else ())]
        for result in metrics:
            cells += METRICS[result.key].list_cells(result.estimate.value, result.estimate.interval)
        rows.append(cells)
    console.show_table(["subgroup", *columns], rows, numbers=columns, spare=unit, part="subgroup")
    console.show("")
    gaps = ((name, *map(_describe_gap, metrics)) for name, _, metrics in subgroups)
    console.show_table(["gap to the rest (p)", *headings], gaps, numbers=headings, part="subgroup")
    console.show("")


def _list_subgroup_counts(subgroup: "Subgroup", *, has_groups: bool) -> Iterator[Any]:
    yield f"{subgroup.images:,}"
    if has_groups:
        yield f"{subgroup.groups:,}"
    if subgroup.prevalence is not None:
        value = subgroup.prevalence.value
        yield None if value is None else format_percent(value, 1)
        yield format_ci(subgroup.prevalence.interval) or None


def _describe_gap(result: "SubgroupMetric") -> str | None:
    if result.gap.value is None:
        return None
    p = "-" if result.p_holm is None else f"{result.p_holm:.2g}"
    return f"{METRICS[result.key].format_signed(result.gap.value)} ({p}){'*' * result.is_significant}"


def _show_drift(drift: "Drift") -> None:
    """Show how the images differ from the run's validation images."""
    from convnext_cli.inference.drift import COLUMNS

    console.show("")
    console.show("Drift from the run's validation images", style="bold")
    changed = [measure for measure in drift.measures if measure.is_drift]
    if changed or not drift.is_tested:
        shown = changed or drift.measures
        console.show_table(COLUMNS, (measure.list_cells() for measure in shown), numbers=COLUMNS[1:-1])
    if drift.is_tested and (others := len(drift.measures) - len(changed)):
        kind = "other measure" if changed else "measure"
        console.show(f"No drift in {format_count(others, kind)} (--json has them)")
    if flagged := drift.describe_flagged():
        console.show(flagged)
    console.show(f"Compared: {drift.describe_comparison()}")


def _show_recalibration(recalibration: "Recalibration", display: "Display") -> None:
    """Show what a recalibration changes on the other images."""
    change = recalibration.describe_change(display)
    console.show("")
    console.show(
        f"Recalibrated on {format_count(recalibration.images, 'image')} ({recalibration.description})"
        + (f"; change from the run's own calibration, on the other images: {change}" if change else "")
    )


def show_comparison(first: "Evaluation", second: "Evaluation", comparison: "Comparison") -> None:
    """Show the differences of two runs, and the test of them."""
    console.show("")
    console.show(f"{console.shorten_path(second.run)} compared with {console.shorten_path(first.run)}", style="bold")
    console.show(comparison.describe(first.task.display.compared))
    if comparison.p_value is None:
        return
    kind = "exact sign-flip test over groups" if comparison.clustered else "McNemar's exact test"
    first_only = format_count(comparison.only_first_right or 0, "image")
    console.show(
        f"correct by the first run only: {first_only}, by the second only: {comparison.only_second_right}; "
        f"{kind}: p {format_p(comparison.p_value)}"
    )


def summarise_evaluation(evaluation: "Evaluation") -> str:
    """Return the task's first metric with its interval, and the images it was measured on."""
    metric = METRICS[evaluation.task.display.headline]
    split = "" if evaluation.split == "all" else f"{evaluation.split} "
    value = getattr(evaluation.metrics, metric.key)
    estimate = metric.format_estimate(value, evaluation.intervals.overall[metric.key])
    return f"{capitalise(metric.title)} {estimate}, on {format_count(evaluation.metrics.images, f'{split}image')}"
