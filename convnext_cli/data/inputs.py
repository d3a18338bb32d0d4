"""Find the files to predict: from files, folders, patterns, or a list of them.

A folder yields each file that is an image by its suffix or first bytes. A bad entry never affects the others.
"""

import glob
import io
import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from stat import S_ISDIR, S_ISREG
from typing import BinaryIO
from urllib.parse import unquote

from convnext_cli.data.folders.remedies import find_unpacker
from convnext_cli.data.index import GIVEN_SUFFIXES, NOT_AN_IMAGE
from convnext_cli.data.outside import check_cache_outside
from convnext_cli.data.tree import HIDDEN, explain_format, is_folder, is_hidden
from convnext_cli.encoding import decode_name, decode_text
from convnext_cli.errors import DataError, ImageError
from convnext_cli.images.formats import HEAD_BYTES, explain_missing, has_image_suffix, identify_bytes, identify_file
from convnext_cli.text import quote

_LIST_REMEDY = "Give the images or their folder, or a list with one path per line on standard input: `predict - < LIST`"
MAX_LIST = 256 * 1024**2  # bytes: a list of two million long paths


@dataclass(frozen=True, kw_only=True, slots=True)
class Inputs:
    """The files to predict."""

    paths: tuple[Path, ...]
    """In the order of the arguments, and sorted within each folder. Some may be missing or unreadable."""
    errors: tuple[tuple[Path, ImageError], ...]
    """Folders without a usable image, lists, tables and archives, with the reason."""
    folders: tuple[Path, ...]
    """The folders that were named, into which nothing may be written."""
    skipped: dict[str, int]
    """Number of other files in the folders, by the reason why they are skipped."""


def find_inputs(words: Iterable[str]) -> Inputs:
    """Find the files that paths, and patterns such as `a/*.png`, name. Only files without a known suffix are opened.

    Raises:
        ImageError: there are no images.
        UsageError: the cache folder is in one of the folders.
    """
    paths: list[Path] = []
    folders: list[Path] = []
    errors: list[tuple[Path, ImageError]] = []
    skipped: Counter[str] = Counter()
    missing = 0
    for word in words:
        for path in _expand(word):
            mode = _find_mode(path)
            missing += mode is None
            if mode and S_ISREG(mode) and path.suffix.lower() in GIVEN_SUFFIXES:
                errors.append((path, ImageError(f"{path} is a list or a table, not an image", _LIST_REMEDY)))
                continue
            if mode and S_ISREG(mode) and (command := find_unpacker(path.name)):
                remedy = f"Run: {command} {quote(path)}, and give the images or their folder"
                errors.append((path, ImageError(f"{path} is packed, not an image", remedy)))
                continue
            if mode is None or not S_ISDIR(mode):
                paths.append(path)
                continue
            check_cache_outside([path])
            folders.append(path)
            images, problems = find_images(path, skipped)
            paths += images
            errors += problems
    if errors and not paths:
        raise errors[0][1]
    if not paths:
        raise ImageError("no images given", "Give images, folders or patterns, or a list of them on standard input")
    if missing == len(paths):
        if all(glob.has_magic(str(path)) for path in paths):
            raise ImageError(f"no file matches {', '.join(map(str, paths))}", "Correct the pattern")
        raise explain_missing(paths)
    return Inputs(
        paths=tuple(paths), errors=tuple(errors), folders=tuple(folders), skipped=dict(sorted(skipped.items()))
    )


