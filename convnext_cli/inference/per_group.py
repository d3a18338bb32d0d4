"""Evaluation per group: metrics of one prediction for each patient or object, pooled from its images."""

from dataclasses import dataclass, fields
from typing import Any

import numpy as np

from convnext_cli.data.groups import group_index
from convnext_cli.data.index import Index
from convnext_cli.errors import UsageError
from convnext_cli.inference.calibration import Calibration, Pooling
from convnext_cli.inference.classifier import Classifier
from convnext_cli.inference.evaluated_images import EvaluatedImages
from convnext_cli.inference.operating_points import measure_points
from convnext_cli.inference.pooling import NO_GROUPS_OF_OWN, choose_negative, fit_pooling
from convnext_cli.inference.request import EvalRequest
from convnext_cli.inference.test_set import TestSet
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.metrics.calculator import Ints
from convnext_cli.metrics.intervals import Intervals, number_units
from convnext_cli.metrics.summary import MetricSet, describe_absent
from convnext_cli.metrics.thresholds import OperatingPoint, describe_missed, describe_unreachable
from convnext_cli.options import AUTO
from convnext_cli.progress import Notice
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.records import to_plain
from convnext_cli.tasks.task import Targets, Task
from convnext_cli.text import format_count, format_part

UNCALIBRATED = "groups are pooled by the mean, without a calibration of their own"
_LEFT_OUT = ("names", "sizes", "pooled", "notes", "keeps_pooling")  # of the JSON output, or there in another form
MAX_SEVERAL = 0.1  # fraction of groups with several classes beside the negative one; more is a warning


