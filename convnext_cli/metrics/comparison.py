"""Comparison of two models on the same images: a paired bootstrap, and McNemar's test."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from convnext_cli.metrics.calculator import Calculator, Floats, Ints
from convnext_cli.metrics.intervals import (
    DF_FACTOR,
    MIN_UNITS,
    ROUNDING,
    Estimate,
    Interval,
    bound_sums,
    choose_resamples,
    count_class_units,
    count_effective,
    number_units,
    resample,
    score_interval,
    select_averaged,
    subtract,
    t_quantile,
)
from convnext_cli.metrics.registry import METRICS

MANY = 1e9  # degrees of freedom, of which Student's distribution is the normal one


@dataclass(frozen=True, slots=True)
class Difference:
    """The second model's metric minus the first's, with its 95% CI."""

    value: float
    interval: Interval | None
    """None where nothing says how large it may be: all resamples have the same difference, or there is one group."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Differences between two models on the same images."""

    differences: dict[str, Difference | None]
    """By the keys of `Metrics`; None where a metric is not defined."""
    only_first_right: int | None
    """Images that only the first model predicts correctly; None where no image is simply right or wrong."""
    only_second_right: int | None
    """Images that only the second model predicts correctly."""
    p_value: float | None
    """Of McNemar's exact test for equal accuracy; with groups, of an exact sign-flip test of their gains."""
    clustered: bool
    """True if groups were resampled, not single images."""
    notes: tuple[str, ...] = ()
    """Notes of both evaluations, each after the path of its run."""

    def describe(self, keys: Iterable[str]) -> str:
        """Return the differences of these metrics with their 95% CIs, without those that are not defined."""
        known = ((METRICS[key], difference) for key in keys if (difference := self.differences.get(key)))
        return "; ".join(f"{metric.title} {metric.format_difference(difference)}" for metric, difference in known)


def compare(
    first: Calculator, second: Calculator, groups: Sequence[str] | None = None, order: Sequence[int] | None = None
) -> Comparison:
    """Compare two models image by image.

    The second model predicts the same images and targets. Images of the same group are not independent.

    `order` has the place of each class of the first model among those of the second; None where it is the same.

    Returns:
        The differences, the second model minus the first.
    """
    units = number_units(first.images, groups)
    places = slice(None) if order is None else np.array(order)

    def compute_both(weights: Floats) -> tuple[dict[str, Floats], ...]:
        (before, parts), (after, other_parts) = (model.compute(weights) for model in (first, second))
        gaps: dict[str, Floats] = {
            name: select_averaged(name, other_parts[key][:, places], first) - select_averaged(name, parts[key], first)
            for name in first.overall
            if (key := METRICS[name].average_of)
        }
        return before, after, gaps

    chunks = resample(compute_both, units, choose_resamples(2 * first.images * max(1, first.num_classes)), seed=0)
    point = compute_both(np.ones((1, first.images)))
    before, after, gaps = (  # the models' own metrics in the first row, then the replicates
        {name: np.concatenate([part[name] for part in (values, *(chunk[i] for chunk in chunks))]) for name in values}
        for i, values in enumerate(point)
    )
    of_first, of_second = (count_class_units(model, units) for model in (first, second))
    unknown: dict[str, Floats] = dict.fromkeys(first.overall, np.empty((0, 2)))
    for name, gap in gaps.items():
        key = METRICS[name].average_of or ""
        fewest = np.minimum(of_first[key], np.array(of_second[key])[places])[first.present]
        unknown[name] = _list_unknown(gap[0], gap[1:], fewest)
    num = count_effective(units[first.select_counted()])
    differences = {name: _difference(name, before[name], after[name], num, unknown[name]) for name in first.overall}
    sums = [bound_sums(model, units)[0] for model in (first, second)]
    for name, difference in differences.items():
        if METRICS[name].is_raised_by_noise and difference and difference.interval:
            one, two = (Estimate(of[name][0], ci.get(name)) for of, ci in zip((before, after), sums, strict=True))
            differences[name] = Difference(difference.value, subtract(name, two, one).interval)
    discordant: dict[str, Any] = {"only_first_right": None, "only_second_right": None, "p_value": None}
    if first.correct is not None and second.correct is not None:
        gain = second.correct.astype(np.int64) - first.correct
        discordant = {"only_first_right": int((gain < 0).sum()), "only_second_right": int((gain > 0).sum())}
        discordant["p_value"] = _test(np.bincount(units, gain).astype(np.int64))
    return Comparison(
        differences=differences,
        **discordant,
        clustered=groups is not None,
    )


