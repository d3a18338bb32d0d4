"""Decode image files to RGB uint8. This is the only place where a file becomes pixels.

Values of more than 8 bits are stretched from the image's own darkest to its own brightest value. The data set's range
is not used, for two reasons. Raw values of different devices share no scale. And `predict` must read an image years
later as training would have done, by a rule that needs no memory. Nothing is clipped, so a 12-bit X-ray in a 16-bit
file keeps all levels that 8 bits can hold. Only absolute brightness is lost.

The content of a file decides its format, not its name. If Pillow returns only 8 of a file's 16 bits, the rest is read
in another way (`tiff.py`, `_read_deep_png`, `_read_deep_pnm`), or the file is refused by name.
"""

import io
import os
import re
import struct
import threading
import warnings
import zlib
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, UnidentifiedImageError

from convnext_cli.errors import ImageError
from convnext_cli.images.formats import (
    DICOM_SUFFIXES,
    HEAD_BYTES,
    JPEG2000_CODESTREAM,
    LFS_POINTER,
    PILLOW_SUFFIXES,
    SpecialFileError,
    explain_missing,
    identify_bytes,
    open_regular_file,
)
from convnext_cli.images.memory import MAX_BYTES, MAX_PIXELS, reserve_memory
from convnext_cli.images.raster import (
    ORIENTATION_TAG,
    Raster,
    check_orientation,
    cut_rows,
    find_range,
    scale_alpha,
    stretch_between,
    turn_upright,
)
from convnext_cli.images.tiff import REMEDY, is_read_by_pillow, is_thumbnail, name_page, read_tiff, skip_thumbnails

Pixels = NDArray[np.uint8]
"""An image, (H, W, 3), RGB."""

RULES = 5
"""Version of the decoding rules. Raise it if a file would become other pixels; cached images are then made again."""

_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # more than 8 bits per pixel
_ALPHA_MODES = ("P", "PA", "LA", "RGBA", "La", "RGBa")
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow scales such grey to 8 bits, but not the key of its transparent value
_SWAPPED = {"RGB;16B": "RGB;16L", "RGBA;16B": "RGBA;16L"}  # Pillow keeps the first byte; in swapped order, the second
_JPEG_SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")  # other markers have no length, or are data
_MAX_SCANS = 100  # a progressive JPEG has 6 to 20
_one_image = threading.Lock()  # reading a PIL image changes it, and two threads may pass the same one
_READER_BYTES = {"WEBP": 12, "JPEG2000": 24, "AVIF": 10}
"""Bytes per pixel that a library holds beside Pillow's own image, measured on images of one colour."""

# Readers warn of odd tags, and of images half as large as MAX_PIXELS: nothing that a user could act upon.
warnings.filterwarnings("ignore", module=r"PIL\.|pydicom\.|convnext_cli\.images\.")


class Decoded(NamedTuple):
    """An image, and the steps of its decoding."""

    pixels: Pixels
    """(H, W, 3) RGB, upright."""
    mode: str
    """Pillow's name of the file's own pixels, such as `L`, `RGB`, `I;16`; `DICOM …` for DICOM."""
    bits: int
    """Bits per value in the file."""
    steps: tuple[str, ...]
    """The steps in words: windowed, first frame, turned upright …"""


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

                return _finish(read_dicom(file, path), path)
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
    """Return a PIL image as `decode_image` reads its file; the image itself is not changed.

    Where Pillow loads other values than `decode_image` reads, such as 8 of the 16 bits of a colour, the first frame of
    a file that is not loaded yet is read from the file.

    Args:
        image: an image of any mode, read or not.
        name: for messages.

    Raises:
        ImageError: its file cannot be read to its end, its mode cannot be converted to RGB, or no value is finite.
    """
    try:
        with _one_image:
            file: Any = getattr(image, "fp", None)
            if file and getattr(image, "tile", None) and not image.tell() and _differs_in_pillow(image):
                place = file.tell()
                try:
                    return _read(file, Path(name), image.format or "", None).pixels
                finally:
                    file.seek(place)  # where Pillow will go on
            copy = image.copy()
        steps: list[str] = []
        if _find_orientation(copy, steps) != 1:
            ImageOps.exif_transpose(copy, in_place=True)
        return _convert(copy, copy.mode, steps, name).pixels
    except ImageError:
        raise
    except Exception as error:  # the errors of Pillow's parsers have no common base class
        raise ImageError(
            f"{name} cannot be read as an image ({' '.join(str(error).split())[:200]})", "Replace or remove it"
        ) from error


