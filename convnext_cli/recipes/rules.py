"""The rules that pick settings: what each table says of a model and a data set, and what follows from the machine."""

import math
from collections.abc import Mapping
from dataclasses import replace

from convnext_cli.errors import UsageError
from convnext_cli.machine import GIB, Machine
from convnext_cli.models.catalog import REDUCTION, Architecture, Tag
from convnext_cli.models.names import SIZES
from convnext_cli.recipes.costs import largest_micro_batch
from convnext_cli.recipes.settings import Choice
from convnext_cli.recipes.tables import (
    Regime,
    Row,
    Tables,
    load_augmentations,
    load_measured,
    load_tables,
    published_row,
)

USUAL_BATCH = 128
MIN_BATCH = 16
MAX_CPU_MICRO_BATCH = 32  # a larger pass on a CPU only takes more memory
MIN_GPU_MICRO_BATCH = 8  # a GPU idles below; a CPU is nearly as fast with single images
MIN_STEPS = 500  # of a whole run: BiT-HyperRule's length for under 20,000 images (arXiv:1912.11370, section 3.3)

RANDOM_START_LR = 1e-3  # the tables' rates, 2e-4 to 4e-4 at batch 128, leave a short run from random weights unlearned
RANDOM_START_PARAMS = 16e6  # of the largest model (nano) that it is for; nothing was tried with larger ones
MIN_SIDE = 128  # px; the last feature map then has 4 x 4 positions
BOUNDED_BY_SIZE = ("lr", "weight_decay", "drop_path")  # settings that a larger model has to itself


