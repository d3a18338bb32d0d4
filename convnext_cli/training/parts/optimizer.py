"""AdamW's parameter groups, and the learning rate as a pure function of the step."""

import math
from dataclasses import dataclass

import torch
from timm.optim import param_groups_layer_decay
from torch import nn

BETAS = (0.9, 0.999)  # arXiv:2201.03545, tables 5 and 6


@dataclass(frozen=True, kw_only=True, slots=True)
class Schedule:
    """Linear warm-up to `peak`, then a half cosine to `floor`. Lengths are in optimizer steps."""

    peak: float
    floor: float
    warmup_steps: int
    total_steps: int

    def lr_at(self, step: int) -> float:
        """The learning rate of step `step`, counted from 0. The last warm-up step has the peak itself."""
        if step < self.warmup_steps:
            return self.peak * (step + 1) / self.warmup_steps
        span = max(1, self.total_steps - self.warmup_steps)
        progress = min(1.0, (step - self.warmup_steps) / span)
        low = min(self.floor, self.peak)
        return low + (self.peak - low) * 0.5 * (1 + math.cos(math.pi * progress))


def make_optimizer(model: nn.Module, *, lr: float, weight_decay: float, layer_decay: float) -> torch.optim.AdamW:
    """AdamW with timm's groups: no decay on one-dimensional parameters, a smaller rate for earlier blocks.

    One-dimensional are the norms, the biases, LayerScale and GRN. timm only stores `lr_scale` in each group;
    `set_lr` is what applies it. PyTorch's one-pass AdamW (`fused`) is not used: on a processor it
    goes through memory regardless of its format. With weights in channels last and moments read from a checkpoint,
    which are not, it pairs the wrong numbers, and a continued run ends in others.
    """
    groups = param_groups_layer_decay(model, weight_decay=weight_decay, layer_decay=layer_decay)
    return torch.optim.AdamW(groups, lr=lr, betas=BETAS)


def set_lr(optimizer: torch.optim.Optimizer, lr: float) -> None:
    """Writes `lr` times its `lr_scale` into every group."""
    for group in optimizer.param_groups:
        group["lr"] = lr * group["lr_scale"]
