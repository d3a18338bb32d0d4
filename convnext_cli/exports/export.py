"""Exports a run: writes the file, checks it on the user's own images, and only then gives it its name."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, overload

import torch

from convnext_cli.data.index import Index, check_outside_data
from convnext_cli.errors import DataError, UsageError, check_word
from convnext_cli.exports.hub import HubFolder, hub_steps
from convnext_cli.exports.onnx_file import OPSET, check_installed, write_graph, write_metadata
from convnext_cli.exports.parity import Parity, ParityError, Tolerance, compare_steps
from convnext_cli.exports.quantisation import quantise
from convnext_cli.exports.request import FORMATS, ExportRequest
from convnext_cli.exports.torch_export import Program, write_program
from convnext_cli.exports.wrapper import describe_run
from convnext_cli.files import check_output, replace_output
from convnext_cli.inference.classifier import Classifier
from convnext_cli.inference.onnx_classifier import OnnxClassifier
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.metrics.comparison import Comparison, compare
from convnext_cli.progress import OnEvent, Progress, Steps, finish
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import check_single, find_newest_run

TOLERANCE = Tolerance(1e-4)
INT8_TOLERANCE = Tolerance(1.0, changed=0.02)  # 8 bits move every probability; what counts is the answer
CALIBRATION_IMAGES = 100  # training images that show quantisation which values occur


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportedFile:
    """A file that was written and checked."""

    path: Path
    format: str
    precision: str
    bytes: int
    float32_bytes: int | None
    """With `int8`, the size before."""
    opset: int | None
    license: str | None
    parity: Parity
    cost: Comparison | None
    """With `int8`, from float32 to 8 bits on the run's validation images; None where other images were given."""

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        return asdict(self)


@overload
def export(
    run: Path | str | None = None,
    *,
    format: Literal["onnx", "pt2"] = "onnx",
    output: Path | str | None = None,
    int8: bool = False,
    images: Sequence[Path | str] = (),
    tolerance: float | None = None,
    overwrite: bool = False,
    on_event: OnEvent = None,
) -> ExportedFile: ...


@overload
def export(
    run: Path | str | None = None,
    *,
    format: Literal["hub"],
    output: Path | str,
    push: str | None = None,
    overwrite: bool = False,
    on_event: OnEvent = None,
) -> HubFolder: ...


def export(
    run: Path | str | None = None,
    *,
    format: str = "onnx",
    output: Path | str | None = None,
    int8: bool = False,
    images: Sequence[Path | str] = (),
    tolerance: float | None = None,
    push: str | None = None,
    overwrite: bool = False,
    on_event: OnEvent = None,
) -> ExportedFile | HubFolder:
    """Export the model of a run, and check a file's outputs against those of the run.

    A file takes `pixels`, (B, S, S, 3) uint8 RGB, resized and cropped as its metadata say, and gives `logits` and
    `probabilities` (B, K), `features` (B, D), and where the run can abstain `novelty` (B,), an OOD score from 0.

    Args:
        run: the run folder; None takes the newest under `runs/`.
        format: `onnx`; `pt2` (`torch.export`); or `hub`, a folder for the Hugging Face Hub: timm's `config.json` and
            `model.safetensors`, and a model card, whose metrics are an evaluation that is recorded in the run.
        output: the file, `model.<format>` in the run if None; with `hub` a new or empty folder, which is needed.
        int8: 8 bits, `onnx` only.
        images: image files to check parity on; none takes up to 500 of the run's validation images. Not with `hub`.
        tolerance: largest difference of a probability, 1e-4 if None; with `int8` the largest fraction of images that
            change their class, 0.02 if None. Not with `hub`.
        push: a repository, OWNER/NAME, to upload to; `hub` only. It is made private where it does not exist.
        overwrite: replace what is at `output`.
        on_event: called with each `Progress`.

    Returns:
        An `ExportedFile`; with `hub` a `HubFolder`.

    Raises:
        ParityError: the file's outputs differ from those of the run; nothing was written.
        UsageError: the format is unknown, an argument does not go with it, or the output exists or lies among the
            images.
        RunError: the run cannot be read.
        DataError: there are no images to check parity on.
        ConvnextError: the extra `onnx` is not installed, or the Hub refused the upload.
    """
    request = ExportRequest(
        format=format,
        output=Path(output) if output is not None else None,
        int8=int8,
        images=tuple(Path(image) for image in images),
        tolerance=tolerance,
        push=push,
        overwrite=overwrite,
    )
    steps = export_steps(find_newest_run() if run is None else RunFolder(Path(run)), request)
    return finish(steps, on_event)


