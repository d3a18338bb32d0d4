"""The views of training images that a model or its teacher sees. No torch, so that other processes can load them."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import numpy as np
from numpy.typing import NDArray

from convnext_cli.images.cache import ImageCache, open_for_eval
from convnext_cli.images.decode import decode_image
from convnext_cli.images.loaders import load_batches, seed_image
from convnext_cli.images.preprocessing import Augmentation, Preprocessing, describe_size
from convnext_cli.images.raster import Pixels
from convnext_cli.images.transforms import (
    augment_fitted,
    find_training_side,
    prepare_for_training,
    reduce_image,
    transform_for_training,
)

Draw: TypeAlias = tuple[int, int, int]
"""Row, epoch or view, and number of the draw."""
Batches: TypeAlias = Iterator[tuple[list[Draw], NDArray[np.uint8]]]


def choose_view(draw: int, images: int, epoch: int, views: int) -> int:
    """Return the view that a draw of an epoch shows."""
    return (epoch + draw // images) % views


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainingViews:
    """The images, settings and seed of training views. It can be sent to another process."""

    root: Path
    """The data folder."""
    paths: tuple[str, ...]
    """Paths of all images of the index, relative to `root`."""
    preprocessing: Preprocessing
    """Framing and size of the views."""
    largest: Preprocessing
    """`preprocessing`, or that of the teacher's views if they have more pixels."""
    augmentation: Augmentation
    seed: int
    is_whole: bool
    """True if crops are from the whole image, as in timm: with the fit of the weights."""
    cache: bool
    """True to keep decoded images for later epochs and runs."""

    @property
    def has_crops(self) -> bool:
        """True if the views are random crops; otherwise they are augmented images of evaluation."""
        return self.augmentation.min_crop_area < 1


class OpenViews:
    """Views that are open for loading.

    Images are decoded at the size that crops are taken from, which is the same with and without the cache. Without
    random crops they are the images that evaluation sees. A student and its teacher have the same images, so that their
    crops show the same.
    """

    def __init__(self, views: TrainingViews) -> None:
        self.views = views
        self.images = _open_images(views)
        self._transform = transform_for_training if views.has_crops else augment_fitted

    def load(self, draw: Draw) -> Pixels:
        """Return the image of a draw, (H, W, 3) uint8. Thread-safe.

        Raises:
            ImageError: it cannot be read.
        """
        (row, view, number), views = draw, self.views
        image, random = self.images.read(views.paths[row]), seed_image(views.seed, view, number)
        return self._transform(image, views.preprocessing, random, views.augmentation)


class ThreadLoader:
    """Loads views in threads of this process; `workers.ProcessLoader` does in processes."""

    def __init__(self, views: TrainingViews, threads: int) -> None:
        self._views, self._threads = OpenViews(views), threads

    def load(self, batches: Iterable[Sequence[Draw]]) -> Batches:
        """Yield each batch's draws and images, (B, H, W, 3) uint8, loaded ahead.

        Raises:
            ImageError: an image cannot be read, when its batch is due.
        """
        return load_batches(batches, self._views.load, threads=self._threads)

    def flush(self) -> str | None:
        """Write the images that wait to be cached, between two calls of `load`; return why no more are cached."""
        self._views.images.flush()
        return self._views.images.failure

    def close(self) -> None:
        """Do nothing: there is no process."""


def _open_images(views: TrainingViews) -> ImageCache:
    if not views.has_crops:
        return open_for_eval(views.root, views.preprocessing, cache=views.cache)
    largest, area = views.largest, views.augmentation.min_crop_area
    choose = min if largest.is_padded else max
    side = find_training_side(choose(largest.size), area)

    def make(path: Path) -> Pixels:
        image = decode_image(path, at_least=side)
        if views.is_whole:
            return reduce_image(image, side, views.preprocessing)
        return prepare_for_training(image, largest, area)

    purpose = f"training, shorter side at most {side} px, {views.preprocessing.interpolation}"
    if not views.is_whole:
        purpose += f", {largest.crop_mode} at {describe_size(largest)}"
    return ImageCache(views.root, purpose, make, keep=views.cache)
