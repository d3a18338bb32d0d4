"""A run that is stopped, killed or hurt, and goes on."""

import json
import os
import shutil
import signal
import threading
from contextlib import nullcontext, suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file
from torch.optim.optimizer import register_optimizer_step_pre_hook

from convnext_cli import evaluate
from convnext_cli.api import finetune
from convnext_cli.cache_folder import UNPACKED, find_cache_folder
from convnext_cli.errors import (
    DataError,
    DivergedError,
    OutOfMemoryError,
    RunError,
    StoppedError,
    UsageError,
)
from convnext_cli.models.forward import forward_batches
from convnext_cli.progress import Notice, Progress
from convnext_cli.recipes.settings import Choice
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder
from convnext_cli.training import step
from convnext_cli.training.checkpoint import read_checkpoint
from convnext_cli.training.compute import compute_config
from convnext_cli.training.compute.ranks import sum_gradients
from convnext_cli.training.compute.signals import ECHO, Signals, watch_signals
from convnext_cli.training.events import EpochDone, FinetuneResult, Planned, Started, StepDone, Trained
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.planning import prepare
from convnext_cli.training.request import TrainRequest
from tests.training.conftest import STEPS, list_texts, resume, stop_after, tiny_request, train
from tools.kill_test import read_final_files


@pytest.mark.parametrize("steps", [2, 5, STEPS, STEPS + 5, 3 * STEPS])
def test_resumed_run_ends_in_the_same_bytes(few_digits: Path, uninterrupted: RunFolder, steps: int) -> None:
    stop_after(tiny_request(few_digits, "run"), steps)
    run = RunFolder(Path("run"))
    assert not run.is_finished
    planned, started, *_, finished = resume("run")
    assert isinstance(planned, Planned)
    assert isinstance(started, Started)
    assert started.resumed_at == max(done for done in (0, 4, 6, 8, 12, 16) if done < max(steps, 1))
    assert isinstance(finished, FinetuneResult)
    assert read_final_files(run) == read_final_files(uninterrupted)
    assert json.loads(run.metrics.read_text()) == json.loads(uninterrupted.metrics.read_text())
    assert len(run.list_checkpoints()) == 2


def test_resume_writes_what_a_kill_left_unwritten(few_digits: Path, uninterrupted: RunFolder) -> None:
    stop_after(tiny_request(few_digits, "run"), STEPS + 1)  # the first epoch's checkpoint is there
    for name in ("model.safetensors", "config.json", "metrics.jsonl"):
        Path("run", name).unlink()  # the files after it are not
    Path("run/last/.step-00000007.safetensors.abc.tmp").write_bytes(b"half")
    Path("run/last/.tmpA1b2C3").write_bytes(b"")  # as safetensors names its own
    events = finetune_steps(TrainRequest(resume=Path("run")))
    assert isinstance(next(events), Planned)
    assert isinstance(next(event for event in events if not isinstance(event, Progress)), Started)
    assert isinstance(next(events), StepDone)
    assert load_file("run/model.safetensors").keys() == load_file(uninterrupted.path / "model.safetensors").keys()
    assert len(Path("run/metrics.jsonl").read_text().splitlines()) == 1
    events.close()
    resume("run")
    assert read_final_files(RunFolder(Path("run"))) == read_final_files(uninterrupted)
    assert not list(Path("run").rglob(".*"))


def test_damaged_checkpoint_falls_back_to_the_one_before(few_digits: Path, uninterrupted: RunFolder) -> None:
    stop_after(tiny_request(few_digits, "run"), 11)
    newest, before = RunFolder(Path("run")).list_checkpoints()
    content = bytearray(newest.read_bytes())
    content[-5] ^= 1  # one bit of one weight
    newest.write_bytes(content)
    with pytest.raises(RunError, match="is damaged"):
        read_checkpoint(newest)
    started = (events := resume("run"))[1]
    assert started.resumed_at == STEPS
    assert any(
        f"{newest} is damaged" in note and "the one before" in note
        for note in [notice.text for notice in started.notices]
    )
    assert isinstance(events[-1], FinetuneResult)
    assert read_final_files(RunFolder(Path("run"))) == read_final_files(uninterrupted)
    assert before.name == f"step-{STEPS:08}.safetensors"


