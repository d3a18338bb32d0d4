"""Saving by a thread while the training goes on."""

import shutil
import threading
from pathlib import Path

import pytest
import torch

from convnext_cli.errors import ConvnextError, ImageError
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training import saving
from convnext_cli.training.checkpoint import Snapshot, read_checkpoint
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import StepDone
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.saving import Writer
from tests.training.conftest import STEPS, resume, stop_after, tiny_request, train
from tools.kill_test import read_final_files


def test_writer_does_one_piece_of_work_at_a_time_and_raises_its_error_later() -> None:
    done: list[int] = []
    free = threading.Event()

    def work() -> None:
        free.wait(10)
        done.append(len(done))

    with Writer() as writer:
        writer.start(work)
        assert not done
        free.set()
        writer.start(work)
        assert done[0] == 0
    assert done == [0, 1], "the end of the block waits"

    def fail() -> None:
        raise ConvnextError("cannot write", "Check the disk's space")

    with Writer() as writer:
        writer.start(fail)
        with pytest.raises(ConvnextError, match="cannot write"):
            writer.start(work)
    with pytest.raises(ConvnextError, match="cannot write"), Writer() as writer:
        writer.start(fail)
    assert done == [0, 1]


def test_image_that_vanishes_while_a_run_trains_is_to_be_restored(few_digits: Path, tmp_path: Path) -> None:
    data = shutil.copytree(few_digits, tmp_path / "data")
    with pytest.raises(
        ImageError, match=r"0/.*png does not exist\. Restore the file\. Continue with `convnext finetune"
    ):
        stop_after(tiny_request(data, "run"), 2, lambda: shutil.rmtree(data / "0"))
    shutil.copytree(few_digits / "0", data / "0")
    resume("run")
    assert RunFolder(Path("run")).is_finished


def test_steps_go_on_while_an_epoch_is_written_and_do_not_change_it(
    few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_request(few_digits, "whole", save_every=0))
    free, write = threading.Event(), saving._write_snapshot

    def write_late(context: TrainingContext, snapshot: Snapshot) -> None:
        assert free.wait(60)
        write(context, snapshot)

    monkeypatch.setattr(saving, "_write_snapshot", write_late)
    events = finetune_steps(tiny_request(few_digits, "run", save_every=0))
    steps = 0
    for event in events:
        if isinstance(event, StepDone):
            steps += 1
            if steps == 2 * STEPS:  # before the second epoch's end, which waits for the first one's checkpoint
                free.set()
    run, whole = RunFolder(Path("run")), RunFolder(Path("whole"))
    assert read_final_files(run) == read_final_files(whole)
    for one, two in zip(run.list_checkpoints(), whole.list_checkpoints(), strict=True):
        tensors, others = read_checkpoint(one)[0], read_checkpoint(two)[0]
        assert all(torch.equal(value, others[name]) for name, value in tensors.items())


def test_training_that_is_left_waits_for_its_checkpoint(few_digits: Path) -> None:
    stop_after(tiny_request(few_digits, "run", save_every=0), STEPS + 1)
    assert RunFolder(Path("run")).list_checkpoints()[0].name == f"step-{STEPS:08}.safetensors"
    assert not [thread for thread in threading.enumerate() if thread.name.startswith("save")]