@dataclass(frozen=True, kw_only=True, slots=True)
class GroupEvaluation:
    """Metrics of a run on groups of images."""

    groups: int
    """Number of groups."""
    images_per_group: tuple[int, int, int]
    """Smallest, median and largest number of images of a group."""
    mixed: int
    """Number of groups whose images have different targets."""
    mixed_target: str
    """The target of such a group, in words."""
    pooling: Pooling
    keeps_pooling: bool
    """True if the run keeps the pooling: it was fitted on the run's own groups."""
    metrics: MetricSet
    """`images` counts groups here."""
    intervals: Intervals
    operating_points: tuple[OperatingPoint, ...]
    names: tuple[str, ...]
    sizes: tuple[int, ...]
    """Number of images of each group."""
    pooled: EvaluatedImages
    """The groups with their pooled outputs, calibrated by `pooling`."""
    notes: tuple[Notice, ...]
    """Everything that limits the validity of the metrics."""

    def describe_groups(self) -> str:
        """Return the number of groups and of their images."""
        smallest, median, largest = self.images_per_group
        start, middle = ("", "") if smallest == largest else (f"{smallest} to ", f", median {median}")
        return f"{format_count(self.groups, 'group')} of {start}{format_count(largest, 'image')}{middle}"

    def describe_pooling(self, task: Task) -> str:
        """Return the rule that pools a group's images, with the losses of all rules where it was chosen."""
        pooling = self.pooling
        if not pooling.is_fitted:
            return f"Pooled by the {pooling.rule} of its images, without a calibration of its own"
        calibration = f"calibrated with {task.describe_calibration(pooling)}"
        if len(pooling.losses) < 2:
            return f"Pooled by the {pooling.rule} of its images, {calibration} on {pooling.groups:,} validation groups"
        losses = ", ".join(f"{rule} {loss:.4f}" for rule, loss in pooling.losses.items())
        reason = "chosen by log loss"
        if pooling.losses[pooling.rule] > min(pooling.losses.values()):
            reason = "because no other rule is better by more than one standard error of the log loss"
        return f"Pooled by {pooling.rule}, {reason} on {pooling.groups:,} validation groups ({losses}), {calibration}"

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the single groups, for JSON."""
        kept = [field.name for field in fields(self) if field.name not in _LEFT_OUT]
        return {name: to_plain(getattr(self, name)) for name in kept} | {"notes": [note.text for note in self.notes]}


def check_groups(request: EvalRequest, test_set: TestSet) -> None:
    """Check that groups are known, and that the calibration is the run's.

    Raises:
        UsageError: this is not so.
    """
    if request.recalibrate is not None:
        raise UsageError("--recalibrate fits the probabilities of single images", "Leave out --per group")
    if not test_set.index.groups:
        raise UsageError(
            f"--per group: the groups of {test_set.index.location} are not known",
            r"Give --group-from, such as 'patient\d+' or dicom:PatientID, or a CSV file with --group-column",
        )


def check_negative(request: EvalRequest, trained_on: Index) -> None:
    """Check that a negative class has an effect on a run that was trained on these data.

    Raises:
        UsageError: it is unknown, the task has none, or single images are evaluated.
    """
    if request.negative_class is None:
        return
    choose_negative(trained_on.task, trained_on.classes, request.negative_class)
    if request.per != "group":
        raise UsageError("--negative-class needs --per group: it decides the class of a group", "Add --per group")


def evaluate_groups(
    classifier: Classifier,
    test_set: TestSet,
    images: EvaluatedImages,
    calibration: Calibration | None,
    request: EvalRequest,
) -> GroupEvaluation:
    """Pool the images of each group, and compute the metrics of groups with their 95% CIs.

    Where the run has validation groups, the rule is chosen and calibrated on these.

    Raises:
        RunError: the validation logits in the run are damaged.
        UsageError: the negative class is unknown, or the task has none.
    """
    task, classes = images.task, images.classes
    negative = choose_negative(task, classes, request.negative_class)
    pooling, keeps_pooling, notes = _prepare_pooling(classifier, test_set, calibration, request, negative)
    groups = images.groups or ()  # `check_groups` refuses images without
    units = number_units(len(groups), groups)
    members = np.split(np.argsort(units, kind="stable"), np.cumsum(np.bincount(units))[:-1])
    position = None if negative is None else classes.index(negative)
    pooled = EvaluatedImages(
        task=task,
        classes=classes,
        logits=task.pool(images.calibrated, units, pooling.rule, position),
        targets=task.pool_targets(images.targets, units, position),
        calibration=pooling,
        groups=None,
    )
    sizes = [len(rows) for rows in members]
    mixed = sum(task.find_conflict(images.targets[rows]) for rows in members)
    mixed_target = task.describe_pooled_target(negative)
    if mixed:
        number = format_part(mixed, len(members), "group", "has", "have")
        notes.append(Notice(f"{number} images with different targets: {mixed_target}"))
        notes += warn_of_ambiguous_groups(units, images.targets, position) if task.has_negative else []
    metrics = pooled.compute_metrics()
    if absent := describe_absent(metrics, task.describe_name, "group"):
        notes.append(Notice(absent))
    if max(sizes) == 1:
        notes.append(Notice("each group has one image: metrics per group are those per image"))
    points = measure_points(pooled, pooling.thresholds)
    warnings = [text for point in points if (text := describe_unreachable(point.threshold, "validation groups"))]
    warnings += [describe_missed(point) for point in points if point.is_missed]
    return GroupEvaluation(
        groups=len(members),
        images_per_group=(min(sizes), int(np.median(sizes)), max(sizes)),
        mixed=mixed,
        mixed_target=mixed_target,
        pooling=pooling,
        keeps_pooling=keeps_pooling,
        metrics=metrics,
        intervals=pooled.compute_intervals(),
        operating_points=points,
        names=tuple(groups[rows[0]] for rows in members),
        sizes=tuple(sizes),
        pooled=pooled,
        notes=(*notes, *(Notice(f"per group: {text}", "warning") for text in warnings)),
    )


def warn_of_ambiguous_groups(units: Ints, targets: Targets, negative: int | None) -> list[Notice]:
    """Return a warning if many groups have several classes beside the negative one, as numbers that restart give.

    Args:
        units: (N,) number of each image's group.
        targets: (N,) classes; of labels, (N, K), nothing is returned.
        negative: the class that any other one outweighs; None if there is none.
    """
    if targets.ndim > 1:
        return []
    kept = np.ones(len(targets), np.bool_) if negative is None else targets != negative
    pairs = np.unique(np.stack([units[kept], targets[kept]]), axis=1)[0]
    several, total = int((np.bincount(pairs) > 1).sum()) if len(pairs) else 0, len(np.unique(units))
    if several <= MAX_SEVERAL * total:
        return []
    finding = "" if negative is None else " with a finding"
    text = (
        f"{format_part(several, total, 'group', 'has', 'have')} several classes{finding}: the same name may be another "
        "patient in each class. --group-from with a pattern that includes the class keeps them apart"
    )
    return [Notice(text, "warning")]


def _prepare_pooling(
    classifier: Classifier,
    test_set: TestSet,
    calibration: Calibration | None,
    request: EvalRequest,
    negative: str | None,
) -> tuple[Pooling, bool, list[Notice]]:
    """Return the pooling of a run, fitted on its validation groups, whether the run keeps it, and notes.

    A cross-validation has no validation images of its own: the mean is used, as it is.
    """
    if not isinstance(classifier, TorchClassifier):
        pooling = Pooling(weights="", unfitted_reason=NO_GROUPS_OF_OWN, negative_class=negative)
        return pooling, False, [Notice(f"{UNCALIBRATED}: {pooling.unfitted_reason}")]
    run = classifier.run
    blank = Pooling(weights=run.fingerprint_weights(), negative_class=negative, group_from=request.group_from)
    index = _group_own_split(run, test_set, request.group_from)
    notes = _list_shared_names(index, test_set)
    pooling = fit_pooling(run, classifier, calibration, index, blank)
    if not pooling.is_fitted:
        notes.append(Notice(f"{UNCALIBRATED}: {pooling.unfitted_reason}", "warning"))
    return pooling, bool(index.groups), notes


def _group_own_split(run: RunFolder, test_set: TestSet, group_from: str) -> Index:
    """Return the run's split, with the groups of the evaluated images where these are its own, or by `group_from`."""
    if test_set.is_own:
        return test_set.index
    index = run.read_split()
    return index if group_from == AUTO else group_index(index, group_from)[0]


def _list_shared_names(index: Index, test_set: TestSet) -> list[Notice]:
    """Return a warning where evaluated groups have the names of groups that the model was trained on."""
    trained = {index.groups[row] for row in index.rows("train")} if index.groups else set()
    shared = trained & set(test_set.groups or ())
    if not shared or test_set.split in ("train", "all"):
        return []
    number = format_count(
        len(shared),
        f"of the evaluated groups, {min(shared)}, has the name of a group",
        f"of the evaluated groups, such as {min(shared)}, have the names of groups",
    )
    text = f"possible leakage: {number} of training images. If they are the same patients, the scores are too high"
    return [Notice(text, "warning")]
