"""A folder that one process at a time writes into."""

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
PATIENCE = 1.0  # seconds: `is_locked` of another process holds the lock for a moment
_NOT_SUPPORTED = (errno.ENOSYS, errno.ENOLCK, errno.EOPNOTSUPP)  # Lustre without `-o flock`, some network drives


@contextmanager
def lock_folder(folder: Path, *, is_new: bool = False) -> Iterator[bool]:
    """Hold the folder's lock for the length of the block, and make the folder where there is none.

    The operating system frees the lock when the process ends, by SIGKILL too. Folders that were made here and are
    empty afterwards are removed.

    Args:
        folder: what to lock.
        is_new: whether to refuse a folder that exists.

    Yields:
        False where the file system has no locks, so that nothing keeps a second process out.

    Raises:
        FileExistsError: `is_new`, and the folder exists.
        RunError: another process holds the lock, or the folder cannot be written.
    """
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    try:
        try:
            folder.mkdir(parents=True)  # succeeds for one process alone
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
                (folder / LOCK).unlink()  # before the lock is freed: whoever waits for it sees that it has gone
            os.close(file)
        with suppress(OSError):
            for path in made:
                path.rmdir()


def is_locked(folder: Path) -> bool:
    """Return whether another process holds the folder's lock."""
    try:
        file = os.open(folder / LOCK, os.O_RDONLY)
    except OSError:
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
    except BlockingIOError:
        return True
    except OSError:
        return False
    finally:
        os.close(file)
    return False


def check_unlocked(folder: Path) -> None:
    """Check that no other process trains into the folder.

    Raises:
        RunError: one does.
    """
    if is_locked(folder):
        raise describe_holder(folder)


def describe_holder(folder: Path) -> RunError:
    """Return the error that says who holds the folder's lock."""
    try:
        holder = f"process {(folder / LOCK).read_text()[:80].strip()}"
    except OSError:
        holder = "another process"
    return RunError(
        f"{folder} is being trained by {holder}",
        "Wait until it has ended, or train into a folder of its own (--output)",
    )


def _open_locked(folder: Path) -> int | None:
    """Return the open lock file, locked; None where the file system has no locks."""
    path, end = folder / LOCK, time.monotonic() + PATIENCE
    while True:
        file = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)  # closed on exec, as all that Python opens
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
            time.sleep(PATIENCE / 20)
        else:
            os.close(file)  # the file was removed between opening and locking it
    with suppress(OSError):  # a full disk
        os.ftruncate(file, 0)
        os.write(file, f"{os.getpid()} on {socket.gethostname()}\n".encode())
    return file
