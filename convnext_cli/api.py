"""The operations that commands and Python programs start: training, evaluation, export, data checks.

Operations with progress are generators: what they import takes seconds, and the progress bar stands by then.
"""

import os
import time
from collections.abc import Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Unpack

from convnext_cli.errors import ConvnextError, StoppedError, shorten_error
from convnext_cli.exports.request import ExportRequest
from convnext_cli.inference.request import EvalRequest
from convnext_cli.machine import get_rank
from convnext_cli.options import check_options, describe_options, make_path, make_request
from convnext_cli.progress import Notice, OnEvent, Result, Steps, finish, map_events
from convnext_cli.recipes.settings import (
    READING_SETTINGS,
    Choice,
    DataOptions,
    SettingsDict,
    SettingSources,
    check_settings,
    declare_settings,
    expand_settings,
    list_changed,
)
from convnext_cli.training.request import TrainRequest

if TYPE_CHECKING:  # each operation imports what it needs: a prediction by ONNX Runtime has no torch
    from convnext_cli.data.audit.summary import Audit
    from convnext_cli.exports.export import ExportedFile
    from convnext_cli.exports.hub import HubFolder
    from convnext_cli.inference.evaluation import Evaluation
    from convnext_cli.runs.folder import RunFolder
    from convnext_cli.training.events import (
        CrossValidationResult,
        Event,
        FinetuneResult,
        TrainOperation,
        TrainSteps,
    )
    from convnext_cli.training.preparation import Preparation

FINETUNE_PARITY_IMAGES = 32  # that model.onnx is checked on as part of a fine-tuning; `convnext export` takes more
DRAWING_FRACTION = 0.05  # of the time, at most: where epochs are very short, not every epoch is drawn


class TrainOptions(SettingsDict, total=False):
    """The options of a training, for type checkers and editors. A test compares it with the request's fields."""

    model: str | None
    weights: Path | str
    teacher: Path | str | None
    recipe: str
    offline: bool
    max_time: float | None
    augment: str | None
    audit: bool
    output: Path | str | None
    overwrite: bool
    resume: Path | str | None
    cache: bool
    workers: int | None
    autotune: bool
    compile: bool | None
    track: Sequence[str]
    onnx: bool
    config: Path | str | None
    imbalance: Literal["none", "sampler", "weights", "effective", "logit", "asymmetric"] | None


def finetune(
    data: Path | str | None = None, *, on_event: OnEvent = None, **options: Unpack[TrainOptions]
) -> "FinetuneResult":
    """Fine-tune a ConvNeXt on images, and return the run folder and its metrics.

    Args:
        data: a folder of `<class>/` or `{train,val,test}/<class>/` folders, a table, or a zip file; None for those
            of the run that `resume` names.
        on_event: called with each event: `Progress` of checking and preparing, then `Planned`, `Started`, a `StepDone`
            for each optimizer step, an `EpochDone` for each epoch, `Notice` (a text for the user) and `Trained`, of
            `convnext_cli.progress` and `convnext_cli.training.events`. An exception that it raises stops the training;
            `resume` continues it from the last checkpoint.
        **options: the options of `convnext finetune --help-all`, such as `model="convnext_nano"`, `epochs=30`,
            `imbalance="weights"` or `resume="runs/…"`. `max_time` is in seconds; `audit` is `--check`.

    Raises:
        ConvnextError: a subclass says what is wrong and what to do.
    """
    from convnext_cli.training.finetuning import finetune_steps

    return finish(_train(finetune_steps, make_train_request({"data": data} | dict(options))), on_event)


def cross_validate(
    data: Path | str | None = None, *, on_event: OnEvent = None, **options: Unpack[TrainOptions]
) -> "CrossValidationResult":
    """Fine-tune a model for each fold, one after the other, and return their metrics with mean and spread.

    Args:
        data: as in `finetune`.
        on_event: as in `finetune`; each fold ends with a `FoldDone`.
        **options: as in `finetune`; `folds` is 5 by default, or `leave_out` names a column with a fold for each value;
            `output` is the folder of the folds' runs.

    Raises:
        ConvnextError: a subclass says what is wrong and what to do.
    """
    from convnext_cli.training.crossvalidation import cross_validate_steps

    has_own = options.get("resume") is not None or options.get("leave_out") is not None
    folds: dict[str, Any] = {} if has_own else {"folds": 5}
    request = make_train_request(folds | {"data": data} | dict(options))
    return finish(_train(cross_validate_steps, request), on_event)


