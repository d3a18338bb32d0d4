"""False alarms and power of the subgroup test on simulated evaluations.

    python -m benchmarks.subgroups alarms [RUNS [SCENARIO…]]
    python -m benchmarks.subgroups power [RUNS]

A false alarm is a run without any gap in which one Holm-corrected p value or more is below 0.05. Each run has two
attributes: sex (two values) and site (four values, with 45, 30, 20 and 5% of the patients). Outputs are drawn from a
model of a classifier: the true class's logit is raised by a strength, noise is normal, and images of one patient have
their target and half of the noise variance in common.
"""

import sys
from collections import defaultdict
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor
from dataclasses import dataclass
from functools import partial
from types import SimpleNamespace
from typing import Any
from unittest import mock

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.attributes import Attribute
from convnext_cli.inference.evaluated_images import EvaluatedImages
from convnext_cli.inference.subgroups import SubgroupEvaluation, measure_subgroups
from convnext_cli.metrics.intervals import score_interval
from convnext_cli.progress import finish
from convnext_cli.tasks.multilabel import Multilabel
from convnext_cli.tasks.ordinal import Ordinal
from convnext_cli.tasks.regression import Regression
from convnext_cli.tasks.single import Single
from convnext_cli.tasks.task import Task

SITES = (0.45, 0.30, 0.20, 0.05)
SHARED = 0.5
Ints = NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, slots=True)
class Scenario:
    """Parameters of simulated evaluations."""

    name: str
    images: int = 300
    classes: int = 2
    task: Task = Single()  # noqa: RUF009  (frozen)
    strength: float = 2.0
    per_patient: int = 1
    """Mean number of images of one patient."""
    has_uneven_sites: bool = False
    """True if patients of the first two sites have one image, and others `per_patient`."""
    prevalence: tuple[float, float] = (0.5, 0.5)
    """Of the last class, for either sex."""
    gap: float = 0.0
    """Reduction of the strength for women."""
    women: float = 0.5
    """Fraction of the patients."""


SCENARIOS = (
    Scenario(name="plain"),
    Scenario(name="plain, near 100%", strength=4.0),
    Scenario(name="60 images", images=60),
    Scenario(name="clustered", per_patient=5, images=500),
    Scenario(name="clustered, uneven sites", per_patient=5, images=500, has_uneven_sites=True),
    Scenario(name="clustered, other prevalence", per_patient=3, images=450, prevalence=(0.2, 0.6)),
    Scenario(name="four classes, clustered", classes=4, per_patient=3),
    Scenario(name="three labels, clustered", classes=3, per_patient=3, task=Multilabel()),
    Scenario(name="five grades, clustered", classes=5, per_patient=3, task=Ordinal()),
    Scenario(name="a number, clustered", classes=1, per_patient=3, task=Regression()),
)


def draw(scenario: Scenario, seed: int) -> tuple[EvaluatedImages, list[Attribute]]:
    """Draw an evaluation with the sex and the site of each image."""
    random = np.random.default_rng(seed)
    sexes: Ints = (random.random(scenario.images) < scenario.women).astype(np.int64)  # of more patients than there are
    sites = random.choice(len(SITES), scenario.images, p=SITES)
    sizes = np.ones(scenario.images, np.int64)
    if scenario.per_patient > 1:
        sizes = random.integers(1, 2 * scenario.per_patient, scenario.images)
    if scenario.has_uneven_sites:
        sizes[sites < 2] = 1
    patients = np.repeat(np.arange(scenario.images), sizes)[: scenario.images]
    sex, site = sexes[patients], sites[patients]
    strength = (scenario.strength - scenario.gap * sex)[:, None]
    noise = np.sqrt(SHARED) * random.normal(size=(scenario.images, scenario.classes))[patients] + np.sqrt(
        1 - SHARED
    ) * random.normal(size=(scenario.images, scenario.classes))
    if scenario.classes == 2:
        rate = np.array(scenario.prevalence)[sexes]
        targets: NDArray[Any] = (random.random(scenario.images) < rate).astype(np.int64)[patients]
    else:
        targets = random.integers(scenario.classes, size=scenario.images)[patients]
    logits = noise
    if isinstance(scenario.task, Regression):
        targets = random.normal(size=scenario.images)[patients]
        logits = targets[:, None] + noise / strength
    elif isinstance(scenario.task, Multilabel):
        targets = (random.random((scenario.images, scenario.classes)) < (0.5, 0.3, 0.1)).astype(np.float32)[patients]
        logits = strength * (targets - 0.5) + noise
    else:
        logits[np.arange(scenario.images), targets] += strength[:, 0]
    images = EvaluatedImages(
        task=scenario.task,
        classes=tuple(map(str, range(scenario.classes))),
        logits=logits,
        targets=targets,
        groups=[str(patient) for patient in patients] if scenario.per_patient > 1 else None,
    )
    names = (("sex", tuple("MF"[value] for value in sex)), ("site", tuple("ABCD"[value] for value in site)))
    return images, [
        Attribute(name=name, source="", values=values, levels=tuple(sorted(set(values)))) for name, values in names
    ]


