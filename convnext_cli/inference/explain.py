"""Where a model looks: Grad-CAM at the last stage, and its picture over the image."""

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn

from convnext_cli.data.decode import Pixels

# From transparent over violet and orange to pale yellow (matplotlib's inferno at 0, 1/4, 1/2, 3/4 and 1).
_COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)
OPACITY = 0.65  # of the hottest place


def map_heat(model: Any, features: Tensor, classes: Tensor) -> Tensor:
    """Grad-CAM: how much each place of the last stage speaks for a class, (B, h, w), 0 and above.

    Source: Selvaraju et al. 2017 (arXiv:1610.02391), equation 2. ConvNeXt's head averages over places before its
    norm and classifier, so the gradient is the same at every place, and the map is exactly how the class's logit, made
    linear at this image, is put together from them.

    Args:
        model: a timm ConvNeXt of either family.
        features: (B, C, h, w), what its `forward_features` gave.
        classes: (B,) the classes to explain.
    """
    with torch.inference_mode(mode=False), torch.enable_grad():
        features = features.detach().clone().requires_grad_()
        logits = model.forward_head(features)
        chosen = logits[torch.arange(len(classes)), classes.clone()].sum()
        (gradient,) = torch.autograd.grad(chosen, features)
        weights = gradient.mean(dim=(2, 3), keepdim=True)
        return (weights * features).sum(dim=1).relu().detach()


def overlay_heat(image: Pixels, heat: NDArray[np.float32]) -> Pixels:
    """Draws a heat map (h, w) over an image (S, S, 3), the hottest place the brightest."""
    top = float(heat.max())
    scaled = heat / top if top > 0 else np.zeros_like(heat)
    size = (image.shape[1], image.shape[0])
    smooth = np.asarray(Image.fromarray(scaled.astype(np.float32)).resize(size, Image.Resampling.BICUBIC)).clip(0, 1)
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(smooth, stops, _COLOURS[:, c]) for c in range(3)], axis=-1)
    alpha = OPACITY * smooth[..., None]
    return np.rint(image * (1 - alpha) + colours * alpha).astype(np.uint8)


def split_model(model: nn.Module, inputs: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """A ConvNeXt in three steps: the last stage (B, C, h, w), the features before the classifier (B, D), the logits."""
    places = model.forward_features(inputs)  # type: ignore[operator]  # timm's models have these three
    features = model.forward_head(places, pre_logits=True)  # type: ignore[operator]
    return places, features, model.get_classifier()(features)  # type: ignore[operator]
