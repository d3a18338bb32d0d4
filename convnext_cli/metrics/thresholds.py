"""Operating points: the threshold at which a class is found often enough, or falsely called seldom enough."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Literal

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from convnext_cli.metrics.formulas import Floats
from convnext_cli.metrics.intervals import Interval, estimate_fraction

FIGURES = ("sensitivity", "specificity")


@dataclass(frozen=True, slots=True)
class Target:
    """What is asked for: a sensitivity or a specificity of at least `value` for the class `name`."""

    figure: Literal["sensitivity", "specificity"]
    value: Annotated[float, Meta(gt=0, le=1)]
    name: str

    def __str__(self) -> str:
        return f"{self.figure}={self.value:g}:{self.name}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """A target and the probability from which on the class counts as found."""

    target: Target
    threshold: Annotated[float, Meta(ge=0)]
    reached: Annotated[float, Meta(ge=0, le=1)]
    """The target's figure on the images the threshold was found on."""
    images: Annotated[int, Meta(ge=0)]
    """How many of these images the figure rests on: those of the class for a sensitivity, the others' else."""


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """What a threshold gives on other images. None where there is no image of the class, or none of another."""

    threshold: Threshold
    sensitivity: float | None
    sensitivity_interval: Interval | None
    specificity: float | None
    specificity_interval: Interval | None

    @property
    def measured(self) -> float | None:
        """The figure that the target is about, on these images."""
        return self.sensitivity if self.threshold.target.figure == "sensitivity" else self.specificity

    @property
    def measured_interval(self) -> Interval | None:
        """Its 95% confidence interval."""
        is_sensitivity = self.threshold.target.figure == "sensitivity"
        return self.sensitivity_interval if is_sensitivity else self.specificity_interval

    @property
    def is_missed(self) -> bool:
        """Whether the measured figure is below the target."""
        return self.measured is not None and self.measured < self.threshold.target.value


def find_threshold(scores: Floats, positive: NDArray[np.bool_], target: Target) -> Threshold:
    """Finds the threshold that meets a target and gives up as little of the other figure as it can.

    It lies halfway between two scores, so that rounding decides nothing.

    Args:
        scores: (N,) probabilities of the class.
        positive: (N,) which images are of the class.
        target: what is asked for.

    Raises:
        ValueError: no image is of the class, or all are.
    """
    if positive.all() or not positive.any():
        raise ValueError("a threshold needs images of the class and of others")
    if target.figure == "sensitivity":
        found = np.sort(scores[positive])[::-1]
        last = found[_count(target.value, len(found)) - 1]  # the lowest score that must still be called
        below = scores[scores < last]
        threshold = (last + (below.max() if len(below) else 0.0)) / 2
    else:
        others = np.sort(scores[~positive])
        last = others[_count(target.value, len(others)) - 1]  # the highest that must not be called
        above = scores[scores > last]
        threshold = (last + (above.min() if len(above) else 1.0)) / 2
    called = scores >= threshold
    hits = called[positive] if target.figure == "sensitivity" else ~called[~positive]
    return Threshold(target=target, threshold=float(threshold), reached=float(hits.mean()), images=len(hits))


def apply_threshold(
    threshold: Threshold, scores: Floats, positive: NDArray[np.bool_], groups: Sequence[str] | None
) -> OperatingPoint:
    """Measures a threshold on images that it was not found on, with intervals; clustered where `groups` is given."""
    called = scores >= threshold.threshold
    sensitivity, sensitivity_interval = estimate_fraction(called, positive, groups)
    specificity, specificity_interval = estimate_fraction(~called, ~positive, groups)
    return OperatingPoint(
        threshold=threshold,
        sensitivity=sensitivity,
        sensitivity_interval=sensitivity_interval,
        specificity=specificity,
        specificity_interval=specificity_interval,
    )


def _count(share: float, whole: int) -> int:
    """How many of `whole` are at least `share` of them; rounding of 0.95 x 20 must not ask for 20."""
    return max(1, math.ceil(share * whole - 1e-9))
