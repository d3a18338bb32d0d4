from dataclasses import fields

import numpy as np
import pytest
from PIL import Image
from timm.data.auto_augment import _RAND_INCREASING_TRANSFORMS, LEVEL_TO_ARG, NAME_TO_OP

from convnext_cli.images.augmentation import ERASED, OPERATIONS, erase, jitter_light, turn_crop
from convnext_cli.images.loaders import seed_image
from convnext_cli.images.preprocessing import Augmentation, Preprocessing
from convnext_cli.images.raster import Pixels
from convnext_cli.images.transforms import augment_fitted, fit_image, transform_for_eval, transform_for_training
from convnext_cli.recipes.settings import Settings
from convnext_cli.recipes.tables import load_augmentations
from tests.conftest import draw_picture

PREPROCESSING = Preprocessing(
    image_size=64, crop_pct=0.875, crop_mode="center", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
)
BICUBIC = Image.Resampling.BICUBIC
PRESETS = tuple(load_augmentations())
OFF = Augmentation(min_crop_area=1.0)


def preset(name: str) -> Augmentation:
    return Augmentation(**{setting: value for setting, (value, _) in load_augmentations()[name].items()})


def make_image(seed: int = 0, size: tuple[int, int] = (120, 100)) -> Pixels:
    return np.asarray(draw_picture(seed, size))


def grey(image: Pixels) -> Pixels:
    return np.asarray(Image.fromarray(image).convert("L").convert("RGB"))


def draw(image: Pixels, settings: Augmentation, number: int) -> Pixels:
    """Return a view as `OpenViews` makes it: a crop, or with `min_crop_area` 1 the image that evaluation sees."""
    if settings.min_crop_area == 1:
        return augment_fitted(fit_image(image, PREPROCESSING), PREPROCESSING, seed_image(0, number, 0), settings)
    return transform_for_training(image, PREPROCESSING, seed_image(0, number, 0), settings)


def alike(one: Pixels, other: Pixels) -> float:
    return float(np.corrcoef(one.ravel().astype(float), other.ravel().astype(float))[0, 1])


def test_each_field_is_a_setting() -> None:
    assert {field.name for field in fields(Augmentation)} <= {field.name for field in fields(Settings)}


@pytest.mark.parametrize("name", PRESETS)
def test_same_seed_gives_the_same_image_and_other_epoch_another(name: str) -> None:
    settings, image = preset(name), make_image()
    drawn = [draw(image, settings, epoch) for epoch in (0, 0, 1, 2, 3)]
    assert all(one.shape == (64, 64, 3) and one.dtype == np.uint8 for one in drawn)
    assert np.array_equal(drawn[0], drawn[1])
    assert all(np.array_equal(drawn[0], later) for later in drawn[2:]) == (name == "none")


@pytest.mark.parametrize("shape", [(64, 64), (100, 120), (300, 200), (9, 50)])
def test_preset_none_equals_the_evaluation_transform(shape: tuple[int, int]) -> None:
    image = make_image(1, shape)
    view = transform_for_eval(image, PREPROCESSING)
    assert np.array_equal(draw(image, preset("none"), 0), view)
    assert np.array_equal(augment_fitted(view, PREPROCESSING, seed_image(0, 0, 0), preset("none")), view)


def test_preset_light_is_a_random_crop() -> None:
    image, random = make_image(), np.random.default_rng(2)  # a seed whose first crop fits
    area, ratio = 120 * 100 * random.uniform(0.5, 1), np.exp(random.uniform(np.log(3 / 4), np.log(4 / 3)))
    width, height = round(np.sqrt(area * ratio)), round(np.sqrt(area / ratio))
    left, top = int(random.integers(120 - width + 1)), int(random.integers(100 - height + 1))
    crop = Image.fromarray(image).resize((64, 64), BICUBIC, box=(left, top, left + width, top + height))
    drawn = transform_for_training(image, PREPROCESSING, np.random.default_rng(2), preset("light"))
    assert np.array_equal(drawn, np.asarray(crop))


