"""Signals that stop a training: at the first it finishes its step and saves, at a second it stops at once.

They are Ctrl-C (SIGINT), SIGTERM, a closed terminal (SIGHUP), and what batch systems send before a limit: SIGUSR1 and
SIGUSR2 (Slurm's --signal), SIGXCPU (the soft limit on CPU time, repeated each second).
"""

import signal
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from types import FrameType

from convnext_cli.errors import StoppedError

ECHO = 1.0  # seconds: a launcher repeats a signal that the terminal has already sent
ALWAYS = ("SIGINT", "SIGTERM")
UNLESS_IGNORED = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # nohup ignores SIGHUP; a training under it does too


@dataclass(slots=True)
class Signals:
    """The first signal that arrived."""

    received: int = 0
    """Its number; 0 if none has arrived."""
    since: float = 0.0
    """Time of its arrival, in seconds of the monotonic clock."""
    remedy: str | None = None
    """Remedy of an immediate stop; None while training steps check for signals themselves."""

    def check(self) -> None:
        """Check that no signal has arrived.

        Raises:
            StoppedError: one has.
        """
        if self.received:
            raise self.stop(self.received)

    def stop(self, number: int) -> StoppedError:
        """Return the error of an immediate stop."""
        return StoppedError("stopped at once", self.remedy or "Saved files are intact", signal=number)


def watch_signals(signals: Signals) -> AbstractContextManager[None]:
    """Record signals during the block, so that they do not end the process. In other threads it does nothing.

    Raises:
        StoppedError: at any point of the block, if SIGINT or SIGTERM follows another signal, or if any signal arrives
            while `signals.remedy` is set.
    """

    def record(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        is_first = not signals.received
        if is_first:
            signals.received, signals.since = number, now
        is_repeated = not is_first and now - signals.since > ECHO and signal.Signals(number).name in ALWAYS
        if is_repeated or (is_first and signals.remedy):
            raise signals.stop(number)

    return handle_signals(record)


def end_by_signals() -> AbstractContextManager[None]:
    """Let signals end the process at once during the block: Python's handlers do not run while a C function waits."""
    return handle_signals(signal.SIG_DFL)


@contextmanager
def handle_signals(handler: Callable[[int, FrameType | None], None] | signal.Handlers) -> Iterator[None]:
    """Handle the signals that stop a training during the block, if it runs in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in list_signals()}
    try:
        yield
    finally:
        for number, previous in before.items():
            signal.signal(number, previous)


def list_signals() -> list[signal.Signals]:
    """Return the signals that stop a training: those that the system has, without those that are ignored."""
    numbers = [getattr(signal, name) for name in (*ALWAYS, *UNLESS_IGNORED) if hasattr(signal, name)]
    others = (signal.SIG_IGN, None)  # None if it was set outside of Python and cannot be restored
    return [number for number in numbers if number.name in ALWAYS or signal.getsignal(number) not in others]
