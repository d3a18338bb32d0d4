"""Images of an evaluation with their outputs: subgroups, targets and recalibrations are measured on these."""

from collections.abc import Sequence
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from convnext_cli.inference.calibration import Calibration
from convnext_cli.metrics.calculator import Calculator, Floats
from convnext_cli.metrics.summary import MetricSet
from convnext_cli.tasks.task import Targets, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class ScoredImages:
    """The images of an evaluation with their calibrated outputs."""

    task: Task
    classes: tuple[str, ...]
    logits: Floats
    """(N, K), calibrated."""
    targets: Targets
    calibration: Calibration | None
    groups: Sequence[str] | None
    """(N,) names; None where groups are not known."""

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """The calibrated probabilities, (N, K); of a number, its prediction (N, 1)."""
        return self.task.activate(self.logits)

    def select(self, rows: NDArray[np.integer]) -> "ScoredImages":
        """Return some of the images."""
        groups = None if self.groups is None else [self.groups[row] for row in rows]
        return replace(self, logits=self.logits[rows], targets=self.targets[rows], groups=groups)

    def compute_metrics(self) -> MetricSet:
        """Return the metrics of the images."""
        return self.task.compute_metrics(self.logits, self.targets, self.classes, self.calibration)

    def make_calculator(self) -> Calculator:
        """Return the calculator of the task's metrics."""
        return self.task.make_calculator(self.logits, self.targets, self.calibration)
