"""The learning-rate range test: real steps at a rising rate, from which the peak learning rate is chosen.

Source: Smith 2015, "Cyclical Learning Rates for Training Neural Networks" (arXiv:1506.01186), section 3.3.
"""

import math
from collections.abc import Sequence
from contextlib import closing
from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.images.loaders import cut_batches
from convnext_cli.progress import Progress, Steps
from convnext_cli.recipes.plan import Plan
from convnext_cli.recipes.settings import Choice
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.loading import draw_rows, load_rank_batches, open_loader
from convnext_cli.training.parts.optimizer import set_lr
from convnext_cli.training.state import TrainingState
from convnext_cli.training.step import take_step

MAX_STEPS = 60
LOW, HIGH = 1e-6, 1.0  # learning rates; ten steps per decade
SMOOTHING = 4.0  # standard deviation of the Gaussian, in steps; symmetric, so that the curve is not shifted
DIVERGED = 2.0  # times the lowest smoothed loss
RULE = "the rate with the lowest loss, smoothed, in a range test"


def find_lr_steps(context: TrainingContext, state: TrainingState) -> Steps[dict[str, Any]]:
    """Take at most `MAX_STEPS` steps, each at a higher rate, and return their rates and losses, for `lr.json`.

    It ends early if the loss rises to `DIVERGED` times its minimum. The steps are those of the run's first epochs, with
    its batches, augmentation and layer-wise rates, so they depend on the seed only. They change the model: the caller
    loads the checkpoint again.
    """
    batch_size, rows, state = context.settings.batch_size, context.index.rows("train"), deepcopy(state)
    context.model.train()
    lrs: list[float] = []
    losses: list[float] = []
    with closing(open_loader(context)) as loader:
        for epoch in range(MAX_STEPS):
            batches = cut_batches(draw_rows(context, rows, epoch), batch_size)
            batches = [batch for batch in batches if len(batch) == batch_size] or batches
            with closing(load_rank_batches(context, batches, loader, epoch)) as loaded:
                for batch in loaded:
                    lr = LOW * (HIGH / LOW) ** (state.step / (MAX_STEPS - 1))
                    set_lr(context.optimizer, lr)
                    rank_sum, _ = take_step(context, state, batch)
                    state.step += 1
                    lrs.append(lr)
                    losses.append(float(context.accelerator.gather(rank_sum.reshape(1)).sum()) / batch.batch_images)
                    yield Progress(done=state.step, total=MAX_STEPS, activity="finding the learning rate")
                    if len(losses) == MAX_STEPS or _has_diverged(losses):
                        return _make_result(lrs, losses)
    raise AssertionError("an epoch has a step at least")


def choose_lr(lrs: Sequence[float], losses: Sequence[float]) -> float | None:
    """Return the peak rate, that of the lowest smoothed loss; None if the loss never decreased.

    Smith's upper bound is where the accuracy begins to fall. A tenth of it, or the steepest descent, are usual with a
    smoothing that shifts the curve to higher rates; this one does not. On 360 chest X-rays with the built-in weights
    (64 px, 4 epochs) the lowest loss was at 0.0006 to 0.003 (3 seeds); of 0.0003, 0.0006, 0.001 and 0.003 the first had
    the highest validation loss (2 seeds). A tenth and the steepest descent gave 0.00006 to 0.001.
    """
    smooth = smooth_losses(losses)
    lowest = int(smooth.argmin())
    return lrs[lowest] if lowest else None


def smooth_losses(losses: Sequence[float]) -> NDArray[np.float64]:
    """Return the losses smoothed by a Gaussian of `SMOOTHING` steps; losses that are not finite have no weight."""
    values = np.asarray(losses, float)
    known = np.isfinite(values)
    steps = np.arange(len(values))
    weights = np.exp(-0.5 * ((steps[:, None] - steps) / SMOOTHING) ** 2) * known
    smooth: NDArray[np.float64] = (weights * np.where(known, values, 0)).sum(axis=1) / weights.sum(axis=1)
    return smooth


def apply_range_test(plan: Plan, result: dict[str, Any], steps: int) -> Plan:
    """Return the plan with the rate of a range test; with its own rate if the test is inconclusive."""
    test_steps = len(result["lr"])
    cost = f"{test_steps} steps, before the {steps:,} of the run"
    if result["chosen"] is None:
        reason = f"the range test ({cost}) is inconclusive: the loss never decreased"
        choice = replace(plan.choices["lr"], source="table", reason=reason)
    else:
        choice = Choice(value=result["chosen"], source="range test", reason=f"{result['rule']} ({cost})")
    return plan.with_choices(lr=choice)


def _has_diverged(losses: Sequence[float]) -> bool:
    if not math.isfinite(losses[-1]):
        return True
    smooth = smooth_losses(losses)
    return bool(smooth[-1] > DIVERGED * smooth.min())


def _make_result(lrs: list[float], losses: list[float]) -> dict[str, Any]:
    """Return the content of `lr.json`."""
    chosen = choose_lr(lrs, losses)
    return {
        "chosen": None if chosen is None else float(f"{chosen:.2g}"),
        "rule": RULE,
        "lr": lrs,
        "loss": [loss if math.isfinite(loss) else None for loss in losses],
        "smoothed": [float(value) for value in smooth_losses(losses)],
    }
