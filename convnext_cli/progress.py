"""Long operations: generators that yield events and return their result, composed with `yield from`."""

import sys
from collections.abc import Callable, Generator
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any, Literal, TypeAlias, TypeVar

from convnext_cli.errors import UsageError

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


@dataclass(frozen=True, slots=True)
class Notice:
    """A text for the user, without its severity."""

    text: str
    severity: Literal["warning", "note"] = "note"
    """`warning`: the result is affected. `note`: it is not."""


Steps: TypeAlias = Generator[Progress, None, Result]
"""A long operation that yields `Progress` and returns a `Result`."""


def finish(steps: Generator[object, None, Result], on_event: OnEvent = None) -> Result:
    """Run a long operation to its end and return its result.

    Args:
        steps: the operation.
        on_event: called with each event. An exception that it raises stops the operation; it is passed on after locks
            are released and temporary files removed.

    Raises:
        UsageError: `on_event` cannot be called.
    """
    if not (on_event is None or callable(on_event)):
        raise UsageError(f"on_event = {on_event!r} cannot be called", "Give a function of one event, or None")
    try:
        while True:
            try:
                with _use_numpy_defaults():
                    event = next(steps)
            except StopIteration as end:
                result: Result = end.value
                return result
            if on_event is not None:
                on_event(event)
    finally:
        steps.close()  # an exception's traceback would keep the generator open, and with it the run's lock


def _use_numpy_defaults() -> AbstractContextManager[object]:
    """Give a block NumPy's default answers to an underflow or a division by zero; a program may have changed them."""
    numpy = sys.modules.get("numpy")  # a program that has changed them has imported it
    return numpy.errstate(divide="warn", over="warn", under="ignore", invalid="warn") if numpy else nullcontext()


def map_events(
    steps: Generator[Yielded, None, Result], change: Callable[[Yielded], Changed]
) -> Generator[Changed, None, Result]:
    """Run a long operation as part of another one: yield `change(event)` for each event, and return its result."""
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
