"""What bounds a run: the disk, the time, a better epoch that does not come, and the number of processes."""

import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from collections.abc import Callable, Generator, Iterator
from dataclasses import make_dataclass, replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pytest

from convnext_cli.errors import ConvnextError, UsageError
from convnext_cli.machine import LAUNCHER
from convnext_cli.progress import Notice, Progress
from convnext_cli.recipes.settings import Choice
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.checkpoint import read_checkpoint
from convnext_cli.training.compute import launcher
from convnext_cli.training.compute.launcher import SHUTDOWN_TIMEOUT, choose_shutdown_timeout, launch
from convnext_cli.training.events import EpochDone, FinetuneResult, Planned, Started, StepDone, Trained
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.phases import time_budget
from convnext_cli.training.request import TrainRequest
from convnext_cli.training.resumption import continue_if_restarted
from tests.training.conftest import STEPS, make_request, resume, small_request, stop_after, tiny_request, train
from tools.kill_test import SETTINGS as KILLED
from tools.kill_test import compare, read_final_files


def epochs(events: list[Any]) -> list[EpochDone]:
    return [event for event in events if isinstance(event, EpochDone)]


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system with room for a run's beginning and first epoch, but not for the second epoch's checkpoint."""
    folder = tmp_path / "disk"
    folder.mkdir()
    command = ["mount", "-t", "tmpfs", "-o", "size=5m", "tmpfs", str(folder)]
    if subprocess.run(command, capture_output=True, check=False).returncode:
        pytest.skip("a small file system needs the right to mount one")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


def remount(folder: Path, options: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{options}", str(folder)], check=True, capture_output=True)


@pytest.mark.slow
def test_run_resumes_after_a_full_and_a_read_only_disk(
    few_digits: Path, uninterrupted: RunFolder, small_disk: Path
) -> None:
    with pytest.raises(
        ConvnextError, match=r"cannot write .*(No space left|os error 28).*Check the disk's space"
    ) as caught:
        train(tiny_request(few_digits, small_disk / "run"))
    assert caught.value.exit_code == 1
    run = RunFolder(small_disk / "run")
    assert not list(run.path.rglob(".*")), "no partial file is left"
    assert all(read_checkpoint(path) for path in run.list_checkpoints())
    remount(small_disk, "ro")
    with pytest.raises((ConvnextError, OSError), match="Read-only file system"):
        resume(run.path)
    remount(small_disk, "rw,size=20m")
    resume(run.path)
    assert read_final_files(run) == read_final_files(uninterrupted)


def test_removed_run_folder_gives_an_error(few_digits: Path) -> None:
    with pytest.raises(ConvnextError, match="cannot write run/last/step-00000004"):
        stop_after(tiny_request(few_digits, "run"), 2, lambda: shutil.rmtree("run"))


def test_patience_ends_a_run_and_its_resumption(digits: Path) -> None:
    # 60 validation images are enough to choose the epoch; at this rate no epoch is better than the one before
    changes = {"epochs": 9, "patience": 2, "lr": 1e-12, "min_lr": 0.0, "batch_size": 64}
    events = train(small_request(digits, Path("run"), **changes))
    log = [json.loads(line) for line in Path("run/metrics.jsonl").read_text().splitlines()]
    best = max(line["epoch"] for line in log if line["best"])
    assert len(log) == best + 2 < 9
    assert isinstance(events[-1], FinetuneResult)
    assert events[-1].epoch == best
    assert Notice(f"stopped after epoch {best + 2} of 9: no improvement in 2 epochs (--patience)") in events
    Path("run/metrics.json").unlink()
    assert [type(event) for event in resume("run")] == [Planned, Started, Notice, Trained, FinetuneResult], (
        "it had come to its end"
    )


def test_time_budget_reduces_the_epochs_in_the_plan(few_digits: Path) -> None:
    request = tiny_request(few_digits, "run", epochs=100_000, warmup_epochs=3.0)
    events: Generator[Any, None, Any] = finetune_steps(replace(request, max_time=2.0, autotune=False))
    assert any(isinstance(event, Progress) and "time of an epoch" in event.activity for event in events)
    started = next(event for event in events if isinstance(event, Started))
    chosen = started.plan.choices["epochs"]
    assert 1 <= chosen.value < 100_000
    assert chosen.source == "max-time"
    assert "time budget 2 s" in chosen.reason
    assert next(events).lr > 0
    events.close()
    assert tomllib.loads(Path("run/plan.toml").read_text())["settings"]["epochs"] == chosen.value
    progress = json.loads(read_checkpoint(RunFolder(Path("run")).checkpoint(0))[1])
    assert progress["step"] == 0, "the measured steps are undone"


def test_time_budget_changes_only_the_epochs(few_digits: Path, train_once: Callable[..., RunFolder]) -> None:
    request = tiny_request(few_digits, "measured", epochs=2)
    roomy = replace(request, max_time=3600.0)
    train(roomy)
    assert read_final_files(RunFolder(Path("measured"))) == read_final_files(train_once(few_digits, epochs=2))


@pytest.mark.parametrize("steps", [1, 4])
def test_time_of_an_epoch_is_that_of_the_gpu_without_its_first_steps(
    steps: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A GPU computes a step in a second, which the processor only asks for; the end of an epoch waits for it."""
    clock, queued = [0.0], [9.0]  # the first step takes ten
    epochs: list[Choice] = []

    def wait(*_: object) -> None:
        clock[0], queued[0] = clock[0] + queued[0], 0.0

    def train(*_: object) -> Iterator[StepDone]:
        for step in range(1, steps + 1):
            queued[0] += 1.0
            if step == steps:
                wait()
            yield StepDone(epoch=1, step=step, steps=steps, images=8, loss=1.0, lr=1.0, is_due=False, signal=0)

    monkeypatch.setattr(time_budget, "time", SimpleNamespace(perf_counter=lambda: clock[0]))
    monkeypatch.setattr(time_budget, "train", train)
    monkeypatch.setattr(time_budget, "wait_for_gpu", wait)
    plan = SimpleNamespace(settings=SimpleNamespace(epochs=100), with_epochs=epochs.append)
    index = SimpleNamespace(rows=lambda split: [0] * 8 if split == "train" else [])
    accelerator = SimpleNamespace(num_processes=1, device=None)
    context: Any = SimpleNamespace(plan=plan, steps_per_epoch=steps, index=index, accelerator=accelerator)
    time_budget.fit_epochs(context, cast("Any", None), 11.0 * steps)
    assert [choice.value for choice in epochs] == [10], "5% are a reserve"


