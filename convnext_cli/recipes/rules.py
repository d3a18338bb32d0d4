"""The rules that choose settings, from the recipes' tables, the data set and the machine."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, replace

from convnext_cli.errors import UsageError
from convnext_cli.images.preprocessing import REDUCTION
from convnext_cli.machine import GIB, Machine
from convnext_cli.models.catalog import DEFAULT_IMAGE_SIZE, Architecture, Tag
from convnext_cli.models.names import SIZES
from convnext_cli.recipes.costs import StepMemory, largest_micro_batch
from convnext_cli.recipes.settings import Choice
from convnext_cli.recipes.tables import (
    Regime,
    Row,
    load_augmentations,
    load_measured,
    load_tables,
    published_row,
)
from convnext_cli.text import format_count

USUAL_BATCH = 128
MIN_BATCH = 16
MAX_CPU_MICRO_BATCH = 32  # a larger pass on a CPU only takes more memory
MIN_GPU_MICRO_BATCH = 8  # smaller passes leave a GPU idle; a CPU is nearly as fast with single images
MIN_STEPS = 500  # of a whole run: BiT-HyperRule's length for under 20,000 images (arXiv:1912.11370, section 3.3)

RANDOM_START_LR = 1e-3  # a short run from random weights learns too little at the tables' 2e-4 to 4e-4 (batch 128)
RANDOM_START_PARAMS = 16e6  # parameters of the largest model (nano) that RANDOM_START_LR was measured for
MIN_SIDE = 128  # px; the last feature map then has 4 x 4 positions
UNBOUNDED_SETTINGS = ("lr", "weight_decay", "drop_path")  # the data set's row does not bound a larger model's values


@dataclass(frozen=True, kw_only=True, slots=True)
class RecipeRows:
    """The settings that a recipe's tables have for a model and a data set."""

    choices: dict[str, Choice]
    base_batch: int
    """Images per step that the learning rate is for."""
    least_batch: int
    """The smallest number of images per step that it is for too."""
    batch_power: float
    """Exponent of the batch size that the learning rate is proportional to."""


