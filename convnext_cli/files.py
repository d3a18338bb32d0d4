"""Writing that never leaves half a file under a real name, and the folder for what can be made again.

A file that the user names (`--output`, `--fix-list` …) is checked by `check_output` and written through
`replace_output`. No option writes a named file in any other way.
"""

import errno
import getpass
import json
import os
import shutil
import stat
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from convnext_cli.errors import UsageError

NULL_FOLDER = Path(os.devnull)  # a folder in which nothing can be made
_NO_ROOM_ERRORS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
NO_ROOM = "no room on the disk for this file, of which nothing is left"


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; when the block ends well, it is flushed and renamed to `path`.

    Raises:
        OSError: the disk is full, read-only or gone. `path` is then as it was before.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name[:50]}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide a shared run from colleagues
        temporary.replace(path)
    except OSError as error:
        if error.errno in _NO_ROOM_ERRORS and error.strerror != NO_ROOM:  # the file's own name, and not a temporary one
            raise OSError(error.errno, NO_ROOM, str(path)) from error
        raise
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


@contextmanager
def replace_output(path: Path, option: str = "--output", *, overwrite: bool = False) -> Iterator[Path]:
    """Give a temporary path beside a file that the user named; when the block ends well, rename it to `path`.

    Raises:
        UsageError: as `check_output`, before the block and once more after it.
        OSError: as `replace_file`.
    """
    check_output(path, option, overwrite=overwrite)
    with replace_file(path) as temporary:
        yield temporary
        check_output(path, option, overwrite=overwrite)  # what came there meanwhile is not replaced either


def write_output(path: Path, text: str, option: str = "--output", *, overwrite: bool = False) -> None:
    """Write `text` to a file that the user named, as `replace_output` and `write_text` do."""
    with replace_output(path, option, overwrite=overwrite) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def check_output(path: Path, option: str = "--output", *, overwrite: bool = False) -> None:
    """Check that a file may be written at a path that the user named.

    An existing file is replaced with `overwrite` only; a link, a device, a pipe, a socket never is, nor what a link
    leads to.

    Raises:
        UsageError: it may not.
    """
    try:
        mode = path.lstat().st_mode
    except FileNotFoundError:
        mode = None
    except OSError as error:
        raise UsageError(f"cannot write {path}: {error.strerror}", f"Choose another {option}") from error
    if mode is None and not path.parent.is_dir():
        raise UsageError(f"cannot write {path}", "Give a file in a folder that exists")
    if mode is not None and stat.S_ISDIR(mode):
        raise UsageError(f"cannot write {path}: it is a folder", "Give a file in a folder that exists")
    if mode is not None and not stat.S_ISREG(mode):
        kind = "a symbolic link" if stat.S_ISLNK(mode) else "a pipe, a socket or a device"
        raise UsageError(f"{path} is {kind}, which is never replaced", f"Choose another {option}")
    if mode is not None and not overwrite:
        raise UsageError(f"{path} exists already", f"Choose another {option}, or add --overwrite")
    if not os.access(path.parent, os.W_OK | os.X_OK):
        raise UsageError(f"cannot write {path}: its folder is not writable", f"Choose another {option}")


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, whole or not at all. Bytes of odd file names pass through."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def read_json_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; a line that a full disk cut short is passed over."""
    found = []
    try:
        lines = path.read_bytes().splitlines()
    except OSError:  # it is not there, or is a folder
        return []
    for line in lines:
        try:
            found.append(json.loads(line))
        except (ValueError, RecursionError):
            continue
    return found


def append_json_line(path: Path, entry: dict[str, Any]) -> None:
    """Add an object to a file of JSON lines: one write at its end, which the system does not mix with another's.

    Raises:
        OSError: it cannot be written. Of a line that a full disk cut short nothing stays.
    """
    line = (json.dumps(entry) + "\n").encode()
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        written = 0
        with suppress(OSError):
            written = os.write(file, line)
        if written < len(line):
            os.ftruncate(file, os.fstat(file).st_size - written)
            if not os.fstat(file).st_size:
                path.unlink()
            raise OSError(errno.ENOSPC, "no room on the disk for another line", str(path))
        os.fsync(file)
    finally:
        os.close(file)


def checksum_file(path: Path) -> int:
    """A sum over a file's bytes, formed once for each state of the file."""
    state = path.stat()
    return _sum_bytes(path.absolute(), state.st_mtime_ns, state.st_ctime_ns, state.st_size, state.st_ino)


@cache
def _sum_bytes(path: Path, *state: int) -> int:
    del state  # a file that was written anew is summed anew
    return zlib.crc32(path.read_bytes())


def check_outside(output: Path, data: Path, option: str = "--output") -> None:
    """Checks that `output` does not lie in the data folder, which is never written to.

    Raises:
        UsageError: it does.
    """
    if resolve_links(output).is_relative_to(resolve_links(data)):
        raise UsageError(
            f"{output} would lie in the data folder {data}", f"Choose another {option}, or start elsewhere"
        )


def resolve_links(path: Path) -> Path:
    """Return the absolute path without links, where `Path.resolve` fails for a link to itself or a name too long."""
    return Path(os.path.realpath(path))


