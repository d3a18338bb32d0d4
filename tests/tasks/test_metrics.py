"""Metrics of labels, grades and numbers are those of scikit-learn."""

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray
from sklearn import metrics as reference

from convnext_cli.inference.evaluated_images import EvaluatedImages
from convnext_cli.metrics.comparison import compare
from convnext_cli.metrics.formulas import ClassCalculator
from convnext_cli.metrics.multilabel import sigmoid
from convnext_cli.metrics.regression import RegressionCalculator
from convnext_cli.metrics.scaling import choose_threshold, fit_margin, fit_platt
from convnext_cli.tasks.multilabel import Multilabel
from convnext_cli.tasks.ordinal import Ordinal
from convnext_cli.tasks.regression import Regression

NAMES = ("a", "b", "c")


def draw_labels(
    images: int = 120, unknown: float = 0.0, seed: int = 0
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    random = np.random.default_rng(seed)
    targets = (random.random((images, 3)) < (0.5, 0.3, 0.1)).astype(float)
    logits = random.normal(size=(images, 3)) + 1.5 * (2 * targets - 1) * (1, 0.5, 1)
    targets[random.random((images, 3)) < unknown] = np.nan
    targets[random.random((images, 3)) < unknown / 2] = -1
    return logits, targets


@pytest.mark.parametrize("unknown", [0.0, 0.3])
def test_multilabel_metrics_equal_scikit_learns_label_by_label(unknown: float) -> None:
    logits, targets = draw_labels(unknown=unknown)
    result = Multilabel().compute_metrics(logits, targets, NAMES)
    losses = []
    for k, entry in enumerate(result.per_class):
        known = np.isin(targets[:, k], (0, 1))
        truth, scores = targets[known, k], sigmoid(logits[known, k])
        said = scores >= 0.5
        assert (entry.images, entry.negative, entry.unknown) == (truth.sum(), (truth == 0).sum(), (~known).sum())
        assert entry.roc_auc == pytest.approx(reference.roc_auc_score(truth, scores))
        assert entry.pr_auc == pytest.approx(reference.average_precision_score(truth, scores))
        assert entry.recall == pytest.approx(reference.recall_score(truth, said))
        assert entry.specificity == pytest.approx(reference.recall_score(truth, said, pos_label=0))
        assert entry.precision == pytest.approx(reference.precision_score(truth, said))
        assert entry.f1 == pytest.approx(reference.f1_score(truth, said))
        assert entry.label_brier == pytest.approx(reference.brier_score_loss(truth, scores))
        losses += [reference.log_loss(truth, scores, labels=(0, 1), normalize=False)]
    assert result.macro_roc_auc == pytest.approx(np.mean([entry.roc_auc for entry in result.per_class]))
    assert result.macro_f1 == pytest.approx(np.mean([entry.f1 for entry in result.per_class]))
    assert result.log_loss == pytest.approx(sum(losses) / np.isin(targets, (0, 1)).sum())
    if not unknown:
        assert result.exact_match == pytest.approx(reference.accuracy_score(targets, sigmoid(logits) >= 0.5))


def test_multilabel_metrics_count_images_by_weight() -> None:
    """A bootstrap weight of 2 is an image that is there twice."""
    logits, targets = draw_labels(unknown=0.2)
    task, weights = Multilabel(), np.random.default_rng(1).integers(0, 3, 120)
    overall, per_class = task.make_calculator(logits, targets).compute(weights[None].astype(np.float64))
    rows = np.repeat(np.arange(120), weights)
    copied = task.compute_metrics(logits[rows], targets[rows], NAMES)
    for key in ("macro_roc_auc", "macro_pr_auc", "macro_f1", "exact_match", "log_loss", "macro_brier"):
        assert overall[key][0] == pytest.approx(getattr(copied, key)), key
    assert per_class["recall"][0] == pytest.approx([entry.recall for entry in copied.per_class])


def test_ordinal_metrics_equal_scikit_learns_and_predict_the_median() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 150)
    logits = -np.abs(np.arange(4) - labels[:, None]) + random.normal(size=(150, 4))
    task = Ordinal()
    probabilities = task.activate(logits)
    medians = np.array([np.searchsorted(np.cumsum(row), 0.5) for row in probabilities])
    assert (task.decide(probabilities, None) == medians).all()
    result = task.compute_metrics(logits, labels, ("0", "1", "2", "3"))
    assert result.quadratic_kappa == pytest.approx(reference.cohen_kappa_score(labels, medians, weights="quadratic"))
    assert result.grade_mae == pytest.approx(reference.mean_absolute_error(labels, medians))
    assert result.within_one == pytest.approx((np.abs(labels - medians) <= 1).mean())
    assert result.top1 == pytest.approx(reference.accuracy_score(labels, medians))
    assert result.balanced_accuracy == pytest.approx(reference.balanced_accuracy_score(labels, medians))
    assert result.confusion == tuple(map(tuple, reference.confusion_matrix(labels, medians)))
    for k, entry in enumerate(result.per_class):
        assert entry.class_mae == pytest.approx(np.abs(medians[labels == k] - k).mean())


