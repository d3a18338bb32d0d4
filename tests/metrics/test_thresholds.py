"""Temperature, thresholds, curves, comparison and the OOD score."""

from itertools import product
from typing import Any, cast

import numpy as np
import pytest
from numpy.typing import NDArray
from scipy.optimize import minimize_scalar
from scipy.stats import binomtest
from sklearn import metrics as reference

from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.comparison import Comparison, compare
from convnext_cli.metrics.curves import measure_reliability, trace_pr, trace_roc
from convnext_cli.metrics.formulas import ClassCalculator, log_softmax
from convnext_cli.metrics.novelty import choose_novelty_threshold, fit_novelty, measure_pixels
from convnext_cli.metrics.scaling import MAX_TEMPERATURE, MIN_TEMPERATURE, fit_temperature
from convnext_cli.metrics.thresholds import (
    Target,
    Threshold,
    apply_threshold,
    find_threshold,
    parse_target,
    show_missed,
)
from convnext_cli.tasks.registry import SINGLE


def _compare(first: Floats, second: Floats, labels: Ints, groups: list[str] | None = None) -> Comparison:
    return compare(ClassCalculator(first, labels), ClassCalculator(second, labels), groups)


def _judge(logits: Floats, labels: Ints) -> tuple[Floats, NDArray[np.bool_]]:
    """Return confidence and correctness of each prediction."""
    return np.exp(log_softmax(logits)).max(axis=1), logits.argmax(axis=1) == labels


def draw(images: int, seed: int = 0, strength: float = 1.5) -> tuple[Floats, Ints]:
    random = np.random.default_rng(seed)
    labels = random.integers(0, 3, images)
    return random.normal(size=(images, 3)) + strength * np.eye(3)[labels], labels


def test_temperature_minimises_the_log_loss() -> None:
    logits, labels = draw(400)
    temperature = fit_temperature(4 * logits, labels)
    target = np.where(np.eye(3)[labels] == 1, 401 / 402, 1 / 402 / 2)
    best = minimize_scalar(
        lambda t: -(target * log_softmax(4 * logits / t)).sum(axis=1).mean(), bounds=(0.1, 20), method="bounded"
    )
    plain = minimize_scalar(
        lambda t: SINGLE.compute_metrics(4 * logits / t, labels, "abc").log_loss, bounds=(0.1, 20), method="bounded"
    )
    assert temperature == pytest.approx(best.x, rel=1e-3)
    assert temperature == pytest.approx(plain.x, rel=0.03), "with hundreds of images the doubt is next to nothing"
    assert fit_temperature(8 * logits, labels) == pytest.approx(2 * temperature, rel=1e-6)
    calibrated, raw = (SINGLE.compute_metrics(z, labels, "abc") for z in (4 * logits / temperature, 4 * logits))
    assert calibrated.ece < raw.ece / 2
    assert calibrated.confusion == raw.confusion


def test_targets_of_few_images_are_smoothed() -> None:
    logits, labels = draw(12, seed=1)
    target = np.where(np.eye(3)[labels] == 1, 13 / 14, 1 / 14 / 2)  # Platt 1999
    best = minimize_scalar(
        lambda t: -(target * log_softmax(4 * logits / t)).sum(axis=1).mean(), bounds=(0.1, 20), method="bounded"
    )
    assert fit_temperature(4 * logits, labels) == pytest.approx(best.x, rel=1e-3)


def test_temperature_stays_within_its_bounds() -> None:
    labels = np.array([0, 1, 2] * 20)
    temperature = fit_temperature(np.eye(3)[labels], labels)
    sure = np.exp(log_softmax(np.eye(3) / temperature)).max()
    assert sure == pytest.approx(61 / 62), "60 images without an error: the next one is wrong by 1 in 62"
    assert fit_temperature(np.eye(3)[labels] / 10, labels) == pytest.approx(MIN_TEMPERATURE)
    assert fit_temperature(np.eye(3)[(labels + 1) % 3], labels) == pytest.approx(MAX_TEMPERATURE), "always wrong"


@pytest.mark.parametrize("metric", ["sensitivity", "specificity"])
def test_threshold_reaches_its_target_at_least_cost(metric: str) -> None:
    logits, labels = draw(300)
    scores, positive = np.exp(log_softmax(logits))[:, 1], labels == 1
    threshold = find_threshold(scores, positive, Target(cast("Any", metric), 0.95, "b"))
    false, true, _ = reference.roc_curve(positive, scores, drop_intermediate=False)
    met = true >= 0.95 if metric == "sensitivity" else 1 - false >= 0.95
    best = (1 - false[met]).max() if metric == "sensitivity" else true[met].max()
    point = apply_threshold(threshold, scores, positive, None)
    assert (point.specificity if metric == "sensitivity" else point.sensitivity) == pytest.approx(best)
    assert threshold.reached >= 0.95
    assert threshold.reached == pytest.approx(getattr(point, metric))
    interval = getattr(point, f"{metric}_interval")
    assert interval.low < threshold.reached < interval.high


