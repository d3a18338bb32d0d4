"""The training images: their order in an epoch, and how each is read and augmented."""

from collections.abc import Callable, Sequence
from pathlib import Path

from convnext_cli.images.cache import ImageCache
from convnext_cli.images.decode import Pixels, decode_image
from convnext_cli.images.loaders import balance_rows, seed_image, shuffle_rows
from convnext_cli.images.preprocessing import Augmentation
from convnext_cli.images.transforms import augment_resized, find_cached_side, reduce_image, transform_for_training
from convnext_cli.inference.classifier import open_for_eval
from convnext_cli.recipes.tables import AUGMENTATION_SETTINGS
from convnext_cli.training.context import TrainingContext


def draw_rows(context: TrainingContext, rows: Sequence[int], epoch: int) -> list[int]:
    """The training images in the order of an epoch; `balance_rows` says what numbers above the index's length are."""
    settings = context.settings
    if settings.sampler == "balanced":
        return balance_rows(rows, context.index.labels, seed=settings.seed, epoch=epoch)
    return shuffle_rows(rows, seed=settings.seed, epoch=epoch)


def open_training_images(context: TrainingContext) -> ImageCache:
    """The training images at the size that crops are taken from, with the cache or without it the same.

    Where nothing is cropped, they are the evaluation's own pictures, and the same to the pixel.
    """
    if context.settings.min_crop_area == 1:
        return open_for_eval(context.index, context.preprocessing, cache=context.cache)
    side, preprocessing = (
        find_cached_side(context.settings.image_size, context.settings.min_crop_area),
        context.preprocessing,
    )

    def make(path: Path) -> Pixels:
        return reduce_image(decode_image(path, at_least=side), side, preprocessing)

    purpose = f"training, shorter side at most {side} px, {preprocessing.interpolation}"
    return ImageCache(context.index.root, purpose, make, keep=context.cache)


def load_training(context: TrainingContext, pictures: ImageCache, epoch: int) -> Callable[[int], Pixels]:
    """A function that gives a row's image, (S, S, 3) uint8, as this epoch shows it."""
    settings, paths = context.settings, context.index.paths
    wanted = Augmentation(**{name: getattr(settings, name) for name in AUGMENTATION_SETTINGS})
    transform = augment_resized if wanted.min_crop_area == 1 else transform_for_training

    def load(draw: int) -> Pixels:
        image = pictures.read(paths[draw % len(paths)])
        return transform(image, context.preprocessing, seed_image(settings.seed, epoch, draw), wanted)

    return load
