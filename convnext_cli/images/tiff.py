"""Read TIFF files that Pillow cuts to 8 bits, misreads, or does not open, by their own tags.

tifffile reads them, with the decompressors of imagecodecs, which never write more bytes than a segment declares.
"""

import logging
import math
import os
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from convnext_cli.errors import ImageError
from convnext_cli.images.memory import MAX_BYTES, reserve_memory
from convnext_cli.images.raster import ORIENTATION_TAG, Raster, Step, check_orientation, choose_frame, scale_alpha
from convnext_cli.text import format_count

REMEDY = "Save it again as a grey or RGB TIFF of 8 or 16 bits, or as PNG"

_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _SEPARATED = 0, 1, 2, 3, 5
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_UNCOMPRESSED, _CCITT, _JPEG = 1, (2, 3, 4), (6, 7)
_BYTE_CODECS = (5, 8, 32946, 32773, 34925, 50000)  # LZW, Deflate (2), PackBits, LZMA, Zstandard: layout does not matter
_WEBP = 50001  # which Pillow's libtiff lacks
_ASSOCIATED, _UNASSOCIATED = 1, 2
_COPY = 1 | 4  # the bits of NewSubfileType for a reduced image and for a transparency mask
_PILLOW_DEEP = {(_UNSIGNED, 12), (_UNSIGNED, 16), (_SIGNED, 16), (_SIGNED, 32), (_FLOAT, 32)}


def is_thumbnail(tags: Any) -> bool:
    """Return True if the page of a TIFF file with these tags (`tag_v2`) is marked as a thumbnail of another page."""
    return bool(tags.get(254, 0) & 1)


def choose_page(image: Any, file: BinaryIO) -> list[Step]:
    """Return the step that reads the current page of a TIFF file that Pillow has opened; none of a single page.

    Pillow itself fails at further pages of an unknown layout, such as GDAL's masks.
    """
    if not image.tell() and not image.tag_v2.next:
        return []
    import tifffile

    position = file.tell()
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        steps = _list_steps(tiff.pages, image.tell())
    file.seek(position)
    return steps


def _list_steps(pages: Any, place: int) -> list[Step]:
    """Return the step that reads one of several pages; smaller copies, such as overviews, and masks hold no others."""
    if len(pages) < 2:
        return []
    are_copies = all(page.subfiletype & _COPY for at, page in enumerate(pages) if at != place)
    return [choose_frame(place, len(pages), are_copies=are_copies)]


def skip_thumbnails(image: Any) -> bool:
    """Seek a file that Pillow has opened to its first page that is no thumbnail, or to the first one if all are.

    Returns:
        False if Pillow cannot open that page.
    """
    try:
        while is_thumbnail(image.tag_v2):
            image.seek(image.tell() + 1)
    except EOFError:
        image.seek(0)
    except SyntaxError:  # of a page with an unknown layout
        return False
    return True


def is_read_by_pillow(tags: Any) -> bool:
    """Return True if Pillow reads the right values of the page of a TIFF file with these tags (`tag_v2`)."""
    formats, bits = tags.get(339, (_UNSIGNED,)), tags.get(258, (1,))
    photometric, samples = tags.get(262, _MINISWHITE), tags.get(277, 1)
    compression, is_separate = tags.get(259, _UNCOMPRESSED), tags.get(284, 1) == 2
    if 50706 in tags or tags.get(32997, 1) != 1 or (42113 in tags and max(bits) > 8):  # DNG; no-data values
        return False
    if compression == _WEBP:
        return False
    if compression in (*_JPEG, *_CCITT):
        return True
    if _lacks_strips(tags):  # Pillow leaves them black; `read_tiff` refuses the file
        return False
    if 0 in (*tags.get(273, ()), *tags.get(324, ())):  # a sparse file; Pillow takes its header for pixels
        return False
    if max(bits) > 8:
        if compression != _UNCOMPRESSED and formats[0] != _UNSIGNED:  # in big-endian files, Pillow swaps them twice
            return False
        return samples == 1 and photometric == _MINISBLACK and (formats[0], bits[0]) in _PILLOW_DEEP
    if photometric == _PALETTE and max(tags.get(320, (65535,))) < 256:
        return False
    is_subsampled = photometric == 6 and compression == _UNCOMPRESSED and tags.get(530, (2, 2)) != (1, 1)
    return set(formats) == {_UNSIGNED} and not is_separate and not is_subsampled


