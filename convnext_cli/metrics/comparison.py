"""Comparison of two models on the same images: a paired bootstrap, and McNemar's test."""

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Calculator, Floats, Ints
from convnext_cli.metrics.intervals import (
    MIN_UNITS,
    Interval,
    choose_resamples,
    count_class_units,
    number_units,
    resample,
    select_averaged,
    t_quantile,
)
from convnext_cli.metrics.registry import METRICS


@dataclass(frozen=True, slots=True)
class Difference:
    """The second model's metric minus the first's, with its 95% CI."""

    value: float
    interval: Interval | None
    """None where all resamples have the same difference: they do not say how large it may be."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Comparison:
    """Differences between two models on the same images."""

    differences: dict[str, Difference | None]
    """By the keys of `Metrics`; None where a metric is not defined."""
    only_first_right: int | None
    """Images that only the first model predicts correctly; None where no image is simply right or wrong."""
    only_second_right: int | None
    """Images that only the second model predicts correctly."""
    p_value: float | None
    """Of McNemar's test for equal accuracy."""
    clustered: bool
    """True if groups were resampled, not single images."""
    notes: tuple[str, ...] = ()
    """Notes of both evaluations, each after the path of its run."""

    def describe(self, keys: Iterable[str]) -> str:
        """Return the differences of these metrics with their 95% CIs, without those that are not defined."""
        known = ((METRICS[key], difference) for key in keys if (difference := self.differences.get(key)))
        return "; ".join(f"{metric.title} {metric.format_difference(difference)}" for metric, difference in known)


def compare(
    first: Calculator, second: Calculator, groups: Sequence[str] | None = None, order: Sequence[int] | None = None
) -> Comparison:
    """Compare two models image by image.

    The second model predicts the same images and targets. Images of the same group are not independent.

    `order` has the place of each class of the first model among those of the second; None where it is the same.

    Returns:
        The differences, the second model minus the first.
    """
    units = number_units(first.images, groups)
    models = (first, slice(None)), (second, slice(None) if order is None else np.array(order))

    def differences(weights: Floats) -> Floats:
        before, after = (model.compute(weights)[0] for model in (first, second))
        return np.stack([after[name] - before[name] for name in first.overall], axis=1)

    resamples = choose_resamples(2 * first.images * max(1, first.num_classes))
    replicates = np.concatenate(resample(differences, units, resamples, seed=0))
    point = differences(np.ones((1, first.images)))[0]
    num = len(np.unique(units[first.select_counted()]))
    discordant: dict[str, Any] = {"only_first_right": None, "only_second_right": None, "p_value": None}
    if first.correct is not None and second.correct is not None:
        gain = second.correct.astype(np.int64) - first.correct
        discordant = {"only_first_right": int((gain < 0).sum()), "only_second_right": int((gain > 0).sum())}
        by_unit = np.bincount(units, gain).astype(np.float64)
        discordant["p_value"] = _test_images(gain) if groups is None else _test_clusters(by_unit)
    return Comparison(
        differences={
            name: _difference(point[i], replicates[:, i], num, _list_unknown(models, name, units))
            for i, name in enumerate(first.overall)
        },
        **discordant,
        clustered=groups is not None,
    )


def _difference(value: float, replicates: Floats, units: int, unknown: Floats) -> Difference | None:
    """Return a difference with its CI from the bootstrap variance and Student's t; None where it is not defined.

    Args:
        value: of the difference.
        replicates: (R,).
        units: number of images or groups that were resampled.
        unknown: (U, 2) distances down and up that it may be off by because of single classes.
    """
    defined = replicates[~np.isnan(replicates)]
    if np.isnan(value) or len(defined) < 2 or units < 2:
        return None
    half = t_quantile(units - 1) * math.sqrt(float(defined.var(dtype=np.float64)) * units / (units - 1))
    if not half:
        return Difference(float(value), None)
    down, up = (math.hypot(half, *column) for column in unknown.T)
    return Difference(float(value), Interval(float(value - down), float(value + up)))


def _list_unknown(models: Iterable[tuple[Calculator, slice | Ints]], name: str, units: Ints) -> Floats:
    """Return how far the difference of an average over classes may be off, down and up, (U, 2), one row a class.

    The difference of a class with a single image or group has no variance: it can be any from -1 to 1.

    `models` are two, each with the places of its classes in a common order.
    """
    key = METRICS[name].average_of
    if key is None:
        return np.empty((0, 2))
    values, fewest = [], []
    for model, places in models:
        of_model = np.full(model.num_classes, np.nan)
        of_model[model.present] = select_averaged(name, model.compute(np.ones((1, model.images)))[1][key], model)[0]
        values.append(of_model[places])
        fewest.append(np.array(count_class_units(model, units)[key])[places])
    gaps = values[1] - values[0]
    defined = ~np.isnan(gaps)
    single = gaps[defined & (np.min(fewest, axis=0) < MIN_UNITS)]
    distances: Floats = np.stack([1 + single, 1 - single], axis=1) / max(1, defined.sum())
    return distances


def _test_images(gain: Ints) -> float:
    """Return the two-sided p value of McNemar's exact test (1947): a binomial test of the discordant images."""
    from scipy.stats import binomtest  # half a second to import

    discordant = int((gain != 0).sum())
    return float(binomtest(int((gain > 0).sum()), discordant).pvalue) if discordant else 1.0


def _test_clusters(gains: NDArray[np.float64]) -> float:
    """Return the p value of McNemar's test for clustered images.

    (Sum of gains)^2 / sum of squares is chi-squared with one degree of freedom. Source: Durkalski et al. 2003,
    Statistics in Medicine 22, 2417, weighted by cluster size. With clusters of one image it is McNemar's statistic.

    Args:
        gains: net gain of each cluster.
    """
    squares = float((gains**2).sum())
    return math.erfc(math.sqrt(float(gains.sum()) ** 2 / squares / 2)) if squares else 1.0
