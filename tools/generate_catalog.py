"""Write `convnext_cli/models/catalog.json` from the installed timm. Run it after raising timm's version.

    python tools/generate_catalog.py

Names, licences, input sizes and preprocessing are timm's configuration fields. Parameters, multiply-adds and kept
activations are counted on meta tensors, without weights or a GPU. Published accuracies come from
`published_top1.csv`, copied from timm's results/results-imagenet.csv (August 2026; the five reference models as of its
commit 0173a139) and its results for other sizes.
"""

import csv
import json
from pathlib import Path
from typing import Any

import timm
import torch
from timm.models import get_arch_pretrained_cfgs
from torch.utils.flop_counter import FlopCounterMode

from convnext_cli.models.names import SIZES, parse_name

CATALOG = Path(__file__).parents[1] / "convnext_cli" / "models" / "catalog.json"
REFERENCES = (
    "mobilenetv3_large_100.ra_in1k",
    "efficientnet_b0.ra_in1k",
    "resnet50.a1_in1k",
    "swin_tiny_patch4_window7_224.ms_in1k",
    "vit_base_patch16_224.augreg_in1k",
)
TOP1 = Path(__file__).with_name("published_top1.csv")


def build_catalog() -> dict[str, Any]:
    """Return the catalogue as JSON data."""
    top1 = read_top1()
    return {
        "timm": timm.__version__,
        "architectures": {name: describe_architecture(name, top1) for name in list_architectures()},
        "references": [describe_reference(name, top1[name]) for name in REFERENCES],
    }


def list_architectures() -> list[str]:
    """Return the names of timm's ConvNeXt models: V1, V2, then the test models, small before large."""
    names = [name for name in timm.list_models("*convnext*") if name.startswith(("convnext", "test_convnext"))]
    families = ["convnext", "convnextv2", "test"]

    def place(name: str) -> tuple[int, int, str]:
        parsed = parse_name(name)
        assert parsed is not None, name
        return families.index(parsed.family), SIZES.index(parsed.size) if parsed.size in SIZES else 0, name

    return sorted(names, key=place)


def describe_architecture(name: str, top1: dict[str, dict[int, float]]) -> dict[str, Any]:
    """Return an architecture's entry."""
    with torch.device("meta"):
        model = timm.create_model(name)
        image = torch.empty(1, 3, 224, 224)
    macs, kept_bytes = measure_forward(model, image)
    hidden = getattr(model.head.pre_logits, "fc", None) if hasattr(model.head, "pre_logits") else None
    norm_first = type(model.norm_pre).__name__ != "Identity"
    block = model.stages[0].blocks[0]
    return {
        "params": sum(p.numel() for p in model.parameters()),
        "backbone_params": sum(p.numel() for n, p in model.named_parameters() if not n.startswith("head.fc.")),
        "gmacs": round(macs / 1e9, 3),
        "activation_mib": round(kept_bytes / 2**20, 1),
        "depths": [len(stage.blocks) for stage in model.stages],
        "dims": [info["num_chs"] for info in model.feature_info],
        "stem": describe_stem(model.stem),
        "norm": type(block.norm).__name__,
        "head": " -> ".join(["norm", "average pool"] if norm_first else ["average pool", "norm"])
        + (f" -> linear {hidden.out_features} -> GELU" if hidden else "")
        + " -> linear",
        "layer_scale": getattr(block, "gamma", None) is not None,
        "grn": hasattr(block.mlp, "grn") and type(block.mlp.grn).__name__ != "Identity",
        "tags": [
            describe_tag(full_name.partition(".")[2], cfg, top1.get(full_name, {}))
            for full_name, cfg in get_arch_pretrained_cfgs(name).items()
            if cfg.has_weights
        ],
    }


def describe_reference(full_name: str, top1: dict[int, float]) -> dict[str, Any]:
    """Return the entry of a model of another family, at 224 px."""
    with torch.device("meta"):
        model = timm.create_model(full_name)
        macs, _ = measure_forward(model, torch.empty(2, 3, 224, 224))  # two: BatchNorm refuses one in training
    cfg = model.pretrained_cfg
    (image_size, best), *_ = top1.items()
    return {
        "name": full_name,
        "params": sum(p.numel() for p in model.parameters()),
        "gmacs": round(macs / 2 / 1e9, 3),
        "top1": best,
        "image_size": image_size,
        "license": cfg["license"],
    }


def describe_stem(stem: torch.nn.Module) -> str:
    """Return the stem's convolutions as text."""
    convs = [m for m in stem.modules() if isinstance(m, torch.nn.Conv2d)]
    return " + ".join(f"{c.kernel_size[0]}x{c.kernel_size[0]} stride {c.stride[0]}" for c in convs)


def describe_tag(tag: str, cfg: Any, top1: dict[int, float]) -> dict[str, Any]:
    """Return the entry of a set of weights, with timm's fields."""
    assert cfg.input_size[1] == cfg.input_size[2]
    return {
        "name": tag,
        "license": cfg.license,
        "hub_id": cfg.hf_hub_id + tag if cfg.hf_hub_id.endswith(".") else cfg.hf_hub_id,
        "url": cfg.url or None,
        "num_classes": cfg.num_classes,
        "image_size": cfg.input_size[1],
        "crop_pct": cfg.crop_pct,
        "crop_mode": cfg.crop_mode,
        "interpolation": cfg.interpolation,
        "mean": list(cfg.mean),
        "std": list(cfg.std),
        "top1": {str(size): top1[size] for size in sorted(top1)},
    }


def measure_forward(model: torch.nn.Module, image: torch.Tensor) -> tuple[int, int]:
    """Return the multiply-adds of a forward pass, and the bytes that autograd keeps for the backward pass.

    Multiply-adds are counted as in timm's published tables (fvcore's rules): half of torch's FLOPs for convolutions and
    matrix products; 5 for an element through a LayerNorm; nothing for any other norm, an activation or GRN. Bytes are
    those of each storage once, parameters left out.
    """
    parameters = {p.untyped_storage()._cdata for p in model.parameters()}
    kept: dict[int, torch.UntypedStorage] = {}
    normed: list[int] = []

    def keep(tensor: torch.Tensor) -> torch.Tensor:
        storage = tensor.untyped_storage()
        if storage._cdata not in parameters:
            kept[storage._cdata] = storage
        return tensor

    for norm in (m for m in model.modules() if isinstance(m, torch.nn.LayerNorm)):
        norm.register_forward_hook(lambda _, __, output: normed.append(output.numel()))
    with (
        FlopCounterMode(display=False) as counter,
        torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor),
    ):
        model.train()(image)
    return counter.get_total_flops() // 2 + 5 * sum(normed), sum(storage.nbytes() for storage in kept.values())


def read_top1() -> dict[str, dict[int, float]]:
    """Return the published accuracy in percent, by full name and image size in pixels."""
    table: dict[str, dict[int, float]] = {}
    with TOP1.open(newline="") as file:
        for row in csv.DictReader(file):
            table.setdefault(row["model"], {})[int(row["image_size"])] = float(row["top1"])
    return table


if __name__ == "__main__":
    CATALOG.write_text(json.dumps(build_catalog(), indent=1) + "\n", encoding="utf-8")
    print(f"wrote {CATALOG}")
