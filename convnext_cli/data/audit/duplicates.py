"""Duplicates and near-duplicates: one image stored twice, exactly or changed (scaled, cropped, turned, other tones)."""

from collections.abc import Iterator, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache, partial
from itertools import chain
from typing import Literal, TypeAlias

import msgspec
import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_cli.cache_folder import MEASUREMENTS, find_cache_folder, name_entry
from convnext_cli.data.audit.candidates import (
    MAX_DISTANCE,
    MAX_ORIENTED_DISTANCE,
    ORIENTATIONS,
    Hashed,
    find_alike,
    find_candidates,
    hash_thumbs,
    orient_thumbs,
)
from convnext_cli.data.audit.measurements import Measurements
from convnext_cli.data.audit.moved import find_moved
from convnext_cli.data.audit.tones import are_equal_but_for_tones, average_cells
from convnext_cli.data.index import Index, group_by
from convnext_cli.data.joined_rows import JoinedRows, join_rows
from convnext_cli.errors import ImageError
from convnext_cli.files import replace_file
from convnext_cli.images.decode import decode_image
from convnext_cli.images.raster import orient
from convnext_cli.machine import count_process_cpus
from convnext_cli.progress import Progress, Steps

VERSION = 3  # raised when the rules of a comparison change
MAX_COMPARED = 50_000_000  # pairs of thumbnails, compared one by one
MIN_CORRELATION = 0.97  # of the pixels at 32 x 32
MAX_DIFFERENCE = 8.0  # grey levels, mean absolute difference
MAX_COARSE = 1.25  # grey levels, root mean square over 16 x 16; JPEG at quality 40 differs by at most 0.95
MIN_COLOUR = 0.9  # correlation of the colours of one image, unless it was made grey
GREY = 3.0  # mean difference of the channels of an image without colour
MIN_DETAIL = 0.75  # correlation of what 64 x 64 pixels show beyond 16 x 16; JPEG at quality 40 has at least 0.92
DETAIL_FLOOR = 2.0  # grey levels; weaker detail is compression noise
MAX_SET = 0.1  # fraction of the images that one set of very similar images may have; a larger one is a chain
MAX_COPIES = 30  # images; so many may be near-duplicates of one, whatever the fraction
_SIDE, _FINE, _COARSE = 32, 64, 16  # px
_BLOCK = 1024


Likeness = Literal["near", "similar"]
_Pairs: TypeAlias = Sequence[tuple[int, int]]


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
    scenes: tuple[tuple[int, ...], ...]
    """Sets of rows that look alike, as frames of one camera do. Near-duplicates among them are in no other set."""
    unchecked: int
    """Number of similar pairs that were too many to compare, at least."""


def find_duplicates(index: Index, measurements: Measurements) -> Steps[Duplicates]:
    """Find duplicates, near-duplicates and very similar images.

    The result is kept in the cache folder, by the content of the images.
    """
    measures = measurements.measures
    content = b"%d" % VERSION + measures["digest"].tobytes() + measures["readable"].tobytes()
    path = find_cache_folder() / MEASUREMENTS / f"{name_entry(content)}.json"
    with suppress(OSError, msgspec.MsgspecError):
        return msgspec.json.decode(path.read_bytes(), type=Duplicates)
    duplicates = yield from _compare_all(index, measurements)
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        with replace_file(path) as temporary:
            temporary.write_bytes(msgspec.json.encode(duplicates))
    return duplicates


