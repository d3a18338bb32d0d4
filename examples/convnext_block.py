"""The ConvNeXt block and stage, written to be read. Equal to timm's to the last bit (tests/examples).

    python examples/convnext_block.py

ConvNeXt (Liu et al. 2022, arXiv:2201.03545) and ConvNeXt V2 (Woo et al. 2023, arXiv:2301.00808). Both families share
the block; V1 ends it with LayerScale, V2 has no LayerScale and puts GRN between the two linear layers instead.

    input (B, C, H, W)
      |----------------------------------+
    depthwise 7x7 convolution            |   mixes positions, each channel by itself
    to (B, H, W, C)                      |
    LayerNorm over C                     |   at each position, across its channels
    Linear C -> 4C                       |   mixes channels
    GELU                                 |
    (V2: GRN)                            |   lets channels compete
    Linear 4C -> C                       |
    (V1: LayerScale)                     |   a learned factor per channel, 1e-6 at the start
    back to (B, C, H, W)                 |
    DropPath                             |   in training, drops whole branches of some images
      +----------------------------------+
    output (B, C, H, W)
"""

import torch
from torch import Tensor, nn


class DropPath(nn.Module):
    """Stochastic depth (arXiv:1603.09382): drops the whole branch of an image with probability `rate` in training.

    What is kept is divided by `1 - rate`, so that the expected value stays as it was. At a rate of 1 nothing is kept
    and nothing is divided.
    """

    def __init__(self, rate: float = 0.0) -> None:
        super().__init__()
        self.rate = rate

    def forward(self, x: Tensor) -> Tensor:
        """(B, …) -> (B, …)."""
        if self.rate == 0.0 or not self.training:
            return x
        keep = 1.0 - self.rate
        one_per_image = x.new_empty((x.shape[0],) + (1,) * (x.ndim - 1))
        mask = one_per_image.bernoulli_(keep)
        return x * (mask / keep if keep > 0 else mask)


class LayerNorm2d(nn.LayerNorm):
    """LayerNorm over the channels of a (B, C, H, W) map: each position has its own mean and variance."""

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        return super().forward(x.permute(0, 2, 3, 1)).permute(0, 3, 1, 2)


class GRN(nn.Module):
    """Global response normalization, V2's addition (arXiv:2301.00808, algorithm 1).

    A channel's energy is its L2 norm over all positions; each channel is weighted by its energy relative to the mean
    of all channels. With `gamma` and `beta` at 0, as they start, it is the identity.
    """

    def __init__(self, channels: int, eps: float = 1e-6) -> None:
        super().__init__()
        self.gamma = nn.Parameter(torch.zeros(channels))
        self.beta = nn.Parameter(torch.zeros(channels))
        self.eps = eps

    def forward(self, x: Tensor) -> Tensor:
        """(B, H, W, C) -> (B, H, W, C)."""
        energy = x.norm(p=2, dim=(1, 2), keepdim=True)
        relative = energy / (energy.mean(dim=-1, keepdim=True) + self.eps)
        return x + torch.addcmul(self.beta, self.gamma, x * relative)


class Block(nn.Module):
    """One residual block, (B, C, H, W) -> (B, C, H, W).

    Args:
        channels: C.
        drop_path: rate of stochastic depth.
        layer_scale: LayerScale's first value (V1: 1e-6); None for no LayerScale.
        use_grn: whether GRN follows the GELU (V2).
    """

    def __init__(
        self, channels: int, *, drop_path: float = 0.0, layer_scale: float | None = 1e-6, use_grn: bool = False
    ) -> None:
        super().__init__()
        self.depthwise = nn.Conv2d(channels, channels, kernel_size=7, padding=3, groups=channels)
        self.norm = nn.LayerNorm(channels, eps=1e-6)
        self.expand = nn.Linear(channels, 4 * channels)
        self.activation = nn.GELU()
        self.grn = GRN(4 * channels) if use_grn else nn.Identity()
        self.project = nn.Linear(4 * channels, channels)
        self.scale = nn.Parameter(torch.full((channels,), layer_scale)) if layer_scale is not None else None
        self.drop_path = DropPath(drop_path)

    def forward(self, x: Tensor) -> Tensor:
        """(B, C, H, W) -> (B, C, H, W)."""
        branch = self.depthwise(x).permute(0, 2, 3, 1)  # channels last: Linear and LayerNorm work on the last axis
        branch = self.activation(self.expand(self.norm(branch)))
        branch = self.project(self.grn(branch)).permute(0, 3, 1, 2)
        if self.scale is not None:
            branch = branch * self.scale.view(1, -1, 1, 1)
        output: Tensor = x + self.drop_path(branch)
        return output


class Stage(nn.Module):
    """Downsampling, then blocks: (B, C_in, H, W) -> (B, C, H / 2, W / 2).

    Args:
        in_channels: C_in.
        channels: C.
        drop_paths: one rate per block; `ramp_drop_path` gives those of a whole network.
        layer_scale: see `Block`.
        use_grn: see `Block`.
    """

    def __init__(
        self,
        in_channels: int,
        channels: int,
        *,
        drop_paths: list[float],
        layer_scale: float | None = 1e-6,
        use_grn: bool = False,
    ) -> None:
        super().__init__()
        self.downsample = nn.Sequential(
            LayerNorm2d(in_channels, eps=1e-6), nn.Conv2d(in_channels, channels, kernel_size=2, stride=2)
        )
        self.blocks = nn.Sequential(
            *(Block(channels, drop_path=rate, layer_scale=layer_scale, use_grn=use_grn) for rate in drop_paths)
        )

    def forward(self, x: Tensor) -> Tensor:
        """(B, C_in, H, W) -> (B, C, H / 2, W / 2)."""
        y: Tensor = self.blocks(self.downsample(x))
        return y


def ramp_drop_path(rate: float, depths: list[int]) -> list[list[float]]:
    """Drop-path rates per stage and block: rising evenly from 0 to `rate` over all blocks of the network.

    The ramp runs through the stages and does not start again in each of them.
    """
    total = sum(depths)
    rates = [rate * i / (total - 1) if total > 1 else 0.0 for i in range(total)]
    starts = [sum(depths[:stage]) for stage in range(len(depths))]
    return [rates[start : start + depth] for start, depth in zip(starts, depths, strict=True)]


if __name__ == "__main__":
    tiny = {"depths": [3, 3, 9, 3], "dims": [96, 192, 384, 768]}
    rates = ramp_drop_path(0.1, tiny["depths"])
    print("drop path of convnext_tiny at 0.1:")
    for number, stage_rates in enumerate(rates, start=1):
        print(f"  stage {number}: {', '.join(f'{rate:.3f}' for rate in stage_rates)}")
    stage = Stage(96, 192, drop_paths=rates[1])
    image = torch.randn(2, 96, 56, 56)
    print(f"stage 2: {tuple(image.shape)} -> {tuple(stage(image).shape)}")
    print(f"parameters: {sum(p.numel() for p in stage.parameters()):,}")
