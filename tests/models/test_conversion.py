"""Checkpoints as people have them: of training scripts, of wrappers, and under other libraries' parameter names."""

import argparse
import json
import math
import pathlib
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from safetensors.torch import save_file
from timm.models.convnext import checkpoint_filter_fn
from torch import Tensor, nn
from torchvision.models.convnext import CNBlockConfig, ConvNeXt

from convnext_cli.errors import WeightsError
from convnext_cli.models.catalog import load_catalog
from convnext_cli.models.conversion import convert_names, identify_architectures
from convnext_cli.models.weights import fit_weights, read_weights

StateDict = dict[str, Tensor]


def make_model(name: str = "test_convnext", classes: int = 5) -> nn.Module:
    """Return a model whose every tensor differs from every other."""
    model: nn.Module = timm.create_model(name, num_classes=classes)
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter.copy_(torch.randn(parameter.shape, generator=generator) * 0.1 + 0.5)
    return model


@pytest.fixture(scope="module")
def state() -> StateDict:
    return make_model().state_dict()


def prefixed(prefix: str) -> Callable[[StateDict], StateDict]:
    return lambda state: {f"{prefix}{name}": value for name, value in state.items()}


def inside(key: str, **more: Any) -> Callable[[StateDict], Any]:
    return lambda state: {**more, key: state}


def halve(state: StateDict) -> StateDict:
    return {name: value / 2 for name, value in state.items()}


def compile_blocks(state: StateDict) -> StateDict:
    return {re.sub(r"(blocks\.\d+\.)", r"\1_orig_mod.", name): value for name, value in state.items()}


ARGUMENTS = argparse.Namespace(
    model="test_convnext", lr=1e-3, output=pathlib.PurePosixPath("out"), mean=np.float64(0.5), seeds=np.arange(3)
)
CHECKPOINTS: dict[str, Callable[[StateDict], Any]] = {
    "plain": lambda state: state,
    "timm model_best.pth.tar": inside("state_dict", epoch=3, arch="test_convnext", args=ARGUMENTS, metric=0.5),
    "numpy metric": inside("state_dict", metric=np.float32(0.5), best=np.float64(1)),
    "the authors' checkpoint-best.pth": inside("model", optimizer={"state": {}}, args=ARGUMENTS, scaler=None),
    "timm with averaged weights": lambda state: {
        "state_dict": halve(state), "state_dict_ema": state, "args": ARGUMENTS,
    },
    "no averaged weights": inside("state_dict", state_dict_ema=None),
    "the authors' averaged weights": lambda state: {"model": halve(state), "model_ema": state},
    "compiled": lambda state: {"state_dict": prefixed("_orig_mod.")(state)},
    "blocks compiled": compile_blocks,
    "distributed": prefixed("module."),
    "distributed and compiled": prefixed("module._orig_mod."),
    "compiled and distributed": prefixed("_orig_mod.module."),
    "Lightning": lambda state: {
        "state_dict": prefixed("model.")(state) | {"criterion.weight": torch.ones(5)},
        "hyper_parameters": {"data": pathlib.PurePosixPath("x")}, "callbacks": {}, "loops": None,
    },
    "Lightning under another name": lambda state: {"state_dict": prefixed("net.backbone.")(state)},
    "Lightning with averaged weights": lambda state: {
        "state_dict": prefixed("model.")(halve(state)) | prefixed("ema_model.module.")(state)
    },
    "swa": lambda state: prefixed("module.")(state) | {"n_averaged": torch.tensor(3)},
    "a key of one's own": inside("best_model_weights", optimizer={"state": {0: {"exp_avg": torch.ones(3)}}}, epoch=1),
    "model and config": lambda state: {"model": {"name": "x"}, "weights": state},
}  # fmt: skip


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_training_scripts_are_read(kind: str, state: StateDict, tmp_path: Path) -> None:
    path = tmp_path / "any.name"
    torch.save(CHECKPOINTS[kind](state), path)
    weights = read_weights(path)
    assert weights.keys() == state.keys()
    assert all(torch.equal(weights[name], state[name]) for name in state)


