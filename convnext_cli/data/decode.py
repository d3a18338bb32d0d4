"""The one place where a file becomes pixels.

More than 8 bits a value are stretched from the image's own darkest to its own brightest value. The image's own, and not
the data set's, because raw values of different devices share no scale, and because an image seen years later by
`predict` must be read as it would have been in training, by a rule that needs no memory. Nothing is ever clipped, so a
12-bit X-ray in a 16-bit file keeps all the levels that 8 bits can hold. What the rule loses is absolute brightness.
"""

import sys
import warnings
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convnext_cli.errors import ImageError

Pixels = NDArray[np.uint8]
"""An image, (H, W, 3), RGB."""

RULES = 1
"""Raised when a file would become other pixels; what was kept of files before is then made anew."""

MAX_PIXELS = 178_956_970  # Pillow's own limit against decompression bombs: 0.5 GiB as RGB
DICOM_SUFFIXES = frozenset({".dcm", ".dicom"})

_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # more than 8 bits a pixel
_SWAPPED = {  # Pillow keeps the higher byte of 16-bit colour; read in the other order it keeps the lower one
    "RGB;16B": "RGB;16L",
    "RGB;16L": "RGB;16B",
    "RGB;16N": "RGB;16B" if sys.byteorder == "little" else "RGB;16L",
    "RGBA;16B": "RGBA;16L",
    "RGBA;16L": "RGBA;16B",
    "RGBA;16N": "RGBA;16B" if sys.byteorder == "little" else "RGBA;16L",
}

# Readers warn of odd tags, and of pictures half as large as MAX_PIXELS: nothing that a user could act upon.
warnings.filterwarnings("ignore", module=r"PIL\.|pydicom\.|convnext_cli\.data\.")


class Decoded(NamedTuple):
    """An image, and what was done to it beyond reading."""

    pixels: Pixels
    """(H, W, 3) RGB, upright."""
    mode: str
    """Pillow's name of the file's own pixels, such as `L`, `RGB`, `I;16`; `DICOM …` for DICOM."""
    bits: int
    """Bits of one value in the file."""
    done: tuple[str, ...]
    """What was done, in words: windowed, first frame, turned upright …"""


def decode_image(path: Path, *, at_least: int | None = None) -> Pixels:
    """Reads an image file as RGB uint8 (H, W, 3), upright.

    Args:
        path: the file; `.dcm` and `.dicom` need the extra `dicom`.
        at_least: a JPEG may be read at a half, a quarter or an eighth of its size, as long as its shorter side keeps
            this many pixels; None reads it whole.

    Raises:
        ImageError: there is no such file, or it is not an image that can be read to its end.
    """
    return read_image(path, at_least=at_least).pixels


def read_image(path: Path, *, at_least: int | None = None) -> Decoded:
    """Does what `decode_image` does, and says what it did.

    Raises:
        ImageError: as `decode_image`.
    """
    try:
        if path.suffix.lower() in DICOM_SUFFIXES:
            from convnext_cli.data.dicom import read_dicom  # an extra: only who has such files needs it

            grey_or_rgb, mode, bits, done = read_dicom(path)
            pixels = stretch(grey_or_rgb) if grey_or_rgb.ndim == 2 else grey_or_rgb
            return Decoded(pixels, mode, bits, done)
        with Image.open(path) as opened:
            return _read(opened, path, at_least)
    except FileNotFoundError as error:
        raise ImageError(f"{path} does not exist", "Check its path") from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder", "Give the path of an image") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path} has more than {MAX_PIXELS:,} pixels", "Scale it down, or cut it into tiles"
        ) from error
    except ImageError:
        raise
    except Exception as error:  # what Pillow's, pydicom's and gdcm's parsers raise on damaged files has no common base
        why = (
            " ".join(str(error).replace(repr(str(path)), "it").replace(str(path), "it").split()) or type(error).__name__
        )
        raise ImageError(f"{path} cannot be read as an image ({why[:200]})", "Replace or remove the file") from error


def stretch(values: NDArray[Any]) -> Pixels:
    """Maps (H, W) or (H, W, 3) of any number type to uint8 (H, W, 3), darkest finite value to 0, brightest to 255."""
    finite = values[np.isfinite(values)]
    low, high = (float(finite.min()), float(finite.max())) if finite.size else (0.0, 0.0)
    span = high - low or 1.0
    scaled = np.nan_to_num((values.astype(np.float64) - low) / span, nan=0.0, posinf=1.0, neginf=0.0)
    eight = np.rint(scaled * 255).astype(np.uint8)
    return np.repeat(eight[..., None], 3, axis=2) if eight.ndim == 2 else eight


def _read(opened: Image.Image, path: Path, at_least: int | None) -> Decoded:
    done = []
    mode = opened.mode
    if (frames := getattr(opened, "n_frames", 1)) > 1:
        done.append(f"first of {frames} frames")
    rawmode = _find_rawmode(opened)
    if at_least is not None and opened.format == "JPEG":
        _reduce(opened, at_least)
    image: Image.Image = ImageOps.exif_transpose(opened)
    if opened.getexif().get(0x0112, 1) != 1:
        done.append("turned upright")
    if mode in _DEEP_MODES:
        values = np.asarray(image)
        done.append(f"stretched from {values.min():g}..{values.max():g}")
        return Decoded(stretch(values), mode, 16 if mode.startswith("I;16") else 32, tuple(done))
    if rawmode in _SWAPPED:
        deep = _add_lower_bytes(path, np.asarray(image), rawmode)
        done.append(f"16-bit colour stretched from {deep.min()}..{deep.max()}")
        return Decoded(stretch(deep), mode, 16, tuple(done))
    if mode in ("P", "PA", "LA", "RGBA", "La", "RGBa"):
        image = image.convert("RGBA")  # a palette's transparency is lost with a warning otherwise
        if image.getchannel("A").getextrema() != (255, 255):
            white = Image.new("RGBA", image.size, "white")
            image = Image.alpha_composite(white, image)
            done.append("laid on white where transparent")
    elif mode not in ("RGB", "L"):
        done.append("converted to RGB")
    return Decoded(np.asarray(image.convert("RGB")), mode, 1 if mode == "1" else 8, tuple(done))


def _reduce(image: Image.Image, at_least: int) -> None:
    """Lets libjpeg decode at the smallest of 1, 1/2, 1/4, 1/8 whose shorter side keeps `at_least` pixels."""
    shorter = min(image.size)
    for factor in (8, 4, 2):
        if shorter // factor >= at_least:
            image.draft(None, (-(-image.width // factor), -(-image.height // factor)))
            return


def _find_rawmode(image: Image.Image) -> str:
    """How the file's bytes become pixels, by Pillow's name; empty where it has none."""
    tiles: Any = getattr(image, "tile", None)
    args = tiles[0].args if tiles else None
    return str(args[0] if isinstance(args, tuple) and args else args or "")


def _add_lower_bytes(path: Path, upper: Pixels, rawmode: str) -> NDArray[np.uint16]:
    """16-bit colour from its upper bytes and a second reading in swapped byte order, which gives the lower ones."""
    with Image.open(path) as again:
        swapped = _SWAPPED[rawmode]
        again.tile = [
            tile._replace(args=(swapped, *tuple(tile.args)[1:]) if isinstance(tile.args, tuple) else swapped)
            for tile in again.tile
        ]
        lower = np.asarray(ImageOps.exif_transpose(again))
    deep: NDArray[np.uint16] = upper[..., :3].astype(np.uint16) * 256 + lower[..., :3]
    return deep
