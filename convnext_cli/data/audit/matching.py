"""Pairs of images that share keypoints: of one, the other may be a crop, or a turned, zoomed or shifted copy."""

import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.audit.alignment import Transform
from convnext_cli.data.audit.candidates import find_similar
from convnext_cli.data.audit.keypoints import KEYPOINTS, MIRRORED, SIDE
from convnext_cli.progress import Progress, Steps

MAX_SEED_DISTANCE = 6  # bits of 64, of the first keypoint that two images have in common
FAST_SEED_DISTANCE = 4  # bits, for more than `MANY_SEEDS`; faster, and some copies are missed
MANY_SEEDS = 100_000  # keypoints of all images
MAX_DISTANCE = 12  # bits, of those that may agree with it
MAX_ALIKE_DISTANCE = 10  # bits, of the keypoints that are counted first, which is fast
MIN_ALIKE = 4  # of these keypoints
MAX_SEEDS = 700_000  # keypoints of all images that are compared with one another
SAMPLE = 100  # images, in which common keypoints are counted
MIN_SAMPLE = 30
MAX_COMMON = 0.25  # fraction of these images
MAX_SEEDED = 500_000  # pairs of images; more have one background, or show one object
MAX_MATCHED = 30_000  # pairs of images whose keypoints are matched: those with most that are alike
MIN_SHARED = 6  # keypoints that agree on how the image was moved
MAX_MISS = 2.5  # px, from the place to which the transform maps a keypoint
MAX_CHANGE = 0.45  # of the logarithm of zoom and angle, in radians
_GATHER = 2000  # pairs at a time
_ROUGH = 4.0, 0.15  # px, and fraction of the distance, by which a keypoint may miss the place that another one gives
_FITS = 2


@dataclass(frozen=True, slots=True)
class Match:
    """Two images that share keypoints."""

    pair: tuple[int, int]
    is_mirrored: bool
    """True if the second image has to be mirrored first."""
    shared: int
    """Number of keypoints that agree on the transform."""
    transform: Transform
    """From the first image to the second."""


def find_matches(
    keypoints: NDArray[np.void], widths: NDArray[np.int64], rows: NDArray[np.int64], against: NDArray[np.int64]
) -> Steps[tuple[list[Match], int]]:
    """Return the pairs of images that share keypoints, the best first, and at least how many pairs were left out.

    They share them as they are, or with the second one mirrored.

    Args:
        keypoints: (N, KEYPOINTS), of all images.
        widths: (N,), of all images at the size at which keypoints are found.
        rows: the images to compare.
        against: the images with which each is compared; the same or others.
    """
    matches, left_out = [], 0
    keypoints = _drop_common(keypoints, np.union1d(rows, against))
    for is_mirrored in (False, True):
        others = _mirror(keypoints, widths) if is_mirrored else keypoints
        pairs = yield from _find_seeded(keypoints, others, rows, against)
        left_out += len(pairs) > MAX_SEEDED
        alike = yield from _count_alike(keypoints, others, pairs)
        best = np.argsort(-alike, kind="stable")[: (alike >= MIN_ALIKE).sum()]
        left_out += max(0, len(best) - MAX_MATCHED)
        for place, (one, two) in enumerate(pairs[best[:MAX_MATCHED]].tolist()):
            if match := _match(keypoints[one], others[two]):
                matches.append(Match((one, two), is_mirrored, *match))
            if place % _GATHER == 0:
                yield Progress(done=place, total=min(len(best), MAX_MATCHED), activity="keypoints matched")
    return sorted(matches, key=lambda match: -match.shared), left_out


