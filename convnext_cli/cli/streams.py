"""Streams whose failure does not stop a training: closed, without a reader, or on a full disk."""

import errno
import io
import os
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stderr, suppress
from typing import Any, TextIO, cast

from convnext_cli.files import DISK_FULL_ERRORS

_GONE = (errno.EIO, errno.EPIPE, errno.EBADF, errno.ENXIO, errno.ECONNRESET)


class Log:
    """A stream of log lines. Lines that cannot be written are dropped: a log must not stop a training."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> int:
        """Write a text, if possible."""
        self._attempt(self._stream.write, text)
        return len(text)

    def flush(self) -> None:
        """Flush the stream, if possible."""
        self._attempt(self._stream.flush)

    def _attempt(self, action: Callable[..., object], *arguments: str) -> None:
        with suppress(ValueError):  # closed
            try:
                action(*arguments)
            except OSError as error:
                if error.errno in _GONE:  # its reader or terminal: every later write would fail too
                    discard(self._stream)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


def discard_unwritten(stream: TextIO) -> None:
    """Connect a stream to the null device if its buffer cannot be written."""
    try:
        stream.flush()
    except (OSError, ValueError):
        discard(stream)


def discard(stream: TextIO) -> None:
    """Connect a stream to the null device, so that its buffer is dropped."""
    with suppress(OSError, ValueError, io.UnsupportedOperation):
        null = os.open(os.devnull, os.O_WRONLY)
        os.dup2(null, stream.fileno())
        os.close(null)


@contextmanager
def keep_streams() -> Iterator[None]:
    """Provide three standard streams for the length of the block; writing to stderr never fails.

    A closed stream becomes the null device. Otherwise the next file that is opened, such as a checkpoint, would get its
    number, and a library's warning would be written into it. Writing to a closed stdout stays an error, since the
    result is lost: its null device is for reading only.
    """
    for number, (name, mode) in enumerate((("stdin", "r"), ("stdout", "w"), ("stderr", "w"))):
        try:
            os.fstat(number)
        except OSError:
            os.open(os.devnull, os.O_RDWR if name == "stderr" else os.O_RDONLY)  # the lowest free number is this one
        if getattr(sys, name) is None:  # Python's value for a closed stream
            setattr(sys, name, open(number, mode, encoding="utf-8", closefd=False))  # noqa: SIM115  (for the process)
    stderr = sys.stderr
    with redirect_stderr(cast("TextIO", Log(stderr))):
        try:
            yield
        finally:
            discard_unwritten(stderr)  # a full disk: Python would try again and exit with 120


@contextmanager
def name_stdout() -> Iterator[None]:
    """Name standard output in the error of a full disk, for the length of a block that writes to it."""
    try:
        yield
    except OSError as error:
        if error.errno in DISK_FULL_ERRORS:
            error.filename = "standard output"
        raise


@contextmanager
def survive_lost_reader() -> Iterator[None]:
    """Ignore a lost reader of stdout for the length of the block: the results are on disk too."""
    try:
        yield
        sys.stdout.flush()
    except OSError as error:
        if error.errno not in _GONE:
            raise
        discard(sys.stdout)
