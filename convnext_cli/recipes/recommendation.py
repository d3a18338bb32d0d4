"""Which model for this data on this machine, with which settings, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convnext_cli.errors import UsageError
from convnext_cli.models.catalog import (
    Architecture,
    Tag,
    find_license,
    license_matches,
    load_catalog,
)
from convnext_cli.recipes.memory import GIB, USABLE, training_bytes
from convnext_cli.recipes.plan import Choice, Plan, make_plan
from convnext_cli.recipes.tables import load_tables


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A model of the specification's list for this data-set size, and what speaks for or against it."""

    model: Architecture
    tag: Tag | None
    memory: int
    """Estimated bytes to train one image at a time; the least it needs."""
    refused: str
    """Why it is not recommended; empty where it may be."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """The plan for the first candidate that nothing speaks against, and all candidates in the specification's order."""

    dataset_size: int
    regime: str
    candidates: tuple[Candidate, ...]
    plan: Plan
    warnings: tuple[str, ...]

    @property
    def best(self) -> Candidate:
        """The recommended candidate."""
        return next(candidate for candidate in self.candidates if not candidate.refused)


def recommend(
    dataset_size: int,
    *,
    classes: int | None = None,
    vram: float | None = None,
    license: str = "any",
    settings: Mapping[str, Any] | None = None,
) -> Recommendation:
    """Picks a model and its settings from the specification's tables.

    Args:
        dataset_size: number of images, all splits together.
        classes: number of classes, where known.
        vram: memory of the GPU in GiB, where known.
        license: `any`, `permissive`, or a licence that the weights must have.
        settings: values that are already decided, by the name of the setting.

    Raises:
        UsageError: a number makes no sense, the licence is unknown, or no candidate is left.
    """
    if dataset_size < 1:
        raise UsageError(f"dataset size {dataset_size} must be at least 1", "Give the number of your images")
    if classes is not None and not 2 <= classes <= dataset_size:
        raise UsageError(f"{classes} classes for {dataset_size} images", "Give 2 classes or more, each with images")
    if vram is not None and not 0 < vram < float("inf"):
        raise UsageError(f"vram {vram:g} must be above 0", "Give the GPU's memory in GiB")
    catalog = load_catalog()
    if license != "any":
        find_license(catalog.values(), license)
    regime = load_tables().regime_for(dataset_size)
    memory = None if vram is None else round(vram * GIB)
    candidates = tuple(
        _judge(catalog[name], place, memory, license, regime.source) for place, name in enumerate(regime.candidates, 1)
    )
    best = next((candidate for candidate in candidates if not candidate.refused), None)
    if best is None:
        why = "; ".join(f"{candidate.model.name}: {candidate.refused}" for candidate in candidates)
        raise UsageError(f"no model is left for this ({why})", "Allow more memory or another licence")
    given = {name: Choice(value=value, source="flag") for name, value in (settings or {}).items()}
    plan = make_plan(best.model, best.tag, images=dataset_size, memory=memory, given=given)
    return Recommendation(
        dataset_size=dataset_size,
        regime=regime.name,
        candidates=candidates,
        plan=plan,
        warnings=_warnings(dataset_size, classes),
    )


def _judge(model: Architecture, place: int, memory: int | None, license: str, source: str) -> Candidate:
    tags = [tag for tag in model.tags if license == "any" or license_matches(tag, license)]
    tag = tags[0] if tags else None
    size = tag.image_size if tag else 224
    needed = training_bytes(model, 1, size)
    if not model.tags:
        refused = "no pretrained weights exist for it anywhere"
    elif tag is None:
        refused = f"its weights are {' or '.join(model.licenses)}, not {license}"
    elif memory is not None and needed > memory * USABLE:
        refused = f"needs about {needed / GIB:.1f} GiB for a single image"
    else:
        refused = ""
    return Candidate(model=model, tag=tag, memory=needed, refused=refused, reason=f"choice {place} of {source}")


def _warnings(images: int, classes: int | None) -> tuple[str, ...]:
    found = []
    if classes and images / classes < 20:
        found.append(
            f"{images / classes:.0f} images a class is very few: expect wide uncertainty, and collect more if you can"
        )
    if images < 200:
        found.append("with under 200 images a test split holds too few to trust its figures")
    return tuple(found)