def _compare_all(index: Index, measurements: Measurements) -> Steps[Duplicates]:
    """Compare all images.

    Duplicates have the same pixels after decoding. Candidates for near-duplicates have similar perceptual hashes and
    thumbnails that correlate, as they are or with one of them mirrored or turned. Candidates are decoded again. Two
    with nearly the same pixels at 32 x 32 are very similar. They are near-duplicates (one image saved again, scaled,
    mirrored, turned, or in other tones) if they have the same grey values at 16 x 16, but for a change of brightness,
    contrast or gamma, and the same detail beyond these. Two slices or frames differ in one of the two. Then moved
    copies are searched for.
    """
    readable = np.flatnonzero(measurements.measures["readable"])
    digests = list(map(tuple, measurements.measures["digest"].tolist()))
    exact = tuple(tuple(same) for same in group_by(readable.tolist(), digests.__getitem__).values() if len(same) > 1)
    rows = np.setdiff1d(readable, [row for cluster in exact for row in cluster[1:]])
    near: list[tuple[int, int]] = []
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
                    (one, two) for one, two in pairs[start : start + _BLOCK].tolist() if not joined.is_joined(one, two)
                ]
                for pair, kind in zip(block, pool.map(partial(compare, orientation), block), strict=True):
                    if kind == "near":
                        near.append(pair)
                        joined.join(*pair)
                    elif kind == "similar" and orientation == 1:
                        similar.append(pair)
                yield Progress(done=start + len(block), total=len(pairs), activity="similar images compared")
    paths = [index.root / path for path in index.paths]
    moved, left_out = yield from find_moved(paths, measurements.measures, _list_first(rows, joined))
    unchecked += left_out
    links = [(cluster[0], row) for cluster in exact for row in cluster[1:]]
    limit, copies = max(MAX_COPIES, MAX_SET * len(index)), {row for _, row in links}
    scenes = _find_scenes(_list_large([*links, *near], limit, copies), measurements)
    of_scenes = set(chain.from_iterable(scenes))
    links += _leave_out(near, of_scenes)
    moved, similar = _leave_out(moved, of_scenes), _leave_out(similar, of_scenes)
    tiles = set(chain.from_iterable(_list_large([*links, *moved], limit, copies)))  # or of a moving camera
    links += _leave_out(moved, tiles)
    joined = JoinedRows(links)
    # If two near-duplicates are similar to a third image, one pair is enough.
    similar = [pair for pair in (*similar, *moved) if not joined.is_joined(*pair)]
    parted = set(chain.from_iterable(_list_large([*links, *similar], max(2, MAX_SET * len(index)))))
    return Duplicates(
        exact=exact,
        similar=tuple(similar),
        clusters=join_rows(links),
        duplicate_sets=join_rows([*links, *_leave_out(similar, parted)]),
        scenes=scenes,
        unchecked=unchecked,
    )


def _list_large(pairs: _Pairs, limit: float, copies: Set[int] = frozenset()) -> list[tuple[int, ...]]:
    """Return the sets of joined rows that have more rows than `limit`, without `copies`."""
    return [rows for rows in join_rows(pairs) if len(set(rows) - copies) > limit]


def _find_scenes(sets: Sequence[tuple[int, ...]], measurements: Measurements) -> tuple[tuple[int, ...], ...]:
    """Return the sets, each with all rows that look like its mean image: not all pairs of one scene were compared."""
    thumbs = measurements.measures["thumb"]
    pairs = []
    for first, *rest in sets:
        alike = np.flatnonzero(find_alike(thumbs, thumbs[[first, *rest]])).tolist()
        pairs += [(first, row) for row in (*rest, *alike)]
    return join_rows(pairs)


def _leave_out(pairs: _Pairs, rows: set[int]) -> list[tuple[int, int]]:
    """Return the pairs without one of `rows`."""
    return [pair for pair in pairs if not rows.intersection(pair)]


def _list_first(rows: NDArray[np.int64], joined: JoinedRows) -> NDArray[np.int64]:
    """Return one row of each set."""
    return np.array([row for row in rows.tolist() if joined.find(row) == row], np.int64)


