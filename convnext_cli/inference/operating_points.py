"""Targets of a run on the images of an evaluation: operating points, decision curves, missed targets."""

from collections.abc import Sequence
from typing import Any, Literal

from convnext_cli.inference.scored_images import ScoredImages
from convnext_cli.metrics.decision import CURVE_THRESHOLDS, DecisionCurve, trace_decision_curve
from convnext_cli.metrics.thresholds import OperatingPoint, Threshold, apply_threshold, show_missed
from convnext_cli.runs.folder import RunFolder

TEST_TARGETS = {"image": "targets", "group": "group_targets"}  # keys of `tests.jsonl`


def measure_points(images: ScoredImages, thresholds: Sequence[Threshold]) -> tuple[OperatingPoint, ...]:
    """Return the metrics of each threshold on images, or on groups."""
    probabilities = images.probabilities
    return tuple(
        apply_threshold(threshold, probabilities[:, k], positive, images.groups, known)
        for threshold in thresholds
        for k in [images.classes.index(threshold.target.name)]
        for positive, known in [images.task.select_known(images.targets, k)]
    )


def trace_curves(
    images: ScoredImages, points: Sequence[OperatingPoint], thresholds: Sequence[float] = CURVE_THRESHOLDS
) -> tuple[DecisionCurve, ...]:
    """Return the decision curve of each class that has a target, at the first prevalence that is stated for it."""
    stated: dict[str, float | None] = {}
    for point in points:
        target = point.threshold.target
        stated[target.name] = stated.get(target.name) or target.prevalence
    probabilities = images.probabilities
    curves = []
    for name, prevalence in stated.items():
        k = images.classes.index(name)
        positive, known = images.task.select_known(images.targets, k)
        if positive.any() and not positive[known].all():
            scores = probabilities[known, k]
            curves.append(trace_decision_curve(name, scores, positive[known], prevalence, thresholds))
    return tuple(curves)


def find_missed(
    run: RunFolder, thresholds: Sequence[Threshold], per: Literal["image", "group"] = "image"
) -> dict[str, str]:
    """Return each target that its last evaluation on a test split did not meet, with what it reached there.

    Evaluations with another calibration than the run's do not count: their thresholds are not those of predictions.
    """
    measured: dict[str, Any] = {}
    for test in run.read_tests():
        if not test.get("recalibrated_on"):
            measured |= test.get(TEST_TARGETS[per], {})
    texts = ((str(t.target), show_missed(t.target, measured.get(str(t.target)))) for t in thresholds)
    return {name: text for name, text in texts if text}
