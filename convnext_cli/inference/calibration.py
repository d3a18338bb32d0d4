"""The calibrations of a run, of images (`calibration_fit.py` fits it) and of groups (`pooling.py`), and their files."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Annotated, Any, TypeVar

import numpy as np
from msgspec import Meta, field
from numpy.typing import NDArray

from convnext_cli.errors import RunError
from convnext_cli.files import write_output
from convnext_cli.inference.classifier import Classifier
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.novelty import NUMBERS, SCORE_NAME, NoveltyModel
from convnext_cli.metrics.pooling import MEAN, Rule
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.summary import Fraction
from convnext_cli.metrics.thresholds import Threshold
from convnext_cli.options import AUTO
from convnext_cli.runs.files import CALIBRATION, CALIBRATION_ARRAYS, POOLING, RunFile
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.records import check_digest, convert_record, digest_values, read_json, to_plain
from convnext_cli.tasks.task import Scaling, Targets, Task
from convnext_cli.text import format_count, format_percent, quote

ABSTAIN_RATE = 0.05  # largest fraction of validation images above the OOD threshold
MIN_DETECTED = 0.5  # fraction of scrambled images above the threshold; below, the OOD score is called unreliable
_NOVELTY_ARRAYS = {"bank": 2, "mean": 1, "precision": 2}  # name and number of dimensions

Nats = Annotated[float, Meta(ge=0, le=1e6)]


class FittedScaling(Scaling, frozen=True, kw_only=True, rename={"unfitted_reason": "weak"}):
    """A scaling, its weights and thresholds. The field names are JSON keys; that of `unfitted_reason` is `weak`."""

    weights: str
    """Fingerprint of the weights that it was fitted for."""
    unfitted_reason: str | None = None
    """The reason why nothing was fitted; None where it was."""
    thresholds: tuple[Threshold, ...] = ()
    """Thresholds on calibrated probabilities, one for each target that the validation images, or groups, allow."""

    @property
    def is_fitted(self) -> bool:
        """True if there were enough validation images, or groups, to fit anything."""
        return self.unfitted_reason is None


class Calibration(FittedScaling, frozen=True, kw_only=True):
    """The calibration of images: everything fitted on the validation split; `calibration.json`."""

    images: Annotated[int, Meta(ge=0)]
    """Number of validation images."""
    log_loss: tuple[Nats, Nats] | None = None
    """On validation, before and after."""
    ece: tuple[Fraction, Fraction] | None = None
    """On validation, before and after."""
    novelty_score: str = SCORE_NAME
    novelty_threshold: Annotated[float, Meta(ge=-1)] | None = None
    """OOD score above which an image is flagged."""
    novelty_rate: Fraction = ABSTAIN_RATE
    """Largest fraction of validation images above the OOD threshold."""
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


class Pooling(FittedScaling, frozen=True, kw_only=True):
    """The calibration of groups: the rule that pools a group's images, and what was fitted for it; `pooling.json`."""

    rule: Rule = MEAN
    groups: Annotated[int, Meta(ge=0)] = 0
    """Number of validation groups."""
    group_from: str = AUTO
    """The source of the groups, as `--group-from` has it; `auto` for the run's own."""
    negative_class: str | None = None
    """The class that any other class of a group's images outweighs."""
    losses: dict[str, float] = field(default_factory=dict)
    """Loss of each rule on the validation groups after calibration: log loss, or of a number the squared error."""


_Either = TypeVar("_Either", Calibration, Pooling)


