"""Recommend a model and settings for a data set on a machine, with the reasons."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from numbers import Real
from pathlib import Path
from typing import TYPE_CHECKING, Any, Unpack

from convnext_cli.data.index import NONE, Index, check_trainable
from convnext_cli.data.unseen import Unseen, measure_unseen_area
from convnext_cli.errors import UsageError, check_word
from convnext_cli.machine import GIB, Machine, detect_machine, make_gpu_machine
from convnext_cli.models.catalog import (
    DEFAULT_IMAGE_SIZE,
    UNTAGGED,
    Architecture,
    Tag,
    check_license,
    find_model,
    load_catalog,
    resolve_weights,
)
from convnext_cli.models.licenses import license_matches
from convnext_cli.options import describe_options, make_request
from convnext_cli.recipes.costs import (
    USABLE,
    RunTime,
    StepMemory,
    Workload,
    describe_seconds,
    training_bytes,
    training_seconds,
)
from convnext_cli.recipes.fingerprint import (
    DataCounts,
    Fingerprint,
    compute_fingerprint,
    describe_fingerprint,
    explain_domain,
    guess_domain,
)
from convnext_cli.recipes.framing import apply_framing, warn_padding, warn_unseen
from convnext_cli.recipes.plan import Plan, PlanInputs, make_plan
from convnext_cli.recipes.request import RecommendRequest
from convnext_cli.recipes.settings import (
    DEFAULT_RECIPE,
    READING_SETTINGS,
    RECIPES,
    Choice,
    Settings,
    SettingsDict,
    check_settings,
    default_settings,
    expand_settings,
    list_changed,
)
from convnext_cli.recipes.speeds import estimate_time_here
from convnext_cli.recipes.tables import load_tables
from convnext_cli.text import format_count

if TYPE_CHECKING:  # NumPy, which a number of images does without
    from convnext_cli.tasks.task import Task

DAY = 86_400.0  # seconds
NIGHT = 10 * 3_600.0
MIN_CLASS_IMAGES = 20  # images per class; fewer leave every metric uncertain
MIN_IMAGES = 200  # of a data set; a test split of fewer leaves every metric uncertain
SMALL_MODELS = ("convnext_nano", "convnext_pico", "convnext_femto", "convnext_atto")  # with permissive weights
PRESETS = {"medical": "medical", "natural": "natural", "other": "light"}  # augmentation preset by domain
DOMAINS = tuple(PRESETS)


@dataclass(frozen=True, kw_only=True, slots=True)
class Candidate:
    """A model that the specification names for a data set of this size, with its plan and costs."""

    model: Architecture
    tag: Tag | None
    plan: Plan
    memory: int
    """Estimated bytes of a training step with the plan's micro-batch."""
    time: RunTime | None
    """Estimated duration of the run; None if the machine is unknown."""
    rejection: str
    """Why it is not recommended; empty if it may be."""
    reason: str

    @property
    def license(self) -> str | None:
        """The licence of the tag's weights; None for random initialisation and for weights of the user's own."""
        return self.tag.license if self.tag and self.plan.weights == "auto" else None

    @property
    def top1(self) -> float | None:
        """The best published ImageNet-1k accuracy of the tag's weights in percent; without a tag, of the model's."""
        return self.tag.best_top1 if self.tag else self.model.top1

    @property
    def seconds(self) -> float | None:
        """Estimated seconds of the run; None if the machine is unknown."""
        return self.time.total if self.time else None


PREFERENCES: dict[str, Callable[[Candidate], float]] = {
    "accuracy": lambda candidate: -(candidate.top1 or 0.0),
    "speed": lambda candidate: training_seconds(  # on a GPU, where GRN costs most
        candidate.model, 1, (DEFAULT_IMAGE_SIZE,) * 2, make_gpu_machine(1)
    ),
    "size": lambda candidate: candidate.model.params,
}
"""The number that candidates are sorted by, the smallest first, for each `--prefer`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Recommendation:
    """The candidates, best first, and the warnings about data and plan."""

    dataset_size: int
    """Number of images, all splits together."""
    regime: str
    machine: Machine | None
    candidates: tuple[Candidate, ...]
    """Models with their plans, the best first."""
    warnings: tuple[str, ...]
    """About data and plan."""
    small_models: tuple[Candidate, ...]
    """Small models with permissive weights, larger ones first, for slow machines."""
    augment: str | None
    """The augmentation preset of the domain; None for the recipe's own augmentation."""
    fingerprint: Fingerprint | None
    """None for a number of images."""
    unseen: Unseen | None = None
    """The part of the sampled images that evaluation never sees with the recommended plan; None if unknown."""
    index: Index | None = field(default=None, repr=False)
    """The scanned data; None for a number of images."""

    @property
    def best(self) -> Candidate:
        """The recommended candidate: the first that is not rejected."""
        return next(candidate for candidate in self.candidates if not candidate.rejection)

    @property
    def plan(self) -> Plan:
        """The recommended candidate's plan."""
        return self.best.plan

    @property
    def task(self) -> "Task | None":
        """The task of the scanned data; None for a number of images."""
        return self.index.task if self.index is not None else None


