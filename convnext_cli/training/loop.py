"""The training loop, in straight lines. It yields what happens; who prints or stores it is not its concern."""

import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from itertools import islice
from pathlib import Path

import numpy as np
import torch
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor

from convnext_cli.data.augmentation import Augmentation
from convnext_cli.data.cache import Pictures
from convnext_cli.data.decode import Pixels, decode_image
from convnext_cli.data.loaders import balance_rows, cut_batches, load_batches, seed_image, shuffle_rows
from convnext_cli.data.transforms import augment_view, find_stored_side, reduce_image, transform_for_training
from convnext_cli.errors import DivergedError
from convnext_cli.evaluation.metrics import Metrics, compute_metrics
from convnext_cli.inference.answers import load_for_eval, open_for_eval
from convnext_cli.inference.forward import forward_batches
from convnext_cli.recipes.recipe import Recipe
from convnext_cli.recipes.tables import AUGMENTATION_SETTINGS
from convnext_cli.training.checkpoint import State
from convnext_cli.training.devices import agree, gather_rows
from convnext_cli.training.optim import Schedule, set_lr
from convnext_cli.training.step import Job, Share, take_step

LOSS_EVERY = 10  # steps between two readings of the loss; each one waits for the GPU


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """One optimizer step. Epochs and steps are counted from 1; `loss` is the epoch's mean so far, as last read."""

    epoch: int
    step: int
    steps: int
    images: int
    loss: float
    lr: float
    is_due: bool
    """Whether the state after it is to be saved; it is then known to be finite."""
    signal: int
    """The signal that asks to stop here, 0 where none does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochDone:
    """One epoch, counted from 1; 0 is the head-only phase. `val` is None without a validation split."""

    epoch: int
    train_loss: float
    """Mean loss on the training images as they were shown (augmented, mixed, smoothed)."""
    val: Metrics | None
    lr: float
    seconds: float
    """Time of the training part, without validation."""
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Remark:
    """Something that the user should know, and that needs nothing of them."""

    text: str


def plan_steps(recipe: Recipe, images: int) -> tuple[int, Schedule]:
    """Optimizer steps per epoch, none dropped, and the learning-rate schedule over all of them."""
    steps = -(-images // recipe.batch_size)
    schedule = Schedule(
        peak=recipe.lr,
        floor=recipe.min_lr,
        warmup_steps=round(recipe.warmup_epochs * steps),
        total_steps=recipe.epochs * steps,
    )
    return steps, schedule


def train(job: Job, state: State) -> Iterator[StepDone | EpochDone | Remark]:
    """Trains from where `state` stands to the last epoch, and yields every step and every epoch.

    The model's weights after step n depend on the recipe, the images and n alone: order, augmentation, mixing and drop
    path draw from (seed, epoch, row) and (seed, step). Whoever takes an `EpochDone` adds its line to `state.log`.

    Raises:
        OutOfMemoryError: a step with one image does not fit into the device's memory.
        ImageError: a training image cannot be read.
        DivergedError: a loss or a gradient is no finite number.
    """
    recipe, accelerator = job.recipe, job.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    rows = job.index.rows("train")
    labels = torch.tensor(job.index.labels)
    steps, schedule = plan_steps(recipe, len(rows))
    pictures = open_pictures(job)
    trouble = None

    for epoch in range(state.epochs, recipe.epochs):
        if recipe.patience and count_stale(state) >= recipe.patience:
            return
        started = time.perf_counter() - state.seconds
        job.model.train()
        batches = cut_batches(draw_rows(job, rows, epoch), recipe.batch_size)
        # Each rank takes every world-th image. One that goes empty-handed shows an image with weight 0.
        shares = [batch[rank::world] or batch[:1] for batch in batches]
        done = state.step - epoch * steps  # of this epoch, before the run was interrupted
        shown = sum(map(len, batches[:done]))
        loss = sum(state.loss_sums) / shown if shown else float("nan")
        loss_sum = torch.tensor(sum(state.loss_sums[rank::world], 0.0), device=accelerator.device)
        loaded = load_batches(shares[done:], load_training(job, pictures, epoch), threads=job.threads)
        for i, (own, images) in enumerate(loaded, start=done):
            lr = schedule.lr_at(state.step) * 0.5**state.halvings
            set_lr(job.optimizer, lr)
            micro = state.micro_batch_size
            share = Share(
                images=images,
                labels=labels[torch.tensor(own) % len(labels)],
                weight=1.0 if rank < len(batches[i]) else 0.0,
                batch_images=len(batches[i]),
                mixes=not 0 < recipe.mixup_off_epoch <= epoch,
            )
            losses, signal = take_step(job, state, share)
            loss_sum += losses
            shown += len(batches[i])
            state.step += 1
            if job.average is not None:
                job.average.update(state.step)
            if state.micro_batch_size < micro:
                yield Remark(text=_describe_halving(job, state))
            is_due = signal > 0 or (recipe.save_every > 0 and state.step % recipe.save_every == 0)
            if is_due or (i + 1) % LOSS_EVERY == 0 or i + 1 == steps:
                loss = _read_loss(accelerator, state, loss_sum, shown, epoch)
                state.seconds = time.perf_counter() - started
            yield StepDone(
                epoch=epoch + 1, step=i + 1, steps=steps, images=shown, loss=loss, lr=lr, is_due=is_due, signal=signal
            )
        pictures.flush()
        if pictures.trouble and not trouble:
            yield Remark(text=(trouble := pictures.trouble))
        seconds = state.seconds
        lr = schedule.lr_at(state.step - 1) * 0.5**state.halvings
        val, signal = validate(job, state)
        if signal:
            yield StepDone(
                epoch=epoch + 1, step=steps, steps=steps, images=shown, loss=loss, lr=lr, is_due=True, signal=signal
            )
            return
        if val is not None and not np.isfinite(val.log_loss):
            raise _diverged(epoch, f"the validation loss is {val.log_loss}")
        state.loss_sums, state.seconds = [], 0.0
        yield EpochDone(epoch=epoch + 1, train_loss=loss, val=val, lr=lr, seconds=seconds, images=shown)


def count_stale(state: State) -> int:
    """Epochs since the best one."""
    best = state.best
    return state.epochs - best["epoch"] if best else 0


def draw_rows(job: Job, rows: Sequence[int], epoch: int) -> list[int]:
    """The training images in the order of an epoch; `balance_rows` says what numbers above the index's length are."""
    recipe = job.recipe
    if recipe.sampler == "balanced":
        return balance_rows(rows, job.index.labels, seed=recipe.seed, epoch=epoch)
    return shuffle_rows(rows, seed=recipe.seed, epoch=epoch)


