"""Detect the GPU, memory and CPU cores of this machine, without torch."""

import os
import shutil
from dataclasses import dataclass
from pathlib import Path

GIB = 2**30
# FLOP/s of a core with AVX-512 and native kernels: 51e9 (zepto, 64 px) to 96e9 (tiny, 224 px), 13 models, 1 thread.
CORE_FLOPS = 80e9
AVX2_FRACTION = 0.5  # half the SIMD width; not measured
WITHOUT_KERNELS = 0.6  # factor without a compiler for the native kernels


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

    def __str__(self) -> str:
        return f"{self.name}, {self.memory / GIB:.1f} GiB free"


def detect_machine(*, use_gpu: bool = True) -> Machine:
    """Return the first visible NVIDIA GPU with its free memory, or the CPU with this process's part of the memory.

    Args:
        use_gpu: False to return the CPU.
    """
    cores = count_cpus()
    if use_gpu and (gpu := _first_gpu()):
        name, free = gpu
        return Machine(name=name, is_gpu=True, memory=free, cores=cores, core_flops=estimate_core_flops())
    processes = count_local_processes()
    speed = estimate_core_flops()
    name = f"CPU ({os.uname().machine}, {cores} cores)"
    memory = _available_memory() // processes
    return Machine(name=name, is_gpu=False, memory=memory, cores=max(1, cores // processes), core_flops=speed)


def estimate_core_flops() -> float:
    """Estimate the FLOP/s of one CPU core in training, from its SIMD instructions and the presence of a C compiler."""
    cpuinfo = Path("/proc/cpuinfo")
    flags = cpuinfo.read_text() if cpuinfo.exists() else ""
    width = 1.0 if "avx512f" in flags else AVX2_FRACTION
    compiler = os.environ.get("CC", "cc").split()[0]
    return CORE_FLOPS * width * (1.0 if shutil.which(compiler) else WITHOUT_KERNELS)


def make_gpu_machine(vram: float) -> Machine:
    """Return a GPU of `vram` GiB, for planning for another machine."""
    return Machine(name="GPU", is_gpu=True, memory=round(vram * GIB), cores=1)


def count_cpus() -> int:
    """Return the number of CPUs that this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1


def has_gpu() -> bool:
    """Return True if this process can use an NVIDIA GPU."""
    return _first_gpu() is not None


def count_local_processes() -> int:
    """Return the number of processes of this run on this machine, from torchrun's environment."""
    return int(os.environ.get("LOCAL_WORLD_SIZE", "1"))


def _first_gpu() -> tuple[str, int] | None:
    """Return the name and the free bytes of the GPU that this process would use, or None."""
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
    """Return True if NVIDIA's driver is loaded; without it, importing NVML (60 ms) is pointless."""
    return Path("/proc/driver/nvidia").exists() or Path("/dev/nvidiactl").exists()


def _available_memory() -> int:
    """Return the bytes that are available, including reclaimable file cache on Linux."""
    meminfo = Path("/proc/meminfo")
    if meminfo.exists():
        for line in meminfo.read_text().splitlines():
            if line.startswith("MemAvailable:"):
                return int(line.split()[1]) * 1024
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
