"""What a run learns from its validation split: its temperature, its thresholds, and what is unlike its images."""

from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.split import explain_weak_validation
from convnext_cli.data.text import find_name
from convnext_cli.errors import RunError, UsageError, suggest
from convnext_cli.evaluation.calibration import fit_temperature
from convnext_cli.evaluation.figures import log_softmax
from convnext_cli.evaluation.metrics import compute_metrics
from convnext_cli.evaluation.novelty import ABOUT, choose_novelty_threshold, normalise, score_novelty
from convnext_cli.evaluation.targets import FIGURES, Target, Threshold, find_threshold
from convnext_cli.inference.answers import Answerer, Answers
from convnext_cli.progress import Progress
from convnext_cli.runs import RunFolder

ABSTAIN_RATE = 0.05  # of validation images that count as unlike the training images
BANK_IMAGES = 5000  # training images that others are compared with; 3 MB for the smallest models, 20 for the largest


@dataclass(frozen=True, kw_only=True, slots=True)
class Calibration:
    """What was found on the validation split; kept in the run as `calibration.json`."""

    weights: str
    """Fingerprint of the weights that it holds for."""
    images: int
    """Validation images it rests on."""
    weak: str | None
    """Why nothing was fitted, or None."""
    temperature: float = 1.0
    """What logits are divided by before softmax."""
    log_loss: tuple[float, float] | None = None
    """On validation, before and after."""
    ece: tuple[float, float] | None = None
    """On validation, before and after."""
    thresholds: tuple[Threshold, ...] = ()
    """Probabilities, after the temperature, from which on a class counts as found."""
    novelty_score: str = ABOUT
    novelty_threshold: float | None = None
    """The score from which on an image counts as unlike the training images."""
    novelty_rate: float = ABSTAIN_RATE
    """The share of validation images that lie above it."""
    training_images: int = 0
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
    if figure not in FIGURES or not 0 < number <= 1 or not colon or not name:
        raise UsageError(f"cannot read the target {text!r}", "Write it as sensitivity=0.95:CLASS or specificity=…")
    return Target(figure, number, name)


def fit_steps(model: Answerer, run: RunFolder) -> Iterator[Progress | Calibration]:
    """Fits everything on the run's validation split and keeps it in the run: yields progress, and the result last.

    Where the validation split is too small, nothing is fitted, and the result says so.

    Raises:
        RunError: the run cannot be read.
        ImageError: an image is gone.
    """
    index = run.read_split()
    val, train = index.rows("val"), index.rows("train")
    fingerprint = run.fingerprint_weights()
    if weak := explain_weak_validation(index):
        found = Calibration(weights=fingerprint, images=len(val), weak=weak)
        run.write_calibration(asdict(found), {})
        yield found
        return
    picked = [train[i * len(train) // BANK_IMAGES] for i in range(BANK_IMAGES)] if len(train) > BANK_IMAGES else train
    told: list[Answers] = []
    for rows, what in ((val, "calibrating"), (picked, "learning what training images look like")):
        for event in model.answer_all(index, rows, features=True, what=what):
            if isinstance(event, Answers):
                told.append(event)
            else:
                yield event
    logits, labels = told[0].logits, model.label_rows(index, val)
    bank = normalise(told[1].features).astype(np.float16)
    temperature = fit_temperature(logits, labels)
    before, after = (compute_metrics(logits / t, labels, model.classes) for t in (1.0, temperature))
    found = Calibration(
        weights=fingerprint,
        images=len(val),
        weak=None,
        temperature=temperature,
        log_loss=(before.log_loss, after.log_loss),
        ece=(before.ece, after.ece),
        novelty_threshold=choose_novelty_threshold(score_novelty(told[0].features, bank), ABSTAIN_RATE),
        training_images=len(picked),
    )
    run.write_calibration(asdict(found), {"bank": bank, "val_logits": logits, "val_labels": labels})
    yield found


def read_calibration(run: RunFolder) -> Calibration | None:
    """What was fitted for the run's present weights, or None.

    Raises:
        RunError: the file is damaged.
    """
    raw = run.read_calibration()
    if raw is None or raw.get("weights") != run.fingerprint_weights():
        return None
    try:
        return revive_calibration(raw)
    except (KeyError, TypeError) as error:
        raise RunError(
            f"calibration.json of {run.path} cannot be read ({error})", "Delete it; `convnext eval` fits it again"
        ) from error


def revive_calibration(raw: dict[str, Any]) -> Calibration:
    """Makes a calibration again of what `asdict` and JSON have turned into plain values.

    Raises:
        KeyError, TypeError: a field is missing, unknown or of another kind.
    """
    thresholds = [t | {"target": Target(**t["target"])} for t in raw["thresholds"]]
    pairs = {name: raw[name] and tuple(raw[name]) for name in ("log_loss", "ece")}
    return Calibration(**raw | pairs | {"thresholds": tuple(Threshold(**t) for t in thresholds)})


def read_bank(run: RunFolder) -> NDArray[Any]:
    """The normalised features of training images, (M, D)."""
    return run.read_calibration_arrays()["bank"]


def keep_targets(
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
    arrays = run.read_calibration_arrays()
    probabilities = np.exp(log_softmax(arrays["val_logits"] / calibration.temperature))
    thresholds = {threshold.target: threshold for threshold in calibration.thresholds}
    for target in targets:
        k = classes.index(target.name)
        thresholds[target] = find_threshold(probabilities[:, k], arrays["val_labels"] == k, target)
    kept = replace(calibration, thresholds=tuple(thresholds.values()))
    run.write_calibration(asdict(kept), arrays)
    return kept
