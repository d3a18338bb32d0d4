"""ConvNeXt's blocks in a formulation that a processor computes faster. Names, weights and results stay timm's.

What it brings is measured by `benchmarks/speed.py`. Three things bring it, and a fourth:

- The 1x1 convolutions are matrix products over (B*H*W, C), which channels_last gives without a copy.
- LayerScale is a factor of the last product's weights, (C, 4C), and not of its result, (B, H, W, C): three passes over
  all activations less.
- The gradient of the 7x7 depthwise weights, where PyTorch takes ten times as long as forward: on small maps it is taken
  from seven batched matrix products.
- What a step has freed is kept for the next one. glibc gives large blocks back to the system, and each step then waits
  for the system to clear them page by page.
"""

import ctypes

import torch
import torch.nn.functional as F
from timm.layers import Mlp
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

SMALL_MAP = 8  # pixels: on wider maps PyTorch's own gradient of depthwise weights measured as fast or faster

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them


def speed_up(model: nn.Module) -> None:
    """Gives the blocks of a timm ConvNeXt their faster formulation, in place. Meant for float32 on a processor."""
    for module in model.modules():
        if type(module) is ConvNeXtBlock and type(module.mlp) is Mlp:
            module.__class__ = FastBlock
        elif type(module) is nn.Conv2d and _is_depthwise(module):
            module.__class__ = FastDepthwise


def keep_memory() -> None:
    """Tells glibc to keep what is freed; other C libraries are left as they are."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


class FastBlock(ConvNeXtBlock):  # type: ignore[misc]  # timm has no types
    """timm's block with the same parameters under the same names."""

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, H, W) to (B, C', H', W')."""
        inner = self.conv_dw(x)
        inner = self.norm(inner).permute(0, 2, 3, 1) if self.use_conv_mlp else self.norm(inner.permute(0, 2, 3, 1))
        first, second = self.mlp.fc1, self.mlp.fc2
        inner = self.mlp.drop1(self.mlp.act(F.linear(inner, first.weight.flatten(1), first.bias)))
        weight, bias = second.weight.flatten(1), second.bias
        if self.gamma is not None:
            weight, bias = weight * self.gamma[:, None], bias * self.gamma
        inner = self.mlp.drop2(F.linear(inner, weight, bias)).permute(0, 3, 1, 2)
        result: Tensor = self.drop_path(inner) + self.shortcut(x)
        return result


class FastDepthwise(nn.Conv2d):
    """A depthwise convolution that keeps the size of its maps."""

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, H, W) to (B, C, H, W)."""
        plain = x.dtype == self.weight.dtype and not torch.is_autocast_enabled(x.device.type)
        if plain and self.weight.requires_grad and torch.is_grad_enabled() and x.shape[-1] <= SMALL_MAP:
            result: Tensor = _Depthwise.apply(x, self.weight, self.bias)
            return result
        return super().forward(x)


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding="same", groups=len(weight))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        for_x, for_weight, for_bias = ctx.needs_input_grad  # type: ignore[attr-defined]
        side = weight.shape[-1]
        grad_x: Tensor | None = None
        if for_x:
            padding = [side // 2] * 2
            grad_x = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], len(weight), [True, False, False]
            )[0]
        return (
            grad_x,
            find_weight_gradient(x, grad, side) if for_weight else None,
            grad.sum((0, 2, 3)) if for_bias else None,
        )


def find_weight_gradient(x: Tensor, grad: Tensor, side: int) -> Tensor:
    """The gradient of depthwise weights, (C, 1, side, side), of a convolution that keeps the size of its maps.

    For each row i of the kernel and each channel, a matrix product over rows and images says how every column of the
    padded input goes with every column of the gradient, (W + side - 1, W). What the kernel's columns need are the
    diagonals of that matrix: entry (w + j, w) belongs to column j.

    Args:
        x: the convolution's input, (B, C, H, W).
        grad: the gradient of its output, (B, C, H, W).
        side: the kernel's, odd.
    """
    batch, channels, height, width = x.shape
    edge = side // 2
    padded = x.new_zeros(channels, width + 2 * edge, height + 2 * edge, batch)
    padded[:, edge : edge + width, edge : edge + height] = x.permute(1, 3, 2, 0)
    flat = padded.view(channels, width + 2 * edge, -1)
    columns = grad.permute(1, 2, 0, 3).reshape(channels, height * batch, width)
    rows = []
    for i in range(side):
        together = torch.bmm(flat[:, :, i * batch : (i + height) * batch], columns)
        diagonals = together.as_strided((channels, side, width), (together.stride(0), width, width + 1))
        rows.append(diagonals.sum(-1))
    return torch.stack(rows, 1).unsqueeze(1)


def _is_depthwise(conv: nn.Conv2d) -> bool:
    side = conv.kernel_size[0]
    return (
        conv.groups == conv.in_channels == conv.out_channels
        and side % 2 == 1
        and conv.kernel_size == (side, side)
        and conv.stride == conv.dilation == (1, 1)
        and conv.padding == (side // 2, side // 2)
        and conv.padding_mode == "zeros"
    )
