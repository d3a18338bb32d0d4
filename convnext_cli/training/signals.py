"""Ctrl-C and SIGTERM ask a run to stop; asked twice, it stops at once."""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from convnext_cli.errors import StoppedError

ECHO = 1.0  # seconds: a launcher passes on what the terminal has sent to its processes already


@dataclass(slots=True)
class Signals:
    """What has arrived: the first signal's number, 0 before that."""

    received: int = 0
    since: float = 0.0


@contextmanager
def watch_signals(signals: Signals) -> Iterator[None]:
    """Notes SIGINT and SIGTERM for the length of the block instead of dying of them. Only the main thread can.

    Raises:
        StoppedError: from wherever the block is, when a second signal arrives.
    """

    def note(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        if not signals.received:
            signals.received, signals.since = number, now
        elif now - signals.since > ECHO:
            raise StoppedError("stopped at once", "What was saved before is whole", signal=number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, note) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
