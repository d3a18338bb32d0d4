"""A data set as a table: one row per image, with its label and, if known, its split, fold and group.

Columns are recognised by name and by content. Notes name the columns that are not used.
"""

import os
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from pathlib import Path

from convnext_cli.data.folders.splits import find_split
from convnext_cli.data.folders.words import describe_joined
from convnext_cli.data.index import NONE, SPLITS, Index, group_by, number_targets
from convnext_cli.data.tables.columns import (
    find_columns,
    find_flagged_split,
    join_split_columns,
    list_further_images,
    list_patients,
    read_folds,
    read_groups,
    read_splits,
    suggest_groups,
)
from convnext_cli.data.tables.files import FileFinder, Images, Listing, find_files
from convnext_cli.data.tables.table import (
    find_common_folder,
    join_tables,
    list_columns,
    name_tables,
    select_cells,
    select_columns,
)
from convnext_cli.data.tables.targets import read_targets
from convnext_cli.encoding import UTF_8, fold_name, normalise_name
from convnext_cli.errors import DataError
from convnext_cli.options import AUTO
from convnext_cli.tasks.reading import AUTO_OPTIONS, RawTargets, Table, TableOptions, fold_column
from convnext_cli.text import Advice, format_count, quote, shorten_names

LARGE_GROUP = 0.1  # fraction of the rows above which a group may be a word for unknown ones
TIMES_NEXT = 5  # as many rows as the next largest group has
_SHORTENED = re.compile(r"\d([.,]\d+)?[eE]\+\d\d+")
_JOINT = re.compile(r"(?<=[^\W\d_]) (?=\d)|(?<=\d) (?=[^\W\d_])")
"""A blank between a letter and a digit, which may be missing: `P 1`, `P1`; unlike those of `1 12` and `11 2`."""


def read_manifest(table: Table, options: TableOptions = AUTO_OPTIONS) -> Index:
    """Return the index of a table with a column for the image's path, and one for its target or one for each label.

    Paths are absolute, or relative to the table, or to the folders below it if only that fits. An image's suffix may
    be left out. The path of a folder stands for all images below it. Columns for split, fold and group (or patient) are
    used if there are any.

    Args:
        table: as `read_table` gives it.
        options: the task, the columns that the user names, and the folder that paths are relative to.

    Raises:
        OtherTaskError: the targets are not of the task that was asked for.
        DataError: a column is missing, a file does not exist, or rows are inconsistent; all such rows are counted.
    """
    return _read_rows(_locate(table, options), options)


def read_split_manifests(tables: Mapping[str, Table], options: TableOptions) -> tuple[Index, tuple[Path, ...]]:
    """Return the index of the tables of splits as one, and the files that it is from.

    A table without labels or images, such as the `test.csv` of a competition, is left out. So is one in which all
    labels are the same: they are dummies. If only the training split's is left, it is read as any table.

    Args:
        tables: the table of each split, the training split's first. They have its columns.
        options: as in `read_manifest`.

    Raises:
        OtherTaskError: the targets are not of the task that was asked for.
        DataError: as in `read_manifest`.
    """
    paths = [table.path for table in tables.values()]
    listing = Listing(find_common_folder(paths)) if options.image_root == AUTO else None
    train = _locate(tables["train"], options, listing)
    label_columns = read_targets(train.table, train.columns, options).columns
    parts, notes = {"train": train}, []
    names = dict(zip(tables, name_tables(paths), strict=True))
    for split, whole in list(tables.items())[1:]:
        table = select_columns(whole, train.table.columns)
        finder = _make_finder(table, options, train.listing)
        if problem := _explain_no_split(table, finder, [train.columns["path"], *label_columns]):
            notes.append(f"{names[split]} is no {split} split: {problem}")
        else:
            parts[split] = _locate_images(table, finder, train.columns)
    if len(parts) == 1:
        return _read_rows(replace(train, notes=notes + train.notes), options), (train.table.path,)
    files, located = tuple(tables[split].path for split in parts), list(parts.values())
    table = join_tables([part.table for part in located])
    columns = train.columns
    if "split" not in columns and options.split_column != NONE:
        cells = [split for split, part in parts.items() for _ in part.paths]
        table, columns = replace(table, columns=table.columns | {"split": cells}), columns | {"split": "split"}
        notes.insert(0, f"splits by the names of tables: {', '.join(name_tables(files))}")
    paths_of_all = [path for part in located for path in part.paths]
    notes = list(dict.fromkeys([*notes, *(note for part in located for note in part.notes)]))
    return _read_rows(replace(train, table=table, columns=columns, paths=paths_of_all, notes=notes), options), files


