"""From a folder to a finished run: scan, split, plan, build, train, keep the best.

What is wrong with the input is found before anything heavy is imported.
"""

from collections.abc import Generator, Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

from msgspec import convert

from convnext_cli.data.scan import Index
from convnext_cli.errors import DataError, UsageError
from convnext_cli.evaluation.metrics import Metrics
from convnext_cli.folds import name_runs, open_folder
from convnext_cli.locks import lock_folder
from convnext_cli.progress import Progress
from convnext_cli.recipes.machine import count_cpus, count_local_processes
from convnext_cli.recipes.plan import Plan
from convnext_cli.recipes.recipe import AUTO
from convnext_cli.runs import RunFolder
from convnext_cli.training.environment import describe_environment
from convnext_cli.training.origin import NO_CONTENTS, check_contents, digest_contents, record_origin
from convnext_cli.training.preparation import (
    Prepared,
    Request,
    check_unfinished,
    continue_if_restarted,
    prepare,
    prepare_steps,
)

if TYPE_CHECKING:
    from accelerate import Accelerator

    from convnext_cli.inference.fitting import Calibration
    from convnext_cli.training.checkpoint import State
    from convnext_cli.training.loop import EpochDone, Remark, StepDone
    from convnext_cli.training.step import Job


@dataclass(frozen=True, kw_only=True, slots=True)
class Planned:
    """The plan is made and nothing has been computed yet."""

    run: Path
    plan: Plan
    index: Index
    resumes: bool
    """Whether an unfinished run is continued."""
    notes: tuple[str, ...]
    """What the user should know before trusting the result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """Training is about to begin, with the final plan."""

    run: Path
    plan: Plan
    """As planned, but for what was measured since: the learning rate, the number of epochs."""
    index: Index
    device: str
    num_processes: int
    precision: str
    formulation: str
    """What the model is computed with, in words."""
    params: int
    new_params: int
    """How many of `params` start from random values."""
    resumed_at: int | None
    """Optimizer steps that a continued run has behind it; None for a new one."""
    license: str | None
    """Licence of the base weights, where they have one."""
    notes: tuple[str, ...]
    """What came up since the plan was made."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Trained:
    """Model and calibration are on disk. What else belongs to a finished run is written before the next event."""

    run: Path


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The run is on disk."""

    run: Path
    epoch: int
    """The epoch whose weights were kept, counted from 1; 0 is the head-only model."""
    val: Metrics | None
    """That epoch's figures on the validation split; None where it is empty."""
    selected_by: str
    calibration: "Calibration | None"
    """What was fitted on the validation split afterwards; None in all processes but the first."""


def finetune_steps(
    request: Request,
) -> "Iterator[Progress | Planned | Started | StepDone | EpochDone | Remark | Trained | Finished]":
    """Does what `finetune` does, or continues a run, and yields what happens while it happens.

    Raises:
        StoppedError: a signal asked to stop; the state is saved.
        ConvnextError: another subclass says what is wrong and what to do.
    """
    request = continue_if_restarted(request)
    prepared = yield from prepare_along(request)
    if prepared.folds:
        raise UsageError("this trains one fold", "Give --fold, or call `cross_validate` to train all of them")
    accelerator, prepared = open_devices(request, prepared)
    with hold_folder(request, prepared.plan.model, accelerator) as (path, notes):
        for event in train_prepared(request, prepared, RunFolder(path), accelerator):
            if isinstance(event, Finished):
                accelerator.end_training()
            yield replace(event, notes=(*event.notes, *notes)) if isinstance(event, Started) else event


def prepare_along(request: Request) -> Generator[Progress, None, Prepared]:
    """Yields the progress of a preparation and returns its result."""
    for event in prepare_steps(request):
        if isinstance(event, Prepared):
            return event
        yield event
    raise AssertionError("a preparation ends with its result")


@contextmanager
def hold_folder(request: Request, model: str, accelerator: "Accelerator") -> "Iterator[tuple[Path, tuple[str, ...]]]":
    """Choose the folder that a training writes into, and lock it for the length of the block.

    The first rank holds the lock; all ranks call this.

    Yields:
        The folder, and a note where the file system has no locks.

    Raises:
        RunError: another process trains into it.
        UsageError: it has finished, or been filled by another process, since it was checked.
    """
    from convnext_cli.training.devices import do_on_first_rank

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


