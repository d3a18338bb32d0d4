"""Framing: the same pixels as timm's, what evaluation sees of an image, and training crops of the same frame."""

from typing import Any

import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform

from convnext_cli.exports.wrapper import _measure_pixels
from convnext_cli.images.preprocessing import Augmentation, Preprocessing, join_size, parse_size, split_size
from convnext_cli.images.transforms import (
    augment_fitted,
    fit_image,
    locate_frame,
    measure_unseen,
    prepare_for_training,
    transform_for_eval,
    transform_for_training,
)
from convnext_cli.metrics.novelty import measure_pixels
from tests.conftest import draw_noise

IMAGENET: dict[str, Any] = {"mean": (0.485, 0.456, 0.406), "std": (0.229, 0.224, 0.225)}
MODES = ("center", "border", "squash")
SIZES = (64, (64, 96), (96, 64), (32, 160))
SHAPES = ((64, 64), (73, 73), (300, 200), (111, 400), (97, 41), (8, 8), (1, 50), (3, 50), (50, 3))  # height, width


def make_framing(crop_mode: str, size: int | tuple[int, int] = 64, crop_pct: float = 1.0) -> Preprocessing:
    return Preprocessing(image_size=size, crop_pct=crop_pct, crop_mode=crop_mode, interpolation="bicubic", **IMAGENET)


def draw_ramp(height: int, width: int) -> NDArray[np.uint8]:
    """An image whose red is the column and whose green is the row, from 0 to 250."""
    rows, columns = np.mgrid[0:height, 0:width]
    return np.stack([250 * columns / (width - 1), 250 * rows / (height - 1), 0 * rows], axis=-1).astype(np.uint8)


