"""Coverage of the 95% CIs on simulated data sets, plain and clustered: percentile bootstrap and ours.

    python benchmarks/coverage.py [DATASETS [IMAGES [RESAMPLES]]]
    python benchmarks/coverage.py fractions [DATASETS]  fractions of few clusters, by the degrees of freedom
    python benchmarks/coverage.py numbers [DATASETS]    numbers and grades
    python benchmarks/coverage.py predictions [RUNS]    90% prediction intervals of numbers
    python benchmarks/coverage.py differences [DATASETS]  differences of two models

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
from convnext_cli.metrics.calculator import Calculator, Floats
from convnext_cli.metrics.comparison import compare
from convnext_cli.metrics.formulas import ClassCalculator, log_softmax
from convnext_cli.metrics.intervals import Intervals, compute_intervals, number_units, resample
from convnext_cli.metrics.ordinal import OrdinalCalculator
from convnext_cli.metrics.regression import RegressionCalculator
from convnext_cli.metrics.scaling import fit_margin
from convnext_cli.tasks.ordinal import Ordinal
from convnext_cli.tasks.regression import COVERAGE

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


KINDS = ("plain", "groups", "skewed")


def draw_noise(random: np.random.Generator, images: int, kind: str) -> tuple[Callable[[], Floats], NDArray[np.int64]]:
    """Return a source of noise with a standard deviation of 1, and each image's group.

    In `groups`, these have 1 to about 40 images, half of the variance in common, and most of them are small.
    """
    units = np.arange(images)
    if kind == "groups":
        sizes = np.maximum(1, np.exp(random.normal(0.5, 1.2, images))).astype(np.int64)
        units = np.repeat(np.arange(images), sizes)[:images]

    def draw_normal() -> Floats:
        own = random.normal(size=images)
        return np.sqrt(0.5) * (own + random.normal(size=images)[units]) if kind == "groups" else own

    return draw_normal, units


def draw_numbers(random: np.random.Generator, images: int, kind: str) -> tuple[Calculator, NDArray[np.int64]]:
    """Draw numbers with normal errors, or, `skewed`, log-normal ones with errors in proportion to them."""
    draw_normal, units = draw_noise(random, images, kind)
    targets, errors = (draw_normal().astype(np.float64) for _ in range(2))
    errors = 0.6 * errors
    if kind == "skewed":
        targets = np.exp(targets)
        errors = errors * targets
    return RegressionCalculator(targets + errors + 0.1, targets, np.abs(errors) < 1), units


def draw_grades(random: np.random.Generator, images: int, kind: str) -> tuple[Calculator, NDArray[np.int64]]:
    """Draw four grades, the highest with a tenth of the images, of which a normal measurement tells some apart."""
    draw_normal, units = draw_noise(random, images, kind)
    fractions = np.array([0.4, 0.3, 0.2, 0.1])
    labels = random.choice(4, images, p=fractions)[units]
    measured = labels + 0.8 * draw_normal()
    logits = np.log(fractions) - (measured[:, None] - np.arange(4)) ** 2 / (2 * 0.8**2)
    return OrdinalCalculator(logits, labels, Ordinal().decide(np.exp(log_softmax(logits)), None)), units


def cover_numbers(datasets: int, images: int, kind: str) -> dict[str, float]:
    """Return the coverage of each metric of numbers and, unless `skewed`, of grades."""
    result: dict[str, float] = {}
    for draw_set in (draw_numbers, *([draw_grades] if kind != "skewed" else [])):
        true = draw_set(np.random.default_rng(10**9), 400_000, kind)[0].compute(np.ones((1, 400_000)))[0]
        keys = list(true)[: 3 if draw_set is draw_grades else None]  # others are those of classes
        covered: dict[str, list[bool]] = {key: [] for key in keys}
        for seed in range(datasets):
            calculator, units = draw_set(np.random.default_rng(seed), images, kind)
            groups = [str(unit) for unit in units] if kind == "groups" else None
            overall = compute_intervals(calculator, groups, seed=seed, resamples=400).overall
            for key in keys:
                interval = overall[key]
                covered[key].append(interval is not None and interval.low <= true[key][0] <= interval.high)
        result |= {key: float(np.mean(hits)) for key, hits in covered.items()}
    return result


def show_numbers(datasets: int) -> None:
    """Print a row for each metric of numbers and grades: coverage of 30 and 150 images of each kind."""
    settings = [(images, kind) for kind in KINDS for images in (30, 150)]
    with ProcessPoolExecutor() as pool:
        columns = list(pool.map(partial(cover_numbers, datasets), *zip(*settings, strict=True)))
    print(f"{datasets} data sets a setting, 400 resamples; coverage in %")
    print(f"{'metric':16}" + "".join(f"{f'{kind}, {images}':>14}" for images, kind in settings))
    for key in columns[0]:
        cells = (f"{100 * column[key]:.1f}" if key in column else "-" for column in columns)
        print(f"{key:16}" + "".join(f"{cell:>14}" for cell in cells))


def cover_predictions(images: int, kind: str, epochs: int, run: int) -> float:
    """Return the coverage of one run's prediction intervals on 20,000 new images.

    Of epochs whose errors have nine tenths of their variance in common, the one with the smallest mean absolute error
    on the validation images is kept, and its margin fitted on the same images.
    """
    random = np.random.default_rng(run)
    draw_normal, units = draw_noise(random, images, kind)
    common = draw_normal()
    errors = [np.abs(np.sqrt(0.9) * common + np.sqrt(0.1) * draw_normal()) for _ in range(epochs)]
    kept = min(errors, key=lambda values: float(values.mean()))
    margin = fit_margin(kept, [str(unit) for unit in units] if kind == "groups" else None, COVERAGE)
    new, _ = draw_noise(random, 20_000, kind)
    return float((np.abs(new()) <= margin).mean())


def show_predictions(runs: int) -> None:
    """Print the mean and the 5% to 95% range of the coverage over runs, by number of validation images and epochs."""
    print(f"{runs} runs a setting; coverage of 90% prediction intervals in %, mean (5% to 95% of the runs)")
    settings = [(kind, epochs) for kind in KINDS[:2] for epochs in (1, 30)]
    heads = (f"{kind}, {epochs} epoch{'s' * (epochs > 1)}" for kind, epochs in settings)
    print(f"{'images':>8}" + "".join(f"{head:>22}" for head in heads))
    for images in (50, 100, 200, 1000):
        cells = []
        for kind, epochs in settings:
            with ProcessPoolExecutor() as pool:
                task = partial(cover_predictions, images, kind, epochs)
                covered = 100 * np.array(list(pool.map(task, range(runs), chunksize=20)))
            low, high = np.quantile(covered, (0.05, 0.95))
            cells.append(f"{covered.mean():.1f} ({low:.0f} to {high:.0f})")
        print(f"{images:>8}" + "".join(f"{cell:>22}" for cell in cells), flush=True)


PAIRS = {  # the class, and the number of images, of each group
    "60, 60, 60 images": ([0, 1, 2] * 60, [1] * 180),
    "60, 60, 3 images": ([0, 1] * 60 + [2] * 3, [1] * 123),
    "100 groups of 6": ([0, 1, 2, 0] * 25, [6] * 100),
    "40 and 19 x 2": ([0, 1] * 10, [40] + [2] * 19),
}


def draw_pair(name: str, copies: int, seed: int) -> tuple[ClassCalculator, ClassCalculator, list[str]]:
    """Draw two models on the same images, the second one less accurate and over-confident, and each image's group."""
    random = np.random.default_rng(seed)
    classes, sizes = (np.tile(values, copies) for values in PAIRS[name])
    units = np.repeat(np.arange(len(sizes)), sizes)
    labels = classes[units]
    shape = len(labels), int(labels.max()) + 1
    common = random.normal(size=(len(sizes), shape[1]))[units]
    models = []
    for strength, scale in ((2.0, 1.5), (1.5, 2.5)):
        logits = np.sqrt(0.5) * (common + random.normal(size=shape))
        logits[np.arange(shape[0]), labels] += strength
        models.append(ClassCalculator(scale * logits, labels))
    return models[0], models[1], [str(unit) for unit in units]


