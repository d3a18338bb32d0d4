"""Read TIFF files that Pillow cuts to 8 bits, misreads, or does not open, by their own tags.

tifffile reads the tags. The libtiff inside Pillow decompresses segments (strips, tiles), never to more bytes than their
declared size.
"""

import io
import logging
import struct
from typing import Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from convnext_cli.errors import ImageError
from convnext_cli.images.memory import MAX_BYTES, reserve_memory
from convnext_cli.images.raster import ORIENTATION_TAG, Raster, check_orientation, scale_alpha
from convnext_cli.text import format_count

REMEDY = "Save it again as a grey or RGB TIFF of 8 or 16 bits, or as PNG"

_MINISWHITE, _MINISBLACK, _RGB, _PALETTE, _SEPARATED = 0, 1, 2, 3, 5
_UNSIGNED, _SIGNED, _FLOAT = 1, 2, 3
_KINDS = {_UNSIGNED: "u", _SIGNED: "i", _FLOAT: "f"}
_UNCOMPRESSED, _CCITT, _JPEG = 1, (2, 3, 4), (6, 7)
_BYTE_CODECS = (5, 8, 32946, 32773, 34925, 50000)  # LZW, Deflate (2), PackBits, LZMA, Zstandard: layout does not matter
_ASSOCIATED, _UNASSOCIATED = 1, 2
_PILLOW_DEEP = {(_UNSIGNED, 12), (_UNSIGNED, 16), (_SIGNED, 16), (_SIGNED, 32), (_FLOAT, 32)}
_REVERSED = np.packbits(np.unpackbits(np.arange(256, dtype=np.uint8)[:, None], axis=1, bitorder="little"), axis=1)[:, 0]


def is_thumbnail(tags: Any) -> bool:
    """Return True if the page of a TIFF file with these tags (`tag_v2`) is marked as a thumbnail of another page."""
    return bool(tags.get(254, 0) & 1)


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
        count = len(tiff.pages)
        if not count:
            raise ImageError(f"{path} is a TIFF file without an image", "Remove it")
        place, page = _choose_page(tiff.pages)
        _check(page, path)
        dtype = _find_dtype(page, tiff.byteorder, path)
        bytes_per_pixel = 4 * page.samplesperpixel * dtype.itemsize + 3
        with reserve_memory(path, page.imagewidth, page.imagelength, bytes_per_pixel):
            planes = _read_planes(file, page, dtype, path)
            steps = [name_page(place, count)] if count > 1 else []
            orientation = check_orientation(page.tags.valueof(ORIENTATION_TAG))
            return _convert_planes(page, planes, steps), orientation


def name_page(place: int, count: int) -> str:
    """Return which of several frames is read, in words."""
    return f"frame {place + 1} of {count}" if place else f"first of {count} frames"


def _choose_page(pages: Any) -> tuple[int, Any]:
    """Return the place of the first page that is no thumbnail, and the page; the first one if all are."""
    return next(((place, page) for place, page in enumerate(pages) if not page.is_reduced), (0, pages.first))


def _check(page: Any, path: Any) -> None:
    """Raise an `ImageError` that names the kind of file if its values have no known meaning."""
    photometric, samples = int(page.photometric or 0), int(page.samplesperpixel)
    sample_format = int(page.sampleformat or _UNSIGNED) if not isinstance(page.sampleformat, tuple) else 0
    extra = len(page.extrasamples)
    compression = int(page.compression)
    kind = ""
    if 50706 in page.tags or photometric in (32803, 34892):
        kind = "of camera raw values"
    elif not isinstance(page.bitspersample, int):
        kind = f"whose channels differ in bits ({', '.join(map(str, page.bitspersample))})"
    elif sample_format not in _KINDS:
        kind = "of complex or undefined values"
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


def _name(value: Any) -> str:
    return str(getattr(value, "name", value)).replace("_", " ")