def find_images(folder: Path, skipped: Counter[str]) -> tuple[list[Path], list[tuple[Path, ImageError]]]:
    """Return every image below `folder`, sorted, and the folders that cannot be read; count other files in `skipped`.

    A broken link, pipe or device with an image's name is among the images, so that reading it reports its name. Each
    real folder is entered once, so that a loop of links ends.
    """
    images: list[str] = []
    errors: list[tuple[Path, ImageError]] = []
    waiting = [str(folder)]
    entered: set[tuple[int, int]] = set()
    while waiting:
        current = waiting.pop()
        try:
            status = os.stat(current)  # noqa: PTH116  (strings throughout: a Path per file is slow)
            if (status.st_dev, status.st_ino) in entered:
                continue
            entered.add((status.st_dev, status.st_ino))
            with os.scandir(current) as entries:
                for entry in entries:
                    if is_hidden(entry.name):
                        skipped[HIDDEN] += 1
                    elif is_folder(entry):
                        waiting.append(entry.path)
                    elif has_image_suffix(entry.name) or (
                        (image_format := identify_file(entry.path)) and image_format.readable
                    ):
                        images.append(entry.path)
                    else:
                        skipped[explain_format(image_format) if image_format else NOT_AN_IMAGE] += 1
        except OSError as error:
            problem = f"the folder {current} cannot be read ({error.strerror or error})"
            errors.append((Path(current), ImageError(problem, "Check its permissions")))
    if not images and not errors:
        errors.append((folder, ImageError(f"no images in {folder}", "Give an image, or a folder that has some")))
    return sorted(map(Path, images)), errors


def read_list(stream: BinaryIO) -> Iterator[str]:
    """Yield the paths in a stream, one per line or, as `find -print0` writes them, each before a zero byte.

    UTF-16 and UTF-32 are recognised by their mark or zero bytes. Other bytes are kept unchanged, because a file name
    need not be text.

    Raises:
        DataError: the stream is an image, or another file that is not a list.
    """
    raw = stream.read(MAX_LIST + 1)
    if len(raw) > MAX_LIST:
        raise DataError(f"standard input has more than {MAX_LIST // 1024**2} MiB", "Give a list of paths, one per line")
    marked = raw.startswith((b"\xff\xfe", b"\xfe\xff"))
    image_format = None if marked else identify_bytes(raw[:HEAD_BYTES])
    if image_format and not os.path.lexists(re.split(rb"\r?\n|\0", raw, maxsplit=1)[0]):
        raise DataError(
            f"standard input is an image ({image_format.name}), and `-` reads a list of paths",
            "Give the path of the image, or a list with one path per line",
        )
    if marked or b"\0" in raw:
        try:
            text = decode_text(raw, "standard input")[0]
        except DataError:
            if marked or b"\0\0" in raw:  # else names: none is empty
                raise
            yield from filter(None, os.fsdecode(raw).split("\0"))
            return
    else:
        text = os.fsdecode(raw.removeprefix(b"\xef\xbb\xbf"))
    for line in io.StringIO(text):  # not splitlines: a name may hold other characters that end a line
        if name := line.rstrip("\r\n"):
            yield name


def _expand(word: str) -> list[Path]:
    """Return the paths that match a pattern that the shell did not expand; a path matches itself."""
    path = Path(word)
    if not word or _find_mode(path) is not None:
        return [path] if word else []
    if found := _find_rewritten(word):
        return [found]
    if not glob.has_magic(word):
        return [path]
    try:
        matches = sorted(map(Path, glob.glob(word, recursive=True)))  # noqa: PTH207  (Path.glob takes no absolute one)
    except (OSError, ValueError):
        return [path]
    return (matches if "**" not in word else [match for match in matches if not match.is_dir()]) or [path]


def _find_rewritten(word: str) -> Path | None:
    """Return the existing file that another program writes as `word`; None if there is none.

    That is in quotation marks, as an address `file:///`, in Windows-1252, or with backslashes.
    """
    text = decode_name(word.strip().strip("\"'"))
    if text.startswith("file://"):
        text = unquote(text.removeprefix("file://"))
    paths = [Path(name) for name in (text, text.replace("\\", "/")) if name]
    return next((path for path in paths if _find_mode(path) is not None), None)


def _find_mode(path: Path) -> int | None:
    """Return a path's mode; None if it does not exist, links to itself or is too long."""
    try:
        return path.stat().st_mode
    except (OSError, ValueError):
        return None
