"""What is saved of a run while it trains: the best model for others, the last state to continue from."""

import json
from typing import Any

import torch
from torch import Tensor, nn

from convnext_cli.models.weights import write_tensors
from convnext_cli.runs import RunFolder


def save_last(run: RunFolder, model: nn.Module, optimizer: torch.optim.Optimizer, progress: dict[str, Any]) -> None:
    """Writes model, optimizer and progress into one safetensors file, so that they can never disagree.

    Random states are not in it because there are none: every draw comes from (seed, epoch, row) or (seed, step).
    """
    tensors: dict[str, Tensor] = {f"model.{name}": value for name, value in model.state_dict().items()}
    for number, state in optimizer.state_dict()["state"].items():
        tensors |= {f"optimizer.{number}.{name}": value for name, value in state.items()}
    write_tensors(tensors, run.last, {"progress": json.dumps(progress)})