def test_threshold_is_halfway_between_scores_and_needs_both_classes() -> None:
    scores = np.array([0.9, 0.6, 0.4, 0.1])
    positive = np.array([True, True, False, False])
    assert find_threshold(scores, positive, Target("sensitivity", 1.0, "b")).threshold == pytest.approx(0.5)
    assert find_threshold(scores, positive, Target("specificity", 1.0, "b")).threshold == pytest.approx(0.5)
    twenty = np.arange(20) / 20
    assert find_threshold(np.append(twenty, 0.0), np.arange(21) < 20, Target("sensitivity", 0.95, "b")).reached == 0.95
    with pytest.raises(ValueError, match="of others"):
        find_threshold(scores, np.ones(4, bool), Target("sensitivity", 0.9, "b"))
    point = apply_threshold(
        find_threshold(scores, positive, Target("sensitivity", 1.0, "b")), scores, positive < 0, None
    )
    assert (point.sensitivity, point.sensitivity_interval) == (None, None)


def test_target_that_is_reached_exactly_is_met_whatever_the_rounding() -> None:
    positive = np.arange(10) < 5
    scores = np.where(np.isin(np.arange(10), (0, 1, 2, 5, 6)), 0.9, 0.1)  # 3 of 5, and 2 of 5: a PPV of 60%
    threshold = Threshold(target=parse_target("ppv=0.6:a@prevalence=0.5"), threshold=0.5, reached=0.6, images=10)
    point = apply_threshold(threshold, scores, positive, None)
    assert point.ppv == pytest.approx(0.6)
    assert point.is_met
    assert not show_missed(threshold.target, point.to_record())


def test_curves_equal_scikit_learn() -> None:
    logits, labels = draw(200)
    scores, positive = np.round(logits[:, 0], 1), labels == 0
    false, true = trace_roc(scores, positive)
    expected = reference.roc_curve(positive, scores, drop_intermediate=False)
    assert np.allclose(false, expected[0])
    assert np.allclose(true, expected[1])
    recall, precision = trace_pr(scores, positive)
    expected = reference.precision_recall_curve(positive, scores)
    assert np.allclose(recall[1:][::-1], expected[1][:-1])
    assert np.allclose(precision[1:][::-1], expected[0][:-1])


def test_reliability_bins_add_up_to_the_ece() -> None:
    logits, labels = draw(200)
    bins = measure_reliability(*_judge(logits, labels))
    assert sum(images for *_, images in bins) == 200
    gap = sum(images * abs(confidence - accuracy) for confidence, accuracy, images in bins) / 200
    assert gap == pytest.approx(SINGLE.compute_metrics(logits, labels, "abc").ece)
    assert len(measure_reliability(*_judge(logits[:4], labels[:4]))) == 4


def test_comparison_finds_the_better_model_and_no_difference_between_equal_ones() -> None:
    logits, labels = draw(600)
    better = _compare(logits, logits + np.eye(3)[labels], labels)
    accuracy = better.differences["top1"]
    assert accuracy is not None
    assert accuracy.interval is not None
    assert 0 < accuracy.interval.low < accuracy.value < accuracy.interval.high
    assert better.p_value is not None
    assert better.p_value < 1e-6
    same = _compare(logits, logits, labels)
    assert (same.only_first_right, same.only_second_right, same.p_value) == (0, 0, 1.0)
    assert same.describe(("top1",)) == "accuracy +0.0 points", "no CI of zero length"
    other = _compare(logits, draw(600, seed=0)[0] + np.random.default_rng(5).normal(size=(600, 3)) / 10, labels)
    assert other.only_first_right is not None
    assert other.only_second_right is not None
    assert other.p_value == pytest.approx(
        binomtest(other.only_first_right, other.only_first_right + other.only_second_right).pvalue
    )


