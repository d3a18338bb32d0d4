"""How often a 95% interval holds the true figure: simulated data sets, plain and clustered, percentile and ours.

    python benchmarks/coverage.py [DATASETS [IMAGES [RESAMPLES]]]

Each data set is drawn from a model of a classifier: class k's own logit is raised by a strength, noise is normal, and
in clustered data the images of one patient share their class and part of their noise. The truth is the figure of
1,000,000 images (of 200,000 patients). A share of 2,000 data sets is itself known to 1 point (twice 0.49).
"""

import sys
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.evaluation.figures import OVERALL, Figures, Floats
from convnext_cli.evaluation.intervals import compute_intervals, number_units, resample

SHARES = (0.5, 0.25, 0.15, 0.10)  # of the classes; of 600 images the rarest has 60


@dataclass(frozen=True, slots=True)
class Scenario:
    """How data sets are drawn."""

    name: str
    strength: float
    """How far the true class's logit is raised, in standard deviations of the noise."""
    per_patient: int
    """Images of one patient on average; 1 is plain."""
    shared: float
    """The share of the noise's variance that a patient's images have in common."""


SCENARIOS = (
    Scenario("plain", 2.0, 1, 0.0),
    Scenario("plain, near 100%", 3.5, 1, 0.0),
    Scenario("clustered", 2.0, 5, 0.5),
)


def draw(scenario: Scenario, images: int, seed: int) -> tuple[NDArray[np.float64], NDArray[np.int64], list[str]]:
    """One data set: logits (N, K), labels (N,), and each image's patient."""
    random = np.random.default_rng(seed)
    sizes = np.ones(images, np.int64)
    if scenario.per_patient > 1:
        sizes = random.integers(1, 2 * scenario.per_patient, images // scenario.per_patient)
    patients = np.repeat(np.arange(len(sizes)), sizes)
    labels = random.choice(len(SHARES), len(sizes), p=SHARES)[patients]
    common = random.normal(size=(len(sizes), len(SHARES)))[patients]
    own = random.normal(size=(len(labels), len(SHARES)))
    logits = np.sqrt(scenario.shared) * common + np.sqrt(1 - scenario.shared) * own
    logits[np.arange(len(labels)), labels] += scenario.strength
    return logits, labels, [str(patient) for patient in patients]


def flatten(overall: dict[str, Floats], per_class: dict[str, Floats]) -> Floats:
    """All overall figures and those of the rarest class, (C, figures)."""
    return np.stack([*overall.values(), *(values[:, -1] for values in per_class.values())], axis=1)


def truth(scenario: Scenario, images: int) -> Floats:
    """The figures of a very large data set."""
    logits, labels, _ = draw(scenario, images, seed=10**9)
    figures: Floats = flatten(*Figures(logits, labels).compute(np.ones((1, len(labels)))))[0]
    return figures


def cover(scenario: Scenario, images: int, resamples: int, true: Floats, seed: int) -> NDArray[np.float64]:
    """Whether each figure's interval of one data set holds the truth (2, figures): percentile, ours."""
    logits, labels, patients = draw(scenario, images, seed)
    groups = patients if scenario.per_patient > 1 else None
    figures = Figures(logits, labels)
    chunks = resample(lambda w: flatten(*figures.compute(w)), number_units(len(labels), groups), resamples, seed=seed)
    low, high = np.nanpercentile(np.concatenate(chunks), (2.5, 97.5), axis=0)
    ours = compute_intervals(logits, labels, groups, seed=seed, resamples=resamples)
    ends = [*ours.overall.values(), *ours.per_class[-1].values()]
    held = [e is not None and e.low <= t <= e.high for e, t in zip(ends, true, strict=True)]
    return np.stack([(low <= true) & (true <= high), np.array(held)]).astype(np.float64)


def measure(
    scenario: Scenario, datasets: int, images: int, resamples: int, *, truth_images: int, spread: Callable[..., Any]
) -> NDArray[np.float64]:
    """The share of data sets whose interval holds the truth, (2, figures). `spread` is `map`, or a pool's."""
    true = truth(scenario, truth_images)
    held = list(spread(partial(cover, scenario, images, resamples, true), range(datasets)))
    share: NDArray[np.float64] = np.mean(held, axis=0)
    return share


def main(words: Sequence[str]) -> None:
    """Prints the table."""
    datasets, images, resamples = ([int(word) for word in words] + [2000, 600, 400][len(words) :])[:3]
    with ProcessPoolExecutor() as pool:
        spread = partial(pool.map, chunksize=20)
        found = [
            measure(scenario, datasets, images, resamples, truth_images=1_000_000, spread=spread)
            for scenario in SCENARIOS
        ]
    names = [*OVERALL, *(f"{name} of the rarest" for name in ("precision", "recall", "specificity", "F1", "ROC", "PR"))]
    print(f"{datasets} data sets of {images} images, {resamples} resamples; % of intervals that hold the truth")
    print(f"{'':26}" + "".join(f"{scenario.name:>26}" for scenario in SCENARIOS))
    print(f"{'figure':26}" + f"{'percentile':>16}{'ours':>10}" * len(SCENARIOS))
    for i, name in enumerate(names):
        print(f"{name:26}" + "".join(f"{100 * both[0, i]:16.1f}{100 * both[1, i]:10.1f}" for both in found))


if __name__ == "__main__":
    main(sys.argv[1:])
