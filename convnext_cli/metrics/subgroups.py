"""Gaps between a subgroup and the rest: a permutation test over groups, and Holm's correction for several tests.

Groups (patients) are permuted between the subgroup and the rest, within strata of groups that have the same targets and
about as many images, so that another mix of classes is no gap by itself. The gap is divided by its standard error
(Chung and Romano 2013, Annals of Statistics 41, 484). The test is exact for small subgroups too, where no normal
approximation is. `benchmarks/subgroups.py` measures false alarms and power.
"""

from collections import Counter
from collections.abc import Callable, Sequence

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.intervals import CHUNK, MAX_WORK, RESAMPLES

LEVEL = 0.05
"""Significance level of all gaps together."""
MIN_STRATUM = 10  # groups; smaller strata are permuted together
MIN_PERMUTATIONS = 1000
PERMUTATIONS_PER_GAP = 40
"""At least. Corrected for the number of gaps, the smallest p is then 0.025; of 2,000 for 101 gaps it would be 0.05."""
MIN_MOBILITY = 0.2
"""Fraction of the units that must be able to change sides for strata to be by the number of images too."""
STEP = 0.01  # of a group's weight, for the derivative of a metric
_TINY = 1e-12
_ROUNDING = 1e-5  # of float32: equal gaps count as equal
BLOCK = 200  # permutations at a time; where p is 0.01, 2 of them have a gap as large as the observed one
ENOUGH_EXCEEDING = 20
"""If this many permutations of the first block have a gap as large as the observed one, the test ends: p is 0.1 or more
(Besag and Clifford 1991)."""

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


def number_strata(units: Ints, strata: Sequence[tuple[int, ...]], *, by_size: bool) -> Ints:
    """Return the number of each unit's stratum, (U,): units whose images have the same set of targets.

    Strata of few units are joined: first over the sizes, then over the targets.

    Args:
        units: (N,) number of each image's unit, from 0 to U - 1.
        strata: (N,) stratum of each image, such as its class.
        by_size: True for units that have about the same number of images too: 1, 2 to 3, 4 to 7, and so on.
    """
    targets: list[set[tuple[int, ...]]] = [set() for _ in range(int(units.max()) + 1)]
    for unit, stratum in zip(units.tolist(), strata, strict=True):
        targets[unit].add(stratum)
    sizes = np.log2(np.bincount(units)).astype(np.int64).tolist() if by_size else [0] * len(targets)
    keys: list[object] = [(tuple(sorted(of_unit)), size) for of_unit, size in zip(targets, sizes, strict=True)]
    wider: tuple[list[object], ...] = ([tuple(sorted(of_unit)) for of_unit in targets], [None] * len(targets))
    for others in wider:
        counts = Counter(keys)
        keys = [key if counts[key] >= MIN_STRATUM else other for key, other in zip(keys, others, strict=True)]
    numbers: dict[object, int] = {}
    return np.array([numbers.setdefault(key, len(numbers)) for key in keys])


def measure_mobility(members: NDArray[np.bool_], strata: Ints) -> float:
    """Return the fraction of the units on the smaller side that can change sides within strata."""
    inside, outside = (np.bincount(strata[part], minlength=int(strata.max()) + 1) for part in (members, ~members))
    return float(np.minimum(inside, outside).sum() / max(1, min(inside.sum(), outside.sum())))


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


