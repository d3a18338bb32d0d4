"""The weight gradient of 7x7 depthwise convolutions by a native CPU kernel; PyTorch's takes five times as long.

`benchmarks/speed.py` measures the speed-up; `depthwise.c` describes the algorithm.
"""

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convnext_cli.kernels.library import call_kernel, load_kernels

SIDE = 7


class NativeDepthwise(nn.Conv2d):
    """A 7x7 depthwise convolution with the native weight gradient."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the convolution of (B, C, H, W), (B, C, H, W)."""
        is_trained = self.weight.requires_grad and torch.is_grad_enabled()
        if (
            is_trained
            and x.device.type == "cpu"
            and x.dtype == self.weight.dtype == torch.float32
            and not torch.is_autocast_enabled(x.device.type)
        ):
            result: Tensor = _Depthwise.apply(x, self.weight, self.bias)
            return result
        return super().forward(x)


def can_use_native_gradient(module: nn.Module) -> bool:
    """Return True for a 7x7 depthwise convolution with stride 1 and padding 3, which the kernel supports."""
    return (
        type(module) is nn.Conv2d
        and module.groups == module.in_channels == module.out_channels >= load_kernels().count_lanes()
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
        needs_x, needs_weight, needs_bias = ctx.needs_input_grad  # type: ignore[attr-defined]
        grad_x: Tensor | None = None
        if needs_x:
            padding = [SIDE // 2] * 2
            grad_x = torch.ops.aten.convolution_backward(
                grad, x, weight, None, [1, 1], padding, [1, 1], False, [0, 0], len(weight), [True, False, False]
            )[0]
        return (
            grad_x,
            depthwise_weight_gradient(x, grad) if needs_weight else None,
            grad.sum((0, 2, 3)) if needs_bias else None,
        )


@torch.library.custom_op("convnext::depthwise_weight_gradient", mutates_args=())  # opaque to torch.compile
def depthwise_weight_gradient(x: Tensor, grad: Tensor) -> Tensor:
    """Return the gradient of depthwise weights, (C, 1, 7, 7), of a convolution with stride 1 and padding 3.

    Args:
        x: the convolution's input, (B, C, H, W) float32 on the CPU, C at least the kernel's `count_lanes()`.
        grad: the gradient of its output, (B, C, H, W).

    Raises:
        NoKernelError: the kernels cannot be compiled or loaded.
    """
    threads = torch.get_num_threads()
    x, grad = (part.contiguous(memory_format=torch.channels_last) for part in (x, grad))
    batch, channels, height, width = x.shape
    sums = x.new_empty(batch, SIDE, SIDE, channels)
    scratch = x.new_empty(threads * load_kernels().count_scratch_floats(height, width))
    call_kernel("sum_products", x, grad, sums, scratch, sizes=(batch, height, width, channels, threads))
    return sums.sum(0).permute(2, 0, 1).unsqueeze(1).contiguous()


@depthwise_weight_gradient.register_fake
def _(x: Tensor, grad: Tensor) -> Tensor:
    del grad
    return x.new_empty(x.shape[1], 1, SIDE, SIDE)
