"""Overlap between the images of an evaluation and those of a run, by content and not by name."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.audit.candidates import (
    MAX_ORIENTED_DISTANCE,
    ORIENTATIONS,
    find_alike,
    find_similar,
    hash_thumbs,
    orient_thumbs,
)
from convnext_cli.data.audit.measurements import CONTENT_MEASURES, THUMB, measure_images
from convnext_cli.data.audit.moved import find_moved
from convnext_cli.data.audit.tones import are_equal_but_for_tones
from convnext_cli.data.index import Index
from convnext_cli.data.split import list_trained_rows
from convnext_cli.progress import Steps
from convnext_cli.runs.files import IMAGE_HASHES
from convnext_cli.runs.folder import RunFolder

MAX_THUMB_DIFFERENCE = 2.0  # grey levels, root mean square; JPEG at quality 40 gives about 1
_PAIRS = 20_000  # of thumbnails at a time


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """Numbers of images of an evaluation that the run has used."""

    trained: int
    """Exact duplicates of a training image."""
    trained_near: int
    """Near-duplicates of a training image."""
    validated: int
    """Exact or near-duplicates of a validation image that are none of a training image."""
    alike: int = 0
    """Other images of a scene of the run, as frames of one camera are; near-duplicates of these are not recognised."""


def measure_content(index: Index) -> Steps[dict[str, NDArray[Any]]]:
    """Return the digests, hashes and thumbnails of the images of an index; those in the cache are not decoded."""
    measurements = yield from measure_images(index)
    return measurements.select(range(len(index)))


def read_image_hashes(run: RunFolder, index: Index) -> Steps[dict[str, NDArray[Any]] | None]:
    """Return the digests, hashes and thumbnails of a run's images.

    They are measured where the run has none.

    Returns:
        None where the run has none and its data are gone.
    """
    stored = run.read_arrays(IMAGE_HASHES)
    if stored is not None and all(name in stored and len(stored[name]) == len(index) for name in CONTENT_MEASURES):
        return stored
    if not index.root.is_dir():
        return None
    measured = yield from measure_content(index)
    return measured if measured["digest"].any() else None


def measure_equal(run: RunFolder, trained_on: Index, copy: Index) -> Steps[float | None]:
    """Return the fraction of images with the pixels of the run's own, in the same order; None if that is not known."""
    known = yield from read_image_hashes(run, trained_on)
    if known is None:
        return None
    measured = yield from measure_content(copy)
    return float((known["digest"] == measured["digest"]).all(axis=1).mean())


def find_moved_copies(trained_on: Index, evaluated: Index, measures: NDArray[Any]) -> Steps[NDArray[np.int64]]:
    """Return pairs of a row of a run's split and a row of an evaluation, one a moved copy of the other, (P, 2).

    It has none if the images of the run are gone.

    Args:
        trained_on: the run's split.
        evaluated: the images of the evaluation.
        measures: theirs, (N,) of `MEASURES`.
    """
    if not trained_on.root.is_dir():
        return np.empty((0, 2), np.int64)
    measured = yield from measure_images(trained_on)
    paths = [index.root / path for index in (trained_on, evaluated) for path in index.paths]
    known, rows = np.split(np.arange(len(paths)), [len(trained_on)])
    moved, _ = yield from find_moved(paths, np.concatenate([measured.measures, measures]), rows, known)
    return np.array([(one, two - len(trained_on)) for one, two in moved], np.int64).reshape(-1, 2)


def find_overlap(
    known: Mapping[str, NDArray[Any]],
    trained_on: Index,
    evaluated: NDArray[Any],
    moved: NDArray[np.int64],
) -> Overlap:
    """Count the images that the run was trained or validated on.

    Args:
        known: `read_image_hashes` of the run's images.
        trained_on: the run's split, in the same order.
        evaluated: the images of the evaluation, (N,) of `MEASURES`.
        moved: `find_moved_copies` of both.
    """
    readable = evaluated["digest"].any(axis=1)
    scenes = known.get("scene", np.zeros(len(known["hash"]), np.uint32))
    moved = moved[scenes[moved[:, 0]] == 0]
    exact, near = {}, {}
    for split, rows in {"train": list_trained_rows(trained_on), "val": trained_on.rows("val")}.items():
        arrays = {name: known[name][rows] for name in CONTENT_MEASURES}
        exact[split] = _find_exact(arrays, evaluated) & readable
        is_single = scenes[rows] == 0
        near[split] = _find_near({name: array[is_single] for name, array in arrays.items()}, evaluated) & readable
        near[split][moved[np.isin(moved[:, 0], rows), 1]] = True
    is_trained = exact["train"] | near["train"]
    is_validated = (exact["val"] | near["val"]) & ~is_trained
    is_alike = np.zeros(len(evaluated), bool)
    for scene in np.unique(scenes[scenes > 0]):
        is_alike |= find_alike(evaluated["thumb"], known["thumb"][scenes == scene])
    is_alike &= readable & ~is_trained & ~is_validated
    return Overlap(
        trained=int(exact["train"].sum()),
        trained_near=int((near["train"] & ~exact["train"]).sum()),
        validated=int(is_validated.sum()),
        alike=int(is_alike.sum()),
    )


def _find_exact(known: Mapping[str, NDArray[Any]], evaluated: NDArray[Any]) -> NDArray[np.bool_]:
    """Return true for images with an exact duplicate among the known ones, (N,)."""
    digests = set(map(tuple, known["digest"].tolist()))
    return np.array([tuple(digest) in digests for digest in evaluated["digest"].tolist()], bool)


def _find_near(known: Mapping[str, NDArray[Any]], evaluated: NDArray[Any]) -> NDArray[np.bool_]:
    """Return true for images with a near-duplicate among the known ones, also mirrored or turned, (N,).

    It has a similar hash, and an equal thumbnail, perhaps in other tones.
    """
    is_near = np.zeros(len(evaluated["hash"]), bool)

    def mark(pairs: NDArray[np.int64], thumbs: NDArray[np.uint8]) -> None:
        for one, two in (pairs[start : start + _PAIRS].T for start in range(0, len(pairs), _PAIRS)):
            ones, twos = evaluated["thumb"][one], thumbs[two]
            is_equal = ((ones.astype(np.float32) - twos) ** 2).mean(axis=(1, 2)) <= MAX_THUMB_DIFFERENCE**2
            is_near[one[is_equal | are_equal_but_for_tones(ones, twos, THUMB)]] = True

    for pairs in find_similar(evaluated["hash"], known["hash"]):
        mark(pairs, known["thumb"])
    hashes = hash_thumbs(evaluated["thumb"])
    for orientation in ORIENTATIONS:
        thumbs = orient_thumbs(known["thumb"], orientation)
        for pairs in find_similar(hashes, hash_thumbs(thumbs), MAX_ORIENTED_DISTANCE):
            mark(pairs, thumbs)
    return is_near