def _list_candidates(
    measurements: Measurements, rows: NDArray[np.int64], joined: JoinedRows
) -> Iterator[tuple[int, NDArray[np.int64], int]]:
    """Yield each orientation, the pairs of rows that may be equal once the second has it, and the number left out.

    Of the rows that the caller has joined by then, one is compared in other orientations.
    """
    thumbs = measurements.measures["thumb"]
    images = Hashed(thumbs, measurements.measures["hash"], rows)
    yield 1, *find_candidates(images, images, MAX_DISTANCE, MAX_COMPARED)
    rows = _list_first(rows, joined)
    images = Hashed(thumbs, hash_thumbs(thumbs), rows)
    for orientation in ORIENTATIONS:
        oriented = orient_thumbs(thumbs, orientation)
        others = Hashed(oriented, hash_thumbs(oriented), rows)
        budget = MAX_COMPARED // len(ORIENTATIONS)
        yield orientation, *find_candidates(images, others, MAX_ORIENTED_DISTANCE, budget)


@dataclass(frozen=True, slots=True)
class Shrunk:
    """An image at the small sizes used for comparison."""

    colour: NDArray[np.float32]
    """(32, 32, 3) RGB values."""
    grey: NDArray[np.uint8]
    """(64, 64) grey values."""

    def orient(self, orientation: int) -> "Shrunk":
        """Return the image mirrored or turned by an EXIF orientation."""
        return Shrunk(orient(self.colour, orientation), orient(self.grey, orientation))

    def is_grey(self) -> bool:
        """Return True if it has no colour beyond compression noise."""
        return bool((self.colour.max(axis=2) - self.colour.min(axis=2)).mean() <= GREY)


def shrink(image: Image.Image) -> Shrunk:
    """Return an RGB image at the sizes used for comparison."""
    colour = image.resize((_SIDE, _SIDE), Image.Resampling.BOX)
    grey = image.convert("L").resize((_FINE, _FINE), Image.Resampling.BILINEAR)
    return Shrunk(np.asarray(colour, np.float32), np.asarray(grey))


def _shrink(index: Index, row: int) -> Shrunk | None:
    """Return a row's image; None if it cannot be read."""
    try:
        return shrink(Image.fromarray(decode_image(index.root / index.paths[row], at_least=4 * _SIDE)))
    except ImageError:
        return None


def compare_images(first: Shrunk, second: Shrunk) -> Likeness | None:
    """Return `near` for one image saved in two ways, `similar` for two very similar images, else None."""
    colours = _correlate(first.colour - first.colour.mean(), second.colour - second.colour.mean())
    if colours >= MIN_COLOUR or first.is_grey() or second.is_grey():
        (coarse, detail), (other_coarse, other_detail) = _separate(first.grey), _separate(second.grey)
        is_equal = ((coarse - other_coarse) ** 2).mean() <= MAX_COARSE**2
        if _correlate(detail, other_detail, DETAIL_FLOOR) >= MIN_DETAIL and (
            is_equal or are_equal_but_for_tones(first.grey[None], second.grey[None], _COARSE)[0]
        ):
            return "near"
    is_alike = colours >= MIN_CORRELATION and np.abs(first.colour - second.colour).mean() <= MAX_DIFFERENCE
    return "similar" if is_alike else None


def _separate(grey: NDArray[np.uint8]) -> tuple[NDArray[np.float32], NDArray[np.float32]]:
    """Return grey values at 16 x 16, (16, 16), and the detail beyond these, (64, 64)."""
    coarse, factor = average_cells(grey[None], _COARSE)[0], _FINE // _COARSE
    return coarse, grey - coarse.repeat(factor, axis=0).repeat(factor, axis=1)


def _correlate(one: NDArray[np.float32], two: NDArray[np.float32], floor: float = 0.0) -> float:
    """Return the correlation of values of mean 0; `floor` is the standard deviation of noise that both share."""
    variances = [(values**2).mean() + floor**2 for values in (one, two)]
    norm = np.sqrt(variances[0] * variances[1])
    return float(((one * two).mean() + floor**2) / norm) if norm > 0 else 0.0
