"""Detect the GPU, memory and CPU cores of this machine, without torch."""

import math
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_cli.errors import UsageError
from convnext_cli.text import format_count

GIB = 2**30
# FLOP/s of a core with AVX-512 and native kernels: 51e9 (zepto, 64 px) to 96e9 (tiny, 224 px), 13 models, 1 thread.
CORE_FLOPS = 80e9
AVX2_FRACTION = 0.5  # half the SIMD width; not measured
WITHOUT_KERNELS = 0.6  # factor without a compiler for the native kernels
SYSTEM = Path("/sys")
CONTROL_GROUPS = Path("/proc/self/cgroup")
LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")  # the variables that torchrun sets


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """The device that a training is planned for."""

    name: str
    is_gpu: bool
    memory: int
    """Bytes available to one process."""
    cores: int
    core_flops: float = CORE_FLOPS
    """FLOP/s of one CPU core in training."""
    processes: int = 1
    """Processes of the run, over all machines."""
    shards: int = 1
    """Processes over which the model is sharded; 1 if each process has all of it."""

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / GIB:.1f} GiB free"


def detect_machine(*, use_gpu: bool = True) -> Machine:
    """Return the first visible GPU with its free memory; else the CPU with this process's part of the memory.

    The driver is asked, not torch, which takes seconds to import. `find_torch_machine` asks torch.
    """
    if use_gpu and (gpu := _first_gpu()):
        return describe_gpu_machine(*gpu)
    name = f"CPU ({os.uname().machine}, {format_count(count_cpus(), 'core')})"
    memory = _available_memory() // count_local_processes()
    return Machine(name=name, is_gpu=False, memory=memory, cores=count_process_cpus(), core_flops=estimate_core_flops())


def describe_gpu_machine(name: str, memory: int) -> Machine:
    """Return this machine with a GPU of `memory` free bytes."""
    return Machine(
        name=name,
        is_gpu=True,
        memory=memory,
        cores=count_cpus(),
        core_flops=estimate_core_flops(),
        processes=count_processes(),
        shards=count_shards(),
    )


def estimate_core_flops() -> float:
    """Estimate the FLOP/s of one CPU core in training, from its SIMD instructions and the presence of a C compiler."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    width = 1.0 if "avx512f" in flags else AVX2_FRACTION
    return CORE_FLOPS * width * (1.0 if find_compiler() else WITHOUT_KERNELS)


def find_compiler() -> list[str] | None:
    """Return the command of the C compiler: that of $CC, else the first of cc, gcc and clang; None without one."""
    if command := os.environ.get("CC", "").split():
        return command if shutil.which(command[0]) else None
    return next(([path] for name in ("cc", "gcc", "clang") if (path := shutil.which(name))), None)


def make_gpu_machine(vram: float) -> Machine:
    """Return a GPU of `vram` GiB, for planning for another machine."""
    return Machine(name="GPU", is_gpu=True, memory=round(vram * GIB), cores=1)


def count_cpus() -> int:
    """Return the number of CPUs that this process may use, by its affinity and the quotas of its control groups."""
    allowed = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return max(1, min([allowed, *(math.ceil(quota) for quota in _read_cpu_quotas())]))


def has_gpu() -> bool:
    """Return True if this process can use a GPU, as far as its driver tells."""
    return _first_gpu() is not None


def is_launched() -> bool:
    """Return True if torchrun, or a launcher like it, started this process; a few of its variables mean nothing."""
    return all(os.environ.get(name) for name in LAUNCHER)


def get_rank() -> int:
    """Return the number of this process in its run, 0 for the first, from torchrun's environment.

    Raises:
        UsageError: the launcher's numbers are wrong, here and in the functions below.
    """
    return _read_launcher_number("RANK", default=0, high=count_processes() - 1)


def get_local_rank() -> int:
    """Return the number of this process among those of its run on this machine, from torchrun's environment."""
    return _read_launcher_number("LOCAL_RANK", default=0)


def count_restarts() -> int:
    """Return how often torchrun has restarted the processes of this run after a failure."""
    return _read_launcher_number("TORCHELASTIC_RESTART_COUNT", default=0)


def count_local_processes() -> int:
    """Return the number of processes of this run on this machine, from torchrun's environment."""
    return _read_launcher_number("LOCAL_WORLD_SIZE", default=1, low=1)


