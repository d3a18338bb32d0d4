"""The progress of a training that a checkpoint keeps."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(kw_only=True, slots=True)
class TrainingState:
    """Where a run stands: all of its state that is no tensor."""

    images: str
    """Digest of the sizes of the images that it trains and validates on."""
    license: str | None
    """Licence of the base weights."""
    micro_batch_size: int
    """The plan's, or less where the device's memory was too small for it."""
    blocks: str = "timm"
    """What the model is computed with, which decides the last bits, as do the next two: `timm`, `fast` or `native`."""
    threads: int = 0
    """Of one process, as `ComputeConfig` has them; 0 where nothing says."""
    compiled: bool = False
    """Whether passes of whole micro-batches are compiled."""
    origin: dict[str, Any] | None = None
    """The fields of `Origin`; None in a state of a version that kept none."""
    step: int = 0
    """Optimizer steps done."""
    halvings: int = 0
    """How often the learning rate was halved because a loss or gradient was no finite number."""
    loss_sums: list[float] = field(default_factory=list)
    """Each rank's sum of losses in the epoch that is under way."""
    seconds: float = 0.0
    """Training time spent on that epoch."""
    log: list[dict[str, Any]] = field(default_factory=list)
    """A line for each finished epoch."""
    best_val: dict[str, Any] | None = None
    """The kept weights' figures on the validation split."""
    averaged: list[int] = field(default_factory=list)
    """The epochs whose weights' average was kept at the end; none where one epoch's were."""

    @property
    def epochs(self) -> int:
        """Finished epochs. The log may have one more line, of the head alone, as epoch 0."""
        return sum(entry["epoch"] > 0 for entry in self.log)

    @property
    def best(self) -> dict[str, Any] | None:
        """The line of the epoch whose weights are kept; None before the first epoch's end."""
        return next((entry for entry in reversed(self.log) if entry["best"]), None)
