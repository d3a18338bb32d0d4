from pathlib import Path

from convnext_cli.data.index import Index
from convnext_cli.inference.calibration_fit import BANK_IMAGES_PER_CLASS, choose_bank
from convnext_cli.recipes.costs import BANK_IMAGES


def make_index(*counts: int) -> Index:
    """Return training images of classes with these numbers of images, after one validation image."""
    labels = [0, *(label for label, count in enumerate(counts) for _ in range(count))]
    return Index(
        root=Path(), classes=tuple(f"class {label}" for label in range(len(counts))),
        paths=tuple(f"{row}.png" for row in range(len(labels))), labels=tuple(labels),
        splits=("val", *["train"] * (len(labels) - 1)), skipped={},
    )  # fmt: skip


def test_bank_has_all_images_of_small_classes_and_a_spread_of_large_ones() -> None:
    index = make_index(50, 1000)
    bank = choose_bank(index)
    assert bank == sorted(set(bank))
    assert bank[:50] == list(range(1, 51))
    large = bank[50:]
    assert len(large) == BANK_IMAGES_PER_CLASS
    assert large[0] == 51
    assert large[-1] > 1000, "they are spread over the class"
    assert choose_bank(make_index(3, 4)) == list(range(1, 8))


def test_bank_of_many_classes_is_limited() -> None:
    assert len(choose_bank(make_index(*[150] * 60))) == BANK_IMAGES