def test_run_without_readable_checkpoint_is_refused(few_digits: Path) -> None:
    stop_after(tiny_request(few_digits, "run"), 2)
    for path in RunFolder(Path("run")).list_checkpoints():
        path.write_bytes(path.read_bytes()[:-1000])
    with pytest.raises(RunError, match=r"run has no checkpoint that can be read: .* is damaged"):
        resume("run")


def test_checkpoint_that_may_not_be_read_is_not_called_damaged(few_digits: Path) -> None:
    stop_after(tiny_request(few_digits, "run"), 2)
    for path in RunFolder(Path("run")).list_checkpoints():
        path.unlink()
        path.symlink_to(path.name)  # a loop, which root cannot read either
    with pytest.raises(RunError, match=r"cannot be read \(Too many levels") as caught:
        resume("run")
    assert caught.value.remedy == "Check its permissions and the disk, and resume again"


def test_data_folder_that_has_moved_is_recorded(few_digits: Path, uninterrupted: RunFolder) -> None:
    shutil.copytree(few_digits, "here")
    stop_after(tiny_request(Path("here"), "run"), STEPS + 2)
    Path("here").rename("there")
    run = RunFolder(Path("run"))
    assert isinstance(resume(run.path, data=Path("there"))[-1], FinetuneResult)
    assert run.read_split().root == Path("there").absolute()
    assert read_final_files(run) == read_final_files(uninterrupted)
    assert evaluate(run.path, split="val").metrics.images == 12


def _write_table(folder: Path) -> Path:
    """A CSV file of the images in the class folders of a folder, in it."""
    rows = [f"{path.relative_to(folder)},{path.parent.name}" for path in sorted(folder.rglob("*.png"))]
    table = folder / "labels.csv"
    table.write_text("\n".join(["path,label", *rows]))
    return table


def test_a_run_beside_its_csv_file_resumes_and_both_may_move(few_digits: Path) -> None:
    shutil.copytree(few_digits, "here/images")
    table = _write_table(Path("here"))
    stop_after(tiny_request(table, "here/run"), 2)
    assert prepare(TrainRequest(resume=Path("here/run"))).index.root == Path("here").absolute()
    Path("here").rename("there")
    index = prepare(TrainRequest(resume=Path("there/run"), data=Path("there/labels.csv"))).index
    assert (index.root, index.table) == (Path("there"), Path("there/labels.csv"))
    assert isinstance(resume("there/run", data=Path("there/labels.csv"))[-1], FinetuneResult)


def test_a_run_from_a_zip_file_resumes_without_its_unpacked_files(few_digits: Path, tmp_path: Path) -> None:
    shutil.copytree(few_digits, "outer/images")  # links become files
    archive = Path(shutil.make_archive("data", "zip", "outer"))
    stop_after(tiny_request(archive, "run"), 2)
    shutil.rmtree(find_cache_folder() / UNPACKED)
    assert prepare(TrainRequest(resume=Path("run"))).index.root.is_dir()
    archive = archive.rename(tmp_path / "moved.zip")
    shutil.rmtree(find_cache_folder() / UNPACKED)
    with pytest.raises(DataError, match=r"not in .*data\.zip.*give the folder or file"):
        prepare(TrainRequest(resume=Path("run")))
    assert prepare(TrainRequest(resume=Path("run"), data=archive)).index.source == archive


