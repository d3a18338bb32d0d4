"""Writes the ONNX file."""

import warnings
from pathlib import Path

import torch

from convnext_cli.errors import ConvnextError, UsageError
from convnext_cli.exports.wrapper import deploy
from convnext_cli.inference.metadata import INPUT, OUTPUTS, Metadata
from convnext_cli.inference.onnx_classifier import INSTALL
from convnext_cli.inference.torch_classifier import TorchClassifier

OPSET = 20  # the first with GELU as one operator
MAX_BYTES = 2_000_000_000  # what one file can hold; it is a protocol buffer


def check_installed() -> None:
    """Checks that the extra `onnx` is here.

    Raises:
        ConvnextError: a package is missing.
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            __import__(name)
        except ModuleNotFoundError as error:
            raise ConvnextError(f"{name} is not installed", INSTALL) from error


def write_graph(classifier: TorchClassifier, about: Metadata, path: Path) -> None:
    """Writes the run's model as one ONNX file, for a batch of any size.

    Raises:
        ConvnextError: the extra is not installed.
        UsageError: the model is too large for one ONNX file.
    """
    check_installed()
    from onnxscript.optimizer import optimize_ir

    module, example = deploy(classifier, about)
    if sum(value.nbytes for value in module.state_dict().values()) > MAX_BYTES:
        raise UsageError("the model is larger than the 2 GB that one ONNX file can hold", "Use --format pt2")
    outputs = OUTPUTS if module.has_novelty else OUTPUTS[:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch's exporter, about its own future
        program = torch.onnx.export(
            module,
            example,
            input_names=[INPUT],
            output_names=outputs,
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    # What blocks compute of their weights (LayerScale times the product's) becomes a constant: quantisation takes
    # constants alone, and the exporter computes small ones only. The training images' features stay in 16 bits.
    optimize_ir(
        program.model,
        input_size_limit=MAX_BYTES,
        output_size_limit=MAX_BYTES,
        should_fold=lambda node: False if any(value and value.name == "bank" for value in node.inputs) else None,
    )
    program.model.metadata_props.update(about.to_strings())
    program.save(path)


def write_metadata(path: Path, about: Metadata) -> None:
    """Makes an ONNX file say `about` of itself."""
    import onnx

    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, about.to_strings())
    onnx.save(graph, path)
