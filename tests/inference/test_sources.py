from pathlib import Path
from typing import Any

import numpy as np
import pytest
import tifffile
from numpy.typing import NDArray
from PIL import Image

from convnext_cli import predict
from convnext_cli.errors import UsageError
from convnext_cli.images.decode import decode_image
from convnext_cli.inference.sources import ARRAY_REMEDY, list_sources
from convnext_cli.runs.folder import RunFolder
from tests.conftest import draw_picture

NOISE = np.random.default_rng(0).integers(0, 256, (20, 30, 4), dtype=np.uint8)


def make_picture(mode: str) -> Image.Image:
    """Return a picture of 30 x 20 pixels in that mode; its transparent pixels have colours."""
    picture = Image.fromarray(NOISE)
    if mode == "I;16":
        return Image.fromarray((NOISE[..., 0].astype(np.uint16) << 4) + NOISE[..., 1])
    if mode == "I":
        return Image.fromarray(NOISE[..., 0].astype(np.int32) * 200)
    if mode == "F":
        return Image.fromarray(NOISE[..., 0].astype(np.float32) / 7)
    if mode == "P":  # with a transparent colour
        picture = picture.convert("RGB").quantize(16)
        picture.info["transparency"] = 3
        return picture
    return picture.convert("RGB").convert(mode) if mode in ("1", "CMYK", "L") else picture.convert(mode)


@pytest.mark.parametrize(
    ("mode", "suffix"),
    [(mode, ".png") for mode in ("1", "L", "LA", "P", "RGB", "RGBA", "I;16")]
    + [("CMYK", ".tif"), ("F", ".tif"), ("I", ".tif")],
)
@pytest.mark.parametrize("opened", [False, True])
def test_pil_image_gives_the_pixels_of_its_lossless_file(mode: str, suffix: str, opened: bool, tmp_path: Path) -> None:
    picture, path = make_picture(mode), tmp_path / f"a{suffix}"
    picture.save(path)
    expected = decode_image(path)
    if opened:
        picture = Image.open(path)
    before = picture.tobytes() if not opened else None
    info = dict(picture.info)
    [source] = list_sources(picture)
    assert np.array_equal(source.read()[0], expected)
    assert np.array_equal(source.read()[0], expected), "and once more"
    assert before is None or (picture.tobytes(), picture.info) == (before, info)
    picture.close()


@pytest.mark.parametrize("photometric", ["rgb", "miniswhite"])
def test_opened_image_of_16_bits_gives_the_pixels_of_its_file(photometric: str, tmp_path: Path) -> None:
    values = (NOISE[..., :3] if photometric == "rgb" else NOISE[..., 0]).astype(np.uint16) * 100
    tifffile.imwrite(tmp_path / "a.tif", values, photometric=photometric)
    with Image.open(tmp_path / "a.tif") as picture:
        assert np.array_equal(list_sources(picture)[0].read()[0], decode_image(tmp_path / "a.tif"))
        assert picture.size == picture.copy().size == (30, 20), "it can still be loaded"


def test_chosen_frame_of_an_opened_image_is_read(tmp_path: Path) -> None:
    frames = [draw_picture(seed) for seed in range(2)]
    frames[0].save(tmp_path / "a.tif", save_all=True, append_images=frames[1:])
    with Image.open(tmp_path / "a.tif") as picture:
        picture.seek(1)
        assert np.array_equal(list_sources(picture)[0].read()[0], np.asarray(frames[1].convert("RGB")))


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_pil_image_is_turned_upright_like_its_file(suffix: str, orientation: int, tmp_path: Path) -> None:
    exif = Image.Exif()
    exif[0x0112] = orientation
    path = tmp_path / f"a{suffix}"
    draw_picture(1).save(path, exif=exif)
    with Image.open(path) as picture:
        size = picture.size
        assert np.array_equal(list_sources(picture)[0].read()[0], decode_image(path))
        assert picture.size == size or suffix == ".tif", "Pillow itself turns TIFF files"


def test_truncated_image_is_one_failed_prediction(run: RunFolder, tmp_path: Path) -> None:
    draw_picture(1).save(tmp_path / "a.png")
    (tmp_path / "b.png").write_bytes((tmp_path / "a.png").read_bytes()[:3000])
    with Image.open(tmp_path / "b.png") as torn:
        good, bad = predict([draw_picture(1), torn], run.path)
    assert good.error is None
    assert str(bad.error).startswith("images[1] cannot be read as an image")
    assert (bad.path, bad.index) == (None, 1)


