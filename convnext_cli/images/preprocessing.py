"""The preprocessing of images (framing, mean, std) and the settings of augmentation, as values."""

import math
import re
from dataclasses import dataclass
from typing import TypeAlias

INTERPOLATIONS = ("bicubic", "bilinear")
MAX_MAGNITUDE = 10.0  # of RandAugment
CROP_MODES = {"crop": "center", "pad": "border", "squash": "squash"}
"""timm's `crop_mode` by fit."""
REDUCTION = 32  # input pixels per position of the last feature map, in every ConvNeXt
MIN_SIDE, MAX_SIDE = 32, 2048  # px, of an input that can be trained

ImageSize: TypeAlias = int | str
"""Side of a square input in pixels, or height and width as `224x320`, as plans and the command line have it."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """The preprocessing of a model, with timm's field names. It describes the framing of images in one place.

    The frame is the part of an image that becomes the model's input. With padding it extends beyond the image.
    """

    image_size: int | tuple[int, int]
    """Side of a square input, or height and width, in pixels."""
    crop_pct: float
    """Fraction of the scaled image's sides that evaluation keeps, above 0 to 1."""
    crop_mode: str
    """`center` scales the image until it covers the frame; `border` scales it until the frame holds it, and pads it
    with `fill`; `squash` scales it to the frame's proportions."""
    interpolation: str
    """One of `INTERPOLATIONS`."""
    mean: tuple[float, ...]
    """Per channel, for values in 0 to 1. With one channel, the model gets the luminance of the RGB image."""
    std: tuple[float, ...]
    """As `mean`."""

    def __post_init__(self) -> None:
        """Check the values.

        Raises:
            ValueError: a field has an impossible value.
        """
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ValueError(f"mean and std must be finite: {self}")
        if isinstance(self.image_size, tuple) and self.height == self.width:
            raise ValueError(f"a square image_size is one number: {self}")
        is_known = self.interpolation in INTERPOLATIONS and self.crop_mode in CROP_MODES.values()
        if not (min(self.size) >= 1 and 0 < self.crop_pct <= 1 and is_known):
            raise ValueError(f"invalid preprocessing: {self}")
        if {len(self.mean), len(self.std)} not in ({1}, {3}) or min(self.std) <= 0:
            raise ValueError(f"mean and std need one channel or three: {self}")

    @property
    def size(self) -> tuple[int, int]:
        """Height and width of the model's input in pixels."""
        return self.image_size if isinstance(self.image_size, tuple) else (self.image_size, self.image_size)

    @property
    def height(self) -> int:
        """Height of the model's input in pixels."""
        return self.size[0]

    @property
    def width(self) -> int:
        """Width of the model's input in pixels."""
        return self.size[1]

    @property
    def fill(self) -> tuple[int, int, int] | None:
        """RGB value of the padding: timm's, the mean, which normalisation turns into about 0. None without padding."""
        if not self.is_padded:
            return None
        red, green, blue = (round(255 * value) for value in (self.mean if len(self.mean) == 3 else self.mean * 3))
        return red, green, blue

    @property
    def is_padded(self) -> bool:
        """True if images are padded to the frame."""
        return self.crop_mode == CROP_MODES["pad"]

    @property
    def is_grey(self) -> bool:
        """True if the model gets only the luminance."""
        return len(self.mean) == 1


def describe_size(preprocessing: Preprocessing) -> str:
    """Return the input's size as text: `224` for a square, `224 x 320` (height and width) for a rectangle."""
    height, width = preprocessing.size
    return f"{height}" if height == width else f"{height} x {width}"


def join_size(height: int, width: int) -> int | tuple[int, int]:
    """Return an input's size as `Preprocessing.image_size` has it: one number if it is square."""
    return height if height == width else (height, width)


def format_size(height: int, width: int) -> ImageSize:
    """Return an input's size as the setting `image_size` has it: 224, or `224x320`."""
    return height if height == width else f"{height}x{width}"


def split_size(size: ImageSize) -> tuple[int, int]:
    """Return height and width in pixels of the setting `image_size`."""
    if isinstance(size, int):
        return size, size
    height, width = map(int, size.split("x"))
    return height, width


def parse_size(text: str) -> ImageSize:
    """Return the input size that a text names: `224`, or height and width as `224x320`.

    Raises:
        ValueError: it is neither, or the sides of a rectangle are no multiples of 32 within the bounds.
    """
    match = re.fullmatch(r"\s*([+-]?\d+)(?:\s*[xX]\s*(\d+))?\s*", text, re.ASCII)
    if match is None:
        raise ValueError(f"{text!r} is not an image size; write 224, or height and width as 224x320")
    height, width = int(match[1]), int(match[2] or match[1])
    if height == width:
        return height
    if any(side % REDUCTION or not MIN_SIDE <= side <= MAX_SIDE for side in (height, width)):
        raise ValueError(
            f"{text!r}: the sides of a rectangle must be multiples of {REDUCTION} from {MIN_SIDE} to {MAX_SIDE:,} px"
        )
    return format_size(height, width)


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """The augmentation of training images. Each field is a setting of the same name."""

    min_crop_area: float
    """Smallest fraction of the area that a crop keeps; with 1, images are framed as in evaluation, not cropped."""
    hflip: float = 0.0
    """Probability of a left-right flip."""
    rotation: float = 0.0
    """Largest rotation in degrees, in either direction."""
    jitter: float = 0.0
    """Brightness and contrast are multiplied by factors from 1 minus this to 1 plus this."""
    rand_augment: float = 0.0
    """Magnitude of RandAugment, at most `MAX_MAGNITUDE`."""
    erasing: float = 0.0
    """Probability that a rectangle is replaced by noise."""
