"""AdamW's parameter groups, and the learning rate as a pure function of the step."""

import math
from dataclasses import dataclass

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

BETAS = (0.9, 0.999)  # arXiv:2201.03545, tables 5 and 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """A linear warm-up to `peak`, then a half cosine to `floor`. Lengths are in optimizer steps."""

    peak: float
    floor: float
    warmup_steps: int
    total_steps: int

    def lr_at(self, step: int) -> float:
        """Return the learning rate of step `step`, counted from 0. The last warm-up step has `peak`."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        span = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        low = min(self.floor, self.peak)
        return low + (self.peak - low) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float) -> torch.optim.AdamW:
    """Return AdamW with timm's groups: no decay of one-dimensional parameters, smaller rates for earlier blocks.

    One-dimensional are norms, biases, LayerScale and GRN. timm stores `lr_scale` in each group; `set_lr` applies it.
    PyTorch's `fused` AdamW is not used: on a CPU it ignores memory formats. Weights in channels last and moments from a
    checkpoint, which are contiguous, would be paired wrongly, and a resumed run would end in other weights.
    """
    groups = param_groups_layer_decay(model, weight_decay=weight_decay, layer_decay=layer_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Set the learning rate of each group to `lr` times its `lr_scale`."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
