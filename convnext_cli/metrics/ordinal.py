"""Metrics of ordered grades: those of classes, and the distance between grades."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, ClassVar

import numpy as np
from msgspec import Meta
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.formulas import ClassCalculator, GroupedSum, has_classes
from convnext_cli.metrics.summary import ClassMetrics, Fraction, Metrics

NonNegative = Annotated[float, Meta(ge=0)]


@dataclass(frozen=True, kw_only=True, slots=True)
class GradeMetrics(ClassMetrics):
    """Metrics of one grade against the rest, and its mean absolute error."""

    class_mae: NonNegative | None


@dataclass(frozen=True, kw_only=True, slots=True)
class OrdinalMetrics(Metrics):
    """All metrics of one evaluation of ordered grades; the confusion matrix is in their order."""

    quadratic_kappa: float | None
    grade_mae: NonNegative
    within_one: Fraction
    per_class: tuple[GradeMetrics, ...]


class OrdinalCalculator(ClassCalculator):
    """Metrics of grades 0 to K-1."""

    overall: ClassVar[tuple[str, ...]] = ("quadratic_kappa", "grade_mae", "within_one", *ClassCalculator.overall)
    per_class: ClassVar[tuple[str, ...]] = (*ClassCalculator.per_class, "class_mae")

    def __init__(self, logits: Floats, labels: Ints, predictions: Ints) -> None:
        super().__init__(logits, labels, predictions)
        errors = np.abs(self.predictions - self.labels)
        grades = np.arange(self.num_classes)
        self._errors = np.stack([errors, errors <= 1, errors**2], axis=1).astype(np.float64)
        self._distances = ((grades[:, None] - grades[None, :]) ** 2).astype(np.float64)
        self._error_by_grade = [GroupedSum(self.labels, self.num_classes, errors == size) for size in grades[1:]]

    def compute(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Compute all metrics for C weightings at a time, as `Calculator.compute`."""
        overall, per_class = super().compute(weights)
        actual, predicted = self.count_actual(weights), self.count_predicted(weights)
        total = actual.sum(axis=1)
        sums = weights @ self._errors.astype(weights.dtype)
        with np.errstate(invalid="ignore", divide="ignore"):
            by_chance = np.einsum("ci,ij,cj->c", actual, self._distances, predicted) / total
            overall |= {
                "quadratic_kappa": np.where(has_classes(actual), 1 - sums[:, 2] / by_chance, np.nan),  # Cohen 1968
                "grade_mae": sums[:, 0] / total,
                "within_one": sums[:, 1] / total,
            }
            by_grade = sum(size * part(weights) for size, part in enumerate(self._error_by_grade, start=1))
            per_class |= {"class_mae": by_grade / actual}
        return {key: overall[key] for key in self.overall}, {key: per_class[key] for key in self.per_class}

    def list_denominators(self, key: str, k: int) -> Sequence[NDArray[np.bool_]]:
        """Return the sets of images that a metric of grade k depends on, each (N,)."""
        return super().list_denominators("recall" if key == "class_mae" else key, k)

    def get_highest(self, key: str) -> float:
        """Return the largest possible value of a metric: no prediction is further off than from first to last grade."""
        return self.num_classes - 1 if key in ("grade_mae", "class_mae") else super().get_highest(key)