def refuse_cut(tags: Any, file: BinaryIO, path: Any) -> None:
    """Raise an `ImageError` for a compressed page that ends after its file: libtiff prints its errors.

    Without compression, Pillow does not need the lengths, which may be wrong.
    """
    if tags.get(259, _UNCOMPRESSED) in (_UNCOMPRESSED, _CCITT[0], _JPEG[0]):
        return
    position = file.tell()
    size = file.seek(0, os.SEEK_END)
    file.seek(position)
    for offsets, counts in ((273, 279), (324, 325)):
        segments = zip(tags.get(offsets, ()), tags.get(counts, ()), strict=False)
        if any(offset + count > size for offset, count in segments):
            raise _explain_cut(path)


def describe_ignored(channels: int) -> list[Step]:
    """Return a step for the channels beside the colours, such as near infrared, if there are any."""
    return [Step(f"{format_count(channels, 'further channel')} ignored")] if channels > 0 else []


def _lacks_strips(tags: Any) -> bool:
    """Return True if a TIFF file has fewer strips than its height needs."""
    height, strips = tags.get(257, 0), tags.get(273, ())
    rows = min(tags.get(278) or height, height)
    return bool(strips and rows) and len(strips) < -(-height // rows)


def read_tiff(file: BinaryIO, path: Any) -> tuple[Raster, int]:
    """Read the first page of a TIFF file that is no thumbnail, and its orientation, 1 to 8.

    Raises:
        ImageError: its values have no known meaning, or it is damaged or too large.
    """
    import tifffile

    logging.getLogger("tifffile").setLevel(logging.CRITICAL + 1)
    file.seek(0)
    with tifffile.TiffFile(file) as tiff:
        if not tiff.pages:
            raise ImageError(f"{path} is a TIFF file without an image", "Remove it")
        pages: Any = tiff.pages
        place, page = next(((at, page) for at, page in enumerate(pages) if not page.is_reduced), (0, pages.first))
        _check(page, path)
        bytes_per_pixel = 4 * page.samplesperpixel * page.dtype.itemsize + 3
        with reserve_memory(path, page.imagewidth, page.imagelength, bytes_per_pixel):
            planes = _read_planes(page, path)
            steps = _list_steps(pages, place)
            orientation = check_orientation(page.tags.valueof(ORIENTATION_TAG))
            return _convert_planes(page, planes, steps), orientation


def _check(page: Any, path: Any) -> None:
    """Raise an `ImageError` that names the kind of file if its values have no known meaning."""
    photometric, samples = int(page.photometric or 0), int(page.samplesperpixel)
    sample_format = 0 if isinstance(page.sampleformat, tuple) else int(page.sampleformat or _UNSIGNED)
    extra = len(page.extrasamples)
    compression = int(page.compression)
    kind = ""
    if 50706 in page.tags or photometric in (32803, 34892):
        kind = "of camera raw values"
    elif not isinstance(page.bitspersample, int):
        kind = f"whose channels differ in bits ({', '.join(map(str, page.bitspersample))})"
    elif sample_format not in (_UNSIGNED, _SIGNED, _FLOAT):
        kind = "of complex or undefined values"
    elif page.dtype is None:
        kind = f"of {page.bitspersample}-bit {_name(page.sampleformat)} values"
    elif page.imagedepth > 1:
        kind = "of a volume"
    elif compression != _UNCOMPRESSED and compression not in _BYTE_CODECS:
        kind = f"of {format_count(page.bitspersample, 'bit')}, {_name(page.compression)} compression"
    elif photometric in (_MINISWHITE, _MINISBLACK) and (samples > 2 or samples - extra > 1):
        kind = f"of {samples} bands without a known colour"
    elif photometric == _RGB and samples < 3:
        kind = f"of {format_count(samples, 'band')} called RGB"
    elif photometric == _SEPARATED and (samples < 4 or page.tags.valueof(332, 1) != 1):
        kind = f"of {format_count(samples, 'ink')} other than CMYK"
    elif photometric not in (_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _SEPARATED):
        kind = f"of {_name(page.photometric)} colour with {format_count(page.bitspersample, 'bit')}"
    if kind:
        raise ImageError(f"{path} is a TIFF file {kind}, which cannot be read", REMEDY)
    if not page.imagewidth or not page.imagelength or not page.dataoffsets:
        raise ImageError(f"{path} is a TIFF file without an image", "Remove it")


def _explain_cut(path: Any) -> ImageError:
    return ImageError(f"{path} is a TIFF file that ends before its image", "Replace or remove the file")


def _name(value: Any) -> str:
    return str(getattr(value, "name", value)).replace("_", " ")


def _read_planes(page: Any, path: Any) -> NDArray[Any]:
    """Decompress all segments (strips or tiles) into (H, W, C)."""
    if math.prod(page.chunks) * page.dtype.itemsize > MAX_BYTES // 4:
        raise ImageError(f"{path} is a TIFF file of tiles of {page.tilewidth:,} x {page.tilelength:,} pixels", REMEDY)
    ends = [offset + count for offset, count in zip(page.dataoffsets, page.databytecounts, strict=False)]
    if len(ends) < math.prod(page.chunked) or max(ends) > page.parent.filehandle.size:
        raise _explain_cut(path)
    planes = page.asarray(squeeze=False, maxworkers=1, buffersize=1)[:, 0]  # (P, H, W, C / P)
    planes = planes[0] if len(planes) == 1 else np.moveaxis(planes[..., 0], 0, -1)
    dtype = np.dtype(np.uint8) if planes.dtype == bool else planes.dtype.newbyteorder("=")
    values: NDArray[Any] = planes.astype(dtype, copy=False)
    return values


def _convert_planes(page: Any, planes: NDArray[Any], steps: list[Step]) -> Raster:
    """Convert the planes to grey or RGB, larger is brighter, by photometric interpretation and extra samples."""
    photometric, bits = int(page.photometric or 0), int(page.bitspersample)
    colours = {_RGB: 3, _SEPARATED: 4}.get(photometric, 1)
    full = {"u": 2.0**bits - 1, "i": 2.0 ** (bits - 1) - 1, "f": 1.0}[planes.dtype.kind]
    values, alpha = _separate_alpha(page, planes, colours, full, steps)
    if photometric == _PALETTE:
        table = np.asarray(page.colormap).T  # (entries, 3), 16 bits
        values = table[np.minimum(values[..., 0], len(table) - 1)]
        values = (values // 256 if table.max() > 255 else values).astype(np.uint8)
        return Raster(values, alpha, "P", 8, tuple(steps))
    mode = {_RGB: "RGB", _SEPARATED: "CMYK"}.get(photometric, "L")
    if mode == "L" and bits > 8:
        mode = {"uint16": "I;16", "int32": "I", "float32": "F"}.get(str(planes.dtype), str(planes.dtype))
    if photometric == _SEPARATED:
        ink = values.astype(np.float32) / np.float32(full)
        values, full = (1 - ink[..., :3]) * (1 - ink[..., 3:]) * 255, 255.0
        if bits == 8:
            values = np.rint(values).astype(np.uint8)
    elif photometric == _MINISWHITE:
        if values.dtype.kind == "f":
            values = -values
        else:
            values = ~values if bits == 8 * values.itemsize else values.dtype.type(full) - values
        steps.append(Step("inverted (white is zero)"))
    if bits < 8:
        values = np.rint(values * (255 / full)).astype(np.uint8)
    elif values.dtype == np.int8:
        values = (values.astype(np.int16) + 128).astype(np.uint8)
        steps.append(Step("128 added to signed values"))
    nodata = page.tags.valueof(42113, None)
    if nodata is not None and bits > 8:
        values = _hide_nodata(values, str(nodata), steps)
    return Raster(values if colours > 1 else values[..., 0], alpha, mode, bits, tuple(steps))


def _separate_alpha(
    page: Any, planes: NDArray[Any], colours: int, full: float, steps: list[Step]
) -> tuple[NDArray[Any], NDArray[Any] | None]:
    """Return the planes of the colours, and alpha, by which associated colours are divided; None without.

    `full` is the largest value that the planes can have.
    """
    values, alpha = planes[..., :colours], None
    if planes.shape[2] > colours:
        extra = int(page.extrasamples[0]) if len(page.extrasamples) else 0
        if extra in (_ASSOCIATED, _UNASSOCIATED):
            alpha = scale_alpha(planes[..., colours], full)
        if alpha is None:
            steps += describe_ignored(planes.shape[2] - colours)
        elif extra == _ASSOCIATED:
            values = values / np.maximum(alpha, 1 / full)[..., None]
    return values, alpha


def _hide_nodata(values: NDArray[Any], text: str, steps: list[Step]) -> NDArray[Any]:
    """Replace GDAL's no-data value by NaN, which is drawn black and does not count as the darkest value."""
    try:
        missing = float(text.strip("\0 "))
    except ValueError:
        return values
    if values.dtype.kind == "f" and not math.isnan(missing):  # GDAL writes the lowest 64-bit value rounded down
        missing = min(max(missing, float(np.finfo(values.dtype).min)), float(np.finfo(values.dtype).max))
    where = values == np.asarray(missing).astype(values.dtype) if np.isfinite(missing) else np.zeros(values.shape, bool)
    if not where.any() or where.all():
        return values
    shown = values.astype(np.float64)
    shown[where] = np.nan
    steps.append(Step(f"no-data value {missing:g} drawn black"))
    return shown
