"""Attributes of images beside their targets, such as sex, age and site: columns of a table, or DICOM attributes."""

import os
import re
from bisect import bisect_right
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from itertools import pairwise
from pathlib import Path, PurePosixPath

from convnext_cli.data.index import Index
from convnext_cli.data.tables.columns import list_path_columns
from convnext_cli.data.tables.files import FileFinder, Listing
from convnext_cli.data.tables.table import find_named, list_tables, read_table
from convnext_cli.errors import DataError, UsageError, suggest
from convnext_cli.progress import Progress, Steps
from convnext_cli.tasks.reading import Table, fold_column, is_missing, parse_number, parse_numbers

AGE_CUTS = (18.0, 65.0)
"""Years: children, adults, and older people."""
THREADS, FILES_PER_EVENT = 8, 100  # that read headers
MAX_NUMBERS = 10  # different numbers in a column that stay as they are; more are binned
MAX_LEVELS = 50  # more values are no subgroups but identifiers
DICOM_NAMES = {
    "sex": "PatientSex", "age": "PatientAge", "site": "InstitutionName", "device": "ManufacturerModelName",
}  # fmt: skip
"""DICOM attributes by the usual names of columns."""
_DICOM_AGE = re.compile(r"(\d{1,3})([DWMY])")  # PS3.5, value representation AS; tables leave the zeros out
_YEARS = {"D": 1 / 365.25, "W": 7 / 365.25, "M": 1 / 12, "Y": 1.0}


@dataclass(frozen=True, kw_only=True, slots=True)
class Attribute:
    """The value of an attribute for each row of an index."""

    name: str
    source: str
    """In words."""
    values: tuple[str, ...]
    """Empty where the value is not known."""
    levels: tuple[str, ...] = ()
    """All values in order, without the empty one."""
    cuts: str = ""
    """Description of the bins of numbers; empty if not binned."""
    example: str = ""
    """The path of an image whose value is not known; empty if there is none."""


def parse_attributes(text: str, option: str = "--subgroups") -> dict[str, tuple[float, ...]]:
    """Return the cuts of each attribute in a text such as `sex,age:18,65,site`; no cuts where none are named.

    Raises:
        UsageError: a cut is not a number, the cuts are not in ascending order, or a name is missing or repeated.
    """
    result: dict[str, tuple[float, ...]] = {}
    name = ""
    remedy = "Separate columns by commas, and write the cuts of a number after a colon: sex,age:18,65"
    for part in map(str.strip, text.split(",")):
        number = parse_number(part)
        if number is not None and name and result[name]:
            result[name] = (*result[name], number)
            continue
        name, colon, first = (piece.strip() for piece in part.partition(":"))
        cut = parse_number(first)
        if not name or name in result or (colon and cut is None):
            raise UsageError(f"cannot read {option} {text!r} at {part!r}", remedy)
        result[name] = () if cut is None else (cut,)
    for name, cuts in result.items():
        if list(cuts) != sorted(set(cuts)):
            shown = ", ".join(f"{cut:g}" for cut in cuts)
            raise UsageError(f"the cuts of {name} are not in ascending order: {shown}", remedy)
    return result


def read_attributes(
    index: Index, cuts: Mapping[str, Sequence[float]], *, table: Path | None = None, option: str
) -> Steps[list[Attribute]]:
    """Return attributes of the rows of an index, with numbers binned.

    Args:
        index: the images.
        cuts: the cuts of each attribute by its name; none for categories, and for the default of numbers.
        table: a table with the attributes; None for that of the data, else those in the data folder.
        option: the option that names them, for errors.

    Raises:
        DataError: there is no such column or DICOM attribute, or the table is not of these images.
        UsageError: an attribute has too many values.
    """
    tables, errors = [], []
    for path in _list_tables(index, table):
        try:
            tables.append(read_table(path))
        except DataError as error:
            if path in (table, index.table):
                raise
            errors.append(error)  # of one that only lies there
    attributes = []
    for name, own_cuts in cuts.items():
        attribute = _read_column(index, tables, name)
        if attribute is None and table is None:
            attribute = yield from _read_dicom(index, name)
        if attribute is None:
            raise errors[0] if errors else _explain_missing(index, tables, name, option)
        attribute = _make_levels(attribute, own_cuts, option)
        example = next((path for path, value in zip(index.paths, attribute.values, strict=True) if not value), "")
        attributes.append(replace(attribute, example=example))
    return attributes


def _list_tables(index: Index, table: Path | None) -> list[Path]:
    if table is not None:
        return [table]
    if index.table is not None and index.table.is_file():
        return [index.table]
    return list_tables(index.root if index.table is None or not index.table.is_dir() else index.table)


