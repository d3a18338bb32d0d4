"""Shortcuts: classes predictable from metadata or the border alone. A model would learn these instead."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.audit.measurements import Measurements
from convnext_cli.data.index import Index
from convnext_cli.images.formats import identify_file
from convnext_cli.metrics.calculator import Ints

SAMPLE = 5000  # images
FOLDS = 5
MIN_PER_CLASS = 10
MIN_GAIN = 0.1  # of the way from chance to perfect
HIGH = 0.9  # of the way from chance to perfect: such a border is reported, however predictive the inside is
MIN_LEAD = 0.05  # balanced accuracy by which the border must beat the inside


@dataclass(frozen=True, kw_only=True, slots=True)
class Shortcut:
    """The accuracy with which the classes are predicted from one property alone."""

    name: str
    """`size`, `format`, `mode` or `border`."""
    score: float
    """Balanced accuracy, mean over the folds."""
    spread: float
    """Standard deviation over the folds."""
    chance: float
    inside: float | None = None
    """Of the border: the balanced accuracy of as many features from the inside of the image."""

    @property
    def is_predictive(self) -> bool:
        """True if it is above chance by a tenth of the way to perfect, and by two standard deviations.

        A border is part of the image, and its content reaches it. It is reported only if it predicts the classes better
        than the inside does, or nearly perfectly.
        """
        gain = self.score - self.chance
        if gain <= MIN_GAIN * (1 - self.chance) or gain <= 2 * self.spread:
            return False
        if self.inside is None or gain >= HIGH * (1 - self.chance) > self.inside - self.chance:
            return True
        return self.score - self.inside > max(MIN_LEAD, 2 * self.spread)


def find_shortcuts(index: Index, measurements: Measurements) -> tuple[Shortcut, ...]:
    """Predict the classes from image size, file format, pixel format and border brightness, each alone.

    A decision tree of depth 4 is cross-validated, by group if groups are known, on at most `SAMPLE` images. Classes
    with fewer than `MIN_PER_CLASS` images are left out. With fewer than two other classes, the result is empty.
    """
    rows = _draw_sample(index, measurements)
    labels = np.array([index.labels[row] for row in rows])
    if len(np.unique(labels)) < 2:
        return ()
    groups = [index.groups[row] for row in rows] if index.groups else [str(row) for row in rows]
    if len(set(groups)) < 2:
        return ()
    from sklearn.model_selection import StratifiedGroupKFold

    features = _compute_features(index, measurements, rows)
    cut = StratifiedGroupKFold(min(FOLDS, len(set(groups))), shuffle=True, random_state=0)
    folds = list(cut.split(labels, labels, groups))
    inside = _predict("inside", features.pop("inside"), labels, folds).score
    shortcuts = [_predict(name, values, labels, folds) for name, values in features.items()]
    return tuple(replace(shortcut, inside=inside) if shortcut.name == "border" else shortcut for shortcut in shortcuts)


def _compute_features(index: Index, measurements: Measurements, rows: Sequence[int]) -> dict[str, NDArray[np.float64]]:
    """Compute the features of each property, (N, F)."""
    measures = measurements.measures[rows]
    formats = [identify_file(index.root / index.paths[row]) for row in rows]  # .jpg and .jpeg are one
    thumbs = measures["thumb"][:, 1:-1, 1:-1].astype(np.float64)
    half = thumbs.shape[1] // 2
    quarters = [thumbs[:, y : y + half, x : x + half] for y in (0, half) for x in (0, half)]
    modes = [measurements.notes[place].mode for place in measures["note"]]
    size = np.stack([measures["width"], measures["height"], measures["width"] / measures["height"]], axis=1)
    return {
        "size": size.astype(np.float64),
        "format": _one_hot([kind.name if kind else "" for kind in formats]),
        "mode": np.column_stack([_one_hot(modes), measures["bits"], measures["coloured"]]).astype(np.float64),
        "border": measures["border"].astype(np.float64),
        "inside": np.stack(
            [f(q, axis=(1, 2)) for f in (np.mean, np.std) for q in quarters], axis=1
        ),  # as many features as the border's
    }


def _predict(
    name: str, values: NDArray[np.float64], labels: NDArray[np.int64], folds: Sequence[tuple[Ints, Ints]]
) -> Shortcut:
    """Return how well a property predicts the classes; a fold has the images to fit a tree on and those to test it."""
    chance = 1 / len(np.unique(labels))
    if (values == values[0]).all():
        return Shortcut(name=name, score=chance, spread=0.0, chance=chance)
    from sklearn.metrics import recall_score
    from sklearn.tree import DecisionTreeClassifier

    scores = []
    for train, test in folds:
        tree = DecisionTreeClassifier(max_depth=4, class_weight="balanced", random_state=0)
        predicted = tree.fit(values[train], labels[train]).predict(values[test])
        scores.append(
            recall_score(labels[test], predicted, labels=np.unique(labels[test]), average="macro", zero_division=0)
        )
    return Shortcut(name=name, score=float(np.mean(scores)), spread=float(np.std(scores)), chance=chance)


def _draw_sample(index: Index, measurements: Measurements) -> list[int]:
    """Return readable rows of the classes that are large enough, evenly spaced over the sorted paths."""
    readable = np.flatnonzero(measurements.measures["readable"])
    labels = np.array(index.labels)[readable]
    counts = np.bincount(labels, minlength=len(index.classes))
    rows = readable[counts[labels] >= MIN_PER_CLASS]
    places = np.linspace(0, len(rows), min(SAMPLE, len(rows)), endpoint=False).astype(int)
    return [int(row) for row in rows[places]]


def _one_hot(words: Sequence[str]) -> NDArray[np.float64]:
    categories = sorted(set(words))
    return np.array([[word == category for category in categories] for word in words], dtype=np.float64)
