"""The options of an export. No torch and no NumPy, so that the command line can read it at once."""

from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Literal

from convnext_cli.options import DataOption, Option

PARITY_IMAGES = 500
EXPORT_RUN = "convnext export RUN"  # how the command names a run


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """The options of an export."""

    format: Annotated[
        Literal["onnx", "pt2", "hub"],
        Option(
            "onnx (one file), pt2 (torch.export), or hub (a folder).", is_common=True, flags=("-f",), metavar="FORMAT"
        ),
    ] = "onnx"
    output: Annotated[
        Path | None,
        Option(
            "File, or folder for hub; default: model.FORMAT in the run.", is_common=True, flags=("-o",), metavar="PATH"
        ),
    ] = None
    calibration: Annotated[
        Path | None,
        Option(
            "File of `eval --save-calibration`, in place of the run's own calibration and thresholds.",
            is_common=True,
            metavar="FILE",
        ),
    ] = None
    int8: Annotated[bool, Option("Quantise to 8 bits and measure the cost; ONNX only.", is_common=True)] = False
    data: Annotated[
        Path | None,
        DataOption(
            "The run's own data where they have moved, for the metrics in the model card of hub.",
            is_common=True,
            flags=("-d",),
            metavar="DIR",
        ),
    ] = None
    images: tuple[Path, ...] = ()
    """Image files to check parity on; empty for the run's validation images."""
    max_images: int = PARITY_IMAGES
    """Largest number of images for the parity check."""
    tolerance: Annotated[
        float | None,
        Option(
            "Largest difference of a probability (1e-4); with --int8, fraction of changed predictions (0.02).",
            is_common=True,
            low=0,
        ),
    ] = None
    push: Annotated[
        str | None, Option("Upload the hub folder to this private repository.", is_common=True, metavar="OWNER/NAME")
    ] = None
    overwrite: Annotated[bool, Option("Replace what is at --output.", is_common=True)] = False
