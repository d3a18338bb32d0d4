import contextlib

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

from convnext_cli.kernels import grn, mlp
from convnext_cli.kernels.blocks import FusedGrnBlock, NativeGrnBlock, use_fused_blocks
from convnext_cli.kernels.grn import EPS, native_grn_mlp

pytestmark = pytest.mark.usefixtures("kernels")


def _draw(channels: int, hidden: int, outputs: int, *shape: int) -> list[Tensor]:
    """Input, first weight and bias, GRN's weight, second weight and bias, for activations of about 1."""
    first, second = torch.randn(hidden, channels) / channels**0.5, torch.randn(outputs, hidden) / hidden**0.5
    return [
        torch.randn(*shape, channels),
        first,
        torch.randn(hidden),
        torch.randn(hidden),
        second,
        torch.randn(outputs),
    ]


def _compute_plainly(
    x: Tensor, first: Tensor, first_bias: Tensor, weight: Tensor, second: Tensor, second_bias: Tensor
) -> Tensor:
    activated = F.gelu(F.linear(x, first, first_bias))
    norms = activated.norm(dim=(1, 2), keepdim=True)
    return F.linear(activated * (1 + weight * norms / (norms.mean(-1, keepdim=True) + EPS)), second, second_bias)


@settings(max_examples=80)
@given(
    batch=st.integers(1, 4),
    height=st.integers(1, 12),
    channels=st.integers(1, 50),
    outputs=st.integers(1, 50),
    lanes=st.integers(1, 6),
    threads=st.integers(1, 3),
    block_rows=st.integers(1, 40),
    seed=st.integers(0, 2**31),
)
def test_native_grn_mlp_has_pytorchs_result_and_gradients(
    batch: int, height: int, channels: int, outputs: int, lanes: int, threads: int, block_rows: int, seed: int
) -> None:
    torch.manual_seed(seed)
    parts = _draw(channels, 16 * lanes, outputs, batch, height, 3)
    exact = [part.double().requires_grad_() for part in parts]
    expected = _compute_plainly(*exact)
    grad = torch.randn(expected.shape)
    expected_gradients = torch.autograd.grad(expected, exact, grad.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlp, "BLOCK_VALUES", 1)
            patch.setattr(mlp, "BLOCK_ROWS", block_rows)
            mine = [part.requires_grad_() for part in parts]
            result = native_grn_mlp(*mine)[0]
            gradients = torch.autograd.grad(result, mine, grad)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))


def test_a_channel_that_is_zero_in_a_whole_image_has_a_gradient() -> None:
    parts = _draw(4, 16, 4, 2, 3, 3)
    parts[1][3], parts[2][3] = 0.0, 0.0  # GELU(0) = 0, so its norm is 0
    mine = [part.requires_grad_() for part in parts]
    gradients = torch.autograd.grad(native_grn_mlp(*mine)[0].sum(), mine)
    assert all(gradient.isfinite().all() for gradient in gradients)


def test_compilation_knows_the_shapes_of_the_native_grn_mlp() -> None:
    parts = _draw(20, 32, 24, 2, 3, 4)
    results = []
    for is_fake in (True, False):
        with FakeTensorMode() if is_fake else contextlib.nullcontext() as mode:
            convert = mode.from_tensor if mode else torch.Tensor.clone
            mine = [convert(part).requires_grad_() for part in parts]
            outputs = native_grn_mlp(*mine)
            gradients = torch.autograd.grad(outputs[0], mine, torch.ones_like(outputs[0]))
        results.append([(part.shape, part.dtype, part.stride()) for part in (*outputs, *gradients)])
    assert results[0] == results[1]


def test_native_v2_blocks_have_timms_results_and_gradients() -> None:
    torch.manual_seed(0)
    theirs = timm.create_model("convnextv2_atto", num_classes=3).eval()
    for block in (block for stage in theirs.stages for block in stage.blocks):
        torch.nn.init.normal_(block.mlp.grn.weight)
        torch.nn.init.normal_(block.mlp.grn.bias)
    ours = timm.create_model("convnextv2_atto", num_classes=3).eval()
    ours.load_state_dict(theirs.state_dict())
    use_fused_blocks(ours, native=True)
    assert all(type(block) is NativeGrnBlock for stage in ours.stages for block in stage.blocks)
    images = torch.randn(2, 3, 64, 64)
    outputs = [model(images) for model in (theirs, ours)]
    torch.testing.assert_close(*outputs, rtol=1e-3, atol=1e-4)
    for output in outputs:
        torch.autograd.backward(output.square().sum())
    for one, other in zip(theirs.parameters(), ours.parameters(), strict=True):
        assert one.grad is not None
        assert other.grad is not None
        scale = float(one.grad.abs().max())
        torch.testing.assert_close(other.grad, one.grad, rtol=1e-3, atol=1e-3 * scale)


def test_pytorch_without_small_products_trains_without_the_native_grn_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grn, "find_multiply", lambda: 0)
    model = timm.create_model("convnextv2_atto")
    use_fused_blocks(model, native=True)
    assert {type(block) for stage in model.stages for block in stage.blocks} == {FusedGrnBlock}
