"""The last state of a run, to continue from exactly: model, optimizer and state in one file.

Random states are not in it because there are none: every draw comes from (seed, epoch, row) or (seed, step).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn
from torch.distributed.checkpoint.state_dict import (
    StateDictOptions,
    get_model_state_dict,
    get_optimizer_state_dict,
    set_model_state_dict,
    set_optimizer_state_dict,
)

from convnext_cli.errors import RunError, shorten_error
from convnext_cli.models.weights import write_tensors
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.compute.devices import is_sharded
from convnext_cli.training.state import TrainingState

if TYPE_CHECKING:
    from convnext_cli.training.context import TrainingContext

Tensors = dict[str, Tensor]
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


def save_checkpoint(run: RunFolder, context: "TrainingContext", state: TrainingState) -> Tensors:
    """Writes the state after `state.step` steps; all ranks call it, the first one writes. The last two are kept.

    Returns:
        What `gather_kept` does.

    Raises:
        ConvnextError: the disk is full, read-only or gone. The checkpoints before are then as they were.
    """
    accelerator, model, optimizer = context.accelerator, context.model, context.optimizer
    tensors = {f"model.{name}": value for name, value in _gather_weights(model).items()}
    kept = gather_kept(context)
    if context.ema is not None:
        tensors |= {f"average.{name}": value for name, value in kept.items()}
    if state.step:  # before its first step AdamW has no state, and being asked for it would make one up
        states: Any = get_optimizer_state_dict(model, optimizer, options=WHOLE)
        for name, moments in states.get("state", {}).items():  # there is none on ranks that do not write
            tensors |= {f"optimizer.{key}.{name}": value for key, value in moments.items()}
    if accelerator.is_main_process:
        words = json.dumps(asdict(state))
        metadata = {"state": words, "sha256": _digest(tensors, words)}
        write_tensors(tensors, run.checkpoint(state.step), metadata)
        run.drop_checkpoints(keep=2)
    accelerator.wait_for_everyone()
    return kept


def gather_kept(context: "TrainingContext") -> Tensors:
    """The tensors that the run is for, the average of the weights where there is one.

    They are on the CPU, whole; on the first rank only where they are spread over ranks.
    """
    if context.ema is None:
        return _gather_weights(context.model)
    with context.ema.in_place():  # on a CPU what is gathered is the model's own memory, which changes back
        return {name: value.clone() for name, value in _gather_weights(context.model).items()}


def _gather_weights(model: nn.Module) -> Tensors:
    return get_model_state_dict(model, options=WHOLE)  # type: ignore[return-value]  # torch types values as anything


def load_checkpoint(run: RunFolder, context: "TrainingContext") -> tuple[TrainingState, list[str]]:
    """Puts the newest whole checkpoint into model, average and optimizer; the first rank reads it for all.

    Returns:
        The state, and a remark for each newer checkpoint that is damaged.

    Raises:
        RunError: there is no checkpoint that can be read.
    """
    accelerator, model, optimizer = context.accelerator, context.model, context.optimizer
    tensors: Tensors = {}
    found: Any = None
    if accelerator.is_main_process:
        try:
            tensors, *found = _read_newest(run)
            _check_fit(_part(tensors, "model."), context)
        except RunError as error:  # all ranks stop with it
            found = error
    [found] = broadcast_object_list([found])
    if isinstance(found, RunError):
        raise found
    words, remarks = found
    try:
        fields = json.loads(words)
        if "formulation" in fields:  # its name until 0.1
            fields["blocks"] = fields.pop("formulation")
        state = TrainingState(**fields)
    except TypeError as error:
        raise RunError(f"{run.path} was written by another version ({error})", "Continue it with that one") from error
    options = _options(context)
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
        given: Any = {**whole, "state": moments} if accelerator.is_main_process else {}
        set_optimizer_state_dict(model, optimizer, given, options=options)
    return state, remarks


def _check_fit(weights: Tensors, context: "TrainingContext") -> None:
    """Check that a state's weights are those of the model that was built.

    Raises:
        RunError: a name or a shape differs.
    """
    if is_sharded(context.accelerator):  # each rank has a part of each tensor
        return
    kept, built = (
        {name: tuple(value.shape) for name, value in part.items()} for part in (weights, context.model.state_dict())
    )
    if differing := sorted(name for name in kept.keys() | built.keys() if kept.get(name) != built.get(name)):
        raise RunError(
            f"the saved state is of another model than plan.toml describes: {len(differing)} parameters differ in name "
            f"or shape, such as {differing[0]}",
            "Set the changed values of plan.toml back, or begin anew with another --output",
        )


def put_weights(context: "TrainingContext", weights: Mapping[str, Tensor]) -> None:
    """Gives the model weights that the first rank has; all ranks call it."""
    set_model_state_dict(context.model, dict(weights), options=_options(context))


def _options(context: "TrainingContext") -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=context.accelerator.num_processes > 1)


def _read_newest(run: RunFolder) -> tuple[Tensors, str, list[str]]:
    remarks: list[str] = []
    for path in run.list_checkpoints():
        try:
            tensors, words = read_checkpoint(path)
        except RunError as error:
            remarks.append(f"{error.problem}; the one before is taken")
        else:
            return tensors, words, remarks
    what = f": {'; '.join(remarks)}" if remarks else ""
    raise RunError(f"{run.path} has no checkpoint that can be read{what}", "Begin anew with another --output")


def read_checkpoint(path: Path) -> tuple[Tensors, str]:
    """Reads a checkpoint's tensors and its state as JSON, and holds them against their digest.

    Raises:
        RunError: it is damaged.
    """
    from safetensors import safe_open

    try:
        with safe_open(path, "pt") as file:
            metadata = file.metadata() or {}
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118  (no mapping)
        if metadata["sha256"] != _digest(tensors, metadata["state"]):
            raise ValueError("its content does not match its checksum")
    except Exception as error:  # safetensors' errors, OSError and ours share no base class
        raise RunError(
            f"the checkpoint {path} is damaged ({shorten_error(error)})", "Begin anew with another --output"
        ) from error
    return tensors, metadata["state"]


def _digest(tensors: Mapping[str, Tensor], words: str) -> str:
    digest = hashlib.sha256(words.encode())
    for name in sorted(tensors):
        value = tensors[name].contiguous()
        digest.update(f"{name} {value.dtype} {tuple(value.shape)}".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _part(tensors: Tensors, prefix: str) -> dict[str, Any]:
    return {name.removeprefix(prefix): value for name, value in tensors.items() if name.startswith(prefix)}
