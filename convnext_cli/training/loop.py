"""The training loop, in straight lines. It yields what happens; who prints or stores it is not its concern."""

import time
from collections.abc import Generator

import numpy as np
import torch
from accelerate import Accelerator
from torch import Tensor

from convnext_cli.errors import DivergedError
from convnext_cli.images.loaders import cut_batches, load_batches
from convnext_cli.progress import Notice
from convnext_cli.recipes.settings import Settings
from convnext_cli.training.context import RankBatch, TrainingContext
from convnext_cli.training.events import EpochDone, StepDone
from convnext_cli.training.loading import draw_rows, load_training, open_training_images
from convnext_cli.training.parts.optimizer import Schedule, set_lr
from convnext_cli.training.state import TrainingState
from convnext_cli.training.step import take_step
from convnext_cli.training.validation import validate

LOSS_EVERY = 10  # steps between two readings of the loss; each one waits for the GPU


def plan_steps(settings: Settings, images: int) -> tuple[int, Schedule]:
    """Optimizer steps per epoch, none dropped, and the learning-rate schedule over all of them."""
    steps = -(-images // settings.batch_size)
    schedule = Schedule(
        peak=settings.lr,
        floor=settings.min_lr,
        warmup_steps=round(settings.warmup_epochs * steps),
        total_steps=settings.epochs * steps,
    )
    return steps, schedule


def train(context: TrainingContext, state: TrainingState) -> Generator[StepDone | EpochDone | Notice, None, None]:
    """Trains from where `state` stands to the last epoch, and yields every step and every epoch.

    The model's weights after step n depend on the recipe, the images and n alone: order, augmentation, mixing and drop
    path draw from (seed, epoch, row) and (seed, step). Whoever takes an `EpochDone` adds its line to `state.log`.

    Raises:
        OutOfMemoryError: a step with one image does not fit into the device's memory.
        ImageError: a training image cannot be read.
        DivergedError: a loss or a gradient is no finite number.
    """
    settings, accelerator = context.settings, context.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    rows = context.index.rows("train")
    labels = torch.tensor(context.index.labels)
    steps, schedule = plan_steps(settings, len(rows))
    pictures = open_training_images(context)
    trouble = None

    for epoch in range(state.epochs, settings.epochs):
        if settings.patience and count_stale(state) >= settings.patience:
            return
        started = time.perf_counter() - state.seconds
        context.model.train()
        batches = cut_batches(draw_rows(context, rows, epoch), settings.batch_size)
        # Each rank takes every world-th image. One that goes empty-handed shows an image with weight 0.
        shares = [batch[rank::world] or batch[:1] for batch in batches]
        done = state.step - epoch * steps  # of this epoch, before the run was interrupted
        shown = sum(map(len, batches[:done]))
        loss = sum(state.loss_sums) / shown if shown else float("nan")
        loss_sum = torch.tensor(sum(state.loss_sums[rank::world], 0.0), device=accelerator.device)
        loaded = load_batches(shares[done:], load_training(context, pictures, epoch), threads=context.threads)
        for i, (own, images) in enumerate(loaded, start=done):
            lr = schedule.lr_at(state.step) * 0.5**state.halvings
            set_lr(context.optimizer, lr)
            micro = state.micro_batch_size
            share = RankBatch(
                images=images,
                labels=labels[torch.tensor(own) % len(labels)],
                weight=1.0 if rank < len(batches[i]) else 0.0,
                batch_images=len(batches[i]),
                mixes=not 0 < settings.mixup_off_epoch <= epoch,
            )
            losses, signal = take_step(context, state, share)
            loss_sum += losses
            shown += len(batches[i])
            state.step += 1
            if context.ema is not None:
                context.ema.update(state.step)
            if state.micro_batch_size < micro:
                yield Notice(text=_describe_halving(context, state))
            is_due = signal > 0 or (settings.save_every > 0 and state.step % settings.save_every == 0)
            if is_due or (i + 1) % LOSS_EVERY == 0 or i + 1 == steps:
                loss = _read_loss(accelerator, state, loss_sum, shown, epoch)
                state.seconds = time.perf_counter() - started
            yield StepDone(
                epoch=epoch + 1, step=i + 1, steps=steps, images=shown, loss=loss, lr=lr, is_due=is_due, signal=signal
            )
        pictures.flush()
        if pictures.failure and not trouble:
            yield Notice(text=(trouble := pictures.failure))
        seconds = state.seconds
        lr = schedule.lr_at(state.step - 1) * 0.5**state.halvings
        val, signal = validate(context, state)
        if signal:
            yield StepDone(
                epoch=epoch + 1, step=steps, steps=steps, images=shown, loss=loss, lr=lr, is_due=True, signal=signal
            )
            return
        if val is not None and not np.isfinite(val.log_loss):
            raise _diverged(epoch, f"the validation loss is {val.log_loss}")
        state.loss_sums, state.seconds = [], 0.0
        yield EpochDone(epoch=epoch + 1, train_loss=loss, val=val, lr=lr, seconds=seconds, images=shown)


def count_stale(state: TrainingState) -> int:
    """Epochs since the best one."""
    best = state.best
    return state.epochs - best["epoch"] if best else 0


def _read_loss(accelerator: Accelerator, state: TrainingState, loss_sum: Tensor, images: int, epoch: int) -> float:
    """The mean loss over all ranks so far; checks that it is finite."""
    state.loss_sums = [float(part) for part in accelerator.gather(loss_sum.clone()).reshape(-1)]
    loss = sum(state.loss_sums) / images
    if not np.isfinite(loss):
        raise _diverged(epoch, "a loss or its gradient is no finite number")
    return loss


def _diverged(epoch: int, why: str) -> DivergedError:
    return DivergedError(
        f"training diverged in epoch {epoch + 1}: {why}", "Try a lower --lr or a longer --warmup-epochs"
    )


def _describe_halving(context: TrainingContext, state: TrainingState) -> str:
    but = ", but for drop path, which draws anew for each of them" if context.settings.drop_path else ""
    return (
        f"out of memory at step {state.step}: from here on {state.micro_batch_size} images at a time, and more "
        f"of these for a batch of {context.settings.batch_size}. The training stays the same{but}"
    )
