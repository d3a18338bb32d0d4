"""Convert the parameter names of other libraries and training scripts to timm's."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass

from timm.models.convnext import checkpoint_filter_fn
from torch import Tensor

from convnext_cli.errors import WeightsError
from convnext_cli.models.catalog import Architecture, load_catalog
from convnext_cli.text import shorten

_INNER = re.compile(r"(?:_orig_mod|_fsdp_wrapped_module|_checkpoint_wrapped_module)\.")
"""The parts that torch.compile, FSDP and activation checkpointing add inside a name."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Scheme:
    """The parameter names of a library."""

    library: str
    anchor: str
    """Pattern of a parameter that every such network has. Its group `prefix` is the prefix of a wrapper such as
    DistributedDataParallel or Lightning."""
    renames: tuple[tuple[str, str | Callable[[re.Match[str]], str]], ...] = ()
    """Patterns and their replacements, applied in order."""


_TORCHVISION_PARTS = {"0": "conv_dw", "2": "norm", "3": "mlp.fc1", "5": "mlp.fc2"}
_FACEBOOK: tuple[tuple[str, str], ...] = (
    (r"^encoder\.(?=stages|downsample)", ""),
    (r"\.(?:ln|linear)\.(weight|bias)$", r".\1"),  # FCMAE's sparse layers wrap ordinary ones
    (r"\.kernel$", ".weight"),
    (r"^downsample_layers\.0\.", "stem."),
    (r"^downsample_layers\.(\d+)\.", r"stages.\1.downsample."),
    (r"^stages\.(\d+)\.(\d+)\.", r"stages.\1.blocks.\2."),
    (r"\.(?:dwconv|depthwise_conv)\.", ".conv_dw."),
    (r"\.(?:pwconv|pointwise_conv)(\d)\.", r".mlp.fc\1."),
    (r"\.grn\.gamma$", ".mlp.grn.weight"),
    (r"\.grn\.beta$", ".mlp.grn.bias"),
    (r"^norm3?\.", "head.norm."),
    (r"^head\.(?=weight|bias)", "head.fc."),
)
SCHEMES = (
    Scheme(library="timm", anchor=r"(?P<prefix>.*?)stages\.0\.blocks\.0\.conv_dw\.weight"),
    Scheme(
        library="timm (features_only)",
        anchor=r"(?P<prefix>.*?)stages_0\.blocks\.0\.conv_dw\.weight",
        renames=((r"^(stem|stages)_(\d+)\.", r"\1.\2."),),
    ),
    Scheme(
        library="facebookresearch/ConvNeXt",
        anchor=r"(?P<prefix>.*?)(?:encoder\.)?stages\.0\.0\.dwconv\.(?:weight|kernel)",
        renames=_FACEBOOK,
    ),
    Scheme(library="mmpretrain", anchor=r"(?P<prefix>.*?)stages\.0\.0\.depthwise_conv\.weight", renames=_FACEBOOK),
    Scheme(
        library="transformers",
        anchor=r"(?P<prefix>.*?)(?:convnext(?:v2)?\.)?encoder\.stages\.0\.layers\.0\.dwconv\.weight",
        renames=(
            (r"^convnext(?:v2)?\.", ""),
            (r"^embeddings\.patch_embeddings\.", "stem.0."),
            (r"^embeddings\.layernorm\.", "stem.1."),
            (r"^encoder\.stages\.(\d+)\.downsampling_layer\.", r"stages.\1.downsample."),
            (r"^encoder\.stages\.(\d+)\.layers\.", r"stages.\1.blocks."),
            (r"\.dwconv\.", ".conv_dw."),
            (r"\.layernorm\.", ".norm."),
            (r"\.pwconv(\d)\.", r".mlp.fc\1."),
            (r"\.grn\.", ".mlp.grn."),
            (r"\.layer_scale_parameter$", ".gamma"),
            (r"^layernorm\.", "head.norm."),
            (r"^classifier\.", "head.fc."),
        ),
    ),
    Scheme(
        library="transformers (DINOv3)",
        anchor=r"(?P<prefix>.*?)(?:model\.)?stages\.0\.layers\.0\.depthwise_conv\.weight",
        renames=(
            (r"^model\.", ""),
            (r"^stages\.0\.downsample_layers\.", "stem."),
            (r"^stages\.(\d+)\.downsample_layers\.", r"stages.\1.downsample."),
            (r"^stages\.(\d+)\.layers\.", r"stages.\1.blocks."),
            (r"\.depthwise_conv\.", ".conv_dw."),
            (r"\.layer_norm\.", ".norm."),
            (r"\.pointwise_conv(\d)\.", r".mlp.fc\1."),
            (r"^layer_norm\.", "head.norm."),
        ),
    ),
    Scheme(
        library="torchvision",
        anchor=r"(?P<prefix>.*?)(?:features\.)?1\.0\.layer_scale",
        renames=(
            (r"^(?=\d+\.)", "features."),  # `model.features` by itself
            (r"^features\.0\.", "stem."),
            (r"^features\.([246])\.", lambda m: f"stages.{int(m[1]) // 2}.downsample."),
            (
                r"^features\.([1357])\.(\d+)\.block\.([0235])\.",
                lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.{_TORCHVISION_PARTS[m[3]]}.",
            ),
            (
                r"^features\.([1357])\.(\d+)\.layer_scale$",
                lambda m: f"stages.{int(m[1]) // 2}.blocks.{m[2]}.gamma",
            ),
            (r"^classifier\.0\.", "head.norm."),
            (r"^classifier\.2\.", "head.fc."),
        ),
    ),
)
_TOWER = "visual.trunk."  # open_clip's prefix of timm's model
_KEPT = re.compile(r"stem\.|stages\.|head\.|norm_pre\.")


