"""The compute configuration of a training: blocks, kernels, threads, and whether the model is compiled.

Only training passes of whole micro-batches are compiled; torch.compile would compile each other shape again. On a CUDA
GPU their kernels are recorded as CUDA graphs, which compute smaller batches too, filled up with zeros. To start the
kernels one by one takes the processor nearly as long as they run on an H200, 29 of 31 ms (convnext_tiny, 128 images of
224 px); as graphs, 13 ms (`benchmarks/README.md`).
"""

import logging
import threading
from collections.abc import Callable
from copy import deepcopy
from dataclasses import dataclass, replace
from typing import TypeAlias, cast

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from torch import Tensor, nn

from convnext_cli.errors import shorten_error
from convnext_cli.kernels.blocks import use_fused_blocks
from convnext_cli.kernels.library import NoKernelError, load_kernels
from convnext_cli.models.device_memory import free_memory
from convnext_cli.progress import Notice
from convnext_cli.text import format_count
from convnext_cli.training.compute.devices import THREADS, is_plain_cpu, is_whole_on_gpu
from convnext_cli.training.compute.ranks import agree, is_sharded

logging.getLogger("torch.utils.cpp_extension").setLevel(logging.ERROR)  # torch.compile warns if CUDA is missing

Shape: TypeAlias = tuple[int, int, int, int]
TIMM, FAST, NATIVE = "timm", "fast", "native"  # values of `TrainingState.blocks`
RECORDING = 3  # passes until both graphs are recorded: PyTorch's first runs as it is, its second is recorded
_WORDS = {
    TIMM: "timm's own blocks",
    FAST: "fused blocks",
    NATIVE: "fused blocks with native CPU kernels",
}


@dataclass(frozen=True, kw_only=True, slots=True)
class ComputeConfig:
    """Blocks, threads and compilation of a run; the training state keeps them, because they decide the rounding."""

    blocks: str = TIMM
    threads: int = THREADS
    """Threads of one process; their number decides the order of summation."""
    compiled: bool = False
    recomputed: tuple[int, ...] | None = None
    """Channels of the native blocks that compute their hidden values again; None for those below `kernels.mlp.WIDE`."""

    def __str__(self) -> str:
        threads = f"{self.threads} of {format_count(THREADS, 'thread')}"
        words = [_WORDS[self.blocks]] + [threads] * (self.threads != THREADS) + ["compiled"] * self.compiled
        return ", ".join(words)


@dataclass(frozen=True, kw_only=True, slots=True)
class CompiledModel:
    """A compiled forward pass with a gradient."""

    forward: Callable[[Tensor], Tensor]
    images: int
    """The batch size that it was compiled for."""
    has_graphs: bool = False
    """True if it is recorded as CUDA graphs, which keep the memory of a pass."""

    def takes(self, images: int) -> bool:
        """Return True if it computes batches of this size.

        With graphs, smaller ones too: uncompiled, they would need memory beside that of the graphs.
        """
        return images == self.images or (self.has_graphs and images < self.images)

    def compute(self, inputs: Tensor) -> Tensor:
        """Return the logits (B, K) of inputs (B, C, H, W); a smaller batch is filled up with zeros."""
        images = len(inputs)
        if images < self.images:
            rows = inputs.permute(0, 2, 3, 1)  # in the order of their memory
            filled = rows.new_zeros(self.images, *rows.shape[1:])
            filled[:images] = rows
            inputs = filled.permute(0, 3, 1, 2)
        return self.forward(inputs)[:images]


def can_record(accelerator: Accelerator, passes: int) -> bool:
    """Return True if passes can be recorded as CUDA graphs, where a step has `passes`.

    A graph's gradients lie in its own memory, which its next pass overwrites: gradients of several cannot be added up.
    Before 2.14, PyTorch records in the main thread only.
    """
    is_main = threading.current_thread() is threading.main_thread()
    return is_whole_on_gpu(accelerator) and torch.version.hip is None and passes == 1 and is_main


