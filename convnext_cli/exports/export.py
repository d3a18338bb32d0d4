"""Exports of a run: write the file, check its parity on the user's own images, then give it its final name."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack, overload

import torch

from convnext_cli.data.index import Index, pick_evenly
from convnext_cli.data.outside import check_cache_outside, check_outside_data, list_data_folders
from convnext_cli.errors import DataError, UsageError
from convnext_cli.exports.hub import HubFolder, hub_steps
from convnext_cli.exports.onnx_file import OPSET, check_installed, write_graph, write_metadata
from convnext_cli.exports.parity import Parity, ParityError, Tolerance, check_parity_steps
from convnext_cli.exports.quantisation import quantise
from convnext_cli.exports.request import EXPORT_RUN, ExportRequest
from convnext_cli.exports.torch_export import ProgramClassifier, write_program
from convnext_cli.exports.wrapper import make_metadata
from convnext_cli.files import check_output, remove_leftovers, replace_output
from convnext_cli.inference.calibration import Calibration, load_calibration
from convnext_cli.inference.classifier import Classifier
from convnext_cli.inference.onnx_classifier import OnnxClassifier
from convnext_cli.inference.run_checks import list_state_notes
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.comparison import Comparison, compare
from convnext_cli.options import make_path, make_paths, make_request
from convnext_cli.progress import OnEvent, Progress, Steps, finish
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import check_single, find_newest_run
from convnext_cli.tasks.task import Task
from convnext_cli.text import quote

TOLERANCE = Tolerance(1e-4)
INT8_TOLERANCE = Tolerance(1.0, changed=0.02)  # 8 bits change every probability; the predicted class counts
QUANTISATION_IMAGES = 100  # training images that give the value ranges for quantisation


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedFile:
    """An exported file that passed its parity check."""

    path: Path
    format: str
    """`onnx` or `pt2`."""
    precision: str
    """`float32` or `int8`."""
    bytes: int
    """Size of the file."""
    float32_bytes: int | None
    """With `int8`, the size before quantisation."""
    opset: int | None
    """Of ONNX; None for `pt2`."""
    license: str | None
    """The licences of base weights, teacher and images, joined; None if unknown."""
    parity: Parity
    """Differences from the run: `images`, `same_top1`, `difference`."""
    headline: str
    """Key of the task's first metric."""
    cost: Comparison | None
    """With `int8`, 8 bits minus float32 on the run's validation images; None where other images were given."""
    notes: tuple[str, ...]
    """On a run that has not finished, and on rows of the split that were changed since the training."""


class FileOptions(TypedDict, total=False):
    """Options of `export` for a file, for type checkers and editors."""

    format: Literal["onnx", "pt2"]
    output: Path | str | None
    calibration: Path | str | None
    int8: bool
    images: Sequence[Path | str]
    tolerance: float | None
    overwrite: bool


class HubOptions(TypedDict, total=False):
    """Options of `export` for a folder for the Hugging Face Hub, for type checkers and editors."""

    data: Path | str | None
    push: str | None
    overwrite: bool


@overload
def export(
    run: Path | str | None = None, *, on_event: OnEvent = None, **options: Unpack[FileOptions]
) -> ExportedFile: ...


@overload
def export(
    run: Path | str | None = None,
    *,
    format: Literal["hub"],
    output: Path | str,
    on_event: OnEvent = None,
    **options: Unpack[HubOptions],
) -> HubFolder: ...


def export(run: Path | str | None = None, *, on_event: OnEvent = None, **options: Any) -> ExportedFile | HubFolder:
    """Export the model of a run, and check a file's outputs against those of the run.

    A file takes `pixels`, (B, H, W, 3) uint8 RGB, resized and cropped as its metadata say. It gives `logits` and
    `probabilities` (B, K), of numbers `value` (B, 1); `features` (B, D); and, if the run has an OOD score, `novelty`
    (B,), 0 or more.

    Args:
        run: the run folder; None takes the newest under `runs/`.
        on_event: called with each `Progress`.
        **options: `format`: `onnx` (default); `pt2` (`torch.export`); or `hub`, a folder for the Hugging Face Hub
            with timm's `config.json` and `model.safetensors`, and a model card, whose metrics are an evaluation that
            is recorded in the run. `output`: the file, by default `model.<format>` in the run; with `hub` a new or
            empty folder, which is needed. `calibration`: a file of `evaluate`'s `save_calibration`, in place of the
            run's own; it needs `output`. `int8`: quantise to 8 bits, `onnx` only. `images`: image files to check
            parity on, by default up to 500 of the run's validation images; not with `hub`. `tolerance`: largest
            difference of a probability, by default 1e-4; with `int8` the largest fraction of images that change their
            class, by default 0.02; of numbers the largest difference in standard deviations, with `int8` by default 1;
            not with `hub`. `data`: the run's own data where they have moved; `hub` only. `push`: a repository,
            OWNER/NAME, to upload to, which is made private if it does not exist; `hub` only. `overwrite`: replace what
            is at `output`.

    Returns:
        An `ExportedFile`; with `hub` a `HubFolder`.

    Raises:
        ParityError: the file's outputs differ from those of the run; nothing was written.
        UsageError: the format is unknown, an option does not go with it, or the output exists or lies among the
            images.
        RunError: the run cannot be read.
        DataError: there are no images to check parity on.
        ConvnextError: the extra `onnx` is not installed, or the Hub refused the upload.
    """
    values = options | {"images": make_paths("images", options.get("images", ()))}
    folder = find_newest_run(EXPORT_RUN) if run is None else RunFolder(make_path("run", run))
    return finish(export_steps(folder, make_request(ExportRequest, values)), on_event)


