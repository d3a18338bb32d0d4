"""Each task shows only metrics that it computes."""

from typing import get_args

import numpy as np
import pytest

from convnext_cli.tasks.ordinal import Ordinal
from convnext_cli.tasks.reading import TaskName
from convnext_cli.tasks.registry import TASKS


def test_each_task_can_be_named() -> None:
    assert get_args(TaskName) == ("auto", *TASKS)


def test_names_that_are_numbers_are_told_from_counts() -> None:
    few = Ordinal().explain_small_validation(np.array([0, 0, 1]), ("2", "3 severe"))
    assert few.startswith("2 of grade 2, 1 of 3 severe;")


@pytest.mark.parametrize("name", TASKS)
def test_a_task_shows_metrics_that_it_computes(name: str) -> None:
    task, display = TASKS[name](), TASKS[name].display
    targets = task.stack_targets([0, 1, 1, 0], [(0.0, 1.0), (1.0, 0.0), (1.0, 1.0), (0.0, 0.0)])
    logits = np.random.default_rng(0).normal(size=(4, task.count_outputs(2)))
    metrics = task.compute_metrics(logits, targets, ("a", "b"))
    calculator = task.make_calculator(logits, targets)
    overall = {display.headline, display.loss, *display.epoch, *display.folds, *display.table, *display.compared}
    overall |= {*display.card, *(key for _, key in display.calibration)}
    assert overall <= set(calculator.overall)
    assert {*display.class_estimates, *display.class_values} <= set(calculator.per_class)
    assert all(hasattr(metrics, key) for key in calculator.overall)
    entry = metrics.per_class[0] if metrics.per_class else None
    fields = [field for field, _ in display.class_counts]
    assert all(hasattr(entry, key) for key in (*calculator.per_class, *fields))
