"""The interface of all metric calculators: metrics of one evaluation, for many weightings of its images."""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.registry import METRICS

Floats = NDArray[np.floating[Any]]
Ints = NDArray[np.integer[Any]]


class Calculator(ABC):
    """Images of one evaluation, prepared once so that metrics of many weightings are cheap.

    A bootstrap weighs the images by how often a resample holds them. A metric that is not defined is nan.
    """

    overall: ClassVar[tuple[str, ...]]
    """Keys in `metrics.registry` of the metrics of the whole evaluation."""
    per_class: ClassVar[tuple[str, ...]]
    """Keys of the metrics of each class, label or grade."""
    images: int
    num_classes: int
    """Number of entries that the metrics of `per_class` have."""
    present: NDArray[np.bool_]
    """(K,) True for the entries that averages are over: those with images."""
    correct: NDArray[np.bool_] | None
    """(N,) True for images that are predicted correctly; None for tasks in which no image is simply right or wrong."""

    @abstractmethod
    def compute(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Compute all metrics for C weightings at a time.

        Args:
            weights: (C, N), how often each image counts.

        Returns:
            The metrics `overall`, each (C,), and `per_class`, each (C, K).
        """

    @abstractmethod
    def list_denominators(self, key: str, k: int) -> Sequence[NDArray[np.bool_]]:
        """Return the sets of images that a metric of class k depends on, each (N,); the smallest decides its CI."""

    def select_counted(self) -> NDArray[np.bool_]:
        """Return the images that the overall metrics depend on, (N,)."""
        return np.ones(self.images, np.bool_)

    def get_highest(self, key: str) -> float:
        """Return the largest possible value of a metric, infinite where there is none."""
        return METRICS[key].high

    def compute_gaps(self, weights: Floats) -> dict[str, Floats]:  # noqa: ARG002  (not all tasks have such metrics)
        """Return the summands of metrics that are sums of absolute values, before these are taken.

        The weights are (C, N), as in `compute`.

        Returns:
            For the keys of such metrics (C, B) if they are in `overall`, (C, K, B) if they are in `per_class`.
        """
        return {}
