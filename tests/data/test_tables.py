"""JSON Lines files and spreadsheets give the index that a CSV file of their content gives."""

import csv
import json
import sys
import zipfile
from collections.abc import Callable, Iterable, Sequence
from dataclasses import fields, replace
from pathlib import Path

import pytest

from convnext_cli.data.attributes import read_attributes
from convnext_cli.data.index import Index
from convnext_cli.data.sources import scan_data
from convnext_cli.data.tables.table import list_tables, read_table
from convnext_cli.errors import DataError
from convnext_cli.progress import finish
from convnext_cli.tasks.reading import TableOptions
from tests.conftest import save_image
from tests.data.spreadsheets import DAY, XLS, Row, write_ods, write_xlsx

HEAD = ("file_name", "label", "patient_id", "note")
ROWS: tuple[Row, ...] = (
    ("0.png", "x, left", "007", 1),
    ("1.png", "y", "007", 2.5),
    ("2.png", "x, left", "008", None),
    ("3.png", "y", "012", True),
)


@pytest.fixture
def images(tmp_path: Path) -> Path:
    for k in range(4):
        save_image(tmp_path / f"data/{k}.png")
    return tmp_path / "data"


def write_csv(path: Path, rows: Iterable[Row], head: Sequence[str] = HEAD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])
    return path


def write_json(path: Path, rows: Iterable[Row], head: Sequence[str] = HEAD) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("".join(json.dumps(dict(zip(head, row, strict=True))) + "\n" for row in rows))
    return path


def write_sheet(path: Path, rows: Iterable[Row], head: Sequence[str] = HEAD) -> Path:
    pytest.importorskip("python_calamine", reason="the extra excel is not installed")
    return write_xlsx(path, {"Sheet1": [head, *rows], "Sheet2": [], "Sheet3": [["read by two readers"]]})


WRITERS: dict[str, Callable[..., Path]] = {".jsonl": write_json, ".xlsx": write_sheet}


def without_names(index: Index, suffix: str) -> dict[str, object]:
    """Return the fields of an index, with the names of its tables as those of CSV files."""
    values = {each.name: getattr(index, each.name) for each in fields(index) if each.name not in ("table", "source")}
    return values | {"notes": [note.replace(suffix, ".csv") for note in index.notes]}


@pytest.mark.parametrize("suffix", WRITERS)
@pytest.mark.parametrize("place", ["itself", "folder", "splits", "zip"])
def test_a_table_is_read_as_a_csv_file_of_the_same_content(images: Path, suffix: str, place: str) -> None:
    indices = []
    for kind, write in ((".csv", write_csv), (suffix, WRITERS[suffix])):
        if place == "splits":
            for split in ("train", "test"):
                for k in range(4):
                    save_image(images.parent / f"sets/{split}/{k}.png")
                write(images.parent / f"sets/{split}/metadata{kind}", ROWS)
            data = images.parent / "sets"
        else:
            table = write(images / f"metadata{kind}", ROWS)
            data = table if place == "itself" else images
        tables = list(data.rglob(f"*{kind}")) if data.is_dir() else [data]
        if place == "zip":
            data = images.parent / f"{kind[1:]}.zip"
            with zipfile.ZipFile(data, "w") as packed:
                for path in images.iterdir():
                    packed.write(path, path.name)
        index = scan_data(data)
        indices.append(without_names(replace(index, root=Path()) if place == "zip" else index, kind))
        for path in tables:
            path.unlink()
    assert indices[0] == indices[1]
    assert indices[0]["classes"] == ("x, left", "y")
    assert set(indices[0]["groups"]) == {"007", "008", "012"}  # type: ignore[call-overload]
    assert set(indices[0]["splits"]) == ({"train", "test"} if place == "splits" else {""})  # type: ignore[call-overload]


def test_values_of_json_are_cells_as_they_are_written(images: Path) -> None:
    line = (
        '{"path": "0.png", "a": 1.50, "b": 1e3, "c": true, "d": null, "e": " x\\ny ", "f": NaN, "g": 1234567890123456}'
    )
    table = images / "t.jsonl"
    table.write_bytes(b"\xef\xbb\xbf" + line.encode() + b"\r\n\r\n" + line.encode())
    columns = read_table(table).columns
    assert [cells[1] for cells in columns.values()] == [
        "0.png", "1.50", "1e3", "True", "", "x\ny", "NaN", "1234567890123456"
    ]  # fmt: skip
    assert read_table(table).lines == [1, 3]


