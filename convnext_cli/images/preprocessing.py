"""The preprocessing of images (size, crop, interpolation, mean, std) and the settings of augmentation, as values."""

import math
from dataclasses import dataclass

INTERPOLATIONS = ("bicubic", "bilinear")
MAX_MAGNITUDE = 10.0  # of RandAugment


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """The preprocessing of a model, with timm's field names. It describes the framing of images in one place."""

    image_size: int
    """Side of the square input, in pixels."""
    crop_pct: float
    """Fraction of the scaled image's side that the centre crop keeps, above 0 to 1."""
    crop_mode: str
    """`center` scales the shorter side and keeps the aspect ratio; `squash` scales both sides."""
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
        is_known = self.interpolation in INTERPOLATIONS and self.crop_mode in ("center", "squash")
        if not (self.image_size >= 1 and 0 < self.crop_pct <= 1 and is_known):
            raise ValueError(f"invalid preprocessing: {self}")
        if {len(self.mean), len(self.std)} not in ({1}, {3}) or min(self.std) <= 0:
            raise ValueError(f"mean and std need one channel or three: {self}")

    @property
    def is_grey(self) -> bool:
        """True if the model gets only the luminance."""
        return len(self.mean) == 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """The augmentation of training images. Each field is a setting of the same name."""

    min_crop_area: float
    """Smallest fraction of the area that a crop keeps; 1 uses the evaluation transform instead of random crops."""
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
