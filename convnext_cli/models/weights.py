"""Where pretrained weights come from, and whether they fit. Never a silent random start."""

import json
import re
from collections.abc import Mapping
from pathlib import Path
from statistics import fmean
from typing import Any

import torch
from timm.models.convnext import checkpoint_filter_fn
from torch import Tensor, nn

from convnext_cli.errors import ConvnextError, WeightsError, shorten_error
from convnext_cli.files import replace_file
from convnext_cli.models.catalog import Architecture, Tag

HUB_FILE = "model.safetensors"
HUB_TIMEOUT = 5.0  # seconds to wait for the Hub's first answer

_WRAPPERS = ("state_dict_ema", "model_ema", "state_dict", "model")


def find_weights(architecture: Architecture, tag: Tag | None, *, offline: bool) -> Path:
    """The file with a tag's weights: the package's own, or the Hub's, from this machine's cache or downloaded into it.

    Raises:
        WeightsError: the architecture has no weights, or the Hub cannot be reached.
    """
    if tag is None:
        raise WeightsError(
            f"no pretrained weights exist for {architecture.name}",
            "Choose another model (`convnext list --pretrained`), give your own with --weights PATH, "
            "or start from random ones with --weights none",
        )
    if tag.hub_id is None:
        return Path(__file__).with_name("builtin") / f"{architecture.name}.safetensors"
    # The Hub's own client retries a dead connection for half a minute and more; one short question first.
    from huggingface_hub import get_hf_file_metadata, hf_hub_download, hf_hub_url, try_to_load_from_cache

    cached = try_to_load_from_cache(tag.hub_id, HUB_FILE)
    if isinstance(cached, str):
        return Path(cached)
    url = hf_hub_url(tag.hub_id, HUB_FILE)
    choices = (
        f"Download {url} elsewhere and give it with --weights PATH (or copy that machine's Hub cache here), "
        "or fall back on the small ones in the package with --weights builtin (--weights none: random ones)"
    )
    if offline:
        raise WeightsError(f"the weights {tag.hub_id} are not in this machine's cache, and --offline is set", choices)
    try:
        get_hf_file_metadata(url, timeout=HUB_TIMEOUT)
        return Path(hf_hub_download(tag.hub_id, HUB_FILE, etag_timeout=HUB_TIMEOUT))
    except Exception as error:  # the client raises its HTTP library's errors, its own, and OSError
        raise WeightsError(
            f"cannot fetch the weights {tag.hub_id} from the Hub ({shorten_error(error)})", choices
        ) from error


def read_weights(path: Path) -> dict[str, Tensor]:
    """Reads a state dict from a safetensors file, a PyTorch checkpoint (`weights_only`), or a run folder.

    Raises:
        WeightsError: there is no such file, or it holds no state dict.
    """
    if path.is_dir():
        path = path / HUB_FILE
    if not path.is_file():
        raise WeightsError(f"no weights at {path}", "Give a .safetensors or .pth file, or a run folder")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            found = load_file(path)
        else:
            found = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # unpickling, zip and safetensors errors share no base class
        raise WeightsError(
            f"{path} cannot be read as weights ({shorten_error(error)})",
            "Give a .safetensors or .pth file that holds a state dict",
        ) from error
    while isinstance(found, dict) and (key := next((k for k in _WRAPPERS if isinstance(found.get(k), dict)), None)):
        found = found[key]
    if (
        not isinstance(found, dict)
        or not found
        or not all(isinstance(name, str) and isinstance(value, Tensor) for name, value in found.items())
    ):
        raise WeightsError(f"{path} holds no state dict", "Give a file with parameter names and tensors")
    return {name.removeprefix("module."): value for name, value in found.items()}


