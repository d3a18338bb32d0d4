"""Consequences of a decision: predictive values and likelihood ratios with 95% CIs, and decision curves."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.intervals import UNDEFINED, Estimate, Interval

CURVE_THRESHOLDS = (0.01, 0.02, *(round(0.05 * step, 2) for step in range(1, 20)))
"""Threshold probabilities of a decision curve; beyond, a benefit hangs on few images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DecisionCurve:
    """Net benefit of acting on a model's probability of a class, over the threshold probability.

    Treating none has a net benefit of 0. Source: Vickers and Elkin 2006 (doi:10.1177/0272989X06295361).
    """

    name: str
    """The class."""
    prevalence: float
    thresholds: tuple[float, ...]
    """Probabilities from which on one would act."""
    model: tuple[float, ...]
    """Net benefit of acting on the model."""
    treat_all: tuple[float, ...]
    """Net benefit of always acting."""

    @property
    def useful_ranges(self) -> list[tuple[float, float]]:
        """The ranges of thresholds at which the model is better than treating all and none."""
        best = np.maximum(self.treat_all, 0)
        is_better = np.array(self.model) > best + 1e-9
        edges = np.flatnonzero(np.diff(np.concatenate([[False], is_better, [False]])))
        return [(self.thresholds[first], self.thresholds[end - 1]) for first, end in edges.reshape(-1, 2).tolist()]

    def describe(self, name: str) -> str:
        """Return at which thresholds the model is useful, in a sentence that names the class so."""
        start = f"Decision curve of {name} at a prevalence of {100 * self.prevalence:.3g}%:"
        if not self.useful_ranges:
            return f"{start} acting on the model is not better than treating all or none at any threshold."
        ranges = (f"{low:.0%} to {high:.0%}" if low != high else f"{low:.0%}" for low, high in self.useful_ranges)
        better = "on these images, acting on the model is better than treating all or none at thresholds of"
        return f"{start} {better} {', '.join(ranges)} (no CI; short ranges may be chance)."


def trace_decision_curve(
    name: str,
    scores: Floats,
    positive: NDArray[np.bool_],
    prevalence: float | None = None,
    thresholds: Sequence[float] = CURVE_THRESHOLDS,
) -> DecisionCurve:
    """Return the decision curve of a class.

    Net benefit = TP / n - FP / n * t / (1 - t) at the threshold t, with TP and FP scaled to the prevalence.

    Args:
        name: of the class.
        scores: (N,) calibrated probabilities of the class.
        positive: (N,) true for images of the class; some are, some are not.
        prevalence: of the class where the model is used; None for that of these images.
        thresholds: probabilities above 0 and below 1.
    """
    rate = float(positive.mean()) if prevalence is None else prevalence
    grid = np.asarray(thresholds, np.float64)
    sensitivity, false_rate = (
        1 - np.searchsorted(np.sort(part), grid) / len(part) for part in (scores[positive], scores[~positive])
    )
    odds = grid / (1 - grid)
    model = sensitivity * rate - false_rate * (1 - rate) * odds
    treat_all = rate - (1 - rate) * odds
    return DecisionCurve(
        name=name,
        prevalence=rate,
        thresholds=tuple(grid.tolist()),
        model=tuple(model.tolist()),
        treat_all=tuple(treat_all.tolist()),
    )


def estimate_ratio(first: Estimate, second: Estimate) -> Estimate:
    """Return the ratio of two independent estimates, infinite where the second is 0; undefined where both are 0.

    Source of the interval: MOVER-R (Donner and Zou 2012, doi:10.1177/0962280210383082, equation 9), in the form of the
    quadratic equations that its limits solve, which has no singularity. From Wilson's intervals it has limits for a
    ratio to 0, where the usual logarithmic interval (Simel et al. 1991) has none.
    """
    x, y = first.value, second.value
    if x is None or y is None or x == y == 0:
        return UNDEFINED
    value = x / y if y else math.inf
    if first.interval is None or second.interval is None:
        return Estimate(value, None)
    product = x * y
    least, most = (end * (2 * x - end) for end in (first.interval.low, first.interval.high))
    narrow, wide = (end * (2 * y - end) for end in (second.interval.low, second.interval.high))
    divisor = product + math.sqrt(max(0.0, product**2 - wide * least))
    low = least / divisor if divisor > 0 else 0.0
    high = (product + math.sqrt(max(0.0, product**2 - narrow * most))) / narrow if narrow > 0 else math.inf
    return Estimate(value, Interval(min(low, value), max(high, value)))


def estimate_likelihood_ratios(sensitivity: Estimate, specificity: Estimate) -> tuple[Estimate, Estimate]:
    """Return the positive and the negative likelihood ratio."""
    positive = estimate_ratio(sensitivity, complement(specificity))
    return positive, estimate_ratio(complement(sensitivity), specificity)


def complement(estimate: Estimate) -> Estimate:
    """Return 1 minus an estimate."""
    interval = estimate.interval and Interval(1 - estimate.interval.high, 1 - estimate.interval.low)
    return estimate if estimate.value is None else Estimate(1 - estimate.value, interval)


def update_prevalence(ratio: Estimate, prevalence: float | None) -> Estimate:
    """Return the probability of a class after a result with a likelihood ratio (Bayes), with its 95% CI.

    The CI is that of the ratio, since the prevalence is stated; compare Mercaldo, Lau and Zhou 2007
    (doi:10.1002/sim.2677).
    """
    if ratio.value is None or not prevalence:
        return UNDEFINED
    interval = ratio.interval
    ends = interval and Interval(*(apply_ratio(end, prevalence) for end in (interval.low, interval.high)))
    return Estimate(apply_ratio(ratio.value, prevalence), ends)


def apply_ratio(ratio: float, prevalence: float) -> float:
    """Return the probability whose odds are those of the prevalence times a likelihood ratio."""
    if math.isinf(ratio):
        return 1.0
    odds = ratio * prevalence / (1 - prevalence)
    return odds / (1 + odds)
