"""Mixup and CutMix."""

import numpy as np
import torch
from torch import Tensor


def mix_batch(
    images: Tensor, targets: Tensor, random: np.random.Generator, *, mixup: float, cutmix: float
) -> tuple[Tensor, Tensor]:
    """Return images and targets, each mixed with another of the batch: mixup (arXiv:1710.09412) or CutMix (1905.04899).

    With both alphas above 0, each batch gets one of the two, with equal probability; with none, nothing changes. The
    partners are the batch in reverse order, as in timm, for any batch size.

    Args:
        images: (B, C, H, W).
        targets: (B, W), as a loss encodes them.
        random: draws the method, the mixing weight and the box.
        mixup: alpha of the Beta distribution of the mixing weight; 0 is off.
        cutmix: the same for CutMix.
    """
    if mixup <= 0 and cutmix <= 0:
        return images, targets
    use_cutmix = cutmix > 0 and (mixup <= 0 or random.random() < 0.5)
    alpha = cutmix if use_cutmix else mixup
    weight = float(random.beta(alpha, alpha))
    if use_cutmix:
        top, bottom, left, right = _draw_box(images.shape[2], images.shape[3], 1 - weight, random)
        images = images.clone()
        images[:, :, top:bottom, left:right] = images.flip(0)[:, :, top:bottom, left:right]
        weight = 1 - (bottom - top) * (right - left) / (images.shape[2] * images.shape[3])
    else:
        images = images.flip(0).lerp_(images, weight)  # with the strides of the images: a compiled model expects them
    return images, torch.lerp(targets.flip(0), targets, weight)


def _draw_box(height: int, width: int, area: float, random: np.random.Generator) -> tuple[int, int, int, int]:
    """Return top, bottom, left and right of a random box with a fraction `area` of the image, cut at its edges."""
    half_h, half_w = height * area**0.5 / 2, width * area**0.5 / 2
    y, x = random.uniform(0, height), random.uniform(0, width)
    rows = np.clip([y - half_h, y + half_h], 0, height).round().astype(int)
    columns = np.clip([x - half_w, x + half_w], 0, width).round().astype(int)
    return int(rows[0]), int(rows[1]), int(columns[0]), int(columns[1])
