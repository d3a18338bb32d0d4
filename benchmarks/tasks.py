"""Tasks on pictures with a known answer: unknown labels, uncertain labels, losses for grades, coverage of intervals.

`python -m benchmarks.tasks unknown OUT`: macro ROC AUC with all labels and with 30% of them blanked, three seeds.
`python -m benchmarks.tasks uncertain OUT`: the four policies for labels that are -1, of which the truth is known.
`python -m benchmarks.tasks coverage`: 95% CIs of multi-label metrics, clustered images, against the true values.

The pictures are composites of scikit-learn's digits: up to three of ten digits in the quarters of 64 x 64 px.
"""

import argparse
import csv
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from sklearn.datasets import load_digits

from convnext_cli import evaluate, finetune
from convnext_cli.metrics.intervals import Interval, compute_intervals
from convnext_cli.metrics.multilabel import MultilabelCalculator, sigmoid

DIGITS, CELL = 10, 32
IMAGES = {"train": 1200, "val": 300, "test": 600}
SETTINGS: dict[str, Any] = {
    "model": "convnext_zepto_rms", "weights": "builtin", "image_size": 64, "batch_size": 32, "lr": 1e-3,
    "freeze_epochs": 0, "hflip": 0.0, "min_crop_area": 1.0, "audit": False, "onnx": False, "offline": True,
}  # fmt: skip


