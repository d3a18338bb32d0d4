"""The ONNX file: its graph and its metadata."""

import warnings
from importlib import import_module
from pathlib import Path
from typing import Any

import torch

from convnext_cli.errors import ConvnextError, UsageError
from convnext_cli.exports.wrapper import list_dynamic_shapes, wrap_model
from convnext_cli.inference.metadata import INPUT, Metadata, list_outputs
from convnext_cli.inference.onnx_classifier import INSTALL
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.models.forward import use_torch_defaults

OPSET = 20  # the first with a GELU operator
MAX_BYTES = 2_000_000_000  # the limit of a protocol buffer


def check_installed() -> None:
    """Check that the extra `onnx` is installed.

    Raises:
        ConvnextError: a package is missing.
    """
    for name in ("onnx", "onnxruntime", "onnxscript"):
        try:
            import_module(name)
        except ModuleNotFoundError as error:
            raise ConvnextError(f"{name} is not installed", INSTALL) from error


@use_torch_defaults()
def write_graph(classifier: TorchClassifier, metadata: Metadata, path: Path) -> None:
    """Write the run's model as one ONNX file, for a batch of any size.

    Raises:
        UsageError: the model is too large for one ONNX file.
    """
    from onnxscript.optimizer import optimize_ir

    module, example = wrap_model(classifier, metadata)
    if sum(value.nbytes for value in module.state_dict().values()) > MAX_BYTES:
        raise UsageError("the model is larger than the 2 GB that one ONNX file can hold", "Use --format pt2")
    outputs = list_outputs(classifier.task)
    if not module.has_novelty:
        outputs = outputs[:-1]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter deprecates its own parts
        program = torch.onnx.export(
            module,
            example,
            input_names=[INPUT],
            output_names=outputs,
            dynamic_shapes=list_dynamic_shapes(),
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            optimize=False,  # below, once
            verbose=False,
        )
    assert program is not None
    # Fold LayerScale times weights into constants, which quantisation needs; the exporter folds small ones only. The
    # bank of training features stays in 16 bits.
    optimize_ir(
        program.model,
        input_size_limit=MAX_BYTES,
        output_size_limit=MAX_BYTES,
        should_fold=lambda node: False if any(value and value.name == "bank" for value in node.inputs) else None,
    )
    _drop_traces(program.model.graph)
    program.model.metadata_props.update(metadata.to_strings())
    program.save(path)


def _drop_traces(graph: Any) -> None:
    """Remove the exporter's notes on each node and value: paths on this machine, and numbers that count its calls."""
    graph.metadata_props.clear()
    for node in graph:
        node.metadata_props.clear()
    for value in (*graph.inputs, *graph.initializers.values(), *(value for node in graph for value in node.outputs)):
        value.metadata_props.clear()


def write_metadata(path: Path, metadata: Metadata) -> None:
    """Replace the metadata of an ONNX file."""
    import onnx

    graph = onnx.load(path)
    onnx.helper.set_model_props(graph, metadata.to_strings())
    onnx.save(graph, path)
