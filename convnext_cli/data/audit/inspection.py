"""Every image decoded once: its measures in some 200 bytes, kept in the user's cache for the next time."""

import hashlib
import json
import os
from collections import deque
from collections.abc import Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_cli.data.decode import RULES, read_image
from convnext_cli.data.scan import Index
from convnext_cli.errors import ImageError
from convnext_cli.files import find_cache, replace_file
from convnext_cli.progress import Progress

VERSION = 100 + RULES  # the hundreds are raised when the measures change
THUMB = 12  # side of the thumbnail that near duplicates are first compared by
PART = 32  # images that a thread takes at a time
AHEAD = 4  # parts waiting

MEASURES = np.dtype(
    [
        ("signature", "u8"),  # of path, size and time of change; decides whether the rest still holds
        ("digest", "u8", 2),  # of the decoded pixels and their shape
        ("hash", "u8"),  # perceptual: signs of the 8 x 8 lowest frequencies
        ("width", "u4"),
        ("height", "u4"),
        ("note", "u4"),  # place in `Inspection.notes`
        ("bits", "u1"),
        ("coloured", "u1"),
        ("readable", "u1"),
        ("border", "u1", 8),  # means, then deviations, of the upper, lower, left and right edge
        ("thumb", "u1", (THUMB, THUMB)),  # grey
    ]
)
_SMALL = 32  # side of the grey picture that hash, border and thumbnail are taken from
_COSINES = np.cos(np.pi / _SMALL * (np.arange(_SMALL) + 0.5) * np.arange(8)[:, None]).astype(np.float32)  # (8, 32)
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow
_BITS = np.left_shift(np.uint64(1), np.arange(64, dtype=np.uint64))


@dataclass(frozen=True, kw_only=True, slots=True)
class Inspection:
    """What was measured: row i of `measures` is row i of the index."""

    measures: NDArray[Any]
    """(N,) of `MEASURES`."""
    notes: tuple[str, ...]
    """The file's own mode and what decoding did, `mode|done|done`; or `!` and why the file cannot be read."""

    @property
    def errors(self) -> dict[int, str]:
        """Why a row cannot be read."""
        rows = np.flatnonzero(self.measures["readable"] == 0).tolist()
        return {row: self.notes[self.measures["note"][row]][1:] for row in rows}


def inspect_images(index: Index, *, threads: int) -> Iterator[Progress | Inspection]:
    """Decodes what is new or has changed since the last time, and yields progress, then the measures.

    Images are known by path, size and time of change. The measures lie in the cache folder, one file a data folder.
    """
    signatures = np.fromiter((_sign(index.root, path) for path in index.paths), np.uint64, len(index))
    store = _Store(index.root)
    measures, notes = store.read(signatures)
    places = {note: place for place, note in enumerate(notes)}
    rows = np.flatnonzero(measures["readable"] == 0)
    done = len(index) - len(rows)
    waiting: deque[tuple[NDArray[np.int64], Future[list[tuple[Any, str]]]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="inspect") as pool:
        for part in [*(rows[start : start + PART] for start in range(0, len(rows), PART)), *[rows[:0]] * AHEAD]:
            waiting.append((part, pool.submit(_measure_rows, index, part)))
            if len(waiting) <= AHEAD:
                continue
            ready, future = waiting.popleft()
            for row, (values, note) in zip(ready, future.result(), strict=True):
                values["signature"] = measures["signature"][row]
                values["note"] = places.setdefault(note, len(places))
                measures[row] = values
            done += len(ready)
            yield Progress(done=done, total=len(index), what="images checked")
    found = Inspection(measures=measures, notes=tuple(places))
    if len(rows):
        store.keep(found)
    yield found


def _measure_rows(index: Index, rows: NDArray[np.int64]) -> list[tuple[Any, str]]:
    return [_measure(index.root / index.paths[row]) for row in rows]


def _measure(path: Path) -> tuple[Any, str]:
    """One image's measures, and its note."""
    found = np.zeros((), MEASURES)
    try:
        pixels, mode, bits, done = read_image(path)
    except ImageError as error:
        return found, "!" + error.problem
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    small = np.asarray(Image.fromarray(pixels).resize((_SMALL, _SMALL), Image.Resampling.BOX), dtype=np.float32)
    grey = small @ _LUMA
    found["digest"] = np.frombuffer(digest.digest(), "u8")
    found["hash"] = hash_picture(grey)
    found["height"], found["width"] = pixels.shape[:2]
    found["bits"], found["readable"] = bits, 1
    found["coloured"] = np.ptp(small, axis=2).max() > 8  # JPEG leaves a little difference in what was grey
    edges = np.stack([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    found["border"] = np.concatenate([edges.mean(axis=1), edges.std(axis=1)])
    found["thumb"] = np.asarray(Image.fromarray(grey).resize((THUMB, THUMB), Image.Resampling.BOX)).round()
    return found, "|".join((mode, *(text.partition(" from ")[0] for text in done)))  # kinds of things, to be counted


def hash_picture(grey: NDArray[np.float32]) -> np.uint64:
    """A 64-bit perceptual hash of (32, 32) grey values: which of the lowest 8 x 8 frequencies are above their median.

    Source: the DCT hash of pHash (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions").
    """
    low = (_COSINES @ grey @ _COSINES.T).ravel()
    bits = low > np.partition(low[1:], 31)[31]  # the median; the first is the mean brightness
    return np.uint64(_BITS[bits].sum())


def _sign(root: Path, path: str) -> int:
    try:
        status = os.stat(root / path)  # noqa: PTH116
    except OSError:
        return 0
    what = f"{path}\0{status.st_size}\0{status.st_mtime_ns}"
    return int.from_bytes(hashlib.blake2b(os.fsencode(what), digest_size=8).digest(), "little") or 1


class _Store:
    """The measures of one data folder in the user's cache. A damaged or foreign file is as none."""

    def __init__(self, root: Path) -> None:
        name = hashlib.blake2b(os.fsencode(root.resolve()), digest_size=12).hexdigest()
        self.path = find_cache() / "audit" / f"{name}.npz"

    def read(self, signatures: NDArray[np.uint64]) -> tuple[NDArray[Any], list[str]]:
        """The measures of images with these signatures, zeros where none are known; and the notes they refer to."""
        old, notes = np.zeros(0, MEASURES), []
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                if int(saved["version"]) == VERSION and (found := saved["measures"]).dtype == MEASURES:
                    old, notes = found, list(json.loads(str(saved["notes"])))
        except Exception:  # no file, or a damaged one, for which zipfile and NumPy raise a dozen kinds
            old, notes = np.zeros(0, MEASURES), []
        if np.array_equal(old["signature"], signatures):
            return old, notes
        measures = np.zeros(len(signatures), MEASURES)
        measures["signature"] = signatures
        if len(old):
            order = np.argsort(old["signature"])
            place = order[np.searchsorted(old["signature"], signatures, sorter=order).clip(max=len(old) - 1)]
            same = old["signature"][place] == signatures
            measures[same] = old[place[same]]
        return measures, notes

    def keep(self, found: Inspection) -> None:
        """Saves for the next time; where that is not possible, the next time takes as long as this one."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(self.path) as temporary, temporary.open("wb") as file:
                np.savez(file, version=VERSION, measures=found.measures, notes=json.dumps(found.notes))
        except OSError:
            return
