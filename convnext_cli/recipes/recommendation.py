"""Which model for this data on this machine, with which settings, and why."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Unpack

from convnext_cli.data.index import Index
from convnext_cli.errors import UsageError, check_word
from convnext_cli.machine import GIB, Machine, detect_machine, make_gpu_machine
from convnext_cli.models.catalog import (
    Architecture,
    Tag,
    check_license,
    find_model,
    license_matches,
    load_catalog,
)
from convnext_cli.recipes.costs import (
    USABLE,
    RunTime,
    describe_seconds,
    estimate_time,
    training_bytes,
    training_seconds,
)
from convnext_cli.recipes.fingerprint import Fingerprint, describe_fingerprint, explain_domain, guess_domain
from convnext_cli.recipes.plan import Plan, make_plan
from convnext_cli.recipes.settings import (
    DEFAULT_RECIPE,
    RECIPES,
    Choice,
    Settings,
    SettingsDict,
    check_settings,
    default_settings,
)
from convnext_cli.recipes.tables import load_tables

DAY = 86_400.0  # seconds
MAX_VRAM = 100_000  # GiB; no machine has it, and estimates beyond it are nonsense
NIGHT = 10 * 3_600.0
SMALL_MODELS = ("convnext_nano", "convnext_pico", "convnext_femto", "convnext_atto")  # with permissive weights
PRESETS = {"medical": "medical", "natural": "natural", "other": "light"}  # of augmentation, by domain
DOMAINS = tuple(PRESETS)
PREFERENCES = ("accuracy", "speed", "size")


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCounts:
    """The images of a data set as a fine-tuning uses them."""

    images: int
    train: int
    val: int
    pixels: int = 0
    """Of a file, usually; 0 where it is not known."""

    @classmethod
    def from_index(cls, index: Index, fingerprint: Fingerprint | None) -> "DataCounts":
        """Return the counts of a data set that has been split."""
        train, val = (len(index.rows(split)) for split in ("train", "val"))
        width, height = fingerprint.median_size if fingerprint else (0, 0)
        return cls(images=len(index), train=train, val=val, pixels=width * height)

    @classmethod
    def from_total(cls, images: int) -> "DataCounts":
        """Return what `finetune` would draw from a data set without splits."""
        defaults = default_settings()
        val, test = (round(images * defaults[f"{split}_fraction"]) for split in ("val", "test"))
        return cls(images=images, train=max(1, images - val - test), val=val)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A model of the specification's list for this data-set size, and what speaks for or against it."""

    model: Architecture
    tag: Tag | None
    plan: Plan
    memory: int
    """Estimated bytes to train with the plan's micro-batch."""
    time: RunTime | None
    """Estimated seconds of the whole run; None where the machine is not known."""
    rejection: str
    """Why it is not recommended; empty where it may be."""
    reason: str

    @property
    def seconds(self) -> float | None:
        """Estimated seconds of the whole run; None where the machine is not known."""
        return self.time.total if self.time else None


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """The candidates, best first, and what is to be known of them."""

    dataset_size: int
    regime: str
    machine: Machine | None
    candidates: tuple[Candidate, ...]
    warnings: tuple[str, ...]
    small_models: tuple[Candidate, ...]
    """Small models with permissive weights, larger ones first: what a slow machine can train."""
    augment: str | None
    """The preset of augmentation for the domain; None for the recipe's own."""
    fingerprint: Fingerprint | None
    """What the images are like; None for a number of images."""
    index: Index | None = field(default=None, repr=False)
    """The data that was scanned; None for a number of images, or where the caller had scanned it."""

    @property
    def best(self) -> Candidate:
        """The recommended candidate: the first that nothing speaks against."""
        return next(candidate for candidate in self.candidates if not candidate.rejection)

    @property
    def plan(self) -> Plan:
        """The recommended candidate's plan."""
        return self.best.plan


