"""The images of an evaluation with their uncalibrated outputs; apart from `scored_images`, which `predict` imports."""

from dataclasses import dataclass

from convnext_cli.inference.calibration import Calibration
from convnext_cli.inference.scored_images import ScoredImages
from convnext_cli.inference.test_set import TestSet
from convnext_cli.metrics.calculator import Floats
from convnext_cli.tasks.task import Targets, Task


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedImages:
    """The images of an evaluation and the logits of each, for curves, galleries and comparisons."""

    test_set: TestSet
    classes: tuple[str, ...]
    task: Task
    logits: Floats
    """(N, K), uncalibrated."""
    targets: Targets
    """Of the N images, as `task` has them."""

    def score(self, calibration: Calibration | None) -> ScoredImages:
        """Return the images with their calibrated logits."""
        return ScoredImages(
            task=self.task,
            classes=self.classes,
            logits=self.task.calibrate(self.logits, calibration),
            targets=self.targets,
            calibration=calibration,
            groups=self.test_set.groups,
        )
