"""The life of one training: begin or resume it, run it, finish it."""

from collections.abc import Sequence
from dataclasses import asdict, replace
from functools import partial
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from accelerate import Accelerator
from msgspec import convert
from numpy.typing import NDArray

from convnext_cli.errors import RunError, UsageError
from convnext_cli.inference.calibration import Calibration
from convnext_cli.inference.calibration_fit import calibrate_steps
from convnext_cli.inference.teacher import Teacher, open_teacher
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.machine import detect_machine
from convnext_cli.metrics.registry import METRICS
from convnext_cli.models.catalog import find_model
from convnext_cli.models.licenses import join_licenses
from convnext_cli.models.weights import read_normalisation, read_weights_license
from convnext_cli.options import AUTO
from convnext_cli.progress import Notice, Progress
from convnext_cli.recipes.costs import AUTOTUNED_PASSES, Workload
from convnext_cli.recipes.fingerprint import DataCounts
from convnext_cli.recipes.settings import UNKNOWN
from convnext_cli.recipes.speeds import remember_speed
from convnext_cli.runs import files
from convnext_cli.runs.folder import RunFolder, restore_remedy
from convnext_cli.runs.folds import describe_resume
from convnext_cli.runs.split import sum_digests
from convnext_cli.training.build import build_context
from convnext_cli.training.checkpoint import load_checkpoint, save_checkpoint
from convnext_cli.training.compute.autotune import AutotuneResult, TunedPasses, choose_compute_config
from convnext_cli.training.compute.compute_config import ComputeConfig, adapt_to_device, configure_model
from convnext_cli.training.compute.devices import PRECISIONS, THREADS, describe_device, search_algorithms
from convnext_cli.training.compute.environment import describe_environment
from convnext_cli.training.compute.ranks import do_on_first_rank
from convnext_cli.training.compute.signals import watch_signals
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import Complete, EpochDone, FinetuneResult, Planned, Started, Trained, TrainSteps
from convnext_cli.training.origin import (
    NO_CONTENTS,
    check_contents,
    check_teacher_identity,
    digest_contents,
    explain_other_images,
    record_origin,
)
from convnext_cli.training.parts.ema import ModelEma
from convnext_cli.training.parts.optimizer import BETAS
from convnext_cli.training.phases.head import train_head
from convnext_cli.training.phases.lr_finder import apply_range_test, find_lr_steps
from convnext_cli.training.phases.time_budget import fit_epochs
from convnext_cli.training.preparation import Preparation
from convnext_cli.training.request import TrainRequest
from convnext_cli.training.saving import train_and_save
from convnext_cli.training.state import TrainingState
from convnext_cli.training.teaching import compute_outputs
from convnext_cli.training.tracking import track_metrics


class Training(NamedTuple):
    """A training that has been begun or resumed, before its next step."""

    context: TrainingContext
    state: TrainingState
    compute: AutotuneResult
    notices: tuple[Notice, ...] = ()
    """Notices since the plan was made."""
    head_epoch: EpochDone | None = None
    """The frozen phase of a new run, as epoch 0."""
    resumed_at: int | None = None
    """Optimizer steps that a resumed run has done; None for a new run."""


def start_training(preparation: Preparation, run: RunFolder, accelerator: Accelerator) -> TrainSteps[Training]:
    """Begin a training in `run`, or resume it there if the request is to. All ranks call it.

    Raises:
        DataError: the images differ from those that the run began with.
    """
    index, origin = preparation.index, preparation.origin
    yield Planned(run=run.path, plan=preparation.plan, index=index, notices=preparation.notices)
    contents = NO_CONTENTS
    if accelerator.is_main_process:
        contents = yield from digest_contents(index)
    if origin is not None:
        do_on_first_rank(accelerator, partial(check_contents, run, origin, index, contents))
    if preparation.plan.teacher is not None:
        yield Progress(done=0, total=1, activity="opening the teacher")
    teacher = _open_teacher(preparation)
    context = build_context(preparation, run, accelerator, teacher)
    if teacher is not None:
        image_digest = do_on_first_rank(accelerator, partial(sum_digests, contents))
        yield from compute_outputs(context, teacher, image_digest)
    del teacher  # and its memory on the device, before the training's is measured
    try:
        if preparation.request.resume is not None:
            return _resume(context, preparation)
        return (yield from _begin(context, preparation, contents))
    except BaseException:
        context.drop_compiled()
        raise


