"""The MLP of a V2 block (linear, GELU, GRN, linear) by a native CPU kernel, which computes it in blocks of rows.

GRN is a (1 + w n / (mean(n) + eps)) + b, with n the L2 norm of a channel of the activated values a over the positions
of an image, and the mean over channels. Source: arXiv:2301.00808, algorithm 1. So the kernel takes two passes: first
the norms, then the output, for which it computes GELU again. It keeps only the values before GELU; PyTorch keeps four
such tensors. b is left to the caller: second @ b is a part of the last bias. `grn.c` has the kernel.
"""

from collections.abc import Sequence
from typing import Any

import torch
from timm.layers import GlobalResponseNormMlp
from timm.layers.activations import GELU
from torch import Tensor

from convnext_cli.kernels.library import call_kernel, find_multiply, load_kernels
from convnext_cli.kernels.mlp import count_block_rows

EPS = 1e-6  # of GRN, which no ConvNeXt changes


def can_use_native_grn(mlp: Any) -> bool:
    """Return True if `native_grn_mlp` can replace this MLP in training."""
    return (
        type(mlp) is GlobalResponseNormMlp
        and type(mlp.act) is GELU
        and mlp.grn.eps == EPS
        and mlp.drop1.p == 0
        and mlp.fc1.weight.shape[0] % load_kernels().count_lanes() == 0
        and find_multiply() != 0
    )


@torch.library.custom_op("convnext::native_grn_mlp", mutates_args=())  # opaque to torch.compile
def native_grn_mlp(
    x: Tensor, first: Tensor, first_bias: Tensor, weight: Tensor, second: Tensor, second_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    """Compute (a s) second' + second_bias, float32 on the CPU.

    a = GELU(x first' + first_bias) and s = 1 + w n / (mean(n) + EPS).

    Args:
        x: (B, H, W, C).
        first: (D, C), D a multiple of the kernels' `count_lanes()`.
        first_bias: (D,).
        weight: w of GRN, (D,).
        second: (C', D).
        second_bias: (C',).

    Returns:
        The result, (B, H, W, C'); x first', (B * H * W, D); and the norms n, (B, D).

    Raises:
        NoKernelError: the kernels cannot be compiled or loaded.
    """
    threads, hidden, outputs, images = torch.get_num_threads(), len(first), len(second), len(x)
    rows = x.reshape(-1, x.shape[-1]).contiguous()
    first, second = first.T.contiguous(), second.T.contiguous()
    size, positions = count_block_rows(len(rows), hidden, threads), len(rows) // images
    h, squares = x.new_empty(len(rows), hidden), x.new_zeros(threads, images, hidden)
    result, scratch = x.new_empty(len(rows), outputs), x.new_empty(threads, size, hidden)
    end = positions, size, threads
    places = rows, first, first_bias, h, squares, scratch
    call_kernel("grn_squares", find_multiply(), *places, sizes=(*rows.shape, hidden, *end))
    norms = squares.sum(0).sqrt()
    scale = 1 + weight * (norms / (norms.mean(1, keepdim=True) + EPS))
    sizes = len(rows), hidden, outputs, *end
    call_kernel("grn_output", find_multiply(), h, first_bias, scale, second, second_bias, result, scratch, sizes=sizes)
    return result.view(*x.shape[:-1], outputs), h, norms


@torch.library.custom_op("convnext::native_grn_mlp_backward", mutates_args=())
def native_grn_mlp_backward(
    grad: Tensor, parts: Sequence[Tensor]
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of all tensors that `native_grn_mlp` takes.

    Args:
        grad: that of its result, (B, H, W, C').
        parts: x, first, first_bias, weight and second; then x first' and the norms.

    Raises:
        NoKernelError: as `native_grn_mlp`.
    """
    x, first, first_bias, weight, second, h, norms = parts
    threads, hidden, outputs, images = torch.get_num_threads(), len(first), len(second), len(x)
    rows, grads = x.reshape(-1, x.shape[-1]).contiguous(), grad.reshape(-1, outputs).contiguous()
    first, second, inputs = first.contiguous(), second.contiguous(), rows.shape[1]
    size, positions = count_block_rows(len(rows), hidden, threads), len(rows) // images
    end = positions, size, threads

    # 1. The gradients of a s and of s.
    grad_scaled, scratch = torch.empty_like(h), x.new_empty(threads, size, hidden + max(inputs, outputs))
    grad_scale = x.new_zeros(threads, images, hidden)
    places = grads, h, first_bias, second, grad_scaled, grad_scale, scratch
    call_kernel("grn_scale_backward", find_multiply(), *places, sizes=(len(rows), hidden, outputs, *end))
    grad_scale = grad_scale.sum(0)

    # 2. Those of w and n, with s = 1 + w n / m; that of a through n is `shift` times a, as n' = a / n.
    mean = norms.mean(1, keepdim=True) + EPS
    ratios, grad_ratios = norms / mean, grad_scale * weight
    scale, grad_weight = 1 + weight * ratios, (grad_scale * ratios).sum(0)
    grad_norms = (grad_ratios - (grad_ratios * ratios).mean(1, keepdim=True)) / mean
    shift = torch.where(norms > 0, grad_norms / norms, 0.0)

    # 3. Those of x and of the other weights.
    grad_x = torch.empty_like(rows)
    sums = [x.new_zeros(threads, *part.shape) for part in (first.T, first_bias, second)]  # of each thread
    more = grads, rows, first, first_bias, h, scale, shift, grad_scaled, grad_x, *sums, scratch
    call_kernel("grn_backward", find_multiply(), *more, sizes=(*rows.shape, hidden, outputs, *end))
    grad_first, grad_bias, grad_second = (part.sum(0) for part in sums)
    return grad_x.view(x.shape), grad_first.T.contiguous(), grad_bias, grad_weight, grad_second, grads.sum(0)


@native_grn_mlp.register_fake
def _(
    x: Tensor, first: Tensor, first_bias: Tensor, weight: Tensor, second: Tensor, second_bias: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    del first_bias, weight, second_bias
    hidden = len(first)
    rows = x.new_empty(x.numel() // x.shape[-1], hidden)
    return x.new_empty(*x.shape[:-1], len(second)), rows, x.new_empty(len(x), hidden)


@native_grn_mlp_backward.register_fake
def _(grad: Tensor, parts: Sequence[Tensor]) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    del grad
    x, first, first_bias, weight, second = (part.new_empty(part.shape) for part in parts[:5])
    return x, first, first_bias, weight, second, second.new_empty(len(second))


def _save_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Any) -> None:
    ctx.mark_non_differentiable(*output[1:])
    ctx.save_for_backward(*inputs[:5], *output[1:])


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, *_: Tensor | None) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = native_grn_mlp_backward(grad, ctx.saved_tensors)  # type: ignore[attr-defined]
    return grads


native_grn_mlp.register_autograd(_backward, setup_context=_save_for_backward)
