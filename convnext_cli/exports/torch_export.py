"""The model as a PyTorch program (`.pt2`): torch alone runs it, without timm and without our code."""

import io
import json
import warnings
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from convnext_cli.exports.wrapper import deploy
from convnext_cli.inference.classifier import Classifier, Outputs
from convnext_cli.inference.metadata import OUTPUTS, Metadata, read_metadata
from convnext_cli.inference.torch_classifier import TorchClassifier

DESCRIPTION = "description.json"  # the archive's extra file, with what ONNX keeps in its metadata


def write_program(classifier: TorchClassifier, about: Metadata, path: Path) -> None:
    """Writes the run's model by `torch.export`, for a batch of any size."""
    module, example = deploy(classifier, about)
    archive = io.BytesIO()  # PyTorch's own writer ends the process by a signal where the disk is full
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter, about its own future
        program = torch.export.export(module, example, dynamic_shapes=({0: torch.export.Dim("batch")},))
        torch.export.save(program, archive, extra_files={DESCRIPTION: json.dumps(about.to_strings(), indent=1)})
    path.write_bytes(archive.getbuffer())


class Program(Classifier):
    """A `.pt2` file, ready to classify; by this its parity is checked."""

    def __init__(self, path: Path) -> None:
        extra = {DESCRIPTION: ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._module = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
        about = read_metadata(json.loads(extra[DESCRIPTION]), path)
        self.classes, self.preprocessing = about.classes, about.preprocessing

    @torch.inference_mode()
    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: bool) -> Outputs:
        """Asks the model about prepared images, (B, S, S, 3); an exported file has no heat."""
        assert not heat
        told = dict(zip(OUTPUTS, (part.numpy() for part in self._module(torch.from_numpy(images))), strict=False))
        return Outputs(
            logits=told["logits"],
            features=told["features"] if features else told["features"][:, :0],
            heat=np.empty((len(images), 0, 0), np.float32),
            probabilities=told["probabilities"],
            novelty=told.get("novelty"),
        )
