"""All that is decided before training: data, split, model, plan. No torch, so that what is wrong is said at once."""

from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from convnext_cli.data.audit.inspection import Progress
from convnext_cli.data.intake import Intake, Taken, take_in
from convnext_cli.data.scan import Index, check_trainable
from convnext_cli.data.split import Folds, explain_weak_validation, split_index
from convnext_cli.errors import UsageError, WeightsError, check_word
from convnext_cli.models.catalog import Architecture, Tag, find_model
from convnext_cli.recipes.machine import Machine, count_cpus, count_local_processes, describe_machine
from convnext_cli.recipes.plan import Choice, Plan, make_plan
from convnext_cli.recipes.recipe import check_settings, default_settings
from convnext_cli.recipes.recommendation import recommend
from convnext_cli.recipes.tables import RECIPES
from convnext_cli.runs import RUNS, RunFolder, check_outside


@dataclass(frozen=True, kw_only=True, slots=True)
class Request:
    """What the user asked for."""

    data: Path
    """A folder, a CSV file, or a zip file."""
    exclude: Path | None = None
    group_from: str = "auto"
    resplit: bool = False
    audit: bool = True
    folds: Folds | None = None
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

    taken: Taken
    index: Index
    """The images taken in, with the split that will be used."""
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
        grouping = self.taken.grouping
        if grouping.groups:
            example = f", such as {grouping.examples[0][1]} of {grouping.examples[0][0]}" if grouping.examples else ""
            guess = "; --group-from none if they mean nothing" if grouping.source in ("names", "folders") else ""
            notes.append(f"{grouping.groups:,} groups (patients?) by {grouping.rule}{example}{guess}")
        for finding in self.taken.audit.findings if self.taken.audit else ():
            gravity = "THE SCORE WILL BE FALSE: " if finding.falsifies else ""
            number = f"{finding.count:,} x " if finding.count else ""
            notes.append(f"{gravity}{number}{finding.title}: {finding.action}")
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
    """Does what `prepare_steps` does, and returns its result."""
    [last] = deque(prepare_steps(request, use_gpu=use_gpu), maxlen=1)
    assert isinstance(last, Prepared)
    return last


def prepare_steps(request: Request, *, use_gpu: bool = True) -> Iterator[Progress | Prepared]:
    """Checks a request, takes in and splits its data, and makes the plan: yields progress, and the result last.

    Args:
        request: what the user asked for.
        use_gpu: False where it is known already that the processor will train.

    Raises:
        UsageError: a setting, the model or the output folder is wrong.
        DataError: the data cannot be trained on.
        WeightsError: the weights given are not there.
    """
    values = default_settings() | {name: choice.value for name, choice in request.settings.items()}
    found = _check(request, values)
    intake = Intake(
        data=request.data,
        exclude=request.exclude,
        group_from=request.group_from,
        resplit=request.resplit,
        audit=request.audit,
    )
    taken: Taken | None = None
    for event in take_in(intake, threads=max(1, count_cpus() // count_local_processes())):
        if isinstance(event, Taken):
            taken = event
        else:
            yield event
    assert taken is not None
    check_trainable(taken.index)
    index = split_index(
        taken.index,
        val_fraction=values["val_fraction"],
        test_fraction=values["test_fraction"],
        seed=values["seed"],
        together=taken.together,
        folds=request.folds,
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
    yield Prepared(
        taken=taken,
        index=index,
        architecture=architecture,
        tag=tag,
        machine=machine,
        plan=plan,
        weak_validation=explain_weak_validation(index),
    )


def _check(request: Request, values: Mapping[str, Any]) -> tuple[Architecture, Tag | None] | None:
    """Checks all that needs no look at the data; returns the model that was asked for."""
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
    return found