def test_lists_of_strings_are_several_labels(images: Path) -> None:
    rows: list[Row] = [("0.png", ["a, b", "c|d (e)"]), ("1.png", ["c|d (e)"]), ("2.png", []), ("3.png", "f")]
    table = write_json(images / "t.jsonl", rows, ("file_name", "labels"))
    for separator in ("auto", ","):
        index = scan_data(table, table_options=TableOptions(label_sep=separator))
        assert index.classes == ("a, b", "c|d (e)", "f")
        assert index.values == ((1.0, 1.0, 0.0), (0.0, 1.0, 0.0), (0.0, 0.0, 0.0), (0.0, 0.0, 1.0))
    assert "lists in 'labels': read as several labels per image; --task single overrides this" in index.notes
    single = [(f"{k}.png", [label]) for k, label in enumerate(("a, b", "c", "a, b", "c"))]
    index = scan_data(write_json(table, single, ("file_name", "labels")))
    assert (index.classes, index.values) == (("a, b", "c"), ())


def test_keys_may_be_missing_and_objects_are_left_out(images: Path) -> None:
    rows = [
        {"file_name": "0.png", "labels": [0, 2], "objects": {"bbox": [[1, 2, 3, 4]], "categories": [0]}},
        {"file_name": "1.png", "labels": [2], "box": [1, [2]], "site": "A"},
        {"file_name": "2.png", "labels": []},
    ]
    (images / "metadata.jsonl").write_text("\n".join(map(json.dumps, rows)))
    index = scan_data(images / "metadata.jsonl")
    assert (index.classes, index.values) == (("0", "2"), ((1.0, 1.0), (0.0, 1.0), (0.0, 0.0)))
    assert read_table(images / "metadata.jsonl").columns["site"] == ["", "A", ""]
    assert "columns that are not used: site, box, objects" in index.notes
    with pytest.raises(DataError, match="has no column 'objects'"):
        scan_data(images / "metadata.jsonl", table_options=TableOptions(label_column="objects"))


def test_splits_may_have_lists_of_one_label_only(images: Path) -> None:
    labels: dict[str, list[list[str]]] = {"train": [["a", "b"], ["c"], ["c", "d"]], "test": [["a"], ["d"], ["b"]]}
    for split, lists in labels.items():
        for k in range(3):
            save_image(images / f"{split}/{k}.png")
        rows = [(f"{k}.png", each) for k, each in enumerate(lists)]
        write_json(images / f"{split}/metadata.jsonl", rows, ("file_name", "labels"))
    for k in range(4):
        (images / f"{k}.png").unlink()
    index = scan_data(images)
    assert index.classes == ("a", "b", "c", "d")
    assert [sum(row) for row in index.values] == [1, 1, 1, 2, 1, 2]


WRONG_LINES = {
    '{"path": "1.png", "label": "y"},': r"line 3: it is not JSON \(Extra data: .* column 32",
    '{"path": "1.png", "label": }': "line 3: it is not JSON",
    '["1.png", "y"]': "line 3: it is not an object, such as",
    '{"path": "1.png"}': "has no label .column 'label'. in 1 row: line 3",
    '{"path": "1.png", "label": ' + "[" * 100_000: "line 3: its values are nested too deeply",
    '{"path": "1\\u0000.png", "label": "y"}': "line 3: the value of 'path' has a control character",
    '{"path": "1.png", "label": "\\ud800"}': "line 3: the value of 'label' has .* half a character",
    '{"path": "1.png", "label": NaN}': "has no label .column 'label'. in 1 row: line 3",
}


@pytest.mark.parametrize("line", WRONG_LINES, ids=range(len(WRONG_LINES)))
def test_wrong_lines_of_json_are_named(images: Path, line: str) -> None:
    (images / "t.jsonl").write_text('{"path": "0.png", "label": "x"}\n\n' + line + "\n")
    with pytest.raises(DataError, match=WRONG_LINES[line]) as caught:
        scan_data(images / "t.jsonl")
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 300


