"""From measures to findings: what is wrong, how often, where, what it does to the result, what is done about it."""

from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass

from convnext_cli.data.audit.duplicates import Duplicates
from convnext_cli.data.audit.inspection import Inspection
from convnext_cli.data.audit.shortcuts import Shortcut
from convnext_cli.data.groups import Grouping, find_straddling
from convnext_cli.data.scan import Index, find_alike

MIN_IMAGES = 20  # a class; fewer cannot be both learned and judged
EXAMPLES = 5


@dataclass(frozen=True, kw_only=True, slots=True)
class Finding:
    """One kind of thing that is wrong."""

    kind: str
    """A word for programs, such as `unreadable`."""
    falsifies: bool
    """Whether a score measured in spite of it is false, not only worse."""
    title: str
    count: int
    """How many things; 0 where the finding is about the whole."""
    examples: tuple[str, ...]
    effect: str
    """What it does to the result."""
    action: str
    """What `finetune` does about it, and what the user can do."""
    leave_out: tuple[int, ...] = ()
    """Rows without which it is gone."""


def find_all(
    index: Index, grouping: Grouping, inspection: Inspection, found: Duplicates, shortcuts: Sequence[Shortcut]
) -> Iterator[Finding]:
    """The gravest first."""
    conflicts = [rows for rows in found.clusters if len({index.labels[row] for row in rows}) > 1]
    if conflicts:
        yield Finding(
            kind="conflicting labels",
            falsifies=True,
            title="the same picture under two labels",
            count=len(conflicts),
            examples=_show(index, conflicts, label=True),
            effect="no model can be right on both: training and score are wrong by as much",
            action="kept as they are; correct them, or leave them out with --exclude",
            leave_out=tuple(row for rows in conflicts for row in rows),
        )
    across = [rows for rows in found.clusters if len({index.splits[row] for row in rows}) > 1]
    if across:
        yield Finding(
            kind="duplicates across splits",
            falsifies=True,
            title="the same picture in two splits",
            count=len(across),
            examples=_show(index, across),
            effect="the model is judged on what it was shown: the score is too good",
            action="the data's own splits are kept; --exclude leaves the training copies out, --resplit draws new ones",
            leave_out=tuple(row for rows in across for row in _copies_to_drop(index, rows)),
        )
    yield from _find_straddling_groups(index, grouping)
    if errors := inspection.errors:
        rows = list(errors)
        yield Finding(
            kind="unreadable",
            falsifies=False,
            title="files that cannot be read as images",
            count=len(rows),
            examples=tuple(errors[row] for row in rows[:EXAMPLES]),
            effect="they are neither learned from nor judged",
            action="left out",
            leave_out=tuple(rows),
        )
    told = {*across, *conflicts}
    within = [rows for rows in found.clusters if rows not in told]
    if within:
        pairs = len(found.near)
        yield Finding(
            kind="duplicates",
            falsifies=False,
            title=f"pictures that are there more than once ({pairs} pairs saved anew or scaled)",
            count=len(within),
            examples=_show(index, within),
            effect="they count more than once" + ("" if any(index.splits) else "; torn apart they would leak"),
            action="kept, always in one split; --exclude leaves all but one of each out",
            leave_out=tuple(row for rows in within for row in rows[1:]),
        )
    if alike := find_alike(index.classes):
        yield Finding(
            kind="class names alike",
            falsifies=False,
            title="sets of classes whose names differ in case or hyphens only",
            count=len(alike),
            examples=tuple(" and ".join(names) for names in alike[:EXAMPLES]),
            effect="if such a set is one class, the model learns to tell apart what is the same",
            action="kept as different classes; give them one name if they are one",
        )
    few = [(name, n) for name, n in zip(index.classes, index.count_classes(), strict=True) if n < MIN_IMAGES]
    if few:
        yield Finding(
            kind="small classes",
            falsifies=False,
            title=f"classes with fewer than {MIN_IMAGES} images",
            count=len(few),
            examples=tuple(f"{name}: {n}" for name, n in few[:EXAMPLES]),
            effect="their figures say little, and a split may leave none to judge by",
            action="kept; collect more, or join them with another class",
        )
    for shortcut in shortcuts:
        if shortcut.is_telling:
            yield Finding(
                kind=f"shortcut: {shortcut.name}",
                falsifies=False,
                title=f"the image's {_THINGS[shortcut.name]} alone tells the classes apart",
                count=0,
                examples=(
                    f"balanced accuracy {shortcut.score:.0%} ± {shortcut.spread:.0%}; chance {shortcut.chance:.0%}",
                ),
                effect="the model may learn that instead of what is shown, and fail on images from elsewhere",
                action="kept; prepare all classes in the same way, and test on images from another source",
            )
    if found.unchecked:
        yield Finding(
            kind="not compared",
            falsifies=False,
            title="pairs of similar pictures that were too many to compare",
            count=found.unchecked,
            examples=(),
            effect="near duplicates among them are not known",
            action="none",
        )


_THINGS = {"size": "size", "format": "file format", "mode": "pixel mode", "border": "border"}


def _find_straddling_groups(index: Index, grouping: Grouping) -> Iterator[Finding]:
    straddling = find_straddling(index.groups, index.splits) if index.groups else {}
    if not straddling:
        return
    guessed = grouping.source in ("names", "folders")
    first: dict[str, list[int]] = {group: [] for group in straddling}
    for row, group in enumerate(index.groups):
        if group in first:
            first[group].append(row)
    pairs = Counter(" and ".join(sorted(splits)) for splits in straddling.values())
    where = ", ".join(f"{count} in both {names}" for names, count in pairs.most_common())
    yield Finding(
        kind="groups across splits",
        falsifies=True,
        title=f"identifiers (patients?) that lie in more than one split: {where}",
        count=len(straddling),
        examples=tuple(
            f"{group}: {', '.join(_one_per_split(index, rows))}" for group, rows in list(first.items())[:EXAMPLES]
        ),
        effect="images of one patient resemble each other: the score is too good"
        + (
            ". Unless the source numbered each split anew, so that the same identifier means different patients"
            if guessed
            else ""
        ),
        action="the data's own splits are kept; --resplit draws new ones that keep each identifier together"
        + ("; --group-from none if the identifiers mean nothing" if guessed else ""),
    )


def _one_per_split(index: Index, rows: Iterable[int]) -> list[str]:
    return list({index.splits[row]: index.paths[row] for row in rows}.values())


def _copies_to_drop(index: Index, rows: Sequence[int]) -> list[int]:
    """All but one; the one that stays is a test image before a validation image before a training image."""
    order = ("test", "val", "train", "")
    return sorted(rows, key=lambda row: (order.index(index.splits[row]), row))[1:]


def _show(index: Index, clusters: Sequence[Sequence[int]], *, label: bool = False) -> tuple[str, ...]:
    def name(row: int) -> str:
        return index.paths[row] + (f" ({index.classes[index.labels[row]]})" if label else "")

    return tuple(" = ".join(name(row) for row in rows[:4]) for rows in clusters[:EXAMPLES])
