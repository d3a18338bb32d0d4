import itertools
import math

import pytest
import timm
import torch
from timm.optim import param_groups_layer_decay

from convnext_cli.training.parts.optimizer import BETAS, FusedAdamW, Schedule, make_optimizer, set_lr
from tools import draw_schedule


def test_schedule_rises_to_its_peak_and_ends_at_its_floor() -> None:
    schedule = Schedule(peak=1e-3, floor=1e-6, warmup_steps=10, total_steps=100)
    rates = [schedule.lr_at(step) for step in range(100)]
    assert rates[:10] == pytest.approx([1e-4 * (step + 1) for step in range(10)])
    assert max(rates) == rates[9] == rates[10] == 1e-3
    assert rates[55] == pytest.approx(1e-6 + (1e-3 - 1e-6) * 0.5 * (1 + math.cos(math.pi * 45 / 90)))
    assert all(early > late for early, late in itertools.pairwise(rates[10:]))
    assert schedule.lr_at(100) == pytest.approx(1e-6)


def test_schedule_without_warmup_starts_at_the_peak() -> None:
    schedule = Schedule(peak=1e-3, floor=1e-6, warmup_steps=0, total_steps=1)
    assert schedule.lr_at(0) == 1e-3
    low = Schedule(peak=1e-7, floor=1e-6, warmup_steps=0, total_steps=10)
    assert max(low.lr_at(step) for step in range(11)) == 1e-7


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto"])
def test_norms_biases_layer_scale_and_grn_are_never_decayed(name: str) -> None:
    model = timm.create_model(name, num_classes=4)
    optimizer = make_optimizer(model, lr=1e-3, weight_decay=0.05, layer_decay=0.9)
    decay = {id(p): group["weight_decay"] for group in optimizer.param_groups for p in group["params"]}
    assert len(decay) == len(list(model.parameters()))
    for parameter_name, parameter in model.named_parameters():
        spared = any(part in parameter_name for part in ("norm", "bias", "gamma", "grn")) or parameter.ndim == 1
        assert decay[id(parameter)] == (0.0 if spared else 0.05), parameter_name


def test_layer_decay_reaches_the_learning_rate_of_the_stem() -> None:
    model = timm.create_model("convnext_atto", num_classes=4)
    optimizer = make_optimizer(model, lr=1e-3, weight_decay=0.05, layer_decay=0.8)
    set_lr(optimizer, 1e-3)
    rates = {id(p): group["lr"] for group in optimizer.param_groups for p in group["params"]}
    assert rates[id(model.head.fc.weight)] == pytest.approx(1e-3)
    # 12 blocks, the stem before them and the head after: 14 groups (facts: timm decays per block)
    assert rates[id(model.stem[0].weight)] == pytest.approx(1e-3 * 0.8**13)
    assert len({round(rate, 15) for rate in rates.values()}) == 14


def test_set_lr_moves_weights_by_each_groups_rate() -> None:
    model = timm.create_model("test_convnext", num_classes=2)
    optimizer = make_optimizer(model, lr=1e-3, weight_decay=0.0, layer_decay=0.5)
    set_lr(optimizer, 1e-3)
    before = {name: value.clone() for name, value in model.named_parameters()}
    model(torch.randn(4, 3, 32, 32)).square().sum().backward()
    optimizer.step()
    # AdamW's first step is lr * sign(gradient): the stem moves by its own small rate, the head by the whole one
    moved = {name: (value - before[name]).abs().max().item() for name, value in model.named_parameters()}
    assert moved["head.fc.weight"] == pytest.approx(1e-3, rel=1e-3)
    assert moved["stem.0.weight"] < 1e-5


def test_stem_lr_equals_the_table_in_the_docs() -> None:
    page = (draw_schedule.DOCS / "explanation/schedule.md").read_text()
    rows = [[cell.strip(" `") for cell in line.split("|")[1:-1]] for line in page.splitlines() if "`stem" in line]
    stem = {name: (float(scale), float(lr), float(decay)) for _, name, scale, lr, decay, _ in rows}
    # convnext_tiny: 18 blocks, the head after them; the stem is 19 factors of 0.8 away
    scale = 0.8**19
    assert stem["stem.0.weight"] == pytest.approx((scale, 2e-4 * scale, 0.05), rel=1e-3)
    assert stem["stem.0.bias"] == pytest.approx((scale, 2e-4 * scale, 0.0), rel=1e-3)
    assert page == draw_schedule.write_page(), "`python tools/draw_schedule.py` brings the page up to date"


def test_fused_step_is_that_of_torch_with_less_python() -> None:
    torch.manual_seed(0)
    models = [timm.create_model("test_convnext", num_classes=2).to(memory_format=torch.channels_last) for _ in range(2)]
    models[1].load_state_dict(models[0].state_dict())
    own = make_optimizer(models[0], lr=1e-3, weight_decay=0.05, layer_decay=0.8, fused=True)
    groups = param_groups_layer_decay(models[1], weight_decay=0.05, layer_decay=0.8)
    other = torch.optim.AdamW(groups, lr=1e-3, betas=BETAS, fused=True)
    inputs = torch.randn(4, 3, 32, 32)
    for step in range(4):
        for model, optimizer in zip(models, (own, other), strict=True):
            set_lr(optimizer, 1e-3 / (1 + step))
            model(inputs).square().sum().backward()
            optimizer.step()
            optimizer.zero_grad()
    for one, two in zip(models[0].parameters(), models[1].parameters(), strict=True):
        assert torch.equal(one, two)


def test_fused_step_is_left_out_where_a_scaled_gradient_overflows() -> None:
    model = torch.nn.Linear(3, 2)
    optimizer = FusedAdamW(model.parameters(), lr=1e-2, fused=True)
    scaler = torch.amp.GradScaler("cpu", init_scale=8.0)
    weights = []
    for number in range(4):
        scaler.scale(model(torch.ones(1, 3)).sum()).backward()
        if number == 2:
            model.weight.grad = torch.full_like(model.weight, torch.inf)
        scaler.unscale_(optimizer)
        scaler.step(optimizer)
        scaler.update()
        optimizer.zero_grad()
        weights.append(model.weight.detach().clone())
    assert not torch.equal(weights[0], weights[1])
    assert torch.equal(weights[1], weights[2]), "the third step is left out"
    assert not torch.equal(weights[2], weights[3])
    assert {float(state["step"]) for state in optimizer.state.values()} == {3.0}
    assert scaler.get_scale() == 4.0
