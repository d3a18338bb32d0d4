import os
import warnings
from pathlib import Path

import numpy as np
import pydicom
import pytest
import tifffile
from PIL import Image
from PIL.PngImagePlugin import PngInfo
from pydicom.uid import JPEGLSLossless, RLELossless

from convnext_cli.errors import ImageError
from convnext_cli.images.decode import convert_image, decode_image, read_image
from convnext_cli.images.memory import MAX_PIXELS
from convnext_cli.images.raster import Step, StepKind, choose_frame
from tests.conftest import draw_picture, save_image
from tests.images.dicom import XRAY, save_dicom
from tools.fuzz_images import encode_all, encode_png, mutate

RAMP = np.tile(np.linspace(0, 255, 40).astype(np.uint8), (30, 1))


@pytest.mark.parametrize("mode", ["1", "L", "LA", "P", "RGB", "RGBA", "CMYK", "I;16", "I", "F"])
def test_every_mode_becomes_rgb_uint8(tmp_path: Path, mode: str) -> None:
    path = tmp_path / "image.tiff"
    if mode in ("I;16", "I", "F"):
        kind = {"I;16": np.uint16, "I": np.int32, "F": np.float32}[mode]
        Image.fromarray(RAMP.astype(kind) * 10).save(path)
    else:
        Image.fromarray(RAMP).convert("RGB").convert("L" if mode == "LA" else mode).convert(mode).save(path)
    image, found_mode, _, _ = read_image(path)
    assert found_mode == mode
    assert image.shape == (30, 40, 3)
    assert image.dtype == np.uint8
    assert image.min() < 30
    assert image.max() > 220


@pytest.mark.parametrize("ending", ["png", "tiff"])
def test_deep_greyscale_keeps_its_levels(tmp_path: Path, ending: str) -> None:
    path = tmp_path / f"xray.{ending}"
    Image.fromarray(XRAY).save(path)
    image, mode, bits, steps = read_image(path)
    assert len(np.unique(image)) == 256
    assert (image[..., 0] == image[..., 1]).all()
    assert (mode, bits, steps) == ("I;16", 16, (Step("stretched", StepKind.STRETCH),))


def test_deep_colour_keeps_its_levels(tmp_path: Path) -> None:
    colour = np.stack([XRAY, XRAY[::-1], XRAY.T], axis=2)
    (tmp_path / "colour.png").write_bytes(encode_png(colour, 2))
    tifffile.imwrite(tmp_path / "plain.tiff", colour, photometric="rgb")
    tifffile.imwrite(tmp_path / "big_endian.tiff", colour, photometric="rgb", byteorder=">")
    tifffile.imwrite(tmp_path / "packed.tiff", colour, photometric="rgb", compression="deflate")
    expected = np.rint(colour / 4095 * 255).astype(np.uint8)
    for name in ("colour.png", "plain.tiff", "big_endian.tiff", "packed.tiff"):
        image, mode, bits, steps = read_image(tmp_path / name)
        assert mode == "RGB"
        np.testing.assert_array_equal(image, expected, err_msg=name)
        assert (bits, steps) == (16, (Step("16-bit colour stretched", StepKind.STRETCH),))


@pytest.mark.parametrize(("samples", "colours", "deep"), [(4, 3, False), (5, 3, False), (4, 3, True), (2, 1, False)])
def test_channels_beside_the_colours_are_ignored_with_a_step(
    tmp_path: Path, samples: int, colours: int, *, deep: bool
) -> None:
    stored = np.random.default_rng(0).integers(0, 256, (8, 8, samples)).astype(np.uint16 if deep else np.uint8)
    tifffile.imwrite(
        tmp_path / "x.tif",
        stored,
        photometric="rgb" if colours == 3 else "minisblack",
        planarconfig="contig",
        extrasamples=[0] * (samples - colours),
    )
    result = read_image(tmp_path / "x.tif")
    assert result.steps[0].words in ("1 further channel ignored", "2 further channels ignored")
    if not deep:
        assert (result.pixels == np.broadcast_to(stored[..., :colours], (8, 8, 3))).all()