def test_runs_that_cannot_be_resumed_are_refused(few_digits: Path, uninterrupted: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="has finished"):
        resume(uninterrupted.path)
    with pytest.raises(RunError, match="is not a run"):
        resume(tmp_path)
    own = tmp_path / "own"
    shutil.copytree(few_digits, own)  # files instead of links, to change them
    stop_after(tiny_request(own, "run"), 2)
    with pytest.raises(UsageError, match="reads the model, the settings"):
        resume("run", choices={"lr": Choice(value=1.0, source="flag")})
    with pytest.raises(UsageError, match=r"not finished\. Continue it with `convnext finetune --resume run`"):
        train(tiny_request(own, "run"))
    trained = [path for path, split in zip(*_split(Path("run")), strict=True) if split == "train"]
    with (own / trained[0]).open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match="are not those that run began with"):
        resume("run")
    (own / trained[0]).unlink()
    with pytest.raises(DataError, match=r"1 image of the split is not in .*--resume RUN"):
        resume("run")
    assert isinstance(resume("run", data=few_digits)[-1], FinetuneResult), (
        "the same images in another folder are accepted"
    )


def _split(run: Path) -> tuple[tuple[str, ...], tuple[str, ...]]:
    index = RunFolder(run).read_split()
    return index.paths, index.splits


def test_aborted_start_can_be_replaced(few_digits: Path, uninterrupted: RunFolder) -> None:
    shutil.copytree(uninterrupted.path, "run")
    for name in ("plan.toml", "metrics.json", "metrics.jsonl", "config.json", "model.safetensors"):
        Path("run", name).unlink()
    for path in Path("run").glob("calibration.*"):
        path.unlink()
    stop_after(tiny_request(few_digits, "run"), 1)
    assert RunFolder(Path("run")).is_begun
    shutil.rmtree("run/last")
    Path("run/plan.toml").unlink()
    with pytest.raises(UsageError, match="exists already"):  # it may not be a run
        train(tiny_request(few_digits, "run"))


def test_aborted_start_has_nothing_to_resume() -> None:
    for folder in (RunFolder(Path("run")), FoldsFolder(Path("cv")).run(1)):
        folder.create(overwrite=False)
    for name in ("run", "cv"):
        with pytest.raises(RunError, match=r"stopped before its training had begun.*Start it again"):
            resume(name)
    Path("empty").mkdir()
    with pytest.raises(RunError, match="is not a run"):
        resume("empty")
    with pytest.raises(RunError, match="gone does not exist"):
        resume("gone")


@pytest.mark.parametrize(("number", "code"), [(signal.SIGINT, 130), (signal.SIGTERM, 143)])
def test_signal_finishes_the_step_and_saves(few_digits: Path, uninterrupted: RunFolder, number: int, code: int) -> None:
    handler = signal.getsignal(number)
    with pytest.raises(StoppedError, match="--resume run") as caught:
        stop_after(tiny_request(few_digits, "run"), 9, lambda: os.kill(os.getpid(), number))
    assert caught.value.exit_code == code
    assert signal.getsignal(number) is handler
    assert RunFolder(Path("run")).list_checkpoints()[0].name == "step-00000010.safetensors"
    resume("run")
    assert read_final_files(RunFolder(Path("run"))) == read_final_files(uninterrupted)


