"""Checks of folders that would be classes, and by their names mean something else."""

import re
from collections.abc import Iterable, Sequence
from pathlib import PurePath

from convnext_cli.data.folders.masks import MASK_WORDS, MIN_PAIRED, NEGATIONS, has_mask_words, list_stems
from convnext_cli.data.folders.remedies import describe_others, suggest_level, suggest_table
from convnext_cli.data.folders.splits import (
    AmbiguousLayoutError,
    find_simple_split,
    find_split,
    find_split_folders,
    list_split_folders,
)
from convnext_cli.data.folders.words import (
    FINDING_WORDS,
    GENERIC_WORDS,
    IMAGE_WORDS,
    PLAIN_IMAGE_WORDS,
    VARIANT_WORDS,
    describe_units,
    list_names,
    list_words,
    name_findings,
    quote_name,
    relative_name,
)
from convnext_cli.data.tree import Folder
from convnext_cli.encoding import decode_name, normalise_name
from convnext_cli.text import quote, shorten_names

_NAME_SPLITS = "Name them train, val and test, or give a CSV file with path, label and split"
_NO_CLASSES = GENERIC_WORDS - (IMAGE_WORDS - PLAIN_IMAGE_WORDS)  # `scans` and `photos` may be classes
MAX_VIEWS = 4
"""Largest number of folders in every class that can be views of one subject; more are rather the classes."""


def check_top_folders(tree: Folder, start: Folder) -> None:
    """Check that the folders of `start` can be classes.

    Raises:
        AmbiguousLayoutError: they look like images and masks, folds, parts of one set, variants or splits.
    """
    tops = start.filled
    names = [normalise_name(top.name) for top in tops]
    words = list(map(_list_words, tops))
    only = [tops[0], _enter_wrappers(tops[0])] if len(tops) == 1 else []  # such as VOCdevkit/VOC2007/JPEGImages
    if plain := [folder for folder in only if _is_subset(_list_words(folder), GENERIC_WORDS)]:
        raise AmbiguousLayoutError(
            f"{quote_name(plain[0])} is the only folder with images and has no folder for each class"
            f"{describe_others(tree)}",
            suggest_table(tree),
        )
    if len(tops) < 2:
        return
    check_masks(start)
    splits = list(map(find_split, names))
    if "train" in splits and None not in splits:
        raise AmbiguousLayoutError(
            f"{list_names(tops)} look like splits or parts of one, not like classes{describe_others(tree)}",
            _NAME_SPLITS if any(top.filled for top in tops) else suggest_table(tree),
        )
    shapes = {re.sub(r"\d+", "#", name.casefold()) for name in names}
    if len(shapes) == 1 and all(top_words & PLAIN_IMAGE_WORDS for top_words in words):
        raise AmbiguousLayoutError(
            f"{list_names(tops)} look like parts of one set of images, not like classes{describe_others(tree)}",
            suggest_table(tree),
        )
    is_numbered = len(shapes) == 1 and all(re.search(r"\d{3}", name) for name in names)
    _check_letters(tops)
    _check_inner_folders(tree, tops, words, is_numbered=is_numbered)
    generic = [top for top, top_words in zip(tops, words, strict=True) if _is_subset(top_words, _NO_CLASSES)]
    unlike = sorted({top.name for top in generic} | {top.name for top in tops if find_simple_split(top.name)})
    if generic and len(unlike) > 1:
        raise AmbiguousLayoutError(
            f"{shorten_names(list(map(decode_name, unlike)))} do not look like classes{describe_others(tree)}",
            "Leave them out with --exclude, give the folder that has one folder for each class, or a CSV file with "
            "path and label",
        )


def check_masks(start: Folder) -> None:
    """Check that no folder in `start` has folders that look like images and their masks.

    Raises:
        AmbiguousLayoutError: one has.
    """
    for folder in start.walk():
        if len(folder.folders) > 1 and MASK_WORDS.intersection(list_words(" ".join(f.name for f in folder.folders))):
            _check_masks(folder.filled)
            _check_paired_masks(folder.filled)


def _check_masks(tops: Sequence[Folder]) -> None:
    words = list(map(_list_words, tops))
    images = [top for top, top_words in zip(tops, words, strict=True) if _is_subset(top_words, IMAGE_WORDS | {"jpeg"})]
    masks = [top for top, top_words in zip(tops, words, strict=True) if has_mask_words(top_words)]
    is_plain = any(top_words & PLAIN_IMAGE_WORDS for top_words in words if top_words <= IMAGE_WORDS)
    if images and masks and (is_plain or len(images) + len(masks) == len(tops)):
        raise AmbiguousLayoutError(
            f"{quote_name(images[0])} and {quote_name(masks[0])} look like images and their masks, not like two "
            "classes",
            f"Leave the masks out with --exclude {masks[0].name}, give a folder with one folder for each class, or a "
            "CSV file with path and label",
        )


