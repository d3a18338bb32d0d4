import io
import os
import socket
from pathlib import Path

import pytest
from PIL import Image

from convnext_cli.data.inputs import Inputs, find_inputs, read_list
from convnext_cli.errors import DataError, ImageError
from tests.conftest import save_image

FORMATS = {
    ".jfif": "JPEG", ".jpe": "JPEG", ".avif": "AVIF", ".jp2": "JPEG2000", ".pnm": "PPM", ".pbm": "PPM", ".webp": "WEBP",
    ".qoi": None, "": "PNG", ".scan": "TIFF", ".42": "GIF",
}  # fmt: skip


def names(inputs: Inputs) -> list[str]:
    return [path.name for path in inputs.paths]


def test_folder_yields_images_by_suffix_or_content(tmp_path: Path) -> None:
    for at, (suffix, format) in enumerate(FORMATS.items()):
        if format is not None:
            Image.new("RGB", (8, 8), (at, 0, 0)).save(tmp_path / f"x{at:02}{suffix}", format=format)
    (tmp_path / "notes.txt").write_text("no image")
    (tmp_path / "phone").write_bytes(b"\xff\x0a\xfa\x7f" + bytes(40))
    (tmp_path / ".hidden.png").touch()
    inputs = find_inputs([str(tmp_path)])
    assert names(inputs) == sorted(f"x{at:02}{suffix}" for at, (suffix, kind) in enumerate(FORMATS.items()) if kind)
    assert inputs.skipped == {
        "image in a format that cannot be read (JPEG XL)": 1,
        "hidden or system file": 1,
        "not an image": 1,
    }


def test_special_files_are_listed_and_do_not_stop_the_walk(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    os.mkfifo(tmp_path / "b-pipe.png")
    (tmp_path / "c-self.png").symlink_to("c-self.png")
    (tmp_path / "d-broken.png").symlink_to("nowhere")
    (tmp_path / "e-device.png").symlink_to("/dev/zero")
    (tmp_path / "f-pipe").symlink_to("b-pipe.png")
    (tmp_path / "loop").symlink_to(tmp_path)
    with socket.socket(socket.AF_UNIX) as some:
        os.chdir(tmp_path)
        some.bind("g-socket.png")
        inputs = find_inputs([str(tmp_path)])
    assert names(inputs) == ["a.png", "b-pipe.png", "c-self.png", "d-broken.png", "e-device.png", "g-socket.png"]
    assert inputs.skipped == {"not an image": 1}


def test_archive_is_told_from_an_image(tmp_path: Path) -> None:
    (tmp_path / "my images.zip").write_bytes(b"PK\3\4")
    with pytest.raises(ImageError, match=r"my images\.zip is packed, not an image") as caught:
        find_inputs([str(tmp_path / "my images.zip")])
    assert caught.value.remedy == f"Run: unzip '{tmp_path}/my images.zip', and give the images or their folder"
    inputs = find_inputs([str(tmp_path / "my images.zip"), str(save_image(tmp_path / "a.png"))])
    assert (names(inputs), len(inputs.errors)) == (["a.png"], 1)


def test_table_is_told_from_an_image(tmp_path: Path) -> None:
    (tmp_path / "test.csv").write_text("id\na.png\n")
    with pytest.raises(ImageError, match=r"test\.csv is a list or a table, not an image") as caught:
        find_inputs([str(tmp_path / "test.csv")])
    assert "predict - < LIST" in caught.value.remedy
    inputs = find_inputs([str(tmp_path / "test.csv"), str(save_image(tmp_path / "a.png"))])
    assert (names(inputs), len(inputs.errors)) == (["a.png"], 1)


def test_bad_list_entry_is_named_and_the_others_remain(tmp_path: Path) -> None:
    first, last = save_image(tmp_path / "a.png"), save_image(tmp_path / "z.png")
    (tmp_path / "empty").mkdir()
    save_image(tmp_path / "full/m.png")
    long = "x" * 5000 + ".png"
    words = [str(first), str(tmp_path / "empty"), "", "nowhere.png", long, str(tmp_path / "full"), "no*.png", str(last)]
    inputs = find_inputs(words)
    assert names(inputs) == ["a.png", "nowhere.png", long, "m.png", "no*.png", "z.png"]
    [(path, error)] = inputs.errors
    assert path == tmp_path / "empty"
    assert "no images in" in error.problem


@pytest.mark.skipif(os.geteuid() == 0, reason="nothing is unreadable for root")
def test_unreadable_folder_is_named(tmp_path: Path) -> None:
    save_image(tmp_path / "a.png")
    (tmp_path / "locked").mkdir(mode=0)
    inputs = find_inputs([str(tmp_path)])
    assert names(inputs) == ["a.png"]
    [(path, error)] = inputs.errors
    assert path == tmp_path / "locked"
    assert "cannot be read" in error.problem


def test_image_in_a_folder_that_may_not_be_entered_is_not_called_missing(tmp_path: Path) -> None:
    (tmp_path / "locked").mkdir(mode=0)
    user = os.geteuid()
    os.seteuid(user or 65534)  # root may enter every folder
    try:
        with pytest.raises(ImageError, match=r"a.png cannot be read \(Permission denied\)"):
            find_inputs([str(tmp_path / "locked/deep/a.png")])
    finally:
        os.seteuid(user)


def test_failing_folder_is_named(tmp_path: Path) -> None:
    deep = save_image(tmp_path / "a.png").parent
    for _ in range(18):  # each name is short enough, the path to the last is not
        os.chdir(deep)
        deep = Path("d" * 250)
        deep.mkdir()
    inputs = find_inputs([str(tmp_path)])
    assert names(inputs) == ["a.png"]
    [(_, error)] = inputs.errors
    assert "File name too long" in error.problem


def test_patterns_are_expanded(tmp_path: Path) -> None:
    save_image(tmp_path / "a/1.png")
    save_image(tmp_path / "a/deep/2.png")
    save_image(tmp_path / "a/[3].png")
    assert names(find_inputs([str(tmp_path / "a/*")])) == ["1.png", "[3].png", "2.png"]
    assert names(find_inputs([str(tmp_path / "**/*")])) == ["1.png", "[3].png", "2.png"]
    assert names(find_inputs([str(tmp_path / "a/[3].png")])) == ["[3].png"]


def test_only_missing_files_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match=r"nowhere\.png, none\.png does not exist"):
        find_inputs(["nowhere.png", "none.png"])
    with pytest.raises(ImageError, match=r"no file matches no\*\.png"):
        find_inputs(["no*.png"])
    with pytest.raises(ImageError, match="no images given"):
        find_inputs([])
    (tmp_path / "empty").mkdir()
    with pytest.raises(ImageError, match="no images in"):
        find_inputs([str(tmp_path / "empty")])


@pytest.mark.parametrize("encoding", ["utf-8", "utf-8-sig", "utf-16", "utf-16-le", "utf-16-be", "utf-32"])
def test_list_in_any_unicode_encoding_is_read(encoding: str) -> None:
    text = "a b.png\r\n\r\nMüll/開発.png\nline\u2028sep.png"
    assert list(read_list(io.BytesIO(text.encode(encoding)))) == ["a b.png", "Müll/開発.png", "line\u2028sep.png"]


def test_list_keeps_names_that_are_not_text() -> None:
    assert list(map(os.fsencode, read_list(io.BytesIO(b"\xff\xfea.png"[2:] + b"\n\xe9\x85.png\n")))) == [
        b"a.png",
        b"\xe9\x85.png",
    ]


def test_list_of_find_print0_is_read(tmp_path: Path) -> None:
    os.chdir(tmp_path)
    save_image(tmp_path / "BM 1.png")  # BMP's first bytes
    for end in (b"", b"\0"):
        assert list(map(os.fsencode, read_list(io.BytesIO(b"BM 1.png\0./two\nlines.png\0./\xe9.png" + end)))) == [
            b"BM 1.png", b"./two\nlines.png", b"./\xe9.png",
        ]  # fmt: skip


LINES = {
    "quotes": '"{0}/Ünï x.png"',
    "address": "file://{0}/%C3%9Cn%C3%AF%20x.png",
    "backslash": "{0}\\Ünï x.png",
    "Windows-1252": "{0}/\udcdcn\udcef x.png",
}


@pytest.mark.parametrize("kind", LINES)
def test_path_as_another_program_writes_it_is_found(kind: str, tmp_path: Path) -> None:
    line = LINES[kind].format(tmp_path)
    (tmp_path / "Ünï x.png").touch()
    assert find_inputs([line]).paths == (tmp_path / "Ünï x.png",)
    (tmp_path / "Ünï x.png").unlink()
    with pytest.raises(ImageError):
        find_inputs([line])


@pytest.mark.parametrize("format", ["PNG", "JPEG", "PPM", "GIF", "TIFF", "WEBP", "BMP"])
def test_image_instead_of_a_list_is_refused(format: str, tmp_path: Path) -> None:
    Image.new("RGB", (20, 20), (70, 80, 90)).save(tmp_path / "x", format=format)
    with pytest.raises(DataError, match=rf"standard input is an image \({format}\)"):
        list(read_list(io.BytesIO((tmp_path / "x").read_bytes())))


def test_other_data_instead_of_a_list_is_refused() -> None:
    with pytest.raises(DataError, match="zero bytes"):
        list(read_list(io.BytesIO(b"a.png\nb\0\0\0c.png\n")))


def test_list_whose_first_name_looks_like_an_image_is_read(tmp_path: Path) -> None:
    os.chdir(tmp_path)
    save_image(tmp_path / "P5 1.png")
    assert list(read_list(io.BytesIO(b"P5 1.png\n"))) == ["P5 1.png"]
