"""Split conformal prediction: the half length of intervals that cover a stated fraction of new images."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.intervals import number_units


def fit_margin(errors: NDArray[np.float64], groups: Sequence[str] | None, coverage: float) -> float:
    """Return the half length of prediction intervals.

    With n independent images, the ceil((n + 1) coverage)-th smallest absolute error covers a new image with at least
    that probability (Papadopoulos et al. 2002; Lei et al. 2018, arXiv:1604.04173, section 2.2). Images of one group are
    not independent: each group counts once, by a weight of 1 / (its images) for each of its images, so that n is the
    number of groups (Dunn et al. 2022, arXiv:1809.07441, who average over groups).

    Args:
        errors: (N,) absolute errors on images that the model was not trained on.
        groups: (N,) names; None where groups are not known. An empty name is a group of its own.
        coverage: the fraction to cover.
    """
    units = number_units(len(errors), groups)
    sizes = np.bincount(units)
    n = len(sizes)
    order = np.argsort(errors, kind="stable")
    cumulated = np.cumsum(1 / sizes[units[order]])
    needed = min(math.ceil((n + 1) * coverage - 1e-9), n)  # of n groups; more cannot be had from too few
    place = int(np.searchsorted(cumulated, needed - 1e-9))
    return float(errors[order[min(place, len(errors) - 1)]])
