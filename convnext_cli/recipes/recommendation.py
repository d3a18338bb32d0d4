"""Which model for this data on this machine, with which settings, and why."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from convnext_cli.errors import UsageError, check_word
from convnext_cli.models.catalog import (
    Architecture,
    Tag,
    find_license,
    license_matches,
    load_catalog,
)
from convnext_cli.recipes.costs import GIB, USABLE, describe_seconds, training_bytes, training_seconds
from convnext_cli.recipes.machine import Machine, machine_with
from convnext_cli.recipes.plan import Plan, make_plan
from convnext_cli.recipes.recipe import DEFAULT_RECIPE, RECIPES, Recipe
from convnext_cli.recipes.rules import Choice
from convnext_cli.recipes.tables import load_tables

DAY = 86_400  # seconds
DOMAINS = ("medical", "natural")
PREFERENCES = ("accuracy", "speed", "size")


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A model of the specification's list for this data-set size, and what speaks for or against it."""

    model: Architecture
    tag: Tag | None
    plan: Plan
    memory: int
    """Estimated bytes to train with the plan's micro-batch."""
    seconds: float | None
    """Estimated seconds of the whole training; None where the machine is not known."""
    refused: str
    """Why it is not recommended; empty where it may be."""
    reason: str


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """The candidates, best first, and what is to be known of them."""

    dataset_size: int
    regime: str
    machine: Machine | None
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...]

    @property
    def best(self) -> Candidate:
        """The recommended candidate: the first that nothing speaks against."""
        return next(candidate for candidate in self.candidates if not candidate.refused)

    @property
    def plan(self) -> Plan:
        """The recommended candidate's plan."""
        return self.best.plan


def recommend(
    dataset_size: int,
    *,
    classes: int | None = None,
    vram: float | None = None,
    machine: Machine | None = None,
    license: str = "any",
    domain: str | None = None,
    prefer: str | None = None,
    recipe: str = DEFAULT_RECIPE,
    settings: Mapping[str, Any] | None = None,
) -> Recommendation:
    """Picks a model and its settings from the tables.

    Args:
        dataset_size: number of images, all splits together.
        classes: number of classes, where known.
        vram: memory of the GPU in GiB, where there is one that is not in this machine.
        machine: what trains, where `vram` is not given; None where it is not known.
        license: `any`, `permissive`, or a licence that the weights must have.
        domain: `medical` or `natural`, where known; it picks the preset of augmentation.
        prefer: `accuracy`, `speed` or `size`; None keeps the specification's order.
        recipe: `measured`, `specification` or `published`.
        settings: values that are already decided, by the name of the setting.

    Raises:
        UsageError: a number makes no sense, a word is unknown, or no candidate is left.
    """
    if dataset_size < 1:
        raise UsageError(f"dataset size {dataset_size} must be at least 1", "Give the number of your images")
    if classes is not None and not 2 <= classes <= dataset_size:
        raise UsageError(f"{classes} classes for {dataset_size} images", "Give 2 classes or more, each with images")
    if vram is not None and not 0 < vram < float("inf"):
        raise UsageError(f"vram {vram:g} must be above 0", "Give the GPU's memory in GiB")
    for what, word, known in (
        ("domain", domain, DOMAINS),
        ("preference", prefer, PREFERENCES),
        ("recipe", recipe, RECIPES),
    ):
        check_word(what, word, known)
    catalog = load_catalog()
    if license != "any":
        find_license(catalog.values(), license)
    regime = load_tables().regime_for(dataset_size)
    machine = machine if vram is None else machine_with(vram)
    given = {name: Choice(value=value, source="flag") for name, value in (settings or {}).items()}

    def judge(place: int, model: Architecture) -> Candidate:
        tags = [tag for tag in model.tags if license == "any" or license_matches(tag, license)]
        tag = tags[0] if tags else None
        plan = make_plan(model, tag, images=dataset_size, machine=machine, recipe=recipe, augment=domain, given=given)
        chosen = plan.recipe
        return Candidate(
            model=model,
            tag=tag,
            plan=plan,
            memory=_step_bytes(model, chosen.micro_batch_size, chosen),
            seconds=estimate_seconds(model, plan, dataset_size, machine),
            refused=_refuse(model, tag, plan, machine, license),
            reason=f"the specification's choice {place}" + _speak_for(model, tag, prefer),
        )

    ranked = [judge(place, catalog[name]) for place, name in enumerate(regime.candidates, start=1)]
    if prefer:
        ranked.sort(key=lambda candidate: _order(candidate, prefer))
    if all(candidate.refused for candidate in ranked):
        why = "; ".join(f"{candidate.model.name}: {candidate.refused}" for candidate in ranked)
        raise UsageError(f"no model is left for this ({why})", "Allow more memory or another licence")
    return Recommendation(
        dataset_size=dataset_size,
        regime=regime.name,
        machine=machine,
        candidates=tuple(ranked),
        warnings=_warnings(dataset_size, classes, next(c for c in ranked if not c.refused)),
    )


def estimate_seconds(model: Architecture, plan: Plan, images: int, machine: Machine | None) -> float | None:
    """Estimated seconds of the whole training on `images` an epoch; None where the machine is not known."""
    if machine is None:
        return None
    recipe = plan.recipe
    shown = images * recipe.epochs
    return training_seconds(
        model,
        shown,
        recipe.image_size,
        is_gpu=machine.is_gpu,
        cores=machine.cores,
        grad_checkpointing=recipe.grad_checkpointing,
    )


def _refuse(model: Architecture, tag: Tag | None, plan: Plan, machine: Machine | None, license: str) -> str:
    if not model.tags:
        return "no pretrained weights exist for it anywhere"
    if tag is None:
        return f"its weights are {' or '.join(model.licenses)}, not {license}"
    needed = _step_bytes(model, 1, plan.recipe)
    if machine is not None and needed > machine.memory * USABLE:
        return f"needs about {needed / GIB:.1f} GiB for a single image"
    return ""


def _step_bytes(model: Architecture, images: int, recipe: Recipe) -> int:
    return training_bytes(model, images, recipe.image_size, grad_checkpointing=recipe.grad_checkpointing)


def _order(candidate: Candidate, prefer: str) -> tuple[bool, float]:
    """Sorts by the preference; what is refused goes last."""
    model = candidate.model
    cost = training_seconds(model, 1, 224, is_gpu=True, cores=1)  # GRN's price in it
    key = {"accuracy": -(model.top1 or 0.0), "speed": cost, "size": float(model.params)}[prefer]
    return bool(candidate.refused), key


def _speak_for(model: Architecture, tag: Tag | None, prefer: str | None) -> str:
    if tag is None or prefer is None:
        return ""
    return {
        "accuracy": f"; top-1 {model.top1}%",
        "speed": f"; {model.gmacs} GMACs{', slowed by GRN' if model.grn else ''}",
        "size": f"; {model.params / 1e6:.1f}M parameters",
    }[prefer]


def _warnings(images: int, classes: int | None, best: Candidate) -> tuple[str, ...]:
    found = []
    if best.seconds is not None and best.seconds > DAY:
        found.append(
            f"this would take about {describe_seconds(best.seconds)} here: consider fewer --epochs, --prefer speed, a "
            "smaller --image-size, or a GPU"
        )
    if classes and images / classes < 20:
        found.append(
            f"{images / classes:.0f} images a class is very few: expect wide uncertainty, and collect more if you can"
        )
    if images < 200:
        found.append("with under 200 images a test split holds too few to trust its figures")
    return tuple(found)
