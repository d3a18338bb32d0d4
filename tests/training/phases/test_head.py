"""A run with a hidden layer before its classifier, from training to every place that it goes to."""

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import load_file

from convnext_cli import evaluate, finetune, predict
from convnext_cli.errors import UsageError
from convnext_cli.exports.hub import hub_steps
from convnext_cli.exports.request import ExportRequest
from convnext_cli.inference.onnx_classifier import OnnxClassifier
from convnext_cli.inference.saved_model import load_model
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.kernels.blocks import FusedBlock, use_fused_blocks
from convnext_cli.models.build import ModelOptions, build_model
from convnext_cli.models.catalog import find_model
from convnext_cli.recipes.rules import check_head
from convnext_cli.recipes.settings import Choice
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.phases.head import HEAD_LR, make_head_optimizer
from tests.conftest import SHALLOW, SMALL, export, list_images
from tests.training.conftest import STEPS, resume, stop_after, tiny_request, train
from tools.kill_test import copy_images, read_final_files

HIDDEN = 64
HEAD = {"head": "mlp", "head_hidden_size": HIDDEN, "head_dropout": 0.25}
INPUTS = torch.linspace(-2, 2, 4 * 3 * 32 * 32).view(4, 3, 32, 32)


@pytest.fixture(scope="module")
def head_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("head") / "run"
    finetune(digits, output=folder, **SMALL | HEAD)  # type: ignore[arg-type]
    return RunFolder(folder)


def build(weights: str = "auto", **options: Any) -> tuple[torch.nn.Module, list[str]]:
    model, tag = find_model("convnext_zepto_rms.builtin")
    return build_model(model, tag, ModelOptions(num_classes=3, **options), weights=weights, offline=True)


def test_run_with_hidden_layer_learns(head_run: RunFolder) -> None:
    weights = load_file(head_run.path / "model.safetensors")
    assert weights["head.pre_logits.fc.weight"].shape == (HIDDEN, 256)
    assert weights["head.fc.weight"].shape == (3, HIDDEN)
    config = json.loads((head_run.path / "config.json").read_text())
    assert config["model_args"]["head_hidden_size"] == HIDDEN
    assert evaluate(head_run.path).metrics.top1 > 0.9


def test_hidden_layer_is_newly_initialised_and_backbone_is_not() -> None:
    plain, new_plain = build()
    model, new_here = build(head_hidden_size=HIDDEN)
    assert new_plain == ["head.fc.weight", "head.fc.bias"]
    assert new_here == ["head.pre_logits.fc.weight", "head.pre_logits.fc.bias", *new_plain]
    state, other_state = model.state_dict(), plain.state_dict()
    assert all(torch.equal(state[name], other_state[name]) for name in state if name not in new_here)


@pytest.mark.parametrize("hidden", [None, HIDDEN])
def test_head_dropout_is_active_in_training_only(hidden: int | None) -> None:
    model, _ = build(head_hidden_size=hidden, head_dropout=0.5)
    inputs_seen = []
    model.get_classifier().register_forward_pre_hook(lambda _, inputs: inputs_seen.append(inputs[0]))  # type: ignore[operator]
    model.eval()
    assert torch.equal(model(INPUTS), model(INPUTS))
    assert (inputs_seen[0] != 0).all()
    torch.manual_seed(0)
    assert not torch.equal(model.train()(INPUTS), model(INPUTS))
    assert 0.35 < float((inputs_seen[2] == 0).float().mean()) < 0.65


@pytest.mark.parametrize("hidden", [HIDDEN, 256])  # at 256 both classifiers have the same shape
def test_weights_with_another_head_load_the_backbone_only(hidden: int, tmp_path: Path) -> None:
    backbone = ["stem.0.weight", "stages.3.blocks.1.mlp.fc2.weight", "head.norm.weight"]
    sizes = (None, hidden)
    for number, (before, after) in enumerate((sizes, sizes[::-1])):
        source, _ = build(head_hidden_size=before)
        path = tmp_path / f"{number}.pth"
        torch.save(source.state_dict(), path)
        model, result = build(str(path), head_hidden_size=after)
        layers = ("head.pre_logits.fc", "head.fc") if after else ("head.fc",)
        assert result == [f"{layer}.{part}" for layer in layers for part in ("weight", "bias")]
        state, other_state = model.state_dict(), source.state_dict()
        assert all(torch.equal(state[name], other_state[name]) for name in backbone)
        assert build(str(path), head_hidden_size=before)[1] == [], "the same head is loaded completely"


def test_run_starts_from_a_run_with_another_head(head_run: RunFolder, digits: Path, tmp_path: Path) -> None:
    settings = SMALL | {"weights": head_run.path, "epochs": 1}
    finetune(digits, output=tmp_path / "linear", **settings)  # type: ignore[arg-type]
    assert "head.pre_logits.fc.weight" not in load_file(tmp_path / "linear/model.safetensors")
    assert evaluate(tmp_path / "linear").metrics.top1 > 0.9
    back = settings | {"weights": tmp_path / "linear"} | HEAD
    finetune(digits, output=tmp_path / "back", **back)  # type: ignore[arg-type]
    assert evaluate(tmp_path / "back").metrics.top1 > 0.9


