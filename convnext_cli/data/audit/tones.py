"""Comparison of grey images that may have another brightness, contrast or gamma."""

import numpy as np
from numpy.typing import NDArray

MAX_DIFFERENCE = 1.25  # grey levels, root mean square; the drawn slices of tests/data/audit differ by more
MIN_CONTRAST = 8.0  # grey levels, standard deviation


def are_equal_but_for_tones(ones: NDArray[np.uint8], twos: NDArray[np.uint8], cells: int) -> NDArray[np.bool_]:
    """Return True for pairs of grey images that are equal but for brightness, contrast or gamma, (N,).

    One image is given the histogram of the other. Then their mean values in `cells` x `cells` cells differ by at most
    `MAX_DIFFERENCE`. Images of little contrast are never equal: without their tones nothing tells them apart.

    Args:
        ones: (N, S, S), with S a multiple of `cells`.
        twos: (N, S, S)
        cells: along one side.
    """
    contrasts = ones.std(axis=(1, 2)), twos.std(axis=(1, 2))
    least = np.full(len(ones), np.inf, np.float32)
    # Clipped values have lost their order. So both directions are tried, and the smaller difference counts.
    for source, target, contrast in ((ones, twos, contrasts[1]), (twos, ones, contrasts[0])):
        difference = average_cells(_match_histograms(source, target), cells) - average_cells(target, cells)
        scale = np.maximum(*contrasts) / np.maximum(contrast, MIN_CONTRAST)  # levels of the image with more contrast
        least = np.minimum(least, scale * np.sqrt((difference**2).mean(axis=(1, 2))))
    is_equal: NDArray[np.bool_] = (np.minimum(*contrasts) >= MIN_CONTRAST) & (least <= MAX_DIFFERENCE)
    return is_equal


def _match_histograms(sources: NDArray[np.uint8], targets: NDArray[np.uint8]) -> NDArray[np.uint8]:
    """Return the sources, (N, S, S), with the histograms of the targets; their values keep their order."""
    order = sources.reshape(len(sources), -1).argsort(axis=1, kind="stable")
    levels = np.sort(targets.reshape(len(targets), -1), axis=1, kind="stable")
    result = np.empty_like(levels)
    np.put_along_axis(result, order, levels, axis=1)
    return result.reshape(sources.shape)


def average_cells(images: NDArray[np.uint8], cells: int) -> NDArray[np.float32]:
    """Return the mean values of the cells of each image, (N, cells, cells)."""
    side = images.shape[1] // cells
    weights = np.repeat(np.eye(cells, dtype=np.float32), side, axis=1) / side
    means: NDArray[np.float32] = weights @ images.astype(np.float32) @ weights.T  # faster than a mean of small cells
    return means
