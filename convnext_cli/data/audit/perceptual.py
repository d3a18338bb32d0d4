"""Perceptual hashes of grey images."""

from functools import cache

import numpy as np
from numpy.typing import NDArray


def hash_images(grey: NDArray[np.float32] | NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the 64-bit perceptual hashes of grey values, (..., S, S), S at least 8.

    Each bit says if one of the lowest 8 x 8 frequencies is above their median.

    Source: the DCT hash of pHash (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions").
    """
    cosines = _list_cosines(grey.shape[-1])
    low = (cosines @ grey.astype(np.float32) @ cosines.T).reshape(*grey.shape[:-2], 64)
    median = np.partition(low[..., 1:], 31)[..., 31:32]  # the first is the mean brightness
    hashes: NDArray[np.uint64] = np.packbits(low > median, axis=-1, bitorder="little").view("<u8")[..., 0]
    return hashes


@cache
def _list_cosines(side: int) -> NDArray[np.float32]:
    """Return the cosines of the lowest 8 frequencies, (8, S)."""
    cosines: NDArray[np.float64] = np.cos(np.pi / side * (np.arange(side) + 0.5) * np.arange(8)[:, None])
    return cosines.astype(np.float32)
