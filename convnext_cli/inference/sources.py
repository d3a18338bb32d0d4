"""Images to classify: paths, PIL images and arrays, in any mixture."""

import os
from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass
from os import PathLike
from pathlib import Path
from typing import Any, TypeAlias

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from convnext_cli.data.inputs import find_images
from convnext_cli.errors import ImageError, UsageError
from convnext_cli.images.decode import convert_image, read_image
from convnext_cli.images.raster import Pixels, StepKind

ImageInput: TypeAlias = str | PathLike[str] | Image.Image | NDArray[np.uint8]
"""A path of an image or of a folder with images; a PIL image; or uint8 values: (H, W) grey, (H, W, 3) RGB, or
(N, H, W, 3) for N images."""

ARRAY_REMEDY = "Give uint8 values, 0 to 255, of shape (H, W), (H, W, 3) or (N, H, W, 3)"


@dataclass(frozen=True, kw_only=True, slots=True)
class Source:
    """One image to classify."""

    index: int
    """Position of the input that it is, or is part of."""
    item: int | None
    """Position in an (N, H, W, 3) array or among the images of a folder; None for other inputs."""
    content: Path | Image.Image | Pixels
    folder: Path | None = None
    """The folder that was given, of which this is an image; None for other inputs."""
    error: ImageError | None = None
    """The reason why a folder cannot be read or has no images."""

    @property
    def path(self) -> Path | None:
        """The file; None for an image in memory."""
        return self.content if isinstance(self.content, Path) else None

    @property
    def stem(self) -> str:
        """The file's name without its suffix, for the names of files made from it."""
        return self.content.stem if isinstance(self.content, Path) else "image"

    def read(self) -> tuple[Pixels, bool]:
        """Return the image, (H, W, 3) RGB uint8, upright, and True if it is one of several frames of its file.

        Raises:
            ImageError: it cannot be read.
        """
        if self.error is not None:
            raise self.error
        if isinstance(self.content, Path):
            decoded = read_image(self.content)
            return decoded.pixels, any(step.kind == StepKind.FRAME for step in decoded.steps)
        if isinstance(self.content, Image.Image):
            return convert_image(self.content, _name(self.index)), False
        grey = self.content.ndim == 2
        return np.repeat(self.content[..., None], 3, axis=2) if grey else np.ascontiguousarray(self.content), False


def list_sources(images: Iterable[ImageInput] | ImageInput) -> list[Source]:
    """Return the images of one input or several: an (N, H, W, 3) array gives N, a folder all below it, sorted.

    Raises:
        UsageError: an input is of another type, or an array has another dtype or shape.
    """
    inputs: Any = images
    if isinstance(images, np.ndarray) and images.dtype.kind in "OU":  # a column of paths
        inputs = images.ravel()
    elif isinstance(images, str | bytes | PathLike | Image.Image | np.ndarray) or not isinstance(images, Iterable):
        inputs = [images]  # other objects are refused below
    return [source for index, image in enumerate(inputs) for source in _split(index, image)]


def _split(index: int, image: Any) -> list[Source]:
    text = os.fspath(image) if isinstance(image, PathLike) else image
    if isinstance(text, str):
        if not text:  # `Path` takes it for "."
            raise UsageError(f"{_name(index)} is empty", "Give a path")
        path = Path(text)
        if not os.path.isdir(path):  # noqa: PTH112 - Path.is_dir raises for a name that is too long
            return [Source(index=index, item=None, content=path)]
        images, problems = find_images(path, Counter())
        return [
            Source(index=index, item=item, content=content, folder=path, error=error)
            for item, (content, error) in enumerate([*((each, None) for each in images), *problems])
        ]
    if isinstance(image, Image.Image):
        if 0 in image.size:
            raise UsageError(f"{_name(index)} is an image of {image.width} x {image.height} pixels", "Leave it out")
        return [Source(index=index, item=None, content=image)]
    if not isinstance(image, np.ndarray):
        raise UsageError(
            f"{_name(index)} is of type {type(image).__name__}", "Give a path, a PIL image or a NumPy array of uint8"
        )
    fits = image.ndim == 2 or (image.ndim in (3, 4) and image.shape[-1] == 3)
    if image.dtype != np.uint8 or not fits or 0 in image.shape[-3:]:
        raise UsageError(f"{_name(index)} is an array of {image.dtype} and shape {image.shape}", ARRAY_REMEDY)
    values = np.asarray(image)
    if image.ndim == 4:
        return [Source(index=index, item=item, content=part) for item, part in enumerate(values)]
    return [Source(index=index, item=None, content=values)]


def _name(index: int) -> str:
    return f"images[{index}]"
