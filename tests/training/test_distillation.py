"""Distillation: a student learns from a run, an ensemble, an ONNX file or a model of timm."""

import json
import os
import shutil
import weakref
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
import torch.nn.functional as F
from safetensors.numpy import load_file, save_file

from convnext_cli import cross_validate, evaluate, export, finetune
from convnext_cli.cache_folder import find_cache_folder, list_cache
from convnext_cli.errors import RunError, UsageError, WeightsError
from convnext_cli.exports.model_card import find_license
from convnext_cli.exports.wrapper import make_metadata
from convnext_cli.inference.teacher import Teacher, open_teacher
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.models.licenses import is_non_commercial, join_licenses
from convnext_cli.progress import Progress
from convnext_cli.recipes.plan import read_plan
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.parts.distillation import DistillationLoss, ProjectingClassifier
from convnext_cli.training.parts.loss import CrossEntropy
from convnext_cli.training.views import choose_view
from tests.conftest import SMALL
from tests.training.conftest import STEPS, resume, stop_after, tiny_request, train
from tools.kill_test import read_final_files

STUDENT = {"model": "test_convnext2", "weights": "none", "batch_size": 8, "epochs": 1, "audit": False}
TERMS = "imagenet-noncommercial"


@pytest.fixture(scope="module")
def teacher(few_digits: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with pretrained weights."""
    folder = tmp_path_factory.mktemp("teacher") / "run"
    finetune(few_digits, output=folder, audit=False, **SMALL | {"epochs": 2})  # type: ignore[arg-type]
    return RunFolder(folder)


def read_license(run: Path) -> str | None:
    license: str | None = json.loads((run / "config.json").read_text())["pretrained_cfg"]["license"]
    return license


def list_arrays() -> set[Path]:
    return set((find_cache_folder() / "teachers").glob("*.npy"))


def test_resumed_distillation_ends_in_the_same_bytes(
    few_digits: Path, teacher: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    train(tiny_request(few_digits, "whole", teacher=str(teacher.path)))
    stop_after(tiny_request(few_digits, "run", teacher=os.path.relpath(teacher.path)), STEPS + 5)
    assert not RunFolder(Path("run")).is_finished
    run = Path("run").absolute()
    with monkeypatch.context() as patch:
        patch.chdir("/")  # the teacher's path does not depend on the current folder
        resume(run)
    assert read_final_files(RunFolder(Path("run"))) == read_final_files(RunFolder(Path("whole")))


def test_resume_refuses_another_teacher(few_digits: Path, teacher: RunFolder) -> None:
    shutil.copytree(teacher.path, "teacher")
    stop_after(tiny_request(few_digits, "run", teacher="teacher"), 2)
    weights = Path("teacher/model.safetensors")
    weights.write_bytes(weights.read_bytes()[:-4] + b"\0\0\0\0")
    with pytest.raises(RunError, match=r"weights of the teacher .*/teacher are not those that the run began with"):
        resume("run")
    shutil.rmtree("teacher")
    with pytest.raises(RunError, match=r"there is no teacher .* Restore the teacher .*/teacher, or start a new run"):
        resume("run")


def test_teacher_leaves_the_device_before_the_training_is_measured(
    few_digits: Path, teacher: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    opened: list[weakref.ref[Any]] = []

    def open_and_watch(*args: Any, **options: Any) -> Teacher:
        opened.append(weakref.ref((result := open_teacher(*args, **options)).classifier))
        return result

    monkeypatch.setattr("convnext_cli.training.lifecycle.open_teacher", open_and_watch)
    events = finetune_steps(tiny_request(few_digits, "run", teacher=str(teacher.path)))
    assert any(isinstance(event, Progress) and event.activity == "autotuning" for event in events)
    assert [reference() for reference in opened] == [None]
    events.close()


def test_outputs_of_a_teacher_are_computed_once(
    few_digits: Path, teacher: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    counts: list[int] = []
    compute = Teacher.compute

    def count(self: Teacher, images: np.ndarray, columns: tuple[int, ...], *, features: bool) -> np.ndarray:
        counts.append(len(images))
        return compute(self, images, columns, features=features)

    monkeypatch.setattr(Teacher, "compute", count)
    before = list_arrays()
    options = {"teacher": str(teacher.path), "teacher_views": 2, "seed": 7}
    train(tiny_request(few_digits, "first", **options))
    assert sum(counts) == 2 * 48  # views x training images, in three epochs
    train(tiny_request(few_digits, "second", lr=1e-3, **options))
    assert sum(counts) == 2 * 48
    [array] = list_arrays() - before
    assert np.load(array).shape == (2, 48, 3 + 256)
    assert array.stat().st_blocks * 512 >= array.stat().st_size, "a full disk would kill a later write to a sparse file"
    assert next(part for part in list_cache() if part.name == "teachers").entries
    train(tiny_request(few_digits, "third", rotation=5.0, **options))  # other views
    assert sum(counts) == 4 * 48


@pytest.mark.slow
def test_missing_outputs_are_computed_again(few_digits: Path, teacher: RunFolder) -> None:
    options = {"teacher": str(teacher.path), "seed": 8}
    before = list_arrays()
    train(tiny_request(few_digits, "first", **options))
    [array] = list_arrays() - before
    outputs = np.load(array)
    damaged = np.lib.format.open_memmap(array, mode="r+")
    damaged[1, 3] = 0
    damaged.flush()
    train(tiny_request(few_digits, "second", **options))
    assert np.array_equal(np.load(array), outputs)
    assert (Path("first/model.safetensors")).read_bytes() == Path("second/model.safetensors").read_bytes()


@pytest.mark.slow
def test_without_cache_the_result_is_the_same(few_digits: Path, teacher: RunFolder) -> None:
    before = list_arrays()
    train(tiny_request(few_digits, "kept", teacher=str(teacher.path)))
    known = list_arrays()
    assert known >= before
    train(tiny_request(few_digits, "not", teacher=str(teacher.path), cache=False))
    assert list_arrays() == known
    assert Path("kept/model.safetensors").read_bytes() == Path("not/model.safetensors").read_bytes()


@pytest.mark.parametrize(("weights", "width"), [((0.0, 1.0), 256), ((1.0, 0.0), 3)])
def test_only_what_has_a_weight_is_computed(
    few_digits: Path, teacher: RunFolder, weights: tuple[float, float], width: int
) -> None:
    before = list_arrays()
    options = {"teacher_weight": weights[0], "teacher_features": weights[1], "seed": 9}
    stop_after(tiny_request(few_digits, "run", teacher=str(teacher.path), **options), STEPS + 5)
    resume("run")
    [array] = list_arrays() - before
    assert np.load(array).shape[2] == width


def test_student_is_a_plain_model(few_digits: Path, teacher: RunFolder) -> None:
    finetune(few_digits, teacher=teacher.path, output="run", average_best=2, **STUDENT | {"epochs": 2})  # type: ignore[arg-type]
    model = timm.create_model("local-dir:run", pretrained=True)
    plain = timm.create_model("test_convnext2", num_classes=3)
    assert model.state_dict().keys() == plain.state_dict().keys()
    assert evaluate("run", split="val").metrics.images == 9
    assert read_plan(Path("run/plan.toml")).teacher == str(teacher.path)


def test_student_inherits_the_licences(few_digits: Path, teacher: RunFolder) -> None:
    finetune(
        few_digits, teacher=teacher.path, data_license="cc-by-nc-4.0", output="run", **STUDENT  # type: ignore[arg-type]
    )  # fmt: skip
    expected = f"{TERMS} AND cc-by-nc-4.0"
    assert read_license(Path("run")) == expected
    license = find_license(RunFolder(Path("run")))
    assert str(license) == f"{expected} (that of the teacher and the images)"
    assert make_metadata(TorchClassifier(Path("run"))).license == expected, "and so that of an exported file"
    export("run", format="hub", output="hub")
    card = Path("hub/README.md").read_text()
    assert f"license: other\nlicense_name: {json.dumps(expected)}" in card
    assert "Not for commercial use." in card


def test_student_of_own_weights_has_no_licence(few_digits: Path) -> None:
    finetune(few_digits, output="teacher", **STUDENT)  # type: ignore[arg-type]
    finetune(few_digits, teacher="teacher", output="run", **STUDENT)  # type: ignore[arg-type]
    assert read_license(Path("run")) is None
    assert open_teacher("teacher").licenses == ()


def test_licences_are_joined() -> None:
    assert join_licenses([]) is None
    assert join_licenses(["mit", None]) is None
    assert join_licenses(["mit", "mit AND apache-2.0"]) == "mit AND apache-2.0"
    assert is_non_commercial("mit AND cc-by-nc-sa-4.0")
    assert not is_non_commercial("mit AND apache-2.0")
    assert not is_non_commercial(None)


@pytest.mark.slow
def test_onnx_file_teaches_as_its_run(few_digits: Path, teacher: RunFolder, tmp_path: Path) -> None:
    file = export(teacher.path, output=tmp_path / "model.onnx").path
    from_run, from_file = open_teacher(str(teacher.path)), open_teacher(str(file))
    assert from_file.licenses == from_run.licenses == (TERMS,)
    assert from_file.feature_width == from_run.feature_width == 256
    pixels = np.random.default_rng(0).integers(0, 256, (4, 32, 32, 3), dtype=np.uint8)
    difference = from_file.compute(pixels, [2, 0], features=True).astype(float) - from_run.compute(
        pixels, [2, 0], features=True
    )
    assert np.abs(difference).max() < 5e-3
    finished = finetune(few_digits, teacher=file, output="run", **STUDENT)  # type: ignore[arg-type]
    assert finished.val is not None
    with pytest.raises(UsageError, match="takes images of 32 x 32 px only"):
        finetune(few_digits, teacher=file, output="wide", **STUDENT | {"image_size": "32x64"})  # type: ignore[arg-type]


@pytest.mark.slow
def test_ensemble_of_folds_teaches(few_digits: Path) -> None:
    cross_validate(few_digits, folds=2, output="folds", test_fraction=0.0, **STUDENT)  # type: ignore[arg-type]
    ensemble = open_teacher("folds")
    assert ensemble.feature_width == 0
    finetune(few_digits, teacher="folds", output="run", **STUDENT)  # type: ignore[arg-type]
    assert RunFolder(Path("run")).is_finished


def test_model_of_timm_teaches(few_digits: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    create = timm.create_model

    def create_random(name: str, **options: object) -> object:  # the Hub is not asked
        return create(name, **options | {"pretrained": False})

    monkeypatch.setattr(timm, "create_model", create_random)
    monkeypatch.setattr("convnext_cli.inference.teacher.ask_hub", lambda _: 0)
    model = open_teacher("test_vit.r160_in1k")  # not a ConvNeXt
    assert len(model.classifier.classes) == 1000
    assert model.licenses == ("apache-2.0",)
    images = np.random.default_rng(0).integers(0, 256, (5, 160, 160, 3), np.uint8)
    whole = model.compute(images, range(1000), features=True)
    network: Any = model.classifier.model  # type: ignore[attr-defined]
    forward = network.forward_features

    def forward_few(inputs: torch.Tensor) -> torch.Tensor:
        if len(inputs) > 2:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        result: torch.Tensor = forward(inputs)
        return result

    monkeypatch.setattr(network, "forward_features", forward_few)
    np.testing.assert_allclose(model.compute(images, range(1000), features=True), whole, rtol=0.01, atol=0.01)
    finetune(few_digits, teacher="test_vit.r160_in1k", output="run", **STUDENT)  # type: ignore[arg-type]
    assert read_license(Path("run")) == "apache-2.0"  # it knows no digits: its features alone are learned


def test_images_without_labels(few_digits: Path, teacher: RunFolder) -> None:
    flat = Path("flat")
    flat.mkdir()
    for number, path in enumerate(sorted(few_digits.rglob("*.png"))):
        shutil.copy(path, flat / f"{number}.png")
    options = {"teacher": str(teacher.path), "unlabelled": True, "epochs": 1}
    events = train(tiny_request(flat, "run", **options))
    assert any("the images have no labels" in notice.text for notice in events[0].notices)
    index = RunFolder(Path("run")).read_split()
    assert index.classes == ("0", "1", "2")
    truth = [int(path.partition(".")[0]) // 20 for path in index.paths]
    assert np.mean(np.array(truth) == index.labels) > 0.9  # of the teacher's labels
    train(tiny_request(flat, "again", **options))
    assert Path("run/model.safetensors").read_bytes() == Path("again/model.safetensors").read_bytes()


def test_run_on_images_without_labels_is_evaluated_on_the_labels_of_its_folder(
    few_digits: Path, teacher: RunFolder
) -> None:
    data = Path("data")
    for digit, name in (("0", "1"), ("1", "0"), ("2", "2")):  # the teacher calls each what the other is
        shutil.copytree(few_digits / digit, data / name)
    train(tiny_request(data, "run", teacher=str(teacher.path), unlabelled=True, epochs=1))
    text = "the metrics are the agreement with the teacher"
    own, labelled = evaluate("run", split="all"), evaluate("run", data, split="all")
    assert any(text in note.text for note in own.notes)
    assert not any(text in note.text for note in labelled.notes)
    index = labelled.test_set.index
    names = [index.classes[index.labels[row]] for row in labelled.test_set.rows]
    assert names == [index.paths[row].split("/")[0] for row in labelled.test_set.rows]
    assert np.mean(own.images.targets == labelled.images.targets) < 0.5


def test_impossible_teachers_are_refused(few_digits: Path) -> None:
    with pytest.raises(UsageError, match="there is no teacher 'nonsense': no such path, and no model of timm"):
        finetune(few_digits, teacher="nonsense", output="run", **STUDENT)  # type: ignore[arg-type]
    Path("notes.txt").write_text("")
    with pytest.raises(UsageError, match=r"notes\.txt is not a teacher"):
        finetune(few_digits, teacher="notes.txt", output="run", **STUDENT)  # type: ignore[arg-type]
    finetune(few_digits, output="own", **STUDENT)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"nothing is learned from the teacher \S*own"):
        finetune(few_digits, teacher="own", teacher_weight=0.0, teacher_features=0.0, output="run", **STUDENT)  # type: ignore[arg-type]
    with pytest.raises(WeightsError, match="not in this machine's cache, and --offline or HF_HUB_OFFLINE is set"):
        finetune(few_digits, teacher="timm/resnet18.a1_in1k", offline=True, output="run", **STUDENT)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="--unlabelled needs a teacher"):
        finetune(few_digits, unlabelled=True, output="run", **STUDENT)  # type: ignore[arg-type]
    assert not Path("run/plan.toml").exists()


def test_teacher_whose_weights_cannot_be_loaded_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)  # the Hub is not asked
    with pytest.raises(WeightsError, match=r"cannot load the teacher resnet18\.a1_in1k \(.*Give a run or a file"):
        open_teacher("resnet18.a1_in1k")


def test_teacher_of_values_that_are_not_finite_is_refused(teacher: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(teacher.path, tmp_path / "teacher")
    weights = tmp_path / "teacher/model.safetensors"
    large = {name: value * np.float32(1e30) for name, value in load_file(weights).items()}
    save_file(large, weights, {"format": "pt"})
    model = open_teacher(str(tmp_path / "teacher"))
    with pytest.raises(RunError, match=r"outputs of the teacher .*/teacher are not finite\. Use another teacher"):
        model.compute(np.zeros((1, 32, 32, 3), np.uint8), [0, 1, 2], features=True)


def test_loss_is_zero_for_a_perfect_student_and_has_the_gradient_of_its_formula() -> None:
    loss = DistillationLoss(labels=CrossEntropy(num_classes=3), classes=3, weight=1.0, temperature=2.0, features=1.0)
    teacher = torch.tensor([[2.0, 0.0, -1.0, 3.0, 4.0]])
    targets = loss.join_targets(torch.tensor([[1.0, 0.0, 0.0]]), teacher)
    perfect = torch.tensor([[3.0, 1.0, 0.0, 6.0, 8.0]])  # shifted logits, scaled features
    assert float(loss.sum_losses(perfect, targets)) == pytest.approx(0.0, abs=1e-6)
    student = torch.tensor([[0.0, 1.0, 0.0, 4.0, -3.0]])  # features at a right angle
    p, q = (torch.softmax(torch.tensor(row) / 2, 0) for row in ([2.0, 0.0, -1.0], [0.0, 1.0, 0.0]))
    expected = 4 * float((p * (p / q).log()).sum()) + 1
    assert float(loss.sum_losses(student, targets)) == pytest.approx(expected, rel=1e-5)
    mixed = DistillationLoss(labels=CrossEntropy(num_classes=3), classes=3, weight=0.25, temperature=2.0, features=0.0)
    labels = float(F.cross_entropy(student[:, :3], torch.tensor([0])))
    assert float(mixed.sum_losses(student, targets)) == pytest.approx(0.75 * labels + 0.25 * (expected - 1), rel=1e-5)


def test_projection_is_there_in_training_only() -> None:
    layer = ProjectingClassifier(torch.nn.Linear(4, 3), 5)
    features = torch.ones(2, 4)
    assert layer.train()(features).shape == (2, 8)
    assert torch.equal(layer.eval()(features), layer.train()(features)[:, :3])
    assert [name for name, _ in layer.named_parameters()] == ["weight", "bias", "projection.weight", "projection.bias"]


def test_each_draw_of_an_epoch_shows_a_view() -> None:
    assert [choose_view(5, 10, epoch, 3) for epoch in range(4)] == [0, 1, 2, 0]
    assert choose_view(15, 10, 0, 3) == 1  # the first repetition of row 5
