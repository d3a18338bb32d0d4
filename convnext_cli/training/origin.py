"""The start of a run: its model, settings, classes, split and images. A resumed run must have the same.

The values and two digests are in the training state. `last/origin.safetensors` has a digest for each row of the split
and for each image, from which an error names those that differ.
"""

import json
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.index import Index
from convnext_cli.errors import DataError, RunError
from convnext_cli.images.hashing import open_digests
from convnext_cli.machine import count_process_cpus
from convnext_cli.progress import Notice, Progress, Steps
from convnext_cli.recipes.plan import Plan
from convnext_cli.recipes.settings import BEFORE_FIT
from convnext_cli.runs.files import DATA, ORIGIN, SPLIT
from convnext_cli.runs.folder import RunFolder, restore_remedy
from convnext_cli.runs.split import describe_differences, digest_split, sum_digests
from convnext_cli.text import format_part, shorten_names

CHANGEABLE = ("micro_batch_size", "grad_checkpointing", "save_every")
"""Settings that depend on the machine and may change: only rounding and draws of drop path and dropout differ."""
NO_CONTENTS = np.zeros((0, 2), np.uint64)  # on ranks that do not compare
_PART = 256  # images digested between two events


@dataclass(frozen=True, kw_only=True, slots=True)
class Origin:
    """Model, settings, classes, split and images that a run began with."""

    model: str
    weights: str
    settings: dict[str, Any]
    classes: list[str]
    split: str
    """Digest of the split's rows, in order: path, class, group, split."""
    images: str
    """Digest of the files of the training and validation images, in order."""
    teacher: str | None = None
    """The teacher that is distilled; None without one."""
    teacher_identity: str = ""
    """Fingerprint of its weights."""


def digest_contents(index: Index) -> Steps[NDArray[np.uint64]]:
    """Return a digest of each training and validation image file, (M, 2) uint64: 128 bits of BLAKE2b.

    Digests are cached with each file's state (`hashing.py`), so that unchanged files are not read again. A file that
    cannot be read has zeros.
    """
    digests = open_digests(index.root)
    paths = [index.paths[row] for row in _list_rows(index)]
    parts: list[bytes] = []
    with ThreadPoolExecutor(count_process_cpus(), thread_name_prefix="digest") as pool:
        for start in range(0, len(paths), _PART):
            part = pool.map(digests.digest, paths[start : start + _PART])
            parts += [digest or bytes(16) for digest in part]
            yield Progress(done=len(parts), total=len(paths), activity="images compared")
    digests.flush()
    return np.frombuffer(b"".join(parts), np.uint64).reshape(-1, 2)


def record_origin(
    run: RunFolder, plan: Plan, index: Index, contents: NDArray[np.uint64], teacher_identity: str
) -> Origin:
    """Write the digests of rows and images into the run, and return its origin.

    Raises:
        ConvnextError: the disk is full, read-only or gone.
    """
    rows = digest_split(index)
    run.write_arrays(ORIGIN, {"rows": rows, "images": contents})
    return Origin(
        model=plan.model,
        weights=plan.weights,
        settings=plan.values,
        classes=list(index.classes),
        split=sum_digests(rows),
        images=sum_digests(contents),
        teacher=plan.teacher,
        teacher_identity=teacher_identity,
    )


def check_teacher_identity(origin: Origin, identity: str) -> None:
    """Compare the teacher's weights with those that the run began with.

    Raises:
        RunError: they differ.
    """
    if origin.teacher_identity not in ("", identity):
        raise RunError(
            f"the weights of the teacher {origin.teacher} are not those that the run began with",
            restore_remedy("the original teacher"),
        )


def read_origin(run: RunFolder) -> Origin | None:
    """Return the origin in the newest checkpoint that can be read; None without one."""
    from safetensors import safe_open

    for path in run.list_checkpoints():
        try:
            with safe_open(path, "np") as file:
                return Origin(**json.loads(file.metadata()["state"])["origin"])
        except Exception:  # noqa: S112  (damaged: safetensors' errors, OSError and JSON's share no base class)
            continue
    return None


def check_plan(run: RunFolder, origin: Origin, plan: Plan) -> list[Notice]:
    """Compare a run's plan file with what the run began with, and return a notice for each allowed change.

    Raises:
        RunError: other values differ; it names all of them.
    """
    before = {"model": origin.model, "weights": origin.weights, "teacher": origin.teacher}
    before |= BEFORE_FIT | origin.settings
    after = {"model": plan.model, "weights": plan.weights, "teacher": plan.teacher, **plan.values}
    changed = {name: (after[name], value) for name, value in before.items() if name in after and after[name] != value}
    notices = []
    for name in CHANGEABLE:
        if name in changed:
            value, former = changed.pop(name)
            differing = "rounding and random numbers of drop path and dropout differ"
            effect = differing if name == "micro_batch_size" else "the result is the same"
            notices.append(Notice(f"{name} = {value} in {run.plan}, {former} when the run began: {effect}"))
    if changed:
        changes = "; ".join(
            f"{name} = {value!r}, the run began with {former!r}" for name, (value, former) in changed.items()
        )
        raise RunError(
            f"{run.plan} was changed: {changes}",
            f"{restore_remedy('these values')}: --config {run.plan} trains with the changed ones",
        )
    return notices


def check_split(run: RunFolder, origin: Origin, index: Index, *, folder: Path) -> None:
    """Compare a run's split, of its own folder or of its cross-validation's, with what the run began with.

    Raises:
        RunError: rows or classes differ; it names the first five rows.
    """
    if list(index.classes) != origin.classes:
        raise RunError(
            f"the classes in {DATA.path(folder)} were changed: {shorten_names(index.classes)}; the run began with "
            f"{shorten_names(origin.classes)}",
            restore_remedy("them"),
        )
    rows = digest_split(index)
    if sum_digests(rows) == origin.split:
        return
    former = (run.read_arrays(ORIGIN) or {}).get("rows")
    differences = f"which rows is unknown, because {ORIGIN.name} is missing or damaged"
    if former is not None and sum_digests(former) == origin.split:
        differences = describe_differences(former.tolist(), rows.tolist(), index.paths)
    raise RunError(f"{SPLIT.path(folder)} was changed: {differences}", restore_remedy("the original file"))


def check_contents(run: RunFolder, origin: Origin, index: Index, contents: NDArray[np.uint64]) -> None:
    """Compare the image files with those that the run began with.

    Raises:
        DataError: some differ; it names the first five.
    """
    if sum_digests(contents) == origin.images:
        return
    former = (run.read_arrays(ORIGIN) or {}).get("images")
    names = f"which ones is unknown, because {ORIGIN.name} is missing or damaged"
    if former is not None and sum_digests(former) == origin.images:
        rows = _list_rows(index)
        differing = [index.paths[rows[i]] for i in np.flatnonzero((former != contents).any(axis=1))]
        number = format_part(len(differing), len(rows), "image", "differs", "differ")
        names = f"{number}: {shorten_names(differing)}"
    raise explain_other_images(index, run, f": {names}")


def explain_other_images(index: Index, run: RunFolder, names: str = "") -> DataError:
    """Return the error for images that are not those that a run began with; `names` says which."""
    problem = f"the images in {index.location} are not those that {run.path} began with{names}"
    return DataError(problem, restore_remedy("the original files"))


def _list_rows(index: Index) -> list[int]:
    """Return the rows whose image files are compared."""
    return [*index.rows("train"), *index.rows("val")]