def evaluate(scenario: Scenario, seed: int) -> SubgroupEvaluation:
    """Return the subgroups of one run, without intervals, which take most of the time."""
    empty: Any = defaultdict(lambda: None)
    none = SimpleNamespace(overall=empty, per_class=[empty] * 10)
    with mock.patch.object(EvaluatedImages, "compute_intervals", return_value=none):
        return finish(measure_subgroups(*draw(scenario, seed)))


def has_alarm(scenario: Scenario, seed: int) -> bool:
    """Return True if any gap is significant."""
    return bool(evaluate(scenario, seed).list_significant())


def finds_gap(scenario: Scenario, seed: int) -> tuple[bool, bool]:
    """Return whether a gap of the sexes is significant, and whether one of the sites is, which have none."""
    names = {name for name, _, _ in evaluate(scenario, seed).list_significant()}
    return "sex" in names, "site" in names


def count(function: Callable[[int], Any], runs: int) -> NDArray[np.float64]:
    """Return the fraction of runs for which a function is true, for each of its results."""
    with ProcessPoolExecutor(2) as pool:
        results = np.array(list(pool.map(function, range(runs), chunksize=10)), np.float64)
    rates: NDArray[np.float64] = results.mean(axis=0)
    return rates


def describe(rate: float, runs: int) -> str:
    """Return a rate with its 95% CI, in percent."""
    interval = score_interval(rate, rate * (1 - rate) / runs, runs)
    return f"{100 * rate:5.1f}  [{100 * interval.low:.1f}, {100 * interval.high:.1f}]"


def show_alarms(runs: int, names: list[str]) -> None:
    """Print the rate of false alarms in each scenario."""
    print(f"{'no gap':28}  images  tests  false alarms %  95% CI   (n = {runs:,})")
    for scenario in SCENARIOS:
        if names and scenario.name not in names:
            continue
        tests = evaluate(scenario, 0).tests
        rate = float(count(partial(has_alarm, scenario), runs))
        print(f"{scenario.name:28}  {scenario.images:6}  {tests:5}  {describe(rate, runs)}", flush=True)


def show_power(runs: int) -> None:
    """Print how often a planted gap is found, by its size and the number of images."""
    print(f"{'women: sensitivity':20}  images  power %  95% CI    sites % (no gap)   (n = {runs:,})")
    for gap, images in ((0.6, 200), (0.6, 400), (0.6, 800), (1.0, 200), (1.0, 400)):
        scenario = Scenario(name="", images=images, per_patient=2, gap=gap, women=0.4)
        large = draw(Scenario(name="", images=200_000, per_patient=2, gap=gap, women=0.4), 0)
        inside = np.array(large[1][0].values) == "F"
        hits = large[0].logits.argmax(axis=1) == 1
        both = (hits[part & (large[0].targets == 1)].mean() for part in (inside, ~inside))
        title = "{:.1%}, men {:.1%}".format(*both)
        power, sites = count(partial(finds_gap, scenario), runs)
        print(f"{title:20}  {images:6}  {describe(power, runs)}  {100 * sites:5.1f}", flush=True)


if __name__ == "__main__":
    kind, *rest = sys.argv[1:] or ["alarms"]
    if kind == "power":
        show_power(int(rest[0]) if rest else 200)
    else:
        show_alarms(int(rest[0]) if rest else 1000, rest[1:])
