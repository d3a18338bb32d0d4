"""All that is decided before training: data, split, model, plan. No torch, so that what is wrong is said at once."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from convnext_cli.data.scan import Index, check_trainable, scan_folder
from convnext_cli.data.split import explain_weak_validation, split_index
from convnext_cli.errors import UsageError, WeightsError, check_word
from convnext_cli.models.catalog import Architecture, Tag, find_model
from convnext_cli.recipes.machine import Machine, describe_machine
from convnext_cli.recipes.plan import Choice, Plan, make_plan
from convnext_cli.recipes.recipe import check_settings, default_settings
from convnext_cli.recipes.recommendation import recommend
from convnext_cli.recipes.tables import RECIPES
from convnext_cli.runs import RUNS, RunFolder, check_outside


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asked for."""

    data: Path
    model: str | None = None
    """An architecture, with or without a `.tag`; None for the recommended one."""
    output: Path | None = None
    """The run folder; None for `runs/<time>-<model>/`."""
    weights: str = "auto"
    """`auto`, `none`, or the path of a file or run folder."""
    offline: bool = False
    overwrite: bool = False
    recipe: str = "specification"
    settings: Mapping[str, Choice]


@dataclass(frozen=True, kw_only=True, slots=True)
class Prepared:
    """What will be done."""

    index: Index
    architecture: Architecture
    tag: Tag | None
    machine: Machine
    plan: Plan
    weak_validation: str | None
    """Why the validation split is too small to choose the best epoch by; None where it is not."""

    @property
    def notes(self) -> tuple[str, ...]:
        """What the user should know before trusting the result."""
        index, notes = self.index, []
        if self.weak_validation:
            notes.append(
                f"{self.weak_validation}: too few to choose the best epoch by, so the last one is kept. Move images "
                "from train to val; without a val folder, --val-fraction of them is drawn"
            )
        absent = [name for name, n in zip(index.classes, index.count_classes("test"), strict=True) if not n]
        if len(absent) == len(index.classes):
            notes.append("there is no test split: figures on the validation split are a little too good")
        elif absent:
            notes.append(f"the test split has no image of {', '.join(absent)}")
        if index.skipped:
            what = ", ".join(f"{count} {reason}" for reason, count in index.skipped.items())
            notes.append(f"skipped in the data folder: {what}")
        return tuple(notes)


def prepare(request: Request, *, use_gpu: bool = True) -> Prepared:
    """Checks a request, scans and splits its data, and makes the plan.

    Args:
        request: what the user asked for.
        use_gpu: False where it is known already that the processor will train.

    Raises:
        UsageError: a setting, the model or the output folder is wrong.
        DataError: the data cannot be trained on.
        WeightsError: the weights given are not there.
    """
    values = default_settings() | {name: choice.value for name, choice in request.settings.items()}
    check_settings(values)
    check_word("recipe", request.recipe, RECIPES)
    found = find_model(request.model) if request.model is not None else None
    if values["val_fraction"] + values["test_fraction"] >= 1:
        raise UsageError("val_fraction and test_fraction leave nothing to train on", "Make their sum less than 1")
    check_outside(request.output or RUNS, request.data)
    if request.output is not None:
        RunFolder(request.output).check_free(overwrite=request.overwrite)
    if request.weights not in ("auto", "none") and not Path(request.weights).exists():
        raise WeightsError(
            f"no weights at {request.weights}", "Give auto, none, a .safetensors or .pth file, or a run folder"
        )
    index = scan_folder(request.data)
    check_trainable(index)
    index = split_index(
        index, val_fraction=values["val_fraction"], test_fraction=values["test_fraction"], seed=values["seed"]
    )
    check_trainable(index)
    machine = describe_machine(use_gpu=use_gpu)
    if found is None:
        best = recommend(len(index), machine=machine, recipe=request.recipe).best
        found = best.model, best.tag
    architecture, tag = found
    plan = make_plan(
        architecture,
        tag,
        weights=request.weights,
        images=len(index.rows("train")),
        machine=machine,
        recipe=request.recipe,
        given=request.settings,
    )
    return Prepared(
        index=index,
        architecture=architecture,
        tag=tag,
        machine=machine,
        plan=plan,
        weak_validation=explain_weak_validation(index),
    )
