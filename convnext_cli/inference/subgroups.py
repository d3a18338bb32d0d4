"""Metrics of subgroups of the evaluated images, such as women, children and each site, and their gaps to the rest."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.attributes import Attribute, parse_attributes, read_attributes
from convnext_cli.data.index import select_rows
from convnext_cli.errors import UsageError
from convnext_cli.inference.evaluated_images import EvaluatedImages
from convnext_cli.inference.request import EvalRequest
from convnext_cli.inference.test_set import TestSet
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.intervals import UNDEFINED, Estimate, count_units, estimate_fraction, number_units, subtract
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.subgroups import (
    LEVEL,
    Compute,
    choose_permutations,
    choose_strata,
    compute_p_values,
    correct_holm,
    measure_influence,
)
from convnext_cli.metrics.summary import none_if_nan
from convnext_cli.metrics.thresholds import Threshold
from convnext_cli.progress import Progress, Steps
from convnext_cli.text import format_count, shorten_name, shorten_names

SMALL_GROUPS = 10  # groups of a subgroup; with fewer it is called small
SMALL_CLASS = 5  # images of each class


@dataclass(frozen=True, kw_only=True, slots=True)
class SubgroupMetric:
    """A metric of a subgroup, and its gap to the rest."""

    key: str
    """Of the metric, in `metrics.registry`."""
    of: str
    """The class that it is of, and the target whose threshold decides; empty for all classes."""
    target: str
    """The same where a target's threshold decides, else empty."""
    estimate: Estimate
    rest: Estimate
    """Of all images with another known value."""
    gap: Estimate
    """Subgroup minus rest."""
    p_value: float | None = None
    """Of the permutation test over groups; None where there is nothing to permute."""
    p_holm: float | None = None
    """Corrected for all gaps of the evaluation (Holm 1979)."""

    @property
    def title(self) -> str:
        """The metric's title, with its class."""
        return f"{METRICS[self.key].title}{f' of {self.of}' if self.of else ''}"

    @property
    def short_heading(self) -> str:
        """The heading of a narrow column, with the target."""
        heading = METRICS[self.key].short_heading
        return f"{heading} of {self.target}" if self.target else heading

    @property
    def is_significant(self) -> bool:
        """True if the corrected p value is below 0.05."""
        return self.p_holm is not None and self.p_holm < LEVEL

    @property
    def is_worse(self) -> bool:
        """True if the subgroup is worse than the rest."""
        gap = self.gap.value or 0.0
        return gap < 0 if METRICS[self.key].higher_is_better else gap > 0


@dataclass(frozen=True, kw_only=True, slots=True)
class Subgroup:
    """The images with one value of an attribute."""

    name: str
    images: int
    groups: int
    """Number of groups; of images where groups are not known."""
    prevalence: Estimate | None
    """Fraction of the positive class, of two classes; else None."""
    metrics: tuple[SubgroupMetric, ...]
    small: str | None
    """Reason to call the subgroup small; None if it is not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class AttributeSubgroups:
    """The subgroups by one attribute."""

    attribute: str
    source: str
    """In words."""
    cuts: str
    """Description of the bins of numbers; empty if not binned."""
    unknown: int
    """Images without a value; they are in no subgroup and in no rest."""
    example: str
    """The path of one of these; empty if there is none."""
    subgroups: tuple[Subgroup, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class SubgroupEvaluation:
    """All subgroups of an evaluation."""

    groupings: tuple[AttributeSubgroups, ...]
    positive: str | None
    """The positive class, of two classes; else None."""
    tests: int
    """Number of gaps that the p values are corrected for."""
    permutations: int
    clustered: bool
    """True if groups were permuted, not single images."""

    def list_significant(self) -> list[tuple[str, Subgroup, SubgroupMetric]]:
        """Return attribute, subgroup and result of each significant gap, the smallest p value first.

        Where there are two subgroups, a gap is that of both; the worse one has it here.
        """
        rows = [
            (grouping.attribute, subgroup, result)
            for grouping in self.groupings
            for subgroup in grouping.subgroups
            for result in subgroup.metrics
            if result.is_significant and (len(grouping.subgroups) > 2 or result.is_worse)
        ]
        return sorted(rows, key=lambda row: row[2].p_holm or 0.0)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Metric:
    key: str
    k: int | None = None
    """The class; None for an overall metric."""
    threshold: Threshold | None = None
    """Decides for its target; None for the task's decision."""

    def name(self, classes: Sequence[str]) -> str:
        if self.threshold is not None:
            return f"{self.threshold.target.name} at {self.threshold.target}"
        return "" if self.k is None else classes[self.k]


