"""Drift: differences between the images of an evaluation and the validation images that a run was calibrated on.

Each measure of an image is compared by the two-sample Kolmogorov-Smirnov test, each class by Fisher's exact test, on
one image per group, because images of one group are not independent. Drift is significant, after Holm's correction, and
large enough to matter. `benchmarks/drift.py` measures false alarms and power.
"""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.intervals import number_units
from convnext_cli.metrics.novelty import find_inside

LEVEL = 0.01
"""Significance level of all measures together."""
MIN_DISTANCE = 0.2
"""Smallest Kolmogorov-Smirnov distance, 0 to 1, that counts as drift."""
MIN_DIFFERENCE = 0.1
"""Smallest difference of a class's fraction that counts as drift."""
MIN_IMAGES = 5  # on either side, of different groups
MAX_EXACT = 500  # images on either side; above, the asymptotic distribution is exact enough


CORNER = 0.2  # of the sides of an image
_FLOOR = 0.005  # of the mean difference of neighbours


@dataclass(frozen=True, kw_only=True, slots=True)
class Shift:
    """The shift of a measure, or of the fraction of a class, from validation images to those of an evaluation."""

    validation: float
    """Median, or fraction."""
    here: float
    distance: float
    """Kolmogorov-Smirnov distance, or absolute difference of the fractions."""
    p_value: float | None
    """None with too few images."""


def measure_corners(images: NDArray[np.uint8], fill: tuple[int, int, int] | None = None) -> NDArray[np.float32]:
    """Return the detail in the four corners of preprocessed images (N, H, W, 3): (N, 4), where scanners write.

    The logarithm of the mean absolute difference of neighbouring pixels; upper left and right, lower left and right.

    Padding with the value `fill` does not count; None for images without padding.
    """
    return np.stack([_measure_corners(image, fill) for image in images])


def _measure_corners(image: NDArray[np.uint8], fill: tuple[int, int, int] | None) -> NDArray[np.float32]:
    rows, columns = find_inside(image, fill)
    grey = image[rows][:, columns].sum(axis=2, dtype=np.int16)
    tall, wide = (max(2, round(CORNER * side)) for side in grey.shape)
    corners = (grey[:tall, :wide], grey[:tall, -wide:], grey[-tall:, :wide], grey[-tall:, -wide:])
    pairs = [[np.abs(np.diff(part, axis=axis)) for axis in (0, 1)] for part in corners]
    sums = [sum(float(part.sum()) / max(1, part.size) / 765 for part in both) for both in pairs]
    return np.log(np.array(sums) + _FLOOR).astype(np.float32)


def choose_one_per_group(images: int, groups: Sequence[str] | None, *, seed: int = 0) -> Ints:
    """Return the row of one image of each group, drawn at random."""
    units = number_units(images, groups)
    order = np.random.default_rng(seed).permutation(images)
    return np.asarray(order[np.unique(units[order], return_index=True)[1]])


def compare_values(validation: Floats, here: Floats) -> Shift:
    """Compare a measure of images of different groups, each (N,)."""
    from scipy.stats import ks_2samp  # half a second to import

    result = ks_2samp(validation, here, method="exact" if max(len(validation), len(here)) <= MAX_EXACT else "asymp")
    p = float(result.pvalue) if min(len(validation), len(here)) >= MIN_IMAGES else None
    one, two = float(np.median(validation)), float(np.median(here))
    return Shift(validation=one, here=two, distance=float(result.statistic), p_value=p)


def compare_fractions(validation: NDArray[np.bool_], here: NDArray[np.bool_]) -> Shift:
    """Compare the fraction of a class among images of different groups, each (N,)."""
    from scipy.stats import fisher_exact

    p = None
    if min(len(validation), len(here)) >= MIN_IMAGES:
        p = float(fisher_exact([[part.sum(), (~part).sum()] for part in (validation, here)]).pvalue)
    one, two = float(validation.mean()), float(here.mean())
    return Shift(validation=one, here=two, distance=abs(one - two), p_value=p)
