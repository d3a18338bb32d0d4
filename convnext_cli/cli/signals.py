"""Signals that stop a command. During a training, `training.compute.signals` handles them."""

import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from types import FrameType

from convnext_cli.training.compute.signals import Signals, list_signals

_PYTHONS = (signal.SIG_DFL, signal.default_int_handler)  # handlers that Python starts with
_stopping = Signals()


@contextmanager
def stop_by_signals() -> Iterator[None]:
    """Let the other signals that stop a training stop any command as Ctrl-C does: temporary files are removed.

    Raises:
        KeyboardInterrupt: one of them arrived; `get_stopping_signal` has its number.
    """

    def stop(number: int, _: FrameType | None) -> None:
        _stopping.received = _stopping.received or number
        raise KeyboardInterrupt

    def report(lost: "sys.UnraisableHookArgs") -> None:
        if not issubclass(lost.exc_type, KeyboardInterrupt):  # `check_stopped` raises it again, without a traceback
            report_lost(lost)

    _stopping.received = 0
    report_lost, sys.unraisablehook = sys.unraisablehook, report
    handlers = {number: signal.getsignal(number) for number in list_signals()}
    handlers = {number: known for number, known in handlers.items() if known in _PYTHONS}
    try:
        for number in handlers:
            signal.signal(number, stop)
    except ValueError:  # not in the main thread, where no signal arrives
        pass
    try:
        yield
    finally:
        sys.unraisablehook = report_lost
        with suppress(ValueError):
            for number, handler in handlers.items():
                signal.signal(number, handler)


def check_stopped() -> None:
    """Stop if a signal has arrived whose exception was lost, as Python does in a callback of the garbage collector.

    Raises:
        KeyboardInterrupt: one has.
    """
    if _stopping.received:
        raise KeyboardInterrupt


def get_stopping_signal() -> int:
    """Return the number of the first signal that arrived in the last block of `stop_by_signals`; else SIGINT's."""
    return _stopping.received or signal.SIGINT
