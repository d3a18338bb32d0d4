"""What makes a training picture differ each time: turns, light, RandAugment, erasing. Pillow and NumPy alone.

timm has most of it too, but draws from Python's global random numbers: which picture gets which then depends on the
threads, and a run cannot be continued. Here all numbers come from the generator that is given, and a setting that is
off draws none. What is grey stays grey.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from convnext_cli.images.decode import Pixels
from convnext_cli.images.preprocessing import MAX_MAGNITUDE

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

# As in timm's rand-m9-mstd0.5-inc1, which the authors of ConvNeXt use (arXiv:2201.03545, tables 5 and 6).
OPERATIONS_AN_IMAGE = 2
CHANCE = 0.5  # of each operation, once it is drawn
SPREAD = 0.5  # standard deviation of the magnitude
ERASED = (0.02, 1 / 3)  # share of the area: timm's bounds, which the authors used; arXiv:1708.04896 has 0.02 to 0.4
ERASED_RATIO = 0.3  # narrowest rectangle, height to width or width to height


def turn_crop(image: Pixels, box: Box, size: int, degrees: float, resample: Image.Resampling) -> Image.Image:
    """Cuts `box` out of (H, W, 3), scales it to a square of `size`, and turns it counter-clockwise about its centre.

    Scaled first and turned then: an affine transform skips the pixels between those that it reads, where resizing, as
    in evaluation, takes their mean. Compared with a transform at eight times the resolution (PSNR), photos made 3 times
    smaller reach 39 dB this way and 30 dB in one step, 1.33 times smaller 43 and 40 dB.

    What lies around the box comes in at the corners; beyond the image's edge, the image mirrored. A corner of one
    colour would be an edge that no X-ray has.
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    wide = math.ceil(size * (abs(cos) + abs(sin))) + 2  # holds the turned square
    height, width = image.shape[:2]
    more_x, more_y = ((box[i + 2] - box[i]) * (wide / size - 1) / 2 for i in (0, 1))
    left, top, right, bottom = box[0] - more_x, box[1] - more_y, box[2] + more_x, box[3] + more_y
    above, below = max(0, math.floor(-top) + 1), max(0, math.floor(bottom - height) + 1)
    before, after = max(0, math.floor(-left) + 1), max(0, math.floor(right - width) + 1)
    padded = np.pad(image, ((above, below), (before, after), (0, 0)), mode="reflect")
    around = (left + before, top + above, right + before, bottom + above)
    scaled = Image.fromarray(padded).resize((wide, wide), resample, box=around)
    x, y = (wide - size * (cos - sin)) / 2, (wide - size * (sin + cos)) / 2
    return scaled.transform((size, size), Image.Transform.AFFINE, (cos, -sin, x, sin, cos, y), resample=resample)


def jitter_light(picture: Image.Image, random: np.random.Generator, most: float) -> Image.Image:
    """Multiplies the brightness, and then the contrast about the mean grey, by a factor from 1 - most to 1 + most.

    Both in one step on all channels alike, so that nothing is clipped in between.
    """
    brightness, contrast = random.uniform(1 - most, 1 + most, size=2)
    mean = np.asarray(picture.convert("L")).mean()
    levels = brightness * (mean + contrast * (np.arange(256) - mean))
    return picture.point(levels.round().clip(0, 255).astype(int).tolist() * 3)


def rand_augment(
    picture: Image.Image, random: np.random.Generator, magnitude: float, resample: Image.Resampling
) -> Image.Image:
    """RandAugment (arXiv:1909.13719) with the operations of timm that do more at a larger magnitude.

    What a shift uncovers takes the image's mean colour, where timm takes the mean of ImageNet, so that grey stays grey.
    Source: timm 1.0.31, data/auto_augment.py, `rand-m{magnitude}-mstd0.5-inc1`.
    """
    for operation in random.integers(len(OPERATIONS), size=OPERATIONS_AN_IMAGE):
        if random.random() < CHANCE:
            level = min(max(random.normal(magnitude, SPREAD), 0.0), MAX_MAGNITUDE) / MAX_MAGNITUDE
            signed = level if random.random() < 0.5 else -level
            picture = tuple(OPERATIONS.values())[operation](picture, signed, resample)
    return picture


