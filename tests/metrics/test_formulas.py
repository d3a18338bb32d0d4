from collections.abc import Sequence
from dataclasses import replace
from typing import cast

import numpy as np
import pytest
from sklearn import metrics as reference
from sklearn.calibration import calibration_curve

from convnext_cli.inference.calibration import Calibration
from convnext_cli.inference.evaluated_images import EvaluatedImages, describe_shift, describe_worse_calibration
from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.formulas import log_softmax
from convnext_cli.metrics.scaling import fit_temperature
from convnext_cli.metrics.summary import MAX_MATRIX, Metrics, describe_absent, list_mistakes
from convnext_cli.progress import Notice
from convnext_cli.tasks.multilabel import Multilabel
from convnext_cli.tasks.ordinal import Ordinal
from convnext_cli.tasks.registry import SINGLE
from convnext_cli.tasks.regression import Regression

CLASSES = ("a", "b", "c", "d")


def draw(images: int = 500, *, ties: bool = False) -> tuple[Floats, Ints]:
    random = np.random.default_rng(0)
    labels = random.choice(4, images, p=(0.5, 0.3, 0.15, 0.05))
    logits = random.normal(size=(images, 4)) + 1.5 * np.eye(4)[labels]
    return (np.round(logits) if ties else logits), labels


@pytest.mark.parametrize("ties", [False, True])
def test_metrics_equal_scikit_learn(ties: bool) -> None:
    logits, labels = draw(ties=ties)
    metrics = SINGLE.compute_metrics(logits, labels, CLASSES)
    predictions, probabilities = logits.argmax(1), np.exp(log_softmax(logits))
    truth = np.eye(4)[labels]
    assert metrics.top1 == pytest.approx(reference.accuracy_score(labels, predictions))
    assert metrics.balanced_accuracy == pytest.approx(reference.balanced_accuracy_score(labels, predictions))
    assert metrics.macro_f1 == pytest.approx(reference.f1_score(labels, predictions, average="macro"))
    assert metrics.macro_precision == pytest.approx(reference.precision_score(labels, predictions, average="macro"))
    assert metrics.kappa == pytest.approx(reference.cohen_kappa_score(labels, predictions))
    assert metrics.mcc == pytest.approx(reference.matthews_corrcoef(labels, predictions))
    assert metrics.log_loss == pytest.approx(reference.log_loss(labels, probabilities))
    squared = [reference.brier_score_loss(truth[:, k], probabilities[:, k]) for k in range(4)]
    assert metrics.brier == pytest.approx(sum(squared) / 2)
    roc = reference.roc_auc_score(labels, probabilities, multi_class="ovr", average="macro")
    assert metrics.macro_roc_auc == pytest.approx(roc)
    assert metrics.macro_pr_auc == pytest.approx(reference.average_precision_score(truth, probabilities))
    assert np.array_equal(metrics.confusion, reference.confusion_matrix(labels, predictions))
    precision, recall, f1, support = reference.precision_recall_fscore_support(labels, predictions)
    assert [c.precision for c in metrics.per_class] == pytest.approx(precision)
    assert [c.recall for c in metrics.per_class] == pytest.approx(recall)
    assert [c.f1 for c in metrics.per_class] == pytest.approx(f1)
    assert [c.images for c in metrics.per_class] == list(support)
    for k, entry in enumerate(metrics.per_class):
        other = reference.recall_score(labels != k, predictions != k)
        assert entry.specificity == pytest.approx(other)
        assert entry.roc_auc == pytest.approx(reference.roc_auc_score(labels == k, probabilities[:, k]))
        assert entry.pr_auc == pytest.approx(reference.average_precision_score(labels == k, probabilities[:, k]))
    assert metrics.macro_specificity == pytest.approx(np.mean([entry.specificity for entry in metrics.per_class]))
    assert metrics.absent == ()


def test_metrics_grow_with_the_classes_not_with_their_square() -> None:
    many = MAX_MATRIX + 1
    labels = np.array([0, 0, 0, many - 1, many - 1])
    logits = np.eye(many)[[0, 7, 7, 3, many - 1]]
    metrics = SINGLE.compute_metrics(logits, labels, tuple(map(str, range(many))))
    assert metrics.confusion == ()
    assert [entry.images for entry in metrics.per_class if entry.images] == [3, 2]
    assert list_mistakes(labels, logits.argmax(axis=1)) == [(0, 7, 2), (many - 1, 3, 1)]
    sentences = SINGLE.describe_results(metrics, SINGLE.activate(logits), labels)
    assert sentences[-1] == "Most frequent mistake: it predicted 7 for 2 of the 3 images of 0 (67%)."


def test_ece_is_the_mean_gap_of_quantile_bins() -> None:
    logits, labels = draw(600)  # 15 bins of 40
    confidence = np.exp(log_softmax(logits)).max(1)
    accuracy, mean = calibration_curve(logits.argmax(1) == labels, confidence, n_bins=15, strategy="quantile")
    metrics = SINGLE.compute_metrics(logits, labels, CLASSES)
    assert metrics.ece == pytest.approx(np.abs(accuracy - mean).mean(), abs=2e-3)  # its bins may differ by one image


