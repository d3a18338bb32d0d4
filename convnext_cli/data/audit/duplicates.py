"""Duplicates and near-duplicates: the same image stored twice, exactly, saved again, or scaled."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_cli.data.audit.measurements import THUMB, Measurements
from convnext_cli.data.index import Index, group_by
from convnext_cli.data.joined_rows import JoinedRows, join_rows
from convnext_cli.errors import ImageError
from convnext_cli.images.decode import decode_image
from convnext_cli.machine import count_process_cpus
from convnext_cli.progress import Progress, Steps

MAX_DISTANCE = 8  # bits of 64 in which the hashes of near-duplicates may differ
MIN_THUMB_CORRELATION = 0.95
MIN_CORRELATION = 0.97  # of the pixels at 32 x 32
MAX_DIFFERENCE = 8.0  # grey levels, mean absolute difference
MAX_COARSE = 1.25  # grey levels, root mean square over 16 x 16; JPEG at quality 40 differs by at most 0.95
MIN_DETAIL = 0.75  # correlation of what 64 x 64 pixels show beyond 16 x 16; JPEG at quality 40 has at least 0.92
DETAIL_FLOOR = 2.0  # grey levels; weaker detail is compression noise
MAX_COMPARED = 50_000_000  # pairs of thumbnails, compared one by one
_MATRIX_GAIN = 20  # times that a matrix product is faster per pair
MAX_CANDIDATES = 200_000  # pairs to decode again; the nearest are taken
MAX_CHAIN = 0.1  # fraction of the images that one set of very similar images may have
_SIDE, _FINE, _COARSE = 32, 64, 16  # px
_BLOCK = 1024
_GATHER = 100_000  # pairs of thumbnails at a time
_MATRIX = 4096  # images with one hash times images with another: above it, a matrix product is faster

Likeness = Literal["near", "similar"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Rows that show the same image, or very similar ones."""

    exact: tuple[tuple[int, ...], ...]
    """Duplicates: sets of rows with equal pixels."""
    similar: tuple[tuple[int, int], ...]
    """Pairs of rows with two very similar images, such as neighbouring slices or frames."""
    clusters: tuple[tuple[int, ...], ...]
    """Sets of rows that show the same image: duplicates and near-duplicates."""
    duplicate_sets: tuple[tuple[int, ...], ...]
    """Sets of rows to keep in one split: `clusters`, joined by very similar images, unless these chain to a tenth of
    all images."""
    unchecked: int
    """Number of pairs with similar hashes that were too many to compare."""


def find_duplicates(index: Index, measurements: Measurements) -> Steps[Duplicates]:
    """Find duplicates, near-duplicates and very similar images.

    Duplicates have the same pixels after decoding. Candidates for near-duplicates have perceptual hashes at most
    `MAX_DISTANCE` bits apart and thumbnails that correlate. Candidates are decoded again. Two with nearly the same
    pixels at 32 x 32 are very similar. They are near-duplicates (one image saved again or scaled) if they also have the
    same grey values at 16 x 16 and the same detail beyond these. Two slices or frames differ in one of the two.
    """
    readable = np.flatnonzero(measurements.measures["readable"])
    digests = list(map(tuple, measurements.measures["digest"].tolist()))
    exact = tuple(tuple(same) for same in group_by(readable.tolist(), digests.__getitem__).values() if len(same) > 1)
    rows = np.setdiff1d(readable, [row for cluster in exact for row in cluster[1:]])
    pairs, unchecked = _find_candidates(measurements, rows)
    links = [(cluster[0], row) for cluster in exact for row in cluster[1:]]
    similar: list[tuple[int, int]] = []
    joined = JoinedRows()
    with ThreadPoolExecutor(count_process_cpus(), thread_name_prefix="compare") as pool:
        load = lru_cache(maxsize=4096)(partial(_shrink, index))

        def compare(pair: tuple[int, int]) -> Likeness | None:
            one, two = load(pair[0]), load(pair[1])
            return None if one is None or two is None else compare_images(one, two)

        for start in range(0, len(pairs), _BLOCK):  # a future for each pair at once would outweigh the images
            block = [
                (one, two)
                for one, two in pairs[start : start + _BLOCK].tolist()
                if joined.find(one) != joined.find(two)
            ]
            for pair, kind in zip(block, pool.map(compare, block), strict=True):
                if kind == "near":
                    links.append(pair)
                    joined.join(*pair)
                elif kind == "similar":
                    similar.append(pair)
            yield Progress(done=start + len(block), total=len(pairs), activity="similar images compared")
    clusters = join_rows(links)
    # If two near-duplicates are similar to a third image, one pair is enough.
    similar = [(one, two) for one, two in similar if joined.find(one) != joined.find(two)]
    duplicate_sets = join_rows([*links, *similar])
    if max(map(len, duplicate_sets), default=0) > max(2, MAX_CHAIN * len(index)):
        duplicate_sets = clusters
    return Duplicates(
        exact=exact, similar=tuple(similar), clusters=clusters, duplicate_sets=duplicate_sets, unchecked=unchecked
    )


