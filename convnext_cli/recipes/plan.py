"""A plan: a model and every setting with the reason for its value. A file that a person can read and edit."""

import json
import math
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from convnext_cli.errors import UsageError, suggest
from convnext_cli.models.catalog import Architecture, Tag
from convnext_cli.recipes.costs import GIB, largest_micro_batch
from convnext_cli.recipes.machine import Machine
from convnext_cli.recipes.recipe import Recipe, check_settings, default_settings, describe_settings
from convnext_cli.recipes.tables import USUAL_AUGMENTATION, Regime, Row, load_augmentations, load_tables, published_row

USUAL_BATCH = 128
MIN_BATCH = 16
MAX_CPU_MICRO_BATCH = 32  # a larger pass on a CPU only takes more memory
MIN_GPU_MICRO_BATCH = 8  # a GPU idles below; a CPU is nearly as fast with single images
MIN_STEPS = 500  # of a whole run: BiT-HyperRule's length for under 20,000 images (arXiv:1912.11370, section 3.3)

RANDOM_START_LR = 1e-3  # the tables' rates, 2e-4 to 4e-4 at batch 128, leave a short run from random weights unlearned


@dataclass(frozen=True, kw_only=True, slots=True)
class Choice:
    """A setting's value, where it comes from, and why."""

    value: Any
    source: str
    """`flag`, `plan`, `rule`, `default`, or the table row's section."""
    reason: str = ""


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """What `finetune` will do."""

    model: str
    weights: str
    """`auto`, `none`, or a path."""
    settings: dict[str, Choice]

    @property
    def recipe(self) -> Recipe:
        """The bare values."""
        return Recipe(**{name: choice.value for name, choice in self.settings.items()})

    def shorten(self, epochs: Choice) -> "Plan":
        """The same plan for fewer epochs, of which the warm-up stays at most a tenth."""
        warmup = _shorten_warmup(self.settings["warmup_epochs"], epochs.value)
        return replace(self, settings={**self.settings, "epochs": epochs, "warmup_epochs": warmup})

    def to_toml(self) -> str:
        """The plan as TOML, each setting's help, source and reason as a comment. `read_plan` takes it back."""
        lines = [
            "# A plan of convnext. `convnext finetune DATA --config THIS_FILE` repeats it; flags win over it.",
            f"model = {json.dumps(self.model)}",
            f"weights = {json.dumps(self.weights, ensure_ascii=False)}",
            "",
            "[settings]",
        ]
        for name, (_, setting) in describe_settings().items():
            choice = self.settings[name]
            because = f" ({choice.reason})" if choice.reason else ""
            lines += [
                f"# {setting.help} From {choice.source}{because}.",
                f"{name} = {json.dumps(choice.value)}",
            ]
        return "\n".join(lines) + "\n"


def read_plan(path: Path) -> tuple[str | None, str | None, dict[str, Any]]:
    """Reads a plan file: the model and the weights where it names them, and its settings.

    Raises:
        UsageError: it cannot be read, or holds keys or values that are none of ours; all are named.
    """
    try:
        raw = tomllib.loads(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError, tomllib.TOMLDecodeError) as error:
        raise UsageError(f"cannot read the plan {path}: {error}", "Give a TOML file as `finetune` writes it") from error
    keys = ("model", "weights", "settings")
    unknown = [f"{key!r} is no key of a plan. {suggest(key, keys)}".rstrip() for key in raw if key not in keys]
    if unknown:
        raise UsageError("; ".join(unknown), f"A plan has {', '.join(keys)}")
    kinds = {"model": str, "weights": str, "settings": dict}
    wrong = [
        f"{key} must be a {'table' if kinds[key] is dict else 'text'}"
        for key in raw
        if not isinstance(raw[key], kinds[key])
    ]
    if wrong:
        raise UsageError("; ".join(wrong), "A plan is what `recommend -o` writes")
    check_settings(raw.get("settings", {}))
    return raw.get("model"), raw.get("weights"), raw.get("settings", {})


