"""Running out of a device's memory: recognise it, free what can be freed, halve the batch, explain it."""

import gc
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from convnext_cli.errors import OutOfMemoryError
from convnext_cli.machine import GIB, read_gpu_memory

# Texts of errors that a smaller batch could avoid. PyTorch's allocator says "out of memory"; so do CUDA's driver
# ("CUDA error: out of memory"), Triton, NCCL, HIP, XPU and MPS. The libraries below it have their own status codes.
_TEXTS = (
    "out of memory",
    "CUBLAS_STATUS_ALLOC_FAILED",  # cuBLAS creates its handle or workspace
    "CUSOLVER_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_ALLOC_FAILED",
    "CUDNN_STATUS_INTERNAL_ERROR_DEVICE_ALLOCATION_FAILED",
    "CUDNN_STATUS_NOT_SUPPORTED",  # no algorithm fits into the memory that is left
    "unable to find an engine to execute this computation",  # the same, since cuDNN 8
    "can't allocate memory",  # the CPU's allocator
    "UR_RESULT_ERROR_OUT_OF_DEVICE_MEMORY",  # XPU's runtime
    "UR_RESULT_ERROR_OUT_OF_RESOURCES",
)
_OTHERS = GIB  # bytes of other processes that are worth naming; CUDA itself takes half a GiB


def is_out_of_memory(error: BaseException) -> bool:
    """Return True if a smaller batch could avoid the error."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    text = str(error).lower()
    return isinstance(error, RuntimeError) and any(part.lower() in text for part in _TEXTS)


def free_memory(device: torch.device) -> None:
    """Free the memory that a failed pass has left on the device."""
    gc.collect()
    if device.type != "cpu":
        torch.get_device_module(device).empty_cache()


def explain_out_of_memory(problem: str, remedy: str, device: torch.device) -> OutOfMemoryError:
    """Return the error for the user, with the memory that other processes take, if they do."""
    memory = _measure_memory(device)
    if memory is None:
        return OutOfMemoryError(problem, remedy)
    free, total, own = memory
    if (others := total - free - own) > _OTHERS:
        problem += f"; other processes use {others / GIB:.1f} of the GPU's {total / GIB:.1f} GiB"
        remedy = f"Stop them, or choose another GPU with CUDA_VISIBLE_DEVICES. {remedy}"
    return OutOfMemoryError(problem, remedy)


@contextmanager
def guard_memory(problem: str, remedy: str, device: torch.device) -> Iterator[None]:
    """Raise the error of `explain_out_of_memory` where the block runs out of memory."""
    try:
        yield
    except (RuntimeError, MemoryError) as error:
        if not is_out_of_memory(error):
            raise
        raise explain_out_of_memory(problem, remedy, device) from error


def _measure_memory(device: torch.device) -> tuple[int, int, int] | None:
    """Return a GPU's free and total bytes and those that PyTorch holds here; None for a CPU, or if nothing tells."""
    if device.type == "cpu":
        return None
    module = torch.get_device_module(device)
    try:
        free, total = module.mem_get_info(device)
        return int(free), int(total), int(module.memory_reserved(device))
    except (RuntimeError, AttributeError):  # not even a context fits, or the backend does not tell
        memory = read_gpu_memory() if device.type == "cuda" else None
        return None if memory is None else (*memory, 0)


class BatchHalver:
    """Computes batches in as few parts as the device's memory allows, and remembers the size that fitted."""

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._limit: int | None = None

    def run(
        self, compute: Callable[[NDArray[np.uint8]], tuple[Tensor, ...]], images: NDArray[np.uint8]
    ) -> tuple[Tensor, ...]:
        """Return the outputs of `compute` for images (B, S, S, 3), those of its parts put together.

        Raises:
            OutOfMemoryError: a single image does not fit.
        """
        while True:
            size = min(self._limit or len(images), len(images))
            try:
                parts = [compute(images[start : start + size]) for start in range(0, len(images), size)]
                return parts[0] if len(parts) == 1 else tuple(map(torch.cat, zip(*parts, strict=True)))
            except (RuntimeError, MemoryError) as error:
                if not is_out_of_memory(error):
                    raise
                if size == 1:
                    height, width = images.shape[1:3]
                    problem = f"the device has too little memory for a single image of {width} x {height} px"
                    raise explain_out_of_memory(problem, "Try a smaller model", self.device) from error
            free_memory(self.device)  # here, where the error no longer holds the tensors of its frames
            self._limit = size // 2