def test_constant_and_non_finite_images_are_read(tmp_path: Path) -> None:
    Image.fromarray(np.full((4, 4), 7, np.uint16)).save(tmp_path / "flat.png")
    assert (decode_image(tmp_path / "flat.png") == 0).all()
    odd = np.array([[np.nan, np.inf], [0.0, 1.0]], np.float32)
    Image.fromarray(odd).save(tmp_path / "odd.tiff")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert decode_image(tmp_path / "odd.tiff")[..., 0].tolist() == [[0, 255], [0, 255]]


@pytest.mark.parametrize("name", ["grey.tiff", "colour.tiff", "grey.pfm"])
def test_image_without_a_finite_value_is_refused(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    nothing = np.full((40, 60, 3) if name == "colour.tiff" else (40, 60), np.nan, np.float32)
    nothing.flat[7] = np.inf
    if path.suffix == ".pfm":
        path.write_bytes(b"Pf\n60 40\n-1.0\n" + nothing.tobytes())
    else:
        tifffile.imwrite(path, nothing, photometric="rgb" if nothing.ndim == 3 else "minisblack")
    with pytest.raises(ImageError, match=f"{name} has no finite values"):
        read_image(path)
    if nothing.ndim == 2:
        with pytest.raises(ImageError, match="the picture has no finite values"):
            convert_image(Image.fromarray(nothing), "the picture")


@pytest.mark.parametrize("name", ["a.png", "a.dcm", "a"])
def test_file_in_place_of_an_image_is_named(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    path.touch()
    with pytest.raises(ImageError, match=rf"{name} is empty\. Copy it again"):
        read_image(path)
    path.write_text("version https://git-lfs.github.com/spec/v1\noid sha256:4d7a\nsize 12345\n")
    with pytest.raises(ImageError, match=r"is a Git LFS pointer, not the image\. Run `git lfs pull`"):
        read_image(path)


def test_orientation_is_applied(tmp_path: Path) -> None:
    image = Image.fromarray(np.zeros((10, 20, 3), np.uint8))
    exif = image.getexif()
    exif[0x0112] = 6  # turned by a quarter
    image.save(tmp_path / "turned.jpg", exif=exif)
    result = read_image(tmp_path / "turned.jpg")
    assert result.pixels.shape == (20, 10, 3)
    assert result.steps == (Step("turned upright"),)


def test_transparent_parts_are_white(tmp_path: Path) -> None:
    pixels = np.zeros((4, 4, 4), np.uint8)
    pixels[:2, :, 3] = 255
    Image.fromarray(pixels).save(tmp_path / "half.png")
    image, mode, _, steps = read_image(tmp_path / "half.png")
    assert (image[:2] == 0).all()
    assert (image[2:] == 255).all()
    assert (mode, steps) == ("RGBA", (Step("composited on white"),))


def test_first_frame_is_read_with_a_note(tmp_path: Path) -> None:
    first, second = draw_picture(1).convert("L"), draw_picture(2).convert("L")
    for ending in ("gif", "tiff", "webp"):
        path = tmp_path / f"frames.{ending}"
        first.save(path, save_all=True, append_images=[second], quality=100)
        result = read_image(path)
        assert choose_frame(0, 2) in result.steps, ending
        assert np.abs(result.pixels.astype(int) - np.asarray(first.convert("RGB"))).mean() < 3, ending


def test_large_jpeg_is_decoded_at_reduced_size(tmp_path: Path) -> None:
    path = tmp_path / "large.jpg"
    draw_picture(3, (1600, 1200)).save(path)
    whole, small = decode_image(path), decode_image(path, at_least=300)
    assert small.shape == (300, 400, 3)
    assert decode_image(path, at_least=601).shape == whole.shape == (1200, 1600, 3)
    scaled = np.asarray(Image.fromarray(whole).resize((400, 300), Image.Resampling.BOX), float)
    assert np.abs(scaled - small).mean() < 2


def test_other_files_are_refused(tmp_path: Path) -> None:
    (tmp_path / "text.png").write_text("hello")
    whole = save_image(tmp_path / "whole.jpg", size=(200, 200)).read_bytes()
    (tmp_path / "torn.jpg").write_bytes(whole[: len(whole) // 2])
    for name in ("text.png", "torn.jpg"):
        with pytest.raises(ImageError, match="cannot be read as an image"):
            decode_image(tmp_path / name)
    with pytest.raises(ImageError, match="does not exist"):
        decode_image(tmp_path / "nowhere.png")
    with pytest.raises(ImageError, match="is a folder"):
        decode_image(tmp_path)
    (tmp_path / "loop.png").symlink_to("loop.png")
    with pytest.raises(ImageError, match=r"loop.png cannot be read as an image \(Too many levels of symbolic links\)"):
        decode_image(tmp_path / "loop.png")


def test_decompression_bomb_is_refused(tmp_path: Path) -> None:
    (tmp_path / "bomb.png").write_bytes(encode_png(np.zeros((1, 1, 3), np.uint16), 2, size=(20_000, 20_000)))
    with pytest.raises(ImageError, match=f"more than {MAX_PIXELS:,} pixels"):
        decode_image(tmp_path / "bomb.png")


@pytest.mark.parametrize("bits", [8, 16])
def test_png_with_large_metadata_is_read(tmp_path: Path, bits: int) -> None:
    history = PngInfo()
    history.add_text("Raw profile type xmp", "edited " * 700_000, zip=True)
    history.add_itxt("XML:com.adobe.xmp", "edited " * 700_000, zip=True)
    image = Image.fromarray(RAMP.astype(np.uint16) * 257 if bits == 16 else RAMP)
    image.save(tmp_path / "a.png", pnginfo=history, icc_profile=bytes(5_000_000))
    assert np.array_equal(decode_image(tmp_path / "a.png")[:, :, 0], RAMP)


def test_png_with_a_text_that_never_ends_is_refused(tmp_path: Path) -> None:
    text = PngInfo()
    text.add_text("Comment", "a" * 70_000_000, zip=True)
    Image.fromarray(RAMP).save(tmp_path / "a.png", pnginfo=text)
    with pytest.raises(ImageError, match="cannot be read"):
        decode_image(tmp_path / "a.png")


@pytest.mark.parametrize(
    ("name", "start"),
    [
        ("a.jpg", b"\xff\xd8\xff\xe0"),
        ("a.webp", b"RIFF\xff\xff\xff\x7fWEBPVP8L"),
        ("a.avif", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"),
        ("a.pgm", b"P2 10 10 255\n"),
        ("a.dcm", bytes(128) + b"DICM"),
        ("a.tga", b"\0"),
        ("a.png", b""),
    ],
)
def test_sparse_file_of_any_size_is_refused(tmp_path: Path, name: str, start: bytes) -> None:
    (tmp_path / name).write_bytes(start)
    os.truncate(tmp_path / name, 4 << 30)
    with pytest.raises(ImageError, match=r"has 4\.3 GB, more than an image may have"):
        decode_image(tmp_path / name)


def test_jpeg_of_endless_scans_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "scans.jpg"
    Image.effect_noise((64, 64), 50).save(path, progressive=True, comment=b"\xff\xda" * 1000)
    data = path.read_bytes()
    assert decode_image(path).shape == (64, 64, 3)
    last = data.rindex(b"\xff\xda")
    path.write_bytes(data[:last] + data[last:-2] * 101 + data[-2:])
    with pytest.raises(ImageError, match=r"is a JPEG of 10\d scans \(the limit is 100\)"):
        decode_image(path)


def test_dicom_is_windowed_as_viewers_do(tmp_path: Path) -> None:
    plain = save_dicom(tmp_path / "plain.dcm", XRAY)
    np.testing.assert_array_equal(decode_image(plain)[..., 0], np.rint(XRAY / 4095 * 255).astype(np.uint8))
    inverted = save_dicom(tmp_path / "inverted.dcm", XRAY, PhotometricInterpretation="MONOCHROME1")
    np.testing.assert_array_equal(decode_image(inverted)[..., 0], np.rint((4095 - XRAY) / 4095 * 255).astype(np.uint8))
    window = {"WindowCenter": 1000, "WindowWidth": 1000, "RescaleSlope": 1, "RescaleIntercept": -500}
    windowed = decode_image(save_dicom(tmp_path / "windowed.dcm", XRAY, **window))[..., 0]
    values = XRAY.astype(int) - 500
    assert (windowed[values < 500] == 0).all()
    assert (windowed[values > 1500] == 255).all()
    assert 120 < windowed[values == 1000][0] < 135
    padded = XRAY.copy()
    padded[:8] = 60_000
    result = read_image(save_dicom(tmp_path / "padded.dcm", padded, BitsStored=16, PixelPaddingValue=60_000))
    assert (result.pixels[:8] == 0).all()
    assert result.pixels[-1, -1, 0] == 255
    assert result.mode == "DICOM MONOCHROME2"


@pytest.mark.parametrize("syntax", [RLELossless, JPEGLSLossless])
def test_compressed_dicom_is_read(tmp_path: Path, syntax: str) -> None:
    path = save_dicom(tmp_path / "packed.dcm", XRAY)
    expected = decode_image(path)
    if syntax == JPEGLSLossless:
        import gdcm

        reader, change, writer = gdcm.ImageReader(), gdcm.ImageChangeTransferSyntax(), gdcm.ImageWriter()
        reader.SetFileName(str(path))
        assert reader.Read()
        change.SetTransferSyntax(gdcm.TransferSyntax(gdcm.TransferSyntax.JPEGLSLossless))
        change.SetInput(reader.GetImage())
        assert change.Change()
        writer.SetFileName(str(path))
        writer.SetFile(reader.GetFile())
        writer.SetImage(change.GetOutput())
        assert writer.Write()
    else:
        dataset = pydicom.dcmread(path)
        dataset.compress(syntax)
        dataset.save_as(path)
    assert pydicom.dcmread(path).file_meta.TransferSyntaxUID == syntax
    np.testing.assert_array_equal(decode_image(path), expected)


def test_dicom_frames_colour_and_missing_image(tmp_path: Path) -> None:
    frames = save_dicom(tmp_path / "frames.dcm", np.stack([XRAY, XRAY[::-1]]), NumberOfFrames=2)
    result = read_image(frames)
    assert choose_frame(0, 2) in result.steps
    assert result.pixels[0, 0, 0] == 0
    colour = np.asarray(draw_picture(4))
    path = save_dicom(
        tmp_path / "colour.dcm", colour, PhotometricInterpretation="RGB", SamplesPerPixel=3, PlanarConfiguration=0,
        BitsAllocated=8, BitsStored=8, HighBit=7,
    )  # fmt: skip
    np.testing.assert_array_equal(decode_image(path), colour)
    report = pydicom.dcmread(frames)
    del report.PixelData, report.Rows
    report.Modality, report.SOPClassUID = "SR", "1.2.840.10008.5.1.4.1.1.88.11"  # Basic Text SR
    report.file_meta.MediaStorageSOPClassUID = report.SOPClassUID
    report.save_as(tmp_path / "report.dcm")
    with pytest.raises(ImageError, match=r"without an image \(SR\)"):
        decode_image(tmp_path / "report.dcm")
    (tmp_path / "text.dcm").write_text("no DICOM")
    with pytest.raises(ImageError, match="cannot be read"):
        decode_image(tmp_path / "text.dcm")


@pytest.mark.filterwarnings("ignore")  # Pillow and pydicom warn of odd tags; what counts is the answer
def test_damaged_files_never_crash_the_decoder(tmp_path: Path) -> None:
    whole = list(encode_all())
    for number, (data, ending) in enumerate(whole):
        (tmp_path / f"whole{number}.{ending}").write_bytes(data)
        assert decode_image(tmp_path / f"whole{number}.{ending}").shape[2] == 3
    number = 30 * len(whole)
    counts = {"read": 0, "named": 0}
    for data, ending in mutate(whole, number, seed=0):
        path = tmp_path / f"damaged.{ending}"
        path.write_bytes(data)
        try:
            image = decode_image(path)
            assert image.dtype == np.uint8
            assert image.shape[2] == 3
            counts["read"] += 1
        except ImageError as error:
            assert str(path) in error.problem  # noqa: PT017  (most of the files are read)
            counts["named"] += 1
    assert min(counts.values()) > number / 20
