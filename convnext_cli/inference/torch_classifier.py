"""Classifier of a run folder, or of a cross-validation, with torch."""

from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_cli.inference.classifier import BATCH_SIZE, Classifier, Heat, Outputs
from convnext_cli.inference.ensemble import Ensemble, open_ensemble
from convnext_cli.inference.saved_model import load_model
from convnext_cli.kernels.blocks import keep_freed_memory, use_fused_blocks
from convnext_cli.models.device_memory import BatchHalver, guard_memory
from convnext_cli.models.forward import (
    choose_device,
    has_native_bf16,
    make_views,
    prepare_input,
    split_model,
    use_torch_defaults,
)
from convnext_cli.recipes.plan import read_optional_plan
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder

GPU_BATCH_SIZE = 256  # images per forward pass; a GPU that has too little memory halves it


class TorchClassifier(Classifier):
    """The model of a run.

    Args:
        run: the run folder.
        device: None takes the GPU where there is one.
        tta: test-time augmentation: average over shifted views, mirrored too where training mirrored.
        cache: keep the preprocessed images of an index in the cache.

    A GPU with bf16 computes the feature maps in bf16: probabilities differ from float32 by less than 0.01.

    Raises:
        RunError: the run cannot be read.
        OutOfMemoryError: the model, or a single image, does not fit into the device's memory.
    """

    def __init__(self, run: Path, device: torch.device | None = None, *, tta: bool = False, cache: bool = True) -> None:
        self.run = RunFolder(run)
        self.device = device or choose_device()
        model, self.classes, self.preprocessing = load_model(run)
        with guard_memory("the device has too little memory for the model", "Use a device with more", self.device):
            self.model: nn.Module = model.to(self.device).to(memory_format=torch.channels_last)
        self.bf16, self.halver = has_native_bf16(self.device), BatchHalver(self.device)
        self.batch_size = BATCH_SIZE if self.device.type == "cpu" else GPU_BATCH_SIZE
        if self.device.type == "cpu":
            keep_freed_memory()
            use_fused_blocks(self.model)
        self.task = self.run.read_config().read_task(run)
        self.tta, self.cache = tta, cache
        self.mirror = tta and read_optional_plan(self.run.plan).settings.get("hflip", 0) > 0

    @use_torch_defaults()
    @torch.inference_mode()
    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: Heat) -> Outputs:
        """Return the outputs for preprocessed images, (B, H, W, 3)."""

        def compute(part: NDArray[np.uint8]) -> tuple[Tensor, ...]:
            inputs = prepare_input(part, self.preprocessing, self.device)
            feature_maps, vectors, logits = split_model(self.model, inputs, bf16=self.bf16)
            if self.tta:
                views = make_views(inputs, mirror=self.mirror)[1:]  # the first is the image itself
                others = (split_model(self.model, view, bf16=self.bf16)[2] for view in views)
                logits = torch.stack([logits, *others]).mean(dim=0)
            heat_maps = self._map_heat(feature_maps, logits, heat)
            vectors = vectors if features else vectors[:, :0]
            return tuple(tensor.float().cpu() for tensor in (logits, vectors, heat_maps))

        logits, vectors, heat_maps = (tensor.numpy() for tensor in self.halver.run(compute, images))
        return Outputs(logits=logits, features=vectors, heat=heat_maps)

    def _map_heat(self, feature_maps: Tensor, logits: Tensor, heat: Heat) -> Tensor:
        """Return the heat maps of feature maps (B, C, h, w), as `Outputs.heat` has them."""
        if not isinstance(heat, tuple):
            return map_heat(self.model, feature_maps, logits.argmax(dim=1)) if heat else feature_maps[:, 0, :0]
        classes = [torch.full((len(logits),), number, device=logits.device) for number in heat]
        return torch.stack([map_heat(self.model, feature_maps, numbers) for numbers in classes], dim=1)


def open_classifier(run: RunFolder, *, tta: bool = False, cache: bool = True) -> TorchClassifier | Ensemble:
    """Return the model of a run, or the ensemble of a cross-validation.

    Raises:
        RunError: it has not finished, or cannot be read.
    """
    if isinstance(run, FoldsFolder):
        return open_ensemble(run, lambda fold_run: TorchClassifier(fold_run.path, tta=tta, cache=cache))
    return TorchClassifier(run.path, tta=tta, cache=cache)


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