def test_cells_of_spreadsheets_are_those_of_csv_files(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine", reason="the extra excel is not installed")
    rows: list[Row] = [
        [],
        ["path", "a", "b", "c", "d", "e", "f"],
        [" 1.png", 12.0, 0.1 + 0.2, True, f"{DAY}45293", "007", "=#N/A"],
        [None, " "],
        ["2.png", 20240101123456, -1, False, f"{DAY}45293.5", "", "x"],
        [None] * 9,
    ]
    table = read_table(write_xlsx(tmp_path / "t.xlsx", {"S": rows}))
    assert [*zip(*table.columns.values(), strict=True)] == [
        ("1.png", "12", "0.3", "True", "2024-01-02", "007", ""),
        ("2.png", "20240101123456", "-1", "False", "2024-01-02 12:00:00", "", "x"),
    ]
    assert table.lines == [3, 5]


@pytest.mark.parametrize("name", ["t.xls", "t.xlsx", "t.ods", "t.csv"])
def test_first_bytes_tell_the_format_of_a_spreadsheet(tmp_path: Path, name: str) -> None:
    pytest.importorskip("python_calamine", reason="the extra excel is not installed")
    expected = {"path": ["0.png", "1.png"], "label": ["x", "y"], "patient": ["100", "100"]}
    rows = [[*expected], *map(list, zip(*expected.values(), strict=True))]
    table = tmp_path / name
    assert read_table(write_ods(table, rows)).columns == expected
    assert read_table(write_xlsx(table, {"S": rows})).columns == expected
    table.write_bytes(XLS)
    columns = read_table(table).columns
    assert {key: cells[:2] for key, cells in columns.items()} == expected | {"day": ["2024-01-02", "2024-01-03"]}
    if name != "t.csv":
        table.write_text("path\tlabel\n0.png\tx\n")  # text that a program calls an Excel file
        assert read_table(table).columns == {"path": ["0.png"], "label": ["x"]}
        table.write_text("<html><table><tr><td>path</td></tr></table></html>")
        with pytest.raises(DataError, match=r"t\.\w+ is a page in HTML or XML, not a spreadsheet"):
            read_table(table)


def test_spreadsheets_that_cannot_be_read_are_errors_of_one_line(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine", reason="the extra excel is not installed")
    table, rows = tmp_path / "t.xlsx", [HEAD, *ROWS]
    write_xlsx(table, {"Labels": rows, "Legend": [["x", "left"], ["y", "right"]]})
    assert_error(table, r"has several sheets with a table: Labels, Legend\. Hide all but one")
    write_xlsx(table, {"Labels": rows, "Legend": rows}, hidden=["Legend"])
    assert len(read_table(table)) == 4
    assert_error(
        write_ods(table, rows[:1], rows_spanned=2),
        r"an ODS file with cells that are merged over rows\. .* save it as XLSX",
    )
    write_xlsx(table, {"S": [["path", "label"]]}, extra={"xl/media/image1.png": b"\0" * (1 << 20)})
    raw = table.read_bytes()
    size = (1 << 20).to_bytes(4, "little")
    at = raw.rindex(b"PK\1\2")
    assert raw[at + 24 : at + 28] == size
    table.write_bytes(raw[: at + 24] + (3 << 30).to_bytes(4, "little") + raw[at + 28 :])
    assert_error(table, r"cannot be read as a spreadsheet: it would unpack to 3\.0 GiB, above 1 GiB")
    table.write_bytes(raw[: len(raw) // 2])
    assert_error(table, "cannot be read as a spreadsheet: ")
    table.write_bytes(XLS[:600])
    assert_error(table, "cannot be read as a spreadsheet: ")
    assert_error(write_xlsx(table, {"S": []}), "has no rows")


@pytest.mark.parametrize(
    ("merged", "groups"),
    [("D4:D6", "1 2 2 2"), ("D3:D4", "1 1 2 "), ("G9:K20", "1  2 "), ("D4:E4", "1  2 "), ("A1:B1", "1  2 ")],
)
def test_merged_cells_have_their_value_in_each_row(tmp_path: Path, merged: str, groups: str) -> None:
    pytest.importorskip("python_calamine", reason="the extra excel is not installed")
    cells = ["1", None, "2", None] if merged != "D4:D6" else ["1", "2", None, None]
    rows = [(None, f"{k}.png", "xy"[k % 2], cell) for k, cell in enumerate(cells)]
    sheet: list[Row] = [[], (None, "path", "label", "patient"), *rows]
    table = read_table(write_xlsx(tmp_path / "t.xlsx", {"S": sheet}, merged=merged))
    assert table.columns == {
        "path": [f"{k}.png" for k in range(4)], "label": ["x", "y", "x", "y"], "patient": groups.split(" ")
    }  # fmt: skip


@pytest.mark.parametrize("suffix", WRITERS)
def test_tables_of_splits_may_have_different_formats(images: Path, suffix: str) -> None:
    write_csv(images / "train.csv", ROWS[:2])
    WRITERS[suffix](images / f"test{suffix}", ROWS[2:])
    index = scan_data(images)
    assert index.splits == ("train", "train", "test", "test")
    assert f"splits by the names of tables: train.csv, test{suffix}" in index.notes
    write_csv(images / "test.csv", ROWS[2:])
    assert "splits by the names of tables: train.csv, test.csv" in scan_data(images).notes
    for folder, kind in (("train", ".csv"), ("val", suffix)):
        for k in range(4):
            save_image(images.parent / f"sets/{folder}/{k}.png")
        (write_csv if kind == ".csv" else WRITERS[kind])(images.parent / f"sets/{folder}/metadata{kind}", ROWS)
    assert scan_data(images.parent / "sets").list_splits() == ["train", "val"]


@pytest.mark.parametrize("name", ["t.jsonl", "t.xlsx", "t.csv", "t.tsv", "t.txt"])
def test_a_table_names_the_images_to_exclude(images: Path, name: str) -> None:
    table = write_csv(images / "labels.csv", ROWS)
    head, rows = ("reason", "Image Path"), (("blurred", "1.png"), ("twice", "2.png"))
    if name.endswith((".jsonl", ".xlsx")):
        listing = WRITERS[Path(name).suffix](images.parent / name, rows, head)
    else:
        sign = {".csv": ";", ".tsv": "\t", ".txt": ","}[Path(name).suffix]
        listing = images.parent / name
        listing.write_text("".join(f"{sign.join(row)}\n" for row in (head, *rows)))
    assert scan_data(table, exclude=str(listing)).paths == ("0.png", "3.png")


def test_a_folder_with_the_name_of_a_column_can_be_excluded(images: Path) -> None:
    for name in ("a/1.png", "b/2.png", "image/3.png"):
        save_image(images.parent / "set" / name)
    for text in ("image\n", "image,blurred\n"):
        (images / "list.txt").write_text(text)
        assert scan_data(images.parent / "set", exclude=str(images / "list.txt")).classes == ("a", "b")
    (images / "list.txt").write_text("images\na\n")
    with pytest.raises(DataError, match=r"names 1 file that is not in .*: images"):
        scan_data(images.parent / "set", exclude=str(images / "list.txt"))


def test_tables_of_splits_beside_a_table_are_noted(images: Path) -> None:
    table = write_csv(images / "full.csv", ROWS)
    write_csv(images / "train.csv", ROWS[:2])
    write_json(images / "test.jsonl", ROWS[2:])
    note = "tables beside it that may be splits are not used: {}; to use them, give "
    assert scan_data(table).notes[-1] == f"{note.format('test.jsonl, train.csv')}{images}"
    assert scan_data(images / "train.csv").notes[-1] == f"{note.format('test.jsonl')}{images}"
    assert scan_data(images).list_splits() == ["train", "test"]
    assert not any(
        "may be splits" in note for note in scan_data(table, table_options=TableOptions(known_labels=("y",))).notes
    )


def test_a_table_prefers_the_folder_of_its_name(images: Path) -> None:
    for name in ("xmnist", "ymnist"):
        for k in range(4):
            save_image(images / f"{name}/{k}.png")
            (images / f"{k}.png").unlink(missing_ok=True)
        write_csv(images / f"{name}.csv", ROWS)
    assert scan_data(images / "ymnist.csv").paths == tuple(f"ymnist/{k}.png" for k in range(4))
    with pytest.raises(DataError, match=r"folders \(xmnist, ymnist\) and a table \(xmnist.csv: .* different classes"):
        scan_data(images)


def test_images_outside_the_folder_of_the_table_need_their_own(images: Path) -> None:
    table = write_csv(images.parent / "labels/t.csv", ROWS)
    with pytest.raises(DataError, match=r"not exist in 4 rows: .* name the folder of the paths with --image-root"):
        scan_data(table)
    assert len(scan_data(table, table_options=TableOptions(image_root=str(images)))) == 4


def test_the_remedy_is_not_that_of_one_table_of_several(images: Path) -> None:
    for name in ("A_Training_Input/0.png", "A_Test_Input/1.png"):
        save_image(images.parent / "set" / name)
    write_csv(images.parent / "set/groupings.csv", [("0", "l1")], ("image", "lesion_id"))
    truth = write_csv(images.parent / "set/A_Training_Truth/truth.csv", ROWS)
    with pytest.raises(DataError, match=f"groupings.csv cannot be used.* Give the table itself, such as {truth}"):
        scan_data(images.parent / "set")


def test_a_cell_far_from_the_table_does_not_take_all_memory(tmp_path: Path) -> None:
    pytest.importorskip("python_calamine", reason="the extra excel is not installed")
    table = write_xlsx(tmp_path / "t.xlsx", {"S": [["path", "label"], ["0.png", "x"]]})
    with zipfile.ZipFile(table) as packed:
        files = {name: packed.read(name) for name in packed.namelist()}
    far = b'<row r="1048576"><c r="XFD1048576"><v>1</v></c></row></sheetData>'
    with zipfile.ZipFile(table, "w") as packed:
        for name, content in files.items():
            packed.writestr(name, content.replace(b"</sheetData>", far))
    assert_error(table, "damaged, or has cells so far from the table that 4 GiB of memory do not hold it")


def assert_error(table: Path, message: str) -> None:
    with pytest.raises(DataError, match=message) as caught:
        read_table(table)
    assert "\n" not in str(caught.value)


def test_without_the_extra_the_error_says_how_to_install_it(images: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    write_xlsx(images / "labels.xlsx", {"S": [HEAD, *ROWS]})
    monkeypatch.setitem(sys.modules, "python_calamine", None)
    for data in (images, images / "labels.xlsx"):
        with pytest.raises(DataError, match=r"labels\.xlsx is a spreadsheet, which needs: pip install .*\[excel\]"):
            scan_data(data)
    write_csv(images / "labels.csv", (row[:2] for row in ROWS), HEAD[:2])
    for data in (images, images / "labels.csv"):
        note = "tables not read: labels.xlsx, which needs: pip install 'convnext-cli[excel]'"
        assert note in scan_data(data).notes


def test_lock_files_of_excel_are_not_tables(images: Path) -> None:
    (images / "~$labels.xlsx").write_bytes(b"\5user" + b" " * 160)
    (images / "._labels.csv").write_bytes(b"\0\5\26\7")
    table = write_csv(images / "labels.csv", ROWS)
    assert list_tables(images) == [table]
    index = scan_data(images)
    assert index.table == table
    assert not [note for note in index.notes if "$" in note]


def test_a_spreadsheet_beside_its_csv_file_is_a_copy(images: Path) -> None:
    table = write_csv(images / "labels.csv", ROWS)
    write_json(images / "labels.jsonl", ROWS)
    index = scan_data(images)
    assert index.table == table
    assert "tables that are not used: labels.jsonl" in index.notes
    write_json(images / "labels.jsonl", [("0.png", "y", "007", 1), *ROWS[1:]])
    with pytest.raises(DataError, match=r"labels\.csv, labels\.jsonl each name classes"):
        scan_data(images)


def test_a_broken_table_beside_the_data_does_not_hide_attributes(images: Path) -> None:
    index = scan_data(write_csv(images / "labels.csv", ROWS))
    write_json(images / "site.jsonl", [(f"{k}.png", "AB"[k // 2]) for k in range(4)], ("file_name", "site"))
    (images / "notes.jsonl").write_text("{\n")
    index = replace(index, table=None)
    [site] = finish(read_attributes(index, {"site": ()}, option="--subgroups"))
    assert sorted(site.values) == ["A", "A", "B", "B"]
    with pytest.raises(DataError, match=r"notes\.jsonl, line 1: it is not JSON"):
        finish(read_attributes(index, {"sex": ()}, option="--subgroups"))


def test_the_error_of_the_only_table_beside_images_is_told(images: Path) -> None:
    (images / "metadata.jsonl").write_text("{\n")
    with pytest.raises(DataError, match=r"^\S*metadata\.jsonl, line 1: it is not JSON"):
        scan_data(images)
    (images / "notes.csv").write_text("a,b\n1,2\n")
    with pytest.raises(DataError, match=r"no images in class folders .*\(metadata\.jsonl cannot be used: "):
        scan_data(images)
