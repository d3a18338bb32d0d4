"""Devices, precision and processes, which Accelerate owns; the exchange between ranks."""

import atexit
import os
import platform
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from datetime import timedelta
from functools import cache
from pathlib import Path
from typing import Any, TypeVar, cast

import torch
import torch.distributed as dist
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import DistributedType, InitProcessGroupKwargs, ProjectConfiguration, broadcast_object_list
from torch import Tensor, nn
from torch.distributed.fsdp import register_fsdp_forward_method
from torch.distributed.tensor import DTensor

from convnext_cli.errors import ConvnextError, UsageError, shorten_error
from convnext_cli.machine import (
    GIB,
    Machine,
    count_cpus,
    describe_gpu_machine,
    detect_machine,
    uses_fsdp,
)
from convnext_cli.models.forward import choose_device, has_native_bf16
from convnext_cli.recipes.plan import Plan
from convnext_cli.runs.folder import RunFolder, resume_command
from convnext_cli.runs.folds import find_resumable

T = TypeVar("T")
THREADS = min(torch.get_num_threads(), count_cpus())  # torch's default ignores quotas; a run may use fewer
RANK_TIMEOUT = timedelta(
    days=1
)  # ranks wait while the first one downloads, audits or calibrates; a lost one is noticed
PRECISIONS = {"no": "float32", "bf16": "bf16", "fp16": "fp16"}
TENSOR_CORES = (7, 0)  # compute capability of V100, the first GPU that is faster in fp16 than in float32
BUCKET = 64 << 20  # bytes of gradients that are exchanged at a time


def make_accelerator(
    amp: str, *, deterministic: bool = False, track: Sequence[str] = (), folder: Path | None = None
) -> Accelerator:
    """Return the accelerator of this process.

    Args:
        amp: `auto`, `no`, `bf16` or `fp16`; see `choose_precision`.
        deterministic: True to use deterministic algorithms only.
        track: trackers that metrics are sent to.
        folder: where trackers write their files.

    Raises:
        UsageError: the device does not have this precision.
    """
    if deterministic:
        os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", ":4096:8")  # cuBLAS needs it to be deterministic
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as timm's train.py
    torch.backends.cudnn.benchmark = False  # see `search_algorithms`
    device = choose_device()
    precision = choose_precision(amp, device)
    AcceleratorState._reset_state()  # a second run in this process may want another precision
    # Without cpu=True, Accelerate treats each process that torchrun starts on a CPU as a single one.
    return Accelerator(
        mixed_precision=precision,
        cpu=device.type == "cpu",
        log_with=list(track) or None,
        project_dir=folder,
        kwargs_handlers=[InitProcessGroupKwargs(timeout=RANK_TIMEOUT)],
    )


@contextmanager
def search_algorithms(is_on: bool) -> Iterator[None]:
    """Let cuDNN search the fastest algorithms of new input shapes during the block, if `is_on`.

    timm's train.py always searches. On an H200 that took 8 to 10 seconds for each shape (`benchmarks/gpu.py`, part t),
    so only long runs do, for the shape of nearly all their passes. What is found may differ from run to run.
    """
    torch.backends.cudnn.benchmark = is_on
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = False


@cache
def end_training() -> None:
    """Leave the ranks' process group at the end of the process: until then another training may use it.

    A group cannot be made a second time in processes that torchrun started, because the addresses of the first one are
    still in its store.
    """
    if dist.is_initialized():
        atexit.register(dist.destroy_process_group)


def choose_precision(amp: str, device: torch.device) -> str:
    """Return Accelerate's name of the precision: `no`, `bf16` or `fp16`.

    `auto` is bf16 if the GPU computes in it, else fp16 with scaled losses if it has tensor cores, else float32. A model
    that is sharded is never trained in fp16; on CPUs float32 measured faster.

    Args:
        amp: `auto`, `no`, `bf16` or `fp16`.
        device: where the training runs.

    Raises:
        UsageError: fp16 on a CPU or MPS, or with FSDP.
    """
    if amp == "auto":
        if has_native_bf16(device):
            return "bf16"
        has_cores = device.type == "cuda" and torch.cuda.get_device_capability(device) >= TENSOR_CORES
        return "fp16" if has_cores and not uses_fsdp() else "no"
    if amp == "fp16" and (device.type not in ("cuda", "xpu") or uses_fsdp()):
        raise UsageError(
            "--amp fp16 needs a GPU (CUDA, ROCm or XPU) and a model that is not sharded", "Use --amp auto or no"
        )
    return amp


