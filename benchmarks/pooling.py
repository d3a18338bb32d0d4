"""Predictions per patient: coverage of their 95% CIs, and the pooling chosen on validation, on simulated patients.

    python -m benchmarks.pooling coverage [DATASETS [PATIENTS [RESAMPLES]]]
    python -m benchmarks.pooling bags [REPEATS]

`coverage`: each patient has 1 to 9 images, one class, and half of the noise in common. A rule is calibrated once, on
2,000 validation patients, as in a run. The true value of a metric is that of 200,000 patients. With 2,000 data sets,
coverage is known to 1 point (twice 0.49).

`bags`: a patient has five images; of a positive one, one image is positive, or all are. The probabilities of images are
calibrated: two normal distributions. In each repeat the rule is chosen and calibrated on validation patients and
measured on 2,000 others, beside the mean as it is, and the mean with a calibration of its own.
"""

import sys
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from msgspec.structs import asdict
from numpy.typing import NDArray

from benchmarks.coverage import NAMES, contain, flatten
from convnext_cli.inference.calibration import Pooling
from convnext_cli.inference.pooling import choose_pooling
from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.formulas import ClassCalculator
from convnext_cli.metrics.intervals import compute_intervals
from convnext_cli.metrics.pooling import MEAN, RULES, Rule
from convnext_cli.tasks.registry import SINGLE

CLASS_FRACTIONS = (0.5, 0.3, 0.2)
STRENGTH, SHARED = 1.5, 0.5  # increase of the true class's logit, and the fraction of the noise variance in common
BLANK = Pooling(weights="")
IMAGES, TEST_PATIENTS = 5, 2000
VALIDATION_PATIENTS = (40, 100, 400)


@dataclass(frozen=True, slots=True)
class Bags:
    """Parameters of patients with five images."""

    name: str
    positive_images: int
    """Of a positive patient."""
    shared: float
    """Fraction of the noise variance that images of one patient have in common."""
    shift: float
    """Distance of positive and negative images, in standard deviations of the noise."""


BAGS = (
    Bags("one positive, own noise", 1, 0.0, 3.0),
    Bags("one positive, common noise", 1, 0.5, 3.0),
    Bags("all positive, common noise", 5, 0.5, 1.5),
)


def draw_patients(patients: int, seed: int) -> tuple[Floats, Ints, Ints]:
    """Draw images: logits (N, K), patients (N,), and the classes of the patients (G,)."""
    random = np.random.default_rng(seed)
    sizes = random.integers(1, 10, patients)
    units = np.repeat(np.arange(patients), sizes)
    labels = random.choice(len(CLASS_FRACTIONS), patients, p=CLASS_FRACTIONS)
    common = random.normal(size=(patients, len(CLASS_FRACTIONS)))[units]
    logits = np.sqrt(SHARED) * common + np.sqrt(1 - SHARED) * random.normal(size=common.shape)
    logits[np.arange(len(units)), labels[units]] += STRENGTH
    return logits, units, labels


def calibrate_rule(rule: Rule, seed: int = 10**8) -> Pooling:
    """Return a rule with its calibration on 2,000 validation patients."""
    logits, units, labels = draw_patients(2000, seed)
    scaling = SINGLE.fit_pooled(SINGLE.pool(logits, units, rule), labels, np.ones(len(labels)))
    return Pooling(weights="", rule=rule, **asdict(scaling))


def pool(pooling: Pooling, patients: int, seed: int) -> ClassCalculator:
    """Return the calculator of new patients, pooled and calibrated."""
    logits, units, labels = draw_patients(patients, seed)
    return ClassCalculator(SINGLE.calibrate(SINGLE.pool(logits, units, pooling.rule), pooling), labels)


def cover(pooling: Pooling, patients: int, resamples: int, true: Floats, seed: int) -> NDArray[np.float64]:
    """Return whether each metric's CI of one data set contains the true value, (metrics,)."""
    intervals = compute_intervals(pool(pooling, patients, seed), seed=seed, resamples=resamples)
    return contain(intervals, true).astype(np.float64)


def measure_coverage(
    rule: Rule, datasets: int, patients: int, resamples: int, *, truth_patients: int, map_function: Callable[..., Any]
) -> NDArray[np.float64]:
    """Return the coverage over data sets, (metrics,). `map_function` is `map`, or that of a pool."""
    pooling = calibrate_rule(rule)
    calculator = pool(pooling, truth_patients, seed=10**9)
    true = flatten(*calculator.compute(np.ones((1, calculator.images))))[0]
    covered = list(map_function(partial(cover, pooling, patients, resamples, true), range(datasets)))
    coverage: NDArray[np.float64] = np.mean(covered, axis=0)
    return coverage


