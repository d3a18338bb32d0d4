"""Gaps between a subgroup and the rest: a permutation test over groups, and Holm's correction for several tests.

Groups (patients) are permuted between the subgroup and the rest, within strata of groups that have the same targets, so
that another mix of classes is no gap by itself. The gap is divided by its standard error (Chung and Romano 2013, Annals
of Statistics 41, 484), because groups of the subgroup may have more images than those of the rest. The test is exact
for small subgroups, where no normal approximation is. `benchmarks/subgroups.py` measures false alarms and power.
"""

from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.intervals import CHUNK, MAX_WORK, RESAMPLES

LEVEL = 0.05
"""Significance level of all gaps together."""
MIN_STRATUM = 10  # groups; smaller strata are permuted together
MIN_PERMUTATIONS = 1000
STEP = 0.01  # of a group's weight, for the derivative of a metric
_TINY = 1e-12

Compute = Callable[[Floats], Floats]
"""Takes weights (C, N) of images, and returns M metrics of each weighting, (C, M); nan where not defined."""


def correct_holm(p_values: Sequence[float | None]) -> list[float | None]:
    """Return p values corrected for the number of tests (Holm 1979); None stays None and does not count."""
    order = sorted((p, place) for place, p in enumerate(p_values) if p is not None)
    corrected: list[float | None] = [None] * len(p_values)
    largest = 0.0
    for rank, (p, place) in enumerate(order):
        largest = max(largest, min(1.0, (len(order) - rank) * p))
        corrected[place] = largest
    return corrected


def number_strata(units: Ints, strata: Sequence[tuple[int, ...]]) -> Ints:
    """Return the number of each unit's stratum, (U,): units whose images have the same set of targets.

    Args:
        units: (N,) number of each image's unit, from 0 to U - 1.
        strata: (N,) stratum of each image, such as its class.
    """
    sets: list[set[tuple[int, ...]]] = [set() for _ in range(int(units.max()) + 1)]
    for unit, stratum in zip(units.tolist(), strata, strict=True):
        sets[unit].add(stratum)
    numbers: dict[tuple[tuple[int, ...], ...], int] = {}
    result = np.array([numbers.setdefault(tuple(sorted(of_unit)), len(numbers)) for of_unit in sets])
    counts = np.bincount(result)
    result[counts[result] < MIN_STRATUM] = -1
    return np.asarray(np.unique(result, return_inverse=True)[1].reshape(-1))


def measure_influence(compute: Compute, units: Ints) -> Floats | None:
    """Return the influence of each unit on each metric, (U, M): the derivative by the weight of its images.

    Returns:
        None where there are too many images for it. A metric that is not defined has 0.
    """
    num, images = int(units.max()) + 1, len(units)
    if num * images > MAX_WORK // 4:
        return None
    before = compute(np.ones((1, images)))
    parts = []
    rows = max(1, CHUNK // images)
    for start in range(0, num, rows):
        numbers = np.arange(start, min(num, start + rows))
        parts.append((compute(1 + STEP * (units[None] == numbers[:, None])) - before) / STEP)
    return np.nan_to_num(np.concatenate(parts))


def choose_permutations(images: int) -> int:
    """Return the number of permutations for N images: 2,000, fewer for millions."""
    return max(MIN_PERMUTATIONS, min(RESAMPLES, MAX_WORK // max(1, images)))


def permute(members: NDArray[np.bool_], strata: Ints, permutations: int, seed: int) -> NDArray[np.bool_]:
    """Return memberships of units, shuffled within strata, (P, U); each stratum keeps its number of members.

    Args:
        members: (U,) true for units of the subgroup.
        strata: (U,) number of each unit's stratum.
        permutations: P.
        seed: of the shuffles.
    """
    random = np.random.default_rng(seed)
    shuffled = np.repeat(members[None], permutations, axis=0)
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        if 0 < members[rows].sum() < len(rows):
            shuffled[:, rows] = random.permuted(shuffled[:, rows], axis=1)
    return shuffled


def compute_p_values(
    compute: Compute, members: NDArray[np.bool_], units: Ints, strata: Ints, influence: Floats | None, *, seed: int = 0
) -> list[float | None]:
    """Return the two-sided p value of each metric's gap between a subgroup and the rest.

    The null hypothesis: among groups with the same targets, the model's outputs do not depend on the subgroup.

    Args:
        compute: the metrics of N images.
        members: (U,) true for units of the subgroup.
        units: (N,) number of each image's unit.
        strata: (U,) number of each unit's stratum.
        influence: `measure_influence`; None for a gap that is not divided by its standard error.
        seed: of the permutations.

    Returns:
        None where a metric is not defined, or no unit can change sides.
    """
    images = len(units)
    shuffled = permute(members, strata, choose_permutations(images), seed)
    shuffled = np.concatenate([members[None], shuffled])
    rows = max(1, CHUNK // images)
    gaps = []
    for start in range(0, len(shuffled), rows):
        weights = shuffled[start : start + rows].take(units, axis=1).astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            gaps.append(compute(weights) - compute(1 - weights))
    gap = np.concatenate(gaps).astype(np.float64)  # (1 + P, M), the first is the observed one
    error = np.ones_like(gap) if influence is None else _estimate_errors(shuffled, units, influence)
    result: list[float | None] = []
    for values, errors in zip(gap.T, error.T, strict=True):
        defined = ~np.isnan(values)
        if not defined[0] or defined[1:].sum() < MIN_PERMUTATIONS // 2 or np.ptp(values[defined]) < _TINY:
            result.append(None)
            continue
        distance = np.abs(values - values[defined].mean()) / np.maximum(errors, _TINY)
        exceeding = int((distance[1:][defined[1:]] >= distance[0] - 1e-9).sum())
        result.append((1 + exceeding) / (1 + int(defined[1:].sum())))
    return result


def _estimate_errors(shuffled: NDArray[np.bool_], units: Ints, influence: Floats) -> Floats:
    """Return the standard error of each gap up to a factor, (P, M), from the influence of the units on either side."""
    sizes = np.bincount(units).astype(np.float64)
    inside = shuffled.astype(np.float64)
    squares = influence**2
    fraction = inside @ sizes / sizes.sum()
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = inside @ squares / fraction[:, None] ** 2 + (1 - inside) @ squares / (1 - fraction[:, None]) ** 2
    errors: Floats = np.sqrt(np.nan_to_num(variance, posinf=0))
    return np.where(errors > _TINY, errors, 1.0)
