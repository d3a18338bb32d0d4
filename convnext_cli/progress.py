"""Progress of what takes a while, and the helper that runs it to its end."""

from collections.abc import Callable, Generator, Iterator
from dataclasses import dataclass
from typing import Any, TypeAlias, TypeVar

Result = TypeVar("Result")
OnEvent: TypeAlias = Callable[[Any], None] | None


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How many of how many images are done, and with what."""

    done: int
    total: int
    what: str = ""


def drain(steps: Iterator[object], result: type[Result], on_event: OnEvent = None) -> Result:
    """Run a step generator to its end and return its result.

    Args:
        steps: yields events, and one instance of `result`.
        result: the type of the result.
        on_event: called with each event but the result. An exception that it raises stops the work and is passed on;
            locks and temporary files are cleaned up before that.
    """
    found: Result | None = None
    try:
        for event in steps:
            if isinstance(event, result):
                found = event
            elif on_event is not None:
                on_event(event)
    finally:
        if isinstance(steps, Generator):
            steps.close()  # the traceback of an exception would keep it open, and with it the run's lock
    assert found is not None
    return found