def read_reasons(path: Path) -> dict[str, str]:
    """Where each setting of a plan file comes from and why, as its comment says; nothing where somebody removed it."""
    found = {}
    comment = ""
    for line in path.read_text(encoding="utf-8").splitlines():
        name = line.partition(" =")[0]
        if line.startswith("# "):
            comment = line
        elif (known := describe_settings().get(name)) and comment.startswith(start := f"# {known[1].help} From "):
            found[name] = comment.removeprefix(start).removesuffix(".")
    return found


def make_plan(
    model: Architecture,
    tag: Tag | None,
    *,
    weights: str = "auto",
    images: int,
    machine: Machine | None = None,
    recipe: str = "specification",
    augment: str | None = None,
    given: Mapping[str, Choice],
) -> Plan:
    """Picks every setting: what is given, else what the tables and the rules say, else the default.

    Args:
        model: the architecture.
        tag: its weights; None for a random start.
        weights: `auto`, `none`, or a path.
        images: how many images there are to train on.
        machine: what trains; None where it is not known.
        recipe: `specification` or `published`.
        augment: a preset of augmentation; wins over a plan file's settings. None for the usual one, which does not.
        given: settings that are already decided, by name.

    Raises:
        UsageError: a given setting has a value that it cannot have; all are named.
    """
    check_settings({name: choice.value for name, choice in given.items()})
    preset = _from_preset(augment or USUAL_AUGMENTATION)
    if augment is not None:
        given = {name: choice for name, choice in given.items() if name not in preset or choice.source != "plan"}
    chosen = {name: Choice(value=value, source="default") for name, value in default_settings().items()}
    chosen["image_size"] = _image_size(tag)
    chosen |= preset
    chosen["layer_decay"] = Choice(value=1.0, source="default", reason="the specification has none")
    rows = _from_published(model, tag) if recipe == "published" else _from_specification(model, images)
    chosen |= rows
    chosen |= given
    base_batch = published_row(model, tag).base_batch if recipe == "published" else _specification_batch(model)
    chosen.setdefault("batch_size", _batch_size(images, chosen["epochs"].value))
    if "lr" not in given:
        chosen["lr"] = _scale_lr(rows["lr"], chosen["batch_size"].value, base_batch, weights)
    if "grad_checkpointing" not in given:
        chosen["grad_checkpointing"] = _grad_checkpointing(model, chosen, machine)
    chosen.setdefault("micro_batch_size", _micro_batch_size(model, chosen, machine))
    chosen["warmup_epochs"] = _shorten_warmup(chosen["warmup_epochs"], chosen["epochs"].value)
    # Random weights have no tag, but another than the default one still says how images are prepared.
    unnamed = tag is None or (weights == "none" and tag == model.default_tag)
    name = model.name if unnamed or tag is None else f"{model.name}.{tag.name}"
    return Plan(model=name, weights=weights, settings={key: chosen[key] for key in describe_settings()})


def _image_size(tag: Tag | None) -> Choice:
    if tag is None:
        return Choice(value=224, source="default", reason="ConvNeXt's usual input")
    return Choice(value=tag.image_size, source="rule", reason=f"the input size of {tag.name}")


def _from_preset(name: str) -> dict[str, Choice]:
    row = load_augmentations()[name]
    return {
        setting: Choice(value=value, source=f"augmentation {name}", reason=reason)
        for setting, (value, reason) in row.items()
    }


def _batch_size(images: int, epochs: int) -> Choice:
    """The specification's batch, halved until the run has enough steps; a handful of images gets a small batch."""
    batch = USUAL_BATCH
    while batch > MIN_BATCH and images * epochs / batch < MIN_STEPS:
        batch //= 2
    if batch == USUAL_BATCH:
        return Choice(value=batch, source="specification 3.1 to 3.4", reason="the batch its learning rates are for")
    return Choice(value=batch, source="rule", reason=f"small, so that {epochs} epochs have steps enough")


