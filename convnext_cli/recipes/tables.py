"""The tables that settings come from: the specification, what the authors published, presets of augmentation."""

import math
import tomllib
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from typing import Any

from convnext_cli.images.preprocessing import Augmentation
from convnext_cli.models.catalog import Architecture, Tag
from convnext_cli.models.names import ModelName

_HERE = Path(__file__).parent

TABLE_SETTINGS = (
    "lr", "weight_decay", "layer_decay", "drop_path", "epochs", "warmup_epochs", "mixup", "cutmix", "label_smoothing",
    "head_init_scale", "ema_decay", "min_crop_area", "hflip", "rand_augment", "erasing",
)  # fmt: skip

AUGMENTATION_SETTINGS = tuple(field.name for field in fields(Augmentation))
USUAL_AUGMENTATION = "light"

OFFICIAL_LAYERS = 13  # steps from head to stem in the authors' grouped layer decay, whatever the depth


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row: where it comes from, a (low, high) range for each setting it has, and the batch its lr is for."""

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
    """A row of the data-set table, with the models that the specification names for that size, best first."""

    name: str
    smallest: int
    largest: int
    largest_model: str
    """Size of the largest model that the document names for such data; its lr and drop path bound no larger one's."""
    candidates: tuple[NamedModel, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class LearningRateRule:
    """A learning rate in proportion to the batch."""

    source: str
    lr: float
    batch: int
    examples: dict[int, float]
    """Batch to rate, as the document prints them."""

    def rate(self, batch: int) -> float:
        """Return the rate for a batch of that many images."""
        return self.lr * batch / self.batch


@dataclass(frozen=True, kw_only=True, slots=True)
class Conflict:
    """Where the specification disagrees with itself, and the rule that decides."""

    id: str
    says: str
    rule: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """The specification's rows by family and size, by data-set size, and what to say beside them."""

    notes: dict[str, str]
    scratch_notes: dict[str, str]
    """What to say in place of `notes` where training starts from random weights."""
    lr_rule: LearningRateRule
    common: dict[str, tuple[float, str, str]]
    """What every training has, by setting: value, source and reason. `min_lr` is a fraction of the peak."""
    conflicts: tuple[Conflict, ...]
    models: dict[tuple[str, str], Row]
    modifiers: dict[str, float]
    """Factor on the learning rate that a modifier allows."""
    regimes: tuple[Regime, ...]

    def model_row(self, name: ModelName) -> Row:
        """The row for a model's family and size."""
        return self.models[name.family, name.size]

    def describe_gap(self, images: int) -> str | None:
        """Say that the document has no row for `images` and which is used; return None where it has one."""
        used = self.regime_for(images)
        if used.smallest <= images <= used.largest:
            return None
        limit = f"up to {used.largest:,}" if images > used.largest else f"from {used.smallest:,}"
        where = f"the nearest, for {used.name} data sets {limit} images, is used"
        return f"the specification has no row for {images:,} images: {where}"

    def regime_for(self, images: int) -> Regime:
        """The regime that `images` fall into; between two, the nearer on a logarithmic scale."""

        def distance(regime: Regime) -> float:
            nearest = min(max(images, regime.smallest), regime.largest)
            return abs(math.log(images / nearest))

        return min(self.regimes, key=distance)


@cache
def load_tables() -> Tables:
    """The specification's tables."""
    raw = _read("specification.toml")
    base_batch = raw["base_batch"]
    return Tables(
        notes=raw["notes"],
        scratch_notes=raw["notes_from_scratch"],
        lr_rule=LearningRateRule(
            source=f"specification {raw['lr_rule']['section']}",
            lr=raw["lr_rule"]["lr"],
            batch=raw["lr_rule"]["batch"],
            examples=dict(raw["lr_rule"]["examples"]),
        ),
        common={
            name: (row["value"], f"specification {row['section']}", row["reason"]) for name, row in raw["all"].items()
        },
        conflicts=tuple(Conflict(**row) for row in raw["conflicts"]),
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
    """The authors' settings for fine-tuning such weights, with layer decay as timm's per-block number."""
    name = model.parsed
    self_supervised = tag is not None and tag.name == "fcmae"
    kind = "fcmae" if self_supervised else "supervised"
    table = _read("published.toml")
    row = next(
        row
        for row in table["rows"]
        if (row["family"], row["kind"]) == (name.family, kind) and name.size in row["sizes"]
    )
    decay = convert_layer_decay(row["layer_decay"], row["decay_over"], sum(model.depths))
    nearest = "" if name.size in row["published"] else f"; {name.size} was not published, the nearest size is used"
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
class Measured:
    """What fine-tuned best where it was measured: values and the reasons for them, and the batch its lr is for."""

    values: dict[str, float]
    reasons: dict[str, str]
    base_batch: int


@cache
def load_measured() -> Measured:
    """The settings that our own benchmark of recipes chose."""
    return Measured(**_read("measured.toml"))


def convert_layer_decay(decay: float, over: str, blocks: int) -> float:
    """The authors' layer decay as timm's factor per block.

    timm has a step for every block and one for the stem: `blocks + 1`. The authors' "group" decay has 13 steps from
    head to stem whatever the depth; the factor is such that the stem's rate is theirs. "single" is per block already.
    """
    if over == "single":
        return decay
    return float(f"{decay ** (OFFICIAL_LAYERS / (blocks + 1)):.4g}")


def load_augmentations() -> dict[str, dict[str, tuple[float, str]]]:
    """The presets of augmentation by name: the value and the reason of each of `AUGMENTATION_SETTINGS`."""
    return {
        name: {setting: (row[setting]["value"], row[setting]["reason"]) for setting in AUGMENTATION_SETTINGS}
        for name, row in _read("augmentation.toml").items()
    }


@cache
def _read(name: str) -> dict[str, Any]:
    return tomllib.loads((_HERE / name).read_text(encoding="utf-8"))


def _ranges(row: dict[str, Any]) -> dict[str, tuple[float, float]]:
    return {
        name: tuple(row[name]) if isinstance(row[name], list) else (row[name], row[name])
        for name in TABLE_SETTINGS
        if name in row
    }
