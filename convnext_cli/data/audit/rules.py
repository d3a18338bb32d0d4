"""The rules of the audit: from measurements to findings, one function per rule, the gravest first."""

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence

from convnext_cli.data.audit.duplicates import MAX_COPIES, Duplicates
from convnext_cli.data.audit.findings import Finding, Kind
from convnext_cli.data.audit.measurements import MAX_LEVELS, Measurements
from convnext_cli.data.audit.shortcuts import Shortcut
from convnext_cli.data.audit.support import Support, describe_test
from convnext_cli.data.groups import Grouping, find_groups_across_splits
from convnext_cli.data.index import SPLITS, Index, describe_frames, find_alike, group_by
from convnext_cli.data.unseen import Unseen
from convnext_cli.images.raster import StepKind
from convnext_cli.text import capitalise, format_count, format_percent

MIN_IMAGES = 20  # a class; fewer cannot be both learned and tested
EXAMPLES = 5
_COPIES = 4  # of one image that an example names
_SHORTCUTS = {
    "size": (Kind.SIZE_SHORTCUT, "image size"),
    "format": (Kind.FORMAT_SHORTCUT, "file format"),
    "mode": (Kind.MODE_SHORTCUT, "pixel format (mode, bits, grey or coloured)"),
    "border": (Kind.BORDER_SHORTCUT, "brightness of the border"),
}
_NAME_SUBJECTS = "all are kept; name the subjects with --group-from, or in a column of a table"
_EXACT = "the same pixels"
_NEAR = "saved again, scaled, cropped, turned, mirrored, or with another brightness or contrast"
_KEPT = f", but not of sets with different labels or of more than {MAX_COPIES}, which may be frames of one camera"


def find_grave(index: Index, grouping: Grouping, duplicates: Duplicates, across: Support | None) -> Iterator[Finding]:
    """Yield conflicting labels and leakage, the gravest first.

    `across` is the similarity of images of one group in two splits; None if it was not measured.
    """
    yield from _find_conflicting_labels(index, duplicates)
    yield from _find_leaked_duplicates(index, duplicates)
    yield from _find_leaked_groups(index, grouping, across)


def find_notes(
    index: Index,
    measurements: Measurements,
    duplicates: Duplicates,
    shortcuts: Sequence[Shortcut],
    unseen: Mapping[float, Unseen],
) -> Iterator[Finding]:
    """Yield all other findings, the gravest first."""
    yield from _find_unreadable(measurements.errors)
    yield from _find_few_levels(index, measurements)
    yield from _find_frames(index, measurements)
    yield from _find_duplicates(index, duplicates)
    yield from _find_similar(index, duplicates)
    yield from _find_scenes(index, duplicates)
    yield from _find_alike_names(index.classes)
    yield from _find_small_classes(index)
    yield from _find_shortcuts(index, shortcuts)
    yield from _find_unseen_area(unseen.get(1.0))
    yield from _find_uncompared(duplicates.unchecked)


def _find_conflicting_labels(index: Index, duplicates: Duplicates) -> Iterator[Finding]:
    """Yield conflicts of duplicates, and possible ones of near-duplicates: parts with and without a small defect."""
    exact, near = _split_by_kind(duplicates, index.have_conflict)
    if exact:
        yield Finding(
            kind=Kind.CONFLICTING_LABELS,
            severity="warning",
            title=f"conflicting labels: {_count_images(exact)} stored more than once, with different labels",
            count=len(exact),
            examples=_show(index, exact, with_label=True),
            effect="at least one label of each is wrong, in training or in testing",
            action="kept; correct the labels, or leave the images out with --exclude",
            leave_out=tuple(row for rows in exact for row in rows),
        )
    if near:
        sets = format_count(len(near), "set")
        yield Finding(
            kind=Kind.POSSIBLE_CONFLICTS,
            title=f"possible label conflicts: {sets} of near-duplicates with different labels",
            count=len(near),
            examples=_show(index, near, with_label=True),
            effect="a label is wrong, or the classes differ by direction (left, right) or by details too small for "
            "this comparison (64 x 64 px)",
            action="kept; correct the labels that are wrong",
        )


