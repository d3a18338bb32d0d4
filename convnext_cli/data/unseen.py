"""The part of images that evaluation never sees, overall and by class."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias

from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.text import format_percent

Shape: TypeAlias = tuple[str, int, int]
"""An image's class, and its width and height in pixels."""
MAX_UNSEEN = 0.1  # fraction of the area; more is reported
MAX_GAP = 0.05  # difference between classes; more is reported
MIN_IMAGES = 10  # of a class; the fraction of fewer is not compared
CROP_PCTS = (0.875, 1.0)  # of a centre crop: timm's usual, and the largest


@dataclass(frozen=True, kw_only=True, slots=True)
class Unseen:
    """The fraction of images' area that evaluation never sees: the mean over images."""

    area: float
    by_class: dict[str, float]
    is_uneven: bool
    """True if the classes differ by more than `MAX_GAP`."""

    @property
    def rounds_to_none(self) -> bool:
        """True if the area is shown as 0%."""
        return self.area < 0.005

    @property
    def is_notable(self) -> bool:
        """True if it is more than `MAX_UNSEEN`, or if the classes differ."""
        return self.area > MAX_UNSEEN or self.is_uneven

    def __str__(self) -> str:
        if not self.is_uneven:
            return f"{format_percent(self.area)}% of the images' area"
        ordered = sorted(self.by_class.items(), key=lambda item: item[1])
        parts = [f"{format_percent(area)}% of {name}" for name, area in (ordered[0], ordered[-1])]
        return f"{format_percent(self.area)}% of the images' area, {' and '.join(parts)}"


def measure_centre_crops(shapes: Sequence[Shape]) -> dict[float, Unseen]:
    """Return what a square centre crop never sees, by `crop_pct`; nothing if there are no images."""
    usual = Preprocessing(
        image_size=224, crop_pct=1.0, crop_mode="center", interpolation="bicubic", mean=(0.5,), std=(0.5,)
    )
    measured = {pct: measure_unseen_area(shapes, replace(usual, crop_pct=pct)) for pct in CROP_PCTS}
    return {pct: unseen for pct, unseen in measured.items() if unseen is not None}


def measure_unseen_area(shapes: Sequence[Shape], preprocessing: Preprocessing) -> Unseen | None:
    """Return what evaluation never sees of images with these shapes; None if there are none."""
    if not shapes:
        return None
    from convnext_cli.images.transforms import measure_unseen  # NumPy and Pillow, which a plan does without

    sums: dict[str, float] = {}
    images: Counter[str] = Counter()
    for (name, width, height), count in Counter(shapes).items():
        sums[name] = sums.get(name, 0.0) + count * measure_unseen(width, height, preprocessing)
        images[name] += count
    by_class = {name: sums[name] / images[name] for name in sorted(sums)}
    compared = [area for name, area in by_class.items() if images[name] >= MIN_IMAGES]
    return Unseen(
        area=sum(sums.values()) / images.total(),
        by_class=by_class,
        is_uneven=len(compared) > 1 and max(compared) - min(compared) > MAX_GAP,
    )
