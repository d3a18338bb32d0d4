"""Whether an exported file says the same as its run, on the user's own images, from file to probability."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_cli.errors import ConvnextError
from convnext_cli.images.decode import Pixels, decode_image
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.images.transforms import transform_for_eval
from convnext_cli.inference.classifier import Classifier
from convnext_cli.metrics.formulas import Floats, log_softmax
from convnext_cli.progress import Progress, Steps


@dataclass(frozen=True, slots=True)
class Tolerance:
    """How far a file may be from its run."""

    difference: float
    """Of a probability."""
    changed: float = 0.0
    """Share of the images whose most probable class may change."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Parity:
    """How far two ways from file to probability are apart."""

    images: int
    same_top1: int
    """Images of which both say the same class."""
    difference: float
    """The largest difference of a probability, over all images and classes."""
    worst: Path
    """The image it is of."""
    tolerance: Tolerance

    @property
    def holds(self) -> bool:
        """Whether the file may be used in place of its run."""
        changed = (self.images - self.same_top1) / self.images
        return changed <= self.tolerance.changed and self.difference <= self.tolerance.difference


class ParityError(ConvnextError):
    """An exported file says something else than its run."""

    def __init__(self, found: Parity) -> None:
        allowed = found.tolerance
        super().__init__(
            "parity check failed: the exported model's probabilities differ from the run's by up to "
            f"{found.difference:.2g} (allowed {allowed.difference:g}), most on {found.worst}, and "
            f"{found.images - found.same_top1} of {found.images} images change their class "
            f"(allowed {allowed.changed:.0%})",
            "Nothing was written. --tolerance allows more",
        )
        self.found = found

    def __reduce__(self) -> tuple[type, tuple[Parity]]:
        return type(self), (self.found,)


def compare_steps(
    reference: Classifier, exported: Classifier, paths: Sequence[Path], temperature: float, tolerance: Tolerance
) -> Steps[tuple[Parity, Floats, Floats]]:
    """Asks both about every image, each with its own preprocessing.

    Args:
        reference: the run.
        exported: the file, with the preprocessing that it describes itself.
        paths: image files, at least one.
        temperature: the run's.
        tolerance: how far they may be apart.

    Returns:
        The result, with the logits of both, (N, K).

    Raises:
        ImageError: an image cannot be read.
    """
    logits: list[NDArray[np.float32]] = []
    probabilities: list[NDArray[np.float64]] = []
    for model in (reference, exported):
        said: list[NDArray[np.float32]] = []
        shares: list[NDArray[np.float64]] = []
        for part in model.classify_batches(range(len(paths)), _load(paths, model.preprocessing)):
            for error in part.failed.values():
                raise error
            said.append(part.logits)
            # what the file itself gives, where it does, and not what could be made of its logits
            own = np.exp(log_softmax(part.logits / temperature)) if part.probabilities is None else part.probabilities
            shares.append(own.astype(np.float64))
            done = len(logits) * len(paths) + sum(map(len, said))
            yield Progress(done=done, total=2 * len(paths), activity="checking parity")
        logits.append(np.concatenate(said))
        probabilities.append(np.concatenate(shares))
    apart = np.abs(probabilities[0] - probabilities[1]).max(axis=1)
    found = Parity(
        images=len(paths),
        same_top1=int((probabilities[0].argmax(axis=1) == probabilities[1].argmax(axis=1)).sum()),
        difference=float(apart.max()),
        worst=paths[int(apart.argmax())],
        tolerance=tolerance,
    )
    return found, logits[0], logits[1]


def _load(paths: Sequence[Path], preprocessing: Preprocessing) -> Callable[[int], Pixels]:
    return lambda row: transform_for_eval(decode_image(paths[row]), preprocessing)
