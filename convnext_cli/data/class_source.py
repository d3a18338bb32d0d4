"""Choose what names the classes of a data folder: its folders, or a table in it."""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Sequence, Set
from dataclasses import replace
from functools import cache
from pathlib import Path
from typing import TYPE_CHECKING

from convnext_cli.data.folders.remedies import choose_example, describe_others, find_tables, suggest_pattern
from convnext_cli.data.folders.splits import find_split_tables
from convnext_cli.data.folders.words import is_form, list_words
from convnext_cli.data.index import NONE, Index, count_read, describe_skipped, is_one_to_one
from convnext_cli.data.layout import Layout
from convnext_cli.data.split_lists import apply_split_lists
from convnext_cli.data.tables.spreadsheet import INSTALL, lacks_reader
from convnext_cli.data.tables.table import name_tables, read_table
from convnext_cli.encoding import fold_name
from convnext_cli.errors import DataError, UsageError
from convnext_cli.options import AUTO
from convnext_cli.tasks.reading import OtherTaskError, Table, TableOptions, fold_column
from convnext_cli.text import format_part, shorten_names

if TYPE_CHECKING:
    from convnext_cli.data.manifest import FileColumns

Files = tuple[Path, ...]
"""A table, or the tables of the splits."""
TableReader = Callable[[Path], Table]
Pair = tuple[int, int]
"""The label of an image by its folder, and by a table."""
MAX_BESIDE, MAX_TABLES = 64 * 1024**2, 20
"""Bytes and number of other tables in which groups and splits are searched."""


def choose_class_source(
    layout: Layout, folders: Index, lists: Sequence[Path], source: Path, options: TableOptions
) -> Index:
    """Return the index of the folders, or that of a table beside or around them.

    Folders that name classes decide; a table that agrees may add its other columns. If they name none, the only table
    that can be read decides, or where there is none, the lists of images. Other tables may still add groups and
    splits, and lists splits. Submission forms of competitions are left out, as their labels are dummies.

    Args:
        layout: of the data folder.
        folders: the images by that layout; none if its folders name no classes.
        lists: the text files that may list the images of splits, and their classes.
        source: the data folder or its zip file, for errors.
        options: for reading the tables.

    Raises:
        DataError: neither folders nor tables name the classes, several tables do, a table contradicts the folders, or
            it says that they are groups.
        UsageError: the options have an `image_root`, and there is no table.
    """
    paths = layout.tables
    forms = [path.name for path in paths if is_form(path.name)]
    paths = [path for path in paths if not is_form(path.name)]
    if not (paths or lists) and options.image_root != AUTO:
        raise UsageError(f"--image-root is for a table, and {source} has none", "Leave it out, or give the table")
    texts = [path for path in lists if not {"partition", "split"}.intersection(list_words(path.stem))]
    has_run_class = not set(folders.classes).isdisjoint(options.known_labels)
    is_alone = not (paths or texts)  # beside a table, a single folder names no class, unless a run has it
    folders_decide = bool(folders) and (is_alone or len(folders.classes) > 1 or has_run_class)
    read = cache(read_table)  # a table may be asked for classes, then for groups and splits
    tables, errors = _index_tables(paths, options, read)
    if not tables and not folders_decide:
        tables, _ = _index_tables(texts, options, read)
    tables = _drop_copies(tables)

    names_labels = options.label_column != AUTO or options.label_columns != AUTO
    if folders_decide and not (tables and names_labels):
        index, files = _find_extension(tables, folders, source, options.known_labels) or (folders, ())
    elif len(tables) == 1:
        [(files, table)] = tables.items()
        index = _note_choice(files, table, layout, forms)
    elif tables:
        raise _explain_several_tables(tables, layout, source)
    else:
        raise _explain_missing_classes(layout, folders, errors, source, options)
    others = [path for path in paths if path not in files]
    return add_tables(index, others, [path for path in lists if path not in files], options, read)


