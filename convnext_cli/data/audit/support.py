"""The test of guessed groups: images of one group must resemble each other, as names alone can only suggest groups."""

import math
from collections import defaultdict
from dataclasses import dataclass, replace
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.audit.measurements import Measurements
from convnext_cli.data.groups import Grouping, are_single_folders, cut_groups, describe_groups, share_numbers
from convnext_cli.data.index import Index, group_by, pick_evenly
from convnext_cli.text import format_count

LEVEL = 0.01  # significance level of the test, over both similarities
MIN_RANK = 0.55  # a mean rank that is certainly below this means no similarity
GROUPS, IMAGES, OTHERS = 500, 6, 200  # groups, images per group, and images of other groups to compare
MIN_GROUPS_REFUTED = 10  # groups needed to conclude that there is no similarity

Verdict = Literal["supported", "refuted", "unclear"]


@dataclass(frozen=True, kw_only=True, slots=True)
class Support:
    """The result of a rank test on groups."""

    verdict: Verdict
    groups: int
    """Number of groups compared."""
    rank: float
    """Mean rank of an image of the same group among images of other groups, by similarity: 0.5 is chance, 1 is always
    the most similar."""


def weigh_groups(
    index: Index, grouping: Grouping, measurements: Measurements
) -> tuple[Index, Grouping, Support | None]:
    """Test guessed groups by their images, within splits and across them.

    If their numbers restart in the classes and splits, and their images are not certainly alike, groups are dropped.
    Where too few can be tested, images of one class and split are kept together.
    """
    if not grouping.is_guess:
        return index, grouping, None
    within = measure_support(index, measurements)
    have_one_numbering = {"folders": are_single_folders, "names": share_numbers}.get(grouping.source)
    is_restarted = _restarts_numbering(index) and not (
        have_one_numbering and have_one_numbering(index, dict(enumerate(index.groups)))
    )
    if within.verdict != "supported" and is_restarted:
        return *_cut_restarted(index, grouping, within), None
    across = measure_support(index, measurements, within=within) if len(set(index.splits)) > 1 else None
    if across and is_restarted and across.verdict == "unclear":
        across = replace(across, verdict="refuted")
    support = next((test for test in (within, across) if test and test.verdict == "supported"), within)
    tested = replace(
        grouping,
        certainty="supported" if support.verdict == "supported" else "unsure",
        evidence=_explain_support(support),
    )
    return index, tested, across


def _cut_restarted(index: Index, grouping: Grouping, within: Support) -> tuple[Index, Grouping]:
    """Return an index whose groups, with numbers that restart, are cut into those of one class and split."""
    example = grouping.examples[0][1] if grouping.examples else ""
    ambiguous = f"numbers such as {example} restart in each class"
    cells = [" ".join(filter(None, (s, index.name_class(row)))) for row, s in enumerate(index.splits)]
    is_tested = within.groups >= MIN_GROUPS_REFUTED
    groups = {} if is_tested else cut_groups(dict(enumerate(index.groups)), cells)
    if not groups:
        rule = f"none: {ambiguous}, and {_explain_support(within)}"
        return replace(index, groups=()), Grouping(source="none", rule=rule)
    names = tuple(groups.get(row, path) for row, path in enumerate(index.paths))
    rule = f"{grouping.rule}; {ambiguous}, so only images of one class and split are together"
    described = describe_groups(names, index.paths, grouping.source, rule)
    return replace(index, groups=names), replace(described, evidence=_explain_support(within))


