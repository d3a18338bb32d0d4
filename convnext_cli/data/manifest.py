"""A data set as a CSV file: one row an image, with its label, and its split and group where they are known."""

import csv
import os
from collections.abc import Sequence
from pathlib import Path

from convnext_cli.data.scan import IMAGE_SUFFIXES, SPLIT_NAMES, Index, is_image
from convnext_cli.errors import DataError

_COLUMNS = {
    "path": ("path", "file", "filename", "file_name", "filepath", "file_path", "image", "image_path", "image_id", "id"),
    "label": ("label", "class", "category", "diagnosis", "target", "y"),
    "split": ("split", "set", "subset", "partition"),
    "group": ("group", "patient", "patient_id", "patientid", "subject", "subject_id", "case", "case_id"),
}
_EXAMPLES = 5


def read_manifest(path: Path) -> Index:
    """Reads `path`: a column for the image's path, and one for its label or one of 0 and 1 for each class.

    Paths are relative to the CSV file, or absolute; an image's suffix may be left out. Columns named split and group
    (or patient) are taken where there are any.

    Raises:
        DataError: a column is missing, a file does not exist, a row is inconsistent. All such rows are counted.
    """
    try:
        with path.open(encoding="utf-8-sig", errors="surrogateescape", newline="") as file:
            sample = file.read(65536)
            file.seek(0)
            dialect = _find_dialect(sample)
            reader = csv.DictReader(file, dialect=dialect)
            names = list(reader.fieldnames or [])
            rows = [row for row in reader if any(value for value in row.values())]
    except (OSError, csv.Error) as error:
        raise DataError(f"cannot read {path}: {error}", "Give a CSV file with the columns path and label") from error
    columns = _find_columns(path, names)
    labels = _read_labels(path, rows, names, columns)
    root = path.parent
    paths = _find_files(path, root, [(row.get(columns["path"]) or "").strip() for row in rows])
    splits = _read_splits(path, rows, columns)
    groups = [(row.get(columns["group"]) or "").strip() for row in rows] if "group" in columns else []
    return _make_index(path, root, paths, labels, splits, groups)


def _find_dialect(sample: str) -> type[csv.Dialect]:
    try:
        return csv.Sniffer().sniff(sample.partition("\n")[0], delimiters=",;\t")
    except csv.Error:
        return csv.excel


def _find_columns(path: Path, names: Sequence[str]) -> dict[str, str]:
    """The file's own name of each known column."""
    if len(set(names)) < len(names):
        raise DataError(f"{path} has two columns of the same name", "Rename or remove one of them")
    lower = {name.strip().lower(): name for name in names}
    found = {
        what: lower[known] for what, words in _COLUMNS.items() if (known := next((w for w in words if w in lower), ""))
    }
    if "path" not in found:
        raise DataError(
            f"{path} has no column for the images' paths (it has {', '.join(names[:10]) or 'none'})",
            f"Name one of them {', '.join(_COLUMNS['path'][:5])}, and one {', '.join(_COLUMNS['label'][:3])}",
        )
    return found


def _read_labels(
    path: Path, rows: Sequence[dict[str, str]], names: Sequence[str], columns: dict[str, str]
) -> list[str]:
    if "label" in columns:
        labels = [(row.get(columns["label"]) or "").strip() for row in rows]
        _refuse(path, "no label", [i for i, label in enumerate(labels) if not label])
        return labels
    classes = [name for name in names if name not in columns.values()]
    hot = [[name for name in classes if _number(row.get(name)) == 1.0] for row in rows]
    if not classes or not any(hot):
        raise DataError(f"{path} has no column for the labels", "Name one label, or give a column of 0 and 1 per class")
    _refuse(path, "not exactly one class", [i for i, found in enumerate(hot) if len(found) != 1])
    return [found[0] for found in hot]


def _read_splits(path: Path, rows: Sequence[dict[str, str]], columns: dict[str, str]) -> list[str]:
    if "split" not in columns:
        return [""] * len(rows)
    words = [(row.get(columns["split"]) or "").strip().lower() for row in rows]
    _refuse(path, "an unknown split", [i for i, word in enumerate(words) if word and word not in SPLIT_NAMES])
    return [SPLIT_NAMES.get(word, "") for word in words]


def _find_files(manifest: Path, root: Path, names: Sequence[str]) -> list[str]:
    """Each name as a path from `root`, with its suffix."""
    _refuse(manifest, "no path", [i for i, name in enumerate(names) if not name])
    found, missing = [], []
    for row, name in enumerate(names):
        endings = ("", *sorted(IMAGE_SUFFIXES)) if not is_image(name) else ("",)
        end = next((end for end in endings if os.path.isfile(root / f"{name}{end}")), None)  # noqa: PTH113
        if end is None:
            missing.append(row)
        else:
            found.append(f"{name}{end}".replace(os.sep, "/"))
    _refuse(manifest, "a file that does not exist", missing, [names[row] for row in missing[:_EXAMPLES]])
    return found


def _make_index(
    manifest: Path,
    root: Path,
    paths: Sequence[str],
    labels: Sequence[str],
    splits: Sequence[str],
    groups: Sequence[str],
) -> Index:
    """Sorted by path, one row a file; the same file twice must say the same."""
    first: dict[str, int] = {}
    again, conflicts = 0, []
    for row, path in enumerate(paths):
        at = first.setdefault(path, row)
        again += at != row
        if (labels[at], splits[at]) != (labels[row], splits[row]):
            conflicts.append(row)
    _refuse(manifest, "a file named before with another label or split", conflicts)
    if not first:
        raise DataError(f"{manifest} has no rows", "Give a row for each image")
    order = [first[path] for path in sorted(first)]
    classes = tuple(sorted(set(labels)))
    number = {name: label for label, name in enumerate(classes)}
    return Index(
        root=root,
        classes=classes,
        paths=tuple(paths[row] for row in order),
        labels=tuple(number[labels[row]] for row in order),
        splits=tuple(splits[row] for row in order),
        groups=tuple(groups[row] or paths[row] for row in order) if any(groups) else (),
        skipped={"row that repeats a file": again} if again else {},
    )


def _refuse(path: Path, what: str, rows: Sequence[int], examples: Sequence[str] = ()) -> None:
    """Raises if there are such rows; the header is line 1."""
    if rows:
        shown = ", ".join(examples) or ", ".join(f"line {row + 2}" for row in rows[:_EXAMPLES])
        raise DataError(f"{path} has {what} in {len(rows)} rows: {shown}", "Correct these rows")


def _number(text: str | None) -> float | None:
    try:
        return float(text or "")
    except ValueError:
        return None
