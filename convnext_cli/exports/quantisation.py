"""Weights and activations in 8 bits: smaller, and faster where the processor has instructions for it."""

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
    """Return the names of the nodes that compare an image with training images: 8 bits would blur what is near."""
    import onnx

    nodes = onnx.load(path, load_external_data=False).graph.node
    ranked = {name for node in nodes if node.op_type == "TopK" for name in node.input}
    return [node.name for node in nodes if node.op_type in ("MatMul", "Gemm") and ranked & set(node.output)]


def quantise(path: Path, about: Metadata, images: Sequence[Path]) -> None:
    """Write an ONNX file anew with the weights and inputs of convolutions and matrix products in 8 bits.

    Norms (GRN included), GELU, residual sums and the comparison with the training images stay float32.

    Static: the range of every value is taken from calibration images, and nothing is measured at run time. Weights
    have a range per channel.

    Args:
        path: the float32 file, which is replaced.
        about: what it is to say of itself.
        images: calibration images, at least one.
    """
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Reader(CalibrationDataReader):  # type: ignore[misc]  # it has no types of its own
        def __init__(self) -> None:
            self._images: Iterator[Path] = iter(images)

        def get_next(self) -> dict[str, NDArray[np.uint8]] | None:
            path = next(self._images, None)
            return None if path is None else {INPUT: transform_for_eval(decode_image(path), about.preprocessing)[None]}

    logging.disable(logging.WARNING)  # it recommends a step of its own that was done by the export
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
        logging.disable(logging.NOTSET)
    write_metadata(path, about)