def open_devices(request: Request, prepared: Prepared) -> "tuple[Accelerator, Prepared]":
    """Return the accelerator, and the preparation for the device it has. All ranks have prepared, and may write."""
    from convnext_cli.training import devices

    recipe = prepared.plan.recipe
    accelerator = devices.make_accelerator(
        recipe.amp, deterministic=recipe.deterministic, track=request.track, folder=request.resume or request.output
    )
    if prepared.machine.is_gpu and accelerator.device.type == "cpu":  # a GPU that this torch cannot use
        prepared = prepare(request, use_gpu=False)
    accelerator.wait_for_everyone()
    return accelerator, prepared


def train_prepared(
    request: Request, prepared: Prepared, run: RunFolder, accelerator: "Accelerator"
) -> "Iterator[Progress | Planned | Started | StepDone | EpochDone | Remark | Trained | Finished]":
    """Trains what was prepared into `run`, or continues it there where `request.resume` says so."""
    from convnext_cli.training import devices
    from convnext_cli.training.assembly import build_job
    from convnext_cli.training.averaging import MovingAverage
    from convnext_cli.training.budget import fit_epochs
    from convnext_cli.training.checkpoint import State, load_checkpoint, save_checkpoint
    from convnext_cli.training.compiling import Formulation, formulate
    from convnext_cli.training.head import train_head
    from convnext_cli.training.keeping import describe_resume, note_epoch, train_and_keep
    from convnext_cli.training.loop import plan_steps
    from convnext_cli.training.probe import Found, choose_formulation
    from convnext_cli.training.signals import watch_signals
    from convnext_cli.training.sweep import set_found, sweep_steps

    index, plan, tag = prepared.index, prepared.plan, prepared.tag
    recipe = plan.recipe
    yield Planned(run=run.path, plan=plan, index=index, resumes=request.resume is not None, notes=prepared.notes)
    contents, origin = NO_CONTENTS, prepared.origin
    if accelerator.is_main_process:
        contents = yield from digest_contents(index, threads=max(1, count_cpus() // count_local_processes()))
    if origin is not None:
        devices.do_on_first_rank(accelerator, partial(check_contents, run, origin, index, contents))
    job, network, params, new_params = build_job(request, prepared, accelerator)
    head_done = None
    device = devices.describe_device(accelerator.device)
    train, share = len(index.rows("train")), -(-recipe.batch_size // accelerator.num_processes)
    images = min(recipe.micro_batch_size, share, train)
    shape = (images, recipe.in_chans, recipe.image_size, recipe.image_size)  # of most forward passes
    if request.resume is None:
        license = tag.license if tag and plan.weights == "auto" else _read_license(plan.weights)
        if accelerator.is_main_process:
            run.create(overwrite=request.overwrite)
            run.write_split(index)
            if prepared.taken and prepared.taken.audit:
                run.write_audit(prepared.taken.audit.as_dict())
                run.write_image_hashes(prepared.taken.audit.list_image_hashes(index))
            run.write_environment(describe_environment(device))
        origin = devices.do_on_first_rank(accelerator, partial(record_origin, run, plan, index, contents))
        yield Progress(done=0, total=1, what="autotuning")
        found = choose_formulation(
            network,
            shape,
            name=plan.model,
            passes=plan_steps(recipe, train)[0] * recipe.epochs * -(-share // images),
            accelerator=accelerator,
            measure=request.probe and not recipe.deterministic,
            compile=request.compile,
        )
        compiled, problems = formulate(network, found.formulation, shape, accelerator)
        job = replace(job, compiled=compiled)
        state = State(
            images=prepared.images,
            origin=asdict(origin),
            license=license,
            micro_batch_size=recipe.micro_batch_size,
            formulation=found.formulation.blocks,
            threads=found.formulation.threads,
            compiled=compiled is not None,
        )
        if recipe.freeze_epochs:
            head_done = yield from train_head(job, network)
            note_epoch(state, head_done, always=prepared.weak_validation is not None)
    if recipe.ema_decay:
        job = replace(job, average=MovingAverage(job.model, recipe.ema_decay))
    if request.resume is None:
        save_checkpoint(run, job, state)
        if request.max_time is not None:
            plan = fit_epochs(job, state, plan, request.max_time)
            job = replace(job, recipe=plan.recipe)
        if plan.settings["lr"].source == AUTO and recipe.epochs:
            load_checkpoint(run, job)  # the test begins where the training does
            tested = yield from sweep_steps(job, state)
            if accelerator.is_main_process:
                run.write_range_test(tested)
            plan = set_found(plan, tested, plan_steps(recipe, train)[0] * plan.recipe.epochs)
            job = replace(job, recipe=plan.recipe)
        if (
            origin is not None and plan is not prepared.plan
        ):  # epochs or lr were measured: the state is saved anew with them
            state, _ = load_checkpoint(run, job)
            state.origin = asdict(replace(origin, settings=plan.values))
            save_checkpoint(run, job, state)
        if accelerator.is_main_process:
            run.write_plan(plan.to_toml())
    elif accelerator.is_main_process:
        run.drop_temporary()
    # A new run too starts from its checkpoint: all ranks have the first one's weights then.
    state, remarks = load_checkpoint(run, job)
    if request.resume is not None:
        kept = Formulation(blocks=state.formulation, threads=state.threads or devices.THREADS, compiled=state.compiled)
        found = Found(formulation=kept)
        compiled, problems = formulate(network, kept, shape, accelerator)
        job = replace(job, compiled=compiled)
        if origin is None:
            origin = devices.do_on_first_rank(accelerator, partial(record_origin, run, plan, index, contents))
            state.origin = asdict(origin)
        if recipe.micro_batch_size != origin.settings["micro_batch_size"]:
            state.micro_batch_size = recipe.micro_batch_size
    if state.images != prepared.images:
        raise DataError(
            f"the images in {index.root} are not those that {run.path} began with",
            "Bring the former files back, or begin anew with another --output",
        )
    yield Started(
        run=run.path,
        plan=plan,
        index=index,
        device=device,
        num_processes=accelerator.num_processes,
        precision="bf16" if accelerator.mixed_precision == "bf16" else "float32",
        formulation=str(replace(found, formulation=replace(found.formulation, compiled=compiled is not None))),
        params=params,
        new_params=new_params,
        resumed_at=state.step if request.resume else None,
        license=state.license,
        notes=(*remarks, *found.remarks, *problems),
    )
    if head_done is not None:
        yield head_done
    with devices.track_figures(accelerator, plan, run.path), watch_signals(job.signals):
        state = yield from train_and_keep(job, network, run, state, weak=prepared.weak_validation)
        job.signals.remedy = describe_resume(run)
        yield from _finish(job, run, state, weak=prepared.weak_validation)


def _finish(
    job: "Job", run: RunFolder, state: "State", *, weak: str | None
) -> "Iterator[Progress | Trained | Finished]":
    """Calibrate the weights that were kept; then write the final figures, which mark the run as finished."""
    import torch

    from convnext_cli.inference.fitting import Calibration, fit_steps
    from convnext_cli.inference.predictor import Predictor
    from convnext_cli.training.devices import THREADS

    torch.set_num_threads(THREADS)
    best = state.best
    assert best is not None
    selected_by = f"last epoch, because {weak}" if weak else "best balanced accuracy on the validation split"
    if state.averaged:
        selected_by = f"averaged with epochs {', '.join(map(str, state.averaged))}; {selected_by}"
    calibration: Calibration | None = None
    if job.accelerator.is_main_process:
        for step in fit_steps(Predictor(run.path, job.accelerator.device, cache=job.cache), run):
            if isinstance(step, Calibration):
                calibration = step
            else:
                yield step
    job.signals.check()  # where a library has caught what the signal raised, here and below
    yield Trained(run=run.path)
    job.signals.check()
    if job.accelerator.is_main_process:
        run.write_metrics({"epoch": best["epoch"], "selected_by": selected_by, "val": state.best_val})
        for path in run.list_candidates():  # only now: a run that is killed before averages them again
            path.unlink(missing_ok=True)
    job.accelerator.wait_for_everyone()
    val = state.best_val and convert(state.best_val, Metrics)
    yield Finished(run=run.path, epoch=best["epoch"], val=val or None, selected_by=selected_by, calibration=calibration)


def _read_license(weights: str) -> str | None:
    """The licence that comes with the user's own weights: that of the run they are from."""
    from convnext_cli.models.weights import read_license

    return None if weights in ("auto", "none") else read_license(Path(weights))
