"""One optimizer step, however small the pieces that the memory makes it take."""

import math
from contextlib import nullcontext
from dataclasses import dataclass, field

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_cli.data.scan import Index
from convnext_cli.data.transforms import Preprocessing
from convnext_cli.errors import OutOfMemoryError
from convnext_cli.inference.forward import prepare_input
from convnext_cli.recipes.machine import count_cpus, count_local_processes
from convnext_cli.recipes.recipe import Recipe
from convnext_cli.training.averaging import MovingAverage
from convnext_cli.training.checkpoint import State
from convnext_cli.training.compiling import Compiled
from convnext_cli.training.devices import (
    agree,
    clip_gradients,
    free_memory,
    is_out_of_memory,
    is_sharded,
    sum_gradients,
)  # fmt: skip
from convnext_cli.training.mixing import mix_batch, smooth_targets
from convnext_cli.training.objective import Objective
from convnext_cli.training.signals import Signals


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the loop works on, on its device."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    recipe: Recipe
    index: Index
    how: Preprocessing
    objective: Objective
    average: MovingAverage | None = None
    """The average of the weights, where one is kept."""
    signals: Signals = field(default_factory=Signals)
    """What has been asked of this process while it trains."""
    cache: bool = True
    """Whether decoded images are kept for later epochs and runs."""
    compiled: Compiled | None = None
    """The model's compiled pass, where it has one."""

    @property
    def threads(self) -> int:
        """Decoding threads of this process."""
        return max(1, count_cpus() // count_local_processes())

    def forward(self, inputs: Tensor) -> Tensor:
        """Logits (B, K) to train on, of (B, C, S, S)."""
        if self.compiled is not None and len(inputs) == self.compiled.images:
            return self.compiled.forward(inputs)
        logits: Tensor = self.model(inputs)
        return logits


@dataclass(frozen=True, kw_only=True, slots=True)
class Share:
    """What one rank shows in a step."""

    images: NDArray[np.uint8]
    """(B, S, S, 3)."""
    labels: Tensor
    """(B,) their classes."""
    weight: float
    """0 for a rank that shows an image of another's only to keep step, else 1."""
    batch_images: int
    """Images of the whole batch, over all ranks."""
    mixes: bool
    """Whether images are blended as the recipe says."""


def take_step(job: Job, state: State, share: Share) -> tuple[Tensor, int]:
    """One optimizer step on this rank's share of a batch.

    The gradient is that of the mean over the whole batch, however it is cut into ranks and micro-batches. Where a rank
    has not memory enough, all of them halve `state.micro_batch_size` and do the step anew, with the same draws.

    Returns:
        The sum of this rank's losses, on the device, NaN where the gradient is no finite number; and the signal that
        one of the ranks has received, 0 where none has.

    Raises:
        OutOfMemoryError: not even one image fits.
    """
    accelerator, optimizer = job.accelerator, job.optimizer
    while True:
        losses = torch.zeros((), device=accelerator.device)
        failed = 0
        try:
            losses += _add_gradients(job, state, share)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or is_sharded(accelerator):  # the others wait for its shards: no way back
                raise _no_memory(job, state) if is_out_of_memory(error) else error from error
            failed = 1
        failed, signal = agree(accelerator, failed, job.signals.received)
        if not failed:
            break
        optimizer.zero_grad(set_to_none=True)
        free_memory()
        used = min(state.micro_batch_size, math.ceil(share.batch_images / accelerator.num_processes))
        if used == 1:
            raise _no_memory(job, state)
        state.micro_batch_size = used // 2
    sum_gradients(accelerator, job.model)
    norm = clip_gradients(accelerator, job.model, job.recipe.clip_grad or math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.where(norm.isfinite(), losses, math.nan), signal


def _add_gradients(job: Job, state: State, share: Share) -> Tensor:
    """Forward and backward of this rank's share, piece by piece; returns the sum of its losses."""
    accelerator, recipe, size = job.accelerator, job.recipe, state.micro_batch_size
    device = accelerator.device
    random = np.random.default_rng((recipe.seed, state.step, accelerator.process_index))
    torch.manual_seed(int(random.integers(2**63)))  # drop path and dropout draw from torch's own
    inputs = prepare_input(share.images, job.how, device)
    targets = smooth_targets(share.labels.to(device), len(job.index.classes), recipe.label_smoothing)
    if share.mixes:
        inputs, targets = mix_batch(inputs, targets, random, mixup=recipe.mixup, cutmix=recipe.cutmix)
    # FSDP averages over the ranks in its last backward pass, the batch's mean needs their sum.
    scale = (accelerator.num_processes if is_sharded(accelerator) else 1) / share.batch_images
    cuts = range(0, len(inputs), size)
    total = torch.zeros((), device=device)
    for start in cuts:
        piece = slice(start, start + size)
        with accelerator.no_sync(job.model) if start != cuts[-1] else nullcontext():
            logits = job.forward(inputs[piece])  # autocast is inside the prepared model's forward
            loss = job.objective.sum_losses(logits, targets[piece]) * share.weight
            accelerator.backward(loss * scale)
        total += loss.detach()
    return total


def _no_memory(job: Job, state: State) -> OutOfMemoryError:
    size = job.recipe.image_size
    if is_sharded(job.accelerator) and state.micro_batch_size > 1:
        what, remedy = f"{state.micro_batch_size} images", f"--micro-batch-size {state.micro_batch_size // 2}, "
    else:
        what, remedy = "a single image", ""
    return OutOfMemoryError(
        f"the device has not enough memory for {what} of {size} px at a time",
        f"Try {remedy}--grad-checkpointing, a smaller --image-size or a smaller --model",
    )
