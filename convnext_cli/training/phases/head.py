"""The frozen phase: train the head alone, on features of the frozen backbone that are computed once.

A newly initialised head first sends large gradients through the pretrained weights, which spoils some of them; a
trained head does not (LP-FT, arXiv:2202.10054). The frozen backbone gives an image the same features in each epoch, so
that one pass over the images is enough for all epochs.
"""

import time
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn

from convnext_cli.metrics.summary import MetricSet
from convnext_cli.models.forward import forward_batches
from convnext_cli.progress import Progress, Steps
from convnext_cli.training.checkpoint import gather_result, put_weights
from convnext_cli.training.compute.ranks import gather_rows
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import EpochDone
from convnext_cli.training.loading import draw_rows, load_as_evaluated
from convnext_cli.training.parts.distillation import PROJECTION
from convnext_cli.training.parts.optimizer import BETAS, Schedule

HEAD_LR = 1e-3  # of AdamW, on normalised features
HEAD_BATCH = 32  # images per step of the head
BATCH_SIZE = 32  # images per forward pass of the backbone


def train_head(context: TrainingContext) -> Steps[EpochDone]:
    """Train the head for `freeze_epochs` epochs, on the images as evaluation sees them.

    The pretrained norm of the head is not trained. Each rank computes its part of the features, and then the same head.

    Returns:
        The metrics of the trained head, as epoch 0.

    Raises:
        ImageError: an image cannot be read.
    """
    settings, index, network, head = context.settings, context.index, context.network, context.head
    started = time.perf_counter()
    train, val = index.rows("train"), index.rows("val")
    features = yield from _compute_features(context, [*train, *val])
    position = {row: i for i, row in enumerate(train)}
    optimizer = make_head_optimizer(head, weight_decay=settings.weight_decay)
    steps = -(-len(train) // HEAD_BATCH)
    schedule = Schedule(peak=HEAD_LR, floor=0.0, warmup_steps=0, total_steps=settings.freeze_epochs * steps)
    torch.manual_seed(settings.seed)  # for dropout in the head
    head.train()
    loss_sum = torch.zeros((), device=context.accelerator.device)
    for epoch in range(settings.freeze_epochs):
        loss_sum.zero_()
        draws = draw_rows(context, train, epoch)
        for step in range(steps):
            rows = [draw % len(index) for draw in draws[step * HEAD_BATCH : (step + 1) * HEAD_BATCH]]
            for group in optimizer.param_groups:
                group["lr"] = schedule.lr_at(epoch * steps + step)
            loss_sum += _take_step(context, optimizer, features[[position[row] for row in rows]], rows)
        yield Progress(done=epoch + 1, total=settings.freeze_epochs, activity="training the head")
    optimizer.zero_grad(set_to_none=True)
    head.eval()
    if head is not network.head:  # a copy, of a sharded model
        trained = {f"head.{name}": value for name, value in head.state_dict().items()}
        put_weights(context, gather_result(context) | trained)
    return EpochDone(
        epoch=0,
        train_loss=float(loss_sum) / len(train),
        val=_validate(context, features[len(train) :], val),
        lr=HEAD_LR,
        seconds=time.perf_counter() - started,
        images=len(train),
    )


def make_head_optimizer(head: nn.Module, *, weight_decay: float) -> torch.optim.AdamW:
    """Return AdamW for the head; as in `make_optimizer`, biases do not decay."""
    parameters = _list_trainable(head)
    groups: list[dict[str, Any]] = [
        {"params": [parameter for parameter in parameters if parameter.ndim > 1], "weight_decay": weight_decay},
        {"params": [parameter for parameter in parameters if parameter.ndim <= 1], "weight_decay": 0.0},
    ]
    return torch.optim.AdamW(groups, lr=HEAD_LR, betas=BETAS)


def _list_trainable(head: nn.Module) -> list[nn.Parameter]:
    """Return the parameters of the head without its norm, and without the projection to a teacher's features."""
    parameters = head.named_parameters(prefix="head")
    return [value for name, value in parameters if not name.startswith(("head.norm", PROJECTION))]


def _take_step(
    context: TrainingContext, optimizer: torch.optim.Optimizer, features: Tensor, rows: Sequence[int]
) -> Tensor:
    """Do one optimizer step of the head on features (B, C) of rows, and return the sum of their losses."""
    index, device = context.index, context.accelerator.device
    targets = context.criterion.encode(torch.from_numpy(index.targets(rows))).to(device)
    outputs = index.task.count_outputs(len(index.classes))
    logits = _forward_head(context.head, features.to(device))[:, :outputs]
    loss = context.criterion.sum_losses(logits, targets)
    trainable = _list_trainable(context.head)
    gradients = torch.autograd.grad(loss / len(rows), trainable)
    for parameter, gradient in zip(trainable, gradients, strict=True):
        parameter.grad = gradient
    optimizer.step()
    return loss.detach()


def _validate(context: TrainingContext, features: Tensor, rows: Sequence[int]) -> MetricSet | None:
    """Compute metrics on features (N, C) of validation rows; None if there are none."""
    if not rows:
        return None
    with torch.no_grad():
        logits = _forward_head(context.head, features.to(context.accelerator.device)).float().cpu()
    index = context.index
    return index.task.compute_metrics(logits.numpy(), index.targets(rows), index.classes)


def _compute_features(context: TrainingContext, rows: Sequence[int]) -> Steps[Tensor]:
    """Compute the backbone's pooled features of images, (N, C) float32 on the CPU, the same on all ranks."""
    accelerator, network = context.accelerator, context.network

    def forward(inputs: Tensor) -> Tensor:
        with accelerator.autocast():
            maps: Tensor = network.forward_features(inputs)  # type: ignore[operator]  # timm's models have it
        return maps.mean((2, 3), dtype=torch.float32)

    network.eval()
    parts = [torch.empty(0, int(network.num_features))]  # type: ignore[arg-type]
    done = 0
    batches = load_as_evaluated(context, rows, BATCH_SIZE)
    for batch, features in forward_batches(forward, batches, context.preprocessing, accelerator.device):
        parts.append(features)
        done += len(batch) * accelerator.num_processes
        yield Progress(done=min(done, len(rows)), total=len(rows), activity="features of the frozen backbone")
    return gather_rows(accelerator, torch.cat(parts), len(rows))


def _forward_head(head: nn.Module, features: Tensor) -> Tensor:
    """Return the outputs (B, K) of pooled features (B, C), as feature maps of 1 x 1."""
    logits: Tensor = head(features[:, :, None, None])
    return logits
