"""Cross-validation: a run for each fold, which validates on it. Data are scanned and checked once for all."""

from copy import deepcopy
from dataclasses import asdict, replace
from statistics import mean, stdev
from typing import TYPE_CHECKING, Any

from convnext_cli.data.index import digest_images
from convnext_cli.data.split import choose_fold
from convnext_cli.errors import RunError, UsageError
from convnext_cli.inference.request import EvalRequest
from convnext_cli.metrics.summary import MetricSet
from convnext_cli.recipes.plan import Plan
from convnext_cli.recipes.settings import has_folds
from convnext_cli.runs.files import ENVIRONMENT, METRICS, SPLIT
from convnext_cli.runs.folder import RunFolder, restore_remedy
from convnext_cli.runs.folds import FoldsFolder
from convnext_cli.runs.records import Environment, convert_record, to_plain
from convnext_cli.runs.split import digest_split, sum_digests
from convnext_cli.training.compute.environment import describe_environment
from convnext_cli.training.events import (
    Complete,
    CrossValidationResult,
    FinetuneResult,
    Fold,
    FoldDone,
    LeftOut,
    SplitMetrics,
    Spread,
    TrainSteps,
)
from convnext_cli.training.finetuning import finetune_steps, prepare_while_importing
from convnext_cli.training.origin import explain_other_images
from convnext_cli.training.planning import prepare
from convnext_cli.training.preparation import Preparation
from convnext_cli.training.request import TrainRequest, resume_request

if TYPE_CHECKING:
    from accelerate import Accelerator


def cross_validate_steps(request: TrainRequest, complete: Complete | None = None) -> TrainSteps[CrossValidationResult]:
    """Train a model for each fold, one after the other, or resume a cross-validation.

    Settings that are measured (epochs for `--max-time`, `--lr auto`) are measured in the first fold and used in all, so
    that the folds differ in their images only. A fold's weights are those of `--fold K` with the same settings.

    Raises:
        StoppedError: a signal has arrived; a checkpoint is written.
        ConvnextError: another subclass, with the remedy.
    """
    preparation = yield from prepare_while_importing(request)
    if preparation.fold_index is None:
        raise UsageError("a cross-validation needs folds", "Use --folds, without --fold")
    from convnext_cli.training.compute.devices import keep_process_state

    with keep_process_state():
        return (yield from _train_folds(preparation, complete))


def _train_folds(preparation: Preparation, complete: Complete | None) -> TrainSteps[CrossValidationResult]:
    from convnext_cli.training.compute.ranks import end_training
    from convnext_cli.training.lifecycle import run_training, start_training
    from convnext_cli.training.resources import guard_training, hold_folder, open_devices

    accelerator, preparation = open_devices(preparation)
    is_resumed = preparation.request.resume is not None
    with guard_training(accelerator), hold_folder(preparation, accelerator) as (path, notices):
        folder = FoldsFolder(path)
        plan = preparation.plan
        missing = _open_folds_folder(preparation, folder, accelerator)
        scaler = accelerator.scaler
        for fold in missing:
            accelerator.scaler = deepcopy(scaler)  # each fold begins with the scale of losses of a fold trained alone
            run = folder.run(fold)
            fold_preparation = _prepare_fold(preparation, plan, run, fold)
            with hold_folder(fold_preparation, accelerator):
                training = yield from start_training(fold_preparation, run, accelerator)
                if not is_resumed and fold == 1:
                    plan = training.context.plan.with_choices(fold=plan.choices["fold"])
                    if accelerator.is_main_process:
                        folder.write_plan(plan.to_toml())
                if is_resumed and accelerator.is_main_process:
                    run.copy_audit(folder)  # a resumed cross-validation does not audit the images again
                result = yield from run_training(training, complete, notices)
            del training  # its model and optimizer, before the next fold's
            yield FoldDone(fold=fold, result=result)
            accelerator.free_memory()
        summary = yield from _summarise(folder, preparation.plan.settings.folds, accelerator)
        end_training()
    return summary


def train_steps(
    request: TrainRequest, complete: Complete | None = None
) -> TrainSteps[FinetuneResult | CrossValidationResult]:
    """Run or resume a cross-validation if the request is for one; else train or resume one model."""
    if FoldsFolder(request.resume).is_begun if request.resume else has_folds(request.values):
        return (yield from cross_validate_steps(request, complete))
    return (yield from finetune_steps(request, complete))


