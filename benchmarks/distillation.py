"""Distil a fine-tuned model into a smaller one: the cost in balanced accuracy and the gain in time.

    python -m benchmarks.distillation OUT [--teacher convnext_atto --student convnext_zepto_rms]
        [--teacher-weights RUN] [--set cxr3] [--images 2000] [--size 96] [--epochs 15] [--seeds 1]

The same training images and settings for three runs: the teacher, the student on the labels alone, and the student
with the teacher. The student starts from the weights in the package, the teacher from `--teacher-weights`. Differences
are paired, with 95% CIs over groups (patients). The time is the median of single images on ONNX Runtime, all models in
turn. `benchmarks/datasets.py` has the location of the data sets.
"""

import argparse
import json
import time
from pathlib import Path
from statistics import median

import numpy as np

from benchmarks.datasets import SETS, draw_manifest
from convnext_cli import compare, evaluate, export, finetune
from convnext_cli.inference.onnx_classifier import OnnxClassifier
from convnext_cli.models.catalog import BUILTIN

ROUNDS = 5  # of the measurement of time, all models in turn
TIMED = 50  # images of a round
WARM = 10  # first images of a round, which are not counted


def measure_milliseconds(files: list[Path]) -> list[float]:
    """Return the median milliseconds of a prediction of one image, for each exported file.

    One file is open at a time: the threads of another session of ONNX Runtime would wait for work on the same cores.
    """
    seconds: list[list[float]] = [[] for _ in files]
    for _ in range(ROUNDS):
        for path, measured in zip(files, seconds, strict=True):
            classifier = OnnxClassifier(path)
            image = np.random.default_rng(0).integers(0, 256, (1, *classifier.preprocessing.size, 3), dtype=np.uint8)
            for number in range(TIMED):
                started = time.perf_counter()
                classifier.run_batch(image, features=False, heat=False)
                if number >= WARM:
                    measured.append(time.perf_counter() - started)
            del classifier
    return [1000 * median(measured) for measured in seconds]


def measure(
    out: Path,
    *,
    teacher: str,
    teacher_weights: str,
    student: str,
    dataset: str,
    images: int,
    size: int,
    epochs: int,
    seed: int,
) -> dict[str, object]:
    """Train the three runs of a seed, and return their balanced accuracy, differences and times."""
    manifest = out / f"{dataset}-{seed}.csv"
    draw_manifest(SETS[dataset](out), images, seed, manifest)
    starts = {"teacher": (teacher, teacher_weights), "alone": (student, BUILTIN), "distilled": (student, BUILTIN)}
    runs = {name: out / f"{name}-{seed}" for name in starts}
    for name, (model, weights) in starts.items():
        if (runs[name] / "metrics.json").exists():
            continue
        finetune(
            manifest,
            model=model,
            weights=weights,
            teacher=runs["teacher"] if name == "distilled" else None,
            output=runs[name],
            overwrite=True,
            audit=False,
            seed=seed,
            epochs=epochs,
            batch_size=32,
            lr=1e-3,
            warmup_epochs=epochs / 10,
            image_size=size,
            min_crop_area=0.5,
            onnx=False,
        )
        print(f"{name} {model}: {evaluate(runs[name], split='test').metrics.balanced_accuracy:.3f}", flush=True)
    for run in runs.values():
        export(run)
    accuracies = {name: evaluate(run, split="test").metrics.balanced_accuracy for name, run in runs.items()}
    pairs = {}
    for first, second in (("teacher", "distilled"), ("alone", "distilled")):
        difference = compare(runs[first], runs[second], split="test").differences["balanced_accuracy"]
        assert difference is not None
        assert difference.interval is not None
        pairs[f"{second} - {first}"] = (difference.value, difference.interval.low, difference.interval.high)
    times = measure_milliseconds([run / "model.onnx" for run in runs.values()])
    return {
        "seed": seed,
        "balanced_accuracy": accuracies,
        "differences": pairs,
        "ms": dict(zip(runs, times, strict=True)),
    }


def main() -> None:
    """Measure and print a line of JSON for each seed."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--teacher", default="convnext_atto")
    parser.add_argument("--teacher-weights", default="none", help="a run, `auto` or none")
    parser.add_argument("--student", default="convnext_zepto_rms", help="has weights in the package")
    parser.add_argument("--set", dest="dataset", choices=list(SETS), default="cxr3")
    parser.add_argument("--images", type=int, default=2_000, help="to train and choose by; as many again to test")
    parser.add_argument("--size", type=int, default=96, help="px")
    parser.add_argument("--epochs", type=int, default=15)
    parser.add_argument("--seeds", type=int, default=1)
    options = vars(parser.parse_args())
    options["out"].mkdir(parents=True, exist_ok=True)
    for seed in range(options.pop("seeds")):
        print(json.dumps(measure(**options, seed=seed)), flush=True)


if __name__ == "__main__":
    main()
