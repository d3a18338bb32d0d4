"""Confidence that a true metric is at least a bound, from the images, or groups of images, that it was measured on.

Of n independent images, k are classified correctly. The confidence that the true fraction is at least v is P(B >= v)
with B ~ Beta(k, n - k + 1): the level at which the one-sided lower limit of Clopper and Pearson (1934) is v. A model
whose true fraction is below v gets a confidence of c or more in at most 1 - c of all data sets.

The same number holds on the images that a threshold was set on, if it was set so that k of n scores lie above it: the
fraction of all scores above an order statistic has this Beta distribution (Wilks 1941, "Determination of sample sizes
for setting tolerance limits").

Images of one group are not independent. Then n is the effective number of groups (Kish 1965), as if all images of a
group were alike. That is cautious; a design effect estimated from the few images that are missed can be too small
(`benchmarks/targets.py` compares both). PPV and NPV combine the distributions of sensitivity and specificity, as those
of independent images.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.intervals import count_effective, number_units

NODES = 32  # of Gauss-Legendre quadrature over the quantiles of a distribution, by which two are combined


@dataclass(frozen=True, slots=True)
class Rate:
    """Sensitivity or specificity at C thresholds."""

    value: Floats
    """(C,) fractions that are classified correctly."""
    effective: float
    """Effective number of independent images."""


def count_independent(mask: NDArray[np.bool_], groups: Sequence[str] | None) -> float:
    """Return the effective number of independent images of a mask (N,); `groups` are N names, or None."""
    return count_effective(number_units(len(mask), groups)[mask]) if mask.any() else 0.0


def measure_confidence(
    metric: str, bound: float, sensitivity: Rate, specificity: Rate, prevalence: float
) -> NDArray[np.float64]:
    """Return the confidence that the true metric is at least a bound, at each of C thresholds, (C,).

    `metric` is `sensitivity`, `specificity`, `ppv` or `npv`; PPV and NPV hold for the prevalence.
    """
    if metric == "sensitivity":
        return _exceed(sensitivity, np.full(len(sensitivity.value), bound))
    if metric == "specificity":
        return _exceed(specificity, np.full(len(specificity.value), bound))
    if bound >= 1:
        return np.zeros(len(sensitivity.value))
    # PPV >= v where sensitivity >= f (1 - specificity), f = odds(v) / odds(prevalence); NPV with exchanged roles
    odds = bound / (1 - bound) * (1 - prevalence) / prevalence
    if metric == "ppv":
        return _combine(sensitivity, specificity, odds)
    return _combine(specificity, sensitivity, bound / (1 - bound) * prevalence / (1 - prevalence))


def _exceed(rate: Rate, bounds: Floats) -> NDArray[np.float64]:
    """Return the confidence that a true rate is at least a bound, elementwise."""
    from scipy.special import betaincc

    hits, misses = rate.value * rate.effective, (1 - rate.value) * rate.effective
    confidence = betaincc(np.maximum(hits, 1e-9), misses + 1, np.clip(bounds, 0, 1))
    return np.where((hits > 0) & (bounds <= 1), confidence, 0.0)


def _combine(rate: Rate, other: Rate, factor: float) -> NDArray[np.float64]:
    """Return the confidence that a true rate is at least `factor` times the error of another, (C,)."""
    from scipy.special import betaincinv

    values, places = np.unique(other.value, return_inverse=True)  # the inverse is costly
    hits, misses = values * other.effective, (1 - values) * other.effective
    total = np.zeros(len(rate.value))
    for node, weight in zip(*np.polynomial.legendre.leggauss(NODES), strict=True):
        # a quantile of the error's upper confidence distribution
        error = np.where(hits > 0, betaincinv(misses + 1, np.maximum(hits, 1e-9), (node + 1) / 2), 1.0)
        total += weight / 2 * _exceed(rate, factor * error[places])
    return total
