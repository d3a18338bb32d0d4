"""How an image becomes a model's input: size, crop, interpolation, mean and std."""

import math
from dataclasses import dataclass

from PIL import Image

_FILTERS = {"bicubic": Image.Resampling.BICUBIC, "bilinear": Image.Resampling.BILINEAR}


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
        is_known = self.interpolation in _FILTERS and self.crop_mode in ("center", "squash")
        if not (self.image_size >= 1 and 0 < self.crop_pct <= 1 and is_known):
            raise ValueError(f"no such preprocessing: {self}")
        if {len(self.mean), len(self.std)} not in ({1}, {3}) or min(self.std) <= 0:
            raise ValueError(f"mean and std need one channel or three: {self}")

    @property
    def is_grey(self) -> bool:
        """Whether the model is given the luminance alone."""
        return len(self.mean) == 1
