"""The training losses, by the names that tasks give them."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import ClassVar, TypeAlias

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convnext_cli.data.index import Index
from convnext_cli.recipes.settings import Settings

EFFECTIVE_BETA = 0.999  # an image counts half as much after 700 of its class; the paper has 0.9 to 0.9999


class Loss(ABC):
    """A loss of logits against targets. Encoded targets are linear, so that mixup and CutMix may mix them."""

    @abstractmethod
    def encode(self, targets: Tensor) -> Tensor:
        """Return the targets of B images as float32, (B, W). On the CPU: not every GPU has the float64 of numbers."""

    @abstractmethod
    def sum_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses of logits (B, K) against encoded targets (B, W)."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossEntropy(Loss):
    """Cross-entropy with class weights, on logits adjusted by class frequency."""

    num_classes: int
    label_smoothing: float = 0.0
    weights: Tensor | None = None
    """Class weights, (K,), 1 on average over the training images; None for 1."""
    offsets: Tensor | None = None
    """Offsets of the logits in training, (K,); None for 0."""

    def encode(self, targets: Tensor) -> Tensor:
        """Return classes (B,) as distributions (B, K): `label_smoothing` over all classes, the rest on the true one."""
        smoothing = self.label_smoothing
        return F.one_hot(targets, self.num_classes).float() * (1 - smoothing) + smoothing / self.num_classes

    def sum_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses of logits (B, K) against distributions (B, K)."""
        adjusted = logits.float() if self.offsets is None else logits.float() + self.offsets
        return F.cross_entropy(adjusted, targets, weight=self.weights, reduction="sum")


def make_cross_entropy(settings: Settings, index: Index, device: torch.device) -> CrossEntropy:
    """Return the cross-entropy for the training images of an index.

    Logit adjustment adds `logit_adjustment` times the log of a class's fraction of the images (arXiv:2007.07314,
    equation 10). The model then predicts as if all classes were equally frequent.
    """
    counts = index.count_classes("train")
    weights = offsets = None
    if settings.class_weights != "none":
        weights = torch.tensor(weigh_classes(counts, settings.class_weights), dtype=torch.float32, device=device)
    if settings.logit_adjustment > 0:
        fractions = torch.tensor(counts, dtype=torch.float32, device=device) / sum(counts)
        offsets = settings.logit_adjustment * fractions.log()
    return CrossEntropy(
        num_classes=len(index.classes), label_smoothing=settings.label_smoothing, weights=weights, offsets=offsets
    )


UNCERTAIN = {"positive": 1.0, "negative": 0.0, "smooth": 0.7}
"""Training targets of a label that is -1: U-Ones and U-Zeroes of CheXpert (arXiv:1901.07031), and the mean of the range
0.55 to 0.85 that Pham et al. draw from (arXiv:1911.06475). `ignore` leaves it out."""


@dataclass(frozen=True, kw_only=True, slots=True)
class BinaryCrossEntropy(Loss):
    """Mean over K labels of the binary cross-entropy; unknown labels add nothing."""

    uncertain: float | None
    """Target of a label that is -1; None to leave it out."""
    label_smoothing: float = 0.0
    positive_weights: Tensor | None = None
    """Weights of the positive images, (K,); None for 1."""

    def encode(self, targets: Tensor) -> Tensor:
        """Return labels (B, K) as weights of the positive and of the negative case, (B, 2 K).

        The loss is linear in both, so that mixing them mixes the losses of two images, known or unknown.
        """
        known = (targets == 0) | (targets == 1)
        values = torch.where(known, targets, 0.0)
        if self.uncertain is not None:
            is_uncertain = targets == -1
            values, known = torch.where(is_uncertain, self.uncertain, values), known | is_uncertain
        values = values * (1 - self.label_smoothing) + self.label_smoothing / 2
        return torch.cat([values * known, (1 - values) * known], dim=1)

    def sum_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses of logits (B, K) against encoded labels (B, 2 K)."""
        positive, negative = targets.chunk(2, dim=1)
        if self.positive_weights is not None:
            positive = positive * self.positive_weights
        logits = logits.float()
        losses = positive * F.softplus(-logits) + negative * F.softplus(logits)
        return losses.sum() / logits.shape[1]


@dataclass(frozen=True, kw_only=True, slots=True)
class AsymmetricLoss(BinaryCrossEntropy):
    """Binary cross-entropy that hardly counts easy negatives (Ridnik et al., arXiv:2009.14119, with its values)."""

    exponent: ClassVar[float] = 4.0  # of the negative part; 0 for the positive one
    margin: ClassVar[float] = 0.05

    def sum_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses of logits (B, K) against encoded labels (B, 2 K)."""
        positive, negative = targets.chunk(2, dim=1)
        logits = logits.float()
        shifted = (logits.sigmoid() - self.margin).clamp(min=0)
        losses = positive * F.softplus(-logits)
        losses = losses - negative * shifted**self.exponent * torch.log1p(-shifted)
        return losses.sum() / logits.shape[1]


def make_binary_cross_entropy(settings: Settings, index: Index, device: torch.device) -> BinaryCrossEntropy:
    """Return the binary cross-entropy for the training images of an index, or the asymmetric loss.

    With `class_weights`, the positive images of a label weigh as much as its negative ones (`balanced`), or less
    (`effective`), as `weigh_classes` has it.
    """
    uncertain, smoothing = UNCERTAIN.get(settings.uncertain), settings.label_smoothing
    if settings.class_weights == "asymmetric":
        return AsymmetricLoss(uncertain=uncertain, label_smoothing=smoothing)
    weights = None
    if settings.class_weights != "none":
        targets = index.targets(index.rows("train"))
        counts = [((column == 0).sum(), (column == 1).sum()) for column in targets.T]
        pairs = [weigh_classes(pair, settings.class_weights) for pair in counts]
        weights = torch.tensor([two / one for one, two in pairs], dtype=torch.float32, device=device)
    return BinaryCrossEntropy(uncertain=uncertain, label_smoothing=smoothing, positive_weights=weights)


@dataclass(frozen=True, kw_only=True, slots=True)
class Huber(Loss):
    """The Huber loss of standardised numbers: squared below one standard deviation, linear above (Huber 1964)."""

    mean: float
    std: float
    log: bool

    def encode(self, targets: Tensor) -> Tensor:
        """Return numbers (B,) standardised, (B, 1)."""
        values = targets.log() if self.log else targets
        return ((values - self.mean) / self.std).float()[:, None]

    def sum_losses(self, logits: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses of outputs (B, 1) against standardised numbers (B, 1)."""
        return F.huber_loss(logits.float(), targets, reduction="sum")


def make_huber(settings: Settings, index: Index, device: torch.device) -> Huber:  # noqa: ARG001  (a `LossMaker`)
    """Return the Huber loss for the numbers of an index."""
    parameters = index.task.to_dict()
    return Huber(mean=parameters["mean"], std=parameters["std"], log=parameters["log"])


LossMaker: TypeAlias = Callable[[Settings, Index, torch.device], Loss]
"""Makes a loss for the training images of an index."""
LOSSES: dict[str, LossMaker] = {
    "cross_entropy": make_cross_entropy,
    "binary_cross_entropy": make_binary_cross_entropy,
    "huber": make_huber,
}


def make_loss(settings: Settings, index: Index, device: torch.device) -> Loss:
    """Return the loss of the task of an index, for its training images."""
    return LOSSES[index.task.loss](settings, index, device)


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
