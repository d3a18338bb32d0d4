"""Where training, reports and exports meet: what the command line and a Python program both start."""

import os
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Unpack

from convnext_cli.data.audit.fix_list import check_fix_list, write_fix_list
from convnext_cli.data.audit.summary import Audit
from convnext_cli.data.dataset import DatasetRequest, load_dataset
from convnext_cli.data.index import AUTO, NONE
from convnext_cli.errors import ConvnextError, StoppedError
from convnext_cli.machine import count_cpus
from convnext_cli.progress import Notice, OnEvent, finish, map_events
from convnext_cli.recipes.settings import DEFAULT_RECIPE, Choice, SettingsDict, check_settings
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.crossvalidation import train_steps
from convnext_cli.training.events import (
    CrossValidationResult,
    EpochDone,
    Event,
    FinetuneResult,
    Started,
    Trained,
    TrainSteps,
)
from convnext_cli.training.request import TrainRequest

PARITY_IMAGES = 32  # that model.onnx is checked on as part of a fine-tuning; `convnext export` takes more
DRAWING_SHARE = 0.05  # of the time, at most: where epochs are very short, not each gets a picture


class TrainingOptions(SettingsDict, total=False):
    """What `cross_validate` passes on, for type checkers and editors. A test compares it with `finetune`."""

    model: str | None
    weights: Path | str
    offline: bool
    overwrite: bool
    recipe: str
    augment: str | None
    audit: bool
    max_time: float | None
    cache: bool
    autotune: bool
    compile: bool | None
    track: Sequence[str]


def finetune(
    data: Path | str | None = None,
    *,
    model: str | None = None,
    output: Path | str | None = None,
    weights: Path | str = "auto",
    offline: bool = False,
    overwrite: bool = False,
    recipe: str = DEFAULT_RECIPE,
    augment: str | None = None,
    audit: bool = True,
    resume: Path | str | None = None,
    max_time: float | None = None,
    cache: bool = True,
    autotune: bool = True,
    compile: bool | None = None,
    track: Sequence[str] = (),
    onnx: bool = True,
    on_event: OnEvent = None,
    **settings: Unpack[SettingsDict],
) -> FinetuneResult:
    """Fine-tune a ConvNeXt on images, and return the run folder and its metrics.

    Args:
        data: a folder of `<class>/` or `{train,val,test}/<class>/` folders, a CSV file, or a zip file.
        model: an architecture, with or without a `.tag`; None takes the recommended one.
        output: the run folder; None makes `runs/<time>-<model>/`.
        weights: `auto`, `none`, `builtin`, or the path of a file or run folder.
        offline: never ask the Hub.
        overwrite: replace a run that is at `output` already.
        recipe: the tables that settings come from, `measured`, `specification` or `published`.
        augment: how training images vary: `none`, `light`, `medical`, `natural` or `strong`; None for the
            recipe's own, else `light`.
        audit: look at every image first.
        resume: a run to be continued, with its own model, settings, split and, unless they have moved, data.
        max_time: seconds; fewer epochs are planned where they would take longer.
        cache: keep decoded images in the user's cache folder, for later epochs and runs.
        autotune: begin a long run by measuring which compute configuration is fastest.
        compile: compile the model for training, on a processor, which takes a minute or more; None lets runs of half an
            hour or more measure whether it pays.
        track: where figures are sent as well: `tensorboard`, `wandb`, `mlflow`.
        onnx: write `model.onnx` at the end, where the extra `onnx` is installed.
        on_event: called with each event: `Progress` of checking and preparing, then `Planned`, `Started`, a `StepDone`
            for each optimizer step, an `EpochDone` for each epoch, `Notice` (a text for the user) and `Trained`. An
            exception that it raises stops the training; `resume` continues it from the last saved state.
        **settings: any field of `Settings`, such as `epochs=30`; `convnext finetune --help` describes them.

    Raises:
        ConvnextError: a subclass says what is wrong and what to do.
    """
    request = _make_request(
        data, output, resume, settings, model=model, weights=str(weights), offline=offline, overwrite=overwrite,
        recipe=recipe, augment=augment, audit=audit, max_time=max_time, cache=cache, autotune=autotune,
        compile=compile, track=tuple(track),
    )  # fmt: skip
    result = finish(train(request, onnx=onnx), on_event)
    assert isinstance(result, FinetuneResult)
    return result


def cross_validate(
    data: Path | str | None = None,
    *,
    output: Path | str | None = None,
    resume: Path | str | None = None,
    onnx: bool = True,
    on_event: OnEvent = None,
    **options: Unpack[TrainingOptions],
) -> CrossValidationResult:
    """Fine-tune a model for each fold, one after the other, and return their metrics with mean and spread.

    Args:
        data: as `finetune` takes it.
        output: the folder of the folds' runs; None makes `runs/<time>-<model>/`.
        resume: a cross-validation to be continued.
        onnx: write each fold's `model.onnx`, where the extra `onnx` is installed.
        on_event: as `finetune` takes it; each fold ends with its `Finished`.
        **options: `folds`, 5 if not given, and what `finetune` takes.

    Raises:
        ConvnextError: a subclass says what is wrong and what to do.
    """
    values: dict[str, Any] = ({"folds": 5} if resume is None else {}) | dict(options)
    own = {name: values.pop(name) for name in TrainRequest.__slots__ if name in values}
    own |= {name: kind(own[name]) for name, kind in (("weights", str), ("track", tuple)) if name in own}
    request = _make_request(data, output, resume, values, **own)
    result = finish(train(request, onnx=onnx), on_event)
    assert isinstance(result, CrossValidationResult)
    return result