def _find_leaked_duplicates(index: Index, duplicates: Duplicates) -> Iterator[Finding]:
    exact, near = _split_by_kind(duplicates, lambda rows: len(_list_splits(index, rows)) > 1)
    for kind, name, clusters in (
        (Kind.DUPLICATES_ACROSS_SPLITS, f"duplicates ({_EXACT})", exact),
        (Kind.NEAR_DUPLICATES_ACROSS_SPLITS, f"near-duplicates ({_NEAR})", near),
    ):
        if clusters:
            listed = _list_copied(index, duplicates, clusters)
            yield Finding(
                kind=kind,
                severity="warning",
                title=f"leakage: {_count_images(clusters)} in more than one split, as {name}",
                count=len(clusters),
                examples=_show(index, clusters),
                effect=_explain_leak([_list_splits(index, rows) for rows in clusters]),
                action="the data's own splits are kept; --resplit draws new splits, or --exclude with the list of "
                "`convnext check --fix-list` leaves all but one of each out, test images last"
                f"{_KEPT if len(listed) < len(clusters) else ''}",
                leave_out=tuple(row for rows in listed for row in _list_copies(index, rows)),
            )


def _find_leaked_groups(index: Index, grouping: Grouping, across: Support | None) -> Iterator[Finding]:
    across_splits = find_groups_across_splits(index.groups, index.splits) if index.groups else {}
    if not across_splits:
        return
    leaked = (row for row, group in enumerate(index.groups) if group in across_splits)
    rows_of = group_by(leaked, index.groups.__getitem__)
    is_certain = _are_groups_certain(index, grouping, across, rows_of.values())
    scores = "test" if any("test" in splits for splits in across_splits.values()) else "validation"
    evidence = (
        "The groups are a guess from the names",
        _explain_guess(grouping, across),
        "The patients of each split may be numbered independently",
    )
    ignore = "; --group-from none ignores the names" if grouping.is_guess else ""
    yield Finding(
        kind=Kind.GROUPS_ACROSS_SPLITS,
        severity="warning" if is_certain else "note",
        title=f"{'leakage' if is_certain else 'possible leakage'}: "
        f"{format_count(len(across_splits), 'group (patient?) has', 'groups (patients?) have')} "
        f"images in {_name_splits(across_splits.values())}",
        count=len(across_splits),
        examples=tuple(
            f"{group}: {', '.join({index.splits[row]: index.paths[row] for row in rows}.values())}"
            for group, rows in list(rows_of.items())[:EXAMPLES]
        ),
        effect=f"images of one patient resemble each other, so {scores} scores "
        f"{'will' if is_certain else 'may'} be too high",
        evidence=evidence if grouping.is_guess else (),
        action=f"the data's own splits are kept; --resplit draws new splits that keep each group in one{ignore}",
    )


def _find_unreadable(errors: Mapping[int, str]) -> Iterator[Finding]:
    if rows := list(errors):
        yield Finding(
            kind=Kind.UNREADABLE,
            title=format_count(len(rows), "file cannot be read as an image", "files cannot be read as images"),
            count=len(rows),
            examples=tuple(errors[row] for row in rows[:EXAMPLES]),
            effect=f"{'it is' if len(rows) == 1 else 'they are'} used neither for training nor for testing",
            action="left out",
            leave_out=tuple(rows),
        )


def _find_few_levels(index: Index, measurements: Measurements) -> Iterator[Finding]:
    """Yield images whose range is that of a few extreme values, as of a fill value of -9999 or of a hot pixel."""
    if rows := measurements.list_rows(StepKind.FEW_LEVELS):
        yield Finding(
            kind=Kind.FEW_LEVELS,
            title=f"{format_count(len(rows), 'image has', 'images have')} at most {MAX_LEVELS} of 256 grey levels, "
            "stretched to 8 bits",
            count=len(rows),
            examples=tuple(index.paths[row] for row in rows[:EXAMPLES]),
            effect="if a few extreme values set the range, such as a no-data value or a hot pixel, the model sees "
            "hardly anything else",
            action="kept; replace these values in the files, or declare GDAL's no-data value of a TIFF file",
        )


