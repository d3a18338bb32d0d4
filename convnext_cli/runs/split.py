"""The content of `split.csv` and `data.json`: the split of each image, with its target, group and data folder."""

import csv
import hashlib
import io
import math
import re
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_cli.data.index import SPLITS, Index
from convnext_cli.text import format_count, shorten_names

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from convnext_cli.runs.records import Data
    from convnext_cli.tasks.task import Task

_SPLITS = re.compile(r"train|val|test|fold-\d+")
_COLUMNS = ("path", "label", "group", "split")
_VALIDATION = "validation"
"""The column of a cross-validation by `--leave-out`: `yes` or `no`."""


def format_split(index: Index) -> str:
    """Return the text of `split.csv`: the split of each image."""
    text = io.StringIO()
    table = csv.writer(text)  # its own line ends, so that it quotes names with either of their characters
    columns = [*_COLUMNS, *([_VALIDATION] if index.validation else [])]
    table.writerow((*columns, *(list_target_columns(index.classes) if index.values else ())))
    groups = index.groups or ("",) * len(index)
    values = index.values or ((),) * len(index)
    names = [index.describe_target(row) for row in range(len(index))]
    flags = [["yes" if validates else "no"] for validates in index.validation] or [[]] * len(index)
    rows = zip(index.paths, names, groups, index.splits, flags, values, strict=True)
    for path, name, group, split, flag, targets in rows:
        table.writerow((path, name, group, split, *flag, *map(format_target, targets)))
    return text.getvalue()


def describe_data(index: Index) -> dict[str, Any]:
    """Return the content of `data.json`: the folder that the paths start from, the classes and the task."""
    data: dict[str, Any] = {
        "data": str(index.root.absolute()),
        "classes": list(index.classes),
        "skipped": index.skipped,
    }
    if index.task_record is not None:
        data["task"] = index.task_record
    if index.table is not None:
        data["table"] = str(index.table.absolute())
    if index.source is not None and index.source != index.table and index.source.is_file():
        data["source"] = str(index.source.absolute())
    if index.fold_names:
        data["fold_names"] = list(index.fold_names)
    return data


def parse_split(text: str, data: "Data", task: "Task") -> Index:
    """Return the index of `format_split` and `describe_data`.

    Raises:
        ValueError: a row is wrong, or there is none.
    """
    label_of = {name: label for label, name in enumerate(data.classes)}
    paths, labels, groups, splits, values, validation = [], [], [], [], [], []
    reader = csv.DictReader(io.StringIO(text, newline=""))
    try:
        for row in reader:
            if problem := _find_split_problem(row, None if task.has_values else label_of):
                raise ValueError(problem)
            paths.append(row["path"])
            if task.has_values:
                values.append(tuple(_parse_value(row[name], name) for name in list_target_columns(data.classes)))
            else:
                labels.append(label_of[row["label"]])
            groups.append(row["group"])
            splits.append(row["split"])
            if _VALIDATION in row:
                validation.append(row[_VALIDATION] == "yes")
    except (csv.Error, ValueError, KeyError) as error:
        raise ValueError(f"line {reader.line_num}: {error}") from error
    if not paths:
        raise ValueError(f"it has no rows of {', '.join(_COLUMNS)}")
    return Index(
        root=Path(data.data),
        classes=data.classes,
        paths=tuple(paths),
        labels=tuple(task.number_strata(values) if task.has_values else labels),
        splits=tuple(splits),
        groups=tuple(groups) if any(groups) else (),
        skipped=data.skipped,
        values=tuple(values),
        task_record=data.task,
        table=None if data.table is None else Path(data.table),
        source=None if data.source is None else Path(data.source),
        fold_names=data.fold_names,
        validation=tuple(validation),
    )


def list_target_columns(classes: Sequence[str]) -> list[str]:
    """Return the columns of `split.csv` that hold the targets where they are not one class."""
    return [f"target: {name}" for name in classes]


def format_target(value: float) -> str:
    """Return a target as it is written: the fewest digits that give it again, or nothing where it is unknown."""
    return "" if value != value else repr(float(value)).removesuffix(".0")


def _parse_value(cell: str, name: str) -> float:
    """Return a target; nan for an empty cell."""
    value = float(cell or "nan")
    if cell and not math.isfinite(value):
        raise ValueError(f"{name}: {cell!r} is not a number")
    return value


def _find_split_problem(row: Mapping[str | None, Any], classes: Mapping[str, int] | None) -> str | None:
    """Return what is wrong with a row of `split.csv`; None if nothing is. Without `classes`, any label is valid."""
    if missing := [key for key in _COLUMNS if row.get(key) is None]:
        return f"{', '.join(missing)} missing; it must have rows of {', '.join(_COLUMNS)}"
    if not row["path"] or "\0" in row["path"]:
        return f"path: {row['path']!r} is not a path"
    if classes is not None and row["label"] not in classes:
        return f"label: data.json has no class {row['label']!r}"
    return None if _SPLITS.fullmatch(row["split"]) else f"split: no such split {row['split']!r}"


def digest_split(index: Index) -> "NDArray[np.uint64]":
    """Return a digest of each row's path, target, group and split, (N,) uint64."""
    import numpy as np  # here and below: `recommend` answers without NumPy

    groups = index.groups or ("",) * len(index)
    targets = [str(values) for values in index.values] or [index.classes[label] for label in index.labels]
    flags = ("\0validation" if validates else "" for validates in index.validation or (False,) * len(index))
    splits = [f"{split}{flag}" for split, flag in zip(index.splits, flags, strict=True)]
    rows = zip(index.paths, targets, groups, splits, strict=True)
    texts = (f"{path}\0{target}\0{group}\0{split}" for path, target, group, split in rows)
    digests = (hashlib.blake2b(text.encode(errors="surrogateescape"), digest_size=8).digest() for text in texts)
    return np.frombuffer(b"".join(digests), np.uint64)


def sum_digests(digests: "NDArray[np.uint64]") -> str:
    """Return one digest of many, in hexadecimal digits."""
    import numpy as np

    return hashlib.blake2b(np.ascontiguousarray(digests).data, digest_size=16).hexdigest()


def describe_differences(former: Sequence[int], digests: Sequence[int], paths: Sequence[str]) -> str:
    """Return which rows of a split changed, in words, from the digests of the rows before and after."""
    changed = [paths[row] for row in _list_changed(former, digests)]
    number = format_count(len(changed), "row differs", "rows differ")
    parts = [f"{number} ({shorten_names(changed)})"] if changed else []
    missing = len(former) - len(digests)
    if missing:
        parts.append(f"{format_count(abs(missing), 'row is', 'rows are')} {'gone' if missing > 0 else 'new'}")
    return ", ".join(parts) or "its rows are in another order"


def find_moved(former: Sequence[int], index: Index) -> list[str]:
    """Return the images that were in another split when the digests `former` were made, each as `PATH (SPLIT)`."""
    changed = _list_changed(former, digest_split(index).tolist())
    known, moved = set(former), dict[int, str]()
    for name in SPLITS:
        digests = digest_split(replace(index, splits=(name,) * len(index))).tolist()
        moved |= {row: f"{index.paths[row]} ({name})" for row in changed if digests[row] in known}
    return [moved[row] for row in sorted(moved)]


def _list_changed(former: Sequence[int], digests: Sequence[int]) -> list[int]:
    """Return the rows whose digest is not among the former ones, or is there less often."""
    remaining = Counter(former)
    changed = []
    for row, digest in enumerate(digests):
        remaining[digest] -= 1
        if remaining[digest] < 0:
            changed.append(row)
    return changed
