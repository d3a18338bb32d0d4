"""The grammar of ConvNeXt names in timm: `<family>_<size>[_<modifier>…][.<tag>]`."""

import re
from dataclasses import dataclass

SIZES = ("zepto", "atto", "femto", "pico", "nano", "tiny", "small", "base", "large", "xlarge", "xxlarge", "huge")

FAMILIES = {
    "convnext": "ConvNeXt (V1): depthwise 7x7, LayerNorm, LayerScale (arXiv:2201.03545)",
    "convnextv2": "ConvNeXt V2: V1 with GRN in place of LayerScale, pretrained by FCMAE (arXiv:2301.00808)",
    "test": "tiny models that timm uses for its unit tests; they do have weights",
}

MODIFIERS = {
    "ols": "overlapping stem: two 3x3 stride-2 convolutions in place of one 4x4 stride-4",
    "hnf": "head norm first: norm, then pooling, then the linear layer",
    "rms": "another norm than LayerNorm: RMSNorm in atto, timm's SimpleNorm in zepto",
    "mlp": "a hidden layer in the head, as in the LAION CLIP image towers",
}

NORMS = {
    "RmsNorm2d": "RMSNorm: y = x / sqrt(mean(x^2) + eps) * w over channels; no mean is subtracted, no bias",
    "SimpleNorm2d": "timm's SimpleNorm, not RMSNorm: y = x / sqrt(var(x) + eps) * w over channels; "
    "the variance is about the mean, which is not subtracted from x; no bias",
    "LayerNorm": "LayerNorm: y = (x - mean(x)) / sqrt(var(x) + eps) * w + b over channels",
    "LayerNorm2d": "LayerNorm: y = (x - mean(x)) / sqrt(var(x) + eps) * w + b over channels",
}
"""The formula of each norm, per position."""

GRAMMAR = (
    rf"(?:(?P<family>convnextv2|convnext)_(?P<size>{'|'.join(SIZES)})"
    rf"(?P<modifiers>(?:_(?:{'|'.join(MODIFIERS)}))*)"
    r"|(?P<test>test)_(?P<test_size>convnext[23]?))(?:\.(?P<tag>[a-z0-9_]+))?"
)
"""Regular expression of all valid names."""

_GRAMMAR = re.compile(GRAMMAR)
_HUB = re.compile(r"(?:hf[-_]hub:|https://(?:huggingface\.co|hf\.co)/)?(?P<owner>[\w.-]+)/(?P<name>[\w.-]+)/?")


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelName:
    """The parts of a model name."""

    family: str
    size: str
    modifiers: tuple[str, ...] = ()
    tag: str | None = None


def parse_hub_id(text: str) -> tuple[str, str] | None:
    """Return owner and name of a Hugging Face Hub id or address, such as `hf-hub:timm/NAME`; None for other texts."""
    match = _HUB.fullmatch(text)
    return (match["owner"], match["name"]) if match else None


def parse_name(name: str) -> ModelName | None:
    """Return the parts of a model name, or None if it does not follow the grammar.

    A name that follows the grammar need not exist; the catalogue has all models.
    """
    match = _GRAMMAR.fullmatch(name)
    if match is None:
        return None
    if match["test"]:
        return ModelName(family=match["test"], size=match["test_size"], tag=match["tag"])
    return ModelName(
        family=match["family"],
        size=match["size"],
        modifiers=tuple(match["modifiers"].split("_")[1:]),
        tag=match["tag"],
    )
