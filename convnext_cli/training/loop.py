"""The training loop. It yields events; the caller saves and shows."""

import time
from collections.abc import Generator
from contextlib import closing
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from torch import Tensor

from convnext_cli.errors import DivergedError
from convnext_cli.images.loaders import cut_batches
from convnext_cli.progress import Notice
from convnext_cli.recipes.settings import Settings
from convnext_cli.text import format_count
from convnext_cli.training.compute.ranks import slice_for_rank
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import EpochDone, StepDone
from convnext_cli.training.loading import ViewLoader, draw_rows, load_rank_batches, open_loader
from convnext_cli.training.parts.optimizer import Schedule, set_lr
from convnext_cli.training.state import TrainingState
from convnext_cli.training.step import take_step
from convnext_cli.training.validation import validate

LOSS_EVERY = 10  # steps between two readings of the loss; each one waits for the GPU


def make_schedule(settings: Settings, steps: int) -> Schedule:
    """Return the learning-rate schedule of a training whose epochs have `steps` optimizer steps."""
    return Schedule(
        peak=settings.lr,
        floor=settings.min_lr,
        warmup_steps=round(settings.warmup_epochs * steps),
        total_steps=settings.epochs * steps,
    )


def train(context: TrainingContext, state: TrainingState) -> Generator[StepDone | EpochDone | Notice, None, None]:
    """Train from `state` to the last epoch; yield each step and each epoch.

    The weights after step n depend on settings, images and n only: order, augmentation, mixing and drop path draw from
    (seed, epoch, row) and (seed, step). The caller adds each epoch to `state.log`.

    Raises:
        OutOfMemoryError: a step with one image does not fit into the device's memory.
        ImageError: a training image cannot be read.
        DivergedError: a loss or a gradient is not finite.
    """
    with closing(open_loader(context)) as loader:
        yield from _train(context, state, loader)


def _train(
    context: TrainingContext, state: TrainingState, loader: ViewLoader
) -> Generator[StepDone | EpochDone | Notice, None, None]:
    settings, rows, steps = context.settings, context.index.rows("train"), context.steps_per_epoch
    schedule = make_schedule(settings, steps)
    reported_failure = False

    for epoch in range(state.epochs, settings.epochs):
        if settings.patience and (best := state.best) and state.epochs - best["epoch"] >= settings.patience:
            count = format_count(settings.patience, "epoch")
            yield Notice(
                f"stopped after epoch {state.epochs} of {settings.epochs}: no improvement in {count} (--patience)"
            )
            return
        started = time.perf_counter() - state.seconds
        context.model.train()
        batches = cut_batches(draw_rows(context, rows, epoch), settings.batch_size)
        done = state.step - epoch * steps  # steps of this epoch before the run was interrupted
        loss = EpochLoss.start(context, state, images=sum(map(len, batches[:done])))
        make_event = partial(StepDone, epoch=epoch + 1, steps=steps)
        with closing(load_rank_batches(context, batches[done:], loader, epoch)) as loaded:
            for step, batch in enumerate(loaded, start=done + 1):
                lr = schedule.lr_at(state.step) * 0.5**state.halvings
                set_lr(context.optimizer, lr)
                micro_batch_size = state.micro_batch_size
                losses, signal = take_step(context, state, batch)
                loss.add(losses, batch.batch_images)
                state.step += 1
                if context.ema is not None:
                    context.ema.update(state.step)
                if state.micro_batch_size < micro_batch_size:
                    yield _describe_smaller_batch(context, state)
                is_due = signal > 0 or (settings.save_every > 0 and state.step % settings.save_every == 0)
                if is_due or step % LOSS_EVERY == 0 or step == steps:
                    loss.read(context, state)
                    state.seconds = time.perf_counter() - started
                yield make_event(step=step, images=loss.images, loss=loss.mean, lr=lr, is_due=is_due, signal=signal)
        failure = loader.flush()
        if failure and not reported_failure:
            reported_failure = True
            yield Notice(failure)
        seconds, lr = state.seconds, schedule.lr_at(state.step - 1) * 0.5**state.halvings
        val, signal = validate(context, state)
        if signal:
            yield make_event(step=steps, images=loss.images, loss=loss.mean, lr=lr, is_due=True, signal=signal)
            return
        val_loss = None if val is None else getattr(val, context.index.task.display.loss)
        if val_loss is not None and not np.isfinite(val_loss):
            raise _diverged(state, f"the validation loss is {val_loss}")
        state.loss_sums, state.seconds = [], 0.0
        yield EpochDone(epoch=epoch + 1, train_loss=loss.mean, val=val, lr=lr, seconds=seconds, images=loss.images)


@dataclass(slots=True)
class EpochLoss:
    """Mean loss of an epoch so far. Each rank keeps its sum on its device, which is read now and then."""

    total: Tensor
    """This rank's sum of losses, on its device."""
    images: int
    """Images so far, over all ranks."""
    mean: float
    """Mean loss over all ranks, as last read."""

    @classmethod
    def start(cls, context: TrainingContext, state: TrainingState, images: int) -> "EpochLoss":
        """Return the loss of an epoch of which `images` images were trained on before the run was interrupted."""
        accelerator = context.accelerator
        total = sum(slice_for_rank(accelerator, state.loss_sums), 0.0)
        mean = sum(state.loss_sums) / images if images else float("nan")
        return cls(total=torch.tensor(total, device=accelerator.device), images=images, mean=mean)

    def add(self, losses: Tensor, images: int) -> None:
        """Add a step: this rank's sum of losses, and the images of the whole batch."""
        self.total += losses
        self.images += images

    def read(self, context: TrainingContext, state: TrainingState) -> None:
        """Gather the sums of all ranks into `state`, and compute the mean.

        Raises:
            DivergedError: it is not finite.
        """
        gathered = context.accelerator.gather(self.total.clone()).reshape(-1)
        state.loss_sums = [float(value) for value in gathered]
        self.mean = sum(state.loss_sums) / self.images
        if not np.isfinite(self.mean):
            raise _diverged(state, "a loss or its gradient is not finite")


def _diverged(state: TrainingState, reason: str) -> DivergedError:
    return DivergedError(
        f"training diverged in epoch {state.epochs + 1}: {reason}", "Try a lower --lr or a longer --warmup-epochs"
    )


def _describe_smaller_batch(context: TrainingContext, state: TrainingState) -> Notice:
    settings, images = context.settings, format_count(state.micro_batch_size, "image")
    draws = ["drop path"] * (settings.drop_path > 0) + ["dropout"] * (settings.head_dropout > 0)
    exception = f", except for the random numbers of {' and '.join(draws)}" if draws else ""
    return Notice(
        f"out of memory at step {state.step}: from here on micro-batches have {images}. "
        f"The batch size stays {settings.batch_size}, and the training is the same{exception}"
    )