def draw_composites(images: int, seed: int) -> tuple[list[NDArray[np.uint8]], NDArray[np.float64]]:
    """Return pictures, (64, 64) each, and their digits, (N, 10)."""
    digits, random = load_digits(), np.random.default_rng(seed)
    rows_of = [np.flatnonzero(digits.target == k) for k in range(DIGITS)]
    pictures, targets = [], np.zeros((images, DIGITS))
    for number in range(images):
        chosen = random.choice(DIGITS, random.integers(0, 4), replace=False)
        pixels = random.normal(0, 6, (2 * CELL, 2 * CELL))
        for place, digit in zip(random.choice(4, len(chosen), replace=False), chosen, strict=True):
            small = (digits.images[random.choice(rows_of[digit])] * 15).astype(np.uint8)
            y, x = CELL * (place // 2), CELL * (place % 2)
            scaled = Image.fromarray(small).resize((CELL, CELL), Image.Resampling.BICUBIC)
            pixels[y : y + CELL, x : x + CELL] += np.asarray(scaled)
        pictures.append(pixels.clip(0, 255).astype(np.uint8))
        targets[number, chosen] = 1
    return pictures, targets


def write_set(folder: Path, seed: int, *, blank: float = 0.0, uncertain: float = 0.0) -> Path:
    """Write pictures and their table; a fraction of the training and validation labels is blank or -1."""
    random = np.random.default_rng((seed, 1))
    rows = []
    for split, images in IMAGES.items():
        pictures, targets = draw_composites(images, seed * 10 + list(IMAGES).index(split))
        for number, (pixels, target) in enumerate(zip(pictures, targets, strict=True)):
            path = folder / f"{split}-{number:05}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels).save(path)
            cells = [f"{value:.0f}" for value in target]
            if split != "test":
                draws = random.random(DIGITS)
                cells = [
                    "" if draw < blank else "-1" if draw < blank + uncertain else cell
                    for draw, cell in zip(draws, cells, strict=True)
                ]
            rows.append([path.name, split, *cells])
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows([["path", "split", *(f"digit {k}" for k in range(DIGITS))], *rows])
    return folder / "table.csv"


def measure(table: Path, run: Path, seed: int, **settings: Any) -> dict[str, float]:
    """Fine-tune on a table, and return the metrics of the test split."""
    finetune(table, output=run, overwrite=True, seed=seed, **{**SETTINGS, **settings})
    metrics = evaluate(run, split="test").metrics
    return {key: getattr(metrics, key) for key in ("macro_roc_auc", "macro_pr_auc", "macro_f1", "log_loss")}


def compare_unknown(out: Path, seeds: int, epochs: int) -> None:
    """Print the metrics with all labels, and with 30% of them blank."""
    for blank in (0.0, 0.3):
        results = [
            measure(write_set(out / f"blank{blank}-{seed}", seed, blank=blank), out / "run", seed, epochs=epochs)
            for seed in range(seeds)
        ]
        print(f"{blank:.0%} blank", describe(results), flush=True)


def compare_uncertain(out: Path, seeds: int, epochs: int) -> None:
    """Print the metrics of each policy for 30% uncertain labels."""
    tables = [write_set(out / f"uncertain-{seed}", seed, uncertain=0.3) for seed in range(seeds)]
    for policy in ("ignore", "positive", "negative", "smooth"):
        results = [
            measure(table, out / "run", seed, epochs=epochs, uncertain=policy) for seed, table in enumerate(tables)
        ]
        print(f"{policy:10}", describe(results), flush=True)


def describe(results: list[dict[str, float]]) -> str:
    """Return mean and range of each metric over the seeds."""
    parts = []
    for key in results[0]:
        values = np.array([result[key] for result in results])
        parts.append(f"{key} {values.mean():.4f} [{values.min():.4f}, {values.max():.4f}]")
    return "; ".join(parts) + f"; n = {len(results)}"


def draw_patients(
    patients: int, per_patient: int, random: np.random.Generator, *, calibrated: bool = False
) -> tuple[NDArray[np.float64], NDArray[np.float64], list[str]]:
    """Return logits and targets (N, 3) of patients whose images share labels, or part of their logits.

    Args:
        patients: number of patients.
        per_patient: images of each.
        random: generator.
        calibrated: draw each label with the probability that its logit says; otherwise the model is under-confident.
    """
    shared = np.repeat(random.normal(size=(patients, 3)), per_patient, axis=0)
    own = random.normal(size=shared.shape)
    if calibrated:
        logits = 1.3 * shared - 1 + 0.8 * own
        labels = (random.random(shared.shape) < sigmoid(logits)).astype(float)
    else:
        labels = np.repeat(random.random((patients, 3)) < (0.5, 0.3, 0.15), per_patient, axis=0).astype(float)
        logits = 1.05 * (2 * labels - 1) + 0.8 * shared + 0.8 * own
    labels[random.random(labels.shape) < 0.1] = np.nan
    return logits, labels, [str(number // per_patient) for number in range(len(labels))]


def measure_coverage(runs: int, patients: int, per_patient: int, *, calibrated: bool = False) -> None:
    """Print how often the 95% CI of each metric holds its value for very many patients."""
    logits, targets, _ = draw_patients(100_000, per_patient, np.random.default_rng(0), calibrated=calibrated)
    overall, per_class = MultilabelCalculator(logits, targets).compute(np.ones((1, len(logits))))
    truth = {key: values[0] for key, values in overall.items()}
    truth |= {f"{key} of the rarest": values[0, -1] for key, values in per_class.items()}
    hits: dict[str, list[bool]] = {key: [] for key in truth}
    for run in range(runs):
        logits, targets, groups = draw_patients(
            patients, per_patient, np.random.default_rng((1, run)), calibrated=calibrated
        )
        intervals = compute_intervals(MultilabelCalculator(logits, targets), groups, seed=run, resamples=400)
        rarest = {f"{key} of the rarest": interval for key, interval in intervals.per_class[-1].items()}
        for key, interval in (intervals.overall | rarest).items():
            if isinstance(interval, Interval):
                hits[key].append(interval.low <= truth[key] <= interval.high)
    kind = "calibrated" if calibrated else "under-confident"
    print(f"{runs} sets of {patients} patients with {per_patient} images, {kind}; coverage of 95% CIs in %:")
    for key, covered in hits.items():
        print(f"  {key:26} {100 * np.mean(covered):.1f}  (n = {len(covered)})", flush=True)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=("unknown", "uncertain", "coverage"))
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--runs", type=int, default=1000)
    args = parser.parse_args()
    if args.what == "coverage":
        measure_coverage(args.runs, patients=150, per_patient=4)
        measure_coverage(args.runs, patients=300, per_patient=1)
        measure_coverage(args.runs, patients=150, per_patient=4, calibrated=True)
        measure_coverage(args.runs, patients=300, per_patient=1, calibrated=True)
    else:
        if args.out is None:
            parser.error("OUT is needed")
        (compare_unknown if args.what == "unknown" else compare_uncertain)(args.out, args.seeds, args.epochs)
