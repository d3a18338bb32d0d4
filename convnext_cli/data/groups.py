"""Groups: images of one patient, plant, part or photograph, which must stay in one split."""

import math
import re
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from functools import cache
from itertools import combinations
from typing import Literal

from convnext_cli.data.attributes import list_dicom_rows, read_dicom_attribute
from convnext_cli.data.folders.checks import MAX_VIEWS
from convnext_cli.data.folders.splits import find_split
from convnext_cli.data.index import NONE, Index
from convnext_cli.data.names import group_by_name, list_views
from convnext_cli.data.patterns import search_paths
from convnext_cli.encoding import normalise_name
from convnext_cli.errors import ConvnextError, UsageError
from convnext_cli.options import AUTO
from convnext_cli.progress import Steps, finish
from convnext_cli.text import format_part

MIN_PER_CLASS = 3  # identifiers per class on average, so that every split can get some
MIN_GROUPS = 10  # identifiers that suffice for any number of classes
MAX_PATIENT = 0.5  # largest fraction of the DICOM files that may have the same PatientID
MIN_AGREEMENT = 0.95  # fraction of a data set's groups that a rule must give, to be used for other files
MIN_EXPECTED = 5  # names in two classes, if numbers restarted: that none is by chance has a probability below 1%
_DICOM = "dicom:"
_NUMBER = re.compile(r"\d+")
_PATIENT = re.compile(r"(?:p|pat|pt|patient|sub|subj|subject|participant|case|mrn)[ _.-]*\d+", re.IGNORECASE)

