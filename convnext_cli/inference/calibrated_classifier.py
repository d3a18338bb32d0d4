"""A classifier with what was fitted on validation images: calibration and OOD score, from whatever file has them."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.split import MORE_VALIDATION
from convnext_cli.errors import RunError, UsageError
from convnext_cli.images.raster import Pixels
from convnext_cli.images.transforms import transform_for_eval
from convnext_cli.inference.calibration import Calibration, load_calibration, read_calibration, read_novelty
from convnext_cli.inference.classifier import Classifier, Heat, Outputs
from convnext_cli.inference.ensemble import open_ensemble
from convnext_cli.inference.onnx_classifier import ONNX_SUFFIX, OnnxClassifier, find_onnx_classifier
from convnext_cli.inference.request import PredictRequest
from convnext_cli.inference.sources import Source
from convnext_cli.machine import has_gpu
from convnext_cli.metrics.novelty import NoveltyModel
from convnext_cli.runs.files import CALIBRATION
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder, open_folder
from convnext_cli.text import quote

GPU_FROM = 200  # images from which on a GPU outweighs the seconds that torch takes to start


@dataclass(frozen=True, kw_only=True, slots=True)
class CalibratedClassifier:
    """A classifier with what was fitted on validation images."""

    classifier: Classifier
    calibration: Calibration | None = None
    """None for a cross-validation, whose members are calibrated one by one."""
    novelty: NoveltyModel | None = None
    """The OOD model; None if not requested, or if the classifier computes the score itself."""
    threshold: float | None = None
    """Of the OOD score; None if not requested."""

    def classify(self, sources: Sequence[Source], rows: Sequence[int], *, heat: Heat = False) -> Iterator[Outputs]:
        """Yield the outputs of some images, batch by batch, with heat maps if requested."""
        frames: set[int] = set()

        def load(row: int) -> Pixels:
            pixels, is_frame = sources[row].read()
            if is_frame:
                frames.add(row)
            return transform_for_eval(pixels, self.classifier.preprocessing)

        rest = iter(rows)
        for outputs in self.classifier.classify_batches(rows, load, features=self.novelty is not None, heat=heat):
            batch = islice(rest, len(outputs.logits))
            yield replace(outputs, frames=frozenset(i for i, row in enumerate(batch) if row in frames))

    def score_ood(self, outputs: Outputs) -> NDArray[np.floating[Any]] | None:
        """Return the OOD scores of a batch, (B,); None if not requested."""
        if self.threshold is None:
            return None
        return outputs.novelty if self.novelty is None else self.novelty.score(outputs.features, outputs.statistics)

    def abstain(self, novelty: float | None) -> bool | None:
        """Return True if an OOD score is above the threshold; None without one."""
        return None if novelty is None or self.threshold is None else novelty > self.threshold


def open_calibrated(run: Path, request: PredictRequest, num_images: int) -> CalibratedClassifier:
    """Return the model of an exported file, a cross-validation or a run, with the calibration that is asked for."""
    if request.calibration is not None and request.raw:
        raise UsageError("--calibration and --raw exclude each other", "Give one of them")
    model = _open_with_own_calibration(run, request, num_images)
    if request.calibration is None:
        return model
    classifier = model.classifier
    if isinstance(classifier, OnnxClassifier):
        weights = classifier.metadata.weights
    else:
        weights = open_folder(run).fingerprint_weights()
    calibration = load_calibration(request.calibration, weights, classifier.classes)
    return replace(model, calibration=calibration)


def _open_with_own_calibration(run: Path, request: PredictRequest, num_images: int) -> CalibratedClassifier:
    if run.is_file() and run.suffix != ONNX_SUFFIX:
        raise RunError(f"{run} is neither a run folder nor an {ONNX_SUFFIX} file", "Give one of them")
    if run.suffix == ONNX_SUFFIX and not run.is_dir():
        if reason := "--engine torch needs torch" if request.engine == "torch" else _needs_torch(request):
            raise UsageError(f"{run} does not support it: {reason}", "Give the run folder")
        file = OnnxClassifier(run)
        calibration = file.metadata.calibration
        threshold = _get_ood_threshold(run, calibration) if request.abstain else None
        return CalibratedClassifier(classifier=file, calibration=calibration, threshold=threshold)
    folder = open_folder(run)
    if isinstance(folder, FoldsFolder):
        return _open_folds(folder, request, num_images)
    classifier, calibration = _open_run(run, request, num_images), read_calibration(folder)
    model = CalibratedClassifier(classifier=classifier, calibration=calibration)
    if not request.abstain:
        return model
    threshold = _get_ood_threshold(run, calibration)  # first: it has the reason why there may be no arrays
    return replace(model, novelty=read_novelty(folder), threshold=threshold)


def _open_run(run: Path, request: PredictRequest, num_images: int) -> Classifier:
    """Return the classifier of a run folder: its ONNX file where that is possible, else torch.

    Raises:
        UsageError: the engine of the request does not support its options.
        RunError: the run cannot be read.
    """
    if request.engine != "torch":
        reason, remedy = _needs_torch(request), "Use --engine auto"
        if not reason and request.engine == "auto" and num_images >= GPU_FROM and has_gpu():
            reason = "the GPU is faster"
        if not reason:
            classifier, reason = find_onnx_classifier(RunFolder(run))
            if classifier is not None:
                return classifier
            remedy += f", or `convnext export {quote(run)}`"
        if request.engine == "onnx":
            raise UsageError(f"--engine onnx is not possible: {reason}", remedy)

    from convnext_cli.inference.torch_classifier import TorchClassifier  # takes seconds to import

    return TorchClassifier(run, tta=request.tta)


def _open_folds(folder: FoldsFolder, request: PredictRequest, num_images: int) -> CalibratedClassifier:
    """Return the ensemble of a cross-validation; its OOD threshold is the mean of those of the folds.

    The folds' decision thresholds do not hold for the mean of their probabilities, and are left out.
    """
    threshold = None
    if request.abstain:  # first: it has the reason why a fold may have no OOD model
        threshold = float(np.mean([_get_ood_threshold(r.path, read_calibration(r)) for r in folder.list_runs()]))

    def open_run(run: RunFolder) -> Classifier:
        return _open_run(run.path, request, num_images)

    ensemble = open_ensemble(folder, open_run, raw=request.raw, ood=request.abstain)
    return CalibratedClassifier(classifier=ensemble, threshold=threshold)


def _needs_torch(request: PredictRequest) -> str:
    return "--explain needs torch" if request.explain is not None else "--tta needs torch" if request.tta else ""


def _get_ood_threshold(run: Path, calibration: Calibration | None) -> float:
    if calibration is not None and calibration.novelty_threshold is not None:
        return calibration.novelty_threshold
    if calibration is not None and calibration.unfitted_reason:
        reason, remedy = calibration.unfitted_reason, MORE_VALIDATION
    elif run.suffix == ONNX_SUFFIX and not run.is_dir():
        reason, remedy = "its run was never calibrated", "Run `convnext eval` on the run and export it again"
    else:
        is_outdated = CALIBRATION.path(run).exists()
        reason = "its calibration is of other weights" if is_outdated else "it was never calibrated"
        remedy = f"Run `convnext eval {quote(run)}`"
    raise UsageError(f"{run} has no OOD score: {reason}", f"{remedy}, or leave out --abstain")
