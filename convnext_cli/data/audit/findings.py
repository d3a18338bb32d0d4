"""From measures to findings: what is wrong, how often, where, what it does to the result, what is done about it."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

from convnext_cli.data.audit.duplicates import Duplicates
from convnext_cli.data.audit.measurements import Measurements
from convnext_cli.data.audit.shortcuts import Shortcut
from convnext_cli.data.audit.support import LEVEL, Support
from convnext_cli.data.groups import Grouping, find_groups_across_splits
from convnext_cli.data.index import Index, find_alike

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

    @property
    def severity(self) -> Literal["warning", "note"]:
        """`warning` if it makes test scores wrong, else `note`."""
        return "warning" if self.falsifies else "note"


def find_all(
    index: Index,
    grouping: Grouping,
    measurements: Measurements,
    found: Duplicates,
    shortcuts: Sequence[Shortcut],
    across: Support | None = None,
) -> Iterator[Finding]:
    """Yield the findings, the gravest first.

    Args:
        index: what was looked at.
        grouping: where its groups come from.
        measurements: its measures.
        found: its duplicates.
        shortcuts: how well single properties tell the classes.
        across: what the pictures say of groups that lie in two splits; None where they were not asked.
    """
    conflicts = [rows for rows in found.clusters if len({index.labels[row] for row in rows}) > 1]
    if conflicts:
        yield Finding(
            kind="conflicting labels",
            falsifies=True,
            title=f"conflicting labels: {_count(conflicts, 'picture')} with two labels each",
            count=len(conflicts),
            examples=_show(index, conflicts, label=True),
            effect="at least one label is wrong, in training or in the test",
            action="kept as they are; correct them, or leave them out with --exclude",
            leave_out=tuple(row for rows in conflicts for row in rows),
        )
    told = set(conflicts)
    exact, near = _split_by_kind(found, lambda rows: len({index.splits[row] for row in rows}) > 1)
    for kind, clusters in (("duplicates", exact), ("near-duplicates", near)):
        if clusters:
            told |= set(clusters)
            yield Finding(
                kind=f"{kind} across splits",
                falsifies=True,
                title=f"leakage: {_count(clusters, 'picture')} in two splits or more, as {_KINDS[kind]}",
                count=len(clusters),
                examples=_show(index, clusters),
                effect="the model is tested on pictures it was trained on; test scores will be too high",
                action="the data's own splits are kept; --exclude leaves the training copies out, --resplit draws new "
                "splits",
                leave_out=tuple(row for rows in clusters for row in _copies_to_drop(index, rows)),
            )
    yield from _find_straddling_groups(index, grouping, across)
    if errors := measurements.errors:
        rows = list(errors)
        yield Finding(
            kind="unreadable",
            falsifies=False,
            title=f"{len(rows):,} file{'s' * (len(rows) != 1)} that cannot be read as images",
            count=len(rows),
            examples=tuple(errors[row] for row in rows[:EXAMPLES]),
            effect="they are neither learned from nor judged",
            action="left out",
            leave_out=tuple(rows),
        )
    exact, near = _split_by_kind(found, lambda rows: len(rows) > 1)
    for kind, clusters in (("duplicates", exact), ("near-duplicates", near)):
        if within := [rows for rows in clusters if rows not in told]:
            yield Finding(
                kind=kind,
                falsifies=False,
                title=f"{kind}: {_count(within, 'picture')} stored more than once, as {_KINDS[kind]}",
                count=len(within),
                examples=_show(index, within),
                effect="they count more than once",
                action="kept, always in one split; --exclude leaves all but one of each out",
                leave_out=tuple(row for rows in within for row in rows[1:]),
            )
    yield from _find_similar(index, found)
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
            title=f"{len(few)} classes with fewer than {MIN_IMAGES} images",
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
            title=f"{found.unchecked:,} pairs of similar images were too many to compare",
            count=found.unchecked,
            examples=(),
            effect="near-duplicates among them are not known",
            action="none",
        )


_THINGS = {"size": "size", "format": "file format", "mode": "pixel mode", "border": "border"}


def _split_by_kind(
    found: Duplicates, is_meant: Callable[[Sequence[int]], bool]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the clusters that are meant by their exact duplicates alone, and those that near-duplicates add."""
    first = {rows[0]: rows for rows in found.exact}
    meant = [rows for rows in found.clusters if is_meant(rows)]
    exact = [rows for rows in meant if any(is_meant(first[row]) for row in rows if row in first)]
    return exact, [rows for rows in meant if rows not in set(exact)]


