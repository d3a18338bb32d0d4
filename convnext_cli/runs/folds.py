"""The folder of a cross-validation, which has a run for each fold; names of new run folders."""

from collections.abc import Iterator
from contextlib import suppress
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path
from typing import Any

from convnext_cli.data.split import FOLD, is_fold, name_fold
from convnext_cli.errors import RunError, UsageError
from convnext_cli.locks import LOCK
from convnext_cli.runs.files import CHECKPOINT, FOLDS_PLAN, METRICS, MODEL, RUN_FILES, list_beginning
from convnext_cli.runs.folder import RUNS, RunFolder, resume_command


@dataclass(frozen=True, slots=True)
class FoldsFolder(RunFolder):
    """One cross-validation on disk. Its split has the validation fold of each image, or `test`."""

    @property
    def plan(self) -> Path:
        """Settings of all folds; `--config` repeats the cross-validation with it."""
        return FOLDS_PLAN.path(self.path)

    @property
    def is_finished(self) -> bool:
        """True if the cross-validation has finished, and none of its folds was deleted since."""
        return self.metrics.exists() and not self.list_missing()

    def list_missing(self) -> list[RunFolder]:
        """Return the runs of the folds in the metrics that are gone or have not finished.

        Raises:
            RunError: the metrics do not fit their schema.
        """
        from convnext_cli.runs.records import FoldsResult

        result = self.read(METRICS, FoldsResult)
        runs = [self.run(fold) for fold in range(1, len(result.folds) + 1)] if result else []
        return [run for run in runs if not run.is_finished]

    def run(self, fold: int) -> RunFolder:
        """Return the run of a fold, counted from 1."""
        return RunFolder(self.path / name_fold(fold))

    def list_runs(self) -> list[RunFolder]:
        """Return the runs of all folds, in order.

        Raises:
            RunError: one has not finished, or the split cannot be read.
        """
        if not self.is_finished:
            missing = ", ".join(run.path.name for run in self.list_missing())
            state = f"that lacks {missing}" if missing else "that has not finished"
            raise RunError(
                f"{self.path} is a cross-validation {state}",
                f"{describe_resume(self)}, or name one of its folds",
            )
        number = len({split for split in self.read_split().splits if is_fold(split)})
        return [self.run(fold) for fold in range(1, number + 1)]

    def fingerprint_weights(self) -> str:
        """Return the checksums of the folds' weights."""
        return "-".join(run.fingerprint_weights() for run in self.list_runs())

    def read_left_out(self) -> tuple[dict[str, Any], ...]:
        """Return the internal and external metrics of each left-out value; none for other cross-validations.

        Raises:
            RunError: the file does not fit its schema.
        """
        from convnext_cli.runs.records import FoldsResult

        result = self.read(METRICS, FoldsResult)
        return result.left_out if result else ()

    def create(self, *, overwrite: bool) -> None:
        """Make the folder as `RunFolder.create` does; files of earlier folds' runs are removed."""
        RunFolder.create(self, overwrite=overwrite)
        CHECKPOINT.path(self.path).parent.rmdir()  # each fold has its own

    def list_removable(self) -> list[Path]:
        """Return all files of the cross-validation and its runs, in an order in which they can be removed."""
        folds = [path for folder in self.path.glob(f"{FOLD}*") for path in RunFolder(folder).list_removable()]
        return [METRICS.path(self.path), *folds, *RunFolder.list_removable(self), self.plan]

    @property
    def is_aborted_start(self) -> bool:
        """True if everything here was left by a run that was killed before the first fold had begun."""
        first = self.run(1)
        folds = [path for path in self.path.glob(f"{FOLD}*") if is_fold(path.name)]
        known = {*folds, first.plan, *list_beginning(self.path), *list_beginning(first.path)}
        for path in (self.path, *folds):
            known |= {path / "last", path / LOCK, RunFolder(path).plots}
        return set(self.path.rglob("*")) <= known


def is_aborted_start(path: Path) -> bool:
    """Return True if a folder has only what a run or a cross-validation wrote before it had begun."""
    return path.is_dir() and any(path.iterdir()) and FoldsFolder(path).is_aborted_start


def remove_aborted_start(path: Path) -> None:
    """Remove what a run or a cross-validation wrote before it had begun; anything else at `path` stays."""
    folder = FoldsFolder(path)
    if not folder.is_aborted_start:
        return
    for file in folder.list_removable():
        file.unlink(missing_ok=True)
    for run in (folder.run(1), folder):
        for empty in (CHECKPOINT.path(run.path).parent, run.path):
            with suppress(OSError):  # it is not there; or the lock is in it, which its holder removes
                empty.rmdir()


def open_folder(path: Path) -> RunFolder:
    """Return the run at `path`, or the cross-validation if it is one.

    Raises:
        RunError: one of its files is a pipe or a device, from which reading might never end.
    """
    for folder in (path, *path.glob(f"{FOLD}*")):
        for file in (place for kind in (FOLDS_PLAN, *RUN_FILES) for place in kind.find(folder)):
            if file.exists() and not (file.is_file() or file.is_dir()):
                raise RunError(f"{file} cannot be read: it is not a regular file", "Restore it, or give another run")
    folds = FoldsFolder(path)
    return folds if folds.is_begun else RunFolder(path)


def find_resumable(run: RunFolder) -> RunFolder:
    """Return the folder to resume: the cross-validation of a fold's run, else the run itself."""
    parent = open_folder(run.path.parent)
    return parent if isinstance(parent, FoldsFolder) and is_fold(run.path.name) else run


def describe_resume(run: RunFolder) -> str:
    """Return the remedy of a run that has not finished: the command that resumes it."""
    return f"Continue with {resume_command(find_resumable(run).path)}"


def check_single(path: Path) -> None:
    """Check that there is a single model at `path`.

    Raises:
        UsageError: it is a cross-validation.
    """
    if isinstance(open_folder(path), FoldsFolder):
        raise UsageError(
            f"{path} is a cross-validation: it has a model for each fold",
            f"Name one fold, such as {path / name_fold(1)}",
        )


def name_runs(model: str, now: datetime) -> Iterator[Path]:
    """Yield names for a new run's folder, the best first: `runs/<time>-<architecture>`, then with a number."""
    name = f"{now:%Y-%m-%d_%H%M%S}-{model.partition('.')[0]}"
    yield RUNS / name
    yield from (RUNS / f"{name}-{number}" for number in count(2))


def find_newest_run(naming: str) -> RunFolder:
    """Return the newest run under `runs/` that has a model; for a fold, its cross-validation.

    Args:
        naming: the command that names a run, for the error.

    Raises:
        RunError: there is no such run.
    """
    models = [*RUNS.glob(f"*/{MODEL.name}"), *RUNS.glob(f"*/{FOLD}*/{MODEL.name}")]
    if not models:
        raise RunError(
            f"no run under {RUNS.resolve()}", f"Name one with `{naming}`, or make one with `convnext finetune`"
        )
    newest = max(models, key=lambda path: path.stat().st_mtime).parent
    return open_folder(newest if newest.parent == RUNS else newest.parent)
