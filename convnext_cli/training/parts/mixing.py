"""Targets as distributions, and the two ways of blending images."""

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor


def smooth_targets(labels: Tensor, num_classes: int, smoothing: float) -> Tensor:
    """Labels (B,) as distributions (B, K): `smoothing` spread over all classes, the rest on the true one."""
    return F.one_hot(labels, num_classes).float() * (1 - smoothing) + smoothing / num_classes


def mix_batch(
    images: Tensor, targets: Tensor, random: np.random.Generator, *, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Blends each image with another of its batch: mixup (arXiv:1710.09412) or CutMix (arXiv:1905.04899).

    With both alphas above 0, each batch takes one of them by an even chance; with none, nothing changes. The partner
    is the batch in reverse order, as in timm, but any batch size will do.

    Args:
        images: (B, 3, S, S).
        targets: (B, K) distributions.
        random: draws the kind, the share and the place.
        mixup: alpha of the Beta distribution of the share; 0 is off.
        cutmix: likewise.
    """
    if mixup <= 0 and cutmix <= 0:
        return images, targets
    use_cutmix = cutmix > 0 and (mixup <= 0 or random.random() < 0.5)
    alpha = cutmix if use_cutmix else mixup
    share = float(random.beta(alpha, alpha))
    if use_cutmix:
        top, bottom, left, right = _draw_box(images.shape[2], images.shape[3], 1 - share, random)
        images = images.clone()
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
        share = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    else:
        images = torch.lerp(images.flip(0), images, share)
    return images, torch.lerp(targets.flip(0), targets, share)


def _draw_box(height: int, width: int, area: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    half_h, half_w = height * area**0.5 / 2, width * area**0.5 / 2
    y, x = random.uniform(0, height), random.uniform(0, width)
    rows = np.clip([y - half_h, y + half_h], 0, height).round().astype(int)
    columns = np.clip([x - half_w, x + half_w], 0, width).round().astype(int)
    return int(rows[0]), int(rows[1]), int(columns[0]), int(columns[1])
