"""Texts for messages on an ambiguous layout: the files that are not read, and the table to give."""

import os
from collections import Counter
from collections.abc import Iterable
from pathlib import PurePath

from convnext_cli.data.folders.splits import find_split, is_split_list
from convnext_cli.data.folders.words import is_form, is_table
from convnext_cli.data.patterns import NUMBERED, are_numbered
from convnext_cli.data.tree import Folder
from convnext_cli.text import shorten_names

_LEAST_FILES = {".txt": 3, ".xml": 2} | dict.fromkeys((".json", ".mat", ".parquet"), 1)
"""Number of files of a kind from which on they are rather annotations than notes and licences."""
_CONTAINERS = (
    ".h5", ".hdf5", ".npz", ".npy", ".pkl", ".tfrec", ".tfrecord", ".tar", ".tar.gz", ".tgz", ".zip", ".7z", ".rar",
    ".parquet", ".arrow", ".mdb", ".mat", ".nii", ".nii.gz", ".mha", ".nrrd",
)  # fmt: skip
"""Suffixes of files that hold many images, or volumes."""
_UNPACKERS = {
    ".zip": "unzip", ".tgz": "tar -xf", ".tbz": "tar -xf", ".7z": "7z x", ".rar": "unrar x", ".gz": "gunzip",
    ".bz2": "bunzip2", ".xz": "unxz", ".zst": "unzstd",
}  # fmt: skip


def suggest_table(tree: Folder) -> str:
    """Return the remedy for folders that do not name the classes: a table, by name if there is one."""
    if tables := find_tables(tree):
        return (
            f"Give the table itself, such as {choose_example(tables)}, with columns for path and label "
            "(--image-root DIR sets the folder of its paths)"
        )
    return f"Give a folder with one folder for each class, {suggest_pattern(tree)}or a CSV file with path and label"


def find_tables(tree: Folder) -> list[str]:
    """Return the sorted paths of all tables in a folder that are no submission forms."""
    return sorted(
        os.path.join(folder.path, name)  # noqa: PTH118
        for folder in tree.walk()
        for name in folder.others
        if is_table(name) and not is_form(name)
    )


def suggest_pattern(tree: Folder) -> str:
    """Return the option that reads the classes from the file names, if these have numbered words."""
    return (
        f"or --label-from '{NUMBERED}' if the file names have the class, " if are_numbered(tree.list_images()) else ""
    )


def suggest_level(tree: Folder, folder: Folder) -> str:
    """Return the option that reads the names of a folder and those beside it as the classes."""
    depth = os.path.relpath(folder.path, tree.path).count("/")
    return f"--label-from '^{'[^/]+/' * depth}([^/]+)/'"


def find_unpacker(name: str) -> str:
    """Return the command that unpacks a file, by its name; empty if it is no archive and not compressed."""
    suffixes = [suffix.lower() for suffix in PurePath(f"x{name}").suffixes[-2:]]
    is_tar = ".tar" in suffixes and suffixes[-1] in (".tar", *_UNPACKERS)
    return "tar -xf" if is_tar else _UNPACKERS.get(suffixes[-1], "") if suffixes else ""


def note_archives(tree: Folder) -> list[str]:
    """Return a note on the archives among the files of a data set, unless what they hold lies beside them."""
    names = sorted(
        name
        for folder in tree.walk()
        for name in folder.others
        if find_unpacker(name) and PurePath(name).stem not in {inner.name for inner in folder.folders}
    )
    return [f"archives that are not opened: {shorten_names(names)}; if they hold images, unpack them"] if names else []


def choose_example(tables: Iterable[str]) -> str:
    """Return the first table of training images by its name or folder; else the first one."""
    return min(tables, key=lambda path: "train" not in map(find_split, PurePath(path).parts[-2:]))


def describe_others(tree: Folder) -> str:
    """Describe files that are not read and may hold the images, if there are none, or the classes, if no table does."""
    names = [name for folder in tree.walk() for name in folder.others]
    containers = [suffix for suffix in _CONTAINERS if any(name.lower().endswith(suffix) for name in names)]
    if containers and not tree.count:
        return f". Its {' and '.join(containers)} files are not opened: unpack them, or save the images in them as PNG"
    if packed := [name for name in names if find_unpacker(name) and is_table(PurePath(name).stem)]:
        return f". {packed[0]} is not opened: unpack it"
    suffixes = Counter(os.path.splitext(name)[1].lower() for name in names)  # noqa: PTH122
    kinds = [suffix for suffix, least in _LEAST_FILES.items() if suffixes[suffix] >= least]
    if ".txt" not in kinds and any(map(is_split_list, names)):
        kinds.append(".txt")
    if not kinds or any(is_table(name) and not is_form(name) for name in names):
        return ""
    return (
        f". Its {' and '.join(kinds)} files are not read: if they name classes, write these into a CSV file, as "
        "docs/how-to/public-sets.md shows (this program does not train detection or segmentation)"
    )
