"""The weights of a run's best epochs, averaged at its end (a uniform soup, arXiv:2203.05482, of one run's epochs)."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from typing import Any

import torch
from safetensors.torch import load_file

from convnext_cli.inference.saved_model import write_model
from convnext_cli.models.weights import write_tensors
from convnext_cli.progress import Notice
from convnext_cli.training.checkpoint import Tensors, put_weights
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.state import TrainingState
from convnext_cli.training.validation import validate


def choose_epochs(log: Sequence[dict[str, Any]], number: int, *, last: bool) -> list[int]:
    """The epochs whose weights are averaged: the best `number` by validation, or the last ones where it is weak."""

    def score(entry: dict[str, Any]) -> tuple[float, ...]:
        return (entry["epoch"],) if last else (entry["val_balanced_accuracy"], -entry["val_log_loss"])

    return sorted(entry["epoch"] for entry in sorted(log, key=score)[-number:])


def keep_candidate(context: TrainingContext, state: TrainingState, weights: Tensors) -> None:
    """Write the last epoch's weights where they may be averaged, and remove those that no longer may."""
    run, last = context.run, context.weak_validation is not None
    epochs = choose_epochs(state.log, context.settings.average_best, last=last)
    epoch = state.log[-1]["epoch"]
    if epoch in epochs:
        write_tensors(weights, run.candidate(epoch), {"format": "pt"})
    for path in set(run.list_candidates()) - {run.candidate(epoch) for epoch in epochs}:
        path.unlink(missing_ok=True)


def average_best(context: TrainingContext, state: TrainingState) -> tuple[Notice | None, int]:
    """Validate the average of the best epochs' weights, and keeps it where it is no worse than the best epoch.

    All ranks call it. `state.averaged` says then what the kept weights are the average of.

    Returns:
        What came of it, None where there are not two epochs; and the signal that came in between, 0 where none did.
    """
    run, last = context.run, context.weak_validation is not None
    epochs = choose_epochs(state.log, context.settings.average_best, last=last)
    if len(epochs) < 2:
        return None, 0
    weights: Tensors = {}
    if context.accelerator.is_main_process:
        weights = average_tensors([load_file(run.candidate(epoch)) for epoch in epochs])
    put_weights(context, weights)
    val, signal = validate(replace(context, ema=None), state)
    if signal:
        return None, signal
    text = f"the average of epochs {', '.join(map(str, epochs))}"
    if val is not None and not last:
        assert state.best is not None
        score = (val.balanced_accuracy, -val.log_loss)
        text += f" has a balanced accuracy of {100 * val.balanced_accuracy:.1f}%"
        if score < (state.best["val_balanced_accuracy"], -state.best["val_log_loss"]):
            return Notice(text=f"{text}: epoch {state.best['epoch']} is kept"), 0
    state.averaged, state.best_val = epochs, None if val is None else asdict(val)
    if context.accelerator.is_main_process:
        write_model(
            context.network,
            run.path,
            weights,
            classes=context.index.classes,
            preprocessing=context.preprocessing,
            license=state.license,
        )
    return Notice(text=f"{text}, and is kept"), 0


def average_tensors(found: Sequence[Tensors]) -> Tensors:
    """The mean of several models' tensors, summed in float64."""
    return {
        name: torch.stack([tensors[name].double() for tensors in found]).mean(0).to(value.dtype)
        for name, value in found[0].items()
    }
