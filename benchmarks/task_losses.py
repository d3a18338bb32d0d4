"""A loss of grades that was measured against that of the package: CORN."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import ClassVar
from unittest import mock

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.multilabel import sigmoid
from convnext_cli.metrics.ordinal import OrdinalCalculator
from convnext_cli.tasks.ordinal import Ordinal
from convnext_cli.tasks.registry import TASKS
from convnext_cli.tasks.task import Scaling, Targets
from convnext_cli.training.parts.loss import LOSSES, Loss


@dataclass(frozen=True, kw_only=True, slots=True)
class Corn(Ordinal):
    """Grades by conditional binary outputs: P(y > k given y > k - 1) for each k (Shi et al., arXiv:2111.08851)."""

    loss: ClassVar[str] = "corn"

    def count_outputs(self, num_classes: int) -> int:
        """Return the number of limits between grades."""
        return num_classes - 1

    def activate(self, logits: Floats) -> NDArray[np.float64]:
        """Return the probability of each grade, (N, K): differences of products of conditional probabilities."""
        above = np.cumprod(sigmoid(logits), axis=1)
        edges = np.pad(above, ((0, 0), (1, 1)), constant_values=((0, 0), (1, 0)))
        scores: NDArray[np.float64] = np.maximum(edges[:, :-1] - edges[:, 1:], 1e-9)
        return scores

    def fit_calibration(self, logits: Floats, targets: Targets, groups: Sequence[str] | None) -> Scaling:
        """Fit nothing."""
        del logits, targets, groups
        return Scaling()

    def make_calculator(self, logits: Floats, targets: Targets, scaling: Scaling | None = None) -> OrdinalCalculator:
        """Return the calculator of ordinal metrics, by the logarithms of the probabilities."""
        scores = self.activate(logits)
        return OrdinalCalculator(np.log(scores), targets, self.decide(scores, scaling))


@dataclass(frozen=True, kw_only=True, slots=True)
class CornLoss(Loss):
    """The mean binary cross-entropy of the conditional outputs; output k counts for images above grade k - 1."""

    def encode(self, targets: Tensor) -> Tensor:
        """Return grades (B,) as floats, (B, 1); they must not be mixed."""
        return targets.float()[:, None]

    def sum_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses of outputs (B, K - 1) against grades (B, 1)."""
        limits = torch.arange(logits.shape[1], device=logits.device)
        counts, is_above = targets >= limits, (targets > limits).float()
        losses = F.binary_cross_entropy_with_logits(logits.float(), is_above, reduction="none")
        return (losses * counts).sum() / counts.sum() * len(logits)


@contextmanager
def use_corn() -> Iterator[None]:
    """Train and evaluate grades with CORN in the block."""
    with mock.patch.dict(TASKS, ordinal=Corn), mock.patch.dict(LOSSES, corn=lambda *_: CornLoss()):
        yield
