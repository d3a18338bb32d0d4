"""Check the stated confidence that a target is met, on simulated pairs of validation and test sets.

    python -m benchmarks.targets [PAIRS [PROCESSES]]

Positive scores are normal; images of one patient share a part of their variance. In the scenario "hard patients", 8% of
the patients have scores 3 standard deviations lower, so that the missed images are those of few patients. The true
sensitivity or PPV of a threshold follows from the distribution. A pair is one validation set, on which a threshold for
a target is chosen, and one test set of the same size, on which a threshold is measured.

"holds": of the thresholds chosen with `@confidence=C`, the percentage whose true value reaches the target, to be at
least C; "found": the percentage of validation sets that have such a threshold. "alarms": the percentage of test sets
that state a confidence of at least C for a threshold whose true value is only just the target, to be at most 1 - C; it
is lower where the true value is. Methods: `groups`, ours, counts each patient as one image;
`images` counts each image; `ratio` takes the design effect of the missed images (Korn and Graubard 1998).
"""

import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from itertools import product
from statistics import NormalDist

import numpy as np
from msgspec.structs import replace
from numpy.typing import NDArray
from scipy.optimize import brentq
from scipy.special import ndtr

from convnext_cli.metrics.confidence import Rate, measure_confidence
from convnext_cli.metrics.decision import apply_ratio
from convnext_cli.metrics.intervals import number_units
from convnext_cli.metrics.thresholds import Target, Threshold, apply_threshold, find_threshold

HARD = 0.08  # fraction of hard patients
SHIFT = 3.0  # standard deviations that their scores are lower
NORMAL = NormalDist()


@dataclass(frozen=True, slots=True)
class Scenario:
    """Parameters of simulated sets."""

    name: str
    patients: int
    """Of the class, and as many without it."""
    per_patient: int
    """Mean number of images of one patient."""
    shared: float
    """Fraction of the variance that images of one patient have in common."""
    hard: float = 0.0
    """Fraction of hard patients."""

    def measure(self, target: Target, threshold: float) -> float:
        """Return the true sensitivity or PPV of a threshold on the scores, which are between 0 and 1."""
        z = NORMAL.inv_cdf(min(max(threshold, 1e-12), 1 - 1e-12))
        sensitivity = (1 - self.hard) * (1 - NORMAL.cdf(z - 1)) + self.hard * (1 - NORMAL.cdf(z - 1 + SHIFT))
        if target.prevalence is None:
            return sensitivity
        return apply_ratio(sensitivity / (1 - NORMAL.cdf(z + 1)), target.prevalence)

    def find_edge(self, target: Target) -> float:
        """Return the threshold whose true value is that of the target."""
        return float(brentq(lambda threshold: self.measure(target, threshold) - target.value, 1e-6, 1 - 1e-6))


SCENARIOS = (
    Scenario("independent, 60 images", 60, 1, 0.0),
    Scenario("independent, 300 images", 300, 1, 0.0),
    Scenario("60 patients, 5 images each", 60, 5, 0.5),
    Scenario("120 patients, 5 images each", 120, 5, 0.5),
    Scenario("120 patients, alike images", 120, 5, 0.8),
    Scenario("120 patients, some hard", 120, 5, 0.2, HARD),
    Scenario("200 patients, 10 each, some hard", 200, 10, 0.2, HARD),
)
LEVELS = (0.75, 0.9)
TARGETS = (
    Target("sensitivity", 0.9, "b"),
    Target("sensitivity", 0.95, "b"),
    Target("ppv", 0.3, "b", prevalence=0.05),
)
CASES = (*product(SCENARIOS, TARGETS[:2]), *product(SCENARIOS[1::2], TARGETS[2:]))


def draw(
    scenario: Scenario, random: np.random.Generator
) -> tuple[NDArray[np.float64], NDArray[np.bool_], list[str] | None]:
    """Draw a set: scores (N,) from 0 to 1, which images are of the class (N,), and each image's patient."""
    total = 2 * scenario.patients
    sizes = np.ones(total, np.int64)
    if scenario.per_patient > 1:
        sizes = random.integers(1, 2 * scenario.per_patient, total)
    patients = np.repeat(np.arange(total), sizes)
    positive = patients < scenario.patients
    common, own = random.normal(size=total)[patients], random.normal(size=len(patients))
    z = np.sqrt(scenario.shared) * common + np.sqrt(1 - scenario.shared) * own
    is_hard = (random.random(total) < scenario.hard)[patients]
    z += np.where(positive, 1 - SHIFT * is_hard, -1)
    return ndtr(z), positive, [str(patient) for patient in patients] if scenario.per_patient > 1 else None