def test_signal_interrupts_validation(
    few_digits: Path, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def signalled(*args: Any, **options: Any) -> Any:
        os.kill(os.getpid(), signal.SIGTERM)
        return forward_batches(*args, **options)

    with monkeypatch.context() as patch:
        patch.setattr("convnext_cli.training.validation.forward_batches", signalled)
        with pytest.raises(StoppedError, match=f"stopped after step {STEPS}, and saved"):
            train(tiny_request(few_digits, "run"))
    assert not Path("run/model.safetensors").exists()
    assert finetune(resume="run").epoch == 3
    assert read_final_files(RunFolder(Path("run"))) == read_final_files(uninterrupted)


def test_second_signal_stops_at_once_unless_it_repeats_the_first() -> None:
    signals = Signals()

    def send_three() -> None:
        os.kill(os.getpid(), signal.SIGINT)
        os.kill(os.getpid(), signal.SIGINT)  # a launcher's, which gets the same Ctrl-C
        assert signals.received == signal.SIGINT
        signals.since -= 2 * ECHO
        os.kill(os.getpid(), signal.SIGTERM)

    with watch_signals(signals), pytest.raises(StoppedError, match="stopped at once") as caught:
        send_three()
    assert caught.value.exit_code == 143


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_batch_system_and_terminal_signals_are_recorded(name: str) -> None:
    number, signals = signal.Signals[name], Signals()
    before = signal.getsignal(number)
    with watch_signals(signals):
        os.kill(os.getpid(), number)
        signals.since -= 2 * ECHO
        os.kill(os.getpid(), number)  # SIGXCPU comes each second: the state is still saved
    assert signals.received == number
    assert signal.getsignal(number) is before


@pytest.mark.parametrize("name", ["SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU"])
def test_ignored_signals_stay_ignored(name: str) -> None:
    number, signals = signal.Signals[name], Signals()
    before = signal.signal(number, signal.SIG_IGN)  # as nohup does
    try:
        with watch_signals(signals):
            os.kill(os.getpid(), number)
        assert signals.received == 0
        assert signal.getsignal(number) is signal.SIG_IGN
    finally:
        signal.signal(number, before)


def test_batch_system_signal_saves_and_is_named(few_digits: Path) -> None:
    with pytest.raises(
        StoppedError, match=r"after step 10, and saved \(SIGUSR1\)\. Continue with `.* --resume run`"
    ) as caught:
        stop_after(tiny_request(few_digits, "run"), 9, lambda: os.kill(os.getpid(), signal.SIGUSR1))
    assert caught.value.exit_code == 128 + signal.SIGUSR1
    assert RunFolder(Path("run")).list_checkpoints()[0].name == "step-00000010.safetensors"


@pytest.mark.parametrize("swallows", [False, True])
def test_signal_after_the_last_epoch_stops_and_the_run_resumes(
    few_digits: Path, uninterrupted: RunFolder, swallows: bool
) -> None:
    def interrupt() -> None:
        for event in finetune_steps(tiny_request(few_digits, "run")):
            if isinstance(event, Trained):
                with suppress(StoppedError) if swallows else nullcontext():  # like a library that catches everything
                    os.kill(os.getpid(), signal.SIGTERM)

    with pytest.raises(StoppedError, match=r"Continue with `convnext finetune --resume run`"):
        interrupt()
    assert not RunFolder(Path("run")).is_finished
    Path("run/.model.onnx.abc.tmp").write_bytes(b"half")
    assert [type(event) for event in resume("run")] == [Planned, Started, Trained, FinetuneResult]
    assert read_final_files(RunFolder(Path("run"))) == read_final_files(uninterrupted)
    assert not list(Path("run").rglob(".*"))


def test_training_in_another_thread_leaves_signals_alone(few_digits: Path) -> None:
    ends: list[Any] = []
    worker = threading.Thread(target=lambda: ends.extend(train(tiny_request(few_digits, "run", epochs=1))))
    worker.start()
    worker.join()
    assert isinstance(ends[-1], FinetuneResult)


def out_of_memory_above(monkeypatch: pytest.MonkeyPatch, images: int, calls: int = 0) -> None:
    """From call `calls` on, the forward pass has memory for `images` images only."""
    true, seen = torch.nn.functional.cross_entropy, iter(range(10**9))

    def limited(logits: torch.Tensor, *rest: Any, **options: Any) -> torch.Tensor:
        if next(seen) >= calls and len(logits) > images:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return true(logits, *rest, **options)

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", limited)


def test_out_of_memory_halves_the_micro_batch_only(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = {"drop_path": 0.0, "micro_batch_size": 8, "save_every": 0, "epochs": 2}
    expected = [
        event for event in finetune_steps(tiny_request(few_digits, "whole", **plain)) if isinstance(event, EpochDone)
    ]
    out_of_memory_above(monkeypatch, 3, calls=2)
    events = train(tiny_request(few_digits, "run", **plain))
    [text] = list_texts(events)
    assert "out of memory at step 3: from here on micro-batches have 2 images" in text
    result = [event for event in events if isinstance(event, EpochDone)]
    for one, other in zip(result, expected, strict=True):
        assert one.train_loss == pytest.approx(other.train_loss, rel=1e-5)
        assert one.lr == other.lr
    _, log = read_final_files(RunFolder(Path("run")))
    assert [line["micro_batch_size"] for line in log] == [2, 2]


@pytest.mark.parametrize(("fails", "has_graphs"), [(True, True), (False, True), (False, False)])
def test_compiled_model_is_forgotten_when_a_step_fails_and_at_the_end(
    few_digits: Path, monkeypatch: pytest.MonkeyPatch, *, fails: bool, has_graphs: bool
) -> None:
    """The memory of its graphs is freed, and the ninth training of a process is compiled as the first."""
    resets: list[bool] = []
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    monkeypatch.setattr(compute_config, "can_record", lambda *_: has_graphs)
    if fails:
        out_of_memory_above(monkeypatch, 3, calls=5)
    request = replace(tiny_request(few_digits, "run", drop_path=0.0, micro_batch_size=8, epochs=1), compile=True)
    freed = {type(event).__name__: len(resets) for event in finetune_steps(request)}
    assert (freed["Started"], freed["EpochDone"], freed["Trained"]) == (0, int(fails), 1)


def test_checkpoint_says_that_memory_was_too_small_to_go_on_compiled(
    few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The learning-rate test has a state of its own: the run's did not say it, and was compiled when resumed."""
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    monkeypatch.setattr(torch.compiler, "reset", lambda: None)
    true, steps = step._accumulate_gradients, iter(range(10**9))

    def fail_once(*args: Any) -> torch.Tensor:
        if next(steps) == 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return true(*args)

    monkeypatch.setattr(step, "_accumulate_gradients", fail_once)
    train(replace(tiny_request(few_digits, "run", epochs=1, micro_batch_size=8, lr="auto"), compile=True))
    assert next(steps) > 3
    _, text = read_checkpoint(RunFolder(Path("run")).list_checkpoints()[0])
    assert json.loads(text)["compiled"] is False


def test_smaller_micro_batch_is_kept_after_resume(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(monkeypatch, 2)
    [text] = list_texts(train(tiny_request(few_digits, "whole", head_dropout=0.1, epochs=2)))
    assert text.endswith("except for the random numbers of drop path and dropout")
    stop_after(tiny_request(few_digits, "run", head_dropout=0.1, epochs=2), 9)
    assert not list_texts(resume("run")), "the notice is given once"
    assert read_final_files(RunFolder(Path("run"))) == read_final_files(RunFolder(Path("whole")))


def test_out_of_memory_for_one_image_names_the_remedy(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out_of_memory_above(monkeypatch, 0, calls=2 * STEPS + 2)
    with pytest.raises(OutOfMemoryError, match=r"a single image of 32 px.*--grad-checkpointing") as caught:
        train(tiny_request(few_digits, "run"))
    assert caught.value.exit_code == 4
    assert len(load_file("run/model.safetensors")) > 10, "the first epoch's model is there"


def test_out_of_memory_in_a_batch_of_one_image_names_one_image(
    few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    out_of_memory_above(monkeypatch, 0, calls=6)  # 47 images in 6 micro-batches, then the last image alone
    with pytest.raises(OutOfMemoryError, match="too little memory for a single image of 32 px") as caught:
        train(tiny_request(few_digits, "run", batch_size=47, micro_batch_size=8))
    assert "--micro-batch-size" not in caught.value.remedy


def test_sharded_model_without_memory_for_two_images_names_a_smaller_micro_batch(
    few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext_cli.training.step.is_sharded", lambda _: True)
    out_of_memory_above(monkeypatch, 0)
    with pytest.raises(OutOfMemoryError, match="too little memory for 2 images of 32 px") as caught:
        train(tiny_request(few_digits, "run", micro_batch_size=2))
    assert "Try --micro-batch-size 1, " in caught.value.remedy


def test_another_error_of_a_step_is_not_taken_for_out_of_memory(
    few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def failing(*_: Any, **__: Any) -> torch.Tensor:
        raise RuntimeError("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED")

    monkeypatch.setattr(torch.nn.functional, "cross_entropy", failing)
    with pytest.raises(RuntimeError, match="CUDNN_STATUS_EXECUTION_FAILED"):
        train(tiny_request(few_digits, "run"))


def spoil_gradients(monkeypatch: pytest.MonkeyPatch, *calls: int) -> None:
    """Make the gradients of some steps not finite; steps are counted from 0, repeated ones too."""
    seen = iter(range(10**9))

    def spoilt(accelerator: Any, parameters: list[torch.nn.Parameter]) -> None:
        sum_gradients(accelerator, parameters)
        if next(seen) in calls:
            grad = parameters[0].grad
            assert grad is not None
            grad[(0,) * grad.ndim] = float("nan")

    monkeypatch.setattr("convnext_cli.training.step.sum_gradients", spoilt)


def test_gradient_that_is_not_finite_goes_back_and_halves_the_lr(
    few_digits: Path, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_gradients(monkeypatch, STEPS + 3)  # step 10; the state after step 8 is saved
    events = train(tiny_request(few_digits, "run", save_every=2))
    [text] = list_texts(events)
    assert "a loss or its gradient is not finite: back to step 8, with the learning rate halved" in text
    normal: list[Any] = [line["lr"] for line in read_final_files(uninterrupted)[1]]
    assert [event.lr for event in events if isinstance(event, EpochDone)] == [
        normal[0], normal[1] / 2, normal[2] / 2
    ]  # fmt: skip
    assert all(value.isfinite().all() for value in load_file("run/model.safetensors").values())


def test_divergence_in_the_steps_that_are_timed_ends_the_timing_only(
    few_digits: Path, uninterrupted: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    spoil_gradients(monkeypatch, 3)  # step 4 of those that are timed
    train(replace(tiny_request(few_digits, "run"), max_time=3600.0))
    assert read_final_files(RunFolder(Path("run"))) == read_final_files(uninterrupted)


def test_third_divergence_stops_and_keeps_the_best_model(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    texts: list[str] = []
    with monkeypatch.context() as patch:
        spoil_gradients(patch, *range(STEPS + 1, 1000))
        with pytest.raises(
            DivergedError, match=r"a quarter of the learning rate too.*the best epoch's model is kept"
        ) as caught:
            texts.extend(
                event.text for event in finetune_steps(tiny_request(few_digits, "run")) if isinstance(event, Notice)
            )
    assert caught.value.exit_code == 1
    assert all(value.isfinite().all() for value in load_file("run/model.safetensors").values())
    assert len(texts) == 2
    assert isinstance(resume("run")[-1], FinetuneResult), "it can be resumed from there"


def test_resumed_moments_have_the_strides_of_their_parameters(few_digits: Path) -> None:
    """Fused kernels pair values by their place in memory; a checkpoint has them contiguous."""
    strides = []

    def list_strides(optimizer: torch.optim.Optimizer, *_: object) -> None:
        for parameter, state in optimizer.state.items():
            strides.append((parameter.stride(), state["exp_avg"].stride(), state["exp_avg_sq"].stride()))

    stop_after(tiny_request(few_digits, "run"), STEPS)
    handle = register_optimizer_step_pre_hook(list_strides)
    try:
        stop_after(TrainRequest(resume=Path("run")), 1)
    finally:
        handle.remove()
    assert any(len(parameter) == 4 and parameter[1] == 1 for parameter, _, _ in strides), "some are channels last"
    assert all(parameter == mean == square for parameter, mean, square in strides)