def choose_image_size(tag: Tag | None, median_side: int = 0) -> Choice:
    """Choose the input size: that of the weights, or a smaller one where the images are smaller.

    Args:
        tag: the weights; None for random ones.
        median_side: the shorter side of most images, in pixels; 0 where it is not known.
    """
    usual, source, reason = 224, "default", "ConvNeXt's usual input"
    if tag is not None:
        usual, source, reason = tag.image_size, "rule", f"the input size of {tag.name}"
    fitting = max(MIN_SIDE, -(-median_side // REDUCTION) * REDUCTION)
    if not median_side or fitting >= usual:
        return Choice(value=usual, source=source, reason=reason)
    why = (
        f"the images have {median_side} px, and enlarging adds no detail; {usual} ({reason}) would take "
        f"{(usual / fitting) ** 2:.1f} times as long"
    )
    return Choice(value=fitting, source="rule", reason=why)


def take_preset(name: str) -> dict[str, Choice]:
    """How a preset of augmentation varies images."""
    row = load_augmentations()[name]
    return {
        setting: Choice(value=value, source=f"augmentation {name}", reason=reason)
        for setting, (value, reason) in row.items()
    }


def choose_batch_size(images: int, epochs: int) -> Choice:
    """The specification's batch, halved until the run has enough steps; a handful of images gets a small batch."""
    batch = USUAL_BATCH
    while batch > MIN_BATCH and images * epochs / batch < MIN_STEPS:
        batch //= 2
    if batch == USUAL_BATCH:
        return Choice(value=batch, source="specification 3.1 to 3.4", reason="the batch its learning rates are for")
    return Choice(
        value=batch,
        source="rule",
        reason=f"small, so that {epochs} epoch{' has' if epochs == 1 else 's have'} steps enough",
    )


def scale_lr(row: Choice, batch: int, base_batch: int, power: float) -> Choice:
    """Scale the row's rate by a power of the batch. A rate for random weights is for any batch."""
    if batch == base_batch or row.source == "rule":
        return row
    scaled = float(f"{row.value * (batch / base_batch) ** power:.4g}")
    preprocessing = "linearly" if power == 1 else "with its square root"
    why = f"{row.value:g} at batch {base_batch}, scaled {preprocessing} to {batch}"
    return Choice(value=scaled, source=row.source, reason=_join(why, row.reason))


def pick_rows(
    recipe: str, model: Architecture, tag: Tag | None, images: int, weights: str
) -> tuple[dict[str, Choice], int, float]:
    """What a recipe's tables say, the batch that its learning rate is for, and the power of the batch it goes with."""
    specified = load_tables().model_row(model.parsed).base_batch
    if recipe == "specification":
        return _from_all(load_tables()) | _from_specification(model, images, weights), specified, 1.0
    if recipe == "published":
        rows, base_batch, power = _from_published(model, tag), published_row(model, tag).base_batch, 1.0
    else:
        rows = _from_measured(model, tag, images)
        base_batch, power = load_measured().base_batch if rows["lr"].source == "measured" else specified, 0.5
    if weights == "none":
        off = Choice(value=0, source="rule", reason="random weights have nothing to keep")
        lr = _choose_random_start_lr(model, images)
        rows |= {"freeze_epochs": off, "layer_decay": replace(off, value=1.0), "lr": lr}
        base_batch = specified
    return rows, base_batch, power


def choose_min_lr(recipe: str, lr: float) -> Choice | None:
    """Return the rate that the recipe's cosine ends at, or None where it has none of its own."""
    if recipe != "specification":
        return None
    fraction, source, reason = load_tables().common["min_lr"]
    return Choice(value=float(f"{fraction * lr:.4g}"), source=source, reason=reason)


def explain_lr(model: Architecture, lr: float, batch: int, usual: float) -> str | None:
    """Say that a learning rate is outside the specification's range for the model, or return None where it is not.

    Args:
        model: the architecture.
        lr: the peak.
        batch: images per step; the range is taken at the row's batch and scaled to this one, whichever is wider.
        usual: the recipe's own choice, which is never outside.
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
        f"Without --lr it would be {usual:g}; --lr auto measures one"
    )


def _choose_random_start_lr(model: Architecture, images: int) -> Choice:
    if model.params <= RANDOM_START_PARAMS:
        return Choice(value=RANDOM_START_LR, source="rule", reason="random weights need more than the tables' rates")
    return _from_specification(model, images, "none")["lr"]


def _from_measured(model: Architecture, tag: Tag | None, images: int) -> dict[str, Choice]:
    """What we measured with the weights in the package; what depends on the weights is from other tables for others."""
    measured, published = load_measured(), published_row(model, tag)
    chosen = {
        name: Choice(value=value, source="measured", reason=measured.reasons.get(name, ""))
        for name, value in measured.values.items()
    }
    if tag is None or tag.hub_id is not None:
        lr = _from_specification(model, images, "auto")["lr"]
        chosen["lr"] = replace(lr, reason=_join("nothing was measured for this model", lr.reason))
        for name in ("layer_decay", "drop_path"):
            chosen[name] = Choice(value=published.ranges[name][0], source=published.source)
    return chosen


def _from_published(model: Architecture, tag: Tag | None) -> dict[str, Choice]:
    row = published_row(model, tag)
    return {name: Choice(value=low, source=row.source) for name, (low, _) in row.ranges.items()}


def _from_all(tables: Tables) -> dict[str, Choice]:
    """What the specification has for every training, but for the fraction that the cosine ends at."""
    return {
        name: Choice(value=value, source=source, reason=reason)
        for name, (value, source, reason) in tables.common.items()
        if name != "min_lr"
    }


def _from_specification(model: Architecture, images: int, weights: str) -> dict[str, Choice]:
    """The model's row gives the low end of its range; the data set's row, where it has the setting, bounds it."""
    tables = load_tables()
    row = tables.model_row(model.parsed)
    regime = tables.regime_for(images)
    notes = tables.scratch_notes if weights == "none" else tables.notes
    chosen = {
        name: _bounded(name, row, regime, is_larger=_is_larger(model, regime), note=notes.get(name, ""))
        for name in dict.fromkeys((*row.ranges, *regime.ranges))  # in the tables' order
    }
    for modifier in model.parsed.modifiers:
        factor, lr = tables.modifiers[modifier], chosen["lr"]
        if factor != 1:
            why = f"{lr.value:g} times {factor:g} for _{modifier}, which no published source supports"
            value = float(f"{lr.value * factor:.4g}")
            chosen["lr"] = Choice(value=value, source="specification 4", reason=_join(why, lr.reason))
    return chosen


def _is_larger(model: Architecture, regime: Regime) -> bool:
    """Whether a model is larger than all that the document names for data of that size."""
    size = model.parsed.size
    return size in SIZES and SIZES.index(size) > SIZES.index(regime.largest_model)


def _bounded(name: str, row: Row, regime: Regime, *, is_larger: bool, note: str) -> Choice:
    if name not in row.ranges:
        return Choice(value=regime.ranges[name][0], source=regime.source, reason=note)
    wanted = row.ranges[name][0]
    low, high = regime.ranges.get(name, (-math.inf, math.inf))
    value = min(max(wanted, low), high)
    if value == wanted:
        return Choice(value=value, source=row.source, reason=note)
    if is_larger and name in BOUNDED_BY_SIZE:
        why = f"the row for {regime.name} data sets is for models up to {regime.largest_model}"
        return Choice(value=wanted, source=row.source, reason=_join(why, note))
    why = f"{row.source} has {wanted:g}, outside the range for {regime.name} data sets"
    return Choice(value=value, source=regime.source, reason=_join(why, note))


def _enough_at_once(batch: int, machine: Machine) -> int:
    """The smallest pass that keeps the machine busy, a halving of `batch`."""
    enough, least = batch, MIN_GPU_MICRO_BATCH if machine.is_gpu else 1
    while enough // 2 >= least:
        enough //= 2
    return enough


def choose_grad_checkpointing(model: Architecture, chosen: Mapping[str, Choice], machine: Machine | None) -> Choice:
    """On where the memory would otherwise leave next to nothing at a time."""
    batch, size = chosen["batch_size"].value, chosen["image_size"].value
    if machine is not None:
        fitting = largest_micro_batch(model, size, machine.memory, batch)
        twice = largest_micro_batch(model, size, machine.memory, batch, grad_checkpointing=True)
        if fitting < min(twice, _enough_at_once(batch, machine)):
            why = f"without it {fitting or 'no'} image{'' if fitting == 1 else 's'} would fit at a time; a third slower"
            return Choice(value=True, source="rule", reason=why)
    return Choice(value=False, source="default", reason="")


def choose_micro_batch_size(model: Architecture, chosen: Mapping[str, Choice], machine: Machine | None) -> Choice:
    """As many images at a time as fit, and on a processor no more than are useful."""
    batch = chosen["batch_size"].value
    if machine is None:
        return Choice(value=batch, source="rule", reason="the whole batch at once")
    size, twice = chosen["image_size"].value, chosen["grad_checkpointing"].value
    fitting = max(1, largest_micro_batch(model, size, machine.memory, batch, grad_checkpointing=twice))
    if chosen["grad_checkpointing"].source == "rule":  # no more than it was switched on for
        fitting = min(fitting, _enough_at_once(batch, machine))
    if not machine.is_gpu and fitting > MAX_CPU_MICRO_BATCH:
        return Choice(value=MAX_CPU_MICRO_BATCH, source="rule", reason="a larger pass is not faster on a CPU")
    why = "the whole batch fits" if fitting == batch else "the largest that fits"
    return Choice(value=fitting, source="rule", reason=f"{why} the estimate for {machine.memory / GIB:.1f} GiB")


def shorten_warmup(warmup: Choice, epochs: int) -> Choice:
    """Keeps the warm-up under a tenth of a run that is shorter than its table row thought."""
    longest = epochs / 10
    if warmup.value <= longest or warmup.source in ("flag", "plan"):
        return warmup
    origin = "the plan" if warmup.source == "rule" else warmup.source
    why = f"a tenth of {epochs} epoch{'s' if epochs != 1 else ''}; {origin} has {warmup.value:g}"
    return Choice(value=longest, source="rule", reason=why)


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)


def check_head(model: Architecture | None, given: Mapping[str, Choice]) -> None:
    """Checks that a model can have the classifier that is asked for.

    A width that a plan holds is none that was asked for: plans hold every setting.

    Args:
        model: the model; None where it is not chosen yet.
        given: the settings that are decided.

    Raises:
        UsageError: the model has no place for a hidden layer, or a width is given without one.
    """
    hidden = "head" in given and given["head"].value == "mlp"
    if hidden and model is not None and not model.takes_hidden_layer:
        raise UsageError(
            f"{model.name} cannot have --head mlp: its norm stands before the pooling, where timm adds no hidden layer",
            "Leave --head out, or choose another model",
        )
    width = given.get("head_hidden_size")
    if width is not None and width.source == "flag" and not hidden:
        raise UsageError("head_hidden_size has no effect with the linear head", "Add --head mlp, or leave it out")
