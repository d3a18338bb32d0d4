from types import SimpleNamespace

import numpy as np
import pytest
import torch

from convnext_cli.errors import OutOfMemoryError
from convnext_cli.machine import GIB
from convnext_cli.models import device_memory
from convnext_cli.models.device_memory import BatchHalver, explain_out_of_memory, guard_memory, is_out_of_memory

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    "error",
    [
        torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 2.00 GiB. GPU 0 has a total capacity of …"),
        RuntimeError(
            "CUDA error: out of memory\nCUDA kernel errors might be asynchronously reported at some other API"
        ),
        RuntimeError("cuDNN error: CUDNN_STATUS_ALLOC_FAILED"),
        RuntimeError("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`"),
        RuntimeError(
            "cuDNN error: CUDNN_STATUS_NOT_SUPPORTED. This error may appear if you passed in a non-contiguous"
        ),
        RuntimeError("GET was unable to find an engine to execute this computation"),
        RuntimeError("Triton Error [CUDA]: out of memory"),
        RuntimeError("NCCL Error 1: unhandled cuda error … Cuda failure 2 'out of memory'"),
        RuntimeError("MPS backend out of memory (MPS allocated: 9.0 GB)"),
        RuntimeError("XPU out of memory. Tried to allocate 2 GiB"),
        RuntimeError("[enforce fail at alloc_cpu.cpp:118] . DefaultCPUAllocator: can't allocate memory"),
        MemoryError(),
    ],
)
def test_texts_of_all_libraries_are_recognised(error: Exception) -> None:
    assert is_out_of_memory(error)


@pytest.mark.parametrize(
    "error", [RuntimeError("mat1 and mat2 shapes cannot be multiplied"), ValueError("out of memory")]
)
def test_other_errors_are_not(error: Exception) -> None:
    assert not is_out_of_memory(error)
    with pytest.raises(type(error)), guard_memory("problem", "Remedy", CPU):
        raise error


def test_batch_is_halved_until_it_fits_and_stays_so() -> None:
    sizes: list[int] = []

    def compute(images: np.ndarray[tuple[int, ...], np.dtype[np.uint8]]) -> tuple[torch.Tensor, torch.Tensor]:
        sizes.append(len(images))
        if len(images) > 3:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        values = torch.from_numpy(images[:, 0, 0, :1].astype(np.float32))
        return values, 2 * values

    halver = BatchHalver(CPU)
    images = np.arange(10, dtype=np.uint8)[:, None, None, None]
    one, two = halver.run(compute, images)
    assert one.squeeze(1).tolist() == list(range(10))
    assert two.squeeze(1).tolist() == list(range(0, 20, 2))
    assert sizes == [10, 5, 2, 2, 2, 2, 2]
    sizes.clear()
    halver.run(compute, images)
    assert sizes == [2] * 5


def test_single_image_that_does_not_fit_is_an_error() -> None:
    def compute(_: object) -> tuple[torch.Tensor]:
        raise RuntimeError("CUDA error: out of memory")

    with pytest.raises(OutOfMemoryError, match="a single image of 32 x 32 px"):
        BatchHalver(CPU).run(compute, np.zeros((4, 32, 32, 3), np.uint8))


@pytest.mark.parametrize("has_context", [True, False])
def test_memory_of_other_processes_is_named(has_context: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    def get_info(_: object) -> tuple[int, int]:
        if has_context:
            return GIB // 4, 80 * GIB
        raise RuntimeError("CUDA error: out of memory")

    module = SimpleNamespace(mem_get_info=get_info, memory_reserved=lambda _: 10 * GIB if has_context else 0)
    monkeypatch.setattr(torch, "get_device_module", lambda _: module)
    monkeypatch.setattr(device_memory, "read_gpu_memory", lambda: (GIB // 4, 80 * GIB))
    error = explain_out_of_memory("the device has too little memory", "Try a smaller --model", torch.device("cuda"))
    used = 69.8 if has_context else 79.8
    assert str(error) == (
        f"the device has too little memory; other processes use {used} of the GPU's 80.0 GiB. "
        "Stop them, or choose another GPU with CUDA_VISIBLE_DEVICES. Try a smaller --model."
    )
    module.memory_reserved = lambda _: 79 * GIB
    if has_context:
        alone = explain_out_of_memory("it is full", "Remedy", torch.device("cuda"))
        assert str(alone) == "it is full. Remedy.", "its own memory is not another process's"