@dataclass(frozen=True, kw_only=True, slots=True)
class _DataSummary:
    """The facts about the data that a recommendation uses."""

    counts: DataCounts
    classes: int | None
    fingerprint: Fingerprint | None
    index: Index | None = None
    augment: str | None
    """The augmentation preset of the domain; None for the recipe's own augmentation."""
    small_validation: str | None = None
    """Why the validation split is too small, and what to do; None if it is not."""


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
    weights: str = "auto",
    counts: DataCounts | None = None,
    fingerprint: Fingerprint | None = None,
    **settings: Unpack[SettingsDict],
) -> Recommendation:
    """Recommend a model and its settings.

    Args:
        data: a folder, table or zip file of images, which are scanned; or a number of images, all splits together.
        classes: number of classes, for a number of images; counted in scanned data.
        vram: memory in GiB of a GPU in another machine.
        machine: the machine that trains, unless `vram` is set. None is this machine for scanned data and an unknown one
            for a number of images: memory is then no limit, and no duration is estimated.
        license: `any`, `permissive`, or the required licence of the weights.
        domain: `medical`, `natural` or `other`; chooses the augmentation preset. None guesses it from the fingerprint.
        prefer: `accuracy`, `speed` or `size`; None keeps the specification's order.
        recipe: `measured`, `specification` or `published`.
        model: the model to plan for, with or without a `.tag`; None recommends one.
        weights: `auto`, `builtin`, `none` (random initialisation), a path, or `timm/NAME`.
        counts: images by split, for a number of images; None assumes the default split.
        fingerprint: of the images, for a number of images; None if unknown.
        **settings: settings of the training and of reading the data (`exclude`, `group_from` …): any field of
            `Settings`.

    Raises:
        UsageError: a number, word or setting is invalid, or no candidate is left.
        WeightsError: there are no weights of that name.
        DataError: the data cannot be trained on.
    """
    source: Any = data  # for a type checker, NumPy's numbers are not whole numbers
    values = {
        "classes": classes, "vram": vram, "machine": machine, "license": license, "domain": domain, "prefer": prefer,
        "recipe": recipe, "model": model, "weights": weights, "counts": counts, "fingerprint": fingerprint,
        "dataset_size" if isinstance(source, Real) else "data": source, "settings": expand_settings(settings),
    }  # fmt: skip
    return make_recommendation(make_request(RecommendRequest, values))


def make_recommendation(request: RecommendRequest) -> Recommendation:
    """Scan the data, plan each candidate, order the candidates and choose the first that is not rejected.

    Errors are those of `recommend`.
    """
    _check_request(request)
    model, weights = resolve_weights(request.model, request.weights)
    request = replace(request, model=model, weights=weights)
    data = _summarise_data(request)
    if request.vram is not None:
        request = replace(request, machine=make_gpu_machine(request.vram))
    elif request.machine is None and request.data is not None:
        request = replace(request, machine=detect_machine())
    candidates = _list_candidates(request, data)
    best = next((candidate for candidate in candidates if not candidate.rejection), None)
    if best is None:
        reasons = "; ".join(f"{candidate.model.name}: {candidate.rejection}" for candidate in candidates)
        raise UsageError(f"no model is left for this ({reasons})", "Allow more memory or another licence")
    catalog = load_catalog()
    unseen = measure_plan_unseen(best.plan, best.tag, data.fingerprint)
    small_models = [_plan_candidate(request, data, catalog[name], reason="") for name in SMALL_MODELS]
    return Recommendation(
        dataset_size=data.counts.images,
        regime=load_tables().regime_for(data.counts.images).name,
        machine=request.machine,
        candidates=tuple(candidates),
        warnings=(
            *_list_warnings(data, best, [*candidates, *small_models]),
            *filter(None, [warn_unseen(unseen), warn_plan_padding(best.plan, data.fingerprint)]),
            *_describe_data(request, data),
        ),
        small_models=tuple(small_models),
        augment=data.augment,
        fingerprint=data.fingerprint,
        unseen=unseen,
        index=data.index,
    )


