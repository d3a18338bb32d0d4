import errno
import os
import re
import shlex
import unicodedata
import zipfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
import pytest

from convnext_cli.data.attributes import read_attributes
from convnext_cli.data.groups import group_index
from convnext_cli.data.index import find_alike
from convnext_cli.data.manifest import read_split_manifests
from convnext_cli.data.sources import scan_data
from convnext_cli.data.split import Folds, choose_fold, split_index
from convnext_cli.data.tables.table import read_table
from convnext_cli.errors import DataError, UsageError
from convnext_cli.progress import finish
from convnext_cli.tasks.multilabel import Multilabel
from convnext_cli.tasks.reading import AUTO_OPTIONS, Table, TableOptions, parse_flag, parse_numbers
from convnext_cli.tasks.registry import read_columns
from convnext_cli.tasks.regression import Regression
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


def test_manifest_with_split_and_group(images: Path) -> None:
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


def test_the_work_of_reading_labels_grows_with_the_cells_only(images: Path) -> None:
    comparisons = 0

    class Name(str):
        __slots__ = ()
        __hash__ = str.__hash__

        def __ne__(self, other: object) -> bool:
            nonlocal comparisons
            comparisons += 1
            return str.__ne__(self, other)

    def count(rows: int, columns: int) -> tuple[int, int]:
        nonlocal comparisons
        comparisons = 0
        parse_flag.cache_clear()
        cells: dict[str, list[str]] = {
            Name(f"l{at}"): ["01"[(row + at) % 7 < 3] for row in range(rows)] for at in range(columns)
        }
        table = Table(path=images, columns=cells, lines=list(range(rows)), encoding="utf-8")
        targets = read_columns(table, list(cells), AUTO_OPTIONS)
        assert targets.task == Multilabel()
        return parse_flag.cache_info().misses, comparisons

    assert count(14, 7) == count(140, 70)


def test_absolute_paths_tabs_and_a_byte_order_mark(images: Path, tmp_path: Path) -> None:
    text = f"\ufefffile\tclass\n{images}/images/a.png\tx\n{images}/images/b.png\ty\n"
    index = scan_data(write(tmp_path / "elsewhere/list.tsv", text))
    assert all((index.root / path).is_file() for path in index.paths)


