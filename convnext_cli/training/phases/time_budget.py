"""The number of epochs that fit into a time budget, measured on real steps before the training begins."""

import time
from contextlib import closing, suppress
from copy import deepcopy

from convnext_cli.errors import DivergedError
from convnext_cli.recipes.costs import describe_seconds
from convnext_cli.recipes.plan import Plan
from convnext_cli.recipes.settings import Choice
from convnext_cli.training.compute.devices import wait_for_gpu
from convnext_cli.training.compute.ranks import agree
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import StepDone
from convnext_cli.training.loop import train
from convnext_cli.training.state import TrainingState

MEASURED = 10.0  # seconds of measured training, at most
WARM_UP = 2  # steps that are not measured: they choose algorithms and fill the caches
VALIDATION = 0.5  # time of a validation image, relative to a training image; a third without decoding
RESERVE = 0.05  # fraction of the time budget for checkpoints and other load of the machine


def fit_epochs(context: TrainingContext, state: TrainingState, seconds: float) -> Plan:
    """Take real steps for a while, and return the plan with as many of its epochs as fit into `seconds`.

    The steps change the model: the caller loads the checkpoint again. The number of epochs depends on the machine and
    its load; it is written into the plan, which repeats the run.
    """
    plan, images, steps = context.plan, len(context.index.rows("train")), context.steps_per_epoch
    if steps == 1:
        _time_step(context, state)  # a warm-up
    epoch_seconds = _time_step(context, state) * steps * (1 + VALIDATION * len(context.index.rows("val")) / images)
    fitting = max(1, int(seconds * (1 - RESERVE) / epoch_seconds))
    (negated,) = agree(context.accelerator, -fitting)  # the maximum of the negated numbers: the slowest rank's
    epochs = -negated
    if epochs >= plan.settings.epochs:
        return plan
    reason = f"{describe_seconds(epoch_seconds)} per epoch here, time budget {describe_seconds(seconds)}"
    return plan.with_epochs(Choice(value=epochs, source="max-time", reason=reason))


def _time_step(context: TrainingContext, state: TrainingState) -> float:
    """Train for an epoch or `MEASURED` seconds, and return the seconds of a step, the first ones left out."""
    steps, device = context.steps_per_epoch, context.accelerator.device
    done, started, skipped = 0, time.perf_counter(), 0
    with suppress(DivergedError), closing(train(context, deepcopy(state))) as events:  # the run then halves its rate
        for event in events:
            if not isinstance(event, StepDone):
                continue
            done += 1
            if done == min(WARM_UP, steps - 1):
                wait_for_gpu(device)
                started, skipped = time.perf_counter(), done
            elapsed = time.perf_counter() - started
            (is_enough,) = agree(context.accelerator, int(elapsed > MEASURED))
            if is_enough or event.step == steps:
                break
    wait_for_gpu(device)
    return (time.perf_counter() - started) / max(1, done - skipped)
