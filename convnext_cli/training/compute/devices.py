"""Devices, precision and processes, which Accelerate owns; the exchange between ranks."""

import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, ProjectConfiguration, broadcast_object_list
from accelerate.utils.memory import clear_device_cache, should_reduce_batch_size
from torch import Tensor, nn
from torch.distributed.tensor import DTensor

from convnext_cli.errors import ConvnextError, UsageError, shorten_error
from convnext_cli.machine import GIB
from convnext_cli.recipes.plan import Plan
from convnext_cli.runs.folder import RunFolder, resume_command
from convnext_cli.runs.folds import find_resumable

T = TypeVar("T")
THREADS = torch.get_num_threads()  # torch's default; a run may use fewer


def make_accelerator(
    amp: str, *, deterministic: bool = False, track: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """Return the accelerator of this process. `auto` is bf16 if the GPU has it; on CPUs float32 measured faster.

    Args:
        amp: `auto`, `no` or `bf16`.
        deterministic: True to use deterministic algorithms only.
        track: trackers that metrics are sent to.
        folder: where trackers write their files.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
    torch.use_deterministic_algorithms(deterministic)
    has_gpu = torch.cuda.is_available()
    if amp == "auto":
        amp = "bf16" if has_gpu and torch.cuda.is_bf16_supported() else "no"
    AcceleratorState._reset_state()  # a second run in this process may want another precision
    # Without cpu=True, Accelerate treats each process that torchrun starts on a CPU as a single one.
    return Accelerator(mixed_precision=amp, cpu=not has_gpu, log_with=list(track) or None, project_dir=folder)


@contextmanager
def track_metrics(accelerator: Accelerator, plan: Plan, run: Path) -> Iterator[None]:
    """Open the trackers during the block; a resumed run keeps its name there.

    Raises:
        UsageError: a tracker cannot be opened.
    """
    if accelerator.log_with:
        settings = {name: choice.value for name, choice in plan.choices.items()}
        resumable = find_resumable(RunFolder(run)).path
        name = run.name if resumable == run else f"{resumable.name}-{run.name}"
        options = {"wandb": {"id": name, "name": name, "resume": "allow"}}
        accelerator.project_configuration = ProjectConfiguration(str(run), logging_dir=str(run))
        try:
            accelerator.init_trackers("convnext", {"model": plan.model, **settings}, options)
        except Exception as error:  # each tracker has its own errors
            names = ", ".join(str(name) for name in accelerator.log_with)
            raise UsageError(
                f"cannot send metrics to {names}: {shorten_error(error)}",
                f"Set it up, or continue without --track: {resume_command(resumable)}",
            ) from error
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def spread_model(
    accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Return model and optimizer on the device, in the run's precision; sharded if `accelerate launch` uses FSDP.

    Without FSDP the model has no wrapper. DistributedDataParallel would exchange gradients during the backward pass,
    so that a rank that runs out of memory could not repeat it; `sum_gradients` exchanges them afterwards.
    """
    if is_sharded(accelerator):
        model, prepared = accelerator.prepare(network, optimizer)
        return model, prepared.optimizer
    return accelerator.prepare_model(network, evaluation_mode=True), optimizer  # evaluation_mode: no wrapper


def is_sharded(accelerator: Accelerator) -> bool:
    """Return True if the model's parameters are sharded over the ranks."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def is_plain_cpu(accelerator: Accelerator) -> bool:
    """Return True if each rank trains the whole model in float32 on a CPU."""
    return accelerator.device.type == "cpu" and accelerator.mixed_precision == "no" and not is_sharded(accelerator)


def sum_gradients(accelerator: Accelerator, model: nn.Module) -> None:
    """Sum the gradients over all ranks, in place, so that each rank has the gradient of the whole batch."""
    if accelerator.num_processes == 1 or is_sharded(accelerator):
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def clip_gradients(accelerator: Accelerator, model: nn.Module, max_norm: float) -> Tensor:
    """Scale the gradient down to the L2 norm `max_norm` if it is larger, and return its norm before that."""
    norm: Tensor = accelerator.clip_grad_norm_(model.parameters(), max_norm)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def agree(accelerator: Accelerator, *values: int) -> list[int]:
    """Return the maximum of each value over all ranks. It goes over the CPUs, so that no GPU is waited for."""
    if accelerator.num_processes == 1:
        return list(values)
    largest = torch.tensor(values)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=_cpu_group())
    return [int(value) for value in largest]


@cache
def _cpu_group() -> Any:
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def is_out_of_memory(error: Exception) -> bool:
    """Return True if a smaller batch could avoid the error."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(should_reduce_batch_size(error))


def is_lost_connection(error: Exception) -> bool:
    """Return True if the connection to another rank is lost."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def free_memory() -> None:
    """Free the memory that a failed pass has left on the device."""
    clear_device_cache(garbage_collection=True)


def describe_device(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / GIB:.0f} GiB"
    return f"CPU ({platform.machine()}), {THREADS} thread{'s' * (THREADS != 1)}"


def do_on_first_rank(accelerator: Accelerator, work: Callable[[], T]) -> T:
    """Do `work` on the first rank, and return its result on all ranks; a failure is raised on all of them."""
    result: list[Any] = [None, None]
    if accelerator.is_main_process:
        try:
            result[0] = work()
        except ConvnextError as error:
            result[1] = error
    value, failure = broadcast_object_list(result)
    if failure is not None:
        raise failure
    return cast("T", value)


def slice_for_rank(accelerator: Accelerator, rows: Sequence[T]) -> Sequence[T]:
    """Return every `num_processes`-th row, starting from this rank's number; `gather_rows` is the inverse."""
    return rows[accelerator.process_index :: accelerator.num_processes]


def gather_rows(accelerator: Accelerator, values: Tensor, total: int) -> Tensor:
    """Gather the rows that `slice_for_rank` distributed, in their original order.

    Args:
        accelerator: connects the ranks.
        values: this rank's rows, (n, K).
        total: rows over all ranks.

    Returns:
        (total, K), the same on every rank.
    """
    world = accelerator.num_processes
    if world == 1:
        return values
    longest = -(-total // world)
    padded = torch.zeros(longest, values.shape[1], device=accelerator.device)
    padded[: len(values)] = values.to(accelerator.device)
    gathered: Tensor = accelerator.gather(padded)
    return gathered.view(world, longest, -1).transpose(0, 1).reshape(world * longest, -1)[:total].cpu()
