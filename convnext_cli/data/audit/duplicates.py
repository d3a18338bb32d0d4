"""Duplicates and near-duplicates: the same image stored twice, exactly, saved again, scaled, mirrored or turned."""

from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import lru_cache, partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_cli.data.audit.candidates import (
    MAX_DISTANCE,
    MAX_ORIENTED_DISTANCE,
    ORIENTATIONS,
    Hashed,
    find_candidates,
    hash_thumbs,
    orient_thumbs,
)
from convnext_cli.data.audit.measurements import Measurements
from convnext_cli.data.index import Index, group_by
from convnext_cli.data.joined_rows import JoinedRows, join_rows
from convnext_cli.errors import ImageError
from convnext_cli.images.decode import decode_image
from convnext_cli.images.raster import orient
from convnext_cli.machine import count_process_cpus
from convnext_cli.progress import Progress, Steps

MAX_COMPARED = 50_000_000  # pairs of thumbnails, compared one by one
MIN_CORRELATION = 0.97  # of the pixels at 32 x 32
MAX_DIFFERENCE = 8.0  # grey levels, mean absolute difference
MAX_COARSE = 1.25  # grey levels, root mean square over 16 x 16; JPEG at quality 40 differs by at most 0.95
MIN_DETAIL = 0.75  # correlation of what 64 x 64 pixels show beyond 16 x 16; JPEG at quality 40 has at least 0.92
DETAIL_FLOOR = 2.0  # grey levels; weaker detail is compression noise
MAX_CHAIN = 0.1  # fraction of the images that one set of very similar images may have
_SIDE, _FINE, _COARSE = 32, 64, 16  # px
_BLOCK = 1024

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

    Duplicates have the same pixels after decoding. Candidates for near-duplicates have similar perceptual hashes and
    thumbnails that correlate, as they are or with one of them mirrored or turned. Candidates are decoded again. Two
    with nearly the same pixels at 32 x 32 are very similar. They are near-duplicates (one image saved again, scaled,
    mirrored or turned) if they also have the same grey values at 16 x 16 and the same detail beyond these. Two slices
    or frames differ in one of the two.
    """
    readable = np.flatnonzero(measurements.measures["readable"])
    digests = list(map(tuple, measurements.measures["digest"].tolist()))
    exact = tuple(tuple(same) for same in group_by(readable.tolist(), digests.__getitem__).values() if len(same) > 1)
    rows = np.setdiff1d(readable, [row for cluster in exact for row in cluster[1:]])
    links = [(cluster[0], row) for cluster in exact for row in cluster[1:]]
    similar: list[tuple[int, int]] = []
    joined, unchecked = JoinedRows(), 0
    with ThreadPoolExecutor(count_process_cpus(), thread_name_prefix="compare") as pool:
        load = lru_cache(maxsize=4096)(partial(_shrink, index))

        def compare(orientation: int, pair: tuple[int, int]) -> Likeness | None:
            one, two = load(pair[0]), load(pair[1])
            return None if one is None or two is None else compare_images(one, two.orient(orientation))

        for orientation, pairs, left_out in _list_candidates(measurements, rows, joined):
            unchecked += left_out
            for start in range(0, len(pairs), _BLOCK):  # a future for each pair at once would outweigh the images
                block = [
                    (one, two)
                    for one, two in pairs[start : start + _BLOCK].tolist()
                    if joined.find(one) != joined.find(two)
                ]
                for pair, kind in zip(block, pool.map(partial(compare, orientation), block), strict=True):
                    if kind == "near":
                        links.append(pair)
                        joined.join(*pair)
                    elif kind == "similar" and orientation == 1:
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


def _list_candidates(
    measurements: Measurements, rows: NDArray[np.int64], joined: JoinedRows
) -> Iterator[tuple[int, NDArray[np.int64], int]]:
    """Yield each orientation, the pairs of rows that may be equal once the second has it, and the number left out.

    Of the rows that the caller has joined by then, one is compared in other orientations.
    """
    thumbs = measurements.measures["thumb"]
    images = Hashed(thumbs, measurements.measures["hash"], rows)
    yield 1, *find_candidates(images, images, MAX_DISTANCE, MAX_COMPARED)
    rows = np.array([row for row in rows.tolist() if joined.find(row) == row], np.int64)
    images = Hashed(thumbs, hash_thumbs(thumbs), rows)
    for orientation in ORIENTATIONS:
        oriented = orient_thumbs(thumbs, orientation)
        others = Hashed(oriented, hash_thumbs(oriented), rows)
        budget = MAX_COMPARED // len(ORIENTATIONS)
        yield orientation, *find_candidates(images, others, MAX_ORIENTED_DISTANCE, budget)


@dataclass(frozen=True, slots=True)
class Shrunk:
    """An image at the small sizes used for comparison."""

    colour: NDArray[np.uint8]
    """(32, 32, 3)"""
    coarse: NDArray[np.float32]
    """(16, 16) grey values minus their mean."""
    detail: NDArray[np.float32]
    """(64, 64) grey values minus those of 16 x 16 pixels."""

    def orient(self, orientation: int) -> "Shrunk":
        """Return the image mirrored or turned by an EXIF orientation."""
        return Shrunk(*(orient(pixels, orientation) for pixels in (self.colour, self.coarse, self.detail)))


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