def _drop_empty(values: dict[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in values.items() if value not in (None, (), [])}


def describe_calibration(task: Task, calibration: Calibration) -> str:
    """Return what was fitted, and what it changed on the validation images, in words."""
    changes = ((METRICS[key], getattr(calibration, field)) for field, key in task.display.calibration[:1])
    parts = [f"validation {m.title} {m.format(pair[0])} -> {m.format(pair[1])}" for m, pair in changes if pair]
    return ": ".join([task.describe_calibration(calibration), *parts])


def describe_unreliable_ood(calibration: Calibration) -> str | None:
    """Return a warning where the OOD score misses too many scrambled images, else None."""
    detected = calibration.novelty_detected
    if detected is None or detected >= MIN_DETECTED:
        return None
    return (
        f"--abstain is not reliable for this model: its OOD score flags only {format_percent(detected)}% of scrambled "
        "validation images"
    )


def check_classes(calibration: FittedScaling, classes: Sequence[str], source: object, remedy: str) -> None:
    """Check that a calibration is for the classes that the model has.

    Raises:
        RunError: the model does not have a threshold's class, or another number of classes.
    """
    for key in ("label_scale", "label_offset", "label_thresholds"):
        if (number := len(getattr(calibration, key))) not in (0, len(classes)):
            problem = f"{format_count(number, 'value')} for {format_count(len(classes), 'class')}"
            raise RunError(f"{source} cannot be read: {key}: {problem}", remedy)
    for number, threshold in enumerate(calibration.thresholds):
        if not threshold.target.list_positive(classes):
            problem = f"the model has no class {threshold.target.name!r}"
            raise RunError(f"{source} cannot be read: thresholds[{number}].target.name: {problem}", remedy)


def read_calibration(run: RunFolder) -> Calibration | None:
    """Return the calibration of the run's weights; None where it is missing or was fitted for other weights.

    Raises:
        RunError: the file does not fit its schema, or names classes that the model does not have.
    """
    return _read_current(run, CALIBRATION, Calibration)


def read_pooling(run: RunFolder) -> Pooling | None:
    """Return the pooling of the run's weights, as `read_calibration` does the calibration."""
    return _read_current(run, POOLING, Pooling)


def _read_current(run: RunFolder, file: RunFile, schema: type[_Either]) -> _Either | None:
    calibration = run.read(file, schema)
    if calibration is None or calibration.weights != run.fingerprint_weights():
        return None
    check_classes(calibration, run.read_config().label_names, file.path(run.path), file.remedy)
    return calibration


def save_calibration(path: Path, calibration: Calibration, *, overwrite: bool) -> None:
    """Write a calibration into a file that the user named. Raises the errors of `replace_output`."""
    content = calibration.to_dict()
    text = json.dumps(content | {"digest": digest_values(content)}, indent=1) + "\n"
    write_output(path, text, "--save-calibration", overwrite=overwrite)


def load_calibration(path: Path, weights: str, classes: Sequence[str]) -> Calibration:
    """Return the calibration in a file of `save_calibration`.

    Raises:
        RunError: the file cannot be read, does not fit its schema, was changed since it was written, or was written for
            another model.
    """
    remedy = "Give a file that `convnext eval RUN DATA --recalibrate N --save-calibration FILE` wrote for this run"
    try:
        content = read_json(path, remedy)
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", remedy) from error
    calibration = convert_record(content, Calibration, path, remedy)
    if calibration.weights != weights:
        raise RunError(f"{path} is the calibration of another model", remedy)
    check_digest(content.get("digest"), digest_values(content), path, remedy)
    check_classes(calibration, classes, path, remedy)
    return calibration


def read_novelty(run: RunFolder) -> NoveltyModel:
    """Return the OOD model of a run.

    Raises:
        RunError: the arrays are missing or damaged, or those of an earlier version's OOD score.
    """
    arrays, path = run.read_calibration_arrays(), CALIBRATION_ARRAYS.path(run.path)
    if "precision" not in arrays:
        raise RunError(
            f"{run.path} was calibrated by an earlier version, with another OOD score",
            f"Calibrate it again with `convnext eval {quote(run.path)}`",
        )
    bank, mean, precision = (_get_array(arrays, path, name, ndim) for name, ndim in _NOVELTY_ARRAYS.items())
    if mean.shape != (NUMBERS,) or precision.shape != (NUMBERS, NUMBERS):
        problem = f"mean and precision have shapes {mean.shape} and {precision.shape}"
        raise RunError(f"{path} cannot be read: {problem}", CALIBRATION.remedy)
    return NoveltyModel(bank=bank, mean=mean, precision=precision)


def read_validation(run: RunFolder, calibration: Calibration, model: Classifier) -> tuple[Floats, Targets]:
    """Return the logits (N, K) and targets of the validation images that a calibration was fitted on.

    Raises:
        RunError: they are missing or damaged, or of other images or classes.
    """
    task, num_classes = model.task, len(model.classes)
    arrays, path = run.read_calibration_arrays(), CALIBRATION_ARRAYS.path(run.path)
    logits = _get_array(arrays, path, "val_logits", 2)
    labels = _get_array(arrays, path, "val_labels", 1, has_values=task.has_values)
    if logits.shape != (calibration.images, task.count_outputs(num_classes)) or len(labels) != len(logits):
        raise RunError(
            f"{path} cannot be read: val_logits {logits.shape}, val_labels {labels.shape} are not of "
            f"{format_count(calibration.images, 'image')} and {format_count(num_classes, 'class')}",
            CALIBRATION_ARRAYS.remedy,
        )
    return logits, labels


def _get_array(
    arrays: dict[str, NDArray[Any]], path: Path, name: str, ndim: int, *, has_values: bool = False
) -> NDArray[Any]:
    """Return one of the arrays of `calibration.safetensors`, which is at `path`.

    Targets with values (`has_values`) may be unknown (nan) and have any number of dimensions.

    Raises:
        RunError: it is missing or empty, has another number of dimensions, or values that are not finite.
    """
    array = arrays.get(name)
    if array is not None and array.size and has_values:
        return array
    if array is None or array.ndim != ndim or not array.size or not np.isfinite(array).all():
        problem = "is missing" if array is None else f"has shape {array.shape}, or values that are not finite"
        raise RunError(f"{path} cannot be read: {name} {problem}", CALIBRATION_ARRAYS.remedy)
    return array
