"""Calibration of a run on its validation split: temperature, thresholds and OOD score."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from msgspec.structs import replace
from numpy.typing import NDArray

from convnext_cli.data.index import Index, pick_evenly
from convnext_cli.data.split import explain_small_validation
from convnext_cli.encoding import find_name
from convnext_cli.errors import RunError, UsageError, suggest
from convnext_cli.files import write_output
from convnext_cli.images.decode import Pixels
from convnext_cli.images.transforms import pad_image
from convnext_cli.inference.classifier import Classifier, open_for_eval
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.novelty import NUMBERS, SCORE_NAME, NoveltyModel, choose_novelty_threshold, fit_novelty
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.summary import Fraction, MetricSet
from convnext_cli.metrics.thresholds import Target, Threshold, find_threshold
from convnext_cli.progress import Steps
from convnext_cli.recipes.costs import BANK_IMAGES
from convnext_cli.runs.files import CALIBRATION, CALIBRATION_ARRAYS
from convnext_cli.runs.folder import CALIBRATION_REMEDY, REFIT_REMEDY, RunFolder
from convnext_cli.runs.records import convert_record, read_json, to_plain
from convnext_cli.tasks.registry import TASKS, get_display
from convnext_cli.tasks.task import Scaling, Targets, Task
from convnext_cli.text import quote

ABSTAIN_RATE = 0.05  # fraction of validation images above the OOD threshold
SCRAMBLED_IMAGES = 64  # validation images that are scrambled to test the OOD score
MIN_DETECTED = 0.5  # fraction of scrambled images above the threshold; below, the OOD score is called unreliable
_NOVELTY_ARRAYS = {"bank": 2, "mean": 1, "precision": 2}  # name and number of dimensions
BANK_IMAGES_PER_CLASS = 200  # training images in the bank; `benchmarks/README.md` has the ROC AUC for 25 to 500

Nats = Annotated[float, Meta(ge=0, le=1e6)]


class Calibration(Scaling, frozen=True, kw_only=True, rename={"unfitted_reason": "weak"}):
    """Everything fitted on the validation split.

    The field names are keys of `calibration.json`; that of `unfitted_reason` is `weak`.
    """

    weights: str
    """Fingerprint of the weights that it was fitted for."""
    images: Annotated[int, Meta(ge=0)]
    """Number of validation images."""
    unfitted_reason: str | None
    """The reason why nothing was fitted; None where it was."""
    log_loss: tuple[Nats, Nats] | None = None
    """On validation, before and after."""
    ece: tuple[Fraction, Fraction] | None = None
    """On validation, before and after."""
    thresholds: tuple[Threshold, ...] = ()
    """Thresholds on calibrated probabilities, one for each target."""
    novelty_score: str = SCORE_NAME
    novelty_threshold: Annotated[float, Meta(ge=-1)] | None = None
    """OOD score above which an image is flagged."""
    novelty_rate: Fraction = ABSTAIN_RATE
    """Fraction of validation images above the OOD threshold."""
    novelty_detected: Fraction | None = None
    """Fraction of scrambled validation images above the OOD threshold; None where none were scored."""
    training_images: Annotated[int, Meta(ge=0)] = 0
    """Number of training images in the bank."""

    def to_dict(self) -> dict[str, Any]:
        """Return plain values, for JSON, without what other tasks and other targets have."""
        first: dict[str, Any] = {"weights": self.weights, "images": self.images, "weak": self.unfitted_reason}
        values = first | to_plain(self)
        unused = set(Scaling.__struct_fields__)
        values["thresholds"] = [_drop_empty(t | {"target": _drop_empty(t["target"])}) for t in values["thresholds"]]
        return {key: value for key, value in values.items() if value or key not in unused}

    @property
    def is_fitted(self) -> bool:
        """Return whether the validation split was large enough to fit anything."""
        return self.unfitted_reason is None


def _drop_empty(values: dict[str, Any]) -> dict[str, Any]:
    """Return values without those that are None or empty."""
    return {key: value for key, value in values.items() if value not in (None, (), [])}


def calibrate_steps(model: Classifier, run: RunFolder, *, thresholds: tuple[Threshold, ...] = ()) -> Steps[Calibration]:
    """Fit the temperature and the OOD score on a run's validation split, and write them into the run.

    Where the validation split is too small, nothing is fitted; the result has the reason.

    Args:
        model: the run's classifier.
        run: the run folder.
        thresholds: kept in the result.

    Raises:
        RunError: the run cannot be read.
        ImageError: an image is gone.
    """
    index = run.read_split()
    val = index.rows("val")
    bank_rows = choose_bank(index)
    fingerprint = run.fingerprint_weights()
    if reason := explain_small_validation(index):
        calibration = Calibration(weights=fingerprint, images=len(val), unfitted_reason=reason)
        run.write_calibration(calibration.to_dict(), {})
        return calibration
    validation = yield from model.classify_rows(index, val, features=True, activity="calibrating")
    training = yield from model.classify_rows(index, bank_rows, features=True, activity="fitting the OOD score")
    logits, targets = validation.logits, model.read_targets(index, val)
    novelty = fit_novelty(training.features, training.statistics)
    scores = novelty.score(validation.features, validation.statistics)
    threshold = choose_novelty_threshold(scores, ABSTAIN_RATE)
    groups = index.list_groups(val)
    scaling = model.task.fit_calibration(logits, targets, groups)
    calibration = Calibration(weights=fingerprint, images=len(val), unfitted_reason=None, **scaling)
    calibration = replace(
        calibration,
        **measure_gain(model, logits, targets, calibration),
        thresholds=thresholds,
        novelty_threshold=threshold,
        novelty_detected=_detect_scrambled(model, index, val, novelty, threshold),
        training_images=len(bank_rows),
    )
    arrays = {name: getattr(novelty, name) for name in _NOVELTY_ARRAYS}
    arrays |= {"val_logits": logits, "val_labels": targets}
    arrays |= {"val_novelty": scores.astype(np.float32), "val_statistics": validation.statistics}
    arrays["val_corners"] = validation.corners
    run.write_calibration(calibration.to_dict(), arrays)
    return calibration


def measure_gain(model: Classifier, logits: Floats, targets: Targets, calibration: Calibration) -> dict[str, Any]:
    """Return the metrics that calibration changes, before and after, on the images that it was fitted on."""
    task, classes = model.task, model.classes
    before = task.compute_metrics(logits, targets, classes)
    after = task.compute_metrics(task.calibrate(logits, calibration), targets, classes)
    return {field: (getattr(before, key), getattr(after, key)) for field, key in task.display.calibration}


def describe_calibration(task: str, calibration: Calibration) -> str:
    """Return what was fitted, and what it changed on the validation images, in words."""
    changes = ((METRICS[key], getattr(calibration, field)) for field, key in get_display(task).calibration[:1])
    parts = [f"validation {m.title} {m.format(pair[0])} -> {m.format(pair[1])}" for m, pair in changes if pair]
    return ": ".join([TASKS[task].describe_calibration(calibration), *parts])


def describe_worse_calibration(
    task: Task, before: MetricSet, after: MetricSet, fitted_on: str = "validation images"
) -> str | None:
    """Return a warning where calibration makes the first of the metrics that it changes worse, else None.

    Args:
        task: names these metrics, of which lower is better.
        before: metrics of the uncalibrated probabilities.
        after: metrics of the calibrated probabilities, of the same images.
        fitted_on: the images that the calibration was fitted on, in words.
    """
    metrics = [METRICS[key] for _, key in task.display.calibration]
    pairs = [(getattr(before, metric.key), getattr(after, metric.key)) for metric in metrics]
    if not pairs or pairs[0][1] <= pairs[0][0]:
        return None
    changes = (
        f"{metric.title} {' -> '.join(map(metric.format_with_unit, pair))}"
        for metric, pair in zip(metrics, pairs, strict=True)
    )
    return (
        f"the calibration that was fitted on {fitted_on} makes the probabilities worse on these images: "
        f"{', '.join(changes)}. Do not rely on them; the images may differ from the {fitted_on}"
    )


def describe_unreliable_ood(calibration: Calibration) -> str | None:
    """Return a warning where the OOD score misses too many scrambled images, else None."""
    detected = calibration.novelty_detected
    if detected is None or detected >= MIN_DETECTED:
        return None
    return (
        f"--abstain is not reliable for this model: its OOD score flags only {100 * detected:.0f}% of scrambled "
        "validation images"
    )


def _detect_scrambled(
    model: Classifier, index: Index, rows: Sequence[int], novelty: NoveltyModel, threshold: float
) -> float:
    """Return the fraction of scrambled validation images whose OOD score is above the threshold.

    A scrambled image is clearly out-of-distribution, but has the pixel values of the data set.
    """
    rows = pick_evenly(rows, SCRAMBLED_IMAGES)
    images = open_for_eval(index.root, model.preprocessing, cache=model.cache)

    def load(row: int) -> Pixels:
        return pad_image(scramble(images.read(index.paths[row])), model.preprocessing)

    parts = list(model.classify_batches(rows, load, features=True))
    scores = np.concatenate([novelty.score(part.features, part.statistics) for part in parts])
    return float((scores > threshold).mean())


def scramble(image: Pixels) -> Pixels:
    """Return an image (H, W, 3) inverted and with its 4 x 4 tiles in a fixed random order."""
    tall, wide = image.shape[0] // 4, image.shape[1] // 4
    inverted = 255 - image
    scrambled = inverted.copy()
    for position, source in enumerate(np.random.default_rng(0).permutation(16)):
        (row, column), (from_row, from_column) = divmod(position, 4), divmod(int(source), 4)
        scrambled[row * tall : (row + 1) * tall, column * wide : (column + 1) * wide] = inverted[
            from_row * tall : (from_row + 1) * tall, from_column * wide : (from_column + 1) * wide
        ]
    return scrambled


def choose_bank(index: Index) -> list[int]:
    """Return the training rows that the OOD score is fitted to: up to 200 of each class, 5,000 of all."""
    by_class: dict[int, list[int]] = {}
    for row in index.rows("train"):
        by_class.setdefault(index.labels[row], []).append(row)
    rows = [row for of_class in by_class.values() for row in pick_evenly(of_class, BANK_IMAGES_PER_CLASS)]
    return pick_evenly(sorted(rows), BANK_IMAGES)


def read_calibration(run: RunFolder) -> Calibration | None:
    """Return the calibration of the run's weights; None where it is missing or was fitted for other weights.

    Raises:
        RunError: the file does not fit its schema, or names classes that the model does not have.
    """
    raw, path = run.read_calibration(), CALIBRATION.path(run.path)
    if raw is None:
        return None
    calibration = convert_record(raw, Calibration, path, CALIBRATION_REMEDY)
    if calibration.weights != run.fingerprint_weights():
        return None
    check_scaling(calibration, calibration.thresholds, run.read_config().label_names, path, CALIBRATION_REMEDY)
    return calibration


def write_calibration(path: Path, calibration: Calibration, *, overwrite: bool) -> None:
    """Write a calibration into a file that the user named. Raises the errors of `replace_output`."""
    text = json.dumps(calibration.to_dict(), indent=1) + "\n"
    write_output(path, text, "--save-calibration", overwrite=overwrite)


def load_calibration(path: Path, weights: str, classes: Sequence[str]) -> Calibration:
    """Return the calibration in a file of `write_calibration`.

    Args:
        path: the file.
        weights: checksum of the model's weights.
        classes: of the model.

    Raises:
        RunError: the file cannot be read, does not fit its schema, or was written for another model.
    """
    remedy = "Give a file that `convnext eval RUN DATA --recalibrate N --save-calibration FILE` wrote for this run"
    try:
        calibration = convert_record(read_json(path, remedy), Calibration, path, remedy)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", remedy) from error
    if calibration.weights != weights:
        raise RunError(f"{path} is the calibration of another model", remedy)
    check_scaling(calibration, calibration.thresholds, classes, path, remedy)
    return calibration


def check_scaling(
    scaling: Scaling, thresholds: Sequence[Threshold], classes: Sequence[str], source: object, remedy: str
) -> None:
    """Check that a calibration or a pooling is for the classes that the model has.

    Args:
        scaling: the calibration or the pooling.
        thresholds: its thresholds.
        classes: of the model.
        source: the file that it was read from, for the error.
        remedy: of the error.

    Raises:
        RunError: the model does not have a threshold's class, or another number of classes.
    """
    for key in ("label_scale", "label_offset", "label_thresholds"):
        if (number := len(getattr(scaling, key))) not in (0, len(classes)):
            raise RunError(f"{source} cannot be read: {key}: {number} values for {len(classes)} classes", remedy)
    for number, threshold in enumerate(thresholds):
        if threshold.target.name not in classes:
            problem = f"the model has no class {threshold.target.name!r}"
            raise RunError(f"{source} cannot be read: thresholds[{number}].target.name: {problem}", remedy)


def read_novelty(run: RunFolder) -> NoveltyModel:
    """Return the OOD model of a run.

    Raises:
        RunError: the arrays are missing or damaged, or those of an earlier version's OOD score.
    """
    if "precision" not in run.read_calibration_arrays():
        raise RunError(
            f"{run.path} was calibrated by an earlier version, with another OOD score",
            f"Calibrate it again with `convnext eval {quote(run.path)}`",
        )
    bank, mean, precision = (_read_array(run, name, ndim) for name, ndim in _NOVELTY_ARRAYS.items())
    if mean.shape != (NUMBERS,) or precision.shape != (NUMBERS, NUMBERS):
        problem = f"mean and precision have shapes {mean.shape} and {precision.shape}"
        raise RunError(f"{CALIBRATION_ARRAYS.path(run.path)} cannot be read: {problem}", CALIBRATION_REMEDY)
    return NoveltyModel(bank=bank, mean=mean, precision=precision)


def _read_array(run: RunFolder, name: str, ndim: int | None = 1, *, has_values: bool = False) -> NDArray[Any]:
    """Return an array of `calibration.safetensors`.

    Args:
        run: the run.
        name: of the array.
        ndim: its number of dimensions.
        has_values: True for targets with values, which may be unknown (nan) and have any number of dimensions.

    Raises:
        RunError: it is missing or empty, has another number of dimensions, or values that are not finite.
    """
    array = run.read_calibration_arrays().get(name)
    if array is not None and array.size and has_values:
        return array
    if array is None or array.ndim != ndim or not array.size or not np.isfinite(array).all():
        problem = "is missing" if array is None else f"has shape {array.shape}, or values that are not finite"
        raise RunError(f"{CALIBRATION_ARRAYS.path(run.path)} cannot be read: {name} {problem}", REFIT_REMEDY)
    return array


def add_targets(run: RunFolder, calibration: Calibration, model: Classifier, targets: Sequence[Target]) -> Calibration:
    """Set thresholds for new targets on the validation split, and write them into the run beside the old ones.

    Args:
        run: the run folder.
        calibration: of the run.
        model: the run's classifier.
        targets: new targets; one that the run has already is set again.

    Returns:
        The calibration with all thresholds.

    Raises:
        UsageError: the model has no such class, or the validation split is too small or has no image of it.
    """
    if not targets:
        return calibration
    if not calibration.is_fitted:
        raise UsageError(
            f"no threshold can be set: {calibration.unfitted_reason}",
            "Fine-tune with more validation images, or leave out --target",
        )
    task, classes = model.task, model.classes
    numbers = [find_class(target.name, classes, "--target") for target in targets]
    logits, labels = read_validation(run, calibration, model)
    probabilities = task.activate(task.calibrate(logits, calibration))
    index = run.read_split()
    groups = index.list_groups(index.rows("val"))
    thresholds = {threshold.target: threshold for threshold in calibration.thresholds}
    for target, k in zip(targets, numbers, strict=True):
        renamed = replace(target, name=classes[k])
        positive, known = task.select_known(labels, k)
        if not positive.any() or positive[known].all():
            missing = "other images" if positive.any() else f"images of {classes[k]}"
            raise UsageError(
                f"no threshold can be set for {renamed}: the validation split has no {missing}",
                "Leave out --target, or fine-tune with such validation images",
            )
        thresholds[renamed] = find_threshold(probabilities[:, k], positive, renamed, groups, known)
    calibration = replace(calibration, thresholds=tuple(thresholds.values()))
    run.write_calibration(calibration.to_dict(), run.read_calibration_arrays())
    return calibration


def read_validation(run: RunFolder, calibration: Calibration, model: Classifier) -> tuple[Floats, Targets]:
    """Return the logits (N, K) and targets of the validation images that a calibration was fitted on.

    Raises:
        RunError: they are missing or damaged, or of other images or classes.
    """
    task, num_classes = model.task, len(model.classes)
    logits, labels = _read_array(run, "val_logits", 2), _read_array(run, "val_labels", has_values=task.has_values)
    if logits.shape != (calibration.images, task.count_outputs(num_classes)) or len(labels) != len(logits):
        raise RunError(
            f"{CALIBRATION_ARRAYS.path(run.path)} cannot be read: val_logits {logits.shape}, val_labels "
            f"{labels.shape} are not of {calibration.images} images and {num_classes} classes",
            REFIT_REMEDY,
        )
    return logits, labels


def find_class(name: str, classes: tuple[str, ...], option: str) -> int:
    """Return the number of a class that the user names in an option.

    Raises:
        UsageError: the model has no such class.
    """
    position = find_name(name, classes)
    if position is None:
        remedy = f"{suggest(name, classes)}Known are {', '.join(classes[:20])}"
        raise UsageError(f"unknown class {name!r} in {option}", remedy)
    return position
