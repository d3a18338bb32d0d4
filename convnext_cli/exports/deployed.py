"""The model as it leaves: from pixels to probabilities, so that little is left for others to get wrong."""

from pathlib import Path

import torch
from torch import Tensor, nn

from convnext_cli.evaluation.novelty import NEIGHBOUR
from convnext_cli.inference.description import Description
from convnext_cli.inference.explain import split_model
from convnext_cli.inference.fitting import read_bank, read_calibration
from convnext_cli.inference.forward import take_luminance
from convnext_cli.inference.predictor import Predictor
from convnext_cli.models.weights import read_license


class Deployed(nn.Module):
    """Normalisation, the model, its temperature, and how unlike its training images an image is.

    Args:
        model: a timm ConvNeXt in evaluation mode, on the processor.
        about: mean, std and temperature.
        bank: (M, D) normalised features of training images, or None.
    """

    mean: Tensor
    std: Tensor
    bank: Tensor | None

    def __init__(self, model: nn.Module, about: Description, bank: Tensor | None) -> None:
        super().__init__()
        self.model = model
        self.temperature = about.temperature
        self.is_grey = about.how.is_grey
        self.register_buffer("mean", torch.tensor(about.how.mean).view(1, -1, 1, 1))
        self.register_buffer("std", torch.tensor(about.how.std).view(1, -1, 1, 1))
        self.register_buffer("bank", bank)

    def forward(self, pixels: Tensor) -> tuple[Tensor, ...]:
        """From (B, S, S, 3) uint8 to logits and probabilities (B, K), features (B, D), and with a bank novelty (B,)."""
        seen = pixels.permute(0, 3, 1, 2).to(torch.float32)
        if self.is_grey:
            seen = take_luminance(seen)
        _, features, logits = split_model(self.model, (seen / 255 - self.mean) / self.std)
        told = (logits, torch.softmax(logits / self.temperature, dim=1), features)
        if self.bank is None:
            return told
        likeness = nn.functional.normalize(features, eps=1e-12) @ self.bank.to(torch.float32).T
        nearest = torch.topk(likeness, min(NEIGHBOUR, len(self.bank)), dim=1).values
        return (*told, 1 - nearest[:, -1])


def describe_run(run: Path, predictor: Predictor) -> Description:
    """What an exported file is to say of a run.

    Raises:
        RunError: the run cannot be read.
    """
    config = predictor.run.read_config()
    return Description(
        architecture=config.architecture,
        classes=predictor.classes,
        how=predictor.how,
        calibration=read_calibration(predictor.run),
        weights=predictor.run.fingerprint_weights(),
        license=read_license(run),
    )


def deploy(predictor: Predictor, about: Description) -> tuple[Deployed, tuple[Tensor]]:
    """The module to export, in evaluation mode, and an example of what it takes, (2, S, S, 3)."""
    fitted = about.calibration
    bank = torch.from_numpy(read_bank(predictor.run)) if fitted and fitted.novelty_threshold is not None else None
    size = about.how.image_size
    example = torch.zeros((2, size, size, 3), dtype=torch.uint8)  # two, because one would make the batch's size fixed
    return Deployed(predictor.model, about, bank).eval(), (example,)
