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

from convnext_cli.data.decode import read_image
from convnext_cli.data.scan import Index
from convnext_cli.errors import ImageError
from convnext_cli.files import find_cache, replace_file
from convnext_cli.progress import Progress

VERSION = 1  # of the measures and of decoding; raised when either changes
THUMB = 12  # side of the thumbnail that near duplicates are first compared by
AHEAD = 64  # images waiting for a thread
TELL = 100  # images between two words of progress

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
        ("border", "u1", 8),  # mean and deviation of the upper, lower, left and right edge
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

    def count_notes(self) -> dict[str, tuple[int, int]]:
        """Each distinct note: how often, and its first row."""
        places, first, counts = np.unique(self.measures["note"], return_index=True, return_counts=True)
        return {self.notes[place]: (int(n), int(row)) for place, row, n in zip(places, first, counts, strict=True)}


def inspect_images(index: Index, *, threads: int) -> Iterator[Progress | Inspection]:
    """Decodes what is new or has changed since the last time, and yields progress, then the measures.

    Images are known by path, size and time of change. The measures lie in the cache folder, one file a data folder.
    """
    measures = np.zeros(len(index), MEASURES)
    measures["signature"] = [_sign(index.root, path) for path in index.paths]
    store = _Store(index.root)
    places = {note: place for place, note in enumerate(store.fill(measures))}
    rows = np.flatnonzero(measures["readable"] == 0).tolist()
    known = len(index) - len(rows)
    waiting: deque[tuple[int, Future[tuple[Any, str]]]] = deque()
    with ThreadPoolExecutor(threads, thread_name_prefix="inspect") as pool:
        for number, row in enumerate([*rows, *[None] * AHEAD]):
            if row is not None:
                waiting.append((row, pool.submit(_measure, index.root / index.paths[row])))
            if number < AHEAD or not waiting:
                continue
            done, future = waiting.popleft()
            values, note = future.result()
            values["signature"] = measures["signature"][done]
            values["note"] = places.setdefault(note, len(places))
            measures[done] = values
            if (number - AHEAD) % TELL == 0:
                yield Progress(done=known + number - AHEAD, total=len(index), what="images checked")
    found = Inspection(measures=measures, notes=tuple(places))
    if rows:
        store.keep(found)
    yield found


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
    edges = (grey[0], grey[-1], grey[:, 0], grey[:, -1])
    found["border"] = [value for edge in edges for value in (edge.mean(), edge.std())]
    found["thumb"] = np.asarray(Image.fromarray(grey).resize((THUMB, THUMB), Image.Resampling.BOX)).round()
    return found, "|".join((mode, *(text.partition(" from ")[0] for text in done)))  # kinds of things, to be counted


def hash_picture(grey: NDArray[np.float32]) -> np.uint64:
    """A 64-bit perceptual hash of (32, 32) grey values: which of the lowest 8 x 8 frequencies are above their median.

    Source: the DCT hash of pHash (Zauner 2010, "Implementation and Benchmarking of Perceptual Image Hash Functions").
    """
    low = (_COSINES @ grey @ _COSINES.T).ravel()
    bits = low > np.median(low[1:])  # the first is the mean brightness
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

    def fill(self, measures: NDArray[Any]) -> list[str]:
        """Fills in the rows whose signature is known, and returns the notes that they refer to."""
        try:
            with self.path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
                old, notes = saved["measures"], json.loads(str(saved["notes"]))
                if int(saved["version"]) != VERSION or old.dtype != MEASURES or not len(old):
                    return []
        except Exception:  # no file, or a damaged one, for which zipfile and NumPy raise a dozen kinds
            return []
        order = np.argsort(old["signature"])
        place = np.searchsorted(old["signature"], measures["signature"], sorter=order).clip(max=len(old) - 1)
        same = old["signature"][order[place]] == measures["signature"]
        measures[same] = old[order[place[same]]]
        return list(notes)

    def keep(self, found: Inspection) -> None:
        """Saves for the next time; where that is not possible, the next time takes as long as this one."""
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(self.path) as temporary, temporary.open("wb") as file:
                np.savez(file, version=VERSION, measures=found.measures, notes=json.dumps(found.notes))
        except OSError:
            return