_KINDS = {"duplicates": "duplicates (the same pixels)", "near-duplicates": "near-duplicates (saved again or scaled)"}


def _find_similar(index: Index, found: Duplicates) -> Iterator[Finding]:
    """Pairs of very similar images that no group holds together already: across splits, else within one."""
    pairs = [(a, b) for a, b in found.similar if not index.groups or index.groups[a] != index.groups[b]]
    across = [pair for pair in pairs if index.splits[pair[0]] != index.splits[pair[1]]]
    for kind, chosen in (("across splits", across), ("", [] if across else pairs)):
        if chosen:
            images = len({row for pair in chosen for row in pair})
            yield Finding(
                kind=f"very similar images {kind}".strip(),
                falsifies=False,
                title=("possible leakage" if kind else "very similar images")
                + f": {len(chosen):,} pair{'s' * (len(chosen) != 1)}{' of very similar images' * bool(kind)} "
                f"({images:,} images){' in two splits' * bool(kind)}, perhaps of one subject",
                count=len(chosen),
                examples=_show(index, chosen),
                effect="neighbouring slices or frames of one subject resemble each other"
                + ("; test scores may be too high" if kind else ""),
                action="none is left out; name the subjects with --group-from, or in a CSV column"
                + ("" if kind else "; new splits hold them together"),
            )


def _find_straddling_groups(index: Index, grouping: Grouping, across: Support | None) -> Iterator[Finding]:
    straddling = find_groups_across_splits(index.groups, index.splits) if index.groups else {}
    if not straddling:
        return
    first: dict[str, list[int]] = {group: [] for group in straddling}
    for row, group in enumerate(index.groups):
        if group in first:
            first[group].append(row)
    pairs = Counter(" and ".join(sorted(splits)) for splits in straddling.values())
    where = ", ".join(f"{count} in both {names}" for names, count in pairs.most_common())
    is_sure = not grouping.is_guess or (
        grouping.certainty == "supported"
        and (across is None or across.verdict == "supported" or _shares_class(index, first.values(), across))
    )
    effect = f"images of one patient resemble each other; test scores {'will' if is_sure else 'may'} be too high"
    if grouping.is_guess:
        doubt = (
            "The groups are a guess from the names" if is_sure else "Not sure: the groups are a guess from the names"
        )
        told = grouping.evidence
        if across and across.verdict == "refuted":
            alike = "images of one group in two splits are no more alike than images of different groups"
            told = f"{alike} ({_describe_test(across)})"
        effect += f". {doubt}; {told}. The source may have numbered each split anew"
    yield Finding(
        kind="groups across splits",
        falsifies=is_sure,
        title=f"{'leakage' if is_sure else 'possible leakage'}: {len(straddling):,} groups (patients?) have images in "
        f"more than one split: {where}",
        count=len(straddling),
        examples=tuple(
            f"{group}: {', '.join(_one_per_split(index, rows))}" for group, rows in list(first.items())[:EXAMPLES]
        ),
        effect=effect,
        action="the data's own splits are kept; --resplit draws new ones that keep each group together"
        + ("; --group-from none if the names mean nothing" if grouping.is_guess else ""),
    )


def _shares_class(index: Index, groups: Iterable[Sequence[int]], across: Support) -> bool:
    """Return True where too few groups straddle to ask the pictures, and one of them has a class in two splits.

    Where each class stands in one split only, the source may have numbered its splits anew.
    """
    if across.verdict != "unclear":
        return False
    return any(
        one != two and index.labels[one] == index.labels[two] and index.splits[one] != index.splits[two]
        for rows in groups
        for one in rows
        for two in rows
    )


def explain_support(support: Support) -> str:
    """Say what the pictures say of a guess."""
    told = {
        "supported": "images of one group are more alike than images of different groups",
        "refuted": "images of one group are no more alike than images of different groups",
        "unclear": "too few images share a group to tell by the pictures, or they are hardly more alike",
    }[support.verdict]
    return f"{told} ({_describe_test(support)})"


def _describe_test(support: Support) -> str:
    sign = "<" if support.verdict == "supported" else ">"
    return f"rank test on {support.groups:,} groups: p {sign} {LEVEL}"


def _count(clusters: Sequence[object], noun: str) -> str:
    return f"{len(clusters):,} {noun}{'s' * (len(clusters) != 1)}"


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
