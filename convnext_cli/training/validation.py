"""Validation between epochs."""

from collections.abc import Sequence
from contextlib import nullcontext
from itertools import islice

import numpy as np
import torch
from numpy.typing import NDArray

from convnext_cli.inference.classifier import load_for_eval
from convnext_cli.metrics.summary import Metrics, compute_metrics
from convnext_cli.models.forward import forward_batches
from convnext_cli.training.compute.devices import agree, gather_rows
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.state import TrainingState


def validate(context: TrainingContext, state: TrainingState) -> tuple[Metrics | None, int]:
    """Metrics on the validation split, computed by all ranks together; None where it is empty.

    Where an average of the weights is kept, it is the average that is asked. A signal cuts it short: it may take longer
    than whoever sent it will wait. The second value is its number, else 0.
    """
    rows = context.index.rows("val")
    if not rows:
        return None, 0
    with context.ema.in_place() if context.ema else nullcontext():
        logits, signal = _ask_all(context, state, rows)
    if logits is None:
        return None, signal
    labels = np.array([context.index.labels[row] for row in rows])
    return compute_metrics(logits, labels, context.index.classes), 0


def _ask_all(
    context: TrainingContext, state: TrainingState, rows: Sequence[int]
) -> tuple[NDArray[np.float32] | None, int]:
    """Logits of rows, (N, K); None where a signal came in between, and its number."""
    context.model.eval()
    rank, world = context.accelerator.process_index, context.accelerator.num_processes
    parts = forward_batches(
        context.model,
        rows[rank::world],
        load_for_eval(context.index, context.preprocessing, cache=context.cache),
        context.preprocessing,
        device=context.accelerator.device,
        batch_size=state.micro_batch_size,
        threads=context.threads,
    )
    mine = [torch.empty(0, len(context.index.classes))]
    for _ in range(-(-len(rows) // (world * state.micro_batch_size))):  # as often on every rank
        mine += [logits for _, logits in islice(parts, 1)]
        (signal,) = agree(context.accelerator, context.signals.received)
        if signal:
            return None, signal
    return gather_rows(context.accelerator, torch.cat(mine), len(rows)).numpy(), 0