def export_steps(run: RunFolder, request: ExportRequest) -> Steps[ExportedFile | HubFolder]:
    """Export a run, as `export` does.

    Raises:
        UsageError, RunError, DataError, ParityError, ConvnextError: as `export`.
    """
    _check_options(request)
    if request.format != "hub":
        return (yield from _export_file(run, request))
    return (yield from hub_steps(run, request))


def _check_options(request: ExportRequest) -> None:
    if request.format == "hub":
        if request.output is None:
            raise UsageError("--format hub needs --output", "Give a new folder")
        if any((request.int8, request.images, request.tolerance is not None, request.calibration)):
            options = "--int8, --images, --tolerance and --calibration"
            raise UsageError(f"{options} have no effect with --format hub", "Leave them out")
        return
    if request.data is not None:
        raise UsageError("--data goes with --format hub", "Give images for the parity check with --images")
    if request.push:
        raise UsageError("--push goes with --format hub", "Leave one of them out")
    if request.int8 and request.format != "onnx":
        raise UsageError("--int8 goes with --format onnx", "Leave one of them out")
    if request.calibration and not request.output:
        raise UsageError("--calibration needs --output: the run's own file has the run's calibration", "Add --output")


def _export_file(run: RunFolder, request: ExportRequest) -> Steps[ExportedFile]:
    """Write a file under a temporary name, check its parity, and rename it."""
    is_onnx = request.format == "onnx"
    check_single(run.path)
    output = request.output or run.exported(request.format, int8=request.int8)
    index = run.read_split()
    notes = tuple(list_state_notes(run, index))
    check_cache_outside(list_data_folders(index))
    if request.output is not None:
        check_outside_data(output, index)
    may_replace = request.overwrite or request.output is None  # the default path always
    check_output(output, overwrite=may_replace)
    if is_onnx:
        check_installed()
    rows = pick_evenly(index.rows("val"), request.max_images)
    paths = _list_parity_images(run, index, rows, request)
    classifier = TorchClassifier(run.path, torch.device("cpu"))
    metadata, headline = make_metadata(classifier), classifier.task.display.headline
    if request.calibration is not None:
        calibration = load_calibration(request.calibration, metadata.weights, metadata.classes)
        metadata = replace(metadata, calibration=calibration)
    float32_bytes = None
    remove_leftovers(output)
    with replace_output(output, overwrite=may_replace) as temporary:
        yield Progress(done=0, total=1, activity=f"writing {output.name}")
        (write_graph if is_onnx else write_program)(classifier, metadata, temporary)
        if request.int8:
            float32_bytes = temporary.stat().st_size
            metadata = replace(metadata, precision="int8")
            yield Progress(done=0, total=1, activity="quantising")
            training = [index.root / index.paths[row] for row in pick_evenly(index.rows("train"), QUANTISATION_IMAGES)]
            quantise(temporary, metadata, [path for path in training if path.exists()] or paths)
        exported: Classifier = OnnxClassifier(temporary) if is_onnx else ProgramClassifier(temporary)
        parity, before, after = yield from check_parity_steps(
            classifier, exported, paths, metadata.calibration, _choose_tolerance(request, classifier.task)
        )
        if not parity.holds:
            raise ParityError(parity)
        cost = None
        if request.int8 and not request.images:
            cost = _measure_cost(classifier, index, rows, (before, after), metadata.calibration)
        if is_onnx:
            checks = _summarise_checks(parity, cost, headline)
            write_metadata(temporary, replace(metadata, measured=checks))
    return ExportedFile(
        path=output,
        format=request.format,
        precision=metadata.precision,
        bytes=output.stat().st_size,
        float32_bytes=float32_bytes,
        opset=OPSET if is_onnx else None,
        license=metadata.license,
        headline=headline,
        parity=parity,
        cost=cost,
        notes=notes,
    )


def _measure_cost(
    classifier: TorchClassifier,
    index: Index,
    rows: Sequence[int],
    logits: tuple[Floats, Floats],
    calibration: Calibration | None,
) -> Comparison:
    """Return the metrics of rows by the second logits minus those by the first."""
    task, targets = classifier.task, classifier.read_targets(index, rows)
    float32, int8 = (task.make_calculator(task.calibrate(part, calibration), targets, calibration) for part in logits)
    return compare(float32, int8, index.list_groups(rows))


def _list_parity_images(run: RunFolder, index: Index, rows: Sequence[int], request: ExportRequest) -> list[Path]:
    """Return the images to check parity on: those of the request, else rows of the run's index."""
    paths = list(request.images) or [index.root / index.paths[row] for row in rows]
    if not paths:
        raise DataError(
            f"{run.path} has no validation images to check parity on",
            f"`convnext export {quote(run.path)} --images FOLDER` takes others",
        )
    if missing := [path for path in paths if not path.exists()]:
        raise DataError(
            f"{missing[0]} is gone; parity is checked on the user's own images", "Give existing ones with --images"
        )
    return paths


def _choose_tolerance(request: ExportRequest, task: Task) -> Tolerance:
    """Return the tolerance of the request, else the default of the precision. A number has no class that may change."""
    tolerance = INT8_TOLERANCE if request.int8 else TOLERANCE
    if request.tolerance is None:
        return tolerance
    if request.int8 and not task.is_continuous:
        return replace(tolerance, changed=request.tolerance)
    return replace(tolerance, difference=request.tolerance)


def _summarise_checks(parity: Parity, cost: Comparison | None, headline: str) -> dict[str, Any]:
    summary: dict[str, Any] = {
        "images": parity.images,
        "same_top1": parity.same_top1,
        "largest_difference_of_a_probability": parity.difference,
    }
    if cost and (difference := cost.differences[headline]):
        summary[f"{headline}_against_float32"] = asdict(difference)
    return summary
