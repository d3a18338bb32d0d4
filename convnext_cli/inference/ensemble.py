"""The models of a cross-validation as an ensemble: the mean of their calibrated probabilities."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.index import Index
from convnext_cli.data.split import is_fold, name_fold
from convnext_cli.errors import RunError
from convnext_cli.inference.calibration import read_calibration, read_novelty
from convnext_cli.inference.classifier import Classifier, Heat, Outputs
from convnext_cli.metrics.calculator import Ints
from convnext_cli.metrics.novelty import measure_pixels
from convnext_cli.progress import Progress, Steps, map_events
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder


class Member(Classifier):
    """The model of one fold, with its calibration applied.

    `raw` leaves out the calibration; `ood` reads the OOD model, which the fold's run then has.
    """

    def __init__(self, run: RunFolder, classifier: Classifier, *, raw: bool, ood: bool) -> None:
        self.name, self.classifier = run.path.name, classifier
        self.calibration = None if raw else read_calibration(run)
        self.novelty = read_novelty(run) if ood else None
        self.classes, self.preprocessing, self.cache = classifier.classes, classifier.preprocessing, classifier.cache
        self.batch_size, self.task = classifier.batch_size, classifier.task

    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: Heat) -> Outputs:
        """Return the outputs for preprocessed images, (B, H, W, 3)."""
        outputs = self.classifier.run_batch(images, features=features, heat=heat)
        return replace(outputs, logits=_average([outputs], [self]))


class Ensemble(Classifier):
    """The models of all folds, averaged as their task says.

    Its scores are the mean of the members' calibrated scores, and its logits are those of these scores, so that it
    needs no calibration of its own.

    Raises:
        RunError: the members differ in classes or preprocessing.
    """

    def __init__(self, folder: FoldsFolder, members: Sequence[Member]) -> None:
        self.members, self.trained_on = members, folder.read_split()
        first = members[0]
        self.classes, self.preprocessing, self.cache = first.classes, first.preprocessing, first.cache
        self.batch_size, self.task = first.batch_size, first.task
        if any((m.classes, m.preprocessing) != (self.classes, self.preprocessing) for m in members):
            raise RunError(
                f"the folds of {folder.path} differ in classes or in preprocessing", "Evaluate them one by one"
            )

    def list_uncalibrated(self) -> list[str]:
        """Return the names of the members without a calibration."""
        return [m.name for m in self.members if m.calibration is None or not m.calibration.is_fitted]

    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: Heat) -> Outputs:
        """Return the outputs of the ensemble for preprocessed images, (B, H, W, 3).

        The heat map is the mean over the members that predict the same class as the ensemble; where none does, and for
        named classes, the mean over all members of that class's. There are no features.
        """
        del features
        outputs = [m.classifier.run_batch(images, features=m.novelty is not None, heat=heat) for m in self.members]
        logits = _average(outputs, self.members)
        pairs = zip(outputs, self.members, strict=True)
        statistics = measure_pixels(images, self.preprocessing.fill)
        scores = [m.novelty.score(part.features, statistics) for part, m in pairs if m.novelty is not None]
        return Outputs(
            logits=logits,
            features=np.empty((len(images), 0), np.float32),
            heat=self._average_heat(images, outputs, logits.argmax(axis=1), heat),
            novelty=np.mean(scores, axis=0) if scores else None,
        )

    def _average_heat(
        self, images: NDArray[np.uint8], outputs: Sequence[Outputs], predicted: Ints, heat: Heat
    ) -> NDArray[np.float32]:
        """Return the heat maps of the ensemble, from its members' outputs and its predicted classes, (B,)."""
        heats = np.stack([part.heat for part in outputs])
        counts = np.ones(heats.shape[:2], np.bool_)  # (members, B): which maps the mean is over
        if heat is True:
            counts = np.array([part.logits.argmax(axis=1) == predicted for part in outputs])
            missing = ~counts.any(axis=0)
            for number in np.unique(predicted[missing]):
                rows = np.flatnonzero(missing & (predicted == number))
                for place, member in enumerate(self.members):
                    part = member.classifier.run_batch(images[rows], features=False, heat=(int(number),))
                    heats[place, rows] = part.heat[:, 0]
            counts |= missing
        weights = (counts / counts.sum(axis=0)).reshape(*counts.shape, *(1,) * (heats.ndim - 2))
        mean: NDArray[np.float32] = (weights * heats).sum(axis=0).astype(np.float32)
        return mean

    def choose_classifier(self, index: Index, row: int) -> Classifier:
        """Return the out-of-fold member for an image of the folds, else the ensemble."""
        split = index.splits[row]
        if is_fold(split) and index.has_split_of(self.trained_on):
            return next(m for fold, m in enumerate(self.members, start=1) if name_fold(fold) == split)
        return self

    def classify_rows(
        self, index: Index, rows: Sequence[int], *, features: bool = False, activity: str = "evaluating"
    ) -> Steps[Outputs]:
        """Return the outputs of rows of an index.

        An image of the folds is predicted by the one member that was not trained on it (out of fold).

        Raises:
            DataError: there is no row.
            ImageError: an image cannot be read.
        """
        is_own = index.has_split_of(self.trained_on)
        splits = {index.splits[row] if is_own else "" for row in rows}
        if not any(map(is_fold, splits)):
            return (yield from Classifier.classify_rows(self, index, rows, features=features, activity=activity))
        logits = np.empty((len(rows), self.task.count_outputs(len(self.classes))), np.float32)
        done = 0
        for split in sorted(splits):
            positions = [position for position, row in enumerate(rows) if index.splits[row] == split]
            split_rows = [rows[position] for position in positions]
            steps = self.choose_classifier(index, split_rows[0]).classify_rows(index, split_rows, activity=activity)
            outputs = yield from map_events(steps, partial(_shift_progress, offset=done, total=len(rows)))
            logits[positions] = outputs.logits
            done += len(split_rows)
        empty = np.empty((len(rows), 0), np.float32)
        return Outputs(logits=logits, features=empty, heat=empty)


def _shift_progress(event: Progress, *, offset: int, total: int) -> Progress:
    return replace(event, done=offset + event.done, total=total)


def _average(outputs: Sequence[Outputs], members: Sequence[Member]) -> NDArray[np.float32]:
    """Return the logits of the ensemble, (B, K), from its members' calibrated logits."""
    task = members[0].task
    logits = [task.calibrate(part.logits, member.calibration) for part, member in zip(outputs, members, strict=True)]
    return task.average(logits).astype(np.float32)


def open_ensemble(
    folder: FoldsFolder, open_run: Callable[[RunFolder], Classifier], *, raw: bool = False, ood: bool = False
) -> Ensemble:
    """Return the models of a cross-validation as an ensemble.

    Raises:
        RunError: the cross-validation has not finished, or cannot be read.
    """
    return Ensemble(folder, [Member(run, open_run(run), raw=raw, ood=ood) for run in folder.list_runs()])