def _differs_in_pillow(image: Image.Image) -> bool:
    """Return True if `_read` may read other values from an opened file than Pillow, or refuses it."""
    if image.format == "TIFF":
        return is_thumbnail(image.tag_v2) or not is_read_by_pillow(image.tag_v2)  # type: ignore[attr-defined]
    is_deep = _find_rawmode(image) in (*_SWAPPED, *_GREY_STEPS, "LA;16B")
    return is_deep or image.format in ("PPM", "SGI", "JPEG2000")


def _finish(raster: Raster, path: object) -> Decoded:
    """Stretch deep values to 8 bits, and blend transparent parts with white.

    Raises:
        ImageError: no value is finite.
    """
    values, alpha, mode, bits, steps = raster
    if values.dtype == np.uint8:
        pixels = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    else:
        shown = None if alpha is None else alpha > 0
        ends = find_range(values, shown if shown is not None and shown.any() else None)
        if ends is None:
            raise ImageError(f"{path} has no finite values", "Replace or remove the file")
        low, high = ends
        pixels = stretch_between(values, low, high)
        step = f"{bits}-bit colour stretched" if values.ndim == 3 else "stretched"
        steps = (*steps, f"{step} from {low:g}..{high:g}")
    if alpha is not None and alpha.min() < 1:
        for rows in cut_rows(values.shape):
            opaque = alpha[rows][..., None]
            pixels[rows] = np.rint(pixels[rows] * opaque + 255 * (1 - opaque))
        steps = (*steps, "composited on white")
    return Decoded(pixels, mode, bits, steps)


def open_with_pillow(file: BinaryIO, path: Path, name: str = "") -> Image.Image:
    """Open an image with Pillow, limited to the formats of `PILLOW_SUFFIXES`; nothing is decoded yet.

    The formats are listed because Pillow starts Ghostscript for a PostScript file of any name.

    Args:
        file: the file, at its start.
        path: for the message.
        name: the only allowed format; empty for all.

    Raises:
        UnidentifiedImageError: the file has none of these formats.
        ImageError: the installed Pillow lacks this format.
    """
    if name not in Image.OPEN:
        Image.init()
    formats = [name] if name in Image.OPEN else [listed for listed in PILLOW_SUFFIXES if listed in Image.OPEN]
    if name not in ("", *formats):
        raise ImageError(f"{path} is {name}, which the installed Pillow cannot read", "Install a newer Pillow")
    return Image.open(file, formats=formats)


def _read(file: BinaryIO, path: Path, name: str, at_least: int | None) -> Decoded:
    """Read an image other than DICOM; `name` is the format by its first bytes, empty if that is unknown."""
    if name in ("SGI", "JPEG2000", "ICO"):
        file.seek(0)
        _refuse_deep(file, path, name)
    file.seek(0)
    if name == "PPM" and (raster := _read_deep_pnm(file, path)) is not None:
        return _finish(raster, path)
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
        if opened.mode == "LAB":
            raise ImageError(f"{path} is in Lab colour, which cannot be read", REMEDY)
        if opened.format in ("JPEG", "MPO") and _has_scans(opened, file):
            _refuse_scans(file, path)
        with reserve_memory(path, *opened.size, _count_bytes(opened, file)):
            return _read_pillow(opened, file, path, at_least)