def run_training(
    training: Training, complete: Complete | None, notices: Sequence[Notice]
) -> TrainSteps[FinetuneResult]:
    """Train to the end, calibrate, and write the final metrics; yield `notices` with `Started`. All ranks call it."""
    context, state = training.context, training.state
    run, accelerator = context.run, context.accelerator
    try:
        yield Started(
            run=run.path,
            plan=context.plan,
            index=context.index,
            device=describe_device(accelerator.device),
            num_processes=accelerator.num_processes,
            precision=PRECISIONS[accelerator.mixed_precision],
            compute_config=str(training.compute),
            params=context.params,
            new_params=context.new_params,
            resumed_at=training.resumed_at,
            license=state.license,
            notices=(*training.notices, *notices),
        )
        if training.head_epoch is not None:
            yield training.head_epoch
        with track_metrics(accelerator, context.plan, run), watch_signals(context.signals):
            state = yield from train_and_save(context, state)
            context.drop_compiled()  # the calibration needs its memory
            context.signals.remedy = describe_resume(run)
            return (yield from _finish(context, state, complete))
    finally:
        context.drop_compiled()


def _open_teacher(preparation: Preparation) -> Teacher | None:
    """Return the teacher of the plan; None if it has none.

    Raises:
        RunError: it cannot be opened, or its weights are not those that the run began with.
    """
    name, origin = preparation.plan.teacher, preparation.origin
    if name is None:
        return None

    try:
        teacher = open_teacher(name, offline=preparation.request.offline)
    except (RunError, UsageError) as error:
        if origin is None:
            raise
        raise RunError(error.problem, restore_remedy(f"the teacher {name}")) from error  # no other can be given
    if origin is not None:
        check_teacher_identity(origin, teacher.identity)
    return teacher


def _begin(context: TrainingContext, preparation: Preparation, contents: NDArray[np.uint64]) -> TrainSteps[Training]:
    """Begin a new run, up to its first step. All ranks call it; `contents` are digests of the images."""
    run, settings, index, accelerator = context.run, context.settings, context.index, context.accelerator
    request = preparation.request

    # 1. The files that describe data and environment, and the digests that `--resume` compares.
    if accelerator.is_main_process:
        run.create(overwrite=request.overwrite)
        preparation.write_data(run)
        run.write(files.ENVIRONMENT, describe_environment(describe_device(accelerator.device)))
    teacher = context.distillation.teacher if context.distillation else ""
    origin = do_on_first_rank(accelerator, partial(record_origin, run, context.plan, index, contents, teacher))

    # 2. The compute configuration, which decides the rounding of all that follows.
    yield Progress(done=0, total=1, activity="autotuning")
    compute = _autotune(context, request)
    state = TrainingState(
        images=preparation.image_digest,
        origin=asdict(origin),
        license=_find_license(context, preparation),
        micro_batch_size=settings.micro_batch_size,
        **asdict(compute.compute_config),
    )

    # 3. The head alone, before the moving average begins.
    head_epoch = None
    if settings.freeze_epochs:
        head_epoch = yield from train_head(context)
        state.add_epoch(head_epoch, index.task, keeps_last=context.keeps_last)
    if settings.ema_decay:
        context.ema = ModelEma(context.model, settings.ema_decay)

    # 4. The first checkpoint; then the settings that are measured, after which it is loaded again.
    save_checkpoint(context, state)
    yield from _measure_settings(context, request, state)

    # 5. The plan, with which the run can be resumed; then the checkpoint, so that all ranks have the same weights.
    if accelerator.is_main_process:
        run.write_plan(context.plan.to_toml())
    state, notices = load_checkpoint(run, context)
    compute = _note_compiled(context, compute)  # memory may have become too small for it while settings were measured
    notices += [*compute.notices, *_note_normalisation(context)]
    return Training(context, state, compute, tuple(notices), head_epoch)


