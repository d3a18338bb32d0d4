"""The same picture twice: exactly, or saved again, or scaled."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_cli.data.audit.inspection import THUMB, Inspection
from convnext_cli.data.decode import decode_image
from convnext_cli.data.scan import Index, join_rows
from convnext_cli.errors import ImageError
from convnext_cli.progress import Progress

MAX_DISTANCE = 8  # bits of 64 in which the hashes of near duplicates may differ
MIN_THUMB_CORRELATION = 0.95
MIN_CORRELATION = 0.97  # of the pixels at 32 x 32
MAX_DIFFERENCE = 8.0  # grey levels on average
MAX_CANDIDATES = 200_000  # pairs that are decoded again; the nearest are taken
_SIDE = 32  # px
_BLOCK = 1024


@dataclass(frozen=True, kw_only=True, slots=True)
class Duplicates:
    """Which rows show the same picture."""

    exact: tuple[tuple[int, ...], ...]
    """Clusters of rows with equal pixels."""
    near: tuple[tuple[int, int], ...]
    """Pairs of rows, each the first of its exact cluster, that show the same picture differently saved."""
    clusters: tuple[tuple[int, ...], ...]
    """Both together: rows that are one picture."""
    unchecked: int
    """Pairs with similar hashes that were too many to compare."""


def find_duplicates(index: Index, found: Inspection, *, threads: int) -> Iterator[Progress | Duplicates]:
    """Yields progress, then the duplicates.

    Exact ones have the same pixels after decoding. Near ones have perceptual hashes at most `MAX_DISTANCE` bits apart,
    and then, decoded again, nearly the same pixels at 32 x 32: a picture saved again or scaled, not a similar one.
    """
    readable = np.flatnonzero(found.measures["readable"])
    exact = _group_equal(found, readable)
    rows = np.setdiff1d(readable, [row for cluster in exact for row in cluster[1:]])
    pairs, unchecked = _find_candidates(found, rows)
    near: list[tuple[int, int]] = []
    with ThreadPoolExecutor(threads, thread_name_prefix="compare") as pool:
        load = lru_cache(maxsize=4096)(partial(_shrink, index))

        def compare(pair: NDArray[np.int64]) -> bool:
            one, two = load(int(pair[0])), load(int(pair[1]))
            return one is not None and two is not None and is_same_picture(one, two)

        for start in range(0, len(pairs), _BLOCK):  # a future for each pair at once would outweigh the images
            block = pairs[start : start + _BLOCK]
            near += [(int(one), int(two)) for one, two in block[list(pool.map(compare, block))]]
            yield Progress(done=start + len(block), total=len(pairs), what="similar pairs compared")
    links = [*near, *((cluster[0], row) for cluster in exact for row in cluster[1:])]
    yield Duplicates(exact=exact, near=tuple(near), clusters=join_rows(links), unchecked=unchecked)


def find_similar(hashes: NDArray[np.uint64]) -> Iterator[NDArray[np.int64]]:
    """Yields pairs of places whose hashes differ in at most `MAX_DISTANCE` bits, (P, 2) at a time; some come again.

    Of nine pieces of the hash at least one is then equal (8 < 9), so only pairs that share one are compared. Places
    with one hash in common are chained, one pair each: a thousand black pictures make a thousand pairs, not a million.
    """
    order = np.argsort(hashes, kind="stable")
    same = hashes[order[1:]] == hashes[order[:-1]]
    yield np.stack([order[:-1][same], order[1:][same]], axis=1)
    first = order[np.concatenate([[True], ~same])] if len(order) else order
    unique = hashes[first]
    for shift in range(0, 63, 7):
        piece = ((unique >> np.uint64(shift)) & np.uint64(255 if shift == 56 else 127)).astype(np.uint8)
        by_piece = np.argsort(piece, kind="stable")
        for bucket in np.split(by_piece, np.flatnonzero(np.diff(piece[by_piece])) + 1):
            for pairs in _compare_bucket(unique, np.sort(bucket)):
                yield first[pairs]


def _group_equal(found: Inspection, rows: NDArray[np.int64]) -> tuple[tuple[int, ...], ...]:
    digests = found.measures["digest"][rows]
    order = np.lexsort((rows, digests[:, 1], digests[:, 0]))
    digests = digests[order]
    same = np.concatenate([[False], (digests[1:] == digests[:-1]).all(axis=1), [False]])
    starts, ends = np.flatnonzero(~same[:-1] & same[1:]), np.flatnonzero(same[:-1] & ~same[1:]) + 1
    return tuple(sorted(tuple(rows[order[start:end]].tolist()) for start, end in zip(starts, ends, strict=True)))


def _compare_bucket(hashes: NDArray[np.uint64], places: NDArray[np.int64]) -> Iterator[NDArray[np.int64]]:
    """The similar pairs within a bucket."""
    for start in range(0, len(places), _BLOCK):
        left = places[start : start + _BLOCK]
        for other in range(start, len(places), _BLOCK):
            right = places[other : other + _BLOCK]
            one, two = np.nonzero(np.bitwise_count(hashes[left][:, None] ^ hashes[right][None]) <= MAX_DISTANCE)
            keep = left[one] < right[two]
            yield np.stack([left[one[keep]], right[two[keep]]], axis=1)


def _find_candidates(found: Inspection, rows: NDArray[np.int64]) -> tuple[NDArray[np.int64], int]:
    """The pairs of rows with similar hashes whose thumbnails agree too; and how many are left out as too many."""
    kept = [np.empty((0, 2), np.int64)]
    for places in find_similar(found.measures["hash"][rows]):
        pairs = np.sort(rows[places], axis=1)
        kept.append(pairs[_correlate(found, pairs[:, 0], pairs[:, 1]) >= MIN_THUMB_CORRELATION])
    pairs = np.unique(np.concatenate(kept), axis=0)
    hashes = found.measures["hash"]
    bits = np.bitwise_count(hashes[pairs[:, 0]] ^ hashes[pairs[:, 1]])
    nearest = np.sort(np.argsort(bits, kind="stable")[:MAX_CANDIDATES])
    return pairs[nearest], len(pairs) - len(nearest)


def _correlate(found: Inspection, one: NDArray[np.int64], two: NDArray[np.int64]) -> NDArray[np.float32]:
    thumbs = found.measures["thumb"]
    first, second = (thumbs[rows].reshape(len(rows), THUMB * THUMB).astype(np.float32) for rows in (one, two))
    first -= first.mean(axis=1, keepdims=True)
    second -= second.mean(axis=1, keepdims=True)
    norm = np.sqrt((first**2).sum(axis=1) * (second**2).sum(axis=1))
    correlation: NDArray[np.float32] = (first * second).sum(axis=1) / np.maximum(norm, 1e-6)
    return correlation


def _shrink(index: Index, row: int) -> NDArray[np.uint8] | None:
    """A row's image at 32 x 32 px; None where it cannot be read any more."""
    try:
        image = Image.fromarray(decode_image(index.root / index.paths[row], at_least=4 * _SIDE))
    except ImageError:
        return None
    return np.asarray(image.resize((_SIDE, _SIDE), Image.Resampling.BOX))


def is_same_picture(first: NDArray[np.uint8], second: NDArray[np.uint8]) -> bool:
    """Whether two images at the same small size, (S, S, 3), are one picture saved in two ways."""
    one, two = first.astype(np.float32), second.astype(np.float32)
    difference = np.abs(one - two).mean()
    one, two = one - one.mean(), two - two.mean()
    norm = np.sqrt((one**2).sum() * (two**2).sum())
    return bool(difference <= MAX_DIFFERENCE and (one * two).sum() >= MIN_CORRELATION * norm > 0)
