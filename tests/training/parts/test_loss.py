from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F

from convnext_cli.data.index import Index
from convnext_cli.recipes.settings import Settings, default_settings
from convnext_cli.tasks.registry import TASKS
from convnext_cli.training.parts.loss import Loss, make_loss, weigh_classes

CPU = torch.device("cpu")
COUNTS = (900, 90, 10)


def criterion(task: dict[str, Any] | None = None, **settings: Any) -> Loss:
    needed: dict[str, Any] = {
        "epochs": 1, "batch_size": 8, "micro_batch_size": 8, "lr": 1e-3, "warmup_epochs": 0, "image_size": 32,
        "fit": "crop", "crop_pct": 1.0, "weight_decay": 0.0, "drop_path": 0.0, "label_smoothing": 0.0, "mixup": 0.0,
        "cutmix": 0.0, "min_crop_area": 0.0, "hflip": 0.0, "freeze_epochs": 0, "layer_decay": 1.0,
    }  # fmt: skip
    labels = tuple(np.repeat(np.arange(3), COUNTS).tolist())
    index = Index(
        root=Path(), classes=tuple("abc"), paths=("",) * sum(COUNTS), labels=labels,
        splits=("train",) * sum(COUNTS), skipped={}, task_record=task,
    )  # fmt: skip
    return make_loss(Settings(**(needed | default_settings() | settings)), index, CPU)


def test_label_smoothing_equals_torchs() -> None:
    labels, logits = torch.tensor([0, 2, 1]), torch.randn(3, 3)
    smoothed = criterion(label_smoothing=0.1)
    expected = F.cross_entropy(logits, labels, label_smoothing=0.1, reduction="sum")
    assert smoothed.sum_losses(logits, smoothed.encode(labels)) == pytest.approx(expected)


@pytest.mark.parametrize("name", TASKS)
def test_label_smoothing_changes_the_loss_of_each_task_that_takes_it(name: str) -> None:
    task = TASKS[name]()
    targets = torch.tensor([[0.0, 1.0, 1.0]]) if name == "multilabel" else torch.tensor([1])
    plain, smoothed = (criterion(task.to_dict(), label_smoothing=part).encode(targets) for part in (0.0, 0.2))
    assert torch.equal(plain, smoothed) == ("label_smoothing" in task.ignored)


@pytest.mark.parametrize("name", TASKS)
def test_encoded_targets_are_float32(name: str) -> None:
    """Apple's GPUs refuse float64, and Intel's do not compute in it."""
    task = TASKS[name]()
    targets = torch.from_numpy(task.stack_targets([1, 0], [(1.0, 0.0, -1.0), (1.0, 0.0, 0.0)]))
    assert criterion(task.to_dict()).encode(targets).dtype == torch.float32


def test_loss_without_corrections_is_torchs_cross_entropy() -> None:
    logits, labels = torch.randn(6, 3), torch.tensor([0, 1, 2, 0, 1, 2])
    ours = criterion().sum_losses(logits, F.one_hot(labels, 3).float())
    assert ours == pytest.approx(F.cross_entropy(logits, labels, reduction="sum"))


def test_balanced_weights_give_each_class_the_same_total_and_keep_the_scale() -> None:
    weights = weigh_classes(COUNTS, "balanced")
    assert weights * COUNTS == pytest.approx([sum(COUNTS) / 3] * 3)
    assert (weights * COUNTS).sum() == pytest.approx(sum(COUNTS))


def test_effective_weights_lie_between_none_and_balanced() -> None:
    """arXiv:1901.05555, equation 2: (1 - beta^n) / (1 - beta) effective images."""
    weights, balanced = weigh_classes(COUNTS, "effective"), weigh_classes(COUNTS, "balanced")
    assert 1 < weights[2] / weights[0] < balanced[2] / balanced[0]
    assert weights[2] / weights[0] == pytest.approx((1 - 0.999**900) / (1 - 0.999**10))
    assert (weights * COUNTS).sum() == pytest.approx(sum(COUNTS))


def test_class_weights_reach_the_loss() -> None:
    logits, targets = torch.zeros(3, 3), torch.eye(3)
    weights = torch.tensor(weigh_classes(COUNTS, "balanced"), dtype=torch.float32)
    expected = (weights * np.log(3)).sum()
    assert criterion(class_weights="balanced").sum_losses(logits, targets) == pytest.approx(expected.item())


def test_logit_adjustment_is_the_loss_under_the_training_fractions() -> None:
    """For equal logits, the loss is that of predicting each class by its fraction to the power tau."""
    loss = criterion(logit_adjustment=1.0).sum_losses(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]))
    assert loss == pytest.approx(-np.log(10 / 1000), rel=1e-5)
    half = criterion(logit_adjustment=0.5).sum_losses(torch.zeros(1, 3), torch.tensor([[0.0, 0.0, 1.0]]))
    fractions = np.sqrt(np.array(COUNTS) / 1000)
    assert half == pytest.approx(-np.log(fractions[2] / fractions.sum()), rel=1e-5)


def test_loss_has_no_corrections_by_default() -> None:
    result = default_settings()
    assert (result["class_weights"], result["sampler"], result["logit_adjustment"]) == ("none", "shuffle", 0.0)
