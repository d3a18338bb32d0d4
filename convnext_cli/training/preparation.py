"""All that is decided before training: data, split, model, plan. No torch, so that what is wrong is said at once."""

import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from convnext_cli.data.dataset import Dataset, DatasetRequest, load_dataset
from convnext_cli.data.groups import find_groups_across_splits
from convnext_cli.data.index import Index, check_outside_data, check_trainable, digest_images
from convnext_cli.data.split import Folds, choose_fold, explain_small_validation, split_index
from convnext_cli.errors import RunError, UsageError, check_word
from convnext_cli.files import check_outside
from convnext_cli.locks import check_unlocked
from convnext_cli.machine import Machine, count_cpus, count_local_processes, detect_machine
from convnext_cli.models.catalog import BUILTIN, Architecture, Tag, find_model, load_builtin, resolve_weights
from convnext_cli.progress import Steps, finish
from convnext_cli.recipes.fingerprint import Fingerprint, compute_fingerprint, explain_domain
from convnext_cli.recipes.plan import Plan, make_plan, read_choices, read_plan
from convnext_cli.recipes.recommendation import DataCounts, choose_augmentation, recommend
from convnext_cli.recipes.rules import check_head, explain_lr
from convnext_cli.recipes.settings import (
    AUTO,
    RECIPES,
    Choice,
    check_combinations,
    check_settings,
    default_settings,
    describe_settings,
    is_unicode,
)
from convnext_cli.recipes.tables import load_augmentations
from convnext_cli.runs.folder import RUNS, RunFolder
from convnext_cli.runs.folds import FoldsFolder, open_folder
from convnext_cli.text import quote
from convnext_cli.training.origin import Origin, check_plan, check_split, read_origin
from convnext_cli.training.request import TRACKERS, TrainRequest


@dataclass(frozen=True, kw_only=True, slots=True)
class Preparation:
    """Data, split, model and plan of a training."""

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
            notes += [
                f"warning: {notice.text}" if notice.severity == "warning" else notice.text
                for notice in self.dataset.list_notices()
            ]
        if self.dataset is not None and self.dataset.index.folds and self.plan.settings.folds:
            own = self.dataset.index
            torn = len(find_groups_across_splits(own.groups, own.folds)) if own.groups else 0
            torn += sum(len({own.folds[row] for row in rows} - {""}) > 1 for rows in self.dataset.duplicate_sets)
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


