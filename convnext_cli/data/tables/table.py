"""Read a CSV file into columns of text.

The delimiter is the one by which the rows have the same number of cells. Quotation marks are doubled inside quoted
cells (RFC 4180).
"""

import csv
import io
import itertools
import re
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convnext_cli.data.encoding import normalise_name, read_text
from convnext_cli.errors import DataError, suggest
from convnext_cli.images.formats import has_image_suffix

SAMPLE = 200  # rows by which a column is judged
EXAMPLES = 5
_DELIMITERS = ",;\t|"


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The cells of a file."""

    path: Path
    columns: dict[str, list[str]]
    """The cells of each column, stripped, by the name in the file."""
    lines: list[int]
    """The line that each row ends in."""
    encoding: str

    def __len__(self) -> int:
        return len(self.lines)

    def refuse(self, problem: str, rows: Sequence[int], examples: Sequence[str] = (), remedy: str = "") -> None:
        """Raise a `DataError` that counts `rows` if there are any, with examples or their lines."""
        if rows:
            shown = ", ".join(examples) or ", ".join(f"line {self.lines[row]}" for row in rows[:EXAMPLES])
            raise DataError(f"{self.path} has {problem} in {len(rows)} rows: {shown}", remedy or "Correct these rows")


def read_table(path: Path) -> Table:
    """Read a CSV file, with or without a header.

    Raises:
        DataError: it cannot be read, has no rows, two columns of one name, or rows longer than its header.
    """
    remedy = "Give a CSV file with the columns path and label"
    text, encoding = read_text(path, remedy)
    text = re.sub(r"\Asep=.\r?\n", "\n", text)  # Excel's own first line; an empty one keeps the lines' numbers
    try:
        delimiter = _find_delimiter(text)
        reader = csv.reader(io.StringIO(text, newline=""), delimiter=delimiter, skipinitialspace=True)
        rows, lines = [], []
        for row in reader:
            if any(cell.strip() for cell in row):
                rows.append([cell.strip() for cell in row])
                lines.append(reader.line_num)
    except csv.Error as error:
        raise DataError(f"cannot read {path}: {error}", remedy) from error
    if not rows:
        raise DataError(f"{path} has no rows", "Give a row for each image")
    if any(has_image_suffix(cell) for cell in rows[0]) and len(rows[0]) > 1:
        names = [f"column {number}" for number in range(1, len(rows[0]) + 1)]  # a file without a header
    else:
        names, rows, lines = rows[0], rows[1:], lines[1:]
    if len(set(names)) < len(names):
        raise DataError(f"{path} has two columns of the same name", "Rename or remove one of them")
    width = len(names)
    too_long = [row for row, cells in enumerate(rows) if any(cells[width:])]
    columns = {name: [cells[at] if at < len(cells) else "" for cells in rows] for at, name in enumerate(names)}
    table = Table(path=path, columns=columns, lines=lines, encoding=encoding)
    table.refuse(
        "more cells than the header", too_long, remedy=f"Put cells that have a {delimiter!r} in quotation marks"
    )
    return table


def _find_delimiter(text: str) -> str:
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


def fold_column(name: str) -> str:
    """Return the name of a column in the form for comparison: `Image Index` -> image_index."""
    return re.sub(r"[\s\-_]+", "_", normalise_name(name).casefold()).strip("_")


def parse_number(text: str) -> float | None:
    """Return a finite number, 1 and 0 for true and false; None if the text is none of these."""
    if text.casefold() in ("true", "false"):
        return float(text.casefold() == "true")
    try:
        number = float(text)
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


def find_named(table: Table, name: str, option: str) -> str:
    """Return a column that the user names, in any spelling.

    Raises:
        DataError: there is no such column.
    """
    for column in table.columns:
        if name == column or fold_column(name) == fold_column(column):
            return column
    raise DataError(
        f"{table.path} has no column {name!r}", f"{suggest(name, table.columns)}Name one of its columns in {option}"
    )