def _check_request(request: RecommendRequest) -> None:
    """Check everything that needs no look at the data."""
    check_settings(request.settings)
    counted = ("dataset_size", "classes", "counts", "fingerprint")
    if request.data is not None:
        if names := [name for name in counted if getattr(request, name) is not None]:
            options = describe_options(RecommendRequest)
            words = (options[name].flag if name in options else name for name in names)
            raise UsageError(f"{' and '.join(words)}: counted from the data", "Leave these out")
    elif request.dataset_size is None:
        raise UsageError("no data and no --dataset-size", "Give a folder of images, or --dataset-size N")
    elif request.classes is not None and request.classes > request.dataset_size:
        problem = f"{format_count(request.classes, 'class')} for {format_count(request.dataset_size, 'image')}"
        raise UsageError(problem, "Give fewer --classes, or a larger --dataset-size")
    check_word("domain", request.domain, DOMAINS)
    check_word("preference", request.prefer, tuple(PREFERENCES))
    check_word("recipe", request.recipe, RECIPES)
    if request.license != "any":
        check_license(request.license)


def _summarise_data(request: RecommendRequest) -> _DataSummary:
    """Count the images by split and classes, and look at a sample of them; a number of images is not scanned."""
    if request.data is None:
        assert request.dataset_size is not None
        counts = request.counts or DataCounts.from_total(request.dataset_size)
        fingerprint = request.fingerprint
        augment = choose_augmentation(request.domain, request.recipe, fingerprint)
        return _DataSummary(counts=counts, classes=request.classes, fingerprint=fingerprint, augment=augment)
    from convnext_cli.data.dataset import DatasetRequest, read_index  # NumPy, which a number of images does without
    from convnext_cli.data.groups import group_index
    from convnext_cli.data.split import TOO_FEW, advise_on_validation, explain_small_validation, split_index

    values = default_settings() | dict(request.settings)
    reading = {name: values[name] for name in READING_SETTINGS}
    dataset = DatasetRequest(data=request.data, chosen=list_changed(request.settings), **reading)
    index, _ = group_index(read_index(dataset), dataset.group_from)
    check_trainable(index)
    fingerprint = compute_fingerprint(index)
    splitting = {name: values[name] for name in ("val_fraction", "test_fraction", "seed")}
    drawn = split_index(index, **splitting)
    has_folds = values["folds"] or values["leave_out"] != NONE
    reason = None if has_folds else explain_small_validation(drawn)
    advice = advise_on_validation(drawn, index.splits, values["val_fraction"])
    return _DataSummary(
        counts=DataCounts.from_index(drawn, fingerprint),
        classes=len(index.classes),
        fingerprint=fingerprint,
        index=index,
        augment=choose_augmentation(request.domain, request.recipe, fingerprint),
        small_validation=f"{reason}: {TOO_FEW}. {advice}" if reason else None,
    )


def _list_candidates(request: RecommendRequest, data: _DataSummary) -> list[Candidate]:
    """Return the specification's models for a data set of this size in order of preference, the user's own first.

    Raises:
        UsageError: the user's own model cannot be trained.
    """
    catalog = load_catalog()
    candidates = []
    for entry in load_tables().regime_for(data.counts.images).candidates:
        candidate = _plan_candidate(request, data, catalog[entry.model], reason=f"specification: {entry.why}")
        if not candidate.rejection and data.counts.images < entry.min_images:
            rejection = f"only from {entry.min_images:,} images, by the specification"
            candidate = replace(candidate, rejection=rejection)
        candidates.append(candidate)
    if request.prefer:
        order = PREFERENCES[request.prefer]
        candidates.sort(key=lambda candidate: (bool(candidate.rejection), order(candidate)))
    if request.model is None:
        return candidates
    architecture, tag = find_model(request.model)
    own = _plan_candidate(request, data, architecture, tag if "." in request.model else None, reason="your choice")
    if own.rejection:
        raise UsageError(f"{request.model}: {own.rejection}", "Choose another --model, or leave it out")
    return [own, *(candidate for candidate in candidates if candidate.model.name != architecture.name)]


def _plan_candidate(
    request: RecommendRequest, data: _DataSummary, model: Architecture, tag: Tag | None = None, *, reason: str
) -> Candidate:
    """Plan a model and estimate its memory and time; without a tag, with its first weights of the required licence."""
    if tag is None:
        tag = next((tag for tag in model.tags if license_matches(tag.license, request.license)), None)
    plan = make_plan(
        PlanInputs(
            model=model,
            tag=tag,
            weights=request.weights,
            counts=data.counts,
            fingerprint=data.fingerprint,
            machine=request.machine,
            recipe=request.recipe,
            augment=data.augment,
            choices={name: Choice(value=value, source="flag") for name, value in request.settings.items()},
        )
    )
    settings, machine = plan.settings, request.machine
    time = None
    if machine is not None:
        time = estimate_time_here(Workload(model=model, settings=settings, counts=data.counts, machine=machine))
    return Candidate(
        model=model,
        tag=tag,
        plan=plan,
        memory=_step_bytes(model, settings.micro_batch_size, settings, request.machine),
        time=time,
        rejection=_find_rejection(request, model, tag, settings),
        reason=reason + _explain_preference(model, tag, request.prefer),
    )


