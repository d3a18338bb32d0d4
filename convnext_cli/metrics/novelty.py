"""How far an image is from the training images: an out-of-distribution (OOD) score.

Seven numbers describe an image: the cosine distance of its features to the k-th nearest training image (Sun et al.
2022, arXiv:2204.06507), and six statistics of its pixels. The score is the Mahalanobis distance of these seven to
those of the training images, with the covariance shrunk after Ledoit and Wolf (2004). It is two-sided: an X-ray lies
nearer to the mean of photographs' features than photographs themselves do, so that a distance alone calls it familiar
(a typicality test: Nalisnick et al. 2019, arXiv:1906.02994). `benchmarks/novelty.py` compares it with other scores.

The statistics make it sensitive to exposure, sharpness and colour too: images of another device may be flagged.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.formulas import Floats

NEIGHBOUR = 10  # the tenth, so that one odd training image vouches for nothing
ABOUT = (
    f"Mahalanobis distance of six pixel statistics and the cosine distance to the {NEIGHBOUR}th nearest training image"
)
NUMBERS = 7  # that describe an image
STEPS = (1, 2, 4)  # pixels between the neighbours whose differences are averaged
MIN_STD = np.array([0.05, 0.02, 0.05, 0.2, 0.05, 0.05, 0.05])  # of each number: grey sets have traces of colour
FLOOR_DISTANCE, FLOOR_CONTRAST, FLOOR_SATURATION, FLOOR_STEP = 1e-4, 0.02, 0.01, 0.005
_CHUNK = 500  # rows compared at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class NoveltyModel:
    """What the training images look like."""

    bank: NDArray[Any]
    """(M, D) normalised features of training images."""
    mean: NDArray[np.float64]
    """(7,) mean of the training images' numbers."""
    precision: NDArray[np.float64]
    """(7, 7) inverse of their shrunk covariance."""

    def score(self, features: Floats, statistics: Floats) -> Floats:
        """Return the OOD score of each image, (N,); 0 for the training images' mean.

        Args:
            features: (N, D), not normalised.
            statistics: (N, 6), as `measure_pixels` gives them.
        """
        offset = _join(measure_distance(features, self.bank), statistics) - self.mean
        score: Floats = np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", offset, self.precision, offset), 0))
        return score


def fit_novelty(features: Floats, statistics: Floats) -> NoveltyModel:
    """Fit the score on training images: features (M, D), not normalised, and statistics (M, 6).

    Each image's distance leaves the image itself out.
    """
    from sklearn.covariance import LedoitWolf

    bank = normalise(features).astype(np.float16)
    numbers = _join(measure_distance(features, bank, leave_out=True), statistics)
    mean, std = numbers.mean(axis=0), np.maximum(numbers.std(axis=0), MIN_STD)
    shrunk = LedoitWolf(assume_centered=True).fit((numbers - mean) / std).covariance_
    shrunk += np.diag(np.maximum(1 - np.diag(shrunk), 0))  # a number that never varies keeps MIN_STD
    return NoveltyModel(bank=bank, mean=mean, precision=np.linalg.inv(shrunk) / np.outer(std, std))


def measure_pixels(images: NDArray[np.uint8]) -> NDArray[np.float32]:
    """Return six statistics of prepared images (N, S, S, 3): (N, 6).

    Mean brightness; logarithms of contrast (standard deviation), of saturation (largest minus smallest channel), and
    of the mean absolute difference of pixels 1, 2 and 4 apart. Brightness is the mean of the channels, 0 to 1.
    """
    red, green, blue = (np.ascontiguousarray(images[..., channel]) for channel in range(3))
    most, least = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    grey = red.astype(np.int16) + green + blue  # 0 to 765
    flat = grey.reshape(len(grey), -1)
    columns = [flat.mean(axis=1) / 765, np.log(flat.std(axis=1) / 765 + FLOOR_CONTRAST)]
    columns.append(np.log((most - least).mean(axis=(1, 2)) / 255 + FLOOR_SATURATION))
    for step in STEPS:
        part = grey[:, ::step, ::step]
        rows, lines = (np.abs(np.diff(part, axis=axis)).mean(axis=(1, 2)) / 765 for axis in (1, 2))
        columns.append(np.log(rows + lines + FLOOR_STEP))
    return np.stack(columns, axis=1).astype(np.float32)


def normalise(features: Floats) -> Floats:
    """Scale each row of (N, D) to length 1."""
    scaled: Floats = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return scaled


def measure_distance(features: Floats, bank: Floats, *, leave_out: bool = False) -> Floats:
    """Return the cosine distance, 0 to 2, of each row to its k-th nearest training image, (N,).

    Args:
        features: (N, D), not normalised.
        bank: (M, D) normalised features of training images.
        leave_out: row i is the bank's own row i, which is not counted.
    """
    known = bank.astype(np.float32).T
    kth = max(1, min(NEIGHBOUR, len(bank) - leave_out))
    distances = np.empty(len(features), np.float64)
    for start in range(0, len(features), _CHUNK):
        likeness = normalise(features[start : start + _CHUNK]).astype(np.float32) @ known
        if leave_out and len(bank) > 1:
            likeness[np.arange(len(likeness)), np.arange(start, start + len(likeness))] = -2
        distances[start : start + _CHUNK] = 1 - np.partition(likeness, len(bank) - kth, axis=1)[:, len(bank) - kth]
    return distances


def choose_novelty_threshold(scores: Floats, rate: float) -> float:
    """Return the score that about `rate` of images like those with `scores` exceed: a conformal quantile."""
    rank = min(len(scores), math.ceil((len(scores) + 1) * (1 - rate)))
    return float(np.sort(scores)[rank - 1])


def _join(distances: Floats, statistics: Floats) -> Floats:
    return np.column_stack([np.log(np.maximum(distances, 0) + FLOOR_DISTANCE), statistics.astype(np.float64)])
