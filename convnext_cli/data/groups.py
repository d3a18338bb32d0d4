"""Which images were taken from the same patient, plant or part: such images must not lie on both sides of a split."""

import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import PurePosixPath

from convnext_cli.data.scan import Index
from convnext_cli.errors import UsageError

MIN_SHARING = 0.05  # of the images must share their identifier with another one for it to be one
MIN_PER_CLASS = 3  # identifiers a class on average; fewer are a name of the class itself
MAX_SHARE = 0.2  # of the images with names of one shape may have the same identifier

_NUMBER = re.compile(r"\d+")
_DICOM = "dicom:"


@dataclass(frozen=True, kw_only=True, slots=True)
class Grouping:
    """Where the groups come from."""

    source: str
    """`manifest`, `names`, `folders`, `pattern`, `dicom`, or `none`."""
    rule: str
    """In words, for people."""
    groups: int = 0
    examples: tuple[tuple[str, str], ...] = ()
    """Up to three paths with their groups."""


def group_index(index: Index, how: str) -> tuple[Index, Grouping]:
    """Gives an index its groups.

    Args:
        index: scanned; may have groups from a manifest.
        how: `auto` (the manifest's, else inferred), `none`, `dicom:KEYWORD` (such as `dicom:PatientID`), or a regular
            expression that is searched for in the relative path: its first bracket, or all of it, is the group.

    Raises:
        UsageError: the pattern is not valid, or finds nothing.
    """
    if how == "none":
        return replace(index, groups=()), Grouping(source="none", rule="switched off: every image by itself")
    if how == "auto" and index.groups:
        return index, _describe(index.groups, index.paths, "manifest", "the manifest's column")
    if how.startswith(_DICOM):
        found = _read_dicom(index, how.removeprefix(_DICOM))
        return _apply(index, found, "dicom", f"the DICOM attribute {how.removeprefix(_DICOM)}")
    if how != "auto":
        return _apply(index, _search(index.paths, how), "pattern", f"the pattern {how}")
    for source, rule, found in (
        ("folders", "the folder inside the class folder", _group_by_folder(index)),
        ("names", "the identifier at the beginning of the file's name", _group_by_name(index)),
    ):
        if _is_believable(index, found):
            return _apply(index, found, source, rule)
    return replace(index, groups=()), Grouping(source="none", rule="no identifier repeats in the names")


def _apply(index: Index, found: Mapping[int, str], source: str, rule: str) -> tuple[Index, Grouping]:
    """A row without an identifier is a group by itself, named by its path."""
    groups = tuple(found.get(row, path) for row, path in enumerate(index.paths))
    return replace(index, groups=groups), _describe(groups, index.paths, source, rule)


def _describe(groups: Sequence[str], paths: Sequence[str], source: str, rule: str) -> Grouping:
    counts = Counter(groups)
    shown: dict[str, str] = {}
    for group, path in zip(groups, paths, strict=True):
        if counts[group] > 1 and len(shown) < 3:
            shown.setdefault(group, path)
    examples = tuple((path, group) for group, path in shown.items())
    return Grouping(source=source, rule=rule, groups=len(counts), examples=examples)


def _search(paths: Sequence[str], pattern: str) -> dict[int, str]:
    try:
        compiled = re.compile(pattern)
    except re.error as error:
        raise UsageError(f"{pattern!r} is no regular expression ({error})", r"Try --group-from 'person\d+'") from error
    found = {}
    for row, path in enumerate(paths):
        if match := compiled.search(path):
            found[row] = match[1] if compiled.groups and match[1] is not None else match[0]
    if not found:
        raise UsageError(
            f"{pattern!r} is found in no path, such as {paths[0]}", "Correct --group-from, or give auto or none"
        )
    return found


def _read_dicom(index: Index, keyword: str) -> dict[int, str]:
    from convnext_cli.data.decode import DICOM_SUFFIXES
    from convnext_cli.data.dicom import read_tag

    found = {}
    for row, path in enumerate(index.paths):
        if PurePosixPath(path).suffix.lower() in DICOM_SUFFIXES and (value := read_tag(index.root / path, keyword)):
            found[row] = value
    if not found:
        raise UsageError(f"no file has the DICOM attribute {keyword}", "Give another keyword, such as dicom:PatientID")
    return found


def _group_by_folder(index: Index) -> dict[int, str]:
    """`NORMAL/p001/a.png` is of p001: the first folder inside the class folder."""
    found = {}
    for row, path in enumerate(index.paths):
        inside = path.split("/")[2 if index.splits[row] and _has_split_folder(path, index, row) else 1 : -1]
        if inside:
            found[row] = inside[0]
    return found


def _has_split_folder(path: str, index: Index, row: int) -> bool:
    return path.split("/", 1)[0] != index.classes[index.labels[row]]


def _group_by_name(index: Index) -> dict[int, str]:
    """The beginning of a name up to a number that is not the image's own.

    Names of one shape (digits apart) are looked at together. The identifier ends at the first number that varies among
    them: `person1000_bacteria_1` gives person1000, `NORMAL2-IM-1001-0001` gives NORMAL2-IM-1001. The last number
    counts the images (`0001`, `cat.10`), unless words follow it (`17_left`).
    """
    shapes: dict[str, list[int]] = defaultdict(list)
    stems = [path.rpartition("/")[2].rpartition(".")[0] for path in index.paths]
    for row, stem in enumerate(stems):
        shapes[_NUMBER.sub("\0", stem)].append(row)  # no file has that in its name
    found: dict[int, str] = {}
    for shape, rows in shapes.items():
        has_words_last = shape.rpartition("\0")[2].strip(" ._-()")
        for place in range(1, shape.count("\0") + bool(has_words_last)):
            up_to_number = re.compile(rf"(?:\D*\d+){{{place}}}")
            prefixes = [match[0] for row in rows if (match := up_to_number.match(stems[row]))]
            if len(rows) == 1 or Counter(prefixes).most_common(1)[0][1] <= max(2, MAX_SHARE * len(rows)):
                found.update(zip(rows, prefixes, strict=True))
                break
    return found


def _is_believable(index: Index, found: Mapping[int, str]) -> bool:
    """Whether identifiers repeat, and are neither the classes themselves nor numbers that each class counts anew."""
    counts = Counter(found.values())
    sharing = sum(count for count in counts.values() if count > 1)
    if sharing < MIN_SHARING * len(index) or len(counts) < MIN_PER_CLASS * len(index.classes):
        return False
    return not _is_counted_anew(index, found, counts)


def _is_counted_anew(index: Index, found: Mapping[int, str], counts: Mapping[str, int]) -> bool:
    """`1_cat`, `1_dog`, `2_cat` …: what repeats does so in another class only."""
    seen = {(group, index.labels[row]) for row, group in found.items()}
    classes = Counter(group for group, _ in seen)
    repeated = [group for group, count in counts.items() if count > 1]
    return bool(repeated) and sum(counts[group] == classes[group] for group in repeated) > len(repeated) / 2


def find_straddling(groups: Iterable[str], splits: Iterable[str]) -> dict[str, set[str]]:
    """Each group that lies in more than one split, with those splits."""
    where: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        where[group].add(split)
    return {group: found for group, found in where.items() if len(found) > 1}