def _find_frames(index: Index, measurements: Measurements) -> Iterator[Finding]:
    if rows := measurements.list_rows(StepKind.FRAME):
        yield Finding(
            kind=Kind.FRAMES,
            title=describe_frames(len(rows)),
            count=len(rows),
            examples=tuple(index.paths[row] for row in rows[:EXAMPLES]),
            effect="what the others show is used neither for training nor for testing",
            action="one is used; to use others, save each as a file, and name the subject with --group-from or in a "
            "column of a table",
        )


def _find_duplicates(index: Index, duplicates: Duplicates) -> Iterator[Finding]:
    def is_reported(rows: Sequence[int]) -> bool:
        return len(_list_splits(index, rows)) > 1 or index.have_conflict(rows)

    exact, near = _split_by_kind(duplicates, lambda rows: len(rows) > 1)
    for kind, name, every in ((Kind.DUPLICATES, _EXACT, exact), (Kind.NEAR_DUPLICATES, _NEAR, near)):
        if clusters := [rows for rows in every if not is_reported(rows)]:
            listed = _list_copied(index, duplicates, clusters)
            yield Finding(
                kind=kind,
                title=f"{kind}: {_count_images(clusters)} stored more than once ({name})",
                count=len(clusters),
                examples=_show(index, clusters),
                effect="these images count more than once",
                action="kept, always in one split; --exclude with the list of `convnext check --fix-list` leaves all "
                f"but one of each out{_KEPT if len(listed) < len(clusters) else ''}",
                leave_out=tuple(row for rows in listed for row in rows[1:]),
            )


def _find_similar(index: Index, duplicates: Duplicates) -> Iterator[Finding]:
    """Yield pairs of very similar images that no group connects: those across splits, or else those within one."""
    across, pairs = _divide_by_splits(index, duplicates.similar)
    shown = across or pairs
    if not shown:
        return
    set_of = {row: number for number, rows in enumerate(duplicates.duplicate_sets) for row in rows}
    kept = "; new splits keep each pair in one split"
    if any(set_of.get(a, -1) != set_of.get(b, -2) for a, b in shown):
        kept = "; new splits may part those that form a chain through more than a tenth of all images"
    name = f"{format_count(len(shown), 'pair')} of very similar images"
    images = f"({len({row for pair in shown for row in pair}):,} images)"
    yield Finding(
        kind=Kind.SIMILAR_ACROSS_SPLITS if across else Kind.SIMILAR,
        title=f"possible leakage: {name} {images} in two splits, perhaps of one subject"
        if across
        else f"{name} {images}, perhaps of one subject",
        count=len(shown),
        examples=_show(index, shown),
        effect="neighbouring slices, frames or tiles of one subject resemble each other"
        + ("; test scores may be too high" if across else ""),
        action=_NAME_SUBJECTS + ("" if across else kept),
    )


def _find_scenes(index: Index, duplicates: Duplicates) -> Iterator[Finding]:
    """Yield the images of scenes: those that lie in two splits, or else the others."""
    across, within = _divide_by_splits(index, duplicates.scenes)
    if shown := across or within:
        number = sum(map(len, shown))
        name = f"{number:,} of {len(index):,} images look alike, as frames of one camera do"
        yield Finding(
            kind=Kind.SCENE_ACROSS_SPLITS if across else Kind.SCENE,
            title=f"possible leakage: {name}, and lie in two splits" if across else name,
            count=number,
            examples=_show(index, shown),
            effect="near-duplicates among them are not recognised"
            + ("; test scores may be too high" if across else ""),
            action=_NAME_SUBJECTS + ("" if across else "; new splits may part them"),
        )


