"""A lock on a folder, so that one process at a time writes into it."""

import errno
import fcntl
import os
import socket
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from convnext_cli.errors import RunError

LOCK = ".lock"
LOCK_TIMEOUT = 1.0  # seconds to wait for a lock: `is_locked` of another process holds it for a moment
_NOT_SUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre without `-o flock`, some network drives


@contextmanager
def lock_folder(folder: Path, *, is_new: bool = False) -> Iterator[bool]:
    """Hold the folder's lock during the block, and make the folder if it does not exist.

    The operating system releases the lock when the process ends, even by SIGKILL. Folders that were made here are
    removed if they are empty afterwards.

    Yields:
        False if the file system has no locks, so that a second process could write too.

    Raises:
        FileExistsError: `is_new`, and the folder exists.
        RunError: another process holds the lock, or the folder cannot be written.
    """
    created = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True)  # succeeds for one process only
        except FileExistsError:
            if is_new:
                raise
        file = _open_locked(folder)
    except OSError as error:
        if is_new and isinstance(error, FileExistsError):
            raise
        raise RunError(f"cannot write {folder}: {error.strerror}", "Choose another --output") from error
    try:
        yield file is not None
    finally:
        if file is not None:
            with suppress(OSError):
                (folder / LOCK).unlink()  # before the lock is released: a waiting process sees that it is gone
            os.close(file)
        with suppress(OSError):
            for path in created:
                path.rmdir()


def is_locked(folder: Path) -> bool:
    """Return True if another process holds the folder's lock."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except OSError as error:  # others: a file system without locks
        return isinstance(error, BlockingIOError)
    finally:
        os.close(file)
    return False


def check_unlocked(folder: Path) -> None:
    """Check that no other process holds the folder's lock.

    Raises:
        RunError: one does.
    """
    if is_locked(folder):
        raise describe_holder(folder)


def describe_holder(folder: Path) -> RunError:
    """Return the error that names the process that holds the folder's lock."""
    try:
        holder = f"process {(folder / LOCK).read_text()[:80].strip()}"
    except OSError:
        holder = "another process"
    return RunError(
        f"{folder} is in use: {holder} trains into it",
        "Wait until it has ended, or choose another --output",
    )


def _open_locked(folder: Path) -> int | None:
    """Return the descriptor of the locked file; None if the file system has no locks."""
    path, end = folder / LOCK, time.monotonic() + LOCK_TIMEOUT
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # closed on exec, like all files that Python opens
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            with suppress(FileNotFoundError):
                if os.path.samestat(os.fstat(file), path.stat()):
                    break
        except OSError as error:
            os.close(file)
            if error.errno in _NOT_SUPPORTED:
                return None
            if not isinstance(error, BlockingIOError):
                raise
            if time.monotonic() > end:
                raise describe_holder(folder) from error
            time.sleep(LOCK_TIMEOUT / 20)
        else:
            os.close(file)  # the file was removed between opening and locking it
    with suppress(OSError):  # a full disk
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()} on {socket.gethostname()}\n".encode())
    return file
