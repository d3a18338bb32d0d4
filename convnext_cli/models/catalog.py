"""Every ConvNeXt that timm knows, as data: read from `catalog.json`, which `tools/generate_catalog.py` writes."""

import fnmatch
import json
import tomllib
from collections.abc import Iterable
from dataclasses import dataclass
from functools import cache
from pathlib import Path
from typing import Any

from convnext_cli.errors import UnknownModelError, UsageError, WeightsError, suggest
from convnext_cli.models.names import ModelName, parse_hub_id, parse_name

BUILTIN = "builtin"
"""Name of the weights that come with the package: their tag, and the word that `--weights` takes."""
PERMISSIVE_LICENSES = frozenset({"apache-2.0", "mit", "bsd-3-clause"})
_HERE = Path(__file__).parent  # not importlib.resources, whose import is a thirtieth of every answer
REDUCTION = 32  # pixels of input per position of the last feature map, in every ConvNeXt


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """One set of pretrained weights, and how images must be prepared for it."""

    name: str
    license: str
    hub_id: str | None
    """Where the weights are on the Hub; None for those in the package."""
    url: str | None
    num_classes: int
    image_size: int
    """Side in pixels of the square input that the weights were trained or tuned for."""
    crop_pct: float
    crop_mode: str
    interpolation: str
    mean: tuple[float, float, float]
    std: tuple[float, float, float]
    top1: dict[int, float]
    """Published ImageNet-1k top-1 in percent, by test image size in pixels; empty where timm publishes none."""

    @property
    def best_top1(self) -> float | None:
        """The highest published top-1 in percent."""
        return max(self.top1.values(), default=None)

    @property
    def is_permissive(self) -> bool:
        """Whether timm's licence field names a permissive licence. ImageNet's own terms may still apply."""
        return self.license in PERMISSIVE_LICENSES


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One of a ConvNeXt's four stages, for a square image."""

    number: int
    side_before: int
    """Pixels or positions of its input's side."""
    side: int
    """Positions of its output's side."""
    channels: int
    blocks: int
    drop_path: tuple[float, float]
    """Stochastic depth of its first and last block, as fractions of the last block of all."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """One ConvNeXt architecture with 1,000 classes, and the weights that exist for it (the default first)."""

    name: str
    params: int
    backbone_params: int
    """Parameters without the classifier (timm's num_classes=0)."""
    gmacs: float
    """Multiply-adds of one forward pass at 224 px, in 10^9; FLOPs are twice that."""
    activation_mib: float
    """MiB that autograd keeps per image at 224 px in float32."""
    depths: tuple[int, ...]
    dims: tuple[int, ...]
    stem: str
    norm: str
    head: str
    layer_scale: bool
    grn: bool
    tags: tuple[Tag, ...]

    @property
    def parsed(self) -> ModelName:
        """The name taken apart."""
        parsed = parse_name(self.name)
        assert parsed is not None, self.name
        return parsed

    @property
    def takes_hidden_layer(self) -> bool:
        """Whether timm can put a hidden layer between its norm and its classifier."""
        return not self.head.startswith("norm")

    @property
    def default_tag(self) -> Tag | None:
        """The weights that timm loads when no tag is named; None where no weights exist."""
        return self.tags[0] if self.tags else None

    @property
    def licenses(self) -> tuple[str, ...]:
        """The licences of its weights, each once."""
        return tuple(dict.fromkeys(tag.license for tag in self.tags))

    @property
    def top1(self) -> float | None:
        """The best published top-1 of the default weights in percent."""
        return self.default_tag.best_top1 if self.default_tag else None

    def stages(self, image_size: int) -> list[Stage]:
        """Return the four stages for a square image of `image_size` pixels."""
        blocks, last = 0, max(1, sum(self.depths) - 1)
        stages = []
        for number, (depth, width) in enumerate(zip(self.depths, self.dims, strict=True), start=1):
            side = image_size // (2 * 2**number)
            ramp = (blocks / last, (blocks + depth - 1) / last)
            before = image_size if number == 1 else image_size // 2**number
            stages.append(
                Stage(number=number, side_before=before, side=side, channels=width, blocks=depth, drop_path=ramp)
            )
            blocks += depth
        return stages

    def feature_shape(self, image_size: int) -> tuple[int, int, int]:
        """Shape (C, H, W) of the last feature map for a square image of `image_size` pixels."""
        side = image_size // REDUCTION
        return self.dims[-1], side, side


@dataclass(frozen=True, kw_only=True, slots=True)
class Builtin:
    """The weights that come with the package, and what is to be known of them."""

    architecture: str
    tag: Tag
    card: dict[str, str]
    """Title to text: their data, recipe, hardware, licence, what they are good for and what not."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A well-known model of another kind, to compare with. Figures as in `Architecture` and `Tag`."""

    name: str
    params: int
    gmacs: float
    top1: float
    image_size: int
    """Side in pixels at which `top1` was measured."""
    license: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """Where the user's specification puts a model: its author's opinion, not a benchmark."""

    tier: int
    position: int


@cache
def load_catalog() -> dict[str, Architecture]:
    """All architectures by name, in the catalogue's order (family, then size)."""
    return {name: _read_architecture(name, fields) for name, fields in _read_catalog()["architectures"].items()}


@cache
def load_builtin() -> Builtin:
    """What `builtin/card.toml` says of the weights beside it. They are no catalogue entry: nothing ranks them."""
    raw = tomllib.loads((_HERE / "builtin" / "card.toml").read_text(encoding="utf-8"))
    fixed: dict[str, Any] = {"name": BUILTIN, "hub_id": None, "url": None, "top1": {}}
    return Builtin(architecture=raw["architecture"], tag=_read_tag(raw["tag"] | fixed), card=raw["card"])


def load_references() -> list[Reference]:
    """Models of other kinds, small before large."""
    return [Reference(**fields) for fields in _read_catalog()["references"]]


@cache
def load_ranking() -> tuple[dict[int, str], dict[str, Rank]]:
    """The specification's six tiers (number to title), and each ranked model's place in them."""
    raw = tomllib.loads((_HERE / "ranking.toml").read_text(encoding="utf-8"))
    titles = {tier["tier"]: tier["title"] for tier in raw["tiers"]}
    ordered = [(tier["tier"], name) for tier in raw["tiers"] for name in tier["models"]]
    return titles, {name: Rank(tier=tier, position=at) for at, (tier, name) in enumerate(ordered, start=1)}


def list_tags(architecture: Architecture) -> tuple[Tag, ...]:
    """All weights for an architecture, the package's own after timm's."""
    own = load_builtin()
    return (*architecture.tags, own.tag) if own.architecture == architecture.name else architecture.tags


def find_model(name: str) -> tuple[Architecture, Tag | None]:
    """Return the architecture of that name, and the tag it names (without one: the default tag).

    timm's ids on the Hub are names too: `timm/NAME`, `hf-hub:timm/NAME`.

    Raises:
        UnknownModelError: no such architecture, with the nearest names.
        UsageError: the architecture exists, the tag does not; or it is an id of another owner.
    """
    catalog = load_catalog()
    if hub := parse_hub_id(name):
        owner, name = hub
        if owner != "timm":
            raise UsageError(
                f"{owner}/{name} is not one of timm's models, and only those are fetched from the Hub",
                f"Fetch it with `hf download {owner}/{name} --local-dir DIR`, then give --weights DIR and its --model",
            )
    architecture_name, _, tag_name = name.partition(".")
    architecture = catalog.get(architecture_name)
    if architecture is None:
        raise UnknownModelError(name, list(catalog))
    if not tag_name:
        return architecture, architecture.default_tag
    tags = list_tags(architecture)
    for tag in tags:
        if tag.name == tag_name:
            return architecture, tag
    known = [tag.name for tag in tags]
    raise UsageError(
        f"{architecture_name} has no weights called {tag_name!r}",
        f"{suggest(tag_name, known)}It has {', '.join(known) or 'none at all'}",
    )


def resolve_weights(model: str | None, weights: str) -> tuple[str | None, str]:
    """Return the model and the weights that are meant where `weights` names timm's own, such as `timm/NAME.TAG`.

    Args:
        model: what was asked for, or None.
        weights: `auto`, `none`, `builtin`, a path, or a name or id of timm's weights. What exists is a path.

    Raises:
        WeightsError: there is nothing at that path, and it is no name of timm's.
        UsageError: the weights are another model's than `model`.
    """
    if weights in ("auto", "none", BUILTIN):
        return model, weights
    path = weights.removeprefix("local-dir:")
    if path and Path(path).exists():
        return model, path
    if not parse_hub_id(weights) and not parse_name(weights):
        raise WeightsError(
            f"no weights at {path or repr(path)}",
            "Give auto, none, builtin, a .safetensors or .pth file, a run folder, or timm/NAME",
        )
    try:
        architecture, tag = find_model(weights)
    except UsageError as error:
        raise WeightsError(f"no weights at {path}, and {error.problem}", error.remedy) from error
    if model is not None:
        own_architecture, own_tag = find_model(model)
        has_tag = own_tag is not None and model.rstrip("/").endswith(f".{own_tag.name}")
        if own_architecture != architecture or (has_tag and own_tag != tag):
            raise UsageError(f"--weights {weights} are not those of --model {model}", "Leave out one of the two")
    return (architecture.name if tag is None else f"{architecture.name}.{tag.name}"), "auto"


def list_models(
    pattern: str = "*",
    *,
    family: str | None = None,
    size: str | None = None,
    tier: int | None = None,
    max_params: float | None = None,
    license: str | None = None,
    pretrained: bool = False,
) -> list[Architecture]:
    """The architectures that pass every filter.

    Args:
        pattern: a shell pattern, or a part of the name.
        family: `convnext`, `convnextv2` or `test`.
        size: zepto to huge.
        tier: one of the specification's six tiers.
        max_params: at most so many million parameters (with 1,000 classes).
        license: a licence that at least one of its tags has, or `permissive`.
        pretrained: only those with weights.
    """
    _, ranks = load_ranking()
    wanted = pattern if any(sign in pattern for sign in "*?[") else f"*{pattern}*"

    def passes(model: Architecture) -> bool:
        name = model.parsed
        rank = ranks.get(model.name)
        return (
            fnmatch.fnmatchcase(model.name, wanted)
            and family in (None, name.family)
            and size in (None, name.size)
            and (tier is None or (rank is not None and rank.tier == tier))
            and (max_params is None or model.params <= max_params * 1e6)
            and (license is None or any(license_matches(tag, license) for tag in model.tags))
            and (not pretrained or bool(model.tags))
        )

    return [model for model in load_catalog().values() if passes(model)]


def license_matches(tag: Tag, wanted: str) -> bool:
    """Whether a tag's licence is `wanted`, or one of the permissive ones where that is `permissive`."""
    return tag.is_permissive if wanted == "permissive" else tag.license == wanted


def check_license(models: Iterable[Architecture], license: str) -> str:
    """Checks that `license` is `permissive` or a licence that occurs.

    Raises:
        UsageError: it is neither.
    """
    known = ["permissive", *sorted({name for model in models for name in model.licenses})]
    if license not in known:
        raise UsageError(f"unknown licence {license!r}", f"{suggest(license, known)}Known are {', '.join(known)}")
    return license


@cache
def _read_catalog() -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((_HERE / "catalog.json").read_text(encoding="utf-8"))
    return raw


def _read_architecture(name: str, fields: dict[str, Any]) -> Architecture:
    fields = fields | {key: tuple(fields[key]) for key in ("depths", "dims")}
    fields["tags"] = tuple(_read_tag(tag) for tag in fields["tags"])
    return Architecture(name=name, **fields)


def _read_tag(fields: dict[str, Any]) -> Tag:
    fields = fields | {key: tuple(fields[key]) for key in ("mean", "std")}
    fields["top1"] = {int(size): value for size, value in fields["top1"].items()}
    return Tag(**fields)
