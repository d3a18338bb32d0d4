"""Operating points: decision thresholds that reach a target sensitivity or specificity."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.intervals import Interval, estimate_fraction

TARGET_METRICS = ("sensitivity", "specificity")


@dataclass(frozen=True, slots=True)
class Target:
    """A sensitivity or specificity of at least `value` for the class `name`.

    The field names are keys of `calibration.json`.
    """

    figure: Literal["sensitivity", "specificity"]
    """The metric."""
    value: Annotated[float, Meta(gt=0, le=1)]
    name: str

    def __str__(self) -> str:
        return f"{self.figure}={self.value:g}:{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """A target and the decision threshold set for it."""

    target: Target
    threshold: Annotated[float, Meta(ge=0)]
    """Images with at least this probability are positive."""
    reached: Annotated[float, Meta(ge=0, le=1)]
    """The target's metric on the images that the threshold was set on."""
    images: Annotated[int, Meta(ge=0)]
    """Number of these images in the denominator: those of the class for a sensitivity, all others for a specificity."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """Sensitivity and specificity of a threshold on other images; None where no image is of the class, or all are."""

    threshold: Threshold
    sensitivity: float | None
    sensitivity_interval: Interval | None
    specificity: float | None
    specificity_interval: Interval | None

    @property
    def measured(self) -> float | None:
        """Return the target's metric on these images."""
        return self.sensitivity if self.threshold.target.figure == "sensitivity" else self.specificity

    @property
    def measured_interval(self) -> Interval | None:
        """Return the 95% CI of the target's metric."""
        is_sensitivity = self.threshold.target.figure == "sensitivity"
        return self.sensitivity_interval if is_sensitivity else self.specificity_interval

    @property
    def is_missed(self) -> bool:
        """Return whether the target's metric is below the target."""
        return self.measured is not None and self.measured < self.threshold.target.value


def find_threshold(scores: Floats, positive: NDArray[np.bool_], target: Target) -> Threshold:
    """Return the threshold that reaches a target at the least cost in the other metric.

    It lies halfway between two scores, so that rounding does not change decisions.

    Args:
        scores: (N,) probabilities of the class.
        positive: (N,) true for images of the class.
        target: the sensitivity or specificity to reach.

    Raises:
        ValueError: no image is of the class, or all are.
    """
    if positive.all() or not positive.any():
        raise ValueError("a threshold needs images of the class and of others")
    if target.figure == "sensitivity":
        positives = np.sort(scores[positive])[::-1]
        last = positives[_count_needed(target.value, len(positives)) - 1]  # lowest score above the threshold
        below = scores[scores < last]
        threshold = (last + (below.max() if len(below) else 0.0)) / 2
    else:
        negatives = np.sort(scores[~positive])
        last = negatives[_count_needed(target.value, len(negatives)) - 1]  # highest score below the threshold
        above = scores[scores > last]
        threshold = (last + (above.min() if len(above) else 1.0)) / 2
    predicted = scores >= threshold
    correct = predicted[positive] if target.figure == "sensitivity" else ~predicted[~positive]
    return Threshold(target=target, threshold=float(threshold), reached=float(correct.mean()), images=len(correct))


def apply_threshold(
    threshold: Threshold,
    scores: Floats,
    positive: NDArray[np.bool_],
    groups: Sequence[str] | None,
    known: NDArray[np.bool_] | None = None,
) -> OperatingPoint:
    """Return sensitivity and specificity of a threshold on other images, with 95% CIs.

    Args:
        threshold: set on other images.
        scores: (N,) probabilities of the class.
        positive: (N,) true for images of the class.
        groups: (N,) names, for clustered CIs; None where groups are not known.
        known: (N,) true for images of which it is known whether they are of the class; None for all.
    """
    known = np.ones(len(scores), np.bool_) if known is None else known
    predicted = scores >= threshold.threshold
    sensitivity, sensitivity_interval = estimate_fraction(predicted, positive & known, groups)
    specificity, specificity_interval = estimate_fraction(~predicted, ~positive & known, groups)
    return OperatingPoint(
        threshold=threshold,
        sensitivity=sensitivity,
        sensitivity_interval=sensitivity_interval,
        specificity=specificity,
        specificity_interval=specificity_interval,
    )


def _count_needed(fraction: float, total: int) -> int:
    """Return the smallest count that is at least a fraction of `total`; rounding of 0.95 x 20 must not give 20."""
    return max(1, math.ceil(fraction * total - 1e-9))
