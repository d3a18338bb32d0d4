"""Sections of a report on other data: internal beside external metrics, drift, recalibration."""

from typing import Any

from convnext_cli.inference.drift import COLUMNS
from convnext_cli.metrics.intervals import Interval
from convnext_cli.metrics.registry import METRICS
from convnext_cli.reports.section import Cell, Column, ReportData, Section, Table, make_cell
from convnext_cli.runs.folds import FoldsFolder
from convnext_cli.text import format_count

SHOWN = 3  # metrics of each left-out value


def show_left_out(report: ReportData) -> Section | None:
    """Return the metrics on each left-out value beside those on the validation images of the other values."""
    entries = report.run.read_left_out() if isinstance(report.run, FoldsFolder) else ()
    if not entries:
        return None
    metrics = [METRICS[key] for key in report.evaluation.task.display.folds[:SHOWN]]
    tables = [
        Table(
            title=metric.title,
            columns=[
                Column("left out", is_number=False),
                Column("images"),
                Column(f"internal {metric.unit}".strip(), metric=metric),
                Column("left-out images"),
                Column(f"external {metric.unit}".strip(), metric=metric),
            ],
            rows=[
                (
                    entry["name"],
                    *_list_cells(metric.key, entry["internal"]),
                    *_list_cells(metric.key, entry["external"]),
                )
                for entry in entries
            ],
        )
        for metric in metrics
    ]
    names = ", ".join(entry["name"] for entry in entries)
    meaning = (
        "Internal: validation images of the other values, used to choose the epoch. External: all images of the value, "
        "which were left out of training."
    )
    return Section(
        title="Internal and external",
        sentences=[f"For each of {names}, a model was trained on the others and tested on it.", meaning],
        blocks=tables,
    )


def _list_cells(key: str, part: dict[str, Any]) -> tuple[str, Cell]:
    """Return the cells of the number of images and of a metric, as `metrics.json` has them."""
    interval = part["intervals"].get(key)
    cell = make_cell(METRICS[key], part["values"].get(key), interval and Interval(**interval))
    return f"{part['images']:,}", cell


def show_drift(report: ReportData) -> Section | None:
    """Return how the images differ from the run's validation images, and what a recalibration changes."""
    evaluation = report.evaluation
    drift, recalibration = evaluation.drift, evaluation.recalibration
    if drift is None and recalibration is None:
        return None
    sentences, blocks = [], []
    if drift is not None:
        differ = "differ from" if drift.images_drifted else "are not found to differ from"
        sentences.append(
            f"These images {differ} the run's validation images."
            if drift.is_tested
            else "There are too few images to test whether they differ from the run's validation images."
        )
        if flagged := drift.describe_flagged():
            sentences.append(f"{flagged}.")
        blocks.append(
            Table(
                title="Compared with the validation images",
                columns=[Column(name, is_number=name in COLUMNS[1:-1]) for name in COLUMNS],
                rows=[measure.list_cells() for measure in drift.measures],
                note=f"{drift.describe_comparison()}.",
            )
        )
    if recalibration is not None:
        change = recalibration.describe_change(evaluation.task.display)
        sentences.append(
            f"The calibration was fitted on {format_count(recalibration.images, 'other image')} of this folder "
            f"({recalibration.description}); the run keeps its own."
            + (f" Change from that one on these images: {change}." if change else "")
        )
    return Section(title="Drift", sentences=sentences, blocks=blocks)
