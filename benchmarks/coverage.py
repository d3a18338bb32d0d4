"""Coverage of the 95% CIs on simulated data sets, plain and clustered: percentile bootstrap and ours.

    python benchmarks/coverage.py [DATASETS [IMAGES [RESAMPLES]]]
    python benchmarks/coverage.py fractions [DATASETS]  fractions of few clusters, by the degrees of freedom

Each data set is drawn from a model of a classifier: the true class's logit is raised by a strength, noise is normal,
and in clustered data the images of one patient have their class and part of their noise in common. The true value is
that of 1,000,000 images (of 200,000 patients). With 2,000 data sets, coverage is known to 1 point (twice 0.49).
"""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from statistics import NormalDist
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics import intervals
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.formulas import ClassCalculator
from convnext_cli.metrics.intervals import Intervals, compute_intervals, number_units, resample

CLASS_FRACTIONS = (0.5, 0.25, 0.15, 0.10)  # of 600 images the rarest class has 60


@dataclass(frozen=True, slots=True)
class Scenario:
    """Parameters of simulated data sets."""

    name: str
    strength: float
    """Increase of the true class's logit, in standard deviations of the noise."""
    per_patient: int
    """Mean number of images of one patient; 1 is plain."""
    shared: float
    """Fraction of the noise variance that images of one patient have in common."""


SCENARIOS = (
    Scenario("plain", 2.0, 1, 0.0),
    Scenario("plain, near 100%", 3.5, 1, 0.0),
    Scenario("clustered", 2.0, 5, 0.5),
)


