"""The model as a PyTorch program (`.pt2`), which torch runs without timm and `convnext`."""

import io
import json
import warnings
from itertools import chain
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from convnext_cli.exports.wrapper import list_dynamic_shapes, wrap_model
from convnext_cli.inference.classifier import Classifier, Heat, Outputs
from convnext_cli.inference.metadata import Metadata, list_outputs, read_metadata
from convnext_cli.inference.onnx_classifier import make_outputs
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.models.forward import use_torch_defaults

METADATA_FILE = "description.json"  # extra file of the archive with the metadata


@use_torch_defaults()
def write_program(classifier: TorchClassifier, metadata: Metadata, path: Path) -> None:
    """Write the run's model with `torch.export`, for a batch of any size."""
    module, example = wrap_model(classifier, metadata)
    archive = io.BytesIO()  # PyTorch's file writer aborts the process if the disk is full
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter deprecates its own parts
        program = torch.export.export(module, example, dynamic_shapes=list_dynamic_shapes())
        graphs = (part.graph for part in program.graph_module.modules() if isinstance(part, torch.fx.GraphModule))
        for node in chain.from_iterable(graph.nodes for graph in graphs):
            node.meta.pop("stack_trace", None)  # it has paths of this machine
        torch.export.save(program, archive, extra_files={METADATA_FILE: json.dumps(metadata.to_strings(), indent=1)})
    path.write_bytes(archive.getbuffer())


class ProgramClassifier(Classifier):
    """The model of a `.pt2` file, for the parity check."""

    @use_torch_defaults()
    def __init__(self, path: Path) -> None:
        extra = {METADATA_FILE: ""}
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            self._module = torch.export.load(io.BytesIO(path.read_bytes()), extra_files=extra).module()
        metadata = read_metadata(json.loads(extra[METADATA_FILE]), path)
        self.classes, self.preprocessing, self.task = metadata.classes, metadata.preprocessing, metadata.read_task()

    @use_torch_defaults()
    @torch.inference_mode()
    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: Heat) -> Outputs:
        """Return the outputs for preprocessed images, (B, H, W, 3); an exported file gives no heat map."""
        assert not heat
        tensors = self._module(torch.from_numpy(images))
        arrays = dict(zip(list_outputs(self.task), (tensor.numpy() for tensor in tensors), strict=False))
        return make_outputs(arrays, self.task, features=features)
