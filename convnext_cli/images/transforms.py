"""Transform an image of any size to the model's input, as uint8. There is one evaluation transform."""

import math

import numpy as np
from PIL import Image

from convnext_cli.images.augmentation import Box, erase, jitter_light, rand_augment, turn_crop
from convnext_cli.images.preprocessing import INTERPOLATIONS, Augmentation, Preprocessing
from convnext_cli.images.raster import Pixels, is_grey

_FILTERS = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}
MAX_RESIZED = 50_000_000  # pixels
MAX_CACHED = 3.0  # times the input's side, for very small crops


def transform_for_eval(image: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Frame an image (H, W, 3) as the model's input, with the same pixels as timm's evaluation transform.

    Source: timm 1.0.31, data/transforms_factory.py, transforms_imagenet_eval.
    """
    return pad_image(fit_image(image, preprocessing), preprocessing)


def fit_image(image: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Scale an image (H, W, 3) and crop its centre: the input without its padding, (h, w, 3)."""
    height, width = image.shape[:2]
    resized, box = _plan_fit(width, height, preprocessing)
    pil_image = _to_pil(image)
    if resized[0] * resized[1] > MAX_RESIZED:  # a very long image: scale only the part that the crop keeps
        size = (box[2] - box[0], box[3] - box[1])
        part = _scale_box(box, resized, width, height)
        return np.asarray(_to_rgb(pil_image.resize(size, _FILTERS[preprocessing.interpolation], box=part)))
    if pil_image.size != resized:
        pil_image = pil_image.resize(resized, _FILTERS[preprocessing.interpolation])
    return np.asarray(_to_rgb(pil_image.crop(box)))


def pad_image(image: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Centre an image (h, w, 3) in the frame, on the value of the padding; an image of the frame's size is returned."""
    if image.shape[:2] == preprocessing.size:
        return image
    assert preprocessing.fill is not None
    framed = np.full((*preprocessing.size, 3), preprocessing.fill, np.uint8)
    height, width = image.shape[:2]
    top, left = (preprocessing.height - height) // 2, (preprocessing.width - width) // 2
    framed[top : top + height, left : left + width] = image
    return framed


def locate_frame(width: int, height: int, preprocessing: Preprocessing) -> Box:
    """Return the frame of evaluation: left, top, right, bottom, in pixels of the image; with padding, beyond it."""
    resized, (left, top, right, bottom) = _plan_fit(width, height, preprocessing)
    left -= (preprocessing.width - (right - left)) // 2
    top -= (preprocessing.height - (bottom - top)) // 2
    frame = (left, top, left + preprocessing.width, top + preprocessing.height)
    return _scale_box(frame, resized, width, height)


def measure_unseen(width: int, height: int, preprocessing: Preprocessing) -> float:
    """Return the fraction of an image's area that evaluation never sees."""
    left, top, right, bottom = locate_frame(width, height, preprocessing)
    seen = (min(right, width) - max(left, 0)) * (min(bottom, height) - max(top, 0))
    return max(0.0, 1 - seen / (width * height))


def _plan_fit(
    width: int, height: int, preprocessing: Preprocessing
) -> tuple[tuple[int, int], tuple[int, int, int, int]]:
    """Return the size (W, H) to which evaluation scales an image, and the part of it that it keeps, in pixels."""
    resized = _plan_resize(width, height, preprocessing)
    left, right = _crop_centre(resized[0], preprocessing.width)
    top, bottom = _crop_centre(resized[1], preprocessing.height)
    return resized, (left, top, right, bottom)


def _plan_resize(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the size (W, H) to which evaluation scales an image, before the crop. The rounding is timm's."""
    rows, columns = (math.floor(side / preprocessing.crop_pct) for side in preprocessing.size)
    if preprocessing.crop_mode == "squash":
        return columns, rows
    if preprocessing.crop_mode == "center" and rows == columns:
        if width <= height:
            return columns, max(1, int(rows * height / width))
        return max(1, int(columns * width / height)), rows
    choose = min if preprocessing.crop_mode == "center" else max
    ratio = choose(height / rows, width / columns)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _crop_centre(side: int, kept: int) -> tuple[int, int]:
    """Return the first and the last pixel of the centre of a side that has `kept` pixels, or all if it is shorter."""
    if side <= kept:
        return 0, side
    first = round((side - kept) / 2)
    return first, first + kept


def _scale_box(box: tuple[int, int, int, int], resized: tuple[int, int], width: int, height: int) -> Box:
    """Return a box of the resized image in pixels of the image."""
    x, y = width / resized[0], height / resized[1]
    return box[0] * x, box[1] * y, box[2] * x, box[3] * y


def find_training_side(side: int, min_crop_area: float) -> int:
    """Return the pixels that training images keep where the input has `side`, so that no crop loses detail.

    The smallest crop of a square image (3:4, `min_crop_area` of the area) then still has `side` pixels on its shorter
    side: 1.63 times `side` for half of the area, and at most `MAX_CACHED` times, for crops below 15% of the area.
    """
    least = 1 / (0.75 * MAX_CACHED**2)
    return math.ceil(side / math.sqrt(0.75 * max(min_crop_area, least)))


def reduce_image(image: Pixels, side: int, preprocessing: Preprocessing) -> Pixels:
    """Scale (H, W, 3) so that its shorter side has `side` pixels; a smaller image is not changed."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter <= side:
        return image
    return _resize(image, round(width * side / shorter), round(height * side / shorter), preprocessing)


def prepare_for_training(image: Pixels, preprocessing: Preprocessing, min_crop_area: float) -> Pixels:
    """Return the part of an image (H, W, 3) that training crops are from, reduced as far as no crop loses detail.

    With `center` it is the largest central part of the frame's proportions, so that training is not made of what
    evaluation never sees. With `squash` it is the whole image at the frame's proportions, with `border` the whole image
    at its own.
    """
    rows, columns = preprocessing.size
    height, width = image.shape[:2]
    if preprocessing.crop_mode == "squash":
        factor = max(height / rows, width / columns)
        wide, tall = (min(find_training_side(side, min_crop_area), round(factor * side)) for side in (columns, rows))
        return _resize(image, wide, tall, preprocessing)
    if preprocessing.is_padded:
        side = min(_plan_content(width, height, preprocessing))
        return reduce_image(image, find_training_side(side, min_crop_area), preprocessing)
    tall, wide = min(height, round(width * rows / columns)), min(width, round(height * columns / rows))
    top, left = (height - tall) // 2, (width - wide) // 2
    part = image[top : top + max(1, tall), left : left + max(1, wide)]
    return reduce_image(part, find_training_side(min(rows, columns), min_crop_area), preprocessing)


def transform_for_training(
    image: Pixels, preprocessing: Preprocessing, random: np.random.Generator, augmentation: Augmentation
) -> Pixels:
    """Crop (H, W, 3) at random, scale the crop to the frame, (S, S, 3) for a square one, and augment it.

    The crop keeps a fraction of the area from `min_crop_area` to 1, at 3/4 to 4/3 of the frame's proportions, drawn as
    in torchvision's RandomResizedCrop. With padding, the proportions are those of the image, and the padding is that of
    evaluation.
    """
    height, width = image.shape[:2]
    size = preprocessing.width, preprocessing.height
    proportions = size[0] / size[1]
    if preprocessing.is_padded:
        size, proportions = _plan_content(width, height, preprocessing), width / height
    box = _draw_crop(width, height, random, augmentation.min_crop_area, proportions)
    return pad_image(_augment(image, box, size, preprocessing, random, augmentation), preprocessing)


def augment_fitted(
    image: Pixels, preprocessing: Preprocessing, random: np.random.Generator, augmentation: Augmentation
) -> Pixels:
    """Augment an image that `fit_image` returned, (h, w, 3), and pad it."""
    height, width = image.shape[:2]
    augmented = _augment(image, (0, 0, width, height), (width, height), preprocessing, random, augmentation)
    return pad_image(augmented, preprocessing)


def _plan_content(width: int, height: int, preprocessing: Preprocessing) -> tuple[int, int]:
    """Return the size (W, H) at which the padded frame holds the whole image."""
    ratio = max(height / preprocessing.height, width / preprocessing.width)
    return max(1, round(width / ratio)), max(1, round(height / ratio))


def _resize(image: Pixels, width: int, height: int, preprocessing: Preprocessing) -> Pixels:
    if image.shape[:2] == (height, width):
        return image
    return np.asarray(_to_rgb(_to_pil(image).resize((width, height), _FILTERS[preprocessing.interpolation])))


def _augment(
    image: Pixels,
    box: Box,
    size: tuple[int, int],
    preprocessing: Preprocessing,
    random: np.random.Generator,
    augmentation: Augmentation,
) -> Pixels:
    """Crop, scale to `size` (W, H) and augment. Padding comes after, so that it keeps its value.

    A setting that is off draws no number (except the flip), so that it changes no other.
    """
    resample = _FILTERS[preprocessing.interpolation]
    is_flipped = random.random() < augmentation.hflip
    if augmentation.rotation:
        degrees = random.uniform(-augmentation.rotation, augmentation.rotation)
        pil_image = turn_crop(image, box, size, degrees, resample)
    else:
        pil_image = _to_rgb(_to_pil(image).resize(size, resample, box=box))
    if is_flipped:
        pil_image = pil_image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.jitter:
        pil_image = jitter_light(pil_image, random, augmentation.jitter)
    if augmentation.rand_augment:
        pil_image = rand_augment(pil_image, random, augmentation.rand_augment, resample)
    changed = np.asarray(pil_image)
    return erase(changed, random) if augmentation.erasing and random.random() < augmentation.erasing else changed


def _draw_crop(width: int, height: int, random: np.random.Generator, min_area: float, proportions: float) -> Box:
    """Draw a crop at 3/4 to 4/3 of `proportions`, width to height."""
    for _ in range(10):
        area = width * height * random.uniform(min_area, 1.0)
        ratio = proportions * math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return x, y, x + w, y + h
    # a very long image: the largest central part within the proportions
    w, h = min(width, round(height * 4 / 3 * proportions)), min(height, round(width * 4 / 3 / proportions))
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def _to_pil(image: Pixels) -> Image.Image:
    """Return a PIL image to resize. A grey image gets one channel: the same pixels in less than half the time."""
    return Image.fromarray(np.ascontiguousarray(image[..., 0]) if is_grey(image) else image)


def _to_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")
