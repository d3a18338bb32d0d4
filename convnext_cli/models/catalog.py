"""The catalogue of timm's ConvNeXt models, read from `catalog.json`, which `tools/generate_catalog.py` writes."""

import fnmatch
import json
import tomllib
from dataclasses import asdict, dataclass, field, fields
from functools import cache
from pathlib import Path
from typing import Annotated, Any

from convnext_cli.errors import UnknownModelError, UsageError, WeightsError, check_word, suggest
from convnext_cli.images.preprocessing import REDUCTION, Preprocessing
from convnext_cli.models.licenses import PERMISSIVE_LICENSES, license_matches
from convnext_cli.models.names import FAMILIES, SIZES, ModelName, parse_hub_id, parse_name
from convnext_cli.options import Option, make_request

BUILTIN = "builtin"
"""The tag of the weights that come with the package, and the word for them in `--weights`."""
_HERE = Path(__file__).parent  # importlib.resources would add a thirtieth to the start-up time
DEFAULT_IMAGE_SIZE = 224  # px, ConvNeXt's usual input
UNTAGGED = Preprocessing(
    image_size=DEFAULT_IMAGE_SIZE, crop_pct=0.875, crop_mode="center", interpolation="bicubic",
    mean=(0.485, 0.456, 0.406), std=(0.229, 0.224, 0.225),
)  # fmt: skip
"""timm's preprocessing of architectures without weights."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Tag:
    """One set of pretrained weights of an architecture."""

    name: str
    license: str
    hub_id: str | None
    """Repository on the Hugging Face Hub; None for the weights in the package."""
    url: str | None
    num_classes: int
    preprocessing: Preprocessing
    """The preprocessing that the weights were trained or tuned with."""
    top1: dict[int, float]
    """Published ImageNet-1k accuracy in percent by test image size in px; empty if timm publishes none."""

    @property
    def image_size(self) -> int:
        """Side of the square input in pixels; all of timm's are square."""
        return self.preprocessing.height

    @property
    def best_top1(self) -> float | None:
        """Highest published accuracy in percent."""
        return max(self.top1.values(), default=None)

    @property
    def is_permissive(self) -> bool:
        """True if timm's licence field names a permissive licence. ImageNet's own terms may still apply."""
        return self.license in PERMISSIVE_LICENSES

    def to_row(self) -> dict[str, Any]:
        """Return the fields flat, as `catalog.json` and `list --json` have them."""
        row = asdict(self)
        return {
            **{key: row[key] for key in ("name", "license", "hub_id", "url", "num_classes")},
            **row["preprocessing"],
            "top1": row["top1"],
        }