def _index_tables(
    paths: Sequence[Path], options: TableOptions, read: TableReader
) -> tuple[dict[Files, Index], dict[Files, DataError]]:
    """Return the indices of the tables that can be read, those of splits as one, and the errors of the others."""
    from convnext_cli.data.manifest import read_manifest, read_split_manifests

    tables: dict[Files, Index] = {}
    errors: dict[Files, DataError] = {}
    sets = find_split_tables(paths)
    for splits in sets:
        try:
            index, files = read_split_manifests({split: read(path) for split, path in splits.items()}, options)
            tables[files] = index
        except DataError as error:
            errors[tuple(splits.values())] = error
    in_sets = {path for splits in sets for path in splits.values()}
    for path in paths:
        if path not in in_sets:
            try:
                tables[(path,)] = read_manifest(read(path), options)
            except DataError as error:
                errors[(path,)] = error
    return tables, errors


def _drop_copies(tables: dict[Files, Index]) -> dict[Files, Index]:
    """Return the tables without copies of another one, and without `full.csv` beside those of the splits."""
    rows_of = {
        files: set(zip(_list_images(table), map(table.describe_target, range(len(table))), strict=True))
        for files, table in tables.items()
    }
    kept: dict[Files, Index] = {}
    for files, table in sorted(tables.items(), key=lambda item: not any(item[1].splits)):
        rows = rows_of[files]
        if not any(rows <= rows_of[other] if any(kept[other].splits) else rows == rows_of[other] for other in kept):
            kept[files] = table
    return kept


def _name_files(files: Files) -> str:
    return " + ".join(name_tables(files))


def add_tables(
    index: Index,
    tables: Sequence[Path],
    lists: Sequence[Path],
    options: TableOptions,
    read: TableReader = read_table,
) -> Index:
    """Return the index with the groups and splits that tables and lists of splits give it, and notes on the others.

    Raises:
        DataError: the classes are these groups.
    """
    index, used = add_columns(index, tables, options, read)
    index = count_read(index, len(set(used)))
    if unused := [path.name for path in tables if path not in used]:
        index = replace(index, notes=(*index.notes, f"tables that are not used: {shorten_names(unused)}"))
    return apply_split_lists(index, lists)


def add_columns(
    index: Index, others: Sequence[Path], options: TableOptions, read: TableReader = read_table
) -> tuple[Index, list[Path]]:
    """Return the index with the groups and the splits that other tables give its images, and these tables.

    The first table with groups is used, and the first one with splits. An index that has groups or splits keeps them.

    Raises:
        DataError: the classes are these groups.
    """
    from convnext_cli.data.manifest import read_file_columns

    needs_groups = not any(index.groups) and options.group_column != NONE
    needs_splits = not any(index.splits) and options.split_column != NONE
    others = [path for path in others if path.stat().st_size <= MAX_BESIDE] if needs_groups or needs_splits else []
    if unread := [path.name for path in others if lacks_reader(path)]:
        index = replace(index, notes=(*index.notes, f"tables not read: {shorten_names(unread)}, which {INSTALL}"))
    used: list[Path] = []
    for path in others[:MAX_TABLES]:
        try:
            table = read(path)
        except DataError:
            continue
        columns = read_file_columns(table, options.image_root)
        if needs_groups and (with_groups := _add_groups(index, columns, path, options)):
            index, needs_groups = with_groups, False
            used.append(path)
        if needs_splits and (with_splits := _add_splits(index, columns, path)):
            index, needs_splits = with_splits, False
            used.append(path)
    return index, used


