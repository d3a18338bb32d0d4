"""A teacher's outputs for the training images: computed once, and kept in the cache folder.

Each image has a fixed number of views, random crops with their augmentation, drawn from (seed, view, row). Epoch e of
the student shows view e modulo their number, so that a slow teacher sees each view once, however long the training.
"""

import json
import math
import os
import sys
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from shutil import disk_usage

import numpy as np
import PIL
from numpy.typing import NDArray

from convnext_cli.cache_folder import SPARED, TEACHERS, find_cache_folder, name_entry
from convnext_cli.data.index import Index
from convnext_cli.encoding import find_name
from convnext_cli.errors import UsageError
from convnext_cli.files import replace_file
from convnext_cli.images.decode import RULES
from convnext_cli.images.hashing import open_digests
from convnext_cli.images.loaders import cut_batches, load_batches
from convnext_cli.images.preprocessing import REDUCTION, Preprocessing, join_size
from convnext_cli.images.raster import Pixels
from convnext_cli.inference.onnx_classifier import ONNX_SUFFIX
from convnext_cli.inference.teacher import Teacher
from convnext_cli.progress import Notice, Progress, Steps
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import TrainSteps
from convnext_cli.training.loading import find_largest_views, plan_views, read_augmentation
from convnext_cli.training.parts.distillation import Distillation, DistillationLoss
from convnext_cli.training.views import OpenViews

CHUNK = 32  # images per pass of the teacher; fixed, because a batch's size decides the rounding


def plan_distillation(context: TrainingContext, teacher: Teacher) -> Distillation:
    """Return what the student learns from the teacher, before its outputs are computed.

    Logits are learned if the teacher knows all classes.

    Raises:
        UsageError: there is nothing to learn.
    """
    settings, classes = context.settings, context.index.classes
    positions = [find_name(name, teacher.classifier.classes) for name in classes]
    missing = [name for name, position in zip(classes, positions, strict=True) if position is None]
    weight = 1.0 if settings.unlabelled else settings.teacher_weight
    columns = () if missing or not weight else tuple(position for position in positions if position is not None)
    width = teacher.feature_width if settings.teacher_features else 0
    if not columns and not width:
        unknown = f"; it does not know {', '.join(missing[:5])}" if missing else ""
        raise UsageError(
            f"nothing is learned from the teacher {teacher.name}{unknown}",
            "Give a teacher of these classes, or a single model, with --teacher-weight or --teacher-features above 0",
        )
    return Distillation(
        teacher=teacher.identity,
        licenses=teacher.licenses,
        loss=DistillationLoss(
            labels=context.criterion,
            classes=len(classes),
            weight=weight if columns else 0.0,
            temperature=settings.teacher_temperature,
            features=settings.teacher_features,
        ),
        views=settings.teacher_views,
        columns=columns,
        feature_width=width,
        preprocessing=scale_views(context.preprocessing, teacher),
    )


def label_images(index: Index, teacher: Teacher, *, cache: bool) -> Steps[tuple[int, ...]]:
    """Return the class that the teacher predicts for each image of an index, from the cache if it is there."""
    digests = open_digests(index.root)
    content = b"".join([teacher.identity.encode(), *(digests.digest(name) or b"" for name in index.paths)])
    digests.flush()
    path = find_cache_folder() / TEACHERS / f"labels-{name_entry(content)}.npy"
    if cache:
        with suppress(OSError, ValueError):
            return tuple(np.load(path).tolist())
    teacher.classifier.cache = False  # the images are needed once
    rows = list(range(len(index)))
    outputs = yield from teacher.classifier.classify_rows(index, rows, activity="labels of the teacher")
    labels = outputs.logits.argmax(axis=1)
    if cache:
        with suppress(OSError):
            path.parent.mkdir(parents=True, exist_ok=True)
            with replace_file(path) as temporary, temporary.open("wb") as file:
                np.save(file, labels)
    return tuple(labels.tolist())


def compute_outputs(context: TrainingContext, teacher: Teacher, image_digest: str) -> TrainSteps[None]:
    """Compute the outputs of the context's distillation that are not in the cache. All ranks call it, for a part each.

    `image_digest` is that of the training images' files.
    """
    distillation, accelerator = context.distillation, context.accelerator
    assert distillation is not None
    rows = context.index.rows("train")
    distillation.positions = {row: position for position, row in enumerate(rows)}
    shape = (distillation.views, len(rows), len(distillation.columns) + distillation.feature_width)
    distillation.outputs, notice = _open_array(
        shape, _make_key(context, distillation, image_digest, shape), cache=context.cache
    )
    if notice is not None:
        yield notice
    chunks = [(view, chunk) for view in range(shape[0]) for chunk in cut_batches(range(shape[1]), CHUNK)]
    is_shared = isinstance(distillation.outputs, np.memmap)
    own = chunks[accelerator.process_index :: accelerator.num_processes] if is_shared else chunks
    yield from _fill(context, distillation, teacher, own)
    accelerator.wait_for_everyone()
    yield from _fill(context, distillation, teacher, chunks)  # of ranks on other machines, whose cache is another


