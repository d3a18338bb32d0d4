"""What a run learns from its validation split: its temperature, its thresholds, and what is unlike its images."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from typing import Annotated, Any, cast

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from convnext_cli.data.encoding import find_name
from convnext_cli.data.index import Index
from convnext_cli.data.split import explain_small_validation
from convnext_cli.errors import RunError, UsageError, suggest
from convnext_cli.images.decode import Pixels
from convnext_cli.inference.classifier import Classifier, load_for_eval
from convnext_cli.metrics.formulas import log_softmax
from convnext_cli.metrics.novelty import NUMBERS, SCORE_NAME, NoveltyModel, choose_novelty_threshold, fit_novelty
from convnext_cli.metrics.summary import compute_metrics
from convnext_cli.metrics.temperature import fit_temperature
from convnext_cli.metrics.thresholds import TARGET_METRICS, Target, Threshold, find_threshold
from convnext_cli.progress import Steps
from convnext_cli.runs.folder import CALIBRATION_REMEDY, RunFolder
from convnext_cli.runs.records import convert_record
from convnext_cli.text import quote

ABSTAIN_RATE = 0.05  # of validation images that count as unlike the training images
SCRAMBLED_IMAGES = 64  # validation images that are scrambled to see whether the OOD score notices
MIN_DETECTED = 0.5  # of the scrambled images; where fewer are noticed, the score is not to be relied on
_NOVELTY_ARRAYS = ("bank", "mean", "precision")
BANK_IMAGES = 5000  # training images that others are compared with; 3 MB for the smallest models, 20 for the largest


Nats = Annotated[float, Meta(ge=0, le=1e6)]
Fraction = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What was found on the validation split; kept in the run as `calibration.json`."""

    weights: str
    """Fingerprint of the weights that it holds for."""
    images: Annotated[int, Meta(ge=0)]
    """Validation images it rests on."""
    weak: str | None
    """Why nothing was fitted, or None."""
    temperature: Annotated[float, Meta(gt=0, le=1e6)] = 1.0
    """What logits are divided by before softmax."""
    log_loss: tuple[Nats, Nats] | None = None
    """On validation, before and after."""
    ece: tuple[Fraction, Fraction] | None = None
    """On validation, before and after."""
    thresholds: tuple[Threshold, ...] = ()
    """Probabilities, after the temperature, from which on a class counts as found."""
    novelty_score: str = SCORE_NAME
    novelty_threshold: Annotated[float, Meta(ge=-1)] | None = None
    """The score from which on an image counts as unlike the training images."""
    novelty_rate: Annotated[float, Meta(ge=0, le=1)] = ABSTAIN_RATE
    """The share of validation images that lie above it."""
    novelty_detected: Annotated[float, Meta(ge=0, le=1)] | None = None
    """The share of scrambled validation images that lie above it; None where none were tried."""
    training_images: Annotated[int, Meta(ge=0)] = 0
    """How many training images others are compared with."""


def parse_target(text: str) -> Target:
    """Reads `sensitivity=0.95:CLASS` or `specificity=0.9:CLASS`.

    Raises:
        UsageError: it is something else.
    """
    figure, _, rest = text.partition("=")
    value, colon, name = rest.partition(":")
    try:
        number = float(value)
    except ValueError:
        number = float("nan")
    if figure not in TARGET_METRICS or not 0 < number <= 1 or not colon or not name:
        raise UsageError(f"cannot read the target {text!r}", "Write it as sensitivity=0.95:CLASS or specificity=…")
    return Target(cast("Any", figure), number, name)


