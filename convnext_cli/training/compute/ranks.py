"""The exchange between ranks: gradients, rows, numbers that all agree on, and work of the first one."""

import atexit
from collections.abc import Callable, Iterator, Sequence
from datetime import timedelta
from functools import cache
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.utils import DistributedType, broadcast_object_list
from torch import Tensor
from torch.distributed.tensor import DTensor

from convnext_cli.errors import ConvnextError

T = TypeVar("T")
RANK_TIMEOUT = timedelta(days=1)
"""Ranks wait while the first one downloads, audits or calibrates; a lost one is noticed."""
BUCKET = 64 << 20  # bytes of gradients that are exchanged at a time


def is_sharded(accelerator: Accelerator) -> bool:
    """Return True if the model's parameters are sharded over the ranks."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


@cache
def end_training() -> None:
    """Leave the ranks' process group at the end of the process: until then another training may use it.

    A group cannot be made a second time in processes that torchrun started, because the addresses of the first one are
    still in its store.
    """
    if dist.is_initialized():
        atexit.register(dist.destroy_process_group)


def sum_gradients(accelerator: Accelerator, parameters: Sequence[Tensor]) -> None:
    """Sum the gradients over all ranks, in place, so that each rank has the gradient of the whole batch."""
    if accelerator.num_processes == 1 or is_sharded(accelerator):
        return
    gradients = [parameter.grad for parameter in parameters if parameter.grad is not None]
    for bucket in _fill_buckets(gradients):
        flat = torch.cat([gradient.reshape(-1) for gradient in bucket])
        dist.all_reduce(flat)
        parts = torch.split(flat, [gradient.numel() for gradient in bucket])
        for gradient, part in zip(bucket, parts, strict=True):
            gradient.copy_(part.view_as(gradient))


def _fill_buckets(gradients: Sequence[Tensor]) -> Iterator[list[Tensor]]:
    """Yield the gradients in groups of about `BUCKET` bytes: one copy of all of them might not fit."""
    bucket: list[Tensor] = []
    for gradient in gradients:
        bucket.append(gradient)
        if sum(each.nbytes for each in bucket) >= BUCKET:
            yield bucket
            bucket = []
    if bucket:
        yield bucket


def clip_gradients(accelerator: Accelerator, parameters: Sequence[Tensor], max_norm: float) -> Tensor:
    """Scale the gradient down to the L2 norm `max_norm` if it is larger, and return its norm before that."""
    norm: Tensor = accelerator.clip_grad_norm_(parameters, max_norm)
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
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=RANK_TIMEOUT)


def is_lost_connection(error: Exception) -> bool:
    """Return True if the connection to another rank is lost."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


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


def slice_evenly(accelerator: Accelerator, rows: Sequence[T]) -> Sequence[T]:
    """Return the rows of `slice_for_rank`; with a sharded model as many on each rank, for which one is repeated.

    Ranks with a sharded model exchange its parameters in each pass, so that they need the same number of passes.
    """
    own = slice_for_rank(accelerator, rows)
    if is_sharded(accelerator) and len(own) * accelerator.num_processes < len(rows):
        return [*own, rows[0]]
    return own


def gather_rows(accelerator: Accelerator, values: Tensor, total: int) -> Tensor:
    """Gather the rows that `slice_for_rank` distributed, in their original order.

    Args:
        accelerator: connects the ranks.
        values: this rank's rows, (n, K); also those of `slice_evenly`, whose repeated row is left out.
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
