"""Augment training images: rotation, jitter, RandAugment, erasing. Only Pillow and NumPy are used.

timm has most of these too, but draws from Python's global random numbers: the result then depends on the threads, and a
run cannot be resumed. Here all numbers come from the generator argument, and a setting that is off draws none. Grey
images stay grey.
"""

import math
from collections.abc import Callable

import numpy as np
from PIL import Image, ImageEnhance, ImageOps

from convnext_cli.images.preprocessing import MAX_MAGNITUDE
from convnext_cli.images.raster import Pixels, is_grey

Box = tuple[float, float, float, float]  # left, top, right, bottom, in pixels

# As in timm's rand-m9-mstd0.5-inc1, which the authors of ConvNeXt use (arXiv:2201.03545, tables 5 and 6).
OPERATIONS_PER_IMAGE = 2
CHANCE = 0.5  # of each operation, once it is drawn
SPREAD = 0.5  # standard deviation of the magnitude
ERASED = (0.02, 1 / 3)  # fraction of the area: timm's bounds, as the authors used; arXiv:1708.04896 has 0.02 to 0.4
ERASED_RATIO = 0.3  # of the narrowest rectangle, height to width or width to height


def turn_crop(
    image: Pixels, box: Box, size: tuple[int, int], degrees: float, resample: Image.Resampling
) -> Image.Image:
    """Crop `box` from (H, W, 3), scale it to `size` (W, H), and rotate it counter-clockwise about its centre.

    The crop is scaled first and rotated then, because an affine transform skips pixels that resizing averages. Compared
    with a transform at eight times the resolution (PSNR), photos scaled down by 3 reach 39 dB this way and 30 dB in one
    step; scaled down by 1.33, 43 and 40 dB.

    The corners show the surroundings of the box; beyond the image's edge, the mirrored image. A corner of one colour
    would be an edge that no X-ray has.
    """
    cos, sin = math.cos(math.radians(degrees)), math.sin(math.radians(degrees))
    width, height = size
    wide = math.ceil(width * (abs(cos) + abs(sin) * (height / width))) + 2  # wide x tall contains the turned rectangle
    tall = math.ceil(height * (abs(cos) + abs(sin) * (width / height))) + 2
    more_x, more_y = ((box[i + 2] - box[i]) * ((wide, tall)[i] / size[i] - 1) / 2 for i in (0, 1))
    left, top, right, bottom = box[0] - more_x, box[1] - more_y, box[2] + more_x, box[3] + more_y
    above, below = max(0, math.floor(-top) + 1), max(0, math.floor(bottom - image.shape[0]) + 1)
    before, after = max(0, math.floor(-left) + 1), max(0, math.floor(right - image.shape[1]) + 1)
    channels = image[..., 0] if is_grey(image) else image  # the same pixels in a third of the time
    rows_and_columns = (above, below), (before, after)
    padded = np.pad(channels, (*rows_and_columns, (0, 0))[: channels.ndim], mode="reflect")
    around = (left + before, top + above, right + before, bottom + above)
    scaled = Image.fromarray(padded).resize((wide, tall), resample, box=around)
    x = (wide - width * (cos - sin * (height / width))) / 2
    y = (tall - height * (cos + sin * (width / height))) / 2
    turned = scaled.transform(size, Image.Transform.AFFINE, (cos, -sin, x, sin, cos, y), resample=resample)
    return turned.convert("RGB")


def jitter_light(image: Image.Image, random: np.random.Generator, most: float) -> Image.Image:
    """Multiply the brightness, and then the contrast about the mean grey, by a factor from 1 - most to 1 + most.

    Both are done in one step on all channels alike, so that nothing is clipped in between.
    """
    brightness, contrast = random.uniform(1 - most, 1 + most, size=2)
    mean = np.asarray(image.convert("L")).mean()
    levels = brightness * (mean + contrast * (np.arange(256) - mean))
    return image.point(levels.round().clip(0, 255).astype(int).tolist() * 3)


