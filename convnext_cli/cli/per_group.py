"""Show the results of `convnext eval --per group`: metrics per image and per group side by side."""

from typing import TYPE_CHECKING

from convnext_cli.cli import console
from convnext_cli.metrics.registry import METRICS

if TYPE_CHECKING:
    from convnext_cli.inference.evaluation import Evaluation
    from convnext_cli.inference.per_group import GroupEvaluation


def show_groups(evaluation: "Evaluation", result: "GroupEvaluation") -> None:
    """Show the pooling, and the metrics per image and per group."""
    console.show("")
    console.show(f"Per group: {result.describe_groups()}", style="bold")
    console.show(result.describe_pooling(evaluation.task))
    for note in result.notes:
        console.notify(note)
    console.show("")
    columns = ["per image", "95% CI", "per group", "95% CI "]
    console.show_table(
        ["metric", *columns],
        (_list_cells(evaluation, result, key) for key in evaluation.task.display.table),
        numbers=columns,
    )


def _list_cells(evaluation: "Evaluation", result: "GroupEvaluation", key: str) -> list[str]:
    """Return the row of a metric: per image with its 95% CI, and per group."""
    metric = METRICS[key]
    cells = [metric.heading]
    for metrics, intervals in ((evaluation.metrics, evaluation.intervals), (result.metrics, result.intervals)):
        cells += metric.list_cells(getattr(metrics, key), intervals.overall[key])
    return cells