def _note_normalisation(context: TrainingContext) -> list[Notice]:
    """Return a warning where the user's weights were trained with another mean and std than the model's own."""
    weights, used = context.plan.weights, context.preprocessing
    stated = None if weights in (AUTO, "none") else read_normalisation(Path(weights))
    if stated is None or any(len(values) != len(used.mean) for values in stated):
        return []
    if np.allclose(stated, (used.mean, used.std), atol=1e-3):
        return []
    return [
        Notice(
            f"the config.json of {weights} has mean {stated[0]} and standard deviation {stated[1]}, but images are "
            f"normalised by {used.mean} and {used.std}, as for {context.plan.model}: a short training may not make up "
            "for it. If these are timm's weights, give --model their full name, NAME.TAG",
            "warning",
        )
    ]


def _autotune(context: TrainingContext, request: TrainRequest) -> AutotuneResult:
    """Choose the compute configuration of a new run and apply it to the model; return it with its notices."""
    compute = choose_compute_config(
        context.network,
        TunedPasses(
            model=context.plan.model,
            shape=context.input_shape,
            passes=context.passes,
            passes_per_step=context.passes_per_step,
        ),
        accelerator=context.accelerator,
        measure=request.autotune and not context.settings.deterministic,
        compile=request.compile,
    )
    return _configure(context, compute)


def _configure(context: TrainingContext, compute: AutotuneResult) -> AutotuneResult:
    """Apply a compute configuration to the model; return the one that it has then, with further notices."""
    context.searches_algorithms = context.passes >= AUTOTUNED_PASSES and not context.settings.deterministic
    moments = 0 if context.optimizer.state else len(BETAS)
    average = int(bool(context.settings.ema_decay) and context.ema is None)
    with search_algorithms(context.searches_algorithms):
        context.compiled, notices = configure_model(
            context.network,
            compute.compute_config,
            context.input_shape,
            context.accelerator,
            passes=context.passes_per_step,
            copies=moments + average,
        )
    return _note_compiled(context, replace(compute, notices=(*compute.notices, *notices)))


def _note_compiled(context: TrainingContext, compute: AutotuneResult) -> AutotuneResult:
    """Return a compute configuration with whether the model is compiled now."""
    config = replace(compute.compute_config, compiled=context.compiled is not None)
    gain = compute.gain if config == compute.compute_config else None  # that of a compiled model, which this one is not
    return replace(compute, compute_config=config, gain=gain)


def _measure_settings(context: TrainingContext, request: TrainRequest, state: TrainingState) -> TrainSteps[None]:
    """Measure the number of epochs for `--max-time` and the learning rate for `--lr auto`, where they are needed.

    A changed plan goes into the context and, with the checkpoint's weights and state, into a new checkpoint.
    """
    run, plan = context.run, context.plan
    if request.max_time is not None:
        yield Progress(done=0, total=1, activity="measuring the time of an epoch")
        context.use_plan(fit_epochs(context, state, request.max_time))
    if plan.choices["lr"].source == AUTO and plan.settings.epochs:
        load_checkpoint(run, context)
        result = yield from find_lr_steps(context, state)
        if context.accelerator.is_main_process:
            run.write(files.RANGE_TEST, result)
        context.use_plan(apply_range_test(context.plan, result, context.steps_per_epoch * context.settings.epochs))
    if context.plan is not plan:
        state, _ = load_checkpoint(run, context)
        assert state.origin is not None
        state.origin["settings"] = context.plan.values
        save_checkpoint(context, state)


