"""Fused ConvNeXt blocks for the CPU, with timm's parameter names, weights and results.

`benchmarks/speed.py` measures the speed-up. It has seven sources:

- The 1x1 convolutions are matrix products over (B*H*W, C), which channels_last gives without a copy.
- LayerScale is multiplied into the weights of the last linear layer, (C, 4C), instead of its output, (B, H, W, C).
  That saves three passes over all activations.
- GRN of the V2 blocks is one factor per image and channel, multiplied in one pass. timm takes six passes over the
  hidden activations, (B, H, W, 4C).
- The gradient of the 7x7 depthwise weights comes from a native kernel if there is a C compiler (`depthwise.py`).
  PyTorch's takes five to ten times as long as the forward pass.
- With a C compiler, MLPs train in blocks of rows that fit the CPU cache (`mlp.py`, V2 `grn.py`), and their products
  use the widest instructions of the processor. Without a gradient, oneDNN computes the linear layers.
- The norm of the *_rms models is computed as LayerNorm plus the mean: one pass instead of timm's eight.
- Memory that a step frees is kept for the next step. By default glibc returns large blocks to the system, which then
  clears them page by page in each step.
"""

import ctypes
from collections.abc import Collection
from copy import deepcopy

import torch
import torch.nn.functional as F
from timm.layers import GlobalResponseNormMlp, Mlp, SimpleNorm2d
from timm.layers.activations import GELU
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from convnext_cli.kernels.depthwise import NativeDepthwise, can_use_native_gradient
from convnext_cli.kernels.grn import can_use_native_grn, native_grn_mlp
from convnext_cli.kernels.mlp import WIDE, can_use_native_mlp, native_mlp

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them


def use_fused_blocks(model: nn.Module, *, native: bool = False, recomputed: Collection[int] | None = None) -> None:
    """Replace the blocks of a timm ConvNeXt by fused ones, in place. They are for float32 on a CPU.

    Args:
        model: a timm model.
        native: True to train with the native CPU kernels.
        recomputed: the channels of the native blocks that compute their hidden values again in the backward pass; None
            for those below `WIDE`.

    Raises:
        NoKernelError: `native` is True and the kernels cannot be compiled.
    """
    for module in model.modules():
        if type(module) is ConvNeXtBlock and type(module.mlp) is GlobalResponseNormMlp:
            module.__class__ = NativeGrnBlock if native and can_use_native_grn(module.mlp) else FusedGrnBlock
        elif type(module) is ConvNeXtBlock and type(module.mlp) is Mlp:
            width = module.get_parameter("mlp.fc1.weight").shape[1]
            is_recomputed = width < WIDE if recomputed is None else width in recomputed
            kind = RecomputingBlock if is_recomputed else NativeBlock
            module.__class__ = kind if native and can_use_native_mlp(module.mlp) else FusedBlock
        elif type(module) is SimpleNorm2d and module.weight is not None:
            module.__class__ = FusedSimpleNorm2d
        elif native and can_use_native_gradient(module):
            module.__class__ = NativeDepthwise


def pair_blocks(model: nn.Module, inputs: Tensor) -> dict[int, tuple[nn.Module, nn.Module, Tensor]]:
    """Return one native block of each width, by its channels: keeping hidden values, computing them again, its input.

    Args:
        model: a timm ConvNeXt with native blocks.
        inputs: of the model, (B, C, H, W).
    """
    first: dict[int, tuple[nn.Module, Tensor]] = {}

    def keep(block: nn.Module, args: tuple[Tensor]) -> None:
        first.setdefault(args[0].shape[1], (block, args[0]))

    blocks = [module for module in model.modules() if isinstance(module, NativeBlock)]
    hooks = [block.register_forward_pre_hook(keep) for block in blocks]
    try:
        with torch.no_grad():
            model(inputs)
    finally:
        for hook in hooks:
            hook.remove()
    pairs = {}
    for width, (block, x) in first.items():
        keeping, recomputing = deepcopy(block), deepcopy(block)
        keeping.__class__, recomputing.__class__ = NativeBlock, RecomputingBlock
        pairs[width] = keeping, recomputing, x
    return pairs


def keep_freed_memory() -> None:
    """Make glibc keep freed memory for later allocations; no effect with other C libraries."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory() -> None:
    """Make glibc return all free memory to the system; no effect with other C libraries."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


