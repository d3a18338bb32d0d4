"""Text files that list the images of splits, as public data sets have them."""

from collections import Counter
from pathlib import Path

import pytest

from convnext_cli.data.folders.splits import find_split_lists, is_split_list
from convnext_cli.data.index import Index
from convnext_cli.data.sources import scan_data
from convnext_cli.errors import DataError
from tests.conftest import save_image

IMAGES = [f"images/{name}/{name}_{k}.png" for name in "ab" for k in range(4)]


@pytest.fixture
def root(tmp_path: Path) -> Path:
    for path in IMAGES:
        save_image(tmp_path / path)
    return tmp_path


def write(path: Path, *lines: str) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")
    return path


def read_splits(root: Path) -> list[str]:
    """Return the splits of `IMAGES`, by their first letters."""
    index = scan_data(root)
    assert [*index.paths] == IMAGES
    return [split[:2] for split in index.splits]


def find_notes(index: Index) -> list[str]:
    return [note for note in index.notes if "list" in note or "line" in note]


@pytest.mark.parametrize(
    "form",
    [
        "{folder}/{name}",  # Food-101
        "{folder}/{name}.png",  # DTD
        "{name}",
        "{name}.png",
        "/{folder}/{name}.png",  # SUN397
        "./images/{folder}/{name}.png",
        "/home/me/data/images/{folder}/{name}.png 1",
        "images\\{folder}\\{name}.png",
        "{folder}/{name}.png 0",  # Places365
        "{name} 1 2 3",  # Oxford-IIIT Pet
        "{name} a class of words",  # FGVC-Aircraft
        "{folder}/{name}.png,0",
    ],
)
def test_each_form_of_a_line(root: Path, form: str) -> None:
    lines = [form.format(folder=name[0], name=name) for name in (Path(path).stem for path in IMAGES)]
    write(root / "meta/train.txt", "# list", *lines[:2], "", *lines[4:6])
    write(root / "meta/val.txt", lines[2], lines[6])
    write(root / "meta/test.txt", lines[3], lines[7])
    assert read_splits(root) == ["tr", "tr", "va", "te"] * 2
    assert find_notes(scan_data(root)) == ["splits by lists: train.txt, val.txt, test.txt"]


@pytest.mark.parametrize("folder", ["", "annotations"])
def test_lists_beside_a_table_that_is_given_itself(root: Path, folder: str) -> None:
    table = write(root / "table.csv", "image,label", *(f"{Path(path).name},{k % 3}" for k, path in enumerate(IMAGES)))
    names = [Path(path).name for path in IMAGES]
    write(root / folder / "train_val_list.txt", *names[:6])
    write(root / folder / "test_list.txt", *names[6:])
    index = scan_data(table)
    assert Counter(index.splits) == {"train": 6, "test": 2}
    index = scan_data(write(table, "image,label,split", *(f"{name},{k % 3},train" for k, name in enumerate(names))))
    assert Counter(index.splits) == {"train": 8}
    note = "lists that are not used: test_list.txt, train_val_list.txt; the data have splits without them"
    assert find_notes(index) == [note]


def test_the_first_of_several_sets_is_used_and_the_others_are_named(root: Path) -> None:
    names = [f"{Path(path).parent.name}/{Path(path).name}" for path in IMAGES]
    for number in (1, 2, 10):
        write(root / f"labels/train{number}.txt", *names[number % 2 :: 2])
        write(root / f"labels/test{number}.txt", *names[1 - number % 2 :: 2])
    assert read_splits(root) == ["te", "tr"] * 4
    assert find_notes(scan_data(root)) == [
        "splits by lists: train1.txt, test1.txt",
        "lists that are not used: test10.txt, test2.txt, train10.txt, train2.txt; one set of lists is used",
    ]


@pytest.mark.parametrize(
    ("train", "test", "notes"),
    [
        ("a_0 a_1 b_0", "a_3 b_3", ["3 of 8 images are in no list, and can be training images"]),
        ("a_0 a_1 a_2 b_0 b_1 b_2 gone", "a_3 b_3", ["1 of 7 lines names no image in train.txt"]),
    ],
)
def test_images_and_lines_without_the_other_are_counted(root: Path, train: str, test: str, notes: list[str]) -> None:
    write(root / "train.txt", *train.split())
    write(root / "test.txt", *test.split())
    index = scan_data(root)
    assert index.splits.count("test") == 2
    assert find_notes(index) == ["splits by lists: train.txt, test.txt", *notes]


