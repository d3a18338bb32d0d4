"""A run to resume: its preparation, read from its folder and compared with what the run began with."""

from dataclasses import replace
from pathlib import Path

from convnext_cli.data.dataset import DatasetRequest
from convnext_cli.data.index import Index, digest_images
from convnext_cli.data.outside import check_cache_outside, check_outside_data, list_data_folders
from convnext_cli.data.sources import scan_data
from convnext_cli.data.split import choose_fold
from convnext_cli.errors import RunError, UsageError
from convnext_cli.locks import check_unlocked
from convnext_cli.machine import count_restarts, detect_machine
from convnext_cli.models.catalog import find_model
from convnext_cli.progress import Notice
from convnext_cli.recipes.plan import Plan, read_plan
from convnext_cli.recipes.settings import READING_SETTINGS, Choice, declare_settings, default_settings
from convnext_cli.runs.folder import RESTART_REMEDY, RUN_REMEDY, RunFolder
from convnext_cli.runs.folds import FoldsFolder, is_aborted_start, open_folder
from convnext_cli.text import quote
from convnext_cli.training.origin import Origin, check_plan, check_split, read_origin
from convnext_cli.training.preparation import Preparation
from convnext_cli.training.request import TrainRequest, resume_request


def continue_if_restarted(request: TrainRequest) -> TrainRequest:
    """Return the request, or one that resumes its run if torchrun has restarted the processes after a failure."""
    if count_restarts() and request.resume is None and request.output and open_folder(request.output).is_begun:
        return replace(resume_request(request, request.output), data=None)
    return request


def check_unfinished(run: RunFolder) -> None:
    """Check that a run has not finished.

    Raises:
        UsageError: it has.
    """
    if not run.is_finished:
        return
    remedy = (
        f"`convnext eval {quote(run.path)}` evaluates it; --config {quote(run.plan)} trains again with other settings"
    )
    if not isinstance(run, FoldsFolder) and not run.exported("onnx").exists():
        remedy += f"; `convnext export {quote(run.path)}` writes the missing model.onnx"
    raise UsageError(f"{run.path} has finished: there is nothing to resume", remedy)


def prepare_resumed(request: TrainRequest, path: Path) -> Preparation:
    """Return the preparation of a run to resume, read from its folder."""
    run = open_folder(path)
    _check_resume_request(request, run)
    plan = _read_complete_plan(run)
    index = run.read_split()
    origin, changes = _compare_origin(run, index, plan)
    architecture, tag = find_model(plan.model)
    index = _locate_images(index, request.data, plan)
    check_outside_data(path, index)
    check_cache_outside(list_data_folders(index))
    fold_index = index if isinstance(run, FoldsFolder) else None
    index = choose_fold(fold_index, 1) if fold_index else index
    return Preparation(
        request=request,
        dataset=None,
        index=index,
        fold_index=fold_index,
        architecture=architecture,
        tag=tag,
        machine=detect_machine(),
        plan=plan,
        image_digest=digest_images(index),
        fingerprint=None,
        plan_notices=changes,
        origin=origin,
    )


def _locate_images(index: Index, data: Path | None, plan: Plan) -> Index:
    """Return the index of a run with the place of its images now; an archive is unpacked if the cache lacks it.

    `data` is the folder, table or zip file that has them now; None where they have not moved.
    """
    if data is None and index.source is not None and not index.root.is_dir():
        data = index.source  # the zip file, whose unpacked files `cache --clear` removes
    if data is None:
        return index
    if not data.is_file():
        return replace(index, root=data, source=data)
    reading = {name: plan.values[name] for name in READING_SETTINGS}
    moved = scan_data(data, table_options=DatasetRequest(data=data, **reading))
    return replace(index, root=moved.root, table=moved.table, source=data)


def _check_resume_request(request: TrainRequest, run: RunFolder) -> None:
    """Check that a request has nothing that the run decides, and that the run can be resumed."""
    if request != resume_request(request, run.path):
        raise UsageError(
            "--resume reads the model, the settings and the split from the run",
            "Leave out all options but --devices, --no-cache, --no-autotune, --no-onnx, --track, --json, and the data "
            "folder if it has moved",
        )
    check_unlocked(run.path)
    if is_aborted_start(run.path):
        problem = f"{run.path} was stopped before its training had begun: there is nothing to resume"
        raise RunError(problem, "Start it again, with the same --output")
    if not run.is_begun:
        reason = "is not a run that has begun" if run.path.exists() else "does not exist"
        raise RunError(f"{run.path} {reason}", RUN_REMEDY)
    if run.is_finished:
        run.drop_temporary()
    check_unfinished(run)


def _read_complete_plan(run: RunFolder) -> Plan:
    """Return the plan of a run, with all settings."""
    plan = read_plan(run.plan)
    if plan.model is None:
        raise RunError(f"{run.plan} names no model", RESTART_REMEDY)
    choices = {name: Choice(value=value, source="default") for name, value in default_settings().items()}
    choices |= plan.choices
    if missing := [name for name in declare_settings() if name not in choices]:
        raise RunError(f"{run.plan} lacks {', '.join(missing)}", RESTART_REMEDY)
    return Plan(
        model=plan.model,
        weights=plan.weights or "auto",
        teacher=plan.teacher,
        choices={name: choices[name] for name in declare_settings()},
    )


def _compare_origin(run: RunFolder, index: Index, plan: Plan) -> tuple[Origin | None, tuple[Notice, ...]]:
    """Compare plan and split with what the run began with; return that, and a notice for each allowed change.

    In a cross-validation the origin of the first fold that is there is compared; if all were deleted, the digests of
    the cross-validation are compared as it continues. Image files are compared when their fold is resumed.

    Raises:
        RunError: they differ.
    """
    first, fold = run, 0
    if isinstance(run, FoldsFolder):
        begun = [number for number in range(1, plan.values["folds"] + 1) if run.run(number).is_begun]
        if not begun:
            return None, ()
        fold = begun[0]
        first = run.run(fold)
    origin = read_origin(first)
    if origin is None:  # an error when the checkpoint is loaded
        return None, ()
    if fold:
        origin, index = replace(origin, settings=origin.settings | {"fold": 0}), choose_fold(index, fold)
    notices = check_plan(run, origin, plan)
    check_split(first, origin, index, folder=run.path)
    return None if fold else origin, tuple(notices)
