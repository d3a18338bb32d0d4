"""Does something that is no picture tell the classes apart? A model would learn that instead."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.audit.inspection import Inspection
from convnext_cli.data.scan import Index

SAMPLE = 5000  # images
FOLDS = 5
MIN_PER_CLASS = 10
MIN_GAIN = 0.1  # of the way from chance to perfect


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

    @property
    def is_telling(self) -> bool:
        """Whether it is well above chance: by a tenth of the way to perfect, and by two standard deviations."""
        gain = self.score - self.chance
        return gain > MIN_GAIN * (1 - self.chance) and gain > 2 * self.spread


def find_shortcuts(index: Index, found: Inspection) -> tuple[Shortcut, ...]:
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
    return tuple(_try(name, values, labels, groups) for name, values in features.items())


def _take_features(index: Index, found: Inspection, rows: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """(N, F) numbers of each thing."""
    measures = found.measures[rows]
    suffixes = [PurePosixPath(index.paths[row]).suffix.lower() for row in rows]
    modes = [found.notes[place].partition("|")[0] for place in measures["note"]]
    size = np.stack([measures["width"], measures["height"], measures["width"] / measures["height"]], axis=1)
    return {
        "size": size.astype(np.float64),
        "format": _one_hot(suffixes),
        "mode": np.column_stack([_one_hot(modes), measures["bits"], measures["coloured"]]).astype(np.float64),
        "border": measures["border"].astype(np.float64),
    }


def _try(name: str, values: NDArray[np.float64], labels: NDArray[np.int64], groups: Sequence[str]) -> Shortcut:
    chance = 1 / len(np.unique(labels))
    if (values == values[0]).all():
        return Shortcut(name=name, score=chance, spread=0.0, chance=chance, images=len(labels))
    from sklearn.metrics import recall_score
    from sklearn.model_selection import StratifiedGroupKFold
    from sklearn.tree import DecisionTreeClassifier

    scores = []
    folds = StratifiedGroupKFold(min(FOLDS, len(set(groups))), shuffle=True, random_state=0)
    for train, test in folds.split(values, labels, groups):
        tree = DecisionTreeClassifier(max_depth=4, class_weight="balanced", random_state=0)
        predicted = tree.fit(values[train], labels[train]).predict(values[test])
        scores.append(
            recall_score(labels[test], predicted, labels=np.unique(labels[test]), average="macro", zero_division=0)
        )
    return Shortcut(
        name=name, score=float(np.mean(scores)), spread=float(np.std(scores)), chance=chance, images=len(labels)
    )


def _draw_sample(index: Index, found: Inspection) -> list[int]:
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
