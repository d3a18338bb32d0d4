from dataclasses import replace
from pathlib import Path

from convnext_cli.data.scan import Index
from convnext_cli.data.split import explain_weak_validation, split_index


def make_index(*counts: int, split: str = "") -> Index:
    labels = tuple(label for label, count in enumerate(counts) for _ in range(count))
    return Index(
        root=Path("data"),
        classes=tuple("abcdef"[: len(counts)]),
        paths=tuple(f"{i:05d}.png" for i in range(len(labels))),
        labels=labels,
        splits=(split,) * len(labels),
        skipped={},
    )


def test_the_draw_is_by_class_and_complete() -> None:
    index = split_index(make_index(200, 100, 40), val_fraction=0.15, test_fraction=0.1, seed=0)
    assert index.count_classes("val") == [30, 15, 6]
    assert index.count_classes("test") == [20, 10, 4]
    assert index.count_classes("train") == [150, 75, 30]


def test_the_draw_repeats_with_its_seed() -> None:
    index = make_index(200, 100)
    draws = [split_index(index, val_fraction=0.2, test_fraction=0.2, seed=seed).splits for seed in (1, 1, 2)]
    assert draws[0] == draws[1]
    assert draws[0] != draws[2]


def test_own_splits_are_respected() -> None:
    own = replace(make_index(50, 50), splits=("train",) * 40 + ("val",) * 10 + ("train",) * 40 + ("test",) * 10)
    assert split_index(own, val_fraction=0.3, test_fraction=0.3, seed=0) == own


def test_a_missing_validation_split_is_drawn_from_training_alone() -> None:
    own = replace(make_index(100, 100), splits=(("train",) * 80 + ("test",) * 20) * 2)
    index = split_index(own, val_fraction=0.25, test_fraction=0.5, seed=0)
    assert index.count_classes("val") == [20, 20]
    assert index.rows("test") == own.rows("test")


def test_every_class_keeps_a_training_image() -> None:
    index = split_index(make_index(1, 2, 3), val_fraction=0.45, test_fraction=0.45, seed=0)
    assert all(index.count_classes("train"))
    assert len(index.rows("train")) + len(index.rows("val")) + len(index.rows("test")) == 6


def test_weak_validation_is_explained() -> None:
    strong = replace(make_index(200, 200), splits=(("train",) * 150 + ("val",) * 50) * 2)
    assert explain_weak_validation(strong) is None
    assert explain_weak_validation(make_index(30, 30, split="train")) == "there is no validation split"
    kermany = make_index(8, 8, 0, split="val")
    assert explain_weak_validation(kermany) == "the validation split has only 16 images (0 of c)"
    assert explain_weak_validation(make_index(20, 20, split="val")) == "the validation split has only 40 images"
