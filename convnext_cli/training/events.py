"""The events that a training yields, and its results. Without torch."""

from collections.abc import Callable, Generator
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, TypeAlias

from convnext_cli.data.index import Index
from convnext_cli.metrics.summary import MetricSet
from convnext_cli.progress import Notice, Progress, Result
from convnext_cli.recipes.plan import Plan
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.request import TrainRequest

if TYPE_CHECKING:
    from convnext_cli.inference.calibration import Calibration
    from convnext_cli.metrics.intervals import Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class StepDone:
    """A finished optimizer step. Epochs and steps are counted from 1."""

    epoch: int
    step: int
    steps: int
    images: int
    """Training images of the epoch so far."""
    loss: float
    """Mean loss of the epoch so far, as last read from the devices."""
    lr: float
    is_due: bool
    """True if a checkpoint is due after this step; its loss is finite then."""
    signal: int
    """Number of the signal to stop; 0 if none has arrived."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EpochDone:
    """A finished epoch, counted from 1; 0 is the head-only phase."""

    epoch: int
    train_loss: float
    """Mean loss on the training images with augmentation, mixing and label smoothing."""
    val: MetricSet | None
    """Validation metrics; None without a validation split."""
    lr: float
    seconds: float
    """Duration without validation."""
    images: int
    """Training images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """The plan is made; nothing has been computed or written."""

    run: Path
    plan: Plan
    index: Index
    notices: tuple[Notice, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """Training is about to begin, with the final plan."""

    run: Path
    plan: Plan
    """The plan, with the learning rate and the number of epochs that were measured since."""
    index: Index
    device: str
    num_processes: int
    precision: str
    compute_config: str
    """The compute configuration in words."""
    params: int
    new_params: int
    """Parameters that are newly initialised."""
    resumed_at: int | None
    """Optimizer steps that a resumed run has done; None for a new run."""
    license: str | None
    """Licences of the base weights, the teacher and the images, joined; None if unknown."""
    notices: tuple[Notice, ...]
    """Notices since the plan was made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Model and calibration are written; exports and final metrics follow."""

    run: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneResult:
    """A finished run."""

    run: Path
    """The run folder."""
    task: str
    """Name of the task."""
    epoch: int
    """The epoch whose weights were kept, counted from 1; 0 is the head-only model."""
    val: MetricSet | None
    """Validation metrics of the kept weights; None without a validation split."""
    selected_by: str
    """Rule by which the epoch was chosen, in words."""
    calibration: "Calibration | None"
    """None in all processes but the first."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Fold:
    """One fold's run and its metrics."""

    fold: int
    """Counted from 1."""
    run: Path
    epoch: int
    """The epoch whose weights were kept, counted from 1; 0 is the head-only model."""
    val: MetricSet
    """Metrics on the images of this fold, which its model was not trained on."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Spread:
    """Mean and standard deviation of a metric over the folds."""

    mean: float
    sd: float
    """Standard deviation over the folds, with n - 1 in the denominator. It gives no standard error of the mean, because
    the folds' training images overlap (Bengio & Grandvalet, JMLR 5, 2004)."""
    n: int
    """Folds in which the metric is defined."""


@dataclass(frozen=True, kw_only=True, slots=True)
class SplitMetrics:
    """Metrics of one split, with their 95% CIs."""

    images: int
    values: dict[str, float | None]
    """By key of a metric."""
    intervals: "dict[str, Interval | None]"


@dataclass(frozen=True, kw_only=True, slots=True)
class LeftOut:
    """A value of the column of `--leave-out`, such as a site, beside the images of the other values."""

    fold: int
    name: str
    """The value."""
    run: Path
    internal: SplitMetrics
    """Metrics of the fold's validation images, which have other values."""
    external: SplitMetrics
    """Metrics of all images with this value, which were left out of its training."""


@dataclass(frozen=True, kw_only=True, slots=True)
class CrossValidationResult:
    """A finished cross-validation."""

    run: Path
    """The folder of the runs."""
    task: str
    """Name of the task."""
    folds: tuple[Fold, ...]
    """The run and the validation metrics of each fold."""
    spread: dict[str, Spread]
    """By key of a metric."""
    left_out: tuple[LeftOut, ...] = ()
    """One for each value of the column of `--leave-out`; in the first process only."""


@dataclass(frozen=True, kw_only=True, slots=True)
class FoldDone:
    """A finished fold of a cross-validation."""

    fold: int
    """Counted from 1."""
    result: FinetuneResult


Event: TypeAlias = Progress | Notice | Planned | Started | StepDone | EpochDone | Trained | FoldDone
TrainSteps: TypeAlias = Generator[Event, None, Result]
"""A part of a training that yields events and returns a `Result`."""
Complete: TypeAlias = Callable[[RunFolder], TrainSteps[None]]
"""Work on a trained run before it is marked as finished, such as an export."""
TrainOperation: TypeAlias = Callable[[TrainRequest, Complete | None], TrainSteps[Result]]
"""A training of one model, of all folds, or of either."""
