"""Read a CSV file, a JSON Lines file, a spreadsheet or a list into columns of text.

The delimiter of a CSV file is the one by which the rows have the same number of cells. Quotation marks are doubled
inside quoted cells (RFC 4180). A list is a text file that has an image and its class in each line.
"""

import csv
import io
import itertools
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from convnext_cli.data.folders.words import is_table
from convnext_cli.data.index import SPREADSHEET_SUFFIXES
from convnext_cli.data.tables.json_lines import read_json_rows
from convnext_cli.data.tables.spreadsheet import is_spreadsheet, read_spreadsheet
from convnext_cli.data.tree import is_hidden
from convnext_cli.encoding import UTF_8, read_text
from convnext_cli.errors import DataError, suggest
from convnext_cli.images.formats import has_image_suffix
from convnext_cli.tasks.reading import Table, fold_column
from convnext_cli.text import shorten

SAMPLE = 200  # rows by which a column is judged
_DELIMITERS = ",;\t|"
_REMEDY = "Give a CSV file with the columns path and label"


def list_tables(folder: Path) -> list[Path]:
    """Return the tables of a folder, sorted; none if it cannot be listed."""
    files = (path for path in folder.glob("*.*") if is_table(path.name) and not is_hidden(path.name))
    return sorted(path for path in files if path.is_file())


def read_table(path: Path) -> Table:
    """Read a table, with or without a header.

    Raises:
        DataError: it cannot be read, has no rows, two columns of one name, or rows longer than its header.
    """
    encoding, delimiter = UTF_8, ", "
    left_out: list[str] = []
    is_list = path.suffix.lower() == ".txt"
    if path.is_file() and is_spreadsheet(path):
        rows, lines = read_spreadsheet(path)
    else:
        text, encoding = read_text(path, _REMEDY)
        if path.suffix.lower() == ".jsonl":
            rows, lines, left_out = read_json_rows(path, text)
        elif is_list and find_delimiter(text) not in text.partition("\n")[0]:
            rows, lines = _read_words(text)
        else:
            rows, lines, delimiter = _read_csv(path, text)
    if not rows:
        raise DataError(f"{path} has no rows", "Give a row for each image")
    has_path = any(has_image_suffix(cell) or cell.endswith(("/", "\\")) for cell in rows[0])
    if (has_path or (is_list and re.search(r"[\d/]", "".join(rows[0])))) and len(rows[0]) > 1:
        names = [f"column {number}" for number in range(1, len(rows[0]) + 1)]  # a file without a header
    else:
        names, rows, lines = rows[0], rows[1:], lines[1:]
    header = shorten(delimiter.join(names))
    if rows and all(len(cells) == len(names) + 1 and cells[0].isdecimal() and cells[-1] for cells in rows):
        rows = [cells[1:] for cells in rows]  # R's numbers of the rows, for which its header has no cell
    elif rows and all(len(cells) == len(names) + 1 and has_image_suffix(cells[0]) for cells in rows):
        names = ["", *names]  # as in CelebA's list of attributes
    width = len(names)
    columns = [(name, [cells[at] if at < len(cells) else "" for cells in rows]) for at, name in enumerate(names)]
    columns = [(name, cells) for name, cells in columns if name or any(cells)]  # a spreadsheet may add empty columns
    if len(dict(columns)) < len(columns):
        raise DataError(
            f"{path} has two columns of the same name in its first line ({header})",
            "Rename or remove one of them; remove a title above the header",
        )
    too_long = [row for row, cells in enumerate(rows) if any(cells[width:])]
    table = Table(path=path, columns=dict(columns), lines=lines, encoding=encoding, left_out=left_out)
    remedy = f"Put cells that have a {delimiter!r} in quotation marks"
    if width > 1 and all(len(cells) == width + 1 for cells in rows):
        remedy = "If the first cells are R's row names, write the file with row.names = FALSE; else name all columns"
    elif 2 * len(too_long) > len(rows):
        remedy = "Remove the lines above the header, such as a title or a comment"
    table.refuse(f"more cells than the first line ({header}), its header,", too_long, remedy=remedy)
    return table


def _read_words(text: str) -> tuple[list[list[str]], list[int]]:
    """Return the words of each line and its number; the first word and the rest if the lines differ in their number.

    So a class may have a name of several words. Lines that begin with # are comments, and a number alone in the first
    line is the number of images. The header may lack the name of the first column.
    """
    filled = [(line, number) for number, line in enumerate(text.splitlines(), 1) if line.strip() and line[0] != "#"]
    filled = filled[1:] if filled and filled[0][0].strip().isdecimal() else filled
    first, *others = [len(line.split()) for line, _ in filled] or [0]
    has_columns = {*others} <= {first} or {*others} == {first + 1}
    return [line.split(maxsplit=-1 if has_columns else 1) for line, _ in filled], [number for _, number in filled]


