"""Builds timm's model for training or from a run folder, and writes it in timm's own format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from convnext_cli.data.transforms import Preprocessing
from convnext_cli.errors import RunError
from convnext_cli.files import replace_file
from convnext_cli.models.catalog import Architecture, Tag, load_catalog
from convnext_cli.models.weights import average_channels, find_weights, fit_weights, read_weights, write_tensors
from convnext_cli.records import Config
from convnext_cli.runs import MODEL_REMEDY, RunFolder


def build_model(
    architecture: Architecture,
    tag: Tag | None,
    *,
    num_classes: int,
    drop_path: float,
    weights: str,
    offline: bool,
    in_chans: int = 3,
    head_hidden_size: int | None = None,
    head_dropout: float = 0.0,
) -> tuple[nn.Module, list[str]]:
    """Builds a model with a new classifier.

    Args:
        architecture: which model.
        tag: its pretrained weights, where it has any.
        num_classes: outputs of the new classifier.
        drop_path: stochastic depth of the last block.
        weights: `auto` (the Hub or its cache), `none` (random), or the path of a file or run folder.
        offline: whether the Hub must not be asked.
        in_chans: channels of the input, 3, or 1 for luminance alone.
        head_hidden_size: width of a hidden layer before the classifier; None keeps the model's own head.
        head_dropout: share of the classifier's inputs that training leaves out.

    Returns:
        The model, and the names of its parameters that are newly initialised; all of them with `none`.

    Raises:
        WeightsError: the weights cannot be had, read, or fitted.
    """
    path = None
    if weights == "auto":
        path = find_weights(architecture, tag, offline=offline)
    elif weights != "none":
        path = Path(weights)
    cfg: Any = tag.name if tag else None
    if tag is not None and tag.hub_id is None:  # timm does not know the package's own
        same = {key: getattr(tag, key) for key in ("license", "crop_pct", "crop_mode", "interpolation", "mean", "std")}
        cfg = timm.get_pretrained_cfg(architecture.name)
        cfg = replace(cfg, tag=tag.name, hf_hub_id=None, input_size=(3, tag.image_size, tag.image_size), **same)
    model: nn.Module = timm.create_model(
        architecture.name,
        pretrained_cfg=cfg,
        num_classes=num_classes,
        in_chans=in_chans,
        drop_path_rate=drop_path,
        head_hidden_size=head_hidden_size,
        drop_rate=head_dropout,
    )
    if path is None:
        return model, [parameter for parameter, _ in model.named_parameters()]
    return model, fit_weights(model, read_weights(path), str(path))


@torch.no_grad()
def scale_head(model: nn.Module, new: Sequence[str], scale: float) -> None:
    """Multiplies the classifier's newly initialised weights, as timm's `head_init_scale` does."""
    for name in ("head.fc.weight", "head.fc.bias"):
        if name in new:
            model.get_parameter(name).mul_(scale)


def read_preprocessing(model: nn.Module, image_size: int | None = None) -> Preprocessing:
    """How a timm model wants its images: its `pretrained_cfg`, at `image_size` pixels where one is given."""
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm sets a dict on every model
    mean, std = average_channels(cfg) if model.in_chans == 1 else (tuple(cfg["mean"]), tuple(cfg["std"]))
    how = Preprocessing(
        image_size=cfg["input_size"][1],
        crop_pct=cfg["crop_pct"],
        crop_mode=cfg.get("crop_mode", "center"),
        interpolation=cfg["interpolation"],
        mean=mean,
        std=std,
    )
    return how if image_size is None else replace(how, image_size=image_size)


def write_model(
    model: nn.Module,
    folder: Path,
    weights: Mapping[str, Tensor],
    *,
    classes: Sequence[str],
    how: Preprocessing,
    license: str | None,
) -> None:
    """Writes `config.json` and `model.safetensors`: timm.create_model("local-dir:FOLDER", pretrained=True) loads them.

    The configuration carries the class names, the preprocessing as trained, and the licence of the base weights.
    The weights are given apart, because a model that is spread over several GPUs has only a part of its own.
    """
    data = {"crop_pct": how.crop_pct, "crop_mode": how.crop_mode, "mean": how.mean, "std": how.std}
    # Only the weights' licence is known here; what else their configuration says is about the base weights.
    cfg = {"license": license, "description": None, "num_classes": len(classes)}
    with replace_file(folder / "config.json") as path:
        save_config_for_hf(
            model,
            str(path),
            model_config={"label_names": list(classes), "pretrained_cfg": cfg},
            data_config=data | {"input_size": (len(how.mean), how.image_size, how.image_size)},
        )
        config = json.loads(path.read_text(encoding="utf-8"))
        del config["model_args"]["num_classes"]  # it stands above already; twice is too often for transformers 5.23
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tensors(weights, folder / "model.safetensors", {"format": "pt"})


def load_model(folder: Path) -> tuple[nn.Module, tuple[str, ...], Preprocessing]:
    """Load what `write_model` wrote: the model in evaluation mode, its class names, its preprocessing.

    The model is made of the run's own files alone: what `config.json` says of places to fetch weights from is not
    passed on to timm, and nothing is built before the weights have been seen to have its sizes.

    Raises:
        RunError: a file is missing, damaged, or does not agree with the others.
    """
    run = RunFolder(folder)
    config, path = run.read_config(), folder / "model.safetensors"
    architecture = load_catalog().get(config.architecture)
    if architecture is None:
        why = f"architecture: {config.architecture!r} is no ConvNeXt of timm"
        raise RunError(f"{folder / 'config.json'} cannot be read: {why}", MODEL_REMEDY)
    arguments = config.model_args
    if arguments.head_hidden_size is not None and not architecture.takes_hidden_layer:
        why = f"head_hidden_size: {architecture.name} takes no hidden layer"
        raise RunError(f"{folder / 'config.json'} cannot be read: {why}", MODEL_REMEDY)
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise RunError(f"{folder} is no finished run: it has no {path.name}", MODEL_REMEDY) from error
    except Exception as error:  # a torn file: safetensors' own errors, OSError
        raise RunError(f"{path} cannot be read: it is damaged or cut short", MODEL_REMEDY) from error
    classes = len(config.label_names)
    outputs = len(state.get("head.fc.weight", ()))
    if outputs != classes:
        raise RunError(f"{path} cannot be read: {classes} class names for {outputs} outputs", MODEL_REMEDY)
    model: nn.Module = timm.create_model(
        architecture.name,
        pretrained=False,
        pretrained_cfg=to_plain_cfg(config, folder / "config.json"),
        num_classes=classes,
        in_chans=arguments.in_chans,
        head_hidden_size=arguments.head_hidden_size,
        drop_rate=arguments.drop_rate,
    )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        own = model.state_dict()
        other = [name for name in own if name not in state or state[name].shape != own[name].shape]
        other += [name for name in state if name not in own]
        raise RunError(
            f"{path} cannot be read: {len(other)} tensors do not fit {architecture.name}, such as {other[0]}",
            MODEL_REMEDY,
        ) from error
    if broken := [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]:
        raise RunError(f"{path} cannot be read: {broken[0]} has values that are not finite", MODEL_REMEDY)
    return model.eval(), config.label_names, read_preprocessing(model)


def to_plain_cfg(config: Config, path: Path) -> dict[str, Any]:
    """Return the fields of a run's `pretrained_cfg` that timm needs, without any place to fetch weights from."""
    raw = json.loads(path.read_text(encoding="utf-8"))["pretrained_cfg"]
    kept = {key: raw[key] for key in ("tag", "first_conv", "classifier", "license", "description") if key in raw}
    how = config.pretrained_cfg
    return kept | {
        "architecture": config.architecture, "num_classes": len(config.label_names), "input_size": how.input_size,
        "mean": how.mean, "std": how.std, "crop_pct": how.crop_pct, "crop_mode": how.crop_mode,
        "interpolation": how.interpolation, "pool_size": None, "fixed_input_size": False,
    }  # fmt: skip


def seed_weights(seed: int) -> None:
    """Makes the next model's random weights depend on `seed` alone."""
    torch.manual_seed(seed)