def test_old_checkpoint_format_is_read(state: StateDict, tmp_path: Path) -> None:
    path = tmp_path / "old.pth"
    torch.save({"state_dict": state, "args": ARGUMENTS}, path, _use_new_zipfile_serialization=False)
    assert read_weights(path).keys() == state.keys()


def test_folders_and_files_with_metadata_are_read(state: StateDict, tmp_path: Path) -> None:
    whole, sharded = tmp_path / "whole", tmp_path / "sharded"
    for folder in (whole, sharded):
        folder.mkdir()
        (folder / "config.json").write_text("{}")
    save_file(state, whole / "model.safetensors", metadata={"format": "pt", "note": "mine"})
    names = sorted(state)
    files = {name: f"model-0000{1 + (i % 2)}-of-00002.safetensors" for i, name in enumerate(names)}
    for file in set(files.values()):
        save_file({name: state[name] for name in names if files[name] == file}, sharded / file)
    index = sharded / "model.safetensors.index.json"
    index.write_text(json.dumps({"metadata": {}, "weight_map": files}))
    for path in (whole, whole / "model.safetensors", sharded, index):
        weights = read_weights(path)
        assert all(torch.equal(weights[name], state[name]) for name in state), path
    part = sharded / "model-00001-of-00002.safetensors"
    with pytest.raises(WeightsError, match=r"00002\.safetensors is one of several files .* Give its folder"):
        read_weights(part)
    index.unlink()
    for path in (part, sharded):
        with pytest.raises(WeightsError, match=r"Copy model\.safetensors\.index\.json into its folder"):
            read_weights(path)
    index.write_text(json.dumps({"weight_map": {"a": "../whole/model.safetensors"}}))
    with pytest.raises(WeightsError, match="which is not in its folder"):
        read_weights(index)


# The names of transformers' ConvNextForImageClassification and ConvNextV2ForImageClassification.
TRANSFORMERS = (
    (r"^stem\.0", "embeddings.patch_embeddings"), (r"^stem\.1", "embeddings.layernorm"),
    (r"^stages\.(\d)\.downsample", r"encoder.stages.\1.downsampling_layer"),
    (r"^stages\.(\d)\.blocks", r"encoder.stages.\1.layers"), (r"conv_dw", "dwconv"), (r"\.norm\.", ".layernorm."),
    (r"mlp\.fc(\d)", r"pwconv\1"), (r"mlp\.grn", "grn"), (r"\.gamma$", ".layer_scale_parameter"),
    (r"^head\.layernorm", "layernorm"),
)  # fmt: skip


def as_transformers(state: StateDict, prefix: str) -> StateDict:
    renamed = {}
    for name, value in state.items():
        new = name
        for pattern, replacement in TRANSFORMERS:
            new = re.sub(pattern, replacement, new)
        new = new.replace("head.fc", "classifier") if new.startswith("head.fc") else prefix + new
        flat = value.flatten(1) if "pwconv" in new and value.ndim == 4 else value
        renamed[new] = flat.view(1, 1, 1, -1) if "grn" in new else flat
    return renamed


def as_authors(state: StateDict) -> StateDict:
    renamed = {}
    for name, value in state.items():
        new = re.sub(r"^stem", "downsample_layers.0", name)
        new = re.sub(r"^stages\.(\d)\.downsample", r"downsample_layers.\1", new)
        new = re.sub(r"^stages\.(\d)\.blocks", r"stages.\1", new)
        new = new.replace("conv_dw", "dwconv").replace("mlp.fc", "pwconv").replace("head.fc", "head")
        new = new.replace("mlp.grn.weight", "grn.gamma").replace("mlp.grn.bias", "grn.beta")
        new = re.sub(r"^head\.norm", "norm", new)
        flat = value.flatten(1) if "pwconv" in new and value.ndim == 4 else value
        renamed[new] = flat.view(1, 1, 1, -1) if "grn" in new else flat
    return renamed


