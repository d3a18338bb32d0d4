"""Recalibration on a few labelled images of an evaluation; the others are evaluated."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

from msgspec import structs

from convnext_cli.data.audit.measurements import measure_images
from convnext_cli.data.index import group_by, select_rows
from convnext_cli.data.split import split_index
from convnext_cli.errors import DataError, UsageError
from convnext_cli.inference.calibration import Calibration
from convnext_cli.inference.calibration_fit import measure_gain
from convnext_cli.inference.classifier import Classifier
from convnext_cli.inference.evaluated_images import EvaluatedImages
from convnext_cli.inference.operating_points import fit_threshold, name_targets
from convnext_cli.inference.test_set import TestSet
from convnext_cli.metrics.comparison import Comparison
from convnext_cli.metrics.intervals import count_units
from convnext_cli.metrics.thresholds import Target
from convnext_cli.progress import Notice, Steps
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.task import Display, Scaling
from convnext_cli.text import format_count, shorten_names


@dataclass(frozen=True, kw_only=True, slots=True)
class Recalibration:
    """A calibration fitted on some images of an evaluation, which are not evaluated."""

    images: int
    """Number of images that it was fitted on."""
    groups: int
    """Number of their groups; of images where groups are not known."""
    description: str
    """Description of the fitted parameters."""
    gain: Comparison
    """Metrics of the other images with this calibration, minus those with the run's own."""

    def describe_change(self, display: Display) -> str:
        """Return the change of the metrics that a calibration changes, and of those that runs are compared by."""
        changed = [key for _, key in display.calibration]
        return self.gain.describe(display.recalibrated or tuple(dict.fromkeys([*changed, *display.compared])))


def divide_test_set(test_set: TestSet, number: int | None) -> Steps[tuple[TestSet | None, TestSet]]:
    """Return about `number` images to recalibrate on, and the others; groups and copies are on one side.

    The draw is stratified by class, and the same each time. Without a number, all images are the others.

    Raises:
        DataError: too few images are left to evaluate.
    """
    if number is None:
        return None, test_set
    index = select_rows(test_set.index, test_set.rows)
    if number >= len(index):
        images = format_count(len(index), "image")
        raise DataError(f"--recalibrate {number} leaves none of the {images} to evaluate", "Give a smaller number")
    measurements = yield from measure_images(index)
    digests = list(map(tuple, measurements.measures["digest"].tolist()))
    copies = group_by(range(len(index)), digests.__getitem__)
    divided = split_index(
        replace(index, splits=("",) * len(index), folds=()),
        val_fraction=number / len(index),
        test_fraction=0.0,
        seed=0,
        duplicate_sets=[rows for digest, rows in copies.items() if any(digest)],
    )
    parts = [[test_set.rows[row] for row in divided.rows(split)] for split in ("val", "train")]
    if not all(parts):
        raise DataError(
            f"the {len(index):,} images have too few groups to recalibrate on {number} of them",
            "Give another number to --recalibrate",
        )
    one, two = (replace(test_set, rows=rows) for rows in parts)
    return one, two


def refit_calibration(
    classifier: Classifier,
    fit_set: TestSet | None,
    calibration: Calibration | None,
    run: RunFolder,
    new_targets: Sequence[Target] = (),
) -> Steps[tuple[Calibration | None, list[Notice]]]:
    """Fit a calibration, and the thresholds of all targets, on labelled images.

    Without images, the run's own calibration stays; it gives targets and OOD score. A cross-validation has none.

    Returns:
        The calibration, with a note on the images, and a warning on classes of which there are few.

    Raises:
        UsageError: the images allow no threshold for one of `new_targets`.
    """
    if fit_set is None:
        return calibration, []
    notes, task, classes = [], classifier.task, classifier.classes
    targets = classifier.read_targets(fit_set.index, fit_set.rows)
    outputs = yield from classifier.classify_rows(fit_set.index, fit_set.rows, activity="recalibrating")
    base = calibration or Calibration(weights=run.fingerprint_weights(), images=0)
    scaling = task.fit_calibration(outputs.logits, targets, fit_set.groups)
    if kept := task.list_uncalibrated(scaling, classes):
        scaling = keep_labels(scaling, base, [classes.index(name) for name in kept])
        text = f"the calibration of {shorten_names(kept)} stays: too few of these images are positive or negative"
        notes.append(Notice(text, "warning"))
    parameters = structs.asdict(scaling) | measure_gain(classifier, outputs.logits, targets, scaling)
    fitted = structs.replace(base, images=len(targets), unfitted_reason=None, **parameters)
    images = EvaluatedImages(
        task=task, classes=classes, logits=outputs.logits, targets=targets, calibration=fitted, groups=fit_set.groups
    )
    former = {old.target: old for old in base.thresholds}
    thresholds, stays = [], []
    for target in dict.fromkeys([*former, *name_targets(new_targets, task, classes)]):
        threshold = fit_threshold(target, images)
        if threshold is None and target not in former:
            problem = f"no threshold can be set for {target}: all images of --recalibrate are of its class, or none is"
            raise UsageError(problem, "Give a larger number to --recalibrate, or leave out --target")
        stays += [] if threshold else [str(target)]
        thresholds.append(threshold or former[target])
    if stays:
        text = f"the threshold of {shorten_names(stays)} stays: all of these images are of its class, or none is"
        notes.append(Notice(text, "warning"))
    text = f"recalibrated on {len(targets):,} of these images; the other ones are evaluated"
    notes.append(Notice(f"{text}. The run keeps its own calibration"))
    if few := task.explain_small_validation(targets, classes):
        notes.append(Notice(f"recalibrated on few images of a class: {few}; the calibration is uncertain", "warning"))
    return structs.replace(fitted, thresholds=tuple(thresholds)), notes


def keep_labels(fitted: Scaling, previous: Scaling, labels: Sequence[int]) -> Scaling:
    """Return a scaling with the previous parameters of some labels; as it is if they had none."""
    if not previous.label_scale:
        return fitted

    def join(key: str) -> tuple[float, ...]:
        pairs = zip(getattr(fitted, key), getattr(previous, key), strict=True)
        return tuple(old if k in labels else new for k, (new, old) in enumerate(pairs))

    return structs.replace(fitted, **{key: join(key) for key in ("label_scale", "label_offset", "label_thresholds")})


def measure_recalibration(
    images: EvaluatedImages, own: Calibration | None, fit_set: TestSet | None
) -> Recalibration | None:
    """Return what a recalibration changes on images that it was not fitted on; None without a recalibration."""
    if fit_set is None:
        return None
    assert images.calibration is not None  # of `refit_calibration`
    return Recalibration(
        images=len(fit_set.rows),
        groups=count_units(len(fit_set.rows), fit_set.groups),
        description=images.task.describe_calibration(images.calibration),
        gain=replace(images, calibration=own).compare(images),
    )
