"""The training loss: cross-entropy, with corrections for class imbalance."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convnext_cli.recipes.settings import Settings

EFFECTIVE_BETA = 0.999  # an image counts half as much after 700 of its class; the paper has 0.9 to 0.9999


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Cross-entropy with class weights, on logits adjusted by class frequency."""

    weights: Tensor | None
    """Class weights, (K,), 1 on average over the training images; None for 1."""
    offsets: Tensor | None
    """Offsets of the logits in training, (K,); None for 0."""

    def sum_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses of logits (B, K) against distributions (B, K)."""
        adjusted = logits.float() if self.offsets is None else logits.float() + self.offsets
        return F.cross_entropy(adjusted, targets, weight=self.weights, reduction="sum")


def make_loss(settings: Settings, counts: Sequence[int], device: torch.device) -> Loss:
    """Return the loss for training images of which `counts` are of each class.

    Logit adjustment adds `logit_adjustment` times the log of a class's fraction of the images (arXiv:2007.07314,
    equation 10). The model then predicts as if all classes were equally frequent.
    """
    weights = offsets = None
    if settings.class_weights != "none":
        weights = torch.tensor(weigh_classes(counts, settings.class_weights), dtype=torch.float32, device=device)
    if settings.logit_adjustment > 0:
        fractions = torch.tensor(counts, dtype=torch.float32, device=device) / sum(counts)
        offsets = settings.logit_adjustment * fractions.log()
    return Loss(weights=weights, offsets=offsets)


def weigh_classes(counts: Sequence[int], method: str) -> NDArray[np.float64]:
    """Return the class weights, (K,), 1 on average over the images.

    Args:
        counts: training images of each class, all above 0.
        method: `balanced`: the classes have equal total weight; `effective`: inverse to the effective number of images
            (arXiv:1901.05555), a milder correction.
    """
    images = np.asarray(counts, np.float64)
    effective = images if method == "balanced" else (1 - EFFECTIVE_BETA**images) / (1 - EFFECTIVE_BETA)
    weights: NDArray[np.float64] = images.sum() / effective / (images / effective).sum()
    return weights
