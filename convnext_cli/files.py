"""Writing that never leaves half a file under a real name, and the folder for what can be made again."""

import json
import os
import tempfile
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any

from convnext_cli.errors import UsageError


@contextmanager
def replace_file(path: Path) -> Iterator[Path]:
    """Gives a temporary path beside `path`; when the block ends well, it is flushed and renamed to `path`.

    Raises:
        OSError: the disk is full, read-only or gone. `path` is then as it was before.
    """
    handle, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.", suffix=".tmp")
    os.close(handle)
    temporary = Path(name)
    try:
        yield temporary
        with temporary.open("rb") as written:
            os.fsync(written.fileno())
        temporary.chmod(0o666 & ~_umask())  # mkstemp's 0600 would hide a shared run from colleagues
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)  # the rename itself must survive a power cut
    finally:
        os.close(folder)


def write_text(path: Path, text: str) -> None:
    """Writes `text` to `path` as UTF-8, whole or not at all. Bytes of odd file names pass through."""
    with replace_file(path) as temporary:
        temporary.write_text(text, encoding="utf-8", errors="surrogateescape", newline="")


def read_lines(path: Path) -> list[dict[str, Any]]:
    """The objects in a file of JSON lines; a line that a full disk cut short is passed over."""
    found = []
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except FileNotFoundError:
        return []
    for line in lines:
        try:
            found.append(json.loads(line))
        except ValueError:
            continue
    return found


def add_line(path: Path, entry: dict[str, Any]) -> None:
    """Adds an object to a file of JSON lines: one write at its end, which the system does not mix with another's."""
    file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND, 0o666)
    try:
        os.write(file, (json.dumps(entry) + "\n").encode())
        os.fsync(file)
    finally:
        os.close(file)


def sum_file(path: Path) -> int:
    """A sum over a file's bytes, formed once for each state of the file."""
    state = path.stat()
    return _sum_bytes(path.absolute(), state.st_mtime_ns, state.st_size, state.st_ino)


@cache
def _sum_bytes(path: Path, *state: int) -> int:
    del state  # a file that was written anew is summed anew
    return zlib.crc32(path.read_bytes())


def check_outside(output: Path, data: Path, option: str = "--output") -> None:
    """Checks that `output` does not lie in the data folder, which is never written to.

    Raises:
        UsageError: it does.
    """
    if output.resolve().is_relative_to(data.resolve()):
        raise UsageError(
            f"{output} would lie in the data folder {data}", f"Choose another {option}, or start elsewhere"
        )


def find_cache() -> Path:
    """The user's cache folder of this program: `$CONVNEXT_CACHE`, or `convnext` in `$XDG_CACHE_HOME` or `~/.cache`."""
    own = os.environ.get("CONVNEXT_CACHE")
    return Path(own) if own else Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "convnext"


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask
