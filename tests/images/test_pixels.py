"""The table of modes x depths x layouts, each read and compared with the stored values."""

import io
import itertools
import os
import struct
import zlib
from pathlib import Path
from typing import Any

import imagecodecs
import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image, ImageOps

from convnext_cli.errors import ImageError
from convnext_cli.images.decode import convert_image, decode_image, read_image
from convnext_cli.images.raster import Step, StepKind, choose_frame
from tools.fuzz_images import encode_png

Y, X = np.mgrid[:48, :64]
WAVES = np.stack([0.5 + 0.45 * np.sin(X / (9 + i) + i) * np.cos(Y / (7 - i) + i) for i in range(4)], axis=-1)  # 0..1
FULL = {"uint8": 255, "uint16": 4095, "uint32": 4_000_000_000, "uint64": 2**40, "int16": 3000, "int32": 2**30}
"""The brightest stored value: 12 bits of 16; the other types use all bits."""
CHANNELS = {"grey": 1, "white is zero": 1, "RGB": 3, "RGB and one more": 4, "RGBA": 4}


def make_values(kind: str, channels: int) -> NDArray[Any]:
    """Return waves as (H, W, channels) of a type; signed values are centred at 0."""
    full = FULL.get(kind, 1.0)
    values = WAVES[..., :channels] * full - (full / 2 if kind.startswith("int") else 0)
    return values.astype(kind)


def expect(values: NDArray[Any]) -> NDArray[np.uint8]:
    """Apply the rule: the darkest value becomes 0, the brightest 255."""
    wide = values.astype(np.float64)
    low, high = wide.min(), wide.max()
    eight: NDArray[np.uint8] = np.rint((wide - low) / (high - low) * 255).astype(np.uint8)
    return np.repeat(eight[..., None], 3, axis=2) if eight.ndim == 2 else eight


def write_tiff(path: Path, planes: NDArray[Any], tags: dict[int, int], *, order: str = "<", rows: int = 7) -> None:
    """Write (P, H, bytes of a row) as a TIFF in strips, compressed by libtiff; `tags` by number."""
    compression = {1: "raw", 5: "tiff_lzw", 8: "tiff_adobe_deflate", 32773: "packbits", 50000: "zstd", 34925: "lzma"}
    strips = []
    for plane, top in itertools.product(planes, range(0, planes.shape[1], rows)):
        part = np.ascontiguousarray(plane[top : top + rows])
        if tags.get(259, 1) == 1:
            strips.append(part.tobytes())
            continue
        buffer = io.BytesIO()
        Image.fromarray(part).save(buffer, "TIFF", compression=compression[tags[259]], tiffinfo={278: len(part)})
        buffer.seek(0)
        with tifffile.TiffFile(buffer) as packed:
            page: Any = packed.pages.first
            assert len(page.dataoffsets) == 1
            strips.append(buffer.getvalue()[page.dataoffsets[0] :][: page.databytecounts[0]])
    entries = {256: [0], 257: [planes.shape[1]], 273: [0] * len(strips), 278: [rows], 279: [len(s) for s in strips]}
    entries |= {tag: [value] for tag, value in tags.items()}
    place = 8 + 2 + 12 * len(entries) + 4
    table, extra = b"", b""
    arrays = place + 8 * len(strips) if len(strips) > 1 else place
    entries[273] = [arrays + sum(map(len, strips[:i])) for i in range(len(strips))]
    for tag in sorted(entries):
        numbers = entries[tag]
        data = struct.pack(f"{order}{len(numbers)}L", *numbers)
        if len(numbers) > 1:
            extra, data = extra + data, struct.pack(f"{order}L", place + len(extra))
        table += struct.pack(f"{order}HHL", tag, 4, len(numbers)) + data
    mark = b"II" if order == "<" else b"MM"
    head = mark + struct.pack(f"{order}HLH", 42, 8, len(entries)) + table + bytes(4) + extra
    path.write_bytes(head + b"".join(strips))


