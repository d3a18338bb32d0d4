"""Read images with Pillow, and the depths of which Pillow keeps only 8 bits by other means."""

import io
import re
import struct
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageOps, PngImagePlugin

from convnext_cli.errors import ImageError
from convnext_cli.images.formats import JPEG2000_CODESTREAM, PILLOW_SUFFIXES, explain_missing_reader
from convnext_cli.images.memory import reserve_memory
from convnext_cli.images.raster import (
    ORIENTATION_TAG,
    Decoded,
    Pixels,
    Raster,
    Step,
    check_orientation,
    choose_frame,
    cut_rows,
    finish_raster,
    scale_alpha,
    turn_upright,
)
from convnext_cli.images.tiff import REMEDY, choose_page, describe_ignored, is_read_by_pillow, is_thumbnail

_DEEP_MODES = ("I;16", "I;16B", "I;16L", "I;16N", "I", "F")  # more than 8 bits per pixel
_ALPHA_MODES = ("P", "PA", "LA", "RGBA", "La", "RGBa")
_GREY_STEPS = {"L;2": 85, "L;4": 17}  # Pillow scales such grey to 8 bits, but not the key of its transparent value
_DEEP_PNG = ("RGB;16B", "RGBA;16B", "LA;16B")  # of which Pillow keeps 8 bits
_CHANNEL_BYTES = 10  # per pixel and channel that reading such images of other formats holds
_AV1_DEPTH = re.compile(rb"av1C.{2}(.)", re.DOTALL)  # AV1 Codec ISO Media File Format Binding, 2.3.3
_SYCC = re.compile(rb"colr\x01..\0\0\0\x12", re.DOTALL)  # ISO/IEC 15444-1, I.5.3.3
_JPEG_SEGMENT = re.compile(rb"\xff([\xc0-\xcf\xd8-\xfe])")  # other markers have no length, or are data
_MAX_SCANS = 100  # a progressive JPEG has 6 to 20
_READER_BYTES = {"WEBP": 12, "JPEG2000": 24, "AVIF": 10, "HEIF": 6}
"""Bytes per pixel that a library holds beside Pillow's own image, measured on images of one colour."""

PngImagePlugin.MAX_TEXT_CHUNK = PngImagePlugin.MAX_TEXT_MEMORY
"""Bytes of one compressed text or colour profile. Pillow refuses an image with 1 MiB, as a long editing history has."""


def differs_in_pillow(image: Image.Image) -> bool:
    """Return True if `decode_image` may read other values from an opened file than Pillow, or refuses it."""
    if image.format == "TIFF":
        return is_thumbnail(image.tag_v2) or not is_read_by_pillow(image.tag_v2)  # type: ignore[attr-defined]
    is_deep = _find_rawmode(image) in (*_DEEP_PNG, *_GREY_STEPS)
    return is_deep or image.format in ("PPM", "SGI", "JPEG2000", "AVIF")


def open_with_pillow(file: BinaryIO, path: Path, name: str = "") -> Image.Image:
    """Open an image with Pillow, limited to the formats of `PILLOW_SUFFIXES`; nothing is decoded yet.

    The formats are listed because Pillow starts Ghostscript for a PostScript file of any name.

    Args:
        file: the file, at its start.
        path: for the message.
        name: the only allowed format; empty for all.

    Raises:
        UnidentifiedImageError: the file has none of these formats.
        ImageError: the installed Pillow lacks this format, or the extra `heic` is not installed.
    """
    if name == "HEIF":
        _register_heif(path)
    if name not in Image.OPEN:
        Image.init()
    formats = [name] if name in Image.OPEN else [listed for listed in PILLOW_SUFFIXES if listed in Image.OPEN]
    if name not in ("", *formats):
        raise ImageError(f"{path} is {name}, which the installed Pillow cannot read", "Install a newer Pillow")
    return Image.open(file, formats=formats)


def _register_heif(path: Path) -> None:
    """Let Pillow open HEIF, which iPhones write as HEIC."""
    try:
        import pi_heif
    except ModuleNotFoundError as error:
        raise explain_missing_reader(f"{path} is HEIC", "heic") from error
    pi_heif.register_heif_opener(decode_threads=1, thumbnails=False, depth_images=False, aux_images=False)


def read_opened(opened: Image.Image, file: BinaryIO, path: Path, at_least: int | None) -> Decoded:
    """Read an image that Pillow has opened, at the page to read; `at_least` is that of `decode_image`.

    Raises:
        ImageError: it is too large, or has no known colours; other errors are Pillow's.
    """
    if opened.mode == "LAB":
        raise ImageError(f"{path} is in Lab colour, which cannot be read", REMEDY)
    if opened.format in ("JPEG", "MPO") and _has_scans(opened, file):
        _refuse_scans(file, path)
    with reserve_memory(path, *opened.size, _count_bytes(opened, file)):
        return _load(opened, file, path, at_least)


