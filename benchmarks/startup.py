"""Measure how long commands take to start, as a ratio to an empty Python process.

    python benchmarks/startup.py [ROUNDS] [FOLDER]

The commands run in turn, round after round, so that a drift of the machine's speed affects all of them. With a folder
of images: the time of `finetune` (convnext_zepto_rms, 64 px, without the audit) to the end of its first step, as a
ratio to the time in which Python imports torch and timm.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

COMMANDS = {
    "python -c pass": [sys.executable, "-c", "pass"],
    "convnext --help": [sys.executable, "-m", "convnext_cli", "--help"],
    "convnext list": [sys.executable, "-m", "convnext_cli", "list"],
    "convnext recommend": [sys.executable, "-m", "convnext_cli", "recommend", "--dataset-size", "6000"],
}

IMPORTS = {"import torch, timm": [sys.executable, "-c", "import torch, timm"]}
FIRST_STEP = """
import os, sys, pathlib
from convnext_cli.recipes.settings import Choice
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.events import StepDone
from convnext_cli.training.request import TrainRequest

settings = {"epochs": 3, "freeze_epochs": 0, "image_size": 64}
choices = {name: Choice(value=value, source="the benchmark") for name, value in settings.items()}
data, output = map(pathlib.Path, sys.argv[1:])
request = TrainRequest(data=data, audit=False, model="convnext_zepto_rms", weights="none", offline=True, output=output,
                       overwrite=True, choices=choices)
next(event for event in finetune_steps(request) if isinstance(event, StepDone))
os._exit(0)  # without waiting for images that are being loaded
"""


def measure(commands: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Return the wall seconds of each command in each round, after one round that does not count."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def report(commands: dict[str, list[str]], rounds: int) -> None:
    """Measure, and print a table with ratios to the first command."""
    seconds = measure(commands, rounds)
    first = next(iter(commands))
    print(f"{'command':<20} {'median s':>9} {'min':>6} {'max':>6}   x {first}   (n = {rounds})")
    for name, measured in seconds.items():
        ratio = statistics.median(a / b for a, b in zip(measured, seconds[first], strict=True))
        print(
            f"{name:<20} {statistics.median(measured):>9.3f} {min(measured):>6.3f} {max(measured):>6.3f} {ratio:>9.2f}"
        )


if __name__ == "__main__":
    rounds = int(sys.argv[1]) if len(sys.argv) > 1 else 10
    if len(sys.argv) > 2:
        with tempfile.TemporaryDirectory() as scratch:
            finetune = [sys.executable, "-c", FIRST_STEP, sys.argv[2], str(Path(scratch, "run"))]
            report(IMPORTS | {"finetune, first step": finetune}, rounds)
    else:
        report(COMMANDS, rounds)
