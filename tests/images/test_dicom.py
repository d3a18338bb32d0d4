import io
import struct
import subprocess
import sys
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pydicom
import pytest
from pydicom.dataset import Dataset
from pydicom.encaps import encapsulate
from pydicom.uid import (
    ImplicitVRLittleEndian,
    JPEG2000Lossless,
    JPEGBaseline8Bit,
    JPEGExtended12Bit,
    JPEGLosslessSV1,
    RLELossless,
)

from convnext_cli.errors import ImageError
from convnext_cli.images.decode import decode_image, read_image
from convnext_cli.images.dicom import read_tag
from convnext_cli.images.raster import Step, choose_frame
from tests.images.dicom import XRAY, save_dicom

# pydicom warns of what these files have on purpose; a user sees none of it
pytestmark = pytest.mark.filterwarnings("ignore")

PLAIN = np.rint(XRAY / 4095 * 255).astype(np.uint8)
COLOUR: dict[str, Any] = {"SamplesPerPixel": 3, "PlanarConfiguration": 0, "PhotometricInterpretation": "RGB"}


def item(**attributes: Any) -> Dataset:
    result = Dataset()
    for keyword, value in attributes.items():
        setattr(result, keyword, value)
    return result


def change(path: Path, edit: Any) -> Path:
    """Change a file's data set and write it again, unchecked."""
    dataset = pydicom.dcmread(path)
    edit(dataset)
    dataset.save_as(path, enforce_file_format=False)
    return path


def grey(path: Path) -> "np.ndarray[Any, np.dtype[np.uint8]]":
    pixels = decode_image(path)
    assert (pixels[..., 0] == pixels[..., 1]).all()
    return pixels[..., 0]


def make_palette(bits: int, entries: int = 256, *, scale: int = 257) -> "tuple[np.ndarray[Any, Any], dict[str, Any]]":
    """Return a table of colours (entries, 3) of 8 bits, and the attributes that contain it."""
    table = np.random.default_rng(0).integers(0, 256, (entries, 3))
    attributes: dict[str, Any] = {"PhotometricInterpretation": "PALETTE COLOR"}
    for channel, name in enumerate(("Red", "Green", "Blue")):
        values = table[:, channel].astype(np.uint8) if bits == 8 else (table[:, channel] * scale).astype(np.uint16)
        attributes[f"{name}PaletteColorLookupTableDescriptor"] = [entries, 0, bits]
        attributes[f"{name}PaletteColorLookupTableData"] = values.tobytes()
    return table, attributes


@pytest.mark.parametrize("length", [200, 300, 400, 450, 550])
def test_file_that_ends_before_its_pixels_is_no_report(tmp_path: Path, length: int) -> None:
    path = save_dicom(tmp_path / "cut.dcm", XRAY)
    path.write_bytes(path.read_bytes()[:length])
    with pytest.raises(ImageError, match=r"cut\.dcm is DICOM without its pixel data: the file ends early"):
        decode_image(path)


@pytest.mark.parametrize(("bits", "scale"), [(8, 1), (16, 257), (16, 256)])
def test_palette_colour_is_looked_up(tmp_path: Path, bits: int, scale: int) -> None:
    table, attributes = make_palette(bits, scale=scale)
    index = (np.arange(64 * 64).reshape(64, 64) % 256).astype(np.uint8)
    path = save_dicom(tmp_path / "us.dcm", index, BitsAllocated=8, BitsStored=8, HighBit=7, **attributes)
    result = read_image(path)
    np.testing.assert_array_equal(result.pixels, table[index])
    assert result.mode == "DICOM PALETTE COLOR"
    change(path, lambda dataset: dataset.pop("GreenPaletteColorLookupTableData"))
    with pytest.raises(ImageError, match="PALETTE COLOR whose palette cannot be read"):
        decode_image(path)


