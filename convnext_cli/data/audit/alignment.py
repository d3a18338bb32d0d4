"""Comparison of two images of which one may be a crop of the other, turned, zoomed or shifted."""

from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.audit.keypoints import SIDE, blur, sample

MAX_ZOOM = 2.5
MIN_OVERLAP = 0.3  # fraction of the smaller image's area
MIN_CELLS = 8  # with detail
MIN_DETAILED = 0.4  # fraction of the cells; forms on a plain ground are alike wherever they lie
MIN_DETAIL = 0.96  # correlation of the detail of a cell; of the drawn slices of tests/data/audit, up to 0.95
MIN_EQUAL = 0.85  # fraction of the cells
MIN_ALIKE = 0.8  # correlation of the detail of all cells but one; an object before the same background differs more
_CELL = 16  # px
_MARGIN = 6  # px, blurred with what lies beyond the edge
_FLOOR = 1.5  # grey levels; cells with weaker detail are left out
_LEVELS = [0, 2]  # of `SIGMAS`; the difference of these blurs is the detail
_STEPS = 6  # of the alignment, for each blur
_EACH = np.arange(3)[:, None]  # of the values and both slopes
_STRIDE = 2  # px, between the pixels by which images are aligned
_ZOOM_STEP = 16  # zooms that are told apart between one and two

Transform: TypeAlias = "NDArray[np.float64]"
"""Maps points (x, y, 1) of one image to another, (2, 3)."""


def are_copies(one: NDArray[np.float32], two: NDArray[np.float32], transform: Transform) -> bool:
    """Return True if two images show the same where they overlap.

    They are aligned by an affine transform. Then all cells but a few must have the same detail. Brightness and
    contrast may differ.

    Args:
        one: (H, W) grey values.
        two: (H, W) grey values.
        transform: from `one` to `two`, within a few pixels.
    """
    zoom = _measure_zoom(transform)
    if not 1 / MAX_ZOOM <= zoom <= MAX_ZOOM:
        return False
    (fine, coarse), (other_fine, other_coarse) = (
        blur(grey, scale, _LEVELS) for grey, scale in ((one, 1.0), (two, round(zoom * _ZOOM_STEP) / _ZOOM_STEP))
    )
    for target, source in ((coarse, other_coarse), (fine, other_fine)):
        transform = _align(target, source, transform)
    columns, rows, is_inside = _map_pixels(one.shape, two.shape, transform)
    if is_inside.sum() < MIN_OVERLAP * min(one.size, two.size / zoom**2):
        return False
    detail, other_detail = fine - coarse, sample((other_fine - other_coarse)[None], columns, rows)
    correlations, has_detail = _correlate_cells(detail, other_detail, is_inside)
    if has_detail.sum() < max(MIN_CELLS, MIN_DETAILED * len(has_detail)):
        return False
    is_equal, is_unlike = (correlations >= MIN_DETAIL) & has_detail, (correlations < MIN_ALIKE) & has_detail
    return bool(is_equal.sum() >= MIN_EQUAL * has_detail.sum() and is_unlike.sum() <= 1)


def _measure_zoom(transform: Transform) -> float:
    """Return how much longer a distance becomes."""
    return float(np.sqrt(np.abs(np.linalg.det(transform[:, :2]))))


def _map_pixels(
    shape: tuple[int, ...], other: tuple[int, ...], transform: Transform, stride: int = 1
) -> tuple[NDArray[np.float32], NDArray[np.float32], NDArray[np.bool_]]:
    """Return where the pixels of an image lie in another one: columns, rows, and if both are inside, (H, W) each."""
    y, x = np.mgrid[: shape[0] : stride, : shape[1] : stride].astype(np.float32)
    columns, rows = (a * x + b * y + c for a, b, c in transform.astype(np.float32))
    is_inside = np.ones(x.shape, bool)
    for place, side in ((x, shape[1]), (y, shape[0]), (columns, other[1]), (rows, other[0])):
        is_inside &= (place >= _MARGIN) & (place < side - _MARGIN)
    return columns, rows, is_inside


def _align(one: NDArray[np.float32], two: NDArray[np.float32], transform: Transform) -> Transform:
    """Return the affine transform with the smallest difference, but for a gain and an offset of the grey values.

    Source: Gauss-Newton steps (Lucas and Kanade 1981, "An Iterative Image Registration Technique"), with weights that
    lessen outliers.
    """
    values_and_slopes = np.stack([two, *np.gradient(two)[::-1]])
    for _ in range(_STEPS):
        columns, rows, is_inside = _map_pixels(one.shape, two.shape, transform, _STRIDE)
        if is_inside.sum() < MIN_CELLS * (_CELL // _STRIDE) ** 2:
            break
        y, x = (_STRIDE / SIDE * place.astype(np.float32) for place in np.nonzero(is_inside))
        value, along_x, along_y = sample(values_and_slopes, columns[is_inside], rows[is_inside], _EACH)
        target = one[::_STRIDE, ::_STRIDE][is_inside]
        gain = target.std() / max(value.std(), 1e-3)
        residual = target - gain * value
        residual -= np.median(residual)
        weight = 1 / (1 + (residual / (3 * np.median(np.abs(residual)) + 2)) ** 2)
        moves = [gain * slope * factor for slope in (along_x, along_y) for factor in (x, y, 1)]
        jacobian = np.stack([*moves, value, np.ones_like(value)], axis=1)
        weighted = jacobian * weight[:, None]
        change = np.linalg.solve(jacobian.T @ weighted + 1e-3 * np.eye(8), weighted.T @ residual)[:6]
        transform = transform + np.clip(change.reshape(2, 3), -_MARGIN, _MARGIN) / (SIDE, SIDE, 1)
    return transform


def _correlate_cells(
    one: NDArray[np.float32], two: NDArray[np.float32], is_inside: NDArray[np.bool_]
) -> tuple[NDArray[np.float32], NDArray[np.bool_]]:
    """Return the correlation of each cell that lies inside for the most part, and if it has detail, (C,) each."""
    height, width = (side // _CELL for side in one.shape)

    def cut(values: NDArray[np.float32]) -> NDArray[np.float32]:
        cells = values[: height * _CELL, : width * _CELL].reshape(height, _CELL, width, _CELL)
        return cells.transpose(0, 2, 1, 3).reshape(-1, _CELL**2)

    weights = cut(is_inside.astype(np.float32))
    is_usable = weights.mean(axis=1) > 0.5
    weights = weights[is_usable] / weights[is_usable].sum(axis=1, keepdims=True)
    ones, twos = (cut(values)[is_usable] for values in (one, two))
    ones, twos = (values - (values * weights).sum(axis=1, keepdims=True) for values in (ones, twos))
    product, *squares = (
        (first * second * weights).sum(axis=1) for first, second in ((ones, twos), (ones, ones), (twos, twos))
    )
    return product / np.sqrt(np.maximum(squares[0] * squares[1], 1e-6)), np.maximum(*squares) > _FLOOR**2
