"""The MLP of a block (linear, GELU, linear) by a native CPU kernel, which computes it in blocks of rows.

The activated values of (N, C), (N, 4C), never leave the CPU cache. For the backward pass, PyTorch keeps the hidden
values before and after GELU. The kernel keeps those before it, or none, and computes them again: that adds one matrix
product to six, and for few channels takes less time than moving them to memory and back. `mlp.c` has the kernel,
`gelu.c` GELU and its gradient.
"""

from typing import Any

import torch
from timm.layers import Mlp
from timm.layers.activations import GELU
from torch import Tensor

from convnext_cli.kernels.library import call_kernel, find_multiply, load_kernels

WIDE = 128  # channels from which on keeping the hidden values is usually faster; autotuning measures it
BLOCK_VALUES = 1 << 17  # hidden values of a block, 512 KiB; the gradient needs two such blocks in a core's cache
BLOCK_ROWS = 256  # of a block, at least: products of fewer rows are slow where there are many channels


def can_use_native_mlp(mlp: Any) -> bool:
    """Return True if `native_mlp` can replace this MLP in training."""
    return (
        type(mlp) is Mlp
        and type(mlp.act) is GELU
        and mlp.drop1.p == 0
        and mlp.fc1.weight.shape[0] % load_kernels().count_lanes() == 0
        and find_multiply() != 0
    )


@torch.library.custom_op("convnext::native_mlp", mutates_args=())  # opaque to torch.compile
def native_mlp(
    x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor, keeps: bool
) -> tuple[Tensor, Tensor]:
    """Compute GELU(x first' + first_bias) second' + second_bias, float32 on the CPU.

    Args:
        x: (..., C).
        first: (D, C), D a multiple of the kernels' `count_lanes()`.
        first_bias: (D,).
        second: (C', D).
        second_bias: (C',).
        keeps: True to keep x first', (N, D), for the backward pass; False to compute it again.

    Returns:
        The result, (..., C'), and what is kept.

    Raises:
        NoKernelError: the kernels cannot be compiled or loaded.
    """
    threads, hidden, outputs = torch.get_num_threads(), len(first), len(second)
    rows, *weights = _lay_out(x, first.T, first_bias, second.T, second_bias)
    size = count_block_rows(len(rows), hidden, threads)
    result, scratch = x.new_empty(len(rows), outputs), x.new_empty(threads, size, hidden)
    kept = x.new_empty(len(rows) if keeps else 0, hidden)
    sizes = *rows.shape, hidden, outputs, size, threads
    call_kernel("mlp", find_multiply(), rows, *weights, result, kept if keeps else None, scratch, sizes=sizes)
    return result.view(*x.shape[:-1], outputs), kept


@torch.library.custom_op("convnext::native_mlp_backward", mutates_args=())
def native_mlp_backward(
    grad: Tensor, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of all arguments of `native_mlp`, given that of its result, (..., C'), and what it kept.

    Raises:
        NoKernelError: as `native_mlp`.
    """
    threads, hidden, outputs = torch.get_num_threads(), len(first), len(second)
    rows, grads, *weights = _lay_out(x, grad.reshape(-1, outputs), first.T, first, first_bias, second)
    inputs, size = rows.shape[1], count_block_rows(len(rows), hidden, threads)
    grad_x, scratch = torch.empty_like(rows), x.new_empty(threads, size, 2 * hidden + max(inputs, outputs))
    sums = [x.new_zeros(threads, *part.shape) for part in (first.T, first_bias, second)]  # of each thread
    places = grads, rows, *weights, kept if kept.numel() else None, grad_x, *sums, scratch
    call_kernel("mlp_backward", find_multiply(), *places, sizes=(*rows.shape, hidden, outputs, size, threads))
    grad_first, grad_bias, grad_second = (part.sum(0) for part in sums)
    return grad_x.view(x.shape), grad_first.T.contiguous(), grad_bias, grad_second, grads.sum(0)


def _lay_out(x: Tensor, *parts: Tensor) -> tuple[Tensor, ...]:
    """Return x, (..., C), as rows (N, C), and the other tensors, without gaps, as the kernels take them."""
    return x.reshape(-1, x.shape[-1]).contiguous(), *(part.contiguous() for part in parts)


def count_block_rows(rows: int, hidden: int, threads: int) -> int:
    """Return the rows of a block: hidden values that fit the cache, and as many blocks for each thread."""
    size = max(BLOCK_ROWS, BLOCK_VALUES // hidden)
    blocks = threads * max(1, round(rows / (threads * size)))
    return max(1, -(-rows // blocks))


@native_mlp.register_fake
def _(
    x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor, keeps: bool
) -> tuple[Tensor, Tensor]:
    del first_bias, second_bias
    rows = x.numel() // x.shape[-1] if keeps else 0
    return x.new_empty(*x.shape[:-1], len(second)), x.new_empty(rows, len(first))


@native_mlp_backward.register_fake
def _(
    grad: Tensor, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, kept: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    del grad, kept
    grad_x, grad_first, grad_bias, grad_second = (part.new_empty(part.shape) for part in (x, first, first_bias, second))
    return grad_x, grad_first, grad_bias, grad_second, second.new_empty(len(second))


def _save_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Any, ...], output: Any) -> None:
    ctx.mark_non_differentiable(output[1])
    ctx.save_for_backward(*inputs[:4], output[1])


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    grads: tuple[Tensor, ...] = native_mlp_backward(grad, *ctx.saved_tensors)  # type: ignore[attr-defined]
    return *grads, None


native_mlp.register_autograd(_backward, setup_context=_save_for_backward)
