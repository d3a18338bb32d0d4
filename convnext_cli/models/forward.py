"""From uint8 images to logits: the one path that training, eval and predict share."""

from collections.abc import Callable, Iterator, Sequence

import numpy as np
import torch
import torch.nn.functional as F
from numpy.typing import NDArray
from torch import Tensor

from convnext_cli.images.decode import Pixels
from convnext_cli.images.loaders import cut_batches, load_batches
from convnext_cli.images.preprocessing import Preprocessing

VIEW_SHIFT = 16  # a view of test-time augmentation is shifted by a sixteenth of the side


def prepare_input(images: NDArray[np.uint8], preprocessing: Preprocessing, device: torch.device) -> Tensor:
    """Turns (B, S, S, 3) uint8 into normalised float32 (B, C, S, S) on `device`, channels last; C is 3, or 1 for grey.

    Channels last is the format of all our models: timm's LayerNorm gives it anyway, and in the plain format
    convnext_zepto_rms, whose norm does not, took 1.6 times as long for a training step (64 px, processor time).
    """
    pixels = torch.from_numpy(images).to(device, non_blocking=True)
    batch, height, width, _ = images.shape
    if preprocessing.is_grey:
        seen = to_luminance(pixels.permute(0, 3, 1, 2).to(torch.float32)).view(batch, height, width)
    else:
        seen = pixels.view(batch, height, -1).to(torch.float32)
    # Whole lines, (B, H, W*C): a processor takes a loop over three channels one by one.
    mean, std = (torch.tensor(part, device=device).repeat(width) for part in (preprocessing.mean, preprocessing.std))
    rows = seen.div_(255).sub_(mean).div_(std)
    return rows.view(batch, height, width, -1).permute(0, 3, 1, 2)


def to_luminance(pixels: Tensor) -> Tensor:
    """Turns RGB (B, 3, H, W), float32 from 0 to 255, into grey (B, 1, H, W), to the bit as Pillow's `convert("L")`.

    ITU-R 601-2 luma, 0.299 R + 0.587 G + 0.114 B, rounded. In units of 1/65536 all of it is whole and below 2^24, where
    float32 is exact. Source: Pillow, src/libImaging/Convert.c, L24.
    """
    red, green, blue = pixels.unbind(1)
    return ((19595 * red + 38470 * green + 7471 * blue + 32768) / 65536).floor().unsqueeze(1)


def choose_device() -> torch.device:
    """The GPU where there is one."""
    return torch.device("cuda" if torch.cuda.is_available() else "cpu")


def make_views(inputs: Tensor, *, mirror: bool) -> list[Tensor]:
    """The views of test-time augmentation, each (B, C, S, S): as it is, and shifted to the four corners.

    Args:
        inputs: (B, C, S, S).
        mirror: whether to add each view's mirror image; only where training mirrored too.
    """
    size = inputs.shape[-1]
    shift = max(1, size // VIEW_SHIFT)
    padded = F.pad(inputs, (shift,) * 4, mode="reflect")
    corners = ((shift, shift), (0, 0), (0, 2 * shift), (2 * shift, 0), (2 * shift, 2 * shift))
    views = [padded[..., top : top + size, left : left + size] for top, left in corners]
    return views + ([view.flip(-1) for view in views] if mirror else [])


@torch.inference_mode()
def forward_batches(
    model: Callable[[Tensor], Tensor],
    rows: Sequence[int],
    load: Callable[[int], Pixels],
    preprocessing: Preprocessing,
    *,
    device: torch.device,
    batch_size: int,
    threads: int,
) -> Iterator[tuple[list[int], Tensor]]:
    """Yields each batch's rows and what the model says of them, float32 on the CPU, in order.

    Args:
        model: a module in evaluation mode on `device`, or what asks one; from (B, C, S, S) to (B, K).
        rows: what to classify.
        load: gives a row's prepared image, (S, S, 3) uint8.
        preprocessing: mean and std.
        device: where the model is.
        batch_size: images per forward pass.
        threads: images decoded at a time.
    """
    for batch, images in load_batches(cut_batches(rows, batch_size), load, threads=threads):
        yield batch, model(prepare_input(images, preprocessing, device)).float().cpu()