def rand_augment(
    image: Image.Image, random: np.random.Generator, magnitude: float, resample: Image.Resampling
) -> Image.Image:
    """Apply RandAugment (arXiv:1909.13719) with the operations of timm that do more at a larger magnitude.

    Pixels uncovered by a shift get the image's mean colour, not the mean of ImageNet as in timm, so that grey images
    stay grey.

    Source: timm 1.0.31, data/auto_augment.py, `rand-m{magnitude}-mstd0.5-inc1`.
    """
    for operation in random.integers(len(OPERATIONS), size=OPERATIONS_PER_IMAGE):
        if random.random() < CHANCE:
            level = min(max(random.normal(magnitude, SPREAD), 0.0), MAX_MAGNITUDE) / MAX_MAGNITUDE
            signed = level if random.random() < 0.5 else -level
            image = tuple(OPERATIONS.values())[operation](image, signed, resample)
    return image


def erase(image: Pixels, random: np.random.Generator) -> Pixels:
    """Replace a random rectangle of (H, W, 3) by noise, with position and shape as in arXiv:1708.04896.

    Noise, not one colour, as in the paper and for ConvNeXt; the same noise in all channels.
    """
    rows, columns = image.shape[:2]
    for _ in range(10):
        area = rows * columns * random.uniform(*ERASED)
        ratio = math.exp(random.uniform(math.log(ERASED_RATIO), -math.log(ERASED_RATIO)))
        height, width = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < height < rows and 0 < width < columns:
            top, left = random.integers(rows - height + 1), random.integers(columns - width + 1)
            changed = image.copy()
            noise = random.integers(256, size=(height, width, 1), dtype=np.uint8)
            changed[top : top + height, left : left + width] = noise
            return changed
    return image


def _move(image: Image.Image, matrix: tuple[float, ...], resample: Image.Resampling) -> Image.Image:
    """Move each pixel (x, y) from (a x + b y + c, d x + e y + f)."""
    return image.transform(image.size, Image.Transform.AFFINE, matrix, resample=resample, fillcolor=_mean_colour(image))


def _mean_colour(image: Image.Image) -> tuple[int, ...]:
    return image.reduce(image.size).getpixel((0, 0))  # type: ignore[return-value]


def _rotate(image: Image.Image, level: float, resample: Image.Resampling) -> Image.Image:
    return image.rotate(30 * level, resample=resample, fillcolor=_mean_colour(image))


def _posterize(image: Image.Image, level: float, _: Image.Resampling) -> Image.Image:
    """Keep 4 bits to 1. timm goes to 0 at magnitude 10, which is a black image."""
    return ImageOps.posterize(image, max(1, 4 - int(abs(level) * 4)))


def _solarize_add(image: Image.Image, level: float, _: Image.Resampling) -> Image.Image:
    more = int(abs(level) * 110)
    return image.point([min(255, i + more) if i < 128 else i for i in range(256)] * 3)


def _factor(level: float) -> float:
    return max(0.1, 1 + 0.9 * level)


# By timm's names: functions of an image, a level from -1 to 1 (its sign counts only for operations that have a
# direction), and the resampling filter.
OPERATIONS: dict[str, Callable[[Image.Image, float, Image.Resampling], Image.Image]] = {
    "AutoContrast": lambda image, _, __: ImageOps.autocontrast(image),
    "Equalize": lambda image, _, __: ImageOps.equalize(image),
    "Invert": lambda image, _, __: ImageOps.invert(image),
    "Rotate": _rotate,
    "PosterizeIncreasing": _posterize,
    "SolarizeIncreasing": lambda image, level, _: ImageOps.solarize(image, 256 - int(abs(level) * 256)),
    "SolarizeAdd": _solarize_add,
    "ColorIncreasing": lambda image, level, _: ImageEnhance.Color(image).enhance(_factor(level)),
    "ContrastIncreasing": lambda image, level, _: ImageEnhance.Contrast(image).enhance(_factor(level)),
    "BrightnessIncreasing": lambda image, level, _: ImageEnhance.Brightness(image).enhance(_factor(level)),
    "SharpnessIncreasing": lambda image, level, _: ImageEnhance.Sharpness(image).enhance(_factor(level)),
    "ShearX": lambda image, level, resample: _move(image, (1, 0.3 * level, 0, 0, 1, 0), resample),
    "ShearY": lambda image, level, resample: _move(image, (1, 0, 0, 0.3 * level, 1, 0), resample),
    "TranslateXRel": lambda image, level, resample: _move(image, (1, 0, 0.45 * level * image.width, 0, 1, 0), resample),
    "TranslateYRel": lambda image, level, resample: _move(
        image, (1, 0, 0, 0, 1, 0.45 * level * image.height), resample
    ),
}
