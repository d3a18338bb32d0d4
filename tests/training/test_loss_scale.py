"""Scaled losses, as fp16 has them on a GPU, here in float32 on a CPU: powers of two change no bit."""

import itertools
import json
import math
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder
from convnext_cli.training.checkpoint import read_checkpoint
from convnext_cli.training.compute import devices
from convnext_cli.training.compute.devices import make_accelerator
from convnext_cli.training.crossvalidation import cross_validate_steps
from convnext_cli.training.events import EpochDone
from tests.conftest import run_all
from tests.training.conftest import resume, stop_after, tiny_request, train
from tools.kill_test import read_final_files


@pytest.fixture
def scaled(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return a function that makes the next trainings scale their losses, from an initial scale."""

    def use(scale: float) -> None:
        def make_scaling(*args: Any, **options: Any) -> Any:
            accelerator = make_accelerator(*args, **options)
            accelerator.scaler = torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=5)
            return accelerator

        monkeypatch.setattr(devices, "make_accelerator", make_scaling)

    return use


def test_scaled_losses_change_no_weight(few_digits: Path, scaled: Any) -> None:
    train(tiny_request(few_digits, "plain", clip_grad=0.5, epochs=1))
    scaled(2.0**10)
    train(tiny_request(few_digits, "scaled", clip_grad=0.5, epochs=1))
    one, two = (load_file(f"{name}/model.safetensors") for name in ("plain", "scaled"))
    assert all(torch.equal(value, two[name]) for name, value in one.items())


def test_each_fold_begins_with_the_same_scale(few_digits: Path, scaled: Any) -> None:
    scaled(2.0**10)
    run_all(cross_validate_steps(tiny_request(few_digits, "run", folds=2, epochs=2, val_fraction=0.0)))
    runs = FoldsFolder(Path("run")).list_runs()
    states = [json.loads(read_checkpoint(run.list_checkpoints()[0])[1]) for run in runs]
    assert [state["loss_scale"]["scale"] for state in states] == [2.0**11] * 2, "raised once in eight steps"


@contextmanager
def overflow_in_third_step() -> Iterator[None]:
    calls = itertools.count()

    def sum_gradients(_: Any, parameters: list[torch.nn.Parameter]) -> None:
        if next(calls) == 2:
            for parameter in parameters:
                parameter.grad = torch.full_like(parameter, torch.inf)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("convnext_cli.training.step.sum_gradients", sum_gradients)
        yield


def test_gradient_that_overflows_leaves_its_step_out_and_resumes_the_same(few_digits: Path, scaled: Any) -> None:
    scaled(2.0**10)
    with overflow_in_third_step():
        epochs = [event for event in train(tiny_request(few_digits, "whole", epochs=1)) if isinstance(event, EpochDone)]
    assert all(math.isfinite(epoch.train_loss) for epoch in epochs), "no step diverged"
    with overflow_in_third_step():
        stop_after(tiny_request(few_digits, "run", epochs=1), 5)  # the checkpoint is of step 4
    run = RunFolder(Path("run"))
    state = json.loads(read_checkpoint(run.list_checkpoints()[0])[1])
    assert state["loss_scale"]["scale"] == 2.0**9
    assert state["halvings"] == 0
    resume(run.path)
    assert read_final_files(run) == read_final_files(RunFolder(Path("whole")))
