"""One optimizer step, with micro-batches as small as the memory needs."""

import math
from contextlib import nullcontext

import numpy as np
import torch
from torch import Tensor

from convnext_cli.errors import OutOfMemoryError
from convnext_cli.images.preprocessing import describe_size
from convnext_cli.models.device_memory import explain_out_of_memory, free_memory, is_out_of_memory
from convnext_cli.models.forward import move_to_device, prepare_input
from convnext_cli.training.compute.devices import search_algorithms
from convnext_cli.training.compute.ranks import agree, clip_gradients, is_sharded, sum_gradients
from convnext_cli.training.context import RankBatch, TrainingContext
from convnext_cli.training.parts.mixing import mix_batch
from convnext_cli.training.state import TrainingState


def take_step(context: TrainingContext, state: TrainingState, batch: RankBatch) -> tuple[Tensor, int]:
    """Do one optimizer step on this rank's slice of a batch.

    The gradient is that of the mean loss over the whole batch, for any number of ranks and micro-batches. If a rank
    runs out of memory, all ranks halve `state.micro_batch_size` and repeat the step, with the same draws.

    Returns:
        The sum of this rank's losses, on the device, NaN if the gradient is not finite; and the number of the signal
        that a rank has received, 0 if none has. In fp16 a gradient may overflow: the step is then left out, and the
        next losses are scaled less.

    Raises:
        OutOfMemoryError: not even one image fits.
    """
    accelerator, optimizer = context.accelerator, context.optimizer
    while True:
        losses = torch.zeros((), device=accelerator.device)
        failed = 0
        try:
            losses += _accumulate_gradients(context, state, batch)
        except (RuntimeError, MemoryError) as error:
            if not is_out_of_memory(error):
                raise
            if is_sharded(accelerator):  # the others wait for its shards
                raise _out_of_memory(context, state) from error
            failed = 1
        failed, signal = agree(accelerator, failed, context.signals.received)
        if not failed:
            break
        optimizer.zero_grad(set_to_none=True)
        context.drop_compiled()  # it was compiled for larger micro-batches
        free_memory(accelerator.device)
        size = min(state.micro_batch_size, math.ceil(batch.batch_images / accelerator.num_processes))
        if size == 1:
            raise _out_of_memory(context, state)
        state.micro_batch_size = size // 2
    sum_gradients(accelerator, context.parameters)
    scaler = accelerator.scaler
    if scaler is not None:
        scaler.unscale_(optimizer)
    norm = clip_gradients(accelerator, context.parameters, context.settings.clip_grad or math.inf)
    if scaler is not None:
        scaler.step(optimizer)
        scaler.update()
        norm = torch.zeros_like(norm)  # the scaler has checked the gradient
    else:
        optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return torch.where(norm.isfinite(), losses, math.nan), signal


def _accumulate_gradients(context: TrainingContext, state: TrainingState, batch: RankBatch) -> Tensor:
    """Do the forward and backward passes of this rank's micro-batches, and return the sum of their losses."""
    accelerator, settings, size = context.accelerator, context.settings, state.micro_batch_size
    device = accelerator.device
    random = np.random.default_rng((settings.seed, state.step, accelerator.process_index))
    torch.manual_seed(int(random.integers(2**63)))  # drop path and dropout draw from torch's generator
    inputs = prepare_input(batch.images, context.preprocessing, device)
    targets = move_to_device(context.criterion.encode(batch.targets), device)
    if context.distillation is not None and batch.teacher is not None:
        targets = context.distillation.loss.join_targets(targets, move_to_device(batch.teacher, device))
    if not 0 < settings.mixup_off_epoch <= state.epochs:
        inputs, targets = mix_batch(inputs, targets, random, mixup=settings.mixup, cutmix=settings.cutmix)
    # FSDP averages the gradients over the ranks; the mean over the batch needs their sum.
    scale = (accelerator.num_processes if is_sharded(accelerator) else 1) / batch.batch_images
    starts = range(0, _count_images(context, batch), size)
    criterion = context.criterion if context.distillation is None else context.distillation.loss
    total = torch.zeros((), device=device)
    for start in starts:
        is_own = start < len(inputs)
        micro_batch = slice(start, start + size) if is_own else slice(0, 1)
        is_whole = context.searches_algorithms and len(inputs[micro_batch]) == min(size, context.rank_batch_size)
        waits = accelerator.no_sync(context.model) if start != starts[-1] else nullcontext()
        with waits, search_algorithms(is_whole):
            outputs = context.forward(inputs[micro_batch])  # the prepared model's forward has autocast
            loss = criterion.sum_losses(outputs, targets[micro_batch]) * (batch.weight if is_own else 0.0)
            accelerator.backward(loss * scale)
        total += loss.detach()
    return total


def _count_images(context: TrainingContext, batch: RankBatch) -> int:
    """Return the images that each rank computes: its own; those of the largest slice if they exchange parameters."""
    if is_sharded(context.accelerator):
        return -(-batch.batch_images // int(context.accelerator.num_processes))
    return len(batch.images)


def _out_of_memory(context: TrainingContext, state: TrainingState) -> OutOfMemoryError:
    size = describe_size(context.preprocessing)
    if is_sharded(context.accelerator) and state.micro_batch_size > 1:
        images, option = f"{state.micro_batch_size} images", f"--micro-batch-size {state.micro_batch_size // 2}, "
    else:
        images, option = "a single image", ""
    return explain_out_of_memory(
        f"the device has too little memory for {images} of {size} px at a time",
        f"Try {option}--grad-checkpointing, a smaller --image-size or a smaller --model",
        context.accelerator.device,
    )
