"""Tables as tasks read targets from them: cells of text, the options of reading, and judgements of columns.

No NumPy, so that a small table is read at once.
"""

import math
import re
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from statistics import median
from typing import TYPE_CHECKING, Literal

from convnext_cli.encoding import normalise_name
from convnext_cli.errors import DataError
from convnext_cli.options import AUTO
from convnext_cli.text import format_count, shorten

if TYPE_CHECKING:  # NumPy
    from convnext_cli.tasks.task import Task

TaskName = Literal["auto", "single", "multilabel", "ordinal", "regression"]
"""The values of `--task`."""
EXAMPLES = 5
CACHED_CELLS = 1024
"""Different cells that are parsed once: large tables hold a few words millions of times."""
MAX_FRACTIONS = 10
"""Values with a fraction: more of them are a measurement, not class names."""
MAX_GAPPED = 20
"""Whole numbers that do not count up from 0 or 1: more of them are a measurement."""
_MEASURES = frozenset((
    "age", "ages", "years", "year", "weight", "height", "width", "bmi", "score", "price", "count", "length", "size",
    "temperature", "pressure", "distance", "angle", "area", "volume", "dose", "value", "index", "idx", "bone_age",
    "boneage", "unnamed", "", "no", "nr", "number", "row", "rating",
))  # fmt: skip
"""Columns that hold measurements or count the rows."""
NUMBER = re.compile(r"(?:(?<![^\s_])-|\u2212)?\d+(?:[.,]\d+)?")
"""A hyphen after a letter, as in grade-1, is no minus sign."""
_THOUSANDS = re.compile(r"[+-]?[1-9]\d{0,2}(?:,\d{3})+(?:\.\d+)?")
_POINTS = re.compile(r"[+-]?[1-9]\d{0,2}(?:\.\d{3})+(?:,\d+)?")
_QUANTITY = re.compile(
    r"[<>≤≥~≈]?=?\s*([+\-\u2212]?(?:\d+|\d{1,3}(?:[\s'\u2019.]\d{3})+)(?:[.,]\d+)?)\s*"
    r"(?:%|°?[CF]|HU|px|[nµumck]?m|[mµu]?g|kg|m?l|mm2|cm2|mm3|cm3|d|days?|months?|y|yrs?|years?)?"
)
"""A number with a bound, a unit, or signs between thousands: <0.5, 3.2 mm, 1 000, 1'000.5."""
MAX_ODD = 0.1
"""Fraction of cells that are no numbers in a column of numbers, at most."""
_CHOICES = re.compile(r'\{"choices":\s*(\[.*\])\}')
_LIST_OF_ONE = re.compile(r"""\[\s*(['"]?)([^,'"\[\]]*)\1\s*\]""")
LIST = "\x1f"
"""The sign between the labels of a cell that is a list in its file: ASCII's separator, which no label has."""
_YES = frozenset((
    "true", "yes", "y", "positive", "pos", "present", "wahr", "ja", "positiv", "vrai", "oui", "positif",
    "verdadero", "sí", "si", "positivo", "vero", "sì", "verdadeiro", "sim", "waar", "positief", "prawda", "tak",
    "истина", "да", "是", "はい",
))  # fmt: skip
_NO = frozenset((
    "false", "no", "n", "negative", "neg", "absent", "falsch", "nein", "negativ", "faux", "non", "négatif",
    "falso", "negativo", "não", "onwaar", "nee", "negatief", "fałsz", "nie", "ложь", "нет", "否", "いいえ",
))  # fmt: skip
_MISSING = frozenset(("", "na", "n/a", "nan", "<na>", "nat", "null", "."))
"""Cells that hold no value, as pandas, R, SAS, Stata and databases write them."""
_ERROR_VALUE = re.compile(r"#(?:N/?[ABDV]|[¡¿]?[\w/]+[!?])|err:\d{3}", re.IGNORECASE)
"""An error of a spreadsheet in any language: #N/A, #NV, #DIV/0!, #¡VALOR!, Err:502."""
_UNKNOWN = frozenset(("none", "?", "unknown"))
"""Cells of a flag or a number that hold no value, as people write them too; a class may have such a name."""
_FLAGS = frozenset(("sex", "gender", "male", "female", "smoker", "is_test", "is_train", "left", "right"))
ATTRIBUTES = _FLAGS | frozenset(("site", "hospital", "device", "scanner", "manufacturer"))
"""Columns that describe the subject or the image, and are targets only where no other column can be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableOptions:
    """The options of reading a table, its targets among them; names and meanings are those of the settings."""

    task: str = AUTO
    label_sep: str = AUTO
    blank: str = "unknown"
    log_target: str = AUTO
    grades: str = AUTO
    known_labels: Sequence[str] = ()
    """The labels or classes of a run, whose names are not questioned: columns of other names are not labels."""
    image_root: str = AUTO
    """The folder that the paths begin in; `auto` searches beside and below the file."""
    label_from: str = AUTO
    """A regular expression for the class in an image's path, in place of folders and tables."""
    label_columns: str = AUTO
    label_column: str = AUTO
    path_column: str = AUTO
    group_column: str = AUTO
    split_column: str = AUTO
    attributes: Sequence[str] = ()
    """The attributes of the images that are read from their columns afterwards: these count as used."""


