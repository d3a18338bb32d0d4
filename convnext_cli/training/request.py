"""The options of a training. No torch and no NumPy, so that the command line can read it at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from convnext_cli.options import (
    AugmentationOption,
    DataOption,
    ModelOption,
    Option,
    TrainingOption,
    describe_options,
    parse_duration,
)
from convnext_cli.recipes.settings import (
    DEFAULT_RECIPE,
    RECIPE_HELP,
    WEIGHTS_HELP,
    Choice,
    default_settings,
    list_changed,
)

TRACKERS = ("tensorboard", "wandb", "mlflow")
DATA_HELP = (
    "Folder of <class>/ or {train,val,test}/<class>/ folders, CSV, JSONL or XLSX with path and label, or zip file."
)
TEACHER_HELP = "Teacher to distil: a run, folds, an .onnx, a timm model."


@dataclass(frozen=True, kw_only=True, slots=True)
class TrainRequest:
    """The options of a training."""

    data: Annotated[Path | None, DataOption(DATA_HELP, is_argument=True, is_shared=True)] = None
    audit: Annotated[bool, DataOption("Check every image before training.", name="check")] = True
    model: Annotated[
        str | None,
        ModelOption(
            "Architecture[.tag]; default: the recommended one.",
            is_common=True,
            flags=("-m",),
            metavar="NAME",
            completion="model",
        ),
    ] = None
    weights: Annotated[str, ModelOption(WEIGHTS_HELP, is_common=True)] = "auto"
    teacher: Annotated[str | None, ModelOption(TEACHER_HELP, is_common=True, metavar="MODEL", completion="run")] = None
    recipe: Annotated[str, ModelOption(RECIPE_HELP)] = DEFAULT_RECIPE
    offline: Annotated[
        bool, ModelOption("Never contact the Hub.", is_common=True, env="HF_HUB_OFFLINE", is_shared=True)
    ] = False
    max_time: Annotated[
        float | None,
        TrainingOption(
            "Time budget (90m, 2h, 1h30m); epochs are reduced to fit.",
            is_common=True,
            low=0,
            is_open=True,
            metavar="TIME",
            parse=parse_duration,
        ),
    ] = None
    augment: Annotated[
        str | None,
        AugmentationOption("Augmentation: none, light, medical, natural or strong.", is_common=True, metavar="PRESET"),
    ] = None
    output: Annotated[
        Path | None, Option("Run folder; default: runs/<time>-<model>/.", is_common=True, flags=("-o",), metavar="DIR")
    ] = None
    overwrite: Annotated[bool, Option("Replace an existing run at --output.", is_common=True)] = False
    resume: Annotated[
        Path | None,
        Option("Resume this run with its own settings and split.", is_common=True, metavar="RUN", completion="run"),
    ] = None
    cache: Annotated[bool, Option("Cache decoded images for later epochs and runs.", is_shared=True)] = True
    workers: Annotated[
        int | None,
        Option(
            "Processes that load training images; 0: threads; default: all cores but one with a GPU, else 0.",
            low=0,
            is_shared=True,
        ),
    ] = None
    autotune: Annotated[
        bool, Option("Measure which compute configuration is fastest, at the start of a long run.", is_shared=True)
    ] = True
    compile: Annotated[
        bool | None, Option("Compile the model: a minute or two, then faster steps; default: long runs.")
    ] = None
    track: Annotated[
        tuple[str, ...], Option("Send metrics to tensorboard, wandb or mlflow too; repeatable.", is_shared=True)
    ] = ()
    onnx: Annotated[
        bool, Option("Write model.onnx at the end; it lets `predict` run without PyTorch.", is_shared=True)
    ] = True
    choices: Mapping[str, Choice] = field(default_factory=dict)
    """The settings that are set already, each with its source."""

    @property
    def values(self) -> dict[str, Any]:
        """The value of each setting, the default where it is not set."""
        return default_settings() | {name: choice.value for name, choice in self.choices.items()}

    @property
    def chosen(self) -> tuple[str, ...]:
        """Names of the settings that the command line or a Python call changed from their defaults."""
        return list_changed({name: choice.value for name, choice in self.choices.items() if choice.source == "flag"})


def resume_request(request: TrainRequest, run: Path) -> TrainRequest:
    """Return the request that resumes a run, with those options of another one that may change."""
    shared = {
        name: getattr(request, name)
        for name, declaration in describe_options(TrainRequest).items()
        if declaration.option.is_shared
    }
    return TrainRequest(resume=run, **shared)
