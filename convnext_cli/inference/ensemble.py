"""The models of a cross-validation as one: the mean of their calibrated probabilities."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from functools import partial

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.index import Index
from convnext_cli.data.split import is_fold, name_fold
from convnext_cli.errors import RunError
from convnext_cli.inference.calibration import Calibration, read_calibration
from convnext_cli.inference.classifier import Classifier, Outputs
from convnext_cli.metrics.formulas import log_softmax
from convnext_cli.metrics.novelty import NoveltyModel, measure_pixels
from convnext_cli.progress import Progress, Steps, map_events
from convnext_cli.runs.folds import FoldsFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Member:
    """One fold's model."""

    model: Classifier
    temperature: float
    novelty: NoveltyModel | None = None
    """What its training images look like; None where no OOD score is asked for."""


class Ensemble(Classifier):
    """All folds' models, ready to classify together.

    Its probabilities are the mean of the members', each after its own temperature; its logits are their logarithm, so
    that its own temperature is 1. Source: Lakshminarayanan et al. 2017 (arXiv:1612.01474), section 2.4. The members
    differ by the images that they were trained on, and by the order of these.

    Args:
        folder: the cross-validation.
        members: one for each fold, in order.

    Raises:
        RunError: they differ in classes or in how images are prepared.
    """

    def __init__(self, folder: FoldsFolder, members: Sequence[Member]) -> None:
        self.members, self.own = members, folder.read_split()
        first = members[0].model
        self.classes, self.preprocessing, self.cache = first.classes, first.preprocessing, first.cache
        if any(
            (member.model.classes, member.model.preprocessing) != (self.classes, self.preprocessing)
            for member in members
        ):
            raise RunError(f"the folds of {folder.path} differ in classes or in image size", "Evaluate them one by one")

    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: bool) -> Outputs:
        """Asks all members about prepared images, (B, S, S, 3).

        The heat is the mean over the members that say the same class as all of them together; there are no features.
        """
        del features
        told = [m.model.run_batch(images, features=m.novelty is not None, heat=heat) for m in self.members]
        logits = _join(told, self.members)
        agree = np.array([part.logits.argmax(axis=1) == logits.argmax(axis=1) for part in told])  # (members, B)
        heats = np.stack([part.heat for part in told])
        weights = (agree / np.maximum(agree.sum(axis=0), 1)).reshape(*agree.shape, *(1,) * (heats.ndim - 2))
        pairs = zip(told, self.members, strict=True)
        statistics = measure_pixels(images)
        scores = [m.novelty.score(part.features, statistics) for part, m in pairs if m.novelty is not None]
        return Outputs(
            logits=logits,
            features=np.empty((len(images), 0), np.float32),
            heat=(weights * heats).sum(axis=0).astype(np.float32),
            novelty=np.mean(scores, axis=0) if scores else None,
        )

    def choose(self, index: Index, row: int) -> Classifier:
        """Who answers for a row: all together, and for an image of the folds the one that it was kept from."""
        split = index.splits[row]
        if is_fold(split) and self._is_own(index):
            return _Single(next(m for fold, m in enumerate(self.members, start=1) if name_fold(fold) == split))
        return self

    def classify_rows(
        self, index: Index, rows: Sequence[int], *, features: bool = False, what: str = "evaluating"
    ) -> Steps[Outputs]:
        """Compute the outputs of rows of an index.

        An image of the folds is answered by the one member that was not trained on it (out of fold).

        Raises:
            DataError: there is no row.
            ImageError: an image cannot be read.
        """
        parts = {index.splits[row] if self._is_own(index) else "" for row in rows}
        if not any(map(is_fold, parts)):
            return (yield from Classifier.classify_rows(self, index, rows, features=features, what=what))
        logits = np.empty((len(rows), len(self.classes)), np.float32)
        done = 0
        for part in sorted(parts):
            places = [place for place, row in enumerate(rows) if index.splits[row] == part]
            mine = [rows[place] for place in places]
            steps = self.choose(index, mine[0]).classify_rows(index, mine, what=what)
            outputs = yield from map_events(steps, partial(_place, after=done, total=len(rows)))
            logits[places] = outputs.logits
            done += len(mine)
        empty = np.empty((len(rows), 0), np.float32)
        return Outputs(logits=logits, features=empty, heat=empty)

    def _is_own(self, index: Index) -> bool:
        return (index.paths, index.splits) == (self.own.paths, self.own.splits)


def _place(event: Progress, *, after: int, total: int) -> Progress:
    """Return the progress of a part of a longer operation."""
    return replace(event, done=after + event.done, total=total)


class _Single(Classifier):
    """One member, after its temperature."""

    def __init__(self, member: Member) -> None:
        self.member = member
        self.classes, self.preprocessing, self.cache = (
            member.model.classes,
            member.model.preprocessing,
            member.model.cache,
        )

    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: bool) -> Outputs:
        told = self.member.model.run_batch(images, features=features, heat=heat)
        return Outputs(logits=_join([told], [self.member]), features=told.features, heat=told.heat)


def _join(told: Sequence[Outputs], members: Sequence[Member]) -> NDArray[np.float32]:
    """The logarithm of the mean of the members' probabilities, (B, K)."""
    logs = [log_softmax(part.logits / member.temperature) for part, member in zip(told, members, strict=True)]
    joined: NDArray[np.float64] = np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))
    return joined.astype(np.float32)


def open_ensemble(folder: FoldsFolder, *, tta: bool = False, cache: bool = True) -> tuple[Ensemble, list[str]]:
    """The models of a cross-validation, with torch, and what the user should know of their calibration.

    Raises:
        RunError: it has not finished, or cannot be read.
    """
    from convnext_cli.inference.torch_classifier import TorchClassifier  # torch: `predict` may do without

    runs = folder.list_runs()
    found = [read_calibration(run) for run in runs]
    members = [
        Member(model=TorchClassifier(run.path, tta=tta, cache=cache), temperature=get_temperature(calibration))
        for run, calibration in zip(runs, found, strict=True)
    ]
    weak = [run.path.name for run, calibration in zip(runs, found, strict=True) if not calibration or calibration.weak]
    notes = [f"{', '.join(weak)} not calibrated: too few validation images, or other weights since"] if weak else []
    return Ensemble(folder, members), notes


def get_temperature(calibration: Calibration | None) -> float:
    """What a member's logits are divided by: 1 where nothing was fitted."""
    return calibration.temperature if calibration else 1.0