def _add_groups(index: Index, columns: "FileColumns", path: Path, options: TableOptions) -> Index | None:
    """Return the index with the groups of a table; None if it gives its images none.

    Raises:
        DataError: the classes are these groups.
    """
    from convnext_cli.data.tables.columns import GROUP_COLUMNS

    groups = tuple(columns.group_of.get(file, "") for file in _list_images(index))
    is_known = not set(index.classes).isdisjoint(options.known_labels)
    if index.table is None and not is_known and _are_groups(index, groups, columns.groups):
        if fold_column(columns.names["group"]) in GROUP_COLUMNS:  # such as control and treated
            return None
        what = "folders" if options.label_from == AUTO else "matches of --label-from"
        raise DataError(
            f"the {what} ({shorten_names(index.classes)}) are the groups of {path.name} (column "
            f"{columns.names['group']!r}), not classes",
            f"Give the table itself, {path}; --label-column names its column of classes"
            if columns.group_of
            else "Give a CSV file with path, label and patient",
        )
    if not any(groups):
        return None
    note = _describe_column("groups", groups, columns.names["group"], path)
    groups = tuple(group or file for group, file in zip(groups, index.paths, strict=True))
    return replace(index, groups=groups, notes=(*index.notes, note))


def _add_splits(index: Index, columns: "FileColumns", path: Path) -> Index | None:
    """Return the index with the splits of a table; None unless it gives half of the images a split, and two splits."""
    splits = tuple(columns.split_of.get(file, "") for file in _list_images(index))
    if not {"train"} < {*splits} - {""} or 2 * splits.count("") > len(splits):
        return None
    note = _describe_column("splits", splits, columns.names["split"], path)
    note += "; images without one can be training images" if "" in splits else ""
    return replace(index, splits=splits, notes=(*index.notes, note))


def _describe_column(kind: str, cells: Sequence[str], column: str, path: Path) -> str:
    lack = format_part(cells.count(""), len(cells), "image", "lacks", "lack")
    return f"{kind} by column {column!r} of {path.name}" + (f", which {lack}" if "" in cells else "")


def _are_groups(folders: Index, groups: Sequence[str], known: Set[str]) -> bool:
    """Return True if each class folder is a group: one of those of the images, or by its name one of the known ones."""
    is_each = len(folders.classes) > 2 and any(groups) and is_one_to_one(groups, folders.labels)
    return is_each or (len(folders.classes) > 1 and known >= set(folders.classes))


def _find_extension(
    tables: dict[Files, Index], folders: Index, source: Path, known_labels: Sequence[str]
) -> tuple[Index, Files] | None:
    """Return the first table that has the classes and all images of the folders, and more columns; None if none has.

    Raises:
        DataError: a table contradicts the folders.
    """
    extensions, label_of = [], dict(zip(_list_images(folders), folders.labels, strict=True))
    for files, table in tables.items():
        images = _list_images(table)
        pairs = Counter(
            (label_of[image], label) for image, label in zip(images, table.labels, strict=True) if image in label_of
        )
        are_codes = bool(table.row_folders) or all(map(str.isdecimal, folders.classes))  # such as patients
        if pairs and table.values and not table.task.is_continuous and are_codes:
            raise DataError(
                f"{source} has folders ({shorten_names(folders.classes)}) and a table ({_name_files(files)}: "
                f"{shorten_names(table.classes)}) that may both name classes",
                _suggest_one(files, "labels"),
            )
        if not pairs or table.values:  # other images; or numbers, such as ages, which name no classes
            continue
        if not is_one_to_one(*zip(*pairs, strict=True)):
            raise _describe_contradiction(files, table, folders, pairs, source)
        own, other = ({*index.splits} - {""} for index in (folders, table))
        has_more = any(table.groups) or any(table.folds) or own < other
        if has_more and label_of.keys() <= set(images):
            note = f"the classes of {_name_files(files)} are those of the folders; other columns are used"
            named = table if set(table.classes) & set(known_labels) else _rename_numbers(table, folders, pairs)
            extensions.append((replace(named, notes=(note, *table.notes)), files))
    return extensions[0] if extensions else None


def _rename_numbers(table: Index, folders: Index, pairs: Iterable[Pair]) -> Index:
    """Return the index of a table whose classes are numbers with the names of the folders that they stand for."""
    number_of = {by_table: by_folder for by_folder, by_table in pairs}
    if len(number_of) < len(table.classes) or not all(name.isdecimal() for name in table.classes):
        return table
    return replace(table, classes=folders.classes, labels=tuple(number_of[label] for label in table.labels))


