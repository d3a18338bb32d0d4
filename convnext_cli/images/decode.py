"""Decode image files to RGB uint8. This is the only place where a file becomes pixels.

Values of more than 8 bits are stretched from the image's own darkest to its own brightest value. The data set's range
is not used, for two reasons. Raw values of different devices share no scale. And `predict` must read an image years
later as training would have done, by a rule that needs no memory. Nothing is clipped, so a 12-bit X-ray in a 16-bit
file keeps all levels that 8 bits can hold. Only absolute brightness is lost.

The content of a file decides its format, not its name. If Pillow returns only 8 of a file's bits, the rest is read in
another way (`tiff.py`; in `pillow.py` deep PNG, PNM, JPEG 2000, AVIF and HEIC), or the file is refused by name.
"""

import logging
import os
import threading
import warnings
from pathlib import Path
from typing import Any, BinaryIO

from PIL import Image, ImageOps, UnidentifiedImageError

from convnext_cli.errors import ImageError
from convnext_cli.images.formats import (
    DICOM_SUFFIXES,
    HEAD_BYTES,
    LFS_POINTER,
    SpecialFileError,
    explain_missing,
    identify_bytes,
    open_regular_file,
)
from convnext_cli.images.memory import MAX_BYTES, MAX_PIXELS
from convnext_cli.images.pillow import (
    convert_opened,
    differs_in_pillow,
    find_orientation,
    open_with_pillow,
    read_deep_pnm,
    read_opened,
    refuse_deep,
)
from convnext_cli.images.raster import Decoded, Pixels, Step, finish_raster, turn_upright
from convnext_cli.images.tiff import is_read_by_pillow, read_tiff, refuse_cut, skip_thumbnails

RULES = 11
"""Version of the decoding rules. Raise it if a file would become other pixels; cached images are then made again."""

_one_image = threading.Lock()  # reading a PIL image changes it, and two threads may pass the same one

# Readers warn of odd tags, and of images half as large as MAX_PIXELS: nothing that a user could act upon.
warnings.filterwarnings("ignore", module=r"PIL\.|pydicom\.|convnext_cli\.images\.")
logging.getLogger("PIL.TiffImagePlugin").setLevel(logging.CRITICAL + 1)  # its only error is raised as well


def decode_image(path: Path, *, at_least: int | None = None) -> Pixels:
    """Read an image file as RGB uint8 (H, W, 3), upright.

    Args:
        path: the file; DICOM needs the extra `dicom`.
        at_least: a JPEG may be read at a half, a quarter or an eighth of its size, as long as its shorter side keeps
            this many pixels; None reads it whole.

    Raises:
        ImageError: there is no such file, it is no image that can be read to its end, or it is too large.
    """
    return read_image(path, at_least=at_least).pixels


def read_image(path: Path, *, at_least: int | None = None) -> Decoded:
    """Read an image as `decode_image` does, with the steps of its decoding.

    Raises:
        ImageError: as `decode_image`.
    """
    name = ""
    try:
        with open_regular_file(path) as file:
            head = file.read(HEAD_BYTES)
            _refuse_placeholder(head, path)
            kind = identify_bytes(head, path.suffix)
            name = kind.name if kind else "DICOM" if path.suffix.lower() in DICOM_SUFFIXES else ""
            _refuse_size(os.fstat(file.fileno()).st_size, name, path)
            if name == "DICOM":
                from convnext_cli.images.dicom import read_dicom  # an extra dependency, for DICOM only

                return finish_raster(read_dicom(file, path), path)
            if kind and not kind.readable:
                raise ImageError(f"{path} is {name}, which cannot be read", "Convert it to PNG, TIFF or JPEG")
            return _read(file, path, name, at_least)
    except ImageError:
        raise
    except FileNotFoundError as error:
        raise explain_missing([path]) from error
    except IsADirectoryError as error:
        raise ImageError(f"{path} is a folder", "Give the path of an image") from error
    except SpecialFileError as error:
        raise ImageError(f"{path} is a pipe, a socket or a device", "Give the path of an image") from error
    except Image.DecompressionBombError as error:
        raise ImageError(
            f"{path} has more than {MAX_PIXELS:,} pixels", "Scale it down, or cut it into tiles"
        ) from error
    except MemoryError as error:
        raise ImageError(f"{path} needs more memory to decode than there is", "Scale it down") from error
    except Exception as error:  # the errors of Pillow, tifffile, pydicom and gdcm have no common base class
        raise ImageError(
            f"{path} cannot be read as an image ({_explain(error, path, name)})", "Replace or remove the file"
        ) from error


