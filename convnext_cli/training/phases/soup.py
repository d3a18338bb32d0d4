"""A uniform soup of a run's best epochs: their weights are averaged at its end (arXiv:2203.05482)."""

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from safetensors.torch import load_file

from convnext_cli.metrics.registry import METRICS
from convnext_cli.models.weights import write_tensors
from convnext_cli.progress import Notice
from convnext_cli.runs.records import to_plain
from convnext_cli.training.checkpoint import Tensors, put_weights, save_model
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.state import TrainingState, log_metrics, score_epoch
from convnext_cli.training.validation import validate


def choose_epochs(context: TrainingContext, state: TrainingState) -> list[int]:
    """Return the epochs to average: the best ones so far by validation, or the last ones."""

    def score(entry: dict[str, Any]) -> tuple[float, ...]:
        return (entry["epoch"],) if context.keeps_last else score_epoch(entry, context.index.task)

    ranked = sorted(state.log, key=score)
    return sorted(entry["epoch"] for entry in ranked[-context.settings.average_best :])


def keep_candidate(context: TrainingContext, state: TrainingState, weights: Tensors) -> None:
    """Write the last epoch's weights if they may be averaged, and remove those that no longer may."""
    run, epochs = context.run, choose_epochs(context, state)
    epoch = state.log[-1]["epoch"]
    if epoch in epochs:
        write_tensors(weights, run.candidate(epoch), {"format": "pt"})
    for path in set(run.list_candidates()) - {run.candidate(epoch) for epoch in epochs}:
        path.unlink(missing_ok=True)


def average_best(context: TrainingContext, state: TrainingState) -> tuple[Notice | None, int]:
    """Average the best epochs' weights, validate them, and keep them if they are no worse than the best epoch.

    All ranks call it. It sets `state.averaged` and `state.best_val`.

    Returns:
        A notice of the result, None with fewer than two epochs; and the number of the signal that interrupted it, or 0.
    """
    epochs = choose_epochs(context, state)
    if len(epochs) < 2:
        return None, 0
    weights: Tensors = {}
    if context.accelerator.is_main_process:
        weights = average_tensors([load_file(context.run.candidate(epoch)) for epoch in epochs])
    put_weights(context, weights)
    val, signal = validate(replace(context, ema=None), state)
    if signal:
        return None, signal
    text = f"the average of epochs {', '.join(map(str, epochs))}"
    if val is not None and not context.keeps_last:
        assert state.best is not None
        task = context.index.task
        headline = METRICS[task.display.headline]
        text += f" has {headline.title} {headline.format_with_unit(getattr(val, headline.key))}"
        if score_epoch(log_metrics(val, task), task) < score_epoch(state.best, task):
            return Notice(f"{text}: epoch {state.best['epoch']} is kept"), 0
        text += ", and"
    state.averaged, state.best_val = epochs, None if val is None else to_plain(val)
    if context.accelerator.is_main_process:
        save_model(context, state, weights)
    return Notice(f"{text} is kept"), 0


def average_tensors(models: Sequence[Tensors]) -> Tensors:
    """Return the mean of several models' tensors, summed in float64."""
    return {
        name: torch.stack([tensors[name].double() for tensors in models]).mean(0).to(value.dtype)
        for name, value in models[0].items()
    }
