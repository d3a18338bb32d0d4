from dataclasses import replace
from pathlib import Path

import pytest

from convnext_cli.data.groups import find_groups_across_splits
from convnext_cli.data.index import Index
from convnext_cli.data.split import Folds, choose_fold, explain_small_validation, split_index


def make_index(*counts: int, split: str = "") -> Index:
    labels = tuple(label for label, count in enumerate(counts) for _ in range(count))
    return Index(
        root=Path("data"),
        classes=tuple(f"class {i:02}" for i in range(len(counts))),
        paths=tuple(f"{i:05d}.png" for i in range(len(labels))),
        labels=labels,
        splits=(split,) * len(labels),
        skipped={},
    )


def test_split_is_stratified_and_complete() -> None:
    index = split_index(make_index(200, 100, 40), val_fraction=0.15, test_fraction=0.1, seed=0)
    assert index.count_classes("val") == [30, 15, 6]
    assert index.count_classes("test") == [20, 10, 4]
    assert index.count_classes("train") == [150, 75, 30]


@pytest.mark.parametrize(
    ("classes", "images", "expected"),
    [(6, 3, (12, 3, 3)), (6, 10, (42, 9, 9)), (100, 3, (200, 50, 50)), (2, 10, (14, 3, 3))],
)
def test_small_classes_do_not_all_fill_the_same_part(classes: int, images: int, expected: tuple[int, int, int]) -> None:
    index = split_index(make_index(*[images] * classes), val_fraction=0.15, test_fraction=0.15, seed=0)
    assert tuple(len(index.rows(split)) for split in ("train", "val", "test")) == expected
    assert min(index.count_classes("train")) >= 2


def test_draws_that_have_their_fractions_are_those_of_earlier_versions() -> None:
    index = split_index(make_index(50, 30), val_fraction=0.15, test_fraction=0.15, seed=0)
    assert index.rows("val") == [14, 17, 19, 26, 28, 31, 35, 54, 60, 66, 67]
    assert len(index.rows("test")) == 13


def test_split_depends_on_the_seed_only() -> None:
    index = make_index(200, 100)
    draws = [split_index(index, val_fraction=0.2, test_fraction=0.2, seed=seed).splits for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_existing_splits_are_kept() -> None:
    existing = replace(make_index(50, 50), splits=("train",) * 40 + ("val",) * 10 + ("train",) * 40 + ("test",) * 10)
    assert split_index(existing, val_fraction=0.3, test_fraction=0.3, seed=0) == existing


def test_missing_validation_split_is_drawn_from_training_images() -> None:
    existing = replace(make_index(100, 100), splits=(("train",) * 80 + ("test",) * 20) * 2)
    index = split_index(existing, val_fraction=0.25, test_fraction=0.5, seed=0)
    assert index.count_classes("val") == [20, 20]
    assert index.rows("test") == existing.rows("test")


def test_every_class_keeps_a_training_image() -> None:
    index = split_index(make_index(1, 2, 3), val_fraction=0.45, test_fraction=0.45, seed=0)
    assert all(index.count_classes("train"))
    assert len(index.rows("train")) + len(index.rows("val")) + len(index.rows("test")) == 6


def test_small_validation_split_is_explained() -> None:
    strong = replace(make_index(200, 200), splits=(("train",) * 150 + ("val",) * 50) * 2)
    assert explain_small_validation(strong) is None
    assert explain_small_validation(make_index(30, 30, split="train")) == "there is no validation split"
    kermany = make_index(8, 8, 0, split="val")
    few = "(0 of class 02; 5 of each are needed)"
    assert explain_small_validation(kermany) == f"the validation split has only 16 images {few}"
    assert explain_small_validation(make_index(20, 20, split="val")) == "the validation split has only 40 images"
    assert explain_small_validation(make_index(25, 24, split="val")) == "the validation split has only 49 images"
    assert explain_small_validation(make_index(25, 25, split="val")) is None


def test_fold_of_a_left_out_site_tests_on_it_and_validates_on_others() -> None:
    index = replace(
        make_index(3, 3), splits=("fold-1", "fold-2", "fold-3") * 2, validation=(False, True, False, False, False, True)
    )
    assert choose_fold(index, 1).splits == ("test", "val", "train", "test", "train", "val")


@pytest.mark.parametrize("seed", range(3))
def test_groups_of_several_classes_are_divided_evenly(seed: int) -> None:
    """40 groups of nine images of one class and one of the other: what a group has more of decides."""
    index = make_index(200, 200)
    mostly, hardly = ([f"g{number}" for number in range(start, start + 20)] for start in (0, 20))
    groups = (*mostly * 9, *hardly, *mostly, *hardly * 9)
    divided = split_index(replace(index, groups=groups), val_fraction=0.25, test_fraction=0.25, seed=seed)
    assert [divided.count_classes(split) for split in ("val", "test", "train")] == [[50, 50], [50, 50], [100, 100]]


def test_split_keeps_groups_and_duplicates_in_one_part() -> None:
    index = make_index(60, 90, 300)
    groups = tuple(f"p{row // 3}" for row in range(len(index)))
    copies = [(0, 449), (10, 11, 200)]
    split = split_index(
        replace(index, groups=groups), val_fraction=0.15, test_fraction=0.15, seed=0, duplicate_sets=copies
    )
    assert not find_groups_across_splits(split.groups, split.splits)
    assert all(len({split.splits[row] for row in rows}) == 1 for rows in copies)
    for name, fraction in (("train", 0.7), ("val", 0.15), ("test", 0.15)):
        for result, whole in zip(split.count_classes(name), index.count_classes(), strict=True):
            assert abs(result - fraction * whole) <= 3


def test_each_image_of_a_set_of_duplicates_is_in_its_split() -> None:
    sets = [(row, 60 + row, 120 + row) for row in range(60)]
    index = split_index(
        make_index(180), val_fraction=0.3, test_fraction=0.3, seed=0, duplicate_sets=sets
    )  # so many that no draw by image keeps them together
    assert [len({index.splits[row] for row in rows}) for rows in sets] == [1] * 60
    assert index.count_classes("train") == [72]


def test_folds_divide_existing_splits_without_a_test_split() -> None:
    existing = replace(make_index(50, 50), splits=(("train",) * 40 + ("val",) * 10) * 2)
    vals = []
    for fold in range(1, 6):
        split = split_index(existing, val_fraction=0.3, test_fraction=0.2, seed=0, folds=Folds(number=5, fold=fold))
        assert (split.count_classes("train"), split.count_classes("val")) == ([40, 40], [10, 10])
        vals += split.rows("val")
    assert sorted(vals) == list(range(100))


def test_folds_divide_all_but_the_test_images() -> None:
    index = make_index(50, 70)
    test = split_index(index, val_fraction=0.3, test_fraction=0.2, seed=0).rows("test")
    vals = []
    for fold in range(1, 6):
        split = split_index(index, val_fraction=0.3, test_fraction=0.2, seed=0, folds=Folds(number=5, fold=fold))
        assert split.count_classes("test") == [10, 14]
        assert split.rows("test") == test, "as without folds, so that both can be compared"
        assert sum(split.count_classes("val")) in (19, 20)
        vals.append(set(split.rows("val")))
    assert len(set().union(*vals)) == sum(map(len, vals)) == 96


def test_existing_splits_are_kept_with_groups() -> None:
    index = make_index(20, 20)
    existing = replace(index, splits=("train", "test") * 20, groups=("p1", "p1") * 20)
    assert split_index(existing, val_fraction=0.0, test_fraction=0.5, seed=0).splits == existing.splits
