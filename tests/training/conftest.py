"""Requests, and trainings that run, stop and resume, for the tests of training."""

from collections.abc import Callable, Mapping
from dataclasses import fields
from functools import cache, partial
from pathlib import Path
from typing import Any

import pytest

from convnext_cli.progress import Notice, Progress
from convnext_cli.recipes.settings import Choice
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.events import StepDone
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.request import TrainRequest
from tests.conftest import SMALL, run_all

# On `few_digits`: 48 training images, 6 steps of 8 per epoch; 12 validation images, so few that the last epoch is kept
TINY: dict[str, Any] = {
    "model": "test_convnext2", "weights": "none", "augment": "strong", "epochs": 3, "batch_size": 8,
    "micro_batch_size": 4, "lr": 2e-3, "image_size": 32, "val_fraction": 0.2, "test_fraction": 0.0, "mixup": 0.4,
    "drop_path": 0.2, "save_every": 4,
}  # fmt: skip
STEPS = 6


def make_request(options: Mapping[str, Any], data: Path, output: Path | str | None, **changes: Any) -> TrainRequest:
    """Return a request with options and changes: fields of `TrainRequest`, else settings."""
    options = {**options, **changes}
    names = {field.name for field in fields(TrainRequest)}
    own = {name: options.pop(name) for name in list(options) if name in names}
    own["weights"] = str(own.get("weights", "auto"))
    choices = {name: Choice(value=value, source="flag") for name, value in options.items()}
    return TrainRequest(
        data=data, output=None if output is None else Path(output), offline=True, choices=choices, **own
    )


small_request = partial(make_request, SMALL)
tiny_request = partial(make_request, TINY)


def train(request: TrainRequest) -> list[Any]:
    """Train to the end; return the events without progress and, last, the result."""
    return [event for event in run_all(finetune_steps(request)) if not isinstance(event, Progress)]


def resume(run: Path | str, **options: Any) -> list[Any]:
    """Resume a run; return what `train` does."""
    return train(TrainRequest(resume=Path(run), **options))


def stop_after(request: TrainRequest, steps: int, stop: Callable[[], None] | None = None) -> None:
    """Train for some steps; then call `stop`, or end as after a kill: nothing more is written."""
    events = finetune_steps(request)
    for event in events:
        steps -= isinstance(event, StepDone)
        if not steps:
            if stop is None:
                events.close()
                return
            stop()
            stop = lambda: None  # noqa: E731


@pytest.fixture(scope="session")
def train_once(tmp_path_factory: pytest.TempPathFactory) -> Callable[..., RunFolder]:
    """Train a `TINY` run on a data folder with changes; the same changes give the same run, which no test changes."""

    @cache
    def train_tiny(data: Path, **changes: Any) -> RunFolder:
        folder = tmp_path_factory.mktemp("tiny") / "run"
        train(tiny_request(data, folder, **changes))
        return RunFolder(folder)

    return train_tiny


@pytest.fixture(scope="session")
def uninterrupted(few_digits: Path, train_once: Callable[..., RunFolder]) -> RunFolder:
    """A `TINY` run without interruptions."""
    return train_once(few_digits)


def list_texts(events: list[Any]) -> list[str]:
    """Return the texts of the notices among events."""
    return [event.text for event in events if isinstance(event, Notice)]