def _explain_no_split(table: Table, finder: FileFinder, names: Sequence[str]) -> str:
    """Return why a table is not read as a split; empty if it is. `names` are the columns of paths and of labels."""
    if missing := [name for name in names if name not in table.columns]:
        return f"it has no column {missing[0]!r}"
    path_column, *label_columns = names
    if all(len(set(table.columns[name])) < 2 for name in label_columns):
        return "all its labels are the same or blank"
    cells = table.columns[path_column]
    return "" if finder.matches(cells) or finder.folders.matches(cells) else "its images are not there"


@dataclass(frozen=True, kw_only=True, slots=True)
class _Located:
    """A table with a row for each image."""

    table: Table
    listing: Listing
    columns: dict[str, str]
    """As `find_columns` gives them."""
    paths: list[str]
    """Of the images, from the root of the listing."""
    are_in_folders: bool
    notes: list[str]


def _make_finder(table: Table, options: TableOptions, listing: Listing | None = None) -> FileFinder:
    """Return the finder of a table's files; `listing` is that of their root, if it is known."""
    is_auto = options.image_root == AUTO
    root = table.path.parent if is_auto else Path(options.image_root)
    if not is_auto and not root.is_dir():
        raise DataError(f"--image-root {root} is not a folder", "Give the folder that the paths of the table begin in")
    return FileFinder(listing or Listing(root), table.path, search=is_auto, encoding=table.encoding)


def _locate(table: Table, options: TableOptions, listing: Listing | None = None) -> _Located:
    """Find the columns and the images of a table. Raises the errors of `read_manifest`."""
    table, notes = join_split_columns(table)
    finder = _make_finder(table, options, listing)
    located = _locate_images(table, finder, find_columns(table, finder, options))
    if further := list_further_images(table, finder, located.columns["path"]):
        named = format_count(len(further), "column names", "columns name")
        notes.append(
            f"{named} further images, which are not used ({shorten_names(further)}): write a row for each image"
        )
    return replace(located, notes=notes + located.notes)


def _locate_images(table: Table, finder: FileFinder, columns: dict[str, str]) -> _Located:
    """Return a table with a row for each image.

    Raises:
        DataError: a file does not exist.
    """
    images = find_files(table, finder, columns["path"])
    return _Located(
        table=select_cells(table, images.rows) if images.are_in_folders else table,
        listing=finder.listing,
        columns=columns,
        paths=images.paths,
        are_in_folders=images.are_in_folders,
        notes=[*([f"read as {table.encoding}, as it is not UTF-8"] if table.encoding != UTF_8 else []), *finder.notes],
    )


def _read_rows(located: _Located, options: TableOptions) -> Index:
    """Return the index of a table whose images are found. Raises the errors of `read_manifest`."""
    table, columns, paths = located.table, dict(located.columns), located.paths
    splits = read_splits(table, columns)
    by_folders: list[str] = []
    if "split" not in columns and options.split_column != NONE:
        splits, by_folders = _read_folder_splits(paths)
    folds = read_folds(table, columns, splits)
    unfolded = "" if folds else columns.pop("fold", "")
    groups = read_groups(table, columns)
    table = replace(table, has_repeats=len(set(paths)) < len(paths))
    targets, joined = _join_rows(paths, read_targets(table, columns, options))
    notes = [
        *located.notes,
        *by_folders,
        *describe_joined(targets.labels),
        *_describe_columns(table, columns, targets, folds, options),
        *([f"column {unfolded!r} has blank cells, so its folds are not used"] if unfolded else []),
        *_describe_splits(table.columns.get(columns.get("split", ""), ()), splits),
        *_describe_groups(columns.get("group", ""), groups),
        *targets.notes,
        *joined,
    ]
    targets = replace(targets, labels=tuple(map(normalise_name, targets.labels)))
    order = _list_first_rows(table, paths, targets, splits, groups)
    folders = table.columns[columns["path"]] if located.are_in_folders else ()
    repeated = 0 if joined else len(paths) - len(order)
    return Index(
        root=Path(located.listing.root),
        paths=tuple(paths[row] for row in order),
        splits=tuple(splits[row] for row in order),
        groups=tuple(groups[row] or paths[row] for row in order) if any(groups) else (),
        folds=tuple(folds[row] for row in order) if folds else (),
        row_folders=tuple(folders[row] for row in order) if folders else (),
        skipped={"row that repeats a file": repeated} if repeated else {},
        notes=tuple(notes),
        **number_targets(targets, order),
        table=table.path,
    )


