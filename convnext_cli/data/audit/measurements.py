"""Measurements of every image, decoded once: some 800 bytes each, kept in the user's cache for the next audit."""

import hashlib
import json
import math
import os
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple, TypeAlias

import numpy as np
from msgspec import convert
from numpy.typing import NDArray
from PIL import Image

from convnext_cli.cache_folder import MEASUREMENTS, find_cache_folder, name_entry
from convnext_cli.data.audit.findings import Kind
from convnext_cli.data.audit.keypoints import KEYPOINT, KEYPOINTS, MIN_SIDE, find_keypoints, shrink_grey
from convnext_cli.data.audit.perceptual import hash_images
from convnext_cli.data.index import Index
from convnext_cli.errors import ImageError
from convnext_cli.files import replace_file
from convnext_cli.images.decode import RULES, read_image
from convnext_cli.images.hashing import ContentDigests, make_key, open_digests
from convnext_cli.images.loaders import cut_batches, run_tasks
from convnext_cli.images.raster import Pixels, Step, StepKind
from convnext_cli.machine import count_process_cpus, use_one_blas_thread
from convnext_cli.progress import Progress, Steps

VERSION = 500 + RULES  # the hundreds are raised when the measures change
THUMB = 12  # side of the thumbnail by which near-duplicates are first compared
PART = 32  # images per task of a thread
MAX_LEVELS = 16  # of 256, that are not rare, of a stretched image of `Kind.FEW_LEVELS`
MAX_OTHERS = 100_000  # measurements to keep of images of a folder that are not in this index
RARE = 0.001  # fraction of the pixels
_SAMPLE = 1 << 20  # pixels to count grey levels in

MEASURES = np.dtype(
    [
        ("signature", "u8"),  # of the file's content; shows if the file has changed. 0: the file cannot be read
        ("digest", "u8", 2),  # of the decoded pixels and their shape
        ("hash", "u8"),  # perceptual: signs of the 8 x 8 lowest frequencies
        ("width", "u4"),
        ("height", "u4"),
        ("note", "u4"),  # place in `Measurements.notes`
        ("bits", "u1"),
        ("coloured", "u1"),
        ("readable", "u1"),
        ("border", "u1", 8),  # means, then deviations, of the upper, lower, left and right edge
        ("thumb", "u1", (THUMB, THUMB)),  # grey
        ("keypoints", KEYPOINT, KEYPOINTS),  # of images of at least `MIN_SIDE` px
    ]
)
_SMALL = 32  # side of the grey image from which hash, border and thumbnail are computed
_LUMA = np.array([0.299, 0.587, 0.114], np.float32)  # ITU-R BT.601, as Pillow


CONTENT_MEASURES = ("digest", "hash", "thumb")
"""The measures that a run keeps of each image, to recognise it by its content."""


class Note(NamedTuple):
    """The facts that many images share: how they were decoded, or why they cannot be read."""

    mode: str = ""
    """Of the file's pixels."""
    steps: tuple[Step, ...] = ()
    error: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurements:
    """The measurements of a data set: row i of `measures` is row i of the index."""

    measures: NDArray[Any]
    """(N,) of `MEASURES`."""
    notes: tuple[Note, ...]

    def select(self, rows: Sequence[int]) -> dict[str, NDArray[Any]]:
        """Return the `CONTENT_MEASURES` of `rows`, in their order."""
        return {name: np.ascontiguousarray(self.measures[name][list(rows)]) for name in CONTENT_MEASURES}

    def list_rows(self, kind: StepKind) -> list[int]:
        """Return the rows with a step of decoding of this kind."""
        places = [place for place, note in enumerate(self.notes) if any(step.kind == kind for step in note.steps)]
        return np.flatnonzero(np.isin(self.measures["note"], places)).tolist()

    def list_sizes(self, rows: Sequence[int]) -> NDArray[np.uint32]:
        """Return width and height of `rows` in pixels, (N, 2)."""
        chosen = self.measures[list(rows)]
        return np.stack([chosen["width"], chosen["height"]], axis=1)

    @property
    def errors(self) -> dict[int, str]:
        """The reason why a file cannot be read, by row."""
        rows = np.flatnonzero(self.measures["readable"] == 0).tolist()
        return {row: self.notes[self.measures["note"][row]].error for row in rows}


def measure_images(index: Index) -> Steps[Measurements]:
    """Measure the images whose content is new, and return the measurements of all images.

    Images are recognised by their content (`hashing.py`). The measurements are kept in the cache folder, one file per
    data folder.
    """
    store = _Store(index.root)
    old, notes = store.read()
    known = {int(row["signature"]): place for place, row in enumerate(old) if row["readable"] and row["signature"]}
    places = {note: place for place, note in enumerate(notes)}
    digests = open_digests(index.root)
    measures = np.zeros(len(index), MEASURES)
    tasks = [partial(_measure_rows, index, rows, digests, known) for rows in cut_batches(range(len(index)), PART)]
    done = 0
    threads = count_process_cpus()
    with use_one_blas_thread():
        for parts in run_tasks(cut_batches(tasks, threads), threads=threads):
            for signature, values, note in chain.from_iterable(parts):
                if values is None:
                    measures[done] = old[known[signature]]
                else:
                    values["signature"] = signature
                    values["note"] = places.setdefault(note, len(places))
                    measures[done] = values
                done += 1
            yield Progress(done=done, total=len(index), activity="images checked")
    measurements = Measurements(measures=measures, notes=tuple(places))
    digests.flush()
    others = old[~np.isin(old["signature"], [0, *measures["signature"]])][:MAX_OTHERS]
    saved = np.concatenate([measures, others]) if len(others) else measures
    if not np.array_equal(saved, old):
        store.write(saved, tuple(places))
    return measurements