def test_gradient_checkpointing_gives_the_same_losses(few_digits: Path, train_once: Callable[..., RunFolder]) -> None:
    plain = train_once(few_digits, epochs=2).read_log()
    saving = epochs(train(tiny_request(few_digits, "saving", epochs=2, grad_checkpointing=True)))
    for one, other in zip(plain, saving, strict=True):
        assert other.train_loss == pytest.approx(one["train_loss"], rel=1e-5)


def test_gradient_is_clipped_to_the_norm(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import torch

    lengths = []
    true = torch.optim.AdamW.step

    def measured(optimizer: torch.optim.AdamW, *rest: Any) -> Any:
        gradients = [p.grad for group in optimizer.param_groups for p in group["params"]]
        lengths.append(float(torch.nn.utils.get_total_norm(gradients)))
        return true(optimizer, *rest)

    monkeypatch.setattr(torch.optim.AdamW, "step", measured)
    train(tiny_request(few_digits, "free", epochs=1))
    assert 0.2 < max(lengths) < 10, "of the mean loss over the batch; of the sum it would be 8 times as long"
    lengths.clear()
    train(tiny_request(few_digits, "clipped", epochs=1, clip_grad=0.1, deterministic=True))
    assert len(lengths) == STEPS
    assert max(lengths) == pytest.approx(0.1, rel=1e-3)


def test_tensorboard_gets_the_metrics_and_unknown_trackers_are_refused(few_digits: Path) -> None:
    request = tiny_request(few_digits, "run", track=("tensorbord",))
    with pytest.raises(UsageError, match=r"unknown tracker 'tensorbord'.*Did you mean tensorboard"):
        next(finetune_steps(request))
    pytest.importorskip("tensorboard")
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    train(tiny_request(few_digits, "run", epochs=2, track=("tensorboard",)))
    [folder] = {path.parent for path in Path("run").rglob("events.out.tfevents*") if path.parent.name == "convnext"}
    seen = EventAccumulator(str(folder)).Reload()
    scalars, log = seen.Scalars("train_loss"), RunFolder(Path("run")).read_log()
    assert [scalar.step for scalar in scalars] == [line["epoch"] for line in log]
    assert [scalar.value for scalar in scalars] == pytest.approx([line["train_loss"] for line in log])


def test_failing_tracker_loses_no_training(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Like MLflow without its database driver, and W&B without a key."""
    pytest.importorskip("tensorboard")

    def refuse(*_: object) -> None:
        raise RuntimeError("no connection\nand much more")

    monkeypatch.setattr("accelerate.Accelerator.init_trackers", refuse)
    with pytest.raises(UsageError, match=r"cannot send metrics to .*: no connection") as caught:
        train(tiny_request(few_digits, "run", track=("tensorboard",)))
    assert "--resume run" in caught.value.remedy
    assert isinstance(resume("run")[-1], FinetuneResult)


def test_a_new_run_of_the_same_name_is_another_one_in_wandb(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """W&B takes no metrics of steps that its run has, and a resumed training keeps its run."""
    ids: list[str] = []

    def record(*arguments: Any) -> None:
        options = arguments[-1]
        assert options["wandb"]["name"] == options["mlflow"]["run_name"] == "run"
        ids.append(options["wandb"]["id"])

    monkeypatch.setattr("convnext_cli.training.planning.find_spec", lambda _: True)
    monkeypatch.setattr("accelerate.accelerator.filter_trackers", lambda *_: ["wandb"])
    monkeypatch.setattr("accelerate.Accelerator.init_trackers", record)
    stop_after(tiny_request(few_digits, "run", track=("wandb",)), 5)
    resume("run", track=("wandb",))
    stop_after(tiny_request(few_digits, "run", track=("wandb",), overwrite=True), 1)
    assert len(ids) == 3
    assert ids[0] == ids[1] != ids[2]
    monkeypatch.chdir(few_digits)
    with pytest.raises(UsageError, match="wandb writes into the current folder, which lies in the data folder"):
        next(finetune_steps(tiny_request(few_digits, "run", track=("wandb",))))


def test_restart_by_torchrun_resumes_the_run(few_digits: Path, launched: pytest.MonkeyPatch) -> None:
    with launched.context() as alone:
        for name in LAUNCHER:
            alone.delenv(name)
        stop_after(tiny_request(few_digits, "run"), 5)
    request = tiny_request(few_digits, "run")
    assert continue_if_restarted(request) is request
    launched.setenv("TORCHELASTIC_RESTART_COUNT", "1")
    assert continue_if_restarted(request).resume == Path("run")


SLOW_RANK = """
import os, sys, torch
import torch.nn.functional as F
true, seen = F.cross_entropy, iter(range(10**9))
def limited(logits, *rest, **options):
    if os.environ.get("RANK") == "1" and len(logits) > 2 and next(seen) == 3:
        raise torch.OutOfMemoryError("CUDA out of memory.")
    return true(logits, *rest, **options)
F.cross_entropy = limited
from convnext_cli.cli.app import main
main(sys.argv[1:])
"""
WORDS = "--model test_convnext2 --weights none --image-size 32 --batch-size 8 --lr 0.002 --val-fraction 0.2"


@pytest.mark.slow
def test_two_processes_agree_on_a_smaller_micro_batch(few_digits: Path) -> None:
    Path("script.py").write_text(SLOW_RANK)
    words = ["finetune", str(few_digits), *WORDS.split(), "--epochs", "2", "-o"]
    two = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "script.py"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(Path(__file__).parents[2])}
    command = [sys.executable, "-m", *two, *words, "two"]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env=environment)
    assert done.stderr.count("out of memory at step") == 1
    settings = {"batch_size": 8, "lr": 2e-3, "image_size": 32, "val_fraction": 0.2, "epochs": 2}
    train(make_request({"model": "test_convnext2", "weights": "none", **settings}, few_digits, "one"))
    alone, together = read_final_files(RunFolder(Path("one")))[1], read_final_files(RunFolder(Path("two")))[1]
    assert [line["micro_batch_size"] for line in together] == [2, 2]
    for line, other in zip(alone, together, strict=True):
        assert line["train_loss"] == pytest.approx(other["train_loss"], rel=1e-5)
        assert line["lr"] == other["lr"]


def test_more_devices_than_available_are_refused() -> None:
    with pytest.raises(UsageError, match="--devices 100000, but"):
        launch(100_000)


@pytest.mark.parametrize(
    ("setting", "chosen"), [("shutdown_timeout", {"shutdown_timeout": SHUTDOWN_TIMEOUT}), ("min_nodes", {})]
)
def test_an_older_pytorch_has_its_own_shutdown_timeout(
    monkeypatch: pytest.MonkeyPatch, setting: str, chosen: dict[str, int]
) -> None:
    """LaunchConfig of torch 2.11 has no `shutdown_timeout`."""
    monkeypatch.setattr(launcher, "LaunchConfig", make_dataclass("LaunchConfig", [(setting, int)]))
    assert choose_shutdown_timeout() == chosen


@pytest.mark.slow
def test_devices_stop_together_and_one_process_resumes(few_digits: Path) -> None:
    words = ["finetune", str(few_digits), *WORDS.split(), "--epochs", "40", "--devices", "2", "-o", "run"]
    with subprocess.Popen([sys.executable, "-m", "convnext_cli", *words], stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip().startswith("2/40"):
                break
        process.send_signal(signal.SIGTERM)
        rest = process.stderr.read()
    assert process.returncode == 143
    assert rest.splitlines()[-1].endswith("Continue with `convnext finetune --resume run`.")
    events: Generator[Any, None, Any] = finetune_steps(TrainRequest(resume=Path("run")))
    started = next(event for event in events if not isinstance(event, Progress | Planned))
    step = next(events)
    assert started.resumed_at >= 2 * 5
    assert isinstance(step, StepDone)
    events.close()


SHORT = KILLED.replace("--epochs 6", "--epochs 3")


@pytest.mark.slow
def test_run_killed_at_random_moments_ends_in_the_same_bytes(few_digits: Path) -> None:
    assert compare(few_digits, kills=3, processes=1, seed=1, settings=SHORT).startswith("3 kills")
