"""Grad-CAM heat maps at the last stage, drawn over the image."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont
from torch import Tensor

from convnext_cli.images.augmentation import Box
from convnext_cli.images.raster import Pixels

# From transparent over violet and orange to pale yellow (matplotlib's inferno at 0, 1/4, 1/2, 3/4 and 1).
_COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)
OPACITY = 0.65  # at the maximum of the heat map
FRAME = (255, 176, 0)  # colour of the frame around the model's crop


def map_heat(model: Any, features: Tensor, classes: Tensor) -> Tensor:
    """Return the Grad-CAM of a class at the last stage, (B, h, w), 0 and above.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391), equation 2. ConvNeXt's head averages over positions before its
    norm and classifier, so the gradient is the same at every position, and the map is the exact contribution of each
    position to the class's linearised logit.

    Args:
        model: a timm ConvNeXt of either family.
        features: (B, C, h, w), the output of its `forward_features`.
        classes: (B,) the classes to explain.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        features = features.detach().clone().requires_grad_()
        logits = model.forward_head(features)
        class_logits = logits[torch.arange(len(classes)), classes.clone()].sum()
        (gradient,) = torch.autograd.grad(class_logits, features)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        return (weights * features).sum(dim=1).relu().detach()


def overlay_heat(image: Pixels, heat: NDArray[np.float32], box: Box | None = None) -> Pixels:
    """Return an image (H, W, 3) with a heat map (h, w) over it; the maximum is the brightest.

    `box` is the part of the heat map that covers the image: left, top, right, bottom, in its positions; None for all.
    """
    maximum = float(heat.max())
    scaled = heat / maximum if maximum > 0 else np.zeros_like(heat)
    size = (image.shape[1], image.shape[0])
    enlarged = Image.fromarray(scaled.astype(np.float32)).resize(size, Image.Resampling.BICUBIC, box=box)
    smooth = np.asarray(enlarged).clip(0, 1)
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(smooth, stops, _COLOURS[:, c]) for c in range(3)], axis=-1)
    alpha = OPACITY * smooth[..., None]
    return np.rint(image * (1 - alpha) + colours * alpha).astype(np.uint8)


def draw_explanation(image: Pixels, maps: Sequence[NDArray[np.float32]], frame: Box, caption: str) -> Image.Image:
    """Draw an image (H, W, 3) at its own size, beside it the image with each heat map, and a caption below all.

    Args:
        image: the whole image.
        maps: heat maps (h, w), of the model's input.
        frame: the input: left, top, right, bottom, in pixels of the image; with padding beyond it. It is drawn where it
            is not the whole image.
        caption: one line.
    """
    caption = "".join(letter if letter.isprintable() else "?" for letter in caption)
    height, width = image.shape[:2]
    left, top = max(0, round(frame[0])), max(0, round(frame[1]))
    right, bottom = min(width, max(left + 1, round(frame[2]))), min(height, max(top + 1, round(frame[3])))
    gap = max(2, round(0.01 * max(width, height)))
    text_height = max(12, round(0.03 * max(width, height)))
    canvas = Image.new("RGB", (width + len(maps) * (width + gap), height + 2 * text_height), "white")
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, heat in enumerate(maps, start=1):
        heated, x = image.copy(), number * (width + gap)
        heated[top:bottom, left:right] = overlay_heat(
            image[top:bottom, left:right], heat, _find_inside(frame, width, height, heat.shape)
        )
        canvas.paste(Image.fromarray(heated), (x, 0))
        if (left, top, right, bottom) != (0, 0, width, height):
            edge = (x + left, top, x + right - 1, bottom - 1)
            draw.rectangle(edge, outline=FRAME, width=max(1, gap // 4))
    while text_height > 8 and draw.textlength(caption, _load_font(text_height)) > canvas.width - 2 * gap:
        text_height -= 1
    draw.text((gap, height + text_height // 4), caption, fill="black", font=_load_font(text_height))
    return canvas


def _find_inside(frame: Box, width: int, height: int, shape: tuple[int, ...]) -> Box:
    """Return the part of a heat map of a shape (h, w) that lies inside the image, in its positions."""
    x, y = shape[1] / (frame[2] - frame[0]), shape[0] / (frame[3] - frame[1])
    left, top = max(0.0, -frame[0]) * x, max(0.0, -frame[1]) * y
    right, bottom = shape[1] - max(0.0, frame[2] - width) * x, shape[0] - max(0.0, frame[3] - height) * y
    return left, top, right, bottom


def _load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans of matplotlib, which has Greek, Cyrillic and more; Pillow's own font has only Latin."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
