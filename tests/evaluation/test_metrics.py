import numpy as np
import pytest
from sklearn import metrics as reference

from convnext_cli.evaluation.metrics import compute_metrics, log_softmax

CLASSES = ("a", "b", "c", "d")


def test_every_figure_equals_scikit_learns() -> None:
    random = np.random.default_rng(0)
    labels = random.integers(0, 4, 500)
    logits = random.normal(size=(500, 4)) + 1.5 * np.eye(4)[labels]
    found = compute_metrics(logits, labels, CLASSES)
    predictions = logits.argmax(1)
    assert found.top1 == pytest.approx(reference.accuracy_score(labels, predictions))
    assert found.balanced_accuracy == pytest.approx(reference.balanced_accuracy_score(labels, predictions))
    assert found.macro_f1 == pytest.approx(reference.f1_score(labels, predictions, average="macro"))
    assert found.log_loss == pytest.approx(reference.log_loss(labels, np.exp(log_softmax(logits))))
    assert np.array_equal(found.confusion, reference.confusion_matrix(labels, predictions))
    precision, recall, f1, support = reference.precision_recall_fscore_support(labels, predictions)
    assert [c.precision for c in found.per_class] == pytest.approx(precision)
    assert [c.recall for c in found.per_class] == pytest.approx(recall)
    assert [c.f1 for c in found.per_class] == pytest.approx(f1)
    assert [c.images for c in found.per_class] == list(support)
    assert found.absent == ()


def test_an_absent_class_is_said_and_left_out_of_averages() -> None:
    logits = np.array([[2.0, 0, 0, 0], [0, 2, 0, 0], [0, 2, 0, 0], [0, 0, 2, 0]])
    found = compute_metrics(logits, np.array([0, 1, 0, 0]), CLASSES)
    assert found.absent == ("c", "d")
    assert found.balanced_accuracy == pytest.approx((1 / 3 + 1) / 2)
    assert [entry.recall for entry in found.per_class] == [pytest.approx(1 / 3), 1.0, None, None]
    assert [entry.precision for entry in found.per_class[2:]] == [0.0, None]


def test_huge_logits_do_not_overflow() -> None:
    found = compute_metrics(np.array([[1e4, -1e4], [1e4, -1e4]], np.float32), np.array([0, 1]), ("a", "b"))
    assert found.log_loss == pytest.approx(1e4)


def test_nothing_to_evaluate() -> None:
    with pytest.raises(ValueError, match="no images"):
        compute_metrics(np.zeros((0, 4)), np.zeros(0, int), CLASSES)
