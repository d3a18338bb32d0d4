"""Splits: images for training, for validation (choosing the best epoch) and for the final test."""

import random
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial

from convnext_cli.data.index import Index, group_by
from convnext_cli.data.joined_rows import join_rows
from convnext_cli.errors import UsageError
from convnext_cli.text import format_count

MIN_VAL_IMAGES = 50  # the 95% CI of accuracy is then 12 points to either side at worst
TOO_FEW = "too few to choose the best epoch by"
MORE_VALIDATION = (
    "Fine-tune with more validation images (--resplit-val if the data have a val split, else --val-fraction)"
)
MISS = 0.2  # fraction of its images that a part may miss before ties are decided by the size of parts
FOLD = "fold-"


@dataclass(frozen=True, kw_only=True, slots=True)
class Folds:
    """The folds of a cross-validation: one of `number` for validation, the others for training."""

    number: int
    fold: int
    """From 1 to `number`; 0 keeps the fold in which each image validates, for `choose_fold`."""


def split_index(
    index: Index,
    *,
    val_fraction: float,
    test_fraction: float,
    seed: int,
    duplicate_sets: Sequence[Sequence[int]] = (),
    folds: Folds | None = None,
) -> Index:
    """Give every row a split: that of the data set if it has splits, else one drawn stratified by class.

    Existing splits are kept. If only the validation split is missing, it is drawn from the training images. Groups and
    sets of duplicates stay in one split. A draw depends on the seed and on the file names only, never on the order in
    which a disk lists them. The test split is the same with folds and without.

    Args:
        index: scanned, with its groups.
        val_fraction: fraction of all images for validation.
        test_fraction: fraction of all images for testing.
        seed: of the draws.
        duplicate_sets: sets of rows that stay in one split, as groups do.
        folds: validate on folds instead of `val_fraction`; existing validation images then join the training images.
            The index's own folds are used if it has some.

    Raises:
        UsageError: there are fewer groups than folds, or the index has another number of folds.
    """
    existing = set(index.splits) - {""}
    units = _find_units(index, duplicate_sets)
    test = 0 if existing else test_fraction
    if folds is None:
        fractions = {"train": 1 - val_fraction - test, "test": test, "val": 0 if "val" in existing else val_fraction}
        open_splits = {"", "train"}
    else:
        _check_folds(index, folds, len(set(units)))
        if test and not index.folds:
            one = partial(split_index, val_fraction=val_fraction, test_fraction=test_fraction, seed=seed)
            index = release_val(one(index, duplicate_sets=duplicate_sets))
        fractions = dict.fromkeys(("train", *map(name_fold, range(2, folds.number + 1))), 1 / folds.number)
        open_splits = {"", "train", "val"}
    rows = [row for row, split in enumerate(index.splits) if split in open_splits]
    splits = list(index.splits)
    parts = (
        [index.folds[row] for row in rows] if folds and index.folds else _assign(index, rows, units, fractions, seed)
    )
    for row, part in zip(rows, parts, strict=True):
        splits[row] = part
    if folds is not None:
        splits = [name_fold(1) if split == "train" else split for split in splits]
    result = _fit_task(replace(index, splits=tuple(splits)))
    return choose_fold(result, folds.fold) if folds and folds.fold else result


def release_val(index: Index) -> Index:
    """Return the index with its validation images as training images, so that a new split is drawn from both."""
    return replace(index, splits=tuple("train" if split == "val" else split for split in index.splits))


def _check_folds(index: Index, folds: Folds, groups: int) -> None:
    """Check that the data can have these folds; `groups` is the number of units that are not divided."""
    if index.folds and folds.number != (number := len(set(index.folds) - {""})):
        raise UsageError(
            f"the table of the data has {format_count(number, 'fold')}, not {folds.number}",
            f"Give --folds {number}, or --resplit to draw new folds",
        )
    if folds.number > groups:
        counted = format_count(groups, "group is", "groups are")
        raise UsageError(f"{counted} too few for {folds.number} folds", "Give a smaller number of --folds")


