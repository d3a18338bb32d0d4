"""Unpack a data set in a zip file once, into the user's cache folder, never beside the file.

Zip files are not trusted. Files outside of the archive, links, repeated names and impossible sizes are refused before
anything is written.
"""

import os
import re
import shutil
import stat
import tempfile
import time
import zipfile
from collections.abc import Iterable, Sequence
from contextlib import suppress
from pathlib import Path, PurePosixPath, PureWindowsPath

from convnext_cli.cache_folder import UNPACKED, find_cache_folder, name_entry
from convnext_cli.errors import DataError, shorten_error
from convnext_cli.machine import GIB
from convnext_cli.text import format_count

MAX_BYTES = 200 * GIB  # of all files unpacked
MAX_RATIO = 100  # of unpacked to packed bytes, above SMALL: images are compressed already, deflate reaches 1,032
SMALL = GIB // 4
MAX_FREE = 0.9  # of the disk's free space
MAX_NAME = 255  # bytes of a file's or folder's name, as Linux has it
MAX_PATH = 2000  # bytes of a path inside the archive
DAY = 24 * 3600  # seconds
_UNPACKING = ".unpacking-"
_UTF8 = 0x800  # the flag of a name that is UTF-8
_ENCRYPTED = 0x1
_DOS = 0  # ZipInfo.create_system
_LETTERS = bytes([*range(0x80, 0x9B), *range(0xA0, 0xA8), 0xE1]).decode("cp437")
_SHIFT_JIS = re.compile(f"[{''.join(filter(str.islower, _LETTERS))}][A-Z]")
"""Names of Windows in Japan: the second byte of many letters is that of a capital, which no word has inside."""
_UNPACK = "Unpack it yourself and give the folder"


def unpack(archive: Path) -> Path:
    """Unpack an archive unless it is unpacked already; return the folder of its files.

    The folder's name is a hash of the names, sizes and checksums in the archive, so that another archive gets another
    folder. It appears under its name only when it is complete. Of two processes that unpack, the first one's is kept.

    Raises:
        DataError: the archive is no zip file, damaged, encrypted, too large, or has files outside of itself.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            files, folders = _list_members(archive, opened.infolist())
            listing = "\n".join(f"{member.filename} {member.file_size} {member.CRC}" for member in files.values())
            key = name_entry(os.fsencode(listing))
            target = find_cache_folder() / UNPACKED / f"{os.fsdecode(os.fsencode(archive.stem)[:100])}-{key}"
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                _remove_leftovers(target.parent)
                _check_size(archive, files.values(), target.parent)
                _extract(opened, files, folders, target)
    except DataError:
        raise
    except OSError as error:
        raise DataError(f"{archive} cannot be unpacked ({error})", "Check the disk's space and permissions") from error
    except NotImplementedError as error:  # such as Deflate64, by which Windows packs large files
        raise DataError(f"{archive} cannot be unpacked ({shorten_error(error)})", _UNPACK) from error
    except Exception as error:  # what zipfile and its decompressors raise on damaged files has no common base
        raise DataError(f"{archive} cannot be unpacked ({shorten_error(error)})", "Give an intact zip file") from error
    return target


def check_inside(archive: Path, root: Path, paths: Iterable[str]) -> None:
    """Check that the paths in a table of the archive lie in the archive's own folder.

    Args:
        archive: for the message.
        root: the folder that the paths begin in.
        paths: relative to `root`, or absolute.

    Raises:
        DataError: one of them lies elsewhere.
    """
    unpacked = find_cache_folder() / UNPACKED
    inside = os.path.join(unpacked, Path(os.path.relpath(root, unpacked)).parts[0], "")  # noqa: PTH118
    start = os.path.join(root, "")  # noqa: PTH118  (strings: a Path per image is slow)
    outside = [
        path
        for path in paths
        if not os.path.normpath(path if path.startswith("/") else start + path).startswith(inside)
    ]
    if outside:
        raise DataError(
            f"{archive} has a table that names {format_count(len(outside), 'image')} outside of the archive, such as "
            f"{outside[0]}",
            "Add the images to the archive, or give the table itself",
        )


def _list_members(
    archive: Path, members: Sequence[zipfile.ZipInfo]
) -> tuple[dict[PurePosixPath, zipfile.ZipInfo], set[PurePosixPath]]:
    """Return the archive's files by their paths, and its folders; refuse all but ordinary ones inside it."""
    has_slash = any("/" in member.filename for member in members)
    files: dict[PurePosixPath, zipfile.ZipInfo] = {}
    folders: set[PurePosixPath] = set()
    for member in members:
        name = _decode_name(archive, member)
        is_dos = "\\" in name and (member.create_system == _DOS or not has_slash)
        if is_dos:  # not allowed by the format, but some programs write it
            name = name.replace("\\", "/")
        path = PurePosixPath(name)
        problem = _find_problem(member, name, is_dos=is_dos) or ("a file twice" if path in files else "")
        if problem:
            raise DataError(f"{archive} has {problem} ({name[:200]!r})", _UNPACK)
        if name.endswith("/"):
            folders.add(path)
        else:
            files[path] = member
            folders.update(path.parents)
    if both := folders & files.keys():
        raise DataError(f"{archive} has a file and a folder of one name ({min(both)})", _UNPACK)
    return files, folders


