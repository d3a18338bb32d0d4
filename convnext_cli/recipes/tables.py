"""The specification's tables, read from `specification.toml`."""

import math
import tomllib
from dataclasses import dataclass
from functools import cache
from importlib.resources import files
from typing import Any

from convnext_cli.models.names import ModelName

TABLE_SETTINGS = (
    "lr", "weight_decay", "drop_path", "epochs", "warmup_epochs", "mixup", "cutmix", "label_smoothing",
)  # fmt: skip


@dataclass(frozen=True, kw_only=True, slots=True)
class Row:
    """One row: the section it comes from, and a (low, high) range for each setting that it has."""

    source: str
    ranges: dict[str, tuple[float, float]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Regime(Row):
    """A row of the data-set table, with the models that the specification names for that size, best first."""

    name: str
    smallest: int
    largest: int
    candidates: tuple[str, ...]


@dataclass(frozen=True, kw_only=True, slots=True)
class Tables:
    """All rows. `base_batch` is the batch, in images, that the learning rates are for."""

    base_batch: int
    notes: dict[str, str]
    models: dict[tuple[str, str], Row]
    regimes: tuple[Regime, ...]

    def model_row(self, name: ModelName) -> Row:
        """The row for a model's family and size."""
        return self.models[name.family, name.size]

    def regime_for(self, images: int) -> Regime:
        """The regime that `images` fall into; between two, the nearer on a logarithmic scale."""

        def distance(regime: Regime) -> float:
            nearest = min(max(images, regime.smallest), regime.largest)
            return abs(math.log(images / nearest))

        return min(self.regimes, key=distance)


@cache
def load_tables() -> Tables:
    """The specification's tables."""
    raw = tomllib.loads((files(__package__) / "specification.toml").read_text(encoding="utf-8"))
    return Tables(
        base_batch=raw["base_batch"],
        notes=raw["notes"],
        models={
            (row["family"], size): Row(source=f"specification {row['section']}", ranges=_ranges(row))
            for row in raw["models"]
            for size in row["sizes"]
        },
        regimes=tuple(
            Regime(
                source=f"specification {row['section']}",
                ranges=_ranges(row),
                name=row["name"],
                smallest=row["smallest"],
                largest=row["largest"],
                candidates=tuple(row["candidates"]),
            )
            for row in raw["regimes"]
        ),
    )


def _ranges(row: dict[str, Any]) -> dict[str, tuple[float, float]]:
    return {
        name: tuple(row[name]) if isinstance(row[name], list) else (row[name], row[name])
        for name in TABLE_SETTINGS
        if name in row
    }