def _fill(
    context: TrainingContext,
    distillation: Distillation,
    teacher: Teacher,
    chunks: Sequence[tuple[int, Sequence[int]]],
) -> Steps[None]:
    """Compute the chunks (view, positions) whose outputs are missing."""
    outputs, rows = distillation.outputs, list(distillation.positions)
    missing = [(view, chunk) for view, chunk in chunks if not outputs[view, chunk[0] : chunk[-1] + 1].any(axis=1).all()]
    if not missing:
        return
    views, count = OpenViews(plan_views(context, distillation.preprocessing)), len(rows)
    batches = ([view * count + position for position in chunk] for view, chunk in missing)
    total, done = sum(len(chunk) for _, chunk in missing), 0

    def load_number(number: int) -> Pixels:
        view, position = divmod(number, count)
        return views.load((rows[position], view, rows[position]))

    loaded = load_batches(batches, load_number, threads=context.threads)
    for (view, chunk), (_, pixels) in zip(missing, loaded, strict=True):
        outputs[view, chunk[0] : chunk[-1] + 1] = teacher.compute(
            pixels, distillation.columns, features=distillation.feature_width > 0
        )
        done += len(chunk)
        yield Progress(done=done, total=total, activity="outputs of the teacher")
    views.images.flush()
    if isinstance(outputs, np.memmap):
        outputs.flush()


def _make_key(context: TrainingContext, distillation: Distillation, image_digest: str, shape: tuple[int, ...]) -> str:
    """Return a digest of all that decides the outputs."""
    paths = "\0".join(context.index.paths[row] for row in distillation.positions).encode(errors="surrogateescape")
    content = {
        "teacher": distillation.teacher, "images": image_digest, "rows": name_entry(paths), "shape": shape,
        "seed": context.settings.seed, "augmentation": asdict(read_augmentation(context.settings)),
        "views": asdict(distillation.preprocessing), "largest": asdict(find_largest_views(context)),
        "fit": context.settings.fit, "columns": distillation.columns, "rules": (RULES, PIL.__version__),
    }  # fmt: skip
    return name_entry(json.dumps(content, sort_keys=True).encode())


def _open_array(shape: tuple[int, ...], key: str, *, cache: bool) -> tuple[NDArray[np.float16], Notice | None]:
    """Return the array in the cache folder, of zeros if it is new; in memory with a notice if it cannot be there."""
    path = find_cache_folder() / TEACHERS / f"{key}.npy"
    if not cache:
        return np.zeros(shape, np.float16), None
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        if not path.exists():
            _make_array(path, shape)
        return np.lib.format.open_memmap(path, mode="r+"), None
    except (OSError, ValueError) as error:
        text = f"the teacher's outputs are not cached in {path.parent}: {error}. A resumed run computes them again"
        return np.zeros(shape, np.float16), Notice(text)


def _make_array(path: Path, shape: tuple[int, ...]) -> None:
    """Create the file of an array of zeros."""
    disk, size = disk_usage(path.parent), 2 * math.prod(shape)
    if disk.free - size < SPARED * disk.total:
        raise OSError(f"it needs {size / 2**20:,.1f} MiB, and {disk.free / 2**20:,.1f} MiB are free")
    temporary = path.with_name(f".{path.name}.{os.getpid()}.tmp")
    try:
        np.lib.format.open_memmap(temporary, mode="w+", dtype=np.float16, shape=shape)
        if sys.platform == "linux":  # a disk that fills up later would end the process at the next write
            with temporary.open("r+b") as file:
                os.posix_fallocate(file.fileno(), 0, temporary.stat().st_size)
        with suppress(FileExistsError):  # of several ranks the first makes the file
            path.hardlink_to(temporary)
    finally:
        temporary.unlink(missing_ok=True)


def scale_views(preprocessing: Preprocessing, teacher: Teacher) -> Preprocessing:
    """Return the student's framing at the teacher's size: for a rectangle, at about its area.

    Raises:
        UsageError: the teacher is a file, which takes its own input size only, and the shapes differ.
    """
    theirs = teacher.classifier.preprocessing
    if preprocessing.height * theirs.width == preprocessing.width * theirs.height:
        return replace(preprocessing, image_size=theirs.image_size)
    if teacher.name.endswith(ONNX_SUFFIX):
        raise UsageError(
            f"the teacher {teacher.name} takes images of {theirs.height} x {theirs.width} px only",
            "Give its run, or an --image-size of the same shape",
        )
    factor = math.sqrt(theirs.height * theirs.width / (preprocessing.height * preprocessing.width))
    height, width = (max(1, round(factor * side / REDUCTION)) * REDUCTION for side in preprocessing.size)
    return replace(preprocessing, image_size=join_size(height, width))