def test_preset_medical_never_flips_and_natural_does() -> None:
    image = make_image()
    plain = transform_for_eval(image, PREPROCESSING)
    for name, most in (("medical", 0), ("natural", 300)):
        settings = preset(name)
        if name == "natural":  # the flip alone: inverted or moved, the image resembles neither
            settings = Augmentation(min_crop_area=settings.min_crop_area, hflip=settings.hflip)
        drawn = (draw(image, settings, number) for number in range(500))
        mirrored = sum(alike(one, plain) < alike(one, plain[:, ::-1]) for one in drawn)
        assert (mirrored == 0) if most == 0 else (200 < mirrored < most), name


@pytest.mark.parametrize("setting", ["hflip", "rotation", "jitter", "rand_augment", "erasing"])
def test_each_setting_changes_the_image_and_not_the_draws_of_others(setting: str) -> None:
    image = make_image()
    on = Augmentation(min_crop_area=0.5, **{setting: {"rotation": 10.0, "rand_augment": 9.0}.get(setting, 0.5)})
    off = Augmentation(min_crop_area=0.5)
    same = [np.array_equal(draw(image, on, number), draw(image, off, number)) for number in range(40)]
    assert not all(same)
    chance = {"hflip": 0.5, "erasing": 0.5, "rand_augment": 0.25}.get(setting, 0.0)  # of no change at all
    assert abs(np.mean(same) - chance) < 0.2, "the crop is the same where the setting does nothing"


@pytest.mark.parametrize("settings", [preset("medical"), preset("strong"), Augmentation(min_crop_area=1.0, jitter=0.9)])
def test_grey_stays_grey(settings: Augmentation) -> None:
    image = grey(make_image())
    for number in range(100):
        drawn = draw(image, settings, number)
        assert np.array_equal(drawn[..., 0], drawn[..., 1])
        assert np.array_equal(drawn[..., 0], drawn[..., 2])


@pytest.mark.parametrize("degrees", [-40.0, -8.0, 3.0, 10.0, 75.0])
def test_rotated_crop_equals_pillow_rotation(degrees: float) -> None:
    image = make_image(2, (200, 200))
    for width, height in ((80, 80), (100, 60), (50, 110)):
        left, top = 100 - width // 2, 100 - height // 2
        box, part = (left, top, left + width, top + height), np.s_[top : top + height, left : left + width]
        turned = np.asarray(turn_crop(image, box, (width, height), degrees, BICUBIC)).astype(int)
        expected = np.asarray(Image.fromarray(image).rotate(degrees, BICUBIC))[part].astype(int)
        assert np.abs(turned - expected).mean() < 1.0
        assert np.array_equal(np.asarray(turn_crop(image, box, (width, height), 0.0, BICUBIC)), image[part])


def test_rotated_edge_is_mirrored() -> None:
    bright = np.full((50, 70, 3), 200, np.uint8)
    for box in ((0, 0, 70, 50), (20, 0, 70, 50), (0, 0, 1, 1)):
        turned = turn_crop(bright, box, (64, 64), 33.0, BICUBIC)
        assert np.array_equal(np.asarray(turned), np.full((64, 64, 3), 200))
    for shape in ((1, 60), (60, 1), (2, 3)):
        part = make_image()[: shape[0], : shape[1]]
        assert turn_crop(part, (0, 0, *shape[::-1]), (64, 32), 45.0, BICUBIC).size == (64, 32)


