import numpy as np
import pytest

from benchmarks.pooling import BAGS, compare_bags, measure_coverage
from convnext_cli.metrics.pooling import MAX, MEAN, RULES, Rule


@pytest.mark.parametrize("rule", RULES)
def test_intervals_per_patient_have_their_nominal_coverage(rule: Rule) -> None:
    # two standard errors of 95% in 60 data sets are 5.6 points; benchmarks/README.md has the 2,000
    coverage = measure_coverage(rule, 60, 200, 200, truth_patients=20_000, map_function=map)
    assert coverage.mean() == pytest.approx(0.95, abs=0.03)
    assert coverage.min() > 0.85


def test_pooling_chosen_on_validation_beats_the_mean_where_one_image_in_five_is_positive() -> None:
    rules, tables = zip(*(compare_bags(BAGS[1], 100, seed) for seed in range(10)), strict=True)
    plain, mean, chosen = np.array(tables).mean(axis=0)
    assert rules.count(MAX) >= 8
    assert chosen[0] < mean[0] - 0.02 < plain[0] - 0.02, "log loss"
    assert chosen[1] > mean[1] + 0.005, "ROC AUC"


def test_the_mean_stays_where_all_images_are_alike() -> None:
    rules = [compare_bags(BAGS[2], 400, seed)[0] for seed in range(10)]
    assert rules.count(MEAN) >= 9
