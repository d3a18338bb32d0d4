"""Standard streams that a training survives: closed, on a terminal or with a reader that has gone, on a full disk."""

import errno
import io
import os
import signal
import sys
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from types import FrameType
from typing import Any, TextIO, cast

from convnext_cli.errors import StoppedError

_GONE = (errno.EIO, errno.EPIPE, errno.EBADF, errno.ENXIO, errno.ECONNRESET)


class Log:
    """The stream of log lines. What cannot be written is dropped: no line of log is worth a training.

    Args:
        stream: what to write to.
    """

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write the text, where that is possible."""
        with suppress(ValueError):  # closed by somebody
            try:
                self._stream.write(text)
            except OSError as error:
                let_go(self._stream, error)
        return len(text)

    def writelines(self, lines: list[str]) -> None:
        """Write the lines, where that is possible."""
        for line in lines:
            self.write(line)

    def flush(self) -> None:
        """Hand on what has been written, where that is possible."""
        with suppress(ValueError):
            try:
                self._stream.flush()
            except OSError as error:
                let_go(self._stream, error)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def let_go(stream: TextIO, error: OSError) -> None:
    """Connect a stream to the null device where its reader or terminal has gone: each later write would fail too."""
    if error.errno in _GONE:
        discard(stream)


def discard_unwritten(stream: TextIO) -> None:
    """Connect a stream to the null device where what waits in its buffer cannot be written."""
    try:
        stream.flush()
    except (OSError, ValueError):
        discard(stream)


def discard(stream: TextIO) -> None:
    """Connect a stream to the null device, so that what waits in its buffer is dropped."""
    with suppress(OSError, ValueError, io.UnsupportedOperation):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextmanager
def keep_streams() -> Iterator[None]:
    """For the length of the block there are three standard streams, and writing to stderr never fails.

    A closed stream is the null device: otherwise the next file that is opened, a checkpoint or a database, would get
    its number, and a library's warning on number 2 would be written into it.
    """
    for number in range(3):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR)  # gets the lowest free number, which is this one
    for name, mode in (("stdin", "r"), ("stdout", "w"), ("stderr", "w")):
        if getattr(sys, name) is None:  # as Python leaves it where the number was closed
            setattr(sys, name, open(os.devnull, mode, encoding="utf-8"))  # noqa: PTH123, SIM115  (for the process)
    stderr = sys.stderr
    with redirect_stderr(cast("TextIO", Log(stderr))):
        try:
            yield
        finally:
            discard_unwritten(stderr)  # a full disk: Python would end with code 120 when it tries once more


@contextmanager
def survive_lost_reader() -> Iterator[None]:
    """For the length of the block nobody needs to read stdout any more: the results are on disk as well."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        discard(sys.stdout)


@contextmanager
def stop_by_signals() -> Iterator[None]:
    """For the length of the block SIGTERM, SIGHUP, SIGUSR1, SIGUSR2 and SIGXCPU end the command with a sentence.

    While it trains, `training.signals` has its own way with them.

    Raises:
        StoppedError: one of them has arrived.
    """

    def stop(number: int, _: FrameType | None) -> None:
        raise StoppedError(
            "stopped", "Saved files are intact; a run that has begun continues with --resume", signal=number
        )

    names = ("SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")
    numbers = [getattr(signal, name) for name in names if hasattr(signal, name)]
    before = {number: signal.getsignal(number) for number in numbers}
    try:
        for number in (number for number, handler in before.items() if handler == signal.SIG_DFL):
            signal.signal(number, stop)
    except ValueError:  # not in the main thread, where no signal arrives
        pass
    try:
        yield
    finally:
        with suppress(ValueError):
            for number in (number for number, handler in before.items() if handler == signal.SIG_DFL):
                signal.signal(number, signal.SIG_DFL)
