"""The training images: their order in an epoch, how each is read and augmented, and each rank's slice of a batch."""

from collections.abc import Generator, Iterator, Sequence
from typing import TypeAlias

import numpy as np
import torch
from numpy.typing import NDArray

from convnext_cli.images.loaders import balance_rows, cut_batches, load_ahead, load_batches, shuffle_rows
from convnext_cli.images.preprocessing import Augmentation, Preprocessing
from convnext_cli.inference.classifier import load_for_eval
from convnext_cli.models.forward import pin
from convnext_cli.recipes.settings import WEIGHTS, Settings
from convnext_cli.recipes.tables import AUGMENTATION_SETTINGS
from convnext_cli.training.compute.ranks import slice_evenly, slice_for_rank
from convnext_cli.training.context import RankBatch, TrainingContext
from convnext_cli.training.views import Draw, ThreadLoader, TrainingViews, choose_view
from convnext_cli.training.workers import ProcessLoader

ViewLoader: TypeAlias = ThreadLoader | ProcessLoader
"""Loads the training images."""


def draw_rows(context: TrainingContext, rows: Sequence[int], epoch: int) -> list[int]:
    """Return the training rows in the order of an epoch; for numbers above the index's length see `balance_rows`."""
    settings = context.settings
    if settings.sampler == "balanced":
        return balance_rows(rows, context.index.labels, seed=settings.seed, epoch=epoch)
    return shuffle_rows(rows, seed=settings.seed, epoch=epoch)


def plan_views(context: TrainingContext, preprocessing: Preprocessing | None = None) -> TrainingViews:
    """Return the views of the training images that the model sees, or those with another preprocessing."""
    settings, index = context.settings, context.index
    return TrainingViews(
        root=index.root,
        paths=tuple(index.paths),
        preprocessing=preprocessing or context.preprocessing,
        largest=find_largest_views(context),
        augmentation=read_augmentation(settings),
        seed=settings.seed,
        is_whole=settings.fit == WEIGHTS,
        cache=context.cache,
    )


def find_largest_views(context: TrainingContext) -> Preprocessing:
    """Return the preprocessing of the model's views or of its teacher's: of those with more pixels."""
    views = [context.preprocessing, *([context.distillation.preprocessing] if context.distillation else [])]
    return max(views, key=lambda preprocessing: preprocessing.height * preprocessing.width)


def read_augmentation(settings: Settings) -> Augmentation:
    """Return the augmentation of a run's settings."""
    return Augmentation(**{name: getattr(settings, name) for name in AUGMENTATION_SETTINGS})


def load_as_evaluated(
    context: TrainingContext, rows: Sequence[int], batch_size: int
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """Yield this rank's part of rows in batches, with their images as evaluation sees them, (B, H, W, 3) uint8."""
    batches = cut_batches(slice_evenly(context.accelerator, rows), batch_size)
    load = load_for_eval(context.index, context.preprocessing, cache=context.cache)
    return load_batches(batches, load, threads=context.threads)


def open_loader(context: TrainingContext) -> ViewLoader:
    """Return the loader of the training images: threads or processes. The caller closes it."""
    views, workers = plan_views(context), context.workers
    if workers is None:
        workers = choose_workers(context.accelerator.device, context.threads)
    return ProcessLoader(views, workers, context.rank_batch_size) if workers else ThreadLoader(views, context.threads)


def choose_workers(device: torch.device, cores: int) -> int:
    """Return the number of processes that load the images of a training; 0 for threads.

    With a GPU, all cores but one, which trains: 16 cores beside an H200 loaded 1,200 images of 224 px a second by
    threads, which share Python's lock, and 4,750 by processes; convnext_tiny trains on 2,800, or 4,000 compiled
    (`benchmarks/README.md`). On a CPU the cores train, and a process only has to start.
    """
    return cores - 1 if device.type != "cpu" and cores > 2 else 0


def load_rank_batches(
    context: TrainingContext, batches: Sequence[Sequence[int]], loader: ViewLoader, epoch: int
) -> Generator[RankBatch, None, None]:
    """Yield this rank's slice of each batch of rows, loaded ahead.

    A thread puts the batches together: the thread that trains should only start the GPU's work. For rows above the
    index's length see `balance_rows`; the epoch, counted from 0, seeds the augmentation.
    """
    return load_ahead(_load_rank_batches(context, batches, loader, epoch))


def _load_rank_batches(
    context: TrainingContext, batches: Sequence[Sequence[int]], loader: ViewLoader, epoch: int
) -> Generator[RankBatch, None, None]:
    accelerator, distillation = context.accelerator, context.distillation
    targets = torch.from_numpy(context.index.targets())
    slices = [slice_for_rank(accelerator, batch) or batch[:1] for batch in batches]
    loaded = loader.load([[_draw(context, number, epoch) for number in rows] for rows in slices])
    for batch, rows, (_, pixels) in zip(batches, slices, loaded, strict=True):
        yield RankBatch(
            images=pin(torch.from_numpy(pixels), accelerator.device),
            targets=targets[torch.tensor(rows) % len(targets)],
            weight=1.0 if accelerator.process_index < len(batch) else 0.0,
            batch_images=len(batch),
            teacher=None if distillation is None else distillation.read(rows, len(targets), epoch),
        )


def _draw(context: TrainingContext, number: int, epoch: int) -> Draw:
    """Return the draw of a number of `draw_rows`. With a teacher, it is one of the views that the teacher has seen."""
    count, distillation = len(context.index), context.distillation
    row = number % count
    if distillation is None:
        return row, epoch, number
    return row, choose_view(number, count, epoch, distillation.views), row