AUTO_OPTIONS = TableOptions()
COLUMN_OPTIONS = ("label_columns", "label_column", "path_column", "group_column", "split_column")
"""The options that name columns."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Table:
    """The cells of a file."""

    path: Path
    columns: dict[str, list[str]]
    """The cells of each column, stripped, by the name in the file."""
    lines: list[int]
    """The line that each row ends in."""
    encoding: str
    files: Sequence[str] = ()
    """The name of each row's file, where `path` is a folder; else no rows."""
    has_repeats: bool = False
    """True if several rows name the same file."""
    left_out: Sequence[str] = ()
    """Names of columns whose values are no cells, such as the objects of JSON."""

    def __len__(self) -> int:
        return len(self.lines)

    def refuse(self, problem: str, rows: Sequence[int], examples: Sequence[str] = (), remedy: str = "") -> None:
        """Raise a `DataError` that counts `rows` if there are any, with examples or their lines."""
        if rows:
            shown = ", ".join(map(shorten, examples)) or ", ".join(map(self._name_line, rows[:EXAMPLES]))
            counted = f"{format_count(len(rows), 'row')}: {shown}"
            raise DataError(f"{self.path} has {problem} in {counted}", remedy or "Correct or remove these rows")

    def _name_line(self, row: int) -> str:
        return f"line {self.lines[row]}" + (f" of {self.files[row]}" if self.files else "")


@dataclass(frozen=True, kw_only=True, slots=True)
class RawTargets:
    """The targets of the rows of a table, or of images in class folders."""

    task: "Task"
    columns: tuple[str, ...] = ()
    """The columns that hold the targets."""
    labels: tuple[str, ...] = ()
    """The class or grade of each row; no rows if `values` has the targets."""
    classes: tuple[str, ...] = ()
    """Names of the labels or grades in order, or of the number; empty for classes, which are sorted."""
    values: tuple[tuple[float, ...], ...] = ()
    notes: tuple[str, ...] = ()
    """Notes on what was decided, and how to overrule it."""
    ignored: Mapping[str, str] = field(default_factory=dict)
    """Options of reading that have no effect on targets of this form, each with the reason."""
    join: Callable[[Sequence[tuple[float, ...]]], tuple[float, ...]] | None = None
    """Returns the values of an image from those of its rows; None if all rows of an image must have the same."""
    join_rule: str = ""
    """The rule of `join` in words, for a note."""


class OtherTaskError(DataError):
    """A manifest whose targets are not of the task that was asked for."""


def explain_columns(task: str, table: Table, names: Sequence[str]) -> OtherTaskError:
    """Return the error for a column per label where a task needs one column."""
    return OtherTaskError(
        f"--task {task} needs one column, and {table.path} has {format_count(len(names), 'column')} of labels",
        "Name the column with --label-column",
    )


def fold_column(name: str) -> str:
    """Return the name of a column in the form for comparison: `Image Index` -> image_index."""
    return "_".join(normalise_name(name).casefold().replace("-", " ").replace("_", " ").split())