def count_process_cpus() -> int:
    """Return the number of CPUs for each process of this run on this machine, at least 1."""
    return max(1, count_cpus() // count_local_processes())


@contextmanager
def use_one_blas_thread() -> Iterator[None]:
    """Compute NumPy's matrix products on one thread each: many small ones on several threads wait for one another."""
    from threadpoolctl import threadpool_limits

    with threadpool_limits(1, user_api="blas"):
        yield


def count_processes() -> int:
    """Return the number of processes of this run, from torchrun's environment."""
    return _read_launcher_number("WORLD_SIZE", default=1, low=1)


def _read_launcher_number(name: str, *, default: int, low: int = 0, high: float = math.inf) -> int:
    """Return the number of a launcher's variable; `default` where it is not set, or there is no launcher."""
    text = os.environ.get(name)
    if not text or not is_launched():
        return default
    if not text.isdecimal() or not low <= int(text) <= high:
        bounds = f"of at least {low}" if high == math.inf else f"from {low} to {high}"
        remedy = f"Start with torchrun or --devices, which set it, or unset {', '.join(LAUNCHER)}"
        raise UsageError(f"the environment variable {name} is {text!r}, not a whole number {bounds}", remedy)
    return int(text)


def uses_fsdp() -> bool:
    """Return True if `accelerate launch` shards the model, from its environment."""
    return os.environ.get("ACCELERATE_USE_FSDP", "").lower() in ("1", "true")


def count_shards() -> int:
    """Return the number of processes that share the model's parameters; 1 if each has all of them."""
    return count_processes() if uses_fsdp() else 1


def read_gpu_memory() -> tuple[int, int] | None:
    """Return free and total bytes of the GPU that this process would use; None if its driver does not tell."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or not _driver_is_loaded():
        return None
    import pynvml

    try:
        pynvml.nvmlInit()
        memory = pynvml.nvmlDeviceGetMemoryInfo(_find_handle(pynvml, visible))
        return int(memory.free), int(memory.total)
    except (pynvml.NVMLError, LookupError):
        return None


def _first_gpu() -> tuple[str, int] | None:
    """Return the name and the free bytes of the GPU that this process would use, or None.

    NVML counts GPUs by their PCI address and CUDA from the fastest, so that with several models of GPU it may be
    another one.
    """
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1"):
        return None
    if not _driver_is_loaded():
        return _first_amd_gpu()
    import pynvml

    try:
        pynvml.nvmlInit()
        handle = _find_handle(pynvml, visible)
        name = str(pynvml.nvmlDeviceGetName(handle))
    except (pynvml.NVMLError, LookupError):
        return None
    try:
        return name, int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
    except pynvml.NVMLError:  # memory shared with the CPU: Jetson, GB10
        return name, _available_memory()


def _find_handle(nvml: Any, visible: str | None) -> Any:
    """Return NVML's handle of the GPU, or the part of one (MIG), that CUDA gives to this process.

    Args:
        nvml: the module.
        visible: CUDA_VISIBLE_DEVICES: indices, or UUIDs, which may be cut short.

    Raises:
        NVMLError: NVML does not know it.
        LookupError: no UUID begins like this.
    """
    rank = get_local_rank()
    count = nvml.nvmlDeviceGetCount()
    names = [name.strip() for name in visible.split(",")] if visible else [str(number) for number in range(count)]
    chosen = names[rank % len(names)]
    if chosen.startswith("MIG-"):
        return nvml.nvmlDeviceGetHandleByUUID(chosen)
    if chosen.isdigit():
        handle = nvml.nvmlDeviceGetHandleByIndex(int(chosen))
    else:
        handles = map(nvml.nvmlDeviceGetHandleByIndex, range(count))
        handle = next((each for each in handles if str(nvml.nvmlDeviceGetUUID(each)).startswith(chosen)), None)
        if handle is None:
            raise LookupError(chosen)
    try:
        is_partitioned = nvml.nvmlDeviceGetMigMode(handle)[0] == nvml.NVML_DEVICE_MIG_ENABLE
    except nvml.NVMLError:  # not supported
        is_partitioned = False
    return nvml.nvmlDeviceGetMigDeviceHandleByIndex(handle, 0) if is_partitioned else handle


def _driver_is_loaded() -> bool:
    """Return True if NVIDIA's driver is loaded; without it, importing NVML (60 ms) is pointless. WSL2 has /dev/dxg."""
    return any(Path(path).exists() for path in ("/proc/driver/nvidia", "/dev/nvidiactl", "/dev/dxg"))


def _first_amd_gpu() -> tuple[str, int] | None:
    """Return the name and the free bytes of the AMD GPU with the most memory, from Linux's amdgpu driver, or None."""
    gpus = []
    for total in SYSTEM.glob("class/drm/card*/device/mem_info_vram_total"):
        try:
            free = int(total.read_text()) - int(total.with_name("mem_info_vram_used").read_text())
            product = total.with_name("product_name")
            name = product.read_text().strip() if product.exists() else ""
        except (OSError, ValueError):
            continue
        gpus.append((free, name or "AMD GPU"))
    return max(gpus)[::-1] if gpus and Path("/dev/kfd").exists() else None


def _available_memory() -> int:
    """Return the bytes that are available, including reclaimable file cache, within the control groups."""
    import psutil

    available: int = psutil.virtual_memory().available
    return max(0, min([available, *_read_memory_limits()]))


def _read_cpu_quotas() -> Iterator[float]:
    """Yield the CPUs of each control group of this process that has a quota."""
    for folder in _list_control_groups():
        try:
            if (folder / "cpu.max").exists():  # version 2: `200000 100000`, or `max 100000`
                quota, period = (folder / "cpu.max").read_text().split()
            else:
                quota, period = ((folder / f"cpu.cfs_{name}_us").read_text() for name in ("quota", "period"))
            if quota != "max" and int(quota) > 0:
                yield int(quota) / int(period)
        except (OSError, ValueError):
            continue


def _read_memory_limits() -> Iterator[int]:
    """Yield the bytes that each control group of this process still allows, reclaimable file cache included."""
    for folder in _list_control_groups():
        try:
            is_second = (folder / "memory.max").exists()  # version 2
            names = ("max", "current") if is_second else ("limit_in_bytes", "usage_in_bytes")
            limit, used = ((folder / f"memory.{name}").read_text().strip() for name in names)
            if limit != "max":
                statistics = dict(line.split() for line in (folder / "memory.stat").read_text().splitlines())
                cached = statistics["inactive_file" if is_second else "total_inactive_file"]
                yield int(limit) - (int(used) - int(cached))
        except (OSError, ValueError, KeyError):
            continue


def _list_control_groups() -> Iterator[Path]:
    """Yield the folders of this process's control groups, with their parents; Linux's cgroups(7) describes them."""
    try:
        lines = CONTROL_GROUPS.read_text().splitlines()
    except OSError:
        return
    for line in lines:
        _, controllers, name = line.split(":", 2)
        root = SYSTEM / "fs/cgroup" / controllers
        path = root / name.lstrip("/")
        yield from (folder for folder in (path, *path.parents) if folder.is_relative_to(root))
