"""Read DICOM (with the extra `dicom`): from stored values to those that a viewer shows.

Attributes are read as viewers do: from the root of the data set, then from the shared functional groups, then from
those of the first frame. An invalid attribute is ignored, with a note, if the image can be shown without it.
"""

import io
import math
import struct
import zlib
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any, BinaryIO

import numpy as np
from numpy.typing import NDArray

from convnext_cli.errors import ImageError
from convnext_cli.images.formats import JPEG2000_CODESTREAM, explain_missing_reader, open_regular_file
from convnext_cli.images.memory import MAX_BYTES, reserve_memory
from convnext_cli.images.raster import Raster, Step, StepKind, choose_frame, cut_rows, find_range, stretch_between
from convnext_cli.text import format_count

if TYPE_CHECKING:
    from pydicom import Dataset

_PIXELS = ("PixelData", "FloatPixelData", "DoubleFloatPixelData")
_DEFLATED = "1.2.840.10008.1.2.1.99"
_GREY = ("MONOCHROME1", "MONOCHROME2")
_COLOUR = ("RGB", "YBR_FULL", "YBR_FULL_422", "YBR_ICT", "YBR_RCT", "YBR_PARTIAL_420", "YBR_PARTIAL_422")
_WHOLE = MAX_BYTES // 4  # larger files are read in pieces; a deflated file may not exceed it
_PIECE = 1 << 16  # bytes to inflate at once while counting the size
_MAX_READS = 500_000  # two or three an element; an enhanced MR image of 1,000 frames takes 100,000
_REMEDY = "Export it again"


@dataclass(frozen=True, kw_only=True, slots=True)
class _PixelFormat:
    """The format of the stored values; the fields have the names of pydicom's options."""

    rows: int
    columns: int
    samples_per_pixel: int
    photometric_interpretation: str
    bits_allocated: int
    bits_stored: int
    pixel_representation: int
    """1 for signed values, 0 for unsigned."""
    number_of_frames: int
    """As the file declares."""
    planar_configuration: int
    """1 if each channel is stored by itself."""

    @property
    def frame_bits(self) -> int:
        """The size of a frame without compression, in bits."""
        return self.rows * self.columns * self.samples_per_pixel * self.bits_allocated