@pytest.mark.parametrize(("bits", "entries"), [(8, 256), (8, 4096), (16, 256)])
def test_palette_of_big_endian_files_is_looked_up(tmp_path: Path, bits: int, entries: int) -> None:
    table, attributes = make_palette(bits, entries)
    index = XRAY % entries
    order = {key: np.frombuffer(v, "<u2").byteswap().tobytes() for key, v in attributes.items() if type(v) is bytes}
    path = save_dicom(tmp_path / "us.dcm", index, **attributes | order)
    dataset = pydicom.dcmread(path)
    dataset.PixelData = index.byteswap().tobytes()
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.ExplicitVRBigEndian
    dataset.decode()  # parses all elements
    dataset.set_original_encoding(False, False)
    dataset.save_as(path)
    np.testing.assert_array_equal(decode_image(path), table[index])


@pytest.mark.parametrize("bits", [8, 16])
def test_palette_of_16_bit_indices_and_segments(tmp_path: Path, bits: int) -> None:
    table, attributes = make_palette(bits, 4096)
    path = save_dicom(tmp_path / "deep.dcm", XRAY, **attributes)
    np.testing.assert_array_equal(decode_image(path), table[XRAY])
    ramp = struct.pack("<HHH", 0, 1, 0) + struct.pack("<HHH", 1, 255, 65535)  # one value, then a line to the brightest
    segments = {f"Segmented{name}PaletteColorLookupTableData": ramp for name in ("Red", "Green", "Blue")}
    descriptors = {f"{name}PaletteColorLookupTableDescriptor": [256, 0, 16] for name in ("Red", "Green", "Blue")}
    index = np.tile(np.arange(64, dtype=np.uint8) * 4, (64, 1))
    path = save_dicom(
        tmp_path / "line.dcm", index, BitsAllocated=8, BitsStored=8, HighBit=7,
        PhotometricInterpretation="PALETTE COLOR", **segments, **descriptors,
    )  # fmt: skip
    assert np.abs(grey(path).astype(int) - index).max() <= 1


@pytest.mark.parametrize("groups", ["SharedFunctionalGroupsSequence", "PerFrameFunctionalGroupsSequence"])
def test_rescale_and_window_in_functional_groups(tmp_path: Path, groups: str) -> None:
    values = {"RescaleSlope": 2, "RescaleIntercept": -1000}
    window = {"WindowCenter": 1000, "WindowWidth": 1000}
    at_root = grey(save_dicom(tmp_path / "root.dcm", XRAY, **values, **window))
    frame = item(
        PixelValueTransformationSequence=[item(**values, RescaleType="HU")], FrameVOILUTSequence=[item(**window)]
    )
    other = item(FrameVOILUTSequence=[item(WindowCenter=1, WindowWidth=2)])
    stacked = np.stack([XRAY, XRAY[::-1]])
    items = [frame, other] if groups.startswith("Per") else [frame]
    path = save_dicom(tmp_path / "enhanced.dcm", stacked, NumberOfFrames=2, **{groups: items})
    result = read_image(path)
    np.testing.assert_array_equal(result.pixels[..., 0], at_root)
    assert {choose_frame(0, 2), Step("windowed as the file says")} <= set(result.steps)


ODD: dict[str, tuple[dict[str, Any], str]] = {
    "empty slope": ({"RescaleSlope": None, "RescaleIntercept": None}, "RescaleSlope ignored"),
    "slope 0": ({"RescaleSlope": 0, "RescaleIntercept": 5}, "RescaleSlope ignored"),
    "width 0": ({"WindowCenter": 2000, "WindowWidth": 0}, "window ignored"),
    "width below 0": ({"WindowCenter": 2000, "WindowWidth": -5}, "window ignored"),
    "no width": ({"WindowCenter": 2000}, "window ignored"),
    "empty window": ({"WindowCenter": None, "WindowWidth": None}, "window ignored"),
    "window beside the data": ({"WindowCenter": 90_000, "WindowWidth": 10}, "window ignored"),
    "VOI LUT without data": ({"VOILUTSequence": [item(LUTDescriptor=[9, 0, 16])]}, ""),
    "VOI LUT too short": ({"VOILUTSequence": [item(LUTDescriptor=[4096, 0, 16], LUTData=b"\1\0")]}, "VOI LUT ignored"),
    "modality LUT too short": ({"ModalityLUTSequence": [item(LUTDescriptor=[4096, 0, 16], LUTData=b"\1\0")]},
                               "modality LUT ignored"),
    "bits stored 0": ({"BitsStored": 0, "HighBit": 11}, "BitsStored ignored"),
    "bits stored 20": ({"BitsStored": 20, "HighBit": 11}, "BitsStored ignored"),
    "empty photometric": ({"PhotometricInterpretation": None}, "read as MONOCHROME2"),
    "unknown photometric": ({"PhotometricInterpretation": "GREY"}, "read as MONOCHROME2"),
    "number of frames empty": ({"NumberOfFrames": None}, ""),
    "sign missing": ({"PixelRepresentation": None}, ""),
    "padding empty": ({"PixelPaddingValue": None}, ""),
    "no groups in a sequence": ({"SharedFunctionalGroupsSequence": []}, ""),
}  # fmt: skip