@pytest.mark.parametrize(
    "kind", ["uint8", "uint16", "uint32", "uint64", "int16", "int32", "float16", "float32", "float64"]
)
@pytest.mark.parametrize("channels", CHANNELS)
def test_tiff_of_every_type_and_layout_is_read_as_stored(tmp_path: Path, kind: str, channels: str) -> None:
    values = make_values(kind, CHANNELS[channels])
    full = {"u": 2 ** (8 * values.itemsize) - 1, "f": 1.0}.get(values.dtype.kind, 2 ** (8 * values.itemsize - 1) - 1)
    extra: dict[str, Any] = {}
    if channels == "RGBA":
        values[..., 3] = full
        extra["extrasamples"] = ["unassalpha"]
    elif channels == "RGB and one more":
        extra["extrasamples"] = ["unspecified"]
    shown = values[..., :3] if values.shape[2] > 1 else values[..., 0]
    if channels == "white is zero":
        shown = full - shown.astype(np.float64)
    expected = (
        expect(shown) if kind != "uint8" else np.asarray(shown, np.uint8).reshape(48, 64, -1) + np.zeros(3, np.uint8)
    )
    photometric = {"grey": "minisblack", "white is zero": "miniswhite"}.get(channels, "rgb")
    layouts: dict[str, dict[str, Any]] = {
        "pixels": {}, "big-endian": {"byteorder": ">"}, "tiles": {"tile": (16, 32)}, "strips": {"rowsperstrip": 5},
        "BigTIFF": {"bigtiff": True}, "deflate": {"compression": "zlib"},
        "deflate, tiles": {"compression": "zlib", "tile": (32, 16)},
        "deflate, big-endian": {"compression": "zlib", "byteorder": ">"},
    }  # fmt: skip
    if values.dtype.kind in "ui":
        layouts["deflate, predictor"] = {"compression": "zlib", "predictor": 2}
    for layout, options in layouts.items():
        for planar in ("contig", "separate") if values.shape[2] > 1 else ("contig",):
            path = tmp_path / "image.tif"
            stored = values if planar == "contig" else np.moveaxis(values, -1, 0)
            tifffile.imwrite(path, stored if stored.shape[-1] > 1 else stored[..., 0], photometric=photometric,
                             planarconfig=planar if values.shape[2] > 1 else None, **options, **extra)  # fmt: skip
            result = read_image(path)
            np.testing.assert_array_equal(result.pixels, expected, err_msg=f"{layout} {planar}: {result[1:]}")
            assert (result.pixels.min(), result.pixels.max()) == (0, 255) or kind == "uint8"


def test_signed_bytes_are_read_as_numbers(tmp_path: Path) -> None:
    values = (WAVES[..., 0] * 200 - 100).astype(np.int8)
    tifffile.imwrite(tmp_path / "signed.tif", values, photometric="minisblack")
    expected = np.repeat((values.astype(int) + 128).astype(np.uint8)[..., None], 3, axis=2)
    pixels, mode, *_ = read_image(tmp_path / "signed.tif")
    np.testing.assert_array_equal(pixels, expected)
    assert mode == "L"


@pytest.mark.parametrize("kind", ["uint8", "uint16"])  # Pillow reads the first, tifffile the second
def test_levels_of_a_pyramid_and_masks_are_no_further_images(kind: str, tmp_path: Path) -> None:
    """Such as the overviews of a GeoTIFF: the note on files of several frames told to save each as a file."""
    values = make_values(kind, 3)
    for name, types, is_noted in (("overviews", (0, 1, 4, 1), False), ("stack", (0, 1, 0), True)):
        with tifffile.TiffWriter(tmp_path / f"{name}.tif") as file:
            for subfiletype in types:
                page = {0: values, 1: values[::2, ::2], 4: values[..., 0] > 0}[subfiletype]
                photometric = "mask" if subfiletype == 4 else "rgb"
                file.write(page, subfiletype=subfiletype, photometric=photometric, metadata=None)
        result = read_image(tmp_path / f"{name}.tif")
        assert choose_frame(0, len(types), are_copies=not is_noted) in result.steps
        np.testing.assert_array_equal(result.pixels, read_image(tmp_path / "overviews.tif").pixels)


@pytest.mark.parametrize("kind", ["uint8", "uint16"])  # Pillow reads the first, tifffile the second
@pytest.mark.parametrize("order", [(1, 0), (0, 1), (1, 1)])  # 1: marked as a thumbnail
def test_thumbnail_before_the_image_is_skipped(kind: str, order: tuple[int, int], tmp_path: Path) -> None:
    values = make_values(kind, 3)
    pages = [values[::4, ::4] if is_thumbnail else values for is_thumbnail in order]
    with tifffile.TiffWriter(tmp_path / "both.tif") as file:
        for page, is_thumbnail in zip(pages, order, strict=True):
            file.write(page, subfiletype=is_thumbnail, photometric="rgb", metadata=None)
    place = order.index(0) if 0 in order else 0
    tifffile.imwrite(tmp_path / "one.tif", pages[place], photometric="rgb")
    result, expected = read_image(tmp_path / "both.tif"), read_image(tmp_path / "one.tif").pixels
    np.testing.assert_array_equal(result.pixels, expected)
    assert choose_frame(place, 2, are_copies=True) in result.steps
    if kind == "uint8":
        with Image.open(tmp_path / "both.tif") as opened:
            np.testing.assert_array_equal(convert_image(opened, "both.tif"), expected)