def _drop_common(keypoints: NDArray[np.void], rows: NDArray[np.int64]) -> NDArray[np.void]:
    """Return the keypoints without those that many images of a sample have: of a common background, or a scanner."""
    sample = rows[:: max(1, len(rows) // SAMPLE)]
    if len(sample) < MIN_SAMPLE:
        return keypoints
    hashes = keypoints["hash"][rows].ravel()
    counts = np.zeros(len(hashes), np.int64)
    for places in find_similar(keypoints["hash"][sample].ravel(), hashes, FAST_SEED_DISTANCE):
        counts += np.bincount(places[:, 1], minlength=len(hashes))
    rest = keypoints.copy()
    rest["exists"][rows] &= (counts <= MAX_COMMON * len(sample)).reshape(len(rows), -1)
    return rest


def list_widths(widths: NDArray[np.uint32], heights: NDArray[np.uint32]) -> NDArray[np.int64]:
    """Return the widths of images, (N,), at the size at which keypoints are found."""
    scaled = np.round(widths * (SIDE / np.maximum(np.maximum(widths, heights), 1)))
    return np.maximum(16, scaled).astype(np.int64)


def _mirror(keypoints: NDArray[np.void], widths: NDArray[np.int64]) -> NDArray[np.void]:
    """Return the keypoints, (N, KEYPOINTS), of the mirrored images."""
    mirrored = keypoints.copy()
    mirrored["x"] = np.maximum(widths[:, None] - 1 - keypoints["x"].astype(np.int64), 0)
    mirrored["angle"] = (128 - keypoints["angle"].astype(np.int64)) % 256
    mirrored["hash"] = keypoints["hash"] ^ MIRRORED
    return mirrored


def _find_seeded(
    keypoints: NDArray[np.void], others: NDArray[np.void], rows: NDArray[np.int64], against: NDArray[np.int64]
) -> Steps[NDArray[np.int64]]:
    """Return the pairs of rows with a keypoint in common, (P, 2), sorted; no others once they are too many."""
    strongest = int(np.clip(MAX_SEEDS / math.sqrt(max(1, len(rows) * len(against))), 1, KEYPOINTS))

    def list_seeds(keypoints: NDArray[np.void], rows: NDArray[np.int64]) -> tuple[NDArray[np.void], NDArray[np.int64]]:
        seeds = keypoints[rows, :strongest].ravel()
        is_real = np.flatnonzero(seeds["exists"])
        return seeds[is_real], np.repeat(rows, strongest)[is_real]

    (ones, owners), (twos, other_owners) = list_seeds(keypoints, rows), list_seeds(others, against)
    is_same = others is keypoints and against is rows
    hashes = ones["hash"].copy()
    distance = MAX_SEED_DISTANCE if len(ones) * len(twos) <= MANY_SEEDS**2 else FAST_SEED_DISTANCE
    pairs = [np.empty((0, 2), np.int64)]
    for places in find_similar(hashes, hashes if is_same else twos["hash"].copy(), distance):
        one, two = places.T
        is_near = np.abs(ones["octave"][one] - twos["octave"][two]) <= 1
        owned = np.stack([owners[one], other_owners[two]], axis=1)[is_near]
        pairs.append(np.unique(np.sort(owned[owned[:, 0] != owned[:, 1]], axis=1), axis=0))
        if sum(map(len, pairs)) > 2 * MAX_SEEDED:
            pairs = [np.unique(np.concatenate(pairs), axis=0)]
            if len(pairs[0]) > MAX_SEEDED:
                break
        yield Progress(done=0, total=1, activity="searching for crops and turned copies")
    return np.unique(np.concatenate(pairs), axis=0)


def _count_alike(
    keypoints: NDArray[np.void], others: NDArray[np.void], pairs: NDArray[np.int64]
) -> Steps[NDArray[np.int64]]:
    """Return how many keypoints of the first image of each pair have one alike in the second, (P,)."""
    counts = [np.empty(0, np.int64)]
    left = np.where(keypoints["exists"], keypoints["hash"], np.uint64(0))
    right = np.where(others["exists"], others["hash"], ~np.uint64(0))  # none is alike
    for start in range(0, len(pairs), _GATHER):
        one, two = pairs[start : start + _GATHER].T
        is_alike = np.bitwise_count(left[one][:, :, None] ^ right[two][:, None, :]) <= MAX_ALIKE_DISTANCE
        counts.append(is_alike.any(axis=2).sum(axis=1))
        yield Progress(done=start + len(one), total=len(pairs), activity="keypoints compared")
    return np.concatenate(counts)


def _match(ones: NDArray[np.void], twos: NDArray[np.void]) -> tuple[int, Transform] | None:
    """Return the number of keypoints that agree on how one image was moved to another, and that transform.

    Two keypoints alike give a similarity transform each: from place, size and angle of both. The one with which most
    others agree is fitted to these, and then to those that it maps to their place.

    Returns:
        None if fewer than `MIN_SHARED` agree.
    """
    ones, twos = ones[ones["exists"] > 0], twos[twos["exists"] > 0]
    first, second = np.nonzero(np.bitwise_count(ones["hash"][:, None] ^ twos["hash"][None]) <= MAX_DISTANCE)
    if len(first) < MIN_SHARED:
        return None
    ones, twos = ones[first], twos[second]
    start, end = (points["x"] + 1j * points["y"] for points in (ones, twos))
    angles = (twos["angle"].astype(np.float64) - ones["angle"]) * (np.pi / 128)
    octaves = twos["octave"].astype(np.float64) - ones["octave"]
    factors = np.exp(octaves * np.log(2) + 1j * angles)
    offsets = start[None] - start[:, None]
    misses = np.abs(end[:, None] + factors[:, None] * offsets - end[None])
    change = np.abs(np.log(factors[:, None] / factors[None]))
    agrees = (misses <= _ROUGH[0] + _ROUGH[1] * np.abs(offsets)) & (change <= MAX_CHANGE)
    best = agrees[agrees.sum(axis=1).argmax()]
    if len(np.unique(start[best])) < MIN_SHARED - 1:
        return None
    for _ in range(_FITS):
        factor, shift = _fit(start[best], end[best])
        if factor == 0:  # all of them at one point
            return None
        change = np.abs(np.log(factors / factor))
        best = (np.abs(factor * start + shift - end) <= MAX_MISS) & (change <= MAX_CHANGE)
        if (shared := len(np.unique(first[best]))) < MIN_SHARED:
            return None
    factor, shift = _fit(start[best], end[best])
    return shared, np.array([[factor.real, -factor.imag, shift.real], [factor.imag, factor.real, shift.imag]])


def _fit(start: NDArray[np.complex128], end: NDArray[np.complex128]) -> tuple[np.complex128, np.complex128]:
    """Return factor and shift of the similarity transform that maps points nearest to others, by least squares."""
    source, target = start - start.mean(), end - end.mean()
    factor = (source.conj() * target).sum() / max((np.abs(source) ** 2).sum(), 1e-6)
    return factor, end.mean() - factor * start.mean()
