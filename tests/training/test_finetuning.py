import csv
import json
import os
import shutil
import signal
import subprocess
import sys
import tomllib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from safetensors import safe_open
from safetensors.torch import load_file

from convnext_cli import evaluate, finetune, predict
from convnext_cli.data.scan import scan_folder
from convnext_cli.errors import ConvnextError, DataError, UsageError, WeightsError
from convnext_cli.images.cache import list_cached_sets
from convnext_cli.images.decode import decode_image
from convnext_cli.images.raster import Pixels
from convnext_cli.progress import Progress
from convnext_cli.recipes.tables import AUGMENTATION_SETTINGS, load_augmentations
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import EpochDone, FinetuneResult, Planned, Started, StepDone, Trained
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.planning import prepare
from tests.conftest import SHALLOW, Convnext, change_json, limit_files, save_image
from tests.training.conftest import small_request, tiny_request, train
from tools.kill_test import read_final_files

FILES = {
    "audit.json", "calibration.json", "calibration.safetensors", "config.json", "data.json", "environment.json", "last",
    "image_hashes.safetensors", "metrics.json", "metrics.jsonl", "model.safetensors", "plan.toml", "split.csv",
}  # fmt: skip


def test_finetune_end_to_end_on_real_images(digits: Path, tmp_path: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in sorted(digits.rglob("*"))}
    events = train(small_request(digits, tmp_path / "run", epochs=2))

    # 300 images, by class 20% for validation and 15% for the test: 195 for training, 13 steps of 16 (the last of 3)
    recorded = [type(event) for event in events if not isinstance(event, Progress)]
    assert recorded == [Planned, Started, *([StepDone] * 13 + [EpochDone]) * 2, Trained, FinetuneResult]
    assert [event.images for event in events if isinstance(event, StepDone)][:13] == [*range(16, 193, 16), 195]
    finished = events[-1]
    assert finished.val.images == 60
    assert finished.val.top1 > 0.95, "two epochs are enough for three classes"

    run = RunFolder(tmp_path / "run")
    assert {path.name for path in run.path.iterdir()} == FILES
    assert [path.name for path in run.list_checkpoints()] == ["step-00000026.safetensors", "step-00000013.safetensors"]
    with (run.path / "split.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert {split: sum(row["split"] == split for row in rows) for split in ("train", "val", "test")} == {
        "train": 195,
        "val": 60,
        "test": 45,
    }
    log = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    assert [entry["epoch"] for entry in log] == [1, 2]
    assert log[-1]["train_loss"] < log[0]["train_loss"] / 2
    best = max(log, key=lambda entry: (entry["val_balanced_accuracy"], -entry["val_log_loss"]))
    assert json.loads(run.metrics.read_text())["epoch"] == best["epoch"] == finished.epoch
    plan = tomllib.loads(run.plan.read_text())
    assert plan["settings"]["epochs"] == 2
    assert json.loads((run.path / "environment.json").read_text())["packages"]["timm"].startswith("1.")
    assert load_file(run.path / "model.safetensors")["head.fc.weight"].shape == (3, 256)
    with safe_open(run.list_checkpoints()[0], "pt") as last:
        assert json.loads(last.metadata()["state"])["step"] == 2 * 13
        assert {name.split(".")[0] for name in last.keys()} == {"model", "optimizer"}  # noqa: SIM118

    result = evaluate(run.path)
    assert (result.split, result.metrics.images) == ("test", 45)
    assert result.metrics.top1 > 0.95
    images = sorted((digits / "1").glob("*.png"))
    assert sum(prediction.classes[0] == "1" for prediction in predict(images, run.path)) > 90

    assert {path: path.stat().st_mtime_ns for path in sorted(digits.rglob("*"))} == before, "the data are unchanged"


def test_seed_decides_the_model(few_digits: Path, tmp_path: Path) -> None:
    weights = {}
    for name, seed in (("a", 3), ("b", 3), ("c", 4)):
        changes = {"seed": seed, "drop_path": 0.2, "mixup": 0.8, "cutmix": 1.0, "hflip": 0.5}
        train(small_request(few_digits, tmp_path / name, **changes))
        weights[name] = (tmp_path / name / "model.safetensors").read_bytes()
    assert weights["a"] == weights["b"]
    assert weights["a"] != weights["c"]


