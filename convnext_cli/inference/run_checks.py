"""Checks of a run before it is used: its files fit their schemas and each other, and its training has finished."""

from convnext_cli.data.index import Index
from convnext_cli.data.split import choose_fold
from convnext_cli.encoding import find_name
from convnext_cli.errors import DataError, RunError, UsageError
from convnext_cli.images.preprocessing import CROP_MODES, format_size
from convnext_cli.inference.calibration import read_calibration, read_pooling
from convnext_cli.options import AUTO
from convnext_cli.progress import Notice
from convnext_cli.recipes.plan import read_plan
from convnext_cli.runs.files import CONFIG, ENVIRONMENT, METRICS, ORIGIN, SPLIT
from convnext_cli.runs.folder import RunFolder, restore_remedy, resume_command
from convnext_cli.runs.folds import FoldsFolder
from convnext_cli.runs.records import Environment, FoldsResult
from convnext_cli.runs.split import describe_differences, digest_split, find_moved
from convnext_cli.text import format_count, shorten_names


def check_records(run: RunFolder) -> None:
    """Check each file of a run, or of a cross-validation and its runs, except the audit and the weights.

    Raises:
        RunError: a file does not fit its schema or the others; names the file, the field and the value.
    """
    run.read_split()
    run.read(ENVIRONMENT, Environment)
    run.read_tests()
    check_plan(run)
    if isinstance(run, FoldsFolder):
        if run.is_finished:
            run.read(METRICS, FoldsResult)
            for fold_run in run.list_runs():
                check_records(fold_run)
        return
    run.read_config()
    run.read_result()
    run.read_log()
    run.read_range_test()
    read_calibration(run)
    read_pooling(run)


def check_split(run: RunFolder, index: Index) -> list[Notice]:
    """Compare a run's split with the one that it was trained with; return a warning where labels or groups differ.

    A run without `last/origin.safetensors` is not compared.

    Raises:
        RunError: images are in another split or another order, by which a run's other files know them.
    """
    parts = [(run, index)]
    if isinstance(run, FoldsFolder):
        runs = run.list_runs() if run.is_finished else []
        parts = [(fold_run, choose_fold(index, fold)) for fold, fold_run in enumerate(runs, start=1)]
    differences = ""
    for part, part_index in parts:
        former = (part.read_arrays(ORIGIN) or {}).get("rows")
        digests = digest_split(part_index)
        if former is None or former.tolist() == digests.tolist():
            continue
        if moved := find_moved(former.tolist(), part_index):
            number = format_count(len(moved), "image was", "images were")
            differences = f"{number} in another split: {shorten_names(moved)}"
        else:
            differences = describe_differences(former.tolist(), digests.tolist(), index.paths)
        if moved or sorted(former.tolist()) == sorted(digests.tolist()):
            problem = f"{SPLIT.path(run.path)} was changed since the training: {differences}"
            raise RunError(problem, restore_remedy("the original file"))
    text = f"{SPLIT.name} was changed since the training, and counts as it is now: {differences}"
    return [Notice(text, "warning")] if differences else []


def check_comparable(first: RunFolder, second: RunFolder) -> None:
    """Check that two runs, or cross-validations, have the same task and the same classes, grades in the same order.

    Raises:
        DataError: they have not.
    """
    one, other = (run.read_split() for run in (first, second))
    if type(one.task) is not type(other.task):
        raise DataError(
            f"{first.path} and {second.path} differ in their task: {one.task.title} and {other.task.title}",
            "Evaluate each by itself",
        )
    names, others = one.classes, other.classes
    if len(names) != len(others) or None in (find_name(name, others) for name in names):
        different = sorted(set(names) ^ set(others))
        raise DataError(
            f"{first.path} and {second.path} differ in classes: {', '.join(different[:5])}",
            "Compare runs that were trained on the same classes",
        )
    if one.task.has_order and any(find_name(name, others) != place for place, name in enumerate(names)):
        raise DataError(
            f"{first.path} and {second.path} differ in the order of the {one.task.display.target_words}: "
            f"{', '.join(names)} and {', '.join(others)}",
            "Evaluate each by itself",
        )


def check_plan(run: RunFolder) -> None:
    """Check that the plan can be read, and that a run's model is the plan's."""
    if not run.plan.exists():
        return  # only training needs the plan
    try:
        plan = read_plan(run.plan)
    except UsageError as error:
        raise RunError(f"{run.plan} cannot be read: {error.problem}", error.remedy) from error
    if isinstance(run, FoldsFolder):
        return
    config = run.read_config()
    channels, height, width = config.pretrained_cfg.input_size
    crop_pct = plan.settings.get("crop_pct")
    for name, planned, actual in (
        ("model", plan.model and plan.model.partition(".")[0], config.architecture),
        ("image_size", plan.settings.get("image_size"), format_size(height, width)),
        ("crop_mode", CROP_MODES.get(plan.settings.get("fit", "")), config.pretrained_cfg.crop_mode),
        ("crop_pct", None if crop_pct == AUTO else crop_pct, config.pretrained_cfg.crop_pct),
        ("in_chans", plan.settings.get("in_chans"), channels),
    ):
        if planned is not None and planned != actual:
            raise RunError(
                f"the files of {run.path} do not belong together: {name} is {planned} in {run.plan.name} and {actual} "
                f"in {CONFIG.name}",
                "Restore the original file",
            )


def list_state_notes(run: RunFolder, index: Index) -> list[str]:
    """Return notes on a run that has not finished, and on rows of its split that were changed since the training."""
    return list(filter(None, [describe_progress(run), *(notice.text for notice in check_split(run, index))]))


def describe_progress(run: RunFolder) -> str | None:
    """Return a note on how far an unfinished run is; None for a finished one."""
    if run.is_finished or not run.is_begun:
        return None
    epochs = sum(entry["epoch"] > 0 for entry in run.read_log())
    planned = format_count(read_plan(run.plan).settings.get("epochs", 0), "epoch")
    return (
        f"the run has not finished: results are for the best weights of the first {epochs} of {planned}. "
        f"{resume_command(run.path)} continues it"
    )
