"""What this machine has to train on, found out without torch."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
# Of one core with AVX-512 and our kernels: 51e9 (zepto, 64 px) to 96e9 (tiny, 224 px), 13 models and sizes, 1 thread.
CORE_FLOPS = 80e9
AVX2_SHARE = 0.5  # half the width; not measured
WITHOUT_KERNELS = 0.6  # where there is no compiler for them


@dataclass(frozen=True, kw_only=True, slots=True)
class Machine:
    """A device to plan for."""

    name: str
    is_gpu: bool
    memory: int
    """Bytes that one process may plan with."""
    cores: int
    core_flops: float = CORE_FLOPS
    """FLOP/s of one processor in training."""

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / GIB:.1f} GiB free"


def detect_machine(*, use_gpu: bool = True) -> Machine:
    """The first visible NVIDIA GPU with its free memory; without one, the processor with its share of the memory.

    Args:
        use_gpu: False where it is known already that the processor will train.
    """
    cores = count_cpus()
    if use_gpu and (gpu := _first_gpu()):
        name, free = gpu
        return Machine(name=name, is_gpu=True, memory=free, cores=cores, core_flops=estimate_core_flops())
    here = count_local_processes()
    speed = estimate_core_flops()
    name = f"CPU ({os.uname().machine}, {cores} cores)"
    memory = _available_memory() // here
    return Machine(name=name, is_gpu=False, memory=memory, cores=max(1, cores // here), core_flops=speed)


def estimate_core_flops() -> float:
    """Estimate what one processor computes in training, in FLOP/s, from its instructions and a compiler for kernels."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    width = 1.0 if "avx512f" in flags else AVX2_SHARE
    compiler = os.environ.get("CC", "cc").split()[0]
    return CORE_FLOPS * width * (1.0 if shutil.which(compiler) else WITHOUT_KERNELS)


def make_gpu_machine(vram: float) -> Machine:
    """A GPU of `vram` GiB, on somebody else's word."""
    return Machine(name="GPU", is_gpu=True, memory=round(vram * GIB), cores=1)


def count_cpus() -> int:
    """The processors that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu() -> bool:
    """Whether there is an NVIDIA GPU that this process may use."""
    return _first_gpu() is not None


def count_local_processes() -> int:
    """Processes of this run on this machine, as torchrun tells them."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _first_gpu() -> tuple[str, int] | None:
    """Name and free bytes of the GPU that this process would take, or None where there is none."""
    visible = os.environ.get("CUDA_VISIBLE_DEVICES")
    if visible in ("", "-1") or not _driver_is_loaded():
        return None
    import pynvml

    rank = int(os.environ.get("LOCAL_RANK", "0"))
    try:
        pynvml.nvmlInit()
        chosen = visible.split(",")[rank].strip() if visible else str(rank)
        by_index = chosen.isdigit()
        handle = (
            pynvml.nvmlDeviceGetHandleByIndex(int(chosen)) if by_index else pynvml.nvmlDeviceGetHandleByUUID(chosen)
        )
        return str(pynvml.nvmlDeviceGetName(handle)), int(pynvml.nvmlDeviceGetMemoryInfo(handle).free)
    except (pynvml.NVMLError, IndexError):
        return None


def _driver_is_loaded() -> bool:
    """Whether it is worth importing NVML's bindings at all; they take 60 ms."""
    return Path("/proc/driver/nvidia").exists() or Path("/dev/nvidiactl").exists()


def _available_memory() -> int:
    """Bytes that this machine can still give, file cache included where the system tells (Linux)."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