def explain_slow_precision(accelerator: Accelerator) -> str | None:
    """Return a note if the GPU only emulates the run's bf16, else None."""
    device = accelerator.device
    if device.type == "cpu" or accelerator.mixed_precision != "bf16" or has_native_bf16(device):
        return None
    return f"{describe_device(device)} only emulates bf16; --amp auto is faster"


def find_torch_machine(accelerator: Accelerator) -> Machine:
    """Return this machine as torch sees it: the GPU with the least free memory over all ranks, or the CPU.

    All ranks call it, and get the same memory.
    """
    device = accelerator.device
    if device.type == "cpu":
        return detect_machine(use_gpu=False)
    (negated,) = agree(accelerator, -_measure_free_memory(device))
    return describe_gpu_machine(_name_gpu(device), -negated)


def explain_unusable_gpu(machine: Machine) -> str:
    """Return the reason why torch cannot use the GPU of `machine`, and what to do."""
    reason = f"PyTorch {torch.__version__} does not support it"
    remedy = "`convnext doctor` tests the installation"
    if machine.name.startswith("AMD") and torch.version.hip is None:
        reason, remedy = "this PyTorch is not the ROCm build", "Install PyTorch for ROCm from pytorch.org"
    elif torch.version.cuda is None and torch.version.hip is None:
        reason, remedy = "this PyTorch is the CPU build", "Install PyTorch for CUDA from pytorch.org"
    else:
        try:
            torch.cuda.init()  # type: ignore[no-untyped-call]
        except (RuntimeError, AssertionError) as error:
            reason = shorten_error(error)
    return f"{machine.name} is not used: {reason}. Training runs on the CPU, many times slower. {remedy}"


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
        register_fsdp_forward_method(model, "forward_features")  # the frozen phase calls it alone
        return model, prepared.optimizer
    return accelerator.prepare_model(network, evaluation_mode=True), optimizer  # evaluation_mode: no wrapper


def is_sharded(accelerator: Accelerator) -> bool:
    """Return True if the model's parameters are sharded over the ranks."""
    return bool(accelerator.distributed_type == DistributedType.FSDP)


def is_plain_cpu(accelerator: Accelerator) -> bool:
    """Return True if each rank trains the whole model in float32 on a CPU."""
    return accelerator.device.type == "cpu" and accelerator.mixed_precision == "no" and not is_sharded(accelerator)


def is_whole_on_gpu(accelerator: Accelerator) -> bool:
    """Return True if each rank trains the whole model on a CUDA or ROCm GPU."""
    return accelerator.device.type == "cuda" and not is_sharded(accelerator)


def sum_gradients(accelerator: Accelerator, model: nn.Module) -> None:
    """Sum the gradients over all ranks, in place, so that each rank has the gradient of the whole batch."""
    if accelerator.num_processes == 1 or is_sharded(accelerator):
        return
    gradients = [parameter.grad for parameter in model.parameters() if parameter.grad is not None]
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
    return None if dist.get_backend() == "gloo" else dist.new_group(backend="gloo", timeout=RANK_TIMEOUT)


def is_lost_connection(error: Exception) -> bool:
    """Return True if the connection to another rank is lost."""
    return isinstance(error, dist.DistError) or "gloo" in str(error) or "NCCL" in str(error)


def describe_device(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "mps":
        return _name_gpu(device)
    if device.type != "cpu":
        total = torch.get_device_module(device).get_device_properties(device).total_memory
        return f"{_name_gpu(device)}, {total / GIB:.0f} GiB"
    return f"CPU ({platform.machine()}), {THREADS} thread{'s' * (THREADS != 1)}"


def _name_gpu(device: torch.device) -> str:
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    return str(torch.get_device_module(device).get_device_properties(device).name)


def _measure_free_memory(device: torch.device) -> int:
    """Return a GPU's free bytes, with those that PyTorch holds and does not use."""
    if device.type == "mps":  # memory shared with the CPU
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    module = torch.get_device_module(device)
    free, _ = module.mem_get_info(device)
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))


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
