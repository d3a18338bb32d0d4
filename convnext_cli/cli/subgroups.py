"""Subgroups of an evaluation, on the terminal."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from convnext_cli.cli import console
from convnext_cli.metrics.registry import METRICS, format_ci

if TYPE_CHECKING:
    from convnext_cli.inference.subgroups import Figure, Subgroup, SubgroupEvaluation


def show_subgroups(evaluation: "SubgroupEvaluation") -> None:
    """Show the metrics of each subgroup, the gaps to the rest, and which of these are significant."""
    from convnext_cli.inference.subgroups import describe_gaps, list_notes

    console.show("")
    console.show("Subgroups", style="bold")
    notes = list_notes(evaluation)
    for grouping in evaluation.groupings:
        console.show(f"{grouping.attribute}: {'; '.join(notes[grouping.attribute])}")
    first = evaluation.groupings[0].subgroups[0]
    unit = "groups" if evaluation.clustered else None
    columns = ["images", *([unit] if unit else []), *(["prevalence %", "95% CI"] if evaluation.positive else [])]
    for number, figure in enumerate(first.figures, start=bool(evaluation.positive)):
        columns += [_head(figure), f"95% CI{' ' * number}"]
    rows = (
        (f"{grouping.attribute} {subgroup.name}", *_list_cells(subgroup, has_groups=evaluation.clustered))
        for grouping in evaluation.groupings
        for subgroup in grouping.subgroups
    )
    console.show_table(["subgroup", *columns], rows, numbers=columns, spare=[*([unit] if unit else [])])
    console.show("")
    gaps = [_head(figure) for figure in first.figures]
    console.show_table(
        ["gap to the rest (p)", *gaps],
        (
            (f"{grouping.attribute} {subgroup.name}", *map(_describe_gap, subgroup.figures))
            for grouping in evaluation.groupings
            for subgroup in grouping.subgroups
        ),
        numbers=gaps,
    )
    for sentence in describe_gaps(evaluation):
        console.show(sentence)


def _head(figure: "Figure") -> str:
    """Return the heading of a metric, with the target whose threshold decides."""
    heading = METRICS[figure.key].short_heading
    return f"{heading} of {figure.of}" if " at " in figure.of else heading


def _list_cells(subgroup: "Subgroup", *, has_groups: bool) -> Iterator[Any]:
    yield f"{subgroup.images:,}"
    if has_groups:
        yield f"{subgroup.groups:,}"
    if subgroup.prevalence is not None:
        value = subgroup.prevalence.value
        yield None if value is None else console.percent(value)
        yield format_ci(subgroup.prevalence.interval) or None
    for figure in subgroup.figures:
        yield METRICS[figure.key].format(figure.estimate.value)
        yield METRICS[figure.key].format_ci(figure.estimate.interval) or None


def _describe_gap(figure: "Figure") -> str | None:
    if figure.gap.value is None:
        return None
    metric = METRICS[figure.key]
    p = "-" if figure.p_holm is None else f"{figure.p_holm:.2g}"
    return f"{metric.scale * figure.gap.value:+.{metric.digits}f} ({p}){'*' * figure.is_significant}"
