"""The index of a data set: its images with their targets, splits and groups."""

import hashlib
import re
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

from convnext_cli.data.patterns import DATE, NUMBERED, are_numbered
from convnext_cli.encoding import compose_name, fold_name
from convnext_cli.errors import DataError
from convnext_cli.tasks.reading import RawTargets, parse_flag
from convnext_cli.text import format_count, format_part

if TYPE_CHECKING:  # NumPy: `recommend` starts without it
    from convnext_cli.tasks.task import Targets, Task

T = TypeVar("T")
K = TypeVar("K")
SPLITS = ("train", "val", "test")
SPREADSHEET_SUFFIXES = (".xls", ".xlsx", ".ods")
TABLE_SUFFIXES = (".csv", ".tsv", ".jsonl", *SPREADSHEET_SUFFIXES)
GIVEN_SUFFIXES = (*TABLE_SUFFIXES, ".txt")
"""Of tables that are given themselves; in a folder, text files may be notes and annotations."""
MAX_RARE_CLASSES = 20
"""Classes of which there may be more than one for every two images."""
_COPY = re.compile(
    r"(?<=\S)(?:\s*\(\d{1,2}\)|[\s_-]+(?:(?:copy|kopie|copie|copia|cópia)(?:\s*\(?\d+\)?)?"
    rf"|(?:part|batch|teil|lot)[\s_-]*\d+|{DATE}"
    r"|aug(?:mented)?|resized|cropped|enhanced|(?:pre)?processed))$",
    re.IGNORECASE,
)
"""The mark of a copy or a part: `cat (1)`, `cat - Copy`, `cat_part2`, `cat_2023-05-01`, `cat_augmented`."""
NONE = "none"
COLUMNS = ("paths", "labels", "splits", "groups", "folds", "row_folders", "validation", "values")
"""The fields of an `Index` that have a value for each row, or none."""
EXCLUDED = "excluded image"  # this and the next are reasons for which files are skipped
UNREADABLE = "unreadable image"
NOT_AN_IMAGE = "not an image"
_PLURALS_OF_REASONS = {  # beginnings, where the plural differs in more than an "s" after the first noun
    NOT_AN_IMAGE: "not images",
    "not a regular file": "not regular files",
    "mask of an image, by its": "masks of images, by their",
    "row that repeats": "rows that repeat",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """The images of a data set: row i is `paths[i]`, of class `classes[labels[i]]`, in `splits[i]`.

    Where the target is not one class, `values` has it, and `labels` has a stratum: images alike in their targets.

    What has a value for each row is left out of the representation that Python and notebooks show, here and elsewhere.
    """

    root: Path
    classes: tuple[str, ...]
    """Names of the classes, labels or grades; of a number, its name."""
    paths: tuple[str, ...] = field(repr=False)
    """Relative to `root`, sorted."""
    labels: tuple[int, ...] = field(repr=False)
    """The class of each row; its stratum if there are `values`."""
    splits: tuple[str, ...] = field(repr=False)
    """`train`, `val` or `test`; `fold-1` and so on in cross-validation; empty if the data has no splits."""
    groups: tuple[str, ...] = field(default=(), repr=False)
    """The group of each row, such as its patient; no rows if groups are not known."""
    folds: tuple[str, ...] = field(default=(), repr=False)
    """The fold of the table in which each row validates (`fold-1` and so on); no rows if the table has none."""
    row_folders: tuple[str, ...] = field(default=(), repr=False)
    """The folder by which the table names each image; no rows if it names the images."""
    skipped: dict[str, int]
    """Number of files that are not used, by reason."""
    notes: tuple[str, ...] = ()
    """Notes on how the folders or the table were read."""
    values: tuple[tuple[float, ...], ...] = field(default=(), repr=False)
    """The targets of each row where they are not one class: a value for each label, nan if unknown, or one number."""
    task_record: dict[str, Any] | None = None
    """The task as `Task.to_dict` gives it; None for one class per image."""
    ignored: dict[str, str] = field(default_factory=dict, compare=False, repr=False)
    """Options of reading that have no effect on targets of this form, each with the reason."""
    table: Path | None = None
    """The table that it was read from, or the folder of those of the splits; None for class folders."""
    source: Path | None = field(default=None, compare=False)
    """The folder, table or zip file that the user named; None where that is not known."""
    fold_names: tuple[str, ...] = ()
    """The values of the column that `--leave-out` names, in the order of their folds; empty for other folds."""
    validation: tuple[bool, ...] = field(default=(), repr=False)
    """With `fold_names`: True for rows that validate in each fold but their own, which tests on them."""

    def __len__(self) -> int:
        return len(self.paths)

    @property
    def location(self) -> Path:
        """The folder or file that the user named, for messages; else the one that was read."""
        return self.source or self.table or self.root

    @property
    def task(self) -> "Task":
        """The task that the targets are for."""
        from convnext_cli.tasks.registry import read_task

        return read_task(self.task_record, self.root, "Give the data again")

    def targets(self, rows: Iterable[int] | None = None) -> "Targets":
        """Return the targets of rows, or of all, as an array of the task."""
        rows = range(len(self)) if rows is None else list(rows)
        values = [self.values[row] for row in rows] if self.values else ()
        return self.task.stack_targets([self.labels[row] for row in rows], values)

    def describe_target(self, row: int) -> str:
        """Return the target of a row in words, such as the name of its class."""
        if not self.values:
            return self.classes[self.labels[row]]
        return self.task.describe_values(self.values[row], self.classes)

    @property
    def class_numbers(self) -> tuple[int, ...]:
        """The class of each row; 0 for all where the target is not one class."""
        return (0,) * len(self) if self.values else self.labels

    def name_class(self, row: int) -> str:
        """Return the name of a row's class; an empty string where the target is not one class."""
        return "" if self.values else self.classes[self.labels[row]]

    def have_conflict(self, rows: Sequence[int]) -> bool:
        """Return True if rows that should have one target have different ones."""
        if not self.values:
            return len({self.labels[row] for row in rows}) > 1
        return self.task.find_conflict(self.targets(rows))

    def rows(self, split: str) -> list[int]:
        """Return the rows of one split."""
        return [row for row, name in enumerate(self.splits) if name == split]

    def list_splits(self) -> list[str]:
        """Return those of `SPLITS` that have rows."""
        return [split for split in SPLITS if split in self.splits]

    def list_groups(self, rows: Sequence[int]) -> list[str] | None:
        """Return the group of each of some rows; None where groups are not known."""
        return [self.groups[row] for row in rows] if self.groups else None

    def has_split_of(self, other: "Index") -> bool:
        """Return True if both have the same images in the same splits; a copy's names may have another Unicode form."""
        return self.splits == other.splits and [*map(compose_name, self.paths)] == [*map(compose_name, other.paths)]

    def count_classes(self, split: str | None = None) -> list[int]:
        """Return the number of images per class, in all splits or in one."""
        if self.values:
            rows = [row for row, name in enumerate(self.splits) if split in (None, name)]
            return self.task.count(self.targets(rows), len(self.classes))
        counts = Counter(label for label, name in zip(self.labels, self.splits, strict=True) if split in (None, name))
        return [counts[label] for label in range(len(self.classes))]


def number_targets(targets: RawTargets, rows: Sequence[int]) -> dict[str, Any]:
    """Return some rows of targets as the fields of an `Index` that hold them: classes become numbers."""
    from convnext_cli.tasks.registry import describe_task

    classes = targets.classes or tuple(sorted(set(targets.labels)))
    number_of = {name: number for number, name in enumerate(classes)}
    values = tuple(targets.values[row] for row in rows) if targets.values else ()
    numbers = targets.task.number_strata(values) if values else [number_of[targets.labels[row]] for row in rows]
    return {
        "classes": classes,
        "labels": tuple(numbers),
        "values": values,
        "task_record": describe_task(targets.task),
        "ignored": dict(targets.ignored),
    }


def select_rows(index: Index, rows: list[int]) -> Index:
    """Return an index of some of the rows. All classes remain, with or without images."""
    columns: dict[str, Any] = {
        name: tuple(column[row] for row in rows) for name in COLUMNS if (column := getattr(index, name))
    }
    return replace(index, **columns)


def pick_evenly(values: Sequence[T], limit: int) -> list[T]:
    """Return at most `limit` of the values, evenly spaced: rows are sorted by class."""
    return [values[i * len(values) // limit] for i in range(limit)] if len(values) > limit else list(values)


def group_by(items: Iterable[T], key: Callable[[T], K]) -> dict[K, list[T]]:
    """Return the items with each key, in their order."""
    groups: dict[K, list[T]] = {}
    for item in items:
        groups.setdefault(key(item), []).append(item)
    return groups


def is_one_to_one(names: Sequence[object], others: Sequence[object]) -> bool:
    """Return True if rows that are equal in one of two columns are equal in the other too."""
    return len(set(names)) == len(set(others)) == len(set(zip(names, others, strict=True)))


def check_trainable(index: Index) -> None:
    """Check that the index can be trained on.

    Raises:
        DataError: there is only one class, more classes than images, or a class without (training) images; or the
            labels or numbers do not vary.
    """
    if not index.values:
        _check_class_number(index)
    splits = set(index.splits)
    if splits <= {"val", "test"}:
        names = " and ".join(sorted(splits))
        raise DataError(
            f"all images of {index.location} are in its {names} split: there is nothing to train on",
            "Give the folder that has the training images too, or draw new splits with --resplit",
        )
    if index.values:
        rows = index.rows("train") if "train" in splits else None
        if problem := index.task.explain_untrainable(index.targets(rows), index.classes):
            raise DataError(f"{index.location}: {problem[0]}", problem[1])
        return
    if missing := list_untrained_classes(index):
        where, resplit = (
            ("training images", ", or draw new splits with --resplit") if "train" in splits else ("images", "")
        )
        number, examples = format_part(len(missing), len(index.classes), "class", "has", "have"), ", ".join(missing[:5])
        alike = [names for names in find_alike(index.classes) if set(names) & set(missing)]
        hint = f"; {' and '.join(alike[0])} may mean the same" if alike else ""
        raise DataError(
            f"{number} no {where}: {examples}{hint}",
            "Rename them to one name" if alike else f"Add images to these folders, or remove them{resplit}",
        )


def are_too_many(classes: int, images: int) -> bool:
    """Return True if the names of classes are rather identifiers, dates or comments: most images have one alone."""
    return classes > max(MAX_RARE_CLASSES, images / 2)


def list_untrained_classes(index: Index) -> list[str]:
    """Return the classes without training images; without images, if the index has no training split."""
    if index.values:
        return []
    counts = index.count_classes("train" if "train" in index.splits else None)
    return [name for name, count in zip(index.classes, counts, strict=True) if not count]


def _check_class_number(index: Index) -> None:
    if len(index.classes) < 2:
        skipped = f"; skipped: {describe_skipped(index.skipped)}" if index.skipped else ""
        raise DataError(
            f"{index.location} has one class only ({index.classes[0]!r}){skipped}",
            "Give rows of two classes or more"
            if index.table
            else "Give two class folders or more"
            + (f", or --label-from '{NUMBERED}' if the file names have the class" * are_numbered(index.paths)),
        )
    if len(index.classes) > len(index):
        raise DataError(
            f"{index.location} has more classes ({len(index.classes)}) than images ({len(index)})",
            "Give each class folder images, or remove the empty ones",
        )


def find_alike(classes: Iterable[str]) -> list[list[str]]:
    """Return the sets of classes whose names may mean the same.

    They differ only in case, hyphens, width, zeros or alphabet, or in the mark of a copy or part, as `cat (1)`. Of
    classes that all say yes or no, those of one meaning are a set; among letters, `n` is not `0`.
    """
    names = list(classes)
    flags = {name: parse_flag(name) for name in names}
    are_flags = set(flags.values()) <= {0.0, 1.0}
    alike = group_by(names, lambda name: str(flags[name]) if are_flags else fold_name(_COPY.sub("", name)))
    return [same for same in alike.values() if len(same) > 1]


def count_read(index: Index, files: int) -> Index:
    """Return the index with fewer files among those that are skipped as no images: they are tables that were read."""
    skipped = index.skipped.get(NOT_AN_IMAGE, 0) - files
    others = {reason: number for reason, number in index.skipped.items() if reason != NOT_AN_IMAGE}
    return replace(index, skipped=others | ({NOT_AN_IMAGE: skipped} if skipped > 0 else {}))


def digest_images(index: Index) -> str:
    """Return a digest of the file sizes of the training and validation images, in their order.

    Raises:
        DataError: some of the files do not exist.
    """
    digest, missing = hashlib.sha256(), []
    for row in (*index.rows("train"), *index.rows("val")):
        try:
            digest.update(f"{(index.root / index.paths[row]).stat().st_size} ".encode())
        except OSError:
            missing.append(index.paths[row])
    if missing:
        examples = ", ".join(missing[:5])
        number = format_count(len(missing), "image of the split is", "images of the split are")
        raise DataError(
            f"{number} not in {index.location}: {examples}",
            "Restore them, or give the folder or file that has them now: `convnext finetune DATA --resume RUN`",
        )
    return digest.hexdigest()


def describe_frames(files: int) -> str:
    """Return that so many files have several frames, of which one is read."""
    return f"{format_count(files, 'file has', 'files have')} several frames or pages, of which one is read"


def describe_skipped(skipped: Mapping[str, int]) -> str:
    """Return how many files were skipped for each reason, such as `2 excluded images, 1 row that repeats a file`."""
    return ", ".join(format_count(count, reason, _make_plural(reason)) for reason, count in skipped.items())


def _make_plural(reason: str) -> str:
    for singular, plural in _PLURALS_OF_REASONS.items():
        if reason.startswith(singular):
            return plural + reason.removeprefix(singular)
    return re.sub(r"\b(file|folder|image)\b", r"\1s", reason, count=1)
