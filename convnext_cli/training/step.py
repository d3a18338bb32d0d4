"""One optimizer step, however small the pieces that the memory makes it take."""

import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from convnext_cli.errors import OutOfMemoryError
from convnext_cli.models.forward import prepare_input
from convnext_cli.training.compute.devices import (
    agree,
    clip_gradients,
    free_memory,
    is_out_of_memory,
    is_sharded,
    sum_gradients,
)  # fmt: skip
from convnext_cli.training.context import RankBatch, TrainingContext
from convnext_cli.training.parts.mixing import mix_batch, smooth_targets
from convnext_cli.training.state import TrainingState


def take_step(context: TrainingContext, state: TrainingState, share: RankBatch) -> tuple[Tensor, int]:
    """One optimizer step on this rank's share of a batch.

    The gradient is that of the mean over the whole batch, however it is cut into ranks and micro-batches. Where a rank
    has not memory enough, all of them halve `state.micro_batch_size` and do the step anew, with the same draws.

    Returns:
        The sum of this rank's losses, on the device, NaN where the gradient is no finite number; and the signal that
        one of the ranks has received, 0 where none has.

    Raises:
        OutOfMemoryError: not even one image fits.
    """
    accelerator, optimizer = context.accelerator, context.optimizer
    while True:
        losses = torch.zeros((), device=accelerator.device)
        failed = 0
        try:
            losses += _add_gradients(context, state, share)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error) or is_sharded(accelerator):  # the others wait for its shards: no way back
                raise _no_memory(context, state) if is_out_of_memory(error) else error from error
            failed = 1
        failed, signal = agree(accelerator, failed, context.signals.received)
        if not failed:
            break
        optimizer.zero_grad(set_to_none=True)
        free_memory()
        used = min(state.micro_batch_size, math.ceil(share.batch_images / accelerator.num_processes))
        if used == 1:
            raise _no_memory(context, state)
        state.micro_batch_size = used // 2
    sum_gradients(accelerator, context.model)
    norm = clip_gradients(accelerator, context.model, context.settings.clip_grad or math.inf)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.where(norm.isfinite(), losses, math.nan), signal


def _add_gradients(context: TrainingContext, state: TrainingState, share: RankBatch) -> Tensor:
    """Forward and backward of this rank's share, piece by piece; returns the sum of its losses."""
    accelerator, settings, size = context.accelerator, context.settings, state.micro_batch_size
    device = accelerator.device
    random = np.random.default_rng((settings.seed, state.step, accelerator.process_index))
    torch.manual_seed(int(random.integers(2**63)))  # drop path and dropout draw from torch's own
    inputs = prepare_input(share.images, context.preprocessing, device)
    targets = smooth_targets(share.labels.to(device), len(context.index.classes), settings.label_smoothing)
    if share.mixes:
        inputs, targets = mix_batch(inputs, targets, random, mixup=settings.mixup, cutmix=settings.cutmix)
    # FSDP averages over the ranks in its last backward pass, the batch's mean needs their sum.
    scale = (accelerator.num_processes if is_sharded(accelerator) else 1) / share.batch_images
    cuts = range(0, len(inputs), size)
    total = torch.zeros((), device=device)
    for start in cuts:
        piece = slice(start, start + size)
        with accelerator.no_sync(context.model) if start != cuts[-1] else nullcontext():
            logits = context.forward(inputs[piece])  # autocast is inside the prepared model's forward
            loss = context.criterion.sum_losses(logits, targets[piece]) * share.weight
            accelerator.backward(loss * scale)
        total += loss.detach()
    return total


def _no_memory(context: TrainingContext, state: TrainingState) -> OutOfMemoryError:
    size = context.settings.image_size
    if is_sharded(context.accelerator) and state.micro_batch_size > 1:
        what, remedy = f"{state.micro_batch_size} images", f"--micro-batch-size {state.micro_batch_size // 2}, "
    else:
        what, remedy = "a single image", ""
    return OutOfMemoryError(
        f"the device has not enough memory for {what} of {size} px at a time",
        f"Try {remedy}--grad-checkpointing, a smaller --image-size or a smaller --model",
    )
