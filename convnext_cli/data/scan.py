"""One walk over a data folder into an index. Everything later takes the index; nobody scans again."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from convnext_cli.data.encoding import fold_name
from convnext_cli.data.exclusion import find_excluded
from convnext_cli.data.index import AUTO, EXCLUDED, NONE, Index, select_rows
from convnext_cli.data.layout import Layout, find_split, recognise
from convnext_cli.data.tree import Folder, walk_folder
from convnext_cli.errors import DataError, UsageError


def scan_folder(
    root: Path, *, image_root: str = AUTO, exclude: str = NONE, archive: Path | None = None, known: Sequence[str] = ()
) -> Index:
    """Find the images of a folder, with their classes and splits as `layout.recognise` has them.

    A CSV file that lies in it decides where the folders do not say the classes. Hidden files and what is no image by
    suffix or first bytes are skipped and counted. Nothing is written.

    Args:
        root: the folder.
        image_root: as in `scan_data`.
        exclude: as in `scan_data`.
        archive: the zip file that the folder was unpacked from.
        known: as in `scan_data`.

    Raises:
        DataError: no such folder, not readable, no image in it, or a layout that can mean several things.
        UsageError: `image_root` is given, and there is no manifest.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"{root} {what}", "Give a folder with one folder of images per class, a CSV file, or a zip file"
        )
    skipped: Counter[str] = Counter()
    try:
        tree = walk_folder(str(root), skipped)
    except OSError as error:
        raise DataError(f"cannot read {root}: {error}", "Check the folder's permissions") from error
    gone = _exclude_from(tree, root, exclude) if exclude != NONE else set()
    skipped[EXCLUDED] = len(gone)
    layout = recognise(tree, archive.stem if archive else root.name, known)
    if archive:
        root = Path(layout.start.path)
    index = _make_index(root, layout, skipped)
    if table := _choose_table(layout, index, image_root, archive or root):
        rows = [row for row, path in enumerate(table.paths) if os.path.join(table.root, path) not in gone]  # noqa: PTH118
        check_left(len(rows), exclude, root)
        left_out = {EXCLUDED: len(gone)} if gone else {}
        return replace(select_rows(table, rows), skipped=table.skipped | left_out)
    if not len(index):
        raise DataError(
            f"no images in class folders under {archive or root}{_describe(index.skipped)}",
            f"Put them into {archive or root}/<class>/, as JPEG, PNG, TIFF, DICOM or another format that is read",
        )
    return index


def _make_index(root: Path, layout: Layout, skipped: Counter[str]) -> Index:
    start = len(os.path.join(root, ""))  # noqa: PTH118  (strings throughout: a Path per file is slow)
    found = [
        (path[start:].replace(os.sep, "/"), placement.name, placement.split)
        for placement in layout.placements
        for path in placement.folder.list_images()
    ]
    found.sort()
    classes = tuple(layout.classes)
    number = {name: label for label, name in enumerate(classes)}
    return Index(
        root=root,
        classes=classes,
        paths=tuple(path for path, _, _ in found),
        labels=tuple(number[name] for _, name, _ in found),
        splits=tuple(split for _, _, split in found),
        skipped={reason: count for reason, count in (skipped + layout.skipped).items() if count},
        notes=tuple(layout.notes),
    )


