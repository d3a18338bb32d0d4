"""Metadata of an exported file: everything but the weights that leads from an image file to a probability."""

import json
import math
from dataclasses import dataclass
from typing import Any

from convnext_cli.errors import RunError
from convnext_cli.images.preprocessing import Preprocessing, describe_size
from convnext_cli.inference.calibration import Calibration, check_classes
from convnext_cli.runs.records import MAX_SIDE, convert_record, parse_json, to_plain
from convnext_cli.tasks.registry import read_task
from convnext_cli.tasks.task import Task
from convnext_cli.text import format_count, make_visible

REMEDY = "Use a file that `convnext export` wrote, or export the run again"
INPUT = "pixels"


@dataclass(frozen=True, kw_only=True, slots=True)
class Metadata:
    """The metadata of an exported file."""

    architecture: str
    classes: tuple[str, ...]
    preprocessing: Preprocessing
    calibration: Calibration | None
    weights: str
    """Fingerprint of the run's weights, which identifies outdated files."""
    license: str | None
    """Licences of the base weights, the teacher and the images, joined; None if unknown."""
    precision: str = "float32"
    """`float32` or `int8`."""
    task: dict[str, Any] | None = None
    """As `Task.to_dict` gives it; None for one class per image."""
    measured: dict[str, Any] | None = None
    """Results of the parity check, and with `int8` the cost of quantisation."""

    def read_task(self) -> Task:
        """Return the task of the model.

        Raises:
            RunError: there is no such task.
        """
        return read_task(self.task, "the metadata", REMEDY)

    def to_strings(self) -> dict[str, str]:
        """Return text and JSON by name, as ONNX files and PyTorch archives store them."""
        calibration = self.calibration
        values: dict[str, Any] = {
            "classes": self.classes,
            "preprocessing": to_plain(self.preprocessing),
            "temperature": calibration.temperature if calibration else 1.0,
            "thresholds": {str(t.target): t.threshold for t in calibration.thresholds} if calibration else {},
            "novelty_threshold": calibration.novelty_threshold if calibration else None,
            "calibration": calibration and to_plain(calibration),
            "measured": self.measured,
        }
        if self.task is not None:
            values["task"] = self.task
        texts = {
            "made_by": "convnext",
            "architecture": self.architecture,
            "weights": self.weights,
            "license": self.license or "unknown",
            "precision": self.precision,
            "steps": "\n".join(describe_steps(self)),
        }
        return texts | {name: json.dumps(value) for name, value in values.items()}


def read_metadata(strings: dict[str, str], source: object) -> Metadata:
    """Parse what `to_strings` returned.

    Raises:
        RunError: a value is missing, does not fit its schema, or contradicts the others.
    """
    if missing := [name for name in _TEXTS + _JSON if name not in strings]:
        raise RunError(f"{source} is not a file that `convnext export` wrote: it has no {missing[0]}", REMEDY)
    texts = {name: strings[name] for name in _TEXTS}
    names = (*_JSON, *(name for name in _OPTIONAL if name in strings))
    values = {name: parse_json(strings[name], f"{source}, {name},", REMEDY) for name in names}
    license = None if texts["license"] == "unknown" else texts["license"]
    metadata = convert_record({**texts, **values, "license": license}, Metadata, source, REMEDY)
    if len(set(metadata.classes)) != len(metadata.classes) or not metadata.classes:
        number = format_count(len(set(metadata.classes)), "different name")
        raise RunError(f"{source} cannot be read: classes: {number}", REMEDY)
    if max(metadata.preprocessing.size) > MAX_SIDE:
        size = describe_size(metadata.preprocessing)
        raise RunError(f"{source} cannot be read: preprocessing: image_size {size}", REMEDY)
    if metadata.calibration:
        check_classes(metadata.calibration, metadata.classes, source, REMEDY)
    return metadata


_TEXTS = ("architecture", "weights", "license", "precision")
_JSON = ("classes", "preprocessing", "calibration", "measured")
_OPTIONAL = ("task",)


def list_outputs(task: Task) -> tuple[str, ...]:
    """Return the names of an exported file's outputs; `novelty`, the OOD score, only where the run has one."""
    return "logits", task.scores, "features", "novelty"


DECODING = """\
Decode the first frame to 8-bit RGB (as Pillow's convert('RGB')), upright by the EXIF orientation. More than 8 bits \
are scaled linearly from the image's minimum and maximum to 0 and 255; transparent pixels are composited on white."""
_ROUNDED = "rounded to the nearest integer (a half to the even one)"


def describe_steps(metadata: Metadata) -> list[str]:
    """Return the steps from an image file to a prediction, for those who run the file without `convnext`."""
    preprocessing, task, calibration = metadata.preprocessing, metadata.read_task(), metadata.calibration
    height, width = preprocessing.size
    luminance = "conversion to luminance (as Pillow's convert('L')), the " if preprocessing.is_grey else ""
    resize = f"""\
Resize {_describe_scaling(preprocessing)}, {preprocessing.interpolation} with antialiasing (as Pillow's resize), \
unless the image has that size."""
    model = f"""\
Pass the pixels as `{INPUT}`, uint8 (batch, {height}, {width}, 3). The {luminance}division by 255, the mean \
{preprocessing.mean} and the standard deviation {preprocessing.std} are applied inside the model.
The output `{task.scores}` (batch, {task.count_outputs(len(metadata.classes))}), in the order of `classes`, is \
{task.describe_scores(calibration)}. {task.describe_decision(calibration)}"""
    steps = [DECODING, resize, *_describe_frame(preprocessing), *model.splitlines()]
    for threshold in calibration.thresholds if calibration else ():
        score = threshold.target.describe_score(metadata.classes)
        steps.append(f"The target {threshold.target} is positive if the {score} is at least {threshold.threshold:.6g}.")
    if calibration and calibration.novelty_threshold is not None:
        limit = f"{calibration.novelty_threshold:.6g}"
        steps.append(f"An image whose output `novelty` is above {limit} is out-of-distribution (OOD).")
    return [f"{number}. {make_visible(step)}" for number, step in enumerate(steps, start=1)]


def _describe_scaling(preprocessing: Preprocessing) -> str:
    """Return what evaluation scales an image to, in words."""
    rows, columns = (math.floor(side / preprocessing.crop_pct) for side in preprocessing.size)
    if preprocessing.crop_mode == "squash":
        return f"both sides to {rows} px" if rows == columns else f"to {rows} px of height and {columns} px of width"
    if rows == columns and not preprocessing.is_padded:
        return f"the shorter side to {rows} px and the longer one in proportion, rounded down"
    bound = "largest size within" if preprocessing.is_padded else "smallest size that covers"
    return (
        f"at its own proportions to the {bound} {rows} px of height and {columns} px of width, each side {_ROUNDED} "
        "and at least 1 px"
    )


def _describe_frame(preprocessing: Preprocessing) -> list[str]:
    """Return the steps that give the resized image the input's size, in words."""
    height, width = preprocessing.size
    size = f"{height} x {width} px" if height == width else f"{height} px of height and {width} px of width"
    is_larger = any(math.floor(side / preprocessing.crop_pct) > side for side in preprocessing.size)
    steps = []
    if is_larger or preprocessing.crop_mode == "center":
        steps.append(
            f"Crop the centre, {size}, where a side is longer: of n px too many, n / 2, {_ROUNDED}, are left out at "
            "the top or the left."
        )
    if preprocessing.is_padded:
        steps.append(
            f"Centre it in {size} of the RGB value {preprocessing.fill}: of n px too few, n / 2, rounded down, are at "
            "the top or the left."
        )
    return steps