def recommend(
    data: Path | str | int,
    *,
    classes: int | None = None,
    vram: float | None = None,
    machine: Machine | None = None,
    license: str = "any",
    domain: str | None = None,
    prefer: str | None = None,
    recipe: str = DEFAULT_RECIPE,
    model: str | None = None,
    counts: DataCounts | None = None,
    fingerprint: Fingerprint | None = None,
    **settings: Unpack[SettingsDict],
) -> Recommendation:
    """Pick a model and its settings from the tables.

    Args:
        data: a folder, CSV or zip file of images, which are scanned; or a number of images, all splits together.
        classes: number of classes, with a number of images; of data they are counted.
        vram: memory of the GPU in GiB, where there is one that is not in this machine.
        machine: what trains, where `vram` is not given. None is this machine for data, and none for a number of images:
            memory then limits nothing, and no time is estimated.
        license: `any`, `permissive`, or a licence that the weights must have.
        domain: `medical`, `natural` or `other`; it picks the preset of augmentation. None guesses from the fingerprint.
        prefer: `accuracy`, `speed` or `size`; None keeps the specification's order.
        recipe: `measured`, `specification` or `published`.
        model: a model that is chosen already, with or without a `.tag`; None picks one.
        counts: images by split, with a number of images; None for what would be drawn from them.
        fingerprint: what the images are like, with a number of images; None where that is not known.
        **settings: values that are already decided, and how data are read (`exclude`, `group_from` …): any field of
            `Settings`.

    Raises:
        UsageError: a number makes no sense, a word or setting is unknown, or no candidate is left.
        DataError: the data cannot be trained on.
    """
    check_settings(settings)
    index = None
    if isinstance(data, Path | str):
        if classes is not None or counts is not None or fingerprint is not None:
            raise UsageError("classes, counts and fingerprint are taken from the data", "Leave them out")
        index, counts, fingerprint = _scan(data, settings)
        dataset_size, classes = len(index), len(index.classes)
        machine = machine or detect_machine()
    else:
        dataset_size = data
    if dataset_size < 1:
        raise UsageError(f"dataset size {dataset_size} must be at least 1", "Give the number of your images")
    if classes is not None and not 2 <= classes <= dataset_size:
        raise UsageError(f"{classes} classes for {dataset_size} images", "Give 2 classes or more, each with images")
    if vram is not None and not 0 < vram <= MAX_VRAM:
        raise UsageError(f"vram {vram:g} must be above 0 and at most {MAX_VRAM:,} GiB", "Give the GPU's memory in GiB")
    for what, word, known in (
        ("domain", domain, DOMAINS),
        ("preference", prefer, PREFERENCES),
        ("recipe", recipe, RECIPES),
    ):
        check_word(what, word, known)
    catalog = load_catalog()
    if license != "any":
        check_license(catalog.values(), license)
    tables = load_tables()
    regime = tables.regime_for(dataset_size)
    machine = machine if vram is None else make_gpu_machine(vram)
    counts = counts or DataCounts.from_total(dataset_size)
    given = {name: Choice(value=value, source="flag") for name, value in settings.items()}
    augment = choose_augmentation(domain, recipe, fingerprint)

    def judge(architecture: Architecture, why: str, *, least: int = 0, asked: Tag | None = None) -> Candidate:
        tags = [tag for tag in architecture.tags if license == "any" or license_matches(tag, license)]
        tag = asked or (tags[0] if tags else None)
        plan = make_plan(
            architecture, tag, images=dataset_size, train_images=counts.train, machine=machine, recipe=recipe,
            augment=augment, median_side=fingerprint.median_side if fingerprint else 0, given=given,
        )  # fmt: skip
        chosen = plan.settings
        rejection = _refuse(architecture, tag, plan, machine, license)
        if not rejection and dataset_size < least:
            rejection = f"only from {least:,} images, by the specification"
        return Candidate(
            model=architecture,
            tag=tag,
            plan=plan,
            memory=_step_bytes(architecture, chosen.micro_batch_size, chosen),
            time=estimate_plan(architecture, plan, counts, machine) if machine else None,
            rejection=rejection,
            reason=why + _speak_for(architecture, tag, prefer),
        )

    ranked = [
        judge(catalog[named.model], f"specification: {named.why}", least=named.least) for named in regime.candidates
    ]
    if prefer:
        ranked.sort(key=lambda candidate: _order(candidate, prefer))
    if model is not None:
        architecture, tag = find_model(model)
        own = judge(architecture, "--model", asked=tag if "." in model else None)
        if own.rejection:
            raise UsageError(f"{model}: {own.rejection}", "Choose another --model, or leave it out")
        ranked = [own, *(candidate for candidate in ranked if candidate.model.name != architecture.name)]
    if all(candidate.rejection for candidate in ranked):
        why = "; ".join(f"{candidate.model.name}: {candidate.rejection}" for candidate in ranked)
        raise UsageError(f"no model is left for this ({why})", "Allow more memory or another licence")
    best = next(candidate for candidate in ranked if not candidate.rejection)
    small = tuple(judge(catalog[name], "") for name in SMALL_MODELS)
    return Recommendation(
        dataset_size=dataset_size,
        regime=regime.name,
        machine=machine,
        candidates=tuple(ranked),
        warnings=(
            *_warnings(dataset_size, classes, best, (*ranked, *small), tables.describe_gap(dataset_size)),
            *_describe_data(fingerprint, is_domain_guessed=augment is not None and domain is None),
        ),
        small_models=small,
        augment=augment,
        fingerprint=fingerprint,
        index=index,
    )


