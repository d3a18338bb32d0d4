"""The head alone, before all else learns: on features of the frozen backbone, which are computed once.

A head of random values first sends large gradients through the pretrained weights and spoils some of them; one that
fits already does not (LP-FT, arXiv:2202.10054). The frozen backbone gives an image the same features every time, so
that one pass over the images pays for all epochs.
"""

import time
from collections.abc import Sequence

import torch
from torch import Tensor, nn

from convnext_cli.errors import UsageError
from convnext_cli.inference.classifier import load_for_eval
from convnext_cli.metrics.summary import compute_metrics
from convnext_cli.models.forward import forward_batches
from convnext_cli.progress import Progress, Steps
from convnext_cli.training.compute.devices import gather_rows, is_sharded
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import EpochDone
from convnext_cli.training.loading import draw_rows
from convnext_cli.training.parts.mixing import smooth_targets
from convnext_cli.training.parts.optimizer import BETAS, Schedule

HEAD_LR = 1e-3  # of AdamW on normalised features
HEAD_BATCH = 32  # images per step: small, because steps cost nothing here
BATCH_SIZE = 32  # images per forward pass of the backbone


def train_head(context: TrainingContext) -> Steps[EpochDone]:
    """Train the head for `freeze_epochs` epochs on the images as evaluation sees them.

    Its norm is the pretrained one and stays as it is. All ranks compute their share of the features, and then the same
    head.

    Args:
        context: the model, optimizer, data and devices.

    Returns:
        The figures of the head so trained, as those of an epoch before the first.

    Raises:
        UsageError: the model is spread over several GPUs.
        ImageError: an image cannot be read.
    """
    if is_sharded(context.accelerator):
        raise UsageError("--freeze-epochs needs a whole model on each GPU", "Leave it out, or train without FSDP")
    settings, index, device = context.settings, context.index, context.accelerator.device
    network = context.network
    started = time.perf_counter()
    rows = {split: index.rows(split) for split in ("train", "val")}
    features = yield from _compute_features(context, [*rows["train"], *rows["val"]])
    places = {row: place for place, row in enumerate(rows["train"])}
    labels = torch.tensor(index.labels, device=device)

    learned = [value for name, value in network.head.named_parameters() if not name.startswith("norm")]  # type: ignore[union-attr]
    optimizer = torch.optim.AdamW(learned, betas=BETAS, weight_decay=settings.weight_decay)
    steps = -(-len(rows["train"]) // HEAD_BATCH)
    schedule = Schedule(peak=HEAD_LR, floor=0.0, warmup_steps=0, total_steps=settings.freeze_epochs * steps)
    torch.manual_seed(settings.seed)  # dropout, where the head has it
    network.train()
    loss_sum = torch.zeros((), device=device)
    for epoch in range(settings.freeze_epochs):
        loss_sum.zero_()
        draws = draw_rows(context, rows["train"], epoch)
        for step in range(steps):
            own = [draw % len(index) for draw in draws[step * HEAD_BATCH : (step + 1) * HEAD_BATCH]]
            optimizer.param_groups[0]["lr"] = schedule.lr_at(epoch * steps + step)
            logits = _ask_head(network, features[[places[row] for row in own]].to(device))
            targets = smooth_targets(labels[own], len(index.classes), settings.label_smoothing)
            loss = context.criterion.sum_losses(logits, targets)
            gradients = torch.autograd.grad(loss / len(own), learned)
            for value, gradient in zip(learned, gradients, strict=True):
                value.grad = gradient
            optimizer.step()
            loss_sum += loss.detach()
        yield Progress(done=epoch + 1, total=settings.freeze_epochs, activity="training the head")
    optimizer.zero_grad(set_to_none=True)
    network.eval()
    val = None
    if rows["val"]:
        with torch.no_grad():
            logits = _ask_head(network, features[len(rows["train"]) :].to(device)).float().cpu()
        val = compute_metrics(logits.numpy(), labels[rows["val"]].cpu().numpy(), index.classes)
    return EpochDone(
        epoch=0,
        train_loss=float(loss_sum) / len(rows["train"]),
        val=val,
        lr=HEAD_LR,
        seconds=time.perf_counter() - started,
        images=len(rows["train"]),
    )


def _compute_features(context: TrainingContext, rows: Sequence[int]) -> Steps[Tensor]:
    """Compute the backbone's pooled features of images, (N, C) float32 on the CPU, the same on all ranks."""
    accelerator, network = context.accelerator, context.network
    rank, world = accelerator.process_index, accelerator.num_processes

    def ask(inputs: Tensor) -> Tensor:
        with accelerator.autocast():
            places: Tensor = network.forward_features(inputs)  # type: ignore[operator]  # timm's models have it
        return places.mean((2, 3), dtype=torch.float32)

    network.eval()
    parts = [torch.empty(0, int(network.num_features))]  # type: ignore[arg-type]
    done = 0
    for batch, found in forward_batches(
        ask,
        rows[rank::world],
        load_for_eval(context.index, context.preprocessing, cache=context.cache),
        context.preprocessing,
        device=accelerator.device,
        batch_size=BATCH_SIZE,
        threads=context.threads,
    ):
        parts.append(found)
        done += len(batch) * world
        yield Progress(done=min(done, len(rows)), total=len(rows), activity="features of the frozen backbone")
    return gather_rows(accelerator, torch.cat(parts), len(rows)).clone()  # out of inference mode


def _ask_head(network: nn.Module, features: Tensor) -> Tensor:
    """Logits (B, K) of features (B, C); the head's own average over places finds one place."""
    logits: Tensor = network.forward_head(features[:, :, None, None])  # type: ignore[operator]
    return logits