@pytest.mark.parametrize("crop_mode", MODES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_pct", [0.8, 0.875, 0.95, 1.0])
def test_evaluation_has_the_pixels_of_timm(crop_mode: str, size: int | tuple[int, int], crop_pct: float) -> None:
    framing = make_framing(crop_mode, size, crop_pct)
    theirs = create_transform(
        (3, *framing.size), crop_mode=crop_mode, crop_pct=crop_pct, interpolation="bicubic", normalize=False, **IMAGENET
    )
    for shape in SHAPES:
        image = draw_noise(*shape)
        expected = theirs(Image.fromarray(image)).numpy().transpose(1, 2, 0)
        np.testing.assert_array_equal(transform_for_eval(image, framing), expected, err_msg=str(shape))


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
@pytest.mark.parametrize("crop_mode", MODES)
def test_very_long_images_are_framed(shape: tuple[int, int], crop_mode: str) -> None:
    assert transform_for_eval(np.full((*shape, 3), 7, np.uint8), make_framing(crop_mode, (32, 64))).shape == (32, 64, 3)


@pytest.mark.parametrize(("shape", "area"), [((480, 640), 0.57), ((1080, 1920), 0.43), ((120, 640), 0.14)])
def test_a_centre_crop_sees_part_of_the_area(shape: tuple[int, int], area: float) -> None:
    height, width = shape
    unseen = measure_unseen(width, height, make_framing("center", 224, 0.875))
    assert 1 - unseen == pytest.approx(area, abs=0.006)
    for crop_mode in ("border", "squash"):
        assert measure_unseen(width, height, make_framing(crop_mode, 224)) == pytest.approx(0, abs=1e-9)
    assert measure_unseen(width, height, make_framing("squash", 224, 0.875)) == pytest.approx(1 - 0.875**2, abs=0.01)


@pytest.mark.parametrize("crop_mode", MODES)
@pytest.mark.parametrize("size", SIZES)
@pytest.mark.parametrize("crop_pct", [0.875, 1.0])
def test_the_frame_lies_where_evaluation_sees(crop_mode: str, size: int | tuple[int, int], crop_pct: float) -> None:
    framing = make_framing(crop_mode, size, crop_pct)
    for height, width in ((100, 300), (300, 100), (200, 200), (61, 123)):
        seen = fit_image(draw_ramp(height, width), framing).astype(float)
        left, top, right, bottom = locate_frame(width, height, framing)
        ends = [max(0, left) / width, min(width, right) / width, max(0, top) / height, min(height, bottom) / height]
        measured = [seen[..., 0].min(), seen[..., 0].max(), seen[..., 1].min(), seen[..., 1].max()]
        assert np.allclose(np.array(measured) / 250, ends, atol=0.06), (height, width)


@pytest.mark.parametrize("crop_mode", MODES)
@pytest.mark.parametrize("size", SIZES)
def test_training_crops_are_from_what_evaluation_sees(crop_mode: str, size: int | tuple[int, int]) -> None:
    framing = make_framing(crop_mode, size)
    for shape in ((100, 300), (300, 100), (200, 260)):
        image = draw_ramp(*shape)
        seen = fit_image(image, framing).astype(int)
        source = prepare_for_training(image, framing, 0.5)
        parts = []
        for seed in range(100):
            drawn = transform_for_training(
                source, framing, np.random.default_rng(seed), Augmentation(min_crop_area=0.5)
            )
            assert drawn.shape == (*framing.size, 3)
            parts.append(drawn.reshape(-1, 3).astype(int))
        pixels = np.concatenate(parts)
        inside = pixels[pixels[:, 2] < 50]  # the padding has more blue
        for channel in (0, 1):  # columns, rows
            assert inside[:, channel].min() >= seen[..., channel].min() - 9, shape
            assert inside[:, channel].max() <= seen[..., channel].max() + 9, shape
            assert np.ptp(inside[:, channel]) >= 0.9 * np.ptp(seen[..., channel]), "all of it"


def test_training_pads_as_evaluation_does() -> None:
    framing = make_framing("border", 64)
    image = draw_noise(100, 300)
    expected = (transform_for_eval(image, framing) == framing.fill).all(axis=(1, 2))
    assert expected.sum() == 43, "64 rows less the 21 of the image"
    settings = Augmentation(min_crop_area=0.5, hflip=0.5, rotation=10, jitter=0.3, rand_augment=9, erasing=1)
    for seed in range(20):
        random = np.random.default_rng(seed)
        cropped = transform_for_training(prepare_for_training(image, framing, 0.5), framing, random, settings)
        fitted = augment_fitted(fit_image(image, framing), framing, random, settings)
        for drawn in (cropped, fitted):
            np.testing.assert_array_equal((drawn == framing.fill).all(axis=(1, 2)), expected)


@pytest.mark.parametrize("side", [40, 64, 90, 200])
def test_square_images_train_alike_whatever_the_fit(side: int) -> None:
    image, settings = draw_noise(side, side), Augmentation(min_crop_area=0.5, hflip=0.5, rotation=8)
    drawn = [
        transform_for_training(prepare_for_training(image, framing, 0.5), framing, np.random.default_rng(1), settings)
        for framing in map(make_framing, MODES)
    ]
    np.testing.assert_array_equal(drawn[0], drawn[1])
    np.testing.assert_array_equal(drawn[0], drawn[2])


def test_the_padding_does_not_count_in_the_statistics_of_the_ood_score() -> None:
    framing = make_framing("border", 64)
    image = draw_noise(64, 64)
    plain = measure_pixels(image[None])
    np.testing.assert_array_equal(measure_pixels(image[None], framing.fill), plain)
    images = np.stack([transform_for_eval(draw_noise(*shape), framing) for shape in SHAPES])
    statistics = measure_pixels(images, framing.fill)
    assert np.abs(statistics[2:5, 0] - plain[0, 0]).max() < 0.02, "mean brightness of noise, without the padding"
    assert np.abs(measure_pixels(images)[6:, 2] - plain[0, 2]).max() > 0.5, "with it"
    images = np.concatenate([images, np.full((1, 64, 64, 3), framing.fill, np.uint8)])
    exported = _measure_pixels(torch.from_numpy(images), torch.tensor(framing.fill, dtype=torch.uint8))
    np.testing.assert_allclose(torch.stack(exported, dim=1), measure_pixels(images, framing.fill), atol=2e-5)


def test_sizes_are_numbers_or_height_and_width() -> None:
    assert parse_size("224") == parse_size("224x224") == 224
    assert parse_size(" 224 X 320 ") == "224x320"
    assert split_size("224x320") == (224, 320)
    assert split_size(96) == (96, 96)
    assert join_size(64, 64) == 64
    assert make_framing("border", (224, 320)).size == (224, 320)
    for text in ("", "x", "224x", "224x300", "224x320x3", "0x32", "32x4096", "-32x64", "1.5"):
        with pytest.raises(ValueError, match=r"is not an image size|multiples of 32"):
            parse_size(text)
    with pytest.raises(ValueError, match="a square image_size is one number"):
        make_framing("center", (64, 64))
