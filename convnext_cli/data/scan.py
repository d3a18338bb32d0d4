"""Scan a data folder once into an index. Everything later takes the index."""

import os
from collections import Counter
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from convnext_cli.data.class_source import add_tables, choose_class_source
from convnext_cli.data.exclusion import find_excluded
from convnext_cli.data.folders.checks import check_masks
from convnext_cli.data.folders.masks import drop_masks
from convnext_cli.data.folders.remedies import find_unpacker, note_archives
from convnext_cli.data.folders.splits import UNLABELLED, find_split
from convnext_cli.data.index import EXCLUDED, GIVEN_SUFFIXES, NONE, Index, select_rows
from convnext_cli.data.layout import Layout, recognise_layout
from convnext_cli.data.outside import check_cache_outside
from convnext_cli.data.patterns import search_paths
from convnext_cli.data.split_lists import list_split_lists
from convnext_cli.data.tables.table import list_tables
from convnext_cli.data.tree import Folder, walk_folder
from convnext_cli.encoding import normalise_name
from convnext_cli.errors import DataError, UsageError
from convnext_cli.options import AUTO
from convnext_cli.tasks.reading import AUTO_OPTIONS, TableOptions
from convnext_cli.text import find_address, quote


def scan_folder(
    root: Path, *, exclude: str = NONE, archive: Path | None = None, table_options: TableOptions = AUTO_OPTIONS
) -> Index:
    """Find the images of a folder, with their classes and splits.

    The folders name them, as `layout.recognise_layout` reads them, or a table does (`choose_class_source`). Hidden
    files, and files that are no image by suffix or first bytes, are skipped and counted. Nothing is written.

    `archive` is the zip file that the folder was unpacked from; the other options are those of `scan_data`.

    Raises:
        DataError: the folder does not exist, is not readable, has no image, or its layout is ambiguous.
        UsageError: the options have an `image_root`, and there is no manifest.
    """
    if not root.is_dir():
        if address := find_address(root):
            raise DataError(f"{address} is an address, and data are not downloaded", "Download it, and give the file")
        if root.exists() and (command := find_unpacker(root.name)):
            raise DataError(f"{root} is packed, and only zip files are unpacked", f"Run: {command} {quote(root)}")
        if root.suffix.lower() in (".json", ".mat", ".npz", ".xml") and root.exists():
            remedy = (
                "Write what it says into a CSV file with path and label; docs/how-to/public-sets.md has "
                "the lines for some public sets"
            )
            raise DataError(f"{root} is not a table that can be read", remedy)
        kind = "a file" if root.is_file() else "a pipe, a socket or a device"
        problem = f"is {kind}, not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"{root} {problem}",
            f"Give a folder with one folder of images per class, a table ({', '.join(GIVEN_SUFFIXES)}), or a zip file",
        )
    tree, lists, excluded, skipped = _walk(root, exclude)
    if table_options.label_from != AUTO:
        index = _label_by_path(root, tree, skipped, table_options.label_from)
        return add_tables(index, list_tables(root), lists, table_options)
    layout = recognise_layout(tree, archive.stem if archive else root.name, table_options.known_labels)
    if archive:
        root = Path(layout.start.path)
    folders = _place_images(root, layout, skipped)
    index = choose_class_source(layout, folders, lists, archive or root, table_options)
    index = replace(index, notes=(*index.notes, *note_archives(tree)))
    if excluded:  # a table may name them
        rows = [row for row, path in enumerate(index.paths) if os.path.join(index.root, path) not in excluded]  # noqa: PTH118
        check_left(len(rows), exclude, root)
        index = replace(select_rows(index, rows), skipped=index.skipped | {EXCLUDED: len(excluded)})
    return index


