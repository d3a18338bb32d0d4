"""Small data sets with a known answer for each task, and a run on each."""

import csv
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image

from convnext_cli import finetune
from convnext_cli.runs.folder import RunFolder

IMAGES = 240
SETTINGS: dict[str, Any] = {
    "model": "test_convnext2", "weights": "none", "epochs": 3, "freeze_epochs": 0, "batch_size": 16, "lr": 2e-3,
    "image_size": 32, "min_crop_area": 1.0, "hflip": 0.0, "val_fraction": 0.3, "test_fraction": 0.2, "onnx": False,
    "audit": False, "autotune": False,
}  # fmt: skip
TASKS = ("multilabel", "ordinal", "regression")


def draw(kind: str, random: np.random.Generator) -> tuple[NDArray[np.uint8], list[str]]:
    """Return a picture and its targets: quarters that are bright, their number, or a brightness."""
    pixels = random.integers(0, 40, (32, 32)).astype(float)
    if kind == "regression":
        level = random.uniform(0, 1)
        return (pixels + 200 * level).astype(np.uint8), [f"{10 + 5 * level:.4f}"]
    bright = random.random(4) < 0.4
    for quarter in np.flatnonzero(bright):
        y, x = divmod(int(quarter), 2)
        pixels[16 * y : 16 * y + 16, 16 * x : 16 * x + 16] += 180
    if kind == "ordinal":
        return pixels.astype(np.uint8), [f"{min(3, bright.sum())}"]
    cells = [f"{int(value)}" for value in bright]
    if random.random() < 0.3:
        cells[int(random.integers(4))] = ("", "-1")[int(random.integers(2))]
    return pixels.astype(np.uint8), cells


COLUMNS = {"multilabel": ["NW", "NE", "SW", "SE"], "ordinal": ["grade"], "regression": ["brightness"]}


def write_set(folder: Path, kind: str, images: int = IMAGES) -> Path:
    """Write the pictures of a task and their table, with two pictures per patient; return the table."""
    random = np.random.default_rng(0)
    rows = []
    for number in range(images):
        pixels, cells = draw(kind, random)
        path = folder / f"images/{number:04}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
        rows.append([f"images/{path.name}", f"p{number // 2}", *cells])
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "patient", *COLUMNS[kind]], *rows])
    return folder / "table.csv"


def options_of(kind: str) -> dict[str, Any]:
    """Return the options of a task beside the settings: only the order of grades is not seen in the table."""
    return {"task": "ordinal"} if kind == "ordinal" else {}


@pytest.fixture(scope="session")
def tables(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """The table of each task."""
    return {kind: write_set(tmp_path_factory.mktemp(kind), kind) for kind in TASKS}


@pytest.fixture(scope="session")
def task_run(tables: dict[str, Path], tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], RunFolder]:
    """Return the finished run of a task, trained once."""
    runs: dict[str, RunFolder] = {}

    def get(kind: str) -> RunFolder:
        if kind not in runs:
            folder = tmp_path_factory.mktemp("runs") / kind
            finetune(tables[kind], output=folder, **SETTINGS, **options_of(kind))
            runs[kind] = RunFolder(folder)
        return runs[kind]

    return get


def list_images(table: Path, number: int) -> Sequence[Path]:
    """Return the first images of a table."""
    return sorted(table.parent.glob("images/*.png"))[:number]
