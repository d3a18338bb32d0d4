"""Which images of an evaluation the model was trained on, told by their content and not by their names."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.audit.duplicates import MAX_DISTANCE
from convnext_cli.data.audit.measurements import CONTENT_MEASURES, measure_images
from convnext_cli.data.index import Index
from convnext_cli.data.split import is_fold
from convnext_cli.machine import count_cpus
from convnext_cli.progress import Steps
from convnext_cli.runs.folder import RunFolder

MAX_THUMB_DIFFERENCE = 2.0  # grey levels, root mean square; JPEG at quality 40 differs by about 1
_BLOCK = 256


@dataclass(frozen=True, kw_only=True, slots=True)
class Overlap:
    """How many images of an evaluation the run has used."""

    trained: int
    """Images with the same pixels as a training image."""
    trained_near: int
    """Others that are near-duplicates of a training image."""
    validated: int
    """Images that are, or are near-duplicates of, a validation image and no training image."""


def measure_thumbnails(index: Index) -> Steps[dict[str, NDArray[Any]]]:
    """Decode the images of an index, as far as the cache does not have them, and return what a run keeps of them."""
    measurements = yield from measure_images(index, threads=count_cpus())
    return measurements.select(range(len(index)))


def read_image_hashes(run: RunFolder, index: Index) -> Steps[dict[str, NDArray[Any]] | None]:
    """Return what the run keeps of its images; of a run without it, measured from its data; None where they are gone.

    Args:
        run: the run.
        index: its split.
    """
    kept = run.read_image_hashes()
    if kept is not None and all(name in kept and len(kept[name]) == len(index) for name in CONTENT_MEASURES):
        return kept
    if not index.root.is_dir():
        return None
    measured = yield from measure_thumbnails(index)
    return measured if measured["digest"].any() else None


def match_names(known: Mapping[str, NDArray[Any]], measured: Mapping[str, NDArray[Any]]) -> float:
    """Return the fraction of images, in the same order, whose pixels are equal."""
    return float((known["digest"] == measured["digest"]).all(axis=1).mean())


def find_overlap(
    known: Mapping[str, NDArray[Any]], trained_on: Index, measured: Mapping[str, NDArray[Any]], rows: Sequence[int]
) -> Overlap:
    """Count the images that the run was trained on, or chose its best epoch by.

    Args:
        known: of the run's images, as `read_image_hashes` gives it.
        trained_on: the run's split, in the same order.
        measured: of the images of the evaluation.
        rows: those of `measured` that are evaluated.
    """
    is_train = np.array([split == "train" or is_fold(split) for split in trained_on.splits])
    is_val = np.array([split == "val" for split in trained_on.splits])
    ours = {name: measured[name][list(rows)] for name in CONTENT_MEASURES}
    readable = ours["digest"].any(axis=1)
    exact, near = (f(_select(known, is_train), ours) & readable for f in (_find_exact, _find_near))
    validated = _find_exact(_select(known, is_val), ours) | _find_near(_select(known, is_val), ours)
    return Overlap(
        trained=int(exact.sum()),
        trained_near=int((near & ~exact).sum()),
        validated=int((validated & readable & ~exact & ~near).sum()),
    )


def _select(pictures: Mapping[str, NDArray[Any]], chosen: NDArray[np.bool_]) -> dict[str, NDArray[Any]]:
    return {name: pictures[name][chosen] for name in CONTENT_MEASURES}


def _find_exact(known: Mapping[str, NDArray[Any]], ours: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    seen = set(map(tuple, known["digest"].tolist()))
    return np.array([tuple(digest) in seen for digest in ours["digest"].tolist()], bool)


def _find_near(known: Mapping[str, NDArray[Any]], ours: Mapping[str, NDArray[Any]]) -> NDArray[np.bool_]:
    """Return which images have a near-duplicate: a similar hash, and nearly the same thumbnail, (N,)."""
    found = np.zeros(len(ours["hash"]), bool)
    for start in range(0, len(found), _BLOCK):
        hashes = ours["hash"][start : start + _BLOCK, None]
        one, two = np.nonzero(np.bitwise_count(hashes ^ known["hash"][None]) <= MAX_DISTANCE)
        for part in range(0, len(one), 100_000):
            a, b = one[part : part + 100_000] + start, two[part : part + 100_000]
            difference = ours["thumb"][a].astype(np.float32) - known["thumb"][b]
            found[a[(difference**2).mean(axis=(1, 2)) <= MAX_THUMB_DIFFERENCE**2]] = True
    return found