def _read_column(index: Index, tables: Sequence[Table], name: str) -> Attribute | None:
    """Return an attribute from the tables that have it, each image's from the first that names it; None if none has.

    Raises:
        DataError: a table has the column, and gives an image or a group two values.
    """
    values: dict[int, str] = {}
    sources: list[str] = []
    for table in tables:
        if fold_column(name) not in map(fold_column, table.columns) or len(values) == len(index):
            continue
        column = find_named(table, name, "")  # the exact name before another spelling
        rows = _match_paths(index, table, column) or _match_groups(index, table, column)
        if new := {row: table.columns[column][at] for row, at in rows.items() if row not in values}:
            values |= new
            sources.append(f"column {column!r} of {table.path.name}")
    if not values:
        return None
    cells = tuple(values.get(row, "") for row in range(len(index)))
    return Attribute(name=name, source=", ".join(sources), values=cells)


def _match_paths(index: Index, table: Table, attribute: str) -> dict[int, int]:
    """Return the table's row of each image that it names by its path; empty if it names none."""
    images: dict[str, int] = {}
    for place, path in enumerate(_list_absolute(index.root, index.paths)):
        images.setdefault(path, place)
    cells = table.columns[attribute]
    for root in dict.fromkeys((index.root, table.path.parent)):
        finder = FileFinder(Listing(root), table.path, search=True, encoding=table.encoding)
        for column in list_path_columns(table, finder):
            named = finder.find_images(table.columns[column])
            places: dict[str, int] = {}
            for row, path in zip(named.rows, _list_absolute(root, named.paths), strict=True):
                if cells[places.setdefault(path, row)] != cells[row] and path in images:
                    raise DataError(
                        f"{table.path} gives {table.columns[column][row]} two values of {attribute!r}: "
                        f"{cells[places[path]]!r} and {cells[row]!r}",
                        "Give one row per image",
                    )
            if rows := {row: places[path] for path, row in images.items() if path in places}:
                return rows
    return {}


def _list_absolute(root: Path, paths: Sequence[str | None]) -> Iterator[str]:
    """Yield the absolute form of each path, empty for None."""
    start = os.path.abspath(root)  # noqa: PTH100  (strings throughout: a Path per file is slow)
    for path in paths:
        yield "" if path is None else os.path.normpath(os.path.join(start, path))  # noqa: PTH118


def _match_groups(index: Index, table: Table, column: str) -> dict[int, int]:
    """Return the table's row of each image, by the column that names most of the index's groups."""
    groups = set(index.groups) - {""}
    others = [name for name in table.columns if name != column]
    best = max(others, key=lambda name: len(groups & set(table.columns[name])), default=None)
    if best is None or not groups & set(table.columns[best]):
        return {}
    first: dict[str, int] = {}
    cells = table.columns[column]
    for row, group in enumerate(table.columns[best]):
        if cells[first.setdefault(group, row)] != cells[row] and group in groups:
            raise DataError(
                f"{table.path} gives {best} {group!r} two values of {column!r}: {cells[first[group]]!r} and "
                f"{cells[row]!r}",
                "Give one row per group, or a column with the images' paths",
            )
    return {row: first[group] for row, group in enumerate(index.groups) if group in first}


def _read_dicom(index: Index, name: str) -> Steps[Attribute | None]:
    """Return a DICOM attribute of each row; None where no file has it."""
    keyword = DICOM_NAMES.get(fold_column(name), name)
    if not re.fullmatch(r"[A-Za-z0-9]+", keyword):
        return None
    known = yield from read_dicom_attribute(index, keyword)
    if not known:
        return None
    values = [known.get(row, "") for row in range(len(index))]
    return Attribute(name=name, source=f"DICOM attribute {keyword}", values=tuple(values))


def list_dicom_rows(index: Index) -> list[int]:
    """Return the rows that may be DICOM: those without the suffix of another format."""
    from convnext_cli.images.formats import DICOM_SUFFIXES, IMAGE_SUFFIXES

    others = IMAGE_SUFFIXES - DICOM_SUFFIXES
    return [row for row, path in enumerate(index.paths) if PurePosixPath(path).suffix.lower() not in others]


def read_dicom_attribute(index: Index, keyword: str) -> Steps[dict[int, str]]:
    """Return a DICOM attribute by row, without rows that have no value.

    Raises:
        ImageError: the extra is not installed.
    """
    from convnext_cli.images.dicom import read_tag

    rows = list_dicom_rows(index)
    values = {}
    with ThreadPoolExecutor(THREADS) as pool:  # a network disk answers several at a time
        read = pool.map(lambda row: read_tag(index.root / index.paths[row], keyword), rows)
        for done, (row, value) in enumerate(zip(rows, read, strict=True), start=1):
            if value and value.strip():
                values[row] = value.strip()
            if done % FILES_PER_EVENT == 0:
                yield Progress(done=done, total=len(rows), activity=f"reading the DICOM attribute {keyword}")
    return values


