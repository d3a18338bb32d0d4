"""Cross-validation: each fold validates once, a run for each; the data are scanned and looked at once for all."""

from collections.abc import Iterator
from dataclasses import dataclass, fields, replace
from pathlib import Path
from statistics import mean, stdev
from typing import TYPE_CHECKING

from convnext_cli.data.intake import digest_images
from convnext_cli.data.split import choose_fold, explain_weak_validation
from convnext_cli.errors import DataError, RunError, UsageError
from convnext_cli.evaluation.metrics import Metrics
from convnext_cli.folds import FoldsFolder
from convnext_cli.progress import Progress
from convnext_cli.recipes.plan import Plan
from convnext_cli.recipes.rules import Choice
from convnext_cli.records import convert_record
from convnext_cli.text import quote
from convnext_cli.training.environment import describe_environment
from convnext_cli.training.finetuning import (
    Finished,
    Planned,
    Started,
    Trained,
    finetune_steps,
    hold_folder,
    open_devices,
    prepare_along,
    train_prepared,
)
from convnext_cli.training.origin import digest_split, sum_digests
from convnext_cli.training.preparation import Prepared, Request, continue_if_restarted, prepare

if TYPE_CHECKING:
    from accelerate import Accelerator

    from convnext_cli.training.loop import EpochDone, Remark, StepDone


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
class CrossValidated:
    """All folds are on disk."""

    run: Path
    folds: tuple[Fold, ...]
    spread: dict[str, Spread]
    """By the name of the figure in `Metrics`."""


def cross_validate_steps(
    request: Request,
) -> "Iterator[Progress | Planned | Started | StepDone | EpochDone | Remark | Trained | Finished | CrossValidated]":
    """Does what `cross_validate` does, or continues it, and yields what happens, each fold's `Finished` included.

    The first fold decides what is measured (epochs that fit into a time); the others take it from there, so that all
    differ in their images alone. A fold's weights are those of `--fold K` with the same settings.

    Raises:
        StoppedError: a signal asked to stop; the state is saved.
        ConvnextError: another subclass says what is wrong and what to do.
    """
    request = continue_if_restarted(request)
    prepared = yield from prepare_along(request)
    if prepared.folds is None:
        raise UsageError("there are no folds to train in turn", "Give --folds, without --fold")
    accelerator, prepared = open_devices(request, prepared)
    with hold_folder(request, prepared.plan.model, accelerator) as (path, notes):
        for event in _train_folds(request, prepared, FoldsFolder(path), accelerator):
            yield replace(event, notes=(*event.notes, *notes)) if isinstance(event, Started) else event


