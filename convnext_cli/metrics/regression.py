"""Metrics of a predicted number."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Calculator, Floats
from convnext_cli.metrics.summary import Fraction, MetricSet, list_keys

ROUNDING = 1e-12  # a variance below it, of numbers with variance 1, is a rounding error
LIMITS = 1.96  # standard deviations; 95% of normal differences lie between the limits of agreement


@dataclass(frozen=True, kw_only=True, slots=True)
class RegressionMetrics(MetricSet):
    """All metrics of one evaluation, in units of the target; None where not defined (no spread)."""

    images: int
    mae: float
    rmse: float
    r2: float | None
    pearson: float | None
    bias: float
    limit_low: float | None
    """Lower Bland-Altman limit of agreement; None for one image, which has no standard deviation."""
    limit_high: float | None
    coverage: Fraction | None
    """Of the 90% prediction intervals; None without a calibration."""
    per_class: tuple[Any, ...] = ()
    confusion: tuple[tuple[int, ...], ...] = ()


class RegressionCalculator(Calculator):
    """Metrics of predicted numbers.

    Args:
        predictions: (N,).
        targets: (N,).
        covered: (N,) true where the target lies in its prediction interval; None without intervals.
    """

    overall: ClassVar[tuple[str, ...]] = list_keys(RegressionMetrics)
    per_class: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self, predictions: NDArray[np.float64], targets: NDArray[np.float64], covered: NDArray[np.bool_] | None = None
    ) -> None:
        self.images, self.num_classes, self.correct = len(targets), 0, None
        self.present = np.zeros(0, np.bool_)
        # Centred, so that sums of squares keep their digits: bootstrap weights are float32.
        self._shift = float(targets.mean())
        deviation = float(targets.std())
        self._scale = deviation if deviation > ROUNDING * abs(self._shift) else 1.0
        true, predicted = (targets - self._shift) / self._scale, (predictions - self._shift) / self._scale
        error = predicted - true
        inside = np.full(len(targets), np.nan) if covered is None else covered.astype(np.float64)
        self._sums = np.stack(
            [np.abs(error), error**2, error, true, true**2, predicted, predicted**2, true * predicted, inside], axis=1
        )

    def compute(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Compute all metrics for C weightings at a time, as `Calculator.compute`."""
        total = weights.sum(axis=1, dtype=np.float64)
        means = weights.astype(np.float64) @ self._sums / total[:, None]
        absolute, squared, error, true, true2, predicted, predicted2, product, inside = means.T
        scale = self._scale
        with np.errstate(invalid="ignore", divide="ignore"):
            variance, spread = true2 - true**2, predicted2 - predicted**2
            has_variance = variance > ROUNDING
            sample = np.where(total > 1, total / (total - 1), np.nan)  # a sample's variance divides by n - 1
            half = LIMITS * np.sqrt(np.maximum(squared - error**2, 0) * sample)
            overall = {
                "mae": scale * absolute,
                "rmse": scale * np.sqrt(squared),
                "r2": np.where(has_variance, 1 - squared / variance, np.nan),
                "pearson": np.where(
                    has_variance & (spread > ROUNDING),
                    (product - true * predicted) / np.sqrt(variance * spread),
                    np.nan,
                ),
                "bias": scale * error,
                "limit_low": scale * (error - half),
                "limit_high": scale * (error + half),
                "coverage": inside,
            }
        return overall, {}

    def list_denominators(self, key: str, k: int) -> Sequence[NDArray[np.bool_]]:  # noqa: ARG002
        """Return nothing: a number has no classes."""
        return ()
