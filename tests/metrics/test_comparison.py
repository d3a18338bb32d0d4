"""CIs of differences of two models are as wide as images, groups and small classes make them."""

import numpy as np
import pytest
from scipy.stats import norm, t

from benchmarks.coverage import cover_differences
from convnext_cli.metrics.comparison import Difference, compare
from convnext_cli.metrics.formulas import ClassCalculator
from convnext_cli.metrics.intervals import score_interval
from convnext_cli.metrics.regression import RegressionCalculator


def test_difference_of_averages_is_uncertain_by_a_small_class_that_both_models_decide_alike() -> None:
    random = np.random.default_rng(0)
    labels = np.repeat([0, 1, 2], [60, 60, 3])
    wrong = (random.random((2, len(labels))) < 0.2) & (labels < 2)
    first, second = (ClassCalculator(np.eye(3)[np.where(part, 1 - labels, labels)] * 4.0, labels) for part in wrong)
    difference = compare(first, second).differences["balanced_accuracy"]
    assert difference is not None
    assert difference.interval is not None
    reach = score_interval(0.0, 0.0, 3.0).high / 3  # of 0 of 3 images, in an average over 3 classes
    assert reach > 0.25
    distances = difference.value - difference.interval.low, difference.interval.high - difference.value
    assert min(distances) > reach
    assert max(distances) < 1.2 * reach, "the two large classes add little"


def test_difference_of_averages_is_widened_by_students_t_of_a_small_class() -> None:
    labels = np.repeat([0, 1], [400, 6])
    predicted = np.where(np.arange(406) < 404, labels, 0)  # two of six are wrong
    first, second = (ClassCalculator(4 * np.eye(2)[part], labels) for part in (labels, predicted))
    difference = compare(first, second).differences["balanced_accuracy"]
    assert difference is not None
    assert difference.interval is not None
    images = np.random.default_rng(0).binomial(406, 6 / 406, 100_000)  # of the class, in a resample
    std = float((np.random.default_rng(1).binomial(images, 1 / 3) / np.maximum(images, 1))[images > 0].std())
    wide, normal = t.ppf(0.975, 1.5 * 5), norm.ppf(0.975)
    parts = normal * std, std * np.sqrt(wide**2 * 6 / 5 - normal**2), score_interval(0.0, 0.0, 400).high
    assert difference.interval.high - difference.value == pytest.approx(np.hypot.reduce(parts) / 2, rel=0.04)


def test_difference_of_few_unequal_groups_has_their_effective_number() -> None:
    random = np.random.default_rng(0)
    sizes = np.array([40] + [2] * 19)  # as 3.6 groups of equal sizes
    units = np.repeat(np.arange(20), sizes)
    labels = random.integers(2, size=len(units))
    right = random.random((2, 20))[:, units] < 0.6
    first, second = (ClassCalculator(np.eye(2)[np.where(part, labels, 1 - labels)] * 4.0, labels) for part in right)
    groups = [str(unit) for unit in units]
    difference = compare(first, second, groups).differences["top1"]
    assert difference is not None
    assert difference.interval is not None
    gain = right[1].astype(float) - right[0]
    sums = np.bincount(units, gain)
    drawn = random.integers(20, size=(4000, 20))
    variance = (sums[drawn].sum(axis=1) / sizes[drawn].sum(axis=1)).var()
    effective = sizes.sum() ** 2 / (sizes**2).sum()
    half = t.ppf(0.975, effective - 1) * np.sqrt(variance * effective / (effective - 1))
    assert difference.interval.high - difference.value == pytest.approx(half, rel=0.1)
    alone = compare(first, second, ["one"] * len(units)).differences["top1"]
    assert alone is not None
    assert (alone.value, alone.interval) == (difference.value, None), "one group has no variance"


def test_difference_of_calibration_errors_accounts_for_the_noise_that_raises_both() -> None:
    def draw(images: int, seed: int) -> tuple[ClassCalculator, ClassCalculator]:
        random = np.random.default_rng(seed)
        logits = 1.5 * random.normal(size=(images, 3))
        cumulated = np.exp(logits).cumsum(axis=1)
        labels = (random.random(images)[:, None] > cumulated / cumulated[:, -1:]).sum(axis=1)
        return ClassCalculator(logits, labels), ClassCalculator(1.5 * logits, labels)  # calibrated, over-confident

    true = float(np.diff([model.compute(np.ones((1, 100_000)))[0]["ece"][0] for model in draw(100_000, 0)])[0])
    assert true == pytest.approx(0.08, abs=0.01)
    for seed in range(1, 6):
        difference = compare(*draw(300, seed)).differences["ece"]
        assert difference is not None
        assert difference.interval is not None
        assert difference.value < true, "noise raises the lower one more"
        assert difference.interval.low < difference.value < true < difference.interval.high


def test_intervals_of_differences_have_their_nominal_coverage() -> None:
    coverage = cover_differences(100, "60, 60, 3 images")
    assert min(coverage.values()) > 0.87
    assert np.mean(list(coverage.values())) > 0.93


def test_difference_that_is_the_same_in_all_resamples_has_no_interval_of_rounding_errors() -> None:
    targets = np.random.default_rng(0).normal(size=20)
    result = compare(RegressionCalculator(targets, targets), RegressionCalculator(targets + 1, targets))
    assert result.describe(("mae", "rmse", "bias", "limit_high")) == (
        "MAE +1.0000; RMSE +1.0000; bias +1.0000; upper limit of agreement +1.0000"
    )


def test_difference_of_two_models_that_are_always_wrong_has_no_interval() -> None:
    wrong = ClassCalculator(np.eye(2)[[1, 1, 1]], np.zeros(3, int))
    assert compare(wrong, wrong).differences["top1"] == Difference(0.0, None)


def test_difference_of_two_fractions_lies_between_minus_1_and_1() -> None:
    labels = np.array([0, 1, 0, 1])
    first, second = (ClassCalculator(np.eye(2)[part], labels) for part in ([0, 1, 1, 1], [1, 1, 1, 0]))
    accuracy = compare(first, second).differences["top1"]
    assert accuracy is not None
    assert accuracy.interval is not None
    assert (accuracy.value, accuracy.interval.low) == (-0.5, -1.0)
