"""The layout of a data set: the classes and splits that its folders name, or an error that says what is ambiguous.

A layout is accepted only if its names leave no doubt. These are recognised:

- `<class>/**`;
- splits above or below the classes, in simple and composite names (`train`, `seg_train`, `Training Set`);
- one folder around everything, and a folder that repeats its own name;
- unlabelled folders beside a training folder;
- masks beside their images.

Anything else (splits or folds without classes, a detection or segmentation set) is a `DataError` with a remedy.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain, islice
from operator import attrgetter
from pathlib import Path

from convnext_cli.data.folders.checks import check_inner_splits, check_top_folders, check_units
from convnext_cli.data.folders.masks import drop_masks
from convnext_cli.data.folders.remedies import describe_others, suggest_table
from convnext_cli.data.folders.splits import (
    UNLABELLED,
    AmbiguousLayoutError,
    SplitFolders,
    enter_split,
    find_simple_split,
    find_split,
    find_split_folders,
    list_split_folders,
)
from convnext_cli.data.folders.words import (
    GENERIC_WORDS,
    PATIENT_FOLDER,
    UNKNOWN_WORDS,
    describe_doubt,
    describe_joined,
    is_table,
    list_names,
    list_words,
    name_findings,
    quote_name,
    relative_name,
)
from convnext_cli.data.index import are_too_many
from convnext_cli.data.tables.table import SAMPLE
from convnext_cli.data.tree import Folder, is_hidden
from convnext_cli.encoding import decode_name, normalise_name
from convnext_cli.errors import DataError
from convnext_cli.images.formats import has_image_suffix
from convnext_cli.text import Advice, shorten_names

_OUTSIDE = "image outside any class folder"
_DOCUMENTS = frozenset((
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".md", ".html", ".pdf", ".xls", ".xlsx",
    ".ods", ".doc", ".docx", ".log",
))  # fmt: skip


@dataclass(frozen=True, slots=True)
class Placement:
    """A folder whose images, at any depth, have one class and split."""

    folder: Folder
    name: str
    split: str


@dataclass(kw_only=True, slots=True)
class Layout:
    """The meaning of the folders: placements, or an error."""

    tree: Folder
    start: Folder
    """The folder where classes and splits begin: the data folder itself, or one inside its wrappers."""
    placements: list[Placement] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    error: DataError | None = None
    """The reason why the folders do not name the classes; None if they do."""

    @property
    def filled(self) -> list[Folder]:
        """The class folders that have images, sorted by path."""
        return sorted(
            (placement.folder for placement in self.placements if placement.folder.count), key=attrgetter("path")
        )

    @property
    def tables(self) -> list[Path]:
        """The tables beside the classes, in the wrappers around them, and in splits without classes."""
        around = [folder for folder in self.tree.walk() if f"{self.start.path}/".startswith(f"{folder.path}/")]
        if self.error:
            around += [folder for folder in self.start.filled if find_simple_split(folder.name)]
        return [Path(folder.path, name) for folder in around for name in sorted(filter(is_table, folder.others))]

    @property
    def classes(self) -> list[str]:
        """The classes, with or without images."""
        return sorted({placement.name for placement in self.placements})


def recognise_layout(tree: Folder, name: str, known_classes: Iterable[str]) -> Layout:
    """Recognise the layout of a folder. Masks beside their images are removed from `tree`.

    Args:
        tree: everything in the folder.
        name: of the folder, or of the zip file that it came in.
        known_classes: the classes of a run; their names are not questioned.
    """
    classes = {normalise_name(class_name) for class_name in known_classes}
    layout = Layout(tree=tree, start=tree)
    try:
        layout.skipped, layout.notes = drop_masks(tree)
        if not classes & {normalise_name(top.name) for top in tree.filled}:
            layout.start = _enter_wrappers(tree, name, layout)
        placements = _place(layout, classes)
        named = [(placement.folder, placement.name) for placement in placements]
        check_inner_splits(named, layout.start)
        if not classes:
            check_units(named, tree)
            _check_number(placements, tree)
    except AmbiguousLayoutError as error:
        layout.error = DataError(error.problem, error.remedy)
    else:
        layout.notes += describe_joined(placement.name for placement in placements)
        layout.placements = [replace(placement, name=normalise_name(placement.name)) for placement in placements]
        _note_common_folders(layout)
        _note_other_classes(layout)
    return layout


def _place(layout: Layout, known_classes: set[str]) -> list[Placement]:
    start = layout.start
    layout.skipped[_OUTSIDE] += len(start.images)
    documents = {folder.path for folder in start.folders if _holds_documents(folder)}
    if splits := find_split_folders(folder for folder in start.folders if folder.path not in documents):
        return _place_splits(splits, layout)
    _drop_copies(start, layout)
    tops = start.filled
    if not known_classes & {normalise_name(top.name) for top in tops}:
        check_top_folders(layout.tree, start)
    below = {top.path: splits if len(splits := find_split_folders(top.folders)) > 1 else {} for top in tops}
    with_splits = [top for top in tops if below[top.path]]
    if not with_splits:
        for path in documents:
            layout.skipped[f"folder without images ({decode_name(os.path.basename(path))!r})"] += 1  # noqa: PTH119
        return [Placement(folder, folder.name, "") for folder in start.folders if folder.path not in documents]
    if len(with_splits) < len(tops):
        first, without = with_splits[0], next(top for top in tops if not below[top.path])
        raise AmbiguousLayoutError(
            f"{quote_name(first)} has folders of splits ({list_split_folders(below[first.path])}) and "
            f"{quote_name(without)} has none, so it is not clear whether these are classes",
            f"Give the folder that has the classes, such as {first.path}, or a CSV file with path, label and split",
        )
    return _place_splits_below(tops, below, layout)


def _holds_documents(folder: Folder) -> bool:
    """Return True if a folder has files and all of them are documents, such as annotations: it is no class then."""
    names = [] if folder.count else [name for inner in folder.walk() for name in inner.others]
    return bool(names) and all(os.path.splitext(name)[1].lower() in _DOCUMENTS for name in names)  # noqa: PTH122


def _check_number(placements: Sequence[Placement], tree: Folder) -> None:
    """Check that most numbered classes have more images than one: else they are rather patients or studies."""
    names = sorted({placement.name for placement in placements if placement.folder.count})
    images = sum(placement.folder.count for placement in placements)
    if are_too_many(len(names), images) and all(re.search(r"\d", name) for name in names):
        raise AmbiguousLayoutError(
            f"{len(names):,} folders ({shorten_names(names)}) with {images:,} images are too many for classes"
            f"{describe_others(tree)}",
            suggest_table(tree),
        )


def _place_splits(splits: SplitFolders, layout: Layout) -> list[Placement]:
    """Return the classes of `train/<class>`, under any names and however nested."""
    start = layout.start
    _skip_siblings(start, splits, layout)
    entered = [(split, folder, enter_split(folder)) for split, folders in splits.items() for folder in folders]
    train = [inner for split, _, inner in entered if split == "train"]
    train_classes = {normalise_name(folder.name) for inner in train for folder in inner.filled}
    if sum(inner.count for inner in train) and not train_classes:
        raise AmbiguousLayoutError(
            f"{list_split_folders(splits)} {'are folders of splits' if len(entered) > 1 else 'is a folder of a split'} "
            "without a folder for each class"
            f"{describe_others(layout.tree)}",
            suggest_table(layout.tree),
        )
    placements = []
    for split, folder, inner in entered:
        names = {normalise_name(class_folder.name) for class_folder in inner.filled}
        is_unlabelled = not names or (
            not names & train_classes and names <= GENERIC_WORDS | UNKNOWN_WORDS | {normalise_name(folder.name)}
        )
        if split == UNLABELLED or (split != "train" and inner.count and is_unlabelled):
            layout.skipped[f"image without a class, in {quote_name(folder)}"] += inner.count
            continue
        layout.skipped[_OUTSIDE] += len(inner.images)
        if inner is not folder:
            layout.notes.append(f"the classes of the {split} split are the folders in {relative_name(start, inner)}")
        placements += [Placement(class_folder, class_folder.name, split) for class_folder in inner.folders]
    folders = [folder for members in splits.values() for folder in members]
    if not all(find_simple_split(folder.name) for folder in folders):
        layout.notes.append(f"splits by the names of folders: {list_split_folders(splits)}")
    return placements


def _place_splits_below(tops: Sequence[Folder], below: dict[str, SplitFolders], layout: Layout) -> list[Placement]:
    """Return the classes of `<class>/train`, but not of `<site>/train/<class>`."""
    inside: list[set[str]] = []
    for top in tops:
        inners = [enter_split(folder) for folders in below[top.path].values() for folder in folders]
        inside.append({normalise_name(folder.name) for inner in inners for folder in inner.filled})
    common = set.intersection(*inside)
    if len(common) > 1:
        first = tops[0]
        raise AmbiguousLayoutError(
            f"{list_names(tops)} each have folders of splits ({list_split_folders(below[first.path])}) and in these "
            f"the same folders ({shorten_names(sorted(common))}), so those seem to be the classes",
            f"Give one of them, such as {first.path}, or a CSV file with path, label and split",
        )
    placements = []
    for top in tops:
        layout.skipped["image outside any split folder"] += len(top.images)
        _skip_siblings(top, below[top.path], layout, with_images=True)
        for split, folders in below[top.path].items():
            for folder in folders:
                if split == UNLABELLED:
                    layout.skipped[f"image without a class, in {quote_name(folder)}"] += folder.count
                else:
                    placements.append(Placement(folder, top.name, split))
    layout.notes.append(f"splits by the folders inside the classes: {list_split_folders(below[tops[0].path])}")
    return placements


def _skip_siblings(parent: Folder, splits: SplitFolders, layout: Layout, *, with_images: bool = False) -> None:
    """Count the folders beside those of splits as skipped; only those with images if `with_images`."""
    members = {folder.path for folders in splits.values() for folder in folders}
    for folder in parent.folders:
        if folder.path not in members and (folder.count or not with_images):
            layout.skipped[f"folder beside train, val and test ({decode_name(folder.name)!r})"] += 1


def _enter_wrappers(tree: Folder, name: str, layout: Layout) -> Folder:
    """Return the folder inside the folders that only wrap the data set.

    Raises:
        AmbiguousLayoutError: a folder is the only class, or a wrapper of numbered classes.
    """
    folder = tree
    while len(folder.filled) == 1 and _is_wrapped(folder.filled[0], folder, name):
        [only] = folder.filled
        layout.skipped[_OUTSIDE] += len(folder.images)
        for sibling in folder.folders:
            if sibling is not only:
                layout.skipped[f"folder without images ({decode_name(sibling.name)!r})"] += 1
        folder = only
    if folder is not tree:
        layout.notes.append(f"the classes and splits are the folders in {relative_name(tree, folder)}")
    return folder


def _is_wrapped(only: Folder, folder: Folder, name: str) -> bool:
    """Return True if the only folder with images in `folder` has the classes or splits; False if it is one itself.

    Raises:
        AmbiguousLayoutError: it is the only class, or a wrapper of numbered classes.
    """
    has_name_of_set = normalise_name(only.name).casefold() == normalise_name(name).casefold()
    split = find_split(only.name)
    if split and not has_name_of_set and (split == "train" or find_simple_split(only.name)):
        return False  # a single split
    siblings = [other for other in folder.folders if other is not only]
    are_empty = all(not sibling.others and not sibling.folders for sibling in siblings)  # classes without images?
    words = set(list_words(only.name))
    if not _has_classes(only) or (siblings and are_empty and not words <= GENERIC_WORDS):
        return False
    inner = [class_folder.name for class_folder in only.filled]
    shapes = {re.sub(r"\d+", "#", text) for text in inner}
    is_numbered = len(inner) > 1 and len(shapes) == 1 and "#" in min(shapes)
    if not is_numbered or has_name_of_set or words & GENERIC_WORDS:
        return True
    if all(map(PATIENT_FOLDER.fullmatch, inner)):  # as in MIMIC-CXR's files/p10/p10000032
        return False
    raise AmbiguousLayoutError(
        f"{folder.path} has one class only ({quote_name(only)}), or the folders in it are the classes "
        f"({shorten_names(inner)})",
        f"Give {only.path} itself if they are; else give two class folders or more",
    )


def _has_classes(folder: Folder) -> bool:
    """Return True if the folder, or the only folder in it, has two folders of images or more."""
    while len(folder.filled) == 1:
        [folder] = folder.filled
    return len(folder.filled) > 1


def _drop_copies(start: Folder, layout: Layout) -> None:
    """Remove a folder that contains copies of its siblings: `yes/`, `no/` and `dataset/{yes,no}/`."""
    tops = start.filled
    names = {normalise_name(top.name).casefold() for top in tops}
    for top in tops:
        name = normalise_name(top.name).casefold()
        inner = {normalise_name(folder.name).casefold() for folder in top.filled}
        if len(names) > 2 and not top.images and inner - {name} == names - {name}:
            start.folders.remove(top)
            layout.skipped[f"image in a folder that repeats the classes ({decode_name(top.name)!r})"] += top.count
            return


def _note_common_folders(layout: Layout) -> None:
    """Note folders that all classes have, as in PlantVillage's `color/<class>` and `grayscale/<class>`."""
    tops = layout.filled
    if any(placement.split for placement in layout.placements) or len(tops) < 2:
        return
    common = set.intersection(*({normalise_name(folder.name) for folder in top.filled} for top in tops))
    if len(common) > 1 and not all(re.search(r"\d", name) for name in common):
        layout.notes.append(
            f"all classes ({list_names(tops)}) have the same folders ({shorten_names(sorted(common))}): if those are "
            f"the classes, name the outer folders train, val and test, or give one of them, such as {tops[0].path}"
        )
        return
    inner = [[folder for folder in top.filled if not re.search(r"\d", folder.name)] for top in tops]
    if any(len(folders) > 1 for folders in inner):
        names = sorted({decode_name(folder.name) for folders in inner for folder in folders})
        layout.notes.append(f"folders inside the classes are parts of them, not classes: {shorten_names(names)}")


