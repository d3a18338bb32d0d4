"""Keypoints: the small structures by which a cropped or turned copy of an image is recognised."""

from collections.abc import Sequence
from functools import cache, lru_cache

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_cli.data.audit.perceptual import hash_images

MIN_SIDE = 64  # px; smaller images have too little detail
SIDE = 128  # px, the longer side of the image in which keypoints are found
KEYPOINTS = 48  # of an image, those of most contrast
SIGMAS = 1.4 * 2.0 ** (np.arange(6) / 2)  # px, of the Gaussian blurs: half an octave apart
KEYPOINT = np.dtype(
    [
        ("hash", "u8"),  # perceptual, of what surrounds the keypoint, turned upright
        ("x", "u1"),
        ("y", "u1"),
        ("octave", "f2"),  # size, as a power of 2
        ("exists", "u1"),  # 0: the image has fewer keypoints
        ("angle", "u1"),  # of the direction in which it becomes brighter, in 256 steps
    ]
)
MIRRORED = np.uint64(0xFF00FF00FF00FF00)
"""The bits of a keypoint's hash that differ where the image is mirrored: of odd frequencies along the columns."""

_MIN_CONTRAST = 0.5  # grey levels, between two blurs
_PATCH = 12  # samples along a side of what is hashed
_REACH = 4.0  # sigmas, from the keypoint to the edge of what is hashed
_RINGS = np.linspace(1, 3, 3)  # sigmas, radii of the samples that give the direction


def shrink_grey(image: Image.Image) -> NDArray[np.float32]:
    """Return the grey values of an RGB image whose longer side is scaled to `SIDE`, (H, W), at least 16 px."""
    factor = SIDE / max(image.size)
    width, height = (max(16, round(side * factor)) for side in image.size)
    small = image.resize((width, height), Image.Resampling.BILINEAR, reducing_gap=2.0)
    return np.asarray(small.convert("L"), np.float32)


def find_keypoints(grey: NDArray[np.float32]) -> NDArray[np.void]:
    """Return the keypoints of an image, (KEYPOINTS,) of `KEYPOINT`, those of most contrast first.

    Source: extrema of differences of Gaussians (Lowe 2004, "Distinctive Image Features from Scale-Invariant
    Keypoints"), turned by their intensity centroid (Rublee et al. 2011, "ORB"), with a perceptual hash as descriptor.

    Args:
        grey: (H, W), at most `SIDE` px.
    """
    blurred = blur(grey)
    contrast = np.abs(np.diff(blurred, axis=0))
    scale, y, x = _find_extrema(contrast)
    octave = (scale + _find_peak(*(contrast[scale + step, y, x] for step in (-1, 0, 1)))) / 2  # copies are zoomed
    sigma: NDArray[np.float32] = (SIGMAS[0] * 2 ** (octave + 0.25)).astype(np.float32)
    columns, rows = _list_ring()
    around = sample(blurred, x[:, None] + sigma[:, None] * columns, y[:, None] + sigma[:, None] * rows, scale[:, None])
    angle = np.arctan2(around @ rows, around @ columns)
    cosines, sines = (sigma * part(angle) for part in (np.cos, np.sin))
    columns, rows = _list_patch()
    patch_x = x[:, None] + cosines[:, None] * columns - sines[:, None] * rows
    patch_y = y[:, None] + sines[:, None] * columns + cosines[:, None] * rows
    patches = sample(blurred, patch_x, patch_y, scale[:, None]).reshape(-1, _PATCH, _PATCH)
    keypoints = np.zeros(KEYPOINTS, KEYPOINT)
    real = keypoints[: len(x)]
    real["hash"], real["x"], real["y"], real["octave"], real["exists"] = hash_images(patches), x, y, octave, 1
    real["angle"] = np.round(angle * (128 / np.pi)).astype(np.int64) % 256
    return keypoints


def blur(
    grey: NDArray[np.float32], scale: float = 1.0, levels: Sequence[int] = range(len(SIGMAS))
) -> NDArray[np.float32]:
    """Return an image, (H, W), blurred by the `SIGMAS` of some levels, times `scale`, (L, H, W)."""
    rows, columns = (_list_blurs(side, scale)[list(levels)] for side in grey.shape)
    blurred: NDArray[np.float32] = np.matmul(rows @ grey, columns.transpose(0, 2, 1), dtype=np.float32)
    return blurred


