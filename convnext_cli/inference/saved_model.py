"""Write and load a run's model: `config.json` and `model.safetensors`, in timm's own format."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import timm
import torch
from safetensors.torch import load_file
from timm.models._hub import save_config_for_hf
from torch import Tensor, nn

from convnext_cli.errors import RunError, shorten_error
from convnext_cli.files import replace_file
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.inference.run_checks import check_plan
from convnext_cli.models.catalog import load_catalog
from convnext_cli.models.forward import use_torch_defaults
from convnext_cli.models.weights import write_tensors
from convnext_cli.runs.files import CONFIG, MODEL
from convnext_cli.runs.folder import MODEL_REMEDY, RunFolder
from convnext_cli.runs.records import Config, convert_record
from convnext_cli.tasks.registry import read_task
from convnext_cli.text import format_count


@dataclass(frozen=True, kw_only=True, slots=True)
class RunMetadata:
    """The part of `config.json` beside the architecture."""

    classes: Sequence[str]
    """Names of the classes or labels, or of the number."""
    preprocessing: Preprocessing
    """As trained."""
    license: str | None
    """Licences of the base weights, the teacher and the images, joined; None if unknown."""
    task: Mapping[str, Any] | None = None
    """As `Task.to_dict` gives it; None for one class per image."""


def write_model(model: nn.Module, folder: Path, weights: Mapping[str, Tensor], metadata: RunMetadata) -> None:
    """Write `config.json` and `model.safetensors`: timm.create_model("local-dir:FOLDER", pretrained=True) loads them.

    The `weights` are separate, because a model sharded over several GPUs has only a part of them.
    """
    classes, preprocessing, task = metadata.classes, metadata.preprocessing, metadata.task
    data = {
        "crop_pct": preprocessing.crop_pct,
        "crop_mode": preprocessing.crop_mode,
        "mean": preprocessing.mean,
        "std": preprocessing.std,
    }
    known = read_task(task, folder, MODEL_REMEDY)
    outputs = known.count_outputs(len(classes))
    # Drop timm's description, which is of the base weights.
    cfg = {"license": metadata.license, "description": None, "num_classes": outputs}
    with replace_file(CONFIG.path(folder)) as path:
        save_config_for_hf(
            model,
            str(path),
            model_config={"label_names": list(classes), "pretrained_cfg": cfg},
            data_config=data | {"input_size": (len(preprocessing.mean), *preprocessing.size)},
        )
        config = json.loads(path.read_text(encoding="utf-8"))
        del config["model_args"]["num_classes"]  # a duplicate, which transformers 5.23 rejects
        if task is not None:
            config["task"] = task
        if known.problem_type is not None:
            config["problem_type"] = known.problem_type
        config["digest"] = convert_record(config, Config, path, MODEL_REMEDY).compute_digest()
        path.write_text(json.dumps(config, indent=2) + "\n", encoding="utf-8")
    write_tensors(weights, MODEL.path(folder), {"format": "pt"})


def load_model(folder: Path) -> tuple[nn.Module, tuple[str, ...], Preprocessing]:
    """Load what `write_model` wrote: the model in evaluation mode, its class names, its preprocessing.

    Only the run's own files are read: URLs in `config.json` are not passed to timm. The model is built after the
    sizes of the weights are checked.

    Raises:
        RunError: a file is missing, damaged, or contradicts the others.
    """
    run = RunFolder(folder)
    check_plan(run)
    config, path = run.read_config(), MODEL.path(folder)
    architecture = load_catalog().get(config.architecture)
    if architecture is None:
        problem = f"architecture: {config.architecture!r} is not a ConvNeXt of timm"
        raise RunError(f"{CONFIG.path(folder)} cannot be read: {problem}", MODEL_REMEDY)
    arguments = config.model_args
    if arguments.head_hidden_size is not None and not architecture.takes_hidden_layer:
        problem = f"head_hidden_size: {architecture.name} takes no hidden layer"
        raise RunError(f"{CONFIG.path(folder)} cannot be read: {problem}", MODEL_REMEDY)
    try:
        state = load_file(path)
    except FileNotFoundError as error:
        raise RunError(f"{folder} is not a finished run: it has no {path.name}", MODEL_REMEDY) from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror or shorten_error(error)}", MODEL_REMEDY) from error
    except Exception as error:  # safetensors' own
        raise RunError(f"{path} cannot be read: it is damaged or cut short", MODEL_REMEDY) from error
    classes = config.count_outputs(CONFIG.path(folder))
    outputs = len(state.get("head.fc.weight", ()))
    if outputs != classes:
        problem = f"{format_count(len(config.label_names), 'class name')} for {format_count(outputs, 'output')}"
        raise RunError(f"{path} cannot be read: {problem}", MODEL_REMEDY)
    with use_torch_defaults(), torch.random.fork_rng(devices=()):  # timm draws weights, which are then replaced
        model: nn.Module = timm.create_model(
            architecture.name,
            pretrained=False,
            pretrained_cfg=_make_pretrained_cfg(config, CONFIG.path(folder)),
            num_classes=classes,
            in_chans=arguments.in_chans,
            head_hidden_size=arguments.head_hidden_size,
            drop_rate=arguments.drop_rate,
        )
    try:
        model.load_state_dict(state)
    except RuntimeError as error:
        expected = model.state_dict()
        wrong = [name for name in expected if name not in state or state[name].shape != expected[name].shape]
        wrong += [name for name in state if name not in expected]
        number = format_count(len(wrong), "tensor does not fit", "tensors do not fit")
        raise RunError(
            f"{path} cannot be read: {number} {architecture.name}, such as {wrong[0]}", MODEL_REMEDY
        ) from error
    if broken := [name for name, value in model.state_dict().items() if not torch.isfinite(value).all()]:
        raise RunError(f"{path} cannot be read: {broken[0]} has values that are not finite", MODEL_REMEDY)
    return model.eval(), config.label_names, config.pretrained_cfg.preprocessing


def _make_pretrained_cfg(config: Config, path: Path) -> dict[str, Any]:
    """Return the fields of a run's `pretrained_cfg` that timm needs, without URLs of weights."""
    raw = json.loads(path.read_text(encoding="utf-8"))["pretrained_cfg"]
    kept = {key: raw[key] for key in ("tag", "first_conv", "classifier", "license", "description") if key in raw}
    cfg = config.pretrained_cfg
    return kept | {
        "architecture": config.architecture, "num_classes": config.count_outputs(path), "input_size": cfg.input_size,
        "mean": cfg.mean, "std": cfg.std, "crop_pct": cfg.crop_pct, "crop_mode": cfg.crop_mode,
        "interpolation": cfg.interpolation, "pool_size": None, "fixed_input_size": False,
    }  # fmt: skip