class FusedBlock(ConvNeXtBlock):  # type: ignore[misc]  # timm has no types
    """A timm ConvNeXt block with a fused MLP and the same parameters."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the block's output, (B, C', H', W'), for an input of (B, C, H, W)."""
        inner = self.conv_dw(x)
        inner = self.norm(inner).permute(0, 2, 3, 1) if self.use_conv_mlp else self.norm(inner.permute(0, 2, 3, 1))
        inner = self.mlp.drop2(self._apply_mlp(inner)).permute(0, 3, 1, 2)
        result: Tensor = self.drop_path(inner) + self.shortcut(x)
        return result

    def _apply_mlp(self, x: Tensor) -> Tensor:
        """Return linear, GELU, linear and LayerScale of (B, H, W, C), (B, H, W, C')."""
        first, second = self.mlp.fc1, self.mlp.fc2
        weight, bias = second.weight.flatten(1), second.bias
        if self.gamma is not None:
            weight, bias = weight * self.gamma[:, None], bias * self.gamma
        return self._apply_linears(x, first.weight.flatten(1), first.bias, weight, bias)

    def _apply_linears(
        self, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor
    ) -> Tensor:
        return self._apply_linear(self._activate(x, first, first_bias), second, second_bias)

    def _activate(self, x: Tensor, first: Tensor, first_bias: Tensor) -> Tensor:
        """Return linear and GELU of (B, H, W, C), (B, H, W, D)."""
        if type(self.mlp.act) is GELU and self._can_use_onednn(x):
            return self._apply_linear(x, first, first_bias, "gelu")
        activated: Tensor = self.mlp.drop1(self.mlp.act(F.linear(x, first, first_bias)))
        return activated

    def _apply_linear(self, x: Tensor, weight: Tensor, bias: Tensor, activation: str = "none") -> Tensor:
        """Return a linear layer's output, computed by oneDNN where it can; only there an activation is computed too."""
        if self._can_use_onednn(x):
            result: Tensor = torch.ops.mkldnn._linear_pointwise(x, weight, bias, activation, [], "none")
            return result
        return F.linear(x, weight, bias)

    def _can_use_onednn(self, x: Tensor) -> bool:
        """Return True if oneDNN's linear layer can be used, which has no gradient.

        F.linear is MKL's, which has wide instructions on Intel's processors only.
        """
        return (
            not torch.is_grad_enabled()
            and not self.training
            and (x.device.type, x.dtype) == ("cpu", torch.float32)
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )


class FusedGrnBlock(FusedBlock):
    """A V2 block with GRN in one pass.

    GRN is h (1 + w n) + b with n the L2 norm of a channel of h over the positions, divided by the mean over channels.
    Source: arXiv:2301.00808, algorithm 1.
    """

    def _apply_linears(
        self, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor
    ) -> Tensor:
        inner, grn = self._activate(x, first, first_bias), self.mlp.grn
        norms = torch.linalg.vector_norm(inner, dim=(1, 2), keepdim=True)  # (B, 1, 1, D)
        factors = 1 + grn.weight * (norms / (norms.mean(dim=-1, keepdim=True) + grn.eps))
        scaled = inner * factors if torch.is_grad_enabled() else inner.mul_(factors)
        return self._apply_linear(scaled, second, second_bias + second @ grn.bias)


class NativeGrnBlock(FusedGrnBlock):
    """A V2 block that trains with the native MLP."""

    def _apply_linears(
        self, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor
    ) -> Tensor:
        if not _needs_native_gradient(x):
            return super()._apply_linears(x, first, first_bias, second, second_bias)
        grn = self.mlp.grn
        bias = second_bias + second @ grn.bias
        result: Tensor = native_grn_mlp(x, first, first_bias, grn.weight, second, bias)[0]
        return result


class NativeBlock(FusedBlock):
    """A block that trains with the native MLP, which keeps its hidden values for the backward pass."""

    keeps_hidden = True

    def _apply_linears(
        self, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor
    ) -> Tensor:
        if _needs_native_gradient(x):
            result: Tensor = native_mlp(x, first, first_bias, second, second_bias, self.keeps_hidden)[0]
            return result
        return super()._apply_linears(x, first, first_bias, second, second_bias)


class RecomputingBlock(NativeBlock):
    """A block with few channels that computes its hidden values again in the backward pass."""

    keeps_hidden = False


def _needs_native_gradient(x: Tensor) -> bool:
    """Return True if an MLP of x is trained, in float32 on a CPU."""
    is_plain = (x.device.type, x.dtype) == ("cpu", torch.float32) and not torch.is_autocast_enabled("cpu")
    return is_plain and torch.is_grad_enabled()


class FusedSimpleNorm2d(SimpleNorm2d):  # type: ignore[misc]
    """timm's SimpleNorm in one pass: x / std(x) over channels, times a weight per channel."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the normalised input, (B, C, H, W)."""
        if torch.is_autocast_enabled(x.device.type):
            result: Tensor = super().forward(x)
            return result
        rows = x.permute(0, 2, 3, 1)
        result = _SimpleNorm.apply(rows.reshape(-1, x.shape[1]), self.weight, self.eps)
        return result.view(rows.shape).permute(0, 3, 1, 2)


class _SimpleNorm(torch.autograd.Function):
    """SimpleNorm of rows (N, C), y = w x s with s = 1 / sqrt(var(x) + eps): LayerNorm, w (x - mean) s, plus w mean s.

    LayerNorm divides the variance by C and SimpleNorm by C - 1. Factors on w and eps make up for that.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = x.shape[1]
        fraction = (size - 1) / size
        weight = weight * fraction**0.5
        centred, mean, scale = torch.native_layer_norm(x, [size], weight, None, eps * fraction)
        ctx.save_for_backward(x, weight, mean, scale)
        return centred.addcmul_(mean * scale, weight)

    @staticmethod
    def backward(ctx: torch.autograd.function.FunctionCtx, grad: Tensor) -> tuple[Tensor, Tensor, None]:
        x, weight, mean, scale = ctx.saved_tensors  # type: ignore[attr-defined]
        size = x.shape[1]
        grad = grad.contiguous()
        grad_x, grad_weight, _ = torch.ops.aten.native_layer_norm_backward(
            grad, x, [size], mean, scale, weight, None, [True, True, False]
        )
        # The gradient of mean s, whose derivative by x is s / C - mean s^3 (x - mean) / C:
        shift = mean * scale
        grad_shift = (grad @ weight).unsqueeze(1) * scale / size
        grad_x += grad_shift * (1 + shift.square())
        grad_x.addcmul_(x, grad_shift * shift * scale, value=-1)
        return grad_x, (grad_weight + grad.T @ shift.squeeze(1)) * ((size - 1) / size) ** 0.5, None
