"""Read, fit and write weights. Missing weights are an error, never a silent random initialisation."""

import argparse
import errno
import json
import re
import warnings
from collections import defaultdict
from collections.abc import Mapping, Sequence
from datetime import date, datetime, timedelta, timezone
from importlib import import_module
from pathlib import Path, PurePath, PurePosixPath, PureWindowsPath
from pickle import UnpicklingError
from statistics import fmean
from types import SimpleNamespace
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor, nn

from convnext_cli.errors import ConvnextError, WeightsError
from convnext_cli.files import replace_file
from convnext_cli.models.catalog import Architecture
from convnext_cli.models.conversion import clean_text, convert_names, identify_architectures
from convnext_cli.models.hub import HUB_FILE
from convnext_cli.text import format_count

_WRAPPERS = (
    "state_dict_ema", "model_ema", "ema_state_dict", "ema_model", "ema", "state_dict", "model_state_dict", "model",
    "network", "net", "module", "weights", "params",
)  # fmt: skip
"""Keys under which training scripts save the state dict, averaged weights first, as in timm's `load_state_dict`."""
_FOLDER_FILES = (
    HUB_FILE, f"{HUB_FILE}.index.json", "pytorch_model.bin", "pytorch_model.bin.index.json",
)  # fmt: skip
_PART = re.compile(r"-\d{5}-of-(?!00001)\d{5}(?=\.(?:safetensors|bin)$)")
_OTHER_FORMATS = {
    b"\x89HDF": "a file of Keras (HDF5)",
    b"GGUF": "a GGUF file",
    b"\x93NUMPY": "a NumPy array",
    b"\x08": "an ONNX file",
    b"version https://": "a Git LFS pointer, not the file itself",
    b"<": "a web page",
}


def read_weights(path: Path) -> dict[str, Tensor]:
    """Return a ConvNeXt's tensors under timm's names, from a file or a folder.

    Reads a safetensors file, a Hugging Face index of several, a PyTorch checkpoint, a run folder, or a Hugging Face
    folder. Checkpoints cannot run code: torch's `weights_only` reader creates tensors and the types of
    `_list_harmless_types` only. Averaged weights (EMA) are preferred, as in timm. `conversion.SCHEMES` has the
    supported libraries.

    Raises:
        WeightsError: the file is missing or unreadable, or holds no ConvNeXt.
    """
    path = _find_file(path)
    state = _unwrap_state_dict(_read_file(path), path)
    for name, value in state.items():
        if value.is_meta or value.layout != torch.strided:
            kind = "a shape without values (meta)" if value.is_meta else str(value.layout).removeprefix("torch.")
            raise WeightsError(f"{path} has no dense tensors: {name} is {kind}", "Save the weights as dense tensors")
    converted = convert_names(state, str(path))
    for name, value in converted.items():
        if not value.is_floating_point():
            kind = str(value.dtype).removeprefix("torch.")
            raise WeightsError(f"{path} is quantised: {name} is {kind}", "Give the weights in float32 or float16")
        if not torch.isfinite(value).all():
            raise WeightsError(
                f"{path} holds values that are not finite, in {name}: its training diverged or it is damaged",
                "Give an earlier checkpoint",
            )
    return converted


def check_weights(path: Path, architecture: Architecture) -> None:
    """Check, without a model, that a file holds weights which may fit an architecture.

    Raises:
        WeightsError: it cannot be read, or holds the weights of another architecture.
    """
    names = identify_architectures(read_weights(path))
    if names and architecture.name not in names:
        raise WeightsError(_describe_misfit(path, architecture.name, names), f"Give --model {names[0]}")


def _describe_misfit(source: object, model: str, names: Sequence[str]) -> str:
    """Return that weights do not fit a model; `names` are the architectures that they are of."""
    return f"{source} does not fit {model}: its weights are of {' or '.join(names) or 'another architecture'}"