def leave_out(index: Index, *, val_fraction: float, seed: int, duplicate_sets: Sequence[Sequence[int]] = ()) -> Index:
    """Return the index with a fold for each value of a column, which tests on it; for `choose_fold`.

    The validation images are drawn once, from all rows; those of a fold's own value are among its test images. Splits
    of the data are not used.

    Args:
        index: scanned, with its groups, `fold_names` and folds; a row without a fold trains or validates in all.
        val_fraction: fraction of the images for validation.
        seed: of the draw.
        duplicate_sets: sets of rows that stay in one split, as groups do.
    """
    plain = replace(index, splits=("",) * len(index), folds=())
    drawn = split_index(plain, val_fraction=val_fraction, test_fraction=0.0, seed=seed, duplicate_sets=duplicate_sets)
    splits = tuple(fold or "train" for fold in index.folds)
    return _fit_task(replace(plain, splits=splits, validation=tuple(split == "val" for split in drawn.splits)))


def name_fold(fold: int) -> str:
    """Return the split of an image that validates in this fold, counted from 1."""
    return f"{FOLD}{fold}"


def is_fold(split: str) -> bool:
    """Return True if a split is named by `name_fold`."""
    return split.startswith(FOLD)


def list_trained_rows(index: Index) -> list[int]:
    """Return the rows that a run has trained on: those of the training split, or of the folds."""
    return [row for row, split in enumerate(index.splits) if split == "train" or is_fold(split)]


def choose_fold(index: Index, fold: int) -> Index:
    """Return the index in which one fold validates and the others train; the test split is kept.

    With `validation`, one fold is the test split.

    Args:
        index: with the fold of each image, as `split_index` gives it for fold 0, or `leave_out`.
        fold: from 1.
    """
    val = name_fold(fold)
    if index.validation:
        pairs = zip(index.splits, index.validation, strict=True)
        tested = ("test" if split == val else "val" if validates else "train" for split, validates in pairs)
        return replace(index, splits=tuple(tested), validation=())
    splits = ("val" if split == val else "train" if is_fold(split) else split for split in index.splits)
    return replace(index, splits=tuple(splits))


def _fit_task(index: Index) -> Index:
    """Return the index with the parameters of its task that follow from the targets, such as their mean.

    Test images do not count. Validation images do, so that all folds of a cross-validation have the same parameters.
    """
    rows = [row for row, split in enumerate(index.splits) if split != "test"]
    if not index.values or not rows:
        return index
    return replace(index, task_record=index.task.fit_targets(index.targets(rows)).to_dict())


def explain_small_validation(index: Index) -> str | None:
    """Return the reason why the validation split is too small to choose the best epoch; None if it is large enough."""
    rows = index.rows("val")
    if not rows:
        return "there is no validation split"
    few = index.task.explain_small_validation(index.targets(rows), index.classes)
    if len(rows) >= MIN_VAL_IMAGES and not few:
        return None
    return f"the validation split has only {format_count(len(rows), 'image')}{f' ({few})' if few else ''}"


def advise_on_validation(index: Index, own: Collection[str], val_fraction: float) -> str:
    """Return what makes the validation split of an index larger, where the data have the splits `own`."""
    if "val" in own:
        return "--resplit-val draws a larger one from train and val"
    if not val_fraction:
        return "A --val-fraction above 0, or a val folder, gives one"
    if index.groups and not index.rows("val"):
        number = format_count(len(set(index.groups)), "group")
        return f"The images are of {number}, which stay whole: collect more groups, or correct them by --group-from"
    return f"Collect more images, or raise --val-fraction (now {val_fraction:g})"


