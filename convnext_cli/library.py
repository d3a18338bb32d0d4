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
    from convnext_cli.progress import Progress
    from convnext_cli.training.loop import EpochDone, Remark, StepDone

REDRAW = 2.0  # seconds; epochs that are shorter do not each get a picture


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
    events: "Iterator[Progress | Started | StepDone | EpochDone | Remark | Finished]",
) -> "Iterator[Progress | Started | StepDone | EpochDone | Remark | Finished]":
    """Passes the events of a fine-tuning on, and keeps `curves.png` in the run folder up to date."""
    from convnext_cli.reports.plots import draw_curves
    from convnext_cli.training.loop import EpochDone

    run: RunFolder | None = None
    drawn = -REDRAW
    for event in events:
        if isinstance(event, Started):
            run = RunFolder(event.run)
        last = isinstance(event, Finished)
        due = last or (isinstance(event, EpochDone) and time.monotonic() - drawn >= REDRAW)
        if run is not None and due and os.environ.get("RANK", "0") == "0":
            draw_curves(run)
            drawn = time.monotonic()
        yield event
