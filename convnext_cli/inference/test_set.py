"""The images that a run is evaluated on, and notes on leakage and on how independent they are."""

from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convnext_cli.data.attributes import parse_attributes
from convnext_cli.data.audit.summary import audit_index
from convnext_cli.data.groups import Grouping, group_steps
from convnext_cli.data.index import EXCLUDED, NONE, TABLE_SUFFIXES, UNREADABLE, Index, select_rows
from convnext_cli.data.outside import check_cache_outside, list_data_folders
from convnext_cli.data.sources import scan_data
from convnext_cli.data.split import is_fold, release_val
from convnext_cli.data.tables.options import TableOptions
from convnext_cli.encoding import compose_name, normalise_name
from convnext_cli.errors import ConvnextError, DataError, RunError, UsageError
from convnext_cli.inference.overlap import (
    Overlap,
    find_equal_fraction,
    find_overlap,
    measure_content,
    read_image_hashes,
)
from convnext_cli.inference.request import EvalRequest
from convnext_cli.options import AUTO
from convnext_cli.progress import Notice, Steps
from convnext_cli.recipes.plan import read_plan
from convnext_cli.recipes.settings import TABLE_SETTINGS
from convnext_cli.runs.files import AUDIT
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.records import AuditRecord, convert_record
from convnext_cli.text import format_count, format_part, format_percent

MIN_SAME = 0.5  # fraction of equal images above which data with the names of the run's own count as its own

_SELECTION_BIAS = (
    "the best epoch and the calibration are chosen on them where there are enough; metrics may be slightly too high"
)

TEACHER_LABELS = (
    "the labels are the teacher's predictions, so that the metrics are the agreement with the teacher; "
    "`convnext eval RUN DATA` takes the labels of DATA"
)


@dataclass(frozen=True, kw_only=True, slots=True)
class TestSet:
    """Images to evaluate on: rows of an index."""

    index: Index
    split: str
    """`train`, `val`, `test`, or `all`; of a cross-validation `test`, or `val` for all images of its folds."""
    rows: list[int] = field(repr=False)

    @property
    def groups(self) -> list[str] | None:
        """Return the group of each row; None where groups are not known."""
        return self.index.list_groups(self.rows)

    @property
    def is_out_of_fold(self) -> bool:
        """Return True for images of a cross-validation's folds, each classified by the model that has not seen it."""
        return any(is_fold(self.index.splits[row]) for row in self.rows)


def choose_test_set(run: RunFolder, trained_on: Index, request: EvalRequest) -> Steps[tuple[TestSet, list[Notice]]]:
    """Return the images to evaluate a run on, and notes on them.

    Args:
        run: the run.
        trained_on: its own data and split, which are used where the request has no data or the same folder.
        request: the data, the split (None takes `test` where there is one, else `val`, else all), and the source of the
            groups (`auto` takes the run's own).

    Raises:
        RunError: the run cannot be read.
        DataError: the data has no such split.
        UsageError: the data has no such groups.
    """
    data, split, group_column = request.data, request.split, request.group_column
    if group_column != AUTO and (data is None or data.suffix.lower() not in TABLE_SUFFIXES):
        raise UsageError("--group-column needs a CSV file as DATA", "Give the CSV file, or --group-from")
    index, notes = yield from _find_index(run, trained_on, request)
    if request.group_from != AUTO:
        index, _ = yield from group_steps(index, request.group_from)
    splits = set(index.splits) - {""}
    if any(map(is_fold, splits)):
        test_set, fold_notes = _choose_from_folds(index, split)
        return test_set, notes + fold_notes
    notes += [Notice(text) for text in index.notes]
    if split == "all" or (split is None and not splits):
        return TestSet(index=index, split="all", rows=list(range(len(index)))), notes
    if split is None:
        split = "test" if "test" in splits else "val" if "val" in splits else "train"
    rows = index.rows(split)
    if not rows:
        raise DataError(
            f"{index.location} has no {split} split",
            f"It has {', '.join(sorted(splits)) or 'none'}; or use --split all",
        )
    return TestSet(index=index, split=split, rows=rows), notes