def cover_differences(datasets: int, name: str) -> dict[str, float]:
    """Return the coverage of the CI of each difference."""
    first, second, _ = draw_pair(name, 300_000 // sum(PAIRS[name][1]), seed=10**9)
    before, after = (model.compute(np.ones((1, model.images)))[0] for model in (first, second))
    covered = dict.fromkeys(before, 0)
    for seed in range(datasets):
        first, second, groups = draw_pair(name, 1, seed)
        with mock.patch.object(intervals, "RESAMPLES", 400):
            result = compare(first, second, None if max(PAIRS[name][1]) == 1 else groups)
        for key, difference in result.differences.items():
            interval, true = difference.interval if difference else None, float(after[key][0] - before[key][0])
            covered[key] += interval is not None and interval.low <= true <= interval.high
    return {key: number / datasets for key, number in covered.items()}


def show_differences(datasets: int) -> None:
    """Print a row for each metric: coverage of the CI of the difference of two models."""
    with ProcessPoolExecutor() as pool:
        columns = list(pool.map(partial(cover_differences, datasets), PAIRS))
    print(f"{datasets} data sets a setting, 400 resamples; coverage in %")
    print(f"{'difference of':20}" + "".join(f"{name:>20}" for name in PAIRS))
    for key in columns[0]:
        print(f"{key:20}" + "".join(f"{100 * column[key]:>20.1f}" for column in columns))


def main(words: Sequence[str]) -> None:
    """Print the table."""
    if words and words[0] == "differences":
        show_differences(int(words[1]) if len(words) > 1 else 1000)
        return
    if words and words[0] == "predictions":
        show_predictions(int(words[1]) if len(words) > 1 else 1000)
        return
    if words and words[0] == "fractions":
        show_fractions(int(words[1]) if len(words) > 1 else 800)
        return
    if words and words[0] == "numbers":
        show_numbers(int(words[1]) if len(words) > 1 else 1000)
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
