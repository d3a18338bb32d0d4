"""What the user asks a training for. No torch and no NumPy, so that the command line can read it at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from convnext_cli.recipes.settings import DEFAULT_RECIPE, Choice

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
    autotune: bool = True
    """True if a long run begins by measuring which compute configuration is fastest."""
    compile: bool | None = None
    """Whether the model is compiled before it trains; None where measuring decides."""
    track: tuple[str, ...] = ()
    """Where figures are sent as well: `tensorboard`, `wandb`, `mlflow`."""