def read_subgroups(request: EvalRequest, test_set: TestSet) -> Steps[list[Attribute]]:
    """Return the attributes of the evaluated images that a request names; an empty list where it names none.

    Raises:
        UsageError: their names cannot be read, or one has too many values.
        DataError: there is no such column or DICOM attribute.
    """
    if request.subgroups is None:
        if request.subgroup_table is not None:
            raise UsageError("--subgroup-table names no columns", "Name them with --subgroups")
        return []
    cuts = parse_attributes(request.subgroups)
    selection = select_rows(test_set.index, test_set.rows)
    return (yield from read_attributes(selection, cuts, table=request.subgroup_table, option="--subgroups"))


def measure_subgroups(images: EvaluatedImages, attributes: Sequence[Attribute]) -> Steps[SubgroupEvaluation]:
    """Compute the metrics of each subgroup, and test their gaps to the rest."""
    metrics, positive = _list_metrics(images)
    total = sum(len(attribute.levels) for attribute in attributes)
    permutations = choose_permutations(len(images), total * len(metrics))
    groupings: list[AttributeSubgroups] = []
    for attribute in attributes:
        known = np.flatnonzero(np.array(attribute.values) != "")
        selection = images.select(known)
        values = np.array(attribute.values)[known]
        subgroups: list[Subgroup] = []
        p_values: list[float | None] = []
        for level in attribute.levels:
            done = sum(len(grouping.subgroups) for grouping in groupings) + len(subgroups)
            yield Progress(done=done, total=total, activity=f"subgroups by {attribute.name}")
            inside = values == level
            if not subgroups or len(attribute.levels) > 2:  # the gap of two subgroups is one, and has one p value
                p_values = _test(selection, inside, metrics, permutations)
            subgroups.append(_measure_subgroup(level, selection, inside, metrics, positive, p_values))
        groupings.append(
            AttributeSubgroups(
                attribute=attribute.name,
                source=attribute.source,
                cuts=attribute.cuts,
                unknown=len(attribute.values) - len(known),
                example=attribute.example,
                subgroups=tuple(subgroups),
            )
        )
    groupings, tests = _correct(groupings)
    return SubgroupEvaluation(
        groupings=tuple(groupings),
        positive=None if positive is None else images.classes[positive],
        tests=tests,
        permutations=permutations,
        clustered=images.groups is not None,
    )


def _list_metrics(images: EvaluatedImages) -> tuple[list[_Metric], int | None]:
    """Return the metrics of each subgroup, and the positive class where there are two.

    The positive class is that of the first target, else the last. Thresholds of targets replace the task's decision.
    """
    display, classes = images.task.display, images.classes
    thresholds = images.calibration.thresholds if images.calibration else ()
    points = [
        _Metric(key=key, k=threshold.target.list_positive(classes)[0], threshold=threshold)
        for threshold in thresholds
        for key in ("recall", "specificity")
    ]
    if len(classes) != 2 or not display.subgroups_of_two:
        return [*(_Metric(key=key) for key in display.subgroups), *points], None
    positive = points[0].k if points else 1
    per_class = images.make_calculator().per_class
    own = [
        _Metric(key=key, k=positive if key in per_class else None)
        for key in display.subgroups_of_two
        if not (points and key in ("recall", "specificity"))
    ]
    return [*points, *own], positive