@lru_cache(CACHED_CELLS)
def parse_number(text: str) -> float | None:
    """Return a finite number, 1 and 0 for true and false; None if the text is none of these."""
    if text.casefold() in ("true", "false"):
        return float(text.casefold() == "true")
    try:
        number = float(text.replace("\u2212", "-"))  # U+2212, as typesetting and R write it
    except ValueError:
        return None
    return number if abs(number) < float("inf") else None


@lru_cache(CACHED_CELLS)
def parse_flag(text: str) -> float | None:
    """Return 1, 0 or -1, or nan for an unknown label; None if the text is none of these."""
    word = text.casefold()
    if is_unknown(text):
        return math.nan
    if word in _YES | _NO:
        return float(word in _YES)
    number = parse_number(text)
    return number if number in (-1.0, 0.0, 1.0) else None


def parse_numbers(cells: Sequence[str]) -> tuple[list[float | None], str | None]:
    """Return the finite number in each cell of a column, None where there is none, and a note on commas and points."""
    commas, points = ([cell for cell in cells if mark in cell] for mark in ",.")
    if _are_thousands(cells, ".", ",", _POINTS):
        numbers = [parse_number(cell.replace(".", "").replace(",", ".")) for cell in cells]
        note = f"the point separates thousands: {points[0]} is read as {numbers[cells.index(points[0])]:.15g}"
        return numbers, note + "; the comma is a decimal comma" * bool(commas)
    are_thousands = _are_thousands(cells, ",", ".", _THOUSANDS)
    numbers = [parse_number(cell.replace(",", "" if are_thousands else ".")) for cell in cells]
    first = numbers[cells.index(commas[0])] if commas else None
    meaning = "separates thousands" if are_thousands else "is a decimal comma"
    return numbers, None if first is None else f"the comma {meaning}: {commas[0]} is read as {first:.15g}"


def _are_thousands(cells: Sequence[str], mark: str, other: str, form: re.Pattern[str]) -> bool:
    """Return True if a mark separates thousands: where all can, and one cell has two, or the other mark after it.

    Else cells without marks decide: as thousands, the numbers must be nearer to theirs.
    """
    marked = [cell for cell in cells if mark in cell]
    if not marked or not all(map(form.fullmatch, marked)):
        return False
    if any(cell.count(mark) > 1 or other in cell for cell in marked):
        return True
    plain = [abs(number) for cell in cells if mark not in cell and (number := parse_number(cell))]
    whole, decimal = (median(abs(float(cell.replace(mark, sign))) for cell in marked) for sign in ("", "."))
    return bool(plain) and whole * decimal < median(plain) ** 2


def list_values(cells: Sequence[str]) -> set[float]:
    """Return the different numbers in cells, with a point or a comma; empty if a cell is not a number."""
    numbers, _ = parse_numbers(cells)
    return set() if None in numbers else {number for number in numbers if number is not None}


def unwrap_choices(cells: list[str]) -> list[str]:
    """Return cells without the brackets around one label each, and those of Label Studio as lists.

    It writes several choices as `{"choices":["cat","dog"]}`, beside single ones without brackets.
    """
    if any(map(_CHOICES.fullmatch, cells)):
        cells = [match[1] if (match := _CHOICES.fullmatch(cell)) else f"[{cell}]" for cell in cells]
    if all(map(_LIST_OF_ONE.fullmatch, cells)):
        return [_LIST_OF_ONE.sub(r"\2", cell) for cell in cells]
    return cells


def is_missing(cell: str) -> bool:
    """Return True if a cell of a class or a category holds no value."""
    return cell.casefold() in _MISSING or _ERROR_VALUE.fullmatch(cell) is not None


def is_unknown(cell: str) -> bool:
    """Return True if a cell of a flag or a number holds no value."""
    return is_missing(cell) or cell.casefold() in _UNKNOWN


def is_flag(table: Table, name: str) -> bool:
    """Return True if a column can hold one label: yes, no, uncertain or unknown, with at least one yes."""
    if fold_column(name) in _FLAGS | _MEASURES:
        return False
    flags = {parse_flag(cell) for cell in table.columns[name]}
    return None not in flags and 1.0 in flags