def _choose_table(layout: Layout, index: Index, image_root: str, source: Path) -> Index | None:
    """The manifest in the folder, where it and not the folders says the classes; else None.

    Raises:
        DataError: neither does, or they contradict each other.
        UsageError: `image_root` is given, and there is no manifest.
    """
    from convnext_cli.data.manifest import OtherTaskError, read_manifest

    start, doubt = layout.start, layout.doubt
    every = sorted(name for name in start.others if name.lower().endswith((".csv", ".tsv")))
    forms = [name for name in every if "submission" in name.casefold()]  # a competition's form: its labels are dummies
    tables = [name for name in every if name not in forms]
    if not tables and image_root != AUTO:
        raise UsageError(f"--image-root is for a CSV file, and {source} has none", "Leave it out, or give the CSV file")
    read: dict[str, Index] = {}
    problems: dict[str, DataError] = {}
    for name in tables:
        try:
            read[name] = read_manifest(Path(start.path, name), image_root)
        except DataError as error:
            problems[name] = error
    if doubt or not len(index):
        if len(read) == 1:
            [(name, table)] = read.items()
            why = f"the classes are those of {name}"
            named = set(_list_files(table))
            beside = sum(os.path.normpath(path) not in named for path in layout.tree.list_images())
            skipped = dict(+layout.skipped) | ({f"image without a row in {name}": beside} if beside else {})
            unused = [f"{', '.join(forms)} not used: a submission form has no true labels"] if forms else []
            return replace(table, notes=(why, *unused, *table.notes), skipped=table.skipped | skipped)
        if len(read) > 1:
            raise DataError(
                f"{doubt.problem if doubt else f'{source} has no class folders'}; {', '.join(read)} each say classes",
                f"Give one of them itself, such as {Path(start.path, _choose_example(read))}, "
                "or one table with a column split",
            )
        for problem in problems.values():
            if isinstance(problem, OtherTaskError) or image_root != AUTO:
                raise problem
        if doubt and problems:
            name = min(problems)
            raise DataError(f"{doubt.problem} ({name} does not decide: {problems[name].problem})", doubt.remedy)
        if doubt:
            raise doubt
        return None
    chosen = None
    for name, table in read.items():
        says_more = any(table.groups) or any(table.folds) or (any(table.splits) and not any(index.splits))
        is_whole = set(_list_files(table)) >= set(_list_files(index))
        if _agrees(table, index, name, source) and says_more and is_whole and chosen is None:
            why = f"the classes of {name} are those of the folders; its other columns are used"
            chosen = replace(table, notes=(why, *table.notes))
    return chosen


def _choose_example(tables: Iterable[str]) -> str:
    """Return the table that most likely has the training labels."""
    return min(tables, key=lambda name: ((find_split(Path(name).stem) or ("",))[0] != "train", name))


def _agrees(table: Index, index: Index, name: str, source: Path) -> bool:
    """Return whether a manifest gives the images the classes that their folders do, whatever it calls them.

    Raises:
        DataError: it gives them others.
    """
    own = dict(zip(_list_files(index), index.labels, strict=True))
    pairs = Counter(
        (own[path], label) for path, label in zip(_list_files(table), table.labels, strict=True) if path in own
    )
    if not pairs:
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
            f"Give the table itself, {table.root / name}, to train on its classes; or take it out of the folder to "
            "train on the folders' names",
        )
    return True


def _list_files(index: Index) -> list[str]:
    """The files of the rows, whatever way their paths are written."""
    return [os.path.normpath(os.path.join(index.root, path)) for path in index.paths]  # noqa: PTH118


def _exclude_from(tree: Folder, root: Path, exclude: str) -> set[str]:
    """Take images out of a tree; folders that become empty by that go too. Return the images' paths."""
    start = len(os.path.join(root, ""))  # noqa: PTH118
    paths = [path[start:] for path in tree.list_images()]
    gone = {os.path.join(root, paths[row]) for row in find_excluded(exclude, paths, root)}  # noqa: PTH118
    check_left(len(paths) - len(gone), exclude, root)
    for folder in tree.walk():
        folder.images = [name for name in folder.images if os.path.join(folder.path, name) not in gone]  # noqa: PTH118
    filled = {folder.path for folder in tree.walk() if folder.count}
    tree.recount()
    for folder in tree.walk():
        folder.folders = [inner for inner in folder.folders if inner.count or inner.path not in filled]
    return gone


def check_left(images: int, exclude: str, root: Path) -> None:
    """Check that an exclusion leaves images.

    Raises:
        DataError: it leaves none.
    """
    if not images:
        raise DataError(f"--exclude {exclude} leaves no image of {root}", "Exclude fewer images")


def _describe(skipped: dict[str, int]) -> str:
    return f" (skipped: {', '.join(f'{count} {reason}' for reason, count in skipped.items())})" if skipped else ""
