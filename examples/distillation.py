"""Distil a large model into a small one for the clinic's PC; print the cost in balanced accuracy and the gain in time.

    python examples/distillation.py                 on 300 small digits, in a temporary folder
    python examples/distillation.py DATA FOLDER     on your images; output goes to FOLDER

For your images, set LARGE and SMALL below to larger models (those here are for small digits), and run this on a GPU.
"""

import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np

from convnext_cli import compare, finetune, predict
from convnext_cli.data.digits import write_digits
from convnext_cli.errors import ConvnextError

LARGE, SMALL = "convnext_zepto_rms", "test_convnext"
SETTINGS: dict[str, Any] = {
    "weights": "none", "epochs": 5, "image_size": 32, "batch_size": 16, "lr": 2e-3, "min_crop_area": 0.8,
    "val_fraction": 0.2, "test_fraction": 0.3,
}  # fmt: skip
IMAGES = 64  # in the batch whose time is measured


def main(data: Path, folder: Path) -> None:
    """Train the large model and the small one, with the teacher and without; compare them on the test images."""
    large = finetune(data, model=LARGE, output=folder / "large", **SETTINGS).run
    alone = finetune(data, model=SMALL, output=folder / "alone", **SETTINGS).run
    small = finetune(data, model=SMALL, teacher=large, output=folder / "small", **SETTINGS).run

    for name, other in (("the large model", large), ("the small model without a teacher", alone)):
        difference = compare(other, small, split="test").differences["balanced_accuracy"]
        if difference is not None and (ci := difference.interval):
            points = [100 * value for value in (difference.value, ci.low, ci.high)]
            print(
                f"balanced accuracy against {name}: {points[0]:+.1f} points, 95% CI [{points[1]:.1f}, {points[2]:.1f}]"
            )
    before, after = measure_milliseconds(large), measure_milliseconds(small)
    print(f"time per image: {before:.1f} ms with the large model, {after:.1f} ms with the small one")


def measure_milliseconds(run: Path) -> float:
    """Return the milliseconds per image in a batch: the fastest of several passes, without loading the model."""
    fastest = []
    for count in (1, IMAGES):
        seconds = []
        for _ in range(5):
            started = time.perf_counter()
            predict(np.zeros((count, 64, 64, 3), np.uint8), run)
            seconds.append(time.perf_counter() - started)
        fastest.append(min(seconds))
    return 1000 * max(0.0, fastest[1] - fastest[0]) / (IMAGES - 1)


def run_on_digits() -> None:
    """Run on generated data in a temporary folder."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        digits = write_digits(folder / "all")
        for label in "012":
            (folder / "digits" / label).mkdir(parents=True)
            for path in sorted((digits / label).glob("*.png"))[:100]:
                path.rename(folder / "digits" / label / path.name)
        main(folder / "digits", folder)


if __name__ == "__main__":
    try:
        if len(sys.argv) == 1:
            run_on_digits()
        elif len(sys.argv) == 3:
            main(Path(sys.argv[1]), Path(sys.argv[2]))
        else:
            sys.exit("usage: python examples/distillation.py [DATA FOLDER]")
    except ConvnextError as error:  # one line: the problem and the remedy
        sys.exit(f"{error}")
