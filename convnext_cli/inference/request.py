"""What the user asks of a prediction and of an evaluation. No torch and no NumPy, so that parsing is quick."""

from dataclasses import dataclass
from pathlib import Path

ENGINES = ("auto", "onnx", "torch")
SPLITS = ("train", "val", "test", "all")


@dataclass(frozen=True, kw_only=True, slots=True)
class PredictRequest:
    """What the user asks of a prediction, beside the classes."""

    raw: bool = False
    """The model's own probabilities, without the temperature and the thresholds."""
    abstain: bool = False
    explain: Path | None = None
    """Folder for heat maps of where the model looked."""
    overwrite: bool = False
    """True if heat maps that are in `explain` already are replaced."""
    tta: bool = False
    engine: str = "auto"
    """`onnx` (ONNX Runtime), `torch`, or `auto`: ONNX Runtime where the run has a file that serves."""


@dataclass(frozen=True, kw_only=True, slots=True)
class EvalRequest:
    """What the user asks of an evaluation."""

    runs: tuple[Path, ...] = ()
    """Run folders; empty for the newest under `runs/`."""
    data: Path | None = None
    """A folder of images; None for the data and the split of the first run."""
    split: str | None = None
    """One of `SPLITS`; None for `test` where there is one, else `val`, else all images."""
    targets: tuple[str, ...] = ()
    """Operating points such as `sensitivity=0.95:CLASS`; their thresholds are set on validation and kept in the run."""
    tta: bool = False
    cache: bool = True
    """True if prepared images are kept in the cache."""
