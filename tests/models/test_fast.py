from copy import deepcopy

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st

from convnext_cli.models.fast import SMALL_MAP, FastBlock, FastDepthwise, find_weight_gradient, speed_up


@settings(max_examples=60, deadline=None)
@given(
    batch=st.integers(1, 5),
    channels=st.integers(1, 6),
    height=st.integers(1, 12),
    width=st.integers(1, 12),
    side=st.sampled_from([1, 3, 5, 7]),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_the_weight_gradient_is_pytorchs(
    batch: int, channels: int, height: int, width: int, side: int, channels_last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x = torch.randn(batch, channels, height, width).to(memory_format=memory_format)
    grad = torch.randn(batch, channels, height, width).to(memory_format=memory_format)
    weight = torch.zeros(channels, 1, side, side, dtype=torch.float64, requires_grad=True)
    result = F.conv2d(x.double(), weight, padding=side // 2, groups=channels)
    [expected] = torch.autograd.grad(result, weight, grad.double())
    torch.testing.assert_close(find_weight_gradient(x, grad, side).double(), expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("width", [SMALL_MAP, SMALL_MAP + 1])
@pytest.mark.parametrize("bias", [True, False])
def test_the_depthwise_convolution_has_pytorchs_gradients(width: int, bias: bool) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(6, 6, 7, padding=3, groups=6, bias=bias)
    fast = deepcopy(plain)
    fast.__class__ = FastDepthwise
    x = torch.randn(3, 6, 9, width)
    gradients = []
    for conv in (plain, fast):
        inputs = x.clone().requires_grad_()
        loss = conv(inputs).square().sum()
        gradients.append(torch.autograd.grad(loss, [inputs, *conv.parameters()]))
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "name", ["test_convnext", "test_convnext2", "test_convnext3", "convnext_zepto_rms", "convnext_zepto_rms_ols"]
)
def test_a_model_answers_and_learns_as_timms_own(name: str) -> None:
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).to(memory_format=torch.channels_last)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith("gamma"):  # near 0 at first, which would hide the rest
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    fast = deepcopy(model)
    speed_up(fast)
    assert any(isinstance(module, FastDepthwise) for module in fast.modules())
    assert fast.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 3, 64, 64).to(memory_format=torch.channels_last)
    for one in (model, fast):
        torch.autograd.backward(F.cross_entropy(one(x), torch.tensor([0, 2])))
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    for mine, expected in zip(fast.parameters(), model.parameters(), strict=True):
        assert mine.grad is not None
        assert expected.grad is not None
        scale = float(expected.grad.abs().max())
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-4, atol=1e-4 * scale)


def test_only_blocks_with_a_plain_mlp_change() -> None:
    first, second = timm.create_model("test_convnext"), timm.create_model("convnextv2_atto")
    speed_up(first)
    speed_up(second)
    assert any(isinstance(module, FastBlock) for module in first.modules())
    assert not any(isinstance(module, FastBlock) for module in second.modules()), "GRN stands between its layers"
