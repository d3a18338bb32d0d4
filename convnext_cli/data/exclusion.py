"""Images to leave out: paths, folders and patterns, from a list or from the command line."""

import csv
import fnmatch
import io
import os
import re
from collections.abc import Sequence
from pathlib import Path

from convnext_cli.data.folders.words import is_table
from convnext_cli.data.tables.columns import PATH_NAMES
from convnext_cli.data.tables.spreadsheet import is_spreadsheet
from convnext_cli.data.tables.table import find_delimiter, read_table
from convnext_cli.encoding import compose_name, decode_text
from convnext_cli.errors import DataError
from convnext_cli.tasks.reading import fold_column
from convnext_cli.text import format_count


def _read_rows(option: str) -> tuple[list[list[str]], str]:
    """Return the rows of the file that `--exclude` names, or the option itself as the only row, and the delimiter.

    Bytes of a file name that are not text are kept, as `check --fix-list` writes them.

    Raises:
        DataError: the file cannot be read.
    """
    listing, delimiter = Path(option), ","
    if not listing.is_file():
        return [[option]], delimiter
    if is_spreadsheet(listing) or listing.suffix.lower() == ".jsonl":
        columns = read_table(listing).columns
        return [[*columns], *map(list, zip(*columns.values(), strict=True))], delimiter
    try:
        raw = listing.read_bytes()
        is_fix_list = raw.startswith(b"path,reason")
        text = raw.decode("utf-8", "surrogateescape") if is_fix_list else decode_text(raw, str(listing))[0]
        delimiter = find_delimiter(text) if is_table(listing.name) else delimiter
        rows = [row for row in csv.reader(io.StringIO(text, newline=""), delimiter=delimiter) if any(row)]
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {listing}: {error}", "Give a file with one path per line") from error
    return rows, delimiter


def find_excluded(option: str, paths: Sequence[str], root: Path) -> set[int]:
    """Return the rows of `paths` that `--exclude` names.

    `--exclude` may name:

    - a path, relative to the data, absolute, or from the working folder;
    - a folder, by its path or by a name at any depth;
    - a pattern with `*`, `?` or `[...]` for a path or a name. The path of an existing file is never a pattern;
    - a file with one of these in each line, or in a table's column of paths.

    Raises:
        DataError: the list cannot be read, or names files that do not exist.
    """
    rows, delimiter = _read_rows(option)
    finder = _Finder(paths, root)
    excluded: set[int] = set()
    unknown = []
    header = list(map(fold_column, rows[0])) if rows else []
    names = PATH_NAMES if len(header) > 1 or is_table(option) else PATH_NAMES[:1]
    at = next((header.index(name) for name in names if name in header), None)
    if at is not None and not finder.find(rows[0][at]):  # no folder of such a name
        rows = rows[1:]
    for row in rows:
        name = "".join(row[at or 0 :][:1])
        matches = finder.find(delimiter.join(row)) or finder.find(name)
        if not matches and not name.startswith("#"):
            unknown.append(name)
        excluded |= matches
    if unknown:
        examples = ", ".join(sorted(unknown)[:5])
        if not Path(option).is_file():
            raise DataError(
                f"--exclude {option}: there is no such list, and no image or folder of that name in {root}",
                "Give a file that lists paths, a folder's name, or a pattern such as '*_mask.png'",
            )
        raise DataError(
            f"{option} names {format_count(len(unknown), 'file that is', 'files that are')} not in {root}: {examples}",
            "Give paths as `convnext check --fix-list` writes them, relative to the data, folders, or patterns",
        )
    return excluded


class _Finder:
    def __init__(self, paths: Sequence[str], root: Path) -> None:
        self.root = os.path.abspath(root)  # noqa: PTH100
        self.paths = [compose_name(path) for path in paths]
        self.exact = {path: row for row, path in enumerate(paths)}
        self.rows = {path: row for row, path in enumerate(self.paths)}
        self.folders: dict[str, set[int]] = {}

    def find(self, word: str) -> set[int]:
        if word in self.exact:
            return {self.exact[word]}
        plain = compose_name(word.strip())
        if not plain:
            return set()
        for form in dict.fromkeys((plain, plain.replace("\\", "/"))):
            clean = os.path.normpath(form)
            for path in (clean, os.path.relpath(clean, self.root)):
                if path in self.rows:
                    return {self.rows[path]}
                if path in self._list_folders():
                    return self.folders[path]
            if not set(clean).isdisjoint("*?[") and (rows := self._match(clean)):
                return rows
        return set()

    def _list_folders(self) -> dict[str, set[int]]:
        """Return the rows below each folder, by its path and by its name."""
        if not self.folders:
            for row, path in enumerate(self.paths):
                parts = path.split("/")[:-1]
                for depth, part in enumerate(parts):
                    for name in {part, "/".join(parts[: depth + 1])}:
                        self.folders.setdefault(name, set()).add(row)
        return self.folders

    def _match(self, pattern: str) -> set[int]:
        matches = re.compile(fnmatch.translate(pattern)).match
        names = {name for name in self._list_folders() if matches(name)}
        rows = {row for row, path in enumerate(self.paths) if matches(path) or matches(path.rpartition("/")[2])}
        return rows.union(*(self.folders[name] for name in names))
