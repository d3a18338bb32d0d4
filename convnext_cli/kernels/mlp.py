"""The MLP of narrow blocks (linear, GELU, linear), computed in blocks that fit the CPU cache.

The hidden activations of (N, C), (N, 4C), are never written to main memory. They are not kept for the backward pass
either, which computes them again. That adds one matrix product to six; for fewer than `WIDE` channels, moving the
hidden activations to memory and back takes longer. `gelu.c` has GELU and its gradient.
"""

from typing import Any

import torch
from timm.layers import Mlp
from timm.layers.activations import GELU
from torch import Tensor

from convnext_cli.kernels.library import load_kernels

WIDE = 128  # channels from which on keeping the hidden activations is faster
BLOCK_VALUES = 1 << 18  # hidden activations of a cache block, 1 MiB; the gradient needs two such blocks


def can_use_cache_blocking(mlp: Any) -> bool:
    """Return True if `blocked_mlp` can replace this MLP in training."""
    return (
        type(mlp) is Mlp
        and type(mlp.act) is GELU
        and mlp.drop1.p == 0
        and mlp.fc1.weight.shape[1] < WIDE
        and mlp.fc1.weight.shape[0] % load_kernels().count_lanes() == 0
    )


@torch.library.custom_op("convnext::blocked_mlp", mutates_args=())  # opaque to torch.compile
def blocked_mlp(x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
    """Return GELU(x first' + first_bias) second' + second_bias, float32 on the CPU.

    Args:
        x: (..., C).
        first: (D, C), D a multiple of the kernels' `count_lanes()`.
        first_bias: (D,).
        second: (C', D).
        second_bias: (C',).

    Returns:
        (..., C').

    Raises:
        NoKernelError: the kernels cannot be compiled or loaded.
    """
    kernels, threads = load_kernels(), torch.get_num_threads()
    rows, first_bias = x.reshape(-1, x.shape[-1]), first_bias.contiguous()
    result = x.new_empty(len(rows), len(second))
    size = max(1, BLOCK_VALUES // len(first))
    hidden_block = x.new_empty(size, len(first))
    for rows_block, result_block in zip(torch.split(rows, size), torch.split(result, size), strict=True):
        hidden = torch.mm(rows_block, first.T, out=hidden_block[: len(rows_block)])
        kernels.gelu(hidden.data_ptr(), first_bias.data_ptr(), *hidden.shape, threads)
        torch.addmm(second_bias, hidden, second.T, out=result_block)
    return result.view(*x.shape[:-1], -1)


@torch.library.custom_op("convnext::blocked_mlp_backward", mutates_args=())
def blocked_mlp_backward(
    grad: Tensor, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """Return the gradients of all arguments of `blocked_mlp`, given that of its result, (..., C').

    Raises:
        NoKernelError: as `blocked_mlp`.
    """
    kernels, threads = load_kernels(), torch.get_num_threads()
    rows, grads, first_bias = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1]), first_bias.contiguous()
    grad_x, grad_first, grad_second = torch.empty_like(rows), torch.zeros_like(first), torch.zeros_like(second)
    sums = x.new_zeros(threads, len(first))
    size = max(1, BLOCK_VALUES // len(first))
    hidden_block, grad_block = x.new_empty(2, size, len(first))
    blocks = (torch.split(part, size) for part in (rows, grads, grad_x))
    for rows_block, grads_block, grad_x_block in zip(*blocks, strict=True):
        hidden = torch.mm(rows_block, first.T, out=hidden_block[: len(rows_block)])
        grad_hidden = torch.mm(grads_block, second, out=grad_block[: len(rows_block)])
        pointers = (part.data_ptr() for part in (hidden, grad_hidden, first_bias, sums))
        kernels.gelu_backward(*pointers, *hidden.shape, threads)
        grad_second.addmm_(grads_block.T, hidden)
        grad_first.addmm_(grad_hidden.T, rows_block)
        torch.mm(grad_hidden, first, out=grad_x_block)
    return grad_x.view(x.shape), grad_first, sums.sum(0), grad_second, grads.sum(0)


@blocked_mlp.register_fake
def _(x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
    del first, first_bias, second_bias
    return x.new_empty(*x.shape[:-1], len(second))


@blocked_mlp_backward.register_fake
def _(
    grad: Tensor, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    del grad
    grad_x, grad_first, grad_bias, grad_second = (part.new_empty(part.shape) for part in (x, first, first_bias, second))
    return grad_x, grad_first, grad_bias, grad_second, second.new_empty(len(second))


def _save_for_backward(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[:4])


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
    grads: tuple[Tensor, ...] = blocked_mlp_backward(grad, *ctx.saved_tensors)  # type: ignore[attr-defined]
    return grads


blocked_mlp.register_autograd(_backward, setup_context=_save_for_backward)