def as_fcmae(state: StateDict) -> StateDict:
    """As main_pretrain.py of facebookresearch/ConvNeXt-V2 saves it: sparse layers, and a decoder beside the encoder."""
    renamed = {"mask_token": torch.zeros(1, 8, 1, 1), "proj.weight": torch.zeros(8, 8), "pred.bias": torch.zeros(8)}
    renamed |= {"decoder.0.dwconv.weight": torch.zeros(8, 1, 7, 7)}
    for name, tensor in as_authors(state).items():
        if name.startswith(("head", "norm.")):
            continue
        *parts, last = name.split(".")
        value = tensor
        if name.startswith("downsample_layers.0"):
            wrapper = ""
        elif last == "weight" and value.ndim == 4:
            k = value.shape[-1] ** 2
            flat = value.transpose(3, 2).reshape(*value.shape[:2], k)  # a depthwise one has shape (C, 1, k)
            value = flat[:, 0].permute(1, 0) if value.shape[1] == 1 else flat.permute(2, 1, 0)
            wrapper, last = "", "kernel"
        elif "pwconv" in name:
            wrapper = "linear"
        else:
            wrapper = "ln" if "norm" in name or (name.startswith("downsample_layers") and parts[-1] == "0") else ""
        if "grn" in name or (last == "bias" and parts[-1] == "dwconv"):
            value = value.reshape(1, -1)
        renamed[".".join(["encoder", *parts, *([wrapper] if wrapper else []), last])] = value.contiguous()
    return renamed


@pytest.mark.parametrize(
    ("name", "prefix"),
    [("test_convnext", "convnext."), ("convnextv2_atto", "convnextv2."), ("test_convnext", "")],
)
def test_transformers_names_are_converted(name: str, prefix: str, tmp_path: Path) -> None:
    source, target = make_model(name), timm.create_model(name, num_classes=5)
    save_file(as_transformers(source.state_dict(), prefix), tmp_path / "model.safetensors", metadata={"format": "pt"})
    assert fit_weights(target, read_weights(tmp_path), "here") == []
    assert all(torch.equal(a, b) for a, b in zip(source.parameters(), target.parameters(), strict=True))


@pytest.mark.parametrize("wrapper", ["", "model."])
def test_torchvision_weights_give_the_same_logits_in_timm(wrapper: str, tmp_path: Path) -> None:
    """At the widths of convnext_pico, whose linear layers are 1x1 convolutions in timm."""
    target = timm.create_model("convnext_pico", num_classes=5).eval()
    dims, depths = (64, 128, 256, 512), (2, 2, 6, 2)
    settings = [CNBlockConfig(c, n, d) for c, n, d in zip(dims, (*dims[1:], None), depths, strict=True)]
    torch.manual_seed(0)
    source = ConvNeXt(settings, stochastic_depth_prob=0.0, layer_scale=0.5, num_classes=5).eval()
    torch.save({f"{wrapper}{name}": value for name, value in source.state_dict().items()}, tmp_path / "a.pth")
    assert fit_weights(target, read_weights(tmp_path / "a.pth"), "here") == []
    images = torch.randn(2, 3, 64, 64)
    with torch.inference_mode():
        torch.testing.assert_close(target(images), source(images), rtol=1e-4, atol=1e-5)


DINOV3 = (
    (r"^stem", "stages.0.downsample_layers"), (r"^stages\.(\d)\.downsample\.", r"stages.\1.downsample_layers."),
    (r"^stages\.(\d)\.blocks", r"stages.\1.layers"), (r"conv_dw", "depthwise_conv"), (r"\.norm\.", ".layer_norm."),
    (r"mlp\.fc(\d)", r"pointwise_conv\1"), (r"^head\.", ""),
)  # fmt: skip