def list_odd_numbers(table: Table, name: str) -> list[int]:
    """Return the rows whose cells are no numbers, if those of the others measure something; else none.

    A cell with a bound, a unit or signs between thousands, such as <0.5, 3.2 mm or 1'000.5, is returned too; its number
    counts as measured.
    """
    cells = table.columns[name]
    numbers, _ = parse_numbers(cells)
    odd = [row for row, cell in enumerate(cells) if numbers[row] is None and not is_unknown(cell)]
    matches = [None if number is None else cell for cell, number in zip(cells, numbers, strict=True)]
    for row in odd:
        if match := _QUANTITY.fullmatch(cells[row]):
            number = re.sub(r"[\s'\u2019]", "", match[1])
            matches[row] = number.replace(".", "") if "," in number or number.count(".") > 1 else number
    known = [cell for cell in matches if cell is not None]
    if not odd or len(known) < (1 - MAX_ODD) * len(cells):
        return []
    return odd if is_measure(replace(table, columns={name: known}), name) else []


def join_decimals(cells: Sequence[str], known: Sequence[str] = ()) -> list[str]:
    """Return cells with `12.0` as `12` if the column has both: some programs make decimals of whole numbers.

    The names of a run's classes, `known`, stay as they are: `12` is `12.0` if the run has only that.
    """
    different = {*cells, *known}
    whole = (cell[:-2] if cell.endswith(".0") and cell[:-2] in different else cell for cell in cells)
    return [f"{cell}.0" if cell not in known and f"{cell}.0" in known else cell for cell in whole]


def read_names(table: Table, name: str, known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the cells of a column of classes or grades, and a note on whole numbers that are written as decimals.

    Raises:
        DataError: a cell is missing.
    """
    blank = [row for row, cell in enumerate(table.columns[name]) if is_missing(cell)]
    table.refuse(f"no label (column {name!r})", blank)
    cells = join_decimals(table.columns[name], known)
    changed = sorted({*zip(table.columns[name], cells, strict=True)} - {(cell, cell) for cell in cells})
    return cells, [f"column {name!r}: {old} is read as {new}" for old, new in changed[:1]]


def unite_flags(cells: Sequence[str], known: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return cells that all say yes or no with one word for each, and notes on those that had several.

    It is the most frequent word, or one of `known`, the classes of a run, whose words stay as they are.
    """
    counts = Counter(cells)
    words = [*counts, *known]
    flags = {word: parse_flag(word) for word in words}
    if len(set(words)) < 3 or not set(flags.values()) <= {0.0, 1.0}:
        return list(cells), []
    order = sorted(flags, key=lambda word: (word in known, counts[word], word))
    chosen = {flags[word]: word for word in order}  # the last one stays
    word_of = {cell: cell if cell in known else chosen[flags[cell]] for cell in counts}
    united = {word: sorted(cell for cell in counts if word_of[cell] == word) for word in chosen.values()}
    notes = [f"{', '.join(same)} are read as {word!r}" for word, same in united.items() if {*same} - {word}]
    return [word_of[cell] for cell in cells], notes


def is_measure(table: Table, name: str) -> bool:
    """Return True if a column's cells are numbers that measure or count something, not class names."""
    cells = [cell for cell in table.columns[name] if not is_unknown(cell)]
    values = list_values(cells)
    if len(values) < 3:
        return False
    words = fold_column(name)
    if not all(value.is_integer() for value in values):
        return len(values) > MAX_FRACTIONS or len(values) > len(cells) / 2
    low, high = min(values), max(values)
    counts_up = low in (0, 1) and high - low + 1 <= 2 * len(values)
    if words in _MEASURES or words.partition(":")[0] in _MEASURES:
        return len(values) > 5
    return (len(values) > MAX_GAPPED and not counts_up) or (len(values) > 10 and len(values) > len(cells) / 2)


def sort_by_number(names: Sequence[str]) -> tuple[str, ...] | None:
    """Return names in the order of the first number in each; None if one has none, or two have the same."""
    if not all(map(NUMBER.search, names)):
        return None
    values = {name: find_number(name) for name in names}
    return tuple(sorted(names, key=values.__getitem__)) if len(set(values.values())) == len(values) else None


def find_number(name: str) -> float:
    """Return the first number in a name, which has one."""
    match = NUMBER.search(name)
    assert match is not None
    return float(match[0].replace("\u2212", "-").replace(",", "."))
