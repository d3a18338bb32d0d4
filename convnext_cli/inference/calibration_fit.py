"""Fit a run's calibration and OOD score on its validation split."""

import dataclasses
from collections.abc import Sequence
from typing import Any

import numpy as np
from msgspec.structs import asdict

from convnext_cli.data.index import Index, group_by, pick_evenly
from convnext_cli.data.split import explain_small_validation
from convnext_cli.images.cache import open_for_eval
from convnext_cli.images.raster import Pixels
from convnext_cli.images.transforms import pad_image
from convnext_cli.inference.calibration import ABSTAIN_RATE, Calibration
from convnext_cli.inference.classifier import Classifier
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.novelty import NoveltyModel, choose_novelty_threshold, fit_novelty
from convnext_cli.metrics.thresholds import Threshold
from convnext_cli.progress import Steps
from convnext_cli.recipes.costs import BANK_IMAGES
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.task import Scaling, Targets

SCRAMBLED_IMAGES = 64  # validation images that are scrambled to test the OOD score
BANK_IMAGES_PER_CLASS = 200  # training images in the bank; `benchmarks/novelty.py --sizes`


def calibrate_steps(model: Classifier, run: RunFolder, *, thresholds: tuple[Threshold, ...] = ()) -> Steps[Calibration]:
    """Fit the temperature and the OOD score on a run's validation split, and write them into the run.

    Where the validation split is too small, nothing is fitted; the result has the reason.

    The result keeps `thresholds`.

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
    scaling = model.task.fit_calibration(logits, targets, index.list_groups(val))
    calibration = Calibration(
        weights=fingerprint,
        images=len(val),
        **asdict(scaling),
        **measure_gain(model, logits, targets, scaling),
        thresholds=thresholds,
        novelty_threshold=threshold,
        novelty_detected=_detect_scrambled(model, index, val, novelty, threshold),
        training_images=len(bank_rows),
    )
    arrays = dataclasses.asdict(novelty) | {
        "val_logits": logits,
        "val_labels": targets,
        "val_novelty": scores.astype(np.float32),
        "val_statistics": validation.statistics,
        "val_corners": validation.corners,
    }
    run.write_calibration(calibration.to_dict(), arrays)
    return calibration


def measure_gain(model: Classifier, logits: Floats, targets: Targets, scaling: Scaling) -> dict[str, Any]:
    """Return the metrics that calibration changes, before and after, on the images that it was fitted on."""
    task, classes = model.task, model.classes
    before = task.compute_metrics(logits, targets, classes)
    after = task.compute_metrics(task.calibrate(logits, scaling), targets, classes)
    return {field: (getattr(before, key), getattr(after, key)) for field, key in task.display.calibration}


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
    by_class = group_by(index.rows("train"), index.labels.__getitem__)
    rows = [row for of_class in by_class.values() for row in pick_evenly(of_class, BANK_IMAGES_PER_CLASS)]
    return pick_evenly(sorted(rows), BANK_IMAGES)
