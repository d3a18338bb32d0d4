"""Drift and recalibration of an evaluation, on the terminal."""

from typing import TYPE_CHECKING

from convnext_cli.cli import console
from convnext_cli.text import format_count, format_percent

if TYPE_CHECKING:
    from convnext_cli.inference.drift import Drift
    from convnext_cli.inference.recalibration import Recalibration
    from convnext_cli.tasks.task import Display


def show_drift(drift: "Drift") -> None:
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
    if drift.flagged is not None:
        console.show(
            f"{format_percent(drift.flagged)}% of the images are above the OOD threshold; of validation images "
            f"at most {format_percent(drift.expected)}% are"
        )
    console.show(
        f"Compared: {format_count(drift.images, 'image')} with {drift.validation_images:,}; drift: {drift.criterion}"
    )


def show_recalibration(recalibration: "Recalibration", display: "Display") -> None:
    """Show what a recalibration changes on the other images."""
    keys = dict.fromkeys((*(key for _, key in display.calibration), *display.compared))
    console.show("")
    console.show(
        f"Recalibrated on {format_count(recalibration.images, 'image')} ({recalibration.description}); "
        f"change on the other images: {recalibration.gain.describe(keys)}"
    )
