from copy import deepcopy

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from convnext_cli.kernels.depthwise import SIDE, NativeDepthwise, can_use_native_gradient, depthwise_weight_gradient

pytestmark = pytest.mark.usefixtures("kernels")


@settings(max_examples=80)
@given(
    batch=st.integers(1, 4),
    channels=st.integers(16, 50),
    height=st.integers(1, 20),
    width=st.integers(1, 20),
    threads=st.integers(1, 3),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_native_weight_gradient_equals_pytorchs(
    batch: int, channels: int, height: int, width: int, threads: int, channels_last: bool, seed: int
) -> None:
    torch.manual_seed(seed)
    memory_format = torch.channels_last if channels_last else torch.contiguous_format
    x, grad = (torch.randn(batch, channels, height, width).to(memory_format=memory_format) for _ in range(2))
    weight = torch.zeros(channels, 1, SIDE, SIDE, dtype=torch.float64, requires_grad=True)
    result = F.conv2d(x.double(), weight, padding=SIDE // 2, groups=channels)
    [expected] = torch.autograd.grad(result, weight, grad.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        mine = depthwise_weight_gradient(x, grad)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(mine.double(), expected, rtol=1e-4, atol=1e-4)


def test_compilation_knows_the_shape_of_the_weight_gradient() -> None:
    x, grad = torch.randn(2, 5, 6, 24).permute(0, 3, 1, 2), torch.randn(2, 5, 6, 24).permute(0, 3, 1, 2)
    with FakeTensorMode() as mode:
        fake = depthwise_weight_gradient(mode.from_tensor(x), mode.from_tensor(grad))
    real = depthwise_weight_gradient(x, grad)
    assert (fake.shape, fake.dtype, fake.stride()) == (real.shape, real.dtype, real.stride())


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("frozen", [None, "weight", "bias"])
def test_native_convolution_has_pytorchs_gradients(bias: bool, frozen: str | None) -> None:
    torch.manual_seed(0)
    plain = torch.nn.Conv2d(24, 24, SIDE, padding=SIDE // 2, groups=24, bias=bias)
    for name, parameter in plain.named_parameters():
        parameter.requires_grad = name != frozen
    native = deepcopy(plain)
    assert can_use_native_gradient(native)
    native.__class__ = NativeDepthwise
    x = torch.randn(3, 24, 9, 11).to(memory_format=torch.channels_last)
    gradients = []
    for conv in (plain, native):
        inputs = x.clone().requires_grad_()
        asked = [inputs, *(parameter for parameter in conv.parameters() if parameter.requires_grad)]
        gradients.append(torch.autograd.grad(conv(inputs).square().sum(), asked))
    for mine, expected in zip(*gradients, strict=True):
        torch.testing.assert_close(mine, expected, rtol=1e-4, atol=1e-4)


def test_other_convolutions_are_not_replaced() -> None:
    few, small, strided = (
        torch.nn.Conv2d(4, 4, SIDE, padding=3, groups=4),
        torch.nn.Conv2d(32, 32, 3, padding=1, groups=32),
        torch.nn.Conv2d(32, 32, SIDE, padding=3, groups=32, stride=2),
    )
    assert not any(map(can_use_native_gradient, (few, small, strided, torch.nn.Conv2d(32, 32, SIDE, padding=3))))
