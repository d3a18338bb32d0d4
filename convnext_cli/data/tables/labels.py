"""Read the labels of a table: from one column of class names, or from a column of 0 and 1 for each class."""

from collections import Counter
from collections.abc import Sequence

from convnext_cli.data.tables.table import EXAMPLES, Table, fold_column, parse_number
from convnext_cli.errors import DataError

_MEASURES = frozenset(
    (
        "age", "ages", "years", "year", "weight", "height", "width", "bmi", "score", "price", "count", "length", "size",
        "temperature", "pressure", "distance", "angle", "area", "volume", "dose", "value", "index", "idx", "bone_age",
        "boneage", "unnamed", "", "no", "nr", "number", "row", "rating",
    )
)  # fmt: skip
"""Columns that hold measurements or count the rows."""
_LABEL_WORDS = frozenset(("label", "labels", "class", "category", "diagnosis", "grade"))
_FLAGS = frozenset(("sex", "gender", "male", "female", "smoker", "is_test", "is_train", "left", "right"))
MAX_FRACTIONS = 10
"""Values with a fraction: more of them are a measurement, not class names."""
MAX_GAPPED = 20
"""Whole numbers that do not count up from 0 or 1: more of them are a measurement."""


class OtherTaskError(DataError):
    """A manifest for a task that this program does not train on: regression, or several labels per image."""


def read_labels(table: Table, columns: dict[str, str]) -> tuple[list[str], list[str]]:
    """Return the label of each row, and the columns that hold the labels.

    Args:
        table: the table.
        columns: the known columns, as `find_columns` gives them.

    Raises:
        OtherTaskError: the target is a number, or images have several labels.
        DataError: there is no column for the labels, or a cell is empty.
    """
    if not len(table):
        raise DataError(f"{table.path} has no rows", "Give a row for each image")
    if "label" in columns:
        return _check_labels(table, columns["label"]), [columns["label"]]
    remaining = [name for name in table.columns if name not in columns.values()]
    binary = [name for name in remaining if _is_binary(table.columns[name])]
    one_hot = [name for name in binary if fold_column(name) not in _FLAGS | _MEASURES]
    named = [
        name
        for name in remaining
        if set(fold_column(name).split("_")) & _LABEL_WORDS and 1 < len(set(table.columns[name])) < len(table)
    ]
    if len(one_hot) > 1:
        try:
            return _read_one_hot(table, one_hot), one_hot
        except OtherTaskError:
            named = [name for name in named if name not in binary]  # flags beside a label
            if not named:
                raise
    if named:
        return _check_labels(table, named[0]), named[:1]
    return _read_likely_labels(table, remaining)


def _read_likely_labels(table: Table, remaining: list[str]) -> tuple[list[str], list[str]]:
    """Return the labels of the only column that can hold class names, and this column."""
    likely = [
        name
        for name in remaining
        if 1 < len(set(table.columns[name])) <= max(2, len(table) // 2) and not _is_measure(table, name)
    ]
    if len(likely) == 1 and all(table.columns[likely[0]]):
        return _check_labels(table, likely[0]), likely
    if len(remaining) == 1 and _is_measure(table, remaining[0]):
        _check_labels(table, remaining[0])
    names = f" (it has {', '.join(remaining[:10])} beside the paths)" if remaining else ""
    raise DataError(
        f"{table.path} has no column for the labels{names}",
        "Name one label, or give a column of 0 and 1 per class",
    )


def _read_one_hot(table: Table, names: list[str]) -> list[str]:
    """Return the one class of each row. Columns that are not classes are removed from `names`.

    One such column is tolerated (a sign of the patient, for example), and columns without any 1.
    """
    rows = [[name for name in names if parse_number(table.columns[name][row]) == 1.0] for row in range(len(table))]
    faulty = [row for row, classes in enumerate(rows) if len(classes) != 1]
    if faulty and len(names) > 2:
        for other in names:
            remaining = [[name for name in classes if name != other] for classes in rows]
            if all(len(classes) == 1 for classes in remaining):
                names.remove(other)
                return [classes[0] for classes in remaining]
    if faulty:
        lines = ", ".join(f"line {table.lines[row]}" for row in faulty[:EXAMPLES])
        raise OtherTaskError(
            f"{table.path} has not exactly one class in {len(faulty)} rows: {lines}. The columns of 0 and 1 "
            f"({', '.join(names[:EXAMPLES])}) look like a multi-label set, which this program does not train on",
            "Correct these rows, or give a column label with one class for each image",
        )
    empty = set(names) - {classes[0] for classes in rows}
    names[:] = [name for name in names if name not in empty]  # ISIC's UNK, which has no images
    return [classes[0] for classes in rows]


def _check_labels(table: Table, name: str) -> list[str]:
    """Return the labels of a column; check that each cell names one class and that they are not measurements."""
    labels = table.columns[name]
    table.refuse("no label", [row for row, label in enumerate(labels) if not label])
    if _is_measure(table, name):
        values = sorted(_list_values(labels))
        raise OtherTaskError(
            f"column {name!r} of {table.path} is a number ({len(values)} values from {values[0]:g} to {values[-1]:g}): "
            "a regression set, which this program does not train on",
            "Give a column label with classes, such as ranges of this number (numbers that name classes need a letter)",
        )
    if separator := _find_separator(labels):
        several = [row for row, label in enumerate(labels) if separator in label or label.startswith("[")]
        raise OtherTaskError(
            f"column {name!r} of {table.path} has several labels in {len(several)} of {len(labels)} rows, such as "
            f"{labels[several[0]]!r}: a multi-label set, which this program does not train on",
            "Give each image one label, for example a name for each combination, or leave these rows out",
        )
    return labels


def _is_measure(table: Table, name: str) -> bool:
    """Return True if a column's cells are numbers that measure or count something, not class names."""
    cells = [cell for cell in table.columns[name] if cell]
    values = _list_values(cells)
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


def _list_values(cells: Sequence[str]) -> set[float]:
    """Return the different numbers in cells, with a point or a comma; empty if a cell is not a number."""
    numbers = [parse_number(cell.replace(",", ".") if cell.count(",") == 1 else cell) for cell in cells]
    return set() if None in numbers else {number for number in numbers if number is not None}


def _find_separator(labels: Sequence[str]) -> str:
    """Return the sign that separates several labels in a cell; empty if each cell has one label.

    The parts must be labels elsewhere: most of them by themselves, or for `|` in any other combination.
    """
    counts = Counter(labels)
    if all(label.startswith("[") and label.endswith("]") for label in counts):
        return "," if any("," in label for label in counts) else ""
    for separator in "|;, ":
        combined = [label for label in counts if separator in label]
        if not combined:
            continue
        cells = [[part.strip() for part in label.split(separator)] for label in combined]
        if any("" in parts for parts in cells):
            continue
        parts = {part for cell in cells for part in cell}
        alone = len(parts & (set(counts) - set(combined)))
        uses = Counter(part for cell in cells for part in cell)
        if separator == "|" and (alone or any(count > 1 for count in uses.values())):
            return separator
        if separator == " " and alone == len(parts) and len(combined) > 1:
            return separator
        if separator in ";," and alone > 1 and alone >= len(parts) / 2:
            return separator
    return ""


def _is_binary(cells: Sequence[str]) -> bool:
    return {parse_number(cell) for cell in cells} <= {0.0, 1.0}
