"""The model as torch.compile writes it: for whole micro-batches in training, and for nothing else."""

import logging
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass
from typing import TypeAlias

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from convnext_cli.errors import shorten_error
from convnext_cli.kernels.blocks import use_fused_blocks
from convnext_cli.kernels.library import NoKernelError, load_kernels
from convnext_cli.training.compute.devices import THREADS, agree

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # else the compiler warns of an absent CUDA

Shape: TypeAlias = tuple[int, int, int, int]
TIMM, FAST, NATIVE = "timm", "fast", "native"  # the blocks, as State.formulation keeps them
_WORDS = {
    TIMM: "timm's own blocks",
    FAST: "blocks in a faster formulation",
    NATIVE: "blocks in a faster formulation with our own kernels",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """What a run computes with. All of it decides the last bits, so the state keeps it."""

    blocks: str = TIMM
    threads: int = THREADS
    """Of one process; more threads add up in another order."""
    compiled: bool = False

    def __str__(self) -> str:
        words = [_WORDS[self.blocks]]
        words += [f"{self.threads} of {THREADS} threads"] * (self.threads != THREADS) + ["compiled"] * self.compiled
        return ", ".join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompiledModel:
    """A compiled forward pass with a gradient."""

    forward: Callable[[Tensor], Tensor]
    images: int
    """The only number of images that it is for: each other one would be compiled anew, for half a minute or more."""


def configure_model(
    network: nn.Module, compute_config: ComputeConfig, shape: Shape, accelerator: Accelerator
) -> tuple[CompiledModel | None, list[str]]:
    """Gives a model its formulation, in place; all ranks call it. Touches no random state.

    Args:
        network: timm's, in its memory format.
        compute_config: what to compute with.
        shape: of most forward passes' input, (B, C, S, S).
        accelerator: knows the ranks.

    Returns:
        The compiled pass, where one is asked for, and what went wrong on any rank, if anything did.
    """
    torch.set_num_threads(compute_config.threads)
    missing = explain_missing_kernels() if compute_config.blocks == NATIVE else ""
    if compute_config.blocks != TIMM:
        use_fused_blocks(network, native=compute_config.blocks == NATIVE and not missing)
    problems = [missing] if missing else []
    if not compute_config.compiled:
        return None, problems
    compiled, problem = None, ""
    try:
        compiled = CompiledModel(forward=torch.compile(network.train(), dynamic=False), images=shape[0])
        run_pass(compiled.forward, draw_inputs(shape))
        network.zero_grad(set_to_none=True)
    except Exception as error:  # the compiler's errors share no base class; torch's wrappers of them do not either
        problem = shorten_error(error)
    (failed,) = agree(accelerator, int(bool(problem)))
    if failed:
        return None, [*problems, describe_failure(problem or "in another process")]
    return compiled, problems


def describe_failure(why: str) -> str:
    """What a user should know where the model could not be compiled."""
    return f"the model cannot be compiled here ({why}), so it runs as it is"


def explain_missing_kernels() -> str:
    """What a user should know where there are no kernels for `NATIVE` blocks; nothing where there are."""
    try:
        load_kernels()
    except NoKernelError as error:
        return f"a C compiler (gcc) would make training faster here: {error}"
    return ""


def configured_copy(network: nn.Module, blocks: str) -> nn.Module:
    """A copy to measure with, in training mode."""
    model = deepcopy(network).train()
    if blocks != TIMM:
        use_fused_blocks(model, native=blocks == NATIVE)
    return model


def draw_inputs(shape: Shape) -> Tensor:
    """Noise to measure with, of that shape."""
    with torch.random.fork_rng(devices=[]):
        return torch.randn(shape).to(memory_format=torch.channels_last)


def run_pass(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> None:
    """One forward and backward pass, which draws nothing that others would see."""
    with torch.random.fork_rng(devices=[]):
        logits = forward(inputs).float()
        torch.autograd.backward(F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)))
