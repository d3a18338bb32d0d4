"""Whether the files of a run fit their schemas and each other, before any of them is used."""

from pathlib import Path

from convnext_cli.errors import RunError, UsageError
from convnext_cli.inference.calibration import read_calibration
from convnext_cli.recipes.plan import read_plan
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder, open_folder
from convnext_cli.runs.records import FoldsResult, read_record
from convnext_cli.text import quote


def check_records(run: RunFolder) -> None:
    """Check each file of a run, or of a cross-validation and its runs, but for the audit and the weights.

    Raises:
        RunError: one does not fit its schema or the others; says the file, the field and the value.
    """
    folder = open_folder(run.path)
    folder.read_split()
    folder.read_environment()
    folder.read_tests()
    _check_plan(folder)
    if isinstance(folder, FoldsFolder):
        remedy = f"Delete it, and `convnext finetune --resume {quote(folder.path)}` writes it again"
        if folder.is_finished:
            read_record(folder.metrics, FoldsResult, remedy)
            for member in folder.list_runs():
                check_records(member)
        return
    folder.read_config()
    folder.read_result()
    folder.read_log()
    folder.read_range_test()
    read_calibration(folder)


def _check_plan(run: RunFolder) -> None:
    """Check that the plan can be read, and that a run's model is the plan's."""
    if not run.plan.exists():
        return  # of a run whose plan was not kept; it steers only training
    try:
        model, _, settings = read_plan(run.plan)[:3]
    except UsageError as error:
        raise RunError(f"{run.plan} cannot be read: {error.problem}", error.remedy) from error
    if isinstance(run, FoldsFolder):
        return
    config = run.read_config()
    channels, side, _ = config.pretrained_cfg.input_size
    for name, planned, own in (
        ("model", model and model.partition(".")[0], config.architecture),
        ("image_size", settings.get("image_size"), side),
        ("in_chans", settings.get("in_chans"), channels),
    ):
        if planned is not None and planned != own:
            raise RunError(
                f"the files of {run.path} do not belong together: {name} is {planned} in {run.plan.name} and {own} in "
                "config.json",
                "Bring the former file back",
            )


def describe_progress(run: RunFolder) -> str | None:
    """Say that a run has not finished, and how far it is; None where it has."""
    if run.is_finished or not run.is_begun:
        return None
    epochs = sum(entry["epoch"] > 0 for entry in run.read_log())
    planned = read_plan(run.plan)[2].get("epochs")
    return (
        f"the run has not finished: these are the best weights of its first {epochs} of {planned} epochs. "
        f"`convnext finetune --resume {quote(run.path)}` continues it"
    )


def list_calibration_notes(path: Path) -> list[str]:
    """Say what makes a run's probabilities less than they seem: it has not finished, or is not calibrated."""
    folder = open_folder(path)
    runs = folder.list_runs() if isinstance(folder, FoldsFolder) else [folder]
    notes = [note for run in runs if (note := describe_progress(run)) is not None]
    for run in runs:
        if not run.is_finished or read_calibration(run) is not None:
            continue
        why = "calibration.json is missing"
        if run.read_calibration() is not None:
            why = "calibration.json was fitted for other weights than model.safetensors"
        notes.append(f"{run.path} is not calibrated: {why}. `convnext eval {quote(path)}` fits it again")
    return notes
