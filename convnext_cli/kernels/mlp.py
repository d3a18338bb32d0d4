"""A narrow block's two products with GELU between them, in pieces that stay in the processor's cache.

What they make of (N, C) in between, (N, 4C), is then never written to memory, and not kept for the gradient either,
which computes it again. That is one product more in seven; where C is below `WIDE`, moving four times as much to memory
and back takes longer. `gelu.c` does what stands between the products.
"""

from typing import Any

import torch
from timm.layers import Mlp
from timm.layers.activations import GELU
from torch import Tensor

from convnext_cli.kernels.library import load_kernels

WIDE = 128  # channels from which on keeping what is in between is faster
PIECE = 1 << 18  # values of what is in between at a time, 1 MiB; the gradient needs two such pieces


def can_use_cache_blocking(mlp: Any) -> bool:
    """Whether `blocked_mlp` may take the place of this part of a block in training."""
    return (
        type(mlp) is Mlp
        and type(mlp.act) is GELU
        and mlp.drop1.p == 0
        and mlp.fc1.weight.shape[1] < WIDE
        and mlp.fc1.weight.shape[0] % load_kernels().find_lanes() == 0
    )


@torch.library.custom_op("convnext::blocked_mlp", mutates_args=())  # so that torch.compile lets it be
def blocked_mlp(x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
    """GELU(x first' + first_bias) second' + second_bias, float32 on the processor.

    Args:
        x: (..., C).
        first: (D, C), D a multiple of the kernels' `find_lanes()`.
        first_bias: (D,).
        second: (C', D).
        second_bias: (C',).

    Returns:
        (..., C').

    Raises:
        NoKernelError: the kernels cannot be compiled or loaded here.
    """
    kernels, threads = load_kernels(), torch.get_num_threads()
    rows, first_bias = x.reshape(-1, x.shape[-1]), first_bias.contiguous()
    result = x.new_empty(len(rows), len(second))
    size = max(1, PIECE // len(first))
    room = x.new_empty(size, len(first))
    for some, to in zip(torch.split(rows, size), torch.split(result, size), strict=True):
        inner = torch.mm(some, first.T, out=room[: len(some)])
        kernels.gelu(inner.data_ptr(), first_bias.data_ptr(), *inner.shape, threads)
        torch.addmm(second_bias, inner, second.T, out=to)
    return result.view(*x.shape[:-1], -1)


@torch.library.custom_op("convnext::blocked_mlp_backward", mutates_args=())
def blocked_mlp_backward(
    grad: Tensor, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
    """The gradients of all arguments of `blocked_mlp`, from that of its result, (..., C').

    Raises:
        NoKernelError: as `blocked_mlp`.
    """
    kernels, threads = load_kernels(), torch.get_num_threads()
    rows, slopes, first_bias = x.reshape(-1, x.shape[-1]), grad.reshape(-1, grad.shape[-1]), first_bias.contiguous()
    grad_x, grad_first, grad_second = torch.empty_like(rows), torch.zeros_like(first), torch.zeros_like(second)
    sums = x.new_zeros(threads, len(first))
    size = max(1, PIECE // len(first))
    room, other_room = x.new_empty(2, size, len(first))
    for some, slope, to in zip(*(torch.split(part, size) for part in (rows, slopes, grad_x)), strict=True):
        inner = torch.mm(some, first.T, out=room[: len(some)])
        grad_inner = torch.mm(slope, second, out=other_room[: len(some)])
        places = (part.data_ptr() for part in (inner, grad_inner, first_bias, sums))
        kernels.gelu_backward(*places, *inner.shape, threads)
        grad_second.addmm_(slope.T, inner)
        grad_first.addmm_(grad_inner.T, some)
        torch.mm(grad_inner, first, out=to)
    return grad_x.view(x.shape), grad_first, sums.sum(0), grad_second, slopes.sum(0)


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


def _keep(ctx: torch.autograd.function.FunctionCtx, inputs: tuple[Tensor, ...], output: Tensor) -> None:
    del output
    ctx.save_for_backward(*inputs[:4])


def _backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, ...]:
    found: tuple[Tensor, ...] = blocked_mlp_backward(grad, *ctx.saved_tensors)  # type: ignore[attr-defined]
    return found


blocked_mlp.register_autograd(_backward, setup_context=_keep)