def _unwrap_state_dict(content: Any, path: Path) -> dict[str, Tensor]:
    """Return the state dict in the content of a checkpoint."""
    while isinstance(content, Mapping) and (key := next((k for k in _WRAPPERS if _holds_tensors(content.get(k))), "")):
        content = content[key]
    if isinstance(content, Mapping) and not any(isinstance(value, Tensor) for value in content.values()):
        keys = [key for key, value in content.items() if isinstance(key, str) and _is_state_dict(value)]
        if len(keys) > 1:
            names = ", ".join(clean_text(key, 40) for key in keys[:5])
            raise WeightsError(
                f"{path} holds {len(keys)} state dicts, under {names}",
                "Save the state dict of one of them, and give that file",
            )
        content = content[keys[0]] if keys else content
    state = {}
    if isinstance(content, Mapping):
        state = {name: value for name, value in content.items() if isinstance(name, str) and isinstance(value, Tensor)}
    if not state:
        raise WeightsError(f"{path} holds no state dict", "Give a file with parameter names and tensors")
    return state


def _holds_tensors(value: Any) -> bool:
    return isinstance(value, Mapping) and any(isinstance(part, Tensor | Mapping) for part in value.values())


def _is_state_dict(value: Any) -> bool:
    """Return True for a dictionary of tensors by name, unlike an optimizer's state, whose keys are numbers."""
    return isinstance(value, Mapping) and any(
        isinstance(name, str) and "." in name and isinstance(part, Tensor) for name, part in value.items()
    )


def _find_file(path: Path) -> Path:
    """Return the file with the weights: `path`, or the file of that name in a run or Hugging Face folder."""
    if path.is_file():
        if _PART.search(path.name):
            raise _explain_part(path)
        return path
    if not path.is_dir():
        raise WeightsError(f"no weights at {path}", "Give a .safetensors or .pth file, or a run folder")
    for name in _FOLDER_FILES:
        if (path / name).is_file():
            return path / name
    if parts := sorted(part for part in path.glob("*-of-*") if _PART.search(part.name)):
        raise _explain_part(parts[0])
    files = [*path.glob("*.safetensors"), *path.glob("*.pth"), *path.glob("*.pt"), *path.glob("*.pth.tar")]
    if files:
        names = ", ".join(sorted(file.name for file in files)[:5])
        raise WeightsError(f"{path} has no {HUB_FILE}, but {names}", "Name one of its files with --weights")
    raise WeightsError(f"{path} has no {HUB_FILE}", "Give a run that finished an epoch, or a file of weights")


def _explain_part(path: Path) -> WeightsError:
    """Return the error for one of several files of a network, given alone or without the index that lists them."""
    index = f"{_PART.sub('', path.name)}.index.json"
    remedy = (
        "Give its folder" if (path.parent / index).is_file() else f"Copy {index} into its folder, and give the folder"
    )
    return WeightsError(f"{path} is one of several files of a network's weights", remedy)


