"""Images of an evaluation with a model's outputs: metrics, targets, subgroups and groups are measured on these."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convnext_cli.inference.calibration import Calibration
from convnext_cli.inference.pooling import Pooling
from convnext_cli.metrics.calculator import Calculator, Floats
from convnext_cli.metrics.summary import MetricSet
from convnext_cli.tasks.task import Targets, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedImages:
    """The images, or groups of images, of an evaluation, with a model's outputs for them."""

    task: Task
    classes: tuple[str, ...]
    logits: Floats
    """(N, K), uncalibrated."""
    targets: Targets
    calibration: Calibration | Pooling | None = None
    groups: Sequence[str] | None
    """(N,) names; None where groups are not known."""

    @property
    def calibrated(self) -> Floats:
        """The calibrated logits, (N, K)."""
        return self.task.calibrate(self.logits, self.calibration)

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """The calibrated probabilities, (N, K); of a number, its prediction (N, 1)."""
        return self.task.activate(self.calibrated)

    def select(self, rows: NDArray[np.integer]) -> "EvaluatedImages":
        """Return some of the images."""
        groups = None if self.groups is None else [self.groups[row] for row in rows]
        return replace(self, logits=self.logits[rows], targets=self.targets[rows], groups=groups)

    def compute_metrics(self) -> MetricSet:
        """Return the metrics of the images."""
        return self.task.compute_metrics(self.calibrated, self.targets, self.classes, self.calibration)

    def make_calculator(self) -> Calculator:
        """Return the calculator of the task's metrics."""
        return self.task.make_calculator(self.calibrated, self.targets, self.calibration)