def check(
    data: Path | str,
    *,
    fix_list: Path | str | None = None,
    overwrite: bool = False,
    on_event: OnEvent = None,
    **options: Unpack[DataOptions],
) -> "Audit":
    """Check a data set: unreadable files, duplicates, leakage between splits, classes that metadata alone predict.

    Args:
        data: a folder of `<class>/` or `{train,val,test}/<class>/` folders, a table (CSV, JSONL, XLSX), or a zip
            file.
        fix_list: a file to write the images to leave out to, for `exclude`.
        overwrite: replace an existing file at `fix_list`.
        on_event: called with each `Progress`.
        **options: `image_root`, `exclude`, `group_from`, `resplit`, `resplit_val`, `task` and those of a table's
            columns, as `convnext check --help-all` describes them.

    Returns:
        The audit: `findings`, each with its effect on the result, and `falsifies`, True if test scores will be wrong.

    Raises:
        DataError: the data cannot be read.
        UsageError: an argument is wrong, or `fix_list` lies in the data or exists.
    """
    from convnext_cli.data.audit.fix_list import check_fix_list, write_fix_list

    source, target = make_path("data", data), None if fix_list is None else make_path("fix_list", fix_list)
    if target is not None:
        check_fix_list(target, source, overwrite=overwrite)
    audit = finish(check_steps(source, options), on_event)
    if target is not None:
        write_fix_list(audit, target, overwrite=overwrite)
    return audit


def check_steps(data: Path, options: Mapping[str, Any]) -> Steps["Audit"]:
    """Check a data set, as `check` does, without writing a list."""
    from convnext_cli.data.dataset import DatasetRequest, load_dataset

    settings = expand_settings(options)
    declared = declare_settings()
    check_options(settings, {name: declared[name] for name in READING_SETTINGS}, kind="option of check")
    request = DatasetRequest(data=data, chosen=list_changed(settings), **settings)
    dataset = yield from load_dataset(request)
    assert dataset.audit is not None
    return dataset.audit


def make_train_request(options: Mapping[str, Any]) -> TrainRequest:
    """Return the request of a training.

    Args:
        options: fields of `TrainRequest`, `SettingSources` and `Settings`; settings override a plan file's.

    Raises:
        UsageError: an option is unknown or has a wrong value, or the plan file cannot be read.
    """
    own = {field.name for field in fields(TrainRequest)} - {"choices"}
    declared = describe_options(TrainRequest)
    request = {
        name: value
        for name, value in options.items()
        if name in own and not (value is None and declared[name].is_optional)  # a plan may have it
    }
    sources = make_request(
        SettingSources, {name: value for name, value in options.items() if name in describe_options(SettingSources)}
    )
    settings = expand_settings({name: value for name, value in options.items() if name not in {*own, "config"}})
    check_settings(settings)
    choices = {name: Choice(value=value, source="flag") for name, value in settings.items()}
    if sources.config is not None:
        from convnext_cli.recipes.plan import override_choices, read_plan

        plan = read_plan(sources.config)
        choices = override_choices(plan.choices, choices, same_model=request.get("model") in (None, plan.model))
        request = {"model": plan.model, "weights": plan.weights or "auto", "teacher": plan.teacher} | request
    return make_request(TrainRequest, request | {"choices": choices})


def prepare(request: TrainRequest) -> Steps["Preparation"]:
    """Check a request, load and split its data, and make the plan, without training."""
    from convnext_cli.training.planning import prepare_steps

    return prepare_steps(request)