@pytest.mark.parametrize("prefix", ["", "model."])
@pytest.mark.parametrize(
    "renames", [DINOV3, ((r"^(stem|stages)\.(\d)", r"\1_\2"),)], ids=["DINOv3 of transformers", "features_only of timm"]
)
def test_backbones_under_other_names_are_converted(
    renames: tuple[tuple[str, str], ...], prefix: str, state: StateDict
) -> None:
    theirs = {}
    for name, value in state.items():
        new = name
        for pattern, replacement in renames:
            new = re.sub(pattern, replacement, new)
        if not new.startswith(("head.", "fc.")):
            theirs[new if prefix and new.startswith("layer_norm") else prefix + new] = (
                value  # as transformers 5 saves it
            )
    target = timm.create_model("test_convnext", num_classes=5)
    new_parameters = fit_weights(target, convert_names(theirs, "here"), "here")
    assert new_parameters == [name for name in state if name.startswith("head." if renames != DINOV3 else "head.fc")]
    assert all(torch.equal(value, state[n]) for n, value in target.state_dict().items() if n not in new_parameters)


@pytest.mark.parametrize("prefix", ["backbone.", "features.0."])  # `model.features`, and a Sequential of it
def test_features_of_torchvision_are_converted(prefix: str) -> None:
    settings = [CNBlockConfig(c, n, d) for c, n, d in ((64, 128, 2), (128, 256, 2), (256, 512, 6), (512, None, 2))]
    source = ConvNeXt(settings, layer_scale=0.5).features.state_dict()
    theirs = {f"{prefix}{name}": value for name, value in source.items()}
    target = timm.create_model("convnext_pico", num_classes=5)
    assert all(name.startswith("head.") for name in fit_weights(target, convert_names(theirs, "here"), "here"))
    assert torch.equal(target.stem[0].weight, source["0.0.weight"])
    assert torch.equal(target.stages[3].blocks[1].norm.bias, source["7.1.block.2.bias"])


@pytest.mark.parametrize("name", ["test_convnext", "convnextv2_atto"])
def test_the_authors_names_are_converted_as_in_timm(name: str) -> None:
    model = make_model(name)
    theirs = as_authors(model.state_dict())
    converted = convert_names(theirs, "here")
    target, expected = timm.create_model(name, num_classes=5), checkpoint_filter_fn(dict(theirs), model)
    assert fit_weights(target, converted, "here") == []
    assert all(torch.equal(value, expected[key]) for key, value in target.state_dict().items())


def test_fcmae_pretraining_checkpoints_fill_the_backbone() -> None:
    source, target = make_model("convnextv2_atto"), timm.create_model("convnextv2_atto", num_classes=5)
    theirs = as_fcmae(source.state_dict())
    assert theirs["encoder.stages.0.0.dwconv.kernel"].shape == (49, 40)
    assert theirs["encoder.downsample_layers.1.1.kernel"].shape == (4, 40, 80)
    new = fit_weights(target, convert_names(theirs, "here"), "here")
    assert new == ["head.norm.weight", "head.norm.bias", "head.fc.weight", "head.fc.bias"]
    own = source.state_dict()
    assert all(torch.equal(value, own[name]) for name, value in target.state_dict().items() if name not in new)


def test_open_clip_image_towers_are_converted_as_in_timm(state: StateDict) -> None:
    theirs = {f"visual.trunk.{name}": value for name, value in state.items() if not name.startswith("head.fc")}
    theirs |= {"visual.head.proj.weight": torch.ones(7, 64), "logit_scale": torch.ones(())}
    expected = checkpoint_filter_fn(dict(theirs), None)
    for prefix in ("", "module."):
        weights = convert_names({prefix + name: value for name, value in theirs.items()}, "here")
        assert weights.keys() == expected.keys()
        assert all(torch.equal(weights[name], expected[name]) for name in weights)


@pytest.mark.slow
def test_every_architecture_is_identified_from_its_weights() -> None:
    for name in load_catalog():
        with torch.device("meta"):
            names = identify_architectures(timm.create_model(name, num_classes=3).state_dict())
        assert name in names
        assert len(names) == (2 if name in ("test_convnext2", "test_convnext3", "convnext_large_mlp") else 1), names