def draw_bags(bags: Bags, patients: int, random: np.random.Generator) -> tuple[Floats, Ints, Ints]:
    """Draw images as `draw_patients` does, of a positive and a negative class."""
    labels = random.integers(0, 2, patients)
    positive = np.zeros((patients, IMAGES), np.bool_)
    positive[:, : bags.positive_images] = labels[:, None] == 1
    prior = 0.5 * bags.positive_images / IMAGES
    noise = np.sqrt(1 - bags.shared) * random.normal(size=positive.shape)
    noise += np.sqrt(bags.shared) * random.normal(size=(patients, 1))
    x = bags.shift * (positive - 0.5) + noise
    logits = np.stack([np.zeros(positive.size), (bags.shift * x).ravel() + np.log(prior / (1 - prior))], axis=1)
    return logits, np.repeat(np.arange(patients), IMAGES), labels


def compare_bags(bags: Bags, validation_patients: int, seed: int) -> tuple[Rule, NDArray[np.float64]]:
    """Return the chosen rule, and log loss, ROC AUC and balanced accuracy on new patients, (3, 3).

    The rows are the mean as it is, the mean with a calibration of its own, and the chosen rule.
    """
    random = np.random.default_rng(seed)
    logits, units, labels = draw_bags(bags, validation_patients, random)
    weights = np.ones(len(labels))
    chosen = choose_pooling(SINGLE, partial(SINGLE.pool, logits, units), labels, weights, BLANK)
    scaling = SINGLE.fit_pooled(SINGLE.pool(logits, units, MEAN), labels, weights)
    mean = Pooling(weights="", rule=MEAN, **asdict(scaling))
    logits, units, labels = draw_bags(bags, TEST_PATIENTS, random)
    rows = []
    for pooling in (BLANK, mean, chosen):
        pooled = SINGLE.calibrate(SINGLE.pool(logits, units, pooling.rule), pooling)
        metrics = SINGLE.compute_metrics(pooled, labels, ("negative", "positive"))
        rows.append((metrics.log_loss, metrics.macro_roc_auc, metrics.balanced_accuracy))
    return chosen.rule, np.array(rows, np.float64)


def show_coverage(words: Sequence[int]) -> None:
    """Print the coverage of each metric, for each rule."""
    datasets, patients, resamples = (*words, *(2000, 300, 400)[len(words) :])
    with ProcessPoolExecutor() as processes:
        parallel = partial(processes.map, chunksize=20)
        results = [
            measure_coverage(rule, datasets, patients, resamples, truth_patients=200_000, map_function=parallel)
            for rule in RULES
        ]
    print(f"{datasets} data sets of {patients} patients, {resamples} resamples; % of intervals that hold the truth")
    print(f"{'metric':26}" + "".join(f"{rule:>10}" for rule in RULES))
    for i, name in enumerate(NAMES):
        print(f"{name:26}" + "".join(f"{100 * coverage[i]:10.1f}" for coverage in results))


def show_bags(repeats: int) -> None:
    """Print the metrics of the mean and of the chosen rule, and how often each rule was chosen."""
    print(f"{repeats} repeats, {TEST_PATIENTS:,} test patients of {IMAGES} images; mean (standard deviation)")
    print(
        f"{'images':26}{'validation':>10}  {'pooling':18}{'log loss':>16}{'ROC AUC %':>14}{'bal. acc. %':>14}  chosen"
    )
    for bags in BAGS:
        for patients in VALIDATION_PATIENTS:
            rules, tables = zip(*(compare_bags(bags, patients, seed) for seed in range(repeats)), strict=True)
            values = np.array(tables)
            better = int((values[:, 2, 0] < values[:, 1, 0]).sum())
            chosen = ", ".join(f"{rule} {count}" for rule, count in Counter(rules).most_common())
            notes = ("", "", f"{chosen}; lower log loss than the mean in {better}")
            for row, (name, note) in enumerate(
                zip(("mean as it is", "mean, calibrated", "chosen"), notes, strict=True)
            ):
                centre, spread = values[:, row].mean(axis=0), values[:, row].std(axis=0, ddof=1)
                cells = [f"{centre[0]:8.4f} ({spread[0]:.4f})"]
                cells += [f"{100 * centre[i]:8.1f} ({100 * spread[i]:.1f})" for i in (1, 2)]
                print(f"{bags.name:26}{patients:10}  {name:18}{''.join(cells)}  {note}".rstrip(), flush=True)


def main(words: Sequence[str]) -> None:
    """Print one table."""
    kind, *numbers = words
    if kind == "coverage":
        show_coverage([int(number) for number in numbers])
    else:
        show_bags(int(numbers[0]) if numbers else 200)


if __name__ == "__main__":
    main(sys.argv[1:])
