"""Transform an image of any size to the model's square input, as uint8. There is one evaluation transform."""

import math

import numpy as np
from PIL import Image

from convnext_cli.images.augmentation import Box, erase, jitter_light, rand_augment, turn_crop
from convnext_cli.images.decode import Pixels
from convnext_cli.images.preprocessing import INTERPOLATIONS, Augmentation, Preprocessing

_FILTERS = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}
MAX_RESIZED = 50_000_000  # pixels
MAX_CACHED = 3.0  # times the input's side, for very small crops


def transform_for_eval(image: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Resize and centre-crop (H, W, 3) to (S, S, 3), with the same pixels as timm's evaluation transform.

    `squash` scales both sides to `image_size / crop_pct`; `center` scales the shorter side and keeps the aspect ratio.

    Source: timm 1.0.31, data/transforms_factory.py, transforms_imagenet_eval.
    """
    size = preprocessing.image_size
    height, width = image.shape[:2]
    resized, left, top = _plan_crop(width, height, preprocessing)
    pil_image = _to_pil(image)
    if resized[0] * resized[1] > MAX_RESIZED:  # a very long image: scale only the part that the crop keeps
        box = locate_crop(width, height, preprocessing)
        return np.asarray(_to_rgb(pil_image.resize((size, size), _FILTERS[preprocessing.interpolation], box=box)))
    if pil_image.size != resized:
        pil_image = pil_image.resize(resized, _FILTERS[preprocessing.interpolation])
    return np.asarray(_to_rgb(pil_image.crop((left, top, left + size, top + size))))


def locate_crop(width: int, height: int, preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    """Return the part of an image that evaluation sees: left, top, right, bottom, in pixels of the image."""
    resized, left, top = _plan_crop(width, height, preprocessing)
    x, y = width / resized[0], height / resized[1]
    return left * x, top * y, (left + preprocessing.image_size) * x, (top + preprocessing.image_size) * y


def _plan_crop(width: int, height: int, preprocessing: Preprocessing) -> tuple[tuple[int, int], int, int]:
    """Return the size (W, H) to which evaluation scales an image, and the crop's left and top in it, in pixels."""
    target = math.floor(preprocessing.image_size / preprocessing.crop_pct)
    if preprocessing.crop_mode == "squash":
        resized = (target, target)
    elif width <= height:
        resized = (target, max(1, int(target * height / width)))
    else:
        resized = (max(1, int(target * width / height)), target)
    return (
        resized,
        round((resized[0] - preprocessing.image_size) / 2),
        round((resized[1] - preprocessing.image_size) / 2),
    )


def find_cached_side(image_size: int, min_crop_area: float) -> int:
    """Return the shorter side, in pixels, at which images are cached for training.

    The smallest crop of a square image (3:4, `min_crop_area` of the area) then still has `image_size` pixels on its
    shorter side, so that no crop loses detail. The side is 1.63 times `image_size` for half of the area, and at most
    `MAX_CACHED` times, for crops below 15% of the area.
    """
    least = 1 / (0.75 * MAX_CACHED**2)
    return math.ceil(image_size / math.sqrt(0.75 * max(min_crop_area, least)))


def reduce_image(image: Pixels, side: int, preprocessing: Preprocessing) -> Pixels:
    """Scale (H, W, 3) so that its shorter side has `side` pixels; a smaller image is not changed."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter <= side:
        return image
    size = (round(width * side / shorter), round(height * side / shorter))
    return np.asarray(_to_rgb(_to_pil(image).resize(size, _FILTERS[preprocessing.interpolation])))


def transform_for_training(
    image: Pixels, preprocessing: Preprocessing, random: np.random.Generator, augmentation: Augmentation
) -> Pixels:
    """Crop (H, W, 3) at random, scale the crop to (S, S, 3), and augment it.

    The crop keeps a fraction of the area from `min_crop_area` to 1, at an aspect ratio of 3/4 to 4/3, drawn as in
    torchvision's RandomResizedCrop. If `min_crop_area` is 1, the evaluation transform replaces the random crop.
    """
    if augmentation.min_crop_area == 1:
        return augment_resized(transform_for_eval(image, preprocessing), preprocessing, random, augmentation)
    box = _draw_crop(image.shape[1], image.shape[0], random, augmentation.min_crop_area)
    return _augment(image, box, preprocessing, random, augmentation)


def augment_resized(
    image: Pixels, preprocessing: Preprocessing, random: np.random.Generator, augmentation: Augmentation
) -> Pixels:
    """Augment an image that `transform_for_eval` returned, (S, S, 3)."""
    size = preprocessing.image_size
    return _augment(image, (0, 0, size, size), preprocessing, random, augmentation)


def _augment(
    image: Pixels, box: Box, preprocessing: Preprocessing, random: np.random.Generator, augmentation: Augmentation
) -> Pixels:
    """Crop, scale and augment. A setting that is off draws no number (except the flip), so that it changes no other."""
    size, resample = preprocessing.image_size, _FILTERS[preprocessing.interpolation]
    is_flipped = random.random() < augmentation.hflip
    if augmentation.rotation:
        degrees = random.uniform(-augmentation.rotation, augmentation.rotation)
        pil_image = turn_crop(image, box, size, degrees, resample)
    else:
        pil_image = _to_rgb(_to_pil(image).resize((size, size), resample, box=box))
    if is_flipped:
        pil_image = pil_image.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if augmentation.jitter:
        pil_image = jitter_light(pil_image, random, augmentation.jitter)
    if augmentation.rand_augment:
        pil_image = rand_augment(pil_image, random, augmentation.rand_augment, resample)
    changed = np.asarray(pil_image)
    return erase(changed, random) if augmentation.erasing and random.random() < augmentation.erasing else changed


def _draw_crop(width: int, height: int, random: np.random.Generator, min_area: float) -> Box:
    for _ in range(10):
        area = width * height * random.uniform(min_area, 1.0)
        ratio = math.exp(random.uniform(math.log(3 / 4), math.log(4 / 3)))
        w, h = round(math.sqrt(area * ratio)), round(math.sqrt(area / ratio))
        if 0 < w <= width and 0 < h <= height:
            x, y = int(random.integers(width - w + 1)), int(random.integers(height - h + 1))
            return x, y, x + w, y + h
    # a very long image: the largest central part within the aspect ratios
    w, h = min(width, round(height * 4 / 3)), min(height, round(width * 4 / 3))
    left, top = (width - w) / 2, (height - h) / 2
    return left, top, left + w, top + h


def _to_pil(image: Pixels) -> Image.Image:
    """Return a PIL image to resize. A grey image gets one channel: the same pixels in less than half the time."""
    for part in (image[::16, ::16], image):  # a few pixels show most colours
        if not ((part[..., 0] == part[..., 1]).all() and (part[..., 1] == part[..., 2]).all()):
            return Image.fromarray(image)
    return Image.fromarray(np.ascontiguousarray(image[..., 0]))


def _to_rgb(image: Image.Image) -> Image.Image:
    return image if image.mode == "RGB" else image.convert("RGB")