def audit_steps(run: RunFolder) -> Steps[tuple[AuditRecord | None, list[Notice]]]:
    """Return the run's audit of its data, with notes; repeat the audit where `audit.json` is damaged.

    It is None where the run has no audit, or it can be neither read nor repeated.
    """
    try:
        audit = run.read(AUDIT, AuditRecord)
    except RunError as error:
        index = run.read_split()
        missing = sum(not (index.root / path).is_file() for path in index.paths)
        if missing:
            number = format_part(missing, len(index), "image", "is", "are")
            text = f"{error.problem}. Leakage between splits is unknown: {number} gone, so the audit cannot be repeated"
            return None, [Notice(text, "warning")]
        groups = len(set(index.groups) - {""})
        grouping = Grouping(source="split", rule="the groups of split.csv", groups=groups)
        measured = yield from audit_index(index, grouping)
        audit = convert_record(measured.to_dict(), AuditRecord, AUDIT.path(run.path), error.remedy)
        return audit, [Notice(f"{error.problem}. The audit was repeated")]
    if audit is None:
        return None, [Notice(f"the run has no {AUDIT.name}: leakage between splits was not checked")]
    return audit, []


def find_leakage(
    run: RunFolder, trained_on: Index, test_set: TestSet, audit: AuditRecord | None
) -> Steps[tuple[list[Notice], Overlap | None]]:
    """Return notes on images that the model was trained on, and their number.

    The run's own split was checked by its audit. Other images are compared with those of the run by content.
    """
    index = test_set.index
    if index.has_split_of(trained_on):
        has_own_groups = index.groups == trained_on.groups
        return _list_split_notes(test_set) + _list_audit_notes(audit, has_own_groups=has_own_groups), None
    known = yield from read_image_hashes(run, trained_on)
    if known is None:
        text = (
            f"not compared with the training images: the run has no digests of them, and {trained_on.root} is gone. "
            "Leakage is unknown"
        )
        return [Notice(text, "warning")], None
    selected = select_rows(index, test_set.rows)
    measured = yield from measure_content(selected)
    overlap = find_overlap(known, trained_on, measured)
    notes: list[Notice] = []
    if overlap.trained or overlap.trained_near:
        trained = overlap.trained + overlap.trained_near
        number = format_part(trained, len(selected), "image", "was", "were")
        near = format_count(overlap.trained_near, "as near-duplicate", "as near-duplicates")
        near = f" ({near})" if overlap.trained_near else ""
        notes.append(Notice(f"leakage: {number} trained on{near}; the scores are too high", "warning"))
    if overlap.validated:
        number = format_part(
            overlap.validated, len(selected), "image", "is a validation image", "are validation images"
        )
        notes.append(Notice(f"{number}: {_SELECTION_BIAS}", "warning"))
    return notes, overlap


def _list_split_notes(test_set: TestSet) -> list[Notice]:
    """Return a note where images of the run's own split were trained on, or chosen by."""
    counts, images = Counter(test_set.index.splits[row] for row in test_set.rows), len(test_set.rows)
    if counts["train"]:
        trained = "these images" if counts["train"] == images else f"{counts['train']:,} of these {images:,} images"
        text = f"the model was trained on {trained}: the metrics do not show its performance on new images"
        return [Notice(text, "warning")]
    return [Notice(f"validation images: {_SELECTION_BIAS}", "warning")] if counts["val"] else []


def _list_audit_notes(audit: AuditRecord | None, *, has_own_groups: bool) -> list[Notice]:
    """Return notes on guessed groups, where these are evaluated, and on findings that affect the metrics."""
    if audit is None:
        return []
    notes = []
    if has_own_groups and audit.groups.certainty == "unsure":
        text = f"the 95% CIs rely on guessed groups: {audit.groups.evidence}; --group-from none ignores them"
        notes.append(Notice(text))
    return notes + [
        Notice(finding.describe(), "warning" if finding.falsifies else "note")
        for finding in audit.findings
        if finding.falsifies or finding.leaves_doubt
    ]


