"""The part of `convnext eval` on targets: operating points, and whether each target is met."""

from collections.abc import Sequence
from typing import TYPE_CHECKING

from convnext_cli.cli import console
from convnext_cli.metrics.registry import METRICS
from convnext_cli.text import capitalise, format_percent

if TYPE_CHECKING:
    from convnext_cli.inference.evaluation import Evaluation
    from convnext_cli.metrics.thresholds import OperatingPoint

RATES = (("recall", "sensitivity"), ("specificity", "specificity"))
VALUES = ("ppv", "npv", "positive_ratio", "negative_ratio")


def show_targets(evaluation: "Evaluation") -> None:
    """Show what each threshold reaches, which targets are met, and decision curves; warnings have the missed ones."""
    from convnext_cli.metrics.thresholds import describe_met

    show_points(evaluation.operating_points)
    for point in evaluation.operating_points:
        if point.is_met:
            console.show(f"{capitalise(describe_met(point))}.")
    for curve in evaluation.decision_curves:
        console.show(curve.describe())


def show_points(points: "Sequence[OperatingPoint]") -> None:
    """Show what each threshold reaches."""
    if not points:
        return
    columns = ["threshold %"]
    for number, (key, _) in enumerate(RATES):
        columns += [METRICS[key].short_heading, f"95% CI{' ' * number}"]
    values = [METRICS[key].short_heading for key in VALUES]
    console.show("")
    console.show_table(
        ["target", *columns, *values], map(_list_cells, points), numbers=[*columns, *values], spare=values[::-1]
    )


def _list_cells(point: "OperatingPoint") -> list[object]:
    cells: list[object] = [point.threshold.target, format_percent(point.threshold.threshold, 1)]
    for key, field in RATES:
        cells += METRICS[key].list_cells(getattr(point, field), getattr(point, f"{field}_interval"))
    return [*cells, *(METRICS[key].format(getattr(point, key)) for key in VALUES)]