def _scale_lr(row: Choice, batch: int, base_batch: int, weights: str) -> Choice:
    """The row's rate, scaled linearly with the batch; from random weights a rate that they learn with."""
    if weights == "none":
        return Choice(value=RANDOM_START_LR, source="rule", reason="random weights need more than the tables' rates")
    if batch == base_batch:
        return row
    scaled = float(f"{row.value * batch / base_batch:.4g}")
    why = f"{row.value:g} at batch {base_batch}, scaled linearly to {batch}"
    return Choice(value=scaled, source=row.source, reason=_join(why, row.reason))


def _specification_batch(model: Architecture) -> int:
    return load_tables().model_row(model.parsed).base_batch


def _from_published(model: Architecture, tag: Tag | None) -> dict[str, Choice]:
    row = published_row(model, tag)
    return {name: Choice(value=low, source=row.source) for name, (low, _) in row.ranges.items()}


def _from_specification(model: Architecture, images: int) -> dict[str, Choice]:
    """The model's row gives the low end of its range; the data set's row, where it has the setting, bounds it."""
    tables = load_tables()
    row = tables.model_row(model.parsed)
    regime = tables.regime_for(images)
    chosen = {
        name: _bounded(name, row, regime, tables.notes)
        for name in dict.fromkeys((*row.ranges, *regime.ranges))  # in the tables' order
    }
    for modifier in model.parsed.modifiers:
        factor, lr = tables.modifiers[modifier], chosen["lr"]
        if factor != 1:
            why = f"{lr.value:g} times {factor:g} for _{modifier}, which no published source supports"
            value = float(f"{lr.value * factor:.4g}")
            chosen["lr"] = Choice(value=value, source="specification 4", reason=_join(why, lr.reason))
    return chosen


def _bounded(name: str, row: Row, regime: Regime, notes: Mapping[str, str]) -> Choice:
    note = notes.get(name, "")
    if name not in row.ranges:
        return Choice(value=regime.ranges[name][0], source=regime.source, reason=note)
    wanted = row.ranges[name][0]
    low, high = regime.ranges.get(name, (-math.inf, math.inf))
    value = min(max(wanted, low), high)
    if value == wanted:
        return Choice(value=value, source=row.source, reason=note)
    why = f"{row.source} has {wanted:g}, outside the range for {regime.name} data sets"
    return Choice(value=value, source=regime.source, reason=_join(why, note))


def _enough_at_once(batch: int, machine: Machine) -> int:
    """The smallest pass that keeps the machine busy, a halving of `batch`."""
    enough, least = batch, MIN_GPU_MICRO_BATCH if machine.is_gpu else 1
    while enough // 2 >= least:
        enough //= 2
    return enough


def _grad_checkpointing(model: Architecture, chosen: Mapping[str, Choice], machine: Machine | None) -> Choice:
    """On where the memory would otherwise leave next to nothing at a time."""
    batch, size = chosen["batch_size"].value, chosen["image_size"].value
    if machine is not None:
        fitting = largest_micro_batch(model, size, machine.memory, batch)
        twice = largest_micro_batch(model, size, machine.memory, batch, grad_checkpointing=True)
        if fitting < min(twice, _enough_at_once(batch, machine)):
            why = f"without it {fitting or 'no'} image{'' if fitting == 1 else 's'} would fit at a time; a third slower"
            return Choice(value=True, source="rule", reason=why)
    return Choice(value=False, source="default", reason="")


def _micro_batch_size(model: Architecture, chosen: Mapping[str, Choice], machine: Machine | None) -> Choice:
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


def _shorten_warmup(warmup: Choice, epochs: int) -> Choice:
    """Keeps the warm-up under a tenth of a run that is shorter than its table row thought."""
    longest = epochs / 10
    if warmup.value <= longest or warmup.source in ("flag", "plan"):
        return warmup
    why = f"a tenth of {epochs} epochs; {warmup.source} has {warmup.value:g}"
    return Choice(value=longest, source="rule", reason=why)


def _join(*parts: str) -> str:
    return "; ".join(part for part in parts if part)
