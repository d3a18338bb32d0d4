"""Time of one image in a new process, and throughput: `convnext`, timm, transformers.

    python benchmarks/predict.py RUN IMAGE [ROUNDS]

RUN needs model.onnx, and model-int8.onnx for the last line (`convnext export RUN`, `convnext export RUN --int8`). The
methods alternate, so that a drift of the machine's speed affects all alike.
"""

import statistics
import subprocess
import sys
import time
from importlib.util import find_spec
from pathlib import Path

import numpy as np

BATCH = 16
TIMM = """
import sys, timm, torch
from PIL import Image
model = timm.create_model("local-dir:" + sys.argv[1], pretrained=True).eval()
transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))
with torch.inference_mode():
    print(model(transform(Image.open(sys.argv[2]).convert("RGB"))[None]).softmax(dim=1))
"""
TRANSFORMERS = """
import sys
from transformers import pipeline
print(pipeline("image-classification", model=sys.argv[1])(sys.argv[2]))
"""


def list_cold(run: str, image: str) -> dict[str, list[str]]:
    """Return the commands that classify one image in a new process."""
    ours = [sys.executable, "-m", "convnext_cli", "predict", image, "--run", run, "--engine"]
    commands = {"convnext, ONNX Runtime": [*ours, "onnx"], "convnext, torch": [*ours, "torch"]}
    commands["timm"] = [sys.executable, "-c", TIMM, run, image]
    if find_spec("transformers"):
        commands["transformers"] = [sys.executable, "-c", TRANSFORMERS, run, image]
    return commands


def measure_cold(commands: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Return the wall seconds of every command in every round, after a warm-up round."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def measure_throughput(run: Path, rounds: int) -> dict[str, list[float]]:
    """Return the seconds of one batch, from preprocessed pixels to logits, after a warm-up round."""
    from convnext_cli.inference.classifier import Classifier
    from convnext_cli.inference.onnx_classifier import OnnxClassifier
    from convnext_cli.inference.torch_classifier import TorchClassifier
    from convnext_cli.runs.folder import RunFolder

    folder = RunFolder(run)
    classifiers: dict[str, Classifier] = {
        "torch": TorchClassifier(run),
        "ONNX Runtime": OnnxClassifier(folder.exported("onnx")),
    }
    if folder.exported("onnx", int8=True).exists():
        classifiers["ONNX Runtime, int8"] = OnnxClassifier(folder.exported("onnx", int8=True))
    size = classifiers["torch"].preprocessing.size
    images = np.random.default_rng(0).integers(0, 256, (BATCH, *size, 3), dtype=np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in classifiers}
    for number in range(rounds + 1):
        for name, model in classifiers.items():
            started = time.perf_counter()
            model.run_batch(images, features=False, heat=False)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def show(title: str, seconds: dict[str, list[float]], images: int) -> None:
    """Print a line for each method, with its ratio to the first in the same round."""
    first = next(iter(seconds.values()))
    print(f"{title:<24} {'median s':>9} {'min':>6} {'max':>6} {'images/s':>9} {'x first':>8}   (n = {len(first)})")
    for name, times in seconds.items():
        ratio = statistics.median(own / reference for own, reference in zip(times, first, strict=True))
        median = statistics.median(times)
        print(f"{name:<24} {median:>9.3f} {min(times):>6.3f} {max(times):>6.3f} {images / median:>9.1f} {ratio:>8.2f}")


if __name__ == "__main__":
    run, image = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    show("one image, new process", measure_cold(list_cold(run, image), rounds), 1)
    print()
    show(f"{BATCH} images at a time", measure_throughput(Path(run), 4 * rounds), BATCH)
