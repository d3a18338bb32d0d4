import contextlib
import math
from collections.abc import Collection

import pytest
import timm
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn
from torch._subclasses.fake_tensor import FakeTensorMode

from convnext_cli.kernels import mlp
from convnext_cli.kernels.blocks import FusedBlock, NativeBlock, RecomputingBlock, use_fused_blocks
from convnext_cli.kernels.library import call_kernel
from convnext_cli.kernels.mlp import can_use_native_mlp, native_mlp

pytestmark = pytest.mark.usefixtures("kernels")


def _draw(channels: int, hidden: int, *shape: int) -> list[torch.Tensor]:
    """Input, both weights and biases, for activations of about 1."""
    x, first, second = torch.randn(*shape, channels), torch.randn(hidden, channels), torch.randn(channels, hidden)
    return [x, first / channels**0.5, torch.randn(hidden), second / hidden**0.5, torch.randn(channels)]


@settings(max_examples=80)
@given(
    batch=st.integers(1, 4),
    height=st.integers(1, 12),
    channels=st.integers(1, 50),
    lanes=st.integers(1, 6),
    threads=st.integers(1, 3),
    block_rows=st.integers(1, 40),
    keeps=st.booleans(),
    channels_last=st.booleans(),
    seed=st.integers(0, 2**31),
)
def test_native_mlp_has_pytorchs_result_and_gradients(
    batch: int,
    height: int,
    channels: int,
    lanes: int,
    threads: int,
    block_rows: int,
    keeps: bool,
    channels_last: bool,
    seed: int,
) -> None:
    torch.manual_seed(seed)
    parts = _draw(channels, 16 * lanes, batch, height, 3)
    if not channels_last:
        parts[0] = parts[0].permute(0, 2, 1, 3).contiguous().permute(0, 2, 1, 3)
    exact = [part.double().requires_grad_() for part in parts]
    expected = F.linear(F.gelu(F.linear(*exact[:3])), *exact[3:])
    grad = torch.randn_like(parts[0])
    expected_gradients = torch.autograd.grad(expected, exact, grad.double())
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(mlp, "BLOCK_VALUES", 1)
            patch.setattr(mlp, "BLOCK_ROWS", block_rows)
            mine = [part.requires_grad_() for part in parts]
            result, kept = native_mlp(*mine, keeps)
            assert kept.numel() == (batch * height * 3 * 16 * lanes if keeps else 0)
            gradients = torch.autograd.grad(result, mine, grad)
    finally:
        torch.set_num_threads(before)
    torch.testing.assert_close(result.double(), expected, rtol=1e-4, atol=1e-5)
    for one, other in zip(gradients, expected_gradients, strict=True):
        torch.testing.assert_close(one.double(), other, rtol=1e-4, atol=1e-5 * max(1.0, float(other.abs().max())))


@pytest.mark.parametrize("keeps", [True, False])
def test_compilation_knows_the_shapes_of_the_native_mlp(*, keeps: bool) -> None:
    parts = _draw(20, 32, 2, 3, 4)
    results = []
    for is_fake in (True, False):
        with FakeTensorMode() if is_fake else contextlib.nullcontext() as mode:
            convert = mode.from_tensor if mode else torch.Tensor.clone
            mine = [convert(part).requires_grad_() for part in parts]
            result, kept = native_mlp(*mine, keeps)
            gradients = torch.autograd.grad(result, mine, torch.ones_like(result))
        results.append([(part.shape, part.dtype, part.stride()) for part in (result, kept, *gradients)])
    assert results[0] == results[1]


def _apply_gelu(values: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """GELU and its derivative by the kernels, and the same sums by column."""
    result, again, slopes = values.clone(), values.clone(), torch.ones_like(values)
    bias, sums = torch.zeros(values.shape[1]), torch.zeros(values.shape[1])
    call_kernel("gelu", result, bias, result, sizes=values.shape)
    call_kernel("gelu_backward", again, bias, None, None, again, slopes, sums, sizes=values.shape)
    torch.testing.assert_close(again, result, rtol=0, atol=0, equal_nan=True)
    torch.testing.assert_close(sums, slopes.sum(0), equal_nan=True)
    return result, slopes


def test_gelu_is_at_least_as_accurate_as_pytorchs() -> None:
    values = torch.linspace(-14, 14, 64 * 1600).view(-1, 64)
    exact = values.double().requires_grad_()
    theirs = values.clone().requires_grad_()
    torch.autograd.backward(F.gelu(exact).sum())
    torch.autograd.backward(F.gelu(theirs).sum())
    result, slopes = _apply_gelu(values)
    assert exact.grad is not None
    assert theirs.grad is not None
    for mine, other, truth in ((result, F.gelu(values), F.gelu(exact)), (slopes, theirs.grad, exact.grad)):
        assert (mine - truth).abs().max() <= (other - truth).abs().max()
        assert (mine - truth).abs().max() < 5e-7


def test_gelu_of_very_large_values_and_nan() -> None:
    values = torch.tensor([[-1e30, -1e4, -11.0, -0.0, 0.0, 1e-40, 11.0, 1e4, 1e30, math.inf, math.nan] + [0.0] * 5])
    result, slopes = _apply_gelu(values)
    assert result[0, :3].tolist() == [0.0] * 3, "never denormal, which would be slow"
    torch.testing.assert_close(result[0, 3:10], values[0, 3:10])
    assert result[0, 10].isnan()
    torch.testing.assert_close(slopes[0, :9], torch.tensor([0.0] * 3 + [0.5] * 3 + [1.0] * 3))
    assert slopes[0, 10].isnan()


def list_kinds(**options: Collection[int]) -> list[type[nn.Module]]:
    """The kind of block of each stage of atto: 40, 80, 160 and 320 channels."""
    model = timm.create_model("convnext_atto")
    use_fused_blocks(model, native=True, **options)
    kinds = [{type(block) for block in stage.blocks} for stage in model.stages]
    assert all(len(kind) == 1 for kind in kinds)
    return [kind.pop() for kind in kinds]


def test_narrow_blocks_compute_their_hidden_values_again() -> None:
    assert list_kinds() == [RecomputingBlock, RecomputingBlock, NativeBlock, NativeBlock]
    assert list_kinds(recomputed=(80, 320)) == [NativeBlock, RecomputingBlock] * 2
    v2 = timm.create_model("convnextv2_atto")
    assert not can_use_native_mlp(v2.stages[0].blocks[0].mlp), "GRN stands between its layers"


def test_pytorch_without_small_products_trains_without_the_native_mlp(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(mlp, "find_multiply", lambda: 0)
    assert list_kinds() == [FusedBlock] * 4