def _check_paired_masks(tops: Sequence[Folder]) -> None:
    """Check that not one of two folders has a mask for most images of the other, as `CXR_png` and `ManualMask`."""
    masks = [top for top in tops if _list_words(top) & {"mask", "masks"}]  # `gt` or `label` may be a class
    if len(tops) != 2 or len(masks) != 1 or any(top_words & NEGATIONS for top_words in map(_list_words, tops)):
        return
    [images] = [top for top in tops if top not in masks]
    names = {PurePath(stem).name for stem in list_stems(images)}
    stems = [PurePath(stem).name for stem in list_stems(masks[0])]
    paired = sum(stem in names and not stem.isdigit() for stem in stems)
    if paired >= MIN_PAIRED * len(stems):
        raise AmbiguousLayoutError(
            f"{quote_name(masks[0])} has files with the names of those in {quote_name(images)}, so they look like "
            "images and their masks, not like two classes",
            f"Leave the masks out with --exclude {masks[0].name}, or give a CSV file with path and label",
        )


def _check_letters(tops: Sequence[Folder]) -> None:
    """Check that the folders are not letters under which the classes are sorted, as in SUN397's `a/abbey`."""
    inner = [folder.name for top in tops for folder in top.filled]
    are_letters = all(
        len(top.name) == 1 and not top.images and all(folder.name.startswith(top.name) for folder in top.filled)
        for top in tops
    )
    are_words = not any(find_split(name) or re.search(r"\d", name) for name in inner)
    if are_letters and are_words and len(inner) > len(tops):
        raise AmbiguousLayoutError(
            f"{list_names(tops)} have folders that begin with the same letter ({shorten_names(sorted(inner))}), so "
            "those seem to be the classes",
            "Give a folder that has one folder for each class, or a CSV file with path and label",
        )


def _check_inner_folders(tree: Folder, tops: Sequence[Folder], words: Sequence[set[str]], *, is_numbered: bool) -> None:
    """Check that the folders inside `tops` are not rather the classes."""
    names = [normalise_name(top.name) for top in tops]
    inside = [{normalise_name(folder.name) for folder in _enter_wrappers(top).filled} for top in tops]
    common = set.intersection(*inside)
    are_variants = all(_is_subset(top_words, GENERIC_WORDS | VARIANT_WORDS) for top_words in words)
    are_same = all(inner == common for inner in inside)
    are_findings = name_findings(common) and not name_findings(names)
    are_many = len(common) > max(MAX_VIEWS, len(tops)) and not all(re.search(r"\d", name) for name in common)
    if are_same and len(common) > 1 and (is_numbered or are_variants or are_findings or are_many):
        level = "" if are_variants else f"{suggest_level(tree, _enter_wrappers(tops[0]).filled[0])} for those of all, "
        raise AmbiguousLayoutError(
            f"{list_names(tops)} each have the same folders ({shorten_names(sorted(common))}), so those seem to be the "
            "classes",
            f"Give one of them, such as {tops[0].path}, {level}or a CSV file with path and label (and patient, site)",
        )
    _check_deep_findings(tops)


def _check_deep_findings(tops: Sequence[Folder]) -> None:
    """Check that folders for findings do not lie deeper in all of `tops`, as in `line1/2024-05-03/ok`."""
    inner = [{folder.name for folder in top.walk() if _is_subset(_list_words(folder), FINDING_WORDS)} for top in tops]
    findings = sorted({normalise_name(name) for name in set().union(*inner)}, key=len, reverse=True)
    pattern = "|".join(map(re.escape, findings))
    if all(inner) and max(map(len, inner)) > 1 and not name_findings(top.name for top in tops):
        raise AmbiguousLayoutError(
            f"{list_names(tops)} each have folders for findings ({shorten_names(sorted(findings))}), so those seem to "
            "be the classes",
            f"--label-from {quote(f'/({pattern})/')} reads them; or give a CSV file with path and label (and patient, "
            "site)",
        )


def check_units(classes: Sequence[tuple[Folder, str]], tree: Folder) -> None:
    """Check that the classes are not patients, batches, dates or other units of a collection.

    Raises:
        AmbiguousLayoutError: all of them look like these.
    """
    names = sorted({normalise_name(name) for _, name in classes})
    if units := describe_units(names):
        raise AmbiguousLayoutError(
            f"the folders ({shorten_names(names)}) look like {units}, not like classes{describe_others(tree)}",
            f"{suggest_table(tree)}; {suggest_level(tree, classes[0][0])} reads them as the classes",
        )


def check_inner_splits(classes: Iterable[tuple[Folder, str]], start: Folder) -> None:
    """Check that no folder of a class has folders of splits inside; the classes begin at `start`.

    Raises:
        AmbiguousLayoutError: a class has.
    """
    for top, name in classes:
        for folder in top.walk():
            if len(splits := find_split_folders(folder.folders)) > 1:
                raise AmbiguousLayoutError(
                    f"{relative_name(start, folder)} has folders of splits ({list_split_folders(splits)}) inside the "
                    f"class {normalise_name(name)!r}",
                    "Give a folder of <class>/ or {train,val,test}/<class>/ folders, or a CSV file with path, label "
                    "and split",
                )


def _list_words(folder: Folder) -> set[str]:
    """Return the words of a folder's name without its numbers."""
    return {word for word in list_words(folder.name) if not word.isdigit()}


def _is_subset(words: set[str], others: frozenset[str]) -> bool:
    """Return True if there are words and all of them are among `others`."""
    return bool(words) and words <= others


def _enter_wrappers(folder: Folder) -> Folder:
    """Return the folder inside the folders that have one folder only."""
    while not folder.images and len(folder.filled) == 1:
        [folder] = folder.filled
    return folder