def read_dicom(file: BinaryIO, path: Path) -> Raster:
    """Read a DICOM file's first frame as 8-bit grey (H, W), or as colour (H, W, 3) of 8 or 16 bits.

    Grey values pass the modality LUT or rescale (PS3.3 C.11.1), then the VOI LUT or the first window if there is one
    (C.11.2). They are inverted for MONOCHROME1 and stretched. Padding pixels get the darkest value.

    Raises:
        ImageError: the extra is not installed, or the file has no readable image.
    """
    dataset = _read_dataset(file, path)
    if not any(keyword in dataset for keyword in _PIXELS):
        if dataset.get("preamble") is None and not any(key in dataset for key in ("SOPClassUID", "Modality", "Rows")):
            raise ImageError(f"{path} cannot be read as an image (not DICOM)", "Replace or remove the file")
        if _is_cut(dataset):
            problem = "is DICOM without its pixel data: the file ends early, or is a header only"
            raise ImageError(f"{path} {problem}", "Copy or export it again, or remove it")
        raise ImageError(f"{path} is DICOM without an image ({dataset.get('Modality', 'no modality')})", "Remove it")
    steps: list[Step] = []
    pixel_format = _read_format(dataset, path, steps)
    _refuse_tiles(dataset, pixel_format, path)
    kind, bits = pixel_format.photometric_interpretation, pixel_format.bits_stored
    size = pixel_format.samples_per_pixel * max(1, pixel_format.bits_allocated // 8)
    is_compressed = _check_syntax(dataset.file_meta.TransferSyntaxUID, path)
    is_wide = pixel_format.bits_allocated > 16  # too many levels for a table
    bytes_per_pixel = (8 if is_compressed else 3) * size + (60 if is_wide else 4)
    with reserve_memory(path, pixel_format.columns, pixel_format.rows, bytes_per_pixel):
        stored = _read_frame(dataset, pixel_format, path, steps)
        if stored.ndim == 3:
            values = stored if bits > 8 or stored.dtype == np.uint8 else stored.astype(np.uint8)
        elif kind == "PALETTE COLOR":
            values = _map(stored, lambda levels: _look_up_colour(levels, dataset, path))
        else:
            values = _show_grey(stored, _find_view(dataset, pixel_format, steps), dataset, steps)
    return Raster(values, None, f"DICOM {kind}", bits, tuple(steps))


def _is_cut(dataset: "Dataset") -> bool:
    """Return True if a data set without pixels is of a class that has them, or too short for its class to be known."""
    kind = dataset.file_meta.get("MediaStorageSOPClassUID") or dataset.get("SOPClassUID")
    return kind is None or "Image Storage" in kind.name or "Rows" in dataset or "Modality" not in dataset


def read_tag(path: Path, keyword: str) -> str | None:
    """Return a DICOM attribute such as PatientID as text; None if the file has none, or is not DICOM.

    Raises:
        ImageError: the extra is not installed.
    """
    try:
        with open_regular_file(path) as file:
            value = _read_dataset(file, path, keyword).get(keyword)
    except ImageError as error:
        if isinstance(error.__cause__, ModuleNotFoundError):
            raise
        return None
    except Exception:  # pydicom raises many kinds for damaged files
        return None
    return None if value in (None, "") else str(value)


class _LimitedFile:
    """A file that refuses to be read in endlessly many pieces: pydicom makes objects of millions of empty elements."""

    def __init__(self, file: BinaryIO, path: Path) -> None:
        self.seek, self.tell, self._read = file.seek, file.tell, file.read
        self._path, self._left = path, _MAX_READS

    def read(self, size: int = -1) -> bytes:
        """Read bytes as a file does.

        Raises:
            ImageError: it has been read in `_MAX_READS` pieces.
        """
        self._left -= 1
        if self._left < 0:
            raise ImageError(f"{self._path} is DICOM of too many elements, or not DICOM", _REMEDY)
        return self._read(size)


def _read_dataset(file: BinaryIO, path: Path, keyword: str | None = None) -> "Dataset":
    """Read all elements, or only that of `keyword`, with or without preamble; set the transfer syntax.

    A deflated data set is inflated here because pydicom has no limit.
    """
    try:
        import pydicom
        from pydicom import uid
        from pydicom.filereader import read_dataset
    except ModuleNotFoundError as error:
        raise explain_missing_reader(f"{path} is DICOM", "dicom") from error
    pydicom.config.logger.setLevel("CRITICAL")
    tags: Any = None if keyword is None else [keyword]
    size = file.seek(0, io.SEEK_END)
    file.seek(0)
    source: Any = _LimitedFile(file if keyword or size > _WHOLE else io.BytesIO(file.read()), path)
    head = source.read(1024)
    source.seek(0)
    if head[128:132] == b"DICM" and _DEFLATED.encode() in head:
        source.seek(132)
        meta = read_dataset(source, False, True, stop_when=lambda tag, _, __: tag.group != 2)
        inflated: Any = _LimitedFile(io.BytesIO(_inflate(source.read(), path)), path)
        dataset = read_dataset(inflated, False, True, specific_tags=tags and [pydicom.tag.Tag(keyword)])
        dataset.file_meta = pydicom.dataset.FileMetaDataset(meta)
        dataset.file_meta.TransferSyntaxUID = uid.ExplicitVRLittleEndian
        dataset.set_original_encoding(False, True)
        return dataset
    dataset = pydicom.dcmread(source, force=True, specific_tags=tags, stop_before_pixels=keyword is not None)
    if not dataset.file_meta.get("TransferSyntaxUID"):
        is_implicit, is_little = dataset.original_encoding
        dataset.file_meta.TransferSyntaxUID = (
            uid.ImplicitVRLittleEndian if is_implicit
            else uid.ExplicitVRLittleEndian if is_little
            else uid.ExplicitVRBigEndian
        )  # fmt: skip
    return dataset


def _inflate(packed: bytes, path: Path) -> bytes:
    """Inflate a deflated data set, of at most `_WHOLE` bytes. Its size is counted first, without keeping the data."""
    counter, size = zlib.decompressobj(-zlib.MAX_WBITS), 0
    for start in range(0, len(packed), _PIECE):
        piece = packed[start : start + _PIECE]
        while piece and not counter.eof:
            size += len(counter.decompress(piece, 16 * _PIECE))
            piece = counter.unconsumed_tail
            if size > _WHOLE:
                problem = f"{path} decompresses to more than {_WHOLE / 1e6:.0f} MB"
                raise ImageError(problem, "Save it without compression")
    return zlib.decompressobj(-zlib.MAX_WBITS).decompress(packed, _WHOLE)


def _read_format(dataset: "Dataset", path: Path, steps: list[Step]) -> _PixelFormat:
    """Return the format of the stored values; what is missing is assumed, with a note."""
    rows, columns = _integer(dataset, "Rows"), _integer(dataset, "Columns")
    if not rows or not columns or rows < 0 or columns < 0:
        raise ImageError(f"{path} is DICOM without the size of its image (Rows, Columns)", _REMEDY)
    samples = _integer(dataset, "SamplesPerPixel") or 1
    kind = str(_value(dataset, "PhotometricInterpretation") or "").strip().upper()
    if samples not in (1, 3) or kind in ("HSV", "ARGB", "CMYK"):
        number = format_count(samples, "sample")
        raise ImageError(f"{path} is DICOM of {number} per pixel, {kind}, which cannot be read", _REMEDY)
    if kind not in ((*_GREY, "PALETTE COLOR") if samples == 1 else _COLOUR):
        kind = "MONOCHROME2" if samples == 1 else "RGB"
        steps.append(Step(f"read as {kind} (no valid PhotometricInterpretation)"))
    allocated, stored = _read_bits(dataset, rows * columns * samples, path, steps)
    frames = _integer(dataset, "NumberOfFrames")
    if "NumberOfFrames" in dataset and frames is None:
        steps.append(Step("NumberOfFrames ignored"))
        del dataset.NumberOfFrames  # pydicom parses it again
    signed = _integer(dataset, "PixelRepresentation") or 0
    return _PixelFormat(
        rows=rows, columns=columns, samples_per_pixel=samples, photometric_interpretation=kind,
        bits_allocated=allocated, bits_stored=stored, pixel_representation=signed if signed in (0, 1) else 0,
        number_of_frames=max(1, frames or 1),
        planar_configuration=1 if _integer(dataset, "PlanarConfiguration") == 1 else 0,
    )  # fmt: skip


def _read_bits(dataset: "Dataset", values: int, path: Path, steps: list[Step]) -> tuple[int, int]:
    """Return the bits allocated and stored for each of a frame's values."""
    from pydicom import uid

    keyword = next(keyword for keyword in _PIXELS if keyword in dataset)
    allocated = {"FloatPixelData": 32, "DoubleFloatPixelData": 64}.get(keyword) or _integer(dataset, "BitsAllocated")
    if allocated is None:
        allocated = max(8, min(32, len(dataset.PixelData or b"") // values * 8))
        steps.append(Step(f"read as {allocated} bits (no BitsAllocated)"))
    if allocated not in (1, 8, 16, 32, 64):
        raise ImageError(f"{path} is DICOM of {allocated} bits allocated, which cannot be read", _REMEDY)
    stored = _integer(dataset, "BitsStored")
    if stored is None or not 1 <= stored <= allocated:
        if "PixelData" in dataset:
            steps.append(Step("BitsStored ignored"))
        stored = allocated
    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax in uid.JPEGTransferSyntaxes:  # gdcm ends the process for other bits
        if allocated > 16:
            raise ImageError(f"{path} is DICOM in JPEG of {allocated} bits allocated, which cannot be read", _REMEDY)
        if (allocated < 16 or syntax == uid.JPEGBaseline8Bit) and (allocated, stored) != (8, 8):
            steps.append(Step("read as 8 bits (JPEG)"))
            return 8, 8
    return allocated, stored


def _refuse_tiles(dataset: "Dataset", pixel_format: _PixelFormat, path: Path) -> None:
    """Raise an `ImageError` for a slide (PS3.3, C.8.12.4): its first frame is a tile, often an empty corner."""
    width, height = (_integer(dataset, f"TotalPixelMatrix{name}") or 0 for name in ("Columns", "Rows"))
    if width > pixel_format.columns or height > pixel_format.rows:
        tile = f"{pixel_format.columns:,} x {pixel_format.rows:,}"
        problem = f"{path} is DICOM of {width:,} x {height:,} pixels in tiles of {tile}, which cannot be read"
        raise ImageError(problem, "Export it as one image")


def _check_syntax(syntax: Any, path: Path) -> bool:
    """Return True if a transfer syntax compresses pixel data."""
    from pydicom.pixels import get_decoder

    try:
        decoder, is_compressed = get_decoder(syntax), bool(syntax.is_compressed)
    except (NotImplementedError, ValueError) as error:
        raise ImageError(f"{path} is DICOM in {syntax.name or syntax}, which cannot be read", _REMEDY) from error
    if is_compressed and not decoder.is_available:
        fact = f"{path} is DICOM in {syntax.name}"
        if find_spec("gdcm") is None:
            raise explain_missing_reader(fact, "dicom")
        raise ImageError(f"{fact}, which cannot be read", _REMEDY)
    return is_compressed


def _read_frame(dataset: "Dataset", pixel_format: _PixelFormat, path: Path, steps: list[Step]) -> NDArray[Any]:
    """Decode the first frame: (H, W), or (H, W, 3) in RGB."""
    from pydicom import uid
    from pydicom.pixels import pixel_array

    syntax = dataset.file_meta.TransferSyntaxUID
    if syntax.is_compressed:
        frame = _read_coded_frame(dataset, pixel_format, path)
        frames, shift = pixel_format.number_of_frames, 0
    else:
        frames, shift = _count_frames(dataset, pixel_format, path), _find_shift(dataset, pixel_format)
        if frames < pixel_format.number_of_frames:
            steps.append(Step("NumberOfFrames ignored"))
            pixel_format = replace(pixel_format, number_of_frames=frames)
    if frames > 1:
        steps.append(choose_frame(0, frames))
    if syntax == uid.JPEGExtended12Bit and pixel_format.bits_stored > 8 and pixel_format.samples_per_pixel == 1:
        return _decode_deep_jpeg(frame, pixel_format, path)
    # gdcm ends the process for a damaged JPEG; Pillow gives the same pixels, or an error
    is_jpeg = syntax in (uid.JPEGBaseline8Bit, uid.JPEGExtended12Bit)
    plugin = "pillow" if is_jpeg and pixel_format.bits_stored == 8 else ""
    options = asdict(replace(pixel_format, bits_stored=pixel_format.bits_stored + shift))
    stored: NDArray[Any] = pixel_array(dataset, index=0, decoding_plugin=plugin, **options)  # YBR becomes RGB here
    return stored >> shift if shift else stored


def _decode_deep_jpeg(frame: bytes, pixel_format: _PixelFormat, path: Path) -> NDArray[Any]:
    """Decode grey JPEG of 12 bits, which pydicom's decoders refuse."""
    import imagecodecs

    if not frame.rstrip(b"\0").endswith(b"\xff\xd9"):  # EOI
        raise ImageError(f"{path} is DICOM whose compressed image ends early", _REMEDY)
    stored: NDArray[Any] = imagecodecs.jpeg8_decode(frame).astype(np.int16)
    sign = pixel_format.pixel_representation << pixel_format.bits_stored - 1
    return (stored ^ sign) - sign


def _read_coded_frame(dataset: "Dataset", pixel_format: _PixelFormat, path: Path) -> bytes:
    """Return the first compressed frame, of the shape that the file declares: gdcm ends the process for another."""
    from pydicom.encaps import get_frame

    frame: bytes = get_frame(dataset.PixelData, 0, number_of_frames=pixel_format.number_of_frames)
    shape = find_coded_shape(frame)
    declared = (pixel_format.columns, pixel_format.rows, pixel_format.samples_per_pixel)
    if shape is not None and shape != declared:
        actual, expected = (
            f"{width:,} x {height:,} pixels of {format_count(samples, 'sample')}"
            for width, height, samples in (shape, declared)
        )
        problem = f"{path} is DICOM whose compressed image has {actual} and not the {expected} that it declares"
        raise ImageError(problem, _REMEDY)
    if dataset.file_meta.TransferSyntaxUID.name == "RLE Lossless" and len(frame) > pixel_format.frame_bits // 4 + 4096:
        raise ImageError(f"{path} is DICOM with more compressed data than its image can have", _REMEDY)
    return frame


def _count_frames(dataset: "Dataset", pixel_format: _PixelFormat, path: Path) -> int:
    """Return the number of whole frames without compression, declared or not."""
    length = max(len(dataset.get(keyword) or b"") for keyword in _PIXELS)
    is_422 = pixel_format.photometric_interpretation in ("YBR_FULL_422", "YBR_PARTIAL_422")
    bits = pixel_format.frame_bits * 2 // 3 if is_422 else pixel_format.frame_bits
    frames = 8 * length // bits
    if not frames:
        problem = f"{path} is DICOM whose pixel data end early ({length:,} of {-(-bits // 8):,} bytes)"
        raise ImageError(problem, _REMEDY)
    if is_422 or pixel_format.bits_allocated == 1:  # what is left over may be padding, or no subsampling after all
        return min(pixel_format.number_of_frames, frames)
    return frames


def _find_shift(dataset: "Dataset", pixel_format: _PixelFormat) -> int:
    """Return the number of unused bits below the values: 0 unless they are left-aligned."""
    shift = (_integer(dataset, "HighBit") or 0) + 1 - pixel_format.bits_stored
    return shift if 0 < shift <= pixel_format.bits_allocated - pixel_format.bits_stored else 0


def find_coded_shape(data: bytes) -> tuple[int, int, int] | None:
    """Return width, height and samples per pixel of a JPEG, JPEG-LS or JPEG 2000 codestream; None for other data."""
    if data[4:8] == b"jP  ":  # the codestream in the boxes of a JP2 file
        data = data[max(0, data.find(JPEG2000_CODESTREAM)) :]
    if data[:4] == JPEG2000_CODESTREAM and len(data) >= 42:
        right, lower, left, upper = struct.unpack_from(">LLLL", data, 8)
        return right - left, lower - upper, int.from_bytes(data[40:42], "big")
    if data[:2] != b"\xff\xd8":
        return None
    place = 2
    while place + 10 <= len(data):
        if data[place] != 0xFF:
            return None
        marker = data[place + 1]
        if marker == 0xFF:
            place += 1
        elif (0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC)) or marker == 0xF7:  # start of frame
            height, width, samples = struct.unpack_from(">HHB", data, place + 5)
            return width, height, samples
        else:
            place += 2 + int.from_bytes(data[place + 2 : place + 4], "big")
    return None


def _find_view(dataset: "Dataset", pixel_format: _PixelFormat, steps: list[Step]) -> "Dataset":
    """Return a data set of only the grey transformations, from root and functional groups, checked."""
    from pydicom import Dataset

    macros = ("PixelValueTransformationSequence", "FrameVOILUTSequence")
    groups = ("SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence")
    frames = [frame for keyword in groups if (frame := _first(dataset, keyword)) is not None]
    items = [_first(frame, macro) for frame in frames for macro in macros]
    sources = [dataset, *(item for item in items if item is not None)]
    view = Dataset()
    view.file_meta = dataset.file_meta
    view.set_original_encoding(*dataset.original_encoding)
    view.PhotometricInterpretation = pixel_format.photometric_interpretation
    view.BitsStored = pixel_format.bits_stored
    view.PixelRepresentation = pixel_format.pixel_representation
    for source in sources:
        for keyword in ("ModalityLUTSequence", "VOILUTSequence"):
            if _first(source, keyword) is not None:
                view[keyword] = source[keyword]
        _set_rescale(view, source, steps)
        _set_window(view, source, steps)
    return view


def _set_rescale(view: "Dataset", source: "Dataset", steps: list[Step]) -> None:
    """Give `view` the rescale of `source`, if it has a valid one."""
    slope, intercept = _number(source, "RescaleSlope"), _number(source, "RescaleIntercept")
    if "RescaleSlope" in source and not slope:
        steps.append(Step("RescaleSlope ignored"))
        slope = None
    if "RescaleIntercept" in source and intercept is None:
        steps.append(Step("RescaleIntercept ignored"))
    if slope is not None or intercept is not None:
        view.RescaleSlope, view.RescaleIntercept = slope or 1.0, intercept or 0.0


def _set_window(view: "Dataset", source: "Dataset", steps: list[Step]) -> None:
    """Give `view` the window of `source`, if it has a valid one."""
    if "WindowCenter" not in source and "WindowWidth" not in source:
        return
    centre, width = _number(source, "WindowCenter"), _number(source, "WindowWidth")
    if centre is None or width is None or width <= 0:
        steps.append(Step("window ignored (it has no width)" if centre is not None else "window ignored"))
        return
    function = str(_value(source, "VOILUTFunction") or "LINEAR").strip().upper()
    if function not in ("LINEAR", "LINEAR_EXACT", "SIGMOID"):
        steps.append(Step("VOILUTFunction ignored"))
        function = "LINEAR"
    view.VOILUTFunction = "LINEAR_EXACT" if function == "LINEAR" and width < 1 else function
    view.WindowCenter, view.WindowWidth = centre, width


def _show_grey(stored: NDArray[Any], view: "Dataset", dataset: "Dataset", steps: list[Step]) -> NDArray[np.uint8]:
    """Map stored grey values to 8 bits, (H, W)."""
    padding = _find_padding(dataset, view)
    inverted = view.PhotometricInterpretation == "MONOCHROME1"

    def transform(levels: NDArray[Any]) -> NDArray[np.uint8]:
        hidden = np.zeros(levels.shape, bool) if padding is None else (levels >= padding[0]) & (levels <= padding[1])
        shown = np.ones(levels.shape, bool) if hidden.all() else ~hidden
        values, notes = _apply_luts(levels, view, shown)
        if inverted:
            values = -values
        low, high = find_range(values[shown].reshape(1, -1)) or (0.0, 0.0)
        steps.extend(notes)
        if inverted:
            steps.append(Step("inverted (MONOCHROME1)"))
        values[hidden] = low
        return stretch_between(np.atleast_2d(values), low, high)[..., 0].reshape(levels.shape)

    return _map(stored, transform)


def _apply_luts(
    levels: NDArray[Any], view: "Dataset", shown: NDArray[np.bool_]
) -> tuple[NDArray[np.float64], list[Step]]:
    """Apply modality LUT or rescale, then VOI LUT or window; skip those that fail or make all `shown` one value.

    Returns:
        The values, and the steps, of which the last is `stretched` if neither VOI LUT nor window was applied.
    """
    from pydicom.pixels import apply_modality_lut, apply_windowing

    notes = []
    values = levels.astype(np.int64) if levels.dtype.kind in "iu" else levels
    try:
        if "ModalityLUTSequence" in view:
            values = _look_up(values, "ModalityLUTSequence", view)
    except Exception:  # pydicom raises many kinds for incomplete tables
        notes.append(Step("modality LUT ignored"))
        del view.ModalityLUTSequence
    if "ModalityLUTSequence" not in view:
        values = np.asarray(apply_modality_lut(values, view))
    spread = np.ptp(levels[shown])
    views = (("VOILUTSequence", "VOI LUT", "VOI LUT"), ("WindowWidth", "window", "windowed as the file says"))
    for keyword, name, note in views:
        if keyword not in view:
            continue
        try:
            is_table = keyword == "VOILUTSequence"
            result = _look_up(values, keyword, view) if is_table else np.asarray(apply_windowing(values, view))
        except Exception:  # as above
            notes.append(Step(f"{name} ignored"))
            continue
        if spread and not np.ptp(result[shown]):
            notes.append(Step(f"{name} ignored (it makes the image one grey)"))
            continue
        return result.astype(np.float64), [*notes, Step(note)]
    return values.astype(np.float64), [*notes, Step("stretched", StepKind.STRETCH)]


def _look_up(values: NDArray[Any], keyword: str, view: "Dataset") -> NDArray[np.uint16]:
    """Look up values in the first table of a sequence (PS3.3 C.11.1.1, C.11.2.1.1)."""
    item = view[keyword].value[0]
    entries, first, _ = (int(value) for value in item.LUTDescriptor)
    table = _read_table(item.LUTData, entries or 1 << 16, view)
    places = np.rint(values).astype(np.int64)
    if places.max() < first >= 1 << 15:  # a negative number that is read as unsigned
        first -= 1 << 16
    result: NDArray[np.uint16] = table[np.clip(places - first, 0, len(table) - 1)]
    return result


def _read_table(data: Any, entries: int, dataset: "Dataset") -> NDArray[np.uint16]:
    """Return a table's entries of up to 16 bits; those of 8 bits may be packed.

    pydicom's own look-ups wrap around in tables of more than 256 entries of 8 bits, refuse other depths of a modality
    LUT, and take big-endian palettes for little-endian ones.
    """
    words = np.frombuffer(data, "<u2") if isinstance(data, bytes) else np.asarray(data).astype(np.uint16)
    if isinstance(data, bytes) and dataset.original_encoding[1] is False:
        words = words.byteswap()
    values = words if len(words) >= entries else words.view(np.uint8)
    if len(values) < entries:
        raise ValueError("too few entries")
    return values[:entries].astype(np.uint16)


def _map(stored: NDArray[Any], transform: Callable[[NDArray[Any]], NDArray[np.uint8]]) -> NDArray[np.uint8]:
    """Apply `transform` to each stored value; with up to 16 bits, only once to each value that occurs."""
    if stored.dtype.kind not in "ui" or stored.dtype.itemsize > 2:
        return transform(stored)
    lowest = int(stored.min())
    occurs = np.zeros(int(stored.max()) - lowest + 1, bool)
    for rows in cut_rows(stored.shape):
        occurs[stored[rows].astype(np.int64) - lowest] = True
    (places,) = np.nonzero(occurs)
    of_levels = transform((places + lowest).astype(stored.dtype))
    table = np.zeros((len(occurs), *of_levels.shape[1:]), np.uint8)
    table[places] = of_levels
    result = np.empty((*stored.shape, *of_levels.shape[1:]), np.uint8)
    for rows in cut_rows(stored.shape):
        result[rows] = table[stored[rows].astype(np.int64) - lowest]
    return result


def _look_up_colour(levels: NDArray[Any], dataset: "Dataset", path: Path) -> NDArray[np.uint8]:
    """Look up the stored values in the palette; return (..., 3)."""
    try:
        entries, first, depth = (int(value) for value in dataset.RedPaletteColorLookupTableDescriptor)
        table = _read_palette(dataset, entries or 1 << 16, first)
    except Exception as error:  # pydicom raises many kinds for incomplete tables
        raise ImageError(f"{path} is DICOM in PALETTE COLOR whose palette cannot be read", _REMEDY) from error
    if table.max() > 255:
        table >>= depth - 8 if depth > 8 else 8
    return table.astype(np.uint8)[np.clip(levels.astype(np.int64) - first, 0, len(table) - 1)]


def _read_palette(dataset: "Dataset", entries: int, first: int) -> NDArray[np.uint16]:
    """Return the palette as (entries, 3)."""
    from pydicom.pixels import apply_color_lut

    if "RedPaletteColorLookupTableData" not in dataset:  # segmented
        return np.asarray(apply_color_lut(np.arange(first, first + entries), dataset)[..., :3]).astype(np.uint16)
    keywords = (f"{colour}PaletteColorLookupTableData" for colour in ("Red", "Green", "Blue"))
    return np.stack([_read_table(dataset[keyword].value, entries, dataset) for keyword in keywords], axis=1)


def _find_padding(dataset: "Dataset", view: "Dataset") -> tuple[int, int] | None:
    """Return the range of padding values (PS3.3 C.7.5.1.1.2), with the sign of the pixel values; None if unset."""
    first = _integer(dataset, "PixelPaddingValue", signed=bool(view.PixelRepresentation))
    if first is None:
        return None
    last = _integer(dataset, "PixelPaddingRangeLimit", signed=bool(view.PixelRepresentation))
    last = first if last is None else last
    return min(first, last), max(first, last)


def _first(dataset: "Dataset", keyword: str) -> "Dataset | None":
    """Return the first item of a sequence; None if there is none."""
    from pydicom import Dataset

    try:
        item = dataset[keyword].value[0]
    except Exception:  # no such element, or one that cannot be parsed
        return None
    return item if isinstance(item, Dataset) else None


def _value(dataset: "Dataset", keyword: str) -> Any:
    """Return an element's value, the first of several; None if it is missing, empty or cannot be parsed."""
    try:
        value = dataset.get(keyword)
    except Exception:  # pydicom parses here, and raises many kinds
        return None
    if isinstance(value, (list, tuple)) or type(value).__name__ == "MultiValue":
        value = value[0] if len(value) else None
    return None if value == "" else value


def _number(dataset: "Dataset", keyword: str) -> float | None:
    try:
        number = float(_value(dataset, keyword))
    except (TypeError, ValueError):
        return None
    return number if math.isfinite(number) else None


def _integer(dataset: "Dataset", keyword: str, *, signed: bool | None = None) -> int | None:
    """Return an element as integer; `signed` reinterprets 16 bits if the file has them with the other sign."""
    value = _value(dataset, keyword)
    if isinstance(value, bytes) and len(value) in (2, 4):  # "US or SS", left open
        value = int.from_bytes(value, "little" if dataset.original_encoding[1] is not False else "big")
    try:
        number = int(value)
    except (TypeError, ValueError, OverflowError):
        return None
    if signed is True and 1 << 15 <= number < 1 << 16:
        return number - (1 << 16)
    return number + (1 << 16) if signed is False and -(1 << 15) <= number < 0 else number
