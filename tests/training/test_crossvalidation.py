"""All folds in turn, and their models as one."""

import csv
import json
import os
import shutil
import signal
import weakref
from dataclasses import replace
from functools import partial
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
import pytest
import torch

from convnext_cli import cross_validate, evaluate, export, predict
from convnext_cli.data.index import Index
from convnext_cli.data.split import is_fold
from convnext_cli.errors import DataError, RunError, StoppedError, UsageError
from convnext_cli.images.decode import decode_image
from convnext_cli.images.transforms import transform_for_eval
from convnext_cli.inference.ensemble import Ensemble
from convnext_cli.inference.evaluation import evaluate_steps
from convnext_cli.inference.prediction import list_run_notes
from convnext_cli.inference.request import EvalRequest, PredictRequest
from convnext_cli.inference.torch_classifier import TorchClassifier, open_classifier
from convnext_cli.metrics.registry import METRICS
from convnext_cli.progress import finish
from convnext_cli.recipes.plan import read_plan
from convnext_cli.reports.plots import plot_reliability
from convnext_cli.reports.report import write_report
from convnext_cli.runs.files import CALIBRATION
from convnext_cli.runs.folds import FoldsFolder, find_newest_run
from convnext_cli.training import lifecycle
from convnext_cli.training.build import build_context
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.crossvalidation import cross_validate_steps, train_steps
from convnext_cli.training.events import CrossValidationResult, FoldDone, Started, StepDone
from convnext_cli.training.request import TrainRequest
from tests.conftest import SMALL, Convnext, change_json, list_images, run_all
from tests.training.conftest import make_request, train
from tools.kill_test import copy_images

FOLDS = 2
SETTINGS: dict[str, Any] = SMALL | {"folds": FOLDS, "val_fraction": 0.0, "test_fraction": 0.2, "save_every": 3}
folds_request = partial(make_request, SETTINGS)


