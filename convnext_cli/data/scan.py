"""Scan a data folder once into an index. Everything later takes the index."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from convnext_cli.data.exclusion import find_excluded
from convnext_cli.data.folders.splits import UNLABELLED, find_split
from convnext_cli.data.folders.words import is_table
from convnext_cli.data.index import EXCLUDED, NONE, TABLE_SUFFIXES, Index, describe_skipped, select_rows
from convnext_cli.data.layout import Layout, recognise_layout
from convnext_cli.data.outside import check_cache_outside
from convnext_cli.data.tables.options import AUTO_OPTIONS, TableOptions
from convnext_cli.data.tree import Folder, walk_folder
from convnext_cli.encoding import fold_name
from convnext_cli.errors import DataError, UsageError
from convnext_cli.options import AUTO
from convnext_cli.text import find_address


def scan_folder(
    root: Path,
    *,
    exclude: str = NONE,
    archive: Path | None = None,
    known_classes: Sequence[str] = (),
    table_options: TableOptions = AUTO_OPTIONS,
) -> Index:
    """Find the images of a folder, with their classes and splits as `layout.recognise_layout` reads them.

    If the folders do not name the classes, a CSV file in the folder does. Hidden files, and files that are no image by
    suffix or first bytes, are skipped and counted. Nothing is written.

    Args:
        root: the folder.
        exclude: as in `scan_data`.
        archive: the zip file that the folder was unpacked from.
        known_classes: as in `scan_data`.
        table_options: as in `scan_data`.

    Raises:
        DataError: the folder does not exist, is not readable, has no image, or its layout is ambiguous.
        UsageError: the options have an `image_root`, and there is no manifest.
    """
    if not root.is_dir():
        if address := find_address(root):
            raise DataError(f"{address} is an address, and data are not downloaded", "Download it, and give the file")
        problem = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"{root} {problem}",
            f"Give a folder with one folder of images per class, a {' or '.join(TABLE_SUFFIXES)} file, or a zip file",
        )
    tree, excluded, skipped = _walk(root, exclude)
    layout = recognise_layout(tree, archive.stem if archive else root.name, known_classes)
    if archive:
        root = Path(layout.start.path)
    index = _make_index(root, layout, skipped)
    if table := _choose_table(layout, index, archive or root, table_options):
        rows = [row for row, path in enumerate(table.paths) if os.path.join(table.root, path) not in excluded]  # noqa: PTH118
        check_left(len(rows), exclude, root)
        counts = {EXCLUDED: len(excluded)} if excluded else {}
        return replace(select_rows(table, rows), skipped=table.skipped | counts)
    if not len(index):
        raise DataError(
            f"no images in class folders under {archive or root}{_describe(index.skipped)}",
            f"Put them into {archive or root}/<class>/, as JPEG, PNG, TIFF, DICOM or another readable format",
        )
    return index


def scan_unlabelled(root: Path, *, exclude: str = NONE) -> Index:
    """Find all images of a folder and of the folders below, whatever their names, as one class without splits.

    Raises:
        DataError: the folder does not exist, is not readable, or has no image.
    """
    if not root.is_dir():
        raise DataError(f"{root} is not a folder", "Give a folder of images")
    check_cache_outside([root])
    tree, _, skipped = _walk(root, exclude)
    start = len(os.path.join(root, ""))  # noqa: PTH118
    paths = tuple(sorted(path[start:].replace(os.sep, "/") for path in tree.list_images()))
    if not paths:
        raise DataError(f"no images under {root}", "Give a folder of JPEG, PNG, TIFF, DICOM or other readable images")
    return Index(
        root=root,
        classes=(UNLABELLED,),
        paths=paths,
        labels=(0,) * len(paths),
        splits=("",) * len(paths),
        skipped={reason: count for reason, count in skipped.items() if count},
    )


def _walk(root: Path, exclude: str) -> tuple[Folder, set[str], Counter[str]]:
    """Return the tree of a folder without the images to leave out, these images' paths, and counts of skipped files.

    Raises:
        DataError: the folder is not readable, or no image is left.
    """
    skipped: Counter[str] = Counter()
    try:
        tree = walk_folder(str(root), skipped)
    except OSError as error:
        raise DataError(f"cannot read {root}: {error}", "Check the folder's permissions") from error
    excluded = _exclude_from(tree, root, exclude) if exclude != NONE else set()
    skipped[EXCLUDED] = len(excluded)
    return tree, excluded, skipped


def _make_index(root: Path, layout: Layout, skipped: Counter[str]) -> Index:
    start = len(os.path.join(root, ""))  # noqa: PTH118  (strings throughout: a Path per file is slow)
    images = [
        (path[start:].replace(os.sep, "/"), placement.name, placement.split)
        for placement in layout.placements
        for path in placement.folder.list_images()
    ]
    images.sort()
    classes = tuple(layout.classes)
    labels = {name: label for label, name in enumerate(classes)}
    return Index(
        root=root,
        classes=classes,
        paths=tuple(path for path, _, _ in images),
        labels=tuple(labels[name] for _, name, _ in images),
        splits=tuple(split for _, _, split in images),
        skipped={reason: count for reason, count in (skipped + layout.skipped).items() if count},
        notes=tuple(layout.notes),
    )


def _choose_table(layout: Layout, index: Index, source: Path, options: TableOptions) -> Index | None:
    """Return the index of the manifest in the folder if it, and not the folders, names the classes; else None.

    Raises:
        DataError: neither names the classes, or they contradict each other.
        UsageError: the options have an `image_root`, and there is no manifest.
    """
    every = sorted(filter(is_table, layout.start.others))
    forms = [name for name in every if "submission" in name.casefold()]  # of a competition: the labels are dummies
    names = [name for name in every if name not in forms]
    if not names and options.image_root != AUTO:
        raise UsageError(f"--image-root is for a CSV file, and {source} has none", "Leave it out, or give the CSV file")
    tables, errors = _read_tables(Path(layout.start.path), names, options)
    if not layout.error and len(index):
        return _choose_addition(tables, index, source)
    if len(tables) == 1:
        [(name, table)] = tables.items()
        return _describe_only_table(name, table, layout, forms)
    if len(tables) > 1:
        problem = layout.error.problem if layout.error else f"{source} has no class folders"
        raise DataError(
            f"{problem}; {', '.join(tables)} each name classes",
            f"Give one of them itself, such as {Path(layout.start.path, _choose_example(tables))}, or one table with a "
            "column split",
        )
    _check_tables(layout, errors, options)
    return None


def _read_tables(
    folder: Path, names: Sequence[str], options: TableOptions
) -> tuple[dict[str, Index], dict[str, DataError]]:
    """Return the indices of the tables that can be read, and the errors of the others."""
    from convnext_cli.data.manifest import read_manifest

    tables: dict[str, Index] = {}
    errors: dict[str, DataError] = {}
    for name in names:
        try:
            tables[name] = read_manifest(folder / name, options)
        except DataError as error:
            errors[name] = error
    return tables, errors


def _describe_only_table(name: str, table: Index, layout: Layout, forms: Sequence[str]) -> Index:
    """Return the index of the only table, with notes on its choice and the number of images without a row."""
    listed = set(_list_files(table))
    without_row = sum(os.path.normpath(path) not in listed for path in layout.tree.list_images())
    skipped = dict(+layout.skipped) | ({f"image without a row in {name}": without_row} if without_row else {})
    notes = [f"the classes are those of {name}"]
    if forms:
        notes.append(f"{', '.join(forms)} not used: a submission form has no true labels")
    return replace(table, notes=(*notes, *table.notes), skipped=table.skipped | skipped)


def _check_tables(layout: Layout, errors: dict[str, DataError], options: TableOptions) -> None:
    """Raise the error that tells most, if the folders are ambiguous or a table cannot be used."""
    from convnext_cli.tasks.reading import OtherTaskError

    for error in errors.values():
        if isinstance(error, OtherTaskError) or options.image_root != AUTO:
            raise error
    if layout.error and errors:
        name = min(errors)
        raise DataError(f"{layout.error.problem} ({name} cannot be used: {errors[name].problem})", layout.error.remedy)
    if layout.error:
        raise layout.error


def _choose_addition(tables: dict[str, Index], index: Index, source: Path) -> Index | None:
    """Return the first table that has the folders' classes and images, and more columns than these; else None.

    Raises:
        DataError: a table contradicts the folders.
    """
    chosen = None
    for name, table in tables.items():
        has_more = any(table.groups) or any(table.folds) or (any(table.splits) and not any(index.splits))
        is_complete = set(_list_files(table)) >= set(_list_files(index))
        if _agrees(table, index, name, source) and has_more and is_complete and chosen is None:
            note = f"the classes of {name} are those of the folders; its other columns are used"
            chosen = replace(table, notes=(note, *table.notes))
    return chosen


def _choose_example(tables: Iterable[str]) -> str:
    """Return the table that most likely has the training labels."""
    return min(tables, key=lambda name: ((find_split(Path(name).stem) or ("",))[0] != "train", name))


def _agrees(table: Index, index: Index, name: str, source: Path) -> bool:
    """Return True if a manifest gives the images the classes of their folders, under any names.

    Raises:
        DataError: it gives them other classes.
    """
    label_of = dict(zip(_list_files(index), index.labels, strict=True))
    pairs = Counter(
        (label_of[path], label)
        for path, label in zip(_list_files(table), table.labels, strict=True)
        if path in label_of
    )
    if not pairs or table.values:  # numbers, such as ages, name no classes
        return False
    if len(pairs) > len({first for first, _ in pairs}) or len(pairs) > len({second for _, second in pairs}):
        (first, second), _ = min(
            pairs.items(),
            key=lambda pair: (fold_name(index.classes[pair[0][0]]) == fold_name(table.classes[pair[0][1]]), pair[1]),
        )
        raise DataError(
            f"{source} has folders ({', '.join(index.classes[:5])}) and a table ({name}: "
            f"{', '.join(table.classes[:5])}) that give the images different classes, such as "
            f"{index.classes[first]!r} and {table.classes[second]!r}",
            f"Give the table itself, {table.root / name}, to train on its classes; or move it out of the folder to "
            "train on the folders' names",
        )
    return True


def _list_files(index: Index) -> list[str]:
    """Return the normalised path of each row's file."""
    return [os.path.normpath(os.path.join(index.root, path)) for path in index.paths]  # noqa: PTH118


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


def _describe(skipped: dict[str, int]) -> str:
    return f" (skipped: {describe_skipped(skipped)})" if skipped else ""
