"""The model as it leaves: from pixels to probabilities, so that little is left for others to get wrong."""

from pathlib import Path

import torch
from torch import Tensor, nn

from convnext_cli.inference.calibration import read_calibration, read_novelty
from convnext_cli.inference.explain import split_model
from convnext_cli.inference.metadata import Metadata
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.metrics.novelty import (
    FLOOR_CONTRAST,
    FLOOR_DISTANCE,
    FLOOR_SATURATION,
    FLOOR_STEP,
    NEIGHBOUR,
    STEPS,
    NoveltyModel,
)
from convnext_cli.models.forward import to_luminance
from convnext_cli.models.weights import read_weights_license


class ExportWrapper(nn.Module):
    """Normalisation, the model, its temperature, and how unlike its training images an image is.

    Args:
        model: a timm ConvNeXt in evaluation mode, on the processor.
        about: mean, std and temperature.
        novelty: what the training images look like, or None.
    """

    mean: Tensor
    std: Tensor
    bank: Tensor
    novelty_mean: Tensor
    precision: Tensor

    def __init__(self, model: nn.Module, about: Metadata, novelty: NoveltyModel | None) -> None:
        super().__init__()
        self.model = model
        self.temperature = about.temperature
        self.is_grey = about.preprocessing.is_grey
        self.register_buffer("mean", torch.tensor(about.preprocessing.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(about.preprocessing.std).view(1, -1, 1, 1))
        self.has_novelty = novelty is not None
        if novelty is not None:
            self.register_buffer("bank", torch.from_numpy(novelty.bank))
            self.register_buffer("novelty_mean", torch.from_numpy(novelty.mean).float())
            self.register_buffer("precision", torch.from_numpy(novelty.precision).float())

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """From (B, S, S, 3) uint8 to logits and probabilities (B, K), features (B, D), and novelty (B,) where known."""
        seen = pixels.permute(0, 3, 1, 2).to(torch.float32)
        if self.is_grey:
            seen = to_luminance(seen)
        _, features, logits = split_model(self.model, (seen / 255 - self.mean) / self.std)
        told = (logits, torch.softmax(logits / self.temperature, dim=1), features)
        return (*told, self._score_novelty(features, pixels)) if self.has_novelty else told

    def _score_novelty(self, features: Tensor, pixels: Tensor) -> Tensor:
        """Return the OOD score (B,), as `NoveltyModel.score` computes it."""
        likeness = nn.functional.normalize(features, eps=1e-12) @ self.bank.to(torch.float32).T
        nearest = torch.topk(likeness, min(NEIGHBOUR, len(self.bank)), dim=1).values[:, -1]
        numbers = [torch.log((1 - nearest).clamp_min(0) + FLOOR_DISTANCE), *_measure_pixels(pixels)]
        offset = torch.stack(numbers, dim=1) - self.novelty_mean
        products = offset[:, :, None] * self.precision * offset[:, None, :]  # no MatMul, which --int8 would quantise
        return products.sum(dim=(1, 2)).clamp_min(0).sqrt()


def _measure_pixels(pixels: Tensor) -> list[Tensor]:
    """Return the six statistics of `evaluation.novelty.measure_pixels`, each (B,), of pixels (B, S, S, 3)."""
    values = pixels.to(torch.float32) / 255
    grey = values.mean(dim=3)
    mean = grey.mean(dim=(1, 2))
    contrast = (grey - mean[:, None, None]).square().mean(dim=(1, 2)).sqrt()
    saturation = (values.amax(dim=3) - values.amin(dim=3)).mean(dim=(1, 2))
    columns = [mean, torch.log(contrast + FLOOR_CONTRAST), torch.log(saturation + FLOOR_SATURATION)]
    for step in STEPS:
        part = grey[:, ::step, ::step]
        rows = (part[:, 1:] - part[:, :-1]).abs().mean(dim=(1, 2))
        lines = (part[:, :, 1:] - part[:, :, :-1]).abs().mean(dim=(1, 2))
        columns.append(torch.log(rows + lines + FLOOR_STEP))
    return columns


def describe_run(run: Path, classifier: TorchClassifier) -> Metadata:
    """What an exported file is to say of a run.

    Raises:
        RunError: the run cannot be read.
    """
    config = classifier.run.read_config()
    return Metadata(
        architecture=config.architecture,
        classes=classifier.classes,
        preprocessing=classifier.preprocessing,
        calibration=read_calibration(classifier.run),
        weights=classifier.run.fingerprint_weights(),
        license=read_weights_license(run),
    )


def deploy(classifier: TorchClassifier, about: Metadata) -> tuple[ExportWrapper, tuple[Tensor]]:
    """The module to export, in evaluation mode, and an example of what it takes, (2, S, S, 3)."""
    fitted = about.calibration
    novelty = read_novelty(classifier.run) if fitted and fitted.novelty_threshold is not None else None
    size = about.preprocessing.image_size
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)  # two, because one would make the batch's size fixed
    return ExportWrapper(classifier.model, about, novelty).eval(), (example,)
