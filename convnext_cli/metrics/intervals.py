"""95% CIs from a bootstrap over images, or over groups of images.

The percentile interval is too short for small classes, and has no length where all images are classified correctly.
Therefore the bootstrap variance gives an effective number of independent images, and the CI is Wilson's (1927) for
that number, as in Korn and Graubard (1998) for clustered surveys. `benchmarks/coverage.py` compares both.
"""

import math
import os
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics import registry
from convnext_cli.metrics.calculator import Calculator, Floats, Ints
from convnext_cli.metrics.formulas import ECE_BINS
from convnext_cli.text import format_count

T = TypeVar("T")

CONFIDENCE = 0.95
RESAMPLES = 2000
DF_FACTOR = 1.5
"""Degrees of freedom are this factor times (units - 1), because Wilson's centre already widens the interval.

Coverage in simulations with 3 to 6 clusters: 98% with 1, 97% with 1.5, down to 90% with 2
(`benchmarks/coverage.py fractions`)."""
MIN_RESAMPLES = 200  # the variance is then known to 10%, the length of the CI to 5%
MAX_WORK = 4_000_000_000  # images x classes x resamples, about a minute; above, fewer resamples are drawn
ERROR_RESAMPLES = 400  # of the error of a debiased sum, whose root mean square is then known to 4%
NEWTON_STEPS = 12
MIN_IN_BIN = 10  # images in a bin, on average, whose noise is known well enough to take it off the upper end
MIN_UNITS = 1.5  # effective; fewer have no variance
ROUNDING = 1e-5  # of float32: replicates that differ less agree
CHUNK = 80_000  # weights at a time: a third of a megabyte, which fits a core's cache


@dataclass(frozen=True, slots=True)
class Interval:
    """A 95% CI, as fractions."""

    low: float
    high: float


@dataclass(frozen=True, slots=True)
class Estimate:
    """A value with its 95% CI; None where not defined."""

    value: float | None
    interval: Interval | None


UNDEFINED = Estimate(None, None)


def subtract(key: str, one: Estimate, two: Estimate) -> Estimate:
    """Return the difference of a metric with its 95% CI from those of both values (MOVER; Zou and Donner 2008).

    Noise raises the lower ECE more, so that the difference is too small: its CI reaches from end to end of both.
    """
    if one.value is None or two.value is None:
        return UNDEFINED
    gap = one.value - two.value
    if one.interval is None or two.interval is None:
        return Estimate(gap, None)
    join = sum if registry.METRICS[key].is_raised_by_noise else lambda parts: math.hypot(*parts)
    down = join((one.value - one.interval.low, two.interval.high - two.value))
    up = join((one.interval.high - one.value, two.value - two.interval.low))
    return Estimate(gap, Interval(gap - down, gap + up))


@dataclass(frozen=True, kw_only=True, slots=True)
class Intervals:
    """95% CIs of all metrics, by key. None where a metric or its variance is not defined."""

    overall: dict[str, Interval | None]
    per_class: tuple[dict[str, Interval | None], ...]
    clustered: bool
    """True if groups were resampled, not single images."""
    units: int
    """Number of groups or images that were resampled."""
    resamples: int

    @property
    def method(self) -> str:
        """The origin of the CIs, for a sentence. The page on confidence intervals has the formulas."""
        units = format_count(self.units, "group") if self.clustered else "single images"
        return f"from the variance of {self.resamples:,} bootstrap resamples of {units}"


