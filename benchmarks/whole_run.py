"""Compare the wall time of a whole short run with timm's train.py, in turns, on the same images.

    python -m benchmarks.whole_run FOLDER --timm-train PATH/train.py [--rounds 3] [--images 960] [--epochs 2]

FOLDER has `train/<class>/` folders. timm's train.py is not in its package: take it from the tag of the installed
version. Both train convnext_atto from random weights, 224 px, batches of 32, with AdamW and two loading processes or
threads. Ours also checks the images, calibrates, draws its curves, and writes model.onnx if the extra is installed;
further options, such as `--no-check` and `--no-onnx`, are those of our run. A round runs both, in random order; the
ratio is within a round. The native kernels are compiled before the first round, as they are once on each machine.
"""

import argparse
import os
import random
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.speed import link_images
from convnext_cli.kernels.library import describe_processor

MODEL, SIZE, BATCH = "convnext_atto", 224, 32


def run_ours(data: Path, work: Path, epochs: int, options: list[str]) -> list[str]:
    """Return the command of our run."""
    own = f"--model {MODEL} --weights none --image-size {SIZE} --batch-size {BATCH} --offline --freeze-epochs 0".split()
    output = ["--output", str(work / "ours"), "--overwrite", "--epochs", str(epochs)]
    return [sys.executable, "-m", "convnext_cli", "finetune", str(data), *output, *own, *options]


def run_timm(script: Path, data: Path, work: Path, epochs: int) -> list[str]:
    """Return the command of timm's run."""
    classes = len(list((data / "train").iterdir()))
    words = (
        f"--model {MODEL} --img-size {SIZE} --batch-size {BATCH} --num-classes {classes} --epochs {epochs} --opt adamw "
        "--lr 1e-4 --weight-decay 0.05 --warmup-epochs 0 --cooldown-epochs 0 --workers 2 --device cpu "
        "--val-split val --no-prefetcher"
    )
    return [sys.executable, str(script), "--data-dir", str(data), "--output", str(work / "timm"), *words.split()]


def time_command(command: list[str], work: Path) -> float:
    """Return the wall seconds of a command, with an empty image cache and compiled kernels.

    Raises:
        SystemExit: it fails.
    """
    for path in (work / "cache").rglob("*.sqlite"):
        path.unlink()
    began = time.perf_counter()
    environment = os.environ | {"CONVNEXT_CACHE": str(work / "cache"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment, check=False)
    if done.returncode:
        sys.exit(f"{' '.join(command)}\n{done.stderr[-2000:]}")
    return time.perf_counter() - began


def main() -> None:
    """Measure, and print the seconds of each round and their ratio."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--timm-train", type=Path, help="timm's train.py; without it only our run is timed")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--epochs", type=int, default=2)
    args, options = parser.parse_known_args()  # the rest are options of our run
    seconds: dict[str, list[float]] = {"ours": [], "timm": []} if args.timm_train else {"ours": []}
    print(f"{describe_processor('model name').partition(':')[2].strip()}, {os.cpu_count()} cores")
    with tempfile.TemporaryDirectory() as folder:
        work = Path(folder)
        link_images(args.data, work / "data", args.images)
        commands = {"ours": run_ours(work / "data", work, args.epochs, options)}
        if args.timm_train:
            commands["timm"] = run_timm(args.timm_train, work / "data", work, args.epochs)
        compile_kernels = [
            sys.executable,
            "-c",
            "from convnext_cli.kernels.library import load_kernels; load_kernels()",
        ]
        time_command(compile_kernels, work)
        for number in range(args.rounds):
            for name in random.Random(number).sample(sorted(commands), len(commands)):  # noqa: S311
                seconds[name].append(time_command(commands[name], work))
            row = "  ".join(f"{name} {values[-1]:6.1f} s" for name, values in seconds.items())
            print(f"round {number + 1}: {row}", flush=True)
    if args.timm_train:
        ratios = [ours / timm for ours, timm in zip(seconds["ours"], seconds["timm"], strict=True)]
        print(f"ours / timm: median {statistics.median(ratios):.3f} ({min(ratios):.3f} to {max(ratios):.3f})")


if __name__ == "__main__":
    main()
