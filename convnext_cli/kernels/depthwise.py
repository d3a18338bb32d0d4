"""The gradient of 7x7 depthwise weights by our own kernel: PyTorch's takes five times as long.

What it brings is measured by `benchmarks/speed.py`. `depthwise.c` says how it works.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_cli.kernels.library import load_kernels

SIDE = 7


class NativeDepthwise(nn.Conv2d):
    """A 7x7 depthwise convolution whose weights' gradient the kernel computes."""

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, H, W) to (B, C, H, W)."""
        learns = self.weight.requires_grad and torch.is_grad_enabled()
        if learns and x.dtype == self.weight.dtype == torch.float32 and not torch.is_autocast_enabled(x.device.type):
            result: Tensor = _Depthwise.apply(x, self.weight, self.bias)
            return result
        return super().forward(x)


def can_use_native_gradient(module: nn.Module) -> bool:
    """Whether the kernel is for it: a 7x7 depthwise convolution that keeps the size of its maps."""
    return (
        type(module) is nn.Conv2d
        and module.groups == module.in_channels == module.out_channels >= load_kernels().find_lanes()
        and module.kernel_size == (SIDE, SIDE)
        and module.stride == module.dilation == (1, 1)
        and module.padding == (SIDE // 2, SIDE // 2)
        and module.padding_mode == "zeros"
    )


class _Depthwise(torch.autograd.Function):
    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        ctx.save_for_backward(x, weight)
        return F.conv2d(x, weight, bias, padding="same", groups=len(weight))

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor | None, ...]:
        x, weight = ctx.saved_tensors  # type: ignore[attr-defined]
        for_x, for_weight, for_bias = ctx.needs_input_grad  # type: ignore[attr-defined]
        grad_x: Tensor | None = None
        if for_x:
            padding = [SIDE // 2] * 2
            grad_x = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], len(weight), [True, False, False]
            )[0]
        return (
            grad_x,
            depthwise_weight_gradient(x, grad) if for_weight else None,
            grad.sum((0, 2, 3)) if for_bias else None,
        )


@torch.library.custom_op("convnext::depthwise_weight_gradient", mutates_args=())  # so that torch.compile lets it be
def depthwise_weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """The gradient of depthwise weights, (C, 1, 7, 7), of a convolution that keeps the size of its maps.

    Args:
        x: the convolution's input, (B, C, H, W) float32 on the processor, C at least the kernel's `find_lanes()`.
        grad: the gradient of its output, (B, C, H, W).

    Raises:
        NoKernelError: the kernels cannot be compiled or loaded here.
    """
    kernels, threads = load_kernels(), torch.get_num_threads()
    x, grad = (part.contiguous(memory_format=torch.channels_last) for part in (x, grad))
    batch, channels, height, width = x.shape
    sums = x.new_empty(batch, SIDE, SIDE, channels)
    scratch = x.new_empty(threads * kernels.find_room(height, width))
    places = (part.data_ptr() for part in (x, grad, sums, scratch))
    kernels.sum_products(*places, batch, height, width, channels, threads)
    return sums.sum(0).permute(2, 0, 1).unsqueeze(1).contiguous()


@depthwise_weight_gradient.register_fake
def _(x: Tensor, grad: Tensor) -> Tensor:
    del grad
    return x.new_empty(x.shape[1], 1, SIDE, SIDE)