def _measure_subgroup(
    name: str,
    images: EvaluatedImages,
    inside: NDArray[np.bool_],
    metrics: Sequence[_Metric],
    positive: int | None,
    p_values: Sequence[float | None],
) -> Subgroup:
    """Return the metrics of the images inside a subgroup; `p_values` are those of its gaps to the rest."""
    selection, rest = (images.select(np.flatnonzero(part)) for part in (inside, ~inside))
    estimates = _estimate(selection, metrics)
    others = _estimate(rest, metrics) if len(rest) else [UNDEFINED] * len(metrics)
    results = [
        SubgroupMetric(
            key=metric.key,
            of=metric.name(images.classes),
            target=metric.name(images.classes) if metric.threshold else "",
            estimate=estimate,
            rest=other,
            gap=subtract(metric.key, estimate, other),
            p_value=p,
        )
        for metric, estimate, other, p in zip(metrics, estimates, others, p_values, strict=True)
    ]
    return Subgroup(
        name=name,
        images=len(selection),
        groups=count_units(len(selection), selection.groups),
        prevalence=None if positive is None else estimate_fraction(*selection.select_known(positive), selection.groups),
        metrics=tuple(results),
        small=_explain_small(selection, metrics),
    )


def _estimate(images: EvaluatedImages, metrics: Sequence[_Metric]) -> list[Estimate]:
    """Return each metric with its 95% CI, clustered by groups."""
    intervals = images.compute_intervals()
    values = _make_compute(images, metrics)(np.ones((1, len(images))))[0]
    estimates = []
    for metric, value in zip(metrics, values, strict=True):
        if metric.threshold is not None:
            interval = estimate_fraction(*_list_hits(images, metric), images.groups).interval
        elif metric.k is None:
            interval = intervals.overall[metric.key]
        else:
            interval = intervals.per_class[metric.k][metric.key]
        estimates.append(Estimate(none_if_nan(value), interval))
    return estimates


