"""Long operations: generators that yield events and return their result, composed with `yield from`."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

Result = TypeVar("Result")
Yielded = TypeVar("Yielded")
Changed = TypeVar("Changed")
OnEvent: TypeAlias = Callable[[Any], None] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """Progress of an operation: `done` of `total` units, and the activity in words."""

    done: int
    total: int
    activity: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Notice:
    """A text for the user."""

    text: str
    severity: Literal["warning", "note"] = "note"
    """`warning`: the result is affected; `note`: nothing needs to be done."""


Steps: TypeAlias = Generator[Progress, None, Result]
"""A long operation that yields progress and returns a `Result`."""


def finish(steps: Generator[object, None, Result], on_event: OnEvent = None) -> Result:
    """Run a long operation to its end and return its result.

    Args:
        steps: the operation.
        on_event: called with each event. An exception that it raises stops the work and is passed on; locks and
            temporary files are cleaned up before that.
    """
    try:
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            if on_event is not None:
                on_event(event)
    finally:
        steps.close()  # the traceback of an exception would keep it open, and with it the run's lock


def map_events(
    steps: Generator[Yielded, None, Result], change: Callable[[Yielded], Changed]
) -> Generator[Changed, None, Result]:
    """Run a long operation as a part of another one, with each of its events changed."""
    try:
        while True:
            try:
                event = next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            yield change(event)
    finally:
        steps.close()
