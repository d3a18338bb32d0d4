"""The last state of a run, to continue from exactly: model, optimizer and state in one file.

Random states are not in it because there are none: every draw comes from (seed, epoch, row) or (seed, step).
"""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
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
from convnext_cli.runs import RunFolder
from convnext_cli.training.devices import is_sharded

if TYPE_CHECKING:
    from convnext_cli.training.step import Job

Tensors = dict[str, Tensor]
WHOLE = StateDictOptions(full_state_dict=True, cpu_offload=True)


@dataclass(kw_only=True, slots=True)
class State:
    """Where a run stands: all of its state that is no tensor."""

    images: str
    """Digest of the sizes of the images that it trains and validates on."""
    license: str | None
    """Licence of the base weights."""
    micro_batch_size: int
    """The plan's, or less where the device's memory was too small for it."""
    formulation: str = "timm"
    """What the model is computed with, which decides the last bits, as do the next two: `timm`, `fast` or `native`."""
    threads: int = 0
    """Of one process, as `Formulation` has them; 0 where nothing says."""
    compiled: bool = False
    """Whether passes of whole micro-batches are compiled."""
    origin: dict[str, Any] | None = None
    """The fields of `Origin`; None in a state of a version that kept none."""
    step: int = 0
    """Optimizer steps done."""
    halvings: int = 0
    """How often the learning rate was halved because a loss or gradient was no finite number."""
    loss_sums: list[float] = field(default_factory=list)
    """Each rank's sum of losses in the epoch that is under way."""
    seconds: float = 0.0
    """Training time spent on that epoch."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """A line for each finished epoch."""
    best_val: dict[str, Any] | None = None
    """The kept weights' figures on the validation split."""
    averaged: list[int] = field(default_factory=list)
    """The epochs whose weights' average was kept at the end; none where one epoch's were."""

    @property
    def epochs(self) -> int:
        """Finished epochs. The log may have one more line, of the head alone, as epoch 0."""
        return sum(entry["epoch"] > 0 for entry in self.log)

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of the epoch whose weights are kept; None before the first epoch's end."""
        return next((entry for entry in reversed(self.log) if entry["best"]), None)


def save_checkpoint(run: RunFolder, job: "Job", state: State) -> Tensors:
    """Writes the state after `state.step` steps; all ranks call it, the first one writes. The last two are kept.

    Returns:
        What `gather_kept` does.

    Raises:
        ConvnextError: the disk is full, read-only or gone. The checkpoints before are then as they were.
    """
    accelerator, model, optimizer = job.accelerator, job.model, job.optimizer
    tensors = {f"model.{name}": value for name, value in _gather_weights(model).items()}
    kept = gather_kept(job)
    if job.average is not None:
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


def gather_kept(job: "Job") -> Tensors:
    """The tensors that the run is for, the average of the weights where there is one.

    They are on the CPU, whole; on the first rank only where they are spread over ranks.
    """
    if job.average is None:
        return _gather_weights(job.model)
    with job.average.in_place():  # on a CPU what is gathered is the model's own memory, which changes back
        return {name: value.clone() for name, value in _gather_weights(job.model).items()}


def _gather_weights(model: nn.Module) -> Tensors:
    return get_model_state_dict(model, options=WHOLE)  # type: ignore[return-value]  # torch types values as anything


def load_checkpoint(run: RunFolder, job: "Job") -> tuple[State, list[str]]:
    """Puts the newest whole checkpoint into model, average and optimizer; the first rank reads it for all.

    Returns:
        The state, and a remark for each newer checkpoint that is damaged.

    Raises:
        RunError: there is no checkpoint that can be read.
    """
    accelerator, model, optimizer = job.accelerator, job.model, job.optimizer
    tensors: Tensors = {}
    found: Any = None
    if accelerator.is_main_process:
        try:
            tensors, *found = _read_newest(run)
            _check_fit(_part(tensors, "model."), job)
        except RunError as error:  # all ranks stop with it
            found = error
    [found] = broadcast_object_list([found])
    if isinstance(found, RunError):
        raise found
    words, remarks = found
    try:
        state = State(**json.loads(words))
    except TypeError as error:
        raise RunError(f"{run.path} was written by another version ({error})", "Continue it with that one") from error
    options = _options(job)
    if job.average is not None:
        with job.average.in_place():
            put_weights(job, _part(tensors, "average."))
    put_weights(job, _part(tensors, "model."))
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


def _check_fit(weights: Tensors, job: "Job") -> None:
    """Check that a state's weights are those of the model that was built.

    Raises:
        RunError: a name or a shape differs.
    """
    if is_sharded(job.accelerator):  # each rank has a part of each tensor
        return
    kept, built = (
        {name: tuple(value.shape) for name, value in part.items()} for part in (weights, job.model.state_dict())
    )
    if differing := sorted(name for name in kept.keys() | built.keys() if kept.get(name) != built.get(name)):
        raise RunError(
            f"the saved state is of another model than plan.toml describes: {len(differing)} parameters differ in name "
            f"or shape, such as {differing[0]}",
            "Set the changed values of plan.toml back, or begin anew with another --output",
        )


def put_weights(job: "Job", weights: Mapping[str, Tensor]) -> None:
    """Gives the model weights that the first rank has; all ranks call it."""
    set_model_state_dict(job.model, dict(weights), options=_options(job))


def _options(job: "Job") -> StateDictOptions:
    return StateDictOptions(full_state_dict=True, broadcast_from_rank0=job.accelerator.num_processes > 1)


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
