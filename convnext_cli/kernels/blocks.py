"""ConvNeXt's blocks in a formulation that a processor computes faster. Names, weights and results stay timm's.

What it brings is measured by `benchmarks/speed.py`. Six things bring it:

- The 1x1 convolutions are matrix products over (B*H*W, C), which channels_last gives without a copy.
- LayerScale is a factor of the last product's weights, (C, 4C), and not of its result, (B, H, W, C): three passes over
  all activations less.
- The gradient of the 7x7 depthwise weights, where PyTorch takes five to ten times as long as forward, comes from our
  own kernel where there is a C compiler (`depthwise.py`).
- Where there is one, what lies between the two products of narrow blocks never leaves the cache (`mlp.py`).
- The norm of the *_rms models is LayerNorm with its mean put back; PyTorch has that in one pass, and timm in eight.
- What a step has freed is kept for the next one. glibc gives large blocks back to the system, and each step then waits
  for the system to clear them page by page.
"""

import ctypes

import torch
import torch.nn.functional as F
from timm.layers import Mlp, SimpleNorm2d
from timm.layers.activations import GELU
from timm.models.convnext import ConvNeXtBlock
from torch import Tensor, nn

from convnext_cli.kernels.depthwise import NativeDepthwise, can_use_native_gradient
from convnext_cli.kernels.mlp import blocked_mlp, can_use_cache_blocking

_TRIM_THRESHOLD, _MMAP_THRESHOLD = -1, -3  # as malloc.h numbers them


def use_fused_blocks(model: nn.Module, *, native: bool = False) -> None:
    """Gives the blocks of a timm ConvNeXt their faster formulation, in place. Meant for float32 on a processor.

    Args:
        model: timm's.
        native: whether to train with our own kernels.

    Raises:
        NoKernelError: the kernels are asked for, and cannot be compiled here.
    """
    for module in model.modules():
        if type(module) is ConvNeXtBlock and type(module.mlp) is Mlp:
            module.__class__ = CacheBlockedBlock if native and can_use_cache_blocking(module.mlp) else FusedBlock
        elif type(module) is SimpleNorm2d and module.weight is not None:
            module.__class__ = FusedSimpleNorm2d
        elif native and can_use_native_gradient(module):
            module.__class__ = NativeDepthwise


def keep_freed_memory() -> None:
    """Tells glibc to keep what is freed; other C libraries are left as they are."""
    if hasattr(libc := ctypes.CDLL(None), "mallopt"):
        libc.mallopt(_MMAP_THRESHOLD, 1 << 30)
        libc.mallopt(_TRIM_THRESHOLD, 2**31 - 1)


def release_freed_memory() -> None:
    """Lets glibc give back to the system what is free, whatever it was told to keep."""
    if hasattr(libc := ctypes.CDLL(None), "malloc_trim"):
        libc.malloc_trim(0)


class FusedBlock(ConvNeXtBlock):  # type: ignore[misc]  # timm has no types
    """timm's block with the same parameters under the same names."""

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, H, W) to (B, C', H', W')."""
        inner = self.conv_dw(x)
        inner = self.norm(inner).permute(0, 2, 3, 1) if self.use_conv_mlp else self.norm(inner.permute(0, 2, 3, 1))
        inner = self.mlp.drop2(self._apply_mlp(inner)).permute(0, 3, 1, 2)
        result: Tensor = self.drop_path(inner) + self.shortcut(x)
        return result

    def _apply_mlp(self, x: Tensor) -> Tensor:
        """The two products with GELU between them, and LayerScale; from (B, H, W, C) to (B, H, W, C')."""
        first, second = self.mlp.fc1, self.mlp.fc2
        weight, bias = second.weight.flatten(1), second.bias
        if self.gamma is not None:
            weight, bias = weight * self.gamma[:, None], bias * self.gamma
        return self._multiply(x, first.weight.flatten(1), first.bias, weight, bias)

    def _multiply(self, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
        if self._fuses(x):
            inner = torch.ops.mkldnn._linear_pointwise(x, first, first_bias, "gelu", [], "none")
        else:
            inner = self.mlp.drop1(self.mlp.act(F.linear(x, first, first_bias)))
        return F.linear(inner, second, second_bias)

    def _fuses(self, x: Tensor) -> bool:
        """Whether oneDNN may do the first product and GELU in one pass, which gives no gradient."""
        return (
            not torch.is_grad_enabled()
            and not self.training
            and type(self.mlp.act) is GELU
            and (x.device.type, x.dtype) == ("cpu", torch.float32)
            and not torch.is_autocast_enabled("cpu")
            and torch.backends.mkldnn.is_available()  # type: ignore[no-untyped-call]
        )


class CacheBlockedBlock(FusedBlock):
    """A block of few channels, in training with our own kernels."""

    def _multiply(self, x: Tensor, first: Tensor, first_bias: Tensor, second: Tensor, second_bias: Tensor) -> Tensor:
        is_plain = (x.device.type, x.dtype) == ("cpu", torch.float32) and not torch.is_autocast_enabled("cpu")
        if torch.is_grad_enabled() and is_plain:
            result: Tensor = blocked_mlp(x, first, first_bias, second, second_bias)
            return result
        return super()._multiply(x, first, first_bias, second, second_bias)


class FusedSimpleNorm2d(SimpleNorm2d):  # type: ignore[misc]
    """Each pixel's channels over their standard deviation, with a weight for each channel."""

    def forward(self, x: Tensor) -> Tensor:
        """From (B, C, H, W) to (B, C, H, W)."""
        if torch.is_autocast_enabled(x.device.type):
            result: Tensor = super().forward(x)
            return result
        rows = x.permute(0, 2, 3, 1)
        result = _SimpleNorm.apply(rows.reshape(-1, x.shape[1]), self.weight, self.eps)
        return result.view(rows.shape).permute(0, 3, 1, 2)


class _SimpleNorm(torch.autograd.Function):
    """y = w x s with s = 1 / sqrt(var(x) + eps), rows (N, C), as LayerNorm's w (x - mean) s, and w mean s added to it.

    PyTorch's LayerNorm divides the variance by C and this one by C - 1, which is a factor of w and one of eps.
    """

    @staticmethod
    def forward(ctx: torch.autograd.function.FunctionCtx, x: Tensor, weight: Tensor, eps: float) -> Tensor:
        size = x.shape[1]
        share = (size - 1) / size
        weight = weight * share**0.5
        centred, mean, scale = torch.native_layer_norm(x, [size], weight, None, eps * share)
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
        # Through mean s, whose derivative by x is s / C - mean s^3 (x - mean) / C:
        shift = mean * scale
        through = (grad @ weight).unsqueeze(1) * scale / size
        grad_x += through * (1 + shift.square())
        grad_x.addcmul_(x, through * shift * scale, value=-1)
        return grad_x, (grad_weight + grad.T @ shift.squeeze(1)) * ((size - 1) / size) ** 0.5, None
