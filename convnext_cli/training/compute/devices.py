"""Devices and precision, which Accelerate owns."""

import os
import platform
import socket
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from threading import Lock

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from accelerate.utils import InitProcessGroupKwargs
from torch import nn
from torch.distributed.fsdp import register_fsdp_forward_method

from convnext_cli.errors import UsageError, shorten_error
from convnext_cli.machine import (
    GIB,
    LAUNCHER,
    Machine,
    count_cpus,
    describe_gpu_machine,
    detect_machine,
    get_rank,
    is_launched,
    uses_fsdp,
)
from convnext_cli.models.device_memory import free_memory
from convnext_cli.models.forward import choose_device, has_native_bf16, use_torch_defaults
from convnext_cli.text import format_count
from convnext_cli.training.compute.ranks import RANK_TIMEOUT, agree, is_sharded
from convnext_cli.training.compute.signals import end_by_signals

THREADS = min(torch.get_num_threads(), count_cpus())  # torch's default ignores quotas; a run may use fewer
_FOREIGN = ("ACCELERATE_", "PARALLELISM_CONFIG_", "PMI_", "MPI_", "OMPI_", "MV2_", "FORK_LAUNCHED")
_KEPT = ("ACCELERATE_USE_FSDP", "ACCELERATE_CPU_AFFINITY")  # what a plan does not have
MEETING_TIMEOUT = 600.0  # seconds that the first process's machine may take to answer
PRECISIONS = {"no": "float32", "bf16": "bf16", "fp16": "fp16"}
_CUBLAS = "CUBLAS_WORKSPACE_CONFIG"
_training = Lock()
TENSOR_CORES = (7, 0)  # compute capability of V100, the first GPU that is faster in fp16 than in float32