def choose_image_size(tag: Tag | None, median_side: int) -> Choice:
    """Choose the input size: that of the weights, or a smaller one for smaller images.

    Args:
        tag: the weights; None for random initialisation.
        median_side: median side of the images in pixels; 0 if unknown.
    """
    usual, source, reason = DEFAULT_IMAGE_SIZE, "default", "ConvNeXt's usual input"
    if tag is not None:
        usual, source, reason = tag.image_size, "rule", f"the input size of the weights {tag.name}"
    fitting = max(MIN_SIDE, -(-median_side // REDUCTION) * REDUCTION)
    if not median_side or fitting >= usual:
        return Choice(value=usual, source=source, reason=reason)
    reason = (
        f"enlarging images of {median_side} px beyond {fitting} px adds no detail; {usual} ({reason}) would take "
        f"{(usual / fitting) ** 2:.1f} times as long"
    )
    return Choice(value=fitting, source="rule", reason=reason)


def read_preset(name: str) -> dict[str, Choice]:
    """Return the choices of an augmentation preset."""
    row = load_augmentations()[name]
    return {setting: Choice.of_preset(name, value, reason) for setting, (value, reason) in row.items()}


def choose_batch_size(images: int, epochs: int) -> Choice:
    """Choose the specification's batch size, halved until the run has at least `MIN_STEPS` steps."""
    batch = USUAL_BATCH
    while batch > MIN_BATCH and images * epochs / batch < MIN_STEPS:
        batch //= 2
    if batch == USUAL_BATCH:
        return Choice(value=batch, source="specification 3.1 to 3.4", reason="the batch size of its learning rates")
    return Choice(value=batch, source="rule", reason=f"small, for enough steps in {format_count(epochs, 'epoch')}")


def scale_lr(lr: Choice, batch: int, rows: RecipeRows) -> Choice:
    """Scale a recipe's learning rate to a batch size. The rate for random weights holds for all batch sizes."""
    if batch == rows.base_batch or lr.source == "rule":
        return lr
    nearest = min(max(batch, rows.least_batch), rows.base_batch)
    scaled = float(f"{lr.value * (batch / nearest) ** rows.batch_power:.4g}")
    scaling = "linearly" if rows.batch_power == 1 else "with the square root"
    reason = f"{lr.value:g} at batch {nearest}, scaled {scaling} to {batch}"
    if batch == nearest:
        reason = f"the value for batch {rows.base_batch}, not scaled down: short runs were more accurate with it"
    return Choice(value=scaled, source=lr.source, reason=_join(reason, lr.reason))


def pick_rows(recipe: str, model: Architecture, tag: Tag | None, images: int, weights: str) -> RecipeRows:
    """Return the settings that a recipe has for a model with these weights and a data set of `images` images."""
    tables = load_tables()
    usual, power = tables.model_row(model.parsed).base_batch, 1.0
    if recipe == "specification":
        common = {
            name: Choice(value=value, source=source, reason=reason)
            for name, (value, source, reason) in tables.common.items()
            if name != "min_lr"  # which is relative to the peak
        }
        choices = common | _from_specification(model, images, weights)
        return RecipeRows(choices=choices, base_batch=usual, least_batch=usual, batch_power=power)
    if recipe == "published":
        row = published_row(model, tag)
        choices = {name: Choice(value=low, source=row.source) for name, (low, _) in row.ranges.items()}
        base, least = row.base_batch, row.base_batch
    else:
        choices = _from_measured(model, tag, images)
        base = load_measured().base_batch if choices["lr"].source == "measured" else usual
        least, power = MIN_BATCH, 0.5
    if weights == "none":
        off = Choice(value=0, source="rule", reason="random weights have no pretrained features to keep")
        lr = _choose_random_start_lr(model, images)
        choices |= {"freeze_epochs": off, "layer_decay": replace(off, value=1.0), "lr": lr}
        base, least = usual, usual
    return RecipeRows(choices=choices, base_batch=base, least_batch=least, batch_power=power)


def choose_min_lr(recipe: str, lr: float) -> Choice | None:
    """Choose the learning rate that the recipe's cosine ends at; None if the recipe has none of its own."""
    if recipe != "specification":
        return None
    fraction, source, reason = load_tables().common["min_lr"]
    return Choice(value=float(f"{fraction * lr:.4g}"), source=source, reason=reason)


def explain_lr(model: Architecture, lr: float, batch: int, usual: float) -> str | None:
    """Return a warning if a learning rate is outside the specification's range for the model, else None.

    Args:
        model: the architecture.
        lr: the peak learning rate.
        batch: images per step. The range is the union of the row's and the one scaled to this batch size.
        usual: the recipe's own choice, which is always inside.
    """
    row = load_tables().model_row(model.parsed)
    low, high = row.ranges["lr"]
    factor = math.prod(load_tables().modifiers[modifier] for modifier in model.parsed.modifiers)
    scale = batch / row.base_batch
    if min(low * min(1, scale), usual) <= lr <= max(high * factor * max(1, scale), usual):
        return None
    span = f"{low:g}" if low == high else f"{low:g} to {high:g}"
    effect = "training may diverge" if lr > high else "it may learn very slowly"
    return (
        f"lr {lr:g} is outside the range for {model.name}, {span} at batch {row.base_batch} ({row.source}): {effect}. "
        f"The recipe has {usual:g} (leave --lr out); --lr auto runs a range test"
    )


def _choose_random_start_lr(model: Architecture, images: int) -> Choice:
    if model.params <= RANDOM_START_PARAMS:
        return Choice(
            value=RANDOM_START_LR, source="rule", reason="random weights need a higher rate than pretrained ones"
        )
    return _from_specification(model, images, "none")["lr"]


def _from_measured(model: Architecture, tag: Tag | None, images: int) -> dict[str, Choice]:
    """Return the measured settings. For weights outside the package, the authors' give what depends on the weights."""
    measured = load_measured()
    choices = {
        name: Choice(value=value, source="measured", reason=measured.reasons.get(name, ""))
        for name, value in measured.values.items()
    }
    if tag is None or tag.hub_id is not None:
        published = published_row(model, tag)
        choices["layer_decay"] = Choice(value=published.ranges["layer_decay"][0], source=published.source)
        specified = _from_specification(model, images, "auto")
        choices |= {name: _bound_authors(name, published, model, specified[name]) for name in UNBOUNDED_SETTINGS}
    return choices


def _bound_authors(name: str, published: Row, model: Architecture, specified: Choice) -> Choice:
    """Return the authors' value, the learning rate scaled as they say, or the specification's nearest to it.

    Args:
        name: lr, weight_decay or drop_path.
        published: the authors' row for fine-tuning these weights.
        model: the architecture.
        specified: the specification's choice: the low end of its range, within that of the data set's row.
    """
    tables = load_tables()
    row = tables.model_row(model.parsed)
    authors = published.ranges[name][0]
    origin, value, low = f"{authors:g}", authors, specified.value
    high = max(row.ranges[name][1], low)
    if name == "lr":
        value = float(f"{authors * row.base_batch / published.base_batch:.4g}")
        high *= math.prod(tables.modifiers[modifier] for modifier in model.parsed.modifiers)
        origin = f"{authors:g} at batch {published.base_batch}, {value:g} at {row.base_batch}"
    if low <= value <= high:
        return Choice(value=value, source=published.source)
    end = "value" if low == high else "lowest" if value < low else "highest"
    reason = f"the specification's {end}; the authors have {origin}"
    return Choice(value=low if value < low else float(f"{high:.4g}"), source=specified.source, reason=reason)


def _from_specification(model: Architecture, images: int, weights: str) -> dict[str, Choice]:
    """Return the low end of the model's range for each setting, bounded by the data set's row."""
    tables = load_tables()
    row = tables.model_row(model.parsed)
    regime = tables.regime_for(images)
    size = model.parsed.size  # compared with the largest that the specification names for data sets of that size
    is_larger = size in SIZES and SIZES.index(size) > SIZES.index(regime.largest_model)
    notes = tables.scratch_notes if weights == "none" else tables.notes
    choices = {
        name: _bound(name, row, regime, is_larger=is_larger, note=notes.get(name, ""))
        for name in dict.fromkeys((*row.ranges, *regime.ranges))  # in the tables' order
    }
    for modifier in model.parsed.modifiers:
        factor, lr = tables.modifiers[modifier], choices["lr"]
        if factor != 1:
            reason = f"{lr.value:g} times {factor:g} for _{modifier}, which no published source supports"
            value = float(f"{lr.value * factor:.4g}")
            choices["lr"] = Choice(value=value, source="specification 4", reason=_join(reason, lr.reason))
    return choices


def _bound(name: str, row: Row, regime: Regime, *, is_larger: bool, note: str) -> Choice:
    """Return the low end of the model's range, within the range of the data set's row."""
    if name not in row.ranges:
        return Choice(value=regime.ranges[name][0], source=regime.source, reason=note)
    model_value = row.ranges[name][0]
    low, high = regime.ranges.get(name, (-math.inf, math.inf))
    value = min(max(model_value, low), high)
    if value == model_value:
        return Choice(value=value, source=row.source, reason=note)
    if is_larger and name in UNBOUNDED_SETTINGS:
        reason = f"the row for {regime.name} data sets is for models up to {regime.largest_model}"
        return Choice(value=model_value, source=row.source, reason=_join(reason, note))
    reason = f"{row.source} has {model_value:g}, outside the range for {regime.name} data sets"
    return Choice(value=value, source=regime.source, reason=_join(reason, note))


def _smallest_efficient_batch(batch: int, machine: Machine) -> int:
    """Return the smallest halving of `batch` that keeps the machine busy."""
    size, minimum = batch, MIN_GPU_MICRO_BATCH if machine.is_gpu else 1
    while size // 2 >= minimum:
        size //= 2
    return size


def choose_grad_checkpointing(model: Architecture, choices: Mapping[str, Choice], machine: Machine | None) -> Choice:
    """Choose gradient checkpointing if the memory holds too few images without it."""
    if machine is not None:
        batch, values = choices["batch_size"].value, {name: choice.value for name, choice in choices.items()}
        step = StepMemory.of(values, machine)
        without, with_checkpointing = (
            largest_micro_batch(model, machine.memory, batch, replace(step, grad_checkpointing=checkpointing))
            for checkpointing in (False, True)
        )
        if without < min(with_checkpointing, _smallest_efficient_batch(batch, machine)):
            images = format_count(without, "image") if without else "no images"
            reason = f"without it, the memory holds {images} at a time; steps take a third longer"
            return Choice(value=True, source="rule", reason=reason)
    return Choice(value=False, source="default")


def choose_micro_batch_size(model: Architecture, choices: Mapping[str, Choice], machine: Machine | None) -> Choice:
    """Choose the largest micro-batch that fits into the memory, on a CPU at most `MAX_CPU_MICRO_BATCH`."""
    batch = choices["batch_size"].value
    if machine is None:
        return Choice(value=batch, source="rule", reason="the whole batch at once")
    step = StepMemory.of({name: choice.value for name, choice in choices.items()}, machine)
    fitting = max(1, largest_micro_batch(model, machine.memory, batch, step))
    if choices["grad_checkpointing"].source == "rule":  # no larger than checkpointing was switched on for
        fitting = min(fitting, _smallest_efficient_batch(batch, machine))
    if not machine.is_gpu and fitting > MAX_CPU_MICRO_BATCH:
        return Choice(value=MAX_CPU_MICRO_BATCH, source="rule", reason="a larger pass is not faster on a CPU")
    reason = f"{'the whole batch fits' if fitting == batch else 'the largest that fits'} {machine.memory / GIB:.1f} GiB"
    return Choice(value=fitting, source="rule", reason=f"{reason}, by estimate")


def shorten_warmup(warmup: Choice, epochs: int) -> Choice:
    """Limit the warm-up to a tenth of the run, unless the user or a plan file chose it."""
    longest = epochs / 10
    if warmup.value <= longest or warmup.is_chosen:
        return warmup
    origin = "the plan" if warmup.source == "rule" else warmup.source
    reason = f"a tenth of {format_count(epochs, 'epoch')}; {origin} has {warmup.value:g}"
    return Choice(value=longest, source="rule", reason=reason)


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def check_head(model: Architecture | None, choices: Mapping[str, Choice]) -> None:
    """Check that a model supports the chosen classifier.

    A width from a plan file needs no hidden layer: plan files hold every setting.

    Args:
        model: the model; None if not chosen yet.
        choices: the settings that the user or a plan file chose.

    Raises:
        UsageError: the model supports no hidden layer, or a width was set without one.
    """
    hidden = "head" in choices and choices["head"].value == "mlp"
    if hidden and model is not None and not model.takes_hidden_layer:
        raise UsageError(
            f"{model.name} cannot have --head mlp: timm adds no hidden layer to a head with its norm first",
            "Leave --head out, or choose another model",
        )
    width = choices.get("head_hidden_size")
    if width is not None and width.source == "flag" and not hidden:
        raise UsageError("head_hidden_size has no effect with the linear head", "Add --head mlp, or leave it out")
