"""Whether one model is better than another on the same images: a paired bootstrap, and McNemar's test."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.formulas import OVERALL, Floats, Ints, MetricCalculator
from convnext_cli.metrics.intervals import Interval, choose_resamples, number_units, resample, t_quantile


@dataclass(frozen=True, slots=True)
class Difference:
    """The second model's figure minus the first's, with its 95% interval."""

    value: float
    interval: Interval


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Two models on the same images."""

    differences: dict[str, Difference | None]
    """By the names of `Metrics`; None where a figure is not defined."""
    only_first_right: int
    only_second_right: int
    p_value: float
    """McNemar's: how often a difference in accuracy this large would come from chance alone."""
    clustered: bool


def compare(first: Floats, second: Floats, labels: Ints, groups: Sequence[str] | None = None) -> Comparison:
    """Compares two models image by image.

    Args:
        first: (N, K) logits.
        second: (N, K) logits of the same images and classes.
        labels: (N,) true classes.
        groups: (N,) names; images of the same group are not independent.
    """
    models = (MetricCalculator(first, labels), MetricCalculator(second, labels))
    units = number_units(len(labels), groups)

    def differences(weights: Floats) -> Floats:
        mine, its = (model.compute(weights)[0] for model in models)
        return np.stack([its[name] - mine[name] for name in OVERALL], axis=1)

    replicates = np.concatenate(resample(differences, units, choose_resamples(2 * first.size), seed=0))
    point = differences(np.ones((1, len(labels))))[0]
    num = int(units.max()) + 1
    right = [model.predictions == model.labels for model in models]
    gain = right[1].astype(np.int64) - right[0]
    return Comparison(
        differences={name: _difference(point[i], replicates[:, i], num) for i, name in enumerate(OVERALL)},
        only_first_right=int((gain < 0).sum()),
        only_second_right=int((gain > 0).sum()),
        p_value=_test_clusters(np.bincount(units, gain).astype(np.float64))
        if groups is not None
        else _test_images(gain),
        clustered=groups is not None,
    )


def _difference(value: float, replicates: Floats, units: int) -> Difference | None:
    defined = replicates[~np.isnan(replicates)]
    if np.isnan(value) or len(defined) < 2 or units < 2:
        return None
    half = t_quantile(units - 1) * math.sqrt(float(defined.var(dtype=np.float64)) * units / (units - 1))
    return Difference(float(value), Interval(float(value - half), float(value + half)))


def _test_images(gain: Ints) -> float:
    """McNemar's test (1947), exact: the discordant images as tosses of a fair coin, both sides."""
    up, down = int((gain > 0).sum()), int((gain < 0).sum())
    tosses, least = up + down, min(up, down)
    log_half = tosses * math.log(2)
    terms = (math.lgamma(tosses + 1) - math.lgamma(i + 1) - math.lgamma(tosses - i + 1) for i in range(least + 1))
    return min(1.0, 2 * sum(math.exp(term - log_half) for term in terms))


def _test_clusters(gains: NDArray[np.float64]) -> float:
    """McNemar's test for clusters: (sum of gains)^2 / sum of squares is chi-squared with one degree of freedom.

    Source: Durkalski et al. 2003, Statistics in Medicine 22, 2417, with weights by size; with clusters of one image it
    is McNemar's own statistic.
    """
    squares = float((gains**2).sum())
    return math.erfc(math.sqrt(float(gains.sum()) ** 2 / squares / 2)) if squares else 1.0
