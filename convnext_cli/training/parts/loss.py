"""What training makes small: cross-entropy, corrected where some classes are rare."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convnext_cli.recipes.settings import Settings

EFFECTIVE_BETA = 0.999  # an image is worth half as much after 700 of its class; of the paper's 0.9 to 0.9999


@dataclass(frozen=True, kw_only=True, slots=True)
class Loss:
    """Cross-entropy with a weight for each class, on logits that are moved by each class's frequency."""

    weights: Tensor | None
    """(K,) factors of the classes' terms, 1 on average over the training images; None for 1."""
    offsets: Tensor | None
    """(K,) added to the logits while training, and not afterwards; None for 0."""

    def sum_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """The sum of the losses of (B, K) logits against (B, K) distributions."""
        moved = logits.float() if self.offsets is None else logits.float() + self.offsets
        return F.cross_entropy(moved, targets, weight=self.weights, reduction="sum")


def make_loss(settings: Settings, counts: Sequence[int], device: torch.device) -> Loss:
    """What a recipe makes small on training images of which `counts` are of each class.

    Logit adjustment adds `logit_adjustment` times the log of a class's share (arXiv:2007.07314, equation 10): the model
    itself then answers as if all classes were equally frequent.
    """
    weights = offsets = None
    if settings.class_weights != "none":
        weights = torch.tensor(weigh_classes(counts, settings.class_weights), dtype=torch.float32, device=device)
    if settings.logit_adjustment > 0:
        shares = torch.tensor(counts, dtype=torch.float32, device=device) / sum(counts)
        offsets = settings.logit_adjustment * shares.log()
    return Loss(weights=weights, offsets=offsets)


def weigh_classes(counts: Sequence[int], method: str) -> NDArray[np.float64]:
    """A weight for each class, (K,), 1 on average over the images.

    Args:
        counts: training images of each class, all above 0.
        method: `balanced`: every class weighs the same; `effective`: by its effective number of images
            (arXiv:1901.05555), which is milder, because the thousandth image of a class brings less than its tenth.
    """
    number = np.asarray(counts, np.float64)
    worth = number if method == "balanced" else (1 - EFFECTIVE_BETA**number) / (1 - EFFECTIVE_BETA)
    weights: NDArray[np.float64] = number.sum() / worth / (number / worth).sum()
    return weights
