"""Load the tables of the recipes: the specification, the authors' publications, and augmentation presets."""

import math
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from convnext_cli.images.preprocessing import Augmentation
from convnext_cli.models.catalog import Architecture, Tag
from convnext_cli.models.names import ModelName
from convnext_cli.text import format_count

_HERE = Path(__file__).parent

RECIPE_SETTINGS = (
    "lr", "weight_decay", "layer_decay", "drop_path", "epochs", "warmup_epochs", "mixup", "cutmix", "label_smoothing",
    "head_init_scale", "ema_decay", "min_crop_area", "hflip", "rand_augment", "erasing",
)  # fmt: skip

AUGMENTATION_SETTINGS = tuple(field.name for field in fields(Augmentation))
USUAL_AUGMENTATION = "light"

OFFICIAL_LAYERS = 13  # steps from head to stem in the authors' grouped layer decay, at any depth


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """A row of a table: its source, a (low, high) range per setting, and the batch size of its learning rate."""

    source: str
    ranges: dict[str, tuple[float, float]]
    base_batch: int


@dataclass(frozen=True, kw_only=True, slots=True)
class NamedModel:
    """A model that the specification names for a size of data set."""

    model: str
    why: str
    """The place in the document, such as `Best Choice, 1st` or `section 5, small`."""
    min_images: int = 0
    """Smallest data set that the document names it for."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Regime(Row):
    """A row of the table by data-set size, with the models that the specification names for it, best first."""

    name: str
    smallest: int
    largest: int
    largest_model: str
    """Size of the largest model that the document names; the row does not bound the lr and drop path of larger ones."""
    candidates: tuple[NamedModel, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """The specification's rows by model and by data-set size, with notes for the reasons."""

    notes: dict[str, str]
    scratch_notes: dict[str, str]
    """Notes for training from random initialisation, instead of `notes`."""
    common: dict[str, tuple[float, str, str]]
    """Value, source and reason of the settings of every training. `min_lr` is a fraction of the peak."""
    models: dict[tuple[str, str], Row]
    modifiers: dict[str, float]
    """Factor on the learning rate by name modifier."""
    regimes: tuple[Regime, ...]

    def model_row(self, name: ModelName) -> Row:
        """Return the row of a model's family and size."""
        return self.models[name.family, name.size]

    def describe_gap(self, images: int) -> str | None:
        """Return a warning that the document has no row for this number of images, or None if it has one."""
        regime = self.regime_for(images)
        if regime.smallest <= images <= regime.largest:
            return None
        limit = f"up to {regime.largest:,}" if images > regime.largest else f"from {regime.smallest:,}"
        nearest = f"the nearest row, for {regime.name} data sets {limit} images, is used"
        return f"the specification has no row for {format_count(images, 'image')}: {nearest}"

    def regime_for(self, images: int) -> Regime:
        """Return the regime of a number of images; between two, the nearer one on a logarithmic scale."""

        def distance(regime: Regime) -> float:
            nearest = min(max(images, regime.smallest), regime.largest)
            return abs(math.log(images / nearest))

        return min(self.regimes, key=distance)


@cache
def load_tables() -> Tables:
    """Return the specification's tables."""
    raw = read_toml("specification.toml")
    base_batch = raw["base_batch"]
    return Tables(
        notes=raw["notes"],
        scratch_notes=raw["notes_from_scratch"],
        common={
            name: (row["value"], f"specification {row['section']}", row["reason"]) for name, row in raw["all"].items()
        },
        models={
            (row["family"], size): Row(
                source=f"specification {row['section']}", ranges=_ranges(row), base_batch=base_batch
            )
            for row in raw["models"]
            for size in row["sizes"]
        },
        modifiers={row["modifier"]: row["lr_factor"] for row in raw["modifiers"]},
        regimes=tuple(
            Regime(
                source=f"specification {row['section']}",
                ranges=_ranges(row),
                base_batch=base_batch,
                name=row["name"],
                smallest=row["smallest"],
                largest=row["largest"],
                largest_model=row["largest_model"],
                candidates=tuple(
                    NamedModel(model=entry["model"], why=entry["why"], min_images=entry.get("from", 0))
                    for entry in row["candidates"]
                ),
            )
            for row in raw["regimes"]
        ),
    )


def published_row(model: Architecture, tag: Tag | None) -> Row:
    """Return the authors' settings for fine-tuning these weights, with layer decay as timm's factor per block."""
    name = model.parsed
    self_supervised = tag is not None and tag.name == "fcmae"
    kind = "fcmae" if self_supervised else "supervised"
    table = read_toml("published.toml")
    row = next(
        row
        for row in table["rows"]
        if (row["family"], row["kind"]) == (name.family, kind) and name.size in row["sizes"]
    )
    decay = convert_layer_decay(row["layer_decay"], row["decay_over"], sum(model.depths))
    nearest = "" if name.size in row["published"] else f"; {model.name} was not published, the nearest size is used"
    settings = (
        row
        | table["all"]
        | {
            "drop_path": row["sizes"][name.size],
            "layer_decay": decay,
            "ema_decay": table["ema_decay"] if name.size in row["averaged"] else 0.0,
        }
    )
    return Row(source=f"published {row['source']}{nearest}", ranges=_ranges(settings), base_batch=row["base_batch"])


@dataclass(frozen=True, kw_only=True, slots=True)
class MeasuredRecipe:
    """The settings that fine-tuned best in the benchmark, with reasons and the batch size of the learning rate."""

    values: dict[str, float]
    reasons: dict[str, str]
    base_batch: int


@cache
def load_measured() -> MeasuredRecipe:
    """Return the settings that the benchmark of recipes chose."""
    return MeasuredRecipe(**read_toml("measured.toml"))


def convert_layer_decay(decay: float, over: str, blocks: int) -> float:
    """Convert the authors' layer decay to timm's factor per block.

    timm has a step for each block and one for the stem: `blocks + 1`. The authors' "group" decay has 13 steps from head
    to stem at any depth; the converted factor gives the stem the same rate. "single" is per block already.
    """
    if over == "single":
        return decay
    return float(f"{decay ** (OFFICIAL_LAYERS / (blocks + 1)):.4g}")


def load_augmentations() -> dict[str, dict[str, tuple[float, str]]]:
    """Return the value and reason of each of `AUGMENTATION_SETTINGS` by preset."""
    return {
        name: {setting: (row[setting]["value"], row[setting]["reason"]) for setting in AUGMENTATION_SETTINGS}
        for name, row in read_toml("augmentation.toml").items()
    }


@cache
def read_toml(name: str) -> dict[str, Any]:
    """Return the contents of a TOML file of this folder."""
    return tomllib.loads((_HERE / name).read_text(encoding="utf-8"))


def _ranges(row: dict[str, Any]) -> dict[str, tuple[float, float]]:
    return {
        name: tuple(row[name]) if isinstance(row[name], list) else (row[name], row[name])
        for name in RECIPE_SETTINGS
        if name in row
    }