def _read_folder_splits(paths: Sequence[str]) -> tuple[list[str], list[str]]:
    """Return the split of each path by its first folder that names one, and a note; none unless all paths have one."""
    parents = [path.rpartition("/")[0] for path in paths]
    folders = {parent: [name for name in parent.split("/") if find_split(name) in SPLITS] for parent in set(parents)}
    names = {parent: next(iter(inner), "") for parent, inner in folders.items()}
    if not {"train"} < {find_split(name) for name in names.values()} <= set(SPLITS):
        return [""] * len(paths), []
    note = f"splits by the folders of the images: {shorten_names(sorted(set(names.values())))}"
    return [find_split(names[parent]) or "" for parent in parents], [note]


@dataclass(frozen=True, slots=True)
class FileColumns:
    """The groups and splits of files, by a table that may have no labels."""

    names: dict[str, str]
    """The table's columns, as `find_columns` gives them."""
    groups: frozenset[str]
    group_of: dict[str, str]
    """The group of each file, by its absolute path; empty if the table has no column for them."""
    split_of: dict[str, str]
    """Likewise the split."""


def read_file_columns(table: Table, image_root: str) -> FileColumns:
    """Return the groups and splits of a table that need not have labels; `image_root` is that of the options."""
    finder = _make_finder(table, replace(AUTO_OPTIONS, image_root=image_root))
    patients = list_patients(table)
    images = Images([], [], are_in_folders=False)
    try:
        columns = find_columns(table, finder, AUTO_OPTIONS)
        images = finder.find_images(table.columns[columns["path"]])
        if images.are_in_folders and columns["path"] in patients:
            columns = {"group": columns["path"]} | columns
    except DataError:
        columns = {"group": patients[0]} if patients else {}
    groups = read_groups(table, columns) or [""] * len(table)
    splits = [""] * len(table)
    with suppress(DataError):
        splits = read_splits(table, columns)
    files = [os.path.abspath(os.path.join(finder.root, path)) if path else "" for path in images.paths]  # noqa: PTH100, PTH118
    group_of, split_of = (
        {file: cells[row] for file, row in zip(files, images.rows, strict=True) if file and cells[row]}
        for cells in (groups, splits)
    )
    return FileColumns(columns, frozenset(groups) - {""}, group_of, split_of)


def _join_rows(paths: Sequence[str], targets: RawTargets) -> tuple[RawTargets, list[str]]:
    """Return targets with the values of all rows of an image joined, where the task can, and a note on them."""
    if targets.join is None:
        return targets, []
    values, joined = list(targets.values), 0
    for rows in group_by(range(len(paths)), paths.__getitem__).values():
        of_image = [values[row] for row in rows]
        if len(set(map(str, of_image))) > 1:  # nan equals itself as text
            joined += 1
            for row in rows:
                values[row] = targets.join(of_image)
    number = format_count(joined, "image has", "images have")
    notes = [f"{number} several rows with different labels: {targets.join_rule}"] if joined else []
    return replace(targets, values=tuple(values)), notes


