from dataclasses import replace
from pathlib import Path

import pytest

from convnext_cli.data.dataset import DatasetRequest, read_index
from convnext_cli.data.index import check_trainable, describe_skipped
from convnext_cli.data.patterns import NUMBERED
from convnext_cli.data.scan import scan_folder
from convnext_cli.data.sources import scan_data
from convnext_cli.errors import DataError, UsageError
from convnext_cli.tasks.reading import TableOptions
from tests.conftest import save_image


def test_class_folders_at_any_depth(tmp_path: Path) -> None:
    save_image(tmp_path / "data/NORMAL/p001/a.png")
    save_image(tmp_path / "data/NORMAL/p002/series/b.JPG")
    save_image(tmp_path / "data/SICK/c.jpeg")
    index = scan_folder(tmp_path / "data")
    assert index.classes == ("NORMAL", "SICK")
    assert index.paths == ("NORMAL/p001/a.png", "NORMAL/p002/series/b.JPG", "SICK/c.jpeg")
    assert index.labels == (0, 0, 1)
    assert index.splits == ("", "", "")


def test_split_folders_in_any_spelling(tmp_path: Path) -> None:
    for path in ("Training/a/1.png", "Training/b/2.png", "VALID/a/3.png", "testing/b/4.png"):
        save_image(tmp_path / "data" / path)
    index = scan_folder(tmp_path / "data")
    assert dict(zip(index.paths, index.splits, strict=True)) == {
        "Training/a/1.png": "train",
        "Training/b/2.png": "train",
        "VALID/a/3.png": "val",
        "testing/b/4.png": "test",
    }
    assert index.count_classes("val") == [1, 0]


def test_class_named_test_is_a_class(tmp_path: Path) -> None:
    save_image(tmp_path / "data/test/1.png")
    save_image(tmp_path / "data/exam/2.png")
    assert scan_folder(tmp_path / "data").classes == ("exam", "test")


@pytest.mark.parametrize(
    ("reason", "one", "two"),
    [
        ("hidden or system file", "1 hidden or system file", "2 hidden or system files"),
        ("image outside any class folder", "1 image outside any class folder", "2 images outside any class folder"),
        ("not an image", "1 not an image", "2 not images"),
        ("row that repeats a file", "1 row that repeats a file", "2 rows that repeat a file"),
        (
            "mask of an image, by its name (as a_mask.png)",
            "1 mask of an image, by its name (as a_mask.png)",
            "2 masks of images, by their name (as a_mask.png)",
        ),
    ],
)
def test_skipped_files_are_described_by_their_number(reason: str, one: str, two: str) -> None:
    assert describe_skipped({reason: 1}) == one
    assert describe_skipped({"excluded image": 3, reason: 2}) == f"3 excluded images, {two}"


def test_other_files_are_skipped_and_counted(tmp_path: Path) -> None:
    save_image(tmp_path / "data/a/1.png")
    save_image(tmp_path / "data/b/2.png")
    save_image(tmp_path / "data/a/.hidden.png")
    save_image(tmp_path / "data/.ipynb_checkpoints/1.png")
    save_image(tmp_path / "data/__MACOSX/a/1.png")
    save_image(tmp_path / "data/a/@eaDir/1.png/SYNOPHOTO_THUMB_M.jpg")
    save_image(tmp_path / "data/#recycle/1.png")
    save_image(tmp_path / "data/loose.png")
    (tmp_path / "data/a/Thumbs.db").touch()
    (tmp_path / "data/notes.txt").touch()
    index = scan_folder(tmp_path / "data")
    assert len(index) == 2
    assert index.skipped == {
        "hidden or system file": 6,
        "image outside any class folder": 1,
        "not an image": 1,
    }