@pytest.mark.parametrize("resample", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_grey_image_is_turned_as_a_channel_of_a_coloured_one(resample: Image.Resampling) -> None:
    coloured = np.asarray(draw_picture(3, (90, 70)))
    assert (coloured[..., 0] != coloured[..., 1]).any()
    grey = np.repeat(coloured[..., :1], 3, axis=2)
    turned = [np.asarray(turn_crop(image, (3, 8, 60, 80), (64, 48), 12.5, resample)) for image in (coloured, grey)]
    for channel in range(3):
        assert np.array_equal(turned[1][..., channel], turned[0][..., 0])


def test_rotations_stay_within_the_requested_degrees() -> None:
    bar = np.zeros((200, 200, 3), np.uint8)
    bar[:, 96:104] = 255  # upright
    result = []
    for number in range(300):
        drawn = draw(bar, Augmentation(min_crop_area=1.0, rotation=10.0), number)[..., 0].astype(float)
        centres = (drawn * np.arange(64)).sum(axis=1) / drawn.sum(axis=1)
        result.append(np.degrees(np.arctan(np.polyfit(np.arange(64), centres, 1)[0])))
    assert -10.2 < min(result) < -9.5
    assert 9.5 < max(result) < 10.2
    assert abs(np.mean(result)) < 1.0


def test_jitter_stays_in_its_range() -> None:
    image = np.asarray(make_image()) // 2 + 50  # room at both ends, so that nothing is clipped
    mean = np.asarray(Image.fromarray(image).convert("L")).mean()
    brightness, contrast = [], []
    for seed in range(300):
        drawn = np.asarray(jitter_light(Image.fromarray(image), np.random.default_rng(seed), 0.1)).astype(float)
        slope, offset = np.polyfit(image.ravel().astype(float), drawn.ravel(), 1)
        brightness.append((offset + slope * mean) / mean)
        contrast.append(slope / brightness[-1])
    for factors in (brightness, contrast):
        assert 0.895 < min(factors) < 0.91
        assert 1.09 < max(factors) < 1.105


@pytest.mark.parametrize("magnitude", [1, 5, 9])
def test_operations_equal_timm(magnitude: int) -> None:
    image = Image.fromarray(make_image())
    fill = tuple(np.asarray(image).mean(axis=(0, 1)).round().astype(int).tolist())
    assert list(OPERATIONS) == _RAND_INCREASING_TRANSFORMS
    for name, operation in OPERATIONS.items():
        make = LEVEL_TO_ARG[name]
        theirs = {  # both directions, which timm draws itself
            NAME_TO_OP[name](image, *(make(magnitude, {}) if make else ()), fillcolor=fill, resample=BICUBIC).tobytes()
            for _ in range(40)
        }
        ours = {operation(image, sign * magnitude / 10, BICUBIC).tobytes() for sign in (1, -1)}
        assert ours == theirs, name


def test_larger_magnitude_changes_more() -> None:
    image = make_image()

    def change(magnitude: float) -> float:
        settings = Augmentation(min_crop_area=1.0, rand_augment=magnitude)
        plain = transform_for_eval(image, PREPROCESSING).astype(float)
        return float(np.mean([np.abs(draw(image, settings, number) - plain).mean() for number in range(300)]))

    assert change(2.0) < 0.8 * change(9.0)


def test_operations_leave_visible_content() -> None:
    image = Image.fromarray(make_image())
    for name, operation in OPERATIONS.items():
        for level in (1.0, -1.0):
            assert np.asarray(operation(image, level, BICUBIC)).std() > 2, name


def test_erasing_has_the_requested_area_and_frequency() -> None:
    black = np.zeros((100, 100, 3), np.uint8)
    fractions = []
    for number in range(400):
        drawn = augment_fitted(
            black, Preprocessing(image_size=100, crop_pct=1.0, crop_mode="center", interpolation="bicubic",
                                 mean=(0.5,) * 3, std=(0.5,) * 3),
            seed_image(0, number, 0), Augmentation(min_crop_area=1.0, erasing=0.25),
        )  # fmt: skip
        fractions.append((drawn > 0).any(axis=2).mean())
    hidden = np.array(fractions)[np.array(fractions) > 0]
    assert 0.18 < len(hidden) / 400 < 0.32
    assert ERASED[0] * 0.9 < hidden.min()
    assert hidden.max() < ERASED[1] * 1.02
    assert hidden.mean() == pytest.approx(sum(ERASED) / 2, rel=0.15)


def test_erasing_does_not_change_its_input() -> None:
    image = make_image()[:64, :64]
    before = image.copy()
    assert not np.array_equal(erase(image, np.random.default_rng(0)), before)
    assert np.array_equal(image, before)
