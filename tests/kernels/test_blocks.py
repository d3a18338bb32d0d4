from copy import deepcopy

import pytest
import timm
import torch
import torch.nn.functional as F
from timm.layers import SimpleNorm2d

from convnext_cli.kernels.blocks import FusedBlock, FusedGrnBlock, FusedSimpleNorm2d, use_fused_blocks
from convnext_cli.kernels.depthwise import NativeDepthwise


@pytest.mark.parametrize(
    "name",
    [
        "test_convnext", "test_convnext2", "test_convnext3", "convnext_zepto_rms", "convnext_zepto_rms_ols",
        "convnextv2_atto",
    ],
)  # fmt: skip
@pytest.mark.parametrize("native", [False, True])
def test_fused_model_has_timms_outputs_and_gradients(name: str, native: bool, request: pytest.FixtureRequest) -> None:
    if native:
        request.getfixturevalue("kernels")
    torch.manual_seed(0)
    model = timm.create_model(name, num_classes=3).to(memory_format=torch.channels_last)
    for parameter_name, parameter in model.named_parameters():
        if parameter_name.endswith(("gamma", "grn.weight", "grn.bias")):  # near 0 at first, which would hide the rest
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
    fast = deepcopy(model)
    use_fused_blocks(fast, native=native)
    assert any(isinstance(module, NativeDepthwise) for module in fast.modules()) == native
    assert fast.state_dict().keys() == model.state_dict().keys()
    x = torch.randn(2, 3, 64, 96).to(memory_format=torch.channels_last)
    for one in (model, fast):
        torch.autograd.backward(F.cross_entropy(one(x), torch.tensor([0, 2])))
    torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)
    for mine, expected in zip(fast.parameters(), model.parameters(), strict=True):
        assert mine.grad is not None
        assert expected.grad is not None
        scale = float(expected.grad.abs().max())
        torch.testing.assert_close(mine.grad, expected.grad, rtol=1e-4, atol=1e-4 * scale)
    for one in (model, fast):
        one.eval()
    with torch.inference_mode():
        torch.testing.assert_close(fast(x), model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("channels", [2, 32, 50])
def test_fused_norm_equals_timms(channels: int) -> None:
    torch.manual_seed(0)
    norm = SimpleNorm2d(channels).double()
    torch.nn.init.uniform_(norm.weight, -1, 2)
    x = (torch.randn(3, channels, 5, 4, dtype=torch.float64) + 1).requires_grad_()  # a mean that is not 0
    grad = torch.randn(x.shape, dtype=torch.float64)
    results = []
    for kind in (SimpleNorm2d, FusedSimpleNorm2d):
        norm.__class__ = kind
        y = norm(x)
        results.append((y, *torch.autograd.grad(y, [x, norm.weight], grad)))
    torch.testing.assert_close(results[1], results[0])


def test_fused_norm_is_timms_under_autocast() -> None:
    norm = FusedSimpleNorm2d(32)
    x = torch.randn(3, 32, 5, 4)
    with torch.autocast("cpu", torch.bfloat16):
        y, expected = norm(x), SimpleNorm2d.forward(norm, x)
    assert y.dtype == expected.dtype
    torch.testing.assert_close(y, expected, rtol=0, atol=0)


@pytest.mark.parametrize("size", [32, 96])
def test_grn_is_timms_at_high_and_low_resolution(size: int) -> None:
    """It scales the weights where there are fewer of them than activations, else the activations."""
    torch.manual_seed(0)
    model = timm.create_model("convnextv2_atto", num_classes=3, depths=(1, 1, 1, 1)).double().eval()
    for parameter_name, parameter in model.named_parameters():
        if "grn" in parameter_name:
            torch.nn.init.uniform_(parameter, -1, 1)
    fused = deepcopy(model)
    use_fused_blocks(fused)
    assert sum(isinstance(module, FusedGrnBlock) for module in fused.modules()) == 4
    x = torch.randn(2, 3, size, size, dtype=torch.float64)
    torch.testing.assert_close(fused(x), model(x))


def test_onednn_computes_linear_layers_without_gradients_only(monkeypatch: pytest.MonkeyPatch) -> None:
    model = timm.create_model("convnext_zepto_rms", num_classes=3).eval()
    expected = deepcopy(model)
    use_fused_blocks(model)
    asked: list[bool] = []
    can_use = FusedBlock._can_use_onednn

    def watch(block: FusedBlock, x: torch.Tensor) -> bool:
        asked.append(can_use(block, x))
        return asked[-1]

    monkeypatch.setattr(FusedBlock, "_can_use_onednn", watch)
    x = torch.randn(1, 3, 32, 32)
    with torch.no_grad():
        torch.testing.assert_close(model(x), expected(x), rtol=1e-4, atol=1e-4)
    assert set(asked) == {torch.backends.mkldnn.is_available()}  # type: ignore[no-untyped-call]
    asked.clear()
    model(x)
    model.train()
    with torch.no_grad():
        model(x)
    assert set(asked) == {False}