def test_paths_images_and_arrays_can_be_mixed(run: RunFolder, digits: Path, tmp_path: Path) -> None:
    paths = sorted(digits.glob("*/*.png"))[::60]
    grey = [np.asarray(Image.open(path)) for path in paths]
    colour = np.stack([np.repeat(values[..., None], 3, axis=2) for values in grey])
    expected = [p.probabilities for p in predict(paths, run.path)]
    assert len(set(expected)) == len(paths) == 5
    mixed = predict([paths[0], Image.open(paths[1]), grey[2], str(paths[3]), colour, colour[4]], run.path)
    order = [0, 1, 2, 3, 0, 1, 2, 3, 4, 4]
    assert np.allclose([p.probabilities for p in mixed], [expected[k] for k in order], atol=1e-6)
    assert [p.index for p in mixed] == [0, 1, 2, 3, 4, 4, 4, 4, 4, 5]
    assert [p.item for p in mixed] == [None] * 4 + [0, 1, 2, 3, 4, None]
    assert [p.path for p in mixed] == [paths[0], None, None, paths[3], *[None] * 6]
    for alone in (Image.open(paths[0]), grey[0], colour[0], colour[:1], np.array([str(paths[0])])):
        [only] = predict(alone, run.path)
        assert only.probabilities == pytest.approx(expected[0], abs=1e-6)
    assert predict([], run.path) == predict(colour[:0], run.path) == []
    view = np.asfortranarray(colour[0][:, ::-1])
    view.flags.writeable = False
    Image.fromarray(np.ascontiguousarray(view)).save(tmp_path / "view.png")
    assert predict(view, run.path)[0].probabilities == predict(tmp_path / "view.png", run.path)[0].probabilities


def test_images_in_memory_get_heat_maps(run: RunFolder, tmp_path: Path) -> None:
    predictions = predict([draw_picture(1), np.asarray(draw_picture(2))], run.path, explain=tmp_path / "heat")
    assert [p.explanation and p.explanation.name for p in predictions] == ["00001-image.png", "00002-image.png"]
    assert all(p.explanation and p.explanation.exists() for p in predictions)


@pytest.mark.parametrize(
    "array",
    [
        np.zeros((8, 8, 3), np.float32),
        np.zeros((8, 8), np.uint16),
        np.zeros((8, 8), bool),
        np.zeros((8, 8, 4), np.uint8),
        np.zeros((8, 8, 1), np.uint8),
        np.zeros((3, 8, 8), np.uint8),
        np.zeros((2, 3, 8, 8), np.uint8),
        np.zeros((1, 2, 8, 8, 3), np.uint8),
        np.zeros((0, 8), np.uint8),
        np.zeros((8, 0, 3), np.uint8),
        np.zeros((2, 0, 8, 3), np.uint8),
        np.zeros(8, np.uint8),
        np.array(3, np.uint8),
    ],
)
def test_invalid_array_raises_an_error(array: NDArray[Any], run: RunFolder) -> None:
    cases: list[tuple[Any, int]] = [(array, 0), (["a.png", array], 1)]
    for images, place in cases:
        with pytest.raises(UsageError) as caught:
            predict(images, run.path)
        assert str(caught.value) == (
            f"images[{place}] is an array of {np.asarray(array).dtype} and shape {array.shape}. {ARRAY_REMEDY}."
        )


class BytesPath:
    """As `os.scandir` of a folder whose path is bytes gives."""

    def __fspath__(self) -> bytes:
        return b"a.png"


@pytest.mark.parametrize(
    ("value", "name"),
    [
        (5, "int"), (None, "NoneType"), (b"\x89PNG", "bytes"), ([["a.png"]], "list"), ([1.5], "float"),
        ([BytesPath()], "BytesPath"),
    ],
)  # fmt: skip
def test_invalid_input_type_raises_an_error(value: Any, name: str, run: RunFolder) -> None:
    with pytest.raises(UsageError, match=rf"images\[0\] is of type {name}. Give a path, a PIL image or a NumPy"):
        predict(value, run.path)
    with pytest.raises(UsageError, match=r"images\[0\] is an image of 0 x 5 pixels"):
        predict(Image.new("RGB", (0, 5)), run.path)


def test_folder_gives_each_image_below_it(run: RunFolder, tmp_path: Path) -> None:
    for seed, name in enumerate(("b/2.png", "b/1.png", "a.png")):
        (tmp_path / "images" / name).parent.mkdir(parents=True, exist_ok=True)
        draw_picture(seed).save(tmp_path / "images" / name)
    (tmp_path / "images/notes.txt").write_text("no image")
    (tmp_path / "empty").mkdir()
    predictions = predict([tmp_path / "empty", str(tmp_path / "images")], run.path)
    assert [(p.index, p.item, p.path and p.path.name) for p in predictions] == [
        (0, 0, "empty"), (1, 0, "a.png"), (1, 1, "1.png"), (1, 2, "2.png"),
    ]  # fmt: skip
    assert str(predictions[0].error).startswith(f"no images in {tmp_path / 'empty'}")
    one_by_one = [predict(p.path, run.path)[0].probabilities for p in predictions[1:] if p.path]
    assert np.array([p.probabilities for p in predictions[1:]]) == pytest.approx(np.array(one_by_one), abs=1e-6)
    assert len(predict(tmp_path / "images", run.path)) == 3
