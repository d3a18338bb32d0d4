"""Fine-tune one model: prepare, begin or resume, train, finish.

Bad input is reported before anything heavy is imported.
"""

from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

from msgspec import convert

from convnext_cli.errors import DataError, UsageError
from convnext_cli.locks import lock_folder
from convnext_cli.machine import count_cpus, count_local_processes
from convnext_cli.metrics.summary import Metrics
from convnext_cli.progress import Progress, Steps
from convnext_cli.recipes.settings import AUTO
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import name_runs, open_folder
from convnext_cli.training.compute.environment import describe_environment
from convnext_cli.training.events import (
    Complete,
    EpochDone,
    FinetuneResult,
    Planned,
    Started,
    Trained,
    TrainSteps,
)
from convnext_cli.training.origin import NO_CONTENTS, check_contents, digest_contents, record_origin
from convnext_cli.training.preparation import (
    Preparation,
    check_unfinished,
    continue_if_restarted,
    prepare,
    prepare_steps,
)
from convnext_cli.training.request import TrainRequest

if TYPE_CHECKING:
    import numpy as np
    from accelerate import Accelerator
    from numpy.typing import NDArray

    from convnext_cli.inference.calibration import Calibration
    from convnext_cli.training.compute.autotune import AutotuneResult
    from convnext_cli.training.context import TrainingContext
    from convnext_cli.training.state import TrainingState


def finetune_steps(request: TrainRequest, complete: Complete | None = None) -> TrainSteps[FinetuneResult]:
    """Fine-tune a model as a request says, or resume a run.

    Args:
        request: what the user asked for.
        complete: work on the trained run before it counts as finished.

    Raises:
        StoppedError: a signal asked to stop; the state is saved.
        ConvnextError: another subclass says what is wrong and what to do.
    """
    request = continue_if_restarted(request)
    preparation = yield from prepare_steps(request)
    if preparation.folds:
        raise UsageError("this trains one fold", "Give --fold, or call `cross_validate` to train all of them")
    accelerator, preparation = open_devices(request, preparation)
    with hold_folder(request, preparation.plan.model, accelerator) as (path, notes):
        run = RunFolder(path)
        training = yield from start_training(request, preparation, run, accelerator)
        result = yield from run_training(training, complete, notes)
        accelerator.end_training()
    return result


@contextmanager
def hold_folder(
    request: TrainRequest, model: str, accelerator: "Accelerator"
) -> Iterator[tuple[Path, tuple[str, ...]]]:
    """Choose the folder that a training writes into, and lock it for the length of the block.

    The first rank holds the lock; all ranks call this.

    Yields:
        The folder, and a note where the file system has no locks.

    Raises:
        RunError: another process trains into it.
        UsageError: it has finished, or been filled by another process, since it was checked.
    """
    from convnext_cli.training.compute.devices import do_on_first_rank

    with ExitStack() as stack:

        def lock() -> tuple[Path, bool]:
            path = request.resume or request.output
            if path is not None:
                is_held = stack.enter_context(lock_folder(path))
                if request.resume is not None:
                    check_unfinished(open_folder(path))
                return path, is_held
            for path in name_runs(model, datetime.now()):
                with suppress(FileExistsError):
                    return path, stack.enter_context(lock_folder(path, is_new=True))
            raise AssertionError("there is always a next name")

        path, is_held = do_on_first_rank(accelerator, lock)
        note = "its file system has no locks, so nothing keeps a second training out of the run folder"
        yield path, () if is_held else (note,)


def open_devices(request: TrainRequest, preparation: Preparation) -> "tuple[Accelerator, Preparation]":
    """Return the accelerator, and the preparation for the device it has. All ranks have prepared, and may write."""
    from convnext_cli.training.compute import devices

    settings = preparation.plan.settings
    accelerator = devices.make_accelerator(
        settings.amp, deterministic=settings.deterministic, track=request.track, folder=request.resume or request.output
    )
    if preparation.machine.is_gpu and accelerator.device.type == "cpu":  # a GPU that this torch cannot use
        preparation = prepare(request, use_gpu=False)
    accelerator.wait_for_everyone()
    return accelerator, preparation


class Training(NamedTuple):
    """A training that has been begun or resumed, before its next step."""

    request: TrainRequest
    context: "TrainingContext"
    state: "TrainingState"
    compute: "AutotuneResult"
    notes: tuple[str, ...] = ()
    """What came up since the plan was made."""
    head_epoch: EpochDone | None = None
    """The frozen phase of a new run, as epoch 0."""


