"""Tasks on pictures with a known answer: unknown and uncertain labels, losses, numbers, coverage of intervals.

`python -m benchmarks.tasks unknown OUT`: macro ROC AUC with all labels and with 30% of them blanked.
`python -m benchmarks.tasks uncertain OUT`: the four policies for labels that are -1, of which the truth is known.
`python -m benchmarks.tasks rare OUT`: binary cross-entropy, weighted and asymmetric, on digits of which some are rare.
`python -m benchmarks.tasks grades OUT`: cross-entropy, CORN and regression on five grades of falling frequency.
`python -m benchmarks.tasks numbers OUT`: an angle, a number of shapes, and the stroke thickness of digits.
`python -m benchmarks.tasks coverage`: 95% CIs of multi-label metrics, clustered images, against the true values.

`task_pictures.py` draws the pictures, `task_losses.py` has the losses that are not in the package.
"""

import argparse
import itertools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sklearn import metrics as reference

from benchmarks.task_losses import use_corn
from benchmarks.task_pictures import (
    DIGITS,
    EQUAL,
    Pixels,
    draw_composites,
    draw_grade,
    draw_rotation,
    draw_shapes,
    draw_thickness,
    write_numbers,
    write_pictures,
)
from convnext_cli import evaluate, finetune
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.metrics.intervals import Interval, compute_intervals
from convnext_cli.metrics.multilabel import MultilabelCalculator, sigmoid

IMAGES = {"train": 600, "val": 200, "test": 400}
SETTINGS: dict[str, Any] = {
    "model": "convnext_zepto_rms", "weights": "builtin", "image_size": 64, "batch_size": 32, "lr": 1e-3,
    "freeze_epochs": 0, "augment": "none", "hflip": 0.0, "min_crop_area": 1.0, "mixup": 0.0, "cutmix": 0.0,
    "audit": False, "onnx": False, "offline": True, "autotune": False,
}  # fmt: skip
STARTS: dict[str, dict[str, Any]] = {
    "in package": {}, "in package, lr 3e-3": {"lr": 3e-3}, "random": {"weights": "none"},
}  # fmt: skip
"""Weights that numbers are learned from, with settings."""
FEW = tuple(0.7**k for k in range(DIGITS))
"""Frequencies of digits of which the last ones are rare."""


def write_set(
    folder: Path, seed: int, *, blank: float = 0.0, uncertain: float = 0.0, frequencies: tuple[float, ...] = EQUAL
) -> Path:
    """Write composites and their table; a fraction of the training and validation labels is blank or -1."""
    random = np.random.default_rng((seed, 1))
    pictures, rows = [], []
    for number, (split, images) in enumerate(IMAGES.items()):
        drawn, targets = draw_composites(images, seed * 10 + number, frequencies)
        pictures += drawn
        for target in targets:
            cells = [f"{value:.0f}" for value in target]
            if split != "test":
                draws = random.random(DIGITS)
                cells = [
                    "" if draw < blank else "-1" if draw < blank + uncertain else cell
                    for draw, cell in zip(draws, cells, strict=True)
                ]
            rows.append([split, *cells])
    return write_pictures(folder, pictures, rows, ["split", *(f"digit {k}" for k in range(DIGITS))])


def train(table: Path, run: Path, seed: int, **settings: Any) -> Evaluation:
    """Fine-tune on a table, and return the evaluation of the test split."""
    finetune(table, output=run, overwrite=True, seed=seed, **{**SETTINGS, **settings})
    return evaluate(run, split="test")


def measure(table: Path, run: Path, seed: int, **settings: Any) -> dict[str, float]:
    """Fine-tune on several labels, and return the metrics of the test split."""
    metrics = train(table, run, seed, **settings).metrics
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


def compare_rare(out: Path, seeds: int, epochs: int) -> None:
    """Print the metrics of the losses for several labels; the rarest digit is in about 1 of 40 pictures."""
    tables = [write_set(out / f"rare-{seed}", seed, frequencies=FEW) for seed in range(seeds)]
    for name in ("none", "weights", "asymmetric"):
        results = []
        for seed, table in enumerate(tables):
            evaluation = train(table, out / "run", seed, epochs=epochs, imbalance=name)
            keys = ("macro_roc_auc", "macro_pr_auc", "macro_f1", "macro_ece")
            result = {key: getattr(evaluation.metrics, key) for key in keys}
            rare = evaluation.metrics.per_class[-4:]
            for key in ("roc_auc", "pr_auc"):
                known = [value for value in (getattr(entry, key) for entry in rare) if value is not None]
                result[f"rare {key}"] = float(np.mean(known))
            results.append(result)
        print(f"{name:20}", describe(results), flush=True)


