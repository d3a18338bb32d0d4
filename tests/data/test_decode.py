from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext_cli.data.decode import decode_image
from convnext_cli.errors import ImageError
from tests.conftest import save_image


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb_uint8(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.tiff"
    ramp = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        Image.fromarray(ramp.astype(kind) * 10).save(path)
    else:
        Image.fromarray(ramp).convert("RGB").convert("L" if mode == "LA" else mode).convert(mode).save(path)
    image = decode_image(path)
    assert image.shape == (30, 40, 3)
    assert image.dtype == np.uint8
    assert image.min() < 30
    assert image.max() > 220


def test_deep_greyscale_keeps_its_levels(tmp_path: Path) -> None:
    path = tmp_path / "xray.png"
    Image.fromarray(np.arange(4096, dtype=np.uint16).reshape(64, 64)).save(path)
    image = decode_image(path)
    assert len(np.unique(image)) == 256
    assert (image[..., 0] == image[..., 1]).all()


def test_a_constant_and_a_not_finite_image_do_not_crash(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 7, np.uint16)).save(tmp_path / "flat.png")
    assert (decode_image(tmp_path / "flat.png") == 0).all()
    odd = np.array([[np.nan, np.inf], [0.0, 1.0]], np.float32)
    Image.fromarray(odd).save(tmp_path / "odd.tiff")
    assert decode_image(tmp_path / "odd.tiff")[..., 0].tolist() == [[0, 255], [0, 255]]


def test_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    assert decode_image(tmp_path / "turned.jpg").shape == (20, 10, 3)


def test_what_is_not_an_image(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    (tmp_path / "empty.jpg").touch()
    whole = save_image(tmp_path / "whole.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    for name in ("text.png", "empty.jpg", "torn.jpg"):
        with pytest.raises(ImageError, match="cannot be read as an image"):
            decode_image(tmp_path / name)
    with pytest.raises(ImageError, match="does not exist"):
        decode_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is a folder"):
        decode_image(tmp_path)