def compute_intervals(
    calculator: Calculator, groups: Sequence[str] | None = None, *, seed: int = 0, resamples: int | None = None
) -> Intervals:
    """Compute the 95% CIs of all metrics.

    Args:
        calculator: of the N images.
        groups: (N,) names; images of the same group are not independent. None where groups are not known. An image
            with an empty name is a group of its own.
        seed: of the resampling.
        resamples: number of resamples; None takes 2,000, fewer only for millions of scores.
    """
    units = number_units(calculator.images, groups)
    resamples = resamples or choose_resamples(calculator.images * max(1, calculator.num_classes))
    chunks = resample(calculator.compute, units, resamples, seed=seed)
    overall, per_class = ({name: np.concatenate([c[i][name] for c in chunks]) for name in chunks[0][i]} for i in (0, 1))
    point, point_per_class = calculator.compute(np.ones((1, calculator.images)))
    units_per_class = count_class_units(calculator, units)
    all_units = count_effective(units[calculator.select_counted()])
    class_intervals: list[dict[str, Interval | None]] = [
        {
            name: _choose_interval(
                name,
                point_per_class[name][0, k],
                per_class[name][:, k],
                units_per_class[name][k],
                calculator.get_highest(name),
            )
            for name in calculator.per_class
        }
        for k in range(calculator.num_classes)
    ]
    overall_intervals: dict[str, Interval | None] = {
        name: _choose_interval(name, point[name][0], overall[name], all_units, calculator.get_highest(name))
        for name in calculator.overall
    }
    for macro in calculator.overall:
        name = registry.METRICS[macro].average_of
        if name is None:
            continue
        parts = [class_intervals[k][name] for k in np.flatnonzero(calculator.present)]
        estimates, replicates = (
            select_averaged(macro, values[name], calculator) for values in (point_per_class, per_class)
        )
        overall_intervals[macro] = _average_intervals(
            point[macro][0], estimates[0], parts, replicates, overall_intervals[macro]
        )
    sums, class_sums = bound_sums(calculator, units, seed=seed, resamples=resamples)
    return Intervals(
        overall={**overall_intervals, **sums},
        per_class=tuple({**entry, **of_class} for entry, of_class in zip(class_intervals, class_sums, strict=True)),
        clustered=groups is not None,
        units=int(units.max()) + 1,
        resamples=resamples,
    )


def bound_sums(
    calculator: Calculator, units: Ints, *, seed: int = 0, resamples: int = ERROR_RESAMPLES
) -> tuple[dict[str, Interval], list[dict[str, Interval]]]:
    """Return the CIs of sums of absolute values, and of their means over classes: overall, and of each class.

    Arguments as `resample`. A CI that `bound_sum` does not give is left out.
    """
    chunks = resample(calculator.compute_gaps, units, min(resamples, ERROR_RESAMPLES), seed=seed)
    sample = calculator.compute_gaps(np.ones((1, calculator.images)))
    all_units = count_effective(units[calculator.select_counted()])
    overall: dict[str, Interval | None] = {}
    per_class: list[dict[str, Interval | None]] = [{} for _ in range(calculator.num_classes)]
    for key, (gaps,) in sample.items():
        parts = np.concatenate([chunk[key] for chunk in chunks])
        if gaps.ndim == 1:
            overall[key] = bound_sum(gaps, parts, all_units, calculator.images)
            continue
        images = [calculator.list_denominators(key, k)[0] for k in range(len(gaps))]
        for k, entry in enumerate(per_class):
            entry[key] = bound_sum(gaps[k], parts[:, k], count_effective(units[images[k]]), int(images[k].sum()))
        known = [k for k in range(len(gaps)) if images[k].any()]
        mean = float(np.mean([images[k].sum() for k in known])) if known else 0.0
        for macro in [name for name in calculator.overall if registry.METRICS[name].average_of == key and known]:
            joined = gaps[known].reshape(-1), parts[:, known].reshape(len(parts), -1)
            overall[macro] = bound_sum(joined[0] / len(known), joined[1] / len(known), all_units, mean)
    of_all, *of_classes = ({key: ci for key, ci in entry.items() if ci} for entry in (overall, *per_class))
    return of_all, of_classes


def number_units(images: int, groups: Sequence[str] | None) -> Ints:
    """Return the number of each image's resampling unit, (N,): images of one group share a unit."""
    if groups is None:
        return np.arange(images)
    names = [group or f"\0{row}" for row, group in enumerate(groups)]
    return np.unique(names, return_inverse=True)[1].reshape(-1)


