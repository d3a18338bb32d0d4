"""Signals ask a training to stop: it finishes its step and saves; asked twice, it stops at once.

These are Ctrl-C and SIGTERM, a terminal that goes away (SIGHUP), and what batch systems send before a limit: SIGUSR1
and SIGUSR2 (Slurm's --signal), SIGXCPU (the soft limit on processor time, repeated each second).
"""

import signal
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from types import FrameType

from convnext_cli.errors import StoppedError

ECHO = 1.0  # seconds: a launcher passes on what the terminal has sent to its processes already
ALWAYS = ("SIGINT", "SIGTERM")
UNLESS_IGNORED = ("SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")  # nohup ignores SIGHUP, and so does the training then


@dataclass(slots=True)
class Signals:
    """The first signal that arrived."""

    received: int = 0
    """Its number; 0 before one has arrived."""
    since: float = 0.0
    remedy: str | None = None
    """What to do after a signal that ends the run at once; None while the training's steps ask for signals."""

    def check(self) -> None:
        """Raise what a signal asked for.

        Raises:
            StoppedError: a signal has arrived.
        """
        if self.received:
            raise self.stop(self.received)

    def stop(self, number: int) -> StoppedError:
        """Return the error that ends a run at once."""
        return StoppedError("stopped at once", self.remedy or "Saved files are intact", signal=number)


@contextmanager
def watch_signals(signals: Signals) -> Iterator[None]:
    """Note signals for the length of the block instead of dying of them. Only the main thread can.

    Raises:
        StoppedError: from wherever the block is, when SIGINT or SIGTERM arrives after another signal, or any signal
            while `signals.remedy` is set.
    """

    def note(number: int, _: FrameType | None) -> None:
        now = time.monotonic()
        is_first = not signals.received
        if is_first:
            signals.received, signals.since = number, now
        is_repeated = not is_first and now - signals.since > ECHO and signal.Signals(number).name in ALWAYS
        if is_repeated or (is_first and signals.remedy):
            raise signals.stop(number)

    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, note) for number in list_signals()}
    try:
        yield
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)


def list_signals() -> list[signal.Signals]:
    """Return the signals that ask this process to stop: those the system has, without those that are ignored."""
    numbers = [getattr(signal, name) for name in (*ALWAYS, *UNLESS_IGNORED) if hasattr(signal, name)]
    kept = []
    for number in numbers:
        handler = signal.getsignal(number)  # None where it was set outside of Python, and cannot be set back
        if number.name in ALWAYS or handler not in (signal.SIG_IGN, None):
            kept.append(number)
    return kept