def test_ece_of_equal_confidences_does_not_depend_on_the_order_of_the_images() -> None:
    # Platt scaling with a factor of 0, of a label that cannot be learned, gives all images the same probability.
    constant, sorted_targets = np.full((400, 1), -1.0), np.repeat([0.0, 1.0], [280, 120])[:, None]
    assert Multilabel().compute_metrics(constant, sorted_targets, "a").macro_ece == pytest.approx(0.3 - 1 / (1 + np.e))
    logits, labels = draw(600)
    logits = logits.round()
    order = np.random.default_rng(0).permutation(600)
    first, second = (SINGLE.compute_metrics(logits[o], labels[o], CLASSES).ece for o in (np.argsort(labels), order))
    assert first == pytest.approx(second, abs=1e-12)


def test_metrics_equal_published_worked_examples() -> None:
    # Two readers of 50 proposals, 20 both yes, 5 and 10 apart, 15 both no: kappa 0.4 (Wikipedia, Cohen's kappa)
    labels = np.repeat([0, 0, 1, 1], (20, 5, 10, 15))
    called = np.repeat([0, 1, 0, 1], (20, 5, 10, 15))
    metrics = SINGLE.compute_metrics(np.eye(2)[called], labels, ("yes", "no"))
    assert metrics.kappa == pytest.approx(0.4)
    # 8 sick and 4 well, 6 and 3 found: MCC 0.478 (Wikipedia, Phi coefficient)
    labels = np.repeat([0, 0, 1, 1], (6, 2, 1, 3))
    called = np.repeat([0, 1, 0, 1], (6, 2, 1, 3))
    metrics = SINGLE.compute_metrics(np.eye(2)[called], labels, ("sick", "well"))
    assert metrics.mcc == pytest.approx(0.478, abs=5e-4)
    # forecasts of rain: 0.7 and it rains (Wikipedia, Brier score): 0.09
    metrics = SINGLE.compute_metrics(np.log([[0.3, 0.7]]), np.array([1]), ("dry", "rain"))
    assert metrics.brier == pytest.approx(0.09)
    # Peak expiratory flow by two meters: mean difference -2.1, standard deviation 38.8 l/min (Bland and Altman 1986)
    wright = np.array([494, 395, 516, 434, 476, 557, 413, 442, 650, 433, 417, 656, 267, 478, 178, 423, 427.0])
    mini = np.array([512, 430, 520, 428, 500, 600, 364, 380, 658, 445, 432, 626, 260, 477, 259, 350, 451.0])
    numbers = Regression().compute_metrics(wright[:, None], mini, ("flow",))
    assert numbers.bias == pytest.approx(-2.1, abs=0.05)
    assert numbers.limit_low is not None
    assert numbers.limit_high is not None
    assert (numbers.limit_high - numbers.limit_low) / 2 / 1.96 == pytest.approx(38.8, abs=0.05)


def test_one_number_has_no_limits_of_agreement() -> None:
    numbers = Regression().compute_metrics(np.array([[3.0]]), np.array([1.0]), ("age",))
    assert (numbers.mae, numbers.bias) == (2, 2)
    assert (numbers.limit_low, numbers.limit_high) == (None, None)


