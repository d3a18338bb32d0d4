"""95% intervals: a bootstrap over images, or over groups of images that belong together, and what to make of it.

The plain percentile interval is too short for small classes and has no length at all where every image is right. So
the bootstrap gives the variance, and the variance gives an effective number of independent images; the interval is
Wilson's (1927) for that number, as Korn and Graubard (1998) do for clustered surveys. `benchmarks/coverage.py` measures
both.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from statistics import NormalDist
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics import registry
from convnext_cli.metrics.formulas import OVERALL, PER_CLASS, Floats, Ints, MetricCalculator

T = TypeVar("T")

MACRO = {metric.key: metric.average_of for metric in registry.OVERALL if metric.average_of}
"""The averages over classes, and the per-class metric that each is an average of."""

LEVEL = 0.95
RESAMPLES = 2000
DF_FACTOR = 1.5
"""Degrees of freedom of a share's interval for each unit but one. Wilson's centre makes up for some of what Student's t
adds: with 1, intervals of 3 to 6 clusters held the truth in 98% of simulated sets, with 1.5 in 97%, with 2 some in 91%
(`benchmarks/coverage.py shares`)."""
MIN_RESAMPLES = 200  # the variance is then known to 10%, the length to 5%
WORK = 4_000_000_000  # images x classes x resamples, about a minute; fewer resamples beyond
CHUNK = 80_000  # weights at a time: a third of a megabyte, which a core's cache holds


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95% interval; shares, not percent."""

    low: float
    high: float


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """The intervals of all figures of `Metrics`, by their names. None where a figure or its variance is not defined."""

    overall: dict[str, Interval | None]
    per_class: tuple[dict[str, Interval | None], ...]
    clustered: bool
    """Whether whole groups were drawn, and not single images."""
    units: int
    """What was drawn: groups, or images."""
    resamples: int


def compute_intervals(
    logits: Floats,
    labels: Ints,
    groups: Sequence[str] | None = None,
    *,
    seed: int = 0,
    resamples: int | None = None,
) -> Intervals:
    """Computes a 95% interval for every figure of `Metrics`.

    Args:
        logits: (N, K).
        labels: (N,).
        groups: (N,) names; images of the same group are not independent. None where nothing is known of groups. An
            image with an empty name stands for itself.
        seed: of the resampling.
        resamples: how many; None takes 2,000, fewer only for millions of scores.
    """
    figures = MetricCalculator(logits, labels)
    units = number_units(len(labels), groups)
    resamples = resamples or choose_resamples(logits.size)
    chunks = resample(figures.compute, units, resamples, seed=seed)
    overall, per_class = ({name: np.concatenate([c[i][name] for c in chunks]) for name in chunks[0][i]} for i in (0, 1))
    point, point_per_class = figures.compute(np.ones((1, len(labels))))
    rests_on = _count_units(figures, units)
    everything = _effective(units)
    by_class: list[dict[str, Interval | None]] = [
        {
            name: _choose_interval(name, point_per_class[name][0, k], per_class[name][:, k], rests_on[name][k])
            for name in PER_CLASS
        }
        for k in range(figures.num_classes)
    ]
    together: dict[str, Interval | None] = {
        name: _choose_interval(name, point[name][0], overall[name], everything) for name in OVERALL
    }
    for macro, name in MACRO.items():
        parts = [by_class[k][name] for k in range(figures.num_classes)]
        together[macro] = _average_intervals(
            point[macro][0], point_per_class[name][0], parts, per_class[name], together[macro]
        )
    return Intervals(
        overall=together,
        per_class=tuple(by_class),
        clustered=groups is not None,
        units=int(units.max()) + 1,
        resamples=resamples,
    )


def number_units(images: int, groups: Sequence[str] | None) -> Ints:
    """Numbers what is drawn, (N,): images of one group share a number."""
    if groups is None:
        return np.arange(images)
    alone = [group or f"\0{row}" for row, group in enumerate(groups)]
    return np.unique(alone, return_inverse=True)[1].reshape(-1)