def _divide_by_splits(
    index: Index, sets: Iterable[tuple[int, ...]]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the sets of rows that lie in two splits, and the others; without those of one group."""
    rest = [rows for rows in sets if not index.groups or len({index.groups[row] for row in rows}) > 1]
    parts = group_by(rest, lambda rows: len(_list_splits(index, rows)) > 1)
    return parts.get(True, []), parts.get(False, [])


def _find_alike_names(classes: Sequence[str]) -> Iterator[Finding]:
    if alike := find_alike(classes):
        yield Finding(
            kind=Kind.ALIKE_CLASS_NAMES,
            title="class names that may mean the same",
            count=len(alike),
            examples=tuple(" and ".join(names) for names in alike[:EXAMPLES]),
            effect="they differ only in case, hyphens, zeros, alphabet or the mark of a copy or part, or are words for "
            "yes or no; if they mean one class, the model learns a difference that does not exist",
            action="kept as separate classes; rename them if they are one class",
        )


def _find_small_classes(index: Index) -> Iterator[Finding]:
    small = [(name, n) for name, n in zip(index.classes, index.count_classes(), strict=True) if n < MIN_IMAGES]
    if small and len(index.classes) > 1:  # else they are numbers, or have no labels
        whose = "its" if len(small) == 1 else "their"
        display = index.task.display
        have = f"{display.target_word} has", f"{display.target_words} have"
        yield Finding(
            kind=Kind.SMALL_CLASSES,
            title=f"{format_count(len(small), *have)} fewer than {MIN_IMAGES} images",
            count=len(small),
            examples=tuple(f"{name}: {n}" for name, n in small[:EXAMPLES]),
            effect=f"{whose} metrics are unreliable, and a split may have none of {whose} images",
            action=f"kept; collect more images, or merge the {display.target_word} with another",
        )


def _find_shortcuts(index: Index, shortcuts: Sequence[Shortcut]) -> Iterator[Finding]:
    for shortcut in shortcuts:
        if shortcut.is_predictive:
            kind, name = _SHORTCUTS[shortcut.name]
            score, spread, chance = map(format_percent, (shortcut.score, shortcut.spread, shortcut.chance))
            yield Finding(
                kind=kind,
                title=f"{index.task.display.strata} predictable from the {name} alone",
                examples=(f"balanced accuracy {score}% ± {spread}%; chance {chance}%",),
                effect="the model may learn this instead of what the images show, and fail on images from elsewhere"
                + ("; padding and squashing show the model the proportions" if shortcut.name == "size" else ""),
                action="kept; prepare all images in the same way, and test on images from another source",
            )


def _find_unseen_area(unseen: Unseen | None) -> Iterator[Finding]:
    if unseen and unseen.is_notable:
        ordered = sorted(unseen.by_class.items(), key=lambda item: -item[1])
        yield Finding(
            kind=Kind.UNSEEN_AREA,
            title=f"a square centre crop never sees {format_percent(unseen.area)}% of the images' area, on average",
            examples=tuple(f"{name}: {format_percent(area)}%" for name, area in ordered[:EXAMPLES] if name),
            effect="what lies at the edge has no effect on the prediction of a model that crops"
            + ("; the area differs by class" if unseen.is_uneven else ""),
            action="--fit pad, --fit squash and --fit auto show the model whole images",
        )


def _find_uncompared(pairs: int) -> Iterator[Finding]:
    if pairs:
        yield Finding(
            kind=Kind.NOT_COMPARED,
            title=f"at least {format_count(pairs, 'pair of similar images was', 'pairs of similar images were')} not "
            "compared: too many",
            count=pairs,
            effect="near-duplicates among them are not detected, and may lie in different splits",
            action="all are kept",
        )


def _list_splits(index: Index, rows: Sequence[int]) -> set[str]:
    return {index.splits[row] for row in rows}


def _explain_leak(leaks: Sequence[set[str]]) -> str:
    """Return what the gravest of some leaks does, each given by the splits that have the same image."""
    if any({"train", "test"} <= splits for splits in leaks):
        return "the model is tested on images it was trained on; test scores will be too high"
    if any("test" in splits for splits in leaks):
        return "the model is tested on images that its best epoch is chosen by; test scores may be too high"
    return "the model is validated on images it was trained on; validation scores will be too high"


def _split_by_kind(
    duplicates: Duplicates, matches: Callable[[Sequence[int]], bool]
) -> tuple[list[tuple[int, ...]], list[tuple[int, ...]]]:
    """Return the clusters that match by their exact duplicates alone, and those that match with near-duplicates."""
    exact_of = {rows[0]: rows for rows in duplicates.exact}
    matching = [rows for rows in duplicates.clusters if matches(rows)]
    exact = [rows for rows in matching if any(matches(exact_of[row]) for row in rows if row in exact_of)]
    return exact, [rows for rows in matching if rows not in set(exact)]


def _are_groups_certain(
    index: Index, grouping: Grouping, across: Support | None, groups: Iterable[Sequence[int]]
) -> bool:
    """Return True if the groups across splits are given, or if the images support the guess in both splits."""
    if not grouping.is_guess:
        return True
    if grouping.certainty != "supported":
        return False
    return across is None or across.verdict == "supported" or _shares_class(index, groups, across)


def _shares_class(index: Index, groups: Iterable[Sequence[int]], across: Support) -> bool:
    """Return True if too few groups lie in two splits to test, and one of them has one class in both.

    If each class lies in one split only, the splits may be numbered independently.
    """
    if across.verdict != "unclear":
        return False
    return any(
        one != two and index.labels[one] == index.labels[two] and index.splits[one] != index.splits[two]
        for rows in groups
        for one in rows
        for two in rows
    )


def _explain_guess(grouping: Grouping, across: Support | None) -> str:
    if across is None or across.verdict != "refuted":
        return capitalise(grouping.evidence)
    return (
        f"Images of one group in two splits are no more alike than images of different groups ({describe_test(across)})"
    )


def _name_splits(combinations: Iterable[Iterable[str]]) -> str:
    """Name the splits that groups lie in, such as `both train and test`."""
    order = (*SPLITS, "")
    counts = Counter(tuple(sorted(splits, key=order.index)) for splits in combinations)
    [(first, _), *others] = counts.most_common()
    if not others and len(first) == 2:
        return f"both {_join(first)}"
    parts = [f"{count:,} in {_join(splits)}" for splits, count in counts.most_common()]
    return f"more than one split: {', '.join(parts)}"


def _join(splits: Sequence[str]) -> str:
    *first, last = (split or "no split" for split in splits)
    return f"{', '.join(first)} and {last}"


def _count_images(clusters: Sequence[object]) -> str:
    return format_count(len(clusters), "image is", "images are")


def _list_copied(index: Index, duplicates: Duplicates, clusters: Sequence[tuple[int, ...]]) -> list[tuple[int, ...]]:
    """Return the clusters that are copies of one image for sure; others may be frames, or parts with a defect."""
    exact = set(duplicates.exact)
    return [rows for rows in clusters if rows in exact or (len(rows) <= MAX_COPIES and not index.have_conflict(rows))]


def _list_copies(index: Index, rows: Sequence[int]) -> list[int]:
    """Return all rows but one; a test image stays before a validation image, and that before a training image."""
    order = (*reversed(SPLITS), "")
    return sorted(rows, key=lambda row: (order.index(index.splits[row]), row))[1:]


def _show(index: Index, clusters: Sequence[Sequence[int]], *, with_label: bool = False) -> tuple[str, ...]:
    """Return up to `_COPIES` paths of each cluster, first one of each split and label."""
    lines = []
    for rows in clusters[:EXAMPLES]:
        labels = {row: f" ({index.describe_target(row)})" if with_label else "" for row in rows}
        firsts = {(index.splits[row], labels[row]): row for row in reversed(rows)}.values()
        shown = sorted(rows, key=lambda row: (row not in firsts, row))[:_COPIES]
        more = f" and {len(rows) - _COPIES} more" if len(rows) > _COPIES else ""
        lines.append(" = ".join(index.paths[row] + labels[row] for row in shown) + more)
    return tuple(lines)