def convert_image(image: Image.Image, name: str) -> Pixels:
    """Return a PIL image of any mode as `decode_image` reads its file; the image itself is not changed.

    Where Pillow loads other values than `decode_image` reads, such as 8 of the 16 bits of a colour, the first frame of
    a file that is not loaded yet is read from the file.

    Raises:
        ImageError: its file cannot be read to its end, its mode cannot be converted to RGB, or no value is finite.
    """
    try:
        with _one_image:
            file: Any = getattr(image, "fp", None)
            if file and getattr(image, "tile", None) and not image.tell() and differs_in_pillow(image):
                place = file.tell()
                try:
                    return _read(file, Path(name), image.format or "", None).pixels
                finally:
                    file.seek(place)  # where Pillow will go on
            copy = image.copy()
        steps: list[Step] = []
        if find_orientation(copy, steps) != 1:
            ImageOps.exif_transpose(copy, in_place=True)
        return convert_opened(copy, copy.mode, steps, name).pixels
    except ImageError:
        raise
    except Exception as error:  # the errors of Pillow's parsers have no common base class
        raise ImageError(
            f"{name} cannot be read as an image ({' '.join(str(error).split())[:200]})", "Replace or remove it"
        ) from error


def _read(file: BinaryIO, path: Path, name: str, at_least: int | None) -> Decoded:
    """Read an image other than DICOM; `name` is the format by its first bytes, empty if that is unknown."""
    if name in ("SGI", "PSD", "JPEG2000", "ICO"):
        file.seek(0)
        refuse_deep(file, path, name)
    file.seek(0)
    if name == "PPM" and (raster := read_deep_pnm(file, path)) is not None:
        return finish_raster(raster, path)
    file.seek(0)
    try:
        opened = open_with_pillow(file, path, name)
    except UnidentifiedImageError:
        if name == "TIFF":
            return _read_tiff(file, path)
        raise
    with opened:
        if opened.format == "TIFF":
            page: Any = opened
            if not skip_thumbnails(page) or not is_read_by_pillow(page.tag_v2):
                return _read_tiff(file, path)
            refuse_cut(page.tag_v2, file, path)
        return read_opened(opened, file, path, at_least)


def _read_tiff(file: BinaryIO, path: Path) -> Decoded:
    raster, orientation = read_tiff(file, path)
    return finish_raster(turn_upright(raster, orientation), path)


def _refuse_placeholder(head: bytes, path: Path) -> None:
    """Raise an `ImageError` for a file that stands for an image that was not copied."""
    if not head:
        raise ImageError(f"{path} is empty", "Copy it again, or remove it")
    if head.startswith(LFS_POINTER):
        raise ImageError(f"{path} is a Git LFS pointer, not the image", "Run `git lfs pull` in its repository")


def _refuse_size(size: int, name: str, path: Path) -> None:
    """Raise an `ImageError` for a file that is larger than an image's memory: readers hold it, most of them twice.

    TIFF is read in segments. A sparse file of any size takes no room on the disk.
    """
    limit = MAX_BYTES if name == "DICOM" else MAX_BYTES // 2
    if size > limit and name != "TIFF":
        raise ImageError(
            f"{path} has {size / 1e9:.1f} GB, more than an image may have ({limit / 1e9:.1f} GB)",
            "Remove it, or save the image again",
        )


def _explain(error: Exception, path: Path, name: str) -> str:
    """Return the reason why a reader failed, in one line without the reader's remedies."""
    if isinstance(error, UnidentifiedImageError):
        return f"a damaged {name} file" if name else "of no known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).replace(repr(str(path)), "it").replace(str(path), "it").split()) or type(error).__name__
    return f"{name}: {text[:200]}" if name else text[:200]
