"""Quantisation of weights and activations to 8 bits: smaller, and faster on CPUs with 8-bit instructions."""

import logging
from collections.abc import Iterator, Sequence
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_cli.exports.onnx_file import write_metadata
from convnext_cli.images.decode import decode_image
from convnext_cli.images.transforms import transform_for_eval
from convnext_cli.inference.metadata import INPUT, Metadata


def _list_comparisons(path: Path) -> list[str]:
    """Return the names of the nodes that compare an image with the bank of training features.

    8 bits would be too coarse for the nearest neighbours.
    """
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    ranked = {name for node in nodes if node.op_type == "TopK" for name in node.input}
    return [node.name for node in nodes if node.op_type in ("MatMul", "Gemm") and ranked & set(node.output)]


def quantise(path: Path, metadata: Metadata, images: Sequence[Path]) -> None:
    """Quantise the weights and inputs of convolutions and matrix products of an ONNX file to 8 bits.

    Norms (GRN included), GELU, residual sums and the comparison with training features stay float32. Quantisation is
    static: value ranges come from calibration images. Weights have a range per channel.

    The float32 file is replaced.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types of its own
        def __init__(self) -> None:
            self._images: Iterator[Path] = iter(images)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            path = next(self._images, None)
            if path is None:
                return None
            return {INPUT: transform_for_eval(decode_image(path), metadata.preprocessing)[None]}

    disabled, handler = logging.root.manager.disable, logging.NullHandler()
    logging.disable(logging.WARNING)  # it recommends a step that the export has done
    logging.root.addHandler(handler)  # else it configures the program's logging
    try:
        quantize_static(
            path,
            path,
            Reader(),
            quant_format=QuantFormat.QDQ,
            op_types_to_quantize=["Conv", "MatMul", "Gemm"],
            nodes_to_exclude=_list_comparisons(path),
            per_channel=True,
            activation_type=QuantType.QUInt8,
            weight_type=QuantType.QInt8,
        )
    finally:
        logging.disable(disabled)
        logging.root.removeHandler(handler)
    write_metadata(path, metadata)