def compare_grades(out: Path, seeds: int, epochs: int) -> None:
    """Print the metrics of five grades by the loss and the decision."""
    tables = [write_numbers(out / f"grades-{seed}", draw_grade, IMAGES, seed) for seed in range(seeds)]
    results: dict[str, list[dict[str, float]]] = {}
    for seed, table in enumerate(tables):
        options = {"label_column": "value", "epochs": epochs}
        evaluation = train(table, out / "run", seed, task="ordinal", **options)
        targets, scores = evaluation.images.targets, evaluation.probabilities
        decisions = {
            "cross-entropy, median": evaluation.task.decide(scores, None),
            "cross-entropy, most probable": scores.argmax(axis=1),
            "cross-entropy, mean": np.rint(scores @ np.arange(scores.shape[1])),
        }
        with use_corn():
            corn = train(table, out / "run", seed, task="ordinal", **options)
            decisions["CORN"] = corn.task.decide(corn.probabilities, None)
        numbers = train(table, out / "run", seed, task="regression", **options)
        decisions["regression, rounded"] = np.rint(numbers.probabilities[:, 0]).clip(0, scores.shape[1] - 1)
        for name, decision in decisions.items():
            results.setdefault(name, []).append(score_grades(targets, decision))
    for name, rows in results.items():
        print(f"{name:30}", describe(rows), flush=True)


def score_grades(targets: NDArray[Any], decisions: NDArray[Any]) -> dict[str, float]:
    """Return the metrics of predicted grades."""
    errors = np.abs(targets - decisions)
    return {
        "quadratic_kappa": float(reference.cohen_kappa_score(targets, decisions.astype(int), weights="quadratic")),
        "mae": float(errors.mean()),
        "macro_mae": float(np.mean([errors[targets == grade].mean() for grade in np.unique(targets)])),
        "accuracy": float((errors == 0).mean()),
        "within_one": float((errors <= 1).mean()),
    }


def measure_numbers(out: Path, seeds: int, epochs: int) -> None:
    """Print the metrics of numbers by start, and the coverage of their 90% prediction intervals."""
    draws: dict[str, Callable[[np.random.Generator], tuple[Pixels, float]]] = {
        "angle": draw_rotation, "shapes": draw_shapes, "thickness": draw_thickness,
    }  # fmt: skip
    own: dict[str, Any] = {"epochs": epochs, "task": "regression", "label_column": "value"}
    for (name, draw), (start, settings) in itertools.product(draws.items(), STARTS.items()):
        results = []
        for seed in range(seeds):
            table = write_numbers(out / f"{name}-{seed}", draw, IMAGES, seed)
            evaluation = train(table, out / "run", seed, **own, **settings)
            result = {key: getattr(evaluation.metrics, key) for key in ("mae", "r2", "coverage")}
            results.append(result | {"spread of the numbers": float(evaluation.images.targets.std())})
        print(f"{name:10} {start:24}", describe(results), flush=True)


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


def measure_coverage(runs: int, patients: int, per_patient: int, *, calibrated: bool) -> dict[str, float]:
    """Return how often the 95% CI of each metric holds its value for very many patients, in %."""
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
    return {key: 100 * float(np.mean(covered)) for key, covered in hits.items()}


def compare_coverage(runs: int) -> None:
    """Print the coverage for clustered and for single images, of an under-confident and of a calibrated model."""
    columns = {
        f"{kind}, {patients} x {per_patient}": measure_coverage(runs, patients, per_patient, calibrated=calibrated)
        for kind, calibrated in (("under-confident", False), ("calibrated", True))
        for patients, per_patient in ((150, 4), (300, 1))
    }
    print(f"{runs} sets of patients x images, three labels, 400 resamples; coverage in %")
    print(f"{'metric':26}" + "".join(f"{name:>26}" for name in columns))
    for key in next(iter(columns.values())):
        print(f"{key:26}" + "".join(f"{values[key]:26.1f}" for values in columns.values()))


TRAININGS = {
    "unknown": compare_unknown, "uncertain": compare_uncertain, "rare": compare_rare, "grades": compare_grades,
    "numbers": measure_numbers,
}  # fmt: skip

if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("what", choices=(*TRAININGS, "coverage"))
    parser.add_argument("out", type=Path, nargs="?")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--epochs", type=int, default=12)
    parser.add_argument("--runs", type=int, default=1000)
    args = parser.parse_args()
    if args.what == "coverage":
        compare_coverage(args.runs)
    elif args.out is None:
        parser.error("OUT is needed")
    else:
        TRAININGS[args.what](args.out, args.seeds, args.epochs)