@pytest.mark.parametrize("name", ODD)
def test_invalid_attribute_is_ignored_with_a_note(tmp_path: Path, name: str) -> None:
    attributes, note = ODD[name]
    result = read_image(save_dicom(tmp_path / "odd.dcm", XRAY, **attributes))
    np.testing.assert_array_equal(result.pixels[..., 0], PLAIN)
    assert any(note in step.words for step in result.steps), result.steps


@pytest.mark.parametrize("keyword", ["BitsAllocated", "BitsStored", "PhotometricInterpretation", "SamplesPerPixel",
                                     "PixelRepresentation", "HighBit"])  # fmt: skip
def test_missing_pixel_description_is_assumed(tmp_path: Path, keyword: str) -> None:
    path = change(save_dicom(tmp_path / "less.dcm", XRAY), lambda dataset: dataset.pop(keyword))
    np.testing.assert_array_equal(grey(path), PLAIN)


def test_missing_size_is_an_error(tmp_path: Path) -> None:
    path = change(save_dicom(tmp_path / "less.dcm", XRAY), lambda dataset: dataset.pop("Rows"))
    with pytest.raises(ImageError, match="without the size of its image"):
        decode_image(path)


@pytest.mark.parametrize("suffix", [".dcm", "", ".ima"])
@pytest.mark.parametrize("form", ["no preamble", "implicit", "explicit", "big-endian"])
def test_data_set_without_preamble_is_read(tmp_path: Path, form: str, suffix: str) -> None:
    path = save_dicom(tmp_path / "whole.dcm", XRAY)
    bare = tmp_path / f"bare{suffix}"
    if form == "no preamble":
        bare.write_bytes(path.read_bytes()[132:])
    else:
        elements, buffer = Dataset(), io.BytesIO()
        for element in pydicom.dcmread(path):
            elements.add(element)
        if form == "big-endian":
            elements.PixelData = XRAY.astype(">u2").tobytes()
        elements.save_as(
            buffer, implicit_vr=form == "implicit", little_endian=form != "big-endian", enforce_file_format=False
        )
        bare.write_bytes(buffer.getvalue())
    np.testing.assert_array_equal(grey(bare), PLAIN)
    assert read_tag(bare, "PatientID") == "P1"


def test_first_of_undeclared_frames_is_read(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "two.dcm", np.stack([XRAY, XRAY[::-1]]))
    result = read_image(path)
    np.testing.assert_array_equal(result.pixels[..., 0], PLAIN)
    assert choose_frame(0, 2) in result.steps
    path = change(save_dicom(tmp_path / "pad.dcm", XRAY), lambda d: setattr(d, "PixelData", d.PixelData + bytes(33)))
    np.testing.assert_array_equal(grey(path), PLAIN)
    path = change(save_dicom(tmp_path / "short.dcm", XRAY), lambda d: setattr(d, "PixelData", d.PixelData[:4000]))
    with pytest.raises(ImageError, match="pixel data end early"):
        decode_image(path)


def test_one_bit_per_pixel_is_read(tmp_path: Path) -> None:
    bits = (np.arange(64 * 64).reshape(64, 64) % 3 == 0).astype(np.uint8)
    packed = np.packbits(bits.ravel(), bitorder="little")
    path = save_dicom(tmp_path / "mask.dcm", bits, BitsAllocated=1, BitsStored=1, HighBit=0)
    change(path, lambda dataset: setattr(dataset, "PixelData", packed.tobytes()))
    np.testing.assert_array_equal(grey(path), bits * 255)
    longer = save_dicom(tmp_path / "longer.dcm", np.resize(packed, (64, 64)), BitsAllocated=1, BitsStored=1, HighBit=0)
    np.testing.assert_array_equal(grey(longer), bits * 255)


