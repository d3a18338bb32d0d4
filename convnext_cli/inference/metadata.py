"""What an exported file says of itself: everything between an image's file and a probability that is no weight."""

import json
import math
from dataclasses import asdict, dataclass
from typing import Any

from convnext_cli.errors import RunError
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.inference.calibration import Calibration, check_thresholds
from convnext_cli.runs.records import MAX_SIDE, Config, convert_record, parse_json

INPUT = "pixels"
OUTPUTS = ("logits", "probabilities", "features", "novelty")
"""The last one only where the run can tell what is unlike its images."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """The metadata of an exported file."""

    architecture: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    calibration: Calibration | None
    weights: str
    """Fingerprint of the run's weights, by which a file that is older than its run is known."""
    license: str | None
    """Licence of the base weights; None where none is known."""
    precision: str = "float32"
    """`float32` or `int8`."""
    measured: dict[str, Any] | None = None
    """What the file was found to be like on the user's images, such as what quantisation cost."""

    @property
    def temperature(self) -> float:
        """What logits are divided by before softmax."""
        return self.calibration.temperature if self.calibration else 1.0

    def to_metadata(self) -> dict[str, str]:
        """Words and JSON by name, as ONNX and PyTorch's archives keep them."""
        calibration = self.calibration
        values: dict[str, Any] = {
            "classes": self.classes,
            "preprocessing": asdict(self.preprocessing),
            "temperature": self.temperature,
            "thresholds": {str(t.target): t.threshold for t in calibration.thresholds} if calibration else {},
            "novelty_threshold": calibration.novelty_threshold if calibration else None,
            "calibration": calibration and asdict(calibration),
            "measured": self.measured,
        }
        words = {
            "made_by": "convnext",
            "architecture": self.architecture,
            "weights": self.weights,
            "license": self.license or "unknown",
            "precision": self.precision,
            "steps": "\n".join(describe_steps(self)),
        }
        return words | {name: json.dumps(value) for name, value in values.items()}


def read_metadata(metadata: dict[str, str], source: object) -> Metadata:
    """Take back what `to_metadata` gave.

    Args:
        metadata: words and JSON by name.
        source: the file that they are from, for errors.

    Raises:
        RunError: something is missing, does not fit its schema, or does not agree with the rest.
    """
    remedy = "Give a file that `convnext export` wrote, or export the run again"
    if missing := [name for name in _WORDS + _JSON if name not in metadata]:
        raise RunError(f"{source} is not a file that `convnext export` wrote: it has no {missing[0]}", remedy)
    values = {name: parse_json(metadata[name], f"{source}, {name},", remedy) for name in _JSON}
    license = metadata["license"]
    kept = {
        "architecture": metadata["architecture"], "classes": values["classes"],
        "preprocessing": values["preprocessing"], "calibration": values["calibration"], "weights": metadata["weights"],
        "license": None if license == "unknown" else license, "precision": metadata["precision"],
        "measured": values["measured"],
    }  # fmt: skip
    about = convert_record(kept, Metadata, source, remedy)
    if len(set(about.classes)) != len(about.classes) or not about.classes:
        raise RunError(f"{source} cannot be read: classes: {len(set(about.classes))} different names", remedy)
    if about.preprocessing.image_size > MAX_SIDE:
        raise RunError(f"{source} cannot be read: preprocessing: image_size {about.preprocessing.image_size}", remedy)
    if about.calibration:
        check_thresholds(about.calibration, about.classes, source, remedy)
    return about


_WORDS = ("architecture", "weights", "license", "precision")
_JSON = ("classes", "preprocessing", "calibration", "measured")


def to_preprocessing(config: Config) -> Preprocessing:
    """Return the preprocessing that a run's configuration names."""
    preprocessing = config.pretrained_cfg
    return Preprocessing(
        image_size=preprocessing.input_size[1],
        crop_pct=preprocessing.crop_pct,
        crop_mode=preprocessing.crop_mode,
        interpolation=preprocessing.interpolation,
        mean=preprocessing.mean,
        std=preprocessing.std,
    )


def describe_steps(about: Metadata) -> list[str]:
    """From an image's file to a probability, in words for whoever has no `convnext`."""
    preprocessing, size = about.preprocessing, about.preprocessing.image_size
    side = math.floor(size / preprocessing.crop_pct)
    scaled = f"both sides to {side} px" if preprocessing.crop_mode == "squash" else f"the shorter side to {side} px"
    luminance = "conversion to luminance (as Pillow's convert('L')), the " if preprocessing.is_grey else ""
    fitted = f"softmax(logits / {about.temperature:.6g})"
    steps = f"""\
Decode to RGB, 8 bits, upright by its EXIF orientation. Grey becomes three equal channels; more than 8 bits are \
stretched from the image's own darkest to its own brightest value; transparency is laid on white.
Scale {scaled}, {preprocessing.interpolation} with antialiasing (as Pillow's resize), unless it has that size.
Crop the middle {size} x {size} px.
Give them as `{INPUT}`, uint8 (batch, {size}, {size}, 3). The {luminance}division by 255, the mean \
{preprocessing.mean} and the \
standard deviation {preprocessing.std} are applied inside.
`probabilities` (batch, {len(about.classes)}) are {fitted}, in the order of `classes`. Where `thresholds` names a \
class, it counts as found from that probability on. `novelty`, where there is one, says above `novelty_threshold` that \
the image is unlike the training images."""
    return [f"{number}. {step}" for number, step in enumerate(steps.splitlines(), start=1)]
