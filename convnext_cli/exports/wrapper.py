"""The exported module: normalisation, model, calibration and OOD score, from pixels to scores."""

from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor, nn

from convnext_cli.inference.calibration import read_calibration, read_novelty
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
from convnext_cli.models.forward import split_model, to_luminance
from convnext_cli.models.weights import read_weights_license

ACTIVATIONS: dict[str, Callable[[Tensor], Tensor]] = {
    "softmax": partial(torch.softmax, dim=1),
    "sigmoid": torch.sigmoid,
    "identity": torch.clone,
    "exp": torch.exp,
}
"""The functions from calibrated logits to scores, by the names that tasks give them."""


class ExportWrapper(nn.Module):
    """A model with its normalisation, calibration and OOD score.

    Args:
        model: a timm ConvNeXt in evaluation mode, on the CPU.
        metadata: gives mean, std, task and calibration.
        novelty: the OOD model, or None.
    """

    mean: Tensor
    std: Tensor
    fill: Tensor
    bank: Tensor
    novelty_mean: Tensor
    precision: Tensor
    logit_scale: Tensor
    logit_offset: Tensor

    def __init__(self, model: nn.Module, metadata: Metadata, novelty: NoveltyModel | None) -> None:
        super().__init__()
        self.model = model
        task, calibration = metadata.read_task(), metadata.calibration
        self.temperature = calibration.temperature if calibration else 1.0
        self.activate = ACTIVATIONS[task.activation]
        affine = task.list_affine(calibration)
        self.has_affine = affine is not None
        if affine is not None:
            self.register_buffer("logit_scale", torch.tensor(affine[0]))
            self.register_buffer("logit_offset", torch.tensor(affine[1]))
        self.is_grey = metadata.preprocessing.is_grey
        self.register_buffer("mean", torch.tensor(metadata.preprocessing.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(metadata.preprocessing.std).view(1, -1, 1, 1))
        self.is_padded = metadata.preprocessing.is_padded
        if self.is_padded:
            self.register_buffer("fill", torch.tensor(metadata.preprocessing.fill, dtype=torch.float32))
        self.has_novelty = novelty is not None
        if novelty is not None:
            self.register_buffer("bank", torch.from_numpy(novelty.bank))
            self.register_buffer("novelty_mean", torch.from_numpy(novelty.mean).float())
            self.register_buffer("precision", torch.from_numpy(novelty.precision).float())

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """Return logits and scores (B, K), features (B, D), and OOD scores (B,) if there is an OOD model.

        The pixels are (B, H, W, 3) uint8.
        """
        values = pixels.permute(0, 3, 1, 2).to(torch.float32)
        if self.is_grey:
            values = to_luminance(values)
        _, features, logits = split_model(self.model, (values / 255 - self.mean) / self.std)
        calibrated = logits * self.logit_scale + self.logit_offset if self.has_affine else logits / self.temperature
        outputs = (logits, self.activate(calibrated), features)
        return (*outputs, self._score_novelty(features, pixels)) if self.has_novelty else outputs

    def _score_novelty(self, features: Tensor, pixels: Tensor) -> Tensor:
        """Return the OOD score (B,), as `NoveltyModel.score` computes it."""
        similarity = nn.functional.normalize(features, eps=1e-12) @ self.bank.to(torch.float32).T
        nearest = torch.topk(similarity, min(NEIGHBOUR, len(self.bank)), dim=1).values[:, -1]
        statistics = _measure_pixels(pixels, self.fill if self.is_padded else None)
        numbers = [torch.log((1 - nearest).clamp_min(0) + FLOOR_DISTANCE), *statistics]
        offset = torch.stack(numbers, dim=1) - self.novelty_mean
        products = offset[:, :, None] * self.precision * offset[:, None, :]  # not a MatMul, which --int8 would quantise
        return products.sum(dim=(1, 2)).clamp_min(0).sqrt()


def _measure_pixels(pixels: Tensor, fill: Tensor | None) -> list[Tensor]:
    """Return the six statistics of `metrics.novelty.measure_pixels`, each (B,), of pixels (B, H, W, 3).

    Padding with the value `fill`, (3,), does not count; None for images without padding.
    """
    values = pixels.to(torch.float32)
    inside = torch.ones_like(values[..., 0])
    if fill is not None:
        inside = (values != fill).to(torch.float32).amax(dim=3)  # ONNX Runtime compares uint8 from 1.21 only
    rows, columns = inside.amax(dim=2), inside.amax(dim=1)
    has_none = 1 - rows.amax(dim=1, keepdim=True)  # 1 for an image of that value
    rows, columns = torch.maximum(rows, has_none), torch.maximum(columns, has_none)
    values = values / 255
    grey = values.mean(dim=3)
    mean = _average(grey, rows, columns)
    contrast = _average((grey - mean[:, None, None]).square(), rows, columns).sqrt()
    saturation = _average(values.amax(dim=3) - values.amin(dim=3), rows, columns)
    statistics = [mean, torch.log(contrast + FLOOR_CONTRAST), torch.log(saturation + FLOOR_SATURATION)]
    for step in STEPS:
        part, tall, wide = grey[:, ::step, ::step], rows[:, ::step], columns[:, ::step]
        vertical = _average((part[:, 1:] - part[:, :-1]).abs(), tall[:, 1:] * tall[:, :-1], wide)
        horizontal = _average((part[:, :, 1:] - part[:, :, :-1]).abs(), tall, wide[:, 1:] * wide[:, :-1])
        statistics.append(torch.log(vertical + horizontal + FLOOR_STEP))
    return statistics


def _average(values: Tensor, rows: Tensor, columns: Tensor) -> Tensor:
    """Return the mean (B,) of values (B, H, W) in the rows (B, H) and columns (B, W) that have a 1; 0 if none has."""
    weights = rows[:, :, None] * columns[:, None, :]
    return (values * weights).sum(dim=(1, 2)) / weights.sum(dim=(1, 2)).clamp_min(1)


def make_metadata(classifier: TorchClassifier) -> Metadata:
    """Return the metadata of an exported file of a run.

    Raises:
        RunError: the run cannot be read.
    """
    run = classifier.run
    config = run.read_config()
    return Metadata(
        architecture=config.architecture,
        classes=classifier.classes,
        preprocessing=classifier.preprocessing,
        calibration=read_calibration(run),
        weights=run.fingerprint_weights(),
        license=read_weights_license(run.path),
        task=config.task,
    )


def list_dynamic_shapes() -> tuple[dict[int, torch.export.Dim]]:
    """Return the dimensions of the input that may change: the batch."""
    return ({0: torch.export.Dim("batch")},)


def wrap_model(classifier: TorchClassifier, metadata: Metadata) -> tuple[ExportWrapper, tuple[Tensor]]:
    """Return the module to export, in evaluation mode, and an example input, (2, H, W, 3)."""
    calibration = metadata.calibration
    has_novelty = calibration is not None and calibration.novelty_threshold is not None
    novelty = read_novelty(classifier.run) if has_novelty else None
    example = torch.zeros(
        (2, *metadata.preprocessing.size, 3), dtype=torch.uint8
    )  # with one image, torch would fix the batch size
    return ExportWrapper(classifier.model, metadata, novelty).eval(), (example,)