def _load(opened: Image.Image, file: BinaryIO, path: Path, at_least: int | None) -> Decoded:
    steps: list[Step] = []
    mode = opened.mode
    if opened.format == "TIFF":
        steps += choose_page(opened, file)
        steps += describe_ignored(opened.tag_v2.get(277, 1) - len(opened.getbands()))  # type: ignore[attr-defined]
    elif (frames := getattr(opened, "n_frames", 1)) > 1 and opened.format != "MPO":  # a preview or another view
        steps.append(choose_frame(opened.tell(), frames))
    bits, rawmode = _find_cut_depth(opened, file), _find_rawmode(opened)  # before its EXIF is read, which loads a PNG
    if at_least is not None and opened.format == "JPEG":
        _reduce(opened, at_least)
    orientation = find_orientation(opened, steps)
    if bits:
        raster = turn_upright(_make_raster(_read_values(opened, file), mode, bits), orientation)
        return finish_raster(raster._replace(steps=tuple(steps)), path)
    opened.load()
    if rawmode in _GREY_STEPS and isinstance(key := opened.info.get("transparency"), int):
        opened.info["transparency"] = key * _GREY_STEPS[rawmode]
    if orientation != 1:
        ImageOps.exif_transpose(opened, in_place=True)
    return convert_opened(opened, mode, steps, path)


def convert_opened(image: Image.Image, mode: str, steps: list[Step], path: object) -> Decoded:
    """Convert an upright image that Pillow has read from a file of this `mode`, and add to the steps so far.

    Deep grey is stretched, transparent parts are blended with white, and the rest becomes RGB.

    Raises:
        ImageError: no value is finite.
    """
    if mode in _DEEP_MODES:
        values = _to_array(image)
        alpha = None
        if isinstance(key := image.info.get("transparency"), int):
            alpha = (values != key).astype(np.float32)
        bits = 16 if mode.startswith("I;16") else 32
        return finish_raster(Raster(values, alpha, mode, bits, tuple(steps)), path)
    is_transparent = mode in _ALPHA_MODES or (mode in ("1", "L", "RGB") and "transparency" in image.info)
    ignored = int(_has_other_alpha(image))
    steps += describe_ignored(ignored)
    pixels, has_alpha = _to_rgb(image, is_transparent=is_transparent and not ignored)
    if has_alpha:
        steps.append(Step("composited on white"))
    elif not is_transparent and mode not in ("RGB", "L"):
        steps.append(Step("converted to RGB"))
    return Decoded(pixels, mode, 1 if mode == "1" else 8, tuple(steps))


def find_orientation(image: Image.Image, steps: list[Step]) -> int:
    """Return the EXIF orientation; 1 if there is none or the EXIF cannot be read."""
    try:
        orientation = check_orientation(image.getexif().get(ORIENTATION_TAG))
    except (SyntaxError, ValueError, struct.error, KeyError, TypeError):
        steps.append(Step("damaged EXIF ignored"))
        image.info.pop("exif", None)
        return 1
    if orientation != 1:
        steps.append(Step("turned upright"))
    return orientation


def _has_other_alpha(image: Image.Image) -> bool:
    """Return True if the alpha channel is not opacity: no pixel of a picture is opaque.

    Programs that do not know alpha leave it 0; GDAL declares the fourth band of a photograph, near infrared, as alpha.
    In a drawing of one colour, alpha is the picture.
    """
    if image.mode not in ("LA", "PA", "RGBA"):
        return False
    extrema: Any = image.getextrema()
    *colours, (_, highest) = extrema
    return highest < 255 and any(low != high for low, high in colours)


def _to_rgb(image: Image.Image, *, is_transparent: bool) -> tuple[Pixels, bool]:
    """Convert to (H, W, 3) on white, part by part if the image is large; return True too if any part is transparent."""
    width, height = image.size
    slices = list(cut_rows((height, width)))
    if len(slices) == 1:
        return _part_to_rgb(image, is_transparent=is_transparent)
    result, has_alpha = np.empty((height, width, 3), np.uint8), False
    for rows in slices:
        part = image.crop((0, rows.start, width, rows.stop))
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
    parts = (np.asarray(image.crop((0, rows.start, width, rows.stop))) for rows in slices)
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
    if (rawmode := _find_rawmode(image)) in _DEEP_PNG:
        return 20 if rawmode == "RGB;16B" else 26
    if _find_cut_depth(image, file):
        return _CHANNEL_BYTES * len(image.getbands()) + 8
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


