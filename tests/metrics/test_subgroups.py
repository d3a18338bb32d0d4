import math

import numpy as np
import pytest
from scipy.stats import fisher_exact

from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.formulas import ClassCalculator
from convnext_cli.metrics.intervals import MAX_WORK
from convnext_cli.metrics.subgroups import (
    Compute,
    choose_permutations,
    choose_strata,
    compute_p_values,
    correct_holm,
    measure_influence,
    number_strata,
    permute,
)


def make_accuracy(correct: Floats) -> Compute:
    def compute(weights: Floats) -> Floats:
        with np.errstate(invalid="ignore"):
            ratio: Floats = (weights @ correct / weights.sum(axis=1))[:, None]
        return ratio

    return compute


def test_holm_correction_equals_the_published_steps() -> None:
    assert correct_holm([0.01, 0.04, None, 0.03]) == pytest.approx([0.03, 0.06, None, 0.06])
    assert correct_holm([0.9, 0.8]) == [1.0, 1.0]


def test_strata_hold_units_with_the_same_targets() -> None:
    units = np.repeat(np.arange(30), 2)
    strata = [(unit // 10,) for unit in units.tolist()]
    strata[1] = (2,)  # the first unit has two classes: too few of its kind for a stratum
    assert number_strata(units, strata, by_size=False).tolist() == [0] * 10 + [1] * 10 + [2] * 10


def test_strata_by_size_are_joined_where_they_are_small() -> None:
    sizes = [1] * 12 + [2, 3] * 6 + [5] * 4
    units = np.repeat(np.arange(28), sizes)
    numbers = number_strata(units, [(0,)] * len(units), by_size=True)
    assert numbers.tolist() == [0] * 12 + [1] * 12 + [2] * 4
    assert set(number_strata(units, [(0,)] * len(units), by_size=False).tolist()) == {0}


def test_strata_are_by_targets_alone_where_sizes_do_not_overlap() -> None:
    units = np.concatenate([np.arange(20), np.repeat(np.arange(20, 40), 5)])
    strata = [(0,)] * len(units)
    apart, mixed = np.arange(40) < 20, np.arange(40) % 2 == 0
    assert set(choose_strata(apart, units, strata).tolist()) == {0}
    assert set(choose_strata(mixed, units, strata).tolist()) == {0, 1}


def test_permutation_keeps_the_members_of_each_stratum() -> None:
    members = np.arange(40) % 3 == 0
    strata = np.arange(40) // 20
    shuffled = permute(members, strata, 50, np.random.default_rng(1))
    for stratum in (0, 1):
        inside = strata == stratum
        assert set(shuffled[:, inside].sum(axis=1).tolist()) == {members[inside].sum()}
    assert len({tuple(row) for row in shuffled.tolist()}) == 50


def test_influence_of_single_images_on_an_accuracy_is_known() -> None:
    correct = np.array([1.0, 0, 1, 1])
    influence = measure_influence(make_accuracy(correct), np.arange(4))
    assert influence is not None
    assert influence[:, 0] == pytest.approx((correct - 0.75) / 4, rel=0.01)


def test_influence_that_would_take_too_long_is_not_computed() -> None:
    units = np.arange(math.isqrt(MAX_WORK) // 2 + 1)  # a unit an image

    def compute(_: Floats) -> Floats:
        raise AssertionError("a pass over all images for each unit")

    assert measure_influence(compute, units) is None


def test_p_value_of_single_images_is_that_of_fishers_exact_test() -> None:
    inside = np.arange(60) < 12
    correct = np.ones(60)
    correct[[0, 1, 2, 3, 30, 40, 50]] = 0
    compute = make_accuracy(correct)
    [p] = compute_p_values(compute, inside, np.arange(60), np.zeros(60, np.int64), None)
    exact = fisher_exact([[4, 8], [3, 45]]).pvalue
    assert p == pytest.approx(exact, abs=0.015)
    for wrong, permutations in (inside, 2000), (np.arange(60) % 5 == 0, 200):  # no more of them where p is above 0.1
        compute = make_accuracy(1.0 - wrong)
        [p] = compute_p_values(compute, inside, np.arange(60), np.zeros(60, np.int64), None)
        assert p is not None
        assert p * (permutations + 1) == pytest.approx(round(p * (permutations + 1)))
        assert (p * (permutations + 1) == pytest.approx(1)) == (wrong is inside)


@pytest.mark.parametrize(("images", "gaps", "number"), [(500, 4, 2000), (500, 100, 4000), (10_000_000, 4, 1000)])
def test_permutations_grow_with_the_gaps_and_fall_with_the_images(images: int, gaps: int, number: int) -> None:
    assert choose_permutations(images, gaps) == number


def test_gap_that_follows_from_the_mix_of_classes_is_no_gap() -> None:
    labels = np.array([0] * 100 + [1] * 100)
    inside = np.array([1] * 80 + [0] * 20 + [1] * 20 + [0] * 80, bool)  # four fifths of the easy class
    correct = np.ones(200)
    correct[100::4] = 0
    strata = number_strata(np.arange(200), [(label,) for label in labels.tolist()], by_size=True)
    compute = make_accuracy(correct)
    [p] = compute_p_values(compute, inside, np.arange(200), strata, measure_influence(compute, np.arange(200)))
    [unstratified] = compute_p_values(compute, inside, np.arange(200), np.zeros(200, np.int64), None)
    assert unstratified is not None
    assert unstratified < 0.01
    assert p is not None
    assert p > 0.5


def test_metric_without_variation_or_definition_has_no_p_value() -> None:
    logits = np.zeros((30, 2))
    logits[:, 1] = 1
    calculator = ClassCalculator(logits, np.ones(30, np.int64))

    def compute(weights: Floats) -> Floats:
        overall, per_class = calculator.compute(weights)
        return np.stack([overall["top1"], per_class["roc_auc"][:, 1]], axis=1)

    members = np.arange(30) < 10
    assert compute_p_values(compute, members, np.arange(30), np.zeros(30, np.int64), None) == [None, None]