def test_loop_of_links_ends(tmp_path: Path) -> None:
    save_image(tmp_path / "data/a/1.png")
    save_image(tmp_path / "data/b/2.png")
    (tmp_path / "data/a/loop").symlink_to(tmp_path / "data")
    index = scan_folder(tmp_path / "data")
    assert set(index.classes) == {"a", "b"}


def test_unusual_file_names_are_indexed(tmp_path: Path) -> None:
    for name in ("a\nb.png", "naïve 😀.png", "quote'\".png"):
        save_image(tmp_path / "data/ü" / name)
    odd = bytes(tmp_path / "data/ü") + b"/\xff\xfe.png"
    Path(odd.decode("utf-8", "surrogateescape")).write_bytes((tmp_path / "data/ü/quote'\".png").read_bytes())
    index = scan_folder(tmp_path / "data")
    assert len(index) == 4
    assert all((index.root / path).is_file() for path in index.paths)


def test_bad_folders_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="does not exist"):
        scan_folder(tmp_path / "nowhere")
    (tmp_path / "file").touch()
    with pytest.raises(DataError, match="is a file"):
        scan_folder(tmp_path / "file")
    (tmp_path / "empty/a").mkdir(parents=True)
    with pytest.raises(DataError, match="no images"):
        scan_folder(tmp_path / "empty")


NAMES = ("cat.0.jpg", "cat.1.jpg", "american_dog_2.jpg", "american_dog_10.jpg", "notes.jpg")


def test_classes_by_a_pattern_in_the_path(tmp_path: Path) -> None:
    for split in ("training_set", "test"):
        for name in NAMES:
            save_image(tmp_path / split / name)
    index = scan_data(tmp_path, table_options=TableOptions(label_from=NUMBERED))
    assert index.classes == ("american_dog", "cat")
    assert index.paths[0] == "test/american_dog_10.jpg"
    assert index.labels == (0, 0, 1, 1) * 2
    assert index.splits == ("test",) * 4 + ("train",) * 4
    assert index.skipped == {"images without a match of --label-from": 2}
    index = scan_data(tmp_path, exclude="test", table_options=TableOptions(label_from="cat|dog|notes"))
    assert index.classes == ("cat", "dog", "notes")
    numbers = TableOptions(label_from=r"(\d+)\.jpg", task="regression")
    assert scan_data(tmp_path, table_options=numbers).values == ((10.0,), (2.0,), (0.0,), (1.0,)) * 2


def test_table_beside_adds_groups_and_splits_to_a_pattern(tmp_path: Path) -> None:
    for name in NAMES[:4]:
        save_image(tmp_path / name)
    rows = "\n".join(f"{name},p{k % 2},{'train' if k % 2 else 'test'}" for k, name in enumerate(NAMES[:4]))
    (tmp_path / "meta.csv").write_text(f"file,patient,split\n{rows}\n")
    (tmp_path / "prices.csv").write_text("dollars\n1\n")
    index = scan_data(tmp_path, table_options=TableOptions(label_from="cat|dog"))
    assert dict(zip(index.paths, zip(index.groups, index.splits, strict=True), strict=True)) == {
        name: (f"p{k % 2}", "train" if k % 2 else "test") for k, name in enumerate(NAMES[:4])
    }
    assert "tables that are not used: prices.csv" in index.notes


def test_pattern_has_no_effect_on_a_table(tmp_path: Path) -> None:
    for name in NAMES:
        save_image(tmp_path / name)
    (tmp_path / "table.csv").write_text("path,label\ncat.0.jpg,x\ncat.1.jpg,y\n")
    request = DatasetRequest(data=tmp_path / "table.csv", label_from="cat|dog", chosen=("label_from",))
    with pytest.raises(UsageError, match=r"--label-from has no effect: .*table\.csv is read from a table"):
        read_index(request)
    assert len(read_index(replace(request, data=tmp_path))) == 4  # of a folder, it decides
    request = replace(request, data=tmp_path, unlabelled=True, chosen=("label_from", "unlabelled"))
    with pytest.raises(UsageError, match="--label-from has no effect with --unlabelled"):
        read_index(request)


