"""How long one image takes in a new process, and how many images a second: our paths, timm's, transformers'.

    python benchmarks/predict.py RUN IMAGE [ROUNDS]

RUN needs model.onnx, and model-int8.onnx for the last line (`convnext export RUN`, `convnext export RUN --int8`). All
ways take their turn, round after round, so that a machine whose speed drifts touches all of them alike.
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
    """The commands that classify one image in a new process."""
    ours = [sys.executable, "-m", "convnext_cli", "predict", image, "--run", run, "--engine"]
    commands = {"convnext, ONNX Runtime": [*ours, "onnx"], "convnext, torch": [*ours, "torch"]}
    commands["timm"] = [sys.executable, "-c", TIMM, run, image]
    if find_spec("transformers"):
        commands["transformers"] = [sys.executable, "-c", TRANSFORMERS, run, image]
    return commands


def measure_cold(commands: dict[str, list[str]], rounds: int) -> dict[str, list[float]]:
    """Wall seconds of every command in every round, after one that is not counted."""
    seconds: dict[str, list[float]] = {name: [] for name in commands}
    for number in range(rounds + 1):
        for name, command in commands.items():
            started = time.perf_counter()
            subprocess.run(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, check=True)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def measure_throughput(run: Path, rounds: int) -> dict[str, list[float]]:
    """Seconds for one batch, from prepared pixels to logits, after one that is not counted."""
    from convnext_cli.inference.classifier import Classifier
    from convnext_cli.inference.onnx_classifier import OnnxClassifier
    from convnext_cli.inference.torch_classifier import TorchClassifier
    from convnext_cli.runs.folder import RunFolder

    folder = RunFolder(run)
    ways: dict[str, Classifier] = {
        "torch": TorchClassifier(run),
        "ONNX Runtime": OnnxClassifier(folder.exported("onnx")),
    }
    if folder.exported("onnx", int8=True).exists():
        ways["ONNX Runtime, int8"] = OnnxClassifier(folder.exported("onnx", int8=True))
    size = ways["torch"].preprocessing.image_size
    images = np.random.default_rng(0).integers(0, 256, (BATCH, size, size, 3), dtype=np.uint8)
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(rounds + 1):
        for name, model in ways.items():
            started = time.perf_counter()
            model.run_batch(images, features=False, heat=False)
            if number:
                seconds[name].append(time.perf_counter() - started)
    return seconds


def show(title: str, seconds: dict[str, list[float]], images: int) -> None:
    """A line for each way, with its ratio to the first in the same round."""
    first = next(iter(seconds.values()))
    print(f"{title:<24} {'median s':>9} {'min':>6} {'max':>6} {'images/s':>9} {'x first':>8}   (n = {len(first)})")
    for name, dataset in seconds.items():
        ratio = statistics.median(mine / its for mine, its in zip(dataset, first, strict=True))
        middle = statistics.median(dataset)
        print(
            f"{name:<24} {middle:>9.3f} {min(dataset):>6.3f} {max(dataset):>6.3f} {images / middle:>9.1f} {ratio:>8.2f}"
        )


if __name__ == "__main__":
    run, image = sys.argv[1:3]
    rounds = int(sys.argv[3]) if len(sys.argv) > 3 else 5
    show("one image, new process", measure_cold(list_cold(run, image), rounds), 1)
    print()
    show(f"{BATCH} images at a time", measure_throughput(Path(run), 4 * rounds), BATCH)
