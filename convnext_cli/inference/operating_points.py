"""Targets of a run on the images of an evaluation: operating points, decision curves, missed targets."""

from collections.abc import Sequence
from typing import Any, Literal

from msgspec.structs import replace

from convnext_cli.data.split import MORE_VALIDATION
from convnext_cli.errors import UsageError
from convnext_cli.inference.calibration import Calibration, read_validation
from convnext_cli.inference.classifier import Classifier, find_class
from convnext_cli.inference.evaluated_images import EvaluatedImages
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.decision import CURVE_THRESHOLDS, DecisionCurve, trace_decision_curve
from convnext_cli.metrics.thresholds import (
    OperatingPoint,
    Target,
    Threshold,
    apply_threshold,
    find_threshold,
    show_missed,
)
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.task import Targets, Task

TEST_TARGETS = {"image": "targets", "group": "group_targets"}  # keys of `tests.jsonl`


def measure_points(images: EvaluatedImages, thresholds: Sequence[Threshold]) -> tuple[OperatingPoint, ...]:
    """Return the metrics of each threshold on images, or on groups."""
    probabilities = images.probabilities
    return tuple(
        apply_threshold(threshold, probabilities[:, k], positive, images.groups, known)
        for threshold in thresholds
        for k in [images.classes.index(threshold.target.name)]
        for positive, known in [images.select_known(k)]
    )


def trace_curves(
    images: EvaluatedImages, points: Sequence[OperatingPoint], thresholds: Sequence[float] = CURVE_THRESHOLDS
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
        positive, known = images.select_known(k)
        if positive.any() and not positive[known].all():
            scores = probabilities[known, k]
            curves.append(trace_decision_curve(name, scores, positive[known], prevalence, thresholds))
    return tuple(curves)


def fit_threshold(
    target: Target, task: Task, classes: Sequence[str], scores: Floats, targets: Targets, groups: Sequence[str] | None
) -> Threshold | None:
    """Return the threshold for a target on scores (N, K); None where all images are of its class, or none is."""
    k = classes.index(target.name)
    positive, known = task.select_known(targets, k)
    if positive[known].all() or not positive[known].any():
        return None
    return find_threshold(scores[:, k], positive, target, groups, known)


def name_targets(targets: Sequence[Target], classes: Sequence[str]) -> list[Target]:
    """Return targets with the names of classes as the model has them.

    Raises:
        UsageError: the model has no such class.
    """
    return [replace(target, name=classes[find_class(target.name, tuple(classes), "--target")]) for target in targets]


def find_missed(
    run: RunFolder,
    thresholds: Sequence[Threshold],
    per: Literal["image", "group"] = "image",
    *,
    tta: bool = False,
) -> dict[str, str]:
    """Return each target that its last evaluation on a test split did not meet, with what it reached there.

    Evaluations with another calibration than the run's do not count: their thresholds are not those of predictions.
    Those with test-time augmentation as the predictions have it (`tta`) come before others.
    """
    measured: dict[str, Any] = {}
    for test in sorted(run.read_tests(), key=lambda test: test.get("tta", False) == tta):  # the last one counts
        if not test.get("recalibrated_on"):
            measured |= test.get(TEST_TARGETS[per], {})
    texts = ((str(t.target), show_missed(t.target, measured.get(str(t.target)))) for t in thresholds)
    return {name: text for name, text in texts if text}


def add_targets(run: RunFolder, calibration: Calibration, model: Classifier, targets: Sequence[Target]) -> Calibration:
    """Return a run's calibration with thresholds for new targets, set on the validation split, beside the old ones.

    A target that the run has already is set again.

    Raises:
        UsageError: the model has no such class, or the validation split is too small or has no image of it.
    """
    if not targets:
        return calibration
    task, classes = model.task, model.classes
    targets = name_targets(targets, classes)
    if not calibration.is_fitted:
        raise UsageError(
            f"no threshold can be set: {calibration.unfitted_reason}",
            f"{MORE_VALIDATION}, or leave out --target",
        )
    logits, labels = read_validation(run, calibration, model)
    probabilities = task.activate(task.calibrate(logits, calibration))
    index = run.read_split()
    groups = index.list_groups(index.rows("val"))
    thresholds = {threshold.target: threshold for threshold in calibration.thresholds}
    for target in targets:
        k = classes.index(target.name)
        positive, known = task.select_known(labels, k)
        if not known.any():
            raise UsageError(
                f"no threshold can be set for {target}: no validation image is known to be {classes[k]} or not",
                "Leave out --target",
            )
        if not positive.any() or positive[known].all():
            missing = "other images" if positive.any() else f"images of {classes[k]}"
            raise UsageError(
                f"no threshold can be set for {target}: the validation split has no {missing}",
                "Leave out --target, or fine-tune with such validation images",
            )
        thresholds[target] = find_threshold(probabilities[:, k], positive, target, groups, known)
    return replace(calibration, thresholds=tuple(thresholds.values()))