GroupSource = Literal["manifest", "names", "folders", "pattern", "dicom", "none"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Grouping:
    """The source of the groups."""

    source: GroupSource
    rule: str
    """Description for people."""
    groups: int = 0
    examples: tuple[tuple[str, str], ...] = ()
    """Up to three paths with their groups."""
    certainty: Literal["given", "supported", "unsure"] = "given"
    """Of a guess: `supported` by the images, or `unsure`."""
    evidence: str = ""
    """For a guess: the result of the test on the images."""

    @property
    def is_guess(self) -> bool:
        """True if the groups are a guess from names or folders."""
        return self.source in ("names", "folders")


def group_index(index: Index, group_from: str) -> tuple[Index, Grouping]:
    """Return an index with groups, and the source of these, as `group_steps` does."""
    return finish(group_steps(index, group_from))


def group_steps(index: Index, group_from: str) -> Steps[tuple[Index, Grouping]]:
    """Return an index with groups, and the source of these. The headers of DICOM files are read for it.

    Args:
        index: scanned; may have groups from a manifest.
        group_from: `auto` (the manifest's groups, else a guess), `none`, `dicom:KEYWORD` (such as
            `dicom:PatientID`), or a regular expression for the relative path. Its first group in brackets, or else the
            whole match, is the identifier.

    Raises:
        UsageError: the pattern is invalid, or matches no path.
    """
    if group_from == NONE:
        return replace(index, groups=()), Grouping(source="none", rule="none: switched off, each image is a group")
    if group_from == AUTO and index.groups:
        return index, describe_groups(index.groups, index.paths, "manifest", "the table's column of groups")
    if group_from.startswith(_DICOM):
        keyword = group_from.removeprefix(_DICOM)
        values = yield from _read_dicom(index, keyword)
        return _apply(index, values, "dicom", f"the DICOM attribute {keyword}")
    if group_from != AUTO:
        return _apply(
            index, search_paths(index.paths, group_from, "--group-from"), "pattern", f"the pattern {group_from}"
        )
    if patients := (yield from _read_patients(index)):
        return _apply(index, patients, "dicom", "the DICOM attribute PatientID")
    if index.row_folders:
        return _apply(
            index, _group_by_row(index), "manifest", "the folder in the table's row, or the patient in its path"
        )
    for guess in _group_by_folder(index):
        if groups := _keep_plausible(index, guess, are_folders=True)[0]:
            place = "inside the class folder"
            if index.values or are_single_folders(index, guess):
                place = "in the path" if index.values else "that holds the image"
            return _apply(index, groups, "folders", f"the folder {place}")
    groups, note = _keep_plausible(index, group_by_name(index))
    if groups:
        return _apply(index, groups, "names", f"the repeated part of the file names{note}")
    return replace(index, groups=()), Grouping(source="none", rule=f"none: {note}")


def _apply(index: Index, identifiers: Mapping[int, str], source: GroupSource, rule: str) -> tuple[Index, Grouping]:
    """Return an index with these groups. A row without an identifier is a group of its own, named by its path."""
    groups = tuple(identifiers.get(row, path) for row, path in enumerate(index.paths))
    missing = len(index) - len(identifiers)
    if missing and source in ("dicom", "pattern"):
        rule += f", which {format_part(missing, len(index), 'image', 'lacks', 'lack')}: each is a group of its own"
    return replace(index, groups=groups), describe_groups(groups, index.paths, source, rule)


def describe_groups(groups: Sequence[str], paths: Sequence[str], source: GroupSource, rule: str) -> Grouping:
    """Return the source and the rule of the groups of all rows, with their number and examples."""
    counts = Counter(groups)
    shown: dict[str, str] = {}
    for group, path in zip(groups, paths, strict=True):
        if counts[group] > 1 and len(shown) < 3:
            shown.setdefault(group, path)
    examples = tuple((path, group) for group, path in shown.items())
    grouping = Grouping(source=source, rule=rule, groups=len(counts), examples=examples)
    return replace(grouping, certainty="unsure", evidence="not tested on the images") if grouping.is_guess else grouping


def _read_dicom(index: Index, keyword: str) -> Steps[dict[int, str]]:
    """Return a DICOM attribute by row.

    Raises:
        UsageError: no file has it.
        ImageError: the extra is not installed.
    """
    values = yield from read_dicom_attribute(index, keyword)
    if not values:
        raise UsageError(f"no file has the DICOM attribute {keyword}", "Give another keyword, such as dicom:PatientID")
    return values


def _read_patients(index: Index) -> Steps[dict[int, str]]:
    """Return the PatientID of each DICOM file; empty if no two files share one, or if DICOM cannot be read."""
    if not list_dicom_rows(index):
        return {}
    try:
        patients = yield from _read_dicom(index, "PatientID")
    except ConvnextError:
        return {}
    counts = Counter(patients.values())
    # An ID on most files is a placeholder of anonymisation, such as "ANONYMOUS"; it groups nothing.
    patients = {row: patient for row, patient in patients.items() if counts[patient] <= MAX_PATIENT * len(patients)}
    return patients if len(set(patients.values())) < len(patients) else {}


def _group_by_row(index: Index) -> dict[int, str]:
    """Return the first folder named as a patient's in the path of each row's folder; else that path."""
    patients = [filter(_PATIENT.fullmatch, re.split(r"[/\\]", folder)) for folder in index.row_folders]
    return {row: next(parts, index.row_folders[row]) for row, parts in enumerate(patients)}


def _group_by_folder(index: Index) -> Iterator[dict[int, str]]:
    """Yield the groups by each level of folders inside the class folder, the outermost first: `NORMAL/p001/a.png`."""
    inside = [_list_inside(path, index.describe_target(row), index.splits[row]) for row, path in enumerate(index.paths)]
    for depth in range(max(map(len, inside), default=0)):
        yield {row: folders[depth] for row, folders in enumerate(inside) if len(folders) > depth}


def are_single_folders(index: Index, guess: Mapping[int, str]) -> bool:
    """Return True if each group is one folder and some hold several classes: no number restarts in the classes then."""
    numbers = index.class_numbers
    places = {(group, f"/{index.paths[row]}".partition(f"/{group}/")[0]) for row, group in guess.items()}
    cells = {(group, numbers[row]) for row, group in guess.items()}
    return len(places) == len(set(guess.values())) < len(cells)


def share_numbers(index: Index, guess: Mapping[int, str]) -> bool:
    """Return True if the classes share one numbering: no file name is in two classes, though many would be by chance.

    If numbers restarted in each class, an eye `10_left` of one class would often meet a `10_left` of another. What is
    left of a name without its identifier must be usual in both classes: `_cat` of `1_cat` never meets `_dog`.
    """
    numbers = index.class_numbers
    rests: dict[str, dict[int, set[str]]] = defaultdict(lambda: defaultdict(set))
    counts: dict[int, Counter[str]] = defaultdict(Counter)
    for row, group in guess.items():
        rest = index.paths[row].rpartition("/")[2].rpartition(".")[0].replace(group, "", 1)
        rests[group][numbers[row]].add(rest)
        counts[numbers[row]][rest] += 1

    @cache
    def expect(one: int, two: int) -> float:
        """Return the probability that two files of one number, in two classes, have the same name."""
        products = sum(count * counts[two][rest] for rest, count in counts[one].items())
        return products / (counts[one].total() * counts[two].total())

    expected = 0.0
    for classes in rests.values():
        for one, two in combinations(sorted(classes), 2):
            if classes[one] & classes[two]:
                return False
            expected += len(classes[one]) * len(classes[two]) * expect(one, two)
    return expected >= MIN_EXPECTED


def _list_inside(path: str, name: str, split: str) -> list[str]:
    """Return the folders inside the class folder; those after the first folder if no folder has the class's name."""
    parts = path.split("/")[:-1]
    place = next((at for at, part in enumerate(parts) if part == name or normalise_name(part) == name), None)
    inside = parts[1 if place is None else place + 1 :]
    if split and inside and find_split(inside[0]) == split:
        return inside[1:]  # `<class>/train`
    return inside


def _keep_plausible(index: Index, guess: Mapping[int, str], *, are_folders: bool = False) -> tuple[dict[int, str], str]:
    """Return the part of a guess that can be groups, and a note: what is left out, or why nothing is kept.

    If most repeated identifiers occur once in each of several classes (`1_cat`, `1_dog`, `2_cat` ...), their numbers
    restart in each class, and an identifier then means something else in each. Only images of one class are kept
    together. Nothing is kept if there are too few identifiers.
    """
    counts = Counter(guess.values())
    numbers = index.class_numbers
    classes = Counter(group for group, _ in {(group, numbers[row]) for row, group in guess.items()})
    repeated = [group for group, count in counts.items() if count > 1]
    if not repeated:
        return {}, "no identifier repeats in the file names" + ("" if index.values else " of one class")
    if not _are_enough(index, guess, are_folders=are_folders):
        return {}, f"the file names have {len(counts):,} identifiers only, such as {repeated[0]}: too few to be groups"
    restarted = [group for group in repeated if counts[group] == classes[group]]
    if len(restarted) <= len(repeated) / 2 or are_single_folders(index, guess) or share_numbers(index, guess):
        return dict(guess), ""
    kept = cut_groups(guess, [str(number) for number in numbers])
    ambiguous = f"numbers such as {restarted[0]} restart in each class"
    if not kept:
        return {}, f"{ambiguous}, and none repeats in one class"
    return kept, f"; {ambiguous}, so only images of one class are together"


def _are_enough(index: Index, guess: Mapping[int, str], *, are_folders: bool) -> bool:
    """Return True if there are identifiers enough for every split to get some; other images are groups of their own.

    Numbered folders, such as clips, count in each class, if there are more than views of one subject. Where the target
    is no class, few folders of words are rather the classes of another task.
    """
    groups = set(guess.values())
    have_numbers = all(re.search(r"\d", group) for group in groups)
    identifiers, least = len(groups), min(MIN_PER_CLASS * len(index.classes), MIN_GROUPS)
    if are_folders and have_numbers and len(groups) > MAX_VIEWS:
        identifiers = len({(group, index.class_numbers[row]) for row, group in guess.items()})
    if are_folders and index.values and not have_numbers:
        least = MIN_GROUPS
    return identifiers + len(index) - len(guess) >= least


def cut_groups(groups: Mapping[int, str], cells: Sequence[str]) -> dict[int, str]:
    """Return groups cut into those of one cell each, by row, without those of one image.

    Args:
        groups: the group of each row that has one.
        cells: of all rows, such as their class.
    """
    counts = Counter((group, cells[row]) for row, group in groups.items())
    cells_of = Counter(group for (group, _), count in counts.items() if count > 1)
    return {
        row: group if cells_of[group] == 1 else f"{group} ({cells[row]})"
        for row, group in groups.items()
        if counts[group, cells[row]] > 1
    }


def group_like(known: Index, paths: Sequence[str]) -> list[str] | None:
    """Return the groups of other files by the rule that the groups of a data set follow; None if names give no rule.

    A rule is the folder a fixed number of levels above the file, or the identifier in the file's name. It must give the
    data set's own groups (`MIN_AGREEMENT`). A file that it gives no group is a group of its own, named by its path.

    Args:
        known: with groups.
        paths: of the other files, with slashes.
    """
    grouped = {row: group for row, group in enumerate(known.groups) if group != known.paths[row]}
    if not grouped:
        return None
    levels: Counter[int] = Counter()
    for row, group in grouped.items():
        folders = known.paths[row].split("/")[-2::-1]
        levels.update([folders.index(group)] if group in folders else [])
    for level, count in levels.most_common(1):
        if count >= MIN_AGREEMENT * len(grouped):
            return _group_like_folders(set(grouped.values()), paths, level)
    number, depth = len(paths), max(len(list_views(path)) for path in known.paths)
    places = (list_views(path) for path in paths)  # of which those around the data, as /data/2024-05-03, are cut
    inside = (views[max(0, len(views) - depth) :] for views in places)
    names = ("/".join([*views, path.rpartition("/")[2]]) for views, path in zip(inside, paths, strict=True))
    joined = replace(
        known,
        paths=(*known.paths, *names),
        labels=(*known.labels, *(0,) * number),
        splits=(*known.splits, *("new",) * number),
        values=(*known.values, *((math.nan,) * len(known.values[0]),) * number) if known.values else (),
    )
    identifiers = group_by_name(joined)
    agreeing = sum(identifiers.get(row) == group for row, group in grouped.items())
    if agreeing < MIN_AGREEMENT * len(grouped):
        return None
    return [identifiers.get(len(known) + place, path) for place, path in enumerate(paths)]


def _group_like_folders(known: Set[str], paths: Sequence[str], level: int) -> list[str] | None:
    """Return the folders of files at a level, 0 for the innermost, or their paths; None if no folder can be a group.

    If the known groups are named alike, as `patient7`, so must a folder be: images outside such folders share no group.
    """
    forms = {_NUMBER.sub("#", group) for group in known}
    have_form = len(forms) < MIN_GROUPS and all("#" in form for form in forms)
    folders = [(*path.split("/")[-2::-1], *("",) * (level + 1))[level] for path in paths]
    groups = ["" if have_form and _NUMBER.sub("#", folder) not in forms else folder for folder in folders]
    return [group or path for group, path in zip(groups, paths, strict=True)] if any(groups) else None


def find_groups_across_splits(groups: Iterable[str], splits: Iterable[str]) -> dict[str, set[str]]:
    """Return each group that lies in more than one split, with these splits."""
    splits_of: dict[str, set[str]] = defaultdict(set)
    for group, split in zip(groups, splits, strict=True):
        splits_of[group].add(split)
    return {group: names for group, names in splits_of.items() if len(names) > 1}