def _open_folds_folder(preparation: Preparation, folder: FoldsFolder, accelerator: "Accelerator") -> list[int]:
    """Begin or check the folder of a cross-validation, whose lock is held; return the folds to train.

    Raises:
        DataError: the images differ from those that it began with.
        RunError: its split was changed.
    """
    from convnext_cli.training.compute.devices import describe_device

    assert preparation.fold_index is not None
    number, is_new = preparation.plan.settings.folds, preparation.request.resume is None
    missing = [fold for fold in range(1, number + 1) if is_new or not folder.run(fold).is_finished]
    images = preparation.image_digest  # of the first fold: all images but the test split's
    split = sum_digests(digest_split(preparation.fold_index))
    environment = None if is_new else folder.read(ENVIRONMENT, Environment)
    if not is_new and (environment is None or environment.images != images):
        raise explain_other_images(preparation.index, folder)
    if environment is not None and environment.split not in (None, split):
        raise RunError(
            f"{SPLIT.path(folder.path)} was changed since its first fold began",
            restore_remedy("the original file"),
        )
    accelerator.wait_for_everyone()  # until all have read the folder
    if is_new and accelerator.is_main_process:
        folder.create(overwrite=preparation.request.overwrite)
        preparation.write_data(folder)
        environment_now = describe_environment(describe_device(accelerator.device))
        folder.write(ENVIRONMENT, environment_now | {"images": images, "split": split})
    elif accelerator.is_main_process:
        folder.move_data(preparation.fold_index)
    return missing


def _prepare_fold(preparation: Preparation, plan: Plan, run: RunFolder, fold: int) -> Preparation:
    """Return the preparation of one fold, with the plan of all folds; a fold that has begun is resumed."""
    request = preparation.request
    if request.resume is not None and run.is_begun:
        return prepare(resume_request(request, run.path))
    assert preparation.fold_index is not None
    index = choose_fold(preparation.fold_index, fold)
    max_time = request.max_time / plan.settings.folds if request.max_time and fold == 1 else None
    return replace(
        preparation,
        request=replace(request, resume=None, output=run.path, overwrite=False, max_time=max_time),
        index=index,
        fold_index=None,
        plan=plan.with_choices(fold=replace(plan.choices["fold"], value=fold)),
        image_digest=digest_images(index),
    )


def _summarise(folder: FoldsFolder, number: int, accelerator: "Accelerator") -> TrainSteps[CrossValidationResult]:
    """Read the metrics of all folds, and write them with mean and standard deviation, and those of the left-out values.

    Only the first process evaluates the latter.
    """
    index = folder.read_split()
    folds = tuple(_read_fold(folder, fold, index.task.metrics) for fold in range(1, number + 1))
    left_out: list[LeftOut] = []
    if index.fold_names and accelerator.is_main_process:
        for fold, name in zip(folds, index.fold_names, strict=True):
            left_out.append((yield from _evaluate_left_out(folder.run(fold.fold), fold.fold, name)))
    result = CrossValidationResult(
        run=folder.path,
        task=index.task.name,
        folds=folds,
        spread=compute_spread([fold.val for fold in folds]),
        left_out=tuple(left_out),
    )
    if accelerator.is_main_process:
        metrics: dict[str, Any] = {
            "folds": [{"fold": fold.fold, "epoch": fold.epoch, **list_scalars(fold.val)} for fold in folds],
            "spread": {name: asdict(spread) for name, spread in result.spread.items()},
        }
        if left_out:
            metrics["left_out"] = [asdict(entry) | {"run": entry.run.name} for entry in left_out]
        folder.write(METRICS, metrics)
    return result


def _evaluate_left_out(run: RunFolder, fold: int, name: str) -> TrainSteps[LeftOut]:
    """Evaluate the model of a fold on its validation images, and on those of the value that it has not seen."""
    from convnext_cli.inference.evaluation import evaluate_steps

    parts = {}
    for split in ("val", "test"):
        evaluation = yield from evaluate_steps(run, EvalRequest(split=split))
        parts[split] = SplitMetrics(
            images=evaluation.metrics.images,
            values=list_scalars(evaluation.metrics),
            intervals=evaluation.intervals.overall,
        )
    return LeftOut(fold=fold, name=name, run=run.path, internal=parts["val"], external=parts["test"])


def list_scalars(metrics: MetricSet) -> dict[str, float | None]:
    """Return the metrics that are a single number, by name; None for one that is not defined."""
    return {name: value for name, value in to_plain(metrics).items() if not isinstance(value, tuple | int)}


def compute_spread(folds: list[MetricSet]) -> dict[str, Spread]:
    """Return mean and standard deviation of each metric that is defined in two folds or more."""
    by_fold = [list_scalars(metrics) for metrics in folds]
    spread = {}
    for name in by_fold[0]:
        values = [value for scalars in by_fold if (value := scalars[name]) is not None]
        if len(values) > 1:
            spread[name] = Spread(mean=mean(values), sd=stdev(values), n=len(values))
    return spread


def _read_fold(folder: FoldsFolder, fold: int, metrics: type[MetricSet]) -> Fold:
    """Return the result of a finished fold, whose metrics are of the given class."""
    run = folder.run(fold)
    result, remedy = run.read_result(), folder.remedy(METRICS)
    if result is None or result.val is None:
        raise RunError(f"{run.metrics} is missing, or has no validation metrics", remedy)
    val = convert_record(result.val, metrics, f"{run.metrics}, val,", remedy)
    return Fold(fold=fold, run=run.path, epoch=result.epoch, val=val)
