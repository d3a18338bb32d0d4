"""Section of a report on the operating points: which targets are met, and what acting on the model brings."""

from collections.abc import Sequence

from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.inference.operating_points import trace_curves
from convnext_cli.metrics.decision import estimate_likelihood_ratios
from convnext_cli.metrics.intervals import Estimate
from convnext_cli.metrics.registry import METRICS, MISSING, format_ci
from convnext_cli.metrics.thresholds import PREDICTIVE, Bound, OperatingPoint, Target, show_confidence
from convnext_cli.progress import Notice
from convnext_cli.reports import plots
from convnext_cli.reports.section import Cell, Column, Plot, Plots, ReportData, Section, Table, make_cell, make_column
from convnext_cli.text import format_percent

CURVE_POINTS = tuple(step / 100 for step in range(1, 100))  # thresholds of a drawn decision curve
RATIOS = ("positive_ratio", "negative_ratio")


def show_targets(report: ReportData) -> Section | None:
    """Return which targets are met, with likelihood ratios, predictive values and decision curves."""
    evaluation = report.evaluation
    points = evaluation.operating_points
    if not evaluation.metrics.per_class:
        return None
    sentences: list[str | Notice] = []
    is_own = evaluation.is_own and not evaluation.recalibration
    is_fitted_here = is_own and evaluation.split in ("val", "all")
    if not points and report.members:
        sentences.append(
            "No target was set. A cross-validation has no validation images of its own: eval --recalibrate N --target "
            "sensitivity=0.95:CLASS sets a threshold on N of the images."
        )
    elif not points:
        sentences.append("No target was set. eval --target sensitivity=0.95:CLASS sets a threshold on validation.")
    elif evaluation.split == "val" and is_fitted_here:
        sentences.append("The thresholds were set on these same images; measure them on other images.")
    else:
        sentences.append(f"The thresholds were set on the {evaluation.fitted_on} images and applied to these images.")
    for point in points:
        sentences += describe_point(point, evaluation.fitted_on)
    sentences += [curve.describe(evaluation.task.describe_name(curve.name)) for curve in evaluation.decision_curves]
    note = "The confidence is computed from these images; "
    note += "each group counts as one image; " * evaluation.intervals.clustered
    fitted = "some of them" if evaluation.split == "all" else "them"
    note += f"the threshold was set on {fitted}." if is_fitted_here else "the threshold was not set on them."
    tables = []
    if points:
        fields = ("sensitivity", "specificity", "ppv", "npv", *RATIOS)
        bounds = _tabulate_bounds(points, evaluation.fitted_on, note)
        tables = [bounds, tabulate_points(points, "Operating points", fields)]
    return Section(
        title="Targets", sentences=sentences, blocks=[*tables, *_tabulate_ratios(evaluation), *_draw_curves(evaluation)]
    )


def describe_point(point: OperatingPoint, fitted_on: str) -> list[str | Notice]:
    """Return sentences on a target: met or missed on these images, and out of reach where it was set."""
    target = point.threshold.target
    texts: list[str | Notice] = []
    if unreachable := point.threshold.unreachable:
        bounds = " and ".join(_describe_bound(bound, target) for bound in unreachable)
        asked = f" with {100 * target.confidence:g}% confidence" if target.confidence else ""
        together = " together with the rest of the target" if target.also else ""
        text = f"no threshold reaches {bounds}{asked} for {target.name}{together} on the {fitted_on} images."
        texts.append(Notice(text, "warning"))
    for result in point.results:
        if result.value is None:
            continue
        asked = f"{_describe_bound(result.bound, target)} for {target.name}"
        confidence = f"confidence that the true value reaches it: {show_confidence(result.confidence)}"
        text = f"{asked}. Here: {result}; {confidence}."
        is_missed = result.is_missed
        texts.append(Notice(f"target missed: {text}", "warning") if is_missed else f"Target met: {text}")
    return texts


def _describe_bound(bound: Bound, target: Target) -> str:
    is_stated = bound.metric in PREDICTIVE and target.prevalence is not None
    prevalence = f" at a prevalence of {100 * (target.prevalence or 0):g}%" if is_stated else ""
    return f"{bound.title} of at least {100 * bound.value:g}%{prevalence}"


def _tabulate_bounds(points: Sequence[OperatingPoint], fitted_on: str, note: str) -> Table:
    """Return a row for each bound of a target: its value where it was set and on these images, with the confidence."""
    confidence = METRICS["target_confidence"]
    rows = [
        (
            str(point.threshold.target),
            bound.title,
            Cell(bound.format(reached.value), note=f"of {reached.images:,}"),
            Cell(bound.format(result.value), note=format_ci(result.interval)),
            show_confidence(result.confidence),
            MISSING if result.value is None else "missed" if result.is_missed else "met",
        )
        for point in points
        for (bound, reached), result in zip(point.threshold.reached_bounds, point.results, strict=True)
    ]
    return Table(
        title=f"Targets on {fitted_on} images and on these images",
        columns=[
            Column("target", is_number=False),
            Column("metric", is_number=False),
            Column(f"{fitted_on} %"),
            Column("here %"),
            Column(confidence.short, metric=confidence),
            Column("result", is_number=False),
        ],
        rows=rows,
        note=note,
    )


def tabulate_points(points: Sequence[OperatingPoint], title: str, fields: Sequence[str]) -> Table:
    """Return a row for each threshold; beside predictive values stands the prevalence that they hold for."""
    metrics = [METRICS["recall" if field == "sensitivity" else field] for field in fields]
    has_prevalence = "ppv" in fields
    return Table(
        title=title,
        columns=[
            Column("target", is_number=False),
            Column("threshold %"),
            *[Column("prevalence %")] * has_prevalence,
            *map(make_column, metrics),
        ],
        rows=[
            (
                str(point.threshold.target),
                format_percent(point.threshold.threshold, 1),
                *[MISSING if point.prevalence is None else f"{100 * point.prevalence:.3g}"] * has_prevalence,
                *(
                    make_cell(metric, getattr(point, field), getattr(point, f"{field}_interval"))
                    for metric, field in zip(metrics, fields, strict=True)
                ),
            )
            for point in points
        ],
    )


def _tabulate_ratios(evaluation: Evaluation) -> list[Table]:
    """Return the likelihood ratios of predicting each class, without a target."""
    rows = []
    for entry, intervals in zip(evaluation.metrics.per_class, evaluation.intervals.per_class, strict=True):
        rates = (Estimate(getattr(entry, key), intervals[key]) for key in ("recall", "specificity"))
        cells = [
            make_cell(METRICS[key], ratio.value, ratio.interval)
            for key, ratio in zip(RATIOS, estimate_likelihood_ratios(*rates), strict=True)
        ]
        rows.append((entry.name, *cells))
    word = evaluation.task.display.target_word
    columns = [Column(word, is_number=False), *(make_column(METRICS[key]) for key in RATIOS)]
    return [Table(title=f"Likelihood ratios of predicting a {word}", columns=columns, rows=rows)]


def _draw_curves(evaluation: Evaluation) -> list[Plots]:
    curves = trace_curves(evaluation.images, evaluation.operating_points, CURVE_POINTS)
    if not curves:
        return []
    return [
        Plots(
            title="Decision curves",
            plots=[Plot(f"decision-{number}", plots.plot_decision(c)) for number, c in enumerate(curves, 1)],
            note="Net benefit: correct positive results per image, less the false ones weighted by the odds of the "
            "threshold (Vickers and Elkin 2006). The highest line is the best choice on these images; the lines have "
            "no CI, so small differences may be chance.",
        )
    ]
