"""Build timm models for training."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.models.catalog import Architecture, Tag
from convnext_cli.models.weights import average_channels, find_weights, fit_weights, read_weights


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
    preprocessing = Preprocessing(
        image_size=cfg["input_size"][1],
        crop_pct=cfg["crop_pct"],
        crop_mode=cfg.get("crop_mode", "center"),
        interpolation=cfg["interpolation"],
        mean=mean,
        std=std,
    )
    return preprocessing if image_size is None else replace(preprocessing, image_size=image_size)


def seed_weights(seed: int) -> None:
    """Makes the next model's random weights depend on `seed` alone."""
    torch.manual_seed(seed)
