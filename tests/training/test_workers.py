import os
import pickle
import signal
import sys
from contextlib import closing
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convnext_cli import finetune
from convnext_cli.errors import ConvnextError, ImageError
from convnext_cli.images.preprocessing import Augmentation, Preprocessing
from convnext_cli.recipes.tables import load_augmentations
from convnext_cli.training.loading import choose_workers
from convnext_cli.training.views import ThreadLoader, TrainingViews
from convnext_cli.training.workers import ProcessLoader

BATCHES = [[(row, epoch, row) for row in range(6)] for epoch in range(4)]


def _write_images(folder: Path, *, classes: int = 1, size: int = 40) -> Path:
    """Six images of noise in each class."""
    random = np.random.default_rng(0)
    for label in range(classes):
        (folder / f"class{label}").mkdir(parents=True)
        for i in range(6):
            pixels = random.integers(0, 256, (size, size + 2 * i, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(folder / f"class{label}" / f"{i}.png")
    return folder


def _plan(root: Path, **changes: Any) -> TrainingViews:
    augmentation = {name: value for name, (value, _) in load_augmentations()["natural"].items()}
    preprocessing = Preprocessing(
        image_size=32, crop_pct=1.0, crop_mode="squash", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3
    )
    return TrainingViews(
        root=root,
        paths=tuple(f"class0/{i}.png" for i in range(6)),
        preprocessing=preprocessing,
        largest=preprocessing,
        augmentation=Augmentation(**augmentation | changes),
        seed=3,
        is_whole=False,
        cache=True,
    )


@pytest.mark.parametrize("workers", [1, 2])
@pytest.mark.parametrize("min_crop_area", [0.5, 1.0])
def test_processes_load_what_threads_load(tmp_path: Path, workers: int, min_crop_area: float) -> None:
    views = _plan(_write_images(tmp_path / "data"), min_crop_area=min_crop_area)
    expected = list(ThreadLoader(views, 2).load(BATCHES))
    with closing(ProcessLoader(views, workers, 6)) as loader:
        for _ in range(2):  # epochs
            loaded = [(draws, images.copy()) for draws, images in loader.load(BATCHES)]
            assert loader.flush() is None
            assert [draws for draws, _ in loaded] == BATCHES
            for (_, images), (_, others) in zip(loaded, expected, strict=True):
                assert images.shape == (6, 32, 32, 3)
                np.testing.assert_array_equal(images, others)


def test_batches_are_in_a_temporary_file_where_memory_has_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delattr(os, "memfd_create")
    views = _plan(_write_images(tmp_path / "data"))
    [(_, expected)] = ThreadLoader(views, 1).load(BATCHES[:1])
    with closing(ProcessLoader(views, 2, 6)) as loader:
        [(_, images)] = loader.load(BATCHES[:1])
        np.testing.assert_array_equal(images, expected)


def test_an_unreadable_image_is_the_same_error_from_a_process(tmp_path: Path) -> None:
    views = _plan(_write_images(tmp_path / "data"))
    (views.root / views.paths[4]).write_bytes(b"not an image")
    with closing(ProcessLoader(views, 2, 6)) as loader:
        with pytest.raises(ImageError, match=r"class0/4\.png"):
            list(loader.load(BATCHES))
        rest = [[draw for draw in batch if draw[0] != 4] for batch in BATCHES]
        assert len(list(loader.load(rest))) == len(BATCHES), "the processes go on"


def test_a_killed_process_is_an_error_with_its_remedy(tmp_path: Path) -> None:
    views = _plan(_write_images(tmp_path / "data"))
    with closing(ProcessLoader(views, 1, 6)) as loader:
        list(loader.load(BATCHES[:1]))
        [process] = loader.processes
        os.kill(process.pid, signal.SIGKILL)
        process.wait()
        with pytest.raises(ConvnextError, match="a process that loads images was killed"):
            list(loader.load(BATCHES))


def test_a_process_that_ends_at_its_start_is_such_an_error_too(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    views = replace(_plan(tmp_path), paths=tuple(f"{i:0100}" for i in range(2000)))  # more than a pipe holds
    monkeypatch.setattr(sys, "executable", "false")
    with pytest.raises(ConvnextError, match="a process that loads images was killed"):
        ProcessLoader(views, 1, 6)


def test_an_unforeseen_error_of_a_process_has_its_traceback(tmp_path: Path) -> None:
    views = _plan(_write_images(tmp_path / "data"))
    with (
        closing(ProcessLoader(views, 1, 6)) as loader,
        pytest.raises(RuntimeError, match=r"views\.py(.|\n)*IndexError"),
    ):
        list(loader.load([[(99, 0, 0)]]))


def test_processes_end_with_the_loader_and_ignore_ctrl_c(tmp_path: Path) -> None:
    views = _plan(_write_images(tmp_path / "data"))
    loader = ProcessLoader(views, 2, 6)
    loader.flush()  # waits until they have started
    for process in loader.processes:
        process.send_signal(signal.SIGINT)
    assert len(list(loader.load(BATCHES))) == len(BATCHES)
    loader.close()
    assert [process.returncode for process in loader.processes] == [0, 0]


def test_views_can_be_sent_to_another_process(tmp_path: Path) -> None:
    views = _plan(tmp_path)
    assert pickle.loads(pickle.dumps(views)) == views  # noqa: S301


@pytest.mark.parametrize(
    ("device", "cores", "workers"), [("cpu", 16, 0), ("cuda", 16, 15), ("cuda", 2, 0), ("mps", 8, 7), ("xpu", 3, 2)]
)
def test_processes_are_the_default_beside_a_gpu(device: str, cores: int, workers: int) -> None:
    assert choose_workers(torch.device(device), cores) == workers


def test_a_model_is_the_same_with_any_number_of_workers(tmp_path: Path) -> None:
    data = _write_images(tmp_path / "data", classes=2)
    weights = []
    for workers in (0, 1, 2):
        run = tmp_path / f"run{workers}"
        finetune(
            data,
            model="test_convnext2",
            weights="none",
            output=run,
            workers=workers,
            epochs=2,
            batch_size=4,
            image_size=32,
            augment="natural",
            onnx=False,
            audit=False,
        )
        weights.append((run / "model.safetensors").read_bytes())
    assert weights[0] == weights[1] == weights[2]
