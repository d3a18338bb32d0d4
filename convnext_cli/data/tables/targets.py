"""Read the targets of a table: classes, several labels per image, grades, or numbers."""

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, replace

from convnext_cli.data.encoding import normalise_name
from convnext_cli.data.index import AUTO
from convnext_cli.data.tables.options import TableOptions
from convnext_cli.data.tables.table import EXAMPLES, Table, find_named, fold_column, parse_number
from convnext_cli.errors import DataError
from convnext_cli.tasks.multilabel import Multilabel
from convnext_cli.tasks.ordinal import Ordinal, sort_grades
from convnext_cli.tasks.registry import SINGLE
from convnext_cli.tasks.regression import Regression
from convnext_cli.tasks.task import Task

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
_GRADE_WORDS = frozenset(("grade", "level", "severity", "stage", "diagnosis", "score", "rating", "kl", "birads"))
MAX_GRADES = 20
LOG_RANGE = 20
"""Ratio of the 95% to the 5% quantile of a number from which on its logarithm is learned."""
MAX_FRACTIONS = 10
"""Values with a fraction: more of them are a measurement, not class names."""
MAX_GAPPED = 20
"""Whole numbers that do not count up from 0 or 1: more of them are a measurement."""


class OtherTaskError(DataError):
    """A manifest whose targets are not of the task that was asked for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class TableTargets:
    """The targets of the rows of a table."""

    task: Task
    columns: tuple[str, ...]
    """The columns that hold the targets."""
    labels: tuple[str, ...] = ()
    """The class or grade of each row; no rows if `values` has the targets."""
    classes: tuple[str, ...] = ()
    """Names of the labels or grades in order, or of the number; empty for classes, which are sorted."""
    values: tuple[tuple[float, ...], ...] = ()
    notes: tuple[str, ...] = ()
    """Notes on what was decided, and how to overrule it."""


def read_targets(table: Table, columns: dict[str, str], options: TableOptions) -> TableTargets:
    """Return the targets of each row: classes, labels, grades or numbers, as the options or the cells say.

    Args:
        table: the table.
        columns: the known columns, as `find_columns` gives them.
        options: the task and the columns, if the user names them.

    Raises:
        OtherTaskError: the cells are not of the task that was asked for.
        DataError: there is no column for the targets, or a cell is empty.
    """
    if not len(table):
        raise DataError(f"{table.path} has no rows", "Give a row for each image")
    if options.label_columns != AUTO:
        names = [name.strip() for name in options.label_columns.split(",")]
        return _read_columns(table, [find_named(table, name, "--label-columns") for name in names], options)
    if known := [name for name in table.columns if normalise_name(name) in options.known_labels]:
        if len(options.known_labels) == 1:
            return _read_cells(table, known[0], options)
        return _read_columns(table, known, options)
    if "label" in columns:
        return _read_cells(table, columns["label"], options)
    remaining = [name for name in table.columns if name not in columns.values()]
    flags = [name for name in remaining if _is_flag(table, name)]
    named = [
        name
        for name in remaining
        if set(fold_column(name).split("_")) & _LABEL_WORDS and 1 < len(set(table.columns[name])) < len(table)
    ]
    if len(flags) > 1:
        named = [name for name in named if name not in flags]
        if not named or options.task == "multilabel":
            return _read_columns(table, flags, options)
        try:
            return _read_columns(table, flags, replace(options, task="single"))
        except OtherTaskError:
            pass  # flags beside a label
    if named:
        return _read_cells(table, named[0], options)
    return _read_likely_labels(table, remaining, options)


def _read_columns(table: Table, names: list[str], options: TableOptions) -> TableTargets:
    """Return the targets that columns of 1, 0, -1 and blank cells give: one class, or several labels.

    Raises:
        OtherTaskError: one class is asked for, and a row has none or several.
        DataError: a cell is something else, or the task is for one column.
    """
    if options.task in ("ordinal", "regression"):
        raise OtherTaskError(
            f"--task {options.task} needs one column, and {table.path} has {len(names)} columns of labels",
            "Name the column with --label-column",
        )
    one_hot = None
    if options.task != "multilabel" and all(_is_binary(table.columns[name]) for name in names):
        one_hot = _read_one_hot(table, names)
    if one_hot is not None:
        labels, kept = one_hot
        note = f"each row has exactly one 1 in {len(kept)} columns: read as classes; --task multilabel overrules"
        return TableTargets(task=SINGLE, columns=kept, labels=labels, notes=(note,))
    if options.task == "single":
        raise OtherTaskError(
            f"{table.path} has not exactly one class in each row: its columns of labels ({_shorten_names(names)}) have "
            "several labels per image",
            "Leave out --task single, or correct these rows",
        )
    values = [_read_flags(table, name) for name in names]
    notes = [f"{len(names)} labels by columns of 1, 0, -1 and blank cells: read as several labels per image"]
    is_positive_only = [0.0 not in column and any(value != value for value in column) for column in values]
    if options.blank == "negative":
        values = [[0.0 if value != value else value for value in column] for column in values]
    elif any(is_positive_only):
        only = [name for name, flag in zip(names, is_positive_only, strict=True) if flag]
        values = [
            [0.0 if flag and value != value else value for value in column]
            for column, flag in zip(values, is_positive_only, strict=True)
        ]
        notes.append(f"{_shorten_names(only)}: no cell is 0, so blank cells are read as 0")
    unknown = sum(value != value for column in values for value in column)
    uncertain = sum(value == -1 for column in values for value in column)
    if unknown or uncertain:
        notes.append(
            f"{unknown:,} blank labels count as unknown (--blank negative reads them as 0), {uncertain:,} labels "
            "are -1 (--uncertain)"
        )
    return TableTargets(
        task=Multilabel(),
        columns=tuple(names),
        classes=tuple(normalise_name(name) for name in names),
        values=tuple(zip(*values, strict=True)),
        notes=tuple(notes),
    )


def _read_flags(table: Table, name: str) -> list[float]:
    """Return the cells of a column of labels: 1, 0, -1, or nan where it is blank.

    Raises:
        DataError: a cell is something else.
    """
    values = [float("nan") if not cell else parse_number(cell) for cell in table.columns[name]]
    wrong = [row for row, value in enumerate(values) if value is None or (value == value and value not in (-1, 0, 1))]
    table.refuse(f"a cell in {name!r} that is not 1, 0, -1 or blank", wrong)
    return [float("nan") if value is None else value for value in values]


def _is_flag(table: Table, name: str) -> bool:
    """Return True if a column can hold one label: 1, 0, -1 or blank, with at least one 1."""
    if fold_column(name) in _FLAGS | _MEASURES:
        return False
    cells = table.columns[name]
    numbers = {parse_number(cell) for cell in cells if cell}
    return numbers <= {-1.0, 0.0, 1.0} and 1.0 in numbers


def _shorten_names(names: Sequence[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + (" …" if len(names) > EXAMPLES else "")


def _read_cells(table: Table, name: str, options: TableOptions) -> TableTargets:
    """Return the targets that one column holds: classes, several labels, grades or numbers.

    Raises:
        OtherTaskError: the cells are not of the task that was asked for.
        DataError: a cell is empty.
    """
    cells = table.columns[name]
    is_measure = _is_measure(table, name)
    separator = _find_separator(cells) if options.label_sep == AUTO else options.label_sep
    task = options.task
    if task == AUTO:
        task = "regression" if is_measure else "multilabel" if separator else "single"
    if task == "multilabel":
        return _split_cells(table, name, separator)
    table.refuse("no label", [row for row, cell in enumerate(cells) if not cell])
    if task == "regression":
        return _read_numbers(table, name, options)
    if task == "ordinal":
        grades = sort_grades(sorted({normalise_name(cell) for cell in cells}))
        if grades is None:
            raise OtherTaskError(
                f"the grades in column {name!r} of {table.path} have no order: {_shorten_names(sorted(set(cells)))}",
                "Begin each with its number, such as 0 none, 1 mild, 2 severe",
            )
        return TableTargets(task=Ordinal(), columns=(name,), labels=tuple(cells), classes=grades)
    notes: tuple[str, ...] = ()
    values = _list_values(cells)
    if options.task == AUTO and 2 < len(values) <= MAX_GRADES and fold_column(name) in _GRADE_WORDS:
        low, high = min(values), max(values)
        span = f"{low:g} to {high:g}"
        notes = (f"column {name!r} has the numbers {span}: read as classes; --task ordinal reads them as grades",)
    return TableTargets(task=SINGLE, columns=(name,), labels=tuple(cells), notes=notes)


def _split_cells(table: Table, name: str, separator: str) -> TableTargets:
    """Return several labels per image from cells such as `cat|dog`; an empty cell has none.

    Raises:
        OtherTaskError: there is no separator.
    """
    cells = table.columns[name]
    if not separator:
        raise OtherTaskError(
            f"--task multilabel: no cell of column {name!r} of {table.path} has several labels",
            "Name the sign between labels with --label-sep, or a column per label with --label-columns",
        )
    split = [_split_labels(cell, separator) for cell in cells]
    names = tuple(sorted({label for labels in split for label in labels}))
    values = tuple(tuple(float(name in labels) for name in names) for labels in map(set, split))
    note = f"cells of {name!r} separated by {separator!r}: read as several labels per image; --task single overrules"
    return TableTargets(task=Multilabel(), columns=(name,), classes=names, values=values, notes=(note,))


def _split_labels(cell: str, separator: str) -> list[str]:
    """Return the labels in a cell, without brackets and quotation marks of a list."""
    parts = cell.strip("[](){}").split(separator)
    return [normalise_name(name) for part in parts if (name := part.strip().strip("'\"").strip())]


def _read_numbers(table: Table, name: str, options: TableOptions) -> TableTargets:
    """Return the numbers of a column.

    Raises:
        OtherTaskError: a cell is not a number.
    """
    cells = table.columns[name]
    values = [parse_number(cell.replace(",", ".") if cell.count(",") == 1 else cell) for cell in cells]
    if wrong := [cell for cell, value in zip(cells, values, strict=True) if value is None]:
        raise OtherTaskError(
            f"--task regression: {len(wrong)} of {len(cells)} cells of column {name!r} of {table.path} are not "
            f"numbers, such as {wrong[0]!r}",
            "Correct these rows, or leave out --task regression",
        )
    numbers = [value for value in values if value is not None]
    low, high = _list_quantiles(numbers)
    log = options.log_target == "yes" or (options.log_target == AUTO and low > 0 and high / low >= LOG_RANGE)
    overrule = "" if options.task == "regression" else "; --task single or ordinal overrules"
    span = f"{len(set(numbers)):,} values from {min(numbers):g} to {max(numbers):g}"
    notes = [f"column {name!r} is a number ({span}): read as regression{overrule}"]
    if log and options.log_target == AUTO:
        notes.append(
            f"its 5% and 95% quantiles are {low:g} and {high:g}: its logarithm is learned; --log-target no overrules"
        )
    values_of = tuple((number,) for number in numbers)
    return TableTargets(
        task=Regression(log=log), columns=(name,), classes=(normalise_name(name),), values=values_of, notes=tuple(notes)
    )


def _list_quantiles(numbers: Sequence[float]) -> tuple[float, float]:
    """Return the 5% and the 95% quantile."""
    ordered = sorted(numbers)
    return ordered[int(0.05 * (len(ordered) - 1))], ordered[int(0.95 * (len(ordered) - 1))]


def _read_likely_labels(table: Table, remaining: list[str], options: TableOptions) -> TableTargets:
    """Return the targets of the only column that can hold class names, or a number."""
    likely = [
        name
        for name in remaining
        if 1 < len(set(table.columns[name])) <= max(2, len(table) // 2) and not _is_measure(table, name)
    ]
    if len(likely) == 1 and all(table.columns[likely[0]]):
        return _read_cells(table, likely[0], options)
    if len(remaining) == 1 and (_is_measure(table, remaining[0]) or options.task == "regression"):
        return _read_cells(table, remaining[0], options)
    names = f" (it has {', '.join(remaining[:10])} beside the paths)" if remaining else ""
    raise DataError(
        f"{table.path} has no column for the labels{names}",
        "Name it with --label-column, or a column of 1, 0 and -1 per label with --label-columns",
    )


def _read_one_hot(table: Table, names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the one class of each row, and the columns that are classes; None if a row has no or several classes.

    One other column is tolerated (a sign of the patient, for example), and columns without any 1.
    """
    rows = [[name for name in names if parse_number(table.columns[name][row]) == 1.0] for row in range(len(table))]
    if any(len(classes) != 1 for classes in rows):
        others = names if len(names) > 2 else ()
        for other in others:
            remaining = [[name for name in classes if name != other] for classes in rows]
            if all(len(classes) == 1 for classes in remaining):
                rows = remaining
                break
        else:
            return None
    labels = tuple(classes[0] for classes in rows)
    return labels, tuple(name for name in names if name in set(labels))  # without ISIC's UNK, which has no images


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
