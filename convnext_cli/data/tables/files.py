"""Find the files, or folders of images, that a table names: at their place, or in the folders below."""

import os
import re
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from functools import cached_property
from pathlib import Path
from typing import NamedTuple

from convnext_cli.data.folders.masks import CERTAIN_MASK
from convnext_cli.data.folders.splits import find_split
from convnext_cli.data.folders.words import list_words
from convnext_cli.data.tables.table import SAMPLE
from convnext_cli.data.tree import is_file, is_folder, walk_folder
from convnext_cli.encoding import compose_name, decode_name
from convnext_cli.errors import DataError
from convnext_cli.images.formats import has_image_suffix
from convnext_cli.tasks.reading import EXAMPLES, Table
from convnext_cli.text import find_address, format_count, shorten_names

MAX_DIGITS = 16  # of a number that is a file's name
MAX_DEPTH = 5  # levels of folders below the table's own in which images are searched


class Images(NamedTuple):
    """The images that the names of a table stand for."""

    paths: list[str]
    """From the root, with their suffixes; empty for a name of nothing."""
    rows: list[int]
    """The place of each image's name."""
    are_in_folders: bool
    """True if the names are those of folders."""


class Listing:
    """The names in the folders below a root; each folder is read once."""

    def __init__(self, root: Path) -> None:
        self.root = str(root)
        self._names: dict[str, tuple[list[str], list[str]]] = {}
        self.closed: list[str] = []
        """The folders that cannot be read."""

    def read(self, folder: str) -> tuple[list[str], list[str]]:
        """Return the names of the files and of the folders in a folder; none if it cannot be read."""
        if folder not in self._names:
            files, folders = self._names[folder] = [], []
            try:
                entries = list(os.scandir(os.path.join(self.root, folder)))  # noqa: PTH118
            except OSError as error:
                entries = []
                if isinstance(error, PermissionError):
                    self.closed.append(folder)
            files += [entry.name for entry in entries if is_file(entry)]
            folders += [entry.name for entry in entries if not is_file(entry) and is_folder(entry)]
        return self._names[folder]