@pytest.mark.parametrize(
    ("train", "test", "reason"),
    [
        ("a_0 a_1 b_0 b_1", "a_1 a_3 b_3", "1 image is in several of train.txt, test.txt"),
        ("0 1 2", "3 4", "train.txt, test.txt do not name the images of these splits"),
        ("x_0 x_1 x_2 a_0", "x_3 x_4 a_1", "train.txt, test.txt do not name the images of these splits"),
        ("a_0 a_1 b_0 b_1", "", "train.txt, test.txt do not name the images of these splits"),
    ],
)
def test_lists_that_cannot_be_used_are_named_with_the_reason(root: Path, train: str, test: str, reason: str) -> None:
    write(root / "train.txt", *train.split())
    write(root / "test.txt", *test.split())
    assert read_splits(root) == [""] * 8
    assert find_notes(scan_data(root)) == [f"lists that are not used: test.txt, train.txt; {reason}"]


def test_a_name_in_several_folders_needs_its_folder(tmp_path: Path) -> None:
    for path in ("a/0.png", "a/1.png", "b/0.png", "b/1.png"):
        save_image(tmp_path / path)
    write(tmp_path / "train.txt", "0", "0")
    write(tmp_path / "test.txt", "1")
    assert set(scan_data(tmp_path).splits) == {""}
    write(tmp_path / "train.txt", "a/0", "b/0")
    write(tmp_path / "test.txt", "a/1", "b/1")
    assert scan_data(tmp_path).splits == ("train", "test") * 2


@pytest.mark.parametrize(
    ("names", "sets"),
    [
        ("trainval test list", ["trainval test"]),
        ("TrainImages TestImages", ["TrainImages TestImages"]),
        ("train val trainval test", ["train val test"]),
        ("train_validation_list test_list", ["train_validation_list test_list"]),
        ("Training_01 Testing_01 Training_02 Testing_02", ["Training_01 Testing_01", "Training_02 Testing_02"]),
        ("images_train images_test kind_train kind_test", ["images_train images_test", "kind_train kind_test"]),
        ("train_test_split trainer test", []),
    ],
)
def test_sets_of_lists_by_name(names: str, sets: list[str]) -> None:
    paths = [Path(f"{name}.txt") for name in names.split()]
    assert [" ".join(path.stem for path in files.values()) for files in find_split_lists(paths)] == sets
    assert [is_split_list(path.name) for path in paths] == [word not in ("list", "trainer") for word in names.split()]


def test_flags_of_numbered_images_are_splits(root: Path) -> None:
    """As in CUB-200 and NABirds: 1 marks a training image."""
    write(root / "images.txt", *(f"{k} {path.removeprefix('images/')}" for k, path in enumerate(IMAGES, 1)))
    write(root / "train_test_split.txt", *(f"{k} {k % 2}" for k in range(1, 9)))
    assert read_splits(root) == ["tr", "te"] * 4
    assert find_notes(scan_data(root)) == ["splits by lists: train_test_split.txt"]
    write(root / "train_test_split.txt", "damaged", "9 1")
    [note] = find_notes(scan_data(root))
    assert note == (
        "lists that are not used: train_test_split.txt; train_test_split.txt do not name the images of these splits"
    )


def test_numbers_of_splits_are_no_classes(root: Path) -> None:
    """As in CelebA."""
    path = write(
        root / "list_eval_partition.txt", *(f"{name.rpartition('/')[2]} {k % 3}" for k, name in enumerate(IMAGES))
    )
    assert read_splits(root) == ["tr", "va", "te"] * 2 + ["tr", "va"]
    with pytest.raises(DataError, match="has the splits of images, not their classes"):
        scan_data(path)
    write(path, "a_0.png cat", "a_1.png dog")
    assert scan_data(path).classes == ("cat", "dog")
