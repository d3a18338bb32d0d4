"""Classifier of a run folder, with torch."""

from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from convnext_cli.inference.classifier import Classifier, Outputs
from convnext_cli.inference.explain import map_heat, split_model
from convnext_cli.inference.saved_model import load_model
from convnext_cli.kernels.blocks import keep_freed_memory, use_fused_blocks
from convnext_cli.models.forward import choose_device, make_views, prepare_input
from convnext_cli.recipes.plan import read_plan
from convnext_cli.runs.folder import RunFolder


class TorchClassifier(Classifier):
    """The model of a run.

    Args:
        run: the run folder.
        device: None takes the GPU where there is one.
        tta: test-time augmentation: average over shifted views, mirrored too where training mirrored.
        cache: keep the preprocessed images of an index in the cache.

    Raises:
        RunError: the run cannot be read.
    """

    def __init__(self, run: Path, device: torch.device | None = None, *, tta: bool = False, cache: bool = True) -> None:
        self.run = RunFolder(run)
        self.device = device or choose_device()
        model, self.classes, self.preprocessing = load_model(run)
        self.model: nn.Module = model.to(self.device).to(memory_format=torch.channels_last)
        if self.device.type == "cpu":
            keep_freed_memory()
            use_fused_blocks(self.model)
        self.tta, self.cache = tta, cache
        self.mirror = tta and self.run.plan.exists() and read_plan(self.run.plan)[2].get("hflip", 0) > 0

    @torch.inference_mode()
    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: bool) -> Outputs:
        """Return the outputs for preprocessed images, (B, H, W, 3)."""
        inputs = prepare_input(images, self.preprocessing, self.device)
        feature_maps, vectors, logits = split_model(self.model, inputs)
        if self.tta:
            views = make_views(inputs, mirror=self.mirror)[1:]  # the first is the image itself
            logits = torch.stack([logits, *(self.model(view) for view in views)]).mean(dim=0)
        heat_maps = map_heat(self.model, feature_maps, logits.argmax(dim=1)) if heat else feature_maps[:, 0, :0]
        vectors = vectors if features else vectors[:, :0]
        arrays = [tensor.float().cpu().numpy() for tensor in (logits, vectors, heat_maps)]
        return Outputs(logits=arrays[0], features=arrays[1], heat=arrays[2])
