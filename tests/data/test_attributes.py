from collections.abc import Iterable, Sequence
from pathlib import Path

import pytest

from convnext_cli.data.attributes import Attribute, parse_attributes, read_attributes
from convnext_cli.data.index import Index
from convnext_cli.data.sources import scan_data
from convnext_cli.errors import DataError, UsageError
from convnext_cli.progress import finish
from convnext_cli.tasks.reading import TableOptions
from tests.conftest import save_image
from tests.images.dicom import XRAY, save_dicom

AGES = (3, 17, 18, 40, 64, 65, 80, 90, 5, 30, 50, 70)


def write_data(folder: Path) -> Path:
    """Write 12 images and their table, with sex, age and a patient for every two of them."""
    rows = ["path,label,patient,sex,age,site"]
    for number, age in enumerate(AGES):
        save_image(folder / f"images/{number:02}.png", seed=number)
        rows.append(
            f"images/{number:02},{'ab'[number % 2]},p{number // 2},{'FM'[number % 2]},{age},{'XYZ'[number % 3]}"
        )
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


def read(index: Index, text: str, table: Path | None = None) -> list[Attribute]:
    return finish(read_attributes(index, parse_attributes(text), table=table, option="--subgroups"))


@pytest.mark.parametrize(
    ("text", "cuts"),
    [
        ("sex", {"sex": ()}),
        ("sex, age:18,65 ,site", {"sex": (), "age": (18, 65), "site": ()}),
        ("age:0.5", {"age": (0.5,)}),
    ],
)
def test_names_and_cuts_are_parsed(text: str, cuts: dict[str, Sequence[float]]) -> None:
    assert parse_attributes(text) == cuts


@pytest.mark.parametrize("text", ["", "sex,,age", "age:x", "sex,sex", "age:65,18", "age:18,18"])
def test_invalid_names_and_cuts_raise_an_error(text: str) -> None:
    with pytest.raises(UsageError):
        parse_attributes(text)


def test_columns_of_the_data_are_read_and_ages_are_binned(tmp_path: Path) -> None:
    index = scan_data(write_data(tmp_path))
    sex, age, site = read(index, "Sex,age,site")
    assert sex.values == tuple("FM" * 6)
    assert (sex.levels, sex.source) == (("F", "M"), "column 'sex' of table.csv")
    assert age.levels == ("< 18", "18 to < 65", ">= 65")
    assert age.cuts == "cut at 18, 65 (usual for an age)"
    assert age.values[:3] == ("< 18", "< 18", "18 to < 65")
    assert site.levels == ("X", "Y", "Z")
    assert site.example == ""
    [halves] = read(index, "age:50")
    assert halves.levels == ("< 50", ">= 50")
    assert halves.values.count("< 50") == 6


def test_columns_of_the_tables_of_splits_are_read(tmp_path: Path) -> None:
    header, *lines = write_data(tmp_path).read_text().splitlines()
    (tmp_path / "table.csv").unlink()
    for name, rows in (("train", lines[:8]), ("test", lines[8:])):
        (tmp_path / f"{name}.csv").write_text("\n".join([header, *rows]))
    [sex] = read(scan_data(tmp_path), "sex")
    assert sex.values == tuple("FM" * 6)
    assert sex.source == "column 'sex' of test.csv, column 'sex' of train.csv"


def test_columns_of_a_table_beside_class_folders_are_found(tmp_path: Path) -> None:
    for number in range(6):
        save_image(tmp_path / f"data/{'ab'[number % 2]}/{number}.png", seed=number)
    (tmp_path / "data/extra.csv").write_text("file,weight\n" + "".join(f"{'ab'[n % 2]}/{n},{n}\n" for n in range(6)))
    [weight] = read(scan_data(tmp_path / "data"), "weight")
    assert sorted(weight.values) == list("012345")


def test_columns_of_a_table_with_two_columns_of_images_belong_to_those_of_the_data(tmp_path: Path) -> None:
    rows = ["left,right,patient,device_of_right,label"]
    for number in range(8):
        for eye in ("l", "r"):
            save_image(tmp_path / f"{eye}{number}.png", seed=2 * number + (eye == "r"))
        rows.append(f"l{number},r{number},p{number // 2},D{number % 2},{'ab'[number // 4]}")
    (tmp_path / "table.csv").write_text("\n".join(rows))
    [device] = read(scan_data(tmp_path, table_options=TableOptions(path_column="right")), "device_of_right")
    assert device.values == ("D0", "D1") * 4


def test_second_table_matches_by_path_without_suffix_or_by_group(tmp_path: Path) -> None:
    index = scan_data(write_data(tmp_path / "data"))
    by_path, by_group = tmp_path / "by_path.csv", tmp_path / "by_group.csv"
    by_path.write_text("image,device\n" + "".join(f"{number:02},D{number % 2}\n" for number in range(11)))
    [device] = read(index, "device", by_path)
    assert device.values == (*("D0", "D1") * 5, "D0", "")
    assert "11" in device.example
    by_group.write_text("who,race\n" + "".join(f"p{number},R{number % 2}\n" for number in range(6)))
    [race] = read(index, "race", by_group)
    assert race.values == tuple(["R0", "R0", "R1", "R1"] * 3)
    by_group.write_text("who,race\np0,A\np0,B\n")
    with pytest.raises(DataError, match="two values"):
        read(index, "race", by_group)
    by_path.write_text("image,device\n00,A\n01,A\n00,B\n")
    with pytest.raises(DataError, match="gives 00 two values of 'device': 'A' and 'B'"):
        read(index, "device", by_path)


