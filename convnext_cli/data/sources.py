"""Make an index from a folder, a table or a zip file."""

from collections.abc import Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from convnext_cli.data.class_source import add_columns
from convnext_cli.data.exclusion import find_excluded
from convnext_cli.data.folders.splits import find_split_tables, is_split_list
from convnext_cli.data.index import EXCLUDED, GIVEN_SUFFIXES, NONE, Index, number_targets, select_rows
from convnext_cli.data.outside import check_cache_outside, list_data_folders
from convnext_cli.data.scan import check_left, scan_folder
from convnext_cli.data.split_lists import apply_split_lists, is_partition
from convnext_cli.data.tables.table import list_tables, read_table
from convnext_cli.errors import DataError
from convnext_cli.options import AUTO
from convnext_cli.tasks.reading import AUTO_OPTIONS, TableOptions
from convnext_cli.text import shorten_names


def scan_data(data: Path, *, exclude: str = NONE, table_options: TableOptions = AUTO_OPTIONS) -> Index:
    """Find the images of a folder (`scan_folder`), a table (`manifest.read_manifest`), or a zip file of either.

    Args:
        data: the folder or file.
        exclude: images to leave out (`exclusion.find_excluded`), or `none`.
        table_options: the task, and the columns and the folder of a table.

    Raises:
        DataError: the data do not exist, cannot be read, have no images, or their layout is ambiguous.
        UsageError: the options have an `image_root`, and there is no manifest; or the cache folder is in the data.
    """
    suffix = data.suffix.lower() if data.is_file() else ""
    if suffix in GIVEN_SUFFIXES:
        from convnext_cli.data.manifest import read_manifest

        if is_partition(data):
            problem = f"{data} has the splits of images, not their classes"
            raise DataError(problem, "Give the table of the classes, or its folder; the splits beside it are used")
        index = replace(read_manifest(read_table(data), table_options), source=data)
        others = [path for path in list_tables(data.parent) if path != data]
        index, _ = add_columns(index, others, table_options)
        beside = (path for pattern in ("*.[tT][xX][tT]", "*/*.[tT][xX][tT]") for path in data.parent.glob(pattern))
        lists = [path for path in beside if is_split_list(path.name) and path != data and path.is_file()]
        index = _exclude(apply_split_lists(index, lists), exclude)
        check_cache_outside(list_data_folders(index))
        if table_options.known_labels:
            return index
        index = _note_split_tables(index, [data, *(lists if suffix == ".txt" else others)])
        return _suggest_tasks(index, table_options)
    scan = partial(scan_folder, exclude=exclude, table_options=table_options)
    if suffix == ".zip":
        from convnext_cli.data.archive import check_inside, unpack

        index = scan(unpack(data), archive=data)
        if table_options.image_root == AUTO:
            check_inside(data, index.root, index.paths)
    else:
        check_cache_outside([data])
        index = scan(data)
    return _suggest_tasks(apply_task(replace(index, source=data), table_options), table_options)


def _note_split_tables(index: Index, tables: Sequence[Path]) -> Index:
    """Return the index of a table without splits, with a note on the tables beside it that may be splits.

    The first of `tables` is the table itself.
    """
    names = [path.name for splits in find_split_tables(tables) for path in splits.values() if path != tables[0]]
    if not names or any(index.splits):
        return index
    note = f"tables beside it that may be splits are not used: {shorten_names(sorted(names))}; to use them, give "
    return replace(index, notes=(*index.notes, f"{note}{tables[0].parent}"))


def _suggest_tasks(index: Index, options: TableOptions) -> Index:
    """Return the index of new classes with notes on other tasks that their names suggest."""
    if options.task != AUTO or options.known_labels or index.task_record is not None:
        return index
    from convnext_cli.tasks.registry import TASKS

    notes = [kind.suggest(index.classes, from_folders=index.table is None) for kind in TASKS.values()]
    return replace(index, notes=(*index.notes, *filter(None, notes)))


def apply_task(index: Index, options: TableOptions) -> Index:
    """Return the index of class folders for the task that the user names; others are as they are.

    Raises:
        DataError: class folders cannot give this task's targets, or a table in the folder has others.
    """
    if options.task == AUTO:
        return index
    from convnext_cli.tasks.registry import TASKS

    kind = TASKS[options.task]
    if kind is type(index.task):
        return index
    if index.task_record is not None:
        raise DataError(
            f"{index.location} has {index.task.title}, not {kind.title}",
            "Give a CSV file with the targets, or to train on these, leave out --task",
        )
    labels = [index.classes[label] for label in index.labels]
    targets = kind.read_folders(index.root, index.classes, labels, options)
    return replace(index, notes=(*index.notes, *targets.notes), **number_targets(targets, range(len(index))))


def _exclude(index: Index, exclude: str) -> Index:
    if exclude == NONE:
        return index
    excluded = find_excluded(exclude, index.paths, index.root)
    check_left(len(index) - len(excluded), exclude, index.location)
    selection = select_rows(index, [row for row in range(len(index)) if row not in excluded])
    return replace(selection, skipped=index.skipped | {EXCLUDED: len(excluded)})