def _read_file(path: Path) -> Any:
    """Return the content of a file of tensors. Its first bytes, not its name, decide the format."""
    remedy = "Give a .safetensors or .pth file that holds a state dict"
    try:
        with path.open("rb") as file:
            start = file.read(16)
        if path.name.endswith(".index.json"):
            return _read_shards(path)
        if start[8:9] == b"{":
            return load_file(path)
        if other := next((what for magic, what in _OTHER_FORMATS.items() if start.startswith(magic)), ""):
            raise WeightsError(f"{path} is {other}, not weights of PyTorch", remedy)
        with torch.serialization.safe_globals(_list_harmless_types()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # deprecation warnings
            return torch.load(path, map_location="cpu", weights_only=True)
    except WeightsError:
        raise
    except Exception as error:  # unpickling, zip and safetensors errors share no base class
        if isinstance(error, UnpicklingError) and (names := _list_refused_types(path)):
            raise WeightsError(
                f"{path} cannot be read as weights: it holds Python objects ({names}), and making them would run code",
                "On a machine that trusts the file, save the tensors only: torch.save(model.state_dict(), FILE)",
            ) from error
        if "TorchScript" in str(error):
            why = "it is a TorchScript program"
        elif isinstance(error, OSError) and error.strerror and error.errno != errno.EINVAL:  # a place before the file
            why = error.strerror
        else:
            why = "damaged, cut short, or of another format"
        raise WeightsError(f"{path} cannot be read as weights ({why})", remedy) from error


def _read_shards(path: Path) -> dict[str, Tensor]:
    """Return the tensors of all files that a Hugging Face index names, in the index's folder."""
    try:
        files = sorted(set(json.loads(path.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise WeightsError(f"{path} is not an index of weights", "Give the folder that holds the weights") from error
    tensors: dict[str, Tensor] = {}
    for name in files:
        part = path.parent / str(name)
        if not isinstance(name, str) or Path(name).name != name or not part.is_file():
            raise WeightsError(f"{path} names {name!r}, which is not in its folder", "Copy the whole folder")
        tensors |= _read_file(part)
    return tensors


def _list_harmless_types() -> list[Any]:
    """Return the types besides tensors that training scripts save and that run no code when created."""
    arrays = import_module("numpy._core.multiarray")
    paths: dict[str, type[PurePath]] = dict.fromkeys(("PosixPath", "PurePosixPath", "Path"), PurePosixPath)
    paths |= dict.fromkeys(("WindowsPath", "PureWindowsPath"), PureWindowsPath)
    return [
        argparse.Namespace, defaultdict, SimpleNamespace, datetime, date, timedelta, timezone,
        np.dtype, np.ndarray, *(kind for name, kind in vars(np.dtypes).items() if name.endswith("DType")),
        *((getattr(arrays, name), f"numpy.{core}.multiarray.{name}") for core in ("core", "_core")
          for name in ("scalar", "_reconstruct")),
        *((kind, f"{module}.{name}") for name, kind in paths.items() for module in ("pathlib", "pathlib._local")),
    ]  # fmt: skip


def _list_refused_types(path: Path) -> str:
    """Return the types that `weights_only` refuses, for a message; empty if unknown."""
    try:
        with torch.serialization.safe_globals(_list_harmless_types()):
            names = torch.serialization.get_unsafe_globals_in_checkpoint(path)
    except Exception:  # a checkpoint of the old format, or a damaged one
        return ""
    return ", ".join(clean_text(name, 60) for name in sorted(names)[:3])


def read_weights_license(path: Path) -> str | None:
    """Return the licence in the config.json beside a run's weights; None if it has none."""
    license = _read_pretrained_cfg(path).get("license")
    return license if isinstance(license, str) else None


def read_normalisation(path: Path) -> tuple[tuple[float, ...], tuple[float, ...]] | None:
    """Return mean and std in the config.json beside weights; None if it has none."""
    cfg = _read_pretrained_cfg(path)
    try:
        return tuple(map(float, cfg["mean"])), tuple(map(float, cfg["std"]))
    except (KeyError, TypeError, ValueError):
        return None


def _read_pretrained_cfg(path: Path) -> Mapping[str, Any]:
    config = (path if path.is_dir() else path.parent) / "config.json"
    try:
        cfg = json.loads(config.read_text(encoding="utf-8"))["pretrained_cfg"]
    except (OSError, ValueError, KeyError, TypeError, RecursionError):
        return {}
    return cfg if isinstance(cfg, dict) else {}


def write_tensors(tensors: Mapping[str, Tensor], path: Path, metadata: dict[str, str]) -> None:
    """Write a safetensors file atomically.

    Raises:
        ConvnextError: the disk is full, read-only or gone; `path` is unchanged.
    """
    plain = {name: value.detach().contiguous().cpu() for name, value in tensors.items()}
    try:
        with replace_file(path) as temporary:
            save_file(plain, temporary, metadata=metadata)
    except (SafetensorError, OSError) as error:
        raise ConvnextError(
            f"cannot write {path} ({error})", "Check the disk's space and permissions. Saved files are intact"
        ) from error


def fit_weights(model: nn.Module, weights: Mapping[str, Tensor], source: str) -> list[str]:
    """Copy weights, by timm's names, into a ConvNeXt; return the names of its parameters that stay newly initialised.

    The head may differ (number of classes, hidden layer); all other parameters must match by name and shape. With
    another hidden layer, the classifier is new too, since its input features differ. Weights for three channels fit a
    model for grey images (`merge_channels`). `source` is their file, for errors.

    Raises:
        WeightsError: the weights belong to another architecture, or are for grey images and the model is not.
    """
    parameters = model.state_dict()
    cfg: Any = model.pretrained_cfg
    stem = f"{cfg['first_conv']}.weight"
    state = {
        name: _shape_like(value, parameters[name]) if name in parameters else value for name, value in weights.items()
    }
    if parameters[stem].shape[1] == 1:
        state = merge_channels(state, cfg)
    if _hidden_shapes(state) != _hidden_shapes(parameters):
        state = {name: value for name, value in state.items() if not re.match(r"head\.(fc|pre_logits)\.", name)}
    fitting = {
        name: value for name, value in state.items() if name in parameters and parameters[name].shape == value.shape
    }
    missing = [name for name in parameters if name not in fitting]
    unknown = [name for name in state if name not in parameters]
    wrong = [name for name in (*missing, *unknown) if not name.startswith("head.")]
    if wrong == [stem] and stem in state:
        channels = state[stem].shape[1]
        raise WeightsError(
            f"{source} does not fit the model: its input has {format_count(channels, 'channel')}, not "
            f"{parameters[stem].shape[1]}",
            f"Give {'--in-chans 1, or ' if channels == 1 else ''}weights for three channels",
        )
    if wrong:
        names = identify_architectures(weights)
        misfit = _describe_misfit(source, cfg.get("architecture") or "the model", names)
        number = format_count(len(wrong), "parameter differs", "parameters differ")
        raise WeightsError(
            f"{misfit} ({number} in name or shape, such as {', '.join(wrong[:3])})",
            f"Give --model {names[0]}" if names else "Give weights of the same architecture",
        )
    model.load_state_dict(fitting, strict=False)
    return missing


def average_channels(cfg: Mapping[str, Any]) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Return mean and std for grey images: the averages of the RGB values of timm's configuration."""
    return (fmean(cfg["mean"]),), (fmean(cfg["std"]),)


def merge_channels(state: dict[str, Tensor], cfg: Mapping[str, Any]) -> dict[str, Tensor]:
    """Return weights whose stem takes a grey image and gives the same output as the RGB stem with three equal channels.

    A grey image g is (g - mean_c) / std_c in channel c, and (g - mean) / std for the new stem. So its weights are
    std * sum(w_c / std_c), and its bias absorbs the difference of the means; timm's plain sum of w_c omits both. The
    result is exact, except at the border for overlapping stems (`_ols`) with unequal means, because of zero padding.

    Args:
        state: weights under timm's names, with a stem of (O, 3, k, k); other stems are returned unchanged.
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


def _shape_like(value: Tensor, parameter: Tensor) -> Tensor:
    """Return the weights of a linear layer in the shape of the model's 1x1 convolution, and vice versa."""
    same = [n for n in value.shape if n != 1] == [n for n in parameter.shape if n != 1]
    return value.reshape(parameter.shape) if same and value.shape[:1] == parameter.shape[:1] else value


def _hidden_shapes(state: Mapping[str, Tensor]) -> dict[str, torch.Size]:
    return {name: value.shape for name, value in state.items() if name.startswith("head.pre_logits.")}
