"""Pooling against direct formulas, group by group."""

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest

from convnext_cli.metrics.formulas import log_softmax
from convnext_cli.metrics.pooling import MAX, MEAN, NOISY_OR, RULES, Rule, choose_rule, pool_scores
from convnext_cli.metrics.scaling import fit_bias_corrected_temperature, fit_temperature
from convnext_cli.tasks.multilabel import Multilabel
from convnext_cli.tasks.ordinal import Ordinal
from convnext_cli.tasks.registry import SINGLE, TASKS
from convnext_cli.tasks.regression import Regression

UNITS = np.array([1, 0, 1, 2, 1, 0])
SCORES = np.random.default_rng(0).uniform(0, 1, (6, 3))
DIRECT: dict[str, Callable[[Sequence[float]], float]] = {
    MEAN: lambda p: sum(p) / len(p),
    MAX: max,
    NOISY_OR: lambda p: 1 - math.prod(1 - x for x in p),
}


@pytest.mark.parametrize("rule", RULES)
def test_scores_are_pooled_by_the_direct_formula(rule: Rule) -> None:
    expected = [
        [DIRECT[rule]([SCORES[row, k] for row in range(6) if UNITS[row] == group]) for k in range(3)]
        for group in range(3)
    ]
    np.testing.assert_allclose(pool_scores(SCORES, UNITS, rule), expected, rtol=1e-12)


@pytest.mark.parametrize("rule", RULES)
def test_a_single_image_keeps_its_score(rule: Rule) -> None:
    np.testing.assert_allclose(pool_scores(SCORES, np.arange(6), rule), SCORES, rtol=1e-9)
    certain = pool_scores(np.array([[0.0, 1.0]]), np.array([0]), rule)
    np.testing.assert_allclose(certain, [[0.0, 1.0]], atol=1e-11)


@pytest.mark.parametrize("rule", RULES)
def test_pooled_probabilities_of_classes_sum_to_one(rule: Rule) -> None:
    logits = np.random.default_rng(1).normal(0, 3, (6, 4))
    pooled = SINGLE.activate(SINGLE.pool(logits, UNITS, rule))
    np.testing.assert_allclose(pooled.sum(axis=1), 1)
    raw = pool_scores(SINGLE.activate(logits), UNITS, rule)
    np.testing.assert_allclose(pooled, raw / raw.sum(axis=1, keepdims=True), rtol=1e-6)


@pytest.mark.parametrize("rule", RULES)
def test_labels_are_pooled_one_by_one(rule: Rule) -> None:
    logits = np.random.default_rng(2).normal(0, 3, (6, 4))
    task = Multilabel()
    pooled = task.activate(task.pool(logits, UNITS, rule))
    np.testing.assert_allclose(pooled, pool_scores(task.activate(logits), UNITS, rule), rtol=1e-5)


@pytest.mark.parametrize("rule", RULES)
def test_of_the_label_without_a_finding_the_absence_is_pooled(rule: Rule) -> None:
    logits = np.random.default_rng(2).normal(0, 3, (6, 3))
    task = Multilabel()
    pooled = task.activate(task.pool(logits, UNITS, rule, 1))
    scores = task.activate(logits)
    scores[:, 1] = 1 - scores[:, 1]
    expected = pool_scores(scores, UNITS, rule)
    expected[:, 1] = 1 - expected[:, 1]
    np.testing.assert_allclose(pooled, expected, rtol=1e-5)


def test_numbers_are_pooled_by_the_mean_output() -> None:
    task = Regression(log=True, mean=2.0, std=0.5)
    outputs = np.random.default_rng(3).normal(size=(6, 1))
    values = task.activate(task.pool(outputs, UNITS, MEAN))[:, 0]
    geometric = [math.exp(np.log(task.activate(outputs)[group == UNITS, 0]).mean()) for group in range(3)]
    np.testing.assert_allclose(values, geometric)


def test_grades_and_numbers_have_the_mean_only() -> None:
    assert {name: kind.pooling for name, kind in TASKS.items()} == {
        "single": RULES, "multilabel": RULES, "ordinal": (MEAN,), "regression": (MEAN,),
    }  # fmt: skip


def test_the_most_frequent_class_is_that_of_the_group() -> None:
    units = np.array([0, 0, 0, 1, 1, 2, 2, 3])
    targets = np.array([2, 0, 0, 1, 2, 0, 0, 1])
    # group 1 has a tie of class 1 and class 2, which both have two images: the later class counts
    np.testing.assert_array_equal(SINGLE.pool_targets(targets, units, None), [0, 2, 0, 1])
    np.testing.assert_array_equal(SINGLE.pool_targets(targets, units, 0), [2, 2, 0, 1])


