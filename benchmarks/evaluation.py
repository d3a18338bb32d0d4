"""Time of `eval` beside the forward passes: metrics, CIs, thresholds and plots of 10,000 images in 4 classes.

    python benchmarks/evaluation.py [IMAGES [CLASSES]]

Wall and CPU seconds; if the first is larger, the machine was busy with something else.
"""

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np

from convnext_cli.data.index import Index
from convnext_cli.inference.evaluated_images import EvaluatedImages
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.inference.test_set import TestSet
from convnext_cli.metrics.formulas import ClassCalculator
from convnext_cli.metrics.intervals import compute_intervals
from convnext_cli.metrics.thresholds import Target, apply_threshold, find_threshold
from convnext_cli.reports import plots
from convnext_cli.tasks.registry import SINGLE

Seconds = tuple[float, float]


def clock(work: Callable[[], object]) -> Seconds:
    """Return the wall and CPU seconds of a function."""
    wall, cpu = time.perf_counter(), time.process_time()
    work()
    return time.perf_counter() - wall, time.process_time() - cpu


def measure(images: int, classes: int) -> dict[str, Seconds]:
    """Return the wall and CPU seconds of each part."""
    random = np.random.default_rng(0)
    names = tuple(f"class {k}" for k in range(classes))
    labels = random.integers(0, classes, images)
    logits = (random.normal(size=(images, classes)) + 2 * np.eye(classes)[labels]).astype(np.float32)
    groups = [f"patient {i // 5}" for i in range(images)]
    scores, positive = logits[:, 0].astype(np.float64), labels == 0
    threshold = find_threshold(scores, positive, Target("sensitivity", 0.95, names[0]))
    metrics = SINGLE.compute_metrics(logits, labels, names)
    index = Index(
        root=Path(), classes=names, paths=("",) * images, labels=tuple(labels), splits=("test",) * images, skipped={}
    )
    evaluation = Evaluation(
        run=Path(), data=Path(), split="test", metrics=metrics, uncalibrated=metrics, calibration=None,
        own_calibration=None,
        intervals=compute_intervals(ClassCalculator(logits, labels), resamples=200), operating_points=(),
        augmentation=None, test_number=1, notes=(), overlap=None, decision_curves=(), per_group=None, audit=None,
        subgroups=None, drift=None, recalibration=None,
        test_set=TestSet(index=index, is_own=True, split="test", rows=list(range(images))),
        images=EvaluatedImages(task=SINGLE, classes=names, logits=logits, targets=labels, groups=None),
    )  # fmt: skip

    def draw() -> None:
        with tempfile.TemporaryDirectory() as folder:
            for plot in (plots.plot_roc, plots.plot_pr, plots.plot_reliability):
                figure = plot(evaluation)
                plots.make_svg(figure, "benchmark")
                plots.write_png(figure, Path(folder, "plot.png"))
            plots.write_png(plots.plot_confusion(evaluation), Path(folder, "plot.png"))

    return {
        "metrics, twice": clock(lambda: [SINGLE.compute_metrics(logits, labels, names) for _ in range(2)]),
        "CIs": clock(lambda: compute_intervals(ClassCalculator(logits, labels))),
        "CIs, clustered": clock(lambda: compute_intervals(ClassCalculator(logits, labels), groups)),
        "threshold": clock(lambda: apply_threshold(threshold, scores, positive, groups)),
        "plots": clock(draw),
    }


if __name__ == "__main__":
    images, classes = ([int(word) for word in sys.argv[1:]] + [10_000, 4][len(sys.argv) - 1 :])[:2]
    print(f"{images:,} images, {classes} classes\n{'part':22}{'wall s':>8}{'CPU s':>8}")
    for name, (wall, cpu) in measure(images, classes).items():
        print(f"{name:22}{wall:8.2f}{cpu:8.2f}")