class FileFinder:
    """Finds the files that a table names, and by `folders` the folders.

    A name is compared exactly, then regardless of Unicode form, of capitals, and of a missing suffix. Backslashes
    separate folders if no file has them in its name. If paths begin on another machine, their beginning is cut.

    Args:
        listing: of the folder that the paths begin in.
        table: whose own folders are preferred: those of its name, and those of the split that its name means.
        search: True to search in the folders below it too.
        encoding: of the table.
        find_folders: True to find folders in place of files.
    """

    def __init__(
        self, listing: Listing, table: Path, *, search: bool, encoding: str, find_folders: bool = False
    ) -> None:
        self.listing, self.root, self.table = listing, listing.root, table
        self.split = find_split(table.stem) or find_split(table.parent.name)
        self.search, self.encoding = search, encoding
        self._find_folders = find_folders
        self.notes: list[str] = []
        self.ambiguous: list[str] = []
        self._listings: dict[str, dict[str, list[str]]] = {}
        self._below: dict[str, list[str]] | None = None

    @cached_property
    def folders(self) -> "FileFinder":
        """Finds folders by the same rules."""
        return FileFinder(self.listing, self.table, search=self.search, encoding=self.encoding, find_folders=True)

    def find_images(self, names: Sequence[str]) -> Images:
        """Return the images that names stand for: files, or where no name is one, all images below folders."""
        files = self.find_all(names)
        if any(files) or self.ambiguous:
            return Images([path or "" for path in files], list(range(len(names))), are_in_folders=False)
        folders = self.folders.find_all(names)
        self.notes, self.ambiguous = self.notes + self.folders.notes, self.folders.ambiguous
        images = [(row, path) for row, folder in enumerate(folders) for path in _list_images(self.root, folder) or [""]]
        if any(folders):
            self.notes.append("the paths are folders: the images in each have the label of its row")
        return Images([path for _, path in images], [row for row, _ in images], are_in_folders=any(folders))

    def matches(self, cells: Sequence[str]) -> bool:
        """Return True if most of a column's first cells name files."""
        filled = [cell for cell in cells[:SAMPLE] if cell]
        sample = filled[:: max(1, len(filled) // 20)]
        if not sample:
            return False
        for cut in (0, *self._list_cuts(sample)):
            if 2 * sum(self.find(cell, cut) is not None for cell in sample) > len(sample):
                return True
        return self.search and 2 * sum(bool(self._find_below(cell)) for cell in sample) > len(sample)

    def find_all(self, names: Sequence[str]) -> list[str | None]:
        """Return each name as a path from the root, with its suffix; None if there is no such file."""
        self.ambiguous = []
        direct = [self.find(name) for name in names]
        if any(direct) or self.ambiguous or not names:
            return direct
        for cut in self._list_cuts(names):
            moved = [self.find(name, cut) for name in names]
            if all(moved) and len(set(moved)) == len(set(names)):  # else the cut folders tell files apart
                start = re.sub("^(https?:)/", r"\1//", "/".join(_split_path(names[0])[:cut]))
                self.notes.append(f"the beginning {start}/ of the paths is ignored")
                return moved
        if not self.search:
            return direct
        matches = [self._find_below(name) for name in names]
        self.ambiguous = [name for name, paths in zip(names, matches, strict=True) if len(paths) > 1]
        if any(matches) and not self.ambiguous:
            folders = sorted({path.rpartition("/")[0] for paths in matches for path in paths})
            kind = "folders" if self._find_folders else "images"
            self.notes.append(f"{kind} found in {shorten_names([decode_name(folder) for folder in folders])}")
        return [paths[0] if len(paths) == 1 else None for paths in matches]

    def find(self, name: str, cut: int = 0) -> str | None:
        """Return the file at a name's place below the root, without its first `cut` folders; None if there is none."""
        for form in (name, name.replace("\\", "/")) if "\\" in name else (name,):
            parts = _split_path(form)[cut:] if cut else [form]
            if not parts:
                continue
            place = os.path.normpath("/".join(parts))
            folder, _, last = place.rpartition("/")
            if place.startswith("/") and not folder:
                folder = "/"
            if match := self._look_up(folder, last):
                return os.path.join(folder, match) if folder else match  # noqa: PTH118
        return None

    def _look_up(self, folder: str, name: str) -> str | None:
        """Return the file in a folder that matches a name best; None if there is none, or several match equally."""
        listing = self._list(folder)
        if not listing:  # also of a folder that may be entered, not listed
            exists = os.path.isdir if self._find_folders else os.path.isfile
            return name if exists(os.path.join(self.root, folder, name)) else None  # noqa: PTH118
        for key in _make_keys(name):
            if matches := listing.get(key):
                if len(matches) > 1 and name not in matches:
                    self.ambiguous.append(name)
                    return None
                return name if name in matches else matches[0]
        if self.encoding == "Windows-1252" and not name.isascii():
            try:
                raw = os.fsdecode(name.encode("cp1252"))
            except UnicodeEncodeError:
                return None
            return raw if raw in listing.get(f"={raw}", ()) else None
        return None

    def _list(self, folder: str) -> dict[str, list[str]]:
        """Return the files of a folder by each form of their names; images also by the name without suffix."""
        if folder in self._listings:
            return self._listings[folder]
        listing: dict[str, list[str]] = defaultdict(list)
        files, folders = self.listing.read(folder)
        for name in folders if self._find_folders else files:
            for key in _make_keys(name):
                listing[key].append(name)
            stem, dot, _ = name.rpartition(".")
            if dot and has_image_suffix(name):
                listing[f"stem={compose_name(stem)}"].append(name)
        self._listings[folder] = listing
        return listing

    def _list_cuts(self, names: Sequence[str]) -> Iterator[int]:
        """Yield the numbers of first folders to cut, from few to all but the name, for paths of another machine."""
        parts = _split_path(names[0])
        if len(parts) > 1 and (re.match(r"[A-Za-z]:|/|\\|~|\.\.|file:", names[0]) or not self.search or len(parts) > 2):
            yield from range(1, len(parts))

    def _find_below(self, name: str) -> list[str]:
        """Return the files of this name in the folders below the root; only those in the table's own, if any."""
        *folders, last = _split_path(name) or [""]
        end = "/".join(["", *map(compose_name, folders)])
        matches: list[str] = []
        for key in _make_keys(last):
            paths = self._index_below().get(key, [])
            matches = [path for path in paths if f"/{compose_name(os.path.dirname(path))}".endswith(end)]  # noqa: PTH120
            if matches:
                break
        if len(matches) > 1:
            return [path for path in matches if any(map(self._is_own, path.split("/")[:-1]))] or matches
        return matches

    def _is_own(self, folder: str) -> bool:
        """Return True if a folder has the table's name, or is of the split that this means."""
        return folder == self.table.stem or (self.split is not None and find_split(folder) == self.split)

    def _index_below(self) -> dict[str, list[str]]:
        """Return the files in the folders below the root, to a depth of `MAX_DEPTH`, by each form of their names.

        Those in folders of masks, such as `trimaps`, are left out: they have the names of the images.
        """
        if self._below is None:
            self._below, level = defaultdict(list), [""]
            for _ in range(MAX_DEPTH):
                level = [
                    os.path.join(folder, name)  # noqa: PTH118
                    for folder in level
                    for name in sorted(self.listing.read(folder)[1])
                    if name[0] != "." and not CERTAIN_MASK.fullmatch(" ".join(list_words(name)))
                ]
                for folder in level:
                    for key, names in self._list(folder).items():
                        self._below[key] += [f"{folder}/{name}" for name in names]
        return self._below


def find_files(table: Table, finder: FileFinder, column: str) -> Images:
    """Return the images of each row.

    Raises:
        DataError: a path is empty, names no file and no folder of images, or names several.
    """
    names = table.columns[column]
    table.refuse("no path", [row for row, name in enumerate(names) if not name])
    images = finder.find_images(names)
    if finder.ambiguous:
        number = format_count(len(finder.ambiguous), "name matches", "names match")
        raise DataError(
            f"{table.path}: {number} more than one file, such as {finder.ambiguous[0]}",
            "Name the folder of the paths with --image-root DIR, or write them with their folders and suffixes",
        )
    missing = [row for row, path in zip(images.rows, images.paths, strict=True) if not path]
    folders = [row for row in missing if finder.folders.find(names[row])]
    table.refuse(
        "a folder without images" if images.are_in_folders else "a folder in place of a file",
        folders,
        [names[row] for row in folders[:EXAMPLES]],
        "Give a row for each image, with its path; a column patient or group keeps the images of a folder together",
    )
    addresses = [row for row in missing if find_address(Path(names[row])) and not names[row].startswith("file:")]
    table.refuse(
        "an address, which is not downloaded,",
        addresses,
        [names[row] for row in addresses[:EXAMPLES]],
        "Download the images, and name their folder with --image-root DIR, or add a column path with their files",
    )
    special = [row for row in missing if _is_special(os.path.join(finder.root, names[row]))]  # noqa: PTH118
    table.refuse("a pipe, a socket or a device in place of a file", special, [names[row] for row in special[:EXAMPLES]])
    closed = [decode_name(folder) for folder in finder.listing.closed]
    table.refuse(
        f"a {'folder' if images.are_in_folders else 'file'} that does not exist"
        + (f", or lies in a folder that cannot be read ({shorten_names(closed)})," if closed else ""),
        missing,
        [names[row] for row in missing[:EXAMPLES]],
        _suggest_name(finder, [names[row] for row in missing])
        or "Correct these rows, or name the folder of the paths with --image-root DIR",
    )
    return images


def _is_special(path: str) -> bool:
    """Return True if a path is a pipe, a socket or a device."""
    return os.path.exists(path) and not os.path.isfile(path) and not os.path.isdir(path)  # noqa: PTH110, PTH112, PTH113


def _suggest_name(finder: FileFinder, names: Sequence[str]) -> str:
    """Return the remedy for names of another suffix, and for numbers as other programs write them; empty if none helps.

    These write `12.0`, or cut leading zeros.
    """
    name = names[0] if names else ""
    stem = name.rpartition(".")[0]
    if stem and (found := finder.find_all([stem])[0]):
        return f"Write the names as the files have them, or without suffix: {found} in place of {name}"
    for width in range(len(name) + 1, MAX_DIGITS) if name.isdecimal() else ():
        filled = name.zfill(width)
        if found := finder.find_images([filled]).paths[0]:
            return f"Write the column with the zeros that a spreadsheet program has cut: {filled}, as of {found}"
    return ""


def _list_images(root: str, folder: str | None) -> list[str]:
    """Return the paths of all images below a folder from the root; none if it is None or cannot be read."""
    if folder is None:
        return []
    place = os.path.join(root, folder, "")  # noqa: PTH118
    try:
        images = list(walk_folder(place, Counter()).list_images())
    except OSError:
        return []
    return sorted(os.path.join(folder, path[len(place) :]) for path in images)  # noqa: PTH118


def _split_path(text: str) -> list[str]:
    """Return the folders and the name of a Windows or POSIX path, or of Label Studio's `local-files/?d=` and a path."""
    return [part for part in re.split(r"[/\\]+|\?d=", text) if part and part != "."]


def _make_keys(name: str) -> list[str]:
    """Return the keys by which a name can be found, the exact one first."""
    composed = compose_name(name)
    keys = [f"={name}", f"nfc={composed}", f"case={composed.casefold()}"]
    return keys if has_image_suffix(name) else [*keys, f"stem={composed}"]