def _list_hits(images: EvaluatedImages, metric: _Metric) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return which images a threshold decides correctly, and which of them count, both (N,)."""
    assert metric.threshold is not None
    scores, positive, known = images.judge(metric.threshold.target)
    predicted = scores >= metric.threshold.threshold
    return (predicted, positive & known) if metric.key == "recall" else (~predicted, ~positive & known)


def _make_compute(images: EvaluatedImages, metrics: Sequence[_Metric]) -> Compute:
    """Return the function from weights (C, N) to the metrics of each weighting, (C, M)."""
    calculator = images.make_calculator()
    hits = [None if metric.threshold is None else _list_hits(images, metric) for metric in metrics]

    def compute(weights: Floats) -> Floats:
        overall, per_class = calculator.compute(weights)
        columns: list[Floats] = []
        for metric, pair in zip(metrics, hits, strict=True):
            if pair is not None:
                with np.errstate(invalid="ignore", divide="ignore"):
                    columns.append(weights @ (pair[0] & pair[1]) / (weights @ pair[1]))
            else:
                columns.append(overall[metric.key] if metric.k is None else per_class[metric.key][:, metric.k])
        return np.stack(columns, axis=1)

    return compute


def _test(
    images: EvaluatedImages, inside: NDArray[np.bool_], metrics: Sequence[_Metric], permutations: int
) -> list[float | None]:
    """Return the p value of each gap; None without a rest. A group with images on both sides counts as two."""
    if inside.all():
        return [None] * len(metrics)
    groups = number_units(len(images), images.groups)
    units = np.unique(2 * groups + inside, return_inverse=True)[1].reshape(-1)
    members = np.zeros(int(units.max()) + 1, np.bool_)
    members[units] = inside
    strata = images.task.list_strata(images.targets)
    numbers = choose_strata(members, units, strata)
    compute = _make_compute(images, metrics)
    return compute_p_values(compute, members, units, numbers, measure_influence(compute, units), permutations)


def _explain_small(images: EvaluatedImages, metrics: Sequence[_Metric]) -> str | None:
    """Return why a subgroup is small: few groups, or few images of a class; None if it is not."""
    groups = count_units(len(images), images.groups)
    few = [format_count(groups, "group" if images.groups is not None else "image")] if groups < SMALL_GROUPS else []
    too_few = 1 if few else SMALL_CLASS  # of few groups, each class has few images
    has_averages = any(metric.k is None and METRICS[metric.key].average_of for metric in metrics)
    for k, name in enumerate(images.classes):
        positive, known = images.select_known(k)
        if known.any() and (count := int((positive & known).sum())) < too_few:
            left_out = ", which averages leave out" if has_averages and not count else ""
            few.append(f"{count} of {images.task.describe_name(name)}{left_out}")
    return shorten_names(few) if few else None


def _correct(groupings: Sequence[AttributeSubgroups]) -> tuple[list[AttributeSubgroups], int]:
    """Return the groupings with corrected p values, and the number of tests; both sides of two count once."""
    tested = [
        subgroup
        for grouping in groupings
        for subgroup in (grouping.subgroups[:1] if len(grouping.subgroups) == 2 else grouping.subgroups)
    ]
    p_values = [result.p_value for subgroup in tested for result in subgroup.metrics]
    corrected = dict(zip(p_values, correct_holm(p_values), strict=True))  # equal p values stay equal

    def correct(subgroup: Subgroup) -> Subgroup:
        results = (replace(result, p_holm=corrected[result.p_value]) for result in subgroup.metrics)
        return replace(subgroup, metrics=tuple(results))

    groupings = [replace(grouping, subgroups=tuple(map(correct, grouping.subgroups))) for grouping in groupings]
    return groupings, sum(p is not None for p in p_values)


def describe_gaps(evaluation: SubgroupEvaluation) -> list[str]:
    """Return a sentence on the number of significant gaps, and one for each of them."""
    if not evaluation.tests:
        return ["No gap to the rest could be tested."]
    significant = evaluation.list_significant()
    unit = "groups" if evaluation.clustered else "images"
    method = (
        f"permutation test over {unit}, stratified by target, Holm-corrected for "
        f"{format_count(evaluation.tests, 'gap')}, at most {evaluation.permutations:,} permutations"
    )
    if not significant:
        return [f"No gap to the rest is significant at 0.05 ({method}). A small subgroup can hide a gap."]
    count = format_count(len(significant), "gap to the rest is", "gaps to the rest are")
    return [f"{count} significant at 0.05 ({method}):", *(_describe_gap(*row) for row in significant)]


def _describe_gap(attribute: str, subgroup: Subgroup, result: SubgroupMetric) -> str:
    metric = METRICS[result.key]
    value, rest = (metric.format_with_unit(part.value) for part in (result.estimate, result.rest))
    small = f"; small: {subgroup.small}" if subgroup.small else ""
    return f"{attribute} {subgroup.name}: {result.title} {value}, the rest {rest}; p = {result.p_holm:.2g}{small}"


def list_notes(evaluation: SubgroupEvaluation) -> Mapping[str, list[str]]:
    """Return notes on each attribute: its source, its cuts, images without a value, small subgroups."""
    notes: dict[str, list[str]] = {}
    for grouping in evaluation.groupings:
        parts = [grouping.source, *([grouping.cuts] if grouping.cuts else [])]
        if grouping.unknown:
            number = format_count(grouping.unknown, "image without a value is", "images without a value are")
            parts.append(f"{number} left out, such as {shorten_name(grouping.example)}")
        if len(grouping.subgroups) < 2:
            parts.append("one value only, so there is no gap")
        parts += [f"{group.name} is small ({group.small})" for group in grouping.subgroups if group.small]
        notes[grouping.attribute] = parts
    return notes
