"""Measure what autotuning and the cache cost short runs, which cannot gain from them.

    python benchmarks/short_runs.py FOLDER [--rounds 5] [--images 600] [--seconds 60]

FOLDER has <class>/ folders of images. Three runs of convnext_zepto_rms from random weights at 64 px, batches of 32:
20 images for 2 epochs, 600 for one epoch, and 600 for as many epochs as take about a minute (measured first). Each is
done with defaults, without autotuning, and without the cache; in a new process, with an empty cache, in random order.
A ratio compares two runs of a round; above 1 the run with defaults takes longer. Seconds are CPU time, because the
wall time of identical runs differs by a fifth on a shared machine.
"""

import argparse
import os
import random
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

from convnext_cli.data.scan import scan_folder

VARIANTS = {"default": [], "--no-autotune": ["--no-autotune"], "--no-cache": ["--no-cache"]}
FIXED = (
    "--model convnext_zepto_rms --weights none --image-size 64 --batch-size 32 --no-check --no-onnx --val-fraction 0.2 "
    "--test-fraction 0"
)


def copy_images(data: Path, folder: Path, images: int) -> Path:
    """Link `images` images of `data`, evenly over the classes, into class folders under `folder`; return it."""
    index = scan_folder(data)
    by_class: dict[int, list[str]] = {}
    for path, label in zip(index.paths, index.labels, strict=True):
        by_class.setdefault(label, []).append(path)
    for i in range(images):
        label = i % len(index.classes)
        path = by_class[label][i // len(index.classes)]
        link = folder / index.classes[label] / f"{i}{Path(path).suffix}"
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to((data / path).absolute())
    return folder


def time_run(data: Path, epochs: int, words: list[str]) -> float:
    """Return the seconds of CPU time of one run in a new process, with an empty cache."""
    with tempfile.TemporaryDirectory() as scratch:
        command = [sys.executable, "-m", "convnext_cli", "finetune", str(data), "--output", f"{scratch}/run"]
        before = os.times()
        subprocess.run(
            [*command, "--epochs", str(epochs), *FIXED.split(), *words],
            env=os.environ | {"CONVNEXT_CACHE": f"{scratch}/cache"},
            capture_output=True,
            check=True,
        )
        after = os.times()
        return after.children_user + after.children_system - before.children_user - before.children_system


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--images", type=int, default=600, help="of the longer runs")
    parser.add_argument("--seconds", type=float, default=60, help="of the longest run, about")
    arguments = parser.parse_args()
    scratch = Path(tempfile.mkdtemp())
    few = copy_images(arguments.folder, scratch / "few", 20)
    many = copy_images(arguments.folder, scratch / "many", arguments.images)
    one, three = time_run(many, 1, []), time_run(many, 3, [])
    minute = max(2, round((arguments.seconds - one) / max((three - one) / 2, 0.1)) + 1)
    cases = {"20 images, 2 epochs": (few, 2), "one epoch": (many, 1), f"{minute} epochs": (many, minute)}
    print(f"{'run':<22}{'variant':<15}{'median s':>9}{'ratio':>8}{'min':>7}{'max':>7}   (n = {arguments.rounds})")
    for name, (data, epochs) in cases.items():
        seconds: dict[str, list[float]] = {variant: [] for variant in VARIANTS}
        for _ in range(arguments.rounds):
            for variant in random.sample(list(VARIANTS), len(VARIANTS)):
                seconds[variant].append(time_run(data, epochs, VARIANTS[variant]))
        for variant, measured in seconds.items():
            ratios = [default / other for default, other in zip(seconds["default"], measured, strict=True)]
            print(
                f"{name:<22}{variant:<15}{statistics.median(measured):>9.2f}{statistics.median(ratios):>8.3f}"
                f"{min(ratios):>7.3f}{max(ratios):>7.3f}",
                flush=True,
            )
    shutil.rmtree(scratch)


if __name__ == "__main__":
    main()
