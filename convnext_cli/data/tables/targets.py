"""Find the columns that hold the targets of a table; the tasks read them."""

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace

from convnext_cli.data.folders.words import list_words
from convnext_cli.data.index import are_too_many
from convnext_cli.data.patterns import DATE
from convnext_cli.data.tables.columns import SPLIT_COLUMNS, holds_identifiers
from convnext_cli.data.tables.table import find_named, list_columns
from convnext_cli.encoding import normalise_name
from convnext_cli.errors import DataError
from convnext_cli.options import AUTO
from convnext_cli.tasks.reading import (
    ATTRIBUTES,
    OtherTaskError,
    RawTargets,
    Table,
    TableOptions,
    fold_column,
    is_flag,
    is_measure,
    is_missing,
    parse_flag,
)
from convnext_cli.tasks.registry import TASKS, choose_kind, read_cells, read_columns
from convnext_cli.text import format_count, format_part, shorten

_PRESENCE_WORDS = frozenset(("confidence", "present", "presence", "exists", "vorhanden", "presente", "présent"))
"""Names of a column whose 0 says that a row's label is absent."""
_DATE = re.compile(rf"(?:{DATE}|\d{{1,2}}(?P<sign>[-./])\d{{1,2}}(?P=sign)(?:19|20)\d\d)(?![^\WT]|[-.]\d)")
"""A date that begins with the year, or ends with it."""
_IDENTIFIERS = (["id"], ["uid"])
_LABEL_WORDS = frozenset(("label", "labels", "class", "category", "diagnosis", "grade"))


def read_targets(table: Table, columns: dict[str, str], options: TableOptions) -> RawTargets:
    """Return the targets of each row: classes, labels, grades or numbers, as the options or the cells say.

    The known columns are those that `find_columns` gives.

    Raises:
        OtherTaskError: the cells are not of the task that was asked for.
        DataError: there is no column for the targets, a cell is empty, or most rows have a class of their own.
    """
    targets = _find_targets(table, columns, options)
    if len(targets.columns) == 1 and not targets.task.is_continuous:
        _check_presence(table, targets.columns[0])
    number = len(set(targets.labels))
    if options.task == AUTO and not options.known_labels and are_too_many(number, len(table)):
        raise DataError(
            f"column {targets.columns[0]!r} of {table.path} has {number:,} different values in {len(table):,} rows, "
            "too many for classes",
            "Name the column of classes with --label-column; or --task single reads each value as a class",
        )
    return targets


def _check_presence(table: Table, label: str) -> None:
    """Check that no other column says that labels are absent, as the `Confidence` of Open Images does.

    Raises:
        DataError: one does.
    """
    for name, cells in table.columns.items():
        words = set(list_words(name)) - {"is", "label"}
        flags = list(map(parse_flag, cells)) if words and words <= _PRESENCE_WORDS and name != label else []
        if set(flags) == {0.0, 1.0}:
            raise DataError(
                f"{table.path} has 0 in column {name!r} in {format_count(flags.count(0.0), 'row')}: these seem to say "
                f"that the {label!r} of the row is absent, and would count as present",
                "Remove these rows; or write a column of 1 and 0 per label, as docs/how-to/public-sets.md shows for "
                "Open Images; or rename the column if it means something else",
            )


def _find_targets(table: Table, columns: dict[str, str], options: TableOptions) -> RawTargets:
    """Return the targets as `read_targets` does, with any number of classes."""
    if not len(table):
        raise DataError(f"{table.path} has no rows", "Give a row for each image")
    if options.label_columns != AUTO:
        names = (find_named(table, name.strip(), "--label-columns") for name in options.label_columns.split(","))
        return read_columns(table, list(dict.fromkeys(names)), options)
    known = [name for name in table.columns if normalise_name(name) in options.known_labels]
    if known and options.task != AUTO:
        if TASKS[options.task].is_continuous:
            return read_cells(table, known[0], options)
        return read_columns(table, known, options)
    if "label" in columns:
        return read_cells(table, columns["label"], options)
    remaining = [
        name for name in table.columns if name not in columns.values() and fold_column(name) not in SPLIT_COLUMNS
    ]
    flags = [name for name in remaining if is_flag(table, name) and list_words(name)[-1:] not in _IDENTIFIERS]
    named = [
        name
        for name in remaining
        if set(fold_column(name).split("_")) & _LABEL_WORDS and 1 < len(set(table.columns[name])) < len(table)
    ]
    if len(flags) > 1:
        named = [name for name in named if name not in flags]
        try:
            targets = read_columns(table, flags, options, has_label=bool(named))
            return replace(targets, notes=(*targets.notes, *_note_odd_flags(table, remaining)))
        except OtherTaskError:  # flags beside a label
            if not named:
                raise
    if named:
        return read_cells(table, named[0], options)
    return _read_likely_labels(table, remaining, options)


def _note_odd_flags(table: Table, names: Sequence[str]) -> Iterator[str]:
    """Yield notes on columns that are no labels because of a few cells, such as a 2 or a 9 among 0 and 1."""
    for name in names:
        flags = list(map(parse_flag, table.columns[name]))
        odd = [cell for cell, flag in zip(table.columns[name], flags, strict=True) if flag is None]
        if odd and 2 * len(odd) < len(flags) and {0.0, 1.0} <= set(flags):
            yield (
                f"column {name!r} is not read as a label: {format_part(len(odd), len(flags), 'cell', 'is', 'are')} not "
                f"1, 0, -1, yes, no or blank, such as {shorten(odd[0])!r}; correct the cells if it is one"
            )


def _is_identifier(table: Table, name: str) -> bool:
    """Return True if a column has identifiers, by its name (`study_id`), or row numbers."""
    cells = sorted(map(int, table.columns[name])) if all(map(str.isdecimal, table.columns[name])) else []
    counts_rows = bool(cells) and cells == list(range(cells[0], cells[0] + len(cells)))
    return counts_rows or list_words(name)[-1:] in _IDENTIFIERS


def _holds_dates(table: Table, name: str) -> bool:
    """Return True if all cells of a column that have a value begin with a date."""
    cells = [cell for cell in table.columns[name] if not is_missing(cell)]
    return bool(cells) and all(map(_DATE.match, cells))


def _read_likely_labels(table: Table, remaining: list[str], options: TableOptions) -> RawTargets:
    """Return the targets of the only column that can hold class names, or a number; attributes such as sex go last.

    Addresses, as of the publications that images are from, are neither, nor are dates and identifiers beside other
    columns.
    """
    possible = [name for name in remaining if not any("://" in cell for cell in table.columns[name])]
    possible = [name for name in possible if not _holds_dates(table, name)] or possible
    others = [name for name in possible if fold_column(name) not in ATTRIBUTES] or possible
    likely = [
        name
        for name in possible
        if 1 < len(set(table.columns[name])) <= max(2, len(table) // 2) and not is_measure(table, name)
    ]
    if len(others) > 1:
        likely = [name for name in likely if not holds_identifiers(table, name)]
    if len(likely) == 1 and likely[0] in others and all(table.columns[likely[0]]):
        return read_cells(table, likely[0], options)
    numbers = [name for name in others if not _is_identifier(table, name)]
    if len(others) == len(numbers) == 1 and (
        is_measure(table, others[0]) or choose_kind(table, others[0], options).is_continuous
    ):
        return read_cells(table, others[0], options)
    names = f" (it has {', '.join(list_columns(remaining[:10]))} beside the paths)" if remaining else ""
    raise DataError(
        f"{table.path} has no column for the labels{names}",
        "Name it with --label-column, or a column of 1, 0 and -1 per label with --label-columns",
    )
