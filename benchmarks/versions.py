"""Compare the processor time of two checkouts for starting, checking a folder and predicting its images.

    git worktree add ../old 0683f91
    python benchmarks/versions.py ../old [IMAGES] [ROUNDS]

Both run the same commands on the same generated images (JPEG, 256 x 224), in alternating order, each in a new process
with a separate cache folder. Processor time (user and system, all threads) is compared, because other load changes it
least. The ratio is the median over rounds of new / old within one round.
"""

import os
import resource
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np
from PIL import Image

HERE = Path(__file__).parents[1]
TRAIN = "--model convnext_zepto_rms --weights builtin --epochs 1 --image-size 64 --no-check --no-autotune --no-cache"
COMMANDS = {
    "--help": "--help",
    "finetune --help": "finetune --help",
    "list": "list",
    "recommend": "recommend --dataset-size 6000",
    "check, first": "check {data} --json",
    "check, again": "check {data} --json",
    "predict, torch": "predict {data} --run {run} --engine torch --csv",
    "predict, ONNX Runtime": "predict {data} --run {run} --engine onnx --csv",
}


def write_images(folder: Path, count: int) -> None:
    """Write `count` JPEG files of smooth noise in two class folders."""
    for k in range(count):
        pixels = np.random.default_rng(k).integers(0, 256, (28, 32, 3), dtype=np.uint8)
        path = folder / "ab"[k % 2] / f"{k * 7919 % 999983:06d}.jpg"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).resize((256, 224), Image.Resampling.BICUBIC).save(path, quality=90)


def run_command(checkout: Path, command: str, cache: Path) -> float:
    """Run `convnext` of a checkout and return its processor time in seconds."""
    environment = os.environ | {"PYTHONPATH": str(checkout), "CONVNEXT_CACHE": str(cache), "HF_HUB_OFFLINE": "1"}
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    done = subprocess.run(
        [sys.executable, "-m", "convnext_cli", *command.split()],
        env=environment, cwd=cache.parent, capture_output=True, text=True, check=False,
    )  # fmt: skip
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    if done.returncode:
        sys.exit(f"{checkout}: convnext {command}: {done.returncode}\n{done.stderr}")
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


def main(old: Path, images: int, rounds: int) -> None:
    """Compare the checkouts and print a row for each command."""
    with tempfile.TemporaryDirectory() as name:
        place = Path(name)
        write_images(place / "data", images)
        run_command(old, f"finetune {place}/data {TRAIN} -o {place}/run --onnx", place / "cache")
        times: dict[tuple[str, str], list[float]] = {}
        for round_ in range(rounds + 1):
            order = [("old", old), ("new", HERE)]
            for label, command in COMMANDS.items():
                for version, checkout in order[:: 1 if round_ % 2 else -1]:
                    cache = place / f"cache-{version}"
                    if label == "check, first":
                        shutil.rmtree(cache, ignore_errors=True)
                        cache.mkdir()
                    seconds = run_command(checkout, command.format(data=place / "data", run=place / "run"), cache)
                    if round_:  # the first round warms the disk's cache and writes byte code
                        times.setdefault((label, version), []).append(seconds)
        print(f"{images} images; processor time in s, median (min to max) of {rounds} rounds\n")
        print(f"{'':24}{'old':>24}{'new':>24}{'new / old':>24}")
        for label in COMMANDS:
            both = [times[label, version] for version in ("old", "new")]
            ratios = [new / old for old, new in zip(*both, strict=True)]
            cells = "".join(f"{describe(values):>24}" for values in (*both, ratios))
            print(f"{label:24}{cells}", flush=True)


def describe(values: list[float]) -> str:
    """Return median and range as text."""
    return f"{statistics.median(values):.3f} ({min(values):.3f} to {max(values):.3f})"


if __name__ == "__main__":
    words = sys.argv[1:]
    if not words:
        sys.exit(__doc__)
    main(Path(words[0]).resolve(), int(words[1]) if words[1:] else 1000, int(words[2]) if words[2:] else 5)
