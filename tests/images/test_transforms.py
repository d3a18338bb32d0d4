import tracemalloc

import numpy as np
import pytest
from PIL import Image

from convnext_cli.images import transforms
from convnext_cli.images.preprocessing import Augmentation, Preprocessing
from convnext_cli.images.transforms import reduce_image, transform_for_eval, transform_for_training
from tests.conftest import draw_noise

PREPROCESSING = Preprocessing(
    image_size=64, crop_pct=0.875, crop_mode="center", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
)


def test_training_crops_have_the_requested_area_and_aspect_ratio() -> None:
    ramp = np.zeros((200, 200, 3), np.uint8)
    ramp[..., 0] = np.arange(200)
    ramp[..., 1] = np.arange(200)[:, None]
    for seed in range(200):
        crop = transform_for_training(ramp, PREPROCESSING, np.random.default_rng(seed), Augmentation(min_crop_area=0.5))
        assert crop.shape == (64, 64, 3)
        width, height = np.ptp(crop[..., 0].astype(int)), np.ptp(crop[..., 1].astype(int))
        assert 0.45 <= (width * height) / 200**2 <= 1.0
        assert 0.7 <= width / height <= 1.45
        assert crop[0, 0, 0] < crop[0, -1, 0], "never flipped"


def test_flips_have_the_requested_frequency() -> None:
    ramp = np.tile(np.arange(100, dtype=np.uint8)[:, None], (100, 1, 3))
    flipped = 0
    for seed in range(400):
        crop = transform_for_training(
            ramp, PREPROCESSING, np.random.default_rng(seed), Augmentation(min_crop_area=0.9, hflip=0.25)
        )
        flipped += int(crop[0, 0, 0]) > int(crop[0, -1, 0])
    assert 70 <= flipped <= 130


def test_very_long_image_is_center_cropped() -> None:
    crop = transform_for_training(
        draw_noise(10, 500), PREPROCESSING, np.random.default_rng(0), Augmentation(min_crop_area=0.9)
    )
    assert crop.shape == (64, 64, 3)


@pytest.mark.parametrize("shape", [(1, 60_000), (60_000, 1)])
def test_very_long_image_takes_little_memory(shape: tuple[int, int], monkeypatch: pytest.MonkeyPatch) -> None:
    image = np.repeat(np.linspace(0, 255, 60_000).astype(np.uint8).reshape(*shape, 1), 3, axis=2)
    tracemalloc.start()
    small = transform_for_eval(image, PREPROCESSING)
    assert tracemalloc.get_traced_memory()[1] < 50e6
    tracemalloc.stop()
    monkeypatch.setattr("convnext_cli.images.transforms.MAX_RESIZED", 10**12)
    whole = transform_for_eval(image[:600, :600], PREPROCESSING)
    monkeypatch.setattr("convnext_cli.images.transforms.MAX_RESIZED", 0)
    part = transform_for_eval(image[:600, :600], PREPROCESSING)
    assert small.shape == (64, 64, 3)
    assert np.abs(whole.astype(int) - part).max() <= 2, "the part that is kept is the same"


def test_grey_image_gives_the_same_pixels_as_colour(monkeypatch: pytest.MonkeyPatch) -> None:
    grey = np.repeat(draw_noise(111, 97)[..., :1], 3, axis=2)
    tinted = grey.copy()
    tinted[1, 1, 2] ^= 1  # one pixel of another colour, where a coarse look does not see it
    settings = Augmentation(min_crop_area=0.5)

    def change(image: np.ndarray) -> list[np.ndarray]:
        return [
            transform_for_eval(image, PREPROCESSING),
            reduce_image(image, 80, PREPROCESSING),
            transform_for_training(image, PREPROCESSING, np.random.default_rng(3), settings),
        ]

    results = [change(grey), change(tinted)]
    assert transforms._to_pil(grey).mode == "L"
    assert transforms._to_pil(tinted).mode == "RGB"
    monkeypatch.setattr(transforms, "_to_pil", Image.fromarray)
    for mine, expected in zip(results, [change(grey), change(tinted)], strict=True):
        for one, other in zip(mine, expected, strict=True):
            np.testing.assert_array_equal(one, other)