def test_tiles_that_need_too_much_memory_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "tiles.tif"
    tifffile.imwrite(path, make_values("uint16", 3), photometric="rgb", tile=(16, 32))
    content = path.read_bytes()
    side = struct.pack("<HHLL", 322, 4, 1, 32)  # TileWidth
    assert content.count(side) == 1
    path.write_bytes(content.replace(side, struct.pack("<HHLL", 322, 4, 1, 4_000_000)))
    with pytest.raises(ImageError, match="tiles of 4,000,000 x 16 pixels"):
        read_image(path)


def test_palette_of_16_bits_is_scaled_by_its_largest_value(tmp_path: Path) -> None:
    for top, expected in ((255, 255), (256, 1), (65535, 255)):  # 255: written by programs that take 8 bits for 16
        table = np.zeros((3, 256), np.uint16)
        table[:, 1] = top
        indexes = np.eye(8, dtype=np.uint8)
        tifffile.imwrite(tmp_path / "palette.tif", indexes, photometric="palette", colormap=table)
        np.testing.assert_array_equal(read_image(tmp_path / "palette.tif").pixels[..., 0], expected * indexes)


def test_tiff_without_an_image_is_an_error(tmp_path: Path) -> None:
    (tmp_path / "none.tif").write_bytes(struct.pack("<2sHL", b"II", 42, 0))
    with pytest.raises(ImageError, match="without an image"):
        read_image(tmp_path / "none.tif")


def test_tiff_with_too_few_strips_is_an_error(tmp_path: Path) -> None:
    path = tmp_path / "short.tif"
    rows = make_values("uint16", 1)[..., 0].view(np.uint8)[None, :14]
    write_tiff(path, rows, {256: 64, 258: 16, 259: 1, 262: 1, 277: 1, 284: 1, 339: 1})
    assert read_image(path).pixels.shape == (14, 64, 3)
    content = path.read_bytes()
    height = struct.pack("<HHLL", 257, 4, 1, 14)
    assert content.count(height) == 1
    path.write_bytes(content.replace(height, struct.pack("<HHLL", 257, 4, 1, 21)))
    with pytest.raises(ImageError, match="ends before its image"):
        read_image(path)


@pytest.mark.parametrize("tile", [None, (16, 16)])
def test_compressed_tiff_that_is_cut_is_an_error_without_output(
    tmp_path: Path, capfd: pytest.CaptureFixture[str], tile: tuple[int, int] | None
) -> None:
    path = tmp_path / "cut.tif"
    tifffile.imwrite(path, make_values("uint8", 3), photometric="rgb", compression="zlib", tile=tile)
    assert read_image(path).pixels.shape == (48, 64, 3)
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(ImageError, match="ends before its image"):
        read_image(path)
    assert not "".join(capfd.readouterr())


