"""Trackers of metrics, such as TensorBoard, which Accelerate owns."""

from collections.abc import Iterator
from contextlib import contextmanager

from accelerate import Accelerator
from accelerate.utils import ProjectConfiguration

from convnext_cli.errors import UsageError, shorten_error
from convnext_cli.recipes.plan import Plan
from convnext_cli.runs.files import ENVIRONMENT
from convnext_cli.runs.folder import RunFolder, resume_command
from convnext_cli.runs.folds import find_resumable


@contextmanager
def track_metrics(accelerator: Accelerator, plan: Plan, run: RunFolder) -> Iterator[None]:
    """Open the trackers during the block; a resumed run keeps its name there.

    Raises:
        UsageError: a tracker cannot be opened.
    """
    if accelerator.log_with:
        folder, resumable = run.path, find_resumable(run).path
        name = folder.name if resumable == folder else f"{resumable.name}-{folder.name}"
        begun = ENVIRONMENT.path(folder).stat().st_mtime_ns  # a later run of the same name is another one
        options = {
            "wandb": {"id": f"{name}-{begun:x}", "name": name, "resume": "allow"},
            "mlflow": {"run_name": name},
        }
        accelerator.project_configuration = ProjectConfiguration(str(folder), logging_dir=str(folder))
        try:
            accelerator.init_trackers("convnext", {"model": plan.model, **plan.values}, options)
        except Exception as error:  # each tracker has its own errors
            names = ", ".join(str(name) for name in accelerator.log_with)
            raise UsageError(
                f"cannot send metrics to {names}: {shorten_error(error)}",
                f"Set it up, or continue without --track: {resume_command(resumable)}",
            ) from error
    try:
        yield
    finally:
        for tracker in accelerator.trackers:
            tracker.finish()
