"""Candidates for near-duplicates: pairs of images with similar hashes and correlated thumbnails."""

from collections.abc import Iterator
from dataclasses import dataclass
from itertools import pairwise, product
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.audit.measurements import THUMB
from convnext_cli.data.audit.perceptual import hash_images
from convnext_cli.images.raster import orient

MAX_DISTANCE = 8  # bits of 64 in which the hashes of near-duplicates may differ
ORIENTATIONS = range(2, 9)  # of EXIF: mirrored or turned
MAX_ORIENTED_DISTANCE = 4  # bits, of hashes of thumbnails
MIN_THUMB_CORRELATION = 0.95
MAX_CANDIDATES = 200_000  # pairs to decode again; those whose thumbnails correlate most are taken
MAX_EACH = 30  # of these for each image, on average
_MATRIX_GAIN = 20  # times that a matrix product is faster per pair
_BLOCK = 1024
_GATHER = 100_000  # pairs of thumbnails at a time
_LARGE = 4096  # pairs of two buckets; above it, blocks are faster than single pairs

_Correlated: TypeAlias = tuple[NDArray[np.int64], NDArray[np.float32]]
"""Pairs of different rows whose thumbnails correlate, (P, 2), and their correlations, (P,)."""


@dataclass(frozen=True, slots=True)
class _Buckets:
    """Items in order of a key, those with one key together."""

    items: NDArray[np.int64]
    keys: NDArray[np.unsignedinteger[Any]]
    """The unique keys."""
    starts: NDArray[np.int64]
    """The place in `items` of the first item with each key."""
    sizes: NDArray[np.int64]
    """The number of items with each key."""

    def select(self, bucket: int) -> NDArray[np.int64]:
        """Return the items of one key."""
        return self.items[self.starts[bucket] :][: self.sizes[bucket]]


@dataclass(frozen=True, slots=True)
class Hashed:
    """Images, to be compared by their hashes."""

    thumbs: NDArray[np.uint8]
    """(N, THUMB, THUMB), of all images."""
    hashes: NDArray[np.uint64]
    """(N,), of all images."""
    rows: NDArray[np.int64]
    """The images to compare."""


def orient_thumbs(thumbs: NDArray[np.uint8], orientation: int) -> NDArray[np.uint8]:
    """Return thumbnails, (N, THUMB, THUMB), mirrored or turned by an EXIF orientation. They are not copied."""
    return np.moveaxis(orient(np.moveaxis(thumbs, 0, 2), orientation), 2, 0)


def hash_thumbs(thumbs: NDArray[np.uint8]) -> NDArray[np.uint64]:
    """Return the hashes of thumbnails, (N,), a part at a time: intermediate values are 1,000 bytes each."""
    parts = range(0, len(thumbs), _BLOCK)
    return np.concatenate([np.empty(0, np.uint64), *(hash_images(thumbs[start : start + _BLOCK]) for start in parts)])


