"""One walk over a data folder into an index. Everything later takes the index; nobody scans again."""

import os
from collections import Counter
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path

from convnext_cli.errors import DataError

IMAGE_SUFFIXES = frozenset(
    {".jpg", ".jpeg", ".png", ".bmp", ".gif", ".tif", ".tiff", ".webp", ".ppm", ".pgm", ".dcm", ".dicom"}
)

SPLIT_NAMES = {
    "train": "train", "training": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val",
    "test": "test", "testing": "test", "tests": "test", "holdout": "test",
}  # fmt: skip

_NOT_DATA = frozenset({"__macosx", "thumbs.db", "desktop.ini"})


@dataclass(frozen=True, kw_only=True, slots=True)
class Index:
    """The images of a data set: row i is `paths[i]`, of class `classes[labels[i]]`, in `splits[i]`.

    Paths are relative to `root`, sorted. A split is `train`, `val`, `test`, `fold-1` and so on where folds
    validate in turn, or empty where the data has none.
    `groups` names what row i was taken from (a patient), or has no rows where that is not known. `skipped` counts what
    is no image, by reason.
    """

    root: Path
    classes: tuple[str, ...]
    paths: tuple[str, ...]
    labels: tuple[int, ...]
    splits: tuple[str, ...]
    groups: tuple[str, ...] = ()
    skipped: dict[str, int]

    def __len__(self) -> int:
        return len(self.paths)

    def rows(self, split: str) -> list[int]:
        """The rows of one split."""
        return [row for row, name in enumerate(self.splits) if name == split]

    def count_classes(self, split: str | None = None) -> list[int]:
        """Images per class, in all or in one split."""
        counts = Counter(label for label, name in zip(self.labels, self.splits, strict=True) if split in (None, name))
        return [counts[label] for label in range(len(self.classes))]


def scan_data(data: Path) -> Index:
    """Finds the images of a folder (`scan_folder`), a CSV file (`manifest.read_manifest`), or a zip file of either.

    Raises:
        DataError: nothing is there, it cannot be read, or it has no images.
    """
    suffix = data.suffix.lower()
    if not data.is_file() or suffix not in (".csv", ".tsv", ".zip"):
        return scan_folder(data)
    if suffix == ".zip":
        from convnext_cli.data.archive import unpack

        folder = unpack(data)
        manifests = [*folder.glob("*.csv"), *folder.glob("*.tsv")]
        if len(manifests) != 1:
            return scan_folder(folder)
        data = manifests[0]
    from convnext_cli.data.manifest import read_manifest

    return read_manifest(data)


def scan_folder(root: Path) -> Index:
    """Finds the images of `root/<class>/**`, or of `root/{train,val,test}/<class>/**`.

    The class is the top folder, however deep the file lies. Hidden files and what is no image by its suffix are
    skipped and counted. Nothing is opened or written.

    Raises:
        DataError: no such folder, not readable, or no image in it.
    """
    if not root.is_dir():
        what = "is a file, not a folder" if root.exists() else "does not exist"
        raise DataError(
            f"{root} {what}", "Give a folder with one folder of images per class, a CSV file, or a zip file"
        )
    skipped: Counter[str] = Counter()
    found: list[tuple[str, str, str]] = []
    names: set[str] = set()
    start = len(os.path.join(root, ""))  # noqa: PTH118  (strings throughout: a Path per file is slow)
    try:
        for split, folder in _split_folders(root, skipped):
            for name, path in _class_images(folder, skipped):
                names.add(name)
                if path is not None:
                    found.append((path[start:].replace(os.sep, "/"), name, split))
    except OSError as error:
        raise DataError(f"cannot read {root}: {error}", "Check the folder's permissions") from error
    if not found:
        raise DataError(
            f"no images in class folders under {root}{_describe(skipped)}",
            f"Put them into {root}/<class>/, as {', '.join(sorted(IMAGE_SUFFIXES))}",
        )
    found.sort()
    classes = tuple(sorted(names))
    number = {name: label for label, name in enumerate(classes)}
    return Index(
        root=root,
        classes=classes,
        paths=tuple(path for path, _, _ in found),
        labels=tuple(number[name] for _, name, _ in found),
        splits=tuple(split for _, _, split in found),
        skipped=dict(skipped),
    )


