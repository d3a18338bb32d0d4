"""The images that a run is evaluated on: one split of its own data, of a copy of these, or of new data."""

import re
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from convnext_cli.data.attributes import parse_attributes
from convnext_cli.data.groups import group_steps
from convnext_cli.data.index import EXCLUDED, GIVEN_SUFFIXES, NONE, UNREADABLE, Index, select_rows
from convnext_cli.data.outside import check_cache_outside, list_data_folders
from convnext_cli.data.sources import scan_data
from convnext_cli.data.split import is_fold, release_val
from convnext_cli.encoding import compose_name, normalise_name
from convnext_cli.errors import ConvnextError, DataError, UsageError
from convnext_cli.inference.overlap import measure_equal
from convnext_cli.inference.request import EvalRequest
from convnext_cli.options import AUTO, describe_options
from convnext_cli.progress import Notice, Steps
from convnext_cli.recipes.plan import read_plan
from convnext_cli.recipes.settings import TABLE_SETTINGS
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.reading import TableOptions
from convnext_cli.text import Advice, format_count, format_percent

MIN_SAME = 0.5  # fraction of equal images above which data with the names of the run's own count as its own


@dataclass(frozen=True, kw_only=True, slots=True)
class TestSet:
    """Images to evaluate on: rows of an index."""

    index: Index
    is_own: bool
    """True if the index is of the run's own data or of a copy, with the run's split."""
    split: str
    """`train`, `val`, `test`, or `all`; of a cross-validation `test`, or `val` for all images of its folds."""
    rows: list[int] = field(repr=False)

    @property
    def groups(self) -> list[str] | None:
        """The group of each row; None where groups are not known."""
        return self.index.list_groups(self.rows)

    @property
    def is_out_of_fold(self) -> bool:
        """True for images of a cross-validation's folds, each classified by the model that has not seen it."""
        return any(is_fold(self.index.splits[row]) for row in self.rows)


def choose_test_set(run: RunFolder, trained_on: Index, request: EvalRequest) -> Steps[tuple[TestSet, list[Notice]]]:
    """Return the images to evaluate a run on, and notes on them; `trained_on` is the run's own data and split.

    Without a split, `test` is taken where there is one, else `val`, else all.

    Raises:
        RunError: the run cannot be read.
        DataError: the data has no such split.
        UsageError: the data has no such groups.
    """
    data = request.data
    if request.group_column != AUTO and (data is None or data.suffix.lower() not in GIVEN_SUFFIXES):
        raise UsageError("--group-column needs a table as DATA", "Give the table, or --group-from")
    index, is_own, notes = yield from _find_data(run, trained_on, request)
    if request.group_from != AUTO:
        index, _ = yield from group_steps(index, request.group_from)
    has_folds = any(map(is_fold, index.splits))
    split, rows, split_notes = (_choose_from_folds if has_folds else _choose_split)(index, request.split)
    return TestSet(index=index, is_own=is_own, split=split, rows=rows), notes + split_notes


def _find_data(run: RunFolder, trained_on: Index, request: EvalRequest) -> Steps[tuple[Index, bool, list[Notice]]]:
    """Return the data to evaluate on, if they are the run's own, and notes.

    The run's own data, or a copy of them, have its split and its groups. A copy has targets of its own.

    Raises:
        DataError: the data cannot be read, or the run's own are gone.
    """
    data, settings = request.data, _read_settings(run)
    has_own_labels = not settings.get("unlabelled")
    if data is None or (has_own_labels and data.resolve() == trained_on.root.resolve()):
        if not trained_on.root.is_dir():
            problem = f"the run's data folder {trained_on.root} is gone"
            raise DataError(problem, "Give the folder of images to evaluate on")
        check_cache_outside(list_data_folders(trained_on))
        text = (
            "the labels are the teacher's predictions, so that the metrics are the agreement with the teacher; "
            "`convnext eval RUN DATA` takes the labels of DATA"
        )
        return trained_on, True, [] if has_own_labels else [Notice(text, "warning")]
    index = _scan_like_run(settings, trained_on, data, request)
    index, guess = yield from _group_like_run(settings, index, request)
    copy = _select_own(trained_on, index)
    if copy is None:
        return index, False, guess
    if _has_other_split(settings, trained_on, copy):
        text = f"the splits of {data} count, not those that the run was trained with"
        return index, False, [Notice(text), *guess]
    equal = yield from measure_equal(run, trained_on, copy)
    if equal is not None and equal < MIN_SAME:
        text = (
            f"the file names are those of the run's own data, but only {format_percent(equal)}% of the images are the "
            f"same: all {len(index):,} images count as new"
        )
        return index, False, [Notice(text), *guess]
    own, notes = _take_copy(trained_on, copy)
    if request.group_column != AUTO:
        own = replace(own, groups=copy.groups)
    return own, True, notes + _list_other_content(copy, equal)


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


def _take_copy(trained_on: Index, copy: Index) -> tuple[Index, list[Notice]]:
    """Return the run's index with the paths and targets of a copy (in its order), and a note where targets differ."""
    moved = replace(trained_on, root=copy.root, paths=copy.paths, table=copy.table, source=copy.source)
    number_of = {normalise_name(name): number for number, name in enumerate(trained_on.classes)}
    labels = copy.labels
    if not copy.values:
        labels = tuple(number_of[normalise_name(copy.classes[label])] for label in copy.labels)
    relabelled = replace(moved, labels=labels, values=copy.values)
    before, after = moved.targets(), relabelled.targets()
    differ = (before != after) & ~((before != before) & (after != after))  # nan, an unknown label, is equal to itself
    count = int(differ.reshape(len(moved), -1).any(axis=1).sum())
    if not count:
        return moved, []
    text = (
        f"the targets of {count:,} of {len(moved):,} images differ from those that the run was trained with: those of "
        f"{copy.location} count"
    )
    return relabelled, [Notice(text)]


