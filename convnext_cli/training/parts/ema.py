"""An exponential moving average of the weights, which is what is validated and kept where it is on."""

import math
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

WARM_UP_POWER = 2 / 3  # timm 1.0.31, utils/model_ema.py, ModelEmaV3 with use_warmup


class ModelEma:
    """The average of a model's parameters over its last steps.

    Args:
        model: whose parameters are averaged. ConvNeXts have no buffers that change.
        decay: what is kept of the average in each step, after the warm-up.
    """

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.decay = decay
        self._own = list(model.parameters())
        self._average = [parameter.detach().clone() for parameter in self._own]

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Takes in the weights after optimizer step `step`, counted from 1."""
        share = 1 - find_decay(step, self.decay)
        for average, own in zip(self._average, self._own, strict=True):
            average.lerp_(own.detach(), share)

    @contextmanager
    def in_place(self) -> Iterator[None]:
        """The model has the average for its weights within the block, and its own again after it."""
        self._exchange()
        try:
            yield
        finally:
            self._exchange()

    @torch.no_grad()
    def _exchange(self) -> None:
        for average, own in zip(self._average, self._own, strict=True):
            kept: Tensor = own.detach().clone()
            own.copy_(average)
            average.copy_(kept)


def find_decay(step: int, decay: float) -> float:
    """What step `step`, counted from 1, keeps of the average: at first little, later at most `decay`.

    With a constant decay a short run keeps the weights that it began with: of 0.9999, 76% are left after 2,800 steps.
    The warm-up averages over the last n^(2/3) of n steps: 22 of 100, 100 of 1,000.
    """
    return min(decay, 1 - 1 / math.pow(1 + step, WARM_UP_POWER))
