"""A data set in a zip file is unpacked once, into the user's cache folder, never beside the file."""

import hashlib
import os
import shutil
import tempfile
import zipfile
from pathlib import Path, PurePosixPath

from convnext_cli.errors import DataError
from convnext_cli.files import find_cache

MAX_BYTES = 200 * 1024**3  # of all files unpacked; against archives made to fill a disk


def unpack(archive: Path) -> Path:
    """Unpacks `archive` unless it was before, and returns the folder that has its files.

    The folder is named by the archive's list of names, sizes and checksums, so another archive gets another one. It
    appears under its name only when it is whole.

    Raises:
        DataError: it is no zip file, a damaged one, one that would write outside, or one too large.
    """
    try:
        with zipfile.ZipFile(archive) as opened:
            members = [member for member in opened.infolist() if not member.is_dir()]
            _check(archive, members)
            listing = "\n".join(f"{member.filename} {member.file_size} {member.CRC}" for member in members)
            key = hashlib.blake2b(os.fsencode(listing), digest_size=12).hexdigest()
            target = find_cache() / "unpacked" / f"{archive.stem}-{key}"
            if not target.exists():
                target.parent.mkdir(parents=True, exist_ok=True)
                temporary = Path(tempfile.mkdtemp(dir=target.parent, prefix=".unpacking-"))
                try:
                    opened.extractall(temporary)
                    temporary.rename(target)
                except FileExistsError:  # another process was faster; its folder is the same
                    pass
                finally:
                    shutil.rmtree(temporary, ignore_errors=True)
    except (zipfile.BadZipFile, NotImplementedError, RuntimeError, EOFError, ValueError) as error:
        raise DataError(f"{archive} cannot be unpacked ({error})", "Give a whole zip file without password") from error
    except OSError as error:
        raise DataError(f"{archive} cannot be unpacked ({error})", "Check the disk's space and permissions") from error
    return target


def _check(archive: Path, members: list[zipfile.ZipInfo]) -> None:
    for member in members:
        path = PurePosixPath(member.filename)
        if path.is_absolute() or ".." in path.parts:
            raise DataError(f"{archive} has a file outside of itself ({member.filename!r})", "Pack it anew")
    total = sum(member.file_size for member in members)
    if total > MAX_BYTES:
        raise DataError(
            f"{archive} would unpack to {total / 1024**3:.0f} GiB", "Unpack it yourself and give the folder"
        )