def _resume(context: TrainingContext, preparation: Preparation) -> Training:
    """Resume a run from its newest checkpoint. All ranks call it.

    Raises:
        RunError: the checkpoint has no record of the run's start.
        DataError: the images differ from those that the run began with.
    """
    run, settings, origin = context.run, context.settings, preparation.origin

    # 1. The moving average, into which the checkpoint is loaded.
    if settings.ema_decay:
        context.ema = ModelEma(context.model, settings.ema_decay)
    # 2. Weights, optimizer and state.
    state, notices = load_checkpoint(run, context)
    if origin is None:
        raise RunError(f"{run.path} was written by another version", "Continue it with that version")
    if state.images != preparation.image_digest:
        raise explain_other_images(context.index, run)
    # 3. Temporary files that a killed process left; and the data folder, if it has moved.
    if context.accelerator.is_main_process:
        run.drop_temporary()
        run.move_data(context.index)
    # 4. The compute configuration that the run began with: another one rounds differently.
    config = ComputeConfig(
        blocks=state.blocks,
        threads=state.threads or THREADS,
        compiled=state.compiled,
        recomputed=None if state.recomputed is None else tuple(state.recomputed),
    )
    config, notice = adapt_to_device(config, context.accelerator)
    compute = _configure(context, AutotuneResult(compute_config=config, notices=(notice,) if notice else ()))
    state.blocks = config.blocks
    # 5. The micro-batch size, the one changeable setting that the state has too.
    if settings.micro_batch_size != origin.settings["micro_batch_size"]:
        state.micro_batch_size = settings.micro_batch_size
    return Training(context, state, compute, (*notices, *compute.notices), resumed_at=state.step)


def _finish(context: TrainingContext, state: TrainingState, complete: Complete | None) -> TrainSteps[FinetuneResult]:
    """Calibrate the kept weights; then write the final metrics, which mark the run as finished."""
    torch.set_num_threads(THREADS)
    run, accelerator, best = context.run, context.accelerator, state.best
    assert best is not None
    calibration: Calibration | None = None
    if accelerator.is_main_process:
        calibration = yield from calibrate_steps(
            TorchClassifier(run.path, accelerator.device, cache=context.cache), run
        )
    context.signals.check()  # here and below: a library may have caught the error that the signal raised
    yield Trained(run=run.path)
    if complete is not None and accelerator.is_main_process:
        yield from complete(run)
    context.signals.check()
    selected_by = _describe_selection(context, state)
    if accelerator.is_main_process:
        _remember_speed(context, state)
        run.write(files.METRICS, {"epoch": best["epoch"], "selected_by": selected_by, "val": state.best_val})
        for path in run.list_candidates():  # after the metrics: a run that is killed before averages them again
            path.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    val = convert(state.best_val, context.index.task.metrics) if state.best_val else None
    return FinetuneResult(
        run=run.path,
        task=context.index.task.name,
        epoch=best["epoch"],
        val=val,
        selected_by=selected_by,
        calibration=calibration,
    )


def _remember_speed(context: TrainingContext, state: TrainingState) -> None:
    """Keep the time of the fastest epoch after the first, which decodes the images, for later estimates."""
    seconds = [entry["seconds"] for entry in state.log if entry["epoch"] > 1 and entry["seconds"] > 0]
    if not seconds:
        return
    model, _ = find_model(context.plan.model)
    counts = DataCounts.from_index(context.index, None)
    workload = Workload(model=model, settings=context.settings, counts=counts, machine=detect_machine())
    remember_speed(workload, min(seconds))


def _describe_selection(context: TrainingContext, state: TrainingState) -> str:
    """Return how the kept epoch was chosen, in words."""
    headline = METRICS[context.index.task.display.headline]
    rule = f"best {headline.title} on the validation split"
    if context.small_validation:
        rule = f"last epoch, because {context.small_validation}"
    if state.averaged:
        return f"averaged with epochs {', '.join(map(str, state.averaged))}; {rule}"
    return rule


def _find_license(context: TrainingContext, preparation: Preparation) -> str | None:
    """Return the licence of a run, None if it is unknown: that of its base weights, its teacher and its images.

    The base weights' is the tag's, or the one that the user's own weights file names.
    """
    weights, data_license = context.plan.weights, context.settings.data_license
    licenses: list[str | None] = []
    if weights == "auto":
        licenses.append(preparation.tag.license if preparation.tag else None)
    elif weights != "none":
        licenses.append(read_weights_license(Path(weights)))
    licenses += context.distillation.licenses if context.distillation else ()
    licenses += [data_license] * (data_license != UNKNOWN)
    return join_licenses(licenses)