def _read_pillow(opened: Image.Image, file: BinaryIO, path: Path, at_least: int | None) -> Decoded:
    steps: list[str] = []
    mode = opened.mode
    if (frames := getattr(opened, "n_frames", 1)) > 1:
        steps.append(name_page(opened.tell(), frames))
    rawmode = _find_rawmode(opened)
    if at_least is not None and opened.format == "JPEG":
        _reduce(opened, at_least)
    orientation = _find_orientation(opened, steps)
    if rawmode == "LA;16B" or rawmode in _SWAPPED:
        raster = _read_deep_png(opened, file, rawmode)
        raster = raster._replace(steps=tuple(steps) + raster.steps)
        return _finish(turn_upright(raster, orientation), path)
    opened.load()
    _scale_key(opened, rawmode)
    if orientation != 1:
        ImageOps.exif_transpose(opened, in_place=True)
    return _convert(opened, mode, steps, path)


def _convert(image: Image.Image, mode: str, steps: list[str], path: object) -> Decoded:
    """Convert an image that Pillow has read: stretch deep grey, blend transparent parts with white, make the rest RGB.

    Args:
        image: read, and upright.
        mode: of the file.
        steps: the steps so far.
        path: for the message.

    Raises:
        ImageError: no value is finite.
    """
    if mode in _DEEP_MODES:
        values = _to_array(image)
        alpha = None
        if isinstance(key := image.info.get("transparency"), int):
            alpha = (values != key).astype(np.float32)
        bits = 16 if mode.startswith("I;16") else 32
        return _finish(Raster(values, alpha, mode, bits, tuple(steps)), path)
    is_transparent = mode in _ALPHA_MODES or (mode in ("1", "L", "RGB") and "transparency" in image.info)
    pixels, has_alpha = _to_rgb(image, is_transparent=is_transparent)
    if has_alpha:
        steps.append("composited on white")
    elif not is_transparent and mode not in ("RGB", "L"):
        steps.append("converted to RGB")
    return Decoded(pixels, mode, 1 if mode == "1" else 8, tuple(steps))


def _read_tiff(file: BinaryIO, path: Path) -> Decoded:
    raster, orientation = read_tiff(file, path)
    return _finish(turn_upright(raster, orientation), path)


def _find_orientation(image: Image.Image, steps: list[str]) -> int:
    """Return the EXIF orientation; 1 if there is none or the EXIF cannot be read."""
    try:
        orientation = check_orientation(image.getexif().get(ORIENTATION_TAG))
    except (SyntaxError, ValueError, struct.error, KeyError, TypeError):
        steps.append("damaged EXIF ignored")
        image.info.pop("exif", None)
        return 1
    if orientation != 1:
        steps.append("turned upright")
    return orientation


def _to_rgb(image: Image.Image, *, is_transparent: bool) -> tuple[Pixels, bool]:
    """Convert to (H, W, 3) on white, part by part if the image is large; return True too if any part is transparent."""
    width, height = image.size
    slices = list(cut_rows((height, width)))
    if len(slices) == 1:
        return _part_to_rgb(image, is_transparent=is_transparent)
    result, has_alpha = np.empty((height, width, 3), np.uint8), False
    for rows in slices:
        part = image.crop((0, rows.start, width, min(rows.stop, height)))
        result[rows], is_part_transparent = _part_to_rgb(part, is_transparent=is_transparent)
        has_alpha |= is_part_transparent
    return result, has_alpha


def _part_to_rgb(image: Image.Image, *, is_transparent: bool) -> tuple[Pixels, bool]:
    """Convert to (H, W, 3) on white; return True too if a pixel is transparent."""
    has_alpha = False
    if is_transparent:
        image = image.convert("LA") if image.mode == "La" else image
        image = image.convert("RGBA")  # a palette's transparency is lost with a warning otherwise
        has_alpha = image.getchannel("A").getextrema() != (255, 255)
    if has_alpha:
        image = Image.alpha_composite(Image.new("RGBA", image.size, "white"), image)
    return np.asarray(image if image.mode == "RGB" else image.convert("RGB")), has_alpha


