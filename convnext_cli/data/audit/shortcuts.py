"""Shortcuts: classes predictable from metadata or the border alone. A model would learn that instead."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.audit.measurements import Measurements
from convnext_cli.data.index import Index
from convnext_cli.images.formats import identify_file

SAMPLE = 5000  # images
FOLDS = 5
MIN_PER_CLASS = 10
MIN_GAIN = 0.1  # of the way from chance to perfect
HIGH = 0.9  # of the way from chance to perfect: a border that tells this much is reported whatever the inside tells
MIN_LEAD = 0.05  # balanced accuracy by which the border must beat the inside


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortcut:
    """How well the classes can be told from one thing alone."""

    name: str
    """`size`, `format`, `mode` or `border`."""
    score: float
    """Balanced accuracy, mean over the folds."""
    spread: float
    """Standard deviation over the folds."""
    chance: float
    images: int
    inside: float | None = None
    """Of the border: the balanced accuracy of as many numbers from the inside of the image."""

    @property
    def is_telling(self) -> bool:
        """Return whether it is well above chance: by a tenth of the way to perfect, and by two standard deviations.

        A border belongs to the picture: what is shown reaches it. It is reported only where it tells the classes
        better than the inside does, or nearly all by itself.
        """
        gain = self.score - self.chance
        if gain <= MIN_GAIN * (1 - self.chance) or gain <= 2 * self.spread:
            return False
        if self.inside is None or gain >= HIGH * (1 - self.chance) > self.inside - self.chance:
            return True
        return self.score - self.inside > max(MIN_LEAD, 2 * self.spread)


def find_shortcuts(index: Index, found: Measurements) -> tuple[Shortcut, ...]:
    """Tries to tell the classes from size, file format, pixel mode and the border's brightness, each alone.

    A decision tree of depth 4, cross-validated by group where groups are known, on a sample of at most `SAMPLE`
    images. Classes with fewer than `MIN_PER_CLASS` images are left out; with fewer than two others, nothing is tried.
    """
    rows = _draw_sample(index, found)
    labels = np.array([index.labels[row] for row in rows])
    if len(np.unique(labels)) < 2:
        return ()
    groups = [index.groups[row] for row in rows] if index.groups else [str(row) for row in rows]
    if len(set(groups)) < 2:
        return ()
    features = _take_features(index, found, rows)
    folds = _cut_folds(labels, groups)
    inside = _try("inside", features.pop("inside"), labels, folds).score
    tried = [_try(name, values, labels, folds) for name, values in features.items()]
    return tuple(replace(shortcut, inside=inside) if shortcut.name == "border" else shortcut for shortcut in tried)


def _take_features(index: Index, found: Measurements, rows: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """(N, F) numbers of each thing."""
    measures = found.measures[rows]
    formats = [identify_file(index.root / index.paths[row]) for row in rows]  # .jpg and .jpeg are one
    thumbs = measures["thumb"][:, 1:-1, 1:-1].astype(np.float64)
    half = thumbs.shape[1] // 2
    quarters = [thumbs[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    modes = [found.notes[place].partition("|")[0] for place in measures["note"]]
    size = np.stack([measures["width"], measures["height"], measures["width"] / measures["height"]], axis=1)
    return {
        "size": size.astype(np.float64),
        "format": _one_hot([kind.name if kind else "" for kind in formats]),
        "mode": np.column_stack([_one_hot(modes), measures["bits"], measures["coloured"]]).astype(np.float64),
        "border": measures["border"].astype(np.float64),
        "inside": np.stack(
            [f(q, axis=(1, 2)) for f in (np.mean, np.std) for q in quarters], axis=1
        ),  # as many numbers as the border's
    }


_Folds: TypeAlias = "list[tuple[NDArray[np.int64], NDArray[np.int64]]]"
"""For each fold the places that a tree is fitted on, and those that it is tested on."""


def _cut_folds(labels: NDArray[np.int64], groups: Sequence[str]) -> _Folds:
    from sklearn.model_selection import StratifiedGroupKFold

    folds = StratifiedGroupKFold(min(FOLDS, len(set(groups))), shuffle=True, random_state=0)
    return list(folds.split(labels, labels, groups))


def _try(name: str, values: NDArray[np.float64], labels: NDArray[np.int64], folds: _Folds) -> Shortcut:
    chance = 1 / len(np.unique(labels))
    if (values == values[0]).all():
        return Shortcut(name=name, score=chance, spread=0.0, chance=chance, images=len(labels))
    from sklearn.metrics import recall_score
    from sklearn.tree import DecisionTreeClassifier

    scores = []
    for train, test in folds:
        tree = DecisionTreeClassifier(max_depth=4, class_weight="balanced", random_state=0)
        predicted = tree.fit(values[train], labels[train]).predict(values[test])
        scores.append(
            recall_score(labels[test], predicted, labels=np.unique(labels[test]), average="macro", zero_division=0)
        )
    return Shortcut(
        name=name, score=float(np.mean(scores)), spread=float(np.std(scores)), chance=chance, images=len(labels)
    )


def _draw_sample(index: Index, found: Measurements) -> list[int]:
    """Readable rows of the classes that are large enough, evenly over the sorted paths."""
    readable = np.flatnonzero(found.measures["readable"])
    labels = np.array(index.labels)[readable]
    counts = np.bincount(labels, minlength=len(index.classes))
    rows = readable[counts[labels] >= MIN_PER_CLASS]
    places = np.linspace(0, len(rows), min(SAMPLE, len(rows)), endpoint=False).astype(int)
    return [int(row) for row in rows[places]]


def _one_hot(words: Sequence[str]) -> NDArray[np.float64]:
    known = sorted(set(words))
    return np.array([[word == other for other in known] for word in words], dtype=np.float64)
