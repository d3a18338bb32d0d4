"""What a report says of a result in sentences, for each task, on a few images with a known answer."""

from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convnext_cli.tasks.multilabel import Multilabel
from convnext_cli.tasks.ordinal import Ordinal
from convnext_cli.tasks.regression import Regression
from convnext_cli.tasks.single import Single
from convnext_cli.tasks.task import Outcome, Scaling, Task

CLASSES = ("a", "b", "c")


def describe(task: Task, logits: Any, targets: Any, classes: tuple[str, ...] = CLASSES) -> tuple[list[str], float, str]:
    """Return the sentences on a result, and the value and text of chance."""
    logits = np.asarray(logits, np.float32)
    metrics = task.compute_metrics(logits, targets, classes)
    chance = task.measure_chance(metrics, targets)
    return task.describe_results(metrics, task.activate(logits), targets), chance.value, chance.text


def test_single_label_names_ends_most_frequent_mistake_and_chance() -> None:
    targets = np.array([0] * 10 + [1] * 5 + [2] * 5)
    predicted = np.array([0] * 9 + [1] + [1] * 2 + [0] * 3 + [2] * 4 + [0])
    sentences, value, text = describe(Single(), 4 * np.eye(3)[predicted], targets)
    assert sentences == [
        "It recognises 90.0% of the 10 images of a and 40.0% of the 5 images of b.",
        "Most frequent mistake: it predicted a for 3 of the 5 images of b (60%).",
    ]
    assert value == pytest.approx(1 / 3)
    assert text == (
        "always predicting one class gives a balanced accuracy of at most 33.3%; always predicting a is right for "
        "50.0% of the images, the model for 75.0%"
    )
    sentences, value, _ = describe(Single(), 4 * np.eye(3)[targets[:15]], targets[:15])
    assert sentences[1] == "It makes no mistake on these 15 images."
    assert value == 1 / 2, "a class without images cannot be guessed"
    _, value, text = describe(Single(), 4 * np.eye(3)[[0, 1]], np.array([0, 0]))
    assert (value, text.split(";")[0]) == (1, "always predicting one class gives a balanced accuracy of at most 100.0%")


def test_grades_say_by_how_many_they_are_off() -> None:
    targets = np.array([0, 0, 1, 1, 2, 2])
    sentences, value, text = describe(Ordinal(), 9 * np.eye(3)[[0, 2, 1, 0, 2, 2]], targets)
    assert sentences[0] == "It gives the exact grade for 66.7% of the images, at most one grade off for 83.3%."
    assert (value, text.split(";")[0]) == (0, "guessing gives 0")
    outcome = Outcome(classes=("c", "a", "b"), probabilities=(0.9, 0.1, 0.0))
    assert Ordinal().list_differences(outcome, 0, CLASSES, None) == ["predicted c (90%), labelled a: 2 grades too high"]
    outcome = Outcome(classes=("b", "c", "a"), probabilities=(0.999, 0.001, 0.0))
    assert Ordinal().list_differences(outcome, 2, CLASSES, None) == ["predicted b (>99%), labelled c: 1 grade too low"]
    assert Ordinal().list_differences(outcome, 1, CLASSES, None) == ["predicted b (>99%), labelled b"]


def test_labels_are_listed_wrong_ones_first_and_unknown_ones_counted() -> None:
    outcome = Outcome(classes=("a", "b", "c", "d"), probabilities=(0.92, 0.6, 0.3, 0.1), labels=("a", "b"))
    target = np.array([0, 1, 1, np.nan])
    assert Multilabel().list_differences(outcome, target, ("a", "b", "c", "d"), None) == [
        "predicted a (92%), labelled absent",
        "did not predict c (30%), labelled present",
        "other labels: 1 correct, 1 unknown",
    ]
    target = np.array([1, 1, -1, 0])
    assert Multilabel().list_differences(outcome, target, ("a", "b", "c", "d"), None) == [
        "predicted b (60%), labelled present",
        "other labels: 2 correct, 1 unknown",
    ]
    assert Multilabel().list_differences(outcome, np.full(4, np.nan), ("a", "b", "c", "d"), None) == [
        "labels: 4 unknown"
    ]


def test_labels_errors_are_those_of_the_fitted_thresholds() -> None:
    scores = np.array([[0.3, 0.9], [0.3, 0.9], [0.9, 0.45]])
    targets = np.array([[1.0, 1], [0, 1], [1, 0]])
    fitted = SimpleNamespace(label_thresholds=(0.2, 0.5))
    assert Multilabel().rank_errors(scores, targets, fitted) == ([1], [2, 0, 1])  # type: ignore[arg-type]
    assert Multilabel().rank_errors(scores, targets, None) == ([0], [2, 0, 1])


def test_labels_name_the_most_missed_and_the_most_falsely_predicted() -> None:
    targets = np.array([[1, 0, 1], [1, 0, 0], [0, 1, 1], [0, 1, 0], [0, 0, -1]], np.float32)
    logits = np.array([[2, 1, 2], [-1, -2, -2], [-2, 2, 2], [-2, 2, -2], [-2, -3, 0]], np.float32)
    sentences, value, text = describe(Multilabel(), logits, targets)
    assert sentences[1:] == [
        "Most often missed: a in 1 of 2 images with it (50%).",
        "Most often predicted without the label: b in 1 of 3 images (33%).",
    ]
    assert sentences[0].startswith("It recognises ")
    assert (value, text) == (0.5, "guessing gives 50.0%")


def test_number_names_the_third_with_the_largest_errors() -> None:
    targets = np.arange(9.0)
    predicted = targets + np.array([0, 0, 0, 0.1, 0.1, 0.1, 2, 2, 2])
    sentences, value, text = describe(Regression(), predicted[:, None], targets, ("age",))
    assert sentences == [
        "Half of the predictions are off by at most 0.1, 9 of 10 by at most 2.",
        "Least accurate for numbers from 5.333 on: off by 2 on average.",
    ]
    assert value == pytest.approx(20 / 9)
    assert text == "always predicting 4, the median, is off by 2.22 on average"
    for number, nine_tenths in ((2, 2), (12, 11), (15, 14)):
        errors = np.arange(1.0, number + 1)
        [first, _], *_ = describe(Regression(), errors[:, None], np.zeros(number), ("age",))
        assert first.endswith(f", 9 of 10 by at most {nine_tenths}."), "not interpolated: fewer were within it"
    outcome = Outcome(value=12.5, interval=(10.0, 15.0))
    assert Regression().list_differences(outcome, 14.0, ("age",), None) == [
        "predicted 12.5 (90% interval [10, 15]), labelled 14: 1.5 too low"
    ]
    large = Outcome(value=12345.0, interval=(10000.0, 15000.0))
    assert Regression().list_parts(large, 1, str) == ["12345  90% interval [10000, 15000]"]


def test_prediction_intervals_are_told_in_units_of_the_number() -> None:
    scaling = Scaling(margin=0.5)
    plain, log = Regression(mean=40.0, std=25.0), Regression(log=True, mean=3.0, std=2.0)
    assert plain.describe_calibration(Scaling()).startswith("no prediction intervals")
    assert plain.describe_calibration(scaling) == "90% prediction intervals from value - 12.5 to value + 12.5"
    assert log.describe_calibration(scaling) == "90% prediction intervals from value / 2.72 to value * 2.72"
