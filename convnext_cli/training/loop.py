"""The training loop, in straight lines. It yields what happens; who prints or stores it is not its concern."""

import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F
from accelerate import Accelerator
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_cli.data.decode import Pixels, decode_image
from convnext_cli.data.loaders import load_batches, seed_image, shuffle_batches
from convnext_cli.data.scan import Index
from convnext_cli.data.transforms import Preprocessing, transform_for_training
from convnext_cli.errors import ConvnextError, OutOfMemoryError
from convnext_cli.evaluation.metrics import Metrics, compute_metrics
from convnext_cli.inference.forward import choose_memory_format, forward_batches, prepare_input
from convnext_cli.inference.predictor import load_for_eval
from convnext_cli.recipes.machine import count_cpus, count_local_processes
from convnext_cli.recipes.recipe import Recipe
from convnext_cli.training.devices import gather_rows
from convnext_cli.training.mixing import mix_batch, smooth_targets
from convnext_cli.training.optim import Schedule, set_lr

LOSS_EVERY = 10  # steps between two readings of the loss; each one waits for the GPU


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """One optimizer step. `loss` is the epoch's mean so far, as last read."""

    epoch: int
    step: int
    steps: int
    images: int
    loss: float
    lr: float


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochDone:
    """One epoch, counted from 0. `val` is None where there is nothing to validate on."""

    epoch: int
    train_loss: float
    """Mean loss on the training images as they were shown (augmented, mixed, smoothed)."""
    val: Metrics | None
    lr: float
    seconds: float
    """Time of the training part, without validation."""
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Job:
    """What the loop works on, prepared by Accelerate."""

    model: nn.Module
    optimizer: torch.optim.Optimizer
    accelerator: Accelerator
    recipe: Recipe
    index: Index
    how: Preprocessing

    @property
    def threads(self) -> int:
        """Decoding threads of this process."""
        return max(1, count_cpus() // count_local_processes())


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


def train(job: Job) -> Iterator[StepDone | EpochDone]:
    """Trains for all epochs and yields every step and every epoch.

    The model's weights after step n depend on the recipe, the images and n alone: order, augmentation, mixing and drop
    path draw from (seed, epoch, row) and (seed, step).

    Raises:
        OutOfMemoryError: a step does not fit into the device's memory.
        ImageError: a training image cannot be read.
        ConvnextError: the loss is no longer a finite number.
    """
    recipe, accelerator = job.recipe, job.accelerator
    rank, world = accelerator.process_index, accelerator.num_processes
    rows = job.index.rows("train")
    labels = torch.tensor(job.index.labels)
    steps, schedule = plan_steps(recipe, len(rows))

    for epoch in range(recipe.epochs):
        started = time.perf_counter()
        job.model.train()
        batches = shuffle_batches(rows, recipe.batch_size, seed=recipe.seed, epoch=epoch)
        # Each rank takes every world-th image. One that goes empty-handed shows an image with weight 0.
        shares = [batch[rank::world] or batch[:1] for batch in batches]
        loss_sum = torch.zeros((), device=accelerator.device)
        shown, loss, lr = 0, float("nan"), 0.0
        for i, (share, images) in enumerate(load_batches(shares, _load_training(job, epoch), threads=job.threads)):
            step = epoch * steps + i
            lr = schedule.lr_at(step)
            set_lr(job.optimizer, lr)
            weight = 1.0 if rank < len(batches[i]) else 0.0
            loss_sum += _step(job, step, images, labels[share], weight, len(batches[i]))
            shown += len(batches[i])
            if (i + 1) % LOSS_EVERY == 0 or i + 1 == steps:
                loss = _read_loss(accelerator, loss_sum, shown, epoch)
            yield StepDone(epoch=epoch, step=i + 1, steps=steps, images=shown, loss=loss, lr=lr)
        seconds = time.perf_counter() - started
        val = validate(job)
        if val is not None and not np.isfinite(val.log_loss):
            raise _diverged(epoch, f"the validation loss is {val.log_loss}")
        yield EpochDone(epoch=epoch, train_loss=loss, val=val, lr=lr, seconds=seconds, images=shown)


def validate(job: Job) -> Metrics | None:
    """Metrics on the validation split, computed by all ranks together; None where it is empty."""
    rows = job.index.rows("val")
    if not rows:
        return None
    job.model.eval()
    rank, world = job.accelerator.process_index, job.accelerator.num_processes
    parts = forward_batches(
        job.model,
        rows[rank::world],
        load_for_eval(job.index, job.how),
        job.how,
        device=job.accelerator.device,
        batch_size=job.recipe.micro_batch_size,
        threads=job.threads,
    )
    classes = job.index.classes
    mine = torch.cat([torch.empty(0, len(classes)), *(logits for _, logits in parts)])
    logits = gather_rows(job.accelerator, mine, len(rows)).numpy()
    return compute_metrics(logits, np.array([job.index.labels[row] for row in rows]), classes)


def _step(job: Job, step: int, images: NDArray[np.uint8], labels: Tensor, weight: float, batch_images: int) -> Tensor:
    """One optimizer step on this rank's share of a batch; returns the sum of its losses, on the device.

    The gradient is that of the mean over the whole batch, however it is cut into ranks and micro-batches.
    """
    accelerator, recipe = job.accelerator, job.recipe
    device, world = accelerator.device, accelerator.num_processes
    random = np.random.default_rng((recipe.seed, step, accelerator.process_index))
    torch.manual_seed(int(random.integers(2**63)))  # drop path draws from torch's own generator
    try:
        inputs = prepare_input(images, job.how, device, choose_memory_format(device))
        targets = smooth_targets(labels.to(device), len(job.index.classes), recipe.label_smoothing)
        inputs, targets = mix_batch(inputs, targets, random, mixup=recipe.mixup, cutmix=recipe.cutmix)
        cuts = range(0, len(inputs), recipe.micro_batch_size)
        total = torch.zeros((), device=device)
        for start in cuts:
            piece = slice(start, start + recipe.micro_batch_size)
            # Only the last piece lets the ranks exchange gradients.
            with accelerator.no_sync(job.model) if start != cuts[-1] else nullcontext():
                logits = job.model(inputs[piece])  # autocast is inside the prepared model's forward
                loss = F.cross_entropy(logits.float(), targets[piece], reduction="sum") * weight
                # DistributedDataParallel averages over ranks, the batch's mean needs their sum.
                accelerator.backward(loss * (world / batch_images))
            total += loss.detach()
        job.optimizer.step()
        job.optimizer.zero_grad(set_to_none=True)
    except RuntimeError as error:
        if isinstance(error, torch.OutOfMemoryError) or "can't allocate memory" in str(error):
            raise OutOfMemoryError(
                f"the device has not enough memory for {recipe.micro_batch_size} images of {recipe.image_size} px "
                "at a time",
                f"Try --micro-batch-size {max(1, recipe.micro_batch_size // 2)}, a smaller --image-size or --model",
            ) from error
        raise
    return total


def _load_training(job: Job, epoch: int) -> Callable[[int], Pixels]:
    """A function that gives a row's image, (S, S, 3) uint8, as this epoch shows it."""
    recipe, index = job.recipe, job.index

    def load(row: int) -> Pixels:
        random = seed_image(recipe.seed, epoch, row)
        image = decode_image(index.root / index.paths[row])
        return transform_for_training(image, job.how, random, min_crop_area=recipe.min_crop_area, hflip=recipe.hflip)

    return load


def _read_loss(accelerator: Accelerator, loss_sum: Tensor, images: int, epoch: int) -> float:
    """The mean loss over all ranks so far; checks that it is finite."""
    loss = float(accelerator.reduce(loss_sum.clone(), reduction="sum")) / images
    if not np.isfinite(loss):
        raise _diverged(epoch, f"the loss is {loss}")
    return loss


def _diverged(epoch: int, why: str) -> ConvnextError:
    kept = "; the best of the epochs before is kept" if epoch else ""
    return ConvnextError(
        f"training diverged in epoch {epoch + 1}: {why}", f"Try a lower --lr or a longer --warmup-epochs{kept}"
    )