@contextmanager
def keep_process_state() -> Iterator[None]:
    """Hold what a training changes in its process, and give it back at the end of the block: a notebook goes on.

    It is random numbers, threads, determinism with cuBLAS's variable, precision, and Accelerate's state.

    Raises:
        UsageError: another training holds it, in another thread.
    """
    if not _training.acquire(blocking=False):
        raise UsageError(
            "another training runs in this process", "Wait for its end, or start this one in a process of its own"
        )
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    threads, benchmark, state = torch.get_num_threads(), cudnn.benchmark, dict(AcceleratorState._shared_state)
    deterministic = torch.are_deterministic_algorithms_enabled()
    warn_only = torch.is_deterministic_algorithms_warn_only_enabled()
    cublas = os.environ.get(_CUBLAS)
    tf32 = None
    with suppress(RuntimeError):  # the program may have set parts of it by PyTorch's newer names
        tf32 = (matmul.allow_tf32, cudnn.allow_tf32)
    gpus = [torch.cuda.current_device()] if torch.cuda.is_initialized() else []  # type: ignore[no-untyped-call]
    try:
        with torch.random.fork_rng(gpus), use_torch_defaults():
            yield
    finally:
        torch.set_num_threads(threads)
        torch.use_deterministic_algorithms(deterministic, warn_only=warn_only)
        if cublas is None:
            os.environ.pop(_CUBLAS, None)
        cudnn.benchmark = benchmark
        if tf32 is not None:
            matmul.allow_tf32, cudnn.allow_tf32 = tf32
        AcceleratorState._shared_state.clear()
        AcceleratorState._shared_state.update(state)
        _training.release()


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
        UsageError: the device does not have this precision, or the environment variables of a launcher or of
            Accelerate are incomplete or senseless.
    """
    _check_launcher()
    if deterministic:
        os.environ.setdefault(_CUBLAS, ":4096:8")  # cuBLAS needs it to be deterministic
    torch.use_deterministic_algorithms(deterministic)
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True  # as timm's train.py
    torch.backends.cudnn.benchmark = False  # see `search_algorithms`
    device = choose_device()
    precision = choose_precision(amp, device)
    AcceleratorState._reset_state()  # a second run in this process may want another precision
    try:
        with _hide_foreign_variables(), end_by_signals() if is_launched() else nullcontext():  # waits for other ranks
            if is_launched() and get_rank() > 0:
                _find_first_process(os.environ["MASTER_ADDR"], int(os.environ["MASTER_PORT"]))
            # Without cpu=True, Accelerate treats each process that torchrun starts on a CPU as a single one.
            return Accelerator(
                mixed_precision=precision,
                cpu=device.type == "cpu",
                log_with=list(track) or None,
                project_dir=folder,
                kwargs_handlers=[InitProcessGroupKwargs(timeout=RANK_TIMEOUT)],
            )
    except (ValueError, KeyError, OverflowError) as error:  # all arguments are ours
        raise UsageError(
            f"Accelerate cannot use its environment variables: {shorten_error(error)}",
            f"Correct or unset those that are set of {', '.join((*_KEPT, 'FSDP_*', *LAUNCHER))}",
        ) from error


def _find_first_process(address: str, port: int) -> None:
    """Wait until the machine of the first process answers. It may refuse: that process may still prepare, for hours."""
    end = time.monotonic() + MEETING_TIMEOUT
    while True:
        try:
            with suppress(ConnectionRefusedError):
                socket.create_connection((address, port), timeout=5).close()
        except OSError as error:
            if time.monotonic() > end:
                reason = error.strerror or shorten_error(error)
                problem = f"the machine of the first process does not answer at {address}:{port} ({reason})"
                raise UsageError(problem, "Correct MASTER_ADDR and MASTER_PORT") from error
            time.sleep(1)
        else:
            return


@contextmanager
def _hide_foreign_variables() -> Iterator[None]:
    """Hide variables from Accelerate that would replace the plan's values, or count processes as MPI does.

    What remains are those of FSDP, and the launcher's, if it started this process.
    """
    hidden = {
        name: os.environ.pop(name)
        for name in list(os.environ)
        if (name.startswith(_FOREIGN) and name not in _KEPT) or (name in LAUNCHER and not is_launched())
    }
    try:
        yield
    finally:
        os.environ |= hidden


def _check_launcher() -> None:
    """Check that a launcher's variables are complete where some are set, as a cluster or a script may do."""
    present = [name for name in LAUNCHER if os.environ.get(name)]
    missing = [name for name in LAUNCHER if name not in present]
    alone = {"WORLD_SIZE": "1", "LOCAL_RANK": "-1"}  # values that scripts set for a single process
    if missing and any(os.environ.get(name) not in (None, "", value) for name, value in alone.items()):
        raise UsageError(
            f"the environment has {', '.join(present)} of a launcher, but not {', '.join(missing)}",
            f"Start with torchrun or --devices, or unset {', '.join(present)}",
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


def choose_precision(amp: str, device: torch.device) -> str:
    """Return Accelerate's name of the precision: `no`, `bf16` or `fp16`.

    `auto` is bf16 if the GPU computes in it, else fp16 with scaled losses if it has tensor cores, else float32. A model
    that is sharded is never trained in fp16; on CPUs float32 measured faster.

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
            remedy = "Install a build of PyTorch that supports it from pytorch.org"
        except (RuntimeError, AssertionError) as error:
            reason = shorten_error(error)
    return f"{machine.name} is not used: {reason}. Training runs on the CPU, many times slower. {remedy}"


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


def is_plain_cpu(accelerator: Accelerator) -> bool:
    """Return True if each rank trains the whole model in float32 on a CPU."""
    return accelerator.device.type == "cpu" and accelerator.mixed_precision == "no" and not is_sharded(accelerator)


def is_whole_on_gpu(accelerator: Accelerator) -> bool:
    """Return True if each rank trains the whole model on a CUDA or ROCm GPU."""
    return accelerator.device.type == "cuda" and not is_sharded(accelerator)


def wait_for_gpu(device: torch.device) -> None:
    """Wait until a GPU has done what was asked of it, before a time is read; a CPU has."""
    if device.type != "cpu":
        torch.get_device_module(device).synchronize()


def describe_device(device: torch.device) -> str:
    """Return the device in words."""
    if device.type == "mps":
        return _name_gpu(device)
    if device.type != "cpu":
        total = torch.get_device_module(device).get_device_properties(device).total_memory
        return f"{_name_gpu(device)}, {total / GIB:.0f} GiB"
    return f"CPU ({platform.machine()}), {format_count(THREADS, 'thread')}"


def _name_gpu(device: torch.device) -> str:
    if device.type == "mps":
        return f"Apple GPU ({platform.machine()})"
    return str(torch.get_device_module(device).get_device_properties(device).name)


def _measure_free_memory(device: torch.device) -> int:
    """Return a GPU's free bytes, with those that PyTorch holds and does not use."""
    if device.type == "mps":  # memory shared with the CPU
        return int(torch.mps.recommended_max_memory() - torch.mps.driver_allocated_memory())
    free_memory(device)  # the model of an earlier training in this process may be garbage that nothing has collected
    module = torch.get_device_module(device)
    free, _ = module.mem_get_info(device)
    return int(free + module.memory_reserved(device) - module.memory_allocated(device))
