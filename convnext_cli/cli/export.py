"""`convnext export`: a run as a file for other programs."""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

from convnext_cli.cli import console
from convnext_cli.cli.options import JsonFlag, OptionValues, with_options
from convnext_cli.cli.predict import find_files, find_run
from convnext_cli.data.index import describe_skipped
from convnext_cli.exports.request import EXPORT_RUN, ExportRequest
from convnext_cli.metrics.registry import METRICS
from convnext_cli.options import Option
from convnext_cli.text import format_count, quote

if TYPE_CHECKING:
    from convnext_cli.exports.export import ExportedFile
    from convnext_cli.exports.hub import HubFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportFlags:
    """Options of the command alone."""

    run: Annotated[
        Path | None, Option("Run folder; default: the newest under runs/.", completion="run", is_argument=True)
    ] = None
    images: Annotated[
        tuple[str, ...],
        Option(
            "Images, folder or pattern for the parity check, repeatable; default: the run's validation images.",
            is_common=True,
            metavar="PATH",
        ),
    ] = ()
    as_json: JsonFlag = False


@with_options(ExportRequest, ExportFlags)
def export(values: OptionValues) -> None:
    """Export a run. The file is compared with the run on your own images before it gets its name."""
    from convnext_cli.runs.folder import RunFolder

    flags = values.make(ExportFlags)
    request = values.make(ExportRequest, images=_find_images(flags.images))
    run = RunFolder(find_run(flags.run, EXPORT_RUN))

    from convnext_cli.api import export_run

    exported = console.run("export", export_run(run, request))
    from convnext_cli.exports.export import ExportedFile  # imports torch: after the progress bar stands

    if flags.as_json:
        console.show_json(asdict(exported))
    elif isinstance(exported, ExportedFile):
        _show_exported(exported)
    else:
        _show_hub(exported)


def _find_images(words: tuple[str, ...]) -> tuple[Path, ...]:
    """Return the image files for the parity check."""
    if not words:
        return ()
    inputs = find_files(words)
    for _, error in inputs.errors:
        raise error
    if inputs.skipped:
        console.note(f"skipped: {describe_skipped(inputs.skipped)}")
    return tuple(inputs.paths)


def _show_exported(exported: "ExportedFile") -> None:
    parity = exported.parity
    opset = f", opset {exported.opset}" if exported.opset else ""
    path = console.shorten_path(exported.path)
    console.show(path, style="bold")
    smaller = ""
    if exported.float32_bytes:
        smaller = (
            f" ({exported.bytes / exported.float32_bytes:.0%} of {exported.float32_bytes / 1e6:.1f} MB in float32)"
        )
    console.show(
        f"{exported.format}, {exported.precision}{opset}, {exported.bytes / 1e6:.1f} MB{smaller}, any batch size"
    )
    console.show(f"licence: {exported.license or 'unknown'}")
    largest = f"largest difference of the number: {parity.difference:.1e} standard deviations"
    if parity.same_top1 is not None:
        same = format_count(parity.same_top1, "keeps its prediction", "keep their prediction")
        largest = f"{same}; largest difference of a probability: {parity.difference:.1e}"
    console.show(f"Parity with the run on {parity.images:,} of your images, from file to prediction: {largest}")
    metric = METRICS[exported.headline]
    if exported.cost and (difference := exported.cost.differences[metric.key]):
        change = metric.format_difference(difference)
        console.show(f"8 bits change the {metric.title} by {change}, on these validation images")
    for note in exported.notes:
        console.note(note)
    if exported.format == "onnx":
        console.show(f"Next: convnext predict IMAGE --run {quote(path)}")
    else:
        console.show(f"Next, in Python: torch.export.load({path!r}).module()")


def _show_hub(folder: "HubFolder") -> None:
    path = console.shorten_path(folder.path)
    console.show(path, style="bold")
    console.show(f"{', '.join(folder.files)}; licence: {folder.license}")
    for note in folder.notes:
        console.note(note)
    if folder.url:
        console.show(f"Pushed to {folder.url} (private)")
    else:
        console.show("Nothing was uploaded; --push OWNER/NAME uploads it")
    local = f"local-dir:{path}"
    console.show(f"Next, in Python: timm.create_model({local!r}, pretrained=True)")
