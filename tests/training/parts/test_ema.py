import pytest
import torch
from torch import nn

from convnext_cli.training.parts.ema import ModelEma, find_decay


def test_ema_warm_up_forgets_the_initial_weights() -> None:
    """After 500 steps almost nothing of the initial weights is left; a constant decay keeps 95%."""
    left = 1.0
    for step in range(1, 501):
        left *= find_decay(step, 0.9999)
    assert left < 1e-6 < 0.9999**500


def test_ema_decay_never_exceeds_the_setting() -> None:
    assert find_decay(10**9, 0.99) == 0.99
    assert [find_decay(step, 0.9999) for step in (1, 10, 100)] == pytest.approx([0.37004, 0.79782, 0.95389], abs=1e-4)


def test_ema_equals_timms() -> None:
    from timm.utils import ModelEmaV3

    torch.manual_seed(0)
    model = nn.Linear(4, 3)
    theirs, ours = ModelEmaV3(model, decay=0.98, use_warmup=True), ModelEma(model, 0.98)
    for step in range(1, 400):
        with torch.no_grad():
            model.weight.add_(torch.randn(3, 4))
        theirs.update(model, step=step + 1)  # timm's first update is step 0 to its warm-up
        ours.update(step)
    parameters = model.weight.clone()
    with ours.in_place():
        assert torch.allclose(model.weight, theirs.module.weight, rtol=1e-4, atol=1e-5)
    assert torch.equal(model.weight, parameters), "the model's own weights are back"
