"""Distillation: a teacher's logits and pooled features as targets, their loss, and the projection to the latter.

Logits: Hinton et al. 2015 (arXiv:1503.02531). Features: a linear projection of the student's pooled features is
compared by direction, so that the widths may differ and the teacher's scale does not matter. The teacher sees the same
crop of an image as the student ("consistent teaching", Beyer et al. 2021, arXiv:2106.05237).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.training.parts.loss import Loss
from convnext_cli.training.views import choose_view

PROJECTION = "head.fc.projection."
"""Start of the names of the parameters that a student has in training only."""


class ProjectingClassifier(nn.Linear):
    """A linear classifier that in training returns predicted teacher features beside its logits.

    Its own parameters keep their names, so that the model without `projection` is the plain one.

    Args:
        linear: the classifier, whose parameters it takes over.
        width: of the teacher's features.
    """

    def __init__(self, linear: nn.Linear, width: int) -> None:
        super().__init__(linear.in_features, linear.out_features, device="meta")
        self.weight, self.bias = linear.weight, linear.bias
        self.projection = nn.Linear(linear.in_features, width)

    def forward(self, features: Tensor) -> Tensor:
        """Return logits (B, K), in training with the predicted features, (B, K + D), of features (B, C)."""
        logits = F.linear(features, self.weight, self.bias)
        return torch.cat([logits, self.projection(features)], dim=1) if self.training else logits


def add_projection(network: nn.Module, width: int) -> None:
    """Give a timm ConvNeXt's classifier a projection to `width` features, for training; 0 changes nothing."""
    if width:
        network.head.fc = ProjectingClassifier(network.head.fc, width)  # type: ignore[union-attr, arg-type]


def drop_projection(weights: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return a student's weights without the projection."""
    return {name: value for name, value in weights.items() if not name.startswith(PROJECTION)}


@dataclass(frozen=True, kw_only=True, slots=True)
class DistillationLoss:
    """The loss against labels, the teacher's logits and the teacher's features, added with weights."""

    labels: Loss
    """The loss against the labels."""
    classes: int
    """Outputs of the student, K."""
    weight: float
    """Weight of the teacher's probabilities, 0 to 1; the rest is that of the labels."""
    temperature: float
    features: float
    """Weight of the features' loss."""

    def join_targets(self, labels: Tensor, teacher: Tensor) -> Tensor:
        """Return all targets side by side, (B, 2K + D), or (B, K + D) without logits, for mixup to mix them alike.

        Args:
            labels: (B, K) distributions.
            teacher: (B, K + D) logits and features; (B, D) if the teacher has other classes.
        """
        if not self.weight:
            return torch.cat([labels, F.normalize(teacher, dim=1)], dim=1)
        logits, features = teacher[:, : self.classes], teacher[:, self.classes :]
        probabilities = torch.softmax(logits / self.temperature, dim=1)
        return torch.cat([labels, probabilities, F.normalize(features, dim=1)], dim=1)

    def sum_losses(self, outputs: Tensor, targets: Tensor) -> Tensor:
        """Return the sum of the losses of outputs (B, K + D) against targets of `join_targets`.

        The teacher's part is the Kullback-Leibler divergence at the temperature, times its square (arXiv:1503.02531,
        section 2), and 1 minus the cosine of the features.
        """
        outputs = outputs.float()
        logits, projected = outputs[:, : self.classes], outputs[:, self.classes :]
        labels, rest = targets[:, : self.classes], targets[:, self.classes :]
        total = torch.zeros((), device=outputs.device)
        if self.weight < 1:
            total = total + (1 - self.weight) * self.labels.sum_losses(logits, labels)
        if self.weight:
            probabilities, rest = rest[:, : self.classes], rest[:, self.classes :]
            logs = F.log_softmax(logits / self.temperature, dim=1)
            divergence = F.kl_div(logs, probabilities, reduction="sum")
            total = total + self.weight * self.temperature**2 * divergence
        if rest.shape[1] and self.features:
            total = total + self.features * (1 - F.cosine_similarity(projected, rest, dim=1)).sum()
        return total


@dataclass(kw_only=True, slots=True)
class Distillation:
    """The targets that a student gets from its teacher, and their loss."""

    teacher: str
    """Fingerprint of the teacher's weights."""
    licenses: tuple[str | None, ...]
    """Licences of the teacher's weights, as `Teacher.licenses`."""
    loss: DistillationLoss
    views: int
    """Views of each image."""
    columns: tuple[int, ...]
    """The student's classes among the teacher's outputs; empty if the teacher has other classes, or no weight."""
    feature_width: int
    """Width of the teacher's features; 0 if they are not learned."""
    preprocessing: Preprocessing
    """Framing and size of the views that the teacher sees: the student's framing at the teacher's size."""
    outputs: NDArray[np.float16] = field(default_factory=lambda: np.empty((0, 0, 0), np.float16))
    """(views, training images, C + D): logits and pooled features. A row of zeros has not been computed."""
    positions: dict[int, int] = field(default_factory=dict)
    """Position in `outputs` of each training row of the index."""

    def read(self, draws: Sequence[int], images: int, epoch: int) -> Tensor:
        """Return the teacher's outputs for draws of an epoch, (B, C + D) float32.

        Args:
            draws: rows, or numbers above the index's length that `balance_rows` gives to repetitions.
            images: length of the index.
            epoch: counted from 0.
        """
        views = [choose_view(draw, images, epoch, self.views) for draw in draws]
        rows = [self.positions[draw % images] for draw in draws]
        return torch.from_numpy(self.outputs[views, rows].astype(np.float32))
