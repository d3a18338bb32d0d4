"""Checkpoints: model, optimizer and training state in one file, from which a run resumes exactly.

They have no random state, because every draw comes from (seed, epoch, row) or (seed, step).
"""

import hashlib
import json
from collections.abc import Mapping
from contextlib import nullcontext
from copy import deepcopy
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from convnext_cli.errors import RunError, shorten_error
from convnext_cli.inference.saved_model import RunMetadata, write_model
from convnext_cli.models.weights import write_tensors
from convnext_cli.progress import Notice
from convnext_cli.runs.files import PLAN
from convnext_cli.runs.folder import RESTART_REMEDY, RunFolder, restore_remedy
from convnext_cli.text import format_count
from convnext_cli.training.compute.ranks import do_on_first_rank, is_sharded
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.parts.distillation import drop_projection
from convnext_cli.training.state import TrainingState

Tensors = dict[str, Tensor]
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(frozen=True, kw_only=True, slots=True)
class Snapshot:
    """The content of a checkpoint, which further steps do not change."""

    state: TrainingState
    tensors: Tensors
    """Empty on ranks that do not write."""
    weights: Tensors
    """The result of `gather_result`."""


def save_checkpoint(context: TrainingContext, state: TrainingState) -> None:
    """Write a checkpoint after `state.step` steps, and remove all but the last two. All ranks call it.

    Raises:
        ConvnextError: the disk is full, read-only or gone. Earlier checkpoints are unchanged.
    """
    snapshot = take_snapshot(context, state)
    if context.accelerator.is_main_process:
        write_checkpoint(context.run, snapshot)
    context.accelerator.wait_for_everyone()


def write_checkpoint(run: RunFolder, snapshot: Snapshot) -> None:
    """Write a checkpoint, and remove all but the last two. The first rank calls it, from any thread.

    Raises:
        ConvnextError: as `save_checkpoint`.
    """
    text = json.dumps(asdict(snapshot.state))
    metadata = {"state": text, "sha256": compute_digest(snapshot.tensors, text)}
    write_tensors(snapshot.tensors, run.checkpoint(snapshot.state.step), metadata)
    for old in run.list_checkpoints()[2:]:
        old.unlink(missing_ok=True)


def take_snapshot(context: TrainingContext, state: TrainingState) -> Snapshot:
    """Copy all that a checkpoint keeps to the CPU. All ranks call it."""
    scaler = context.accelerator.scaler
    state.compiled = context.compiled is not None  # memory may have become too small for it since the state began
    own = _gather_weights(context)
    weights = own if context.ema is None else gather_result(context)
    tensors = {f"model.{name}": value for name, value in own.items()}
    if context.ema is not None:
        tensors |= {f"average.{name}": value for name, value in weights.items()}
    if state.step:  # before its first step AdamW has no state; reading it would create one
        states: Any = get_optimizer_state_dict(context.model, context.optimizer, options=WHOLE)
        for name, moments in states.get("state", {}).items():  # empty on ranks that do not write
            tensors |= {f"optimizer.{key}.{name}": value for key, value in _copy(moments, context).items()}
    if scaler is not None:
        state.loss_scale = scaler.state_dict()
    return Snapshot(state=deepcopy(state), tensors=tensors, weights=weights)


def gather_result(context: TrainingContext) -> Tensors:
    """Return the weights that the run would keep: with EMA the averaged ones, else the model's.

    They are unsharded and on the CPU. With FSDP only the first rank has them.
    """
    with context.ema.in_place() if context.ema else nullcontext():
        return _gather_weights(context)


def _gather_weights(context: TrainingContext) -> Tensors:
    return _copy(get_model_state_dict(context.model, options=WHOLE), context)


def _copy(tensors: Mapping[str, Any], context: TrainingContext) -> Tensors:
    """Return copies of gathered tensors, which share a CPU's memory with the model; those of a GPU are copies."""
    is_copy = context.accelerator.device.type != "cpu"
    return {name: value if is_copy else value.clone() for name, value in tensors.items()}


def save_model(context: TrainingContext, state: TrainingState, weights: Tensors) -> None:
    """Write `model.safetensors` and `config.json`, the result of the run. The first rank calls it."""
    write_model(
        context.network,
        context.run.path,
        drop_projection(weights),
        RunMetadata(
            classes=context.index.classes,
            preprocessing=context.preprocessing,
            license=state.license,
            task=context.index.task_record,
        ),
    )