def _explain_missing(index: Index, tables: Sequence[Table], name: str, option: str) -> DataError:
    columns = [column for table in tables for column in table.columns]
    having = [table for table in tables if fold_column(name) in map(fold_column, table.columns)]
    if having:
        return DataError(
            f"{having[0].path} names none of the images of {index.location}, neither by path nor by group",
            "Give a table with a column of the images' paths or of their groups",
        )
    places = ", ".join(str(table.path) for table in tables[:3])
    where = f"{places} has no column {name!r}" if tables else f"{index.location} has no table with a column {name!r}"
    known = f"{suggest(name, columns)}Known are {', '.join(columns[:10])}; or give" if columns else "Give"
    table = "another table with --subgroup-table" if option == "--subgroups" else "a CSV file with that column as data"
    return DataError(f"{where}, and no DICOM file has that attribute", f"{known} {table}")


def _make_levels(attribute: Attribute, cuts: Sequence[float], option: str) -> Attribute:
    """Return the attribute with its values in order, numbers binned.

    Raises:
        UsageError: there are too many values, or cuts for values that are not numbers.
    """
    attribute = replace(attribute, values=tuple("" if is_missing(value) else value for value in attribute.values))
    different = sorted(set(attribute.values) - {""})
    numbers = dict(zip(different, _parse_measures(different), strict=True))
    are_numbers = bool(numbers) and None not in numbers.values()
    if cuts and not are_numbers:
        example = next((value for value, number in numbers.items() if number is None), "")
        raise UsageError(
            f"{attribute.name} has cuts, but values that are not numbers, such as {example!r}", "Leave out the cuts"
        )
    is_age = "age" in fold_column(attribute.name).split("_") or attribute.name == DICOM_NAMES["age"]
    if are_numbers and (cuts or is_age or len(numbers) > MAX_NUMBERS):
        known = {value: number for value, number in numbers.items() if number is not None}
        return _bin(attribute, known, tuple(cuts), is_age=is_age)
    if len(numbers) > MAX_LEVELS:
        raise UsageError(
            f"{attribute.name} has {len(numbers):,} values: an identifier, not a subgroup",
            f"Name a column of at most {MAX_LEVELS} values in {option}",
        )
    order = sorted(numbers, key=lambda value: (numbers[value] is None, numbers[value] or 0.0, value))
    return replace(attribute, levels=tuple(order))


def _parse_measures(values: Sequence[str]) -> list[float | None]:
    """Return each value as a number, with a point or a comma, or as a DICOM age in years; None if it is neither."""
    ages = [match and float(int(match[1]) * _YEARS[match[2]]) for match in map(_DICOM_AGE.fullmatch, values)]
    numbers, _ = parse_numbers(["" if value.casefold() in ("true", "false") else value for value in values])
    return [number if age is None else age for age, number in zip(ages, numbers, strict=True)]


def _bin(attribute: Attribute, numbers: Mapping[str, float], cuts: tuple[float, ...], *, is_age: bool) -> Attribute:
    """Return the attribute with bins in place of numbers: at the cuts, else the usual ones of an age, else tertiles."""
    counts = Counter(value for value in attribute.values if value)
    reason = "as asked for" if cuts else "usual for an age"
    if not cuts and is_age and len({bisect_right(AGE_CUTS, number) for number in numbers.values()}) > 1:
        cuts = AGE_CUTS
    if not cuts:
        cuts, reason = _list_tertiles(sorted(numbers[value] for value in counts.elements())), "tertiles"
    names = tuple(_name_bins(cuts))
    places = {value: bisect_right(cuts, number) for value, number in numbers.items()}
    shown = ", ".join(f"{cut:g}" for cut in cuts)
    used = sorted(set(places.values()))
    return replace(
        attribute,
        values=tuple(names[places[value]] if value else "" for value in attribute.values),
        levels=tuple(names[place] for place in used),
        cuts=f"cut at {shown} ({reason})" if cuts else "not cut: all values are equal",
    )


def _list_tertiles(ordered: Sequence[float]) -> tuple[float, ...]:
    """Return the cuts that divide sorted numbers into three parts, at three digits."""
    cuts = dict.fromkeys(float(f"{ordered[part * len(ordered) // 3]:.3g}") for part in (1, 2))
    return tuple(cut for cut in cuts if cut > ordered[0])


def _name_bins(cuts: Sequence[float]) -> Iterator[str]:
    yield f"< {cuts[0]:g}" if cuts else "all"
    for low, high in pairwise(cuts):
        yield f"{low:g} to < {high:g}"
    if cuts:
        yield f">= {cuts[-1]:g}"
