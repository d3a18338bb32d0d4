"""Section of a report on groups, such as patients: metrics per image and per group side by side."""

from dataclasses import replace

from convnext_cli.metrics.registry import METRICS
from convnext_cli.progress import Notice
from convnext_cli.reports.section import Column, ReportData, Section, Table, make_cell, make_class_table
from convnext_cli.reports.targets import tabulate_points
from convnext_cli.text import capitalise


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
        f"{capitalise(headline.title)} per group {per_group}; per image {per_image}.",
        f"{result.describe_groups()}. {result.describe_pooling(evaluation.task)}.",
        *result.notes,
    ]
    keys = [key for key in display.table if getattr(result.metrics, key) is not None]
    blocks = [
        Table(
            title="Metrics per image and per group",
            columns=[Column("metric", is_number=False), Column("per image"), Column("per group")],
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
            note=f"95% CIs per group: {replace(result.intervals, clustered=True).method}.",
        )
    ]
    if result.metrics.per_class:
        shown = [METRICS[key] for key in display.class_estimates]
        rows = zip(result.metrics.per_class, result.intervals.per_class, strict=True)
        blocks.append(make_class_table(display.target_word, {"images": "groups"}, shown, rows))
    if result.operating_points:
        fields = ("sensitivity", "specificity")
        blocks.append(tabulate_points(result.operating_points, "Operating points per group", fields))
    return Section(title="Per patient or group", sentences=sentences, blocks=blocks)