def test_classes_by_a_pattern_have_the_splits_of_lists(tmp_path: Path) -> None:
    for name in NAMES[:4]:
        save_image(tmp_path / "images" / name)
    (tmp_path / "trainval.txt").write_text("cat.0 1 1\namerican_dog_2 2 1\n")
    (tmp_path / "test.txt").write_text("cat.1 1 1\namerican_dog_10 2 1\n")
    index = scan_data(tmp_path, table_options=TableOptions(label_from=NUMBERED))
    assert index.splits == ("test", "train", "train", "test")


@pytest.mark.parametrize(
    ("pattern", "problem"),
    [
        ("(", r"is not a regular expression .*Try --label-from"),
        ("horse", r"'horse' matches no path, such as american_dog_10\.jpg\. Correct --label-from"),
        ("dog", "'dog' gives one class only, 'dog', as of american_dog_10"),
    ],
)
def test_pattern_that_gives_no_two_classes_is_refused(tmp_path: Path, pattern: str, problem: str) -> None:
    for name in NAMES:
        save_image(tmp_path / name)
    with pytest.raises(UsageError, match=problem):
        scan_data(tmp_path, table_options=TableOptions(label_from=pattern))


def test_numbered_words_as_file_names_have_a_ready_remedy(tmp_path: Path) -> None:
    for number in range(5):
        for name in ("cat", "big dog"):
            save_image(tmp_path / f"data/{name}_{number}.jpg")
            save_image(tmp_path / f"photos/IMG_{number}.jpg")
            save_image(tmp_path / f"numbers/{len(name)}0{number}.jpg")
    with pytest.raises(DataError) as caught:
        scan_data(tmp_path / "data")
    assert f"--label-from '{NUMBERED}' if the file names have the class" in str(caught.value)
    for name in ("photos", "numbers"):
        with pytest.raises(DataError) as caught:
            scan_data(tmp_path / name)
        assert "--label-from" not in str(caught.value)


def test_untrainable_index_is_refused(tmp_path: Path) -> None:
    save_image(tmp_path / "one/a/1.png")
    with pytest.raises(DataError, match="one class only"):
        check_trainable(scan_folder(tmp_path / "one"))
    for name in "bc":
        (tmp_path / "one" / name).mkdir()
    with pytest.raises(DataError, match=r"more classes \(3\) than images \(1\)"):
        check_trainable(scan_folder(tmp_path / "one"))
    for i in range(5):
        save_image(tmp_path / f"one/b/{i}.png")
    with pytest.raises(DataError, match="1 of 3 classes has no images: c"):
        check_trainable(scan_folder(tmp_path / "one"))
    save_image(tmp_path / "two/train/a/1.png")
    save_image(tmp_path / "two/test/b/1.png")
    with pytest.raises(DataError, match="no training images: b"):
        check_trainable(scan_folder(tmp_path / "two"))


def test_chest_x_rays_index(shared_data: Path) -> None:
    index = scan_folder(shared_data / "cxr3")
    assert index.classes == ("BACTERIA", "NORMAL", "VIRUS")
    assert (len(index), index.count_classes("val")) == (5856, [8, 8, 0])
    assert (len(index.rows("train")), len(index.rows("test"))) == (5216, 624)


def test_folders_beside_the_splits_are_counted(tmp_path: Path) -> None:
    for path in ("train/a/1.png", "train/b/2.png", "test/a/3.png", "vall/a/4.png"):
        save_image(tmp_path / "data" / path)
    assert scan_folder(tmp_path / "data").skipped == {"folder beside train, val and test ('vall')": 1}


def test_address_is_not_called_a_missing_folder() -> None:
    with pytest.raises(DataError, match=r"https://example\.org/a\.zip is an address, and data are not downloaded"):
        scan_folder(Path("https://example.org/a.zip"))