@dataclass(frozen=True, kw_only=True, slots=True)
class Stage:
    """One of a ConvNeXt's four stages, for a square image."""

    number: int
    side_before: int
    """Side of the stage's input in pixels or positions."""
    side: int
    """Side of the stage's output in positions."""
    channels: int
    blocks: int
    drop_path: tuple[float, float]
    """Stochastic depth of the first and last block of the stage, as fractions of that of the network's last block."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Architecture:
    """A ConvNeXt architecture with 1,000 classes, and its pretrained weights (the default tag first)."""

    name: str
    """As in timm."""
    params: int
    backbone_params: int
    """Parameters without the classifier (timm's num_classes=0)."""
    gmacs: float
    """Multiply-adds of one forward pass at 224 px, in 10^9; FLOPs are twice that."""
    activation_mib: float
    """MiB that autograd keeps per image at 224 px in float32."""
    depths: tuple[int, ...]
    """Blocks of each stage."""
    dims: tuple[int, ...]
    """Channels of each stage."""
    stem: str
    norm: str
    head: str
    layer_scale: bool
    grn: bool
    tags: tuple[Tag, ...] = field(repr=False)
    """The pretrained weights, the default first."""

    @property
    def parsed(self) -> ModelName:
        """The parts of the name."""
        parsed = parse_name(self.name)
        assert parsed is not None, self.name
        return parsed

    @property
    def rank(self) -> "Rank | None":
        """The place in the specification's ranking; None if it has none."""
        return load_ranking().get(self.name)

    @property
    def tier(self) -> int | None:
        """The specification's tier, 1 to 6; None if it has none."""
        return self.rank.tier if self.rank else None

    @property
    def takes_hidden_layer(self) -> bool:
        """True if timm can add a hidden layer between the norm and the classifier."""
        return not self.head.startswith("norm")

    @property
    def default_tag(self) -> Tag | None:
        """The weights that timm loads without a tag; None if no weights exist."""
        return self.tags[0] if self.tags else None

    @property
    def licenses(self) -> tuple[str, ...]:
        """The distinct licences of the weights."""
        return tuple(dict.fromkeys(tag.license for tag in self.tags))

    @property
    def top1(self) -> float | None:
        """Highest published accuracy of the default weights in percent."""
        return self.default_tag.best_top1 if self.default_tag else None

    def stages(self, image_size: int) -> list[Stage]:
        """Return the four stages for a square image of `image_size` pixels."""
        previous_blocks, last = 0, max(1, sum(self.depths) - 1)
        stages = []
        for number, (depth, width) in enumerate(zip(self.depths, self.dims, strict=True), start=1):
            stages.append(
                Stage(
                    number=number,
                    side_before=image_size if number == 1 else image_size // 2**number,
                    side=image_size // (2 * 2**number),
                    channels=width,
                    blocks=depth,
                    drop_path=(previous_blocks / last, (previous_blocks + depth - 1) / last),
                )
            )
            previous_blocks += depth
        return stages

    def feature_shape(self, height: int, width: int) -> tuple[int, int, int]:
        """Return the shape (C, H, W) of the last feature map for an input of `height` x `width` pixels."""
        return self.dims[-1], height // REDUCTION, width // REDUCTION


@dataclass(frozen=True, kw_only=True, slots=True)
class Builtin:
    """The pretrained weights in the package, with their model card."""

    architecture: str
    tag: Tag
    card: dict[str, str]
    """Text by title: training data, recipe, hardware, licence, intended and unsuitable uses."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Reference:
    """A well-known model of another family, for comparison. Units as in `Architecture` and `Tag`."""

    name: str
    params: int
    gmacs: float
    top1: float
    image_size: int
    """Test image size in pixels of `top1`."""
    license: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Rank:
    """The place of a model in the specification's ranking, which is its author's opinion and not a benchmark."""

    tier: int
    position: int


@cache
def load_catalog() -> dict[str, Architecture]:
    """Return all architectures by name, in the catalogue's order (family, then size)."""
    return {name: _read_architecture(name, fields) for name, fields in _read_catalog()["architectures"].items()}


@cache
def load_builtin() -> Builtin:
    """Return the weights in the package. They are no catalogue entry, so no ranking includes them."""
    raw = tomllib.loads((_HERE / "builtin" / "card.toml").read_text(encoding="utf-8"))
    fixed: dict[str, Any] = {"name": BUILTIN, "hub_id": None, "url": None, "top1": {}}
    return Builtin(architecture=raw["architecture"], tag=_read_tag(raw["tag"] | fixed), card=raw["card"])


def load_references() -> list[Reference]:
    """Return models of other families, small before large."""
    return [Reference(**fields) for fields in _read_catalog()["references"]]


@cache
def load_ranking() -> dict[str, Rank]:
    """Return the place of each ranked model in the specification's six tiers, by name."""
    raw = tomllib.loads((_HERE / "ranking.toml").read_text(encoding="utf-8"))
    ordered = [(tier["tier"], name) for tier in raw["tiers"] for name in tier["models"]]
    return {name: Rank(tier=tier, position=at) for at, (tier, name) in enumerate(ordered, start=1)}


def list_tags(architecture: Architecture) -> tuple[Tag, ...]:
    """Return all weights of an architecture: timm's, then those in the package."""
    builtin = load_builtin()
    is_builtin = builtin.architecture == architecture.name
    return (*architecture.tags, builtin.tag) if is_builtin else architecture.tags


def find_model(name: str) -> tuple[Architecture, Tag | None]:
    """Return the architecture and the weights with this name; the default weights if the name has no tag.

    Args:
        name: `ARCHITECTURE` or `ARCHITECTURE.TAG`, or timm's id on the Hub: `timm/NAME`, `hf-hub:timm/NAME`.

    Raises:
        UnknownModelError: no such architecture exists; the message names the nearest ones.
        UsageError: the architecture has no such tag, or the id is not one of timm's.
    """
    catalog = load_catalog()
    if hub_id := parse_hub_id(name):
        owner, name = hub_id
        if owner != "timm":
            raise UsageError(
                f"{owner}/{name} is not one of timm's models; only timm's are downloaded from the Hub",
                f"Download it with `hf download {owner}/{name} --local-dir DIR`, then give --weights DIR and --model",
            )
    architecture_name, _, tag_name = name.partition(".")
    architecture = catalog.get(architecture_name)
    if architecture is None:
        raise UnknownModelError(name, list(catalog))
    if not tag_name:
        return architecture, architecture.default_tag
    tags = {tag.name: tag for tag in list_tags(architecture)}
    if tag_name not in tags:
        raise UsageError(
            f"{architecture_name} has no weights called {tag_name!r}",
            f"{suggest(tag_name, tags)}Its weights are {', '.join(tags) or 'none'}",
        )
    return architecture, tags[tag_name]


def resolve_weights(model: str | None, weights: str) -> tuple[str | None, str]:
    """Return the model and the weights. Weights of the package or of timm become the model's tag, and `auto`.

    Args:
        model: name of the model; None if not chosen yet.
        weights: `auto`, `none`, `builtin`, a path, or a name or Hub id of timm's weights. An existing path wins.

    Raises:
        WeightsError: neither a file nor timm's weights have that name.
        UsageError: the weights belong to another model than `model`.
    """
    if weights in ("auto", "none"):
        return model, weights
    if weights == BUILTIN:
        return _name_builtin(model), "auto"
    path = weights.removeprefix("local-dir:")
    if path and Path(path).exists():
        return model, path
    missing = WeightsError(
        f"no weights at {path or repr(path)}",
        "Give auto, none, builtin, a .safetensors or .pth file, a run folder, or timm/NAME",
    )
    if not parse_hub_id(weights) and not parse_name(weights):
        raise missing
    try:
        architecture, tag = find_model(weights)
    except UsageError as error:
        if "/" in path and (Path(path).parent.is_dir() or Path(path).suffix in (".safetensors", ".pth", ".pt")):
            raise missing from error  # FOLDER/FILE also has the form of an id on the Hub
        raise WeightsError(f"no weights at {path}, and {error.problem}", error.remedy) from error
    if model is not None:
        chosen_architecture, chosen_tag = find_model(model)
        has_tag = chosen_tag is not None and model.rstrip("/").endswith(f".{chosen_tag.name}")
        if chosen_architecture != architecture or (has_tag and chosen_tag != tag):
            raise UsageError(
                f"--weights {weights} are not those of --model {model}",
                "Leave out one of the two; the plan of --config also names a model",
            )
    return (architecture.name if tag is None else f"{architecture.name}.{tag.name}"), "auto"


def _name_builtin(model: str | None) -> str:
    """Return the name of the weights in the package, with their architecture."""
    name = load_builtin().architecture
    if model not in (None, name, f"{name}.{BUILTIN}"):
        raise UsageError(
            f"the built-in weights are for {name}, not for {model}",
            "Leave out --model, or --config if its plan names the model",
        )
    return f"{name}.{BUILTIN}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ModelFilter:
    """The restrictions of a list of models."""

    pattern: Annotated[
        str,
        Option(
            "Part of a name, or a shell pattern. A full name shows the card of the model.",
            completion="model",
            is_argument=True,
        ),
    ] = "*"
    family: Annotated[str | None, Option(f"One of {', '.join(FAMILIES)}.", is_common=True, metavar="NAME")] = None
    size: Annotated[str | None, Option("Size: zepto to huge.", is_common=True, metavar="NAME")] = None
    tier: Annotated[int | None, Option("The specification's tier, 1 to 6.", is_common=True, low=1, high=6)] = None
    max_params: Annotated[
        float | None, Option("Largest number of parameters.", unit="millions", is_common=True, low=0)
    ] = None
    license: Annotated[
        str | None, Option("A licence of the weights, or 'permissive'.", is_common=True, metavar="NAME")
    ] = None
    pretrained: Annotated[bool, Option("Only models with pretrained weights.", is_common=True)] = False


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
    """Return the architectures that pass all filters, in the catalogue's order.

    Args:
        pattern: part of the name, or a shell pattern.
        family: `convnext`, `convnextv2` or `test`.
        size: zepto to huge.
        tier: one of the specification's six tiers.
        max_params: highest number of parameters in millions (with 1,000 classes).
        license: a licence that at least one of the tags has, or `permissive`.
        pretrained: True for architectures with weights only.

    Raises:
        UsageError: no model has this family, size or licence, or a value has the wrong type or lies out of bounds.
    """
    values = {
        "pattern": pattern, "family": family, "size": size, "tier": tier, "max_params": max_params,
        "license": license, "pretrained": pretrained,
    }  # fmt: skip
    filters = make_request(ModelFilter, values)
    check_word("family", filters.family, tuple(FAMILIES))
    check_word("size", filters.size, (*SIZES, "convnext", "convnext2", "convnext3"))
    if filters.license is not None:
        check_license(filters.license)
    has_signs = any(sign in filters.pattern for sign in "*?[")
    shell_pattern = filters.pattern if has_signs else f"*{filters.pattern}*"

    def passes(model: Architecture) -> bool:
        name, license = model.parsed, filters.license
        return (
            fnmatch.fnmatchcase(model.name, shell_pattern)
            and filters.family in (None, name.family)
            and filters.size in (None, name.size)
            and filters.tier in (None, model.tier)
            and (filters.max_params is None or model.params <= filters.max_params * 1e6)
            and (license is None or any(license_matches(tag.license, license) for tag in model.tags))
            and (not filters.pretrained or bool(model.tags))
        )

    return [model for model in load_catalog().values() if passes(model)]


def check_license(license: str) -> None:
    """Check that `license` is `permissive` or the licence of some of timm's weights.

    Raises:
        UsageError: it is neither; the message names the known licences.
    """
    known = ["permissive", *sorted({name for model in load_catalog().values() for name in model.licenses})]
    if license not in known:
        raise UsageError(f"unknown licence {license!r}", f"{suggest(license, known)}Known: {', '.join(known)}")


@cache
def _read_catalog() -> dict[str, Any]:
    raw: dict[str, Any] = json.loads((_HERE / "catalog.json").read_text(encoding="utf-8"))
    return raw


def _read_architecture(name: str, row: dict[str, Any]) -> Architecture:
    row = row | {key: tuple(row[key]) for key in ("depths", "dims")}
    row["tags"] = tuple(_read_tag(tag) for tag in row["tags"])
    return Architecture(name=name, **row)


def _read_tag(row: dict[str, Any]) -> Tag:
    row = row | {key: tuple(row[key]) for key in ("mean", "std")}
    preprocessing = Preprocessing(**{field.name: row.pop(field.name) for field in fields(Preprocessing)})
    row["top1"] = {int(size): value for size, value in row["top1"].items()}
    return Tag(preprocessing=preprocessing, **row)