def train(request: TrainRequest) -> "TrainSteps[FinetuneResult | CrossValidationResult]":
    """Train one model, or all folds in turn where the request asks for that."""
    from convnext_cli.training.crossvalidation import train_steps

    return (yield from _train(train_steps, request))


def _train(operation: "TrainOperation[Result]", request: TrainRequest) -> "TrainSteps[Result]":
    """Train; keep `curves.png` up to date, and write `model.onnx` before the run counts as finished.

    `model.onnx` is written if the request asks for it, the extra `onnx` is installed, and the environment does not have
    CONVNEXT_ONNX=0. A process that is killed meanwhile leaves an unfinished run, which `--resume` completes.
    """
    complete = _export if request.onnx and os.environ.get("CONVNEXT_ONNX") != "0" else None
    steps = operation(request, complete)
    if get_rank() > 0:
        return (yield from steps)
    drawer = _CurveDrawer()
    result = yield from map_events(steps, drawer)
    if drawer.failure:
        yield Notice(f"the curves are not drawn: {drawer.failure}")
    return result


def evaluate_runs(request: EvalRequest) -> Steps[list["Evaluation"]]:
    """Evaluate runs on the images of the first; the newest run where the request names none."""
    from convnext_cli.inference.evaluation import evaluate_all_steps

    return (yield from evaluate_all_steps(request))


def report_evaluation(evaluation: "Evaluation") -> Steps[Path]:
    """Write the report of an evaluation into its run."""
    from convnext_cli.reports.report import write_report_steps

    return (yield from write_report_steps(evaluation))


def export_run(run: "RunFolder", request: ExportRequest) -> "Steps[ExportedFile | HubFolder]":
    """Export a run, and check the file on images."""
    from convnext_cli.exports.export import export_steps

    return (yield from export_steps(run, request))


def _export(run: "RunFolder") -> "TrainSteps[None]":
    """Write `model.onnx` into a run. A failure is a note: the run is finished without it."""
    from convnext_cli.exports.export import export_steps
    from convnext_cli.exports.onnx_file import check_installed

    try:
        check_installed()
    except ConvnextError:
        return
    try:
        yield from export_steps(run, ExportRequest(max_images=FINETUNE_PARITY_IMAGES))
    except StoppedError:
        raise
    except Exception as error:  # the exporter's own errors are many; none of them may cost a finished run
        yield Notice(f"{run.exported('onnx').name} was not written: {' '.join(str(error).split())[:300]}")


class _CurveDrawer:
    """Draws the curves of a training into its run while it goes on."""

    def __init__(self) -> None:
        self.failure = ""
        """Why no more curves are drawn; empty if they are."""
        self._run: RunFolder | None = None
        self._drawn = self._cost = 0.0
        self._epochs = 0  # in the picture

    def __call__(self, event: "Event") -> "Event":
        """Draw where an event asks for it, and return the event."""
        if not self.failure:
            try:
                self._follow(event)
            except OSError as error:  # a quota, or a cache folder of matplotlib's: no picture may stop a training
                self.failure = shorten_error(error)
        return event

    def _follow(self, event: "Event") -> None:
        from convnext_cli.runs.files import RANGE_TEST_PLOT
        from convnext_cli.runs.folder import RunFolder
        from convnext_cli.training.events import EpochDone, Started, Trained

        match event:
            case Started():
                self._run, self._epochs = RunFolder(event.run), 0
                if not RANGE_TEST_PLOT.path(event.run).exists() and (range_test := self._run.read_range_test()):
                    from convnext_cli.reports.plots import draw_range_test

                    draw_range_test(self._run, range_test)
            case EpochDone() if self._cost <= DRAWING_FRACTION * (time.monotonic() - self._drawn):
                self._draw()
            case Trained():
                self._draw()

    def _draw(self) -> None:
        if self._run is None or (epochs := len(self._run.read_log())) == self._epochs:
            return
        from convnext_cli.reports.plots import draw_curves  # matplotlib: the first step does not wait for it

        self._drawn, self._epochs = time.monotonic(), epochs
        draw_curves(self._run)
        self._cost = time.monotonic() - self._drawn