def check(
    data: Path | str,
    *,
    image_root: str = AUTO,
    exclude: str = NONE,
    group_from: str = "auto",
    resplit: bool = False,
    fix_list: Path | str | None = None,
    overwrite: bool = False,
    on_event: OnEvent = None,
) -> Audit:
    """Check a data set: unreadable files, duplicates, leakage between splits, classes that metadata alone predict.

    Args:
        data: a folder of `<class>/` or `{train,val,test}/<class>/` folders, a CSV file, or a zip file.
        image_root: the folder that a CSV file's paths begin in; `auto` looks in its own folder and those below.
        exclude: images to leave out: a file that lists them, one folder or pattern, or `none`.
        group_from: what images of one patient have in common: `auto`, `none`, `dicom:KEYWORD`, or a regular expression.
        resplit: forget the data's own splits.
        fix_list: a file to write the images to leave out to, for `exclude`.
        overwrite: replace what is at `fix_list`.
        on_event: called with each `Progress`.

    Returns:
        The audit: `findings`, each with what it does to the result, and `falsifies`, whether test scores will be wrong.

    Raises:
        DataError: the data cannot be read.
        UsageError: an argument is wrong, or `fix_list` lies in the data or exists.
    """
    own = {"image_root": image_root, "exclude": exclude, "group_from": group_from, "resplit": resplit}
    check_settings(own)
    if fix_list is not None:
        check_fix_list(Path(fix_list), Path(data), overwrite=overwrite)
    steps = load_dataset(DatasetRequest(data=Path(data), **own), threads=count_cpus())  # type: ignore[arg-type]  # just checked
    audit = finish(steps, on_event).audit
    assert audit is not None
    if fix_list is not None:
        write_fix_list(audit, Path(fix_list), overwrite=overwrite)
    return audit


def _make_request(
    data: Path | str | None,
    output: Path | str | None,
    resume: Path | str | None,
    settings: Mapping[str, Any],
    **options: Any,
) -> TrainRequest:
    return TrainRequest(
        data=Path(data) if data is not None else None,
        output=Path(output) if output else None,
        resume=Path(resume) if resume is not None else None,
        choices={name: Choice(value=value, source="flag") for name, value in settings.items()},
        **options,
    )


def train(request: TrainRequest, *, onnx: bool = True) -> TrainSteps[FinetuneResult | CrossValidationResult]:
    """Train as a request says; keep `curves.png` up to date, and write `model.onnx` before the run counts as finished.

    The file is written only where the extra `onnx` is installed, and not where the environment has CONVNEXT_ONNX=0. A
    process that is killed meanwhile leaves an unfinished run, which `--resume` completes.
    """
    complete = _export if onnx and os.environ.get("CONVNEXT_ONNX") != "0" else None
    steps = train_steps(request, complete)
    if os.environ.get("RANK", "0") != "0":
        return (yield from steps)
    return (yield from map_events(steps, _CurveDrawer()))


def _export(run: RunFolder) -> TrainSteps[None]:
    """Write `model.onnx` into a run. What prevents it is said, and is no failure."""
    from convnext_cli.exports.export import export_steps
    from convnext_cli.exports.onnx_file import check_installed
    from convnext_cli.exports.request import ExportRequest

    try:
        check_installed()
    except ConvnextError:
        return
    try:
        yield from export_steps(run, ExportRequest(max_images=PARITY_IMAGES))
    except StoppedError:
        raise
    except Exception as error:  # the exporter's own errors are many; none of them is worth a finished run
        yield Notice(text=f"{run.exported('onnx').name} was not made: {' '.join(str(error).split())[:300]}")


class _CurveDrawer:
    """Draws the curves of a training into its run while it goes on."""

    def __init__(self) -> None:
        self._run: RunFolder | None = None
        self._drawn = self._cost = 0.0

    def __call__(self, event: Event) -> Event:
        """Draw where an event asks for it, and return the event."""
        match event:
            case Started():
                self._run = RunFolder(event.run)
                if event.resumed_at is None and self._run.read_range_test():
                    from convnext_cli.reports.plots import draw_range_test

                    draw_range_test(self._run)
            case EpochDone() if self._cost <= DRAWING_SHARE * (time.monotonic() - self._drawn):
                self._draw()
            case Trained():
                self._draw()
        return event

    def _draw(self) -> None:
        if self._run is not None:
            from convnext_cli.reports.plots import draw_curves  # matplotlib: the first step does not wait for it

            self._drawn = time.monotonic()
            draw_curves(self._run)
            self._cost = time.monotonic() - self._drawn