def test_ages_with_a_unit_are_numbers(tmp_path: Path) -> None:
    index = scan_data(write_data(tmp_path / "data"))
    table = tmp_path / "ages.csv"
    table.write_text("image,age\n" + "".join(f"{number:02},{number * 9}Y\n" for number in range(11)))
    [age] = read(index, "age", table)
    assert age.levels == ("< 18", "18 to < 65", ">= 65")


def test_unknown_column_and_foreign_table_raise_an_error(tmp_path: Path) -> None:
    index = scan_data(write_data(tmp_path / "data"))
    with pytest.raises(DataError, match="has no column 'sxe'") as caught:
        read(index, "sxe")
    assert "Did you mean sex?" in caught.value.remedy
    other = tmp_path / "other.csv"
    for text in ("path,sex\nq.png,F\nr.png,M\n", "sex\nF\nM\n"):
        other.write_text(text)
        with pytest.raises(DataError, match="names none of the images"):
            read(index, "sex", other)
    with pytest.raises(UsageError, match="not numbers, such as"):
        read(index, "sex:3")


def write_column(folder: Path, name: str, cells: Iterable[object]) -> Path:
    """Write an image of two classes in turn for each cell, and a table with the column."""
    rows = [f"path,label,{name}"]
    for number, cell in enumerate(cells):
        save_image(folder / f"{number:02}.png", seed=number)
        rows.append(f"{number:02}.png,{'ab'[number % 2]},{cell}")
    (folder / "table.csv").write_text("\n".join(rows) + "\n")
    return folder / "table.csv"


@pytest.mark.parametrize("blank", ["", "NaN", "NA", "null"])
def test_missing_values_are_in_no_subgroup(tmp_path: Path, blank: str) -> None:
    """As pandas, R and databases write them; one among numbers does not make categories of these."""
    [age] = read(scan_data(write_column(tmp_path, "age", [*range(30), blank])), "age:10")
    assert (age.levels, age.values.count("")) == (("< 10", ">= 10"), 1)
    [site] = read(scan_data(write_column(tmp_path, "site", [*"XYZ" * 10, blank])), "site")
    assert site.levels == ("X", "Y", "Z")


def test_identifier_is_refused(tmp_path: Path) -> None:
    table = write_column(tmp_path, "code", (f"c{number}" for number in range(60)))
    with pytest.raises(UsageError, match="60 values"):
        read(scan_data(table), "code")


def test_many_numbers_are_cut_at_tertiles(tmp_path: Path) -> None:
    [dose] = read(scan_data(write_column(tmp_path, "dose", range(30))), "dose")
    assert dose.cuts == "cut at 10, 20 (tertiles)"
    assert [dose.values.count(level) for level in dose.levels] == [10, 10, 10]
    [dose] = read(scan_data(write_column(tmp_path / "few", "dose", range(10))), "dose")
    assert (dose.cuts, len(dose.levels)) == ("", 10), "few different numbers stay"


def test_numbers_with_a_decimal_comma_are_cut(tmp_path: Path) -> None:
    cells = [f'"{number},5"' for number in range(30)]
    [dose] = read(scan_data(write_column(tmp_path, "dose", cells)), "dose")
    assert dose.cuts == "cut at 10.5, 20.5 (tertiles)"
    [dose] = read(scan_data(write_column(tmp_path, "dose", cells)), "dose:2")
    assert [dose.values.count(level) for level in dose.levels] == [2, 28]


def test_equal_numbers_are_not_cut(tmp_path: Path) -> None:
    [age] = read(scan_data(write_column(tmp_path, "age", [40] * 10)), "age")
    assert (age.cuts, age.levels) == ("not cut: all values are equal", ("all",))


def test_dicom_attributes_are_read_by_keyword_and_by_usual_name(tmp_path: Path) -> None:
    for number in range(4):
        attributes = {"PatientSex": "FM"[number % 2], "PatientAge": ("012Y", "018M")[number // 2], "Manufacturer": "Q"}
        path = tmp_path / "ab"[number % 2] / f"{number}.dcm"
        path.parent.mkdir(exist_ok=True)
        save_dicom(path, XRAY + number, **attributes)
    index = scan_data(tmp_path)
    sex, age, maker = read(index, "sex,PatientAge:5,Manufacturer")
    assert (sex.values, sex.source) == (("F", "F", "M", "M"), "DICOM attribute PatientSex")
    assert age.values == (">= 5", "< 5", ">= 5", "< 5")
    assert maker.levels == ("Q",)
    with pytest.raises(DataError, match="no DICOM file has that attribute"):
        read(index, "StationName")
