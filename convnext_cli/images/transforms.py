"""From an image of any size to the model's square input, as uint8. One evaluation transform serves all."""

import math

import numpy as np
from PIL import Image

from convnext_cli.images.augmentation import Box, erase, jitter_light, rand_augment, turn_crop
from convnext_cli.images.decode import Pixels
from convnext_cli.images.preprocessing import INTERPOLATIONS, Augmentation, Preprocessing

_FILTERS = {name: Image.Resampling[name.upper()] for name in INTERPOLATIONS}
MAX_RESIZED = 50_000_000  # pixels
MAX_STORED = 3.0  # times the input's side, where crops may be very small


def transform_for_eval(image: Pixels, preprocessing: Preprocessing) -> Pixels:
    """Resizes and centre-crops (H, W, 3) to (S, S, 3), to the pixel as timm's evaluation transform does.

    `squash` scales both sides to `image_size / crop_pct`; `center` scales the shorter one and keeps the proportions.
    Source: timm 1.0.31, data/transforms_factory.py, transforms_imagenet_eval.
    """
    size = preprocessing.image_size
    height, width = image.shape[:2]
    resized, left, top = _plan_crop(width, height, preprocessing)
    picture = _open_picture(image)
    if resized[0] * resized[1] > MAX_RESIZED:  # a very long image: scale the part that is kept, and no more
        box = locate_crop(width, height, preprocessing)
        return np.asarray(_to_rgb(picture.resize((size, size), _FILTERS[preprocessing.interpolation], box=box)))
    if picture.size != resized:
        picture = picture.resize(resized, _FILTERS[preprocessing.interpolation])
    return np.asarray(_to_rgb(picture.crop((left, top, left + size, top + size))))


def locate_crop(width: int, height: int, preprocessing: Preprocessing) -> tuple[float, float, float, float]:
    """Return the part of an image that evaluation sees: left, top, right, bottom, in pixels of the image."""
    resized, left, top = _plan_crop(width, height, preprocessing)
    x, y = width / resized[0], height / resized[1]
    return left * x, top * y, (left + preprocessing.image_size) * x, (top + preprocessing.image_size) * y


def _plan_crop(width: int, height: int, preprocessing: Preprocessing) -> tuple[tuple[int, int], int, int]:
    """Return the size (W, H) that evaluation scales an image to, and the crop's left and top in it, all in pixels."""
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
    """The shorter side, in pixels, at which an image is kept for training.

    At it, the smallest crop (3:4, `min_crop_area` of the area) of a square still has `image_size` pixels on its shorter
    side, so that no crop shows less detail than the model can see: 1.63 times the input's side for half of the area,
    and at most `MAX_STORED` times, for crops below 15%.
    """
    least = 1 / (0.75 * MAX_STORED**2)
    return math.ceil(image_size / math.sqrt(0.75 * max(min_crop_area, least)))


def reduce_image(image: Pixels, side: int, preprocessing: Preprocessing) -> Pixels:
    """Scales (H, W, 3) so that its shorter side has `side` pixels; a smaller image stays as it is."""
    height, width = image.shape[:2]
    shorter = min(height, width)
    if shorter <= side:
        return image
    size = (round(width * side / shorter), round(height * side / shorter))
    return np.asarray(_to_rgb(_open_picture(image).resize(size, _FILTERS[preprocessing.interpolation])))


def transform_for_training(
    image: Pixels, preprocessing: Preprocessing, random: np.random.Generator, wanted: Augmentation
) -> Pixels:
    """Takes a random crop of (H, W, 3), scales it to (S, S, 3), and changes it as `wanted`.

    The crop keeps `min_crop_area` to 1 of the area at an aspect ratio of 3/4 to 4/3, as torchvision's
    RandomResizedCrop draws it. Where `min_crop_area` is 1, the evaluation's view takes its place.
    """
    if wanted.min_crop_area == 1:
        return augment_resized(transform_for_eval(image, preprocessing), preprocessing, random, wanted)
    box = _draw_crop(image.shape[1], image.shape[0], random, wanted.min_crop_area)
    return _augment(image, box, preprocessing, random, wanted)


def augment_resized(
    view: Pixels, preprocessing: Preprocessing, random: np.random.Generator, wanted: Augmentation
) -> Pixels:
    """Changes what `transform_for_eval` gave, (S, S, 3), as `wanted`; where that asks for nothing, it is the same."""
    return _augment(view, (0, 0, preprocessing.image_size, preprocessing.image_size), preprocessing, random, wanted)


def _augment(
    image: Pixels, box: Box, preprocessing: Preprocessing, random: np.random.Generator, wanted: Augmentation
) -> Pixels:
    """What is off draws no number, but for the flip: another setting that is off changes no picture."""
    size, resample = preprocessing.image_size, _FILTERS[preprocessing.interpolation]
    is_flipped = random.random() < wanted.hflip
    if wanted.rotation:
        degrees = random.uniform(-wanted.rotation, wanted.rotation)
        picture = turn_crop(image, box, size, degrees, resample)
    else:
        picture = _to_rgb(_open_picture(image).resize((size, size), resample, box=box))
    if is_flipped:
        picture = picture.transpose(Image.Transpose.FLIP_LEFT_RIGHT)
    if wanted.jitter:
        picture = jitter_light(picture, random, wanted.jitter)
    if wanted.rand_augment:
        picture = rand_augment(picture, random, wanted.rand_augment, resample)
    changed = np.asarray(picture)
    return erase(changed, random) if wanted.erasing and random.random() < wanted.erasing else changed


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


def _open_picture(image: Pixels) -> Image.Image:
    """A picture to resize. A grey one has one channel then, which gives the same pixels in less than half the time."""
    for part in (image[::16, ::16], image):  # most colours show in a few pixels
        if not ((part[..., 0] == part[..., 1]).all() and (part[..., 1] == part[..., 2]).all()):
            return Image.fromarray(image)
    return Image.fromarray(np.ascontiguousarray(image[..., 0]))


def _to_rgb(picture: Image.Image) -> Image.Image:
    return picture if picture.mode == "RGB" else picture.convert("RGB")