def find_similar(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Yield pairs of positions in unique `hashes` that differ in at most `MAX_DISTANCE` bits, (P, 2) at a time.

    At least one of nine pieces of the hash is then equal (8 < 9), so only pairs that share a piece are compared. Each
    pair is yielded once, with the first piece that it shares.
    """
    masks = [(np.uint64(shift), np.uint64(255 if shift == 56 else 127)) for shift in range(0, 63, 7)]
    for place, (shift, mask) in enumerate(masks):
        piece = ((hashes >> shift) & mask).astype(np.uint8)
        by_piece = np.argsort(piece, kind="stable")
        for bucket in np.split(by_piece, np.flatnonzero(np.diff(piece[by_piece])) + 1):
            for pairs in _compare_bucket(hashes, np.sort(bucket)):
                differs = hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]]
                earlier = np.zeros(len(pairs), bool)
                for other, bits in masks[:place]:
                    earlier |= ((differs >> other) & bits) == 0
                yield pairs[~earlier]


def _compare_bucket(hashes: NDArray[np.uint64], places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    for start in range(0, len(places), _BLOCK):
        left = places[start : start + _BLOCK]
        for other in range(start, len(places), _BLOCK):
            right = places[other : other + _BLOCK]
            one, two = np.nonzero(np.bitwise_count(hashes[left][:, None] ^ hashes[right][None]) <= MAX_DISTANCE)
            keep = left[one] < right[two]
            yield np.stack([left[one[keep]], right[two[keep]]], axis=1)


def _find_candidates(measurements: Measurements, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """Return the pairs of rows with similar hashes and correlated thumbnails, and the number of pairs left out.

    Every image with a hash is compared with every image with the same or a similar hash, so that an unlike image with
    the same hash hides no pair. If many images share a hash, matrix products compare their thumbnails.
    """
    hashes = measurements.measures["hash"]
    rows = rows[np.argsort(hashes[rows], kind="stable")]
    unique, starts, sizes = np.unique(hashes[rows], return_index=True, return_counts=True)
    same = np.flatnonzero(sizes > 1)
    candidates = [np.empty((0, 2), np.int64)]
    budget, unchecked = MAX_COMPARED, 0
    for places in chain([np.stack([same, same], axis=1)], find_similar(unique)):
        work = sizes[places].prod(axis=1)
        is_large = work > _MATRIX
        cost = np.where(is_large, work // _MATRIX_GAIN, work)
        fits = np.cumsum(cost) <= budget
        budget -= int(cost[fits].sum())
        unchecked += int(work[~fits].sum())
        for pair in places[fits & is_large]:
            one, two = (rows[starts[place] :][: sizes[place]] for place in pair)
            candidates += _correlate_sets(measurements, one, two)
        for members in _pair_members(starts, sizes, places[fits & ~is_large]):
            pairs = np.sort(rows[members], axis=1)
            candidates.append(pairs[_correlate(measurements, pairs[:, 0], pairs[:, 1]) >= MIN_THUMB_CORRELATION])
    pairs = np.unique(np.concatenate(candidates), axis=0)
    bits = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
    nearest = np.sort(np.argsort(bits, kind="stable")[:MAX_CANDIDATES])
    return pairs[nearest], unchecked + len(pairs) - len(nearest)


def _pair_members(
    starts: NDArray[np.int64], sizes: NDArray[np.int64], sets: NDArray[np.int64]
) -> Iterator[NDArray[np.int64]]:
    """Yield the pairs of a member of one set and a member of another, (P, 2), about `_GATHER` at a time.

    Args:
        starts: the first member of each set; the members of a set are consecutive numbers.
        sizes: of each set.
        sets: pairs of sets, the first before the second, or of one set with itself.
    """
    ends = np.cumsum(sizes[sets].prod(axis=1))
    for block in np.split(sets, np.flatnonzero(np.diff(ends // _GATHER)) + 1):
        one, two = block.T
        pair, left = _count_up(starts[one], sizes[one])
        member, right = _count_up(starts[two[pair]], sizes[two[pair]])
        members = np.stack([left[member], right], axis=1)
        yield members[members[:, 0] < members[:, 1]]  # each pair within one set once


def _count_up(starts: NDArray[np.int64], lengths: NDArray[np.int64]) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return `lengths[i]` consecutive numbers from `starts[i]`, for each i in turn; i first, then the numbers."""
    place = np.repeat(np.arange(len(starts)), lengths)
    return place, np.arange(len(place)) + (starts - np.cumsum(lengths) + lengths)[place]


def _correlate_sets(
    measurements: Measurements, one: NDArray[np.int64], two: NDArray[np.int64]
) -> list[NDArray[np.int64]]:
    """Return the pairs of a row of each set whose thumbnails correlate, (P, 2) at a time, each once."""

    def normalise(rows: NDArray[np.int64]) -> NDArray[np.float32]:
        thumbs = measurements.measures["thumb"][rows].reshape(len(rows), THUMB * THUMB).astype(np.float32)
        thumbs -= thumbs.mean(axis=1, keepdims=True)
        scaled: NDArray[np.float32] = thumbs / np.maximum(np.linalg.norm(thumbs, axis=1, keepdims=True), 1e-3)
        return scaled

    correlated = []
    for start in range(0, len(one), _BLOCK):
        left = normalise(one[start : start + _BLOCK])
        for other in range(0, len(two), _BLOCK):
            a, b = np.nonzero(left @ normalise(two[other : other + _BLOCK]).T >= MIN_THUMB_CORRELATION)
            pairs = np.stack([one[start + a], two[other + b]], axis=1)
            pairs = np.unique(np.sort(pairs[pairs[:, 0] != pairs[:, 1]], axis=1), axis=0)
            correlated.append(pairs[: 2 * MAX_CANDIDATES])
    return correlated


def _correlate(measurements: Measurements, one: NDArray[np.int64], two: NDArray[np.int64]) -> NDArray[np.float32]:
    """Return the correlation of the thumbnails of each pair of rows, (P,)."""
    thumbs = measurements.measures["thumb"]
    first, second = (thumbs[rows].reshape(len(rows), THUMB * THUMB).astype(np.float32) for rows in (one, two))
    first -= first.mean(axis=1, keepdims=True)
    second -= second.mean(axis=1, keepdims=True)
    norm = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    correlation: NDArray[np.float32] = (first * second).sum(axis=1) / np.maximum(norm, 1e-6)
    return correlation


@dataclass(frozen=True, slots=True)
class Shrunk:
    """An image at the small sizes used for comparison."""

    colour: NDArray[np.uint8]
    """(32, 32, 3)"""
    coarse: NDArray[np.float32]
    """(16, 16) grey values minus their mean."""
    detail: NDArray[np.float32]
    """(64, 64) grey values minus those of 16 x 16 pixels."""


def shrink(image: Image.Image) -> Shrunk:
    """Return an RGB image at the sizes used for comparison."""
    colour = np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX))
    fine = np.asarray(image.convert("L").resize((_FINE, _FINE), Image.Resampling.BILINEAR), dtype=np.float32)
    factor = _FINE // _COARSE
    coarse = fine.reshape(_COARSE, factor, _COARSE, factor).mean(axis=(1, 3))
    return Shrunk(colour, coarse - coarse.mean(), fine - coarse.repeat(factor, axis=0).repeat(factor, axis=1))


def _shrink(index: Index, row: int) -> Shrunk | None:
    """Return a row's image; None if it cannot be read."""
    try:
        return shrink(Image.fromarray(decode_image(index.root / index.paths[row], at_least=4 * _SIDE)))
    except ImageError:
        return None


def compare_images(first: Shrunk, second: Shrunk) -> Likeness | None:
    """Return `near` for one image saved in two ways, `similar` for two very similar images, else None."""
    one, two = first.colour.astype(np.float32), second.colour.astype(np.float32)
    difference = np.abs(one - two).mean()
    one, two = one - one.mean(), two - two.mean()
    norm = np.sqrt((one**2).sum() * (two**2).sum())
    if difference > MAX_DIFFERENCE or not (one * two).sum() >= MIN_CORRELATION * norm > 0:
        return None
    floor = DETAIL_FLOOR**2
    variances = [(shrunk.detail**2).mean() + floor for shrunk in (first, second)]
    detail = ((first.detail * second.detail).mean() + floor) / np.sqrt(variances[0] * variances[1])
    is_same = detail >= MIN_DETAIL and ((first.coarse - second.coarse) ** 2).mean() <= MAX_COARSE**2
    return "near" if is_same else "similar"