def _describe_columns(
    table: Table, columns: dict[str, str], targets: RawTargets, folds: Sequence[str], options: TableOptions
) -> list[str]:
    """Return notes on the columns that are used under other names, on folds, and on columns that are not used."""
    notes = []
    used: dict[str, str] = {role: columns[role] for role in ("path", "split", "fold", "group") if role in columns}
    if len(targets.columns) == 1:
        used["label"] = targets.columns[0]
    parts = [", ".join(f"{role} {name!r}" for role, name in sorted(used.items()) if role != name)]
    if len(targets.columns) > 1:
        parts.append(f"targets by {len(targets.columns)} columns")
    if any(parts):
        notes.append(f"columns: {'; '.join(filter(None, parts))}")
    if folds:
        number = len(set(folds) - {""})
        fact = f"column {columns['fold']!r} has {format_count(number, 'fold')}"
        notes.append(Advice(fact, f": --folds {number} uses them; without it they are not used"))
    known, read = {*used.values(), *targets.columns}, set(map(fold_column, options.attributes))
    unused = [name for name in table.columns if name not in known and fold_column(name) not in read]
    if unused or table.left_out:
        notes.append(f"columns that are not used: {shorten_names(list_columns([*unused, *table.left_out]))}")
        marked = [name for name in unused if find_flagged_split(table, name, is_chosen=True)]
        if marked and "split" not in columns and options.split_column == AUTO:
            option = f"--split-column {quote(marked[0])}"
            advice = f": if they mark the images of a split, {option} uses them"
            notes.append(Advice(f"column {marked[0]!r} has 0 and 1", advice))
        if "group" not in columns and options.group_column == AUTO:
            notes += suggest_groups(table, unused, targets.labels or targets.values)
    return notes


def _describe_splits(cells: Sequence[str], splits: Sequence[str]) -> list[str]:
    """Return notes on the words that name one split, such as internal and external validation."""
    cells_of = group_by({cell.casefold(): row for row, cell in enumerate(cells)}.values(), splits.__getitem__)
    return [
        f"{', '.join(sorted(cells[row] for row in rows))} are read as {split}"
        for split, rows in cells_of.items()
        if split and len(rows) > 1
    ]


def _describe_groups(column: str, groups: Sequence[str]) -> list[str]:
    """Return notes on images whose group is not or perhaps not known, and on groups whose names may mean the same."""
    notes = []
    blank = sum(not group for group in groups)
    if 0 < blank < len(groups):
        rows = f"{blank:,} of {format_count(len(groups), 'row')}"
        effect = "each of these images counts as a group of its own, so leakage between splits cannot be excluded"
        notes.append(f"column {column!r} is blank in {rows}: {effect}")
    counts = Counter(group for group in groups if group).most_common(2)
    if len(counts) == 2 and counts[0][1] > max(LARGE_GROUP * len(groups), TIMES_NEXT * counts[1][1]):
        rows = f"{counts[0][1]:,} of {format_count(len(groups), 'row')}"
        notes.append(
            f"column {column!r} has {counts[0][0]!r} in {rows}, which stay in one split: if it means that the group is "
            "not known, leave these cells blank"
        )
    if short := sorted({group for group in groups if _SHORTENED.fullmatch(group)}):
        number = format_count(len(short), "number that a spreadsheet has", "numbers that a spreadsheet has")
        notes.append(
            f"column {column!r} has {number} shortened, such as {short[0]}: several patients may have become one; "
            "export the column as text"
        )
    names = group_by(sorted(set(groups)), lambda group: _JOINT.sub("", fold_name(group)))
    if alike := [same for same in names.values() if len(same) > 1]:
        notes.append(
            f"column {column!r} has {format_count(len(alike), 'group')} under several names, such as "
            f"{' and '.join(alike[0])}: if they are one, write them in one way, or its images may lie in several splits"
        )
    return notes


def _list_first_rows(
    table: Table, paths: Sequence[str], targets: RawTargets, splits: Sequence[str], groups: Sequence[str]
) -> list[int]:
    """Return the first row of each file, sorted by path.

    Raises:
        DataError: another row of a file differs.
    """
    cells: Sequence[object] = targets.labels or [str(values) for values in targets.values]  # nan equals itself as text
    first: dict[str, int] = {}
    conflicts, other_groups = [], []
    for row, path in enumerate(paths):
        at = first.setdefault(path, row)
        if (cells[at], splits[at]) != (cells[row], splits[row]):
            conflicts.append(row)
        if groups and groups[at] != groups[row]:
            other_groups.append(row)
    word, display = "label", targets.task.display
    remedy = (
        "Correct these rows. If an image has several labels, --task multilabel joins its rows; or give it one "
        "row, with cat|dog in one cell or a column of 1 and 0 per label"
    )
    if display.target_word != "class":
        word = display.target_word
        remedy = f"Give each image one row, such as with the median of its readers' {display.target_words}"
    table.refuse(f"a file that an earlier row has with another {word} or split", conflicts, remedy=remedy)
    table.refuse(
        "a file that an earlier row has with another group",
        other_groups,
        remedy="Correct these rows; --group-column names another column of groups, or none",
    )
    return [first[path] for path in sorted(first)]
