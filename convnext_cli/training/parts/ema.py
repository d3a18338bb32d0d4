"""An exponential moving average of the weights; with it on, the averaged weights are validated and kept."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WARM_UP_POWER = 2 / 3  # timm 1.0.31, utils/model_ema.py, ModelEmaV3 with use_warmup


class ModelEma:
    """An exponential moving average of a model's parameters. ConvNeXts have no buffers that change."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._parameters: list[Tensor] = list(model.parameters())
        self._average = [parameter.detach().clone() for parameter in self._parameters]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Update the average with the weights after optimizer step `step`, counted from 1."""
        weight = 1 - find_decay(step, self.decay)
        torch._foreach_lerp_(self._average, self._parameters, weight)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """Give the model the averaged weights during the block, and its own after it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, parameter in zip(self._average, self._parameters, strict=True):
            current: Tensor = parameter.detach().clone()
            parameter.copy_(average)
            average.copy_(current)


def find_decay(step: int, decay: float) -> float:
    """Return the decay of step `step`, counted from 1; it rises to `decay`.

    With a constant decay a short run keeps its initial weights: at 0.9999, 76% of them are left after 2,800 steps. The
    warm-up averages over the last n^(2/3) of n steps: 22 of 100, 100 of 1,000.
    """
    return min(decay, 1 - 1 / math.pow(1 + step, WARM_UP_POWER))