def read_license(path: Path) -> str | None:
    """The licence that the configuration beside a run's weights names; None where there is none."""
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        license = json.loads(config.read_text(encoding="utf-8"))["pretrained_cfg"].get("license")
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return None
    return license if isinstance(license, str) else None


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Writes a safetensors file, whole or not at all.

    Raises:
        ConvnextError: the disk is full, read-only or gone. What was at `path` is then as it was before.
    """
    from safetensors import SafetensorError
    from safetensors.torch import save_file

    plain = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    try:
        with replace_file(path) as temporary:
            save_file(plain, temporary, metadata=metadata)
    except (SafetensorError, OSError) as error:
        raise ConvnextError(
            f"cannot write {path} ({error})", "Check the disk's space and permissions; what was saved before is whole"
        ) from error


def fit_weights(model: nn.Module, found: Mapping[str, Tensor], source: str) -> list[str]:
    """Copies weights into `model` and returns the names of its parameters that stay newly initialised.

    The head may differ (another number of classes, another hidden layer, or none); everything before it must match by
    name and shape. Where the hidden layer differs, the classifier is new too: it was made for other features.

    Weights for three channels fit a model for grey (`merge_channels`).

    Raises:
        WeightsError: the weights belong to another architecture, or are for grey and the model is not.
    """
    try:
        state = checkpoint_filter_fn(dict(found), model)  # the authors' own checkpoints have other names
    except (KeyError, RuntimeError):
        state = dict(found)
    own = model.state_dict()
    cfg: Any = model.pretrained_cfg
    stem = f"{cfg['first_conv']}.weight"
    if own[stem].shape[1] == 1:
        state = merge_channels(state, cfg)
    if _hidden_shapes(state) != _hidden_shapes(own):
        state = {name: value for name, value in state.items() if not re.match(r"head\.(fc|pre_logits)\.", name)}
    fitting = {name: value for name, value in state.items() if name in own and own[name].shape == value.shape}
    missing = [name for name in own if name not in fitting]
    wrong = [name for name in missing if not _is_head(name)]
    wrong += [name for name in state if name not in own and not _is_head(name)]
    if wrong == [stem] and stem in state:
        raise WeightsError(
            f"{source} does not fit the model: its input has {state[stem].shape[1]} channels, not {own[stem].shape[1]}",
            "Give --in-chans 1, or weights for three channels",
        )
    if wrong:
        raise WeightsError(
            f"{source} does not fit the model: {len(wrong)} parameters differ in name or shape, such as "
            f"{', '.join(wrong[:3])}",
            "Give weights of the same architecture, or name theirs with --model",
        )
    model.load_state_dict(fitting, strict=False)
    return missing


def average_channels(cfg: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """The mean and the standard deviation for grey: the averages of those that timm's configuration has for RGB."""
    return (fmean(cfg["mean"]),), (fmean(cfg["std"]),)


def merge_channels(state: dict[str, Tensor], cfg: Mapping[str, Any]) -> dict[str, Tensor]:
    """Makes the stem of RGB weights one for grey that answers a grey image as the three channels do.

    A grey image g is (g - mean_c) / std_c in channel c, and (g - mean) / std for the new stem. So its weights are
    std * sum(w_c / std_c), and its bias takes what the means differ by; timm's plain sum of w_c leaves both out. Exact,
    but at the border for overlapping stems (`_ols`), unless the means are equal: they pad with no grey value.

    Args:
        state: weights under timm's names, the stem's (O, 3, k, k); another stem is left as it is.
        cfg: timm's configuration of the RGB weights: `first_conv`, `mean` and `std`.

    Returns:
        The weights with a stem of (O, 1, k, k).
    """
    name = cfg["first_conv"]
    weight, bias = state.get(f"{name}.weight"), state.get(f"{name}.bias")
    if weight is None or bias is None or weight.ndim != 4 or weight.shape[1] != 3:
        return state
    [mean], [std] = average_channels(cfg)
    means, stds = (torch.tensor(cfg[key], dtype=torch.float64).view(1, 3, 1, 1) for key in ("mean", "std"))
    scaled = weight.double() / stds
    shift = (scaled * (mean - means)).sum((1, 2, 3))
    merged = {f"{name}.weight": std * scaled.sum(1, keepdim=True), f"{name}.bias": bias.double() + shift}
    return state | {key: value.float() for key, value in merged.items()}  # files may hold float16


def _hidden_shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items() if name.startswith("head.pre_logits.")}


def _is_head(name: str) -> bool:
    return re.match(r"head\.", name) is not None
