"""The learning-rate range test: real steps at a rising rate, and the peak learning rate that they speak for.

Source: Smith 2015, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3.
"""

import math
from collections.abc import Sequence
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from convnext_cli.images.loaders import cut_batches, load_batches
from convnext_cli.progress import Progress, Steps
from convnext_cli.recipes.plan import Plan
from convnext_cli.recipes.settings import Choice
from convnext_cli.training.context import RankBatch, TrainingContext
from convnext_cli.training.loading import draw_rows, load_training, open_training_images
from convnext_cli.training.parts.optimizer import set_lr
from convnext_cli.training.state import TrainingState
from convnext_cli.training.step import take_step

MAX_STEPS = 60
LOW, HIGH = 1e-6, 1.0  # of the rate, ten steps to a decade
SMOOTHING = 4.0  # steps, standard deviation of the Gaussian; it looks both ways, so that nothing lags behind
DIVERGED = 2.0  # times the lowest smoothed loss
RULE = "the rate with the lowest loss, smoothed, in a range test"


def find_lr_steps(context: TrainingContext, state: TrainingState) -> Steps[dict[str, Any]]:
    """Take at most `MAX_STEPS` steps, each at a higher rate, and return their rates and losses, for JSON.

    It ends early where the loss has risen to `DIVERGED` times its lowest. The steps are those of the run's first
    epochs, with its batches, its augmentation and its groups' shares of the rate, so they depend on the seed alone. The
    model is not the same afterwards: the caller goes back to the checkpoint before.
    """
    accelerator, settings, state = context.accelerator, context.settings, deepcopy(state)
    rank, world = accelerator.process_index, accelerator.num_processes
    rows, labels = context.index.rows("train"), torch.tensor(context.index.labels)
    pictures = open_training_images(context)
    context.model.train()
    lrs: list[float] = []
    losses: list[float] = []
    for epoch in range(MAX_STEPS):
        batches = cut_batches(draw_rows(context, rows, epoch), settings.batch_size)
        batches = [batch for batch in batches if len(batch) == settings.batch_size] or batches
        shares = [batch[rank::world] or batch[:1] for batch in batches]
        loaded = load_batches(shares, load_training(context, pictures, epoch), threads=context.threads)
        for batch, (own, images) in zip(batches, loaded, strict=True):
            lr = LOW * (HIGH / LOW) ** (state.step / (MAX_STEPS - 1))
            set_lr(context.optimizer, lr)
            share = RankBatch(
                images=images,
                labels=labels[torch.tensor(own) % len(labels)],
                weight=1.0 if rank < len(batch) else 0.0,
                batch_images=len(batch),
                mixes=True,
            )
            sums, _ = take_step(context, state, share)
            state.step += 1
            lrs.append(lr)
            losses.append(float(accelerator.gather(sums.reshape(1)).sum()) / len(batch))
            yield Progress(done=state.step, total=MAX_STEPS, activity="finding the learning rate")
            if len(losses) == MAX_STEPS or _has_diverged(losses):
                pictures.flush()
                return _describe(lrs, losses)
    raise AssertionError("an epoch has a step at least")


def choose_lr(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """The peak rate that a range test speaks for: that of the lowest smoothed loss; None where the loss never fell.

    Smith takes for the upper bound where the accuracy begins to fall. A tenth of it, and the steepest descent, are
    usual with a smoothing that lags behind and so shifts the curve to higher rates; this one does not. On 360 chest
    X-rays with the package's weights (64 px, 4 epochs) the lowest loss was at 0.0006 to 0.003 (3 seeds); of 0.0003,
    0.0006, 0.001 and 0.003 the first had the highest validation loss (2 seeds). A tenth and the steepest descent gave
    0.00006 to 0.001.
    """
    smooth = smooth_losses(losses)
    lowest = int(smooth.argmin())
    return lrs[lowest] if lowest else None


def smooth_losses(losses: Sequence[float]) -> NDArray[np.float64]:
    """The losses with their neighbours', by a Gaussian of `SMOOTHING` steps; what is no finite number has no weight."""
    values = np.asarray(losses, float)
    known = np.isfinite(values)
    places = np.arange(len(values))
    weights = np.exp(-0.5 * ((places[:, None] - places) / SMOOTHING) ** 2) * known
    smooth: NDArray[np.float64] = (weights * np.where(known, values, 0)).sum(axis=1) / weights.sum(axis=1)
    return smooth


def use_found_lr(plan: Plan, found: dict[str, Any], steps: int) -> Plan:
    """Return the plan with the rate of a range test; with its own where the test is inconclusive."""
    own, share = plan.choices["lr"], len(found["lr"]) / steps
    cost = f"{len(found['lr'])} steps, {100 * share:.1f}% of the run"
    if found["chosen"] is None:
        choice = replace(own, source="table", reason=f"a range test ({cost}) saw no loss fall")
    else:
        choice = Choice(value=found["chosen"], source="lr sweep", reason=f"{found['rule']} ({cost})")
    return replace(plan, choices={**plan.choices, "lr": choice})


def _has_diverged(losses: Sequence[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    smooth = smooth_losses(losses)
    return bool(smooth[-1] > DIVERGED * smooth.min())


def _describe(lrs: list[float], losses: list[float]) -> dict[str, Any]:
    chosen = choose_lr(lrs, losses)
    return {
        "chosen": None if chosen is None else float(f"{chosen:.2g}"),
        "rule": RULE,
        "lr": lrs,
        "loss": [loss if math.isfinite(loss) else None for loss in losses],
        "smoothed": [float(value) for value in smooth_losses(losses)],
    }