def find_cache_folder() -> Path:
    """Return this program's cache folder: `$CONVNEXT_CACHE`, or `convnext` in `$XDG_CACHE_HOME` or `~/.cache`.

    Where none of these is set and there is no home folder that can be written, as in `docker run --user 12345`, it is
    a private folder among the system's temporary files.
    """
    own = os.environ.get("CONVNEXT_CACHE")
    return Path(own) if own else _find_cache_home() / "convnext"


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePart:
    """One kind of thing that the cache folder holds."""

    name: str
    """Its folder in the cache folder."""
    title: str
    entries: int
    bytes: int


_CACHE_PARTS = {  # folder: what is in it, and its entries' names; nothing else is ever removed
    "pictures": ("decoded images", ("*.sqlite", "*.sqlite-journal")),
    "audit": ("measures of images, for `check`", ("*.npz",)),
    "digests": ("digests of image files", ("*.sqlite", "*.sqlite-journal")),
    "unpacked": ("unpacked zip files", (f"*-{24 * '[0-9a-f]'}", ".unpacking-*", "*.lock")),
    "probes": ("measured training speeds", ("*.json",)),
    "kernels": ("compiled kernels", ("*.so",)),
}
_LEFTOVERS = ".*.tmp"  # of writes that were killed, see `replace_file`


def list_cache() -> list[CachePart]:
    """Return all parts of the cache with their sizes; leftovers of kills count as well."""
    parts = []
    for name, (title, _) in _CACHE_PARTS.items():
        entries = _find_cache_entries(name)
        parts.append(CachePart(name=name, title=title, entries=len(entries), bytes=sum(map(measure_size, entries))))
    return parts


def clear_cache() -> list[Path]:
    """Remove all parts of the cache, leftovers of kills included, and return what could not be removed.

    A training that uses decoded images decodes from then on. One that reads from an unpacked zip file fails.
    """
    for name in _CACHE_PARTS:
        for entry in _find_cache_entries(name):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):
                    entry.unlink(missing_ok=True)
    return [entry for name in _CACHE_PARTS for entry in _find_cache_entries(name)]


def _find_cache_entries(name: str) -> list[Path]:
    folder = find_cache_folder() / name
    try:
        return [path for pattern in (*_CACHE_PARTS[name][1], _LEFTOVERS) for path in folder.glob(pattern)]
    except OSError:  # not ours to read
        return []


def measure_size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder; links count nothing, nor what goes away meanwhile."""
    files = [str(path)]
    if path.is_dir() and not path.is_symlink():
        parents = ((parent, names) for parent, _, names in os.walk(path))
        files = [os.path.join(parent, name) for parent, names in parents for name in names]  # noqa: PTH118  (many)
    total = 0
    for file in files:
        with suppress(OSError):
            status = os.lstat(file)
            total += 0 if stat.S_ISLNK(status.st_mode) else status.st_size
    return total


def explain_cache_location() -> str | None:
    """Return where the cache is, in words, if that is not where the user would look for it."""
    if not _lacks_home():
        return None
    if _find_cache_home() == NULL_FOLDER:
        return "there is no home folder and no temporary folder that can be written: nothing is kept for later runs"
    return f"the home folder is not writable: the cache is in {find_cache_folder()}. $CONVNEXT_CACHE sets another"


def redirect_library_caches() -> None:
    """Point libraries that keep files in the home folder to the cache folder, where the home cannot be written.

    By environment variables, which processes started by this one inherit. PyTorch's compiler also asks for a user's
    name, which a number given to a container does not have.
    """
    if _lacks_home() and (base := _find_cache_home()) != NULL_FOLDER:
        os.environ["XDG_CACHE_HOME"] = str(base)  # of the Hub's client, PyTorch, and this program
        os.environ.setdefault("MPLCONFIGDIR", str(base / "matplotlib"))
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ.setdefault("USER", f"user-{os.getuid()}" if hasattr(os, "getuid") else "user")


def _lacks_home() -> bool:
    if os.environ.get("CONVNEXT_CACHE") or os.environ.get("XDG_CACHE_HOME"):
        return False
    try:
        return not _is_writable(Path.home() / ".cache" / "convnext")
    except RuntimeError:  # no variable says it, and the system knows no such user
        return True


def _find_cache_home() -> Path:
    given = os.environ.get("XDG_CACHE_HOME")
    if given:
        return Path(given)
    return _make_private_folder() if _lacks_home() else Path.home() / ".cache"


def _is_writable(path: Path) -> bool:
    """Return whether a folder can be written, or made."""
    nearest = next((folder for folder in (path, *path.parents) if os.path.lexists(folder)), path)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


@cache
def _make_private_folder() -> Path:
    """Return a folder among the temporary files that this user alone can write, or `NULL_FOLDER`.

    Private, because compiled kernels are loaded from it.
    """
    try:
        parent = Path(tempfile.gettempdir())
        if parent == Path.cwd() and str(parent) != os.environ.get("TMPDIR"):
            return NULL_FOLDER  # Python's last resort, which may be the user's data
        folder = parent / f"convnext-{os.getuid() if hasattr(os, 'getuid') else getpass.getuser()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        is_own = not hasattr(os, "getuid") or (status.st_uid == os.getuid() and not status.st_mode & 0o022)
        return folder if is_own and stat.S_ISDIR(status.st_mode) else Path(tempfile.mkdtemp(prefix="convnext-"))
    except OSError:
        return NULL_FOLDER


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