def _difference(name: str, before: Floats, after: Floats, units: float, unknown: Floats) -> Difference | None:
    """Return a difference with its CI from the bootstrap variance and Student's t; None where it is not defined.

    Args:
        name: of the metric.
        before: (1 + R,) of the first model, then of the replicates.
        after: (1 + R,) of the second model.
        units: effective number of independent images or groups.
        unknown: (U, 2) distances down and up that it may be off by because of single classes.
    """
    values = (after - before).astype(np.float64)
    if np.isnan(values[0]):
        return None
    value, std = float(values[0]), float(np.nanstd(values))
    if units < MIN_UNITS or std <= ROUNDING * max(abs(before[0]), abs(after[0])):
        return Difference(value, None)
    half = t_quantile(units - 1) * std * math.sqrt(units / (units - 1))
    down, up = (math.hypot(half, *column) for column in unknown.T)
    most = METRICS[name].high - METRICS[name].low
    return Difference(value, Interval(max(-most, value - down), min(most, value + up)))


def _list_unknown(gaps: Floats, replicates: Floats, units: Floats) -> Floats:
    """Return how far the difference of an average over classes may be off, down and up, (U, 2), one row a class.

    The variance of the average takes no account of how few images a class has. Student's t of the class widens its own
    part. A class that both models decide alike in all images has no variance: its difference may be as far from this
    one as Wilson's interval for 0 of its images reaches; that of a class with a single image or group can be any.

    Args:
        gaps: (L,) differences of the classes that the average is over.
        replicates: (R, L).
        units: (L,) effective numbers of images or groups that they depend on.
    """

    def reach(gap: float, of_class: Floats, n: float) -> tuple[float, float]:
        if n < MIN_UNITS:
            return 1 + gap, 1 - gap
        std, half = float(np.nanstd(of_class)), score_interval(0.0, 0.0, n).high
        if std > ROUNDING:
            wide, normal = (t_quantile(df) for df in (DF_FACTOR * (n - 1), MANY))
            half = std * math.sqrt(wide**2 * n / (n - 1) - normal**2)
        return min(half, 1 + gap), min(half, 1 - gap)

    known = np.flatnonzero(~np.isnan(gaps))
    ends = [reach(gaps[k], replicates[:, k], units[k]) for k in known]
    return np.array(ends).reshape(-1, 2) / max(1, len(known))


def _test(gains: Ints) -> float:
    """Return the two-sided p value of the hypothesis that the first model may as well be the second, in each group.

    So each gain may as well be its negative: the p value is the fraction of all signs with a sum as large as the one
    observed. Of groups of one image this is McNemar's exact test (1947).

    Args:
        gains: (U,) images of each group that only the second model predicts correctly, minus those of the first.
    """
    from scipy.signal import fftconvolve  # half a second to import
    from scipy.stats import binom

    sums = np.ones(1)  # the probability of each sum of positive gains
    for size, groups in zip(*np.unique(np.abs(gains[gains != 0]), return_counts=True), strict=True):
        part = np.zeros(size * groups + 1)
        part[::size] = binom.pmf(np.arange(groups + 1), groups, 0.5)
        sums = fftconvolve(sums, part)
    total = len(sums) - 1
    is_as_large = np.abs(2 * np.arange(total + 1) - total) >= abs(gains.sum())
    return float(np.clip(sums[is_as_large].sum(), 0, 1))