def start_training(
    request: TrainRequest, preparation: Preparation, run: RunFolder, accelerator: "Accelerator"
) -> TrainSteps[Training]:
    """Begin a training in `run`, or resume it there where `request.resume` says so. All ranks call it.

    Raises:
        DataError: the images are not those that the run began with.
    """
    from convnext_cli.training.build import build_context
    from convnext_cli.training.compute.devices import do_on_first_rank

    index, origin = preparation.index, preparation.origin
    yield Planned(
        run=run.path, plan=preparation.plan, index=index, resumes=request.resume is not None, notes=preparation.notes
    )
    contents = NO_CONTENTS
    if accelerator.is_main_process:
        contents = yield from digest_contents(index, threads=max(1, count_cpus() // count_local_processes()))
    if origin is not None:
        do_on_first_rank(accelerator, partial(check_contents, run, origin, index, contents))
    context = build_context(request, preparation, run, accelerator)
    if request.resume is None:
        training = yield from _begin(context, request, preparation, contents)
    else:
        training = _resume(context, request, preparation, contents)
    if training.state.images != preparation.images:
        raise DataError(
            f"the images in {index.root} are not those that {run.path} began with",
            "Bring the former files back, or begin anew with another --output",
        )
    return training


def run_training(training: Training, complete: Complete | None, notes: Sequence[str]) -> TrainSteps[FinetuneResult]:
    """Train to the end, calibrate, and write the final metrics. All ranks call it.

    Args:
        training: where it starts.
        complete: work on the trained run before it counts as finished.
        notes: what the user should know beside the training's own notes.
    """
    from convnext_cli.training.compute.devices import describe_device, track_metrics
    from convnext_cli.training.compute.signals import watch_signals
    from convnext_cli.training.saving import describe_resume, train_and_save

    context, state = training.context, training.state
    run, accelerator = context.run, context.accelerator
    yield Started(
        run=run.path,
        plan=context.plan,
        index=context.index,
        device=describe_device(accelerator.device),
        num_processes=accelerator.num_processes,
        precision="bf16" if accelerator.mixed_precision == "bf16" else "float32",
        compute_config=str(training.compute),
        params=context.params,
        new_params=context.new_params,
        resumed_at=state.step if training.request.resume else None,
        license=state.license,
        notes=(*training.notes, *notes),
    )
    if training.head_epoch is not None:
        yield training.head_epoch
    with track_metrics(accelerator, context.plan, run.path), watch_signals(context.signals):
        state = yield from train_and_save(context, state)
        context.signals.remedy = describe_resume(run)
        return (yield from _finish(context, state, complete))


def _begin(
    context: "TrainingContext", request: TrainRequest, preparation: Preparation, contents: "NDArray[np.uint64]"
) -> Steps[Training]:
    """Begin a new run: all that comes before its first step. All ranks call it."""
    from convnext_cli.training.checkpoint import load_checkpoint, save_checkpoint
    from convnext_cli.training.compute.autotune import choose_compute_config
    from convnext_cli.training.compute.devices import describe_device, do_on_first_rank
    from convnext_cli.training.loop import plan_steps
    from convnext_cli.training.parts.ema import ModelEma
    from convnext_cli.training.phases.head import train_head
    from convnext_cli.training.phases.lr_finder import find_lr_steps, use_found_lr
    from convnext_cli.training.phases.time_budget import fit_epochs
    from convnext_cli.training.saving import note_epoch
    from convnext_cli.training.state import TrainingState

    run, accelerator, index, settings = context.run, context.accelerator, context.index, context.settings
    steps = plan_steps(settings, len(index.rows("train")))[0]
    shape = context.input_shape

    # 1. The files that describe the data, and the digests that `--resume` compares.
    if accelerator.is_main_process:
        run.create(overwrite=request.overwrite)
        run.write_split(index)
        if preparation.dataset and preparation.dataset.audit:
            run.write_audit(preparation.dataset.audit.as_dict())
            run.write_image_hashes(preparation.dataset.audit.list_image_hashes(index))
        run.write_environment(describe_environment(describe_device(accelerator.device)))
    origin = do_on_first_rank(accelerator, partial(record_origin, run, context.plan, index, contents))

    # 2. The compute configuration, which decides the last bits of all that follows.
    yield Progress(done=0, total=1, activity="autotuning")
    compute = choose_compute_config(
        context.network,
        shape,
        name=context.plan.model,
        passes=steps * settings.epochs * -(-context.rank_batch_size // shape[0]),
        accelerator=accelerator,
        measure=request.autotune and not settings.deterministic,
        compile=request.compile,
    )
    compute, problems = _configure(context, compute)
    state = TrainingState(
        images=preparation.images,
        origin=asdict(origin),
        license=_find_license(preparation),
        micro_batch_size=settings.micro_batch_size,
        blocks=compute.compute_config.blocks,
        threads=compute.compute_config.threads,
        compiled=context.compiled is not None,
    )

    # 3. The head alone, before the moving average begins.
    head_epoch = None
    if settings.freeze_epochs:
        head_epoch = yield from train_head(context)
        note_epoch(state, head_epoch, always=context.weak_validation is not None)
    if settings.ema_decay:
        context.ema = ModelEma(context.model, settings.ema_decay)

    # 4. The first checkpoint, which the measurements below go back to.
    save_checkpoint(run, context, state)
    planned = context.plan
    if request.max_time is not None:
        context.use_plan(fit_epochs(context, state, request.max_time))
    if planned.choices["lr"].source == AUTO and settings.epochs:
        load_checkpoint(run, context)
        found = yield from find_lr_steps(context, state)
        if accelerator.is_main_process:
            run.write_range_test(found)
        context.use_plan(use_found_lr(context.plan, found, steps * context.settings.epochs))
    if context.plan is not planned:
        state, _ = load_checkpoint(run, context)
        state.origin = asdict(replace(origin, settings=context.plan.values))
        save_checkpoint(run, context, state)

    # 5. The plan, which makes the folder one that can be resumed; then the checkpoint, for the same weights everywhere.
    if accelerator.is_main_process:
        run.write_plan(context.plan.to_toml())
    state, notices = load_checkpoint(run, context)
    notes = (*notices, *compute.remarks, *problems)
    return Training(request, context, state, compute, notes, head_epoch)


def _resume(
    context: "TrainingContext", request: TrainRequest, preparation: Preparation, contents: "NDArray[np.uint64]"
) -> Training:
    """Take up a run at its newest checkpoint. All ranks call it."""
    from convnext_cli.training.checkpoint import load_checkpoint
    from convnext_cli.training.compute.autotune import AutotuneResult
    from convnext_cli.training.compute.compute_config import ComputeConfig
    from convnext_cli.training.compute.devices import THREADS, do_on_first_rank
    from convnext_cli.training.parts.ema import ModelEma

    run, settings, origin = context.run, context.settings, preparation.origin

    # 1. The moving average, so that the checkpoint finds its place.
    if settings.ema_decay:
        context.ema = ModelEma(context.model, settings.ema_decay)
    # 2. What a killed process left behind.
    if context.accelerator.is_main_process:
        run.drop_temporary()
    # 3. Weights, optimizer and state.
    state, notices = load_checkpoint(run, context)
    # 4. The compute configuration that the run began with: another one rounds differently.
    kept = ComputeConfig(blocks=state.blocks, threads=state.threads or THREADS, compiled=state.compiled)
    compute, problems = _configure(context, AutotuneResult(compute_config=kept))
    # 5. What a version that kept no digests left out.
    if origin is None:
        record = partial(record_origin, run, context.plan, context.index, contents)
        origin = do_on_first_rank(context.accelerator, record)
        state.origin = asdict(origin)
    # 6. The one setting whose change needs the state's help.
    if settings.micro_batch_size != origin.settings["micro_batch_size"]:
        state.micro_batch_size = settings.micro_batch_size
    return Training(request, context, state, compute, (*notices, *problems))


def _configure(context: "TrainingContext", compute: "AutotuneResult") -> "tuple[AutotuneResult, list[str]]":
    """Give the model its compute configuration; return the one it has then, and what prevented another."""
    from convnext_cli.training.compute.compute_config import configure_model

    context.compiled, problems = configure_model(
        context.network, compute.compute_config, context.input_shape, context.accelerator
    )
    config = replace(compute.compute_config, compiled=context.compiled is not None)
    return replace(compute, compute_config=config), problems


def _finish(
    context: "TrainingContext", state: "TrainingState", complete: Complete | None
) -> TrainSteps[FinetuneResult]:
    """Calibrate the kept weights; then write the final metrics, which mark the run as finished."""
    import torch

    from convnext_cli.inference.calibration import calibrate_steps
    from convnext_cli.inference.torch_classifier import TorchClassifier
    from convnext_cli.training.compute.devices import THREADS

    torch.set_num_threads(THREADS)
    run, accelerator, weak = context.run, context.accelerator, context.weak_validation
    best = state.best
    assert best is not None
    selected_by = f"last epoch, because {weak}" if weak else "best balanced accuracy on the validation split"
    if state.averaged:
        selected_by = f"averaged with epochs {', '.join(map(str, state.averaged))}; {selected_by}"
    calibration: Calibration | None = None
    if accelerator.is_main_process:
        calibration = yield from calibrate_steps(
            TorchClassifier(run.path, accelerator.device, cache=context.cache), run
        )
    context.signals.check()  # where a library has caught what the signal raised, here and below
    yield Trained(run=run.path)
    if complete is not None and accelerator.is_main_process:
        yield from complete(run)
    context.signals.check()
    if accelerator.is_main_process:
        run.write_metrics({"epoch": best["epoch"], "selected_by": selected_by, "val": state.best_val})
        for path in run.list_candidates():  # only now: a run that is killed before averages them again
            path.unlink(missing_ok=True)
    accelerator.wait_for_everyone()
    val = state.best_val and convert(state.best_val, Metrics)
    return FinetuneResult(
        run=run.path, epoch=best["epoch"], val=val or None, selected_by=selected_by, calibration=calibration
    )


def _find_license(preparation: Preparation) -> str | None:
    """Return the licence of the base weights: their tag's, or that of the run that the user's own are from."""
    from convnext_cli.models.weights import read_weights_license

    weights = preparation.plan.weights
    if weights == "auto":
        return preparation.tag.license if preparation.tag else None
    return None if weights == "none" else read_weights_license(Path(weights))