def export_steps(run: RunFolder, request: ExportRequest) -> Steps[ExportedFile | HubFolder]:
    """Export a run, as `export` does.

    Raises:
        UsageError, RunError, DataError, ParityError, ConvnextError: as `export`.
    """
    check_word("format", request.format, FORMATS)
    if request.format == "hub":
        if request.output is None or request.int8 or request.images or request.tolerance is not None:
            raise UsageError(
                "--format hub needs --output, and takes no --int8, --images or --tolerance", "Give a new folder"
            )
        return (yield from hub_steps(run, request.output, push=request.push, overwrite=request.overwrite))
    if request.push:
        raise UsageError("--push goes with --format hub", "Leave one of them out")
    check_single(run.path)
    if request.int8 and request.format != "onnx":
        raise UsageError("--int8 goes with --format onnx", "Leave one of them out")
    output = request.output or run.exported(request.format, int8=request.int8)
    index = run.read_split()
    _check_output(output, index, request)
    if request.format == "onnx":
        check_installed()
    rows = spread(index.rows("val"), request.max_images)
    paths = list(request.images) or [index.root / index.paths[row] for row in rows]
    if not paths:
        raise DataError(f"{run.path} has no validation images to check parity on", "Give some with --images")
    if missing := [path for path in paths if not path.exists()]:
        raise DataError(
            f"{missing[0]} is gone; parity is checked on the user's own images", "Give some that exist with --images"
        )

    classifier = TorchClassifier(run.path, torch.device("cpu"))
    about = describe_run(run.path, classifier)
    with replace_output(output, overwrite=_may_replace(request)) as temporary:
        yield Progress(done=0, total=1, activity=f"writing {output.name}")
        if request.format == "pt2":
            write_program(classifier, about, temporary)
        else:
            write_graph(classifier, about, temporary)
        float32_bytes = temporary.stat().st_size if request.int8 else None
        if request.int8:
            yield Progress(done=0, total=1, activity="quantising")
            about = replace(about, precision="int8")
            quantise(temporary, about, _choose_calibration(index) or paths)
        exported: Classifier = Program(temporary) if request.format == "pt2" else OnnxClassifier(temporary)
        parity, before, after = yield from compare_steps(
            classifier, exported, paths, about.temperature, _find_tolerance(request)
        )
        cost = None
        if request.int8 and not request.images:
            labels = classifier.label_rows(index, rows)
            groups = [index.groups[row] for row in rows] if index.groups else None
            cost = compare(before / about.temperature, after / about.temperature, labels, groups)
        if not parity.holds:
            raise ParityError(parity)
        if request.format == "onnx":
            write_metadata(temporary, replace(about, measured=_describe_measured(parity, cost)))
    return ExportedFile(
        path=output,
        format=request.format,
        precision=about.precision,
        bytes=output.stat().st_size,
        float32_bytes=float32_bytes,
        opset=OPSET if request.format == "onnx" else None,
        license=about.license,
        parity=parity,
        cost=cost,
    )


def _check_output(output: Path, index: Index, request: ExportRequest) -> None:
    if request.output is not None:
        check_outside_data(output, index)
    check_output(output, overwrite=_may_replace(request))


def _may_replace(request: ExportRequest) -> bool:
    """Return whether an existing file is replaced: at the run's own place always, elsewhere if asked for."""
    return request.overwrite or request.output is None


def _find_tolerance(request: ExportRequest) -> Tolerance:
    own = request.tolerance
    if request.int8:
        return INT8_TOLERANCE if own is None else replace(INT8_TOLERANCE, changed=own)
    return TOLERANCE if own is None else replace(TOLERANCE, difference=own)


def _choose_calibration(index: Index) -> list[Path]:
    """Training images, as far as they are still there."""
    paths = [index.root / index.paths[row] for row in spread(index.rows("train"), CALIBRATION_IMAGES)]
    return [path for path in paths if path.exists()]


def spread(rows: Sequence[int], most: int) -> list[int]:
    """At most so many of the rows, from all over them, because they are sorted by class."""
    return [rows[i * len(rows) // most] for i in range(most)] if len(rows) > most else list(rows)


def _describe_measured(parity: Parity, cost: Comparison | None) -> dict[str, Any]:
    told: dict[str, Any] = {
        "images": parity.images,
        "same_top1": parity.same_top1,
        "largest_difference_of_a_probability": parity.difference,
    }
    if cost and (accuracy := cost.differences["balanced_accuracy"]):
        told["balanced_accuracy_against_float32"] = asdict(accuracy)
    return told