def state_ratio(hits: NDArray[np.bool_], groups: list[str], bound: float) -> float:
    """Return the confidence with the effective number of images that the variance between patients gives."""
    units = number_units(len(hits), groups)
    sizes, right = np.bincount(units), np.bincount(units, hits)
    fraction, number = hits.mean(), int((sizes > 0).sum())
    variance = ((right - fraction * sizes) ** 2).sum() / len(hits) ** 2 * number / (number - 1)
    effective = fraction * (1 - fraction) / variance if 0 < fraction < 1 else number
    rate = Rate(np.array([fraction]), float(min(effective, len(hits))))
    return float(measure_confidence("sensitivity", bound, rate, rate, 0.5)[0])


def simulate(scenario: Scenario, target: Target, seed: int) -> dict[str, float | None]:
    """Return, for one pair, the true value of each chosen threshold and the confidence that the test states."""
    random = np.random.default_rng((seed, scenario.patients, int(100 * target.value)))
    validation, test = draw(scenario, random), draw(scenario, random)
    result: dict[str, float | None] = {}
    for level in LEVELS:
        asked = replace(target, confidence=level)
        for method, groups in (("groups", validation[2]), ("images", None)):
            threshold = find_threshold(validation[0], validation[1], asked, groups)
            true = None if threshold.unreachable else scenario.measure(target, threshold.threshold)
            result[f"{method} {level}"] = true
    edge = Threshold(target=target, threshold=scenario.find_edge(target), reached=target.value, images=0)
    scores, positive, groups = test
    result["stated groups"] = apply_threshold(edge, scores, positive, groups).results[0].confidence
    result["stated images"] = apply_threshold(edge, scores, positive, None).results[0].confidence
    if groups is not None and target.metric == "sensitivity":
        names = [name for name, is_positive in zip(groups, positive, strict=True) if is_positive]
        result["stated ratio"] = state_ratio(scores[positive] >= edge.threshold, names, target.value)
    return result


def summarise(scenario: Scenario, target: Target, pairs: list[dict[str, float | None]]) -> Iterator[str]:
    """Yield the lines of one scenario and target."""
    methods = [name for name in ("groups", "images", "ratio") if f"stated {name}" in pairs[0]]
    methods = methods if scenario.per_patient > 1 else methods[:1]
    for method in methods:
        cells = []
        for level in LEVELS:
            chosen = [pair[f"{method} {level}"] for pair in pairs if pair.get(f"{method} {level}") is not None]
            holds = show_fraction([(true or 0) >= target.value for true in chosen])
            alarms = show_fraction([(pair[f"stated {method}"] or 0) >= level for pair in pairs])
            share = "-" if method == "ratio" else f"{100 * len(chosen) / len(pairs):.0f}"
            cells.append(f"{holds}  {share:>5}  {alarms}")
        yield f"{scenario.name:34}{target.metric:>11} {100 * target.value:.0f}  {method:7}{'   '.join(cells)}"


def show_fraction(hits: list[bool]) -> str:
    """Return the percentage of hits; a dash for none to count."""
    return f"{100 * np.mean(hits):6.1f}" if hits else "     -"


def main(pairs: int = 1000, processes: int = 1, *, show: Callable[[str], None] = print) -> None:
    """Print the table."""
    levels = (f"confidence {100 * level:.0f}%" for level in LEVELS)
    show(f"{'':56}{''.join(f'{level:24}' for level in levels)}")
    show(f"{'scenario':34}        target  method  {'    '.join([' holds  found  alarms'] * 2)}   (n = {pairs} pairs)")
    with ProcessPoolExecutor(processes) as pool:
        for scenario, target in CASES:
            results = list(pool.map(partial(simulate, scenario, target), range(pairs), chunksize=20))
            for line in summarise(scenario, target, results):
                show(line)


if __name__ == "__main__":
    main(*map(int, sys.argv[1:3]))
