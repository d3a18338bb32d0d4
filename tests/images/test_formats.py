import io
import os
import subprocess
import sys
from pathlib import Path

import numpy as np
import pi_heif
import pydicom
import pytest
from PIL import Image, features
from pydicom.dataset import Dataset

from convnext_cli.images.formats import (
    DICOM_SUFFIXES,
    HEAD_BYTES,
    IMAGE_SUFFIXES,
    PILLOW_SUFFIXES,
    ImageFormat,
    has_image_suffix,
    identify_bytes,
    identify_file,
)
from tests.conftest import draw_picture
from tests.images.dicom import XRAY, save_dicom

WRITABLE = [
    *("BMP", "DIB", "GIF", "ICNS", "ICO", "JPEG", "PCX", "PNG", "PPM", "QOI", "SGI", "TGA", "TIFF", "WEBP"),
    *(name for name, feature in (("AVIF", "avif"), ("JPEG2000", "jpg_2000")) if features.check(feature)),
]
OTHERS = {
    "JPEG XL": b"\xff\x0a\xfa\x7f",
    "PostScript": b"%!PS-Adobe-3.0 EPSF-3.0\n",
    "SVG": b"<?xml version='1.0'?>\n<svg xmlns='http://www.w3.org/2000/svg'>",
    "camera raw": b"II*\0\x10\0\0\0CR\2\0",
    "NIfTI": b"\x5c\1\0\0".ljust(344, b"\0") + b"n+1\0",
    "FITS": b"SIMPLE  =                    T",
    "OpenEXR": b"\x76\x2f\x31\x01\2\0\0\0",
}


def test_suffixes_equal_pillow() -> None:
    Image.init()
    from PIL import MpoImagePlugin  # noqa: F401  (registers itself with JPEG alone)

    pi_heif.register_heif_opener()
    registered: dict[str, set[str]] = {}
    for suffix, name in Image.registered_extensions().items():
        registered.setdefault(name, set()).add(suffix)
    for name, suffixes in PILLOW_SUFFIXES.items():
        if name in registered or features.check("avif"):
            assert set(suffixes) == registered[name], name
    assert DICOM_SUFFIXES | {".jfif", ".jpe", ".jp2", ".pnm", ".pbm", ".avif", ".png"} <= IMAGE_SUFFIXES
    assert not IMAGE_SUFFIXES & {".eps", ".ps", ".wmf", ".emf", ".h5", ".mpg"}


@pytest.mark.parametrize("name", WRITABLE)
def test_formats_are_identified_by_their_first_bytes(tmp_path: Path, name: str) -> None:
    path = tmp_path / "picture"
    draw_picture(0, (64, 64)).save(path, format=name)
    if name == "DIB":  # no signature: a BMP without its file header
        return
    result = identify_bytes(path.read_bytes()[:HEAD_BYTES], PILLOW_SUFFIXES[name][0] if name == "TGA" else "")
    assert result == ImageFormat(name, True)


def test_dicom_is_identified_with_and_without_preamble(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "whole", XRAY)
    assert identify_file(path) == ImageFormat("DICOM", True)
    whole = path.read_bytes()
    assert identify_bytes(whole[132 : 132 + HEAD_BYTES]) == ImageFormat("DICOM", True)
    elements = Dataset()
    elements.update(dict(pydicom.dcmread(path).items()))
    for implicit, little in ((True, True), (False, True), (False, False)):
        buffer = io.BytesIO()
        elements.save_as(buffer, implicit_vr=implicit, little_endian=little, enforce_file_format=False)
        assert identify_bytes(buffer.getvalue()[:HEAD_BYTES]) == ImageFormat("DICOM", True), (implicit, little)


@pytest.mark.parametrize("name", OTHERS)
def test_unreadable_format_is_named(name: str) -> None:
    assert identify_bytes(OTHERS[name]) == ImageFormat(name, False)


def test_other_content_is_not_identified(tmp_path: Path) -> None:
    texts = [
        "",
        "path,label\na.png,cat\n",
        "hello",
        "P is a letter",
        "BMW and more",
        "#define SIZE 3\n",
        "{}",
        "%PDF-1.7",
    ]
    binary = [
        bytes(512),
        bytes(range(256)),
        b"PK\3\4" + bytes(60),
        b"\x7fELF\2\1\1",
        b"\0\0\0\x18ftypisom\0\0\2\0isommp41",
    ]
    for head in (*map(str.encode, texts), *binary):
        assert identify_bytes(head) is None, head[:20]
    os.mkfifo(tmp_path / "pipe")
    assert identify_file(tmp_path / "pipe") is None
    assert identify_file(tmp_path) is None
    assert identify_file(tmp_path / "nowhere") is None


def test_random_bytes_are_not_identified() -> None:
    random = np.random.default_rng(0)
    heads = [bytes(random.integers(0, 256, HEAD_BYTES, dtype=np.uint8)) for _ in range(2000)]
    assert [identify_bytes(head) for head in heads] == [None] * len(heads)


def test_camera_raw_is_not_read_as_its_preview() -> None:
    assert identify_bytes(b"II*\0\x08\0\0\0", ".NEF") == ImageFormat("camera raw", False)
    assert identify_bytes(b"II*\0\x08\0\0\0", ".tif") == ImageFormat("TIFF", True)


def test_suffix_is_matched_in_any_case() -> None:
    assert has_image_suffix("a/b.JFIF")
    assert has_image_suffix("x.dcm")
    assert not has_image_suffix("x.txt")
    assert not has_image_suffix("png")


def test_formats_module_imports_no_reader() -> None:
    readers = "{'PIL', 'pydicom', 'numpy', 'tifffile', 'imagecodecs'}"
    script = f"import sys, convnext_cli.images.formats; print(sorted({readers} & set(sys.modules)))"
    steps = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert steps.stdout.strip() == "[]"


def test_pillow_opens_listed_formats_only() -> None:
    root = Path(__file__).parents[2]
    for path in [*root.glob("convnext_cli/**/*.py"), *root.glob("examples/*.py")]:
        for line in path.read_text().splitlines():
            assert "Image.open(" not in line or "formats=" in line, f"{path}: {line}"
