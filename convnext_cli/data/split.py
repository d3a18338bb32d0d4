"""Which image is for training, which for choosing the best epoch, which for the final figure."""

import os
import random
from collections import defaultdict
from dataclasses import replace

from convnext_cli.data.scan import Index

MIN_VAL_IMAGES = 50  # a 95% interval of accuracy is then 12 points to either side at worst
MIN_VAL_PER_CLASS = 5


def split_index(index: Index, *, val_fraction: float, test_fraction: float, seed: int) -> Index:
    """Gives every row a split: the data set's own where it has one, else drawn by class.

    Own splits stay as they are; where only the validation split is missing, it is drawn from the training images. A
    draw depends on the seed and on the names of the files, never on the order in which a disk lists them.
    """
    own = set(index.splits) - {""}
    if "val" in own or val_fraction == 0 == test_fraction:
        return replace(index, splits=tuple(split or "train" for split in index.splits))
    splits = [split or "train" for split in index.splits]
    rows_by_class = defaultdict(list)
    for row in range(len(index)):
        if splits[row] == "train":
            rows_by_class[index.labels[row]].append(row)
    for label, rows in rows_by_class.items():
        random.Random(os.fsencode(f"{seed} {index.classes[label]}")).shuffle(rows)  # noqa: S311
        val = round(len(rows) * val_fraction)
        test = 0 if own else round(len(rows) * test_fraction)
        kept = max(1, len(rows) - val - test)  # a class without a training image cannot be learned
        for row in rows[kept:][:val]:
            splits[row] = "val"
        for row in rows[kept + val :]:
            splits[row] = "test"
    return replace(index, splits=tuple(splits))


def explain_weak_validation(index: Index) -> str | None:
    """Says why the validation split is too small to choose the best epoch by, or returns None where it is not."""
    counts = index.count_classes("val")
    total = sum(counts)
    if not total:
        return "there is no validation split"
    few = [f"{count} of {name}" for name, count in zip(index.classes, counts, strict=True) if count < MIN_VAL_PER_CLASS]
    if total >= MIN_VAL_IMAGES and not few:
        return None
    examples = f" ({', '.join(few[:5])}{' …' if len(few) > 5 else ''})" if few else ""
    return f"the validation split has only {total} images{examples}"