def convert_names(state: Mapping[str, Tensor], source: str) -> dict[str, Tensor]:
    """Return a ConvNeXt's tensors under timm's names.

    Prefixes of wrappers are removed. Of a network and its moving average (EMA), the average is returned, as timm does.
    Linear layers that are 1x1 convolutions elsewhere keep their shape; `fit_weights` adapts it.

    Raises:
        WeightsError: the tensors hold no ConvNeXt of a known library, or several.
    """
    state = {_INNER.sub("", name): value for name, value in state.items()}
    for scheme in SCHEMES:
        matches = [match for name in state if (match := re.fullmatch(scheme.anchor, name))]
        if not matches:
            continue
        prefix = _choose_prefix([match["prefix"] for match in matches], source)
        if prefix.endswith(_TOWER):
            outer = prefix.removesuffix(_TOWER)
            network = {name.removeprefix(outer): value for name, value in state.items() if name.startswith(outer)}
            timm_network: dict[str, Tensor] = checkpoint_filter_fn(network, None)
            return timm_network
        converted = {}
        for name, value in state.items():
            if not name.startswith(prefix):
                continue
            new = name.removeprefix(prefix)
            tensor = _open_kernel(value) if new.endswith(".kernel") else value
            for pattern, replacement in scheme.renames:
                new = re.sub(pattern, replacement, new)
            if _KEPT.match(new):
                is_vector = new.endswith((".bias", ".gamma")) or ".grn." in new
                converted[new] = tensor.reshape(-1) if is_vector else tensor
        return converted
    names = [name for name in state if state[name].ndim]
    raise WeightsError(
        f"{source} holds no ConvNeXt with known parameter names; its names are, for example, "
        f"{', '.join(clean_text(name, 60) for name in names[:3])}",
        "Give a ConvNeXt of timm, torchvision, transformers or the authors",
    )


def _choose_prefix(prefixes: list[str], source: str) -> str:
    """Return the prefix of the network to load: the only one, or the moving average's."""
    if len(prefixes) == 1:
        return prefixes[0]
    averaged = [prefix for prefix in prefixes if re.search(r"ema|average", prefix)]
    plain = [prefix for prefix in prefixes if prefix not in averaged]
    if len(averaged) == 1 and len(plain) <= 1:
        return averaged[0]
    names = ", ".join(clean_text(prefix, 40) or "(none)" for prefix in prefixes[:5])
    raise WeightsError(
        f"{source} holds {len(prefixes)} networks, under the prefixes {names}",
        "Save the state dict of one of them, and give that file",
    )


def _open_kernel(value: Tensor) -> Tensor:
    """Return a MinkowskiEngine kernel, (k * k, in, out) or depthwise (k * k, C), as the weight of a convolution.

    Source: remap_checkpoint_keys in facebookresearch/ConvNeXt-V2, utils.py.
    """
    if value.ndim not in (2, 3) or (side := math.isqrt(len(value))) ** 2 != len(value):
        return value
    if value.ndim == 3:
        return value.permute(2, 1, 0).reshape(value.shape[2], value.shape[1], side, side).transpose(3, 2)
    return value.permute(1, 0).reshape(value.shape[1], 1, side, side).transpose(3, 2)


def identify_architectures(state: Mapping[str, Tensor]) -> list[str]:
    """Return the architectures that a state dict under timm's names fits; empty if it fits none."""
    blocks: dict[int, int] = {}
    dims: dict[int, int] = {}
    for name, value in state.items():
        if match := re.fullmatch(r"stages\.(\d+)\.blocks\.(\d+)\.conv_dw\.weight", name):
            stage, block = int(match[1]), int(match[2])
            blocks[stage] = max(blocks.get(stage, 0), block + 1)
            dims[stage] = value.shape[0]
    stem = state.get("stem.0.weight")
    depths, widths = (tuple(part[stage] for stage in sorted(part)) for part in (blocks, dims))

    def fits(model: Architecture) -> bool:
        return (
            (model.depths, model.dims) == (depths, widths)
            and model.grn == any(".grn." in name for name in state)
            and model.stem.startswith("3x3") == (stem is not None and stem.shape[-1] == 3)
            and model.head.startswith("norm") == ("norm_pre.weight" in state)
            and ("rms" in model.parsed.modifiers) == ("stages.0.blocks.0.norm.bias" not in state)
            and ("mlp" not in model.parsed.modifiers or "head.pre_logits.fc.weight" in state)
        )

    return [model.name for model in load_catalog().values() if fits(model)]


def clean_text(text: str, length: int) -> str:
    """Return a text from a file for a message: printable, on one line, of at most `length` characters."""
    return shorten("".join(char if char.isprintable() else " " for char in text), length)
