"""How an image becomes a model's input: size, crop, interpolation, mean and std."""

import math
from dataclasses import dataclass

INTERPOLATIONS = ("bicubic", "bilinear")
MAX_MAGNITUDE = 10.0  # of RandAugment


@dataclass(frozen=True, kw_only=True, slots=True)
class Preprocessing:
    """How images are prepared for a model: timm's fields of the same names.

    `image_size` is the side of the square input in pixels, `mean` and `std` are per channel, for values in 0 to 1.
    Images have three channels in any case; where `mean` and `std` have one, the model is given their luminance.
    """

    image_size: int
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __post_init__(self) -> None:
        """Refuses what no image could be prepared with.

        Raises:
            ValueError: a field has a value that it cannot have.
        """
        if not all(map(math.isfinite, (*self.mean, *self.std))):
            raise ValueError(f"mean and std must be finite: {self}")
        is_known = self.interpolation in INTERPOLATIONS and self.crop_mode in ("center", "squash")
        if not (self.image_size >= 1 and 0 < self.crop_pct <= 1 and is_known):
            raise ValueError(f"no such preprocessing: {self}")
        if {len(self.mean), len(self.std)} not in ({1}, {3}) or min(self.std) <= 0:
            raise ValueError(f"mean and std need one channel or three: {self}")

    @property
    def is_grey(self) -> bool:
        """Whether the model is given the luminance alone."""
        return len(self.mean) == 1


@dataclass(frozen=True, kw_only=True, slots=True)
class Augmentation:
    """How training pictures vary: the settings of the same names."""

    min_crop_area: float
    """Smallest share of the area that a crop keeps; 1 crops nothing and takes the evaluation's view."""
    hflip: float = 0.0
    """Chance of a left-right flip."""
    rotation: float = 0.0
    """Degrees, at most, either way."""
    jitter: float = 0.0
    """Brightness and contrast are multiplied by 1 minus this to 1 plus this."""
    rand_augment: float = 0.0
    """Magnitude, to `MAX_MAGNITUDE`."""
    erasing: float = 0.0
    """Chance that a rectangle is replaced by noise."""
