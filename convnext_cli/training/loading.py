"""The training images: their order in an epoch, how each is read and augmented, and each rank's slice of a batch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from convnext_cli.images.cache import ImageCache
from convnext_cli.images.decode import Pixels, decode_image
from convnext_cli.images.loaders import balance_rows, load_batches, seed_image, shuffle_rows
from convnext_cli.images.preprocessing import Augmentation, Preprocessing, describe_size
from convnext_cli.images.transforms import (
    augment_fitted,
    find_training_side,
    prepare_for_training,
    reduce_image,
    transform_for_training,
)
from convnext_cli.inference.classifier import open_for_eval
from convnext_cli.recipes.settings import WEIGHTS, Settings
from convnext_cli.recipes.tables import AUGMENTATION_SETTINGS
from convnext_cli.training.compute.devices import slice_for_rank
from convnext_cli.training.context import RankBatch, TrainingContext
from convnext_cli.training.teaching import choose_view


def draw_rows(context: TrainingContext, rows: Sequence[int], epoch: int) -> list[int]:
    """Return the training rows in the order of an epoch; for numbers above the index's length see `balance_rows`."""
    settings = context.settings
    if settings.sampler == "balanced":
        return balance_rows(rows, context.index.labels, seed=settings.seed, epoch=epoch)
    return shuffle_rows(rows, seed=settings.seed, epoch=epoch)


def open_training_images(context: TrainingContext, preprocessing: Preprocessing | None = None) -> ImageCache:
    """Return the training images at the size that crops are taken from, which is the same with and without the cache.

    Without random crops they are the images that evaluation sees. With the fit of the weights, crops are from the whole
    image, as in timm. A student and its teacher have the same images, so that their crops show the same.

    Args:
        context: model, data and settings.
        preprocessing: of the views; None for the model's.
    """
    preprocessing = preprocessing or context.preprocessing
    if context.settings.min_crop_area == 1:
        return open_for_eval(context.index, preprocessing, cache=context.cache)
    largest = find_largest_views(context)
    side = find_view_side(largest, context.settings)
    is_whole = context.settings.fit == WEIGHTS

    def make(path: Path) -> Pixels:
        image = decode_image(path, at_least=side)
        if is_whole:
            return reduce_image(image, side, preprocessing)
        return prepare_for_training(image, largest, context.settings.min_crop_area)

    purpose = f"training, shorter side at most {side} px, {preprocessing.interpolation}"
    if not is_whole:
        purpose += f", {largest.crop_mode} at {describe_size(largest)}"
    return ImageCache(context.index.root, purpose, make, keep=context.cache)


def find_largest_views(context: TrainingContext) -> Preprocessing:
    """Return the preprocessing of the model's views or of its teacher's: of those with more pixels."""
    views = [context.preprocessing, *([context.distillation.preprocessing] if context.distillation else [])]
    return max(views, key=lambda preprocessing: preprocessing.height * preprocessing.width)


def find_view_side(preprocessing: Preprocessing, settings: Settings) -> int:
    """Return the least shorter side, in pixels, of the images that crops are taken from."""
    choose = min if preprocessing.is_padded else max
    return find_training_side(choose(preprocessing.size), settings.min_crop_area)


def read_augmentation(settings: Settings) -> Augmentation:
    """Return the augmentation of a run's settings."""
    return Augmentation(**{name: getattr(settings, name) for name in AUGMENTATION_SETTINGS})


def load_view(
    context: TrainingContext, images: ImageCache, preprocessing: Preprocessing
) -> Callable[[int, int, int], Pixels]:
    """Return a function from a row, an epoch or view, and a draw to the row's image, (H, W, 3) uint8, augmented."""
    seed, paths, augmentation = context.settings.seed, context.index.paths, read_augmentation(context.settings)
    transform = augment_fitted if augmentation.min_crop_area == 1 else transform_for_training

    def load(row: int, view: int, draw: int) -> Pixels:
        return transform(images.read(paths[row]), preprocessing, seed_image(seed, view, draw), augmentation)

    return load


def load_training(context: TrainingContext, images: ImageCache, epoch: int) -> Callable[[int], Pixels]:
    """Return a function from a row to its image, (H, W, 3) uint8, augmented for this epoch.

    With a teacher, it is one of the views that the teacher has seen.
    """
    count, distillation = len(context.index), context.distillation
    load = load_view(context, images, context.preprocessing)

    def load_draw(draw: int) -> Pixels:
        row = draw % count
        if distillation is None:
            return load(row, epoch, draw)
        return load(row, choose_view(draw, count, epoch, distillation.views), row)

    return load_draw


def load_rank_batches(
    context: TrainingContext, batches: Sequence[Sequence[int]], images: ImageCache, epoch: int, *, mixes: bool
) -> Iterator[RankBatch]:
    """Yield this rank's slice of each batch of rows, loaded ahead by `context.threads` threads.

    Args:
        context: model, data and devices.
        batches: rows of each batch.
        images: where the images are read from.
        epoch: counted from 0; seeds the augmentation.
        mixes: True if mixup and CutMix are on.
    """
    accelerator, distillation = context.accelerator, context.distillation
    targets = torch.from_numpy(context.index.targets())
    slices = [slice_for_rank(accelerator, batch) or batch[:1] for batch in batches]
    loaded = load_batches(slices, load_training(context, images, epoch), threads=context.threads)
    for batch, (rows, pixels) in zip(batches, loaded, strict=True):
        yield RankBatch(
            images=pixels,
            targets=targets[torch.tensor(rows) % len(targets)],
            weight=1.0 if accelerator.process_index < len(batch) else 0.0,
            batch_images=len(batch),
            mixes=mixes,
            teacher=None if distillation is None else distillation.read(rows, len(targets), epoch),
        )
