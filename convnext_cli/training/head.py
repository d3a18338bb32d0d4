"""The head alone, before all else learns: on features of the frozen backbone, which are computed once.

A head of random values first sends large gradients through the pretrained weights and spoils some of them; one that
fits already does not (LP-FT, arXiv:2202.10054). The frozen backbone gives an image the same features every time, so
that one pass over the images pays for all epochs.
"""

import time
from collections.abc import Generator, Sequence

import torch
from torch import Tensor, nn

from convnext_cli.errors import UsageError
from convnext_cli.evaluation.metrics import compute_metrics
from convnext_cli.inference.answers import load_for_eval
from convnext_cli.inference.forward import forward_batches
from convnext_cli.progress import Progress
from convnext_cli.training.devices import gather_rows, is_sharded
from convnext_cli.training.loop import EpochDone, draw_rows
from convnext_cli.training.mixing import smooth_targets
from convnext_cli.training.optim import BETAS, Schedule
from convnext_cli.training.step import Job

HEAD_LR = 1e-3  # of AdamW on normalised features
HEAD_BATCH = 32  # images per step: small, because steps cost nothing here
BATCH_SIZE = 32  # images per forward pass of the backbone


def train_head(job: Job, network: nn.Module) -> Generator[Progress, None, EpochDone]:
    """Trains the head for `freeze_epochs` on the images as evaluation sees them; yields progress.

    Its norm is the pretrained one and stays as it is. All ranks compute their share of the features, and then the same
    head.

    Args:
        job: what to work on, on its device.
        network: timm's model in it.

    Returns:
        The figures of the head so trained, as those of an epoch before the first.

    Raises:
        UsageError: the model is spread over several GPUs.
        ImageError: an image cannot be read.
    """
    if is_sharded(job.accelerator):
        raise UsageError("--freeze-epochs needs a whole model on each GPU", "Leave it out, or train without FSDP")
    recipe, index, device = job.recipe, job.index, job.accelerator.device
    started = time.perf_counter()
    rows = {split: index.rows(split) for split in ("train", "val")}
    features = yield from _find_features(job, network, [*rows["train"], *rows["val"]])
    places = {row: place for place, row in enumerate(rows["train"])}
    labels = torch.tensor(index.labels, device=device)

    learned = [value for name, value in network.head.named_parameters() if not name.startswith("norm")]  # type: ignore[union-attr]
    optimizer = torch.optim.AdamW(learned, betas=BETAS, weight_decay=recipe.weight_decay)
    steps = -(-len(rows["train"]) // HEAD_BATCH)
    schedule = Schedule(peak=HEAD_LR, floor=0.0, warmup_steps=0, total_steps=recipe.freeze_epochs * steps)
    torch.manual_seed(recipe.seed)  # dropout, where the head has it
    network.train()
    loss_sum = torch.zeros((), device=device)
    for epoch in range(recipe.freeze_epochs):
        loss_sum.zero_()
        draws = draw_rows(job, rows["train"], epoch)
        for step in range(steps):
            own = [draw % len(index) for draw in draws[step * HEAD_BATCH : (step + 1) * HEAD_BATCH]]
            optimizer.param_groups[0]["lr"] = schedule.lr_at(epoch * steps + step)
            logits = _ask_head(network, features[[places[row] for row in own]].to(device))
            targets = smooth_targets(labels[own], len(index.classes), recipe.label_smoothing)
            loss = job.objective.sum_losses(logits, targets)
            gradients = torch.autograd.grad(loss / len(own), learned)
            for value, gradient in zip(learned, gradients, strict=True):
                value.grad = gradient
            optimizer.step()
            loss_sum += loss.detach()
        yield Progress(done=epoch + 1, total=recipe.freeze_epochs, what="training the head")
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


def _find_features(job: Job, network: nn.Module, rows: Sequence[int]) -> Generator[Progress, None, Tensor]:
    """What the backbone says of images, averaged over places: (N, C) float32 on the CPU, the same on all ranks."""
    accelerator = job.accelerator
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
        load_for_eval(job.index, job.how, cache=job.cache),
        job.how,
        device=accelerator.device,
        batch_size=BATCH_SIZE,
        threads=job.threads,
    ):
        parts.append(found)
        done += len(batch) * world
        yield Progress(done=min(done, len(rows)), total=len(rows), what="features of the frozen backbone")
    return gather_rows(accelerator, torch.cat(parts), len(rows)).clone()  # out of inference mode


def _ask_head(network: nn.Module, features: Tensor) -> Tensor:
    """Logits (B, K) of features (B, C); the head's own average over places finds one place."""
    logits: Tensor = network.forward_head(features[:, :, None, None])  # type: ignore[operator]
    return logits