def continue_if_restarted(request: TrainRequest) -> TrainRequest:
    """Where torchrun starts its processes again after a failure, the same command continues the run it began."""
    restarted = int(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0")) > 0
    if restarted and request.resume is None and request.output and open_folder(request.output).is_begun:
        return TrainRequest(resume=request.output, offline=request.offline, cache=request.cache, track=request.track)
    return request


def prepare(request: TrainRequest, *, use_gpu: bool = True) -> Preparation:
    """Check a request, load and split its data, and make the plan, as `prepare_steps` does."""
    return finish(prepare_steps(request, use_gpu=use_gpu))


def prepare_steps(request: TrainRequest, *, use_gpu: bool = True) -> Steps[Preparation]:
    """Check a request, load and split its data, and make the plan.

    Where a run is to be continued, all that is taken from the run.

    Args:
        request: what the user asked for.
        use_gpu: False where it is known already that the processor will train.

    Raises:
        UsageError: a setting, the model or the output folder is wrong.
        DataError: the data cannot be trained on.
        WeightsError: the weights given are not there.
        RunError: the run to be continued is none, or damaged.
    """
    _check_trackers(request.track)
    if request.resume is not None:
        return _prepare_resumed(request, request.resume, use_gpu=use_gpu)
    if request.data is None:
        raise UsageError(
            "no data are given", "Give the folder of images, or --resume RUN (`convnext finetune --help` shows both)"
        )
    data = request.data
    model, weights = resolve_weights(request.model, request.weights)
    request = replace(request, model=model, weights=weights)
    values = default_settings() | {name: choice.value for name, choice in request.choices.items()}
    found = _check(request, data, values)
    dataset_request = DatasetRequest(
        data=data,
        image_root=values["image_root"],
        exclude=values["exclude"],
        group_from=values["group_from"],
        resplit=values["resplit"],
        audit=request.audit,
    )
    dataset = yield from load_dataset(dataset_request, threads=max(1, count_cpus() // count_local_processes()))
    check_outside_data(request.output or RUNS, dataset.index)
    check_trainable(dataset.index)
    index = split_index(
        dataset.index,
        val_fraction=values["val_fraction"],
        test_fraction=values["test_fraction"],
        seed=values["seed"],
        duplicate_sets=dataset.duplicate_sets,
        folds=Folds(number=values["folds"], fold=values["fold"]) if values["folds"] else None,
    )
    folds = index if values["folds"] and not values["fold"] else None
    parts = [choose_fold(folds, fold) for fold in range(1, values["folds"] + 1)] if folds else [index]
    for index in parts:
        check_trainable(index)
    index = parts[0]
    machine = detect_machine(use_gpu=use_gpu)
    fingerprint = compute_fingerprint(dataset.index)
    counts = DataCounts.from_index(index, fingerprint)
    if found is None:
        best = recommend(
            len(index), machine=machine, recipe=request.recipe, counts=counts, fingerprint=fingerprint
        ).best
        found = best.model, best.tag
    architecture, tag = found
    check_head(architecture, request.choices)
    augment = request.augment or choose_augmentation(None, request.recipe, fingerprint)
    keep = augment is not None and request.augment is None  # a guess never replaces what a plan file holds
    make = partial(
        make_plan,
        architecture,
        tag,
        weights="auto" if request.weights == BUILTIN else request.weights,  # the model's tag says it
        images=len(index),
        train_images=counts.train,
        machine=machine,
        recipe=request.recipe,
        augment=augment,
        keep_planned=keep,
        median_side=fingerprint.median_side,
    )
    plan = make(given=request.choices)
    return Preparation(
        dataset=dataset,
        index=index,
        folds=folds,
        architecture=architecture,
        tag=tag,
        machine=machine,
        plan=plan,
        images=digest_images(index),
        fingerprint=fingerprint,
        plan_notes=_explain_plan(request, architecture, plan, make(given=_without_lr(request.choices)), fingerprint),
        weak_validation=explain_small_validation(index),
    )


def _explain_plan(
    request: TrainRequest, architecture: Architecture, plan: Plan, usual: Plan, fingerprint: Fingerprint
) -> tuple[str, ...]:
    """Say what the user should know of a plan; `usual` is the same one with the recipe's own learning rate."""
    notes = []
    guessed = choose_augmentation(None, request.recipe, fingerprint) if request.augment is None else None
    if guessed and any(choice.source == f"augmentation {guessed}" for choice in plan.choices.values()):
        notes.append(explain_domain(fingerprint, "--augment light, natural or none overrules it"))
    lr = plan.choices["lr"]
    if lr.source in ("flag", "plan"):
        note = explain_lr(architecture, lr.value, plan.settings.batch_size, usual.settings.lr)
        notes += [note] if note else []
    return tuple(notes)


def _without_lr(settings: Mapping[str, Choice]) -> dict[str, Choice]:
    return {name: choice for name, choice in settings.items() if name != "lr"}


def _check(request: TrainRequest, data: Path, values: Mapping[str, Any]) -> tuple[Architecture, Tag | None] | None:
    """Checks all that needs no look at the data; returns the model that was asked for."""
    check_settings(values)
    check_combinations(values)
    check_word("recipe", request.recipe, RECIPES)
    check_word("augmentation", request.augment, tuple(load_augmentations()))
    found = _find_builtin(request.model) if request.weights == BUILTIN else None
    if request.model is not None and found is None:
        found = find_model(request.model)
    check_head(found and found[0], request.choices)
    check_outside(request.output or RUNS, data)
    if request.output is not None:
        folder = FoldsFolder(request.output) if values["folds"] and not values["fold"] else RunFolder(request.output)
        check_unlocked(request.output)
        folder.check_free(overwrite=request.overwrite)
    if not is_unicode(request.weights):
        raise UsageError(
            f"--weights {request.weights!r} is not Unicode text, so no plan can hold it", "Rename the file"
        )
    return found


def _find_builtin(model: str | None) -> tuple[Architecture, Tag | None]:
    """The model of the weights in the package; `--weights builtin` is another way to name it."""
    own = load_builtin().architecture
    if model not in (None, own, f"{own}.{BUILTIN}"):
        raise UsageError(
            f"the weights in the package are for {own}, not for {model}", f"Leave out --model, or give --model {own}"
        )
    return find_model(f"{own}.{BUILTIN}")


def _check_trackers(names: tuple[str, ...]) -> None:
    for name in names:
        check_word("tracker", name, TRACKERS)
        if find_spec(name) is None:
            raise UsageError(f"{name} is not installed", f"Install it with `pip install 'convnext-cli[{name}]'`")


def check_unfinished(run: RunFolder) -> None:
    """Check that a run has not come to its end.

    Raises:
        UsageError: it has.
    """
    if run.is_finished:
        onnx = (
            ""
            if isinstance(run, FoldsFolder) or run.exported("onnx").exists()
            else (f"; `convnext export {quote(run.path)}` writes model.onnx, which is not there")
        )
        raise UsageError(
            f"{run.path} has finished: there is nothing to continue",
            f"`convnext eval {quote(run.path)}` says how good it is; --config {quote(run.plan)} repeats it with other "
            f"settings{onnx}",
        )


def _prepare_resumed(request: TrainRequest, path: Path, *, use_gpu: bool) -> Preparation:
    run = open_folder(path)
    own = {name: getattr(request, name) for name in ("data", "offline", "cache", "autotune", "track")}
    if request != TrainRequest(resume=path, **own):
        raise UsageError(
            "--resume takes the model, the settings and the split from the run",
            "Leave out all else but --devices, --no-cache, --no-autotune, --track, --json and the data folder, if it "
            "has moved",
        )
    if not run.is_begun:
        raise RunError(f"{path} is no run that has begun", "Give a folder that `convnext finetune` made, or begin anew")
    check_unlocked(path)
    if run.is_finished:
        run.drop_temporary()
    check_unfinished(run)
    model, weights, _ = read_plan(run.plan)
    if model is None:
        raise RunError(f"{run.plan} names no model", "Begin anew with another --output")
    choices = {name: Choice(value=value, source="default") for name, value in default_settings().items()}
    choices |= read_choices(run.plan)
    if missing := [name for name in describe_settings() if name not in choices]:
        raise RunError(f"{run.plan} lacks {', '.join(missing)}", "Begin anew with another --output")
    index = run.read_split()
    values = {name: choice.value for name, choice in choices.items()}
    origin, changes = _compare_origin(run, index, model, weights or "auto", values)
    architecture, tag = find_model(model)
    if request.data is not None:
        index = replace(index, root=request.data)
    check_outside(path, index.root)
    folds = index if isinstance(run, FoldsFolder) else None
    index = choose_fold(folds, 1) if folds else index
    return Preparation(
        dataset=None,
        index=index,
        folds=folds,
        architecture=architecture,
        tag=tag,
        machine=detect_machine(use_gpu=use_gpu),
        plan=Plan(
            model=model,
            weights=weights or "auto",
            choices={name: choices[name] for name in describe_settings()},
        ),
        images=digest_images(index),
        fingerprint=None,
        plan_notes=(),
        weak_validation=explain_small_validation(index),
        origin=origin,
        changes=changes,
    )


def _compare_origin(
    run: RunFolder, index: Index, model: str, weights: str, settings: dict[str, Any]
) -> tuple[Origin | None, tuple[str, ...]]:
    """Compare plan and split with what the run began with, and return that, and a note for each allowed change.

    Of a cross-validation the first fold is asked; its images' bytes are compared when it is continued.

    Raises:
        RunError: they differ.
    """
    first = run.run(1) if isinstance(run, FoldsFolder) else run
    origin = read_origin(first)
    if origin is None:
        if settings["lr"] == AUTO:
            raise RunError(f"{run.plan} has lr = {AUTO}, which began as a number", "Set it back to that number")
        return None, ("begun by a version that kept no digests: of plan, split and images only sizes are compared",)
    if isinstance(run, FoldsFolder):
        origin = replace(origin, settings=origin.settings | {"fold": 0})
        notes = check_plan(run, origin, model, weights, settings)
        check_split(first, origin, choose_fold(index, 1), folder=run.path)
        return None, tuple(notes)
    notes = check_plan(run, origin, model, weights, settings)
    check_split(run, origin, index)
    return origin, tuple(notes)