def validate(job: Job, state: State) -> tuple[Metrics | None, int]:
    """Metrics on the validation split, computed by all ranks together; None where it is empty.

    Where an average of the weights is kept, it is the average that is asked. A signal cuts it short: it may take longer
    than whoever sent it will wait. The second value is its number, else 0.
    """
    rows = job.index.rows("val")
    if not rows:
        return None, 0
    with job.average.in_place() if job.average else nullcontext():
        logits, signal = _ask_all(job, state, rows)
    if logits is None:
        return None, signal
    labels = np.array([job.index.labels[row] for row in rows])
    return compute_metrics(logits, labels, job.index.classes), 0


def _ask_all(job: Job, state: State, rows: Sequence[int]) -> tuple[NDArray[np.float32] | None, int]:
    """Logits of rows, (N, K); None where a signal came in between, and its number."""
    job.model.eval()
    rank, world = job.accelerator.process_index, job.accelerator.num_processes
    parts = forward_batches(
        job.model,
        rows[rank::world],
        load_for_eval(job.index, job.how, cache=job.cache),
        job.how,
        device=job.accelerator.device,
        batch_size=state.micro_batch_size,
        threads=job.threads,
    )
    mine = [torch.empty(0, len(job.index.classes))]
    for _ in range(-(-len(rows) // (world * state.micro_batch_size))):  # as often on every rank
        mine += [logits for _, logits in islice(parts, 1)]
        (signal,) = agree(job.accelerator, job.signals.received)
        if signal:
            return None, signal
    return gather_rows(job.accelerator, torch.cat(mine), len(rows)).numpy(), 0


def open_pictures(job: Job) -> Pictures:
    """The training images at the size that crops are taken from, with the cache or without it the same.

    Where nothing is cropped, they are the evaluation's own pictures, and the same to the pixel.
    """
    if job.recipe.min_crop_area == 1:
        return open_for_eval(job.index, job.how, cache=job.cache)
    side, how = find_stored_side(job.recipe.image_size, job.recipe.min_crop_area), job.how

    def make(path: Path) -> Pixels:
        return reduce_image(decode_image(path, at_least=side), side, how)

    purpose = f"training, shorter side at most {side} px, {how.interpolation}"
    return Pictures(job.index.root, purpose, make, keep=job.cache)


def load_training(job: Job, pictures: Pictures, epoch: int) -> Callable[[int], Pixels]:
    """A function that gives a row's image, (S, S, 3) uint8, as this epoch shows it."""
    recipe, paths = job.recipe, job.index.paths
    wanted = Augmentation(**{name: getattr(recipe, name) for name in AUGMENTATION_SETTINGS})
    transform = augment_view if wanted.min_crop_area == 1 else transform_for_training

    def load(draw: int) -> Pixels:
        image = pictures.read(paths[draw % len(paths)])
        return transform(image, job.how, seed_image(recipe.seed, epoch, draw), wanted)

    return load


def _read_loss(accelerator: Accelerator, state: State, loss_sum: Tensor, images: int, epoch: int) -> float:
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


def _describe_halving(job: Job, state: State) -> str:
    but = ", but for drop path, which draws anew for each of them" if job.recipe.drop_path else ""
    return (
        f"out of memory at step {state.step}: from here on {state.micro_batch_size} images at a time, and more "
        f"of these for a batch of {job.recipe.batch_size}. The training stays the same{but}"
    )