def configure_model(
    network: nn.Module,
    compute_config: ComputeConfig,
    shape: Shape,
    accelerator: Accelerator,
    *,
    passes: int = 1,
    copies: int = 0,
) -> tuple[CompiledModel | None, list[Notice]]:
    """Apply a compute configuration to a model, in place. All ranks call it. It draws no random numbers.

    Args:
        network: timm's model, in its memory format.
        compute_config: the configuration.
        shape: input shape of most forward passes, (B, C, H, W).
        accelerator: connects the ranks.
        passes: forward and backward passes of a step.
        copies: of the parameters, which the training allocates later, for optimizer and average. Graphs leave memory
            for them: they keep theirs, and the first optimizer step cannot be repeated in smaller pieces.

    Returns:
        The compiled forward pass, or None; and a notice for each part of the configuration that failed on any rank.
    """
    torch.set_num_threads(compute_config.threads)
    missing = explain_missing_kernels() if compute_config.blocks == NATIVE else ""
    if compute_config.blocks != TIMM:
        native = compute_config.blocks == NATIVE and not missing
        use_fused_blocks(network, native=native, recomputed=compute_config.recomputed)
    notices = [Notice(missing)] if missing else []
    if not compute_config.compiled:
        return None, notices
    compiled, problem = None, ""
    has_graphs = can_record(accelerator, passes)
    try:
        compiled = _compile(network.train(), draw_inputs(shape, accelerator.device), copies, has_graphs=has_graphs)
    except Exception as error:  # the compiler's errors share no base class
        problem = shorten_error(error)
        network.zero_grad(set_to_none=True)
    (failed,) = agree(accelerator, int(bool(problem)))
    if failed:
        if has_graphs:
            drop_compiled_models(accelerator.device)
        return None, [*notices, describe_compile_failure(problem or "in another process")]
    return compiled, notices


def _compile(network: nn.Module, inputs: Tensor, copies: int, *, has_graphs: bool) -> CompiledModel:
    """Compile a model's passes of the shape of `inputs`, and record them as graphs, with memory left for `copies`."""
    if has_graphs:  # cuDNN searches its algorithms here: memory that it takes in a graph would stay there
        run_pass(network, inputs)
        network.zero_grad(set_to_none=True)
        free_memory(inputs.device)
    reserved = [torch.empty_like(value) for value in network.parameters() for _ in range(copies * has_graphs)]
    forward = compile_model(network, has_graphs=has_graphs)
    for _ in range(RECORDING if has_graphs else 1):
        run_pass(forward, inputs)
        network.zero_grad(set_to_none=True)
    del reserved
    return CompiledModel(forward=forward, images=len(inputs), has_graphs=has_graphs)


def adapt_to_device(config: ComputeConfig, accelerator: Accelerator) -> tuple[ComputeConfig, Notice | None]:
    """Return the configuration of a run as this device can compute it, with a notice if it differs."""
    blocks = config.blocks
    if is_sharded(accelerator):  # fused blocks read the weights of layers whose shards are gathered in their forward
        blocks = TIMM
    elif blocks == NATIVE and accelerator.device.type != "cpu":
        blocks = FAST
    compiled = config.compiled and (is_whole_on_gpu(accelerator) or is_plain_cpu(accelerator))
    adapted = replace(config, blocks=blocks, compiled=compiled)
    if adapted == config:
        return config, None
    return adapted, Notice(f"the run began with {config} and goes on with {adapted}: its results round differently")


def compile_model(network: nn.Module, *, has_graphs: bool) -> nn.Module:
    """Return a model that compiles with its first pass; with graphs, it records them with its next ones."""
    mode = "reduce-overhead" if has_graphs else None
    return cast("nn.Module", torch.compile(network, dynamic=False, mode=mode))


def drop_compiled_models(device: torch.device) -> None:
    """Forget all compiled models, which nobody may use any more, and free the memory of their CUDA graphs.

    PyTorch compiles the same code at most eight times; the ninth training of a process would not be compiled.
    """
    torch.compiler.reset()
    free_memory(device)


def describe_compile_failure(reason: str) -> Notice:
    """Return the notice that the model could not be compiled."""
    return Notice(f"the model cannot be compiled here ({reason}); it trains without")


def explain_missing_kernels() -> str:
    """Return why the native kernels are missing, for the user; an empty string if they are there."""
    try:
        load_kernels()
    except NoKernelError as error:
        return f"a C compiler (gcc) would make training faster here: {error}"
    return ""


def copy_model(network: nn.Module, blocks: str, recomputed: tuple[int, ...] | None = None) -> nn.Module:
    """Return a copy of the model in training mode, with the blocks of a compute configuration."""
    model = deepcopy(network).train()
    if blocks != TIMM:
        use_fused_blocks(model, native=blocks == NATIVE, recomputed=recomputed)
    return model


def draw_inputs(shape: Shape, device: torch.device) -> Tensor:
    """Return noise of a shape (B, C, H, W) on a device, without touching the random state."""
    with torch.random.fork_rng(devices=[]):
        return torch.randn(shape).to(device, memory_format=torch.channels_last)


def run_pass(forward: Callable[[Tensor], Tensor], inputs: Tensor) -> None:
    """Do one forward and backward pass, without touching the random state."""
    device = inputs.device
    is_cpu = device.type == "cpu"
    with torch.random.fork_rng([] if is_cpu else [device.index or 0], device_type="cuda" if is_cpu else device.type):
        logits = forward(inputs).float()
        labels = torch.zeros(len(logits), dtype=torch.long, device=logits.device)
        torch.autograd.backward(F.cross_entropy(logits, labels))
