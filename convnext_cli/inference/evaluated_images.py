"""Images of an evaluation with a model's outputs: metrics, targets, subgroups and groups are measured on these."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from convnext_cli.encoding import find_name
from convnext_cli.inference.calibration import FittedScaling
from convnext_cli.metrics.calculator import Calculator, Floats
from convnext_cli.metrics.comparison import Comparison, compare
from convnext_cli.metrics.intervals import Intervals, compute_intervals, estimate_mean, number_units
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.summary import MetricSet
from convnext_cli.metrics.thresholds import Target
from convnext_cli.progress import Notice
from convnext_cli.tasks.task import Targets, Task
from convnext_cli.text import format_percent, shorten_name

MIN_SHIFT = 0.05  # of a mean probability; a smaller difference hardly matters


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedImages:
    """The images, or groups of images, of an evaluation, with a model's outputs for them."""

    task: Task
    classes: tuple[str, ...]
    logits: Floats = field(repr=False)
    """(N, K), uncalibrated."""
    targets: Targets = field(repr=False)
    calibration: FittedScaling | None = None
    groups: Sequence[str] | None = field(repr=False)
    """(N,) names; None where groups are not known."""

    @property
    def calibrated(self) -> Floats:
        """The calibrated logits, (N, K)."""
        return self.task.calibrate(self.logits, self.calibration)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """The calibrated probabilities, (N, K); of a number, its prediction (N, 1)."""
        return self.task.activate(self.calibrated)

    def select(self, rows: NDArray[np.integer]) -> "EvaluatedImages":
        """Return some of the images."""
        groups = None if self.groups is None else [self.groups[row] for row in rows]
        return replace(self, logits=self.logits[rows], targets=self.targets[rows], groups=groups)

    def compute_metrics(self) -> MetricSet:
        """Return the metrics of the images."""
        return self.task.compute_metrics(self.calibrated, self.targets, self.classes, self.calibration)

    def make_calculator(self) -> Calculator:
        """Return the calculator of the task's metrics."""
        return self.task.make_calculator(self.calibrated, self.targets, self.calibration)

    def compute_intervals(self) -> Intervals:
        """Compute the 95% CIs of the metrics."""
        return compute_intervals(self.make_calculator(), self.groups)

    def compare(self, other: "EvaluatedImages") -> Comparison:
        """Compare the metrics with those of other outputs for the same images: other minus these.

        The order of the classes may differ.
        """
        order = None
        if self.classes != other.classes:
            order = [place for name in self.classes if (place := find_name(name, other.classes)) is not None]
        return compare(self.make_calculator(), other.make_calculator(), self.groups, order)

    def select_known(self, k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which images are of class k, and for which images that is known, both (N,)."""
        return self.task.select_known(self.targets, k)

    def judge(self, target: Target) -> tuple[Floats, NDArray[np.bool_], NDArray[np.bool_]]:
        """Return the score of each image for a target, which are positive, and for which that is known, all (N,)."""
        positive, known = zip(*map(self.select_known, target.list_positive(self.classes)), strict=True)
        return target.score(self.probabilities, self.classes), np.any(positive, axis=0), np.all(known, axis=0)

    def select_judged(self, target: Target) -> tuple[Floats, NDArray[np.bool_], Sequence[str] | None]:
        """Return scores for a target, which images are positive, and their groups, of the M where that is known."""
        scores, positive, known = self.judge(target)
        return scores[known], positive[known], self.select(np.flatnonzero(known)).groups

    def __len__(self) -> int:
        return len(self.targets)


def describe_worse_calibration(
    images: EvaluatedImages, before: MetricSet, after: MetricSet, fitted_on: str = "validation"
) -> Notice | None:
    """Return a notice where calibration makes the first of the metrics that it changes worse as printed, else None.

    It is a warning if the 95% CI of that change excludes 0. Of the metrics that calibration changes, lower is better.

    Args:
        images: with their calibration.
        before: the metrics without calibration.
        after: the metrics with it.
        fitted_on: the kind of images that it was fitted on.
    """
    changes: list[str] = []
    for _, key in images.task.display.calibration:
        metric, pair = METRICS[key], (getattr(before, key), getattr(after, key))
        shown = [metric.format_with_unit(value) for value in pair]
        if pair[1] > pair[0] and shown[0] != shown[1]:
            changes.append(f"{metric.title} {' -> '.join(shown)}")
        elif not changes:
            return None
    if not changes:
        return None
    _, first = images.task.display.calibration[0]
    change = replace(images, calibration=None).compare(images).differences[first]
    text = (
        f"the calibration that was fitted on {fitted_on} images makes the probabilities worse on these images: "
        f"{', '.join(changes)}"
    )
    if change is None or change.interval is None:
        return Notice(f"{text}. That may be chance: these images give no 95% CI of the change")
    if change.interval.low <= 0:
        return Notice(f"{text}. That may be chance: the 95% CI of the change includes 0")
    return Notice(f"{text}. Do not rely on them; the images may differ from the {fitted_on} images", "warning")


def describe_shift(images: EvaluatedImages) -> Notice | None:
    """Return a notice of the class whose mean probability differs most from its frequency (calibration in the large).

    It differs by `MIN_SHIFT` at least, and the 95% CI of the difference excludes 0; else None.
    """
    shifts: list[tuple[float, bool, str]] = []
    units, probabilities = number_units(len(images), images.groups), images.probabilities
    for k, name in enumerate(() if images.task.is_continuous else images.classes):
        positive, known = images.select_known(k)
        if not known.any():
            continue
        p, n = probabilities[known, k].astype(np.float64), int(known.sum())
        mean, frequency = float(p.mean()), float(positive[known].mean())
        least = float((p * (1 - p)).sum()) / n**2  # of calibrated probabilities; few images of a class show less
        ci = estimate_mean(p - positive[known], units[known], low=-1.0, least=least).interval
        if abs(mean - frequency) >= MIN_SHIFT and ci and (ci.low > 0 or ci.high < 0):
            is_high = mean > frequency
            text = (
                f"the mean probability of {shorten_name(images.task.describe_name(name))} is {format_percent(mean)}%, "
            )
            text += f"too {'high' if is_high else 'low'}: its frequency in these images is {format_percent(frequency)}%"
            shifts.append((round(abs(mean - frequency), 9), is_high, text))  # of two classes, both differ equally
    return Notice(max(shifts)[-1]) if shifts else None
