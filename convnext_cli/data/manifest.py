"""A data set as a CSV file: one row per image, with its label and, if known, its split, fold and group.

Columns are recognised by name and by content. Notes name the columns that are not used.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from convnext_cli.data.encoding import UTF_8, normalise_name
from convnext_cli.data.folders.splits import find_split
from convnext_cli.data.folders.words import describe_joined
from convnext_cli.data.index import AUTO, Index
from convnext_cli.data.tables.columns import find_columns, read_folds, read_groups, read_splits
from convnext_cli.data.tables.files import FileFinder, find_files
from convnext_cli.data.tables.labels import read_labels
from convnext_cli.data.tables.table import Table, read_table
from convnext_cli.errors import DataError


@dataclass(frozen=True, slots=True)
class _Rows:
    paths: Sequence[str]
    labels: Sequence[str]
    splits: Sequence[str]
    folds: Sequence[str]
    groups: Sequence[str]


def read_manifest(path: Path, image_root: str = AUTO) -> Index:
    """Read a table with a column for the image's path, and one for its label or one of 0 and 1 for each class.

    Paths are absolute, or relative to the CSV file, or to the folders below it if only that fits. An image's suffix may
    be left out. Columns for split, fold and group (or patient) are used if there are any.

    Args:
        path: the file, in any encoding that `encoding.read_text` reads.
        image_root: the folder that paths are relative to; `auto` for the above.

    Raises:
        OtherTaskError: the target is a number, or images have several labels.
        DataError: a column is missing, a file does not exist, or rows are inconsistent; all such rows are counted.
    """
    table = read_table(path)
    if image_root != AUTO and not Path(image_root).is_dir():
        raise DataError(
            f"--image-root {image_root} is not a folder", "Give the folder that the paths of the CSV begin in"
        )
    root = path.parent if image_root == AUTO else Path(image_root)
    finder = FileFinder(root, find_split(path.stem), search=image_root == AUTO, encoding=table.encoding)
    columns = find_columns(table, finder)
    paths = find_files(table, finder, columns["path"])
    splits = read_splits(table, columns)
    folds = read_folds(table, columns, splits)
    if not folds:
        columns.pop("fold", None)
    groups = read_groups(table, columns)
    labels, label_columns = read_labels(table, columns)
    spellings: dict[str, set[str]] = {}
    for label in set(labels):
        spellings.setdefault(normalise_name(label), set()).add(label)
    notes = [
        *([f"read as {table.encoding}, as it is not UTF-8"] if table.encoding != UTF_8 else []),
        *finder.notes,
        *describe_joined(spellings),
        *_describe_columns(table, columns, label_columns, folds),
    ]
    rows = _Rows(paths, [normalise_name(label) for label in labels], splits, folds, groups)
    return _make_index(table, root, rows, notes)


def _describe_columns(
    table: Table, columns: dict[str, str], label_columns: Sequence[str], folds: Sequence[str]
) -> list[str]:
    """Return notes on the columns that are used under other names, on folds, and on columns that are not used."""
    notes = []
    used: dict[str, str] = {role: columns[role] for role in ("path", "split", "fold", "group") if role in columns}
    if len(label_columns) == 1:
        used["label"] = label_columns[0]
    parts = [", ".join(f"{role} {name!r}" for role, name in sorted(used.items()) if role != name)]
    if len(label_columns) > 1:
        parts.append(f"classes by the {len(label_columns)} columns of 0 and 1")
    if any(parts):
        notes.append(f"columns: {'; '.join(filter(None, parts))}")
    if folds:
        number = len(set(folds) - {""})
        notes.append(
            f"column {columns['fold']!r} has {number} folds: --folds {number} uses them; without it they are not used"
        )
    if unused := [name for name in table.columns if name not in {*used.values(), *label_columns}]:
        notes.append(f"columns that are not used: {', '.join(name or '(without a name)' for name in unused)}")
    return notes


def _make_index(table: Table, root: Path, rows: _Rows, notes: Sequence[str]) -> Index:
    """Return the index, sorted by path with one row per file.

    Raises:
        DataError: two rows of one file have different labels or splits.
    """
    first: dict[str, int] = {}
    repeated, conflicts = 0, []
    for row, path in enumerate(rows.paths):
        at = first.setdefault(path, row)
        repeated += at != row
        if (rows.labels[at], rows.splits[at]) != (rows.labels[row], rows.splits[row]):
            conflicts.append(row)
    table.refuse(
        "a file named before with another label or split",
        conflicts,
        remedy="Correct these rows; images that have several labels are a multi-label set, which this program does not "
        "train on",
    )
    order = [first[path] for path in sorted(first)]
    classes = tuple(sorted(set(rows.labels)))
    label_of = {name: label for label, name in enumerate(classes)}
    return Index(
        root=root,
        classes=classes,
        paths=tuple(rows.paths[row] for row in order),
        labels=tuple(label_of[rows.labels[row]] for row in order),
        splits=tuple(rows.splits[row] for row in order),
        groups=tuple(rows.groups[row] or rows.paths[row] for row in order) if any(rows.groups) else (),
        folds=tuple(rows.folds[row] for row in order) if rows.folds else (),
        skipped={"row that repeats a file": repeated} if repeated else {},
        notes=tuple(notes),
    )
