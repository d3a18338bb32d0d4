"""What a training began with: model, settings, classes, split and images. A continued training must have the same.

The values and two digests are in the training state. `origin.safetensors` beside it has a digest for each row of the
split and for each image, by which the differing ones are named.
"""

import hashlib
import json
from collections import Counter
from collections.abc import Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from convnext_cli.data.index import Index
from convnext_cli.errors import DataError, RunError
from convnext_cli.images.hashing import open_digests
from convnext_cli.progress import Progress, Steps
from convnext_cli.runs.folder import RunFolder

if TYPE_CHECKING:
    from numpy.typing import NDArray

    from convnext_cli.recipes.plan import Plan

CHANGEABLE = ("micro_batch_size", "grad_checkpointing", "save_every")
"""Settings that a machine decides and no result depends on, but for rounding and for the draws of drop path."""
NO_CONTENTS = np.zeros((0, 2), np.uint64)  # on ranks that do not compare
SHOWN = 5  # names in an error
_PART = 256  # images digested between two signs of progress
_AGAIN = "or begin anew with another --output"


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """What a training began with."""

    model: str
    weights: str
    settings: dict[str, Any]
    classes: list[str]
    split: str
    """Digest of the split's rows in their order: path, class, group, split."""
    images: str
    """Digest of the bytes of the training and validation images in their order."""


def digest_split(index: Index) -> "NDArray[np.uint64]":
    """Return a digest of each row, (N,): of its path, class, group and split."""
    groups = index.groups or ("",) * len(index)
    rows = zip(index.paths, index.labels, groups, index.splits, strict=True)
    texts = (f"{path}\0{index.classes[label]}\0{group}\0{split}" for path, label, group, split in rows)
    digests = (hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.uint64)


def digest_contents(index: Index, *, threads: int) -> "Steps[NDArray[np.uint64]]":
    """Digest the bytes of the training and validation images, (M, 2) uint64, 128 bits of each.

    The digests are BLAKE2b, kept in the cache with each file's state (`hashing.py`), so that what has not changed
    is not read again. A file that cannot be read has zeros.
    """
    digests = open_digests(index.root)
    paths = [index.paths[row] for row in _list_rows(index)]
    parts: list[bytes] = []
    with ThreadPoolExecutor(threads, thread_name_prefix="digest") as pool:
        for start in range(0, len(paths), _PART):
            part = pool.map(digests.digest, paths[start : start + _PART])
            parts += [digest or bytes(16) for digest in part]
            yield Progress(done=len(parts), total=len(paths), activity="images compared")
    digests.flush()
    return np.frombuffer(b"".join(parts), np.uint64).reshape(-1, 2)


def record_origin(run: RunFolder, plan: "Plan", index: Index, contents: "NDArray[np.uint64]") -> Origin:
    """Write the digests of rows and images into the run, and return what the training state keeps.

    Raises:
        ConvnextError: the disk is full, read-only or gone.
    """
    rows = digest_split(index)
    run.write_origin({"rows": rows, "images": contents})
    return Origin(
        model=plan.model,
        weights=plan.weights,
        settings=plan.values,
        classes=list(index.classes),
        split=sum_digests(rows),
        images=sum_digests(contents),
    )


def read_origin(run: RunFolder) -> Origin | None:
    """Return what the run's newest state that can be read keeps; None where it was written before states kept it."""
    from safetensors import safe_open

    for path in run.list_checkpoints():
        try:
            with safe_open(path, "np") as file:
                kept = json.loads(file.metadata()["state"]).get("origin")
            return Origin(**kept) if kept else None
        except Exception:  # noqa: S112  (damaged: safetensors' errors, OSError and JSON's share no base class)
            continue
    return None


def check_plan(run: RunFolder, origin: Origin, model: str, weights: str, settings: Mapping[str, Any]) -> list[str]:
    """Compare a run's plan file with what the run began with, and return a note for each change that is allowed.

    Raises:
        RunError: another value differs; all are named.
    """
    before = {"model": origin.model, "weights": origin.weights, **origin.settings}
    after = {"model": model, "weights": weights, **settings}
    changed = {name: (after[name], value) for name, value in before.items() if name in after and after[name] != value}
    notes = []
    for name in CHANGEABLE:
        if name in changed:
            value, former = changed.pop(name)
            effect = (
                "rounding, and draws of drop path, differ" if name == "micro_batch_size" else "the result is the same"
            )
            notes.append(f"{name} = {value} in {run.plan}, {former} when the run began: {effect}")
    if changed:
        what = "; ".join(
            f"{name} = {value!r}, the run began with {former!r}" for name, (value, former) in changed.items()
        )
        raise RunError(
            f"{run.plan} was changed: {what}",
            f"Set these values back, {_AGAIN}: --config {run.plan} trains with the changed ones",
        )
    return notes


def check_split(run: RunFolder, origin: Origin, index: Index, *, folder: Path | None = None) -> None:
    """Compare a run's split with what the run began with.

    Args:
        run: the run, which has the digests of its rows.
        origin: what its state keeps.
        index: the split.
        folder: where the split was read from; None for the run itself.

    Raises:
        RunError: rows or classes differ; the first five rows are named.
    """
    folder = folder or run.path
    if list(index.classes) != origin.classes:
        raise RunError(
            f"the classes in {folder / 'data.json'} were changed: {_list_names(index.classes)}; the run began with "
            f"{_list_names(origin.classes)}",
            f"Put them back, {_AGAIN}",
        )
    rows = digest_split(index)
    if sum_digests(rows) == origin.split:
        return
    former = run.read_origin().get("rows")
    what = "which rows is unknown, because last/origin.safetensors is missing or damaged"
    if former is not None and sum_digests(former) == origin.split:
        kept = Counter(former.tolist())
        new = []
        for row, digest in enumerate(rows.tolist()):
            kept[digest] -= 1
            if kept[digest] < 0:
                new.append(index.paths[row])
        gone = len(former) - len(rows)
        told = [f"{len(new)} rows differ ({_list_names(new)})"] if new else []
        told += [f"{gone} rows are gone"] if gone > 0 else [f"{-gone} rows are new"] if gone < 0 else []
        what = ", ".join(told) or "its rows are in another order"
    raise RunError(f"{folder / 'split.csv'} was changed: {what}", f"Put the former file back, {_AGAIN}")


def check_contents(run: RunFolder, origin: Origin, index: Index, contents: "NDArray[np.uint64]") -> None:
    """Compare the bytes of the images with those that the run began with.

    Raises:
        DataError: some differ; the first five are named.
    """
    if sum_digests(contents) == origin.images:
        return
    former = run.read_origin().get("images")
    names = "which ones is unknown, because last/origin.safetensors is missing or damaged"
    if former is not None and sum_digests(former) == origin.images:
        rows = _list_rows(index)
        differing = [index.paths[rows[place]] for place in np.flatnonzero((former != contents).any(axis=1))]
        names = f"{len(differing)} of {len(rows)} differ: {_list_names(differing)}"
    raise DataError(
        f"the images in {index.root} are not those that {run.path} began with: {names}",
        f"Bring the former files back, {_AGAIN}",
    )


def _list_rows(index: Index) -> list[int]:
    return [*index.rows("train"), *index.rows("val")]


def _list_names(names: Sequence[str]) -> str:
    return ", ".join(names[:SHOWN]) + (" …" if len(names) > SHOWN else "")


def sum_digests(digests: "NDArray[np.uint64]") -> str:
    """Return one digest of many, in hexadecimal digits."""
    return hashlib.blake2b(np.ascontiguousarray(digests).data, digest_size=16).hexdigest()
