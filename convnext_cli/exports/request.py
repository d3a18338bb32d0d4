"""What the user asks of an export. No torch and no NumPy, so that the command line can read it at once."""

from dataclasses import dataclass
from pathlib import Path

FORMATS = ("onnx", "pt2", "hub")
PARITY_IMAGES = 500


@dataclass(frozen=True, kw_only=True, slots=True)
class ExportRequest:
    """What the user asks of an export."""

    format: str = "onnx"
    """One of `FORMATS`."""
    output: Path | None = None
    """None takes the run's own place for it; `hub` needs one."""
    int8: bool = False
    images: tuple[Path, ...] = ()
    """Image files to check parity on; empty takes the run's validation images."""
    max_images: int = PARITY_IMAGES
    tolerance: float | None = None
    """Largest difference of a probability; with `int8`, the largest fraction of images that change their class."""
    push: str | None = None
    """With `hub`, a repository, OWNER/NAME, to upload to."""
    overwrite: bool = False
