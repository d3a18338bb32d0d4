import runpy
from pathlib import Path

import pytest
import timm
import torch
from timm.layers import LayerNorm, LayerNorm2d, calculate_drop_path_rates
from timm.models.convnext import ConvNeXtBlock, ConvNeXtStage
from torch import nn

from examples.convnext_block import GRN, Block, DropPath, Stage, ramp_drop_path

OUR_NAMES = {
    "conv_dw": "depthwise",
    "mlp.fc1": "expand",
    "mlp.fc2": "project",
    "mlp.grn.weight": "grn.gamma",
    "mlp.grn.bias": "grn.beta",
    "gamma": "scale",
}


def copy_weights(own_block: nn.Module, timm_block: nn.Module) -> None:
    """Gives both the same random weights, GRN and LayerScale included."""
    for parameter in timm_block.parameters():
        nn.init.normal_(parameter, std=0.5)
    state = {}
    for name, value in timm_block.state_dict().items():
        their_part = next((part for part in OUR_NAMES if part in name), None)
        state[name.replace(their_part, OUR_NAMES[their_part]) if their_part else name] = value
    own_block.load_state_dict(state)


@pytest.mark.parametrize("v2", [False, True])
def test_block_equals_timms_to_the_last_bit(v2: bool) -> None:
    torch.manual_seed(0)
    layer_scale = None if v2 else 1e-6
    own_block = Block(24, layer_scale=layer_scale, use_grn=v2)
    timm_block = ConvNeXtBlock(24, ls_init_value=layer_scale, use_grn=v2)
    copy_weights(own_block, timm_block)
    image = torch.randn(2, 24, 14, 14)
    assert torch.equal(own_block(image), timm_block(image))


@pytest.mark.parametrize("v2", [False, True])
def test_stage_equals_timms_in_training_with_drop_path(v2: bool) -> None:
    layer_scale = None if v2 else 1e-6
    rates = [0.2, 0.5, 0.9]
    own_block = Stage(16, 32, drop_paths=rates, layer_scale=layer_scale, use_grn=v2)
    timm_block = ConvNeXtStage(
        16,
        32,
        stride=2,
        depth=3,
        drop_path_rates=rates,
        ls_init_value=layer_scale,
        use_grn=v2,
        norm_layer=LayerNorm2d,
        norm_layer_cl=LayerNorm,
    )
    copy_weights(own_block, timm_block)
    image = torch.randn(8, 16, 16, 16)
    torch.manual_seed(1)
    copy = own_block.train()(image)
    torch.manual_seed(1)
    assert torch.equal(copy, timm_block.train()(image))


def test_drop_path_ramps_over_all_blocks() -> None:
    depths = [3, 3, 9, 3]
    expected = calculate_drop_path_rates(0.4, depths, stagewise=True)
    for own_block, timm_block in zip(ramp_drop_path(0.4, depths), expected, strict=True):
        assert own_block == pytest.approx(timm_block, abs=1e-7)
    model = timm.create_model("convnext_atto", drop_path_rate=0.3)
    rates = [getattr(block.drop_path, "drop_prob", 0.0) for stage in model.stages for block in stage.blocks]
    assert [rate for stage in ramp_drop_path(0.3, [2, 2, 6, 2]) for rate in stage] == pytest.approx(rates, abs=1e-7)


def test_drop_path_keeps_the_mean_and_survives_rate_one() -> None:
    torch.manual_seed(0)
    ones = torch.ones(20_000, 1)
    assert DropPath(0.3).train()(ones).mean() == pytest.approx(1.0, abs=0.02)
    assert torch.equal(DropPath(1.0).train()(ones), torch.zeros_like(ones))
    assert torch.equal(DropPath(0.9).eval()(ones), ones)


def test_it_runs_as_a_script(capsys: pytest.CaptureFixture[str]) -> None:
    runpy.run_path(str(Path(__file__).parents[2] / "examples" / "convnext_block.py"), run_name="__main__")
    assert "stage 2: (2, 96, 56, 56) -> (2, 192, 28, 28)" in capsys.readouterr().out


def test_grn_starts_as_the_identity() -> None:
    x = torch.randn(2, 5, 5, 8)
    assert torch.equal(GRN(8)(x), x)