def test_zip_is_unpacked_once_into_the_cache(images: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
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


def test_manifest_in_a_zip(images: Path, tmp_path: Path) -> None:
    with zipfile.ZipFile(tmp_path / "set.zip", "w") as archive:
        archive.write(images / "images/a.png", "pictures/a.png")
        archive.writestr("list.csv", "path,label\npictures/a.png,x\n")
    assert scan_data(tmp_path / "set.zip").paths == ("pictures/a.png",)


def test_bad_zip_is_refused(tmp_path: Path) -> None:
    write(tmp_path / "torn.zip", "PK no zip")
    with pytest.raises(DataError, match="cannot be unpacked"):
        scan_data(tmp_path / "torn.zip")
    with zipfile.ZipFile(tmp_path / "evil.zip", "w") as archive:
        archive.writestr("../../evil.png", "x")
    with pytest.raises(DataError, match="a file outside of itself"):
        scan_data(tmp_path / "evil.zip")


def rows(*cells: str, number: int = 4, head: str = "path,label") -> str:
    """Return a table with a row for each of the images a to d, with `cells` in turn."""
    lines = [f"images/{'abcd'[k % 4]}.png,{cells[k % len(cells)]}" for k in range(number)]
    return "\n".join([head, *lines]) + "\n"


# text of a table, its classes, and words of its notes
READ = {
    "doubled quotation marks": (
        rows("heart", '"lung, ""upper"", left"', '"lung, ""upper"", right"'),
        ["heart", 'lung, "upper", left', 'lung, "upper", right'],
        [],
    ),
    "backslashes before the ends of cells": (
        'path,label,folder\nimages/a.png,x,"C:\\data\\"\nimages/b.png,y,"C:\\data\\"\n',
        ["x", "y"],
        ["not used: folder"],
    ),
    "semicolons with commas inside": ("path;label\nimages/a.png;x, y\nimages/b.png;z, y\n", ["x, y", "z, y"], []),
    "tabs": ("path\tlabel\nimages/a.png\tx;1\nimages/b.png\ty;2\n", ["x;1", "y;2"], []),
    "Excel's line for the delimiter": ("sep=;\r\npath;label\r\nimages/a.png;x\r\nimages/b.png;y\r\n", ["x", "y"], []),
    "pipes": ("path|label\nimages/a.png|x\nimages/b.png|y\n", ["x", "y"], []),
    "blanks behind the commas": ('path, label\nimages/a.png, "x, 1"\nimages/b.png, y\n', ["x, 1", "y"], []),
    "Windows' line ends": (rows("x", "y").replace("\n", "\r\n"), ["x", "y"], []),
    "line ends inside a cell": (
        'path,label,note\nimages/a.png,x,"two\nlines"\nimages/b.png,y,\n',
        ["x", "y"],
        ["columns that are not used: note"],
    ),
    "R's row names": ("path\tlabel\n1\timages/a.png\tx\n2\timages/b.png\ty\n", ["x", "y"], []),
    "empty columns and rows of a spreadsheet": (
        "path,label,,\r\nimages/a.png,x,,\r\nimages/b.png,y,,\r\n,,,\r\n",
        ["x", "y"],
        [],
    ),
    "back slashes": (rows("x", "y").replace("images/", "images\\"), ["x", "y"], []),
    "a drive": (rows("x", "y").replace("images/", "C:\\Users\\me\\images\\"), ["x", "y"], ["C:/Users/me/"]),
    "another machine's paths": (rows("x", "y").replace("images/", "/mnt/d/images/"), ["x", "y"], ["mnt/d/"]),
    "capitals of a suffix": (rows("x", "y").replace(".png", ".PNG"), ["x", "y"], []),
    "identifiers": ("id_code,diagnosis\na,0\nb,1\nc,0\n", ["0", "1"], ["images found in images", "label 'diagnosis'"]),
    "no header": ("images/a.png,x\nimages/b.png,y\n", ["x", "y"], ["path 'column 1'", "label 'column 2'"]),
    "other names of columns": (rows("x", "y", "x", head="Image Path,Class Name"), ["x", "y"], ["label 'Class Name'"]),
    "a label by its content": (
        rows("x,1.5", "y,2.5", "x,3.5", head="image,kind,ratio"),
        ["x", "y"],
        ["label 'kind'", "not used: ratio"],
    ),
    "the path by its content": (
        "note,where,label\n1,images/a.png,x\n2,images/b.png,y\n",
        ["x", "y"],
        ["path 'where'", "not used: note"],
    ),
    "an index before the path": (
        ",image_id,dx,age\n0,a,nv,50\n1,b,mel,60\n2,c,nv,55\n",
        ["mel", "nv"],
        ["not used: (without a name), age"],
    ),
    "an age in a file of 0 and 1": (
        rows("1,0,45", "0,1,50", "1,0,60", head="image,MEL,NV,age"),
        ["MEL", "NV"],
        ["targets by 2 columns", "read as classes", "not used: age"],
    ),
    "an index of 0 and 1": ("index,image,MEL,NV\n0,images/a,1,0\n1,images/b,0,1\n", ["MEL", "NV"], ["not used: index"]),
    "a sign of the patient among 0 and 1": (
        rows("1,0,0,1", "0,1,0,0", "0,0,1,1", "0,1,0,1", head="image,MEL,NV,BCC,married"),
        ["BCC", "MEL", "NV"],
        ["not used: married"],
    ),
    "a class without images": (rows("1,0,0", "0,1,0", head="image,MEL,NV,UNK"), ["MEL", "NV"], ["not used: UNK"]),
    "true and false": (rows("True,False", "False,True", head="image,MEL,NV"), ["MEL", "NV"], []),
    "a label by a word of its name": (
        rows("x,True", "y,False", "x,True", head="fname,noisy_label,is_valid"),
        ["x", "y"],
        ["split 'is_valid'"],
    ),
    "a grade beside flags": (
        rows("2,0,1", "0,1,1", "2,1,1", "0,0,0", head="image_id,adjudicated_dr_grade,dme,gradable"),
        ["0", "2"],
        ["label 'adjudicated_dr_grade'", "not used: dme, gradable"],
    ),
    "a diagnostic": (
        rows("True,NEV,60", "False,BCC,55", "False,NEV,50", head="img_id,smoke,diagnostic,age"),
        ["BCC", "NEV"],
        ["label 'diagnostic'", "not used: smoke, age"],
    ),
    "grades": (rows("0", "1", "2", "3"), ["0", "1", "2", "3"], []),
    "half grades": (rows("1.5", "2.0"), ["1.5", "2.0"], []),
    "splits in other words": (
        rows("x,train_set", "y,validation", "x,Testing", head="path,label,subset"),
        ["x", "y"],
        ["split 'subset'"],
    ),
    "splits in a column called fold": (
        rows("x,train", "y,val", "x,test", head="path,label,fold"),
        ["x", "y"],
        ["split 'fold'"],
    ),
    "a set that is no split": (
        rows("x,rosendahl", "y,vidir", head="path,label,dataset"),
        ["x", "y"],
        ["not used: dataset"],
    ),
    "splits in a column without a name": (
        "TRAIN,gs://bucket/images/a.png,x\nVALIDATION,gs://bucket/images/b.png,y\nTEST,gs://bucket/images/c.png,x\n",
        ["x", "y"],
        ["label 'column 3', path 'column 2', split 'column 1'"],
    ),
    "lists of one label, beside their numbers": (
        rows("\"[1, 0]\",['x']", "\"[0, 1]\",['y']", head="path,target,labels"),
        ["x", "y"],
        ["label 'labels'", "not used: target"],
    ),
    "paths of Label Studio": (
        rows("x", "y").replace("images/", "/data/local-files/?d=images/"),
        ["x", "y"],
        ["data/local-files/ of the paths is ignored"],
    ),
    "names that print alike": (
        rows("caf\u00e9", "cafe\u0301", "caf\u00e9\xa0", "bar"),
        ["bar", "caf\u00e9"],
        ["look the same"],
    ),
    "labels with a comma each": (
        rows('"lung, left"', '"lung, right"', '"heart, left"'),
        ["heart, left", "lung, left", "lung, right"],
        [],
    ),
    "labels of two words": (rows("dog", "hot dog", "cat"), ["cat", "dog", "hot dog"], []),
}

REFUSED = {
    "no paths": ("a,b\n1,2\n", "no column for the images' paths"),
    "no labels": ("path,other\nimages/a.png,x\n", "no column for the labels"),
    "a row without a label": ("path,label\nimages/a.png,\n", "no label .column 'label'. in 1 row: line 2"),
    "a label that is missing": (
        "path,label\nimages/a.png,x\nimages/b.png,NaN\n",
        "no label .column 'label'. in 1 row: line 3",
    ),
    "a file that is missing": (
        "path,label\nimages/a.png,x\nimages/z.png,y\n",
        r"does not exist in 1 row: images/z\.png",
    ),
    "an unknown split": (
        "path,label,split\nimages/a.png,x,exam\n",
        "unknown split in column 'split' in 1 row: exam. Write train, val or test",
    ),
    "no rows": ("path,label\n", "has no rows"),
    "a comma without quotation marks": (
        rows("x", "y, z", "x", "x"),
        r"more cells than the first line \(path,label\), its header, in 1 row: line 3",
    ),
    "R's row names that are text": (
        "path,label\nr1,images/a.png,x\nr2,images/b.png,y\n",
        r"more cells than .* in 2 rows: line 2, line 3. If the first cells are R's row names, .* row.names = FALSE",
    ),
    "columns without a name": (
        ",label,age\nMazda,x,1\nFiat,y,2\n",
        r"no column for the images' paths \(it has \(without a name\), label, age\)",
    ),
    "a title": (
        "Our images, 2024\n" + rows("x", "y"),
        r"its first line \(Our images, 2024\) is read as the header, but line 2 looks like it: it has 'path'",
    ),
    "quotation marks with a backslash": (
        rows("heart", r'"lung, \"upper\""'),
        r"t.csv, line 3: ',' expected after '\"'. Write \"\" for a quotation mark in a cell",
    ),
    "quotation marks that join lines": (
        rows("heart", '"lung', "heart", '"lung'),
        r"t.csv, line 5: ',' expected after '\"'. Write \"\" for a quotation mark in a cell, and put the cell in quot",
    ),
    "a comment": (
        "# our images\n" + rows("x", "y"),
        r"more cells than the first line \(# our images\), its header, in 5 rows: line 2, .* Remove the lines above",
    ),
    "two columns of one name": (
        rows("x,1", "y,2", head="path,label,label"),
        r"two columns of the same name in its first line \(path,label,label\)",
    ),
    "blanks between the columns": ('"path" "label"\n"images/a.png" "x"\n', "has one column only"),
    "an error of a spreadsheet": (
        rows("x", "#N/A", "y", "#NAME?"),
        "no label .column 'label'. in 2 rows: line 3, line 5",
    ),
    "a date for each image": (
        "path,label\n" + "".join(f"images/{'abcd'[k % 4]}.png,2024-01-{k + 1:02}\n" for k in range(28)),
        "'label' of .* has 28 different values in 28 rows, too many for classes",
    ),
    "an open quotation mark": (
        rows("x", "y") + '"' + rows("x", "y", head="images/a.png,y"),
        "a quotation mark in line 6 is never closed",
    ),
    "a path without an end": (
        rows("x", "y", head="path,label") + f"{'z' * 5000}.png,x\n",
        r"a file that does not exist in 1 row: z{79}…\.",
    ),
    "lines after a blank one": (
        "path,label\n\nimages/a.png,x\n\nimages/b.png,\n",
        "no label .column 'label'. in 1 row: line 5",
    ),
    "one image under two labels": (
        rows("x", "y", "x", "y", "z", number=5),
        "another label or split in 1 row: line 6",
    ),
    "no text": ("path,label\nimages/a.png,\x00\n", "zero bytes"),
}


def test_rows_of_several_readers_name_images_under_any_heading(images: Path) -> None:
    rows = [
        f"{name};{reader};{'sick' if name < 'c' else 'well'}" for name in "abcd" for reader in ("Ada", "Ben", "Cem")
    ]
    index = scan_data(write(images / "export.csv", "\n".join(["SOPInstanceUID;Befunder;label", *rows])))
    assert len(index) == 4
    assert index.skipped == {"row that repeats a file": 8}


@pytest.mark.parametrize(
    ("cells", "options", "labels"),
    [
        ("True 0 1 False", {}, "True False True False"),
        ("1 0 1.0 nein", {}, "1 nein 1 nein"),
        ("Yes yes yes No", {}, "yes yes yes No"),
        ("pos neg positive Negative", {}, "positive neg positive neg"),
        ("ja no yes 0", {"known_labels": ("0", "1")}, "1 0 1 0"),
        ("yes 1 no 1", {"known_labels": ("1", "no", "yes")}, "yes 1 no 1"),
        ("True 0 1 False", {"task": "single"}, "True 0 1 False"),
        ("True 0 2 False", {}, "True 0 2 False"),
        ("True True False False", {}, "True True False False"),
        ("yes no unknown Yes", {}, "yes no unknown Yes"),
    ],
)
def test_words_for_yes_and_no_are_united(cells: str, options: dict[str, Any], labels: str, images: Path) -> None:
    rows = [f"images/{name},{cell}" for name, cell in zip("abcd", cells.split(), strict=True)]
    index = scan_data(write(images / "t.csv", "\n".join(["path,label", *rows])), table_options=TableOptions(**options))
    assert [index.classes[label] for label in index.labels] == labels.split()
    assert any("are read as" in note for note in index.notes) == (labels != cells)


@pytest.mark.parametrize("name", ["Confidence", "present", "is_present"])
def test_labels_that_are_absent_are_refused(name: str, images: Path) -> None:
    """As in Open Images, whose Confidence is 0 where a label was verified to be absent."""
    head, options = f"path,label,{name}\n", TableOptions(task="multilabel")
    text = "images/a,cat,1\nimages/a,dog,{}\nimages/b,cat,1\nimages/c,dog,1"
    with pytest.raises(
        DataError, match=rf"has 0 in column '{name}' in 1 row: .* 'label' of the row is absent"
    ) as caught:
        scan_data(write(images / "t.csv", head + text.format(0)), table_options=options)
    assert "Remove these rows" in caught.value.remedy
    assert scan_data(write(images / "t.csv", head + text.format(1)), table_options=options).values
    other = f"path,label,contrast {name}\nimages/a,cat,1\nimages/b,dog,0"
    assert scan_data(write(images / "t.csv", other)).classes == ("cat", "dog")


def test_positions_are_no_labels(images: Path) -> None:
    """As of tiles in a slide; y is a label beside x if x has the images."""
    text = rows("0,256,fat", "0,512,tumor", head="path,x,y,tissue")
    with pytest.raises(DataError, match=r"no column for the labels \(it has x, y, tissue beside the paths\)"):
        scan_data(write(images / "t.csv", text))
    text = rows("0,256,fat", "0,512,tumor", head="path,x,y,tissue_type")
    assert scan_data(write(images / "t.csv", text), table_options=TableOptions(label_column="y")).classes
    assert scan_data(write(images / "t.csv", rows("fat", "tumor", head="x,y"))).classes == ("fat", "tumor")


@pytest.mark.parametrize(
    ("rest", "odd"), [(["1,0,0", "0,1,0", "0,0,1", "1,0,2"], "2"), (["0,1,1", "1,0,0", "0,1,9"], "9")]
)
def test_columns_that_are_no_labels_because_of_some_cells_are_noted(images: Path, rest: list[str], odd: str) -> None:
    """One typing error took the third label away, or a class from one-hot columns."""
    index = scan_data(write(images / "t.csv", rows(*rest, head="path,A,B,C")))
    assert index.classes == ("A", "B")
    note = (
        f"column 'C' is not read as a label: 1 of 4 cells is not 1, 0, -1, yes, no or blank, such as '{odd}'; correct "
        "the cells if it is one"
    )
    assert note in index.notes
    index = scan_data(write(images / "t.csv", rows(*rest, head="path,A,B,C").replace(odd, "1")))
    assert "C" in index.classes


def test_a_column_of_splits_with_another_cell_is_one(images: Path) -> None:
    """Else one blank cell would have a random split drawn."""
    text = rows("x,train", "y,train", "x,", "y,test", head="path,label,cohort")
    assert scan_data(write(images / "t.csv", text)).splits == ("train", "train", "", "test")
    with pytest.raises(DataError, match="an unknown split in column 'cohort' in 1 row: trian"):
        scan_data(write(images / "t.csv", text.replace("x,\n", "x,trian\n")))


def test_a_blank_cell_among_flags_of_a_split_or_folds(images: Path) -> None:
    index = scan_data(write(images / "t.csv", rows("x,0", "y,0", "x,", "y,1", head="path,label,is_test")))
    assert index.splits == ("train", "train", "", "test")
    index = scan_data(write(images / "t.csv", rows("x,1", "y,2", "x,", "y,1", head="path,label,fold")))
    assert (index.folds, index.notes[0]) == ((), "columns that are not used: fold")
    assert index.notes[1] == "column 'fold' has blank cells, so its folds are not used"


def test_words_that_name_one_split_are_noted(images: Path) -> None:
    text = rows("x,Training", "y,Training", "x,Internal validation", "y,External validation", head="path,label,subset")
    note = "External validation, Internal validation are read as val"
    assert note in scan_data(write(images / "t.csv", text)).notes
    text = rows("x,train", "y,Train", "x,test", "y,", head="path,label,split")
    assert "read as" not in " ".join(scan_data(write(images / "t.csv", text)).notes)


def test_a_column_of_splits_called_fold_has_no_folds(images: Path) -> None:
    index = scan_data(write(images / "t.csv", rows("x,train", "y,train", "x,test", "y,test", head="path,label,fold")))
    assert index.list_splits() == ["train", "test"]
    assert not index.folds
    assert "folds" not in " ".join(index.notes)


def test_files_that_cannot_be_found_have_a_true_reason(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    save_image(images / "images/007.png")
    with pytest.raises(
        DataError, match=r"file that does not exist in 1 row: 7\. Write .* zeros .*: 007, as of images/007"
    ):
        scan_data(write(images / "t.csv", "path,label\n7,x\n"))
    for name, found in (("images/a.dcm", "images/a.png"), ("007.0", "images/007.png")):
        with pytest.raises(DataError, match=rf"Write the names as .*, or without suffix: {found} in place of {name}"):
            scan_data(write(images / "t.csv", f"path,label\n{name},x\n"))
    with pytest.raises(DataError, match=r"an address, .* Download .* or add a column path with their files"):
        scan_data(write(images / "t.csv", "image_url,label\nhttps://a.org/a.png?x=1,x\nhttps://a.org/b.png?x=1,y\n"))
    scandir = os.scandir

    def refuse(path: str) -> object:  # root may read everything
        if Path(path).name == "images":
            raise PermissionError(errno.EACCES, "Permission denied", path)
        return scandir(path)

    monkeypatch.setattr(os, "scandir", refuse)
    with pytest.raises(DataError, match=r"not exist, or lies in a folder that cannot be read \(images\), in 2 rows"):
        scan_data(write(images / "t.csv", "path,label\na.png,x\nb.png,y\n"))


def test_class_names_that_may_mean_the_same_are_found() -> None:
    sets = [["cat", "Cat (1)", "cat_part2"], ["dog", "dog - Kopie", "dog_2023-05-01"]]
    names = [name for names in sets for name in names]
    others = ["f(x)", "copy", "a (2019)", "grade 2", "grade 3", "part 1", "part 2", "2023-05-01", "2023-05-02"]
    assert find_alike([*names, *others]) == sets
    assert find_alike(["1", "no", "True", "0.0"]) == [["1", "True"], ["no", "0.0"]]
    assert find_alike([*"0123456789abcdefghijklmnopqrstuvwxyz"]) == [], "n and y are letters here"


def test_groups_under_several_names_are_noted(images: Path) -> None:
    text = "path,label,patient\nimages/a,x,P001\nimages/b,y,p 1\nimages/c,y,P-2\nimages/d,y,P3\n"
    [note] = [note for note in scan_data(write(images / "t.csv", text)).notes if "several names" in note]
    assert note.startswith("column 'patient' has 1 group under several names, such as P001 and p 1: if they are one")
    for one, other in (("P001", "P12"), ("1-12", "11-2"), ("site 1_2", "site 12")):
        changed = text.replace("P001", one).replace("p 1", other)
        assert "several names" not in str(scan_data(write(images / "t.csv", changed)).notes)


def test_groups_that_a_spreadsheet_has_shortened_are_noted(images: Path) -> None:
    text = "path,label,patient\nimages/a,x,1.23E+11\nimages/b,y,1.23E+11\nimages/c,y,1.24E+11\nimages/d,y,4711\n"
    [note] = [note for note in scan_data(write(images / "t.csv", text)).notes if "shortened" in note]
    assert note.startswith("column 'patient' has 2 numbers that a spreadsheet has shortened, such as 1.23E+11")
    changed = text.replace("1.23E+11", "A1E5").replace("1.24E+11", "2E07")
    assert "shortened" not in str(scan_data(write(images / "t.csv", changed)).notes)


@pytest.mark.parametrize("sign", ["/", "+", "&"])
def test_signs_that_may_separate_labels_are_noted(sign: str, images: Path) -> None:
    text = f"path,label\nimages/a,Mass{sign}Edema\nimages/b,Mass\n"
    note = f"cells of 'label' contain {sign!r}: read as names of classes; --label-sep {shlex.quote(sign)} reads several"
    assert any(text.startswith(note) for text in scan_data(write(images / "t.csv", text)).notes)
    text = text.replace("Edema", "").replace("Mass\n", f"Edema{sign}\n")  # as of receptors, ER+ and HER2+
    assert not any("contain" in text for text in scan_data(write(images / "t.csv", text)).notes)


def test_blanks_may_separate_tags(images: Path) -> None:
    text = "path,tags\nimages/a,haze primary\nimages/b,clear primary\n"
    note = "cells of 'tags' contain ' ': read as names of classes; --label-sep ' ' reads several labels per image"
    assert note in scan_data(write(images / "t.csv", text)).notes
    assert scan_data(write(images / "t.csv", text), table_options=TableOptions(label_sep=" ")).values
    assert note not in scan_data(write(images / "t.csv", text.replace("tags", "class"))).notes


def test_numbers_of_sites_are_no_labels(images: Path) -> None:
    text = "path,site_id,cancer,biopsy\nimages/a,1,1,1\nimages/b,1,0,1\nimages/c,1,0,0\n"
    assert scan_data(write(images / "t.csv", text)).classes == ("cancer", "biopsy")


@pytest.mark.parametrize("case", READ)
def test_table_is_read(case: str, images: Path) -> None:
    text, classes, notes = READ[case]
    write(images / "list.csv", "").write_bytes(text.encode())
    index = scan_data(images / "list.csv")
    assert list(index.classes) == classes
    assert all((index.root / path).is_file() for path in index.paths)
    for words in notes:
        assert words in " / ".join(index.notes)
    if not notes:
        assert not [note for note in index.notes if "not used" in note]


@pytest.mark.parametrize("case", REFUSED)
def test_table_is_refused(case: str, images: Path) -> None:
    text, message = REFUSED[case]
    with pytest.raises(DataError, match=message):
        scan_data(write(images / "list.csv", text))


NAN = float("nan")
OTHER_TASKS: dict[str, tuple[str, str, list[str], list[tuple[float, ...]]]] = {
    "a number": (rows("20", "21.3", "22.6", "23.9", head="image,target"), "regression", ["target"], [
        (20,), (21.3,), (22.6,), (23.9,),
    ]),
    "a number with a comma": (
        "image;label\n" + "".join(f"images/{c};{k},5\n" for k, c in enumerate("abcd")),
        "regression", ["label"], [(0.5,), (1.5,), (2.5,), (3.5,)],
    ),
    "several labels": (
        rows("Mass", "Effusion|Mass", "Effusion", "No Finding"), "multilabel", ["Effusion", "Mass", "No Finding"],
        [(0, 1, 0), (1, 1, 0), (1, 0, 0), (0, 0, 1)],
    ),
    "several labels by semicolons": (
        rows("a", "b", "a;b", "b"), "multilabel", ["a", "b"], [(1, 0), (0, 1), (1, 1), (0, 1)],
    ),
    "several labels by commas": (
        rows("a", "b", '"a, b"', "b"), "multilabel", ["a", "b"], [(1, 0), (0, 1), (1, 1), (0, 1)],
    ),
    "several labels by blanks": (
        rows("scab", "rust", "scab rust", "rust scab"), "multilabel", ["rust", "scab"],
        [(0, 1), (1, 0), (1, 1), (1, 1)],
    ),
    "lists": (rows("\"['a', 'b']\"", "\"['a']\""), "multilabel", ["a", "b"], [(1, 1), (1, 0), (1, 1), (1, 0)]),
    "choices of Label Studio": (
        rows("a", '"{""choices"":[""a"",""b""]}"'), "multilabel", ["a", "b"], [(1, 0), (1, 1), (1, 0), (1, 1)],
    ),
    "several columns of 1": (
        rows("1,1,0", "0,1,0", "0,0,0", "0,0,1", head="image,MEL,NV,BCC"), "multilabel", ["MEL", "NV", "BCC"],
        [(1, 1, 0), (0, 1, 0), (0, 0, 0), (0, 0, 1)],
    ),
    "columns of 1, 0, -1 and blanks": (
        rows("F,64,1.0,,-1.0", "M,50,,1.0,0.0", "F,64,0.0,0.0,1.0", head="Path,Sex,Age,No Finding,Edema,Mass"),
        "multilabel", ["No Finding", "Edema", "Mass"], [(1, NAN, -1), (NAN, 1, 0), (0, 0, 1), (1, NAN, -1)],
    ),
    "a column without a 0": (
        rows("1,1", ",0", ",1", "1,0", head="path,No Finding,Edema"), "multilabel", ["No Finding", "Edema"],
        [(1, 1), (0, 0), (0, 1), (1, 0)],
    ),
    "columns of words": (
        rows("yes,Absent", "no,present", "NA,present", "Yes,", head="path,Edema,Mass"), "multilabel", ["Edema", "Mass"],
        [(1, 0), (0, 1), (NAN, 1), (1, NAN)],
    ),
    "columns of another program": (
        rows("1,TRUE", "0,FALSE", "NaN,n/a", "-1,?", head="path,Edema,Mass"), "multilabel", ["Edema", "Mass"],
        [(1, 1), (0, 0), (NAN, NAN), (-1, NAN)],
    ),
    "columns of a spreadsheet in German": (
        rows("WAHR,ja", "FALSCH,nein", "#NV,nein", "FALSCH,ja", head="path,Edema,Mass"), "multilabel",
        ["Edema", "Mass"], [(1, 1), (0, 0), (NAN, 0), (0, 1)],
    ),
    "columns of 1 and -1": (
        rows("1,-1", "-1,1", "1,1", "-1,-1", head="path,Smiling,Young"), "multilabel", ["Smiling", "Young"],
        [(1, 0), (0, 1), (1, 1), (0, 0)],
    ),
    "a number beside the sex": (
        rows("94,True", "120.5,False", "60,True", "12,False", head="path,boneage,male"), "regression", ["boneage"],
        [(94,), (120.5,), (60,), (12,)],
    ),
    "a number beside dates": (
        rows("2021-03-12,12.03.2021,9", "2021-03-12,12.03.2021,12", "2021-04-30,1.4.2021,6.5", "2021-04-30,1.4.2021,1",
             head="path,date,planted,height"),
        "regression", ["height"], [(9,), (12,), (6.5,), (1,)],
    ),
    "numbers with thousands": (
        rows('"1,250"', "980", '"12,000"', "1010.5", head="path,area"), "regression", ["area"],
        [(1250,), (980,), (12000,), (1010.5,)],
    ),
    "numbers with points between thousands and a decimal comma": (
        rows('"1.250,5"', "980", '"12.000,25"', "1.010", head="path,area"), "regression", ["area"],
        [(1250.5,), (980,), (12000.25,), (1010,)],
    ),
    "eighths beside whole numbers": (
        rows("98.125", "100", "101.375", "99", head="path,length"), "regression", ["length"],
        [(98.125,), (100,), (101.375,), (99,)],
    ),
    "a decimal comma beside whole numbers": (
        rows('"1,125"', "2", '"2,375"', "1", head="path,length"), "regression", ["length"],
        [(1.125,), (2,), (2.375,), (1,)],
    ),
    "numbers with a typographic minus": (
        rows("\u22121.25", "0.5", "\u221212", "3", head="path,area"), "regression", ["area"],
        [(-1.25,), (0.5,), (-12,), (3,)],
    ),
    "numbers with a decimal comma of three digits": (
        rows('"1,250"', '"0,980"', '"12,000"', '"1,010"', head="path,area"), "regression", ["area"],
        [(1.25,), (0.98,), (12,), (1.01,)],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", OTHER_TASKS)
def test_table_of_another_task_is_read_and_said_so(case: str, images: Path) -> None:
    text, task, names, values = OTHER_TASKS[case]
    index = scan_data(write(images / "list.csv", text))
    assert (index.task.name, list(index.classes)) == (task, names)
    np.testing.assert_array_equal(np.array(index.values), np.array(values))
    assert "read as" in " / ".join(index.notes)


@pytest.mark.parametrize(
    ("text", "options", "problem"),
    [
        (rows("1e200", "2e200", head="path,area"), {"task": "regression"}, "numbers from 1e\\+200 to 2e\\+200"),
        (rows("1e-200", "2e-200", head="path,area"), {"task": "regression"}, "standard deviation cannot be computed"),
        (rows("1,1", "0,1", head="path,A,B"), {"task": "single"}, "not exactly one class in each row"),
        (rows("a", "b"), {"task": "multilabel"}, "no cell of column 'label' .* has several labels"),
        (rows("a", "b"), {"task": "regression"}, "column 'label' of .*: 4 of 4 cells are not numbers"),
        (rows("none", "mild"), {"task": "regression"}, "2 of 4 cells are not numbers, such as 'mild'"),
        (
            rows("mild", "severe"),
            {"task": "ordinal"},
            "have no order: mild, severe. Give the order, the lowest grade first: --grades mild,severe",
        ),
        (rows("mild", "none", "severe"), {"task": "ordinal"}, "the lowest grade first: --grades none,mild,severe"),
        (rows("well", "ill"), {"task": "ordinal"}, "Put these names in order, the lowest grade first: --grades ill,"),
        (rows("mild", "severe"), {"task": "ordinal", "grades": "none,mild"}, "--grades has no severe, which is in col"),
        (rows("mild", "severe"), {"task": "ordinal", "grades": "mild,severe,mild"}, "--grades has 'mild' twice"),
        (rows("1,1", "0,1", head="path,A,B"), {"task": "ordinal"}, "needs one column"),
        (
            "path,grade\nimages/a.png,1\nimages/a.png,2\n",
            {"task": "ordinal"},
            "another grade or split in 1 row: line 3. Give each image one row, .* the median of its readers' grades",
        ),
        (
            rows("1,2", "0,1", head="path,A,B"),
            {"label_columns": "A,B"},
            "not 1, 0, -1, yes, no or blank, such as '2', in 2 rows",
        ),
        (rows("a", "b"), {"label_column": "lable"}, "no column 'lable'"),
        (rows("a", "b"), {"path_column": "image"}, "no column 'image'"),
    ],
)
def test_table_that_is_not_of_the_task_is_refused(
    text: str, options: dict[str, str], problem: str, images: Path
) -> None:
    with pytest.raises(DataError, match=problem):
        scan_data(write(images / "list.csv", text), table_options=TableOptions(**options))


@pytest.mark.parametrize(
    ("head", "cells", "note"),
    [
        ("dr_grade", ["0.0", "1.0", "2.0"], "the numbers 0 to 2: read as classes; --task ordinal reads them as grades"),
        ("hardness", ["0", "0.5", "1", "1.5"], "--task ordinal reads them as grades, --task regression as numbers"),
        ("hardness", ["0", "5", "10"], ""),
    ],
)
def test_numbers_that_are_read_as_classes_have_a_note(head: str, cells: list[str], note: str, images: Path) -> None:
    cells = [cells[row % len(cells)] for row in range(40)]
    for row in range(40):
        save_image(images / f"images/{row}.png", seed=row)
    text = "\n".join([f"path,{head}", *(f"images/{row}.png,{cell}" for row, cell in enumerate(cells))])
    notes = " / ".join(scan_data(write(images / "list.csv", text)).notes)
    assert note in notes
    assert bool(note) == ("ordinal" in notes)


@pytest.mark.parametrize(("code", "count"), [("-999", 3), ("99999", 1), ("-1", 0)])
def test_numbers_far_from_the_others_have_a_note(code: str, count: int, images: Path) -> None:
    for row in range(60):
        save_image(images / f"images/{row}.png", seed=row)
    cells = [code if row < max(count, 1) else str(80 + 2 * row) for row in range(60)]
    text = "\n".join(["path,age", *(f"images/{row}.png,{cell}" for row, cell in enumerate(cells))])
    notes = scan_data(write(images / "list.csv", text)).notes
    assert sum(f"{count} of 60 numbers" in note and f"such as {code}" in note for note in notes) == (count > 0)
    assert ("far from the others" in " / ".join(notes)) == (count > 0)


def test_many_combinations_of_few_words_are_several_labels(images: Path) -> None:
    cells = ["sun road", "sun sea", "sun fog", "road sea", "road fog", "sea fog", "sun road sea", "road sea fog"]
    index = scan_data(write(images / "list.csv", rows(*cells, number=8, head="path,tags")))
    assert (index.task.name, index.classes) == ("multilabel", ("fog", "road", "sea", "sun"))
    cells = [f"{colour} {shape}" for colour in ("red", "blue", "grey") for shape in ("disc", "ring", "bar", "dot")]
    text = "path,tags\n" + "".join(f"images/{'abcd'[k]}.png,{cell}\n" for k, cell in enumerate(cells[:4]))
    assert scan_data(write(images / "list.csv", text)).task.name == "single"


def test_rows_without_a_group_are_counted(images: Path) -> None:
    text = "path,label,patient\nimages/a.png,x,p1\nimages/b.png,y,\nimages/c.png,x,p1\nimages/d.png,y,nan\n"
    index = scan_data(write(images / "list.csv", text))
    assert index.groups == ("p1", "images/b.png", "p1", "images/d.png")
    assert "column 'patient' is blank in 2 of 4 rows: each of these images counts as a group of its own" in " ".join(
        index.notes
    )


@pytest.mark.parametrize(("unknown", "is_noted"), [("ANON", True), ("0", True), ("", False), (None, False)])
def test_a_group_that_may_stand_for_unknown_ones_is_noted(
    unknown: str | None, tmp_path: Path, *, is_noted: bool
) -> None:
    lines = ["path,label,patient_id"]
    for number in range(48):
        save_image(tmp_path / f"{number}.png")
        patient = f"p{number // 4}" if number % 2 or unknown is None else unknown
        lines.append(f"{number}.png,{'xy'[number // 2 % 2]},{patient}")
    notes = scan_data(write(tmp_path / "list.csv", "\n".join(lines))).notes
    text = f"column 'patient_id' has {unknown!r} in 24 of 48 rows, which stay in one split"
    assert any(note.startswith(text) for note in notes) == is_noted


def test_whole_numbers_and_their_decimals_are_one_group_and_one_class(images: Path) -> None:
    text = "path,label,patient\nimages/a.png,1,12\nimages/b.png,0,13.0\nimages/c.png,1.0,12.0\nimages/d.png,0,14\n"
    index = scan_data(write(images / "list.csv", text))
    assert index.groups == ("12", "13.0", "12", "14")
    assert index.classes == ("0", "1")
    assert "column 'label': 1.0 is read as 1" in index.notes


@pytest.mark.parametrize(
    ("odd", "count"),
    [
        ("<0.5", 2), ("3.2 mm", 30), ("inf", 1), ("5%", 2), ("failed", 1),
        ("1 000.5", 30), ("1.000.500", 2), ("\u22121 000", 2),
    ],
)  # fmt: skip
def test_numbers_among_which_a_few_cells_are_none_are_no_classes(images: Path, odd: str, count: int) -> None:
    cells = [odd if row < count else f"{row / 3:.2f}" for row in range(40)]
    for row in range(40):
        save_image(images / f"images/{row}.png", seed=row)
    text = "\n".join(["path,label", *(f"images/{row}.png,{cell}" for row, cell in enumerate(cells))])
    table = write(images / "list.csv", text)
    with pytest.raises(DataError, match=f"has no plain number in column 'label' in {count} rows?: '{odd}'"):
        scan_data(table)
    assert len(scan_data(table, table_options=TableOptions(task="single")).classes) == len(set(cells))


def test_complementary_columns_beside_a_third_are_labels(images: Path) -> None:
    index = scan_data(write(images / "list.csv", rows("1,0,0", "0,1,1", "0,1,0", "1,0,1", head="path,well,sick,edema")))
    assert (index.task.name, index.classes) == ("multilabel", ("well", "sick", "edema"))
    table = rows("1,0,0,0", "0,1,0,1", "0,0,1,0", "1,0,0,1", head="path,A,B,C,implant")
    index = scan_data(write(images / "list.csv", table))
    assert (index.task.name, index.classes) == ("single", ("A", "B", "C"))
    assert "columns that are not used: implant" in index.notes


def test_grades_are_one_with_and_without_decimals(images: Path) -> None:
    text = "path,grade\nimages/a.png,1\nimages/b.png,0\nimages/c.png,1.0\nimages/d.png,2.0\n"
    index = scan_data(write(images / "list.csv", text), table_options=TableOptions(task="ordinal"))
    assert (index.classes, index.labels) == (("0", "1", "2.0"), (1, 0, 1, 2))
    assert "column 'grade': 1.0 is read as 1" in index.notes


@pytest.mark.parametrize("task", ["single", "ordinal"])
@pytest.mark.parametrize(("known", "cells"), [("0 1 2", "0.0 1.0 2.0 1.0"), ("0.0 1.0 2.0", "0 1 2 1")])
def test_other_data_may_write_grades_as_decimals(images: Path, task: str, known: str, cells: str) -> None:
    text = rows(*cells.split(), head="path,grade")
    options = TableOptions(task=task, known_labels=tuple(known.split()))
    assert set(scan_data(write(images / "list.csv", text), table_options=options).classes) == set(known.split())


def test_exact_name_of_a_column_is_before_another_spelling(images: Path) -> None:
    text = "path,Grade,grade\nimages/a.png,x,p\nimages/b.png,y,q\nimages/c.png,x,q\n"
    for name, classes in (("grade", ("p", "q")), ("Grade", ("x", "y"))):
        options = TableOptions(label_column=name, task="single")
        assert scan_data(write(images / "list.csv", text), table_options=options).classes == classes


def test_columns_of_a_table_can_be_named(images: Path) -> None:
    text = "file;who;part;what;extra\nimages/a.png;p1;train;2;x\nimages/b.png;p1;train;1;y\nimages/c.png;p2;test;1;x\n"
    options = TableOptions(
        path_column="file", group_column="who", split_column="part", label_column="WHAT", task="ordinal"
    )
    index = scan_data(write(images / "list.csv", text), table_options=options)
    assert (index.classes, index.labels, index.task.name) == (("1", "2"), (1, 0, 0), "ordinal")
    assert (index.groups, index.splits) == (("p1", "p1", "p2"), ("train", "train", "test"))
    assert any("not used: extra" in note for note in index.notes)
    without = scan_data(images / "list.csv", table_options=replace(options, group_column="none", split_column="none"))
    assert (without.groups, set(without.splits)) == ((), {""})


def test_blank_and_separator_are_as_told(images: Path) -> None:
    text = rows("1,", "0,1", head="path,A,B")
    index = scan_data(write(images / "list.csv", text), table_options=TableOptions(blank="negative", task="multilabel"))
    assert list(index.values) == [(1, 0), (0, 1), (1, 0), (0, 1)]
    text = rows("a/b", "b", "c")
    index = scan_data(write(images / "list.csv", text), table_options=TableOptions(label_sep="/", task="multilabel"))
    assert list(index.values) == [(1, 1, 0), (0, 1, 0), (0, 0, 1), (1, 1, 0)]
    text = rows("a/b", "NaN", "c")
    index = scan_data(write(images / "list.csv", text), table_options=TableOptions(label_sep="/", task="multilabel"))
    assert (index.classes, index.values[1]) == (("a", "b", "c"), (0, 0, 0))
    assert "1 blank cell of 'label' is read as none of the labels" in index.notes


@pytest.mark.parametrize(
    ("cells", "log"),
    [
        (range(1, 60), False),  # evenly spread: its logarithm is more skewed
        ([1.15**k for k in range(60)], True),
        ([0.0, *(1.15**k for k in range(59))], False),  # 0 has no logarithm
        ([-5.0, *(1.15**k for k in range(59))], False),
        (range(1960, 2020), False),
    ],
)
def test_logarithm_is_learned_of_positive_numbers_that_are_less_skewed_with_it(
    cells: Sequence[float], log: bool, tmp_path: Path
) -> None:
    for number in range(60):
        save_image(tmp_path / f"{number}.png", seed=number)
    text = "image,dose\n" + "".join(f"{number}.png,{cell:.4f}\n" for number, cell in enumerate(cells))
    index = scan_data(write(tmp_path / "list.csv", text))
    assert (index.task.to_dict()["log"], "logarithm is learned" in " ".join(index.notes)) == (log, log)


@pytest.mark.parametrize(
    ("cells", "command"),
    [(("a", "a;b", "b;c", "a"), "--label-sep ';'"), (("a,b", "b,c", "a,b", "b,c"), "--label-sep ,")],
)
def test_a_sign_that_may_separate_labels_is_reported(cells: Sequence[str], command: str, images: Path) -> None:
    text = "path\tlabel\n" + "".join(f"images/{name}.png\t{cell}\n" for name, cell in zip("abcd", cells, strict=True))
    index = scan_data(write(images / "list.csv", text))
    assert index.task.name == "single"
    assert command in " ".join(index.notes)
    sign = command.split()[1].strip("'")
    assert scan_data(images / "list.csv", table_options=TableOptions(label_sep=sign)).task.name == "multilabel"


@pytest.mark.parametrize(
    ("cells", "classes", "task"),
    [
        (("a|", "b|c|", "a|b|", "c|"), ("a", "b", "c"), "multilabel"),
        (("a;", "b;c", "b", "c; "), ("a", "b", "c"), "multilabel"),
        (("a;", "b", "a", "b;"), ("a", "a;", "b", "b;"), "single"),  # no cell has several
    ],
)
def test_a_sign_between_labels_may_end_a_cell(
    cells: Sequence[str], classes: tuple[str, ...], task: str, images: Path
) -> None:
    text = "path\tlabel\n" + "".join(f"images/{name}.png\t{cell}\n" for name, cell in zip("abcd", cells, strict=True))
    index = scan_data(write(images / "list.csv", text))
    assert (index.task.name, index.classes) == (task, classes)


def test_brackets_of_a_label_are_not_those_of_a_list(images: Path) -> None:
    index = scan_data(write(images / "list.csv", rows("(l) a|b (r)", "b (r)|(l) a", "(l) a", "c", head="path,labels")))
    assert index.classes == ("(l) a", "b (r)", "c")
    index = scan_data(write(images / "list.csv", rows('"[a, b]"', "", '"[b]"', "nan", head="path,labels")))
    assert (index.classes, len(index.values)) == (("a", "b"), 4)


def test_one_label_of_a_run_in_each_cell_is_enough(images: Path) -> None:
    table = write(images / "list.csv", rows("a", "", "b", head="path,labels"))
    index = scan_data(table, table_options=TableOptions(task="multilabel", known_labels=("a", "b", "c")))
    assert (index.classes, index.values) == (("a", "b"), ((1.0, 0.0), (0.0, 0.0), (0.0, 1.0), (1.0, 0.0)))
    for known in ((), ("a", "c")):
        with pytest.raises(DataError, match=r"no cell of column 'labels' of .* has several labels"):
            scan_data(table, table_options=TableOptions(task="multilabel", known_labels=known))


def test_a_meaning_of_commas_is_reported(images: Path) -> None:
    notes = scan_data(
        write(images / "list.csv", rows('"1,250"', '"1,980"', '"2,000"', '"1,010"', head="path,area"))
    ).notes
    assert any("1,250 is read as 1.25" in note for note in notes)


def test_a_number_that_is_missing_is_refused(images: Path) -> None:
    with pytest.raises(DataError, match="no number in 1 row"):
        scan_data(write(images / "list.csv", rows("1.5", "NA", "2.5", "3.1", head="path,area")))


def test_grades_with_a_decimal_comma_are_sorted(images: Path) -> None:
    text = "path;grade\nimages/a.png;2,0\nimages/b.png;1,5\nimages/c.png;1,0\n"
    assert scan_data(write(images / "list.csv", text), table_options=TableOptions(task="ordinal")).classes == (
        "1,0",
        "1,5",
        "2,0",
    )


def test_class_folders_can_be_grades_or_numbers(tmp_path: Path) -> None:
    for number, name in enumerate(("10_worst", "2_mild", "0_none")):
        save_image(tmp_path / f"data/{name}/{number}.png", seed=number)
    grades = scan_data(tmp_path / "data", table_options=TableOptions(task="ordinal"))
    assert grades.classes == ("0_none", "2_mild", "10_worst")
    assert [grades.describe_target(row) for row in range(3)] == ["0_none", "10_worst", "2_mild"]
    numbers = scan_data(tmp_path / "data", table_options=TableOptions(task="regression"))
    assert numbers.values == ((0.0,), (10.0,), (2.0,))
    with pytest.raises(DataError, match="one class folder per image, not several labels per image"):
        scan_data(tmp_path / "data", table_options=TableOptions(task="multilabel"))
    given = TableOptions(task="ordinal", grades="0_none, 10_worst,9_dead,2_mild")
    assert scan_data(tmp_path / "data", table_options=given).classes == ("0_none", "10_worst", "2_mild")


def test_ranges_as_class_folders_are_no_numbers(tmp_path: Path) -> None:
    for number, name in enumerate(("0-23", "24-47")):
        save_image(tmp_path / f"data/{name}/{number}.png", seed=number)
    with pytest.raises(DataError, match="needs one number in the name of each class: 0-23, 24-47"):
        scan_data(tmp_path / "data", table_options=TableOptions(task="regression"))


def test_skewed_numbers_of_folders_are_learned_as_those_of_tables(tmp_path: Path) -> None:
    for number in range(8):
        save_image(tmp_path / f"data/{3**number} cells/a.png", seed=number)
    index = scan_data(tmp_path / "data", table_options=TableOptions(task="regression"))
    assert index.task == Regression(log=True)
    assert "the names of the classes are read as numbers, such as 1 for '1 cells'" in index.notes
    options = TableOptions(task="regression", log_target="no")
    assert scan_data(tmp_path / "data", table_options=options).task == Regression()


GRADES = "--task ordinal --grades "


@pytest.mark.parametrize(
    ("names", "option"),
    [
        ("0 1 2 3 4", "--task ordinal"),
        ("KL0 KL1 KL2", "--task ordinal"),
        (
            "No_DR Mild Moderate Severe Proliferate_DR",
            GRADES + "No_DR,Mild,Moderate,Severe,Proliferate_DR",
        ),
        ("MildDemented NonDemented VeryMildDemented", GRADES + "NonDemented,VeryMildDemented,MildDemented"),
        ("low medium high very_high", GRADES + "low,medium,high,very_high"),
        ("0 1 2 3 4 5 6 7 8 9", ""),
        ("type1 type2 type3", ""),
        ("2 4 8", ""),
        ("cat dog mild moderate", ""),
    ],
)
def test_folders_that_may_be_grades_have_a_note(tmp_path: Path, names: str, option: str) -> None:
    for number, name in enumerate(names.split()):
        save_image(tmp_path / f"data/{name}/{number}.png", seed=number)
    notes = [note for note in scan_data(tmp_path / "data").notes if "grades" in note]
    assert [note.partition("if they are grades: ")[2] for note in notes] == [option] * bool(option)
    options = TableOptions(known_labels=names.split())
    assert not any("grades" in note for note in scan_data(tmp_path / "data", table_options=options).notes)
    assert scan_data(tmp_path / "data", table_options=TableOptions(task="single")).notes == ()


def test_words_of_severity_in_a_table_have_a_note_and_numbers_do_not(images: Path) -> None:
    index = scan_data(write(images / "list.csv", rows("severe", "mild", "moderate", "mild")))
    assert "--task ordinal --grades mild,moderate,severe" in index.notes[-1]
    assert scan_data(write(images / "list.csv", rows("1", "2", "3", "1"))).notes == ()


def test_grades_in_words_have_the_order_of_the_option(images: Path) -> None:
    options = TableOptions(task="ordinal", grades="mild, Mu\u0308de,severe")
    index = scan_data(write(images / "list.csv", rows("severe", "mild", "Müde", "mild")), table_options=options)
    assert index.classes == ("mild", "Müde", "severe")
    assert index.labels == (2, 0, 1, 0)


@pytest.mark.parametrize("codec", ["utf-8-sig", "utf-16", "utf-16-le", "cp1252"])
@pytest.mark.parametrize("delimiter", [",", ";", "\t", "|"])
def test_table_in_any_encoding(codec: str, delimiter: str, images: Path) -> None:
    text = rows("Müll", "Büro").replace(",", delimiter)
    (images / "list.csv").write_bytes(text.encode(codec))
    index = scan_data(images / "list.csv")
    assert index.classes == ("Büro", "Müll")
    assert index.notes == {"utf-8-sig": (), "cp1252": ("read as Windows-1252, as it is not UTF-8",)}.get(
        codec, ("read as UTF-16, as it is not UTF-8",)
    )


def test_names_on_disk_in_another_form_or_encoding(images: Path) -> None:
    save_image(images / "images" / unicodedata.normalize("NFD", "é.png"))
    (images / "list.csv").write_text("path,label\nimages/é.png,x\nimages/a.png,y\n")
    assert len(scan_data(images / "list.csv")) == 2
    (images / "images/b.png").rename(os.fsdecode(bytes(images) + b"/images/\xfc.png"))
    (images / "list.csv").write_bytes("path,label\nimages/ü.png,x\nimages/a.png,y\n".encode("latin-1"))
    index = scan_data(images / "list.csv")
    assert all((index.root / path).is_file() for path in index.paths)


def test_ambiguous_file_name_is_refused(images: Path) -> None:
    save_image(images / "more/a.png")
    save_image(images / "more/b.png")
    table = write(images / "list.csv", "id,label\na,x\nb,y\n")
    with pytest.raises(DataError, match=r"2 names match more than one file, such as a\. .*--image-root"):
        scan_data(table)
    more = TableOptions(image_root=str(images / "more"))
    assert scan_data(table, table_options=more).root == images / "more"
    with pytest.raises(DataError, match="is not a folder"):
        scan_data(table, table_options=TableOptions(image_root=str(images / "nowhere")))
    with pytest.raises(DataError, match=r"does not exist in 1 row: c\. .*--image-root"):
        scan_data(write(images / "list.csv", "id,label\na,x\nc,y\n"), table_options=more)
    save_image(images / "images/a.jpg")
    with pytest.raises(DataError, match="1 name matches more than one file, such as a"):
        scan_data(write(images / "list.csv", "id,label\nimages/a,x\nimages/b,y\n"))


def test_table_of_a_split_prefers_its_folder(tmp_path: Path) -> None:
    for folder in ("train", "test"):
        for name in "abc":
            save_image(tmp_path / folder / f"{name}.png")
    index = scan_data(write(tmp_path / "train.csv", "id,label\na,x\nb,y\nc,x\n"))
    assert index.paths == ("train/a.png", "train/b.png", "train/c.png")


def test_numbers_of_the_rows_are_no_names_where_names_are(tmp_path: Path) -> None:
    for k in range(4):
        save_image(tmp_path / f"images/{k}.png")
    text = "".join(f"{k}\t{k % 2}\timages/{3 - k}.png\t{3 - k}_mask.png\n" for k in range(4))
    index = scan_data(write(tmp_path / "train.tsv", "id\tlabel\tfile\tmask\n" + text))
    assert [index.classes[label] for label in index.labels] == ["1", "0", "1", "0"]
    save_image(tmp_path / "images/0_mask.png")
    text = "".join(f"{k},{k % 2},{k}_mask.png\n" for k in range(4))
    index = scan_data(write(tmp_path / "train.csv", "id,label,mask_of_it\n" + text))
    assert index.paths[0] == "images/0.png"


def test_a_flag_called_group_is_no_group_and_a_partition_no_label(images: Path) -> None:
    index = scan_data(write(images / "flags.csv", rows("1,0,1", "0,1,1", "1,1,0", head="Id,Eyes,Group,Human")))
    assert (index.classes, index.groups) == (("Eyes", "Group", "Human"), ())
    with pytest.raises(DataError, match="no column for the labels"):
        scan_data(write(images / "partition.csv", rows("0", "1", "2", head="image_id,partition")))


@pytest.mark.parametrize("name", ["Probe_id", "Chargen-Nr", "número"])  # of objects whose words are not known
def test_identifiers_beside_another_column_are_not_the_classes(name: str, tmp_path: Path) -> None:
    path = write_objects(tmp_path, f"area,{name}", [f"{k}.5,P{k}" for k in range(12)])
    with pytest.raises(DataError, match=rf"no column for the labels \(it has area, {name} beside the paths\)"):
        scan_data(path)
    path = write_objects(tmp_path, f"habit,{name}", [f"{'tree' if k % 2 else 'shrub'},P{k}" for k in range(12)])
    index = scan_data(path)
    assert index.classes == ("shrub", "tree")
    assert any(f"column {name!r} has 12 values, each with one target only" in note for note in index.notes)
    assert len(scan_data(write_objects(tmp_path, name, [f"P{k}" for k in range(12)])).classes) == 12


@pytest.mark.parametrize(
    "name", ["Patienten-ID", "ID Paciente", "empi_anon", "MRN", "患者", "Patient_index", "PatientID"]
)
def test_column_of_patients_is_known_by_its_words(name: str, images: Path) -> None:
    text = rows("x,s1,p1,40", "y,s2,p1,41", "x,s3,p2,42", head=f"path,label,study_id,{name},patient_age")
    assert scan_data(write(images / "list.csv", text)).groups == ("p1", "p1", "p2", "p1")


def write_objects(folder: Path, head: str, rows: Sequence[str]) -> Path:
    """Write a table of images, of which three in a row have the same other columns."""
    for k in range(3 * len(rows)):
        save_image(folder / f"{k:03}.png")
    lines = [f"{k:03}.png,{row}" for k, row in enumerate(row for row in rows for _ in range(3))]
    return write(folder / "list.csv", "\n".join([f"path,{head}", *lines]) + "\n")


@pytest.mark.parametrize(
    "name",
    [
        "plant_id", "Pflanze", "plantid", "StudyInstanceUID", "specimen no", "AnimalID", "video", "serial_number",
        "plot", "observation_uuid", "occurrenceID",
    ],
)  # fmt: skip
def test_column_of_objects_is_known_by_its_words_and_digits(name: str, tmp_path: Path) -> None:
    index = scan_data(write_objects(tmp_path, f"label,{name}", [f"{'ab'[k % 2]},x{k}" for k in range(8)]))
    assert index.groups == tuple(f"x{k // 3}" for k in range(24))


@pytest.mark.parametrize(
    ("head", "row"),
    [
        ("label,plant", "{ab},{tomato}"),  # a species
        ("class,animal_id", "{antelope},{c}"),  # numbers of the classes
        ("label,part_no", "{ab},{k}"),  # a type
        ("label,sample", "{ab},S{ab}"),  # two values
    ],
)
def test_column_of_classes_or_types_is_no_group(head: str, row: str, tmp_path: Path) -> None:
    words = ("tomato", "maize", "wheat", "beet")
    rows = [row.format(k=k % 4, c=k % 4, ab="ab"[k % 2], tomato=words[k % 4], antelope=words[k % 4]) for k in range(8)]
    assert scan_data(write_objects(tmp_path, head, rows)).groups == ()


@pytest.mark.parametrize(
    ("cells", "numbers", "note"),
    [
        ("1.250 980 12.000 870", [1250, 980, 12000, 870], "the point separates thousands: 1.250 is read as 1250"),
        ("1.250.000 2.500", [1250000, 2500], "the point separates thousands: 1.250.000 is read as 1250000"),
        ("1,250 980 12,000 870", [1250, 980, 12000, 870], "the comma separates thousands: 1,250 is read as 1250"),
        ("1,125 2 2,375 1", [1.125, 2, 2.375, 1], "the comma is a decimal comma: 1,125 is read as 1.125"),
        ("1,125 0.5 2,375", [1.125, 0.5, 2.375], "the comma is a decimal comma: 1,125 is read as 1.125"),
        ("98.125 100 101.375", [98.125, 100, 101.375], None),
    ],
)
def test_commas_and_points_are_read_as_the_other_numbers_show(
    cells: str, numbers: list[float], note: str | None
) -> None:
    assert parse_numbers(cells.split()) == (numbers, note)


def test_columns_of_further_images_are_named(tmp_path: Path) -> None:
    """Such as those of the other cameras of a part: a third of the images would be used, without a word."""
    for k in range(24):
        save_image(tmp_path / "images" / f"{k:03}.png")
    lines = [f"{k:03}.png,{k + 8:03}.png,{k:03}.png,x_mask.png,{k + 16:03}.png,{'ab'[k % 2]}" for k in range(8)]
    table = write(tmp_path / "parts.csv", "\n".join(["cam1,cam2,file_name,mask,cam3,label", *lines]) + "\n")
    [note] = [note for note in scan_data(table).notes if "further" in note]
    assert note == "2 columns name further images, which are not used (cam2, cam3): write a row for each image"


def test_an_unused_column_that_may_be_groups_is_named(tmp_path: Path) -> None:
    note = "column 'pot' has 12 values, each with one target only. .* --group-column pot keeps its images in one split"
    rows = [f"{'ab'[k % 2]},P{k},{k % 3},20{k % 4}" for k in range(12)]
    table = write_objects(tmp_path, "label,pot,row,year", rows)
    assert re.search(note, " / ".join(scan_data(table).notes))
    assert "--group-column" not in " ".join(scan_data(table, table_options=TableOptions(group_column="none")).notes)
    grouped = scan_data(table, table_options=TableOptions(group_column="pot"))
    assert len(set(grouped.groups)) == 12
    assert "--group-column" not in " ".join(grouped.notes)
    rare = write_objects(tmp_path, "label,pot", [f"{'ab'[k == 5]},P{k}" for k in range(40)])
    assert "--group-column" not in " ".join(scan_data(rare).notes), "one frequent class: may be chance"


def test_group_of_few_values_is_the_label(tmp_path: Path) -> None:
    for k in range(36):
        save_image(tmp_path / f"{k}.png")
    lines = [f"{k},S{k // 4},{('AD', 'CN', 'MCI')[k // 4 % 3]},F" for k in range(36)]
    index = scan_data(write(tmp_path / "adni.csv", "\n".join(["Image Data ID,Subject,Group,Sex", *lines])))
    assert (index.classes, len(set(index.groups))) == (("AD", "CN", "MCI"), 9)
    lines = [f"{k},{'ab'[k % 2]},{('control', 'treated')[k // 4 % 2]}" for k in range(36)]
    (tmp_path / "adni.csv").unlink()
    index = scan_data(write(tmp_path / "arms.csv", "\n".join(["path,label,group", *lines])))
    assert (index.classes, index.groups) == (("a", "b"), ())
    assert "columns that are not used: group" in index.notes


def test_folds_of_a_table_are_used(images: Path) -> None:
    names = [f"{k:02}" for k in range(20)]
    for name in names:
        save_image(images / f"images/{name}.png")
    text = "".join(f"images/{name},{k % 2},{k % 10 // 2}\n" for k, name in enumerate(names))
    index = scan_data(write(images / "list.csv", "path,label,fold\n" + text))
    assert index.notes[-1] == "column 'fold' has 5 folds: --folds 5 uses them; without it they are not used"
    assert set(index.splits) == {""}
    index, _ = group_index(index, "none")
    options = {"val_fraction": 0.2, "test_fraction": 0.2, "seed": 0}
    dealt = split_index(index, folds=Folds(number=5, fold=0), **options)  # type: ignore[arg-type]
    assert dealt.splits == tuple(f"fold-{k % 10 // 2 + 1}" for k in range(20))
    assert choose_fold(dealt, 2).rows("val") == [2, 3, 12, 13]
    with pytest.raises(UsageError, match="has 5 folds, not 4"):
        split_index(index, folds=Folds(number=4, fold=1), **options)  # type: ignore[arg-type]
    text = "".join(
        f"images/{name},{k % 2},{k % 5 if k < 15 else ''},{'train' if k < 15 else 'test'}\n"
        for k, name in enumerate(names)
    )
    index = scan_data(write(images / "list.csv", "path,label,fold,split\n" + text))
    dealt = split_index(index, folds=Folds(number=5, fold=0), **options)  # type: ignore[arg-type]
    assert dealt.splits == tuple(f"fold-{k % 5 + 1}" if k < 15 else "test" for k in range(20))
    assert "fold-1" not in split_index(index, **options).splits  # type: ignore[arg-type]


def test_a_column_of_classes_among_columns_of_labels_is_an_error_with_the_option_for_it(images: Path) -> None:
    table = write(images / "list.csv", "path,my class,plot\nimages/a.png,x,1\nimages/b.png,y,2\n")
    with pytest.raises(DataError, match="for a column of classes, give --label-column 'my class'"):
        scan_data(table, table_options=TableOptions(label_columns="my class,plot"))


def test_a_column_of_labels_that_is_named_twice_is_one_label(images: Path) -> None:
    table = write(images / "list.csv", "path,A,B\nimages/a.png,1,0\nimages/b.png,1,1\n")
    index = scan_data(table, table_options=TableOptions(label_columns="A,B,a"))
    assert (index.classes, index.values) == (("A", "B"), ((1.0, 0.0), (1.0, 1.0)))


def test_a_table_of_another_suffix_is_an_error_with_the_suffixes(images: Path) -> None:
    with pytest.raises(
        DataError,
        match=r"list\.dat is a file, not a folder\. .*a table \(\.csv, \.tsv, \.jsonl, \.xls.*, \.txt\)",
    ):
        scan_data(write(images / "list.dat", "path\tlabel\nimages/a.png\tx\n"))


def test_a_table_in_folders_that_may_be_entered_and_not_listed_is_read(
    images: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object) -> NoReturn:
        raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))

    write(images / "list.csv", "path,label\nimages/a.png,x\nimages/b.png,y\n")
    monkeypatch.setattr(os, "scandir", refuse)
    monkeypatch.setattr(os, "listdir", refuse)
    assert scan_data(images / "list.csv").paths == ("images/a.png", "images/b.png")


def make_studies(root: Path) -> list[str]:
    """Make two studies of two images for each of six patients; return the studies' folders."""
    studies = [f"set/{k % 2}/patient{k // 2:02}/study{k % 2}_{'np'[k % 2]}" for k in range(12)]
    for study in studies:
        save_image(root / study / "1.png")
        save_image(root / study / "inner/2.png")
        write(root / study / "notes.txt", "text")
    return studies


def test_folders_of_images_have_the_label_of_their_row(tmp_path: Path) -> None:
    studies = make_studies(tmp_path)
    text = "".join(f"mura/{study}/,{k % 2}\n" for k, study in enumerate(studies))  # as MURA: no header
    index = scan_data(write(tmp_path / "studies.csv", text))
    assert len(index) == 24
    assert dict(zip(index.paths, index.labels, strict=True)) == {
        f"{study}/{name}": k % 2 for k, study in enumerate(studies) for name in ("1.png", "inner/2.png")
    }
    assert "the paths are folders: the images in each have the label of its row" in index.notes
    grouped, grouping = group_index(index, "auto")
    assert set(grouped.groups) == {f"patient{k:02}" for k in range(6)}
    assert not grouping.is_guess


def test_the_folder_of_a_row_is_a_group_of_its_own_unless_a_column_gives_one(tmp_path: Path) -> None:
    for k in range(4):
        save_image(tmp_path / f"dicom/1.2.{k}/1.png")
        save_image(tmp_path / f"dicom/1.2.{k}/2.png")
    studies = [f"1.2.{k},{'xy'[k % 2]},{'mf'[k // 2]}" for k in range(4)]
    index = scan_data(write(tmp_path / "list.csv", "\n".join(["StudyInstanceUID,label,sex", *studies])))
    assert index.paths[:2] == ("dicom/1.2.0/1.png", "dicom/1.2.0/2.png")
    index, _ = group_index(index, "auto")
    assert index.groups == tuple(f"1.2.{k // 2}" for k in range(8))
    [sex] = finish(read_attributes(index, {"sex": ()}, option="--subgroups"))
    assert sex.values == ("m", "m", "m", "m", "f", "f", "f", "f")
    patients = [f"1.2.{k},{'xy'[k % 2]},p{k % 2}" for k in range(4)]
    index = scan_data(write(tmp_path / "list.csv", "\n".join(["StudyInstanceUID,label,patient", *patients])))
    assert group_index(index, "auto")[0].groups == ("p0", "p0", "p1", "p1") * 2


def test_folders_of_a_table_without_images_are_refused(tmp_path: Path) -> None:
    studies = make_studies(tmp_path)
    (tmp_path / "empty").mkdir()
    text = "\n".join(["path,label", *(f"{study},{k % 2}" for k, study in enumerate(studies)), "empty,1"])
    with pytest.raises(DataError, match="a folder without images in 1 row: empty"):
        scan_data(write(tmp_path / "list.csv", text))
    with pytest.raises(DataError, match="a folder that does not exist in 1 row: none"):
        scan_data(write(tmp_path / "list.csv", text.replace("empty", "none")))


def test_a_table_of_classes_beside_their_folders_names_no_images(tmp_path: Path) -> None:
    for name in ("cat", "dog", "owl"):
        save_image(tmp_path / name / "1.png")
    write(tmp_path / "classes.csv", "class,kind\ncat,mammal\ndog,mammal\nowl,bird\n")
    assert scan_data(tmp_path).classes == ("cat", "dog", "owl")


def test_paths_whose_ends_name_one_file_are_not_cut(images: Path) -> None:
    save_image(images / "1.png")
    table = write(images / "list.csv", "path,label\n/a/p1/1.png,x\n/a/p2/1.png,x\n")
    with pytest.raises(DataError, match="a file that does not exist in 2 rows"):
        scan_data(table)


def test_rows_of_pipes_and_devices_are_called_so(images: Path) -> None:
    os.mkfifo(images / "pipe.png")
    rows = "images/a,x\nimages/b,y\npipe.png,x\n/dev/null,y\nnone.png,y\n"
    with pytest.raises(DataError, match=r"a pipe, a socket or a device in place of a file in 2 rows: pipe\.png, /dev/"):
        scan_data(write(images / "list.csv", f"path,label\n{rows}"))


def test_a_file_in_two_groups_is_refused(images: Path) -> None:
    table = write(images / "list.csv", "path,label,patient\nimages/a,x,p1\nimages/b,y,p2\nimages/a,x,p3\n")
    with pytest.raises(DataError, match="a file that an earlier row has with another group in 1 row: line 4"):
        scan_data(table)
    assert scan_data(table, table_options=TableOptions(group_column="none")).groups == ()


def test_images_of_a_second_column_are_noted(images: Path) -> None:
    table = write(images / "list.csv", "left,right,label\nimages/a.png,images/b.png,x\nimages/c.png,images/d.png,y\n")
    index = scan_data(table)
    assert len(index) == 2
    assert "columns that are not used: right" in index.notes


@pytest.mark.parametrize(("column", "end"), [("image", ""), ("photo_url", "?1623"), ("photo_url", "/medium.jpg")])
def test_addresses_are_named_as_such(column: str, end: str, images: Path) -> None:
    rows = "".join(f"https://a.org/x/{k}.png{end},{'xy'[k % 2]}\n" for k in range(2))
    table = write(images / "list.csv", f"{column},label\n{rows}")
    with pytest.raises(DataError, match=r"an address, which is not downloaded, in 2 rows: https://a.org/x/0.png"):
        scan_data(table)


def test_the_beginning_of_addresses_is_ignored_where_their_images_lie_beside_the_table(tmp_path: Path) -> None:
    for k in range(4):
        save_image(tmp_path / f"photos/{k}/medium.png")
    rows = "".join(f"https://a.org/photos/{k}/medium.png,{'xy'[k % 2]}\n" for k in range(4))
    index = scan_data(write(tmp_path / "list.csv", f"photo_url,label\n{rows}"))
    assert index.paths[0] == "photos/0/medium.png"
    assert "the beginning https://a.org/ of the paths is ignored" in index.notes


def test_an_archive_called_a_table_is_named(images: Path) -> None:
    (images / "list.csv").write_bytes(b"\x1f\x8b\x08" + bytes(range(256)))
    with pytest.raises(DataError, match=r"list\.csv is a spreadsheet or an archive, not text"):
        scan_data(images / "list.csv")


def test_folders_that_are_the_rows_of_a_table_are_no_classes(tmp_path: Path) -> None:
    for k in range(4):
        save_image(tmp_path / f"scans/100{k}/1.png")
    write(tmp_path / "train.csv", "StudyInstanceUID,C1,C2\n1000,1,1\n1001,0,1\n1002,1,0\n1003,0,0\n")
    with pytest.raises(DataError, match=r"folders \(1000, .*\) and a table \(train.csv: C1, C2\) that may both"):
        scan_data(tmp_path)


def test_text_files_that_name_splits_are_noted(images: Path) -> None:
    write(images / "list.csv", "path,label\nimages/a.png,x\nimages/b.png,y\n")
    write(images / "train_val_list.txt", "a.png\n")
    note = "lists that are not used: train_val_list.txt; if they name splits, write these into a CSV file"
    assert note in scan_data(images).notes
    (images / "list.csv").unlink()
    with pytest.raises(DataError, match="txt files are not read"):
        scan_data(images)


@pytest.mark.parametrize(
    ("column", "splits"),
    [
        ("is_valid", ("train", "val")),
        ("isTest", ("train", "test")),
        ("in_test", ("train", "test")),
        ("Is Train", ("test", "train")),
    ],
)
def test_a_column_of_flags_marks_a_split(images: Path, column: str, splits: Sequence[str]) -> None:
    index = scan_data(write(images / "list.csv", rows("x,False", "y,False", "x,True", head=f"path,label,{column}")))
    assert index.splits == tuple(splits[k] for k in (0, 0, 1, 0))
    assert f"columns: split {column!r}" in index.notes
    index = scan_data(write(images / "list.csv", rows("x,0", "y,0", head=f"path,label,{column}")))
    assert set(index.splits) == {""}


@pytest.mark.parametrize(
    ("column", "splits"), [("test", "train train test"), ("train", "test test train"), ("val_set", "train train val")]
)
def test_a_flag_that_may_be_a_split_is_one_if_it_is_named(images: Path, column: str, splits: str) -> None:
    table = write(images / "list.csv", rows("x,0", "y,0", "x,1", number=3, head=f"path,label,{column}"))
    index = scan_data(table)
    assert set(index.splits) == {""}
    note = f"column {column!r} has 0 and 1: if they mark the images of a split, --split-column {column} uses them"
    assert note in index.notes
    index = scan_data(table, table_options=TableOptions(split_column=column))
    assert (" ".join(index.splits), index.classes) == (splits, ("x", "y"))


def test_notes_count_only_labels_that_are_there(images: Path) -> None:
    notes = scan_data(write(images / "list.csv", rows("1,-1", "0,1", "1,0", number=3, head="path,A,B"))).notes
    assert "1 label is -1, which counts as unknown in evaluation (--uncertain sets their training target)" in notes
    notes = scan_data(write(images / "list.csv", rows("1,", "0,1", "1,0", "0,0", head="path,A,B"))).notes
    assert "1 blank label counts as unknown (--blank negative reads it as 0)" in notes
    assert not any(note.startswith("0 ") or "0 labels" in note for note in notes)


def test_identifiers_are_no_numbers_to_learn(images: Path) -> None:
    text = rows("p1,50000001,validate", "p2,50000017,train", "p3,50000400,test", head="id,subject,study_id,split")
    with pytest.raises(DataError, match=r"no column for the labels \(it has study_id beside the paths\)"):
        scan_data(write(images / "list.csv", text))
    index = scan_data(images / "list.csv", table_options=TableOptions(label_column="study_id", task="regression"))
    assert index.list_splits() == ["train", "val", "test"]


LISTS = {
    "a number": ("images/a.png 0\nimages/b.png 1\nimages/c.png 0\nimages/d.png 1\n", "0,1", "abcd"),
    "names without suffix": ("# name class\n\na 1\nb 2\nc 2\n", "1,2", "abc"),
    "several blanks and tabs": ("images/a.png  x\nimages/b.png\ty\n", "x,y", "ab"),
    "tabs": ("a.png\tx x\nb.png\ty\n", "x x,y", "ab"),
    "names of several words": ("images/a.png Boeing 707\nimages/b.png DC-3\n", "Boeing 707,DC-3", "ab"),
    "a header": ("path label\nimages/a.png x\nimages/b.png y\n", "x,y", "ab"),
    "identifiers before and a source after": ("1 a.png x s\n2 b.png y s\n3 c.png x s\n", "x,y", "abc"),
}


@pytest.mark.parametrize("case", LISTS)
def test_a_text_file_of_images_and_classes_is_a_table(images: Path, case: str) -> None:
    text, classes, names = LISTS[case]
    index = scan_data(write(images / "list.txt", text))
    assert index.paths == tuple(f"images/{name}.png" for name in names)
    assert index.classes == tuple(classes.split(","))


def test_attributes_in_the_form_of_celeba_are_several_labels(images: Path) -> None:
    text = "4\nSmiling Young\n" + "".join(
        f"{name}.png {sign:2} -1\n" for name, sign in zip("abcd", (1, -1, 1, 1), strict=True)
    )
    index = scan_data(write(images / "list_attr.txt", text.replace("b.png -1 -1", "b.png -1  1")))
    assert (index.classes, index.values) == (("Smiling", "Young"), ((1.0, 0.0), (0.0, 1.0), (1.0, 0.0), (1.0, 0.0)))


def test_a_list_of_a_partition_names_no_classes(images: Path) -> None:
    write(images / "list_eval_partition.txt", "a.png 0\nb.png 0\nc.png 1\nd.png 2\n")
    with pytest.raises(DataError, match=r"Its \.txt files are not read"):
        scan_data(images)


def test_lists_in_a_folder_without_classes_name_them(images: Path) -> None:
    write(images / "train.txt", "a.png x\nb.png y\n")
    write(images / "test.txt", "c.png x\nd.png y\n")
    write(images / "val_list.txt", "no list\n")
    index = scan_data(images)
    assert (index.classes, index.splits) == (("x", "y"), ("train", "train", "test", "test"))
    assert "the classes are those of train.txt + test.txt" in index.notes
    assert index.notes[-1].startswith("lists that are not used: val_list.txt; the data have splits without them")
    note = f"tables beside it that may be splits are not used: test.txt; to use them, give {images}"
    assert note in scan_data(images / "train.txt").notes
    write(images / "labels.csv", "path,label\na,p\nb,q\nc,p\nd,q\n")
    index = scan_data(images)
    assert (index.classes, index.splits) == (("p", "q"), ("train", "train", "test", "test"))


def test_images_beside_the_folder_of_a_list_are_named_and_masks_in_it_are_not_read(images: Path) -> None:
    for name in "abcd":
        save_image(images / f"annotations/lists/trimaps/{name}.png")
    table = write(images / "annotations/lists/list.txt", "a 1\nb 2\nc 1\nd 2\n")
    with pytest.raises(DataError, match="Name it with --path-column"):
        scan_data(table)
    table = table.rename(images / "annotations/list.txt")
    with pytest.raises(DataError, match=r"no column for .* --image-root DIR names the folder"):
        scan_data(table)
    index = scan_data(table, table_options=TableOptions(image_root=str(images / "images")))
    assert index.classes == ("1", "2")


def test_numbers_of_the_rows_are_not_learned(images: Path) -> None:
    with pytest.raises(DataError, match="no column for the labels"):
        scan_data(write(images / "images.txt", "1 a.png\n2 b.png\n3 c.png\n4 d.png\n"))


@pytest.mark.parametrize(
    ("head", "cells", "splits", "classes"),
    [
        ("label,train,test", ("x,1,0", "y,1,0", "x,0,1", "y,0,1"), "train train test test", "x y"),
        ("label,Train,Valid", ("x,1,0", "y,True,False", "x,0,1", "y,0,0"), "train train val ", "x y"),
        ("label,Train,Valid", ("x,1,0", "y,True,False", "x,0,1", "y,,"), "   ", "x y"),
        ("edema,mass,train,test", ("1,0,1,0", "1,1,1,0", "0,1,0,1", "0,0,0,1"), "train train test test", "edema mass"),
        ("bus,test,train", ("1,0,1", "0,1,1", "0,0,1", "1,1,0"), "   ", "bus test train"),
        ("label,train,test,split", ("x,1,0,val", "y,1,0,train", "x,0,1,", "y,0,1,train"), "val train  train", "x y"),
    ],
)
def test_columns_of_flags_for_each_split(
    images: Path, head: str, cells: Sequence[str], splits: str, classes: str
) -> None:
    index = scan_data(write(images / "list.csv", rows(*cells, head=f"path,{head}")))
    assert (" ".join(index.splits), " ".join(index.classes)) == (splits, classes)


@pytest.mark.parametrize(
    ("text", "reason"),
    [
        ("id,class\nc,x\nd,y\n", "it has no column 'label'"),
        ("id,label\nc,0\nd,0\n", "all its labels are the same or blank"),
        ("id,label\ne,x\nf,y\n", "its images are not there"),
    ],
)
def test_a_table_that_is_no_split_is_left_out_with_the_reason(images: Path, text: str, reason: str) -> None:
    write(images / "train.csv", "id,label\na,x\nb,y\n")
    write(images / "test.csv", text)
    index = scan_data(images)
    assert (len(index), set(index.splits), index.table) == (2, {""}, images / "train.csv")
    assert f"test.csv is no test split: {reason}" in index.notes
    write(images / "val.csv", "id,label\nc,x\nd,y\n")
    index = scan_data(images)
    assert index.list_splits() == ["train", "val"]
    assert f"test.csv is no test split: {reason}" in index.notes


def test_the_tables_of_splits_read_each_folder_once(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    tables = {
        "train": write(images / "train.csv", "id,label\na,x\nb,y\n"),
        "val": write(images / "val.csv", "id,label\nc,x\nd,y\n"),
    }
    read, scan = Counter[str](), os.scandir

    def count(path: str) -> object:
        read[path] += 1
        return scan(path)

    monkeypatch.setattr(os, "scandir", count)
    read_split_manifests({split: read_table(path) for split, path in tables.items()}, AUTO_OPTIONS)
    assert read[str(images / "images")] == 1
