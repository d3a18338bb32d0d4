"""The images that a run is evaluated on: those of one split of the data."""

from dataclasses import dataclass, field

from convnext_cli.data.groups import group_steps
from convnext_cli.data.index import GIVEN_SUFFIXES, Index
from convnext_cli.data.split import is_fold
from convnext_cli.errors import DataError, UsageError
from convnext_cli.inference.evaluated_data import find_data
from convnext_cli.inference.request import EvalRequest
from convnext_cli.options import AUTO
from convnext_cli.progress import Notice, Steps
from convnext_cli.runs.folder import RunFolder


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
        """Return the group of each row; None where groups are not known."""
        return self.index.list_groups(self.rows)

    @property
    def is_out_of_fold(self) -> bool:
        """Return True for images of a cross-validation's folds, each classified by the model that has not seen it."""
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
    index, is_own, notes = yield from find_data(run, trained_on, request)
    if request.group_from != AUTO:
        index, _ = yield from group_steps(index, request.group_from)
    has_folds = any(map(is_fold, index.splits))
    split, rows, split_notes = (_choose_from_folds if has_folds else _choose_split)(index, request.split)
    return TestSet(index=index, is_own=is_own, split=split, rows=rows), notes + split_notes


def _choose_split(index: Index, split: str | None) -> tuple[str, list[int], list[Notice]]:
    """Return the split to evaluate, its rows, and the notes on the data."""
    split = split or next(reversed(index.list_splits()), "all")
    rows = list(range(len(index))) if split == "all" else index.rows(split)
    if not rows:
        raise DataError(
            f"{index.location} has no {split} split",
            f"It has {', '.join(sorted(index.list_splits())) or 'none'}; or use --split all",
        )
    return split, rows, [Notice(text) for text in index.notes]


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
        text = "external: each image is classified by the one model that was not trained on images of its value"
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
        "out of fold: each image is classified by the one model that was not trained on it. Where a fold has enough "
        "images, that model's best epoch and calibration were chosen on them; metrics may be slightly too high"
    )
    return "val", of_folds, [Notice(text, "warning")]
