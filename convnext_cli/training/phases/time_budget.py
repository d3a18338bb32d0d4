"""How many epochs fit into a given time: measured on real steps before the training begins."""

import time
from copy import deepcopy

from convnext_cli.recipes.costs import describe_seconds
from convnext_cli.recipes.plan import Plan
from convnext_cli.recipes.settings import Choice
from convnext_cli.training.compute.devices import agree
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import StepDone
from convnext_cli.training.loop import plan_steps, train
from convnext_cli.training.state import TrainingState

MEASURED = 10.0  # seconds of training that are measured, at most
WARM_UP = 2  # steps that are not: they find their algorithms and fill the caches
VALIDATION = 0.5  # of a training image's time goes into one of validation; a third in theory, where decoding is free
RESERVE = 0.05  # of the time, for checkpoints and for what else the machine does


def fit_epochs(context: TrainingContext, state: TrainingState, seconds: float) -> Plan:
    """Take real steps for a while, and return a plan of fewer epochs where those of the plan do not fit into `seconds`.

    The model is not the same afterwards: the caller goes back to the checkpoint before. A plan so fitted depends on
    the machine and the moment; the number of epochs that came of it is written down, and repeats the run.
    """
    plan = context.plan
    steps, _ = plan_steps(context.settings, len(context.index.rows("train")))
    done, began, first = 0, time.perf_counter(), 0.0
    for event in train(context, deepcopy(state)):
        if isinstance(event, StepDone):
            done += 1
            if done == min(WARM_UP, steps - 1):
                began = time.perf_counter()
                first = done
            elapsed = time.perf_counter() - began
            (enough,) = agree(context.accelerator, int(elapsed > MEASURED))
            if enough or event.step == steps:
                break
    step_seconds = (time.perf_counter() - began) / max(1, done - first)
    images = len(context.index.rows("train"))
    epoch_seconds = step_seconds * steps * (1 + VALIDATION * len(context.index.rows("val")) / images)
    fitting = max(1, int(seconds * (1 - RESERVE) / epoch_seconds))
    (least,) = agree(context.accelerator, -fitting)
    epochs = -least
    if epochs >= plan.settings.epochs:
        return plan
    why = f"{describe_seconds(epoch_seconds)} an epoch here, {describe_seconds(seconds)} to train in"
    return plan.with_epochs(Choice(value=epochs, source="max-time", reason=why))
