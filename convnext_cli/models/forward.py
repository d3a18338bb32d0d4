"""Compute logits of uint8 images; training, eval and predict share this path."""

import re
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, nullcontext
from functools import lru_cache

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.machine import get_local_rank, is_launched
from convnext_cli.models.device_memory import BatchHalver

ARCHITECTURE = re.compile(r"(sm|compute)_(\d+)(\d)")  # of compiled code, and of code that the driver compiles
VIEW_SHIFT = 16  # a view of test-time augmentation is shifted by a sixteenth of the side


@contextmanager
def use_torch_defaults() -> Iterator[None]:
    """Give the block PyTorch's default type, device and gradients; a program may have changed its own."""
    dtype, cpu = torch.get_default_dtype(), torch.device("cpu")
    device = nullcontext() if torch.get_default_device() == cpu else cpu  # which intercepts each call of torch
    torch.set_default_dtype(torch.float32)
    try:
        with device, torch.inference_mode(mode=False), torch.enable_grad():
            yield
    finally:
        torch.set_default_dtype(dtype)


def prepare_input(images: NDArray[np.uint8] | Tensor, preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Return images (B, H, W, 3) uint8 as normalised float32 (B, C, H, W) on `device`; C is 1 for grey models, else 3.

    The memory format is channels last, which timm's LayerNorm produces anyway. In the contiguous format, a training
    step of convnext_zepto_rms took 1.6 times as long (64 px, processor time).
    """
    pixels = move_to_device(torch.as_tensor(images), device)
    batch, height, width, _ = images.shape
    if preprocessing.is_grey:
        values = to_luminance(pixels.permute(0, 3, 1, 2).to(torch.float32)).view(batch, height, width)
    else:
        values = pixels.view(batch, height, -1).to(torch.float32)
    # Whole rows, (B, H, W*C): a CPU does not vectorise a loop over three channels.
    mean, std = (_repeat_on_device(part, width, device) for part in (preprocessing.mean, preprocessing.std))
    rows = values.div_(255).sub_(mean).div_(std)
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


def pin(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU in pinned memory if `device` is a CUDA GPU, which then copies it without waiting."""
    if device.type != "cuda":
        return values
    with torch.cuda.device(device):  # a new thread is on the first GPU, which another process may train on
        return values.pin_memory()


def move_to_device(values: Tensor, device: torch.device) -> Tensor:
    """Return a tensor of the CPU on `device`."""
    return pin(values, device).to(device, non_blocking=device.type == "cuda")


@lru_cache(maxsize=16)
def _repeat_on_device(values: tuple[float, ...], times: int, device: torch.device) -> Tensor:
    """Return values per channel, (C,), for each pixel of a row, (times * C,). A copy per batch would wait for a GPU."""
    with torch.inference_mode(mode=False):
        return torch.tensor(values, device=device).repeat(times)


def to_luminance(pixels: Tensor) -> Tensor:
    """Return the luminance (B, 1, H, W) of RGB (B, 3, H, W), float32 from 0 to 255, bit-identical to Pillow's.

    ITU-R 601-2 luma, 0.299 R + 0.587 G + 0.114 B, rounded. In units of 1/65536 all values are integers below 2^24,
    which float32 holds exactly. Source: Pillow, src/libImaging/Convert.c, L24.
    """
    red, green, blue = pixels.unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor().unsqueeze(1)


def choose_device() -> torch.device:
    """Return the GPU that PyTorch can use (CUDA, ROCm, XPU or MPS), or the CPU if there is none.

    Each of a launcher's processes has its own GPU, also before Accelerate makes that the current one.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of an old driver or GPU; `explain_unusable_gpu` says it in words
        for kind, module in (("cuda", torch.cuda), ("xpu", torch.xpu)):
            if module.is_available():
                device = torch.device(kind)
                if is_launched():
                    device = torch.device(kind, get_local_rank() % module.device_count())
                if kind == "xpu" or has_kernels(device):
                    return device
        if torch.backends.mps.is_available():
            return torch.device("mps")
    return torch.device("cpu")


def has_kernels(device: torch.device) -> bool:
    """Return False if PyTorch was built without kernels for a CUDA GPU, as its builds for CUDA 13 are for a V100.

    Compiled code runs on its own compute capability and on those of the same major version after it; code that the
    driver compiles runs on all after it. Source: CUDA C++ Programming Guide, binary and PTX compatibility.
    """
    built = [(kind, (int(a), int(b))) for kind, a, b in ARCHITECTURE.findall(" ".join(torch.cuda.get_arch_list()))]
    try:
        own = torch.cuda.get_device_capability(device) if built else (0, 0)
    except RuntimeError:  # such as of a full GPU, which is an error where memory is allocated
        return True
    return not built or any(code <= own and (kind == "compute" or code[0] == own[0]) for kind, code in built)


def has_native_bf16(device: torch.device) -> bool:
    """Return True if a GPU computes in bf16. V100, T4 and RTX 20 only emulate it, more slowly than float32."""
    if device.type == "cuda":
        return bool(torch.cuda.is_bf16_supported(including_emulation=False))
    return device.type == "xpu" and bool(torch.xpu.is_bf16_supported(including_emulation=False))


def make_views(inputs: Tensor, *, mirror: bool) -> list[Tensor]:
    """Return the views of test-time augmentation, each (B, C, H, W): unchanged, and shifted to the four corners.

    Args:
        inputs: (B, C, H, W).
        mirror: True to add the mirror image of each view, if training used mirrored images.
    """
    height, width = inputs.shape[-2:]
    down, right = max(1, height // VIEW_SHIFT), max(1, width // VIEW_SHIFT)
    padded = F.pad(inputs, (right, right, down, down), mode="reflect")
    corners = ((down, right), (0, 0), (0, 2 * right), (2 * down, 0), (2 * down, 2 * right))
    views = [padded[..., top : top + height, left : left + width] for top, left in corners]
    return views + ([view.flip(-1) for view in views] if mirror else [])


def split_model(model: nn.Module, inputs: Tensor, *, bf16: bool = False) -> tuple[Tensor, Tensor, Tensor]:
    """Return the feature maps of the last stage (B, C, h, w), the features before the classifier (B, D), the logits.

    Args:
        model: a timm ConvNeXt.
        inputs: (B, C, S, S).
        bf16: compute the feature maps in bf16; all that follows is float32.
    """
    with torch.autocast(inputs.device.type, torch.bfloat16, enabled=bf16):
        feature_maps = model.forward_features(inputs)  # type: ignore[operator]  # timm's models have these three
    feature_maps = feature_maps.float()
    features = model.forward_head(feature_maps, pre_logits=True)  # type: ignore[operator]
    return feature_maps, features, model.get_classifier()(features)  # type: ignore[operator]


@torch.no_grad()  # not in inference mode, in which FSDP would make tensors that training cannot change
def forward_batches(
    model: Callable[[Tensor], Tensor],
    batches: Iterable[tuple[list[int], NDArray[np.uint8]]],
    preprocessing: Preprocessing,
    device: torch.device,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yield the rows and the outputs, float32 on the CPU, of each batch in order.

    Args:
        model: a function from (B, C, H, W) to (B, K), such as a module in evaluation mode on `device`.
        batches: rows and prepared images, (B, H, W, 3) uint8, of each batch, as `load_batches` yields them.
        preprocessing: mean and std.
        device: the model's device. A batch that does not fit into its memory is computed in parts.

    Raises:
        OutOfMemoryError: a single image does not fit.
    """
    halver = BatchHalver(device)

    def compute(images: NDArray[np.uint8]) -> tuple[Tensor]:
        return (model(prepare_input(images, preprocessing, device)).float().cpu(),)

    for rows, images in batches:
        [outputs] = halver.run(compute, images)
        yield rows, outputs
