"""Section of a report on groups, such as patients: metrics per image and per group side by side."""

from convnext_cli.metrics.registry import METRICS
from convnext_cli.progress import Notice
from convnext_cli.reports.section import Cell, Column, ReportData, Section, Table, make_cell, make_column
from convnext_cli.text import format_percent


def show_groups(report: ReportData) -> Section | None:
    """Return the metrics per image and per group, those of each class, and the targets."""
    evaluation = report.evaluation
    result, display = evaluation.per_group, evaluation.task.display
    if result is None:
        return None
    headline = METRICS[display.headline]
    per_image, per_group = (
        headline.format_estimate(getattr(part.metrics, headline.key), part.intervals.overall[headline.key])
        for part in (evaluation, result)
    )
    sentences: list[str | Notice] = [
        f"{headline.title.capitalize()} per group {per_group}; per image {per_image}.",
        f"{result.describe_groups()}. {result.describe_pooling(evaluation.task)}.",
        *result.notes,
    ]
    keys = [key for key in display.table if getattr(result.metrics, key) is not None]
    blocks = [
        Table(
            title="Metrics per image and per group",
            columns=[
                Column(heading="metric", is_number=False),
                Column(heading="per image"),
                Column(heading="per group"),
            ],
            rows=[
                (
                    METRICS[key].heading,
                    *(
                        make_cell(METRICS[key], getattr(part.metrics, key), part.intervals.overall[key])
                        for part in (evaluation, result)
                    ),
                )
                for key in keys
            ],
            note=f"95% CIs per group: bootstrap with {result.intervals.resamples:,} resamples of groups.",
        )
    ]
    if result.metrics.per_class:
        columns = [METRICS[key] for key in display.class_estimates]
        blocks.append(
            Table(
                title=f"{display.class_heading}, per group",
                columns=[
                    Column(heading="class", is_number=False),
                    Column(heading="groups"),
                    *map(make_column, columns),
                ],
                rows=[
                    (
                        entry.name,
                        f"{entry.images:,}",
                        *(make_cell(metric, getattr(entry, metric.key), of_class[metric.key]) for metric in columns),
                    )
                    for entry, of_class in zip(result.metrics.per_class, result.intervals.per_class, strict=True)
                ],
            )
        )
    return Section(title="Per patient or group", sentences=sentences, blocks=[*blocks, *_list_targets(report)])


def _list_targets(report: ReportData) -> list[Table]:
    """Return the table of the targets per group, if there are some."""
    result = report.evaluation.per_group
    recall, specificity = METRICS["recall"], METRICS["specificity"]
    if result is None or not result.operating_points:
        return []
    return [
        Table(
            title="Operating points per group",
            columns=[
                Column(heading="target", is_number=False),
                Column(heading="threshold %"),
                make_column(recall),
                make_column(specificity),
            ],
            rows=[
                (
                    str(point.threshold.target),
                    Cell(text=format_percent(point.threshold.threshold, 1)),
                    make_cell(recall, point.sensitivity, point.sensitivity_interval),
                    make_cell(specificity, point.specificity, point.specificity_interval),
                )
                for point in result.operating_points
            ],
        )
    ]