_Row: TypeAlias = "tuple[int, Any | None, Note]"
"""A signature; the measures, or None if they are in the cache; and their note."""


def _measure_rows(index: Index, rows: Sequence[int], digests: ContentDigests, known: Mapping[int, int]) -> list[_Row]:
    measured: list[_Row] = []
    for row in rows:
        path = index.paths[row]
        key = make_key(digests, path)
        signature = _sign(key) if key else 0
        if signature in known:
            measured.append((signature, None, Note()))
            continue
        values, note = _measure(index.root / path)
        is_same = make_key(digests, path) == key  # False if the file was changed meanwhile
        measured.append((signature if is_same else 0, values, note))
    return measured


def _measure(path: Path) -> tuple[Any, Note]:
    values = np.zeros((), MEASURES)
    try:
        pixels, mode, bits, steps = read_image(path)
    except ImageError as error:
        return values, Note(error=error.problem)
    if any(step.kind == StepKind.STRETCH for step in steps) and _count_levels(pixels) <= MAX_LEVELS:
        steps = (*steps, Step(Kind.FEW_LEVELS, StepKind.FEW_LEVELS))
    digest = hashlib.blake2b(repr(pixels.shape).encode(), digest_size=16)
    digest.update(np.ascontiguousarray(pixels).data)
    small = np.asarray(Image.fromarray(pixels).resize((_SMALL, _SMALL), Image.Resampling.BOX), dtype=np.float32)
    grey = small @ _LUMA
    values["digest"] = np.frombuffer(digest.digest(), "u8")
    values["hash"] = hash_images(grey)
    values["height"], values["width"] = pixels.shape[:2]
    values["bits"], values["readable"] = bits, 1
    values["coloured"] = np.ptp(small, axis=2).max() > 8  # JPEG leaves a little difference in what was grey
    edges = np.stack([grey[0], grey[-1], grey[:, 0], grey[:, -1]])
    values["border"] = np.concatenate([edges.mean(axis=1), edges.std(axis=1)])
    values["thumb"] = np.asarray(Image.fromarray(grey).resize((THUMB, THUMB), Image.Resampling.BOX)).round()
    if min(pixels.shape[:2]) >= MIN_SIDE:
        values["keypoints"] = find_keypoints(shrink_grey(Image.fromarray(pixels)))
    return values, Note(mode, steps)


def _count_levels(pixels: Pixels) -> int:
    """Return the number of levels of green that are not rare."""
    step = math.isqrt(pixels.shape[0] * pixels.shape[1] // _SAMPLE) + 1
    levels = pixels[::step, ::step, 1].ravel()
    return int((np.bincount(levels, minlength=256) > RARE * len(levels)).sum())


def sign_files(index: Index, rows: Sequence[int]) -> NDArray[np.uint64]:
    """Return the signatures of rows' files as `MEASURES` has them, (N,); of unchanged files the bytes are not read."""
    digests = open_digests(index.root)
    keys = (make_key(digests, index.paths[row]) for row in rows)
    return np.array([_sign(key) if key else 0 for key in keys], np.uint64)


def _sign(key: bytes) -> int:
    return int.from_bytes(hashlib.blake2b(key, digest_size=8).digest(), "little") or 1


class _Store:
    """The measurements of one data folder in the user's cache. A damaged or foreign file counts as missing."""

    def __init__(self, root: Path) -> None:
        self.path = find_cache_folder() / MEASUREMENTS / f"{name_entry(os.fsencode(root.resolve()))}.npz"

    def read(self) -> tuple[NDArray[Any], list[Note]]:
        """Return the cached measures, (0,) if there are none, and the notes that they refer to."""
        with suppress(Exception), self.path.open("rb") as file, np.load(file, allow_pickle=False) as saved:
            if int(saved["version"]) == VERSION and (measures := saved["measures"]).dtype == MEASURES:
                return measures, convert(json.loads(str(saved["notes"])), list[Note])
        # no file, one of another version, or a damaged one, for which zipfile and NumPy raise a dozen kinds
        return np.zeros(0, MEASURES), []

    def write(self, measures: NDArray[Any], notes: tuple[Note, ...]) -> None:
        """Save the measurements. If that is not possible, the next audit measures again."""
        with suppress(OSError):
            self.path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(self.path) as temporary, temporary.open("wb") as file:
                np.savez(file, version=VERSION, measures=measures, notes=json.dumps(notes))
