"""`convnext export`: the model for other places."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from convnext_cli.cli import console
from convnext_cli.cli.completion import complete_run
from convnext_cli.text import quote

if TYPE_CHECKING:
    from convnext_cli.exports.export import ExportedFile
    from convnext_cli.exports.hub import HubFolder
    from convnext_cli.exports.request import ExportRequest
    from convnext_cli.runs.folder import RunFolder


def export(
    run: Annotated[
        Path | None,
        typer.Argument(help="Run folder; the newest under runs/ if not given.", autocompletion=complete_run),
    ] = None,
    format: Annotated[
        str, typer.Option("--format", "-f", help="onnx (one file), pt2 (torch.export), or hub (a folder).")
    ] = "onnx",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="File, or folder for hub; model.<format> in the run if not given."),
    ] = None,
    int8: Annotated[bool, typer.Option("--int8", help="8 bits; says what that costs. ONNX only.")] = False,
    images: Annotated[
        list[str] | None,
        typer.Option(help="Images, folder or pattern to check parity on, may be repeated; else the run's validation."),
    ] = None,
    tolerance: Annotated[
        float | None,
        typer.Option(
            help="Largest difference of a probability; with --int8, share of images that change class.", min=0
        ),
    ] = None,
    push: Annotated[str | None, typer.Option(help="Upload the hub folder to this repository, made private.")] = None,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Export a run. The file is checked on your own images, from file to probability, before it gets its name."""
    from convnext_cli.errors import check_word
    from convnext_cli.runs.folder import RunFolder
    from convnext_cli.runs.folds import find_newest_run

    check_word("format", format, ("onnx", "pt2", "hub"))
    folder = find_newest_run() if run is None else RunFolder(run)
    if run is None:
        console.say(f"run: {folder.path} (the newest)")

    from convnext_cli.cli.predict import describe_skipped, find_files
    from convnext_cli.exports.export import ExportedFile
    from convnext_cli.exports.request import ExportRequest

    inputs = find_files(images) if images else None
    for _, error in inputs.errors if inputs else ():
        raise error
    if inputs and inputs.skipped:
        console.warn(describe_skipped(inputs.skipped))
    request = ExportRequest(
        format=format,
        output=output,
        int8=int8,
        images=inputs.paths if inputs else (),
        tolerance=tolerance,
        push=push,
        overwrite=overwrite,
    )
    exported = run_export(folder, request)
    if as_json:
        console.show_json(exported.to_dict())
    elif isinstance(exported, ExportedFile):
        _show_exported(exported)
    else:
        _show_hub(exported)


def run_export(run: "RunFolder", request: "ExportRequest") -> "ExportedFile | HubFolder":
    """Export with a progress bar."""
    from convnext_cli.exports.export import export_steps

    return console.run("export", export_steps(run, request))


def _show_exported(found: "ExportedFile") -> None:
    parity = found.parity
    opset = f", opset {found.opset}" if found.opset else ""
    console.show(f"{console.shorten(found.path)}", style="bold")
    smaller = ""
    if found.float32_bytes:
        smaller = f" ({found.bytes / found.float32_bytes:.0%} of {found.float32_bytes / 1e6:.1f} MB in float32)"
    console.show(f"{found.format}, {found.precision}{opset}, {found.bytes / 1e6:.1f} MB{smaller}, any batch size")
    console.show(f"licence of the base weights: {found.license or 'unknown'}")
    console.show(
        f"Parity with the run on {parity.images:,} of your images, from file to probability: {parity.same_top1:,} keep "
        f"their class, probabilities differ by at most {parity.difference:.1e}"
    )
    if found.cost and (accuracy := found.cost.differences["balanced_accuracy"]):
        between = accuracy.interval
        console.show(
            f"8 bits change the balanced accuracy by {100 * accuracy.value:+.1f} points (95%: "
            f"{100 * between.low:+.1f} to {100 * between.high:+.1f}) on these validation images"
        )
    path = console.shorten(found.path)
    if found.format == "onnx":
        console.show(f"Next: convnext predict IMAGE --run {quote(path)}")
    else:
        console.show(f"Next, in Python: torch.export.load({path!r}).module()")


def _show_hub(found: "HubFolder") -> None:
    console.show(f"{console.shorten(found.path)}", style="bold")
    console.show(f"config.json, model.safetensors, README.md; licence: {found.license}")
    for note in found.notes:
        console.warn(note)
    if found.url:
        console.show(f"Pushed to {found.url} (private)")
    else:
        console.show("Nothing was uploaded; --push OWNER/NAME does that")
    local = f"local-dir:{console.shorten(found.path)}"
    console.show(f"Next, in Python: timm.create_model({local!r}, pretrained=True)")