def measure_support(index: Index, measurements: Measurements, *, within: Support | None = None) -> Support:
    """Test whether images of one group are more alike than images of different groups.

    An image is compared with a second image of its group, and with images of other groups of the second image's class
    and split. Two similarities are used: the correlation of the thumbnails, and brightness with contrast. If groups
    mean nothing, the rank of the second image is uniform. Each group's mean rank is one value. The mean of these values
    is tested against 0.5 by Student's t, one-sided, at `LEVEL`, halved for the two similarities (Bonferroni).

    Args:
        index: with groups.
        measurements: its measures.
        within: None to compare images of one class and split. Given the result of that test, images of two splits are
            compared, to learn whether an identifier means the same in both. This is refuted if the similarity is
            certainly less than half of that within splits.
    """
    cells = np.unique(
        [f"{s}/{k}" for s, k in zip(index.splits, index.class_numbers, strict=True)], return_inverse=True
    )[1]
    splits = np.array(index.splits)
    readable: list[int] = np.flatnonzero(measurements.measures["readable"]).tolist()
    members = group_by(readable, index.groups.__getitem__)
    _, numbers = np.unique(index.groups, return_inverse=True)
    rows_of = {cell: np.flatnonzero((cells == cell) & (measurements.measures["readable"] == 1)) for cell in set(cells)}
    several = [rows for rows in members.values() if len(rows) > 1]
    digests = measurements.measures["digest"]
    ranks: list[NDArray[np.float64]] = []
    for rows in pick_evenly(several, GROUPS if within is None else 4 * GROUPS):
        of_group = []
        for one in pick_evenly(rows, IMAGES):
            fits = (splits[rows] != splits[one]) if within else (cells[rows] == cells[one])
            mates = [row for row in np.array(rows)[fits] if (digests[row] != digests[one]).any()]
            for two in pick_evenly(mates, IMAGES):
                others = rows_of[cells[two]]
                others = np.array(pick_evenly(others[numbers[others] != numbers[one]], OTHERS))
                if len(others) > 1:
                    of_group.append(_rank(measurements, one, int(two), others))
        if of_group:
            ranks.append(np.mean(of_group, axis=0))
    if len(ranks) < 2:
        return Support(verdict="unclear", groups=len(ranks), rank=0.5)
    return _judge(np.array(ranks), within)


def _judge(ranks: NDArray[np.float64], within: Support | None) -> Support:
    """Test the mean ranks of groups, (G, 2); `within` as in `measure_support`."""
    from scipy.stats import t as student

    groups = len(ranks)
    mean, error = ranks.mean(axis=0), np.maximum(ranks.std(axis=0, ddof=1), 1e-3) / math.sqrt(groups)
    point = float(student.ppf(1 - LEVEL / 2, groups - 1))
    best = int(np.argmax((mean - 0.5) / error))
    limit = MIN_RANK if within is None else 0.5 + (within.rank - 0.5) / 2
    verdict: Verdict = "unclear"
    if mean[best] - point * error[best] > 0.5:
        verdict = "supported"
    elif groups >= MIN_GROUPS_REFUTED and (mean + point * error < limit).all():
        verdict = "refuted"
    return Support(verdict=verdict, groups=groups, rank=float(mean[best]))


def _rank(measurements: Measurements, one: int, two: int, others: NDArray[np.int64]) -> tuple[float, float]:
    """Return the fraction of `others` that are less similar to `one` than `two` is: in layout, and in brightness."""
    thumbs = measurements.measures["thumb"][[one, two, *others]].reshape(len(others) + 2, -1).astype(np.float32)
    light = np.stack([thumbs.mean(axis=1), thumbs.std(axis=1)], axis=1)
    thumbs -= light[:, :1]
    thumbs /= np.maximum(np.linalg.norm(thumbs, axis=1, keepdims=True), 1e-6)
    similarity = (thumbs[1:] @ thumbs[0], -np.abs(light[1:] - light[0]).sum(axis=1))
    layout, brightness = (float((v[1:] < v[0]).mean() + (v[1:] == v[0]).mean() / 2) for v in similarity)
    return layout, brightness


def _restarts_numbering(index: Index) -> bool:
    """Return True if repeated groups lie in most classes and splits on average, as numbers that restart in each do."""
    cells: dict[str, set[tuple[str, int]]] = defaultdict(set)
    images: dict[str, int] = defaultdict(int)
    for group, split, label in zip(index.groups, index.splits, index.class_numbers, strict=True):
        cells[group].add((split, label))
        images[group] += 1
    everywhere = len(set(zip(index.splits, index.class_numbers, strict=True)))
    repeated = [len(cells[group]) for group, count in images.items() if count > 1]
    return bool(repeated) and sum(repeated) > len(repeated) * (1 + everywhere) / 2


def _explain_support(support: Support) -> str:
    text = {
        "supported": "images of one group are more alike than images of different groups",
        "refuted": "images of one group are no more alike than images of different groups",
        "unclear": "too few images share a group to test them, or they are hardly more alike",
    }[support.verdict]
    return f"{text} ({describe_test(support)})"


def describe_test(support: Support) -> str:
    """Name the test, the number of groups and the p-value."""
    sign = "<" if support.verdict == "supported" else ">"
    return f"rank test on {format_count(support.groups, 'group')}: p {sign} {LEVEL}"
