"""`convnext eval`: how good a run is."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnext_cli.cli import console
from convnext_cli.errors import UsageError

if TYPE_CHECKING:
    from convnext_cli.inference.evaluation import Evaluation
    from convnext_cli.runs import RunFolder

SPLITS = ("train", "val", "test", "all")


def evaluate(
    run: Annotated[Path | None, typer.Argument(help="Run folder; the newest under runs/ if not given.")] = None,
    data: Annotated[
        Path | None, typer.Argument(help="Folder of images; the run's own data and split if not given.")
    ] = None,
    split: Annotated[
        str | None, typer.Option(help="train, val, test or all; test if there is one, else val, else all.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Evaluate a run. Metrics for each class, and the confusion matrix."""
    if split is not None and split not in SPLITS:
        raise UsageError(f"unknown split {split!r}", f"Give one of {', '.join(SPLITS)}")
    from convnext_cli.runs import RunFolder, find_newest_run

    folder = find_newest_run() if run is None else RunFolder(run)
    if run is None:
        console.say(f"run: {folder.path} (the newest)")
    found = run_evaluation(folder, data, split)
    if as_json:
        console.show_json(asdict(found))
    else:
        show_evaluation(found)


def run_evaluation(run: "RunFolder", data: Path | None, split: str | None) -> "Evaluation":
    """Evaluates with a progress bar."""
    from convnext_cli.inference.evaluation import Evaluation, evaluate_steps

    with console.progress("evaluating") as bar:
        for event in evaluate_steps(run, data, split):
            if isinstance(event, Evaluation):
                return event
            bar.update(event.done, event.total)
    raise AssertionError("an evaluation ends with its result")


def show_evaluation(found: "Evaluation") -> None:
    """Figures, classes, confusion."""
    metrics, percent = found.metrics, console.percent
    console.show(
        f"{console.shorten(found.run)} on {console.shorten(found.data)}, {found.split}: {metrics.images:,} images",
        style="bold",
    )
    console.show(
        f"balanced accuracy {percent(metrics.balanced_accuracy)}%   top-1 {percent(metrics.top1)}%   "
        f"macro F1 {percent(metrics.macro_f1)}%   log loss {metrics.log_loss:.4f}"
    )
    for note in found.notes:
        console.warn(note)
    console.show("")
    console.show_table(
        ["class", "images", "precision %", "recall %", "F1 %"],
        ((c.name, c.images, percent(c.precision), percent(c.recall), percent(c.f1)) for c in metrics.per_class),
        numbers=["images", "precision %", "recall %", "F1 %"],
    )
    names = [entry.name for entry in metrics.per_class]
    if len(names) > 12:
        return  # too wide for a screen; --json has it
    console.show("")
    console.show_table(
        ["true \\ predicted", *names],
        ((name, *row) for name, row in zip(names, metrics.confusion, strict=True)),
        numbers=names,
    )