def _note_other_classes(layout: Layout) -> None:
    """Note what may name other classes: a table in each folder (Messidor), or findings deep in each (MURA)."""
    tops = layout.filled
    if len(tops) < 2:
        return
    tables = [min(filter(is_table, top.others), default="") for top in tops]
    if all(tables):
        layout.notes.append(
            f"all classes have a table beside their images (as {tables[0]}): if these tables name the classes, write "
            "them into one CSV file"
        )
    if doubt := describe_doubt(top.name for top in tops):
        layout.notes.append(
            f"the classes ({list_names(tops)}) are {doubt}: if the model is not to learn these, give a CSV file with "
            "path and label (and patient)"
        )
    if name_findings(top.name for top in tops):
        return
    folders = [[inner.name for inner in top.walk() if inner is not top] for top in tops]
    files = [map(os.path.basename, islice(top.list_images(), SAMPLE)) for top in tops]
    common = set.intersection(*map(name_findings, map(chain, folders, files)))
    if len(common) > 1:
        pattern = "|".join(sorted(sorted(common), key=len, reverse=True))  # `abnormal` before `normal`
        fact = f"names inside every class are those of findings ({', '.join(sorted(common))})"
        advice = f": if those are the classes, --label-from '(?i){pattern}' reads them"
        layout.notes.append(Advice(fact, advice))


def looks_like_data(folder: Path) -> bool:
    """Return True if a folder is certainly a data set or a part of one: two or more images or folders of images.

    Beside them are tables only. It is quick in any folder: the first other entry ends it.
    """
    entries = _list_visible(folder)
    return len(entries) > 1 and all(
        has_image_suffix(entry.name)
        or is_table(entry.name)
        or _is_class_folder(entry)
        or (find_split(entry.name) is not None and all(map(_is_class_folder, _list_visible(entry))))
        for entry in entries
    )


def _is_class_folder(folder: Path) -> bool:
    """Return True if a folder has images, by their suffix, and nothing else."""
    entries = _list_visible(folder)
    return bool(entries) and all(has_image_suffix(entry.name) for entry in entries)


def _list_visible(folder: Path) -> list[Path]:
    try:
        return [path for path in folder.iterdir() if not is_hidden(path.name)]
    except OSError:  # a file, or a folder that cannot be read
        return []