def _find_rejection(request: RecommendRequest, model: Architecture, tag: Tag | None, settings: Settings) -> str:
    """Return why a model cannot be trained: no weights, another licence, or too little memory; else an empty text."""
    if request.weights == "auto" and not model.tags:
        return "no pretrained weights exist for it anywhere"
    if request.weights == "auto" and tag is None:
        return f"its weights are {' or '.join(model.licenses)}, not {request.license}"
    needed = _step_bytes(model, 1, settings, request.machine)
    if request.machine is not None and needed > request.machine.memory * USABLE:
        return f"needs about {needed / GIB:.1f} GiB for a single image"
    return ""


def _step_bytes(model: Architecture, images: int, settings: Settings, machine: Machine | None) -> int:
    return training_bytes(model, images, StepMemory.of(asdict(settings), machine))


def _explain_preference(model: Architecture, tag: Tag | None, prefer: str | None) -> str:
    if tag is None or prefer is None:
        return ""
    return {
        "accuracy": f"; ImageNet accuracy {'unknown' if tag.best_top1 is None else f'{tag.best_top1}%'}",
        "speed": f"; {model.gmacs} GMACs{', slowed by GRN' if model.grn else ''}",
        "size": f"; {model.params / 1e6:.1f}M parameters",
    }[prefer]


def choose_augmentation(domain: str | None, recipe: str, fingerprint: Fingerprint | None) -> str | None:
    """Return the augmentation preset of a domain, or of the domain that the images look like.

    None is the recipe's own augmentation. Recipes other than the default one always have their own.
    """
    if domain is not None:
        return PRESETS[domain]
    if recipe != DEFAULT_RECIPE or fingerprint is None:
        return None
    guessed = guess_domain(fingerprint)
    return guessed and PRESETS[guessed]


def measure_plan_unseen(plan: Plan, tag: Tag | None, fingerprint: Fingerprint | None) -> Unseen | None:
    """Return the part of the sampled images that evaluation never sees with a plan; None if it is unknown."""
    settings = plan.settings
    if fingerprint is None or not fingerprint.shapes:
        return None
    base = tag.preprocessing if tag else UNTAGGED
    framing = apply_framing(base, settings.image_size, settings.fit, settings.crop_pct)
    return measure_unseen_area(fingerprint.shapes, framing)


def warn_plan_padding(plan: Plan, fingerprint: Fingerprint | None) -> str | None:
    """Return a warning where padding leaves little of the sampled images with a plan."""
    shapes = fingerprint.shapes if fingerprint else ()
    return warn_padding(shapes, plan.settings.image_size, plan.settings.fit)


def suggest_faster(seconds: float, candidates: Sequence[Candidate]) -> str | None:
    """Return a warning that a run takes days, with a model that finishes overnight; None for less than a day."""
    if seconds <= DAY:
        return None
    fast = [each for each in candidates if not each.rejection and each.seconds and each.seconds <= NIGHT]
    if fast:
        advice = f"--model {fast[0].model.name} takes about {describe_seconds(fast[0].seconds or 0)}"
    else:
        advice = "--weights builtin trains a small model at 64 px"
    return (
        f"this takes about {describe_seconds(seconds)} here. Overnight: {advice}, or --max-time 10h plans fewer epochs"
    )


def _list_warnings(data: _DataSummary, best: Candidate, candidates: Sequence[Candidate]) -> list[str]:
    """Return the warnings about the size of the data set and the duration of the run."""
    images = data.counts.images
    warnings = [load_tables().describe_gap(images), suggest_faster(best.seconds or 0, candidates)]
    is_single = data.index is None or not data.index.task.has_values
    if is_single and data.classes and images / data.classes < MIN_CLASS_IMAGES:
        per_class = format_count(round(images / data.classes), "image per class is", "images per class are")
        warnings.append(f"{per_class} very few: expect wide confidence intervals, and collect more if you can")
    if images < MIN_IMAGES:
        warnings.append(f"with under {MIN_IMAGES} images the test split is too small for reliable metrics")
    warnings.append(data.small_validation)
    return [warning for warning in warnings if warning]


def _describe_data(request: RecommendRequest, data: _DataSummary) -> list[str]:
    """Return notes on the images, and on the domain if it was guessed."""
    if data.fingerprint is None:
        return []
    is_guessed = data.augment is not None and request.domain is None
    domain = [explain_domain(data.fingerprint, "--domain other or natural overrides it")] if is_guessed else []
    return [*domain, *describe_fingerprint(data.fingerprint)]
