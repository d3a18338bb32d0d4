"""Framing in a run: what stands at the edge is seen, a rectangle trains and exports, earlier runs keep theirs."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image

from convnext_cli import finetune
from convnext_cli.training.events import FinetuneResult

COLOURS = {"blue": (40, 60, 220), "red": (220, 60, 40)}
SETTINGS: dict[str, Any] = {
    "weights": "builtin", "image_size": 64, "epochs": 4, "freeze_epochs": 0, "batch_size": 16, "lr": 1e-3,
    "warmup_epochs": 0.2, "min_crop_area": 0.5, "val_fraction": 0.4, "test_fraction": 0.0, "cache": False,
    "onnx": False, "audit": False,
}  # fmt: skip


def write_strips(folder: Path, *, is_at_edge: bool, images: int = 60) -> Path:
    """Write 3:1 images of noise with a patch whose colour is the class, at the left or right edge or in the middle."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(images):
            pixels = random.integers(60, 200, (48, 144, 3), dtype=np.uint8)
            left = 60 if not is_at_edge else int(random.choice([0, 120]))
            pixels[12:36, left : left + 24] = colour
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_strips(tmp_path_factory.mktemp("edge") / "data", is_at_edge=True)


def train_strips(data: Path, output: Path, **changes: Any) -> float:
    """Train, and return the balanced accuracy on validation images."""
    result = finetune(data, output=output, **(SETTINGS | changes))
    assert isinstance(result, FinetuneResult)
    assert result.val is not None
    return result.val.balanced_accuracy


@pytest.mark.parametrize("fit", ["pad", "squash", "auto"])
def test_a_class_at_the_edge_is_learned_where_the_whole_image_is_seen(fit: str, strips: Path, tmp_path: Path) -> None:
    assert train_strips(strips, tmp_path / "run", fit=fit) >= 0.95


def test_a_class_at_the_edge_is_not_seen_by_a_crop(strips: Path, tmp_path: Path) -> None:
    assert abs(train_strips(strips, tmp_path / "run", fit="crop") - 0.5) < 0.16, "chance"
    middle = write_strips(tmp_path / "data", is_at_edge=False)
    assert train_strips(middle, tmp_path / "middle", fit="crop") >= 0.95