def test_left_aligned_values_are_read(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "left.dcm", XRAY << 4, BitsStored=12, HighBit=15)
    np.testing.assert_array_equal(grey(path), PLAIN)


def test_padding_of_signed_values_under_either_sign(tmp_path: Path) -> None:
    signed = XRAY.astype(np.int16) - 1000
    signed[:8] = -2000
    expected = np.rint((signed[8:] - signed[8:].min()) / np.ptp(signed[8:]) * 255)
    for value in (-2000, 63536):  # 63536 is -2000 without its sign
        path = save_dicom(tmp_path / "ct.dcm", signed, BitsStored=16, PixelRepresentation=1)
        dataset = pydicom.dcmread(path)
        dataset.add_new(0x00280120, "SS" if value < 0 else "US", value)
        dataset.save_as(path)
        result = grey(path)
        assert (result[:8] == 0).all()
        np.testing.assert_array_equal(result[8:], expected)
    implicit = pydicom.dcmread(path)
    implicit.file_meta.TransferSyntaxUID = ImplicitVRLittleEndian
    implicit[0x00280120].VR = "SS"
    implicit[0x00280120].value = -2000
    implicit.save_as(tmp_path / "implicit.dcm", implicit_vr=True, little_endian=True)
    np.testing.assert_array_equal(grey(tmp_path / "implicit.dcm")[8:], expected)


def test_colour_of_8_and_of_16_bits(tmp_path: Path) -> None:
    deep = np.stack([XRAY, XRAY[::-1], XRAY.T], axis=2)
    path = save_dicom(tmp_path / "deep.dcm", deep, **COLOUR)
    np.testing.assert_array_equal(decode_image(path), np.rint(deep / 4095 * 255))
    planes = np.ascontiguousarray(np.moveaxis(deep, -1, 0)).reshape(64, 64, 3)
    path = save_dicom(tmp_path / "planes.dcm", planes, **{**COLOUR, "PlanarConfiguration": 1})
    np.testing.assert_array_equal(decode_image(path), np.rint(deep / 4095 * 255))
    eight = (deep >> 4).astype(np.uint8)
    small = {"BitsAllocated": 8, "BitsStored": 8, "HighBit": 7}
    path = save_dicom(tmp_path / "rgb.dcm", eight, **{**COLOUR, **small, "PhotometricInterpretation": None})
    np.testing.assert_array_equal(decode_image(path), eight)
    path = save_dicom(tmp_path / "wide.dcm", eight.astype(np.uint16), **{**COLOUR, "BitsStored": 8, "HighBit": 7})
    np.testing.assert_array_equal(decode_image(path), eight)
    ybr = np.asarray([[[76, 85, 255], [150, 44, 21]]] * 2, np.uint8)  # red, green
    path = save_dicom(tmp_path / "ybr.dcm", ybr, **{**COLOUR, **small, "PhotometricInterpretation": "YBR_FULL"})
    assert np.abs(decode_image(path)[0].astype(int) - [[255, 0, 0], [0, 255, 0]]).max() <= 2


def test_float_pixel_data_and_32_bits(tmp_path: Path) -> None:
    def make_float(dataset: Dataset) -> None:
        del dataset.PixelData, dataset.BitsStored, dataset.HighBit, dataset.PixelRepresentation
        dataset.BitsAllocated = 32
        dataset.FloatPixelData = (XRAY / 4095).astype(np.float32).tobytes()

    path = change(save_dicom(tmp_path / "float.dcm", XRAY), make_float)
    np.testing.assert_array_equal(grey(path), np.rint((XRAY / 4095).astype(np.float32).astype(float) * 255))
    wide = XRAY.astype(np.uint32) * 1_000_000
    path = save_dicom(tmp_path / "wide.dcm", wide, BitsAllocated=32, BitsStored=32, WindowCenter=2e9, WindowWidth=4e9)
    assert len(np.unique(grey(path))) > 200


