"""Time the native CPU kernels against PyTorch's, kernel by kernel, in training.

    python -m benchmarks.kernels [--rounds 7] [--threads 1]

Measured are the gradient of 7x7 depthwise weights, and forward and backward of the MLPs of V1 blocks (linear, GELU,
linear) and V2 blocks (with GRN before the last layer).
Tensors are float32, channels last. Native kernel and PyTorch take turns; the result is the lowest processor time in
milliseconds. glibc keeps freed memory meanwhile (`keep_freed_memory`). The error is ||a - b|| / ||b|| of the gradient
of the (first) weights.
"""

import argparse
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor

from convnext_cli.kernels.blocks import keep_freed_memory
from convnext_cli.kernels.depthwise import SIDE, depthwise_weight_gradient
from convnext_cli.kernels.grn import EPS, native_grn_mlp
from convnext_cli.kernels.mlp import WIDE, native_mlp

# Channels, side and batch of the stages of atto at 224 px, of two of tiny's, one of base's, and of zepto at 64 px.
SHAPES = [
    (40, 56, 32), (80, 28, 32), (160, 14, 32), (320, 7, 32), (96, 56, 8), (384, 14, 8), (128, 56, 8),
    (32, 16, 32), (64, 8, 32),
]  # fmt: skip
COLUMNS = f"{'PyTorch':>10}{'ours':>9}{'x':>7}"


def compare_depthwise(channels: int, side: int, batch: int, rounds: int) -> str:
    """Return the table row of a shape."""
    x, grad = (torch.randn(batch, channels, side, side).to(memory_format=torch.channels_last) for _ in range(2))
    weight = torch.randn(channels, 1, SIDE, SIDE)

    def take_theirs() -> Tensor:
        ones, padding = [1, 1], [SIDE // 2] * 2
        found: Tensor = torch.ops.aten.convolution_backward(
            grad, x, weight, None, ones, padding, ones, False, [0, 0], channels, [False, True, False]
        )[1]
        return found

    def take_ours() -> Tensor:
        found: Tensor = depthwise_weight_gradient(x, grad)
        return found

    theirs, ours = take_turns([take_theirs, take_ours], rounds)
    error = measure_error(take_ours(), take_theirs())
    return f"{theirs:10.1f} {ours:8.1f} {theirs / ours:6.2f} {error:9.0e}"


def compare_mlp(channels: int, side: int, batch: int, rounds: int, *, has_grn: bool) -> str:
    """Return the table row of a shape, for the MLP of a V1 block, or of a V2 block, which has GRN."""
    x = torch.randn(batch, side, side, channels, requires_grad=True)
    first, second = (
        torch.randn(shape) / channels**0.5 for shape in ((4 * channels, channels), (channels, 4 * channels))
    )
    parts = [x, first.requires_grad_(), torch.randn(4 * channels), second.requires_grad_(), torch.randn(channels)]
    grad, grn_weight = torch.randn(x.shape), torch.randn(4 * channels)

    def go_theirs() -> Tensor:
        activated = F.gelu(F.linear(*parts[:3]))
        if has_grn:
            norms = torch.linalg.vector_norm(activated, dim=(1, 2), keepdim=True)
            activated = activated * (1 + grn_weight * norms / (norms.mean(-1, keepdim=True) + EPS))
        return F.linear(activated, *parts[3:])

    def go_ours() -> Tensor:
        if has_grn:
            result: Tensor = native_grn_mlp(*parts[:3], grn_weight, *parts[3:])[0]
        else:
            result = native_mlp(*parts, channels >= WIDE)[0]
        return result

    def take(go: Callable[[], Tensor]) -> Tensor:
        return torch.autograd.grad(go(), [x, first, second], grad)[1]

    forward = take_turns([go_theirs, go_ours], rounds)
    whole = take_turns([lambda: take(go_theirs), lambda: take(go_ours)], rounds)
    error = measure_error(take(go_ours), take(go_theirs))
    columns = (f"{theirs:10.1f} {ours:8.1f} {theirs / ours:6.2f}" for theirs, ours in (forward, whole))
    return f"{''.join(columns)} {error:9.0e}"


def take_turns(contenders: list[Callable[[], Tensor]], rounds: int) -> list[float]:
    """Return the lowest processor time of each function in milliseconds."""
    least = [float("inf")] * len(contenders)
    for i in range(rounds + 1):
        for number, go in enumerate(contenders):
            started = time.process_time()
            go()
            if i:
                least[number] = min(least[number], (time.process_time() - started) * 1e3)
    return least


def measure_error(mine: Tensor, expected: Tensor) -> float:
    """Return the relative error, ||a - b|| / ||b||."""
    return float((mine - expected).norm() / expected.norm())


def main() -> None:
    """Measure and print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=7)
    parser.add_argument("--threads", type=int, default=1)
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    keep_freed_memory()
    head = f"{'channels x side, batch':<24}{COLUMNS}"
    print(f"{head}{'error':>10}   gradient of depthwise weights")
    for shape in SHAPES:
        print(f"{name_shape(*shape):<24}{compare_depthwise(*shape, arguments.rounds)}", flush=True)
    for name, has_grn in (("V1", False), ("V2", True)):
        print(f"\n{head}{COLUMNS}{'error':>10}   MLP of {name} blocks: forward, and with gradients")
        for shape in SHAPES:
            print(f"{name_shape(*shape):<24}{compare_mlp(*shape, arguments.rounds, has_grn=has_grn)}", flush=True)


def name_shape(channels: int, side: int, batch: int) -> str:
    """Return a shape as text."""
    return f"{channels} x {side}, {batch}"


if __name__ == "__main__":
    main()