def _describe_contradiction(
    files: Files, table: Index, folders: Index, pairs: Counter[Pair], source: Path
) -> DataError:
    (by_folder, by_table), _ = min(
        pairs.items(),
        key=lambda pair: (fold_name(folders.classes[pair[0][0]]) == fold_name(table.classes[pair[0][1]]), pair[1]),
    )
    return DataError(
        f"{source} has folders ({', '.join(folders.classes[:5])}) and a table ({_name_files(files)}: "
        f"{', '.join(table.classes[:5])}) that give the images different classes, such as "
        f"{folders.classes[by_folder]!r} and {table.classes[by_table]!r}",
        _suggest_one(files, "classes"),
    )


def _suggest_one(files: Files, targets: str) -> str:
    """Return the remedy for a table and folders that both name targets."""
    itself = "Name the tables' column of labels with --label-column"
    if len(files) == 1:
        itself = f"Give the table itself, {files[0]}"
    folders = f"move {_name_files(files)} out of the folder to train on the folders' names"
    return f"{itself}, to train on its {targets}; or {folders}"


def _note_choice(files: Files, table: Index, layout: Layout, forms: Sequence[str]) -> Index:
    """Return the index of the only table, with notes on its choice and the number of images without a row."""
    listed = set(_list_images(table))
    without_row = sum(os.path.abspath(image) not in listed for image in layout.tree.list_images())  # noqa: PTH100
    others = {reason: count for reason, count in (+layout.skipped).items() if not reason.startswith("image ")}
    skipped = others | ({f"image without a row in {_name_files(files)}": without_row} if without_row else {})
    notes = [f"the {table.task.display.target_words} are those of {_name_files(files)}"]
    if forms:
        notes.append(f"{', '.join(forms)} not used: a submission form has no true labels")
    return replace(table, notes=(*notes, *table.notes), skipped=table.skipped | skipped)


def _explain_several_tables(tables: dict[Files, Index], layout: Layout, source: Path) -> DataError:
    problem = layout.error.problem if layout.error else f"{source} does not have two class folders"
    largest = sorted(tables, key=lambda files: len(tables[files]), reverse=True)
    example = choose_example(str(path) for files in largest for path in files)
    return DataError(
        f"{problem}; {', '.join(map(_name_files, tables))} each name classes",
        f"Give one of them itself, such as {example}, or one table with a column split",
    )


def _explain_missing_classes(
    layout: Layout, folders: Index, errors: dict[Files, DataError], source: Path, options: TableOptions
) -> DataError:
    """Return the error that tells most about folders without classes and tables that cannot be used."""
    is_alone = len(errors) == 1 and layout.tree.count and not layout.error and not folders
    for error in errors.values():
        if isinstance(error, OtherTaskError) or options.image_root != AUTO or is_alone:
            return error
    if layout.error:
        error = layout.error
    elif folders:
        remedy = errors[min(errors)].remedy if errors else "Give two class folders or more, or a CSV file with labels"
        error = DataError(f"{source} has one class only ({folders.classes[0]!r})", remedy)
    else:
        skipped = f" (skipped: {describe_skipped(folders.skipped)})" if folders.skipped else ""
        error = DataError(
            f"no images in class folders under {source}{skipped}{describe_others(layout.tree)}",
            f"Put them into {source}/<class>/, as JPEG, PNG, TIFF, DICOM or another readable format, "
            f"{suggest_pattern(layout.tree)}or give a CSV file with path and label",
        )
    if errors:
        files = min(errors)
        problem = f"{error.problem} ({_name_files(files)} cannot be used: {errors[files].problem})"
        return DataError(problem, error.remedy if len(find_tables(layout.tree)) > 1 else errors[files].remedy)
    return error


def _list_images(index: Index) -> list[str]:
    return [os.path.abspath(os.path.join(index.root, path)) for path in index.paths]  # noqa: PTH100, PTH118
