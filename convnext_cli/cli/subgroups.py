"""Subgroups of an evaluation, on the terminal."""

from collections.abc import Iterator
from itertools import groupby
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
    start = 0
    for target, results in groupby(evaluation.groupings[0].subgroups[0].metrics, lambda result: result.target):
        end = start + len(list(results))
        if target:
            console.show(f"{target}:")
        _show_metrics(evaluation, slice(start, end))
        start = end
    for sentence in describe_gaps(evaluation):
        console.show(sentence)


def _show_metrics(evaluation: "SubgroupEvaluation", part: slice) -> None:
    """Show a part of the metrics, with the subgroups' images before the first one, and the gaps to the rest."""
    first = evaluation.groupings[0].subgroups[0]
    unit = ["groups"] * evaluation.clustered
    columns: list[str] = []
    if not part.start:
        columns += ["images", *unit, *(["prevalence %", "95% CI"] if evaluation.positive else [])]
    for number, result in enumerate(first.metrics[part], start=bool(evaluation.positive)):
        columns += [METRICS[result.key].short_heading, f"95% CI{' ' * number}"]
    subgroups = [
        (f"{grouping.attribute} {subgroup.name}", subgroup)
        for grouping in evaluation.groupings
        for subgroup in grouping.subgroups
    ]
    rows = (
        (
            name,
            *([] if part.start else _list_counts(subgroup, has_groups=evaluation.clustered)),
            *_list_cells(subgroup, part),
        )
        for name, subgroup in subgroups
    )
    console.show_table(["subgroup", *columns], rows, numbers=columns, spare=unit)
    console.show("")
    gaps = [METRICS[result.key].short_heading for result in first.metrics[part]]
    rows = ((name, *map(_describe_gap, subgroup.metrics[part])) for name, subgroup in subgroups)
    console.show_table(["gap to the rest (p)", *gaps], rows, numbers=gaps)
    console.show("")


def _list_counts(subgroup: "Subgroup", *, has_groups: bool) -> Iterator[Any]:
    yield f"{subgroup.images:,}"
    if has_groups:
        yield f"{subgroup.groups:,}"
    if subgroup.prevalence is not None:
        value = subgroup.prevalence.value
        yield None if value is None else console.percent(value)
        yield format_ci(subgroup.prevalence.interval) or None


def _list_cells(subgroup: "Subgroup", part: slice) -> Iterator[Any]:
    for result in subgroup.metrics[part]:
        yield from METRICS[result.key].list_cells(result.estimate.value, result.estimate.interval)


def _describe_gap(result: "SubgroupMetric") -> str | None:
    if result.gap.value is None:
        return None
    p = "-" if result.p_holm is None else f"{result.p_holm:.2g}"
    return f"{METRICS[result.key].format_signed(result.gap.value)} ({p}){'*' * result.is_significant}"