def losses(events: list[Any]) -> list[float]:
    return [event.train_loss for event in events if isinstance(event, EpochDone)]


def test_gradient_accumulation_gives_the_same_losses(few_digits: Path, tmp_path: Path) -> None:
    full = losses(train(small_request(few_digits, tmp_path / "32x1", batch_size=32, micro_batch_size=32)))
    pieces = losses(train(small_request(few_digits, tmp_path / "8x4", batch_size=32, micro_batch_size=8)))
    assert pieces == pytest.approx(full, rel=1e-5)


@pytest.mark.parametrize("threads", [0, 1, 3])
def test_number_of_loading_threads_changes_no_byte(
    threads: int, few_digits: Path, uninterrupted: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All random numbers of an image are from (seed, epoch, row); 0 is a process that has less than one CPU."""
    monkeypatch.setattr(TrainingContext, "threads", property(lambda _: threads))
    train(tiny_request(few_digits, tmp_path / "run"))
    assert read_final_files(RunFolder(tmp_path / "run")) == read_final_files(uninterrupted)


def test_plan_file_repeats_the_run(few_digits: Path, convnext: Convnext) -> None:
    flags = ("--model", "test_convnext2", "--weights", "none", "--epochs", 2, "--image-size", 32, "--seed", 3)
    assert convnext("finetune", few_digits, "--output", "first", *flags).code == 0
    assert convnext("finetune", few_digits, "--output", "again", "--config", "first/plan.toml").code == 0
    first, again = (Path(name, "model.safetensors").read_bytes() for name in ("first", "again"))
    assert first == again


@pytest.mark.slow
def test_two_processes_train_the_same_model_and_rank_0_writes(digits: Path) -> None:
    flags = ["finetune", str(digits), "--model", "test_convnext2", "--weights", "none", "--epochs", "2"]
    flags += ["--image-size", "32", "--batch-size", "16", "--lr", "0.001", "--json"]
    env = {**os.environ, "OMP_NUM_THREADS": "1"}
    run = [sys.executable, "-m"]
    two = ["torch.distributed.run", "--standalone", "--nproc-per-node", "2", "-m", "convnext_cli"]
    done = subprocess.run([*run, *two, *flags, "-o", "two"], env=env, capture_output=True, text=True, check=True)
    subprocess.run([*run, "convnext_cli", *flags, "-o", "one"], env=env, capture_output=True, check=True)
    assert json.loads(done.stdout)["run"] == "two", "one result, from one process"
    assert "2 processes" in done.stderr
    assert {path.name for path in Path("two").iterdir()} == FILES | {"curves.png"}
    logs = [
        [json.loads(line) for line in Path(name, "metrics.jsonl").read_text().splitlines()] for name in ("one", "two")
    ]
    for one, both in zip(*logs, strict=True):
        assert both["train_loss"] == pytest.approx(one["train_loss"], rel=1e-5)
        assert both["val_log_loss"] == pytest.approx(one["val_log_loss"], rel=1e-3)


def test_fewer_images_than_a_batch_train(tmp_path: Path) -> None:
    for name in "ab":
        for i in range(4):
            save_image(tmp_path / f"data/{name}/{i}.png", seed=10 * (name == "b") + i)
    events = train(small_request(tmp_path / "data", tmp_path / "run", batch_size=64, epochs=1))
    assert [event.images for event in events if isinstance(event, StepDone)] == [4]
    assert any("too few to choose the best epoch" in notice.text for notice in events[0].notices)


def test_small_validation_split_keeps_the_last_epoch(digits: Path, tmp_path: Path) -> None:
    data = tmp_path / "data"
    for split, digit, numbers in (("train", "0", range(30)), ("train", "1", range(30)), ("val", "0", range(30, 34))):
        (data / split / digit).mkdir(parents=True)
        paths = sorted((digits / digit).glob("*.png"))
        for i in numbers:
            (data / split / digit / paths[i].name).symlink_to(paths[i])
    events = train(small_request(data, tmp_path / "run", epochs=3))
    assert events[-1].epoch == 3
    assert "last epoch, because the validation split has only 4 images" in events[-1].selected_by
    assert events[-1].val.absent == ("1",)


def test_weights_of_a_run_start_another_run(few_digits: Path, run: RunFolder, tmp_path: Path) -> None:
    started = train(small_request(few_digits, tmp_path / "more", weights=run.path))[1]
    assert started.new_params == 0  # the same classes: the head is kept too
    assert started.license == "imagenet-noncommercial", "it follows the weights"


def test_images_that_the_base_run_was_trained_on_are_leakage_where_they_are_held_out(
    digits: Path, run: RunFolder, run_copy: RunFolder, tmp_path: Path
) -> None:
    def warn(data: Path, weights: Path, **changes: Any) -> list[str]:
        request = small_request(data, tmp_path / "more", weights=weights, **changes)
        return [notice.text for notice in prepare(request).notices if "was trained on" in notice.text]

    assert warn(digits, run.path) == [], "the same split"
    [text] = warn(digits, run.path / "model.safetensors", seed=1)
    assert text.startswith(f"leakage: {run.path} was trained on ")
    assert " of 45 test images and " in text
    assert warn(run.path / "split.csv", run.path, seed=1, image_root=str(digits)) == [], "the remedy"
    [text] = warn(digits, run.path, folds=3)
    assert text.endswith("use other weights: a cross-validation holds each image out once")
    (run_copy.path / "split.csv").write_text("damaged")
    assert warn(digits, run_copy.path)[0].startswith("not compared with the images that"), "no error: it is the base"


def test_unreadable_image_is_left_out_and_named(tmp_path: Path) -> None:
    for name in "ab":
        for i in range(20):
            save_image(tmp_path / f"data/{name}/{i}.png", seed=i)
    (tmp_path / "data/a/7.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    fractions = {"val_fraction": 0.0, "test_fraction": 0.0, "epochs": 1}
    planned = train(small_request(tmp_path / "data", tmp_path / "run", **fractions))[0]
    assert len(planned.index) == 39
    assert any("1 file cannot be read as an image" in notice.text for notice in planned.notices)
    audit = json.loads((tmp_path / "run/audit.json").read_text())
    [unreadable] = [finding for finding in audit["findings"] if finding["kind"] == "unreadable"]
    assert "a/7.png cannot be read as an image" in unreadable["examples"][0]
    with pytest.raises(DataError, match=r"a/7\.png cannot be read as an image"):
        train(small_request(tmp_path / "data", tmp_path / "unchecked", audit=False, **fractions))


def test_divergence_stops_the_run(few_digits: Path, tmp_path: Path) -> None:
    with pytest.raises(ConvnextError, match="training diverged") as caught:
        train(small_request(few_digits, tmp_path / "run", lr=9e5, warmup_epochs=0.0, epochs=3))
    assert caught.value.exit_code == 1


def test_bad_input_is_refused_before_anything_is_written(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="lr = -1"):
        finetune(digits, lr=-1.0, output=tmp_path / "run")
    with pytest.raises(UsageError, match="is not a setting"):
        finetune(digits, learning_rate=1.0, output=tmp_path / "run")  # type: ignore[call-arg]
    with pytest.raises(WeightsError, match="no weights at"):
        finetune(digits, weights="nowhere.pth", output=tmp_path / "run")
    assert not (tmp_path / "run").exists()


def test_missing_weights_end_a_training_before_the_images_are_checked(digits: Path, tmp_path: Path) -> None:
    for model, error in (
        ("convnextv2_small", "no pretrained weights exist"),
        ("convnext_xlarge", "HF_HUB_OFFLINE is set"),
        (None, "HF_HUB_OFFLINE is set"),  # the recommended model
    ):
        with pytest.raises(WeightsError, match=error):
            next(finetune_steps(small_request(digits, tmp_path / "run", model=model, weights="auto")))


def test_wrong_files_end_a_training_before_the_plan(digits: Path, run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "bad.pth").write_bytes(b"not weights")
    for changes, error in (
        (
            {"model": "test_convnext2", "weights": str(run.path)},
            "does not fit test_convnext2: its weights are of",
        ),
        ({"weights": str(tmp_path / "bad.pth")}, "cannot be read as weights"),
        ({"teacher": "nonsense"}, "there is no teacher 'nonsense'"),
        ({"model": None, "weights": str(run.path)}, "does not fit convnextv2_tiny"),  # the recommended model
    ):
        events: list[Any] = []
        with pytest.raises(ConvnextError, match=error):
            events.extend(finetune_steps(small_request(digits, tmp_path / "run", **changes)))
        assert all(isinstance(event, Progress) for event in events)
    (tmp_path / "file").touch()
    with pytest.raises(UsageError, match=r"cannot write .*file/run: .*file is not a folder"):
        next(finetune_steps(small_request(digits, tmp_path / "file/run")))


def test_existing_run_is_not_overwritten_without_the_option(digits: Path, run: RunFolder, tmp_path: Path) -> None:
    before = (run.path / "model.safetensors").read_bytes()
    with pytest.raises(UsageError, match=r"exists already.*--overwrite"):
        finetune(digits, output=run.path)
    assert (run.path / "model.safetensors").read_bytes() == before
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/thesis.doc").touch()
    with pytest.raises(UsageError, match="exists already"):
        finetune(digits, output=tmp_path / "mine", overwrite=True)  # not a run: never replaced
    assert (tmp_path / "mine/thesis.doc").exists()


def test_small_validation_split_of_chest_x_rays_gives_a_notice(shared_data: Path, tmp_path: Path) -> None:
    events = finetune_steps(small_request(shared_data / "cxr3", tmp_path / "run", audit=False))
    planned = next(event for event in events if not isinstance(event, Progress))
    assert isinstance(planned, Planned)
    assert any("16 images (0 of VIRUS;" in notice.text for notice in planned.notices)
    next(event for event in events if isinstance(event, Started))  # the split is written by then
    index = RunFolder(tmp_path / "run").read_split()
    scanned = scan_folder(shared_data / "cxr3")
    assert (index.paths, index.splits) == (scanned.paths, scanned.splits)
    assert np.array_equal(index.labels, scanned.labels)


def test_run_in_the_data_folder_is_refused(digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UsageError, match="would lie in the data folder"):
        finetune(digits, output=digits / "0" / "run")
    monkeypatch.chdir(digits)
    with pytest.raises(UsageError, match="would lie in the data folder"):
        finetune(".")


def test_licence_follows_the_weights(few_digits: Path, run: RunFolder, tmp_path: Path) -> None:
    source = tmp_path / "v2"
    shutil.copytree(run.path, source)
    change_json(source / "config.json", "pretrained_cfg.license", "cc-by-nc-4.0")
    for weights in (source, source / "model.safetensors"):
        started = train(small_request(few_digits, tmp_path / f"run-{weights.suffix}", weights=weights))[1]
        assert started.license == "cc-by-nc-4.0"
    again = json.loads((tmp_path / "run-" / "config.json").read_text())
    assert again["pretrained_cfg"]["license"] == "cc-by-nc-4.0"


def test_validation_loss_that_is_not_finite_stops_the_run(few_digits: Path, tmp_path: Path) -> None:
    changes = {"lr": 9e5, "weight_decay": 100.0, "batch_size": 100_000, "warmup_epochs": 0.0}
    with pytest.raises(ConvnextError, match="training diverged in epoch 1: the validation loss"):
        train(small_request(few_digits, tmp_path / "run", **changes))
    assert not (tmp_path / "run" / "model.safetensors").exists()


def test_full_disk_leaves_no_partial_file(few_digits: Path, tmp_path: Path, convnext: Convnext) -> None:
    flags = ("--model", "test_convnext2", "--weights", "none", "--epochs", 1, "--image-size", 32, "-o", "run")
    with limit_files(300_000):
        outcome = convnext("finetune", few_digits, *flags)
    assert outcome.code == 1
    assert "error: cannot write run/last/step-00000000.safetensors" in outcome.err
    assert "bug" not in outcome.err
    assert not list((tmp_path / "run").glob(".*")), "no temporary file is left"
    assert not (tmp_path / "run/model.safetensors").exists()


@pytest.mark.slow
def test_ctrl_c_exits_130_and_names_the_resume_command(digits: Path) -> None:
    flags = ["--model", "test_convnext2", "--weights", "none", "--epochs", "500", "--image-size", "32", "-o", "run"]
    command = [sys.executable, "-m", "convnext_cli", "finetune", str(digits), *flags]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as process:
        assert process.stderr is not None
        for line in process.stderr:
            if line.strip().startswith("2/500"):
                break
        process.send_signal(signal.SIGINT)
        rest = process.stderr.read()
    assert process.returncode == 130
    assert "Continue with `convnext finetune --resume run`" in rest.splitlines()[-1]
    assert evaluate("run").metrics.images == 45, "the model of earlier epochs is there"


def test_precision_may_differ_between_runs_of_a_process(few_digits: Path, tmp_path: Path) -> None:
    for amp in ("no", "bf16"):
        started = train(small_request(few_digits, tmp_path / amp, amp=amp))[1]
        assert started.precision == ("bf16" if amp == "bf16" else "float32")


def test_cache_changes_no_byte_and_saves_decoding(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    decoded: list[Path] = []

    def counted(path: Path, **options: Any) -> Pixels:
        decoded.append(path)
        return decode_image(path, **options)

    monkeypatch.setattr("convnext_cli.training.views.decode_image", counted)
    monkeypatch.setattr("convnext_cli.images.cache.decode_image", counted)
    made = {}
    for name, cache in (("without", False), ("cold", True), ("warm", True)):
        decoded.clear()
        request = small_request(digits, tmp_path / name, **SHALLOW, audit=False, min_crop_area=0.5)
        train(replace(request, cache=cache))
        made[name] = len(decoded)
    # 195 training and 60 validation images; then both again, with evaluation's transform, for the calibration, and the
    # validation images scrambled
    assert made == {"without": 2 * (195 + 60) + 60, "cold": 2 * 195 + 60, "warm": 0}
    models = [(tmp_path / name / "model.safetensors").read_bytes() for name in made]
    assert models[0] == models[1] == models[2]


def test_training_without_augmentation_shares_cached_images_with_evaluation(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    request = small_request(few_digits, tmp_path / "run", audit=False)
    settings = {name: choice for name, choice in request.choices.items() if name != "min_crop_area"}
    train(replace(request, augment="none", choices=settings))
    [kept] = list_cached_sets()
    assert kept.purpose.startswith("evaluation at 32 px")
    assert kept.images == 39 + 12


def test_augmentation_presets_change_the_model(few_digits: Path, tmp_path: Path) -> None:
    models = set()
    for preset, expected in load_augmentations().items():
        request = small_request(few_digits, tmp_path / preset, audit=False)
        free = {name: choice for name, choice in request.choices.items() if name != "min_crop_area"}
        train(replace(request, augment=preset, choices=free))
        own = tomllib.loads((tmp_path / preset / "plan.toml").read_text())["settings"]
        assert {name: own[name] for name in AUGMENTATION_SETTINGS} == {
            name: value for name, (value, _) in expected.items()
        }
        models.add((tmp_path / preset / "model.safetensors").read_bytes())
    assert len(models) == len(load_augmentations())


def test_an_error_of_the_thread_that_imports_is_the_one_reported(
    few_digits: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    class FailsOnce:
        failed = False

        def find_spec(self, name: str, *_: object) -> None:
            if name == "convnext_cli.training.lifecycle" and not self.failed:
                self.failed = True
                raise ValueError("Invalid log settings")

    monkeypatch.delitem(sys.modules, "convnext_cli.training.lifecycle", raising=False)
    monkeypatch.setattr(sys, "meta_path", [FailsOnce(), *sys.meta_path])
    with pytest.raises(ValueError, match="Invalid log settings"):
        train(tiny_request(few_digits, "run"))