def calibrate_steps(model: Classifier, run: RunFolder, *, thresholds: tuple[Threshold, ...] = ()) -> Steps[Calibration]:
    """Fit the temperature and the OOD score on a run's validation split, and keep them in the run.

    Where the validation split is too small, nothing is fitted, and the result says so. `thresholds` are kept.

    Raises:
        RunError: the run cannot be read.
        ImageError: an image is gone.
    """
    index = run.read_split()
    val, train = index.rows("val"), index.rows("train")
    fingerprint = run.fingerprint_weights()
    if weak := explain_small_validation(index):
        found = Calibration(weights=fingerprint, images=len(val), weak=weak)
        run.write_calibration(asdict(found), {})
        return found
    picked = [train[i * len(train) // BANK_IMAGES] for i in range(BANK_IMAGES)] if len(train) > BANK_IMAGES else train
    validation = yield from model.classify_rows(index, val, features=True, what="calibrating")
    training = yield from model.classify_rows(index, picked, features=True, what="fitting the OOD score")
    logits, labels = validation.logits, model.label_rows(index, val)
    novelty = fit_novelty(training.features, training.statistics)
    threshold = choose_novelty_threshold(novelty.score(validation.features, validation.statistics), ABSTAIN_RATE)
    temperature = fit_temperature(logits, labels)
    before, after = (compute_metrics(logits / t, labels, model.classes) for t in (1.0, temperature))
    found = Calibration(
        weights=fingerprint,
        images=len(val),
        weak=None,
        temperature=temperature,
        log_loss=(before.log_loss, after.log_loss),
        ece=(before.ece, after.ece),
        thresholds=thresholds,
        novelty_threshold=threshold,
        novelty_detected=_detect_scrambled(model, index, val, novelty, threshold),
        training_images=len(picked),
    )
    arrays = {name: getattr(novelty, name) for name in _NOVELTY_ARRAYS}
    run.write_calibration(asdict(found), arrays | {"val_logits": logits, "val_labels": labels})
    return found


def describe_unreliable_ood(calibration: Calibration) -> str:
    """Return a sentence where the OOD score is not to be relied on, or an empty string."""
    detected = calibration.novelty_detected
    if detected is None or detected >= MIN_DETECTED:
        return ""
    return (
        f"--abstain is not reliable for this model: its OOD score notices only {100 * detected:.0f}% of scrambled "
        "validation images"
    )


def _detect_scrambled(
    model: Classifier, index: Index, rows: Sequence[int], novelty: NoveltyModel, threshold: float
) -> float:
    """Return the fraction of scrambled validation images whose score is above the threshold.

    An image is cut into 16 tiles that change places, and its values are inverted: something that no user would call
    an image of the training set, made of that set's own pixels.
    """
    rows = [rows[i * len(rows) // SCRAMBLED_IMAGES] for i in range(min(SCRAMBLED_IMAGES, len(rows)))]
    load = load_for_eval(index, model.preprocessing, cache=model.cache)
    parts = list(model.classify_batches(rows, lambda row: scramble(load(row)), features=True))
    scores = np.concatenate([novelty.score(part.features, part.statistics) for part in parts])
    return float((scores > threshold).mean())


def scramble(image: Pixels) -> Pixels:
    """Return an image (S, S, 3) inverted, its 4 x 4 tiles in another order, the same for every image."""
    tile = image.shape[0] // 4
    mixed = 255 - image
    for place, source in enumerate(np.random.default_rng(0).permutation(16)):
        (row, column), (from_row, from_column) = divmod(place, 4), divmod(int(source), 4)
        mixed[row * tile : (row + 1) * tile, column * tile : (column + 1) * tile] = (
            255 - image[from_row * tile : (from_row + 1) * tile, from_column * tile : (from_column + 1) * tile]
        )
    return mixed


def read_calibration(run: RunFolder) -> Calibration | None:
    """Return what was fitted for the run's present weights; None where nothing was.

    Raises:
        RunError: the file does not fit its schema, or names classes that the model does not have.
    """
    raw, path = run.read_calibration(), run.path / "calibration.json"
    if raw is None:
        return None
    calibration = convert_record(raw, Calibration, path, CALIBRATION_REMEDY)
    if calibration.weights != run.fingerprint_weights():
        return None
    check_thresholds(calibration, run.read_config().label_names, path, CALIBRATION_REMEDY)
    return calibration


def check_thresholds(calibration: Calibration, classes: Sequence[str], source: object, remedy: str) -> None:
    """Check that thresholds are for classes that the model has.

    Raises:
        RunError: one is for another.
    """
    for number, threshold in enumerate(calibration.thresholds):
        if threshold.target.name not in classes:
            problem = f"the model has no class {threshold.target.name!r}"
            raise RunError(f"{source} cannot be read: thresholds[{number}].target.name: {problem}", remedy)


def read_novelty(run: RunFolder) -> NoveltyModel:
    """Return what the training images look like.

    Raises:
        RunError: the arrays are missing or damaged, or of an earlier version's score.
    """
    if "precision" not in run.read_calibration_arrays():
        raise RunError(
            f"{run.path} was calibrated by an earlier version, with another OOD score",
            f"Calibrate it anew with `convnext eval {quote(run.path)}`",
        )
    shapes = (("bank", 2), ("mean", 1), ("precision", 2))
    bank, mean, precision = (_read_array(run, name, ndim) for name, ndim in shapes)
    if mean.shape != (NUMBERS,) or precision.shape != (NUMBERS, NUMBERS):
        problem = f"mean and precision have shapes {mean.shape} and {precision.shape}"
        raise RunError(f"{run.path / 'calibration.safetensors'} cannot be read: {problem}", CALIBRATION_REMEDY)
    return NoveltyModel(bank=bank, mean=mean, precision=precision)


def _read_array(run: RunFolder, name: str, ndim: int) -> NDArray[Any]:
    """Return one of the arrays that were kept, whose values are finite and at least one."""
    array = run.read_calibration_arrays().get(name)
    if array is None or array.ndim != ndim or not array.size or not np.isfinite(array).all():
        problem = "is missing" if array is None else f"has shape {array.shape}, or values that are not finite"
        raise RunError(
            f"{run.path / 'calibration.safetensors'} cannot be read: {name} {problem}",
            "Delete calibration.json there; `convnext eval` fits both again",
        )
    return array


def add_targets(
    run: RunFolder, calibration: Calibration, classes: tuple[str, ...], targets: Sequence[Target]
) -> Calibration:
    """Finds the thresholds of new targets on validation and keeps them in the run, beside those that it has.

    Raises:
        UsageError: no such class, or the validation split is too small for a threshold.
    """
    if not targets:
        return calibration
    if calibration.weak:
        raise UsageError(
            f"no threshold can be set: {calibration.weak}",
            "Fine-tune with more validation images, or leave out --target",
        )
    places = {target: find_name(target.name, classes) for target in targets}
    for target, place in places.items():
        if place is None:
            known = f"Known are {', '.join(classes[:20])}"
            raise UsageError(f"unknown class {target.name!r} in --target", f"{suggest(target.name, classes)}{known}")
    targets = [replace(target, name=classes[place]) for target, place in places.items() if place is not None]
    logits, labels = _read_array(run, "val_logits", 2), _read_array(run, "val_labels", 1)
    if logits.shape != (calibration.images, len(classes)) or len(labels) != len(logits):
        raise RunError(
            f"{run.path / 'calibration.safetensors'} cannot be read: val_logits {logits.shape}, val_labels "
            f"{labels.shape} are not of {calibration.images} images and {len(classes)} classes",
            "Delete calibration.json there; `convnext eval` fits both again",
        )
    probabilities = np.exp(log_softmax(logits / calibration.temperature))
    thresholds = {threshold.target: threshold for threshold in calibration.thresholds}
    for target in targets:
        k = classes.index(target.name)
        thresholds[target] = find_threshold(probabilities[:, k], labels == k, target)
    kept = replace(calibration, thresholds=tuple(thresholds.values()))
    run.write_calibration(asdict(kept), run.read_calibration_arrays())
    return kept