def test_absent_class_is_left_out_of_averages() -> None:
    logits = np.array([[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
    metrics = SINGLE.compute_metrics(logits, np.array([0, 1, 0, 0]), CLASSES)
    assert metrics.absent == ("c", "d")
    assert describe_absent(metrics, str) == "no image of c, d: averages are over the other classes"
    assert metrics.macro_specificity == pytest.approx((1 + 2 / 3) / 2), "without 3 / 4 of c"
    without = Multilabel().compute_metrics(logits[:, :2], np.zeros((4, 2), np.float32), "ab")
    assert (
        describe_absent(without, str)
        == "no image of a, b: averages of sensitivity, F1, ROC AUC and PR AUC are not defined"
    )
    assert metrics.balanced_accuracy == pytest.approx((1 / 3 + 1) / 2)
    assert [entry.recall for entry in metrics.per_class] == [pytest.approx(1 / 3), 1.0, None, None]
    assert [entry.precision for entry in metrics.per_class[2:]] == [0.0, None]
    assert [entry.roc_auc for entry in metrics.per_class[2:]] == [None, None]
    assert metrics.macro_roc_auc is not None


@pytest.mark.parametrize("predicted", [[0, 0], [0, 1]])
def test_single_class_has_no_auc_and_no_kappa(predicted: list[int]) -> None:
    metrics = SINGLE.compute_metrics(np.eye(4)[predicted], np.array([0, 0]), CLASSES)
    assert metrics.top1 == (1 if predicted == [0, 0] else 0.5)
    grades = Ordinal().compute_metrics(10 * np.eye(4)[predicted], np.array([0, 0]), CLASSES)
    assert (grades.kappa, grades.quadratic_kappa) == (None, None)
    assert (metrics.kappa, metrics.mcc, metrics.macro_roc_auc, metrics.macro_specificity) == (None, None, None, None)


def test_large_logits_do_not_overflow() -> None:
    metrics = SINGLE.compute_metrics(np.array([[1e4, -1e4], [1e4, -1e4]], np.float32), np.array([0, 1]), ("a", "b"))
    assert metrics.log_loss == pytest.approx(1e4)


def test_no_images_raise_an_error() -> None:
    with pytest.raises(ValueError, match="no images"):
        SINGLE.compute_metrics(np.zeros((0, 4)), np.zeros(0, int), CLASSES)


@pytest.mark.parametrize(("number", "severity"), [(300, "warning"), (12, "note")])
def test_temperature_that_increases_log_loss_is_a_warning_unless_it_may_be_chance(number: int, severity: str) -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 3, number)
    logits = 2.0 * random.normal(size=(number, 3)) + 2.0 * np.eye(3)[labels]
    plain = cast("Metrics", SINGLE.compute_metrics(logits, labels, "abc"))

    def describe(temperature: float, after: Metrics | None = None) -> Notice | None:
        calibration = Calibration(weights="", images=number, temperature=temperature)
        images = EvaluatedImages(
            task=SINGLE, classes=tuple("abc"), logits=logits, targets=labels, calibration=calibration, groups=None
        )
        return describe_worse_calibration(images, plain, after or images.compute_metrics())

    assert number < 300 or describe(fit_temperature(logits, labels)) is None
    assert describe(1.0) is None
    worse = describe(0.5)
    assert worse is not None
    assert worse.severity == severity
    assert f"log loss {plain.log_loss:.4f} -> " in worse.text
    partly = describe(0.5, replace(plain, log_loss=plain.log_loss + 0.1, ece=plain.ece - 0.01))
    assert partly is not None
    assert "ECE" not in partly.text
    assert describe(0.5, replace(plain, log_loss=plain.log_loss + 1e-9)) is None


def test_change_of_the_log_loss_of_a_single_image_has_no_interval_that_includes_0() -> None:
    calibration = Calibration(weights="", images=90, temperature=0.5)
    logits, labels = np.array([[1.0, 0.0]]), np.array([1])
    images = EvaluatedImages(
        task=SINGLE, classes=("a", "b"), logits=logits, targets=labels, calibration=calibration, groups=None
    )
    before = replace(images, calibration=None).compute_metrics()
    worse = describe_worse_calibration(images, before, images.compute_metrics())
    assert worse is not None
    assert worse.severity == "note"
    assert worse.text.endswith("That may be chance: these images give no 95% CI of the change")


def describe_shift_of(probabilities: Sequence[float], labels: Sequence[int], groups: list[str] | None = None) -> str:
    """Return the note on images of the classes a and b with these probabilities of b."""
    of_b = np.array(probabilities)
    logits = np.log(np.stack([1 - of_b, of_b], axis=1))
    images = EvaluatedImages(task=SINGLE, classes=("a", "b"), logits=logits, targets=np.array(labels), groups=groups)
    note = describe_shift(images)
    return note.text if note else ""


def test_a_mean_probability_that_differs_from_the_frequency_is_noted() -> None:
    labels = [1] * 20 + [0] * 60
    assert describe_shift_of([0.4] * 80, labels) == (
        "the mean probability of b is 40%, too high: its frequency in these images is 25%"
    )
    assert describe_shift_of([0.1] * 80, labels) == (
        "the mean probability of a is 90%, too high: its frequency in these images is 75%"
    )
    assert not describe_shift_of([0.29] * 80, labels), "less than 5 points"
    assert not describe_shift_of([0.35, 0.39], [0, 0]), "in 39% of such pairs neither is of b"
    assert not describe_shift_of([0.08] * 50, [1] + [0] * 49), "1 of 50 or none is as likely as 8%"
    assert describe_shift_of([0.3] * 20, [0] * 20), "none of 20 is as likely as 0.1%"
    assert not describe_shift_of([0.33] * 80, labels), "the 95% CI of the 8 points includes 0"
    assert not describe_shift_of([0.4] * 80, labels, [f"p{number // 10}" for number in range(80)]), "8 groups"


def test_the_probability_of_a_label_is_compared_where_the_label_is_known() -> None:
    targets = np.full((100, 2), np.nan)
    targets[:50, 0], targets[:, 1] = 0.0, [0.0, 1.0] * 50
    logits = np.tile([np.log(0.3 / 0.7), 0.0], (100, 1))
    images = EvaluatedImages(task=Multilabel(), classes=("7", "y"), logits=logits, targets=targets, groups=None)
    note = describe_shift(images)
    assert note is not None
    assert note.text == "the mean probability of label 7 is 30%, too high: its frequency in these images is 0%"
