"""Where training, reports and exports meet: what the command line and a Python program both start."""

import os
import time
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeAlias, Unpack

from convnext_cli.data.audit.summary import Audit
from convnext_cli.data.intake import Intake, Taken, check_fix_list, take_in, write_fix_list
from convnext_cli.data.scan import AUTO, NONE
from convnext_cli.errors import ConvnextError, StoppedError
from convnext_cli.progress import OnEvent, Progress, drain
from convnext_cli.recipes.machine import count_cpus
from convnext_cli.recipes.recipe import DEFAULT_RECIPE, SettingsDict, check_settings
from convnext_cli.recipes.rules import Choice
from convnext_cli.runs import RunFolder
from convnext_cli.training.crossvalidation import CrossValidated, cross_validate_steps
from convnext_cli.training.finetuning import Finished, Planned, Started, Trained, finetune_steps
from convnext_cli.training.preparation import Request

if TYPE_CHECKING:
    from convnext_cli.training.loop import EpochDone, Remark, StepDone

Events: TypeAlias = (
    "Iterator[Progress | Planned | Started | StepDone | EpochDone | Remark | Trained | Finished | CrossValidated]"
)
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
    probe: bool
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
    probe: bool = True,
    compile: bool | None = None,
    track: Sequence[str] = (),
    onnx: bool = True,
    on_event: OnEvent = None,
    **settings: Unpack[SettingsDict],
) -> Finished:
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
        probe: begin a long run with measuring what it computes fastest with.
        compile: compile the model for training, on a processor, which takes a minute or more; None lets runs of half an
            hour or more measure whether it pays.
        track: where figures are sent as well: `tensorboard`, `wandb`, `mlflow`.
        onnx: write `model.onnx` at the end, where the extra `onnx` is installed.
        on_event: called with each event: `Progress` of checking and preparing, then `Planned`, `Started`, a `StepDone`
            for each optimizer step, an `EpochDone` for each epoch, `Remark` (a text for the user) and `Trained`. An
            exception that it raises stops the training; `resume` continues it from the last saved state.
        **settings: any field of `Recipe`, such as `epochs=30`; `convnext finetune --help` describes them.

    Raises:
        ConvnextError: a subclass says what is wrong and what to do.
    """
    request = _make_request(
        data, output, resume, settings, model=model, weights=str(weights), offline=offline, overwrite=overwrite,
        recipe=recipe, augment=augment, audit=audit, max_time=max_time, cache=cache, probe=probe,
        compile=compile, track=tuple(track),
    )  # fmt: skip
    return drain(draw_along(export_along(finetune_steps(request), onnx=onnx)), Finished, on_event)


def cross_validate(
    data: Path | str | None = None,
    *,
    output: Path | str | None = None,
    resume: Path | str | None = None,
    onnx: bool = True,
    on_event: OnEvent = None,
    **options: Unpack[TrainingOptions],
) -> CrossValidated:
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
    own = {name: values.pop(name) for name in Request.__slots__ if name in values}
    own |= {name: kind(own[name]) for name, kind in (("weights", str), ("track", tuple)) if name in own}
    request = _make_request(data, output, resume, values, **own)
    return drain(draw_along(export_along(cross_validate_steps(request), onnx=onnx)), CrossValidated, on_event)


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
    steps = take_in(Intake(data=Path(data), **own), threads=count_cpus())  # type: ignore[arg-type]  # just checked
    audit = drain(steps, Taken, on_event).audit
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
) -> Request:
    return Request(
        data=Path(data) if data is not None else None,
        output=Path(output) if output else None,
        resume=Path(resume) if resume is not None else None,
        settings={name: Choice(value=value, source="flag") for name, value in settings.items()},
        **options,
    )


def export_along(events: Events, *, onnx: bool = True) -> Events:
    """Pass the events of a fine-tuning on, and write `model.onnx` into the run before it counts as finished.

    A process that is killed meanwhile leaves an unfinished run, which `--resume` completes. Only where the extra `onnx`
    is installed, and not where the environment has CONVNEXT_ONNX=0. What prevents the file is said, and is no failure.
    """
    for event in events:
        wanted = onnx and os.environ.get("CONVNEXT_ONNX") != "0" and os.environ.get("RANK", "0") == "0"
        if isinstance(event, Trained) and wanted:
            yield from _export(RunFolder(event.run))
        yield event


def _export(run: RunFolder) -> Events:
    from convnext_cli.exports.delivery import Wanted, export_steps
    from convnext_cli.exports.graph import check_installed
    from convnext_cli.training.loop import Remark

    try:
        check_installed()
    except ConvnextError:
        return
    try:
        for step in export_steps(run, Wanted(max_images=PARITY_IMAGES)):
            if isinstance(step, Progress):
                yield step
    except StoppedError:
        raise
    except Exception as error:  # the exporter's own errors are many; none of them is worth a finished run
        yield Remark(text=f"{run.exported('onnx').name} was not made: {' '.join(str(error).split())[:300]}")


def draw_along(events: Events) -> Events:
    """Passes the events of a fine-tuning on, and keeps `curves.png` in the run folder up to date."""
    run: RunFolder | None = None
    drawn = cost = 0.0
    for event in events:
        if isinstance(event, Started) and os.environ.get("RANK", "0") == "0":
            run = RunFolder(event.run)
            if event.resumed_at is None and run.read_range_test():
                from convnext_cli.reports.plots import draw_range_test

                draw_range_test(run)
        elif run is not None:
            from convnext_cli.training.loop import EpochDone  # torch: only once training has begun

            due = isinstance(event, EpochDone) and cost <= DRAWING_SHARE * (time.monotonic() - drawn)
            if due or isinstance(event, Trained):
                from convnext_cli.reports.plots import draw_curves  # matplotlib: the first step does not wait for it

                drawn = time.monotonic()
                draw_curves(run)
                cost = time.monotonic() - drawn
        yield event