def test_lookup_tables_are_applied(tmp_path: Path) -> None:
    squares = (np.arange(4096, dtype=np.int64) ** 2 >> 8).astype("<u2")
    table = item(LUTDescriptor=[4096, 0, 16], LUTData=squares.tobytes())
    expected = np.rint(squares[XRAY] / squares.max() * 255)
    for keyword in ("VOILUTSequence", "ModalityLUTSequence"):
        np.testing.assert_array_equal(grey(save_dicom(tmp_path / "lut.dcm", XRAY, **{keyword: [table]})), expected)
    path = save_dicom(tmp_path / "both.dcm", XRAY, VOILUTSequence=[table], RescaleSlope=1, RescaleIntercept=0)
    np.testing.assert_array_equal(grey(path), expected)
    inverted = save_dicom(tmp_path / "one.dcm", XRAY, PhotometricInterpretation="MONOCHROME1", WindowCenter=2048,
                          WindowWidth=4096)  # fmt: skip
    assert np.abs(grey(inverted).astype(int) - (255 - PLAIN)).max() <= 1


def test_compression_that_the_extra_cannot_read_is_not_called_a_missing_extra(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "ht.dcm", XRAY)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = pydicom.uid.HTJ2KLossless
    dataset.PixelData = encapsulate([bytes(16)])
    dataset.save_as(path)
    with pytest.raises(ImageError, match=r"High-Throughput JPEG 2000 .*, which cannot be read\. Export it again"):
        decode_image(path)


@pytest.mark.parametrize("keyword", ["VOILUTSequence", "ModalityLUTSequence"])
@pytest.mark.parametrize(("bits", "kind"), [(8, "<u1"), (8, "<u2"), (12, "<u2")])
def test_lookup_table_of_other_depths_is_applied(tmp_path: Path, keyword: str, bits: int, kind: str) -> None:
    """4,096 entries of 8 bits, packed or not, and of 12 bits, beginning at a negative value."""
    entries = (np.arange(4096)[::-1] >> 12 - bits).astype(kind)
    first, rescale = 0, {}
    if keyword == "VOILUTSequence":
        first, rescale = (1 << 16) - 1000, {"RescaleSlope": 1, "RescaleIntercept": -1000}
    table = item(LUTDescriptor=[4096, first, bits], LUTData=entries.tobytes())
    path = save_dicom(tmp_path / "lut.dcm", XRAY, **{keyword: [table]}, **rescale)
    expected = np.rint(entries[XRAY] / entries.max() * 255)
    np.testing.assert_array_equal(grey(path), expected)
    assert not any("ignored" in step.words for step in read_image(path).steps)