def _train_folds(
    request: Request, prepared: Prepared, folder: FoldsFolder, accelerator: "Accelerator"
) -> "Iterator[Progress | Planned | Started | StepDone | EpochDone | Remark | Trained | Finished | CrossValidated]":
    """Train the folds that are missing into `folder`, which this process holds."""
    from convnext_cli.training.devices import describe_device

    number, is_new, is_main = prepared.plan.recipe.folds, request.resume is None, accelerator.is_main_process
    missing = [fold for fold in range(1, number + 1) if is_new or not folder.run(fold).is_finished]
    begun = {fold for fold in missing if not is_new and folder.run(fold).is_begun}
    images = prepared.images  # of the first fold: all that are no test images
    split = sum_digests(digest_split(prepared.folds)) if prepared.folds else ""
    environment = None if is_new else folder.read_environment()
    if not is_new and (environment is None or environment.images != images):
        raise DataError(
            f"the images in {prepared.index.root} are not those that {folder.path} began with",
            "Bring the former files back, or begin anew with another --output",
        )
    if environment is not None and environment.split not in (None, split):
        raise RunError(
            f"{folder.path / 'split.csv'} was changed since its first fold began",
            "Put the former file back, or begin anew with another --output",
        )
    assert prepared.folds is not None
    accelerator.wait_for_everyone()  # all have read what is there
    if is_new and is_main:
        folder.create(overwrite=request.overwrite)
        folder.write_split(prepared.folds)
        if prepared.taken and prepared.taken.audit:
            folder.write_audit(prepared.taken.audit.as_dict())
            folder.write_image_hashes(prepared.taken.audit.list_image_hashes(prepared.folds))
        made_with = describe_environment(describe_device(accelerator.device))
        folder.write_environment(made_with | {"images": images, "split": split})
    plan = prepared.plan
    for fold in missing:
        run = folder.run(fold)
        if fold in begun:
            own = {name: getattr(request, name) for name in ("data", "offline", "cache", "probe", "track")}
            asked = Request(resume=run.path, **own)
            chosen = prepare(asked)
        else:
            max_time = request.max_time and request.max_time / number
            asked = replace(
                request, resume=None, output=run.path, overwrite=False, max_time=max_time if fold == 1 else None
            )
            chosen = _choose(prepared, plan, fold)
        with hold_folder(asked, plan.model, accelerator):
            for event in train_prepared(asked, chosen, run, accelerator):
                if isinstance(event, Started) and is_new and fold == 1:
                    plan = _set_fold(event.plan, plan.settings["fold"])
                    if is_main:
                        folder.write_plan(plan.to_toml())
                # a continued cross-validation has not looked at the images again
                if isinstance(event, Started) and not is_new and is_main:
                    run.copy_audit(folder)
                yield event
        accelerator.free_memory()
    found = tuple(_read_fold(folder, fold) for fold in range(1, number + 1))
    done = CrossValidated(run=folder.path, folds=found, spread=spread_figures([fold.val for fold in found]))
    if is_main:
        folder.write_metrics(
            {
                "folds": [{"fold": fold.fold, "epoch": fold.epoch, **figures_of(fold.val)} for fold in found],
                "spread": {name: {"mean": s.mean, "sd": s.sd, "n": s.n} for name, s in done.spread.items()},
            }
        )
    accelerator.end_training()
    yield done


def train_steps(
    request: Request,
) -> "Iterator[Progress | Planned | Started | StepDone | EpochDone | Remark | Trained | Finished | CrossValidated]":
    """Does what is asked for: all folds in turn, or one fine-tuning."""
    folds, fold = (request.settings.get(name, Choice(value=0, source="default")).value for name in ("folds", "fold"))
    is_whole = FoldsFolder(request.resume).is_begun if request.resume else bool(folds) and not fold
    yield from cross_validate_steps(request) if is_whole else finetune_steps(request)


def figures_of(metrics: Metrics) -> dict[str, float | None]:
    """The figures of an evaluation that are one number, by name; None where one is not defined."""
    values = {field.name: getattr(metrics, field.name) for field in fields(Metrics)}
    return {name: value for name, value in values.items() if not isinstance(value, tuple | int)}


def spread_figures(found: list[Metrics]) -> dict[str, Spread]:
    """Mean and standard deviation of each figure over the folds; one that is defined in fewer than two is left out."""
    by_fold = [figures_of(metrics) for metrics in found]
    spread = {}
    for name in by_fold[0]:
        values = [value for figures in by_fold if (value := figures[name]) is not None]
        if len(values) > 1:
            spread[name] = Spread(mean=mean(values), sd=stdev(values), n=len(values))
    return spread


def _choose(prepared: Prepared, plan: Plan, fold: int) -> Prepared:
    """What one fold is trained on, by the plan of all."""
    assert prepared.folds is not None
    index = choose_fold(prepared.folds, fold)
    return replace(
        prepared,
        index=index,
        folds=None,
        plan=_set_fold(plan, replace(plan.settings["fold"], value=fold)),
        images=digest_images(index),
        weak_validation=explain_weak_validation(index),
    )


def _set_fold(plan: Plan, choice: Choice) -> Plan:
    return replace(plan, settings={**plan.settings, "fold": choice})


def _read_fold(folder: FoldsFolder, fold: int) -> Fold:
    run = folder.run(fold)
    kept = run.read_result()
    remedy = f"Delete it, and `convnext finetune --resume {quote(folder.path)}` writes it again"
    if kept is None or kept.val is None:
        raise RunError(f"{run.metrics} is missing, or has no metrics on validation", remedy)
    val = convert_record(kept.val, Metrics, f"{run.metrics}, val,", remedy)
    return Fold(fold=fold, run=run.path, epoch=kept.epoch, val=val)