def find_candidates(left: Hashed, right: Hashed, max_distance: int, budget: int) -> tuple[NDArray[np.int64], int]:
    """Return the pairs of a row of `left` and another of `right` that may show one image, and the number left out.

    Every image is compared with every image with the same or a similar hash, so that an unlike image with the same
    hash hides no pair. If many images share a hash, matrix products compare their thumbnails. If `left` is `right`,
    each pair is sorted and found once.

    Args:
        left: images.
        right: the same images, or turned ones in the same order.
        max_distance: bits in which two hashes may differ.
        budget: pairs of thumbnails to compare; the others are left out.
    """
    ones, twos = (_sort_into_buckets(side.hashes[side.rows], side.rows) for side in (left, right))
    correlated = [_correlate(left, right, np.empty((0, 2), np.int64))]
    unchecked = 0
    for similar in find_similar(ones.keys, ones.keys if left is right else twos.keys, max_distance):
        one, two = similar.T
        work = ones.sizes[one] * twos.sizes[two]
        is_itself = (work == 1) & (ones.items[ones.starts[one]] == twos.items[twos.starts[two]])
        places, work = similar[~is_itself], work[~is_itself]
        is_large = work > _LARGE
        cost = np.where(is_large, work // _MATRIX_GAIN, work)
        fits = np.cumsum(cost) <= budget
        budget -= int(cost[fits].sum())
        unchecked += int(work[~fits].sum())
        for place, other in places[fits & is_large].tolist():
            correlated += _correlate_sets(left, ones.select(place), right, twos.select(other))
        correlated += [_correlate(left, right, pairs) for pairs in _pair_items(ones, twos, places[fits & ~is_large])]
    pairs, correlations = map(np.concatenate, zip(*correlated, strict=True))
    pairs, first = np.unique(np.sort(pairs, axis=1) if left is right else pairs, axis=0, return_index=True)
    limit = min(MAX_CANDIDATES, MAX_EACH * len(left.rows))
    likest = np.sort(np.argsort(-correlations[first], kind="stable")[:limit])
    return pairs[likest], unchecked + len(pairs) - len(likest)


def find_similar(
    left: NDArray[np.uint64], right: NDArray[np.uint64], max_distance: int = MAX_DISTANCE
) -> Iterator[NDArray[np.int64]]:
    """Yield the places of a hash of `left` and one of `right` that differ in at most `max_distance` bits, (P, 2).

    Cut into one piece more than bits may differ, two such hashes have an equal piece. So only pairs that share a piece
    are compared. Each pair is yielded once, with the first piece that it shares; if `left` is `right`, sorted.
    """
    edges = np.linspace(0, 64, max_distance + 2).astype(np.uint64)
    masks = [(low, (np.uint64(1) << (high - low)) - np.uint64(1)) for low, high in pairwise(edges)]
    for number, (shift, mask) in enumerate(masks):
        pieces = (((hashes >> shift) & mask).astype(np.uint16) for hashes in (left, right))  # which sort faster
        ones, twos = (_sort_into_buckets(piece, np.arange(len(piece))) for piece in pieces)
        for pairs in _list_pairs(left, ones, right, twos, max_distance):
            differs = left[pairs[:, 0]] ^ right[pairs[:, 1]]
            is_new = np.bitwise_count(differs) <= max_distance
            if left is right:
                is_new &= pairs[:, 0] <= pairs[:, 1]
            for other, bits in masks[:number]:
                is_new &= ((differs >> other) & bits) != 0
            yield pairs[is_new]


def _sort_into_buckets(keys: NDArray[np.unsignedinteger[Any]], items: NDArray[np.int64]) -> _Buckets:
    order = np.argsort(keys, kind="stable")
    return _Buckets(items[order], *np.unique(keys[order], return_index=True, return_counts=True))


def _pair_items(left: _Buckets, right: _Buckets, places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """Yield the pairs of items of pairs of buckets, (P, 2), `_GATHER` at a time."""
    one, two = places.T
    work = left.sizes[one] * right.sizes[two]
    ends = np.cumsum(work)
    for start in range(0, int(work.sum()), _GATHER):
        numbers = np.arange(start, min(start + _GATHER, ends[-1]))
        pair = np.searchsorted(ends, numbers, side="right")
        ones, twos = np.divmod(numbers - (ends - work)[pair], right.sizes[two[pair]])
        first, second = left.items[left.starts[one[pair]] + ones], right.items[right.starts[two[pair]] + twos]
        yield np.stack([first, second], axis=1)


def _list_pairs(
    left: NDArray[np.uint64], ones: _Buckets, right: NDArray[np.uint64], twos: _Buckets, max_distance: int
) -> Iterator[NDArray[np.int64]]:
    """Yield pairs of places of hashes with one piece, (P, 2); of large buckets only the similar ones."""
    _, *shared = np.intersect1d(ones.keys, twos.keys, assume_unique=True, return_indices=True)
    places = np.stack(shared, axis=1)
    is_large = ones.sizes[places[:, 0]] * twos.sizes[places[:, 1]] > _LARGE
    for one, two in places[is_large].tolist():
        for first, second in product(_cut(ones.select(one)), _cut(twos.select(two))):
            near, other = np.nonzero(np.bitwise_count(left[first][:, None] ^ right[second][None]) <= max_distance)
            yield np.stack([first[near], second[other]], axis=1)
    yield from _pair_items(ones, twos, places[~is_large])


def _correlate(left: Hashed, right: Hashed, pairs: NDArray[np.int64]) -> _Correlated:
    """Return those of some pairs, (P, 2), that correlate."""
    first, second = (normalise_thumbs(side.thumbs[rows]) for side, rows in zip((left, right), pairs.T, strict=True))
    correlations: NDArray[np.float32] = (first * second).sum(axis=1)
    is_alike = (correlations >= MIN_THUMB_CORRELATION) & (pairs[:, 0] != pairs[:, 1])
    return pairs[is_alike], correlations[is_alike]


def _correlate_sets(
    left: Hashed, ones: NDArray[np.int64], right: Hashed, twos: NDArray[np.int64]
) -> Iterator[_Correlated]:
    """Yield those of the pairs of two sets that correlate."""
    for first in _cut(ones):
        thumbs = normalise_thumbs(left.thumbs[first])
        for second in _cut(twos):
            correlations = thumbs @ normalise_thumbs(right.thumbs[second]).T
            is_alike = (correlations >= MIN_THUMB_CORRELATION) & (first[:, None] != second)
            one, two = (part[: 2 * MAX_CANDIDATES] for part in np.nonzero(is_alike))
            yield np.stack([first[one], second[two]], axis=1), correlations[one, two]


def _cut(items: NDArray[np.int64]) -> list[NDArray[np.int64]]:
    return [items[start : start + _BLOCK] for start in range(0, len(items), _BLOCK)]


def normalise_thumbs(thumbs: NDArray[np.number]) -> NDArray[np.float32]:
    """Return thumbnails as vectors of mean 0 and length 1, (N, THUMB * THUMB); the product of two correlates them."""
    vectors = thumbs.reshape(len(thumbs), THUMB * THUMB).astype(np.float32)
    vectors -= vectors.mean(axis=1, keepdims=True)
    scaled: NDArray[np.float32] = vectors / np.maximum(np.linalg.norm(vectors, axis=1, keepdims=True), 1e-3)
    return scaled


def find_alike(thumbs: NDArray[np.uint8], members: NDArray[np.uint8]) -> NDArray[np.bool_]:
    """Return true for thumbnails, (N, THUMB, THUMB), that correlate with the mean of the members of a set."""
    mean = normalise_thumbs(members.mean(axis=0)[None])[0]
    is_alike: NDArray[np.bool_] = normalise_thumbs(thumbs) @ mean >= MIN_THUMB_CORRELATION
    return is_alike