def _find_dtype(page: Any, byteorder: str, path: Any) -> np.dtype[Any]:
    """Return the type of a stored value: the file's own, or unsigned if its bits fill no whole type."""
    bits, kind = page.bitspersample, _KINDS[int(page.sampleformat or _UNSIGNED)]
    if bits in (8, 16, 32, 64) and (kind, bits) != ("f", 8):
        return np.dtype(f"{byteorder}{kind}{bits // 8}")
    if kind == "u" and 0 < bits < 32:
        return np.dtype(np.uint8 if bits < 8 else np.uint16 if bits < 16 else np.uint32)
    raise ImageError(f"{path} is a TIFF file of {bits}-bit {_name(page.sampleformat)} values", REMEDY)


def _read_planes(file: BinaryIO, page: Any, dtype: np.dtype[Any], path: Any) -> NDArray[Any]:
    """Decompress all segments into (H, W, C)."""
    height, width, samples = page.imagelength, page.imagewidth, page.samplesperpixel
    contiguous = samples if page.planarconfig == 1 else 1
    strip = min(page.rowsperstrip or height, height), width
    rows, columns = (page.tilelength, page.tilewidth) if page.is_tiled else strip
    if rows < 1 or columns < 1:
        raise ImageError(f"{path} is a damaged TIFF file (strips of {rows} rows)", "Replace or remove the file")
    if rows * columns * contiguous * dtype.itemsize > MAX_BYTES // 4:
        raise ImageError(f"{path} is a TIFF file of tiles of {columns:,} x {rows:,} pixels", REMEDY)
    down, across = -(-height // rows), -(-width // columns)
    size = file.seek(0, io.SEEK_END)
    result = np.zeros((height, width, samples), dtype.newbyteorder("="))
    for index in range(down * across * (samples // contiguous)):
        if index >= min(len(page.dataoffsets), len(page.databytecounts)):
            raise ImageError(f"{path} is a TIFF file that ends before its image", "Replace or remove the file")
        offset, count = int(page.dataoffsets[index]), int(page.databytecounts[index])
        plane, place = divmod(index, down * across)
        top, left = place // across * rows, place % across * columns
        length = rows if page.is_tiled else min(rows, height - top)
        if not offset or not count:
            continue  # a sparse file leaves out what is 0
        if offset + count > size:
            raise ImageError(f"{path} is a TIFF file that ends before its image", "Replace or remove the file")
        file.seek(offset)
        segment = _decode(file.read(count), page, dtype, (length, columns, contiguous), path)
        target = result[top : top + length, left : left + columns, plane : plane + contiguous]
        target[...] = segment[: target.shape[0], : target.shape[1]]
    return result


def _decode(data: bytes, page: Any, dtype: np.dtype[Any], shape: tuple[int, int, int], path: Any) -> NDArray[Any]:
    """Decompress one segment into `shape` (rows, columns, channels), and undo its predictor."""
    rows, columns, channels = shape
    bits = page.bitspersample
    width = -(-columns * channels * bits // 8)
    if page.compression == _UNCOMPRESSED:
        flat = np.frombuffer(data, np.uint8)
        flat = _REVERSED[flat] if page.fillorder == 2 else flat
    else:
        flat = decompress_segment(data, int(page.compression), int(page.fillorder), width, rows)
    if flat.size < width * rows:
        raise ImageError(f"{path} is a TIFF file that ends before its image", "Replace or remove the file")
    lines = flat.reshape(-1)[: width * rows].reshape(rows, width)
    if bits != 8 * dtype.itemsize:
        return _unpack_bits(lines, bits, dtype)[:, : columns * channels].reshape(shape)
    if page.predictor == 3:
        steps = np.cumsum(lines.reshape(rows, -1, channels), axis=1, dtype=np.uint8)
        planes = steps.reshape(rows, dtype.itemsize, columns * channels)
        return np.ascontiguousarray(planes.swapaxes(1, 2)).view(dtype.newbyteorder(">")).reshape(shape)
    values = np.ascontiguousarray(lines).view(dtype).reshape(shape)
    if page.predictor == 2:
        unsigned = values.view(f"{dtype.byteorder}u{dtype.itemsize}")
        summed = np.cumsum(unsigned, axis=1, dtype=f"u{dtype.itemsize}")
        values = summed.view(dtype.newbyteorder("="))
    return values


def _unpack_bits(lines: NDArray[np.uint8], bits: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """Unpack (R, bytes) into (R, values) of `bits` bits each, most significant first."""
    count = lines.shape[1] * 8 // bits
    result = np.zeros((len(lines), count), dtype)
    for row, line in enumerate(lines):
        single = np.unpackbits(line)[: count * bits].reshape(count, bits)
        for bit in range(bits):
            result[row] = result[row] << 1 | single[:, bit]
    return result


def decompress_segment(data: bytes, compression: int, fill_order: int, width: int, rows: int) -> NDArray[np.uint8]:
    """Decompress a strip or tile of bytes with libtiff, as a separate grey 8-bit image: (rows, width).

    Raises:
        OSError: the data are damaged, or libtiff has no such codec.
    """
    from PIL import TiffImagePlugin

    item = 4 if width % 4 == 0 else 1  # as 32-bit numbers where that fits: Pillow limits pixels, not bytes
    start = 8 + 2 + 11 * 12 + 4
    tags = {256: width // item, 257: rows, 258: 8 * item, 259: compression, 262: 1, 266: fill_order, 273: start}
    tags |= {277: 1, 278: rows, 279: len(data), 339: 2 if item == 4 else 1}
    entries = b"".join(struct.pack("<HHLL", tag, 4, 1, value) for tag, value in tags.items())
    head = struct.pack("<2sHLH", b"II", 42, 8, len(tags)) + entries + bytes(4)
    with TiffImagePlugin.TiffImageFile(io.BytesIO(head + data)) as image:
        values = np.asarray(image)
    return values.astype("<i4", copy=False).view(np.uint8) if item == 4 else values


def _convert_planes(page: Any, planes: NDArray[Any], steps: list[str]) -> Raster:
    """Convert the planes to grey or RGB, larger is brighter, by photometric interpretation and extra samples."""
    photometric, bits = int(page.photometric or 0), int(page.bitspersample)
    colours = {_RGB: 3, _SEPARATED: 4}.get(photometric, 1)
    full = {"u": 2.0**bits - 1, "i": 2.0 ** (bits - 1) - 1, "f": 1.0}[planes.dtype.kind]
    values, alpha = planes[..., :colours], None
    extra = int(page.extrasamples[0]) if len(page.extrasamples) else 0
    if planes.shape[2] > colours:
        if extra in (_ASSOCIATED, _UNASSOCIATED):
            alpha = scale_alpha(planes[..., colours], full)
        if alpha is None:
            steps.append(f"{planes.shape[2] - colours} further channels ignored")
        elif extra == _ASSOCIATED:
            values = values / np.maximum(alpha, 1 / full)[..., None]
    mode = {_RGB: "RGB", _SEPARATED: "CMYK", _PALETTE: "P"}.get(photometric, "L")
    if mode == "L" and bits > 8:
        mode = {"uint16": "I;16", "int32": "I", "float32": "F"}.get(str(planes.dtype), str(planes.dtype))
    if photometric == _PALETTE:
        table = np.asarray(page.colormap).T  # (entries, 3), 16 bits
        values = table[np.minimum(values[..., 0], len(table) - 1)]
        values = (values // 256 if table.max() > 255 else values).astype(np.uint8)
        return Raster(values, alpha, mode, 8, tuple(steps))
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
        steps.append("inverted (white is zero)")
    if bits < 8:
        values = np.rint(values * (255 / full)).astype(np.uint8)
    elif values.dtype == np.int8:
        values = (values.astype(np.int16) + 128).astype(np.uint8)
        steps.append("128 added to signed values")
    nodata = page.tags.valueof(42113, None)
    if nodata is not None and bits > 8:
        values = _hide_nodata(values, str(nodata), steps)
    return Raster(values if colours > 1 else values[..., 0], alpha, mode, bits, tuple(steps))


def _hide_nodata(values: NDArray[Any], text: str, steps: list[str]) -> NDArray[Any]:
    """Replace GDAL's no-data value by NaN, which is drawn black and does not count as the darkest value."""
    try:
        missing = float(text.strip("\0 "))
    except ValueError:
        return values
    where = values == np.asarray(missing).astype(values.dtype) if np.isfinite(missing) else np.zeros(values.shape, bool)
    if not where.any() or where.all():
        return values
    shown = values.astype(np.float64)
    shown[where] = np.nan
    steps.append(f"no-data value {missing:g} drawn black")
    return shown