def _choose_from_folds(index: Index, split: str | None) -> tuple[TestSet, list[Notice]]:
    """Return the images to evaluate a cross-validation on: the test split, or all images of its folds."""
    if index.validation:
        return _choose_left_out(index, split)
    test_rows = index.rows("test")
    if split in ("train", "all") or (split == "test" and not test_rows):
        problem = "has no test split"
        if split != "test":
            problem = f"has models that were trained on images of --split {split}"
        raise DataError(
            f"the cross-validation of {index.location} {problem}",
            "Use --split val: each image is then classified by the one model that was not trained on it",
        )
    if test_rows and split != "val":
        return TestSet(index=index, split="test", rows=test_rows), []
    text = (
        "out of fold: each image is classified by the one model that was not trained on it. Where a fold has enough "
        "images, that model's best epoch and calibration were chosen on them; metrics may be slightly too high"
    )
    rows = [row for row, name in enumerate(index.splits) if is_fold(name)]
    return TestSet(index=index, split="val", rows=rows), [Notice(text, "warning")]


def _choose_left_out(index: Index, split: str | None) -> tuple[TestSet, list[Notice]]:
    """Return the images to evaluate a cross-validation of left-out values on: all that have one."""
    if split not in (None, "test"):
        raise DataError(
            f"the cross-validation of {index.location} leaves out {', '.join(index.fold_names[:5])} in turn, as test "
            "images",
            f"Leave out --split, or evaluate one fold with --split {split}",
        )
    text = "external: each image is classified by the one model that was not trained on images of its value"
    rows = [row for row, name in enumerate(index.splits) if is_fold(name)]
    return TestSet(index=index, split="test", rows=rows), [Notice(text)]


def _find_index(run: RunFolder, trained_on: Index, request: EvalRequest) -> Steps[tuple[Index, list[Notice]]]:
    """Return the index of the data to evaluate on, with notes.

    Where the data are the run's own, it has the run's split and groups, and the targets of the data.
    """
    data, group_column, settings = request.data, request.group_column, _read_settings(run)
    has_own_labels = not settings.get("unlabelled")
    if data is None or (has_own_labels and data.resolve() == trained_on.root.resolve()):
        if not trained_on.root.is_dir():
            raise DataError(
                f"the run's data folder {trained_on.root} is gone", "Give the folder of images to evaluate on"
            )
        check_cache_outside(list_data_folders(trained_on))
        return trained_on, [] if has_own_labels else [Notice(TEACHER_LABELS, "warning")]
    index = _scan_like_run(settings, trained_on, data, request)
    index, grouping = yield from _group_like_run(settings, index, group_column)
    given = _select_own(trained_on, index)
    if given is not None:
        if _has_other_split(settings, trained_on, given):
            return index, [Notice(f"the splits of {data} count, not those that the run was trained with")]
        moved, notes = _take_targets(trained_on, given, data)
        if group_column != AUTO:
            moved = replace(moved, groups=given.groups)
        chosen, content_notes = yield from _compare_content(run, trained_on, moved, index)
        return chosen, (notes if chosen is moved else []) + content_notes
    if not grouping.is_guess or request.group_from != AUTO:
        return index, []
    text = (
        f"the 95% CIs rely on {grouping.groups:,} guessed groups: {grouping.rule}. A CSV file with a column for the "
        "patient replaces the guess"
    )
    return index, [Notice(text)]


def _select_own(trained_on: Index, index: Index) -> Index | None:
    """Return the images of an index that have the names of the run's own, in their order.

    Returns:
        None where one is missing, the classes are others, or there are more images than the run has read.
    """
    left_out = sum(trained_on.skipped.get(reason, 0) for reason in (UNREADABLE, EXCLUDED))
    row_of = {compose_name(path): row for row, path in enumerate(index.paths)}  # a copy may have another Unicode form
    rows = [row_of[name] for path in trained_on.paths if (name := compose_name(path)) in row_of]
    classes = {normalise_name(name) for name in trained_on.classes}
    is_own = len(rows) == len(trained_on) and len(index) <= len(trained_on) + left_out and classes == set(index.classes)
    return select_rows(index, rows) if is_own else None