def choose_resamples(size: int) -> int:
    """How many resamples an evaluation of `size` scores (images times classes) gets."""
    return max(MIN_RESAMPLES, min(RESAMPLES, WORK // max(1, size)))


def resample(statistic: Callable[[Floats], T], units: Ints, resamples: int, *, seed: int) -> list[T]:
    """Applies `statistic` to the weights of all resamples, some at a time and on all processors.

    Args:
        statistic: takes (C, N) float32, how often each of C resamples holds each image.
        units: (N,) what is drawn, numbered from 0.
        resamples: how many in all.
        seed: of the draw; the same whatever the number of processors.
    """
    num = int(units.max()) + 1
    rows = max(1, CHUNK // len(units))

    def work(start: int) -> T:
        random = np.random.default_rng((seed, start))
        drawn = random.integers(num, size=(min(rows, resamples - start), num))
        counts = np.stack([np.bincount(row, minlength=num) for row in drawn]).astype(np.float32)
        return statistic(counts if num == len(units) else counts.take(units, axis=1))

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # NumPy works outside Python's lock
        return list(pool.map(work, range(0, resamples, rows)))


def estimate_fraction(
    hits: NDArray[np.bool_], counted: NDArray[np.bool_], groups: Sequence[str] | None
) -> tuple[float | None, Interval | None]:
    """The share of hits among the counted images, and its interval; the variance is that of a ratio of sums over units.

    Args:
        hits: (N,).
        counted: (N,) the images that the share is of.
        groups: (N,) names, or None.
    """
    if not counted.any():
        return None, None
    units = number_units(len(hits), groups)[counted]
    share = float(hits[counted].mean())
    residuals = np.bincount(units, hits[counted] - share)
    effective = _effective(units)
    if effective < 1.5:
        return share, None
    return share, score_interval(share, float((residuals**2).sum()) / int(counted.sum()) ** 2, effective)


def score_interval(estimate: float, variance: float, units: float, low: float = 0.0, high: float = 1.0) -> Interval:
    """Wilson's interval for a figure between `low` and `high` with a bootstrap variance.

    Args:
        estimate: the figure.
        variance: its bootstrap variance.
        units: how many independent images or groups it rests on; above 1, not always whole.
        low: the least that the figure can be.
        high: the most.
    """
    t = t_quantile(DF_FACTOR * (units - 1))
    share = (estimate - low) / (high - low)
    spread = variance / (high - low) ** 2 * units / (units - 1)  # the bootstrap divides by n
    # At an end, or where all units agree, the variance says nothing: each unit then counts as one.
    effective = share * (1 - share) / spread if spread > 0 and 0 < share < 1 else units
    z2 = t**2 / effective
    centre = (share + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * share * (1 - share) + z2**2 / 4) / (1 + z2)
    scaled = (
        max(0.0, min(share, centre - half)),
        min(1.0, max(share, centre + half)),
    )  # rounding keeps the figure within
    return Interval(*(float(low + (high - low) * end) for end in scaled))


def t_quantile(df: float) -> float:
    """The upper 2.5% point of Student's t (Abramowitz and Stegun 26.7.5; exact for 1 and 2 degrees of freedom)."""
    if df < 1.5:
        return 12.7062
    if df < 2.5:
        return 4.30265
    z = NormalDist().inv_cdf((1 + LEVEL) / 2)
    terms = (
        (z**3 + z) / 4,
        (5 * z**5 + 16 * z**3 + 3 * z) / 96,
        (3 * z**7 + 19 * z**5 + 17 * z**3 - 15 * z) / 384,
        (79 * z**9 + 776 * z**7 + 1482 * z**5 - 1920 * z**3 - 945 * z) / 92160,
    )
    return z + sum(term / df**power for power, term in enumerate(terms, start=1))


def _choose_interval(name: str, estimate: float, replicates: Floats, units: float) -> Interval | None:
    defined = replicates[~np.isnan(replicates)].astype(np.float64)
    if np.isnan(estimate) or units < 1.5 or len(defined) < 2:
        return None
    variance = float(defined.var())
    low = registry.METRICS[name].low
    if low < 0:
        return score_interval(estimate, variance, units, low=low)
    half = t_quantile(units - 1) * math.sqrt(variance * units / (units - 1))
    if name == "log_loss":  # no upper end: symmetric on the scale of its logarithm
        factor = math.exp(half / estimate)
        return Interval(float(estimate / factor), float(estimate * factor))
    if name == "roc_auc" and 0 < estimate < 1 and variance > 0:  # on the logit scale, as Pepe 2003 (section 5.2.3)
        odds, factor = estimate / (1 - estimate), math.exp(min(50.0, half / (estimate * (1 - estimate))))
        return Interval(float(odds / (odds + factor)), float(odds * factor / (1 + odds * factor)))
    return score_interval(estimate, variance, units)


def _count_units(figures: MetricCalculator, units: Ints) -> dict[str, Floats]:
    """How many units each class's figures rest on: those that the denominator counts. Each (K,)."""

    def count(holds: Callable[[int], NDArray[np.bool_]]) -> Floats:
        return np.array([_effective(units[holds(k)]) for k in range(figures.num_classes)])

    actual = count(lambda k: figures.labels == k)
    others = count(lambda k: figures.labels != k)
    fewer = np.minimum(actual, others)
    predicted = count(lambda k: figures.predictions == k)
    either = count(lambda k: (figures.labels == k) | (figures.predictions == k))
    return {
        "precision": predicted, "recall": actual, "specificity": others,
        "f1": either, "roc_auc": fewer, "pr_auc": either,
    }  # fmt: skip


def _effective(units: Ints) -> float:
    """The effective number of units: (sum of sizes)^2 / sum of squares (Kish 1965), their number if of equal size."""
    sizes = np.unique(units, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def _average_intervals(
    mean: float, estimates: Floats, intervals: Sequence[Interval | None], replicates: Floats, whole: Interval | None
) -> Interval | None:
    """The interval of a mean over classes, from those of the classes (MOVER; Zou and Donner 2008, Zou 2007).

    Each class keeps its own length, also where all its images are right and its replicates never vary; the replicates
    say how the classes vary together. A class without an error adds nothing upwards; so where `whole`, the interval
    from the mean's own variance, reaches higher, the upper end is midway between both, which measured best.
    """
    known = [k for k, interval in enumerate(intervals) if interval is not None]
    if not known or whole is None:
        return None
    defined = replicates[:, known][~np.isnan(replicates[:, known]).any(axis=1)].astype(np.float64)
    centred = defined - defined.mean(axis=0) if len(defined) else np.zeros((1, len(known)))
    length = np.sqrt((centred**2).sum(axis=0))
    scaled = centred / np.where(length > 0, length, 1)
    together = scaled.T @ scaled
    np.fill_diagonal(together, 1)
    ends = []
    for side in ("low", "high"):
        distance = np.array([abs(estimates[k] - getattr(intervals[k], side)) for k in known])
        ends.append(math.sqrt(max(0.0, distance @ together @ distance)) / len(known))
    high = float(mean + ends[1])
    return Interval(max(0.0, float(mean - ends[0])), min(1.0, (high + max(high, whole.high)) / 2))
