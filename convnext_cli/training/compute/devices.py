"""Accelerate owns devices, precision and processes; what is asked of it stands here."""

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
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import find_resumable
from convnext_cli.text import quote

T = TypeVar("T")
THREADS = torch.get_num_threads()  # as torch found them. A run may take fewer; the next in this process asks anew


def make_accelerator(
    amp: str, *, deterministic: bool = False, track: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """The accelerator for this process. `auto` is bf16 where the GPU has it; on CPUs float32 measured faster.

    Args:
        amp: `auto`, `no` or `bf16`.
        deterministic: whether to take only algorithms that repeat to the bit.
        track: trackers that figures are sent to.
        folder: where trackers that write files write them.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # what cuBLAS needs to repeat itself
    torch.use_deterministic_algorithms(deterministic)
    has_gpu = torch.cuda.is_available()
    if amp == "auto":
        amp = "bf16" if has_gpu and torch.cuda.is_bf16_supported() else "no"
    AcceleratorState._reset_state()  # a second run in this process may want another precision
    # Without being told that it is on a CPU, Accelerate takes each process that torchrun starts there for a lone one.
    return Accelerator(mixed_precision=amp, cpu=not has_gpu, log_with=list(track) or None, project_dir=folder)


@contextmanager
def track_metrics(accelerator: Accelerator, plan: Plan, run: Path) -> Iterator[None]:
    """Opens the trackers for the length of the block, a continued run's under the name that it had.

    Raises:
        UsageError: one of them refuses; the run can be continued without it.
    """
    if accelerator.log_with:
        settings = {name: choice.value for name, choice in plan.choices.items()}
        whole = find_resumable(RunFolder(run)).path
        name = run.name if whole == run else f"{whole.name}-{run.name}"
        named = {"wandb": {"id": name, "name": name, "resume": "allow"}}
        accelerator.project_configuration = ProjectConfiguration(str(run), logging_dir=str(run))
        try:
            accelerator.init_trackers("convnext", {"model": plan.model, **settings}, named)
        except Exception as error:  # each has errors of its own
            names = ", ".join(str(name) for name in accelerator.log_with)
            raise UsageError(
                f"cannot send figures to {names}: {shorten_error(error)}",
                f"Set it up, or leave out --track: `convnext finetune --resume {quote(whole)}`",
            ) from error
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()


def spread_model(
    accelerator: Accelerator, network: nn.Module, optimizer: torch.optim.Optimizer
) -> tuple[nn.Module, torch.optim.Optimizer]:
    """Puts the model on its device, in its precision; shards it where `accelerate launch` asked for FSDP.

    Without FSDP it is left unwrapped: `sum_gradients` does what DistributedDataParallel would do during the backward
    pass, where a rank that runs out of memory could not start its share again while the others wait for it.
    """
    if is_sharded(accelerator):
        model, prepared = accelerator.prepare(network, optimizer)
        return model, prepared.optimizer
    return accelerator.prepare_model(network, evaluation_mode=True), optimizer  # that is: no wrapper


def is_sharded(accelerator: Accelerator) -> bool:
    """Whether the model's parameters are spread over the ranks."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def is_plain_processor(accelerator: Accelerator) -> bool:
    """Whether whole models are trained in float32 on a processor."""
    return accelerator.device.type == "cpu" and accelerator.mixed_precision == "no" and not is_sharded(accelerator)


def sum_gradients(accelerator: Accelerator, model: nn.Module) -> None:
    """Adds up the gradients of all ranks, in place, so that each has that of the whole batch."""
    if accelerator.num_processes == 1 or is_sharded(accelerator):
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
    flat = torch.cat([gradient.reshape(-1) for gradient in gradients])
    dist.all_reduce(flat)
    parts = torch.split(flat, [gradient.numel() for gradient in gradients])
    for gradient, part in zip(gradients, parts, strict=True):
        gradient.copy_(part.view_as(gradient))


def clip_gradients(accelerator: Accelerator, model: nn.Module, longest: float) -> Tensor:
    """Shortens the gradient to the L2 norm `longest` where it is longer, and returns the norm it had."""
    norm: Tensor = accelerator.clip_grad_norm_(model.parameters(), longest)
    return norm.full_tensor() if isinstance(norm, DTensor) else norm


def agree(accelerator: Accelerator, *values: int) -> list[int]:
    """The largest of each value over all ranks. The processors talk, so that no GPU is waited for."""
    if accelerator.num_processes == 1:
        return list(values)
    largest = torch.tensor(values)
    dist.all_reduce(largest, op=dist.ReduceOp.MAX, group=_cpu_group())
    return [int(value) for value in largest]


@cache
def _cpu_group() -> Any:
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo")


def is_out_of_memory(error: Exception) -> bool:
    """Whether a smaller batch would help."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or bool(should_reduce_batch_size(error))


def is_lost_connection(error: Exception) -> bool:
    """Whether another rank has gone, so that nothing more can be exchanged."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def free_memory() -> None:
    """Gives back what a failed pass has left on the device."""
    clear_device_cache(garbage_collection=True)


def describe_device(device: torch.device) -> str:
    """The device in words."""
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


def gather_rows(accelerator: Accelerator, mine: Tensor, total: int) -> Tensor:
    """Puts together what the ranks computed for rows rank, rank + world, rank + 2 * world …, in order.

    Args:
        accelerator: knows the ranks.
        mine: this rank's (n, K), n being its share of `total`.
        total: rows over all ranks.

    Returns:
        (total, K), the same on every rank.
    """
    world = accelerator.num_processes
    if world == 1:
        return mine
    longest = -(-total // world)
    padded = torch.zeros(longest, mine.shape[1], device=accelerator.device)
    padded[: len(mine)] = mine.to(accelerator.device)
    every: Tensor = accelerator.gather(padded)
    return every.view(world, longest, -1).transpose(0, 1).reshape(world * longest, -1)[:total].cpu()
