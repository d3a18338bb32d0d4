"""Classification metrics from probabilities and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMetrics:
    """One class against the rest. A figure is None where it is not defined: nothing of that class, or no prediction."""

    name: str
    images: int
    precision: float | None
    recall: float | None
    f1: float | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """All figures of one evaluation; shares, not percent."""

    images: int
    top1: float
    balanced_accuracy: float
    """Mean recall of the classes that occur."""
    macro_f1: float
    """Mean F1 of the classes that occur."""
    log_loss: float
    """Mean negative log-likelihood of the true class, in nats."""
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Images by true class (row) and predicted class (column)."""

    @property
    def absent(self) -> tuple[str, ...]:
        """The classes of which there is no image."""
        return tuple(entry.name for entry in self.per_class if not entry.images)


def compute_metrics(logits: Floats, labels: Ints, classes: Sequence[str]) -> Metrics:
    """Computes every figure.

    Args:
        logits: (N, K) scores before softmax.
        labels: (N,) true classes, 0 to K-1. Classes may be absent.
        classes: K names.

    Raises:
        ValueError: N is 0.
    """
    if not len(labels):
        raise ValueError("no images to evaluate")
    confusion = count_confusion(labels, logits.argmax(axis=1), len(classes))
    actual = confusion.sum(axis=1)
    predicted = confusion.sum(axis=0)
    correct = confusion.diagonal()
    per_class = tuple(
        ClassMetrics(
            name=name,
            images=int(actual[k]),
            precision=_ratio(correct[k], predicted[k]),
            recall=_ratio(correct[k], actual[k]),
            # 2TP / (2TP + FP + FN), which is defined as soon as the class occurs or is predicted
            f1=_ratio(2 * correct[k], actual[k] + predicted[k]) if actual[k] else None,
        )
        for k, name in enumerate(classes)
    )
    present = [entry for entry in per_class if entry.images]
    log_probabilities = log_softmax(logits)
    return Metrics(
        images=len(labels),
        top1=float(correct.sum() / len(labels)),
        balanced_accuracy=float(np.mean([entry.recall for entry in present])),
        macro_f1=float(np.mean([entry.f1 for entry in present])),
        log_loss=float(-log_probabilities[np.arange(len(labels)), labels].mean()),
        per_class=per_class,
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
    )


def count_confusion(labels: Ints, predictions: Ints, num_classes: int) -> NDArray[np.int64]:
    """Counts images by true class (row) and predicted class (column), (K, K)."""
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Log-probabilities (N, K) in float64, shifted by the row's maximum so that nothing overflows."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_probabilities: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def _ratio(part: int, whole: int) -> float | None:
    return float(part / whole) if whole else None
