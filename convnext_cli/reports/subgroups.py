"""Section of a report on subgroups: a forest plot of each metric, and the gaps to the rest."""

from convnext_cli.inference.subgroups import Subgroup, SubgroupEvaluation, SubgroupMetric, describe_gaps, list_notes
from convnext_cli.metrics.registry import METRICS, MISSING, Metric, format_ci
from convnext_cli.progress import Notice
from convnext_cli.reports import plots
from convnext_cli.reports.section import Cell, Column, Plot, Plots, ReportData, Section, Table, make_cell
from convnext_cli.text import capitalise

Row = tuple[str, Subgroup]
"""A subgroup with its name and that of its attribute."""


def show_subgroups(report: ReportData) -> Section | None:
    """Return the metrics of subgroups, their gaps to the rest, and which of these are significant."""
    evaluation = report.evaluation.subgroups
    if evaluation is None:
        return None
    rows = [
        (f"{grouping.attribute} {subgroup.name}", subgroup)
        for grouping in evaluation.groupings
        for subgroup in grouping.subgroups
    ]
    first, *gaps = describe_gaps(evaluation)
    notes = [f"{capitalise(name)}: {'; '.join(parts)}." for name, parts in list_notes(evaluation).items()]
    return Section(
        title="Subgroups",
        sentences=[first, *(Notice(text, "warning") for text in gaps), *notes],
        blocks=[_draw_forest(rows), _tabulate_metrics(evaluation, rows), _tabulate_gaps(rows)],
    )


def _draw_forest(rows: list[Row]) -> Plots:
    drawn = []
    for place, result in enumerate(rows[0][1].metrics):
        points = [(name, subgroup.metrics[place]) for name, subgroup in rows]
        drawn.append(Plot(f"forest_{place + 1}", plots.plot_forest(result.title, METRICS[result.key], points)))
    return Plots(
        title="Forest plots",
        plots=drawn,
        note="Points with 95% CIs; filled and darker where the gap to the rest is significant. A point without a line "
        "has too few groups for a CI.",
    )


def _tabulate_metrics(evaluation: SubgroupEvaluation, rows: list[Row]) -> Table:
    columns = [Column("subgroup", is_number=False), Column("images")]
    columns += [Column("groups")] if evaluation.clustered else []
    columns += [Column(f"{evaluation.positive} %")] if evaluation.positive else []
    return Table(
        title="Metrics of each subgroup",
        columns=[*columns, *(_make_column(result) for result in rows[0][1].metrics)],
        rows=[
            (
                name,
                f"{subgroup.images:,}",
                *([f"{subgroup.groups:,}"] if evaluation.clustered else []),
                *([make_cell(METRICS["recall"], rate.value, rate.interval)] if (rate := subgroup.prevalence) else []),
                *(
                    make_cell(METRICS[result.key], result.estimate.value, result.estimate.interval)
                    for result in subgroup.metrics
                ),
            )
            for name, subgroup in rows
        ],
    )


def _make_column(result: SubgroupMetric) -> Column:
    """Return the column of a metric, with the target whose threshold decides."""
    return Column(result.short_heading, metric=METRICS[result.key])


def _tabulate_gaps(rows: list[Row]) -> Table:
    return Table(
        title="Gaps to the rest",
        columns=[Column("subgroup", is_number=False), *(_make_column(result) for result in rows[0][1].metrics)],
        rows=[
            (name, *(_make_gap(METRICS[result.key], result) for result in subgroup.metrics)) for name, subgroup in rows
        ],
        note="Subgroup minus rest, with the Holm-corrected p value and the 95% CI, which is not corrected.",
    )


def _make_gap(metric: Metric, result: SubgroupMetric) -> Cell:
    if result.gap.value is None:
        return Cell(MISSING)
    p = "" if result.p_holm is None else f" (p = {result.p_holm:.2g})"
    ci = format_ci(result.gap.interval, metric.format_signed)
    return Cell(f"{metric.format_signed(result.gap.value)}{p}", note=ci)
