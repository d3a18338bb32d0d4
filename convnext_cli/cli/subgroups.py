"""Subgroups of an evaluation, on the terminal."""

from collections.abc import Iterator
from typing import TYPE_CHECKING, Any

from convnext_cli.cli import console
from convnext_cli.metrics.registry import METRICS, format_ci
from convnext_cli.text import format_percent

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
    targets = list(dict.fromkeys(result.target for result in evaluation.groupings[0].subgroups[0].metrics))
    for target in targets:
        if target:
            console.show(f"{target}:")
        _show_metrics(evaluation, target, has_counts=target == targets[0])
    for sentence in describe_gaps(evaluation):
        console.show(sentence)


def _show_metrics(evaluation: "SubgroupEvaluation", target: str, *, has_counts: bool) -> None:
    """Show the metrics of a target, the subgroups' images before them if `has_counts`, and the gaps to the rest."""
    subgroups = [
        (f"{grouping.attribute} {subgroup.name}", subgroup, [m for m in subgroup.metrics if m.target == target])
        for grouping in evaluation.groupings
        for subgroup in grouping.subgroups
    ]
    headings = [METRICS[result.key].short_heading for result in subgroups[0][2]]
    unit = ["groups"] * (has_counts and evaluation.clustered)
    columns = ["images", *unit, *(["prevalence %", "95% CI"] if evaluation.positive else [])] if has_counts else []
    for number, heading in enumerate(headings, start=bool(evaluation.positive)):
        columns += [heading, f"95% CI{' ' * number}"]
    rows = (
        (name, *(_list_counts(subgroup, has_groups=evaluation.clustered) if has_counts else ()), *_list_cells(metrics))
        for name, subgroup, metrics in subgroups
    )
    console.show_table(["subgroup", *columns], rows, numbers=columns, spare=unit, part="subgroup")
    console.show("")
    rows = ((name, *map(_describe_gap, metrics)) for name, _, metrics in subgroups)
    console.show_table(["gap to the rest (p)", *headings], rows, numbers=headings, part="subgroup")
    console.show("")


def _list_counts(subgroup: "Subgroup", *, has_groups: bool) -> Iterator[Any]:
    yield f"{subgroup.images:,}"
    if has_groups:
        yield f"{subgroup.groups:,}"
    if subgroup.prevalence is not None:
        value = subgroup.prevalence.value
        yield None if value is None else format_percent(value, 1)
        yield format_ci(subgroup.prevalence.interval) or None


def _list_cells(metrics: "list[SubgroupMetric]") -> Iterator[Any]:
    for result in metrics:
        yield from METRICS[result.key].list_cells(result.estimate.value, result.estimate.interval)


def _describe_gap(result: "SubgroupMetric") -> str | None:
    if result.gap.value is None:
        return None
    p = "-" if result.p_holm is None else f"{result.p_holm:.2g}"
    return f"{METRICS[result.key].format_signed(result.gap.value)} ({p}){'*' * result.is_significant}"