def sample(
    images: NDArray[np.float32], x: NDArray[np.floating], y: NDArray[np.floating], place: NDArray[np.int64] | int = 0
) -> NDArray[np.float32]:
    """Return the values of images, (N, H, W), at points; beyond the edge, those of the edge.

    Args:
        images: (N, H, W), at least 2 px.
        x: columns.
        y: rows.
        place: of the images in `images`; broadcast with the points.
    """
    height, width = images.shape[1:]
    x, y = np.clip(x, 0, width - 1.001), np.clip(y, 0, height - 1.001)
    left, top = x.astype(np.int32), y.astype(np.int32)
    right, lower = (x - left).astype(np.float32), (y - top).astype(np.float32)
    values, start = images.reshape(-1), (place * height + top) * width + left
    upper = values[start] * (1 - right) + values[start + 1] * right
    below = values[start + width] * (1 - right) + values[start + width + 1] * right
    sampled: NDArray[np.float32] = upper * (1 - lower) + below * lower
    return sampled


def _find_extrema(
    contrast: NDArray[np.float32],
) -> tuple[NDArray[np.int64], NDArray[np.int64], NDArray[np.int64]]:
    """Return scale, row and column of the greatest values among their 26 neighbours in (scales, H, W)."""
    greatest = np.maximum(np.maximum(contrast[:-2], contrast[1:-1]), contrast[2:])
    greatest = np.maximum(np.maximum(greatest[:, :-2], greatest[:, 1:-1]), greatest[:, 2:])
    greatest = np.maximum(np.maximum(greatest[:, :, :-2], greatest[:, :, 1:-1]), greatest[:, :, 2:])
    inner = contrast[1:-1, 1:-1, 1:-1]
    places = np.nonzero((inner == greatest) & (inner > _MIN_CONTRAST))
    first = np.argsort(-inner[places], kind="stable")[:KEYPOINTS]
    scale, row, column = (place[first] + 1 for place in places)
    return scale, row, column


def _find_peak(
    left: NDArray[np.float32], middle: NDArray[np.float32], right: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Return the place of the maximum of a parabola through values at -1, 0 and 1; `middle` is the greatest."""
    peak: NDArray[np.float32] = (left - right) / (2 * np.minimum(left - 2 * middle + right, -1e-6))
    return peak


@lru_cache(maxsize=256)
def _list_blurs(side: int, scale: float) -> NDArray[np.float32]:
    """Return a matrix for each of `SIGMAS` that blurs columns of `side` px, (6, side, side); the edges are repeated."""
    sigmas = scale * SIGMAS[:, None, None]
    reach = int(4 * sigmas.max())
    distances = np.arange(side)[:, None] - np.arange(-reach, side + reach)
    weights = np.exp(-0.5 * (distances / sigmas) ** 2)
    inside = weights[:, :, reach : reach + side].copy()
    inside[:, :, 0] += weights[:, :, :reach].sum(axis=2)
    inside[:, :, -1] += weights[:, :, reach + side :].sum(axis=2)
    blurs: NDArray[np.float32] = (inside / inside.sum(axis=2, keepdims=True)).astype(np.float32)
    return blurs


@cache
def _list_ring() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the offsets of the samples that give a keypoint's direction, in sigmas: columns and rows, (48,)."""
    angle = np.linspace(0, 2 * np.pi, 16, endpoint=False)
    columns, rows = (np.outer(_RINGS, part(angle)).ravel().astype(np.float32) for part in (np.cos, np.sin))
    return columns, rows


@cache
def _list_patch() -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return the offsets of the samples that are hashed, in sigmas: columns and rows, (_PATCH * _PATCH,)."""
    rows, columns = (np.mgrid[:_PATCH, :_PATCH].reshape(2, -1) / (_PATCH - 1) * 2 - 1) * _REACH
    return columns.astype(np.float32), rows.astype(np.float32)