def scan_unlabelled(root: Path, *, exclude: str = NONE) -> Index:
    """Find all images of a folder and of the folders below, whatever their names, as one class without splits.

    Raises:
        DataError: the folder does not exist, is not readable, or has no image.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder", "Give a folder of images")
    check_cache_outside([root])
    tree, _, _, skipped = _walk(root, exclude)
    images = [(path, UNLABELLED, "") for path in _list_paths(root, tree)]
    return _make_index(root, (UNLABELLED,), images, skipped)


def _list_paths(root: Path, tree: Folder) -> list[str]:
    start = len(os.path.join(root, ""))  # noqa: PTH118
    paths = sorted(path[start:] for path in tree.list_images())
    if not paths:
        raise DataError(f"no images under {root}", "Give a folder of JPEG, PNG, TIFF, DICOM or other readable images")
    return paths


def _walk(root: Path, exclude: str) -> tuple[Folder, list[Path], set[str], Counter[str]]:
    """Return a folder's tree without the images to leave out, its split lists, these images' paths, and skipped files.

    Skipped files are counted by reason.

    Raises:
        DataError: the folder is not readable, or no image is left.
    """
    skipped: Counter[str] = Counter()
    try:
        tree = walk_folder(str(root), skipped)
    except OSError as error:
        raise DataError(
            f"the folder {error.filename or root} cannot be read ({error.strerror or error})", "Check its permissions"
        ) from error
    lists = list_split_lists(tree)  # also those in a folder that is left out, such as annotations
    excluded = _exclude_from(tree, root, exclude) if exclude != NONE else set()
    skipped[EXCLUDED] = len(excluded)
    return tree, lists, excluded, skipped


def _label_by_path(root: Path, tree: Folder, skipped: Counter[str], pattern: str) -> Index:
    """Return the index of all images but masks, with the class that a pattern finds in the path of each.

    The folders' names give the splits.
    """
    masks, notes = drop_masks(tree)
    check_masks(tree)
    paths = _list_paths(root, tree)
    matches = search_paths(paths, pattern, "--label-from")
    names = {row: normalise_name(name) for row, name in matches.items()}
    classes = sorted(set(names.values()))
    if len(classes) < 2:
        problem = f"'{pattern}' gives one class only, {classes[0]!r}, as of {paths[min(names)]}"
        raise UsageError(problem, "Correct --label-from: its first group in brackets, or else its match, is the class")
    skipped["images without a match of --label-from"] = len(paths) - len(names)
    # the split of the first folder that names one
    splits = {row: next(filter(None, map(find_split, paths[row].split("/")[:-1])), "") for row in names}
    images = [(paths[row], name, splits[row]) for row, name in names.items()]
    return _make_index(root, classes, images, skipped + masks, [*notes, *note_archives(tree)])


def _place_images(root: Path, layout: Layout, skipped: Counter[str]) -> Index:
    start = len(os.path.join(root, ""))  # noqa: PTH118  (strings throughout: a Path per file is slow)
    images = [
        (path[start:], placement.name, placement.split)
        for placement in layout.placements
        for path in placement.folder.list_images()
    ]
    return _make_index(root, layout.classes, sorted(images), skipped + layout.skipped, layout.notes)


def _make_index(
    root: Path,
    classes: Sequence[str],
    images: Sequence[tuple[str, str, str]],
    skipped: Counter[str],
    notes: Sequence[str] = (),
) -> Index:
    labels = {name: label for label, name in enumerate(classes)}
    return Index(
        root=root,
        classes=tuple(classes),
        paths=tuple(path for path, _, _ in images),
        labels=tuple(labels[name] for _, name, _ in images),
        splits=tuple(split for _, _, split in images),
        skipped={reason: count for reason, count in skipped.items() if count},
        notes=tuple(notes),
    )


def _exclude_from(tree: Folder, root: Path, exclude: str) -> set[str]:
    """Remove images from a tree, and the folders that become empty; return the images' paths."""
    start = len(os.path.join(root, ""))  # noqa: PTH118
    paths = [path[start:] for path in tree.list_images()]
    excluded = {os.path.join(root, paths[row]) for row in find_excluded(exclude, paths, root)}  # noqa: PTH118
    check_left(len(paths) - len(excluded), exclude, root)
    for folder in tree.walk():
        folder.images = [name for name in folder.images if os.path.join(folder.path, name) not in excluded]  # noqa: PTH118
    filled = {folder.path for folder in tree.walk() if folder.count}
    tree.recount()
    for folder in tree.walk():
        folder.folders = [inner for inner in folder.folders if inner.count or inner.path not in filled]
    return excluded


def check_left(images: int, exclude: str, root: Path) -> None:
    """Check that an exclusion leaves images.

    Raises:
        DataError: it leaves none.
    """
    if not images:
        raise DataError(f"--exclude {exclude} leaves no image of {root}", "Exclude fewer images")
