"""The options of a recommendation. No torch and no NumPy, so that the command line can read it at once."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Annotated, Any

from convnext_cli.machine import Machine
from convnext_cli.options import AugmentationOption, DataOption, ModelOption, Option
from convnext_cli.recipes.fingerprint import DataCounts, Fingerprint
from convnext_cli.recipes.settings import DEFAULT_RECIPE, RECIPE_HELP, WEIGHTS_HELP

MAX_VRAM = 100_000  # GiB; larger values are typing errors


@dataclass(frozen=True, kw_only=True, slots=True)
class RecommendRequest:
    """The data set or its size, the machine, and the preferences; `recommend` documents the fields."""

    data: Annotated[
        Path | None, DataOption("Folder, table or zip file of images; or use --dataset-size.", is_argument=True)
    ] = None
    dataset_size: Annotated[
        int | None,
        DataOption("Number of images, all splits together.", is_common=True, low=1),
    ] = None
    classes: Annotated[int | None, DataOption("Number of classes.", is_common=True, low=2)] = None
    domain: Annotated[
        str | None,
        AugmentationOption(
            "Kind of images: medical, natural or other; sets the augmentation. Default: guessed from the images.",
            is_common=True,
            metavar="NAME",
        ),
    ] = None
    model: Annotated[
        str | None,
        ModelOption(
            "Plan for this architecture, with or without .tag.",
            is_common=True,
            flags=("-m",),
            metavar="NAME",
            completion="model",
        ),
    ] = None
    weights: Annotated[str, ModelOption(WEIGHTS_HELP, is_common=True)] = "auto"
    prefer: Annotated[
        str | None,
        ModelOption(
            "Order of the models: by accuracy, speed or size; default: the specification's.",
            is_common=True,
            metavar="NAME",
        ),
    ] = None
    license: Annotated[
        str,
        ModelOption("Licence that the weights must have: any, permissive, or a name.", is_common=True, metavar="NAME"),
    ] = "any"
    recipe: Annotated[str, ModelOption(RECIPE_HELP, is_common=True, metavar="NAME")] = DEFAULT_RECIPE
    vram: Annotated[
        float | None,
        Option(
            "Memory of the GPU, if it is not in this machine.",
            unit="GiB",
            is_common=True,
            low=0,
            high=MAX_VRAM,
            is_open=True,
        ),
    ] = None
    machine: Machine | None = None
    counts: DataCounts | None = None
    fingerprint: Fingerprint | None = None
    settings: Mapping[str, Any] = field(default_factory=dict)
