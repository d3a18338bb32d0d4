"""The events that a training yields, and its results. Without torch."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from convnext_cli.data.index import Index
from convnext_cli.metrics.summary import Metrics
from convnext_cli.progress import Notice, Progress, Result
from convnext_cli.recipes.plan import Plan
from convnext_cli.runs.folder import RunFolder

if TYPE_CHECKING:
    from convnext_cli.inference.calibration import Calibration


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """One optimizer step. Epochs and steps are counted from 1; `loss` is the epoch's mean so far, as last read."""

    epoch: int
    step: int
    steps: int
    images: int
    loss: float
    lr: float
    is_due: bool
    """Whether the state after it is to be saved; it is then known to be finite."""
    signal: int
    """The signal that asks to stop here, 0 where none does."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochDone:
    """One epoch, counted from 1; 0 is the head-only phase. `val` is None without a validation split."""

    epoch: int
    train_loss: float
    """Mean loss on the training images as they were shown (augmented, mixed, smoothed)."""
    val: Metrics | None
    lr: float
    seconds: float
    """Time of the training part, without validation."""
    images: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """The plan is made and nothing has been computed yet."""

    run: Path
    plan: Plan
    index: Index
    resumes: bool
    """Whether an unfinished run is continued."""
    notes: tuple[str, ...]
    """What the user should know before trusting the result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """Training is about to begin, with the final plan."""

    run: Path
    plan: Plan
    """As planned, but for what was measured since: the learning rate, the number of epochs."""
    index: Index
    device: str
    num_processes: int
    precision: str
    compute_config: str
    """What the model is computed with, in words."""
    params: int
    new_params: int
    """How many of `params` start from random values."""
    resumed_at: int | None
    """Optimizer steps that a continued run has behind it; None for a new one."""
    license: str | None
    """Licence of the base weights, where they have one."""
    notes: tuple[str, ...]
    """What came up since the plan was made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Model and calibration are on disk; what else belongs to a finished run is written next."""

    run: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneResult:
    """A finished run."""

    run: Path
    epoch: int
    """The epoch whose weights were kept, counted from 1; 0 is the head-only model."""
    val: Metrics | None
    """That epoch's figures on the validation split; None where it is empty."""
    selected_by: str
    calibration: "Calibration | None"
    """What was fitted on the validation split afterwards; None in all processes but the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """One fold's run and its figures."""

    fold: int
    """Counted from 1."""
    run: Path
    epoch: int
    """The epoch whose weights were kept, counted from 1; 0 is the head-only model."""
    val: Metrics
    """On the images of this fold, which its model was not trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """A figure over the folds."""

    mean: float
    sd: float
    """Standard deviation over the folds, n - 1 in the denominator. Their training images overlap, so it is no standard
    error of the mean: none can be had from one cross-validation (Bengio & Grandvalet, JMLR 5, 2004)."""
    n: int
    """Folds where the figure is defined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossValidationResult:
    """A finished cross-validation."""

    run: Path
    folds: tuple[Fold, ...]
    spread: dict[str, Spread]
    """By the name of the figure in `Metrics`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldDone:
    """One fold of a cross-validation is on disk."""

    fold: int
    """Counted from 1."""
    result: FinetuneResult


Event: TypeAlias = Progress | Notice | Planned | Started | StepDone | EpochDone | Trained | FoldDone
TrainSteps: TypeAlias = Generator[Event, None, Result]
"""A part of a training that yields events and returns a `Result`."""
Complete: TypeAlias = Callable[[RunFolder], TrainSteps[None]]
"""Work on a trained run before it counts as finished, such as an export."""
