"""The cache folder, for files that can be made again: its location, its contents, and clearing it."""

import getpass
import hashlib
import os
import shutil
import stat
import tempfile
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from pathlib import Path

SPARED = 0.05  # fraction of the disk that cached images and outputs of teachers leave free
NULL_FOLDER = Path(os.devnull)  # a folder in which no file can be created


@dataclass(frozen=True, kw_only=True, slots=True)
class CachePart:
    """One kind of files in the cache folder."""

    name: str
    """Its subfolder of the cache folder."""
    title: str
    entries: int
    bytes: int


IMAGES = "pictures"  # this and the next are subfolders of the cache folder
MEASUREMENTS = "audit"
TEACHERS = "teachers"
DIGESTS = "digests"
UNPACKED = "unpacked"
AUTOTUNING = "probes"
SPEEDS = "speeds"
KERNELS = "kernels"
_CACHE_PARTS = {  # subfolder: title, and the patterns of its entries; no other file is ever removed
    IMAGES: ("decoded images", ("*.sqlite", "*.sqlite-journal")),
    MEASUREMENTS: ("measurements of images, for `check`", ("*.npz", "*.json")),
    TEACHERS: ("outputs of teachers, for distillation", ("*.npy",)),
    DIGESTS: ("digests of image files", ("*.sqlite", "*.sqlite-journal")),
    UNPACKED: ("unpacked zip files", (f"*-{24 * '[0-9a-f]'}", ".unpacking-*", "*.lock")),
    AUTOTUNING: ("autotuning", ("*.json",)),
    SPEEDS: ("speeds of trainings, for estimates of time", ("*.json",)),
    KERNELS: ("compiled kernels", ("*.so",)),
}
_LEFTOVERS = ".*.tmp"  # of writes that were killed, see `files.replace_file`


def find_cache_folder() -> Path:
    """Return the cache folder: `$CONVNEXT_CACHE`, or `convnext` in the user's cache folder (XDG on Linux).

    If the home folder is missing or not writable, as in `docker run --user 12345`, it is a private folder among the
    system's temporary files.
    """
    folder = os.environ.get("CONVNEXT_CACHE")
    return Path(folder) if folder else _find_base_folder() / "convnext"


def name_entry(content: bytes) -> str:
    """Return a name for an entry of the cache folder, 24 hexadecimal digits, from what decides its content."""
    return hashlib.blake2b(content, digest_size=12).hexdigest()


def list_cache_variables() -> dict[str, Path]:
    """Return the environment variables that name a folder for caches, that of other libraries too."""
    return {name: Path(os.environ[name]) for name in ("CONVNEXT_CACHE", "XDG_CACHE_HOME") if os.environ.get(name)}


def list_cache() -> list[CachePart]:
    """Return the parts of the cache with their sizes, leftovers of killed writes included."""
    parts = []
    for name, (title, _) in _CACHE_PARTS.items():
        entries = _find_entries(name)
        parts.append(CachePart(name=name, title=title, entries=len(entries), bytes=sum(map(measure_size, entries))))
    return parts


def clear_cache() -> list[Path]:
    """Remove all parts of the cache and return the entries that could not be removed.

    A training that uses cached images decodes them from then on. One that reads an unpacked zip file fails.
    """
    for name in _CACHE_PARTS:
        for entry in _find_entries(name):
            if entry.is_dir() and not entry.is_symlink():
                shutil.rmtree(entry, ignore_errors=True)
            else:
                with suppress(OSError):
                    entry.unlink(missing_ok=True)
    return [entry for name in _CACHE_PARTS for entry in _find_entries(name)]


def _find_entries(name: str) -> list[Path]:
    folder = find_cache_folder() / name
    try:
        return [path for pattern in (*_CACHE_PARTS[name][1], _LEFTOVERS) for path in folder.glob(pattern)]
    except OSError:  # not readable for this user
        return []


def measure_size(path: Path) -> int:
    """Return the bytes of a file, or of all files below a folder. Links and vanishing files count as 0."""
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
    """Return a note if the cache folder is not in the home folder although no variable says so, else None."""
    if not _lacks_home():
        return None
    if _find_base_folder() == NULL_FOLDER:
        return "neither the home folder nor the temporary folder is writable: nothing is cached for later runs"
    return f"the home folder is not writable: the cache is in {find_cache_folder()}. $CONVNEXT_CACHE sets another"


def redirect_library_caches() -> None:
    """Point libraries that write to the home folder to a cache folder, if the home folder is not writable.

    It is `$CONVNEXT_CACHE` if that is set and writable. Sets environment variables, which child processes inherit.
    PyTorch's compiler also needs a user name, which the numeric user of a container lacks.
    """
    if not _has_home():
        own = os.environ.get("CONVNEXT_CACHE")
        base = Path(own).absolute() if own and _is_writable(Path(own)) else _make_private_folder()
        if base != NULL_FOLDER:
            os.environ["XDG_CACHE_HOME"] = os.environ.get("XDG_CACHE_HOME") or str(base)  # of the Hub's client, PyTorch
            os.environ.setdefault("MPLCONFIGDIR", str(base / "matplotlib"))
    try:
        getpass.getuser()
    except (KeyError, OSError, ImportError):
        os.environ.setdefault("USER", f"user-{os.getuid()}")


def _lacks_home() -> bool:
    """Return True if no variable names a cache folder and the home folder is missing or not writable."""
    return not list_cache_variables() and not _has_home()


def _has_home() -> bool:
    """Return True if a cache in the home folder is writable or can be created."""
    try:
        return _is_writable(Path.home() / ".cache/convnext")
    except RuntimeError:  # neither a variable nor the system knows a home folder of this user
        return False


def _find_base_folder() -> Path:
    """Return the user's folder for caches (`$XDG_CACHE_HOME` or `~/.cache` on Linux); a private one without a home."""
    if _lacks_home():
        return _make_private_folder()
    from platformdirs import user_cache_path  # 10 ms, which most commands do without

    return user_cache_path()


def _is_writable(path: Path) -> bool:
    """Return True if a folder is writable or can be created."""
    nearest = next((folder for folder in (path, *path.parents) if os.path.lexists(folder)), path)
    return nearest.is_dir() and os.access(nearest, os.W_OK | os.X_OK)


@cache
def _make_private_folder() -> Path:
    """Return a folder among the temporary files that only this user can write, or `NULL_FOLDER`.

    Private, because compiled kernels are loaded from it.
    """
    try:
        parent = Path(tempfile.gettempdir())
        if parent == Path.cwd() and str(parent) != os.environ.get("TMPDIR"):
            return NULL_FOLDER  # Python's last resort, which may be the user's data folder
        folder = parent / f"convnext-{os.getuid()}"
        folder.mkdir(mode=0o700, exist_ok=True)
        status = folder.lstat()
        is_own = status.st_uid == os.getuid() and not status.st_mode & 0o022
        return folder if is_own and stat.S_ISDIR(status.st_mode) else Path(tempfile.mkdtemp(prefix="convnext-"))
    except OSError:
        return NULL_FOLDER
