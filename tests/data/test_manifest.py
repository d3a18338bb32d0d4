import zipfile
from pathlib import Path

import pytest

from convnext_cli.data.scan import scan_data
from convnext_cli.errors import DataError
from tests.conftest import save_image


def write(path: Path, text: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    return path


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for name in ("a", "b", "c", "d"):
        save_image(tmp_path / f"data/images/{name}.png")
    return tmp_path / "data"


def test_a_manifest_with_split_and_group(images: Path) -> None:
    text = (
        "path,label,split,patient_id\nimages/b.png,sick,Test,p2\nimages/a.png,well,training,p1\nimages/c.png,sick,,p2\n"
    )
    index = scan_data(write(images / "list.csv", text))
    assert index.root == images
    assert index.classes == ("sick", "well")
    assert index.paths == ("images/a.png", "images/b.png", "images/c.png")
    assert index.labels == (1, 0, 0)
    assert index.splits == ("train", "test", "")
    assert index.groups == ("p1", "p2", "p2")


def test_one_hot_labels_and_names_without_suffix(images: Path) -> None:
    text = "image;MEL;NV\nimages/a;1.0;0.0\nimages/b;0.0;1.0\n"
    index = scan_data(write(images / "truth.csv", text))
    assert index.paths == ("images/a.png", "images/b.png")
    assert [index.classes[label] for label in index.labels] == ["MEL", "NV"]


def test_absolute_paths_tabs_and_a_byte_order_mark(images: Path, tmp_path: Path) -> None:
    text = f"\ufefffile\tclass\n{images}/images/a.png\tx\n{images}/images/b.png\ty\n"
    index = scan_data(write(tmp_path / "elsewhere/list.tsv", text))
    assert all((index.root / path).is_file() for path in index.paths)


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("a,b\n1,2\n", "no column for the images' paths"),
        ("path,other\nimages/a.png,x\n", "no column for the labels"),
        ("path,label\nimages/a.png,\n", "no label in 1 rows: line 2"),
        ("path,label\nimages/a.png,x\nimages/z.png,y\n", r"does not exist in 1 rows: images/z\.png"),
        ("path,label,split\nimages/a.png,x,exam\n", "an unknown split in 1 rows"),
        ("path,label\nimages/a.png,x\nimages/a.png,y\n", "another label or split in 1 rows: line 3"),
        ("path,A,B\nimages/a.png,1,1\n", "not exactly one class in 1 rows"),
        ("path,label\n", "has no rows"),
    ],
)
def test_what_is_wrong_is_said_with_its_lines(images: Path, text: str, problem: str) -> None:
    with pytest.raises(DataError, match=problem):
        scan_data(write(images / "list.csv", text))


def test_a_zip_is_unpacked_once_beside_nothing(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    packed = tmp_path / "packed/set.zip"
    packed.parent.mkdir()
    with zipfile.ZipFile(packed, "w") as archive:
        for name in ("train/x/1.png", "test/x/2.png", "train/y/3.png", "__MACOSX/train/x/._1.png"):
            archive.write(images / "images/a.png", f"set/{name}" if "MAC" not in name else name)
    index = scan_data(packed)
    assert index.splits == ("test", "train", "train")
    assert index.classes == ("x", "y")
    assert list(packed.parent.iterdir()) == [packed]
    changed = (index.root / index.paths[0]).stat().st_mtime_ns
    assert scan_data(packed).root == index.root
    assert (index.root / index.paths[0]).stat().st_mtime_ns == changed


def test_a_manifest_in_a_zip(images: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(images / "images/a.png", "pictures/a.png")
        archive.writestr("list.csv", "path,label\npictures/a.png,x\n")
    assert scan_data(tmp_path / "set.zip").paths == ("pictures/a.png",)


def test_a_bad_zip_is_said(tmp_path: Path) -> None:
    write(tmp_path / "torn.zip", "PK no zip")
    with pytest.raises(DataError, match="cannot be unpacked"):
        scan_data(tmp_path / "torn.zip")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../evil.png", "x")
    with pytest.raises(DataError, match="a file outside of itself"):
        scan_data(tmp_path / "evil.zip")