def test_tiff_in_webp_is_named_without_output(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    tifffile.imwrite(tmp_path / "a.tif", make_values("uint8", 3), photometric="rgb", compression="webp")
    with pytest.raises(ImageError, match="TIFF file of 8 bits, WEBP compression"):
        read_image(tmp_path / "a.tif")
    assert not "".join(capfd.readouterr())


@pytest.mark.parametrize("compression", [1, 5, 8, 32773, 50000, 34925])
@pytest.mark.parametrize("order", ["<", ">"])
@pytest.mark.parametrize(("predictor", "planar"), [(1, 1), (1, 2), (2, 1), (2, 2), (3, 1)])
def test_deep_tiff_is_read_through_every_codec(
    tmp_path: Path, compression: int, order: str, predictor: int, planar: int
) -> None:
    kind = "f4" if predictor == 3 else "u2"
    values = make_values("float32" if predictor == 3 else "uint16", 3).astype(f"{order}{kind}")
    planes = values[None] if planar == 1 else np.moveaxis(values, -1, 0)[..., None]  # (P, H, W, C)
    if predictor == 2:
        whole = planes.astype(kind)
        planes = np.concatenate([whole[:, :, :1], np.diff(whole, axis=2)], axis=2).astype(f"{order}{kind}")
    rows = np.ascontiguousarray(planes).view(np.uint8).reshape(len(planes), 48, -1)
    if predictor == 3:
        swapped = np.ascontiguousarray(planes.astype(">f4")).view(np.uint8).reshape(len(planes), 48, -1, 4)
        flat = swapped.swapaxes(2, 3).reshape(len(planes), 48, -1)
        rows = np.concatenate([flat[..., :3], flat[..., 3:] - flat[..., :-3]], axis=2)
    tags = {
        256: 64, 258: values.itemsize * 8, 259: compression, 262: 2, 277: 3, 284: planar, 317: predictor,
        339: 3 if predictor == 3 else 1,
    }  # fmt: skip
    if predictor != 1 and compression == 1:
        tags[317] = 1
        rows = np.ascontiguousarray(
            values[None] if planar == 1 else np.moveaxis(values, -1, 0)
        ).view(np.uint8).reshape(len(planes), 48, -1)  # fmt: skip
    write_tiff(tmp_path / "image.tif", rows, tags, order=order)
    np.testing.assert_array_equal(decode_image(tmp_path / "image.tif"), expect(values))


def test_tiff_with_a_changed_byte_is_refused(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "image.tif", make_values("uint16", 3), photometric="rgb", compression="zlib")
    content = bytearray((tmp_path / "image.tif").read_bytes())
    content[len(content) // 2] ^= 255
    (tmp_path / "image.tif").write_bytes(content)
    with pytest.raises(ImageError, match="cannot be read as an image"):
        decode_image(tmp_path / "image.tif")


@pytest.mark.parametrize("bits", [1, 2, 4, 6, 8, 10, 12, 14, 24])
@pytest.mark.parametrize("photometric", [0, 1, 2])
def test_tiff_of_any_bit_depth_is_read(tmp_path: Path, bits: int, photometric: int) -> None:
    channels = 3 if photometric == 2 else 1
    values = np.rint(WAVES[..., :channels] * ((1 << bits) - 1)).astype(np.uint32)
    lines = np.stack([values >> bit & 1 for bit in reversed(range(bits))], axis=-1).reshape(48, -1)
    packed = np.packbits(lines.astype(np.uint8), axis=1)[None]
    tags = {256: 64, 258: bits, 262: photometric, 277: channels, 259: 5 if bits > 8 else 1}
    write_tiff(tmp_path / "image.tif", packed, tags)
    shown = (1 << bits) - 1 - values if photometric == 0 else values
    expected = expect(shown) if bits > 8 else np.rint(shown * (255 / ((1 << bits) - 1))) + np.zeros(3)
    result = decode_image(tmp_path / "image.tif")
    np.testing.assert_array_equal(result, np.squeeze(expected) if channels == 3 or bits <= 8 else expect(shown[..., 0]))


def test_cmyk_palette_and_alpha_of_16_bits_are_read(tmp_path: Path) -> None:
    ink = np.rint(WAVES * 65535).astype(np.uint16)
    for planar in ("contig", "separate"):
        stored = ink if planar == "contig" else np.moveaxis(ink, -1, 0)
        tifffile.imwrite(tmp_path / "cmyk.tif", stored, photometric="separated", planarconfig=planar)
        rest = 1 - ink / 65535
        result = decode_image(tmp_path / "cmyk.tif").astype(int)
        assert np.abs(result - expect(rest[..., :3] * rest[..., 3:])).max() <= 1
    index = (X * 4 % 256).astype(np.uint8)
    table = np.stack([np.arange(256) * 257, 65535 - np.arange(256) * 257, np.full(256, 32896)]).astype(np.uint16)
    tifffile.imwrite(tmp_path / "palette.tif", index, photometric="palette", colormap=table)
    np.testing.assert_array_equal(decode_image(tmp_path / "palette.tif"), (table.T[index] // 256).astype(np.uint8))
    tifffile.imwrite(tmp_path / "small.tif", index, photometric="palette", colormap=table // 257)  # 8-bit entries
    np.testing.assert_array_equal(decode_image(tmp_path / "small.tif"), (table.T[index] // 257).astype(np.uint8))
    half = make_values("uint16", 4)
    half[..., 3] = np.where(X < 32, 65535, 0)
    tifffile.imwrite(tmp_path / "half.tif", half, photometric="rgb", extrasamples=["unassalpha"])
    result = decode_image(tmp_path / "half.tif")
    np.testing.assert_array_equal(result[:, :32], expect(half[:, :32, :3]))
    assert (result[:, 32:] == 255).all()


@pytest.mark.parametrize("orientation", range(10))
def test_deep_images_are_turned_upright(tmp_path: Path, orientation: int) -> None:
    """As Pillow turns 8 bits; 0 and 9 are no orientation."""
    values = make_values("uint16", 4)
    values[..., 3] = np.where(X < 32, 65535, 0)
    tags = [(274, "H", 1, orientation, True)]
    tifffile.imwrite(tmp_path / "deep.tif", values, photometric="rgb", extrasamples=["unassalpha"], extratags=tags)
    result = read_image(tmp_path / "deep.tif")
    stored = np.full((48, 64, 3), 255, np.uint8)  # white where transparent
    stored[:, :32] = expect(values[:, :32, :3])
    plain = Image.fromarray(stored)
    plain.getexif()[274] = orientation
    np.testing.assert_array_equal(result.pixels, np.asarray(ImageOps.exif_transpose(plain)))
    assert (Step("turned upright") in result.steps) == (1 < orientation < 9)


@pytest.mark.parametrize(
    ("kind", "start"), [("uint64", 2**63 + 1), ("uint64", 0), ("int64", -(2**62) - 1), ("int8", -128)]
)
def test_levels_far_from_zero_are_kept(kind: str, start: int, tmp_path: Path) -> None:
    levels = np.arange(256, dtype=np.uint8).reshape(16, 16)
    tifffile.imwrite(
        tmp_path / "far.tif", levels.astype(kind) if start == -128 else levels.astype(kind) + np.array(start, kind)
    )
    expected = levels ^ 128 if start == -128 else levels
    np.testing.assert_array_equal(decode_image(tmp_path / "far.tif")[..., 0], expected)


def test_values_farther_apart_than_a_number_can_be_are_scaled(tmp_path: Path) -> None:
    tifffile.imwrite(tmp_path / "wide.tif", np.array([[-1.7e308, 0, 1.7e308]]))
    assert read_image(tmp_path / "wide.tif").pixels[0, :, 0].tolist() == [0, 128, 255]


@pytest.mark.parametrize("kind", ["uint8", "uint16", "uint32"])
@pytest.mark.parametrize(
    ("layout", "part"), [({"rowsperstrip": 16}, "Strip"), ({"tile": (16, 64)}, "Tile")], ids=["strips", "tiles"]
)
@pytest.mark.parametrize("compression", [None, "zlib"])
def test_parts_that_a_sparse_file_leaves_out_are_zero(
    tmp_path: Path, kind: str, layout: dict[str, Any], part: str, compression: str | None
) -> None:
    """As GDAL writes them with SPARSE_OK."""
    path, values = tmp_path / "sparse.tif", make_values(kind, 1)[..., 0]
    tifffile.imwrite(path, values, photometric="minisblack", compression=compression, **layout)
    with tifffile.TiffFile(path, mode="r+") as file:
        for name in (f"{part}Offsets", f"{part}ByteCounts"):
            tag = file.pages[0].tags[name]  # type: ignore[union-attr]
            tag.overwrite((tag.value[0], 0, tag.value[2]))
    values[16:32] = 0
    expected = np.repeat(values[..., None], 3, axis=2) if kind == "uint8" else expect(values)
    np.testing.assert_array_equal(read_image(path).pixels, expected)


def test_the_lowest_64_bit_value_is_no_data_as_gdal_writes_it(tmp_path: Path) -> None:
    """Its 15 digits are less than any value of 64 bits."""
    values = np.linspace(0, 1, 64).reshape(8, 8)
    values[0, 0] = np.finfo(np.float64).min
    tags = [(42113, "s", 0, "-1.79769313486232e+308", True)]
    tifffile.imwrite(tmp_path / "height.tif", values, extratags=tags)
    result = read_image(tmp_path / "height.tif")
    assert len(np.unique(result.pixels)) == 63
    assert any(step.words.startswith("no-data value") for step in result.steps)


def test_no_data_pixels_are_black(tmp_path: Path) -> None:
    values = make_values("float32", 1)[..., 0]
    values[:8] = -3.4e38
    tifffile.imwrite(tmp_path / "height.tif", values, extratags=[(42113, "s", 0, "-3.4e38", True)])
    result = read_image(tmp_path / "height.tif")
    assert (result.pixels[:8] == 0).all()
    np.testing.assert_array_equal(result.pixels[8:], expect(values[8:]))
    assert any(step.words.startswith("no-data value") for step in result.steps)


REFUSED: dict[str, tuple[NDArray[Any], dict[str, Any], str]] = {
    "5 bands": (np.zeros((8, 8, 5), np.uint8), {"photometric": "minisblack", "planarconfig": "contig"}, "5 bands"),
    "3 bands": (np.zeros((8, 8, 3), np.uint16), {"photometric": "minisblack", "planarconfig": "contig"}, "3 bands"),
    "complex": (np.zeros((8, 8), np.complex64), {}, "complex"),
    "Lab": (np.zeros((8, 8, 3), np.uint8), {"photometric": "cielab"}, "Lab"),
    "Lab 16": (np.zeros((8, 8, 3), np.uint16), {"photometric": "cielab"}, "CIELAB colour with 16 bits"),
    "volume": (np.zeros((4, 16, 16), np.uint16), {"volumetric": True, "photometric": "minisblack", "tile": (4, 16, 16)},
               "volume"),
    "camera raw": (np.zeros((8, 8), np.uint16), {"photometric": "cfa"}, "camera raw"),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_tiff_of_unknown_meaning_is_refused_by_kind(tmp_path: Path, name: str) -> None:
    values, options, words = REFUSED[name]
    tifffile.imwrite(tmp_path / "image.tif", values, **options)
    with pytest.raises(ImageError, match=words) as caught:
        decode_image(tmp_path / "image.tif")
    assert "cannot identify" not in str(caught.value)


def encode_chunks(values: NDArray[np.uint16], colour: int, *chunks: tuple[bytes, bytes]) -> bytes:
    """Write a 16-bit PNG (H, W, C) of a colour type, with chunks before the data."""
    whole = encode_png(values, colour)
    return whole[:33] + join_chunks(*chunks) + whole[33:]


def join_chunks(*chunks: tuple[bytes, bytes]) -> bytes:
    """Return chunks of a PNG file, each with its length and checksum."""
    return b"".join(
        struct.pack(">I", len(d)) + kind + d + struct.pack(">I", zlib.crc32(kind + d)) for kind, d in chunks
    )


@pytest.mark.parametrize(("colour", "channels"), [(0, 1), (2, 3), (4, 2), (6, 4)])
@pytest.mark.parametrize("alpha", ["opaque", "half", "no opacity"])
def test_png_of_16_bits_is_read(tmp_path: Path, colour: int, channels: int, alpha: str) -> None:
    values = make_values("uint16", channels)
    opaque = np.ones((48, 64), bool)
    if channels in (2, 4) and alpha != "no opacity":
        opaque = X < 32 if alpha == "half" else opaque
        values[..., -1] = np.where(opaque, 65535, 0)
    (tmp_path / "image.png").write_bytes(encode_chunks(values, colour, (b"gAMA", struct.pack(">I", 100000))))
    result = decode_image(tmp_path / "image.png")
    shown = values[..., :3] if channels > 2 else values[..., 0]
    low, high = float(shown[opaque].min()), float(shown[opaque].max())
    expected = np.rint((shown[opaque] - low) / (high - low) * 255)
    np.testing.assert_array_equal(result[opaque], expected if channels > 2 else np.repeat(expected[:, None], 3, axis=1))
    assert (result[~opaque] == 255).all()


def test_png_of_16_bits_is_turned_upright(tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = 6  # turned by a quarter
    chunk = (b"eXIf", exif.tobytes().removeprefix(b"Exif\0\0"))
    (tmp_path / "image.png").write_bytes(encode_chunks(make_values("uint16", 3), 2, chunk))
    result = read_image(tmp_path / "image.png")
    assert result.pixels.shape == (64, 48, 3)
    assert result.steps == (Step("turned upright"), Step("16-bit colour stretched", StepKind.STRETCH))


def test_transparent_colour_is_white(tmp_path: Path) -> None:
    grey, colour = make_values("uint16", 1), make_values("uint16", 3)
    for values, kind in ((grey, 0), (colour, 2)):
        key = tuple(int(value) for value in values[3, 5])
        (tmp_path / "image.png").write_bytes(encode_chunks(values, kind, (b"tRNS", struct.pack(f">{len(key)}H", *key))))
        result = decode_image(tmp_path / "image.png")
        hidden = (values == key).all(axis=2)
        assert (result[hidden] == 255).all()
        assert result[~hidden].min() == 0
    Image.fromarray(np.full((4, 4, 3), 9, np.uint8)).save(tmp_path / "eight.png", transparency=(9, 9, 9))
    assert (decode_image(tmp_path / "eight.png") == 255).all()


@pytest.mark.parametrize("name", ["image.png", "image.tif", "image.tga", "image.webp"])
@pytest.mark.parametrize("alpha", [0, 80])
def test_alpha_that_is_nowhere_opaque_is_ignored(tmp_path: Path, name: str, alpha: int) -> None:
    values = make_values("uint8", 4)
    values[..., 3] = alpha  # of programs without alpha; near infrared that GDAL declares as alpha
    image = Image.fromarray(values)
    image.save(tmp_path / name, lossless=True, exact=True)  # WebP's options
    result = read_image(tmp_path / name)
    np.testing.assert_array_equal(result.pixels, values[..., :3])
    assert result.steps == (Step("1 further channel ignored"),)
    np.testing.assert_array_equal(convert_image(image, name), values[..., :3])


def test_faint_drawing_in_alpha_is_composited(tmp_path: Path) -> None:
    values = np.zeros((8, 8, 4), np.uint8)
    values[2:4, :, 3] = 200
    Image.fromarray(values).save(tmp_path / "drawing.png")
    result = decode_image(tmp_path / "drawing.png")[..., 0]
    assert set(result[2:4].flat) == {55}
    assert (result[4:] == 255).all()


@pytest.mark.parametrize("bits", [1, 2, 4])
def test_transparent_grey_of_few_bits_is_white(tmp_path: Path, bits: int) -> None:
    top = 2**bits - 1
    for key in range(top + 1):
        head = struct.pack(">IIBBBBB", 8, 1, bits, 0, 0, 0, 0)
        values = np.arange(8) % (top + 1)
        line = np.packbits(np.unpackbits(values.astype(np.uint8)[:, None], axis=1)[:, -bits:])
        chunks = ((b"IHDR", head), (b"tRNS", struct.pack(">H", key)), (b"IDAT", zlib.compress(b"\0" + line.tobytes())))
        (tmp_path / "image.png").write_bytes(b"\x89PNG\r\n\x1a\n" + join_chunks(*chunks, (b"IEND", b"")))
        expected = np.where(values == key, 255, values * 255 // top)
        np.testing.assert_array_equal(decode_image(tmp_path / "image.png")[0, :, 0], expected)
        with Image.open(tmp_path / "image.png") as opened:
            np.testing.assert_array_equal(convert_image(opened, "image")[0, :, 0], expected)


def test_pnm_of_more_than_8_bits_is_read(tmp_path: Path) -> None:
    grey, colour = make_values("uint16", 1)[..., 0], make_values("uint16", 3)
    text = " ".join(map(str, colour.ravel().tolist())).encode()
    files = {
        "12.pgm": (b"P5\n# a note\n64 48\n4095\n" + grey.astype(">u2").tobytes(), expect(grey)),
        "16.ppm": (b"P6 64 48 65535\n" + colour.astype(">u2").tobytes(), expect(colour)),
        "12.ppm": (b"P6\n#c\n64\n48\n4095\n" + colour.astype(">u2").tobytes(), expect(colour)),
        "plain.ppm": (b"P3\n64 48\n65535\n" + text, expect(colour)),
        "colour.pfm": (
            b"PF\n64 48\n-1.0\n" + WAVES[::-1, :, :3].astype("<f4").tobytes(),
            expect(WAVES[..., :3].astype("f4")),
        ),
        "grey.pfm": (
            b"Pf\n64 48\n1.0\n" + WAVES[::-1, :, 0].astype(">f4").tobytes(),
            expect(WAVES[..., 0].astype("f4")),
        ),
    }
    for name, (data, expected) in files.items():
        (tmp_path / name).write_bytes(data)
        result = decode_image(tmp_path / name)
        assert np.abs(result.astype(int) - expected).max() <= 1, name  # Pillow rounds 12 bits to 16
        assert (result.min(), result.max()) == (0, 255), name


def test_other_formats_are_read_deep_or_refused_by_name(tmp_path: Path) -> None:
    grey = make_values("uint16", 1)[..., 0]
    Image.fromarray(grey).save(tmp_path / "grey.jp2", irreversible=False)
    np.testing.assert_array_equal(decode_image(tmp_path / "grey.jp2"), expect(grey))
    sgi = struct.pack(">hBBHHHH", 474, 0, 2, 3, 64, 48, 1).ljust(512, b"\0") + grey.astype(">u2").tobytes()
    (tmp_path / "deep.sgi").write_bytes(sgi)
    with pytest.raises(ImageError, match="SGI file of 16 bits"):
        decode_image(tmp_path / "deep.sgi")
    psd = b"8BPS\0\1" + bytes(6) + struct.pack(">HIIHH", 1, 48, 64, 16, 1) + bytes(14) + grey.astype(">u2").tobytes()
    (tmp_path / "deep.psd").write_bytes(psd)
    with pytest.raises(ImageError, match="PSD file of 16 bits"):
        decode_image(tmp_path / "deep.psd")


@pytest.mark.parametrize("channels", [1, 2, 3, 4])
@pytest.mark.parametrize("bits", [4, 9, 12, -12, 16, 20])
def test_jpeg_2000_of_other_depths_keeps_its_values(tmp_path: Path, bits: int, channels: int) -> None:
    waves = WAVES[..., : channels if channels > 2 else 1]
    dtype = {4: "u1", -12: "i2", 20: "u4"}.get(bits, "u2")
    depth = abs(bits)
    values = np.rint((0.1 + 0.8 * waves) * (2**depth - 1) - (bits < 0) * 2 ** (depth - 1)).astype(dtype)
    planes = values
    if channels in (2, 4):
        opaque = np.full(values.shape[:2], 2 ** (depth - (bits < 0)) - 1, dtype)
        planes = np.dstack([values[..., : channels - 1], opaque])
    data = imagecodecs.jpeg2k_encode(planes.squeeze(), level=0, bitspersample=depth, reversible=True)
    (tmp_path / "deep.jp2").write_bytes(data)
    result = decode_image(tmp_path / "deep.jp2")
    expected = np.rint(values * 17.0).astype(np.uint8) if bits == 4 else expect(values[..., :3])
    np.testing.assert_array_equal(result, np.broadcast_to(expected[..., :3], result.shape))
    with Image.open(tmp_path / "deep.jp2") as opened:
        np.testing.assert_array_equal(convert_image(opened, "deep"), result)


@pytest.mark.parametrize("bits", [10, 12])
def test_avif_of_more_than_8_bits_keeps_its_values(tmp_path: Path, bits: int) -> None:
    values = np.rint((0.4 + 0.1 * WAVES[..., :3]) * (2**bits - 1)).astype(np.uint16)
    (tmp_path / "deep.avif").write_bytes(imagecodecs.avif_encode(values, level=100, bitspersample=bits))
    result = read_image(tmp_path / "deep.avif")
    assert np.abs(result.pixels.astype(int) - expect(values)).max() <= 3  # its colours are rounded once more
    assert result.bits == bits
    with Image.open(tmp_path / "deep.avif") as opened:
        np.testing.assert_array_equal(convert_image(opened, "deep"), result.pixels)


def test_jpeg_2000_that_cannot_be_read_deep_is_refused_by_name(tmp_path: Path) -> None:
    planes = np.dstack([WAVES, WAVES])[..., :5]
    (tmp_path / "five.jp2").write_bytes(imagecodecs.jpeg2k_encode((planes * 255).astype(np.uint8), level=0))
    with pytest.raises(ImageError, match="JPEG 2000 file of 5 channels"):
        decode_image(tmp_path / "five.jp2")
    colour = bytearray(_encode_jp2(np.rint(WAVES[..., :3] * 255).astype(np.uint8)))
    colour[colour.index(b"\xff\x4f\xff\x51") + 42] = 15
    (tmp_path / "mixed.jp2").write_bytes(colour)
    with pytest.raises(ImageError, match="channels of 16, 8, 8 bits"):
        decode_image(tmp_path / "mixed.jp2")


def _encode_jp2(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "JPEG2000")
    return buffer.getvalue()


def test_content_decides_the_format_and_no_program_starts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin/gs").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\n")
    (tmp_path / "bin/gs").chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}/bin:{os.environ['PATH']}")
    script = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 40 40\n%%EndComments\nshowpage\n%%EOF\n"
    for name in ("xray.png", "xray", "xray.eps", "xray.dcm"):
        (tmp_path / name).write_bytes(script)
        with pytest.raises(ImageError, match=r"is PostScript, which cannot be read\. Convert"):
            decode_image(tmp_path / name)
    assert not (tmp_path / "started").exists()
    Image.fromarray(np.rint(WAVES[..., :3] * 255).astype(np.uint8)).save(tmp_path / "picture.png")
    expected = decode_image(tmp_path / "picture.png")
    for name in ("picture.dcm", "picture.jpg", "picture"):
        (tmp_path / name).write_bytes((tmp_path / "picture.png").read_bytes())
        np.testing.assert_array_equal(decode_image(tmp_path / name), expected)
    os.mkfifo(tmp_path / "pipe.png")
    with pytest.raises(ImageError, match="is a pipe"):
        decode_image(tmp_path / "pipe.png")
