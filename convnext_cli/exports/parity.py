"""Parity check: an exported file and its run must give the same probabilities on the user's own images."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from convnext_cli.errors import ConvnextError
from convnext_cli.images.decode import decode_image
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.images.raster import Pixels
from convnext_cli.images.transforms import transform_for_eval
from convnext_cli.inference.calibration import Calibration
from convnext_cli.inference.classifier import Classifier
from convnext_cli.metrics.calculator import Floats
from convnext_cli.progress import Progress, Steps
from convnext_cli.text import format_part


@dataclass(frozen=True, slots=True)
class Tolerance:
    """Largest accepted differences between a file and its run."""

    difference: float
    """Largest difference of a probability, or of a number in standard deviations of the training targets."""
    changed: float = 0.0
    """Largest fraction of images whose predicted class changes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """Differences between a file and its run, from image file to probability. The field names are JSON keys."""

    images: int
    """Number of images."""
    same_top1: int | None
    """Images with the same predicted class; None where numbers are predicted."""
    difference: float
    """As `Tolerance.difference`, over all images and classes."""
    worst: Path
    """The image with the largest difference."""
    tolerance: Tolerance

    @property
    def changed(self) -> int:
        """Number of images whose predicted class changes."""
        return 0 if self.same_top1 is None else self.images - self.same_top1

    @property
    def holds(self) -> bool:
        """True if the differences are within the tolerance."""
        return self.changed / self.images <= self.tolerance.changed and self.difference <= self.tolerance.difference


class ParityError(ConvnextError):
    """The outputs of an exported file differ from those of its run."""

    def __init__(self, parity: Parity) -> None:
        tolerance, problems = parity.tolerance, []
        if not parity.difference <= tolerance.difference:  # nan too
            is_continuous = parity.same_top1 is None
            scores, unit = ("numbers", " standard deviations") if is_continuous else ("probabilities", "")
            problems.append(
                f"the exported model's {scores} differ from the run's by up to {parity.difference:.2g}{unit} (allowed "
                f"{tolerance.difference:g}), most on {parity.worst}"
            )
        if parity.changed / parity.images > tolerance.changed:
            verbs = "changes its prediction", "change their prediction"
            part = format_part(parity.changed, parity.images, "image", *verbs)
            problems.append(f"{part} (allowed {tolerance.changed:.0%})")
        super().__init__(
            f"parity check failed: {', and '.join(problems)}", "Nothing was written. --tolerance allows more"
        )
        self.parity = parity

    def __reduce__(self) -> tuple[type, tuple[Parity]]:
        return type(self), (self.parity,)


def check_parity_steps(
    reference: Classifier,
    exported: Classifier,
    paths: Sequence[Path],
    calibration: Calibration | None,
    tolerance: Tolerance,
) -> Steps[tuple[Parity, Floats, Floats]]:
    """Classify images with a run and with its exported file, each with its own preprocessing, and compare.

    Returns:
        The result, and the logits of both, (N, K).

    Raises:
        ImageError: an image cannot be read.
    """
    task = reference.task
    logits: list[Floats] = []
    probabilities: list[Floats] = []
    for model in (reference, exported):
        parts: list[tuple[Floats, Floats]] = []
        done = len(logits) * len(paths)
        for outputs in model.classify_batches(range(len(paths)), _load(paths, model.preprocessing)):
            for error in outputs.failed.values():
                raise error
            # the file's own, to check its activation and calibration too
            batch: Floats | None = outputs.probabilities
            if batch is None:
                batch = task.activate(task.calibrate(outputs.logits, calibration))
            parts.append((outputs.logits, batch.astype(np.float64)))
            done += len(batch)
            yield Progress(done=done, total=2 * len(paths), activity="checking parity")
        logits.append(np.concatenate([part[0] for part in parts]))
        probabilities.append(np.concatenate([part[1] for part in parts]))
    differences = np.abs(probabilities[0] - probabilities[1]).max(axis=1) / task.score_unit
    decisions = [task.decide(scores, calibration).reshape(len(paths), -1) for scores in probabilities]
    parity = Parity(
        images=len(paths),
        same_top1=None if task.is_continuous else int((decisions[0] == decisions[1]).all(axis=1).sum()),
        difference=float(differences.max()),
        worst=paths[int(differences.argmax())],
        tolerance=tolerance,
    )
    return parity, logits[0], logits[1]


def _load(paths: Sequence[Path], preprocessing: Preprocessing) -> Callable[[int], Pixels]:
    return lambda row: transform_for_eval(decode_image(paths[row]), preprocessing)