def test_head_phase_trains_the_hidden_layer_on_one_channel(digits: Path, tmp_path: Path) -> None:
    alone = SMALL | HEAD | {"in_chans": 1, "epochs": 0, "freeze_epochs": 20}
    finetune(digits, output=tmp_path / "run", **alone)  # type: ignore[arg-type]
    result = load_file(tmp_path / "run/model.safetensors")
    began, new_here = build(in_chans=1, head_hidden_size=HIDDEN)
    changed = [name for name, value in began.state_dict().items() if not torch.equal(value, result[name])]
    assert changed == new_here
    assert evaluate(tmp_path / "run").metrics.top1 > 0.7


def test_biases_do_not_decay_while_the_backbone_is_frozen() -> None:
    head = timm.create_model("test_convnext2", num_classes=3).head
    torch.nn.init.ones_(head.fc.bias)
    before = {name: value.clone() for name, value in head.named_parameters()}
    optimizer = make_head_optimizer(head, weight_decay=0.5)
    for parameter in head.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, value in head.named_parameters():
        decays = name == "fc.weight"
        torch.testing.assert_close(value.detach(), before[name] * (1 - 0.5 * HEAD_LR if decays else 1))


def test_timm_transformers_and_the_hub_load_it(head_run: RunFolder, tmp_path: Path) -> None:
    *_, _ = hub_steps(head_run, ExportRequest(format="hub", output=tmp_path / "hub"))
    with torch.inference_mode():
        expected = load_model(head_run.path)[0](INPUTS)
        for folder in (head_run.path, tmp_path / "hub"):
            loaded_model = timm.create_model(f"local-dir:{folder}", pretrained=True).eval()
            assert torch.equal(loaded_model(INPUTS), expected)
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hub").eval()
        assert torch.allclose(loaded(INPUTS).logits, expected, atol=1e-6)
    assert loaded.config.id2label == {0: "0", 1: "1", 2: "2"}
    assert "| head_hidden_size | 64 |" in (tmp_path / "hub/README.md").read_text()


@pytest.mark.slow
def test_exports_with_hidden_layer_predict_like_the_run(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    run = RunFolder(tmp_path / "run")
    finetune(digits, output=run.path, **SMALL | SHALLOW | HEAD)  # type: ignore[arg-type]
    for options in ({}, {"format": "pt2"}, {"int8": True, "tolerance": 0.2}):
        assert export(run, **options).parity.holds
    images = list_images(run, "test")
    by_torch = predict(images, run.path, engine="torch", abstain=True)
    by_onnx = predict(images, run.path, engine="onnx", abstain=True)
    for a, b in zip(by_torch, by_onnx, strict=True):
        assert a.classes == b.classes
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-4)
        assert a.novelty == pytest.approx(b.novelty, rel=1e-3)
    small = np.zeros((2, 32, 32, 3), np.uint8)
    for model in (TorchClassifier(run.path), OnnxClassifier(run.exported("onnx"))):
        assert model.run_batch(small, features=True, heat=False).features.shape == (2, HIDDEN)
    predict(images[:1], run.path, explain=tmp_path / "heat")
    assert len(list((tmp_path / "heat").iterdir())) == 1


def test_fused_blocks_give_the_same_logits(head_run: RunFolder) -> None:
    plain, fast = load_model(head_run.path)[0], load_model(head_run.path)[0]
    use_fused_blocks(fast)
    assert any(isinstance(module, FusedBlock) for module in fast.modules())
    with torch.inference_mode():
        torch.testing.assert_close(fast(INPUTS), plain(INPUTS), rtol=1e-4, atol=1e-4)


def test_resumed_run_draws_the_same_dropout(digits: Path, tmp_path: Path) -> None:
    data = copy_images(digits, tmp_path / "few", 20)
    settings = {"head": "mlp", "head_hidden_size": 32, "head_dropout": 0.5, "epochs": 2}
    train(tiny_request(data, "whole", **settings))
    stop_after(tiny_request(data, "run", **settings), STEPS + 5)
    resume("run")
    assert read_final_files(RunFolder(Path("run"))) == read_final_files(RunFolder(Path("whole")))


def test_impossible_head_is_refused_before_data_are_read(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="cannot have --head mlp"):
        finetune(tmp_path / "nothing", model="convnext_tiny_hnf", weights="none", head="mlp")
    with pytest.raises(UsageError, match="no effect with the linear head"):
        finetune(tmp_path / "nothing", head_hidden_size=64)


def check(model: str, source: str = "flag", **settings: object) -> None:
    check_head(find_model(model)[0], {name: Choice(value=value, source=source) for name, value in settings.items()})


def test_unsupported_head_is_refused() -> None:
    with pytest.raises(UsageError, match="convnext_tiny_hnf cannot have --head mlp"):
        check("convnext_tiny_hnf", head="mlp")
    check("convnext_tiny_hnf", head="linear", head_dropout=0.5)
    check("convnext_tiny", head="mlp", head_hidden_size=64)


def test_hidden_size_without_hidden_layer_is_refused_unless_from_a_plan() -> None:
    for words in ({}, {"head": "linear"}):
        with pytest.raises(UsageError, match="head_hidden_size has no effect with the linear head"):
            check("convnext_tiny", head_hidden_size=64, **words)
    check("convnext_tiny", "plan", head="linear", head_hidden_size=64)