def _list_other_content(copy: Index, equal: float | None) -> list[Notice]:
    """Return a note where some images of a copy differ from the run's own, or were not compared."""
    if equal is None:
        text = (
            f"{copy.location} counts as the run's own data because the file names are the same; the contents could "
            "not be compared, because the run has no digests of its images. --split all evaluates every image"
        )
        return [Notice(text)]
    text = f"{format_percent(1 - equal, 1)}% of the images differ from those that the run was trained on"
    return [Notice(text)] if equal < 1 else []


def _scan_like_run(settings: Mapping[str, Any], trained_on: Index, data: Path, request: EvalRequest) -> Index:
    """Scan data for the task of a run with its columns; if that fails, without them, then with all of its options."""
    task = trained_on.task_record
    fixed: dict[str, Any] = {
        "task": task["name"] if task else AUTO,
        "known_labels": trained_on.classes,
        "attributes": tuple(parse_attributes(request.subgroups)) if request.subgroups else (),
    }
    if request.group_column != AUTO:
        fixed["group_column"] = request.group_column
    columns = {name: settings[name] for name in TABLE_SETTINGS if name in settings}
    root = {"image_root": settings.get("image_root", AUTO)}
    plain = TableOptions(**fixed), NONE
    like_run = TableOptions(**columns | root | fixed), settings.get("exclude", NONE)
    errors = {}
    for options, exclude in dict.fromkeys(((TableOptions(**columns | fixed), NONE), plain, like_run)):
        try:
            index = scan_data(data, exclude=exclude, table_options=options)
        except ConvnextError as error:
            errors[options, exclude] = error
        else:
            notes = tuple(
                note.fact if isinstance(note, Advice) and _list_missing_options(note) else note for note in index.notes
            )
            return replace(index, notes=notes)
    raise _name_missing_options(errors[plain])


def _list_missing_options(text: str) -> list[str]:
    """Return the options in a text that an evaluation lacks; a file `a--b` names none."""
    own = {declared.flag for declared in describe_options(EvalRequest).values()}
    return [option for option in dict.fromkeys(re.findall(r"(?<![^\s(`])--[a-z-]+", text)) if option not in own]


def _name_missing_options(error: ConvnextError) -> ConvnextError:
    """Return an error of reading data; if its remedy names options that an evaluation lacks, with another one."""
    others = _list_missing_options(error.remedy)
    if not others:
        return error
    remedy = (
        f"{error.remedy}. `convnext eval` has no {' or '.join(others)}: give a CSV file with path and label, or with "
        "the columns of the training data"
    )
    return type(error)(error.problem, remedy)


def _read_settings(run: RunFolder) -> dict[str, Any]:
    """Return the settings of the run's plan; none if it cannot be read."""
    with suppress(ConvnextError):
        return read_plan(run.plan).settings
    return {}


def _group_like_run(
    settings: Mapping[str, Any], index: Index, request: EvalRequest
) -> Steps[tuple[Index, list[Notice]]]:
    """Return new data with groups by the rule that the run was trained with, or by `auto`, and a note on a guess."""
    if request.group_from != AUTO:
        return index, []  # `choose_test_set` groups them
    rule = settings.get("group_from", AUTO) if request.group_column == AUTO else AUTO
    try:
        index, grouping = yield from group_steps(index, rule)
    except ConvnextError:
        index, grouping = yield from group_steps(index, AUTO)
    text = (
        f"the 95% CIs rely on a guess: {format_count(grouping.groups, 'group')} by {grouping.rule}. A CSV file with a "
        "column for the patient replaces it"
    )
    return index, [Notice(text)] if grouping.is_guess else []


def _choose_split(index: Index, split: str | None) -> tuple[str, list[int], list[Notice]]:
    """Return the split to evaluate, its rows, and the notes on the data."""
    split = split or next(reversed(index.list_splits()), "all")
    rows = list(range(len(index))) if split == "all" else index.rows(split)
    if not rows:
        raise DataError(
            f"{index.location} has no {split} split",
            f"It has {', '.join(sorted(index.list_splits())) or 'none'}; or use --split all",
        )
    return split, rows, [Notice(str(note)) for note in index.notes]


def _choose_from_folds(index: Index, split: str | None) -> tuple[str, list[int], list[Notice]]:
    """Return the split to evaluate a cross-validation on, its rows, and a note on the models that classify them.

    It is the test split, or all images of the folds.
    """
    of_folds = [row for row, name in enumerate(index.splits) if is_fold(name)]
    if index.validation:
        if split not in (None, "test"):
            names = ", ".join(index.fold_names[:5])
            raise DataError(
                f"the cross-validation of {index.location} leaves out {names} in turn, as test images",
                f"Leave out --split, or evaluate one fold with --split {split}",
            )
        text = "external: each image is predicted by the one model that was not trained on images of its value"
        return "test", of_folds, [Notice(text)]
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
        return "test", test_rows, []
    text = (
        "out of fold: each image is predicted by the one model that was not trained on it. Where a fold has enough "
        "images, that model's best epoch and calibration were chosen on them; metrics may be slightly too high"
    )
    return "val", of_folds, [Notice(text, "warning")]