def count_units(images: int, groups: Sequence[str] | None) -> int:
    """Return the number of groups; of images where groups are not known."""
    return int(number_units(images, groups).max()) + 1


def choose_resamples(size: int) -> int:
    """Return the number of resamples for `size` scores (images times classes)."""
    return max(MIN_RESAMPLES, min(RESAMPLES, MAX_WORK // max(1, size)))


def resample(statistic: Callable[[Floats], T], units: Ints, resamples: int, *, seed: int) -> list[T]:
    """Apply `statistic` to the weights of all resamples, in chunks and on several cores.

    Args:
        statistic: takes (C, N) float32, how often each of C resamples holds each image.
        units: (N,) number of each image's resampling unit, from 0.
        resamples: number of resamples in all.
        seed: of the resampling; the result does not depend on the number of cores.
    """
    num = int(units.max()) + 1
    rows = max(1, CHUNK // len(units))

    def work(start: int) -> T:
        random = np.random.default_rng((seed, start))
        drawn = random.integers(num, size=(min(rows, resamples - start), num))
        counts = np.stack([np.bincount(row, minlength=num) for row in drawn]).astype(np.float32)
        return statistic(counts if num == len(units) else counts.take(units, axis=1))

    with ThreadPoolExecutor(min(4, os.cpu_count() or 1)) as pool:  # NumPy releases the GIL
        return list(pool.map(work, range(0, resamples, rows)))


def estimate_fraction(hits: NDArray[np.bool_], mask: NDArray[np.bool_], groups: Sequence[str] | None) -> Estimate:
    """Return the fraction of hits among the images of a mask, with its 95% CI.

    `mask` has the images that count, and `groups` the N names, or None.

    Returns:
        None where the mask is empty; no CI where it holds one unit only.
    """
    if not mask.any():
        return UNDEFINED
    return estimate_mean(hits[mask], number_units(len(hits), groups)[mask])


def estimate_mean(
    values: NDArray[np.bool_] | Floats, units: Ints, low: float = 0.0, high: float = 1.0, least: float = 0.0
) -> Estimate:
    """Return the mean of N values between `low` and `high`, with its 95% CI; none where there is one unit only.

    The variance is that of a ratio of sums over units, or `least`, if that is more.
    """
    mean = float(values.mean())
    effective = count_effective(units)
    if effective < MIN_UNITS:
        return Estimate(mean, None)
    variance = max(least, float((np.bincount(units, values - mean) ** 2).sum()) / len(values) ** 2)
    return Estimate(mean, score_interval(mean, variance, effective, low, high))


def score_interval(estimate: float, variance: float, units: float, low: float = 0.0, high: float = 1.0) -> Interval:
    """Return Wilson's interval for a metric between `low` and `high`, given its bootstrap variance.

    `units` is the effective number of independent images or groups; above 1, not always whole.
    """
    t = t_quantile(DF_FACTOR * (units - 1))
    p = (estimate - low) / (high - low)
    unbiased = variance / (high - low) ** 2 * units / (units - 1)  # the bootstrap divides by n
    # At an end of the range, or where all units agree, the variance is 0: each unit then counts as one image.
    effective = p * (1 - p) / unbiased if unbiased > 0 and 0 < p < 1 else units
    z2 = t**2 / effective
    centre = (p + z2 / 2) / (1 + z2)
    half = math.sqrt(z2 * p * (1 - p) + z2**2 / 4) / (1 + z2)
    ends = max(0.0, min(p, centre - half)), min(1.0, max(p, centre + half))  # rounding must not exclude the estimate
    return Interval(*(float(low + (high - low) * end) for end in ends))


def t_quantile(df: float) -> float:
    """Return the 97.5% quantile of Student's t; below one degree of freedom, that of one."""
    from scipy.special import stdtrit

    return float(stdtrit(max(1.0, df), (1 + CONFIDENCE) / 2))


def _choose_interval(name: str, estimate: float, replicates: Floats, units: float, highest: float) -> Interval | None:
    """Return the CI of a metric by the method that suits its range, up to `highest`; None where it is not defined."""
    defined = replicates[~np.isnan(replicates)].astype(np.float64)
    if np.isnan(estimate) or units < MIN_UNITS or len(defined) < 2:
        return None
    std = float(defined.std())
    variance = std**2 if std > ROUNDING * abs(estimate) else 0.0
    metric = registry.METRICS[name]
    half = t_quantile(units - 1) * math.sqrt(variance * units / (units - 1))
    if not half and math.isinf(highest - metric.low):
        return None  # all resamples agree: they do not say how far off the estimate may be
    if math.isinf(metric.low):
        return Interval(float(estimate - half), min(highest, float(estimate + half)))
    if math.isinf(highest):  # symmetric on the scale of its logarithm
        factor = math.exp(half / estimate)
        return Interval(float(estimate / factor), float(estimate * factor))
    if name == "roc_auc" and 0 < estimate < 1 and variance > 0:  # on the logit scale, as Pepe 2003 (section 5.2.3)
        odds, factor = estimate / (1 - estimate), math.exp(min(50.0, half / (estimate * (1 - estimate))))
        return Interval(float(odds / (odds + factor)), float(odds * factor / (1 + odds * factor)))
    return score_interval(estimate, variance, units, low=metric.low, high=highest)


def count_class_units(calculator: Calculator, units: Ints) -> dict[str, list[float]]:
    """Return the effective number of units that each per-class metric depends on, for each of K classes."""

    def count(key: str, k: int) -> float:
        return min(count_effective(units[images]) for images in calculator.list_denominators(key, k))

    return {key: [count(key, k) for k in range(calculator.num_classes)] for key in calculator.per_class}


def count_effective(units: Ints) -> float:
    """Return the effective number of units: (sum of sizes)^2 / sum of squared sizes (Kish 1965)."""
    sizes = np.unique(units, return_counts=True)[1].astype(np.float64)
    return float(sizes.sum() ** 2 / (sizes**2).sum()) if len(sizes) else 0.0


def select_averaged(macro: str, values: Floats, calculator: Calculator) -> Floats:
    """Return the values, (C, L), of the classes that an average is over, from those of all classes, (C, K).

    The average of the precision takes 0 for a class that is never predicted.
    """
    values = values[:, calculator.present]
    return np.nan_to_num(values) if macro == "macro_precision" else values


def _average_intervals(
    mean: float, estimates: Floats, intervals: Sequence[Interval | None], replicates: Floats, whole: Interval | None
) -> Interval | None:
    """Return the CI of a mean over classes, from those of the classes (MOVER; Zou and Donner 2008, Zou 2007).

    Each class contributes the length of its own CI, also where all its images are classified correctly and its
    replicates do not vary. A class without a CI, such as one of a single image, can have any value. The replicates give
    the correlations between classes. A class without errors adds nothing upwards. Therefore the upper end is the mean
    of MOVER's and that of `whole` where the latter is higher; this had the best coverage.

    Args:
        mean: value of the averaged metric.
        estimates: (L,) values of the classes that it is over.
        intervals: L CIs of these classes.
        replicates: (R, L).
        whole: CI from the variance of the mean itself.
    """
    known = [k for k, estimate in enumerate(estimates) if not np.isnan(estimate)]
    if whole is None or all(interval is None for interval in intervals):
        return None
    bounds = [interval or Interval(0.0, 1.0) for interval in intervals]
    defined = replicates[:, known][~np.isnan(replicates[:, known]).any(axis=1)].astype(np.float64)
    centred = defined - defined.mean(axis=0) if len(defined) else np.zeros((1, len(known)))
    length = np.sqrt((centred**2).sum(axis=0))
    scaled = centred / np.where(length > 0, length, 1)
    correlation = scaled.T @ scaled
    np.fill_diagonal(correlation, 1)
    ends = []
    for side in ("low", "high"):
        distance = np.array([abs(estimates[k] - getattr(bounds[k], side)) for k in known])
        ends.append(math.sqrt(max(0.0, distance @ correlation @ distance)) / len(known))
    high = float(mean + ends[1])
    return Interval(max(0.0, float(mean - ends[0])), min(1.0, (high + max(high, whole.high)) / 2))


def bound_sum(gaps: Floats, replicates: Floats, units: float, images: float) -> Interval | None:
    """Return the 95% CI of a sum of absolute values, such as the ECE, from a sample's summands and their replicates.

    Noise adds to each absolute value, so that the sum over a sample is too high (Kumar et al. 2019, arXiv:1909.10155,
    section 4), and its bootstrap replicates are higher still. The CI therefore lies around the debiased sum, by the
    root mean square of its error in a parametric bootstrap. It reaches down to 0 unless the hypothesis of no gaps is
    rejected at 5%, and up to the sample's sum at least, which is what is printed; with few images in a bin, up to
    that sum and its spread, since noise does not lower it.

    Args:
        gaps: (B,) of the sample.
        replicates: (R, B) of the resamples.
        units: effective number of independent images or groups.
        images: number of images in all bins of a class; a resample varies less within a bin of m images than new
            images do, by m - 1 to m.

    Returns:
        None without a positive sum, with fewer than two units, or where all resamples agree.
    """
    defined = replicates[~np.isnan(replicates).any(axis=1)][:ERROR_RESAMPLES].astype(np.float64)
    observed = float(np.abs(gaps).sum())
    if not observed > 0 or units < MIN_UNITS or len(defined) < 2:
        return None
    in_bin = max(2.0, min(units, images / ECE_BINS))
    noise = (defined - gaps) * math.sqrt(in_bin / (in_bin - 1))
    std = noise.std(axis=0)
    if std.max() <= ROUNDING * observed:
        return None
    std = np.maximum(std, 1e-9 * observed)
    centre = float(debias_sums(gaps[None], std)[0])
    # The sample's gaps scatter more than the true ones. In units of noise, the variance that this adds is 1, so that
    # shrinking them towards their mean by the root of 1 - 1 / variance leaves that of the true ones.
    shrinkage = math.sqrt(max(0.0, 1 - 1 / max(float((np.abs(gaps) / std).var()), 1e-9)))
    likely = shrinkage * centre * np.abs(gaps) / observed + (1 - shrinkage) * centre * std / std.sum()
    errors = debias_sums(np.sign(gaps) * likely + noise, std) - centre
    half = t_quantile(units - 1) * math.sqrt(float((errors**2).mean()))
    is_rejected = (np.abs(noise).sum(axis=1) >= observed).mean() < 1 - CONFIDENCE
    low, high = max(0.0, centre - half) if is_rejected else 0.0, max(observed, centre + half)
    if in_bin < MIN_IN_BIN and not is_rejected:
        high = max(high, observed + t_quantile(units - 1) * float(np.abs(defined).sum(axis=1).std()))
    return Interval(min(low, observed), min(1.0, high))


def debias_sums(gaps: Floats, std: Floats) -> Floats:
    """Return the sums of absolute values without the part that is noise, (C,).

    Each row is scaled by the factor for which the expected sum, with noise, is the sum that it has; 0 where noise alone
    gives more. The expectation is that of the folded normal distribution (Leone et al. 1961, Technometrics 3, 543).

    Args:
        gaps: (C, B).
        std: (B,) standard deviations of the noise.
    """
    from scipy.special import ndtr

    absolute = np.abs(gaps)
    sums, scales = absolute.sum(axis=1), np.ones(len(gaps))
    for _ in range(NEWTON_STEPS):  # the expectation is convex in the scale, so that the steps only go down
        z = scales[:, None] * absolute / std
        slope = 2 * ndtr(z) - 1
        expected = (std * math.sqrt(2 / math.pi) * np.exp(-(z**2) / 2) + scales[:, None] * absolute * slope).sum(axis=1)
        change = (expected - sums) / np.maximum((slope * absolute).sum(axis=1), 1e-300)
        scales = np.maximum(0, scales - change)
    debiased: Floats = scales * sums
    return debiased
