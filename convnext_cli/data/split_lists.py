"""The splits that text files give the images: `train.txt` and `test.txt`, with the name of an image in each line."""

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import replace
from operator import eq
from pathlib import Path

from convnext_cli.data.folders.splits import PARTITION, find_split_lists, is_split_list
from convnext_cli.data.folders.words import list_words
from convnext_cli.data.index import Index, count_read, group_by
from convnext_cli.data.tree import Folder
from convnext_cli.encoding import compose_name, read_text
from convnext_cli.errors import DataError
from convnext_cli.images.formats import has_image_suffix
from convnext_cli.text import format_count, format_part, shorten_names

_FLAGS, _NUMBERS = "train_test_split.txt", "images.txt"
"""The files of CUB-200 and of sets in its form: number and flag, number and name."""
_AFTER_NAME = r"[\s,;]+"
"""Separator of the name of an image and its class in a line."""


def list_split_lists(tree: Folder) -> list[Path]:
    """Return the text files of a folder that are lists by their names."""
    return [Path(folder.path, name) for folder in tree.walk() for name in folder.others if is_split_list(name)]


def apply_split_lists(index: Index, paths: Sequence[Path]) -> Index:
    """Return the index with the splits of the first set of lists that names its images, and notes on the lists.

    A line has the path of an image or the end of it, with or without suffix, and maybe a class after it. An index that
    has splits keeps them. An image in no list has no split.

    Args:
        index: scanned.
        paths: of the text files that are lists by their names.
    """
    used: list[Path] = []
    notes: list[str] = []
    reason = "if they name splits, write these into a CSV file"
    if any(index.splits):
        reason = "the data have splits without them"
    elif sets := [*_list_flag_files(paths), *find_split_lists(paths)]:
        names = [_cut_suffix(compose_name(os.path.basename(path))) for path in index.paths]  # noqa: PTH119
        rows_of = group_by(range(len(index)), names.__getitem__)
        for files in sets:
            splits, notes, problem = _read_lists(files, index.paths, rows_of)
            if not problem:
                index, used = replace(index, splits=tuple(splits)), list(files.values())
                index = count_read(index, len(set(used)))
                notes = [f"splits by lists: {_list_names(files)}", *notes]
                reason = "one set of lists is used"
                break
            notes, reason = [], problem
    if unused := sorted({path.name for path in paths if path not in used}):
        notes.append(f"lists that are not used: {shorten_names(unused)}; {reason}")
    return replace(index, notes=(*index.notes, *notes))


def _read_lists(
    files: Mapping[str, Path], paths: Sequence[str], rows_of: Mapping[str, Sequence[int]]
) -> tuple[list[str], list[str], str]:
    """Return the split of each path by the lists of a set, notes on what has none, and why the set cannot be used.

    The last is empty if it can.
    """
    splits, notes = [""] * len(paths), []
    number, named, repeated = 0, 0, 0
    for split, path in files.items():
        try:
            lines = _read_split(path, split)
        except DataError as error:
            return splits, [], error.problem
        rows = [row for line in lines if (row := _find_row(line, paths, rows_of)) is not None]
        repeated += sum(splits[row] not in ("", split) for row in rows)
        for row in rows:
            splits[row] = split
        number, named = number + len(lines), named + len(rows)
        if len(rows) < len(lines):
            lack = format_part(len(lines) - len(rows), len(lines), "line", "names", "name")
            notes.append(f"{lack} no image in {path.name}")
    if repeated:
        return splits, [], f"{format_count(repeated, 'image is', 'images are')} in several of {_list_names(files)}"
    if not {"train"} < set(splits) - {""} or 2 * named < min(number, len(paths)):
        return splits, [], f"{_list_names(files)} do not name the images of these splits"
    if blank := splits.count(""):
        notes.append(f"{format_part(blank, len(paths), 'image', 'is', 'are')} in no list, and can be training images")
    return splits, notes, ""


def _read_lines(path: Path) -> list[str]:
    return [line for text in read_text(path)[0].splitlines() if (line := text.strip()) and line[0] != "#"]


def _list_flag_files(paths: Sequence[Path]) -> list[dict[str, Path]]:
    """Return the files of CUB-200's and CelebA's forms, each as a set of splits: lines of an image and its split."""
    flags = [path for path in paths if path.name == _FLAGS and (path.parent / _NUMBERS).is_file()]
    partitions = [path for path in paths if is_partition(path)]
    return [
        *({"train": path, "test": path} for path in flags),
        *(dict.fromkeys(PARTITION.values(), path) for path in partitions),
    ]


def is_partition(path: Path) -> bool:
    """Return True if a text file has an image and the number of its split in each line, by its name and its lines."""
    if path.suffix.lower() != ".txt" or "partition" not in list_words(path.stem):
        return False
    try:
        words = [line.rsplit(maxsplit=1) for line in _read_lines(path)]
    except DataError:
        return False
    return {len(line) for line in words} == {2} and {number for _, number in words} == PARTITION.keys()


def _read_split(path: Path, split: str) -> list[str]:
    if path.name == _FLAGS:
        return _read_flags(path, split)
    lines = _read_lines(path)
    if not is_partition(path):
        return lines
    return [name for name, number in (line.rsplit(maxsplit=1) for line in lines) if PARTITION[number] == split]


def _read_flags(path: Path, split: str) -> list[str]:
    """Return the names of the images that are of a split by their flags. Another file has the name of each number."""
    name_of = dict(line.partition(" ")[::2] for line in _read_lines(path.parent / _NUMBERS))
    flags = [line.rpartition(" ")[::2] for line in _read_lines(path)]
    return [name_of.get(number, number) for number, flag in flags if (flag == "1") == (split == "train")]


def _list_names(files: Mapping[str, Path]) -> str:
    return ", ".join(dict.fromkeys(path.name for path in files.values()))


def _cut_suffix(name: str) -> str:
    return os.path.splitext(name)[0] if has_image_suffix(name) else name  # noqa: PTH122


def _find_row(line: str, paths: Sequence[str], rows_of: Mapping[str, Sequence[int]]) -> int | None:
    """Return the row of the only path that a line of a list names; None if it names none, or several."""
    first, but_last = re.split(_AFTER_NAME, line, maxsplit=1)[0], re.sub(rf"{_AFTER_NAME}\S+$", "", line)
    for text in (line, but_last, first):  # a name may have blanks
        *folders, name = re.split(r"[/\\]+", compose_name(text))
        rows = rows_of.get(_cut_suffix(name), ())
        folders = [folder for folder in folders if folder not in ("", ".")]
        if has_image_suffix(name) and len(rows) > 1:
            rows = [row for row in rows if compose_name(paths[row]).endswith(name)]
        parents = {row: compose_name(paths[row]).split("/")[:-1] for row in rows}
        rows = [row for row in rows if all(map(eq, reversed(folders), reversed(parents[row])))]  # as far as both go
        if len(rows) == 1:
            return rows[0]
    return None
