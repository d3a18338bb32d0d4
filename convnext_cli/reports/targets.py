"""Section of a report on the operating points: which targets are met."""

from convnext_cli.metrics.registry import METRICS
from convnext_cli.progress import Notice
from convnext_cli.reports.section import Cell, Column, ReportData, Section, Table, make_cell, make_column


def show_targets(report: ReportData) -> Section | None:
    """Return the targets with what they reach on validation and on these images."""
    points = report.evaluation.operating_points
    if not points:
        return None
    recall, specificity = METRICS["recall"], METRICS["specificity"]
    sentences: list[str | Notice] = [
        "The thresholds were set on these same images; measure them on other images."
        if report.evaluation.split == "val"
        else "The thresholds were set on the validation split and applied to these images; predict applies them too."
    ]
    table = Table(
        title="Operating points",
        columns=[
            Column(heading="target", is_number=False),
            Column(heading="threshold %"),
            Column(heading="on validation %"),
            make_column(recall),
            make_column(specificity),
        ],
        rows=[
            (
                str(point.threshold.target),
                f"{100 * point.threshold.threshold:.1f}",
                Cell(text=f"{100 * point.threshold.reached:.1f}", note=f"of {point.threshold.images:,}"),
                make_cell(recall, point.sensitivity, point.sensitivity_interval),
                make_cell(specificity, point.specificity, point.specificity_interval),
            )
            for point in points
        ],
    )
    return Section(title="Targets", sentences=sentences, blocks=[table])
