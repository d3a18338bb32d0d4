"""HEIC, the photos of iPhones; the extra `heic` decodes only, so that the image here was written elsewhere."""

import base64
import sys
from pathlib import Path

import numpy as np
import pytest

from convnext_cli.data.inputs import find_inputs
from convnext_cli.errors import ImageError
from convnext_cli.images.decode import decode_image, read_image
from convnext_cli.images.formats import ImageFormat, identify_bytes
from convnext_cli.images.raster import Step, StepKind

# 64 x 32 px, the left half red, the right half blue, turned by a quarter (EXIF orientation 6)
HEIC = base64.b64decode(
    "AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAcltZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAADRpbG9j"
    "AAAAAERAAAIAAQAAAAAB7QABAAAAAAAAACQAAgAAAAACEQABAAAAAAAAACQAAAA4aWluZgAAAAAAAgAAABVpbmZlAgAAAAABAABodmMxAAAA"
    "ABVpbmZlAgAAAQACAABFeGlmAAAAAA5waXRtAAAAAAABAAABCGlwcnAAAADnaXBjbwAAAHdodmNDAQQIAAAAnjgAAAAAHvAA/P/4+AAADwNg"
    "AAEAF0ABDAH//wQIAAADAJ44AAADAAAeugJAYQABACpCAQEECAAAAwCeOAAAAwAAHpAEECCy3VyU1zcBDQYEAAADAGQAAAMABCBiAAEACEQB"
    "wXMYMAiQAAAAE2NvbHJuY2x4AAEADQAGgAAAABRpc3BlAAAAAAAAAEAAAABAAAAAKGNsYXAAAABAAAAAAQAAACAAAAABAAAAAAAAAAL////g"
    "AAAAAgAAABBwaXhpAAAAAAMICAgAAAAJaXJvdAMAAAAZaXBtYQAAAAAAAAABAAEGgQIDBYSGAAAAGmlyZWYAAAAAAAAADmNkc2MAAgABAAEA"
    "AABQbWRhdAAAACAoAa8ZgO9Jpb//3+Mf9fav+KbIX/+zjnfRWx/u9wNtbwAAAAZFeGlmAABNTQAqAAAACAABARIAAwAAAAEABgAAAAAAAA=="
)

# 16 x 16 px of 10 bits, grey values 312 to 344 from the first row to the last
DEEP = base64.b64decode(
    "AAAAHGZ0eXBoZWl4AAAAAG1pZjFoZWl4bWlhZgAAAX5tZXRhAAAAAAAAACFoZGxyAAAAAAAAAABwaWN0AAAAAAAAAAAAAAAAAAAAACJpbG9jAA"
    "AAAERAAAEAAQAAAAABogABAAAAAAAAALgAAAAjaWluZgAAAAAAAQAAABVpbmZlAgAAAAABAABodmMxAAAAAA5waXRtAAAAAAABAAAA/mlwcnAA"
    "AADeaXBjbwAAAHdodmNDAQQIAAAAnDgAAAAA//AA/P/6+gAADwNgAAEAF0ABDAH//wQIAAADAJw4AAADAAD/ugJAYQABACpCAQEECAAAAwCcOA"
    "AAAwAA/5AEECCbLdVdNc3AQ0GBAAADABkAAAMAAQhiAAEACEQBwXAwYLEgAAAAE2NvbHJuY2x4AAEADQAGgAAAABRpc3BlAAAAAAAAAEAAAABA"
    "AAAAKGNsYXAAAAAQAAAAAQAAABAAAAAB////0AAAAAL////QAAAAAgAAABBwaXhpAAAAAAMKCgoAAAAYaXBtYQAAAAAAAAABAAEFgQIDBYQAAA"
    "DAbWRhdAAAALQoAa8Fsh+ZMfAh5sIrdIZ///Pf+ff5x/NPyL8g/JvyT8j/Ifyf8l/I/yf8l/JwRgAAAwAAoQCp9u+5yq/TproAAAMDgoRjYAAC"
    "RWgAAC6k1EFGACfbgFjXWYU5qAAAAwAABNvU8aEcwOoHUAACG2k6AACAAAADAF7m8/33xScikVcxlgnzcX9zvZuwdEoUPf0gJOO07tmSfJvipu"
    "KL9nbWUABKYSNw0/jJgSoWMDQQN9m/TiA="
)


def test_heic_of_10_bits_is_stretched(tmp_path: Path) -> None:
    (tmp_path / "deep.heic").write_bytes(DEEP)
    result = read_image(tmp_path / "deep.heic")
    assert (result.bits, result.steps) == (10, (Step("10-bit colour stretched", StepKind.STRETCH),))
    ramp = np.linspace(0, 255, 256).reshape(16, 16)
    assert np.abs(result.pixels - ramp[..., None]).max() <= 8  # 33 of the levels


def test_heic_is_read_upright(tmp_path: Path) -> None:
    (tmp_path / "IMG_0001.HEIC").write_bytes(HEIC)
    (tmp_path / "renamed.jpg").write_bytes(HEIC)
    pixels = decode_image(tmp_path / "IMG_0001.HEIC").astype(int)
    assert pixels.shape == (64, 32, 3)
    for half, colour in ((pixels[:30], (200, 30, 30)), (pixels[34:], (30, 30, 200))):
        assert np.abs(half - colour).max() <= 12
    np.testing.assert_array_equal(read_image(tmp_path / "renamed.jpg").pixels, pixels)
    assert len(find_inputs([str(tmp_path)]).paths) == 2


@pytest.mark.parametrize("size", [0, 20, len(HEIC) // 2, len(HEIC) - 10])
def test_heic_that_is_cut_is_an_error(tmp_path: Path, size: int) -> None:
    (tmp_path / "cut.heic").write_bytes(HEIC[:size])
    with pytest.raises(ImageError, match=r"cut\.heic"):
        decode_image(tmp_path / "cut.heic")


def test_heic_without_the_extra_names_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "photo.heic").write_bytes(HEIC)
    monkeypatch.setitem(sys.modules, "pi_heif", None)
    with pytest.raises(ImageError, match=r"photo\.heic is HEIC, which needs: pip install 'convnext-cli\[heic\]'"):
        decode_image(tmp_path / "photo.heic")


def test_brands_distinguish_heic_avif_and_video() -> None:
    assert identify_bytes(HEIC) == ImageFormat("HEIF", True)
    assert identify_bytes(b"\0\0\0\x1cftypmif1\0\0\0\0mif1avifmiaf") == ImageFormat("AVIF", True)
    assert identify_bytes(b"\0\0\0\x18ftypisom\0\0\2\0isommp41") is None
