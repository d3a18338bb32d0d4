"""Subgroups of an evaluation, on the terminal."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from convnext_cli.cli import console
from convnext_cli.metrics.registry import METRICS, format_ci

if TYPE_CHECKING:
    from convnext_cli.inference.subgroups import Subgroup, SubgroupEvaluation, SubgroupMetric


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
    for number, result in enumerate(first.metrics, start=bool(evaluation.positive)):
        columns += [result.short_heading, f"95% CI{' ' * number}"]
    rows = (
        (f"{grouping.attribute} {subgroup.name}", *_list_cells(subgroup, has_groups=evaluation.clustered))
        for grouping in evaluation.groupings
        for subgroup in grouping.subgroups
    )
    console.show_table(["subgroup", *columns], rows, numbers=columns, spare=[*([unit] if unit else [])])
    console.show("")
    gaps = [result.short_heading for result in first.metrics]
    console.show_table(
        ["gap to the rest (p)", *gaps],
        (
            (f"{grouping.attribute} {subgroup.name}", *map(_describe_gap, subgroup.metrics))
            for grouping in evaluation.groupings
            for subgroup in grouping.subgroups
        ),
        numbers=gaps,
    )
    for sentence in describe_gaps(evaluation):
        console.show(sentence)


def _list_cells(subgroup: "Subgroup", *, has_groups: bool) -> Iterator[Any]:
    yield f"{subgroup.images:,}"
    if has_groups:
        yield f"{subgroup.groups:,}"
    if subgroup.prevalence is not None:
        value = subgroup.prevalence.value
        yield None if value is None else console.percent(value)
        yield format_ci(subgroup.prevalence.interval) or None
    for result in subgroup.metrics:
        yield from METRICS[result.key].list_cells(result.estimate.value, result.estimate.interval)


def _describe_gap(result: "SubgroupMetric") -> str | None:
    if result.gap.value is None:
        return None
    p = "-" if result.p_holm is None else f"{result.p_holm:.2g}"
    return f"{METRICS[result.key].format_signed(result.gap.value)} ({p}){'*' * result.is_significant}"
