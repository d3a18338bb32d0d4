"""Which images a run is judged on, and how good it is on them."""

from collections import deque
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from convnext_cli.data.scan import Index, scan_folder
from convnext_cli.errors import DataError
from convnext_cli.evaluation.metrics import Metrics
from convnext_cli.inference.predictor import Predictor, Progress
from convnext_cli.runs import RunFolder, find_newest_run


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A run's figures on some images."""

    run: Path
    data: Path
    split: str
    """`train`, `val`, `test`, or `all`."""
    metrics: Metrics
    notes: tuple[str, ...]
    """What makes the figures less than they seem."""


def evaluate(run: Path | str | None = None, data: Path | str | None = None, *, split: str | None = None) -> Evaluation:
    """Evaluates a run.

    Args:
        run: the run folder; None takes the newest under `runs/`.
        data: a folder of images; None takes the run's own data and its split.
        split: `train`, `val`, `test` or `all`; None takes `test` where there is one, else `val`, else all.

    Raises:
        RunError: the run cannot be read.
        DataError: the data has no such split, or classes that the run does not know.
        ImageError: an image cannot be read.
    """
    folder = find_newest_run() if run is None else RunFolder(Path(run))
    [last] = deque(evaluate_steps(folder, None if data is None else Path(data), split), maxlen=1)
    assert isinstance(last, Evaluation)
    return last


def evaluate_steps(run: RunFolder, data: Path | None, split: str | None) -> Iterator[Progress | Evaluation]:
    """Does what `evaluate` does, and yields progress before the result."""
    trained_on = run.read_split()
    index = _find_index(trained_on, data)
    split, rows, notes = _choose_rows(index, split)
    notes += _check_overlap(trained_on, index, rows)
    for event in Predictor(run.path).evaluate(index, rows):
        if isinstance(event, Metrics):
            if event.absent:
                notes.append(f"no image of {', '.join(event.absent)}: averages are over the other classes")
            yield Evaluation(run=run.path, data=index.root, split=split, metrics=event, notes=tuple(notes))
        else:
            yield event


def _find_index(trained_on: Index, data: Path | None) -> Index:
    """The run's own index where its own data folder is meant, so that its split holds there too."""
    if data is not None and data.resolve() != trained_on.root.resolve():
        index = scan_folder(data)
        moved = (index.classes, index.paths) == (trained_on.classes, trained_on.paths)
        return replace(trained_on, root=data) if moved else index
    if not trained_on.root.is_dir():
        raise DataError(f"the run's data folder {trained_on.root} is gone", "Give the folder of images to evaluate on")
    return trained_on


def _choose_rows(index: Index, split: str | None) -> tuple[str, list[int], list[str]]:
    own = set(index.splits) - {""}
    if split == "all" or (split is None and not own):
        return "all", list(range(len(index))), []
    if split is None:
        split = "test" if "test" in own else "val" if "val" in own else "train"
    rows = index.rows(split)
    if not rows:
        raise DataError(
            f"{index.root} has no {split} split",
            f"It has {', '.join(sorted(own)) or 'none'}; or use --split all",
        )
    notes = {
        "test": [],
        "val": ["the best epoch was chosen on these images, so the figures are a little too good"],
        "train": ["the model was trained on these images: the figures say nothing of new ones"],
    }
    return split, rows, notes[split]


def _check_overlap(trained_on: Index, index: Index, rows: list[int]) -> list[str]:
    """Says how many of the images to evaluate on are training images, where the split does not tell."""
    if (index.paths, index.splits) == (trained_on.paths, trained_on.splits):
        return []
    seen = {(trained_on.root / trained_on.paths[row]).resolve() for row in trained_on.rows("train")}
    again = sum((index.root / index.paths[row]).resolve() in seen for row in rows)
    if not again:
        return []
    return [f"{again} of these {len(rows)} images were trained on: the figures are too good"]