def _read_csv(path: Path, text: str) -> tuple[list[list[str]], list[int], str]:
    if path.suffix.lower() in SPREADSHEET_SUFFIXES and text.lstrip().startswith("<"):
        remedy = "Open it in a spreadsheet program, and save it as XLSX or CSV"
        raise DataError(f"{path} is a page in HTML or XML, not a spreadsheet", remedy)
    text = re.sub(r"\Asep=.\r?\n", "\n", text)  # Excel's own first line; an empty one keeps the lines' numbers
    delimiter = find_delimiter(text)
    is_escaped = '\\"' in text  # as R and Spark write a quotation mark: without `strict` it would stay in the label
    rows, lines = _parse_csv(path, text, delimiter, strict=is_escaped)
    _check_quotes(path, text, rows, lines)
    if any("\n" in cell for row in rows for cell in row):  # without `strict`, a label that begins with " joins lines
        _parse_csv(path, text, delimiter, strict=True)
    return rows, lines, delimiter


def _parse_csv(path: Path, text: str, delimiter: str, *, strict: bool) -> tuple[list[list[str]], list[int]]:
    """Return the rows with text, and the line that each ends in; if `strict`, nothing may follow a quoted cell."""
    rows, lines = [], []
    reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True, strict=strict)
    try:
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        remedy = 'Write "" for a quotation mark in a cell, and put the cell in quotation marks' if strict else _REMEDY
        raise DataError(f"cannot read {path}, line {reader.line_num}: {error}", remedy) from error
    return rows, lines


def _check_quotes(path: Path, text: str, rows: list[list[str]], lines: list[int]) -> None:
    """Check that each quotation mark is closed: else the rest of the file is one cell."""
    last = rows[-1] if rows else []
    breaks = sum(cell.count("\n") for cell in last)
    if breaks and text.count('"') % 2:
        raise DataError(
            f"{path}: a quotation mark in line {lines[-1] - breaks} is never closed", "Close it, or remove it"
        )


def find_delimiter(text: str) -> str:
    """Return the delimiter by which most of the first rows have as many cells as the header, and more than one."""
    start = text[: 1 << 20]

    def fit(delimiter: str) -> tuple[float, int]:
        reader = csv.reader(io.StringIO(start, newline=""), delimiter=delimiter, skipinitialspace=True)
        try:
            rows = [row for row in itertools.islice(reader, SAMPLE) if any(row)]
        except csv.Error:
            return 0.0, 0
        if not rows or len(rows[0]) < 2:
            return 0.0, 0
        return sum(len(row) == len(rows[0]) for row in rows) / len(rows), len(rows[0])

    return max(_DELIMITERS, key=fit)  # the first of equals


def select_cells(table: Table, rows: Sequence[int]) -> Table:
    """Return a table of some rows, of which some may repeat."""
    columns = {name: [cells[row] for row in rows] for name, cells in table.columns.items()}
    return replace(table, columns=columns, lines=[table.lines[row] for row in rows])


def select_columns(table: Table, names: Iterable[str]) -> Table:
    """Return a table of those of the named columns that it has, by these names, in any spelling."""
    cells_of = {fold_column(name): cells for name, cells in table.columns.items()}
    columns = {name: cells_of[folded] for name in names if (folded := fold_column(name)) in cells_of}
    return replace(table, columns=columns)


def name_tables(paths: Sequence[Path]) -> list[str]:
    """Return the names of tables, with their folders if these tell them apart."""
    return [str(path.relative_to(find_common_folder(paths))) for path in paths]


def find_common_folder(paths: Sequence[Path]) -> Path:
    """Return the innermost folder that all files are in."""
    return Path(os.path.commonpath([path.parent for path in paths]))


def join_tables(tables: Sequence[Table]) -> Table:
    """Return the rows of tables as one table of the first one's columns, blank where another has none."""
    first, paths = tables[0], [table.path for table in tables]
    names = name_tables(paths)
    return replace(
        first,
        path=find_common_folder(paths),
        columns={
            name: [cell for table in tables for cell in table.columns.get(name, [""] * len(table))]
            for name in first.columns
        },
        lines=[line for table in tables for line in table.lines],
        files=[name for name, table in zip(names, tables, strict=True) for _ in table.lines],
    )


def list_columns(names: Iterable[str]) -> list[str]:
    """Return the names of columns for a message."""
    return [name or "(without a name)" for name in names]


def find_named(table: Table, name: str, option: str) -> str:
    """Return a column that the user names, exactly or in another spelling.

    Raises:
        DataError: there is no such column.
    """
    if name in table.columns:
        return name
    for column in table.columns:
        if fold_column(name) == fold_column(column):
            return column
    raise DataError(
        f"{table.path} has no column {name!r}", f"{suggest(name, table.columns)}Name one of its columns in {option}"
    )