def erase(image: Pixels, random: np.random.Generator) -> Pixels:
    """Replaces a random rectangle of (S, S, 3) by noise, at a place and of a shape as arXiv:1708.04896 draws them.

    Noise and no flat colour, as the paper and the authors of ConvNeXt did; the same in all channels.
    """
    size = len(image)
    for _ in range(10):
        area = size * size * random.uniform(*ERASED)
        ratio = math.exp(random.uniform(math.log(ERASED_RATIO), -math.log(ERASED_RATIO)))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < height < size and 0 < width < size:
            top, left = random.integers(size - height + 1), random.integers(size - width + 1)
            changed = image.copy()
            noise = random.integers(256, size=(height, width, 1), dtype=np.uint8)
            changed[top : top + height, left : left + width] = noise
            return changed
    return image


def _move(picture: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling) -> Image.Image:
    """Takes each pixel (x, y) from (a x + b y + c, d x + e y + f)."""
    return picture.transform(
        picture.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=_mean_colour(picture)
    )


def _mean_colour(picture: Image.Image) -> tuple[int, ...]:
    return picture.reduce(picture.size).getpixel((0, 0))  # type: ignore[return-value]


def _rotate(picture: Image.Image, level: float, resample: Image.Resampling) -> Image.Image:
    return picture.rotate(30 * level, resample=resample, fillcolor=_mean_colour(picture))


def _posterize(picture: Image.Image, level: float, _: Image.Resampling) -> Image.Image:
    """Keeps 4 bits to 1. timm goes to 0 at magnitude 10: a black picture, which teaches nothing."""
    return ImageOps.posterize(picture, max(1, 4 - int(abs(level) * 4)))


def _solarize_add(picture: Image.Image, level: float, _: Image.Resampling) -> Image.Image:
    more = int(abs(level) * 110)
    return picture.point([min(255, i + more) if i < 128 else i for i in range(256)] * 3)


def _factor(level: float) -> float:
    return max(0.1, 1 + 0.9 * level)


# By timm's names: from a picture, a level from -1 to 1 (of which the size alone counts, where a direction means
# nothing), and the filter for what is moved.
OPERATIONS: dict[str, Callable[[Image.Image, float, Image.Resampling], Image.Image]] = {
    "AutoContrast": lambda picture, _, __: ImageOps.autocontrast(picture),
    "Equalize": lambda picture, _, __: ImageOps.equalize(picture),
    "Invert": lambda picture, _, __: ImageOps.invert(picture),
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": lambda picture, level, _: ImageOps.solarize(picture, 256 - int(abs(level) * 256)),
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": lambda picture, level, _: ImageEnhance.Color(picture).enhance(_factor(level)),
    "ContrastIncreasing": lambda picture, level, _: ImageEnhance.Contrast(picture).enhance(_factor(level)),
    "BrightnessIncreasing": lambda picture, level, _: ImageEnhance.Brightness(picture).enhance(_factor(level)),
    "SharpnessIncreasing": lambda picture, level, _: ImageEnhance.Sharpness(picture).enhance(_factor(level)),
    "ShearX": lambda picture, level, resample: _move(picture, (1, 0.3 * level, 0, 0, 1, 0), resample),
    "ShearY": lambda picture, level, resample: _move(picture, (1, 0, 0, 0.3 * level, 1, 0), resample),
    "TranslateXRel": lambda picture, level, resample: _move(
        picture, (1, 0, 0.45 * level * picture.width, 0, 1, 0), resample
    ),
    "TranslateYRel": lambda picture, level, resample: _move(
        picture, (1, 0, 0, 0, 1, 0.45 * level * picture.height), resample
    ),
}