def test_confidence_of_a_grade_is_that_of_the_predicted_grade() -> None:
    probabilities = np.array([[0.4, 0.25, 0.35], [0.1, 0.3, 0.6]])  # the medians are grades 1 and 2
    confidences, are_right = Ordinal().list_confidences(np.log(probabilities), np.array([1, 1]))
    assert confidences == pytest.approx([0.25, 0.6])
    assert are_right.tolist() == [True, False]
    assert Ordinal().rank_errors(probabilities[::-1], np.array([1, 1]), None)[1] == [1, 0]


@pytest.mark.parametrize("log", [False, True])
def test_regression_metrics_equal_scikit_learns(log: bool) -> None:
    random = np.random.default_rng(0)
    targets = np.exp(random.normal(2, 1, 200)) if log else random.normal(50, 10, 200)
    task = Regression(log=log).fit_targets(targets)
    standard = ((np.log(targets) if log else targets) - task.mean) / task.std
    assert (standard.mean(), standard.std()) == pytest.approx((0, 1), abs=1e-9)
    logits = (standard + 0.3 * random.normal(size=200))[:, None]
    predictions = task.activate(logits)[:, 0]
    result = task.compute_metrics(logits, targets, ("age",))
    assert result.mae == pytest.approx(reference.mean_absolute_error(targets, predictions))
    assert result.rmse == pytest.approx(reference.root_mean_squared_error(targets, predictions))
    assert result.r2 == pytest.approx(reference.r2_score(targets, predictions))
    assert result.pearson == pytest.approx(np.corrcoef(targets, predictions)[0, 1])
    difference = predictions - targets
    assert result.bias == pytest.approx(difference.mean())
    assert result.limit_high == pytest.approx(difference.mean() + 1.96 * difference.std(ddof=1))
    assert result.coverage is None


def test_regression_metrics_of_equal_targets_have_no_r2() -> None:
    """Equal targets are a rounding error apart once they are centred; R2 was -1e14 for them."""
    random = np.random.default_rng(0)
    targets = np.concatenate([np.full(20, 0.1), random.normal(size=80)])
    calculator = RegressionCalculator(targets + random.normal(size=100), targets)
    for weights in (np.arange(100) < 20, np.arange(100) < 7):
        overall, _ = calculator.compute(weights[None].astype(np.float32))
        assert np.isnan([overall["r2"][0], overall["pearson"][0]]).all()
        assert overall["mae"][0] > 0
    same = np.full(30, 1 / 3)
    overall, _ = RegressionCalculator(same + random.normal(size=30), same).compute(np.ones((1, 30)))
    assert np.isnan(overall["r2"][0])
    assert 0.3 < overall["mae"][0] < 3


def test_platt_scaling_recovers_the_true_factor_and_offset() -> None:
    random = np.random.default_rng(0)
    logits = random.normal(0, 2, 20_000)
    positive = random.random(20_000) < sigmoid(0.6 * logits - 1.0)
    assert fit_platt(logits, positive) == pytest.approx((0.6, -1.0), abs=0.06)


def test_platt_scaling_of_separable_images_has_platts_targets_on_average() -> None:
    """(n+ + 1) / (n+ + 2) and 1 / (n- + 2), of 3 positive and 2 negative images; the offset makes the means equal."""
    logits, positive = np.array([2.0, 1.0, 1.5, -1.0, -2.0]), np.array([True, True, True, False, False])
    scale, offset = fit_platt(logits, positive)
    probabilities = 1 / (1 + np.exp(-(scale * logits + offset)))
    assert probabilities.mean() == pytest.approx((3 * 4 / 5 + 2 * 1 / 4) / 5, abs=1e-4)
    assert probabilities @ logits == pytest.approx(np.where(positive, 4 / 5, 1 / 4) @ logits, abs=1e-3)


