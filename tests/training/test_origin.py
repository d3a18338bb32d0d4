"""A continued training has the plan, the split and the images that it began with, or is refused by name."""

import csv
import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from PIL import Image

from convnext_cli.errors import ConvnextError, DataError, RunError, UsageError
from convnext_cli.models.weights import write_tensors
from convnext_cli.recipes.plan import read_plan
from convnext_cli.recipes.settings import declare_settings
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.checkpoint import compute_digest, read_checkpoint
from convnext_cli.training.crossvalidation import cross_validate_steps
from convnext_cli.training.events import FinetuneResult, Started, StepDone
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.origin import CHANGEABLE
from convnext_cli.training.planning import prepare
from convnext_cli.training.request import TrainRequest
from tests.conftest import change_json
from tests.training.conftest import resume, stop_after, tiny_request
from tools.kill_test import copy_images, read_final_files


@pytest.fixture(scope="module")
def data(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """60 files, not links, of the same size in bytes."""
    folder = copy_images(digits, tmp_path_factory.mktemp("few"), 20)
    for link in folder.rglob("*.png"):
        image = Image.open(link).convert("L").resize((8, 8))
        link.unlink()
        image.save(link.with_suffix(".bmp"))
    return folder


@pytest.fixture(scope="module")
def stopped(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("stopped") / "run"
    stop_after(tiny_request(data, folder, test_fraction=0.2), 5)
    return folder


@pytest.fixture
def run(stopped: Path) -> RunFolder:
    shutil.copytree(stopped, "run")
    return RunFolder(Path("run"))


def edit_plan(run: RunFolder, name: str, value: str) -> None:
    text, number = re.subn(rf"(?m)^{name} = .*$", lambda _: f"{name} = {value}", run.plan.read_text(), count=1)
    assert number == 1
    run.plan.write_text(text)


def edit_split(run: RunFolder, change: Callable[[list[dict[str, str]]], object]) -> None:
    path = run.path / "split.csv"
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    change(rows)
    with path.open("w", newline="") as file:
        table = csv.DictWriter(file, rows[0])
        table.writeheader()
        table.writerows(rows)


def other_value(name: str, value: Any) -> Any:
    """Return another allowed value of a setting."""
    declared = declare_settings()[name]
    kind, setting = declared.kind, declared.option
    if isinstance(value, bool):
        return not value
    if isinstance(value, str):
        return next((word for word in getattr(kind, "__args__", ()) if word != value), "other.csv")
    if name in ("in_chans", "image_size"):
        return {"in_chans": 1, "image_size": 64}[name]
    step = 1 if kind is int else 0.125
    return value - step if setting.high is not None and value + step > setting.high else value + step


@pytest.mark.parametrize("name", sorted({*declare_settings()} - {*CHANGEABLE}))
def test_changed_setting_is_refused_by_name(run: RunFolder, name: str) -> None:
    before = read_plan(run.plan).settings[name]
    edit_plan(run, name, json.dumps(other_value(name, before)))
    after = read_plan(run.plan).settings[name]
    expected = re.escape(f"{name} = {after!r}, the run began with {before!r}")
    with pytest.raises(
        RunError, match=rf"^run/plan\.toml was changed: {expected}\. Restore these values, or start a new run"
    ):
        prepare(TrainRequest(resume=run.path))


@pytest.mark.parametrize(
    ("name", "value", "error", "problem"),
    [
        ("lr", '"auto"', RunError, "was changed: lr = .*, the run began with "),
        ("epochs", "0", RunError, "was changed: epochs = .*, the run began with "),
        ("model", '"nothing"', RunError, "was changed: model = .*, the run began with "),
        ("weights", '"w.pth"', RunError, "was changed: weights = .*, the run began with "),
        ("lr", "1e308", UsageError, "lr = .* is not below 1,000,000"),
        ("epochs", "9" * 30, UsageError, "epochs = .* is above 1,000,000"),
    ],
)
def test_changed_value_of_another_type_or_out_of_bounds_is_refused(
    run: RunFolder, name: str, value: str, error: type[ConvnextError], problem: str
) -> None:
    edit_plan(run, name, value)
    with pytest.raises(error, match=problem):
        prepare(TrainRequest(resume=run.path))


def test_error_names_all_changed_settings(run: RunFolder) -> None:
    edit_plan(run, "seed", "7")
    edit_plan(run, "lr", "0.5")
    edit_plan(run, "save_every", "9")
    with pytest.raises(RunError, match=r"lr = 0\.5, the run began with 0\.002; seed = 7, the run began with 0\."):
        prepare(TrainRequest(resume=run.path))


def test_removed_setting_is_named(run: RunFolder) -> None:
    run.plan.write_text(re.sub(r"(?m)^drop_path = .*\n", "", run.plan.read_text(), count=1))
    with pytest.raises(RunError, match="lacks drop_path"):
        prepare(TrainRequest(resume=run.path))


def test_machine_settings_may_change_with_a_notice(run: RunFolder) -> None:
    for name, value in (("micro_batch_size", "2"), ("grad_checkpointing", "true"), ("save_every", "3")):
        edit_plan(run, name, value)
    planned, *_, finished = resume(run.path)
    notes = [notice.text for notice in planned.notices if "when the run began" in notice.text]
    assert len(notes) == len(CHANGEABLE)
    assert notes[0].startswith("micro_batch_size = 2 in run/plan.toml, 4 when the run began: ")
    assert isinstance(finished, FinetuneResult)
    assert [line["micro_batch_size"] for line in read_final_files(run)[1]] == [2, 2, 2]


def swap_labels(rows: list[dict[str, str]]) -> None:
    rows[0]["label"], rows[-1]["label"] = rows[-1]["label"], rows[0]["label"]


def move_test_to_train(rows: list[dict[str, str]]) -> None:
    for row in rows:
        row["split"] = "train" if row["split"] == "test" else row["split"]


@pytest.mark.parametrize(
    ("change", "words"),
    [
        (swap_labels, r"2 rows differ \(0/[^,]+, 2/[^,]+\)"),
        (move_test_to_train, r"12 rows differ \((\S+, ){4}\S+ …\)"),
        (lambda rows: rows[0].update(group="patient 1"), r"1 row differs \(0/\S+\)"),
        (lambda rows: rows.append(rows[0]), r"1 row differs \(0/\S+\), 1 row is new"),
        (lambda rows: rows.pop(), "1 row is gone"),
        (lambda rows: rows.reverse(), "its rows are in another order"),
    ],
)
def test_changed_split_is_refused_and_its_rows_named(
    run: RunFolder, change: Callable[[list[dict[str, str]]], object], words: str
) -> None:
    edit_split(run, change)
    with pytest.raises(RunError, match=rf"^run/split\.csv was changed: {words}\. Restore the original file"):
        prepare(TrainRequest(resume=run.path))


def test_reordered_classes_are_refused(run: RunFolder) -> None:
    change_json(run.path / "data.json", "classes", ["2", "1", "0"])
    with pytest.raises(RunError, match=r"classes in run/data\.json were changed: 2, 1, 0; the run began with 0, 1, 2"):
        prepare(TrainRequest(resume=run.path))


def test_changed_images_of_equal_size_are_named(data: Path, run: RunFolder) -> None:
    shutil.copytree(data, "own")
    own = Path("own")
    index = run.read_split()
    for row in (index.rows("train")[0], index.rows("val")[0], index.rows("test")[0]):
        path = own / index.paths[row]
        content = path.read_bytes()
        path.write_bytes(content[:-64] + bytes(64))
        assert len(content) == path.stat().st_size
    names = ", ".join(index.paths[index.rows(split)[0]] for split in ("train", "val"))  # test images are not compared
    with pytest.raises(
        DataError, match=rf"in own are not those that run began with: 2 of 48 images differ: {names}\. Restore"
    ):
        resume("run", data=own)
    (run.path / "last/origin.safetensors").write_bytes(b"damaged")
    with pytest.raises(DataError, match=r"which ones is unknown, because last/origin.* is missing or damaged"):
        resume("run", data=own)
    edit_split(run, swap_labels)
    with pytest.raises(RunError, match="which rows is unknown"):
        resume("run", data=own)


def test_checkpoint_without_an_origin_is_of_another_version(run: RunFolder) -> None:
    for path in run.list_checkpoints():
        tensors, words = read_checkpoint(path)
        old = json.dumps({name: value for name, value in json.loads(words).items() if name != "origin"})
        write_tensors(tensors, path, {"state": old, "sha256": compute_digest(tensors, old)})
    with pytest.raises(RunError, match="was written by another version"):
        resume(run.path)


@pytest.mark.parametrize("change", ["gone", "new"])
def test_checkpoint_with_other_parameters_is_refused(run: RunFolder, change: str) -> None:
    for path in run.list_checkpoints():
        tensors, text = read_checkpoint(path)
        tensor = tensors.pop("model.head.fc.bias")
        tensors |= {} if change == "gone" else {"model.head.fc.bias": tensor, "model.head.fc.scale": tensor.clone()}
        write_tensors(tensors, path, {"state": text, "sha256": compute_digest(tensors, text)})
    name = "bias" if change == "gone" else "scale"
    with pytest.raises(RunError, match=rf"does not fit the model .* 1 parameter differs, such as head\.fc\.{name}"):
        resume(run.path)


def test_measured_epochs_and_lr_are_part_of_the_origin(data: Path) -> None:
    from dataclasses import replace

    request = replace(
        tiny_request(data, "run", lr="auto", epochs=100_000, warmup_epochs=3.0), max_time=2.0, autotune=False
    )
    events = finetune_steps(request)
    next(event for event in events if isinstance(event, Started))
    events.close()
    prepared = prepare(TrainRequest(resume=Path("run")))
    assert prepared.plan.settings.epochs < 100_000
    assert prepared.plan_notices == ()
    edit_plan(RunFolder(Path("run")), "epochs", "100000")
    with pytest.raises(RunError, match="epochs = 100000, the run began with"):
        prepare(TrainRequest(resume=Path("run")))


def test_changes_of_a_cross_validation_are_found_overall_and_by_fold(data: Path) -> None:
    events = cross_validate_steps(tiny_request(data, "cv", folds=3, val_fraction=0.0))
    next(event for event in events if isinstance(event, StepDone))
    events.close()
    assert prepare(TrainRequest(resume=Path("cv"))).plan_notices == ()

    def refuse(error: str, change: Callable[[], object], where: str = "copy") -> None:
        shutil.rmtree("copy", ignore_errors=True)
        shutil.copytree("cv", "copy")
        change()
        with pytest.raises(ConvnextError, match=error):
            list(cross_validate_steps(TrainRequest(resume=Path(where))))

    plan = Path("copy/folds.toml")
    refuse(
        "seed = 7, the run began",
        lambda: plan.write_text(re.sub("(?m)^seed = .*", "seed = 7", plan.read_text(), count=1)),
    )
    refuse("seed = 7, the run began", lambda: edit_plan(RunFolder(Path("copy/fold-1")), "seed", "7"))

    def move(rows: list[dict[str, str]], new: str) -> None:
        next(row for row in rows if row["split"] == "fold-2")["split"] = new

    whole = RunFolder(Path("copy"))
    refuse(r"^copy/split\.csv was changed: 1 row differs", lambda: edit_split(whole, lambda rows: move(rows, "fold-1")))
    refuse(r"^copy/split\.csv was changed since", lambda: edit_split(whole, lambda rows: move(rows, "fold-3")))