def _has_other_split(settings: Mapping[str, Any], trained_on: Index, given: Index) -> bool:
    """Return True if the data have splits of their own, and the run's split does not follow them.

    The run may have taken a split that the data lack from their training images, or from rows without a split.
    """
    given = release_val(given) if settings.get("resplit_val") else given
    splits = set(given.splits) - {""}
    if not splits or any(map(is_fold, trained_on.splits)) or settings.get("resplit"):
        return False
    return any(
        name and own != name and (name != "train" or own in splits)
        for own, name in zip(trained_on.splits, given.splits, strict=True)
    )


def _take_targets(trained_on: Index, given: Index, data: Path) -> tuple[Index, list[Notice]]:
    """Return the run's index with the paths and targets of the data (in its order), and a note where targets differ."""
    moved = replace(trained_on, root=given.root, paths=given.paths, table=given.table, source=given.source)
    number_of = {normalise_name(name): number for number, name in enumerate(trained_on.classes)}
    labels = given.labels
    if not given.values:
        labels = tuple(number_of[normalise_name(given.classes[label])] for label in given.labels)
    new = replace(moved, labels=labels, values=given.values)
    one, two = moved.targets(), new.targets()
    differ = (one != two) & ~((one != one) & (two != two))  # nan, an unknown label, is equal to itself
    count = int(differ.reshape(len(moved), -1).any(axis=1).sum())
    if not count:
        return moved, []
    text = (
        f"the targets of {count:,} of {len(moved):,} images differ from those that the run was trained with: those of "
        f"{data} count"
    )
    return new, [Notice(text)]


def _compare_content(
    run: RunFolder, trained_on: Index, moved: Index, index: Index
) -> Steps[tuple[Index, list[Notice]]]:
    """Return the run's index at its new path if most images of the same names are equal, else the new index."""
    known = yield from read_image_hashes(run, trained_on)
    if known is None:
        text = (
            f"{moved.location} counts as the run's own data because the file names are the same; the contents could "
            "not be compared, because the run has no digests of its images. --split all evaluates every image"
        )
        return moved, [Notice(text)]
    fraction = find_equal_fraction(known, (yield from measure_content(moved)))
    if fraction < MIN_SAME:
        text = (
            f"the file names are those of the run's own data, but only {format_percent(fraction)}% of the images are "
            f"the same: all {len(index):,} images count as new"
        )
        return index, [Notice(text)]
    if fraction < 1:
        return moved, [
            Notice(f"{format_percent(1 - fraction, 1)}% of the images differ from those that the run was trained on")
        ]
    return moved, []


def _scan_like_run(settings: Mapping[str, Any], trained_on: Index, data: Path, request: EvalRequest) -> Index:
    """Scan data for the task of a run with its columns; if that fails, without them, then with all of its options."""
    task, group_column = trained_on.task_record, request.group_column
    plain = TableOptions(
        task=task["name"] if task else AUTO,
        group_column=group_column,
        known_labels=trained_on.classes,
        attributes=tuple(parse_attributes(request.subgroups)) if request.subgroups else (),
    )
    own = {name: settings[name] for name in TABLE_SETTINGS if name in settings and name != "task"}
    if group_column != AUTO:
        own["group_column"] = group_column
    with_columns = replace(plain, **own)

    def scan(table_options: TableOptions, exclude: str = NONE) -> Index:
        return scan_data(data, exclude=exclude, known_classes=trained_on.classes, table_options=table_options)

    if with_columns != plain:
        with suppress(ConvnextError):
            return scan(with_columns)
    try:
        return scan(plain)
    except DataError:
        with suppress(ConvnextError):
            with_root = replace(with_columns, image_root=settings.get("image_root", AUTO))
            return scan(with_root, exclude=settings.get("exclude", NONE))
        raise


def _read_settings(run: RunFolder) -> dict[str, Any]:
    """Return the settings of the run's plan; none if it cannot be read."""
    try:
        return read_plan(run.plan).settings
    except ConvnextError:
        return {}


def _group_like_run(settings: Mapping[str, Any], index: Index, group_column: str) -> Steps[tuple[Index, Grouping]]:
    """Return other data with groups by the rule that the run was trained with; by `auto` where that does not fit."""
    rule = settings.get("group_from", AUTO) if group_column == AUTO else AUTO
    try:
        return (yield from group_steps(index, rule))
    except ConvnextError:
        return (yield from group_steps(index, AUTO))