def test_threshold_has_the_highest_f1() -> None:
    logits, targets = draw_labels()
    scores, positive = sigmoid(logits[:, 1]), targets[:, 1] == 1
    best = max(reference.f1_score(positive, scores >= value) for value in scores)
    assert reference.f1_score(positive, scores >= choose_threshold(scores, positive)) == pytest.approx(best)
    assert choose_threshold(scores, positive & False) == 0.5, "without positives nothing can be chosen"


def test_better_of_two_regressions_has_a_smaller_error_and_no_mcnemar_test() -> None:
    random = np.random.default_rng(0)
    targets, noise = random.normal(size=(2, 200))
    worse, better = (RegressionCalculator(targets + scale * noise, targets) for scale in (0.5, 0.3))
    result = compare(worse, better)
    error = result.differences["mae"]
    assert error is not None
    assert error.interval is not None
    assert error.value == pytest.approx(-0.2 * np.abs(noise).mean())
    assert error.interval.low < error.value < error.interval.high < 0
    assert (result.only_first_right, result.only_second_right, result.p_value) == (None, None, None)


def test_difference_of_averages_is_unknown_by_the_part_of_a_class_with_a_single_image() -> None:
    labels = np.repeat([0, 1, 2], [40, 30, 1])
    first, second = (ClassCalculator(np.eye(3)[np.append(labels[:-1], last)] * 4.0, labels) for last in (2, 0))
    for one, two, sign in ((first, second, -1), (second, first, 1)):  # only that image is predicted differently
        difference = compare(one, two).differences["balanced_accuracy"]
        assert difference is not None
        assert difference.interval is not None
        assert difference.value == pytest.approx(sign / 3)
        ends = difference.interval.low, difference.interval.high
        assert min(ends) <= -1 / 3 + 1e-9
        assert max(ends) >= 1 / 3 - 1e-9
    assert compare(first, first).describe(("balanced_accuracy",)) == "balanced accuracy +0.0 points"


def test_difference_does_not_depend_on_the_order_of_the_labels() -> None:
    random = np.random.default_rng(0)
    targets = (random.random((80, 3)) < 0.4).astype(np.float32)
    targets[:, 0] = np.arange(80) == 3  # a single image, so that the sensitivity for a is unknown
    logits = random.normal(size=(80, 3)) + targets
    first = EvaluatedImages(task=Multilabel(), classes=tuple("abc"), logits=logits, targets=targets, groups=None)
    second = replace(first, logits=random.normal(size=(80, 3)) + targets)
    order = [1, 2, 0]
    other = replace(second, classes=tuple("bca"), logits=second.logits[:, order], targets=targets[:, order])
    for key in ("macro_recall", "macro_roc_auc"):
        expected, difference = (first.compare(images).differences[key] for images in (second, other))
        assert expected is not None
        assert expected.interval is not None
        assert difference is not None
        assert difference.interval is not None
        ends = expected.interval.low, expected.interval.high
        assert (difference.interval.low, difference.interval.high) == pytest.approx(ends, abs=1e-6), key


@pytest.mark.parametrize("per_group", [1, 4])
def test_prediction_intervals_cover_new_images(per_group: int) -> None:
    """90% of new images over 200 splits, within 2 points; with groups, images of new groups."""
    random, covered = np.random.default_rng(0), []
    for _ in range(200):
        shared = np.repeat(random.normal(size=2 * 60), per_group)
        errors = np.abs(shared + 0.5 * random.normal(size=len(shared)))
        names = [str(i // per_group) for i in range(60 * per_group)]
        margin = fit_margin(errors[: 60 * per_group], names, 0.9)
        covered.append((errors[60 * per_group :] <= margin).mean())
    assert np.mean(covered) == pytest.approx(0.9, abs=0.02)
    assert fit_margin(np.arange(9.0), None, 0.9) == 8.0
    assert fit_margin(np.arange(80.0), [str(i % 8) for i in range(80)], 0.9) is None, "8 groups cover 8/9 at most"


def test_labels_that_exclude_each_other_in_training_are_reported_if_predicted_together() -> None:
    training = np.zeros((100, 3))
    training[:40, 0], training[40:80, 1], training[::2, 2] = 1, 1, 1
    scores = np.array([[0.9, 0.9, 0.9], [0.9, 0.1, 0.9], [0.1, 0.1, 0.1]])
    [warning] = Multilabel().list_warnings(training, scores, NAMES, None)
    assert "a and b are predicted together in 1 image" in warning
    assert not Multilabel().list_warnings(training[:4], scores, NAMES, None), "too few to expect any"