def test_mcnemar_equals_published_example_and_widens_with_clusters() -> None:
    # Agresti, Categorical Data Analysis, table 10.1: 86 and 150 discordant; z = 4.17, p 3.1e-5; exact 3.7e-5
    labels = np.zeros(236, int)
    first, second = np.eye(2)[[1] * 150 + [0] * 86], np.eye(2)[[0] * 150 + [1] * 86]
    plain = _compare(first, second, labels)
    alone = _compare(first, second, labels, [str(i) for i in range(236)])
    assert (plain.only_second_right, plain.only_first_right) == (150, 86)
    assert alone.p_value == pytest.approx(plain.p_value)
    assert plain.p_value == pytest.approx(3.7e-5, rel=0.05)
    pairs = _compare(first, second, labels, [str(i // 2) for i in range(236)])
    assert pairs.p_value is not None
    assert plain.p_value is not None
    assert (plain.clustered, pairs.clustered) == (False, True)
    assert pairs.p_value > 10 * plain.p_value, "two images of one patient are not two witnesses"


@pytest.mark.parametrize("sizes", [(1, 1, 1, 1, 1), (3, 1, 2, 2, 1, 4), (2, 5, 1, 1, 1, 1, 3)])
def test_comparison_by_groups_counts_all_signs_of_their_gains(sizes: tuple[int, ...]) -> None:
    """Every second group is better with the first model, but for the largest."""
    gains = np.array([size if size == max(sizes) or group % 2 else -size for group, size in enumerate(sizes)])
    groups = np.repeat(np.arange(len(sizes)), sizes)
    right = gains[groups] > 0
    models = (np.eye(2)[1 - right.astype(int)], np.eye(2)[right.astype(int)])
    result = _compare(*models, np.ones(len(groups), int), [str(group) for group in groups])
    sums = [np.dot(signs, np.abs(gains)) for signs in product((-1, 1), repeat=len(gains))]
    assert result.p_value == pytest.approx(np.mean(np.abs(sums) >= abs(gains.sum())))


def test_pixel_statistics_are_those_of_their_definition() -> None:
    images = np.random.default_rng(0).integers(0, 256, (5, 16, 16, 3), np.uint8)
    scaled = images.astype(float) / 255
    brightness = scaled.mean(axis=3)
    expected = [
        brightness.mean(axis=(1, 2)),
        np.log(brightness.std(axis=(1, 2)) + 0.02),
        np.log((scaled.max(axis=3) - scaled.min(axis=3)).mean(axis=(1, 2)) + 0.01),
    ]
    for step in (1, 2, 4):
        part = brightness[:, ::step, ::step]
        steps = [np.abs(np.diff(part, axis=axis)).mean(axis=(1, 2)) for axis in (1, 2)]
        expected.append(np.log(steps[0] + steps[1] + 0.005))
    np.testing.assert_allclose(measure_pixels(images), np.stack(expected, axis=1), rtol=1e-5)


def test_ood_score_keeps_its_rate_and_is_two_sided() -> None:
    random = np.random.default_rng(0)
    centre = random.normal(size=32)

    def draw(count: int, spread: float = 1.0, brightness: float = 1.0) -> tuple[Floats, NDArray[np.float32]]:
        noise = random.uniform(0, 255, (count, 16, 16, 1)) + random.normal(0, 30, (count, 16, 16, 3))
        pixels = (brightness * noise).clip(0, 255).astype(np.uint8)
        return centre + spread * random.normal(size=(count, 32)), measure_pixels(pixels)

    model = fit_novelty(*draw(800))
    val = model.score(*draw(800))
    threshold = choose_novelty_threshold(val, 0.05)
    assert np.mean(val > threshold) <= 0.05
    assert np.mean(model.score(*draw(800)) > threshold) == pytest.approx(0.05, abs=0.04)
    assert np.mean(model.score(*draw(50, spread=8.0)) > threshold) > 0.9, "features far away"
    assert np.mean(model.score(*draw(50, spread=0.1)) > threshold) > 0.9, "features nearer than any training image's"
    assert (model.score(*draw(50, brightness=0.5)) > threshold).all(), "darker than any training image"
    few = fit_novelty(*draw(3))
    assert np.isfinite(few.score(*draw(20))).all(), "fewer training images than neighbours"


def test_slight_colour_is_not_ood_for_grey_training_images() -> None:
    random = np.random.default_rng(0)
    grey = np.repeat(random.integers(0, 256, (200, 16, 16, 1), np.uint8), 3, axis=3)
    features = random.normal(size=(200, 8))
    model = fit_novelty(features, measure_pixels(grey))
    tinted = grey.copy()
    tinted[..., 0] = np.minimum(tinted[..., 0].astype(int) + 1, 255)  # what JPEG leaves
    coloured = random.integers(0, 256, (200, 16, 16, 3), np.uint8)
    usual = model.score(features, measure_pixels(grey))
    threshold = choose_novelty_threshold(usual, 0.05)
    assert np.mean(model.score(features, measure_pixels(tinted)) > threshold) < 0.3
    assert (model.score(features, measure_pixels(coloured)) > 5 * threshold).all()
