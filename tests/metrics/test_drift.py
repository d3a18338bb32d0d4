import numpy as np
import pytest
from scipy.stats import fisher_exact, ks_2samp

from convnext_cli.metrics.drift import (
    MIN_IMAGES,
    choose_one_per_group,
    compare_fractions,
    compare_values,
    measure_corners,
)


def test_one_image_of_each_group_is_drawn() -> None:
    groups = ["a", "a", "b", "c", "c", "c", "", ""]
    rows = choose_one_per_group(len(groups), groups)
    assert sorted(groups[row] for row in rows) == ["", "", "a", "b", "c"]
    drawn = {int(row) for seed in range(50) for row in choose_one_per_group(len(groups), groups, seed=seed)}
    assert drawn == set(range(8))
    assert sorted(choose_one_per_group(4, None)) == [0, 1, 2, 3]


def test_distance_and_p_value_are_those_of_scipy() -> None:
    random = np.random.default_rng(0)
    one, two = random.normal(size=40), random.normal(0.8, size=30)
    result = compare_values(one, two)
    expected = ks_2samp(one, two, method="exact")
    assert (result.distance, result.p_value) == pytest.approx((expected.statistic, expected.pvalue))
    assert (result.validation, result.here) == pytest.approx((np.median(one), np.median(two)))


def test_fractions_are_compared_by_fishers_exact_test() -> None:
    one, two = np.arange(50) < 10, np.arange(40) < 24
    result = compare_fractions(one, two)
    assert (result.validation, result.here, result.distance) == pytest.approx((0.2, 0.6, 0.4))
    assert result.p_value == pytest.approx(fisher_exact([[10, 40], [24, 16]]).pvalue)


def test_few_images_have_no_p_value() -> None:
    few = np.zeros(MIN_IMAGES - 1)
    assert compare_values(few, np.ones(100)).p_value is None
    assert compare_fractions(few.astype(bool), np.ones(100, bool)).p_value is None


def test_detail_of_corners_ignores_padding() -> None:
    random = np.random.default_rng(1)
    image = np.full((40, 40, 3), 90, np.uint8)
    image[:8, :8] = random.integers(0, 255, (8, 8, 1))
    padded = np.pad(image, ((0, 0), (10, 10), (0, 0)), constant_values=7)
    [corners] = measure_corners(image[None])
    assert corners[0] > corners[1] + 2
    assert corners[1:] == pytest.approx(np.log(0.005))
    assert measure_corners(padded[None], (7, 7, 7))[0] == pytest.approx(corners)


def test_detail_of_a_padded_line_is_that_along_it() -> None:
    line = np.full((8, 8, 3), 7, np.uint8)
    line[:, 3] = np.arange(100, 108)[:, None]
    assert measure_corners(line[None], (7, 7, 7))[0] == pytest.approx(np.log(3 / 765 + 0.005))
