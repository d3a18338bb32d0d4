"""The training images: their order in an epoch, how each is read and augmented, and each rank's slice of a batch."""

from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import torch

from convnext_cli.images.cache import ImageCache
from convnext_cli.images.decode import Pixels, decode_image
from convnext_cli.images.loaders import balance_rows, load_batches, seed_image, shuffle_rows
from convnext_cli.images.preprocessing import Augmentation
from convnext_cli.images.transforms import augment_resized, find_cached_side, reduce_image, transform_for_training
from convnext_cli.inference.classifier import open_for_eval
from convnext_cli.recipes.tables import AUGMENTATION_SETTINGS
from convnext_cli.training.compute.devices import slice_for_rank
from convnext_cli.training.context import RankBatch, TrainingContext


def draw_rows(context: TrainingContext, rows: Sequence[int], epoch: int) -> list[int]:
    """Return the training rows in the order of an epoch; for numbers above the index's length see `balance_rows`."""
    settings = context.settings
    if settings.sampler == "balanced":
        return balance_rows(rows, context.index.labels, seed=settings.seed, epoch=epoch)
    return shuffle_rows(rows, seed=settings.seed, epoch=epoch)


def open_training_images(context: TrainingContext) -> ImageCache:
    """Return the training images at the size that crops are taken from, which is the same with and without the cache.

    Without random crops they are the images that evaluation sees.
    """
    settings, preprocessing = context.settings, context.preprocessing
    if settings.min_crop_area == 1:
        return open_for_eval(context.index, preprocessing, cache=context.cache)
    side = find_cached_side(settings.image_size, settings.min_crop_area)

    def make(path: Path) -> Pixels:
        return reduce_image(decode_image(path, at_least=side), side, preprocessing)

    purpose = f"training, shorter side at most {side} px, {preprocessing.interpolation}"
    return ImageCache(context.index.root, purpose, make, keep=context.cache)


def load_training(context: TrainingContext, images: ImageCache, epoch: int) -> Callable[[int], Pixels]:
    """Return a function from a row to its image, (S, S, 3) uint8, augmented for this epoch."""
    settings, paths = context.settings, context.index.paths
    augmentation = Augmentation(**{name: getattr(settings, name) for name in AUGMENTATION_SETTINGS})
    transform = augment_resized if augmentation.min_crop_area == 1 else transform_for_training

    def load(draw: int) -> Pixels:
        image = images.read(paths[draw % len(paths)])
        return transform(image, context.preprocessing, seed_image(settings.seed, epoch, draw), augmentation)

    return load


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
    accelerator = context.accelerator
    labels = torch.tensor(context.index.labels)
    slices = [slice_for_rank(accelerator, batch) or batch[:1] for batch in batches]
    loaded = load_batches(slices, load_training(context, images, epoch), threads=context.threads)
    for batch, (rows, pixels) in zip(batches, loaded, strict=True):
        yield RankBatch(
            images=pixels,
            labels=labels[torch.tensor(rows) % len(labels)],
            weight=1.0 if accelerator.process_index < len(batch) else 0.0,
            batch_images=len(batch),
            mixes=mixes,
        )