def _find_cut_depth(image: Image.Image, file: BinaryIO) -> int:
    """Return the bits of each channel in a file of which Pillow would keep 8, or scale fewer wrongly; 0 for others."""
    if image.format == "PNG":
        return 16 if _find_rawmode(image) in _DEEP_PNG else 0
    if image.format == "HEIF":
        bits = int(image.info.get("bit_depth", 8))
    elif image.format == "AVIF":
        match = _AV1_DEPTH.search(_read_head(file))
        bits = (12 if match[1][0] & 32 else 10) if match and match[1][0] & 64 else 8
    elif image.format == "JPEG2000":
        depths, head = _read_depths(file)
        bits = 8 if image.mode == "P" or _SYCC.search(head) else max(depths, default=8)
    else:
        return 0
    return 0 if bits == 8 else bits


def _read_head(file: BinaryIO, size: int = 1 << 16) -> bytes:
    """Return the beginning of a file, and leave its place as it is."""
    place = file.tell()
    file.seek(0)
    head = file.read(size)
    file.seek(place)
    return head


def _read_depths(file: BinaryIO) -> tuple[list[int], bytes]:
    """Return the bits of each channel of a JPEG 2000 file, and all before its codestream; none for a damaged file."""
    head = _read_head(file)
    if (start := head.find(JPEG2000_CODESTREAM)) < 0:
        head = _read_head(file, -1)  # much metadata comes first
        start = head.find(JPEG2000_CODESTREAM)
    if start < 0 or len(head) < start + 43:
        return [], head
    (count,) = struct.unpack_from(">H", head, start + 40)
    return [(depth & 127) + 1 for depth in head[start + 42 : start + 42 + 3 * count : 3]], head[:start]


def _read_values(image: Image.Image, file: BinaryIO) -> NDArray[Any]:
    """Read the first frame of a file, opened by Pillow, with all its bits: (H, W) or (H, W, C)."""
    file.seek(0)
    if image.format == "HEIF":
        import pi_heif

        whole = pi_heif.open_heif(file, convert_hdr_to_8bit=False)  # its array is freed with it
        return np.asarray(whole) >> (16 - int(image.info["bit_depth"]))  # its values are stretched to 16 bits
    import imagecodecs

    data = file.read()
    if image.format == "PNG":
        return imagecodecs.png_decode(data)  # a transparent colour becomes alpha
    return imagecodecs.avif_decode(data, index=0) if image.format == "AVIF" else imagecodecs.jpeg2k_decode(data)


def _make_raster(values: NDArray[Any], mode: str, bits: int) -> Raster:
    """Return values as grey or RGB; the last of two or four channels is opacity."""
    full = 2.0**bits - 1
    channels = 1 if values.ndim == 2 else values.shape[2]
    alpha = None if channels % 2 else scale_alpha(values[..., -1], full)
    if channels > 1:
        values = values[..., :3] if channels > 2 else values[..., 0]
    if bits < 8:
        low = -(1 << bits - 1) if values.dtype.kind == "i" else 0
        values = np.rint((values.astype(np.float32) - low) * (255 / full)).astype(np.uint8)
    return Raster(values, alpha, "RGB" if channels > 2 else mode, bits)


def read_deep_pnm(file: BinaryIO, path: Path) -> Raster | None:
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


def _refuse_scans(file: BinaryIO, path: Path) -> None:
    """Refuse a JPEG of endlessly many scans, each of which libjpeg decodes at the image's full size."""
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


def refuse_deep(file: BinaryIO, path: Path, name: str) -> None:
    """Raise an `ImageError` for files of which Pillow would drop bits, if there is no other way to read them."""
    if name == "SGI" and file.read(4)[3:] == b"\2":
        raise ImageError(f"{path} is an SGI file of 16 bits, which cannot be read", REMEDY)
    if name == "PSD" and (bits := int.from_bytes(file.read(24)[22:], "big")) > 8:
        raise ImageError(f"{path} is a PSD file of {bits} bits, which cannot be read", REMEDY)
    if name == "JPEG2000":
        depths, head = _read_depths(file)
        kind = ""
        if len(depths) > 4:
            kind = f"{len(depths)} channels"
        elif max(depths, default=8) > 8 and len(set(depths)) > 1:
            kind = f"channels of {', '.join(map(str, depths))} bits"
        elif max(depths, default=8) > 8 and (_SYCC.search(head) or b"pclr" in head):
            kind = f"{max(depths)} bits in a palette or YCC colour"
        if kind:
            raise ImageError(f"{path} is a JPEG 2000 file of {kind}, which cannot be read", REMEDY)
    if name == "ICO":  # images inside declare sizes of their own
        for match in re.finditer(rb"\x89PNG\r\n\x1a\n....IHDR(.{8})", file.read(), re.DOTALL):
            if max(struct.unpack(">II", match[1])) > 4096:
                raise ImageError(f"{path} is an icon of more than 4,096 pixels", "Replace or remove the file")
