"""Targets of a run on the images of an evaluation: operating points, decision curves, missed targets."""

from collections.abc import Sequence
from typing import Any, Literal

from msgspec.structs import replace

from convnext_cli.data.split import MORE_VALIDATION
from convnext_cli.encoding import find_name
from convnext_cli.errors import UsageError
from convnext_cli.inference.calibration import Calibration, read_validation
from convnext_cli.inference.classifier import Classifier, find_class
from convnext_cli.inference.evaluated_images import EvaluatedImages
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
from convnext_cli.tasks.task import Task

TEST_TARGETS = {"image": "targets", "group": "group_targets"}  # keys of `tests.jsonl`


def measure_points(images: EvaluatedImages, thresholds: Sequence[Threshold]) -> tuple[OperatingPoint, ...]:
    """Return the metrics of each threshold on images, or on groups."""
    return tuple(apply_threshold(threshold, *images.select_judged(threshold.target)) for threshold in thresholds)


def trace_curves(
    images: EvaluatedImages, points: Sequence[OperatingPoint], thresholds: Sequence[float] = CURVE_THRESHOLDS
) -> tuple[DecisionCurve, ...]:
    """Return the decision curve of each class that has a target, at the first prevalence that is stated for it."""
    stated: dict[str, Target] = {}
    for target in (point.threshold.target for point in points):
        if not (target.name in stated and stated[target.name].prevalence):
            stated[target.name] = target
    curves = []
    for name, target in stated.items():
        scores, positive, _ = images.select_judged(target)
        if positive.any() and not positive.all():
            curves.append(trace_decision_curve(name, scores, positive, target.prevalence, thresholds))
    return tuple(curves)


def fit_threshold(target: Target, images: EvaluatedImages) -> Threshold | None:
    """Return the threshold for a target on images, or on groups; None where all are of its class, or none is."""
    scores, positive, groups = images.select_judged(target)
    return None if positive.all() or not positive.any() else find_threshold(scores, positive, target, groups)


def name_targets(targets: Sequence[Target], task: Task, classes: Sequence[str]) -> list[Target]:
    """Return targets with the names of classes as the model has them; `severe+` is a grade and all higher ones.

    Raises:
        UsageError: the model has no such class.
    """

    def name(text: str) -> str:
        plus = "+" if task.has_order and text.endswith("+") and find_name(text, classes) is None else ""
        return classes[find_class(text.removesuffix(plus), tuple(classes), "--target")] + plus

    return [replace(target, name=name(target.name)) for target in targets]


def find_missed(
    run: RunFolder, thresholds: Sequence[Threshold], per: Literal["image", "group"] = "image", *, tta: bool = False
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
    if model.task.is_continuous:
        raise UsageError(f"--target does not apply to {model.task.title}", "Leave it out")
    targets = name_targets(targets, model.task, model.classes)
    if not calibration.is_fitted:
        raise UsageError(
            f"no threshold can be set: {calibration.unfitted_reason}", f"{MORE_VALIDATION}, or leave out --target"
        )
    logits, labels = read_validation(run, calibration, model)
    index = run.read_split()
    images = EvaluatedImages(
        task=model.task,
        classes=model.classes,
        logits=logits,
        targets=labels,
        calibration=calibration,
        groups=index.list_groups(index.rows("val")),
    )
    thresholds = {threshold.target: threshold for threshold in calibration.thresholds}
    for target in targets:
        scores, positive, groups = images.select_judged(target)
        if not len(positive):
            raise UsageError(
                f"no threshold can be set for {target}: no validation image is known to be {target.name} or not",
                "Leave out --target",
            )
        if not positive.any() or positive.all():
            missing = "other images" if positive.any() else f"images of {target.name}"
            raise UsageError(
                f"no threshold can be set for {target}: the validation split has no {missing}",
                "Leave out --target, or fine-tune with such validation images",
            )
        thresholds[target] = find_threshold(scores, positive, target, groups)
    return replace(calibration, thresholds=tuple(thresholds.values()))
