"""The progress of a training that a checkpoint keeps. Without torch."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from convnext_cli.metrics.summary import Metrics
from convnext_cli.training.events import EpochDone


@dataclass(kw_only=True, slots=True)
class TrainingState:
    """All progress of a run that is not a tensor. Each field is a key in the checkpoint."""

    images: str
    """Digest of names and sizes of the training and validation images."""
    license: str | None
    """Licence of the base weights."""
    micro_batch_size: int
    """The plan's, or less if the device's memory was too small for it."""
    blocks: str = "timm"
    """`ComputeConfig.blocks`: `timm`, `fast` or `native`. It decides the rounding, as do the next two."""
    threads: int = 0
    """`ComputeConfig.threads`; 0 in checkpoints that did not keep it."""
    compiled: bool = False
    """True if passes of whole micro-batches are compiled."""
    origin: dict[str, Any] | None = None
    """The fields of `Origin`; None in checkpoints that did not keep it."""
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

    def add_epoch(self, event: EpochDone, *, keeps_last: bool) -> None:
        """Add an epoch to the log, and its metrics if it is the best so far; with `keeps_last` it always is."""
        val, best = event.val, self.best
        metrics = log_metrics(val)
        is_best = keeps_last or best is None or score_epoch(metrics) > score_epoch(best)
        if is_best:
            self.best_val = None if val is None else asdict(val)
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


def log_metrics(val: Metrics | None) -> dict[str, float | None]:
    """Return the validation metrics that a log entry has."""
    return {
        "val_log_loss": val.log_loss if val else None,
        "val_top1": val.top1 if val else None,
        "val_balanced_accuracy": val.balanced_accuracy if val else None,
    }


def score_epoch(entry: Mapping[str, Any]) -> tuple[float, float]:
    """Return the score by which the best epoch is chosen: balanced accuracy, then log loss. Higher is better."""
    return entry["val_balanced_accuracy"], -entry["val_log_loss"]