def choose_permutations(images: int, gaps: int) -> int:
    """Return the number of permutations for N images: 2,000, fewer for millions, more where many gaps are tested."""
    return max(MIN_PERMUTATIONS, PERMUTATIONS_PER_GAP * gaps, min(RESAMPLES, MAX_WORK // max(1, images)))


def choose_strata(members: NDArray[np.bool_], units: Ints, strata: Sequence[tuple[int, ...]]) -> Ints:
    """Return the strata in which units are permuted, (U,): by targets, and by number of images where they overlap.

    ECE is higher in fewer images by chance, so that each permutation should keep the number of images.

    Arguments as `number_strata`; `members` is true for units of the subgroup, (U,).
    """
    numbers = number_strata(units, strata, by_size=True)
    if measure_mobility(members, numbers) < MIN_MOBILITY:
        return number_strata(units, strata, by_size=False)
    return numbers


def permute(
    members: NDArray[np.bool_], strata: Ints, permutations: int, random: np.random.Generator
) -> NDArray[np.bool_]:
    """Return memberships of units, shuffled within strata, (P, U); each stratum keeps its number of members."""
    shuffled = np.repeat(members[None], permutations, axis=0)
    for stratum in np.unique(strata):
        rows = np.flatnonzero(strata == stratum)
        if 0 < members[rows].sum() < len(rows):
            shuffled[:, rows] = random.permuted(shuffled[:, rows], axis=1)
    return shuffled


def compute_p_values(
    compute: Compute,
    members: NDArray[np.bool_],
    units: Ints,
    strata: Ints,
    influence: Floats | None,
    permutations: int = RESAMPLES,
) -> list[float | None]:
    """Return the two-sided p value of each metric's gap between a subgroup and the rest.

    The null hypothesis: among groups with the same targets, the model's outputs do not depend on the subgroup.

    Args:
        compute: the metrics of N images.
        members: (U,) true for units of the subgroup.
        units: (N,) number of each image's unit.
        strata: (U,) number of each unit's stratum.
        influence: `measure_influence`; None for a gap that is not divided by its standard error.
        permutations: largest number of permutations.

    Returns:
        None where a metric is not defined, or no unit can change sides.
    """
    random = np.random.default_rng(0)
    variances = None if influence is None else _estimate_variances(units, strata, influence)

    def measure(shuffled: NDArray[np.bool_]) -> tuple[Floats, Floats]:
        gap = _compute_gaps(compute, shuffled, units)
        return gap, np.ones_like(gap) if variances is None else _estimate_errors(shuffled, units, variances)

    parts = [measure(members[None])]
    for done in range(0, permutations, BLOCK):
        parts.append(measure(permute(members, strata, min(BLOCK, permutations - done), random)))
        if not done and (_count_exceeding(parts)[1] >= ENOUGH_EXCEEDING).all():
            break
    return _count_exceeding(parts)[0]


def _compute_gaps(compute: Compute, shuffled: NDArray[np.bool_], units: Ints) -> Floats:
    """Return each metric of the members minus that of the others, (P, M)."""
    rows = max(1, CHUNK // len(units))
    gaps = []
    for start in range(0, len(shuffled), rows):
        weights = shuffled[start : start + rows].take(units, axis=1).astype(np.float32)
        with np.errstate(invalid="ignore", divide="ignore"):
            gaps.append(compute(weights) - compute(1 - weights))
    return np.concatenate(gaps).astype(np.float64)


def _count_exceeding(parts: Sequence[tuple[Floats, Floats]]) -> tuple[list[float | None], Ints]:
    """Return the p value of each metric, and the number of permutations whose gap is as large as the observed one.

    `parts` has gaps and their standard errors, each (P, M); the first row of all is observed.
    """
    gap, error = map(np.concatenate, zip(*parts, strict=True))
    p_values: list[float | None] = []
    counts = np.full(gap.shape[1], len(gap))
    for place, values in enumerate(gap.T):
        defined = ~np.isnan(values)
        if not defined[0] or defined.sum() < len(gap) / 2 or np.ptp(values[defined]) < _TINY:
            p_values.append(None)
            continue
        distance = np.abs(values - values[defined].mean()) / error[:, place]
        counts[place] = (distance[1:][defined[1:]] >= distance[0] * (1 - _ROUNDING)).sum()
        p_values.append((1 + int(counts[place])) / int(defined.sum()))
    return p_values, counts


def _estimate_variances(units: Ints, strata: Ints, influence: Floats) -> Floats:
    """Return the variance of each unit's influence, (U, M), as a function of its number of images in its stratum.

    With the squares of the units themselves, a subgroup without any error would have too small a standard error by
    chance.
    """
    sizes = np.bincount(units).astype(np.float64)
    return np.stack([_fit_variance(column**2, sizes, strata) for column in influence.T], axis=1)


def _estimate_errors(shuffled: NDArray[np.bool_], units: Ints, variances: Floats) -> Floats:
    """Return the standard error of each gap up to a factor, (P, M), from the sizes of the units on either side."""
    sizes = np.bincount(units).astype(np.float64)
    weights = np.where(variances > 0, sizes[:, None], 0)  # of the units that the metric depends on
    weights = weights / np.maximum(weights.sum(axis=0), _TINY)
    inside = shuffled.astype(np.float64)
    fraction = inside @ weights
    with np.errstate(invalid="ignore", divide="ignore"):
        variance = inside @ variances / fraction**2 + (1 - inside) @ variances / (1 - fraction) ** 2
    errors: Floats = np.sqrt(np.nan_to_num(variance, posinf=0))
    return np.where(errors > _TINY, errors, 1.0)


def _fit_variance(squares: Floats, sizes: Floats, strata: Ints) -> Floats:
    """Return the expected square of each unit, (U,), fitted in each stratum as a sum of its size and its square.

    Images of a unit of size m with the correlation r have a sum with a variance in proportion to m + r m (m - 1).
    """
    from scipy.optimize import nnls

    fitted = np.zeros(len(sizes))
    columns = np.stack([sizes, sizes**2], axis=1)
    for stratum in np.unique(strata):
        rows = strata == stratum
        fitted[rows] = columns[rows] @ nnls(columns[rows], squares[rows])[0]
    return fitted
