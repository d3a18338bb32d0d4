"""Write files atomically, and check paths that the user names.

A file that the user names (`--output`, `--fix-list` …) is always checked by `check_output` and written through
`replace_output`.
"""

import errno
import fcntl
import glob
import json
import os
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from functools import cache
from pathlib import Path
from typing import Any

from convnext_cli.errors import UsageError

DISK_FULL_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
DISK_FULL = "no room on the disk; no partial file is left"


def _read_umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


_UMASK = _read_umask()  # once, before threads start: it can only be read by setting it, for the whole process


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Yield a temporary path beside `path`, which is flushed and renamed to `path` if the block succeeds.

    Raises:
        OSError: the disk is full, read-only or gone; `path` is unchanged.
    """
    with _name_file_in_errors(path):
        handle, name = tempfile.mkstemp(dir=path.parent, prefix=_name_temporary(path), suffix=".tmp")
        temporary = Path(name)
        try:
            with suppress(OSError):  # a file system without locks
                fcntl.flock(handle, fcntl.LOCK_EX)  # for `list_leftovers`
            yield temporary
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            temporary.chmod(0o666 & ~_UMASK)  # mkstemp's 0600 would hide a shared run from colleagues
            temporary.replace(path)
        finally:
            temporary.unlink(missing_ok=True)
            os.close(handle)
    with suppress(PermissionError):  # a folder that may be written, not listed
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)  # the rename itself must survive a power cut
        finally:
            os.close(folder)


@contextmanager
def _name_file_in_errors(path: Path) -> Iterator[None]:
    """Let the errors of writing a file name it instead of its temporary file, which is gone; on a full disk too."""
    try:
        yield
    except OSError as error:
        is_temporary = Path(str(error.filename)).name.startswith(_name_temporary(path))
        if error.errno in DISK_FULL_ERRORS and (is_temporary or error.strerror != DISK_FULL):
            raise OSError(error.errno, DISK_FULL, str(path)) from error
        if is_temporary:
            raise OSError(error.errno, error.strerror, str(path)) from error
        raise


def _name_temporary(path: Path) -> str:
    return f".{path.name[:50]}."


def list_leftovers(path: Path) -> list[Path]:
    """Return the temporary files of `path` whose processes were killed while they wrote them."""
    return list(filter(has_no_writer, path.parent.glob(f"{glob.escape(_name_temporary(path))}????????.tmp")))


def has_no_writer(temporary: Path) -> bool:
    """Return True if the process that wrote a temporary file of `replace_file` is gone; False where that is unknown."""
    try:
        with temporary.open("rb") as file:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    return True


def remove_leftovers(path: Path) -> None:
    """Remove the temporary files of `path` that `list_leftovers` finds."""
    for leftover in list_leftovers(path):
        leftover.unlink(missing_ok=True)


@contextmanager
def replace_output(path: Path, option: str = "--output", *, overwrite: bool = False) -> Iterator[Path]:
    """Yield a temporary path for a file that the user named, which replaces `path` if the block succeeds.

    Its folder is made, and removed again if the block fails.

    Raises:
        UsageError: as `check_output`, before the block and again after it.
        OSError: as `replace_file`.
    """
    check_output(path, option, overwrite=overwrite)
    new_folders = [folder for folder in path.parents if not folder.exists()]  # the innermost first
    path.parent.mkdir(parents=True, exist_ok=True)
    try:
        with replace_file(path) as temporary:
            yield temporary
            check_output(path, option, overwrite=overwrite)  # another program may have written it meanwhile
    except BaseException:
        with suppress(OSError):  # a folder that is not empty stays
            for folder in new_folders:
                folder.rmdir()
        raise


def write_output(path: Path, text: str, option: str = "--output", *, overwrite: bool = False) -> None:
    """Write text to a file that the user named. Raises the errors of `replace_output`."""
    with replace_output(path, option, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def check_output(path: Path, option: str = "--output", *, overwrite: bool) -> None:
    """Check that a file may be written at a path that the user named, in a folder that exists or can be made.

    Links, devices, pipes and sockets are never replaced; regular files with `overwrite` only.

    Raises:
        UsageError: it may not be written.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", f"Choose another {option}") from error
    if mode is not None:
        if stat.S_ISDIR(mode):
            raise UsageError(f"cannot write {path}: it is a folder", "Give a file in it")
        if not stat.S_ISREG(mode):
            kind = "a symbolic link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
            raise UsageError(f"{path} is {kind}, which is never replaced", f"Choose another {option}")
        if not overwrite:
            raise UsageError(f"{path} exists already", f"Choose another {option}, or add --overwrite")
    check_writable(path.parent, option)


def check_writable(folder: Path, option: str = "--output") -> None:
    """Check that files may be written into a folder that the user named, or that it may be made.

    Raises:
        UsageError: the permissions do not allow it, or a file is in its place.
    """
    nearest = next(path for path in (folder.absolute(), *folder.absolute().parents) if os.path.lexists(path))
    if not nearest.is_dir() or not os.access(nearest, os.W_OK | os.X_OK):
        reason = "is not writable" if nearest.is_dir() else "is not a folder"
        raise UsageError(f"cannot write {folder}: {nearest} {reason}", f"Choose another {option}")


def write_text(path: Path, text: str) -> None:
    """Write text atomically as UTF-8. Undecodable bytes of file names (surrogate escapes) are kept."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """Return the objects of a JSON-lines file; truncated lines are skipped, and a missing file has none."""
    objects = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError:
        return []
    for line in lines:
        with suppress(ValueError, RecursionError):
            objects.append(json.loads(line))
    return objects


def append_json_line(path: Path, entry: dict[str, Any]) -> None:
    """Append an object to a JSON-lines file with a single write, which concurrent writers cannot interleave.

    Raises:
        OSError: it cannot be written; a truncated line is removed again.
    """
    line = (json.dumps(entry) + "\n").encode()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        with suppress(OSError):  # a file system without locks
            fcntl.flock(file, fcntl.LOCK_EX)  # nobody appends between a write that fails and its removal
        written, failure = 0, OSError(errno.ENOSPC, DISK_FULL, str(path))
        try:
            written = os.write(file, line)
        except OSError as error:
            if error.errno not in DISK_FULL_ERRORS:
                failure = error
        if written < len(line):
            os.ftruncate(file, os.fstat(file).st_size - written)
            if not os.fstat(file).st_size:
                path.unlink()
            raise failure
        os.fsync(file)
    finally:
        os.close(file)


def checksum_file(path: Path) -> int:
    """Return the CRC-32 of a file's bytes, computed again only if the file changed."""
    status = path.stat()
    return _compute_checksum(path.absolute(), status.st_mtime_ns, status.st_ctime_ns, status.st_size, status.st_ino)


@cache
def _compute_checksum(path: Path, *status: int) -> int:
    del status  # part of the cache's key
    return zlib.crc32(path.read_bytes())


def check_outside(output: Path, data: Path, option: str = "--output") -> None:
    """Check that `output` is outside the data folder, which is never written to.

    Raises:
        UsageError: it is inside.
    """
    if resolve_links(output).is_relative_to(resolve_links(data)):
        raise UsageError(f"{output} would lie in the data folder {data}", f"Give a place outside of it with {option}")


def resolve_links(path: Path) -> Path:
    """Return the absolute path without links. Unlike `Path.resolve`, accepts link loops and names that are too long."""
    return Path(os.path.realpath(path))