def test_weights_of_another_size_are_identified() -> None:
    atto, femto = make_model("convnextv2_atto").state_dict(), timm.create_model("convnextv2_femto", num_classes=5)
    for theirs in (atto, as_authors(atto), as_transformers(atto, "convnextv2."), as_fcmae(atto)):
        with pytest.raises(WeightsError, match=r"are of convnextv2_atto \(.*Give --model convnextv2_atto"):
            fit_weights(femto, convert_names(theirs, "here"), "here")


def write_two(path: Path, state: StateDict) -> None:
    torch.save(prefixed("student.")(state) | prefixed("teacher.")(state), path)


def write_quantised(path: Path, state: StateDict) -> None:
    torch.save({name: (value * 100).to(torch.int8) for name, value in state.items()}, path)


def to_all(state: StateDict, kind: str) -> StateDict:
    return {name: value.to_sparse() if kind == "sparse" else value.to(kind) for name, value in state.items()}


def write_infinite(path: Path, state: StateDict) -> None:
    torch.save(state | {"stem.0.bias": torch.full((24,), math.nan)}, path)


def write_cut(path: Path, state: StateDict, length: int = -5000) -> None:
    torch.save(state, path)
    path.write_bytes(path.read_bytes()[:length])


REFUSED: dict[str, tuple[Callable[[Path, StateDict], Any], str]] = {
    "a whole model": (lambda path, _: torch.save(make_model(), path), r"holds Python objects \(.*torch\.save\(model"),
    "two networks": (write_two, r"2 networks, under the prefixes student\., teacher\."),
    "two state dicts": (
        lambda path, state: torch.save({"student": state, "teacher": state}, path),
        "2 state dicts, under student, teacher",
    ),
    "quantised": (write_quantised, r"is quantised: stem\.0\.weight is int8"),
    "without values": (lambda path, state: torch.save(to_all(state, "meta"), path), r"without values \(meta\)"),
    "sparse": (lambda path, state: torch.save(to_all(state, "sparse"), path), r"no dense tensors: .* is sparse_coo"),
    "not finite": (write_infinite, r"not finite, in stem\.0\.bias"),
    "cut short": (write_cut, "damaged, cut short"),
    "cut after its start": (lambda path, state: write_cut(path, state, 5000), "damaged, cut short"),
    "empty": (lambda path, _: path.write_bytes(b""), "damaged, cut short"),
    "Keras": (lambda path, _: path.write_bytes(b"\x89HDF\r\n\x1a\n" + bytes(99)), r"is a file of Keras \(HDF5\)"),
    "Git LFS": (lambda path, _: path.write_text("version https://git-lfs.github.com/spec/v1\n"), "a Git LFS pointer"),
    "no tensors": (lambda path, _: torch.save({"state_dict": {}}, path), "holds no state dict"),
    "control characters": (
        lambda path, _: torch.save({"\x1b[31mred\n": torch.ones(3)}, path), r"for example, \[31mred"
    ),
}  # fmt: skip


@pytest.mark.parametrize("kind", REFUSED)
def test_errors_name_the_problem_of_a_file(kind: str, state: StateDict, tmp_path: Path) -> None:
    write, words = REFUSED[kind]
    path = tmp_path / "given.pth"
    write(path, state)
    with pytest.raises(WeightsError, match=words) as caught:
        read_weights(path)
    assert str(caught.value).isprintable()
    assert len(str(caught.value)) < 500


def test_errors_list_the_weights_in_a_folder(tmp_path: Path) -> None:
    with pytest.raises(WeightsError, match=r"has no model\.safetensors\. Give"):
        read_weights(tmp_path)
    (tmp_path / "best.pth").touch()
    with pytest.raises(WeightsError, match=r"has no model\.safetensors, but best\.pth\. Name"):
        read_weights(tmp_path)