def check_trainable(index: Index) -> None:
    """Checks that the index can be trained on.

    Raises:
        DataError: one class only, more classes than images, or classes without (training) images.
    """
    if len(index.classes) < 2:
        raise DataError(
            f"{index.root} has one class only ({index.classes[0]!r})",
            "Give two class folders or more to tell apart",
        )
    if len(index.classes) > len(index):
        raise DataError(
            f"{index.root} has more classes ({len(index.classes)}) than images ({len(index)})",
            "Give each class folder images, or remove the empty ones",
        )
    splits = set(index.splits)
    counts = index.count_classes("train" if "train" in splits else None)
    missing = [name for name, count in zip(index.classes, counts, strict=True) if not count]
    if missing:
        where = "training images" if "train" in splits else "images"
        examples = ", ".join(missing[:5])
        raise DataError(
            f"{len(missing)} of {len(index.classes)} classes have no {where}: {examples}",
            "Add images to these folders, or remove them",
        )


def join_rows(links: Iterable[tuple[int, int]]) -> tuple[tuple[int, ...], ...]:
    """The connected sets of rows, sorted."""
    parent: dict[int, int] = {}

    def find(row: int) -> int:
        while parent.setdefault(row, row) != row:
            parent[row] = row = parent[parent[row]]
        return row

    for one, two in links:
        first, second = sorted((find(one), find(two)))
        parent[second] = first
    sets: dict[int, list[int]] = {}
    for row in sorted(parent):
        sets.setdefault(find(row), []).append(row)
    return tuple(tuple(rows) for _, rows in sorted(sets.items()))


def _split_folders(root: Path, skipped: Counter[str]) -> list[tuple[str, Path]]:
    """The data set's own split folders; without a training folder, the root itself as one unnamed split."""
    folders = [Path(entry.path) for entry in os.scandir(root) if entry.is_dir() and not is_hidden(entry.name)]
    names = [folder.name.strip().lower() for folder in folders]
    own = [(SPLIT_NAMES[name], folder) for name, folder in zip(names, folders, strict=True) if name in SPLIT_NAMES]
    splits = {split for split, _ in own}
    if "train" in splits and (len(splits) > 1 or len(own) == len(folders)):
        if len(own) < len(folders):
            for name, folder in zip(names, folders, strict=True):
                if name not in SPLIT_NAMES:
                    skipped[f"folder beside train, val and test ({folder.name!r})"] += 1
        return own
    return [("", root)]


def _class_images(folder: Path, skipped: Counter[str]) -> Iterator[tuple[str, str | None]]:
    """Each class folder's name with each of its images; once with None, so that an empty class is known too."""
    for entry in os.scandir(folder):
        if is_hidden(entry.name):
            skipped["hidden or system file"] += 1
        elif entry.is_dir():
            yield entry.name, None
            for path in _walk(entry.path, skipped):
                yield entry.name, path
        elif is_image(entry.name):
            skipped["image outside any class folder"] += 1
        else:
            skipped["not an image by its suffix"] += 1


def _walk(folder: str, skipped: Counter[str]) -> Iterator[str]:
    """The images under `folder`. Each real folder is entered once, so that a loop of links ends."""
    waiting = [folder]
    seen: set[tuple[int, int]] = set()
    while waiting:
        current = waiting.pop()
        status = os.stat(current)  # noqa: PTH116
        if (status.st_dev, status.st_ino) in seen:
            continue
        seen.add((status.st_dev, status.st_ino))
        for entry in os.scandir(current):
            if is_hidden(entry.name):
                skipped["hidden or system file"] += 1
            elif entry.is_dir():
                waiting.append(entry.path)
            elif not is_image(entry.name):
                skipped["not an image by its suffix"] += 1
            elif not entry.is_file():
                skipped["no regular file (a broken link, a pipe)"] += 1
            else:
                yield entry.path


def is_hidden(name: str) -> bool:
    """Return True for what every walk passes over: hidden files, and what Windows and macOS leave in folders."""
    return name.startswith(".") or name.lower() in _NOT_DATA


def is_image(name: str) -> bool:
    """Whether a file's name ends like an image's."""
    return os.path.splitext(name)[1].lower() in IMAGE_SUFFIXES  # noqa: PTH122


def _describe(skipped: Counter[str]) -> str:
    return f" (skipped: {', '.join(f'{count} {reason}' for reason, count in skipped.items())})" if skipped else ""
