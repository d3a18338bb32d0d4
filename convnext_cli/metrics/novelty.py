"""The out-of-distribution (OOD) score of an image: its distance from the training images.

Seven numbers describe an image: the cosine distance of its features to the k-th nearest training image (Sun et al.
2022, arXiv:2204.06507), and six statistics of its pixels. The score is their Mahalanobis distance from those of the
training images, with the covariance shrunk after Ledoit and Wolf (2004). It is two-sided, because an X-ray can lie
nearer to the mean of photographs' features than photographs do (typicality test: Nalisnick et al. 2019,
arXiv:1906.02994). `benchmarks/novelty.py` compares it with other scores.

The pixel statistics make the score sensitive to exposure, sharpness and colour: images of another device may be
flagged. Files and JSON call the score `novelty`.
"""

import math
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats

NEIGHBOUR = 10  # k: robust to single atypical training images
SCORE_NAME = (
    f"Mahalanobis distance of six pixel statistics and the cosine distance to the {NEIGHBOUR}th nearest training image"
)
"""Kept in `calibration.json`, where it tells the scores of different versions apart."""
NUMBERS = 7  # dimensions: the distance and six statistics
STEPS = (1, 2, 4)  # pixels between the neighbours whose differences are averaged
MIN_STD = np.array([0.05, 0.02, 0.05, 0.2, 0.05, 0.05, 0.05])  # of the numbers; images of grey sets have some colour
FLOOR_DISTANCE, FLOOR_CONTRAST, FLOOR_SATURATION, FLOOR_STEP = 1e-4, 0.02, 0.01, 0.005
_CHUNK = 500  # rows compared at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class NoveltyModel:
    """Statistics of the training images, which give the OOD score of others."""

    bank: NDArray[Any]
    """(M, D) normalised features of training images."""
    mean: NDArray[np.float64]
    """(7,) mean of the seven numbers over the training images."""
    precision: NDArray[np.float64]
    """(7, 7) inverse of their shrunk covariance."""

    def score(self, features: Floats, statistics: Floats) -> Floats:
        """Return the OOD score of each image, (N,); 0 at the mean of the training images.

        Args:
            features: (N, D), not normalised.
            statistics: (N, 6), from `measure_pixels`.
        """
        offset = _join(measure_distance(features, self.bank), statistics) - self.mean
        score: Floats = np.sqrt(np.maximum(np.einsum("ni,ij,nj->n", offset, self.precision, offset), 0))
        return score


def fit_novelty(features: Floats, statistics: Floats) -> NoveltyModel:
    """Fit the OOD score on training images; each image is compared with the others.

    Args:
        features: (M, D), not normalised.
        statistics: (M, 6), from `measure_pixels`.
    """
    from sklearn.covariance import LedoitWolf

    bank = normalise(features).astype(np.float16)
    numbers = _join(measure_distance(features, bank, leave_out=True), statistics)
    mean, std = numbers.mean(axis=0), np.maximum(numbers.std(axis=0), MIN_STD)
    shrunk = LedoitWolf(assume_centered=True).fit((numbers - mean) / std).covariance_
    shrunk += np.diag(np.maximum(1 - np.diag(shrunk), 0))  # a constant number keeps MIN_STD
    return NoveltyModel(bank=bank, mean=mean, precision=np.linalg.inv(shrunk) / np.outer(std, std))


def measure_pixels(images: NDArray[np.uint8], fill: tuple[int, int, int] | None = None) -> NDArray[np.float32]:
    """Return six statistics of preprocessed images (N, H, W, 3): (N, 6).

    Mean brightness; logarithms of contrast (standard deviation), of saturation (largest minus smallest channel), and
    of the mean absolute difference of pixels 1, 2 and 4 apart. Brightness is the mean of the channels, 0 to 1.

    Padding with the value `fill` does not count; None for images without padding.
    """
    return np.stack([_measure_image(image, fill) for image in images])


def _measure_image(image: NDArray[np.uint8], fill: tuple[int, int, int] | None) -> NDArray[np.float32]:
    """Return the statistics of an image (H, W, 3), (6,), without rows and columns of the padding's value only."""
    rows, columns = find_inside(image, fill)
    red, green, blue = (np.ascontiguousarray(image[rows][:, columns, channel]) for channel in range(3))
    largest, smallest = np.maximum(np.maximum(red, green), blue), np.minimum(np.minimum(red, green), blue)
    inner = (red.astype(np.int16) + green + blue).ravel()  # 0 to 765
    contrast, saturation = inner.std() / 765, (largest - smallest).mean() / 255
    statistics = [inner.mean() / 765, np.log(contrast + FLOOR_CONTRAST), np.log(saturation + FLOOR_SATURATION)]
    grey = image.sum(axis=2, dtype=np.int16)
    for step in STEPS:
        part, tall, wide = grey[::step, ::step], rows[::step], columns[::step]
        vertical = np.abs(np.diff(part, axis=0))[tall[1:] & tall[:-1]][:, wide]
        horizontal = np.abs(np.diff(part, axis=1))[tall][:, wide[1:] & wide[:-1]]
        total = sum(float(pairs.sum()) / max(1, pairs.size) / 765 for pairs in (vertical, horizontal))
        statistics.append(np.log(total + FLOOR_STEP))
    return np.array(statistics, np.float32)


def find_inside(
    image: NDArray[np.uint8], fill: tuple[int, int, int] | None
) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
    """Return the rows (H,) and columns (W,) of an image (H, W, 3) that are not of the padding's value only."""
    if fill is None:
        return np.ones(image.shape[0], np.bool_), np.ones(image.shape[1], np.bool_)
    inside = (image != np.array(fill, np.uint8)).any(axis=2)
    rows, columns = inside.any(axis=1), inside.any(axis=0)
    return (rows, columns) if rows.any() else (~rows, ~columns)  # else an image of that value


def normalise(features: Floats) -> Floats:
    """Scale each row of (N, D) to length 1."""
    scaled: Floats = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return scaled


def measure_distance(features: Floats, bank: Floats, *, leave_out: bool = False) -> Floats:
    """Return the cosine distance, 0 to 2, of each row to its k-th nearest training image, (N,).

    Args:
        features: (N, D), not normalised.
        bank: (M, D) normalised features of training images.
        leave_out: row i is row i of the bank, and is not compared with itself.
    """
    transposed = bank.astype(np.float32).T
    kth = max(1, min(NEIGHBOUR, len(bank) - leave_out))
    distances = np.empty(len(features), np.float64)
    for start in range(0, len(features), _CHUNK):
        similarity = normalise(features[start : start + _CHUNK]).astype(np.float32) @ transposed
        if leave_out and len(bank) > 1:
            similarity[np.arange(len(similarity)), np.arange(start, start + len(similarity))] = -2
        distances[start : start + _CHUNK] = 1 - np.partition(similarity, len(bank) - kth, axis=1)[:, len(bank) - kth]
    return distances


def choose_novelty_threshold(scores: Floats, rate: float) -> float:
    """Return the threshold that a fraction `rate` of similar images exceeds: a conformal quantile of `scores`."""
    rank = min(len(scores), math.ceil((len(scores) + 1) * (1 - rate)))
    return float(np.sort(scores)[rank - 1])


def _join(distances: Floats, statistics: Floats) -> Floats:
    """Return the seven numbers of each image, (N, 7)."""
    return np.column_stack([np.log(np.maximum(distances, 0) + FLOOR_DISTANCE), statistics.astype(np.float64)])
