"""Two trainings, or two continuations, with one run folder."""

import os
from collections.abc import Iterator
from dataclasses import replace
from datetime import datetime
from pathlib import Path
from threading import RLock
from typing import Any

import pytest

from convnext_cli.errors import RunError, UsageError, WeightsError
from convnext_cli.locks import LOCK
from convnext_cli.progress import Progress
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.crossvalidation import cross_validate_steps
from convnext_cli.training.events import FinetuneResult, Started, StepDone
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.request import TrainRequest
from tests.conftest import run_all
from tests.training.conftest import resume, stop_after, tiny_request, train


@pytest.fixture(autouse=True)
def _trainings_stand_for_processes(monkeypatch: pytest.MonkeyPatch) -> None:
    """Let trainings begin beside each other in this process, which refuses that."""
    monkeypatch.setattr("convnext_cli.training.compute.devices._training", RLock())


def until(kind: type, events: Iterator[object]) -> Any:
    return next(event for event in events if isinstance(event, kind))


def contents(folder: Path) -> dict[Path, bytes]:
    return {path: path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_second_training_is_refused_before_it_writes(few_digits: Path) -> None:
    first = finetune_steps(tiny_request(few_digits, "run"))
    until(StepDone, first)
    before = contents(Path("run"))
    overwriting = replace(tiny_request(few_digits, "run", seed=2), overwrite=True)
    for request in (tiny_request(few_digits, "run", seed=2), overwriting, TrainRequest(resume=Path("run"))):
        with pytest.raises(RunError, match=rf"^run is in use: process {os.getpid()} on "):
            train(request)
    assert contents(Path("run")) == before
    assert isinstance(run_all(first)[-1], FinetuneResult)
    assert not Path("run", LOCK).exists()


def test_training_that_waited_for_its_data_is_refused_too(few_digits: Path) -> None:
    late = finetune_steps(tiny_request(few_digits, "run", seed=2))
    until(Progress, late)  # the folder was free
    first = finetune_steps(tiny_request(few_digits, "run"))
    until(StepDone, first)
    before = contents(Path("run"))
    with pytest.raises(RunError, match="is in use"):
        list(late)
    assert contents(Path("run")) == before
    late = finetune_steps(replace(tiny_request(few_digits, "run", seed=2), overwrite=True))
    first.close()
    until(StepDone, late)
    late.close()
    assert "\nseed = 2\n" in Path("run/plan.toml").read_text()


def test_second_resume_is_refused(few_digits: Path) -> None:
    stop_after(tiny_request(few_digits, "run"), 5)
    first = finetune_steps(TrainRequest(resume=Path("run")))
    until(Started, first)
    with pytest.raises(RunError, match="is in use"):
        resume("run")
    assert isinstance(run_all(first)[-1], FinetuneResult)
    with pytest.raises(UsageError, match="has finished"):
        resume("run")


def test_lock_of_a_killed_process_is_free(few_digits: Path) -> None:
    Path("run").mkdir()
    Path("run", LOCK).write_text("12 on a machine\n")
    stop_after(tiny_request(few_digits, "run"), 5)
    Path("run", LOCK).write_text("12 on a machine\n")
    assert isinstance(resume("run")[-1], FinetuneResult)
    assert not Path("run", LOCK).exists()


def test_runs_begun_in_the_same_second_have_different_folders(
    few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class Clock(datetime):
        @classmethod
        def now(cls, tz: Any = None) -> datetime:  # type: ignore[override]
            return datetime(2026, 11, 22, 10, 15, tzinfo=tz)

    monkeypatch.setattr("convnext_cli.training.resources.datetime", Clock)
    running = [finetune_steps(replace(tiny_request(few_digits, "", seed=seed), output=None)) for seed in (1, 2, 3)]
    folders = [until(Started, events).run for events in running]
    assert [path.name for path in folders] == [f"2026-11-22_101500-test_convnext2{end}" for end in ("", "-2", "-3")]
    for seed, (path, events) in enumerate(zip(folders, running, strict=True), start=1):
        events.close()
        assert f"\nseed = {seed}\n" in RunFolder(path).plan.read_text()


def test_failed_start_leaves_no_folder(few_digits: Path) -> None:
    with pytest.raises(WeightsError):
        train(replace(tiny_request(few_digits, "a/run"), weights="auto", model="convnext_atto", offline=True))
    assert not Path("a").exists()


def test_cross_validation_locks_its_folder_and_the_current_fold(few_digits: Path) -> None:
    request = tiny_request(few_digits, "cv", folds=2, val_fraction=0.0)
    first = cross_validate_steps(request)
    until(StepDone, first)
    before = contents(Path("cv"))
    with pytest.raises(RunError, match=r"^cv is in use"):
        list(cross_validate_steps(replace(request, overwrite=True)))
    with pytest.raises(RunError, match=r"^cv is in use"):
        list(cross_validate_steps(TrainRequest(resume=Path("cv"))))
    with pytest.raises(RunError, match=r"^cv/fold-1 is in use"):
        resume("cv/fold-1")
    assert contents(Path("cv")) == before
    first.close()
    assert not list(Path("cv").rglob(LOCK))