def _find_problem(member: zipfile.ZipInfo, name: str, *, is_dos: bool) -> str:
    """Return the reason to refuse a member; empty if there is none."""
    path = PurePosixPath(name)
    kind = stat.S_IFMT(member.external_attr >> 16) if member.create_system != _DOS else 0
    if path.is_absolute() or ".." in path.parts or (is_dos and PureWindowsPath(name).drive):
        return "a file outside of itself"
    if kind not in (0, stat.S_IFREG, stat.S_IFDIR):
        return "a link or a special file"
    if len(os.fsencode(name)) > MAX_PATH or any(len(os.fsencode(part)) > MAX_NAME for part in path.parts):
        return "a name that is too long"
    if member.flag_bits & _ENCRYPTED:
        return "an encrypted file"
    if not path.parts and not name.endswith("/"):
        return "a file without a name"
    return ""


def _decode_name(archive: Path, member: zipfile.ZipInfo) -> str:
    """Return a member's name. Without the flag for UTF-8 it should be code page 437; macOS omits the flag."""
    name = member.filename
    if member.flag_bits & _UTF8 or name.isascii():
        return name
    with suppress(UnicodeError):
        return name.encode("cp437").decode("utf-8")
    folders = name.replace("\\", "/").rpartition("/")[0]
    if any(not sign.isascii() and sign not in _LETTERS for sign in folders) or _SHIFT_JIS.search(folders):
        problem = f"{archive} has a folder name that is neither UTF-8 nor code page 437 (read as {folders[:200]!r})"
        raise DataError(problem, "Pack it again with UTF-8 names, or unpack it yourself and give the folder")
    return name


def _check_size(archive: Path, members: Iterable[zipfile.ZipInfo], folder: Path) -> None:
    """Check the sizes that the archive declares. `zipfile` never reads more than these."""
    total = sum(member.file_size for member in members)
    packed = max(1, archive.stat().st_size)
    free = shutil.disk_usage(folder).free
    if total > MAX_BYTES:
        raise DataError(f"{archive} would unpack to {total / GIB:,.0f} GiB, above {MAX_BYTES // GIB} GiB", _UNPACK)
    if total > SMALL and total > MAX_RATIO * packed:
        raise DataError(
            f"{archive} would unpack to {total / GIB:.1f} GiB, {total // packed} times its size, which images never do",
            _UNPACK,
        )
    if total > MAX_FREE * free:
        raise DataError(
            f"{archive} would unpack to {total / 1e6:,.1f} MB, and {folder} has {free / 1e6:,.1f} MB free",
            "Free some space there, or set another cache folder with CONVNEXT_CACHE",
        )


def _remove_leftovers(folder: Path) -> None:
    """Remove what processes that were killed had unpacked, a day ago or more."""
    for leftover in folder.glob(f"{_UNPACKING}*"):
        with suppress(OSError):  # renamed meanwhile
            if leftover.stat().st_mtime < time.time() - DAY:
                shutil.rmtree(leftover, ignore_errors=True)


def _extract(
    opened: zipfile.ZipFile, files: dict[PurePosixPath, zipfile.ZipInfo], folders: Iterable[PurePosixPath], target: Path
) -> None:
    temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=_UNPACKING))
    try:
        for folder in folders:
            (temporary / folder).mkdir(parents=True, exist_ok=True)
        for path, member in files.items():
            with opened.open(member) as source, (temporary / path).open("xb") as copy:
                shutil.copyfileobj(source, copy, 1 << 20)
        temporary.rename(target)
    except OSError:
        if not target.is_dir():  # else another process was faster; its folder is the same
            raise
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
