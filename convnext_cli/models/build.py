"""Build timm models with pretrained weights and a new classifier."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import timm
import torch
from torch import nn

from convnext_cli.errors import WeightsError
from convnext_cli.images.preprocessing import Preprocessing, join_size
from convnext_cli.models.catalog import Architecture, Tag
from convnext_cli.models.hub import find_weights
from convnext_cli.models.weights import average_channels, fit_weights, read_weights


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelOptions:
    """The parts of a model that depend on the data set and the settings."""

    num_classes: int
    """Outputs of the new classifier; 0 for the pooled features."""
    drop_path: float = 0.0
    """Stochastic depth of the last block."""
    in_chans: int = 3
    """Input channels: 3, or 1 for luminance."""
    head_hidden_size: int | None = None
    """Width of a hidden layer before the classifier; None for the architecture's own head."""
    head_dropout: float = 0.0
    """Dropout rate of the classifier's inputs."""


def build_model(
    architecture: Architecture, tag: Tag | None, options: ModelOptions, *, weights: str = "auto", offline: bool = False
) -> tuple[nn.Module, list[str]]:
    """Build a model with a new classifier and load its pretrained weights.

    Args:
        architecture: the architecture.
        tag: its pretrained weights; None if it has none.
        options: the classifier, input channels and regularisation.
        weights: `auto` (the package, the Hub or the Hub's local cache), `none` (random initialisation), or the path of
            a file or run folder.
        offline: True to use local files only.

    Returns:
        The model, and the names of its newly initialised parameters (all of them with `none`).

    Raises:
        WeightsError: the weights are missing, unreadable, or of another architecture.
    """
    path = None
    if weights == "auto":
        path = find_weights(architecture, tag, offline=offline)
    elif weights != "none":
        path = Path(weights)
    model: nn.Module = timm.create_model(
        architecture.name,
        pretrained_cfg=_find_pretrained_cfg(architecture, tag),
        num_classes=options.num_classes,
        in_chans=options.in_chans,
        drop_path_rate=options.drop_path,
        head_hidden_size=options.head_hidden_size,
        drop_rate=options.head_dropout,
    )
    if path is None:
        return model, [parameter for parameter, _ in model.named_parameters()]
    try:
        state = read_weights(path)
    except WeightsError as error:
        if weights != "auto" or tag is None or tag.hub_id is None:
            raise
        raise WeightsError(error.problem, "Delete it, and it is downloaded again") from error
    return model, fit_weights(model, state, str(path))


def _find_pretrained_cfg(architecture: Architecture, tag: Tag | None) -> Any:
    """Return timm's `pretrained_cfg` argument: a tag's name, or the whole configuration of the package's weights."""
    if tag is None or tag.hub_id is not None:
        return tag.name if tag else None
    fields = asdict(tag.preprocessing)
    del fields["image_size"]
    cfg = timm.get_pretrained_cfg(architecture.name)
    return replace(
        cfg, tag=tag.name, license=tag.license, hf_hub_id=None, input_size=(3, *tag.preprocessing.size), **fields
    )


@torch.no_grad()
def scale_head(model: nn.Module, new_parameters: Sequence[str], scale: float) -> None:
    """Multiply the classifier's newly initialised parameters by `scale`, as timm's `head_init_scale` does."""
    for name in ("head.fc.weight", "head.fc.bias"):
        if name in new_parameters:
            model.get_parameter(name).mul_(scale)


def read_preprocessing(model: nn.Module) -> Preprocessing:
    """Return the preprocessing of a timm model's `pretrained_cfg`."""
    cfg: dict[str, Any] = model.pretrained_cfg  # type: ignore[assignment]  # timm sets a dict on every model
    mean, std = average_channels(cfg) if model.in_chans == 1 else (tuple(cfg["mean"]), tuple(cfg["std"]))
    return Preprocessing(
        image_size=join_size(*cfg["input_size"][1:]),
        crop_pct=cfg["crop_pct"],
        crop_mode=cfg.get("crop_mode", "center"),
        interpolation=cfg["interpolation"],
        mean=mean,
        std=std,
    )
