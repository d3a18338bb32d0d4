"""The progress of a training that a checkpoint keeps. Without torch."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from convnext_cli.metrics.summary import MetricSet
from convnext_cli.runs.records import to_plain
from convnext_cli.tasks.task import Task
from convnext_cli.training.events import EpochDone

LOGGED = "val_"  # before the key of a validation metric


@dataclass(kw_only=True, slots=True)
class TrainingState:
    """All progress of a run that is not a tensor. Each field is a key in the checkpoint."""

    images: str
    """Digest of the file sizes of the training and validation images."""
    license: str | None
    """Licences of the base weights, the teacher and the images, joined; None if unknown."""
    micro_batch_size: int
    """The plan's, or less if the device's memory was too small for it."""
    blocks: str = "timm"
    """`ComputeConfig.blocks`: `timm`, `fast` or `native`. It decides the rounding, as do the next three."""
    threads: int = 0
    """`ComputeConfig.threads`; 0 in checkpoints that did not keep it."""
    compiled: bool = False
    """True if passes of whole micro-batches are compiled."""
    recomputed: Sequence[int] | None = None
    """`ComputeConfig.recomputed`; None where nothing was measured, and in checkpoints that did not keep it."""
    origin: dict[str, Any] | None = None
    """The fields of `Origin`."""
    loss_scale: dict[str, Any] | None = None
    """State of the scaler of losses, in fp16."""
    step: int = 0
    """Optimizer steps done."""
    halvings: int = 0
    """Times that the learning rate was halved, because a loss or gradient was not finite."""
    loss_sums: list[float] = field(default_factory=list)
    """Each rank's sum of losses in the current epoch."""
    seconds: float = 0.0
    """Training time spent on the current epoch."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """One entry for each finished epoch: a line of `metrics.jsonl`."""
    best_val: dict[str, Any] | None = None
    """Validation metrics of the kept weights."""
    averaged: list[int] = field(default_factory=list)
    """The epochs whose averaged weights were kept at the end; empty if one epoch's were."""

    @property
    def epochs(self) -> int:
        """Finished epochs. The log may have one more entry: the head-only phase, as epoch 0."""
        return sum(entry["epoch"] > 0 for entry in self.log)

    @property
    def best(self) -> dict[str, Any] | None:
        """Log entry of the epoch whose weights are kept; None before the first epoch has ended."""
        return next((entry for entry in reversed(self.log) if entry["best"]), None)

    def add_epoch(self, event: EpochDone, task: Task, *, keeps_last: bool) -> None:
        """Add an epoch to the log, and its metrics if it is the best so far; with `keeps_last` it always is."""
        val, best = event.val, self.best
        metrics = log_metrics(val, task)
        is_best = keeps_last or best is None or score_epoch(metrics, task) > score_epoch(best, task)
        if is_best:
            self.best_val = None if val is None else to_plain(val)
        self.log.append(
            {
                "epoch": event.epoch,
                "train_loss": event.train_loss,
                **metrics,
                "lr": event.lr,
                "micro_batch_size": self.micro_batch_size,
                "seconds": round(event.seconds, 3),
                "images_per_second": round(event.images / event.seconds, 1),
                "best": is_best,
            }
        )


def log_metrics(val: MetricSet | None, task: Task) -> dict[str, float | None]:
    """Return the validation metrics that a log entry has."""
    return {f"{LOGGED}{key}": getattr(val, key) if val else None for key in (task.display.loss, *task.display.epoch)}


def score_epoch(entry: Mapping[str, Any], task: Task) -> tuple[float, ...]:
    """Return the score by which the best epoch is chosen, from a log entry. Higher is better."""
    return task.score_epoch({key.removeprefix(LOGGED): value for key, value in entry.items()})