@pytest.mark.parametrize("syntax", [JPEGBaseline8Bit, JPEG2000Lossless, RLELossless])
def test_codestream_larger_than_declared_is_refused(tmp_path: Path, syntax: str) -> None:
    from PIL import Image

    side = 3000
    buffer = io.BytesIO()
    if syntax == RLELossless:
        data = struct.pack("<16L", 1, 64, *[0] * 14) + bytes([129, 0]) * (side * side // 128)
    else:
        Image.new("L", (side, side)).save(buffer, "JPEG" if syntax == JPEGBaseline8Bit else "JPEG2000", no_jp2=True)
        data = buffer.getvalue()
    path = save_dicom(tmp_path / "bomb.dcm", XRAY.astype(np.uint8), BitsAllocated=8, BitsStored=8, HighBit=7)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([data])
    dataset["PixelData"].VR = "OB"
    dataset.save_as(path)
    with pytest.raises(ImageError, match=r"3,000 x 3,000 pixels|more compressed data"):
        decode_image(path)


@pytest.mark.parametrize(
    ("syntax", "header", "in_boxes", "message"),
    [
        (JPEGBaseline8Bit, {"BitsStored": 7}, False, ""),
        (JPEGBaseline8Bit, {"SamplesPerPixel": 3}, False, "has 64 x 64 pixels of 1 sample and"),
        (JPEGLosslessSV1, {"BitsStored": 7}, False, ""),
        (JPEGLosslessSV1, {"BitsAllocated": 32, "BitsStored": 32}, False, "JPEG of 32 bits allocated"),
        (JPEG2000Lossless, {"SamplesPerPixel": 3}, False, "has 64 x 64 pixels of 1 sample and"),
        (JPEG2000Lossless, {"SamplesPerPixel": 3}, True, "has 64 x 64 pixels of 1 sample and"),
        (JPEG2000Lossless, {}, True, ""),
    ],
)
def test_header_unlike_its_codestream_ends_no_process(
    tmp_path: Path, syntax: str, header: dict[str, int], in_boxes: bool, message: str
) -> None:
    """In a process of its own: gdcm aborts it."""
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(PLAIN).save(buffer, "JPEG2000" if syntax == JPEG2000Lossless else "JPEG", no_jp2=not in_boxes)
    path = save_dicom(tmp_path / "odd.dcm", PLAIN, BitsAllocated=8, BitsStored=8, HighBit=7)
    dataset = pydicom.dcmread(path)
    dataset.file_meta.TransferSyntaxUID = syntax
    dataset.PixelData = encapsulate([buffer.getvalue()])
    dataset["PixelData"].VR = "OB"
    for keyword, value in header.items():
        setattr(dataset, keyword, value)
    dataset.save_as(path, enforce_file_format=False)
    script = "import sys, pathlib; from convnext_cli.images.decode import decode_image as decode\n"
    script += "print(decode(pathlib.Path(sys.argv[1])).max())"
    done = subprocess.run([sys.executable, "-c", script, path], capture_output=True, text=True, check=False)
    assert done.returncode == (1 if message else 0), done.stderr
    assert message in done.stderr
    if not message:
        difference = grey(path).astype(int) - PLAIN
        assert np.abs(difference).max() <= 12


def deflate(path: Path, elements: bytes) -> Path:
    """Write a deflated file with these elements."""
    dataset = pydicom.dcmread(path)
    meta = dataset.file_meta
    meta.TransferSyntaxUID = "1.2.840.10008.1.2.1.99"
    buffer = io.BytesIO()
    pydicom.filewriter.write_file_meta_info(buffer, meta)
    packer = zlib.compressobj(9, zlib.DEFLATED, -15)
    path.write_bytes(bytes(128) + b"DICM" + buffer.getvalue() + packer.compress(elements) + packer.flush())
    return path


def test_deflated_files_are_read_and_limited(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = save_dicom(tmp_path / "plain.dcm", XRAY)
    whole = path.read_bytes()
    (length,) = struct.unpack_from("<L", whole, 140)
    deflate(path, whole[144 + length :])
    np.testing.assert_array_equal(grey(path), PLAIN)
    assert read_tag(path, "PatientID") == "P1"
    monkeypatch.setattr("convnext_cli.images.dicom._WHOLE", 4000)
    with pytest.raises(ImageError, match="decompresses to more than"):
        decode_image(path)


@pytest.mark.parametrize("deflated", [False, True])
@pytest.mark.parametrize(
    ("start", "element"),
    [
        (b"", bytes(8)),
        (b"", b"\x09\0\x01\x10CS\0\0"),
        (b"\x08\0\x40\x11SQ\0\0\xff\xff\xff\xff", b"\xfe\xff\0\xe0\0\0\0\0"),
    ],
    ids=["zeros", "empty elements", "empty items of a sequence"],
)
def test_endless_elements_are_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, start: bytes, element: bytes, deflated: bool
) -> None:
    monkeypatch.setattr("convnext_cli.images.dicom._MAX_READS", 2000)
    path = save_dicom(tmp_path / "plain.dcm", XRAY)
    assert read_tag(path, "PatientID") == "P1"
    (length,) = struct.unpack_from("<L", whole := path.read_bytes(), 140)
    if deflated:
        deflate(path, start + element * 3000)
    else:
        path.write_bytes(whole[: 144 + length] + start + element * 3000)
    with pytest.raises(ImageError, match="DICOM of too many elements, or not DICOM"):
        decode_image(path)
    assert read_tag(path, "PatientID") is None


def test_errors_name_the_cause(tmp_path: Path) -> None:
    (tmp_path / "text.dcm").write_text("no DICOM at all, but long enough to be taken for something " * 20)
    (tmp_path / "empty.dcm").touch()
    cut = save_dicom(tmp_path / "cut.dcm", XRAY)
    cut.write_bytes(cut.read_bytes()[:300])
    unknown = change(
        save_dicom(tmp_path / "unknown.dcm", XRAY), lambda d: setattr(d.file_meta, "TransferSyntaxUID", "1.2.3.4")
    )
    for path in (tmp_path / "text.dcm", tmp_path / "empty.dcm", cut, unknown):
        with pytest.raises(ImageError) as caught:
            decode_image(path)
        assert "force" not in str(caught.value)
        assert "\x1b" not in str(caught.value)


def test_preamble_may_be_the_start_of_a_tiff_file(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "dual", XRAY)
    expected = decode_image(path)
    path.write_bytes(b"II*\0\x54\x18\x08".ljust(128, b"\0") + path.read_bytes()[128:])
    np.testing.assert_array_equal(decode_image(path), expected)


def test_invalid_number_of_frames_is_ignored(tmp_path: Path) -> None:
    path = save_dicom(tmp_path / "a.dcm", XRAY, NumberOfFrames="1")
    expected, content = decode_image(path), path.read_bytes()
    assert content.count(b"IS\x02\x001 ") == 1
    path.write_bytes(content.replace(b"IS\x02\x001 ", b"IS\x02\x001A"))
    result = read_image(path)
    np.testing.assert_array_equal(result.pixels, expected)
    assert Step("NumberOfFrames ignored") in result.steps


@pytest.mark.parametrize("declared", [3, 2_000_000_000])
@pytest.mark.parametrize("bits", [1, 16])
def test_fewer_frames_than_declared(tmp_path: Path, declared: int, bits: int) -> None:
    stored = XRAY if bits == 16 else np.random.default_rng(0).integers(0, 256, (9, 2), np.uint8)  # 72 pixels
    size = {} if bits == 16 else {"Rows": 9, "Columns": 8, "BitsAllocated": 1, "BitsStored": 1, "HighBit": 0}
    expected = decode_image(save_dicom(tmp_path / "one.dcm", stored, **size))
    result = read_image(save_dicom(tmp_path / "a.dcm", stored, NumberOfFrames=declared, **size))
    np.testing.assert_array_equal(result.pixels, expected)
    assert Step("NumberOfFrames ignored") in result.steps


def test_tile_of_a_slide_is_not_taken_for_the_slide(tmp_path: Path) -> None:
    size = {"TotalPixelMatrixColumns": 6400, "TotalPixelMatrixRows": 64}
    with pytest.raises(ImageError, match="DICOM of 6,400 x 64 pixels in tiles of 64 x 64"):
        decode_image(save_dicom(tmp_path / "slide.dcm", np.stack([XRAY] * 100), NumberOfFrames=100, **size))
    size = {"TotalPixelMatrixColumns": 64, "TotalPixelMatrixRows": 64}
    assert decode_image(save_dicom(tmp_path / "overview.dcm", XRAY, NumberOfFrames=1, **size)).shape == (64, 64, 3)


@pytest.mark.parametrize("signed", [0, 1])
def test_jpeg_of_12_bits_is_read(tmp_path: Path, signed: int) -> None:
    coded = bytes(imagecodecs.jpeg8_encode(XRAY, level=100, bitspersample=12))
    path = save_dicom(tmp_path / "a.dcm", XRAY, PixelRepresentation=signed)

    def compress(dataset: Dataset, data: bytes) -> None:
        dataset.file_meta.TransferSyntaxUID = JPEGExtended12Bit
        dataset.PixelData = encapsulate([data])
        dataset["PixelData"].VR = "OB"

    change(path, lambda dataset: compress(dataset, coded))
    expected = XRAY if not signed else (XRAY + 2048) % 4096  # two's complement of 12 bits
    np.testing.assert_allclose(grey(path), np.rint(expected / 4095 * 255), atol=1)
    change(path, lambda dataset: compress(dataset, coded[: len(coded) // 2]))
    with pytest.raises(ImageError, match="compressed image ends early"):
        decode_image(path)