def _scan(data: Path | str, settings: Mapping[str, Any]) -> tuple[Index, DataCounts, Fingerprint]:
    """Scan data, split it as `finetune` does, and look at a sample of it."""
    from convnext_cli.data.dataset import DatasetRequest, read_index  # numpy: a number of images does without
    from convnext_cli.data.index import check_trainable
    from convnext_cli.data.split import split_index
    from convnext_cli.recipes.fingerprint import compute_fingerprint

    values = default_settings() | dict(settings)
    own = {name: values[name] for name in ("image_root", "exclude", "group_from", "resplit")}
    index, _ = read_index(DatasetRequest(data=Path(data), **own))
    check_trainable(index)
    fingerprint = compute_fingerprint(index)
    drawn = {name: values[name] for name in ("val_fraction", "test_fraction", "seed")}
    return index, DataCounts.from_index(split_index(index, **drawn), fingerprint), fingerprint


def _describe_data(fingerprint: Fingerprint | None, *, is_domain_guessed: bool) -> list[str]:
    if fingerprint is None:
        return []
    domain = [explain_domain(fingerprint, "--domain other or natural overrules it")] if is_domain_guessed else []
    return [*domain, *describe_fingerprint(fingerprint)]


def choose_augmentation(domain: str | None, recipe: str, fingerprint: Fingerprint | None) -> str | None:
    """Return the preset of augmentation for a domain, or for what the images look like; None for the recipe's own."""
    if domain is not None:
        return PRESETS[domain]
    if recipe != DEFAULT_RECIPE or fingerprint is None:  # the other recipes have an augmentation of their own
        return None
    guessed = guess_domain(fingerprint)
    return guessed and PRESETS[guessed]


def estimate_plan(
    model: Architecture,
    plan: Plan,
    counts: DataCounts,
    machine: Machine,
    *,
    check: bool = True,
    onnx: bool = True,
    folds: int = 1,
) -> RunTime:
    """Estimate the seconds of a run with this plan, or of one for each fold."""
    return estimate_time(
        model,
        plan.settings,
        train=counts.train,
        val=counts.val,
        images=counts.images,
        pixels=counts.pixels,
        is_gpu=machine.is_gpu,
        cores=machine.cores,
        core_flops=machine.core_flops,
        check=check,
        onnx=onnx,
        folds=folds,
    )


def suggest_faster(seconds: float, candidates: Sequence[Candidate]) -> str | None:
    """Say that a run takes days, and which model finishes overnight; None where it takes less than a day."""
    if seconds <= DAY:
        return None
    fitting = [found for found in candidates if not found.rejection and found.seconds and found.seconds <= NIGHT]
    if fitting:
        best = fitting[0]
        instead = f"--model {best.model.name} takes about {describe_seconds(best.seconds or 0)}"
    else:
        instead = "--weights builtin trains a small model at 64 px"
    return (
        f"this takes about {describe_seconds(seconds)} here. Overnight: {instead}, or --max-time 10h plans fewer epochs"
    )


def _refuse(model: Architecture, tag: Tag | None, plan: Plan, machine: Machine | None, license: str) -> str:
    if not model.tags:
        return "no pretrained weights exist for it anywhere"
    if tag is None:
        return f"its weights are {' or '.join(model.licenses)}, not {license}"
    needed = _step_bytes(model, 1, plan.settings)
    if machine is not None and needed > machine.memory * USABLE:
        return f"needs about {needed / GIB:.1f} GiB for a single image"
    return ""


def _step_bytes(model: Architecture, images: int, recipe: Settings) -> int:
    return training_bytes(model, images, recipe.image_size, grad_checkpointing=recipe.grad_checkpointing)


def _order(candidate: Candidate, prefer: str) -> tuple[bool, float]:
    """Sorts by the preference; what is refused goes last."""
    model = candidate.model
    cost = training_seconds(model, 1, 224, is_gpu=True, cores=1)  # GRN's price in it
    key = {"accuracy": -(model.top1 or 0.0), "speed": cost, "size": float(model.params)}[prefer]
    return bool(candidate.rejection), key


def _speak_for(model: Architecture, tag: Tag | None, prefer: str | None) -> str:
    if tag is None or prefer is None:
        return ""
    return {
        "accuracy": f"; top-1 {model.top1}%",
        "speed": f"; {model.gmacs} GMACs{', slowed by GRN' if model.grn else ''}",
        "size": f"; {model.params / 1e6:.1f}M parameters",
    }[prefer]


def _warnings(
    images: int, classes: int | None, best: Candidate, others: Sequence[Candidate], gap: str | None
) -> tuple[str, ...]:
    found = [gap] if gap else []
    if best.seconds is not None and (slow := suggest_faster(best.seconds, others)):
        found.append(slow)
    if classes and images / classes < 20:
        found.append(
            f"{images / classes:.0f} images a class is very few: expect wide uncertainty, and collect more if you can"
        )
    if images < 200:
        found.append("with under 200 images a test split holds too few to trust its figures")
    return tuple(found)
