"""Signals that stop a command. During the steps of a training, `training.compute.signals` handles them."""

import signal
from contextlib import AbstractContextManager
from types import FrameType

from convnext_cli.training.compute.signals import Signals, handle_signals

_stopping = Signals()


def stop_by_signals() -> AbstractContextManager[None]:
    """Let the signals that stop a training stop any command as Ctrl-C does: temporary files are removed.

    Raises:
        KeyboardInterrupt: one of them arrived; `get_stopping_signal` has its number.
    """

    def stop(number: int, _: FrameType | None) -> None:
        _stopping.received = _stopping.received or number
        raise KeyboardInterrupt

    _stopping.received = 0
    return handle_signals(stop)


def get_stopping_signal() -> int:
    """Return the number of the first signal that arrived in the last block of `stop_by_signals`; else SIGINT's."""
    return _stopping.received or signal.SIGINT