def test_a_tie_goes_to_the_rarer_class() -> None:
    units, targets = np.array([0, 0, 1, 1]), np.array([1, 0, 1, 1])
    np.testing.assert_array_equal(SINGLE.pool_targets(targets, units, None), [0, 1])


def test_a_label_is_positive_if_any_image_has_it() -> None:
    nan = math.nan
    targets = np.array([[1, 0, 0, -1], [0, 0, nan, 1], [nan, 0, 0, 0], [0, 0, -1, 0]], np.float32)
    pooled = Multilabel().pool_targets(targets, np.array([0, 0, 1, 1]), None)
    np.testing.assert_array_equal(pooled, np.array([[1, 0, nan, 1], [nan, 0, nan, 0]], np.float32))


def test_a_group_without_a_finding_has_none_in_any_image() -> None:
    nan = math.nan
    targets = np.array([[1, 0], [0, 1], [1, 0], [1, 0], [1, nan], [nan, nan]], np.float32)
    pooled = Multilabel().pool_targets(targets, np.array([0, 0, 1, 1, 2, 2]), 0)
    np.testing.assert_array_equal(pooled, np.array([[0, 1], [1, 0], [nan, nan]], np.float32))


def test_a_group_has_the_median_grade_and_the_mean_number() -> None:
    units = np.array([1, 0, 0, 1, 0, 1, 1])
    grades = np.array([3, 0, 4, 1, 1, 0, 2])
    np.testing.assert_array_equal(Ordinal().pool_targets(grades, units, None), [1, 2])
    np.testing.assert_allclose(Regression().pool_targets(grades.astype(float), units, None), [5 / 3, 1.5])


def test_losses_are_those_of_the_metrics() -> None:
    random = np.random.default_rng(4)
    logits, labels = random.normal(size=(40, 3)), random.integers(0, 3, 40)
    single = SINGLE.compute_metrics(logits, labels, "abc").log_loss
    assert SINGLE.measure_losses(logits, labels).mean() == pytest.approx(single)
    targets = random.choice([1.0, 0.0, math.nan, -1.0], (40, 3))
    multilabel = Multilabel().compute_metrics(logits, targets, "abc").log_loss
    assert Multilabel().measure_losses(logits, targets).mean() == pytest.approx(multilabel)


def test_offsets_undo_what_shifts_all_groups() -> None:
    """Logits that are shifted and scaled get their temperature and offset back."""
    random = np.random.default_rng(5)
    true = random.normal(0, 2, (4000, 3))
    labels = (true + random.gumbel(size=true.shape)).argmax(axis=1)
    temperature, offsets = fit_bias_corrected_temperature(2 * true + [1.0, 0.0, -3.0], labels, np.ones(4000))
    assert temperature == pytest.approx(2, rel=0.08)
    np.testing.assert_allclose(offsets - offsets.mean(), np.array([-0.5, 0, 1.5]) - 1 / 3, atol=0.15)


def test_offsets_lower_the_loss_of_a_temperature() -> None:
    random = np.random.default_rng(6)
    labels = random.integers(0, 2, 200)
    logits = random.normal(size=(200, 2)) + np.eye(2)[labels] + [3.0, 0.0]
    temperature, offsets = fit_bias_corrected_temperature(logits, labels, np.ones(200))

    def loss(scaled: Any) -> float:
        return float(-log_softmax(scaled)[np.arange(200), labels].mean())

    assert loss(logits / temperature + offsets) < loss(logits / fit_temperature(logits, labels)) - 0.1


def test_weights_even_the_classes_out() -> None:
    random = np.random.default_rng(7)
    labels = (random.uniform(size=4000) < 0.1).astype(int)
    logits = np.zeros((4000, 2))
    logits[:, 1] = 2 * labels + random.normal(size=4000)
    weights = np.where(labels == 1, 5.0, 5 / 9)
    for given, prevalence in ((np.ones(4000), 0.1), (weights, 0.5)):
        temperature, offsets = fit_bias_corrected_temperature(logits, labels, given)
        probabilities = np.exp(log_softmax(logits / temperature + offsets))[:, 1]
        assert np.average(probabilities, weights=given) == pytest.approx(prevalence, abs=0.01)


def test_another_rule_is_chosen_only_if_it_is_certainly_better() -> None:
    random = np.random.default_rng(8)
    mean = random.uniform(0.4, 0.6, 30)
    assert choose_rule({MEAN: mean, MAX: mean - 0.1, NOISY_OR: mean - 0.2}) == NOISY_OR
    assert choose_rule({MEAN: mean, MAX: mean + 0.1}) == MEAN
    noise = random.normal(size=30)
    noise -= noise.mean() + 0.5 * noise.std(ddof=1) / math.sqrt(30)  # half a standard error better
    assert choose_rule({MEAN: mean, MAX: mean + noise}) == MEAN
    assert choose_rule({MEAN: mean}) == MEAN