def _to_array(image: Image.Image) -> NDArray[Any]:
    """Copy a grey image's values, part by part, because NumPy's own way holds three copies for a moment."""
    width, height = image.size
    slices = list(cut_rows((height, width)))
    if len(slices) == 1:
        return np.asarray(image)
    parts = (np.asarray(image.crop((0, rows.start, width, min(rows.stop, height)))) for rows in slices)
    first = next(parts)
    result = np.empty((height, width, *first.shape[2:]), first.dtype)
    result[slices[0]] = first
    for rows, part in zip(slices[1:], parts, strict=True):
        result[rows] = part
    return result


def _count_bytes(image: Image.Image, file: BinaryIO) -> float:
    """Return the bytes per pixel that reading `image` holds at once: of the library, Pillow and the result."""
    size = 1 if image.mode in ("1", "L", "P") else 2 if image.mode.startswith("I;16") else 4
    count = size + 3 + _READER_BYTES.get(image.format or "", 0)
    if image.mode in _DEEP_MODES:
        return count + size
    if (rawmode := _find_rawmode(image)) in (*_SWAPPED, "LA;16B"):
        return 20 if rawmode == "RGB;16B" else 26
    if image.format in ("JPEG", "MPO"):  # in several scans, libjpeg holds all coefficients, 2 bytes each
        layers = getattr(image, "layer", ())
        if layers and _has_scans(image, file):
            largest = max(layer[1] for layer in layers) * max(layer[2] for layer in layers)
            count += 2 * sum(layer[1] * layer[2] for layer in layers) / max(1, largest)
    return count


def _has_scans(image: Image.Image, file: BinaryIO) -> bool:
    """Return True if a JPEG opened by Pillow, its file at the first scan, has several scans."""
    place = file.tell()
    scanned = file.read(3)[2:]
    file.seek(place)
    return bool(image.info.get("progressive")) or scanned != bytes([len(getattr(image, "layer", ()))])


