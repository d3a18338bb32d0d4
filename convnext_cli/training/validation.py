"""Validation between epochs."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from convnext_cli.metrics.summary import MetricSet
from convnext_cli.models.forward import forward_batches
from convnext_cli.training.compute.ranks import agree, gather_rows
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.loading import load_as_evaluated
from convnext_cli.training.state import TrainingState


def validate(context: TrainingContext, state: TrainingState) -> tuple[MetricSet | None, int]:
    """Compute metrics on the validation split, on all ranks together; with EMA, of the averaged weights.

    A signal interrupts it, because it may take longer than the sender of the signal waits.

    Returns:
        The metrics, None without a validation split or after a signal; and the number of the signal, 0 without one.
    """
    rows = context.index.rows("val")
    if not rows:
        return None, 0
    with context.ema.in_place() if context.ema else nullcontext():
        logits, signal = _compute_logits(context, state, rows)
    if logits is None:
        return None, signal
    index = context.index
    return index.task.compute_metrics(logits, index.targets(rows), index.classes), 0


def _compute_logits(
    context: TrainingContext, state: TrainingState, rows: Sequence[int]
) -> tuple[NDArray[np.float32] | None, int]:
    """Return the logits of rows, (N, K), and 0; after a signal, None and its number."""
    context.model.eval()
    images = load_as_evaluated(context, rows, state.micro_batch_size)
    batches = forward_batches(context.model, images, context.preprocessing, context.accelerator.device)
    parts = [torch.empty(0, context.index.task.count_outputs(len(context.index.classes)))]
    images_per_round = context.accelerator.num_processes * state.micro_batch_size
    for _ in range(-(-len(rows) // images_per_round)):  # the same number of rounds on every rank
        parts += [logits for _, logits in islice(batches, 1)]
        (signal,) = agree(context.accelerator, context.signals.received)
        if signal:
            return None, signal
    return gather_rows(context.accelerator, torch.cat(parts), len(rows)).numpy(), 0
