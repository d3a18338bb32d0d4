"""All tasks by name, and the reader of a task that a file names."""

from collections.abc import Mapping
from typing import Any

from msgspec import ValidationError, convert

from convnext_cli.errors import RunError
from convnext_cli.tasks.multilabel import Multilabel
from convnext_cli.tasks.ordinal import Ordinal
from convnext_cli.tasks.regression import Regression
from convnext_cli.tasks.single import Single
from convnext_cli.tasks.task import Display, Task

SINGLE = Single()
TASKS: dict[str, type[Task]] = {kind.name: kind for kind in (Single, Multilabel, Ordinal, Regression)}


def get_display(name: str) -> Display:
    """Return the metrics that are shown of a task."""
    return TASKS[name].display


def read_task(record: Mapping[str, Any] | None, source: object, remedy: str) -> Task:
    """Return the task that a file names: what `Task.to_dict` returned; None is single-label.

    Args:
        record: name and parameters.
        source: the file, for errors.
        remedy: of the error.

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
