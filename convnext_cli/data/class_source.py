"""Choose what names the classes of a data folder: its folders, or a table in it."""

import os
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import replace
from pathlib import Path

from convnext_cli.data.folders.splits import find_split
from convnext_cli.data.folders.words import is_table
from convnext_cli.data.index import Index, describe_skipped
from convnext_cli.data.layout import Layout
from convnext_cli.data.tables.options import TableOptions
from convnext_cli.encoding import fold_name
from convnext_cli.errors import DataError, UsageError
from convnext_cli.options import AUTO

Pair = tuple[int, int]
"""The label of an image by its folder, and by a table."""


def choose_class_source(layout: Layout, folders: Index, source: Path, options: TableOptions) -> Index:
    """Return the index of the folders, or that of a table in the data folder.

    Folders that name classes decide; a table that agrees may add its other columns. If they name none, the only table
    that can be read decides. Submission forms of competitions are left out, as their labels are dummies.

    Args:
        layout: of the data folder.
        folders: the images by that layout; none if its folders name no classes.
        source: the data folder or its zip file, for errors.
        options: for reading the tables.

    Raises:
        DataError: neither folders nor tables name the classes, several tables do, or a table contradicts the folders.
        UsageError: the options have an `image_root`, and there is no table.
    """
    files = sorted(filter(is_table, layout.start.others))
    forms = [name for name in files if "submission" in name.casefold()]
    names = [name for name in files if name not in forms]
    if not names and options.image_root != AUTO:
        raise UsageError(f"--image-root is for a CSV file, and {source} has none", "Leave it out, or give the CSV file")
    tables, errors = _read_tables(Path(layout.start.path), names, options)

    if len(folders):
        return _find_extension(tables, folders, source) or folders
    if len(tables) == 1:
        [(name, table)] = tables.items()
        return _describe_only_table(name, table, layout, forms)
    if tables:
        problem = layout.error.problem if layout.error else f"{source} has no class folders"
        raise DataError(
            f"{problem}; {', '.join(tables)} each name classes",
            f"Give one of them itself, such as {Path(layout.start.path, _choose_example(tables))}, or one table with a "
            "column split",
        )
    raise _explain_missing_classes(layout, folders, errors, source, options)


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


def _find_extension(tables: dict[str, Index], folders: Index, source: Path) -> Index | None:
    """Return the first table that has the classes and all images of the folders, and more columns; None if none has.

    Raises:
        DataError: a table contradicts the folders.
    """
    extensions = []
    for name, table in tables.items():
        label_of = dict(zip(_list_files(folders), folders.labels, strict=True))
        files = _list_files(table)
        pairs = Counter(
            (label_of[file], label) for file, label in zip(files, table.labels, strict=True) if file in label_of
        )
        if not pairs or table.values:  # other images; or numbers, such as ages, which name no classes
            continue
        if not _is_one_to_one(pairs):
            raise _describe_contradiction(name, table, folders, pairs, source)
        has_more = any(table.groups) or any(table.folds) or (any(table.splits) and not any(folders.splits))
        if has_more and label_of.keys() <= set(files):
            note = f"the classes of {name} are those of the folders; its other columns are used"
            extensions.append(replace(table, notes=(note, *table.notes)))
    return extensions[0] if extensions else None


def _is_one_to_one(pairs: Iterable[Pair]) -> bool:
    """Return True if the two labels of the images name the same classes, though maybe by other names."""
    by_folder, by_table = zip(*pairs, strict=True)
    return len(by_folder) == len(set(by_folder)) == len(set(by_table))


def _describe_contradiction(name: str, table: Index, folders: Index, pairs: Counter[Pair], source: Path) -> DataError:
    """Return the error of a table that gives the images other classes than their folders do."""
    (by_folder, by_table), _ = min(
        pairs.items(),
        key=lambda pair: (fold_name(folders.classes[pair[0][0]]) == fold_name(table.classes[pair[0][1]]), pair[1]),
    )
    return DataError(
        f"{source} has folders ({', '.join(folders.classes[:5])}) and a table ({name}: "
        f"{', '.join(table.classes[:5])}) that give the images different classes, such as "
        f"{folders.classes[by_folder]!r} and {table.classes[by_table]!r}",
        f"Give the table itself, {table.root / name}, to train on its classes; or move it out of the folder to "
        "train on the folders' names",
    )


def _describe_only_table(name: str, table: Index, layout: Layout, forms: Sequence[str]) -> Index:
    """Return the index of the only table, with notes on its choice and the number of images without a row."""
    listed = set(_list_files(table))
    without_row = sum(os.path.normpath(path) not in listed for path in layout.tree.list_images())
    skipped = dict(+layout.skipped) | ({f"image without a row in {name}": without_row} if without_row else {})
    notes = [f"the classes are those of {name}"]
    if forms:
        notes.append(f"{', '.join(forms)} not used: a submission form has no true labels")
    return replace(table, notes=(*notes, *table.notes), skipped=table.skipped | skipped)


def _choose_example(tables: Iterable[str]) -> str:
    """Return the table that most likely has the training labels."""
    return min(tables, key=lambda name: (find_split(Path(name).stem) != "train", name))


def _explain_missing_classes(
    layout: Layout, folders: Index, errors: dict[str, DataError], source: Path, options: TableOptions
) -> DataError:
    """Return the error that tells most about folders without classes and tables that cannot be used."""
    from convnext_cli.tasks.reading import OtherTaskError

    for error in errors.values():
        if isinstance(error, OtherTaskError) or options.image_root != AUTO:
            return error
    if layout.error and errors:
        name = min(errors)
        problem = f"{layout.error.problem} ({name} cannot be used: {errors[name].problem})"
        return DataError(problem, layout.error.remedy)
    if layout.error:
        return layout.error
    skipped = f" (skipped: {describe_skipped(folders.skipped)})" if folders.skipped else ""
    return DataError(
        f"no images in class folders under {source}{skipped}",
        f"Put them into {source}/<class>/, as JPEG, PNG, TIFF, DICOM or another readable format",
    )


def _list_files(index: Index) -> list[str]:
    """Return the normalised path of each row's file."""
    return [os.path.normpath(os.path.join(index.root, path)) for path in index.paths]  # noqa: PTH118
