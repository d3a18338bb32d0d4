"""Where training and reports meet: what the command line and a Python program both start."""

import os
import time
from collections import deque
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_cli.recipes.plan import Choice
from convnext_cli.runs import RunFolder
from convnext_cli.training.finetuning import Finished, Started, finetune_steps
from convnext_cli.training.preparation import Request

if TYPE_CHECKING:
    from convnext_cli.inference.predictor import Progress
    from convnext_cli.training.loop import EpochDone, StepDone

DRAWING_SHARE = 0.05  # of the time, at most: where epochs are very short, not each gets a picture


def finetune(
    data: Path | str,
    *,
    model: str | None = None,
    output: Path | str | None = None,
    weights: Path | str = "auto",
    offline: bool = False,
    overwrite: bool = False,
    recipe: str = "specification",
    **settings: Any,
) -> Finished:
    """Fine-tunes a ConvNeXt on a folder of images and returns where the run is and how good it is.

    Args:
        data: folder of `<class>/` or `{train,val,test}/<class>/` folders.
        model: an architecture, with or without a `.tag`; None takes the recommended one.
        output: the run folder; None makes `runs/<time>-<model>/`.
        weights: `auto`, `none`, or the path of a file or run folder.
        offline: never ask the Hub.
        overwrite: replace a run that is at `output` already.
        recipe: the tables that settings come from, `specification` or `published`.
        **settings: any field of `Recipe`.

    Raises:
        ConvnextError: a subclass says what is wrong and what to do.
    """
    request = Request(
        data=Path(data),
        model=model,
        output=Path(output) if output else None,
        weights=str(weights),
        offline=offline,
        overwrite=overwrite,
        recipe=recipe,
        settings={name: Choice(value=value, source="flag") for name, value in settings.items()},
    )
    [last] = deque(draw_along(finetune_steps(request)), maxlen=1)
    assert isinstance(last, Finished)
    return last


def draw_along(
    events: "Iterator[Started | StepDone | EpochDone | Progress | Finished]",
) -> "Iterator[Started | StepDone | EpochDone | Progress | Finished]":
    """Passes the events of a fine-tuning on, and keeps `curves.png` in the run folder up to date."""
    run: RunFolder | None = None
    drawn = cost = 0.0
    for event in events:
        if isinstance(event, Started):
            # here, because what is wrong with the input is said before anything heavy is imported
            from convnext_cli.reports.plots import draw_curves
            from convnext_cli.training.loop import EpochDone

            run = RunFolder(event.run)
            yield event
            continue
        if run is None or os.environ.get("RANK", "0") != "0":
            yield event
            continue
        due = isinstance(event, EpochDone) and cost <= DRAWING_SHARE * (time.monotonic() - drawn)
        if due or isinstance(event, Finished):
            drawn = time.monotonic()
            draw_curves(run)
            cost = time.monotonic() - drawn
        yield event