def load_checkpoint(run: RunFolder, context: TrainingContext) -> tuple[TrainingState, list[Notice]]:
    """Load the newest checkpoint that can be read into model, EMA and optimizer. The first rank reads it for all.

    Returns:
        The training state, and a notice for each newer checkpoint that is damaged.

    Raises:
        RunError: no checkpoint can be read.
    """
    accelerator, model, optimizer = context.accelerator, context.model, context.optimizer
    tensors: Tensors = {}

    def read() -> tuple[str, list[Notice]]:
        nonlocal tensors
        tensors, text, notices = _read_newest(run)
        _check_fit(_part(tensors, "model."), context)
        return text, notices

    text, notices = do_on_first_rank(accelerator, read)
    state = _parse_state(run, text)
    if context.ema is not None:
        with context.ema.in_place():
            put_weights(context, _part(tensors, "average."))
    put_weights(context, _part(tensors, "model."))
    optimizer.state.clear()
    if state.step:
        moments: dict[str, dict[str, Tensor]] = {}
        for name, value in _part(tensors, "optimizer.").items():
            key, _, parameter = name.partition(".")
            moments.setdefault(parameter, {})[key] = value
        whole = get_optimizer_state_dict(model, optimizer, options=StateDictOptions(full_state_dict=True))
        content: Any = {**whole, "state": moments} if accelerator.is_main_process else {}
        set_optimizer_state_dict(model, optimizer, content, options=_make_options(context))
        if not is_sharded(accelerator):
            _match_strides(optimizer)
    if accelerator.scaler is not None and state.loss_scale:
        accelerator.scaler.load_state_dict(state.loss_scale)
    return state, notices


def _match_strides(optimizer: torch.optim.Optimizer) -> None:
    """Give each moment the strides of its parameter, which fused kernels need; in a checkpoint they are contiguous."""
    for parameter, values in optimizer.state.items():
        for key, value in values.items():
            if value.shape == parameter.shape and value.stride() != parameter.stride():
                values[key] = torch.empty_like(parameter, requires_grad=False).copy_(value)


def _parse_state(run: RunFolder, text: str) -> TrainingState:
    """Return the training state of a checkpoint."""
    fields = json.loads(text)
    if "formulation" in fields:  # its name until 0.1
        fields["blocks"] = fields.pop("formulation")
    try:
        return TrainingState(**fields)
    except TypeError as error:
        raise RunError(
            f"{run.path} was written by another version ({error})", "Continue it with that version"
        ) from error


def _check_fit(weights: Tensors, context: TrainingContext) -> None:
    """Check that a checkpoint's weights fit the model."""
    if is_sharded(context.accelerator):  # each rank has a part of each tensor
        return
    saved, built = (
        {name: tuple(value.shape) for name, value in part.items()} for part in (weights, context.model.state_dict())
    )
    if differing := sorted(name for name in saved.keys() | built.keys() if saved.get(name) != built.get(name)):
        number = format_count(len(differing), "parameter differs", "parameters differ")
        raise RunError(
            f"the checkpoint does not fit the model of {PLAN.name}: {number}, such as {differing[0]}",
            restore_remedy(f"the changed values of {PLAN.name}"),
        )


def put_weights(context: TrainingContext, weights: Mapping[str, Tensor]) -> None:
    """Load the first rank's weights into the model of each rank. All ranks call it."""
    set_model_state_dict(context.model, dict(weights), options=_make_options(context))


def _make_options(context: TrainingContext) -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=context.accelerator.num_processes > 1)


def _read_newest(run: RunFolder) -> tuple[Tensors, str, list[Notice]]:
    """Return tensors and state of the newest checkpoint that can be read, and a notice for each that cannot."""
    errors: list[RunError] = []
    for path in run.list_checkpoints():
        try:
            tensors, text = read_checkpoint(path)
        except RunError as error:
            errors.append(error)
        else:
            return tensors, text, [Notice(f"{error.problem}; the one before is used") for error in errors]
    reasons = f": {'; '.join(error.problem for error in errors)}" if errors else ""
    remedy = errors[0].remedy if errors else RESTART_REMEDY
    raise RunError(f"{run.path} has no checkpoint that can be read{reasons}", remedy)


def read_checkpoint(path: Path) -> tuple[Tensors, str]:
    """Return the tensors of a checkpoint and its state as JSON, after a check of their digest.

    Raises:
        RunError: it is damaged, or cannot be read.
    """
    try:
        path.open("rb").close()  # safetensors calls a file missing that it may not read
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        if metadata["sha256"] != compute_digest(tensors, metadata["state"]):
            raise ValueError("its content does not match its checksum")
    except OSError as error:
        reason = error.strerror or shorten_error(error)
        remedy = "Check its permissions and the disk, and resume again"
        raise RunError(f"the checkpoint {path} cannot be read ({reason})", remedy) from error
    except Exception as error:  # safetensors' errors and ours share no base class
        raise RunError(f"the checkpoint {path} is damaged ({shorten_error(error)})", RESTART_REMEDY) from error
    return tensors, metadata["state"]


def compute_digest(tensors: Mapping[str, Tensor], text: str) -> str:
    """Return the SHA-256 of a checkpoint's state and tensors, in hexadecimal digits."""
    digest = hashlib.sha256(text.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _part(tensors: Tensors, prefix: str) -> dict[str, Any]:
    """Return the tensors whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
