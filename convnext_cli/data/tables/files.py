"""Find the files that a table names: at their place, or in the folders below."""

import os
import re
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path

from convnext_cli.data.folders.splits import find_split
from convnext_cli.data.tables.table import SAMPLE
from convnext_cli.data.tree import is_file
from convnext_cli.encoding import compose_name, decode_name
from convnext_cli.errors import DataError
from convnext_cli.images.formats import has_image_suffix
from convnext_cli.tasks.reading import EXAMPLES, Table
from convnext_cli.text import format_count, shorten_names

MAX_DEPTH = 5  # levels of folders below the table's own in which images are searched


class FileFinder:
    """Finds the files that a table names.

    A name is compared exactly, then regardless of Unicode form, of capitals, and of a missing suffix. Backslashes
    separate folders if no file has them in its name. If paths begin on another machine, their beginning is cut.

    Args:
        root: the folder that the paths begin in.
        split: the split that the table's own name means, whose folder is preferred.
        search: True to search in the folders below `root` too.
        encoding: of the table.
    """

    def __init__(self, root: Path, split: str | None, *, search: bool, encoding: str) -> None:
        self.root, self.split, self.search, self.encoding = str(root), split, search, encoding
        self.notes: list[str] = []
        self.ambiguous: list[str] = []
        self._listings: dict[str, dict[str, list[str]]] = {}
        self._below: dict[str, list[str]] | None = None

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
            if all(moved):
                start = "/".join(_split_path(names[0])[:cut])
                self.notes.append(f"the beginning {start}/ of the paths is ignored")
                return moved
        if not self.search:
            return direct
        matches = [self._find_below(name) for name in names]
        self.ambiguous = [name for name, paths in zip(names, matches, strict=True) if len(paths) > 1]
        if any(matches) and not self.ambiguous:
            folders = sorted({path.rpartition("/")[0] for paths in matches for path in paths})
            self.notes.append(f"images found in {shorten_names([decode_name(folder) for folder in folders])}")
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
            return name if os.path.isfile(os.path.join(self.root, folder, name)) else None  # noqa: PTH113, PTH118
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
        try:
            with os.scandir(os.path.join(self.root, folder)) as entries:  # noqa: PTH118
                names = [entry.name for entry in entries if is_file(entry)]
        except OSError:
            names = []
        for name in names:
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
        """Return the files of this name in the folders below the root; only those of the table's split, if any."""
        *folders, last = _split_path(name) or [""]
        end = "/".join(["", *map(compose_name, folders)])
        matches: list[str] = []
        for key in _make_keys(last):
            paths = self._index_below().get(key, [])
            matches = [path for path in paths if f"/{compose_name(os.path.dirname(path))}".endswith(end)]  # noqa: PTH120
            if matches:
                break
        if len(matches) > 1 and self.split:
            of_split = [path for path in matches if self.split in map(find_split, path.split("/")[:-1])]
            return of_split or matches
        return matches

    def _index_below(self) -> dict[str, list[str]]:
        """Return the files in the folders below the root, to a depth of `MAX_DEPTH`, by each form of their names."""
        if self._below is None:
            self._below, level = defaultdict(list), [""]
            for _ in range(MAX_DEPTH):
                level = [inner for folder in level for inner in _list_subfolders(self.root, folder)]
                for folder in level:
                    for key, names in self._list(folder).items():
                        self._below[key] += [f"{folder}/{name}" for name in names]
        return self._below


def find_files(table: Table, finder: FileFinder, column: str) -> list[str]:
    """Return each row's path from the root, with its suffix.

    Raises:
        DataError: a path is empty, names no file, or names several.
    """
    names = table.columns[column]
    table.refuse("no path", [row for row, name in enumerate(names) if not name])
    files = finder.find_all(names)
    if finder.ambiguous:
        number = format_count(len(finder.ambiguous), "name matches", "names match")
        raise DataError(
            f"{table.path}: {number} more than one file, such as {finder.ambiguous[0]}",
            "Name the folder of the paths with --image-root DIR, or write them with their folders and suffixes",
        )
    missing = [row for row, path in enumerate(files) if path is None]
    folders = [row for row in missing if os.path.isdir(os.path.join(finder.root, names[row]))]  # noqa: PTH112, PTH118
    table.refuse(
        "a folder in place of a file",
        folders,
        [names[row] for row in folders[:EXAMPLES]],
        "Give a row for each image, with its path; a column patient or group keeps the images of a folder together",
    )
    table.refuse(
        "a file that does not exist",
        missing,
        [names[row] for row in missing[:EXAMPLES]],
        "Correct these rows, or name the folder of the paths with --image-root DIR",
    )
    return [path for path in files if path is not None]


def _list_subfolders(root: str, folder: str) -> list[str]:
    try:
        with os.scandir(os.path.join(root, folder)) as entries:  # noqa: PTH118
            names = sorted(entry.name for entry in entries if entry.is_dir() and entry.name[0] != ".")
    except OSError:
        return []
    return [f"{folder}/{name}" if folder else name for name in names]


def _split_path(text: str) -> list[str]:
    """Return the folders and the name of a Windows or POSIX path, or of Label Studio's `local-files/?d=` and a path."""
    return [part for part in re.split(r"[/\\]+|\?d=", text) if part and part != "."]


def _make_keys(name: str) -> list[str]:
    """Return the keys by which a name can be found, the exact one first."""
    composed = compose_name(name)
    keys = [f"={name}", f"nfc={composed}", f"case={composed.casefold()}"]
    return keys if has_image_suffix(name) else [*keys, f"stem={composed}"]
