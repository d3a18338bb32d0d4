"""Accelerate owns devices, precision and processes; what is asked of it stands here."""

import platform

import torch
from accelerate import Accelerator
from accelerate.state import AcceleratorState
from torch import Tensor

from convnext_cli.recipes.costs import GIB


def make_accelerator(amp: str) -> Accelerator:
    """The accelerator for this process. `auto` is bf16 where the GPU has it; on CPUs float32 measured faster."""
    has_gpu = torch.cuda.is_available()
    if amp == "auto":
        amp = "bf16" if has_gpu and torch.cuda.is_bf16_supported() else "no"
    AcceleratorState._reset_state()  # a second run in this process may want another precision
    # Without being told that it is on a CPU, Accelerate takes each process that torchrun starts there for a lone one.
    return Accelerator(mixed_precision=amp, cpu=not has_gpu)


def describe_device(device: torch.device) -> str:
    """The device in words."""
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        return f"{properties.name}, {properties.total_memory / GIB:.0f} GiB"
    return f"CPU ({platform.machine()}), {torch.get_num_threads()} threads"


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
