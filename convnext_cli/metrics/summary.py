"""Classification metrics from logits and labels."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from convnext_cli.metrics.formulas import Floats, Ints, MetricCalculator, log_softmax

__all__ = ["ClassMetrics", "Floats", "Ints", "Metrics", "compute_metrics", "count_confusion", "log_softmax"]


Fraction = Annotated[float, Meta(ge=0, le=1)]


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMetrics:
    """One class against the rest. A figure is None where it is not defined: nothing of that class, or no prediction."""

    name: str
    images: int
    precision: Fraction | None
    recall: Fraction | None
    """Also called sensitivity."""
    specificity: Fraction | None
    f1: Fraction | None
    roc_auc: Fraction | None
    pr_auc: Fraction | None
    """Average precision: the precision at each found image of the class, averaged."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics:
    """All figures of one evaluation; shares, not percent. Averages (`macro_`) are over the classes that occur.

    None where a figure is not defined: one class only, or one prediction only.
    """

    images: int
    top1: Fraction
    balanced_accuracy: Fraction
    """Mean recall."""
    macro_precision: Fraction
    """Mean precision; 0 for a class that is never predicted."""
    macro_specificity: Fraction | None
    macro_f1: Fraction
    macro_roc_auc: Fraction | None
    """Mean area under the ROC curve, each class against the rest."""
    macro_pr_auc: Fraction | None
    """Mean average precision, each class against the rest."""
    kappa: float | None
    """Cohen's kappa: agreement beyond chance."""
    mcc: float | None
    """Matthews' correlation coefficient, for any number of classes (Gorodkin 2004)."""
    log_loss: float
    """Mean negative log-likelihood of the true class, in nats."""
    brier: Fraction
    """Mean squared error of the probabilities, halved so that it lies in 0 to 1."""
    ece: Fraction
    """Expected calibration error of the predicted class, 15 bins of equally many images."""
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
    figures = MetricCalculator(logits, labels)
    overall, per_class = figures.compute(np.ones((1, len(labels))))
    defined: dict[str, Any] = {name: _defined(values[0]) for name, values in overall.items()}
    defined["log_loss"] = float(overall["log_loss"][0])  # always defined; where it is no number, the model has diverged
    confusion = count_confusion(figures.labels, figures.predictions, len(classes))
    return Metrics(
        images=len(labels),
        **defined,
        per_class=tuple(
            ClassMetrics(
                name=name,
                images=int(confusion[k].sum()),
                **{figure: _defined(values[0, k]) for figure, values in per_class.items()},
            )
            for k, name in enumerate(classes)
        ),
        confusion=tuple(tuple(int(n) for n in row) for row in confusion),
    )


def count_confusion(labels: Ints, predictions: Ints, num_classes: int) -> NDArray[np.int64]:
    """Counts images by true class (row) and predicted class (column), (K, K)."""
    cells = np.bincount(labels * num_classes + predictions, minlength=num_classes**2)
    return cells.reshape(num_classes, num_classes).astype(np.int64)


def _defined(value: float) -> float | None:
    return None if np.isnan(value) else float(value)