def draw(scenario: Scenario, images: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """Draw a data set: logits (N, K), labels (N,), and each image's patient."""
    random = np.random.default_rng(seed)
    sizes = np.ones(images, np.int64)
    if scenario.per_patient > 1:
        sizes = random.integers(1, 2 * scenario.per_patient, images // scenario.per_patient)
    patients = np.repeat(np.arange(len(sizes)), sizes)
    labels = random.choice(len(CLASS_FRACTIONS), len(sizes), p=CLASS_FRACTIONS)[patients]
    common = random.normal(size=(len(sizes), len(CLASS_FRACTIONS)))[patients]
    independent = random.normal(size=(len(labels), len(CLASS_FRACTIONS)))
    logits = np.sqrt(scenario.shared) * common + np.sqrt(1 - scenario.shared) * independent
    logits[np.arange(len(labels)), labels] += scenario.strength
    return logits, labels, [str(patient) for patient in patients]


def flatten(overall: dict[str, Floats], per_class: dict[str, Floats]) -> Floats:
    """Return all overall metrics and those of the rarest class, (C, metrics)."""
    return np.stack([*overall.values(), *(values[:, -1] for values in per_class.values())], axis=1)


NAMES = (*ClassCalculator.overall, *(f"{name} of the rarest" for name in ClassCalculator.per_class))
"""The metrics of `flatten`."""


def contain(intervals: Intervals, true: Floats) -> NDArray[np.bool_]:
    """Return which CIs of the metrics of `flatten` contain their true value, (metrics,); one that is missing does not.

    Args:
        intervals: of one data set.
        true: (metrics,).
    """
    ends = [*intervals.overall.values(), *intervals.per_class[-1].values()]
    return np.array([e is not None and e.low <= t <= e.high for e, t in zip(ends, true, strict=True)])


def compute_truth(scenario: Scenario, images: int) -> Floats:
    """Return the metrics of a very large data set."""
    logits, labels, _ = draw(scenario, images, seed=10**9)
    values: Floats = flatten(*ClassCalculator(logits, labels).compute(np.ones((1, len(labels)))))[0]
    return values


def cover(scenario: Scenario, images: int, resamples: int, true: Floats, seed: int) -> NDArray[np.float64]:
    """Return whether each metric's CI of one data set contains the true value, (2, metrics): percentile, ours."""
    logits, labels, patients = draw(scenario, images, seed)
    groups = patients if scenario.per_patient > 1 else None
    calculator = ClassCalculator(logits, labels)
    chunks = resample(
        lambda w: flatten(*calculator.compute(w)), number_units(len(labels), groups), resamples, seed=seed
    )
    low, high = np.nanpercentile(np.concatenate(chunks), (2.5, 97.5), axis=0)
    ours = compute_intervals(calculator, groups, seed=seed, resamples=resamples)
    return np.stack([(low <= true) & (true <= high), contain(ours, true)]).astype(np.float64)


def measure(
    scenario: Scenario,
    datasets: int,
    images: int,
    resamples: int,
    *,
    truth_images: int,
    map_function: Callable[..., Any],
) -> NDArray[np.float64]:
    """Return the coverage over data sets, (2, metrics). `map_function` is `map`, or that of a pool."""
    true = compute_truth(scenario, truth_images)
    covered = list(map_function(partial(cover, scenario, images, resamples, true), range(datasets)))
    coverage: NDArray[np.float64] = np.mean(covered, axis=0)
    return coverage


FACTORS = (1.0, 1.25, 1.5, 2.0)


def cover_fractions(clusters: int, true: float, shared: float, datasets: int) -> Floats:
    """Return the coverage of the CI of a fraction, for each of `FACTORS`, (4,).

    Args:
        clusters: number of clusters, of 1 to 9 images each.
        true: the true fraction.
        shared: fraction of the variance that images of one cluster have in common.
        datasets: number of data sets.
    """
    random = np.random.default_rng((clusters, int(1000 * true), int(1000 * shared)))
    covered = np.zeros(len(FACTORS))
    for _ in range(datasets):
        sizes = random.integers(1, 10, clusters)
        units = np.repeat(np.arange(clusters), sizes)
        noise = np.sqrt(shared) * random.normal(size=clusters)[units]
        noise += np.sqrt(1 - shared) * random.normal(size=len(units))
        hits = noise < NormalDist().inv_cdf(true)
        fraction = float(hits.mean())
        variance = float((np.bincount(units, hits - fraction, minlength=clusters) ** 2).sum()) / len(units) ** 2
        effective = max(1.5, float(sizes.sum() ** 2 / (sizes**2).sum()))
        for i, factor in enumerate(FACTORS):
            with mock.patch.object(intervals, "DF_FACTOR", factor):
                interval = intervals.score_interval(fraction, variance, effective)
            covered[i] += interval.low <= true <= interval.high
    return covered / datasets


def show_fractions(datasets: int) -> None:
    """Print a row for each number of clusters: mean and minimum coverage over 12 settings."""
    print(f"{datasets} data sets per setting; coverage in %, mean (minimum) over 12 settings")
    print(f"{'clusters':>8}" + "".join(f"{f'df x {factor:g}':>16}" for factor in FACTORS))
    for clusters in (3, 4, 6, 8, 12, 20, 40):
        settings = [(true, shared) for true in (0.6, 0.75, 0.9, 0.95) for shared in (0.2, 0.5, 0.8)]
        rows = 100 * np.array([cover_fractions(clusters, *setting, datasets) for setting in settings])
        cells = (f"{mean:.1f} ({least:.1f})" for mean, least in zip(rows.mean(axis=0), rows.min(axis=0), strict=True))
        print(f"{clusters:>8}" + "".join(f"{cell:>16}" for cell in cells), flush=True)


def main(words: Sequence[str]) -> None:
    """Print the table."""
    if words and words[0] == "fractions":
        show_fractions(int(words[1]) if len(words) > 1 else 800)
        return
    datasets, images, resamples = ([int(word) for word in words] + [2000, 600, 400][len(words) :])[:3]
    with ProcessPoolExecutor() as pool:
        parallel = partial(pool.map, chunksize=20)
        results = [
            measure(scenario, datasets, images, resamples, truth_images=1_000_000, map_function=parallel)
            for scenario in SCENARIOS
        ]
    print(f"{datasets} data sets of {images} images, {resamples} resamples; coverage in %")
    print(f"{'':26}" + "".join(f"{scenario.name:>26}" for scenario in SCENARIOS))
    print(f"{'metric':26}" + f"{'percentile':>16}{'ours':>10}" * len(SCENARIOS))
    for i, name in enumerate(NAMES):
        print(f"{name:26}" + "".join(f"{100 * both[0, i]:16.1f}{100 * both[1, i]:10.1f}" for both in results))


if __name__ == "__main__":
    main(sys.argv[1:])