def _find_units(index: Index, duplicate_sets: Sequence[Sequence[int]]) -> list[int]:
    """Return a number for each row, equal for rows that must stay in one split."""
    first: dict[str, int] = {}
    links = [(rows[0], row) for rows in duplicate_sets for row in rows[1:]]
    links += [(first.setdefault(group, row), row) for row, group in enumerate(index.groups)]
    units = list(range(len(index)))
    for rows in join_rows([link for link in links if link[0] != link[1]]):
        for row in rows:
            units[row] = rows[0]
    return units


def _assign(index: Index, rows: list[int], units: list[int], fractions: dict[str, float], seed: int) -> list[str]:
    """Return the part of each row, so that each part has its fraction of each class and no unit is divided.

    Units are assigned by size, large ones first, to the part that is least full of their classes relative to its
    fraction. Each unit is counted by its middle (Sainte-Laguë's rule, which favours neither large nor small parts).
    scikit-learn's StratifiedGroupKFold does the same for equal parts; it took 8 s for 3,000 patients, and this 0.1 s.

    In a small class several parts may be least full, of which the first is taken. With many such classes it has too
    many images; then the one that is least full of all images is taken.
    """
    members = group_by(rows, units.__getitem__)
    order = list(members)  # by path, then shuffled by the seed alone
    random.Random(seed).shuffle(order)  # noqa: S311
    strata = index.task.list_strata(index.targets()) if index.values else [(label,) for label in index.labels]
    weight_of: dict[int, float] = defaultdict(lambda: 1)
    if index.values:  # several labels per image: units of the rarest first, as in Sechidis 2011, each label alike
        totals = Counter(stratum for row in rows for stratum in strata[row])
        rarest = {unit: min(totals[stratum] for row in members[unit] for stratum in strata[row]) for unit in members}
        order.sort(key=lambda unit: rarest[unit])
        weight_of |= {stratum: 1 / total for stratum, total in totals.items()}
    order.sort(key=lambda unit: -len(members[unit]))
    contents = {unit: Counter(stratum for row in members[unit] for stratum in strata[row]) for unit in order}
    sizes = {unit: len(members[unit]) for unit in order}
    fractions = {part: fraction for part, fraction in fractions.items() if fraction > 0}
    part_of = _fill_parts(contents, weight_of, sizes, fractions, balances=False)
    if _measure_miss(part_of, sizes, fractions) > MISS:
        balanced = _fill_parts(contents, weight_of, sizes, fractions, balances=True)
        part_of = min(part_of, balanced, key=lambda each: _measure_miss(each, sizes, fractions))
    return [part_of[units[row]] for row in rows]


def _fill_parts(
    contents: Mapping[int, Counter[int]],
    weight_of: Mapping[int, float],
    sizes: Mapping[int, int],
    fractions: Mapping[str, float],
    *,
    balances: bool,
) -> dict[int, str]:
    """Return the part of each unit, given its images of each class and its size; see `_assign`."""
    full: dict[str, Counter[int]] = {part: Counter() for part in fractions}
    size: Counter[str] = Counter()
    part_of: dict[int, str] = {}
    for unit, images in contents.items():

        def fill(part: str, images: Counter[int] = images) -> tuple[float, float]:
            whole = size[part] / fractions[part] if balances else 0.0
            if part == "train" and not all(full[part][label] for label in images):
                return -1.0, whole  # a class without a training image cannot be learned
            filled = (weight_of[label] * n * (full[part][label] + n / 2) for label, n in images.items())
            return sum(filled) / fractions[part], whole

        part_of[unit] = min(full, key=fill)
        full[part_of[unit]].update(images)
        size[part_of[unit]] += sizes[unit]
    return part_of


def _measure_miss(part_of: Mapping[int, str], sizes: Mapping[int, int], fractions: Mapping[str, float]) -> float:
    """Return the largest difference between the images of a part and those of its fraction, relative to the latter."""
    size: Counter[str] = Counter()
    for unit, part in part_of.items():
        size[part] += sizes[unit]
    images = size.total() / sum(fractions.values())
    return max(abs(size[part] / (fraction * images) - 1) for part, fraction in fractions.items())