@pytest.fixture(scope="module")
def data(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_images(digits, tmp_path_factory.mktemp("some"), 50)  # 60 per fold: enough for calibration


@pytest.fixture(scope="module")
def folds_run(data: Path, tmp_path_factory: pytest.TempPathFactory) -> FoldsFolder:
    """A cross-validation without interruptions."""
    folder = tmp_path_factory.mktemp("whole") / "runs" / "cv"
    cross_validate(data, output=folder, **SETTINGS)
    return FoldsFolder(folder)


def weights_of(folder: FoldsFolder) -> list[bytes]:
    return [(folder.run(fold).path / "model.safetensors").read_bytes() for fold in range(1, FOLDS + 1)]


def test_folds_partition_the_data_and_share_the_test_split(folds_run: FoldsFolder) -> None:
    indexes = [run.read_split() for run in folds_run.list_runs()]
    assert len(indexes) == FOLDS
    val = [set(index.rows("val")) for index in indexes]
    assert len({tuple(index.rows("test")) for index in indexes}) == 1
    assert not val[0] & val[1]
    everything = set(range(len(indexes[0])))
    assert val[0] | val[1] == everything - set(indexes[0].rows("test"))
    for index, own in zip(indexes, val, strict=True):
        assert set(index.rows("train")) == everything - own - set(index.rows("test"))


def test_curves_of_each_fold_are_drawn_though_all_have_as_many_epochs(data: Path) -> None:
    cross_validate(data, output="one", **SETTINGS | {"epochs": 1})
    assert all((run.path / "curves.png").stat().st_size > 5000 for run in FoldsFolder(Path("one")).list_runs())


def test_fold_equals_the_same_fold_trained_alone(data: Path, folds_run: FoldsFolder) -> None:
    train(folds_request(data, "alone", fold=2))
    assert Path("alone/model.safetensors").read_bytes() == weights_of(folds_run)[1]
    alone, fold = read_plan(Path("alone/plan.toml")), read_plan(folds_run.run(2).plan)
    assert replace(alone, records={}) == replace(fold, records={}), "but for the sources"
    assert weights_of(folds_run)[0] != weights_of(folds_run)[1]


def test_a_fold_begins_when_the_model_of_the_one_before_is_freed(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    networks: list[weakref.ref[torch.nn.Module]] = []

    def watch(*arguments: Any) -> TrainingContext:
        assert not [network for network in networks if network() is not None]
        context = build_context(*arguments)
        networks.append(weakref.ref(context.network))
        return context

    monkeypatch.setattr(lifecycle, "build_context", watch)
    run_all(cross_validate_steps(folds_request(data, "cv")))
    assert len(networks) == FOLDS


def test_spread_is_mean_and_sd_over_folds(folds_run: FoldsFolder) -> None:
    recorded = json.loads(folds_run.metrics.read_text())
    own = [json.loads(run.metrics.read_text())["val"] for run in folds_run.list_runs()]
    for name in ("balanced_accuracy", "log_loss", "macro_roc_auc"):
        values = [scalars[name] for scalars in own]
        assert [fold[name] for fold in recorded["folds"]] == values
        assert recorded["spread"][name] == pytest.approx({"mean": mean(values), "sd": stdev(values), "n": FOLDS})
    assert "images" not in recorded["spread"]


@pytest.mark.parametrize("steps", [2, 6])  # in the first fold, in the second
def test_killed_cross_validation_resumes_to_the_same_bytes(data: Path, folds_run: FoldsFolder, steps: int) -> None:
    events = cross_validate_steps(folds_request(data, "cv"))
    for event in events:
        steps -= isinstance(event, StepDone)
        if not steps:
            break
    events.close()  # like a kill
    first = Path("cv/fold-1/metrics.json")
    was_finished = first.stat().st_mtime_ns if first.exists() else None
    with pytest.raises(RunError, match=r"has not finished.*--resume cv"):
        predict(next(data.rglob("*.png")), "cv")
    recorded = run_all(train_steps(TrainRequest(resume=Path("cv"))))
    assert sum(isinstance(event, FoldDone) for event in recorded) == (1 if was_finished else 2)
    assert isinstance(recorded[-1], CrossValidationResult)
    assert was_finished in (None, first.stat().st_mtime_ns), "a finished fold is unchanged"
    assert weights_of(FoldsFolder(Path("cv"))) == weights_of(folds_run)
    assert json.loads(Path("cv/metrics.json").read_text()) == json.loads(folds_run.metrics.read_text())
    assert Path("cv/fold-2/audit.json").exists()
    resumed, uninterrupted = (
        {name: choice.source for name, choice in read_plan(folder.run(2).plan).choices.items()}
        for folder in (FoldsFolder(Path("cv")), folds_run)
    )
    assert resumed == uninterrupted
    with pytest.raises(UsageError, match="has finished"):
        list(train_steps(TrainRequest(resume=Path("cv"))))


def test_signal_in_a_fold_names_the_cross_validation(data: Path) -> None:
    def interrupt() -> None:
        for event in cross_validate_steps(folds_request(data, "cv")):
            if isinstance(event, StepDone):
                os.kill(os.getpid(), signal.SIGINT)

    with pytest.raises(StoppedError, match="--resume cv`"):
        interrupt()
    with pytest.raises(UsageError, match=r"not finished\. Continue it with `convnext finetune --resume cv`"):
        list(cross_validate_steps(folds_request(data, "cv")))


def test_changed_images_are_refused_and_overwrite_replaces(data: Path, folds_run: FoldsFolder) -> None:
    shutil.copytree(folds_run.path, "cv")
    Path("cv/metrics.json").unlink()
    Path("cv/fold-2/metrics.json").unlink()
    Path("cv/fold-2/plan.toml").unlink()
    own = Path(shutil.copytree(data, "own"))
    with next(own.rglob("*.png")).open("ab") as file:
        file.write(b"more")
    with pytest.raises(DataError, match="are not those that cv began with"):
        list(train_steps(TrainRequest(resume=Path("cv"), data=own)))
    with pytest.raises(UsageError, match="exists already"):
        list(cross_validate_steps(folds_request(data, "cv")))
    events = cross_validate_steps(folds_request(data, "cv", epochs=2, overwrite=True))
    for event in events:
        if isinstance(event, Started):
            break
    assert not Path("cv/fold-2/model.safetensors").exists(), "files of earlier folds are removed"
    assert read_plan(Path("cv/fold-1/plan.toml")).settings["epochs"] == 2
    events.close()


def test_time_budget_is_shared_by_the_folds(data: Path) -> None:
    request = folds_request(data, "cv", epochs=400, folds=3)
    plans = []
    events = cross_validate_steps(replace(request, max_time=4.0, autotune=False))
    for event in events:
        if isinstance(event, Started):
            plans.append(event.plan.settings)
            if len(plans) == 2:
                break
    events.close()
    assert plans[0].epochs == plans[1].epochs < 400
    assert read_plan(Path("cv/folds.toml")).settings["epochs"] == plans[0].epochs


def test_heat_map_of_a_class_that_no_member_predicts_is_the_mean_of_all(folds_run: FoldsFolder, digits: Path) -> None:
    ensemble = open_classifier(folds_run)
    assert isinstance(ensemble, Ensemble)
    models = [member.classifier for member in ensemble.members]
    for number, model in enumerate(models):  # each prefers a class of its own to class 2
        assert isinstance(model, TorchClassifier)
        head: Any = model.model.get_classifier()  # type: ignore[operator]
        head.weight.data *= 0.01
        head.bias.data = torch.tensor([5.1 * (k == number) + 5.0 * (k == 2) for k in range(3)])
    paths = sorted(digits.rglob("*.png"))[:3]
    images = np.stack([transform_for_eval(decode_image(path), ensemble.preprocessing) for path in paths])
    outputs = ensemble.run_batch(images, features=False, heat=True)
    assert (outputs.logits.argmax(axis=1) == 2).all()
    maps = [model.run_batch(images, features=False, heat=(2,)).heat[:, 0] for model in models]
    assert outputs.heat.any()
    np.testing.assert_allclose(outputs.heat, np.mean(maps, axis=0), atol=1e-6)


def test_raw_predictions_of_folds_are_not_called_uncalibrated(folds_run: FoldsFolder, tmp_path: Path) -> None:
    shutil.copytree(folds_run.path, tmp_path / "copy")
    CALIBRATION.path(tmp_path / "copy/fold-2").unlink()
    [note] = list_run_notes(tmp_path / "copy", PredictRequest())
    assert "fold-2 is not calibrated: calibration.json is missing" in note
    assert list_run_notes(tmp_path / "copy", PredictRequest(raw=True)) == []


def test_ensemble_predicts_the_mean_of_its_members(data: Path, folds_run: FoldsFolder) -> None:
    images = sorted(data.rglob("*.png"))[::10]
    together = predict(images, folds_run.path, abstain=True, explain="heat")
    alone = [predict(images, run.path, abstain=True) for run in folds_run.list_runs()]
    raw = [predict(images, run.path, raw=True) for run in folds_run.list_runs()]
    for place, prediction in enumerate(together):
        assert sum(prediction.probabilities) == pytest.approx(1)
        for name, probability in zip(prediction.classes, prediction.probabilities, strict=True):
            parts = [dict(zip(one[place].classes, one[place].probabilities, strict=True))[name] for one in alone]
            assert probability == pytest.approx(mean(parts), abs=1e-6)
        assert prediction.novelty == pytest.approx(mean(one[place].novelty or 0 for one in alone))
        assert prediction.explanation is not None
        assert prediction.explanation.exists()
    for place, prediction in enumerate(predict(images, folds_run.path, raw=True)):
        parts = [
            dict(zip(one[place].classes, one[place].probabilities, strict=True))[prediction.classes[0]] for one in raw
        ]
        assert prediction.probabilities[0] == pytest.approx(mean(parts), abs=1e-6)


def test_folds_of_different_preprocessing_are_no_ensemble(data: Path, folds_run: FoldsFolder) -> None:
    shutil.copytree(folds_run.path, "cv")
    change_json(Path("cv/fold-2/config.json"), "pretrained_cfg.crop_pct", 0.5)
    Path("cv/fold-2/plan.toml").unlink()  # which has the other one
    with pytest.raises(RunError, match=r"folds of cv differ in classes or in preprocessing\. Evaluate them one"):
        predict(next(data.rglob("*.png")), "cv")


def test_ensemble_is_evaluated_on_the_common_test_split(folds_run: FoldsFolder) -> None:
    result = evaluate(folds_run.path)
    index = folds_run.read_split()
    assert (result.split, result.test_set.rows) == ("test", index.rows("test"))
    predictions = predict(list_images(folds_run, "test"), folds_run.path)
    for logits, prediction in zip(result.images.logits, predictions, strict=True):
        probabilities = dict(zip(prediction.classes, prediction.probabilities, strict=True))
        assert np.exp(logits) == pytest.approx([probabilities[name] for name in result.images.classes], abs=1e-5)
    assert result.test_number == 1
    report = write_report(result)
    assert report.parent == folds_run.path
    assert "eval --recalibrate N --target sensitivity" in report.read_text(), "without it, --target is refused"
    legend = plot_reliability(result).axes[0].get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == [f"ECE {METRICS['ece'].format(result.metrics.ece)}%"], (
        "its models are calibrated"
    )
    for split in ("train", "all"):
        with pytest.raises(DataError, match="trained on images"):
            evaluate(folds_run.path, split=split)
    with pytest.raises(UsageError, match="no validation images of its own"):
        evaluate(folds_run.path, targets=["sensitivity=0.9:1"])


def test_splits_are_compared_once_for_all_rows(folds_run: FoldsFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    compared: list[Index] = []
    has_split_of = Index.has_split_of

    def count(index: Index, other: Index) -> bool:
        compared.append(index)
        return has_split_of(index, other)

    monkeypatch.setattr(Index, "has_split_of", count)
    index, ensemble = folds_run.read_split(), open_classifier(folds_run)
    rows = [row for row, split in enumerate(index.splits) if is_fold(split)]
    finish(ensemble.classify_rows(index, rows))
    assert len(compared) < 10 < len(rows), "each one compares all paths"


def test_split_with_an_image_in_another_fold_is_refused(folds_run: FoldsFolder, tmp_path: Path) -> None:
    copy = FoldsFolder(shutil.copytree(folds_run.path, tmp_path / "copy"))
    index = copy.read_split()
    row = index.rows("fold-1")[0]
    copy.write_split(replace(index, splits=(*index.splits[:row], "fold-2", *index.splits[row + 1 :])))
    with pytest.raises(RunError, match=rf"1 image was in another split: {index.paths[row]} \(val\)"):
        evaluate(copy.path)


def test_out_of_fold_predictions_come_from_models_not_trained_on_the_image(folds_run: FoldsFolder) -> None:
    result = finish(evaluate_steps(folds_run, EvalRequest(split="val")))
    test_set = result.test_set
    assert test_set.rows == [row for row, split in enumerate(test_set.index.splits) if is_fold(split)]
    assert any("out of fold" in note.text for note in result.notes)
    for run in folds_run.list_runs():
        index = run.read_split()
        alone = evaluate(run.path, split="val")
        own = [test_set.rows.index(row) for row in index.rows("val")]
        assert alone.calibration is not None
        scaled = alone.images.logits / alone.calibration.temperature
        assert result.images.logits[own].argmax(axis=1).tolist() == scaled.argmax(axis=1).tolist()
        difference = result.images.logits[own] - scaled  # up to a constant for each image, which softmax removes
        assert np.ptp(difference, axis=1).max() < 1e-4
        assert not set(own) & {test_set.rows.index(row) for row in index.rows("train")}
    write_report(result)
    with (folds_run.path / "predictions.csv").open(newline="") as file:
        assert {row["path"] for row in csv.DictReader(file)} == {test_set.index.paths[row] for row in test_set.rows}


def test_evaluation_on_training_images_gives_a_notice(data: Path, folds_run: FoldsFolder) -> None:
    index = folds_run.read_split()
    lines = [f"{data / index.paths[row]},{index.classes[index.labels[row]]}" for row in range(len(index))]
    Path("all.csv").write_text("\n".join(["path,label", *lines, ""]))
    result = evaluate(folds_run.path, "all.csv", split="all")
    folds = sum(map(is_fold, index.splits))
    assert any(f"{folds} of {len(index)} images were trained on" in note.text for note in result.notes)


def test_commands_for_one_model_name_a_fold(
    data: Path, folds_run: FoldsFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    with pytest.raises(UsageError, match=r"a model for each fold.*fold-1"):
        export(folds_run.path)
    with pytest.raises(UsageError, match="cross_validate"):
        train(folds_request(data, "run"))
    monkeypatch.chdir(folds_run.path.parents[1])
    assert find_newest_run("") == FoldsFolder(Path("runs/cv"))
    assert TorchClassifier(folds_run.run(1).path).classes == ("0", "1", "2")


@pytest.mark.parametrize("deleted", [(1,), (2,), (1, 2)])
def test_a_deleted_fold_is_trained_again(folds_run: FoldsFolder, convnext: Convnext, deleted: tuple[int, ...]) -> None:
    shutil.copytree(folds_run.path, "cv")
    names = ", ".join(f"fold-{fold}" for fold in deleted)
    for fold in deleted:
        shutil.rmtree(f"cv/fold-{fold}")
    lacking = f"cv is a cross-validation that lacks {names}. Continue with `convnext finetune --resume cv`"
    outcome = convnext("eval", "cv")
    assert (outcome.code, lacking in outcome.err) == (3, True)
    recorded = run_all(train_steps(TrainRequest(resume=Path("cv"))))
    assert [event.fold for event in recorded if isinstance(event, FoldDone)] == list(deleted)
    assert weights_of(FoldsFolder(Path("cv"))) == weights_of(folds_run)
    assert json.loads(Path("cv/metrics.json").read_text()) == json.loads(folds_run.metrics.read_text())
    for name in ("audit.json", "image_hashes.safetensors", "split.csv"):
        for fold in deleted:
            assert Path(f"cv/fold-{fold}", name).read_bytes() == (folds_run.run(fold).path / name).read_bytes()


@pytest.mark.parametrize("options", ["--folds 2", "--folds 2 --fold 1", ""])
def test_a_training_that_fails_before_it_begins_leaves_nothing(data: Path, convnext: Convnext, options: str) -> None:
    Path("empty").mkdir()
    words = [data, "--model", "convnext_tiny", *options.split(), "--no-check", "-o"]  # weights that are not cached
    for output in ("empty", "new/run"):
        outcome = convnext("finetune", *words, output)
        assert outcome.code == 1
        assert "are not in this machine's cache" in outcome.err
    assert [str(path) for path in Path().rglob("*")] == ["empty"]


def test_a_failure_before_the_first_fold_removes_no_other_file(data: Path, convnext: Convnext) -> None:
    words = [data, "--model", "convnext_tiny", "--folds", 2, "--no-check", "-o", "own"]
    Path("own").mkdir()
    Path("own/split.csv").write_text("mine")
    Path("own/notes.txt").write_text("mine")
    assert convnext("finetune", *words).code == 2
    assert {path.name: path.read_text() for path in Path("own").iterdir()} == {"split.csv": "mine", "notes.txt": "mine"}