def _reduce(image: Image.Image, at_least: int) -> None:
    """Let libjpeg decode at the smallest of 1, 1/2, 1/4, 1/8 whose shorter side keeps `at_least` pixels."""
    shorter = min(image.size)
    for factor in (8, 4, 2):
        if shorter // factor >= at_least:
            image.draft(None, (-(-image.width // factor), -(-image.height // factor)))
            return


def _find_rawmode(image: Image.Image) -> str:
    """Return Pillow's name for the layout of the file's bytes; empty if there is none."""
    tiles: Any = getattr(image, "tile", None)
    args = tiles[0].args if tiles else None
    return args if isinstance(args, str) else ""  # PNG has text; other formats, whose layout is not asked, have tuples


def _scale_key(image: Image.Image, rawmode: str) -> None:
    """Scale the transparent value of a grey image of 2 or 4 bits as its pixels are scaled."""
    if rawmode in _GREY_STEPS and isinstance(key := image.info.get("transparency"), int):
        image.info["transparency"] = key * _GREY_STEPS[rawmode]


def _read_deep_png(opened: Image.Image, file: BinaryIO, rawmode: str) -> Raster:
    """Read a PNG of 16-bit colour or of 16-bit grey with alpha, of which Pillow keeps the higher bytes.

    Colour is decoded again in swapped byte order, which gives the lower bytes. Grey with alpha has four bytes per pixel
    like 8-bit RGBA; decoded as such, it gives all four.
    """
    if rawmode == "LA;16B":
        file.seek(0)
        data = bytearray(file.read())
        data[24:26] = b"\x08\x06"  # bit depth and colour type, in IHDR, the first chunk (PNG specification, 11.2.1)
        data[29:33] = struct.pack(">I", zlib.crc32(data[12:29]))
        with Image.open(io.BytesIO(data), formats=("PNG",)) as image:
            pairs = _to_array(image).view(">u2")  # (H, W, 2)
        return Raster(pairs[..., 0].astype(np.uint16), scale_alpha(pairs[..., 1], 65535), "LA", 16)
    mode, key = opened.mode, opened.info.get("transparency")
    deep = _to_array(opened).astype(np.uint16) << np.uint16(8)
    with Image.open(file, formats=("PNG",)) as again:
        again.tile = [tile._replace(args=_SWAPPED[rawmode]) for tile in again.tile]
        deep |= _to_array(again)
    values = deep[..., :3]
    if deep.shape[2] == 4:
        return Raster(values, scale_alpha(deep[..., 3], 65535), mode, 16)
    alpha = (values != np.asarray(key)).any(axis=2).astype(np.float32) if isinstance(key, tuple) else None
    return Raster(values, alpha, mode, 16)


def _read_deep_pnm(file: BinaryIO, path: Path) -> Raster | None:
    """Read colour PNM of more than 8 bits and colour PFM as grey images three times as wide; None for other files."""
    head = file.read(4096)
    blank = rb"(?:\s|#[^\n]*\n)+"
    header = re.match(rb"P([36F])(" + blank + rb")(\d{1,9})(" + blank + rb")(\d{1,9})" + blank + rb"([-+.\deE]+)", head)
    if header is None or (header[1] != b"F" and float(header[6]) <= 255):
        return None
    width, height = int(header[3]), int(header[5])
    with reserve_memory(path, width, height, 3 * (4 + 4 + 4) + 3):
        file.seek(header.end(3))
        grey = b"P" + {b"3": b"2", b"6": b"5", b"F": b"f"}[header[1]]
        data = grey + header[2] + str(3 * width).encode() + file.read()
        with Image.open(io.BytesIO(data), formats=("PPM",)) as image:
            values = _to_array(image).reshape(height, width, 3)
        return Raster(values, None, "RGB", 32 if header[1] == b"F" else 16)


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


def _refuse_scans(file: BinaryIO, path: Path) -> None:
    """Raise an `ImageError` for a JPEG of endlessly many scans, each of which libjpeg decodes at the image's full size.

    Raises:
        ImageError: it has more than `_MAX_SCANS`.
    """
    place = file.tell()
    file.seek(0)
    data = file.read()
    file.seek(place)
    count, at = 0, 2  # after the first marker, SOI
    while (match := _JPEG_SEGMENT.search(data, at)) and match[1] != b"\xd9":  # EOI
        count += match[1] == b"\xda"  # SOS
        at = match.end() + int.from_bytes(data[match.end() : match.end() + 2], "big")
    if count > _MAX_SCANS:
        raise ImageError(f"{path} is a JPEG of {count:,} scans (the limit is {_MAX_SCANS})", "Save it again")


def _refuse_deep(file: BinaryIO, path: Path, name: str) -> None:
    """Raise an `ImageError` for files of which Pillow would drop bits, if there is no other way to read them."""
    if name == "SGI" and file.read(4)[3:] == b"\2":
        raise ImageError(f"{path} is an SGI file of 16 bits, which cannot be read", REMEDY)
    if name == "JPEG2000":
        head = file.read(1 << 16)
        start = head.find(JPEG2000_CODESTREAM)
        if start >= 0 and len(head) >= start + 43:
            (count,) = struct.unpack_from(">H", head, start + 40)
            depths = [(depth & 127) + 1 for depth in head[start + 42 : start + 42 + 3 * count : 3]]
            if count > 1 and max(depths, default=8) > 8:
                raise ImageError(
                    f"{path} is a JPEG 2000 file of {count} channels of {max(depths)} bits, which cannot be read",
                    REMEDY,
                )
    if name == "ICO":  # images inside declare sizes of their own
        for match in re.finditer(rb"\x89PNG\r\n\x1a\n....IHDR(.{8})", file.read(), re.DOTALL):
            if max(struct.unpack(">II", match[1])) > 4096:
                raise ImageError(f"{path} is an icon of more than 4,096 pixels", "Replace or remove the file")


def _explain(error: Exception, path: Path, name: str) -> str:
    """Return the reason why a reader failed, in one line without the reader's remedies."""
    if isinstance(error, UnidentifiedImageError):
        return f"a damaged {name} file" if name else "of no known format"
    if isinstance(error, OSError) and error.strerror:
        return error.strerror
    text = " ".join(str(error).replace(repr(str(path)), "it").replace(str(path), "it").split()) or type(error).__name__
    return f"{name}: {text[:200]}" if name else text[:200]
