"""Cross-validation: each fold validates once, a run for each; the data are scanned and looked at once for all."""

from dataclasses import fields, replace
from statistics import mean, stdev
from typing import TYPE_CHECKING

from convnext_cli.data.index import digest_images
from convnext_cli.data.split import choose_fold, explain_small_validation
from convnext_cli.errors import DataError, RunError, UsageError
from convnext_cli.metrics.summary import Metrics
from convnext_cli.recipes.plan import Plan
from convnext_cli.recipes.settings import Choice
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder
from convnext_cli.runs.records import convert_record
from convnext_cli.text import quote
from convnext_cli.training.compute.environment import describe_environment
from convnext_cli.training.events import (
    Complete,
    CrossValidationResult,
    FinetuneResult,
    Fold,
    FoldDone,
    Spread,
    TrainSteps,
)
from convnext_cli.training.finetuning import finetune_steps, hold_folder, open_devices, run_training, start_training
from convnext_cli.training.origin import digest_split, sum_digests
from convnext_cli.training.preparation import Preparation, continue_if_restarted, prepare, prepare_steps
from convnext_cli.training.request import TrainRequest

if TYPE_CHECKING:
    from accelerate import Accelerator


def cross_validate_steps(request: TrainRequest, complete: Complete | None = None) -> TrainSteps[CrossValidationResult]:
    """Train a model for each fold, one after the other, or resume that.

    The first fold decides what is measured (epochs that fit into a time); the others take it from there, so that all
    differ in their images alone. A fold's weights are those of `--fold K` with the same settings.

    Args:
        request: what the user asked for, with folds.
        complete: work on each trained fold before it counts as finished.

    Raises:
        StoppedError: a signal asked to stop; the state is saved.
        ConvnextError: another subclass says what is wrong and what to do.
    """
    request = continue_if_restarted(request)
    preparation = yield from prepare_steps(request)
    if preparation.folds is None:
        raise UsageError("there are no folds to train in turn", "Give --folds, without --fold")
    accelerator, preparation = open_devices(request, preparation)
    with hold_folder(request, preparation.plan.model, accelerator) as (path, notes):
        folder = FoldsFolder(path)
        plan = preparation.plan
        missing = _open_folds_folder(request, preparation, folder, accelerator)
        for fold in missing:
            run = folder.run(fold)
            asked, chosen = _prepare_fold(request, preparation, plan, run, fold)
            with hold_folder(asked, plan.model, accelerator):
                training = yield from start_training(asked, chosen, run, accelerator)
                if request.resume is None and fold == 1:
                    plan = _set_fold(training.context.plan, plan.choices["fold"])
                    if accelerator.is_main_process:
                        folder.write_plan(plan.to_toml())
                if request.resume is not None and accelerator.is_main_process:
                    run.copy_audit(folder)  # a continued cross-validation has not looked at the images again
                result = yield from run_training(training, complete, notes)
            yield FoldDone(fold=fold, result=result)
            accelerator.free_memory()
        result_of_all = _summarise(folder, preparation.plan.settings.folds, accelerator)
        accelerator.end_training()
    return result_of_all


def train_steps(
    request: TrainRequest, complete: Complete | None = None
) -> TrainSteps[FinetuneResult | CrossValidationResult]:
    """Train all folds in turn where a request asks for that, else one model."""
    folds, fold = (request.choices.get(name, Choice(value=0, source="default")).value for name in ("folds", "fold"))
    is_whole = FoldsFolder(request.resume).is_begun if request.resume else bool(folds) and not fold
    if is_whole:
        return (yield from cross_validate_steps(request, complete))
    return (yield from finetune_steps(request, complete))


