"""The folder of a cross-validation, a run for each fold; and where new runs lie."""

from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from itertools import count
from pathlib import Path

from convnext_cli.data.split import FOLD, is_fold, name_fold
from convnext_cli.errors import RunError, UsageError
from convnext_cli.locks import LOCK
from convnext_cli.runs.folder import FOLDS_PLAN, RUNS, RunFolder
from convnext_cli.text import quote


@dataclass(frozen=True, slots=True)
class FoldsFolder(RunFolder):
    """One cross-validation on disk. Its split says of each image which fold it validates in, or that it is a test."""

    @property
    def plan(self) -> Path:
        """The settings of all folds; feeding it back repeats the cross-validation."""
        return self.path / FOLDS_PLAN

    def run(self, fold: int) -> RunFolder:
        """One fold's run, counted from 1."""
        return RunFolder(self.path / name_fold(fold))

    def list_runs(self) -> list[RunFolder]:
        """The folds' runs, in order, all of them finished.

        Raises:
            RunError: they are not, or the split cannot be read.
        """
        if not self.is_finished:
            raise RunError(
                f"{self.path} is a cross-validation that has not finished",
                f"Go on with `convnext finetune --resume {quote(self.path)}`, or name one of its folds",
            )
        number = len({split for split in self.read_split().splits if is_fold(split)})
        return [self.run(fold) for fold in range(1, number + 1)]

    def create(self, *, overwrite: bool) -> None:
        """Makes the folder, as `RunFolder.create` does; what the runs of former folds have written goes."""
        RunFolder.create(self, overwrite=overwrite)
        (self.path / "last").rmdir()  # the folds have one each

    def _files(self) -> Iterator[Path]:
        yield self.metrics
        for path in self.path.glob(f"{FOLD}*"):
            yield from RunFolder(path)._files()
        yield from RunFolder._files(self)
        yield self.plan

    def _is_false_start(self) -> bool:
        """Whether all that is here was written before the first fold's plan was taken over."""
        first = self.run(1)
        known = {first.path, first.plan, *self._beginnings(), *first._beginnings()}
        known |= {folder / name for folder in (self.path, first.path) for name in ("last", LOCK)}
        return set(self.path.rglob("*")) <= known


def open_folder(path: Path) -> RunFolder:
    """The run at `path`, or the cross-validation where it is one."""
    folds = FoldsFolder(path)
    return folds if folds.is_begun else RunFolder(path)


def find_resumable(run: RunFolder) -> RunFolder:
    """What `--resume` continues: the cross-validation that the run is a fold of, else the run."""
    whole = open_folder(run.path.parent)
    return whole if isinstance(whole, FoldsFolder) and is_fold(run.path.name) else run


def check_single(path: Path) -> None:
    """Checks that there is one model at `path`.

    Raises:
        UsageError: it is a cross-validation.
    """
    if isinstance(open_folder(path), FoldsFolder):
        raise UsageError(f"{path} has a model for each fold", f"Name one of them, such as {path / name_fold(1)}")


def name_runs(model: str, now: datetime) -> Iterator[Path]:
    """Yield names for a new run's folder, the best first: `runs/<time>-<architecture>`, then with a number."""
    name = f"{now:%Y-%m-%d_%H%M%S}-{model.partition('.')[0]}"
    yield RUNS / name
    for number in count(2):
        yield RUNS / f"{name}-{number}"


def find_newest_run() -> RunFolder:
    """The newest run under `runs/` that has a model; where that is a fold, the cross-validation it is part of.

    Raises:
        RunError: there is none.
    """
    models = [*RUNS.glob("*/model.safetensors"), *RUNS.glob("*/fold-*/model.safetensors")]
    if not models:
        raise RunError(f"no run under {RUNS.resolve()}", "Name one with --run, or make one with `convnext finetune`")
    newest = max(models, key=lambda path: path.stat().st_mtime).parent
    return RunFolder(newest if newest.parent == RUNS else newest.parent)
