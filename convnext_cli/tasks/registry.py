"""All tasks by name, the choice of the one that a table is for, and the reader of a task that a file names."""

from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import replace
from typing import Any

from msgspec import ValidationError, convert

from convnext_cli.errors import RunError
from convnext_cli.tasks.multilabel import Multilabel
from convnext_cli.tasks.ordinal import Ordinal
from convnext_cli.tasks.reading import OtherTaskError, RawTargets, Table, TableOptions, unwrap_choices
from convnext_cli.tasks.regression import Regression
from convnext_cli.tasks.single import Single
from convnext_cli.tasks.task import Task

SINGLE = Single()
TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Single, Multilabel, Ordinal, Regression)}
"""From the most general to the most special: any column can hold classes, not any one numbers."""


def read_cells(table: Table, name: str, options: TableOptions) -> RawTargets:
    """Return the targets that one column holds, for the task that the user names or the cells have the form of.

    Raises:
        OtherTaskError: the cells are not of the task that was asked for.
        DataError: a cell is empty.
    """
    table = replace(table, columns=table.columns | {name: unwrap_choices(table.columns[name])})
    return choose_kind(table, name, options).read_cells(table, name, options)


def choose_kind(table: Table, name: str, options: TableOptions) -> type[Task]:
    """Return the task that the user names; or the most special one that a column has the form of."""
    kinds = reversed(TASKS.values())
    return TASKS.get(options.task) or next(kind for kind in kinds if kind.recognises(table, name, options))


def read_columns(table: Table, names: Sequence[str], options: TableOptions, *, has_label: bool = False) -> RawTargets:
    """Return the targets that a column per label holds, for the task that the user names or the first that can be.

    Raises:
        OtherTaskError: the columns are not of the task that was asked for, or another column is more likely.
        DataError: a cell is not 1, 0, -1 or blank.
    """
    asked = TASKS.get(options.task)
    *others, last = [asked] if asked else TASKS.values()
    for kind in others:
        with suppress(OtherTaskError):
            return kind.read_columns(table, names, options, has_label=has_label)
    return last.read_columns(table, names, options, has_label=has_label)


def describe_task(task: Task) -> dict[str, Any] | None:
    """Return the record of a task for a run's files, as `read_task` reads it: `Task.to_dict`; None for single-label."""
    return None if task == SINGLE else task.to_dict()


def read_task(record: Mapping[str, Any] | None, source: object, remedy: str) -> Task:
    """Return the task that a file names: what `describe_task` returned.

    Raises:
        RunError: there is no such task, or a parameter is wrong.
    """
    if record is None:
        return SINGLE
    kind = TASKS.get(record.get("name", ""))
    if kind is None:
        raise RunError(f"{source} cannot be read: task: unknown name {record.get('name')!r}", remedy)
    try:
        return convert({key: value for key, value in record.items() if key != "name"}, kind)
    except ValidationError as error:
        raise RunError(f"{source} cannot be read: task: {error}", remedy) from error