def _open_folds_folder(
    request: TrainRequest, preparation: Preparation, folder: FoldsFolder, accelerator: "Accelerator"
) -> list[int]:
    """Begin or check the folder of all folds, which this process holds; return the folds to train.

    Raises:
        DataError: the images are not those that it began with.
        RunError: its split was changed.
    """
    from convnext_cli.training.compute.devices import describe_device

    assert preparation.folds is not None
    number, is_new = preparation.plan.settings.folds, request.resume is None
    missing = [fold for fold in range(1, number + 1) if is_new or not folder.run(fold).is_finished]
    images = preparation.images  # of the first fold: all that are no test images
    split = sum_digests(digest_split(preparation.folds))
    environment = None if is_new else folder.read_environment()
    if not is_new and (environment is None or environment.images != images):
        raise DataError(
            f"the images in {preparation.index.root} are not those that {folder.path} began with",
            "Bring the former files back, or begin anew with another --output",
        )
    if environment is not None and environment.split not in (None, split):
        raise RunError(
            f"{folder.path / 'split.csv'} was changed since its first fold began",
            "Put the former file back, or begin anew with another --output",
        )
    accelerator.wait_for_everyone()  # all have read what is there
    if is_new and accelerator.is_main_process:
        folder.create(overwrite=request.overwrite)
        folder.write_split(preparation.folds)
        if preparation.dataset and preparation.dataset.audit:
            folder.write_audit(preparation.dataset.audit.as_dict())
            folder.write_image_hashes(preparation.dataset.audit.list_image_hashes(preparation.folds))
        made_with = describe_environment(describe_device(accelerator.device))
        folder.write_environment(made_with | {"images": images, "split": split})
    return missing


def _prepare_fold(
    request: TrainRequest, preparation: Preparation, plan: Plan, run: RunFolder, fold: int
) -> tuple[TrainRequest, Preparation]:
    """Return the request and the preparation of one fold, by the plan of all; of a begun fold, those that resume it."""
    if request.resume is not None and run.is_begun:
        own = {name: getattr(request, name) for name in ("data", "offline", "cache", "autotune", "track")}
        asked = TrainRequest(resume=run.path, **own)
        return asked, prepare(asked)
    number = plan.settings.folds
    max_time = request.max_time / number if request.max_time and fold == 1 else None
    asked = replace(request, resume=None, output=run.path, overwrite=False, max_time=max_time)
    return asked, _choose(preparation, plan, fold)


def _summarise(folder: FoldsFolder, number: int, accelerator: "Accelerator") -> CrossValidationResult:
    """Read the metrics of all folds, and write them with their mean and spread."""
    folds = tuple(_read_fold(folder, fold) for fold in range(1, number + 1))
    result = CrossValidationResult(run=folder.path, folds=folds, spread=compute_spread([fold.val for fold in folds]))
    if accelerator.is_main_process:
        folder.write_metrics(
            {
                "folds": [{"fold": fold.fold, "epoch": fold.epoch, **list_scalars(fold.val)} for fold in folds],
                "spread": {name: {"mean": s.mean, "sd": s.sd, "n": s.n} for name, s in result.spread.items()},
            }
        )
    return result


def list_scalars(metrics: Metrics) -> dict[str, float | None]:
    """The figures of an evaluation that are one number, by name; None where one is not defined."""
    values = {field.name: getattr(metrics, field.name) for field in fields(Metrics)}
    return {name: value for name, value in values.items() if not isinstance(value, tuple | int)}


def compute_spread(found: list[Metrics]) -> dict[str, Spread]:
    """Mean and standard deviation of each figure over the folds; one that is defined in fewer than two is left out."""
    by_fold = [list_scalars(metrics) for metrics in found]
    spread = {}
    for name in by_fold[0]:
        values = [value for figures in by_fold if (value := figures[name]) is not None]
        if len(values) > 1:
            spread[name] = Spread(mean=mean(values), sd=stdev(values), n=len(values))
    return spread


def _choose(preparation: Preparation, plan: Plan, fold: int) -> Preparation:
    """What one fold is trained on, by the plan of all."""
    assert preparation.folds is not None
    index = choose_fold(preparation.folds, fold)
    return replace(
        preparation,
        index=index,
        folds=None,
        plan=_set_fold(plan, replace(plan.choices["fold"], value=fold)),
        images=digest_images(index),
        weak_validation=explain_small_validation(index),
    )


def _set_fold(plan: Plan, choice: Choice) -> Plan:
    return replace(plan, choices={**plan.choices, "fold": choice})


def _read_fold(folder: FoldsFolder, fold: int) -> Fold:
    run = folder.run(fold)
    kept = run.read_result()
    remedy = f"Delete it, and `convnext finetune --resume {quote(folder.path)}` writes it again"
    if kept is None or kept.val is None:
        raise RunError(f"{run.metrics} is missing, or has no metrics on validation", remedy)
    val = convert_record(kept.val, Metrics, f"{run.metrics}, val,", remedy)
    return Fold(fold=fold, run=run.path, epoch=kept.epoch, val=val)
