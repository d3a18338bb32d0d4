"""What a training is asked to do, and what was prepared for it."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from convnext_cli.data.dataset import Dataset
from convnext_cli.data.groups import find_straddling
from convnext_cli.data.index import Index
from convnext_cli.machine import Machine
from convnext_cli.models.catalog import Architecture, Tag
from convnext_cli.recipes.fingerprint import Fingerprint
from convnext_cli.recipes.plan import Plan
from convnext_cli.recipes.settings import (
    DEFAULT_RECIPE,
    Choice,
)
from convnext_cli.training.origin import Origin

TRACKERS = ("tensorboard", "wandb", "mlflow")


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """What the user asked for."""

    data: Path | None = None
    """A folder, a CSV file, or a zip file; None for those of the run that `resume` names."""
    audit: bool = True
    """Whether every image is looked at first."""
    model: str | None = None
    """An architecture, with or without a `.tag`; None for the recommended one."""
    output: Path | None = None
    """The run folder; None for `runs/<time>-<model>/`."""
    weights: str = "auto"
    """`auto`, `none`, `builtin`, or the path of a file or run folder."""
    offline: bool = False
    overwrite: bool = False
    recipe: str = DEFAULT_RECIPE
    augment: str | None = None  # a preset of augmentation; None for the settings' and the recipe's own
    choices: Mapping[str, Choice] = field(default_factory=dict)
    resume: Path | None = None
    """A run to be continued: model, settings and split are its own then."""
    max_time: float | None = None
    """Seconds that the training should take; fewer epochs are planned where it would take longer."""
    cache: bool = True
    """Whether decoded images are kept for later epochs and runs."""
    probe: bool = True
    """Whether a long run begins with measuring what it computes fastest with."""
    compile: bool | None = None
    """Whether the model is compiled before it trains; None where measuring decides."""
    track: tuple[str, ...] = ()
    """Where figures are sent as well: `tensorboard`, `wandb`, `mlflow`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """What will be done."""

    dataset: Dataset | None
    """What was taken in; None where a run is continued."""
    index: Index
    """The images, with their split; where all folds are trained in turn, with the first's."""
    folds: Index | None
    """The images, with the fold that each validates in, where all folds are trained in turn."""
    architecture: Architecture
    tag: Tag | None
    machine: Machine
    plan: Plan
    images: str
    """Digest of the images that are trained and validated on."""
    fingerprint: Fingerprint | None
    """What the images are like; None where a run is continued."""
    plan_notes: tuple[str, ...]
    """What the user should know of the plan."""
    weak_validation: str | None
    """Why the validation split is too small to choose the best epoch by; None where it is not."""
    origin: Origin | None = None
    """What the run began with; None for a new run, and for one of a version that did not keep it."""
    changes: tuple[str, ...] = ()
    """Notes on what was changed since then, and may be."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before trusting the result."""
        index = self.index
        notes: list[str] = []
        if self.dataset is not None:
            notes += self.dataset.describe()
        if self.dataset is not None and self.dataset.index.folds and self.plan.settings.folds:
            own = self.dataset.index
            torn = len(find_straddling(own.groups, own.folds)) if own.groups else 0
            torn += sum(len({own.folds[row] for row in rows} - {""}) > 1 for rows in self.dataset.together)
            if torn:
                notes.append(
                    f"{torn} groups or duplicates lie in more than one of the table's folds: validation figures will "
                    "be too good. --resplit draws folds that keep them together"
                )
        if self.weak_validation:
            remedy = (
                "Fewer folds make it larger"
                if self.plan.settings.folds
                else "Move images from train to val; without a val folder, --val-fraction of them is drawn"
            )
            notes.append(
                f"{self.weak_validation}: too few to choose the best epoch by, so the last one is kept. {remedy}"
            )
        absent = [name for name, n in zip(index.classes, index.count_classes("test"), strict=True) if not n]
        if len(absent) == len(index.classes):
            chosen = "" if self.weak_validation else ": figures on the validation split are a little too good"
            notes.append(f"there is no test split{chosen}")
        elif absent:
            notes.append(f"the test split has no image of {', '.join(absent)}")
        if index.skipped:
            what = ", ".join(f"{count} {reason}" for reason, count in index.skipped.items())
            notes.append(f"skipped in the data folder: {what}")
        return (*notes, *self.plan_notes, *self.changes)
