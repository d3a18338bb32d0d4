"""A plan: the model and every setting with the reason for its value, kept in a TOML file that people can edit."""

import tomllib
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import tomli_w

from convnext_cli.encoding import decode_text
from convnext_cli.errors import DataError, UsageError, suggest
from convnext_cli.machine import Machine
from convnext_cli.models.catalog import Architecture, Tag
from convnext_cli.options import AUTO, is_unicode
from convnext_cli.recipes.fingerprint import DataCounts, Fingerprint
from convnext_cli.recipes.framing import choose_framing
from convnext_cli.recipes.rules import (
    RecipeRows,
    choose_batch_size,
    choose_grad_checkpointing,
    choose_image_size,
    choose_micro_batch_size,
    choose_min_lr,
    pick_rows,
    read_preset,
    scale_lr,
    shorten_warmup,
)
from convnext_cli.recipes.settings import (
    BEFORE_FIT,
    DEFAULT_FIT,
    DEFAULT_RECIPE,
    WEIGHTS,
    Choice,
    Settings,
    check_settings,
    declare_settings,
    default_settings,
)
from convnext_cli.recipes.tables import USUAL_AUGMENTATION
from convnext_cli.text import NESTED_TOO_DEEPLY


@dataclass(frozen=True, kw_only=True, slots=True)
class Plan:
    """The model, the weights and the choice of every setting of a training."""

    model: str
    weights: str
    """`auto`, `none`, or a path."""
    choices: dict[str, Choice] = field(repr=False)
    teacher: str | None = None
    """A path or a name of timm's model that is distilled; None without one."""

    @property
    def values(self) -> dict[str, Any]:
        """The value of each setting, by name."""
        return {name: choice.value for name, choice in self.choices.items()}

    @property
    def settings(self) -> Settings:
        """The values as `Settings`."""
        return Settings(**self.values)

    @property
    def non_default(self) -> dict[str, Choice]:
        """The choices that differ from the defaults or have a reason, by name."""

        def is_shown(choice: Choice) -> bool:
            is_off = choice.preset and not choice.value
            return bool(choice.reason) or not (choice.source == "default" or is_off)

        return {name: choice for name, choice in self.choices.items() if is_shown(choice)}

    def with_choices(self, **choices: Choice) -> "Plan":
        """Return the plan with other choices of some settings."""
        return replace(self, choices=self.choices | choices)

    def with_epochs(self, epochs: Choice) -> "Plan":
        """Return the plan with another number of epochs; the warm-up is at most a tenth of them."""
        warmup = self.choices["warmup_epochs"]
        if warmup.value > epochs.value:  # the user's too: the learning rate would never reach its peak
            warmup = replace(warmup, source="rule")
        return self.with_choices(epochs=epochs, warmup_epochs=shorten_warmup(warmup, epochs.value))

    def to_toml(self) -> str:
        """Return the plan as TOML: values with their help, then their sources and reasons. `read_plan` reads it.

        Raises:
            UsageError: a value is not Unicode text (a file name in another encoding).
        """
        lines = [
            "# A plan of convnext. `convnext finetune DATA --config THIS_FILE` repeats it; flags override it.",
            _to_toml("model", self.model),
            _to_toml("weights", self.weights),
            *([_to_toml("teacher", self.teacher)] if self.teacher is not None else []),
            "",
            "[settings]",
        ]
        for name, declared in declare_settings().items():
            lines += [f"# {declared.option.help.removesuffix('.')}.", _to_toml(name, self.choices[name].value)]
        lines += ["", "[reasons]  # of the values above; a value that is edited loses its reason"]
        for name in declare_settings():
            choice = self.choices[name]
            fields = {"value": choice.value, "source": choice.source, "reason": choice.reason}
            lines.append(f"{name} = {{ {', '.join(_to_toml(*field) for field in fields.items())} }}")
        return "\n".join(lines) + "\n"


def _to_toml(name: str, value: Any) -> str:
    """Return the line `name = value`."""
    if isinstance(value, str) and not is_unicode(value):
        raise UsageError(f"{name} = {value!r} is not Unicode text and cannot be written to a plan", "Rename the file")
    return tomli_w.dumps({name: value}).rstrip("\n")


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanFile:
    """The contents of a plan file; None where it does not name a model, weights or a teacher."""

    model: str | None = None
    weights: str | None = None
    teacher: str | None = None
    settings: dict[str, Any] = field(default_factory=dict)
    records: dict[str, Any] = field(default_factory=dict)
    """The table `reasons`: value, source and reason of each setting, as the file was made."""

    @property
    def choices(self) -> dict[str, Choice]:
        """The settings with their sources and reasons; the source is `plan` for values without a record or edited."""
        choices = self._restore()
        if self.settings.keys() >= {"image_size", "min_crop_area"}:  # a whole plan, perhaps older than `fit`
            for name, value in BEFORE_FIT.items():
                reason = "the plan is older than this setting"
                choices.setdefault(name, Choice(value=value, source="plan", reason=reason))
        return choices

    @property
    def rows(self) -> list[tuple[str, str, str]]:
        """Name, value, and source with reason of each setting, as text."""
        return [
            (name, str(choice.value), f"{choice.source} ({choice.reason})" if choice.reason else choice.source)
            for name, choice in self._restore().items()
        ]

    def _restore(self) -> dict[str, Choice]:
        return {name: _make_choice(value, self.records.get(name)) for name, value in self.settings.items()}


def read_plan(path: Path) -> PlanFile:
    """Read and check a plan file.

    Raises:
        UsageError: it cannot be read, sets nothing, or holds unknown keys or values; all are named.
    """
    remedy = "Give a TOML file as `finetune` writes it"
    try:
        text, _ = decode_text(path.read_bytes(), f"the plan {path}")  # an editor may have saved it in another encoding
        plan = _check_plan(tomllib.loads(text))
    except DataError as error:
        raise UsageError(error.problem, remedy) from error
    except RecursionError as error:
        raise UsageError(f"cannot read the plan {path}: {NESTED_TOO_DEEPLY}", remedy) from error
    except (OSError, tomllib.TOMLDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        inside = next(path.glob("*.toml"), None) if path.is_dir() else None  # a run's plan
        raise UsageError(f"cannot read the plan {path}: {reason}", f"Give {inside}" if inside else remedy) from error
    if plan == PlanFile(records=plan.records):
        raise UsageError(f"the plan {path} is empty: it has no model, weights, teacher or setting", remedy)
    return plan


def _check_plan(raw: dict[str, Any]) -> PlanFile:
    """Return the contents of a plan file after a check of its keys and values."""
    kinds = {"model": str, "weights": str, "teacher": str, "settings": dict, "reasons": dict}
    unknown = [f"{key!r} is not a key of a plan. {suggest(key, kinds)}".rstrip() for key in raw if key not in kinds]
    if unknown:
        raise UsageError("; ".join(unknown), f"A plan has {', '.join(kinds)}")
    wrong = [
        f"{key} must be a {'table' if kinds[key] is dict else 'text'}"
        for key in raw
        if not isinstance(raw[key], kinds[key])
    ] + [f"{key} is empty" for key in raw if raw[key] == ""]
    if not wrong:
        settings = raw.get("settings", {})
        wrong = [
            f"reasons.{name} must have value, source and reason"
            for name, row in raw.get("reasons", {}).items()
            if not _is_reason(row) and row != settings.get(name)  # edited by replace-all: no reason is left
        ]
    if wrong:
        raise UsageError("; ".join(wrong), "A plan is what `recommend -o` writes")
    check_settings(raw.get("settings", {}))
    return PlanFile(
        model=raw.get("model"),
        weights=raw.get("weights"),
        teacher=raw.get("teacher"),
        settings=raw.get("settings", {}),
        records=raw.get("reasons", {}),
    )


def read_optional_plan(path: Path) -> PlanFile:
    """Read the plan file of a run as `read_plan` does; an empty one if it is missing, as only training needs it."""
    return read_plan(path) if path.exists() else PlanFile()


def override_choices(
    planned: Mapping[str, Choice], flags: Mapping[str, Choice], *, same_model: bool
) -> dict[str, Choice]:
    """Return a plan file's choices overridden by flags of another command; reasons that they contradict are replaced.

    `same_model` is False if the command line names another model than the plan.
    """
    planned = {name: _hand_on(choice) for name, choice in planned.items()}
    changed = {name for name, choice in flags.items() if name in planned and planned[name].value != choice.value}
    changed |= set() if same_model else {"model"}

    def explain(name: str, choice: Choice) -> Choice:
        causes = [cause for cause in _DEPENDENCIES.get(name, ()) if cause in changed]
        if not causes or choice.source in ("plan", "default"):
            return choice
        others = ", ".join(
            f"{cause} {planned[cause].value}" if cause in planned else f"another {cause}" for cause in causes
        )
        return Choice(value=choice.value, source="plan", reason=f"chosen for {others}")

    return {name: explain(name, choice) for name, choice in planned.items()} | dict(flags)


# Settings whose reasons depend on other settings or on the model.
_DEPENDENCIES = {
    "lr": ("model", "batch_size"),
    "min_lr": ("lr",),
    "layer_decay": ("model",),
    "drop_path": ("model",),
    "batch_size": ("epochs",),
    "micro_batch_size": ("model", "batch_size", "image_size", "grad_checkpointing"),
    "grad_checkpointing": ("model", "batch_size", "image_size"),
    "image_size": ("model", "fit"),
    "crop_pct": ("model", "fit"),
}


def _is_reason(row: Any) -> bool:
    return (
        isinstance(row, dict)
        and row.keys() == {"value", "source", "reason"}
        and all(isinstance(row[key], str) for key in ("source", "reason"))
    )


def _make_choice(value: Any, recorded: Any) -> Choice:
    if not isinstance(recorded, dict):
        return Choice(value=value, source="plan")
    source, reason = recorded["source"], recorded["reason"]
    if value != recorded["value"]:
        return Choice(value=value, source="plan", reason=f"edited; it was {recorded['value']} (from {source})")
    return Choice(value=value, source=source, reason=reason)


def _hand_on(choice: Choice) -> Choice:
    """Return a plan's choice as another command sees it: what was a flag there comes from the plan here."""
    if choice.source not in ("flag", AUTO):
        return choice
    reason = choice.reason or f"a {choice.source} of the command that made the plan"
    return replace(choice, source="plan", reason=reason)


@dataclass(frozen=True, kw_only=True, slots=True)
class PlanInputs:
    """The model, data, machine and chosen settings that a plan is made from."""

    model: Architecture
    tag: Tag | None
    """The pretrained weights; None for random initialisation."""
    weights: str = "auto"
    """`auto`, `none`, or a path."""
    teacher: str | None = None
    """The model that is distilled, or None."""
    counts: DataCounts
    """All images decide on the specification's rows, training images on the number of steps."""
    fingerprint: Fingerprint | None = None
    machine: Machine | None = None
    """None if unknown: memory is then no limit."""
    recipe: str = DEFAULT_RECIPE
    augment: str | None = None
    """Augmentation preset, which overrides the recipe; None for the recipe's own augmentation."""
    is_augment_guessed: bool = False
    """True if `augment` was guessed from the images; a plan file's settings then override it."""
    choices: Mapping[str, Choice] = field(default_factory=dict)
    """The settings that the user or a plan file chose, by name."""

    @property
    def user_choices(self) -> dict[str, Choice]:
        """The chosen settings that count: an explicit preset overrides a plan file's augmentation."""
        preset = read_preset(self.augment) if self.augment is not None and not self.is_augment_guessed else {}
        return {name: choice for name, choice in self.choices.items() if name not in preset or choice.source == "flag"}


def make_plan(inputs: PlanInputs) -> Plan:
    """Choose every setting: the user's choice, else that of tables and rules, else the default.

    Raises:
        UsageError: chosen settings have impossible values, all of which are named; or nothing would be trained.
    """
    check_settings({name: choice.value for name, choice in inputs.choices.items()})
    user_choices = inputs.user_choices
    rows = pick_rows(inputs.recipe, inputs.model, inputs.tag, inputs.counts.images, inputs.weights)
    choices = _choose_defaults(inputs) | rows.choices
    if inputs.augment is not None:
        choices |= read_preset(inputs.augment)
    choices |= user_choices
    if not choices["epochs"].value and not choices["freeze_epochs"].value:
        raise UsageError("0 epochs train nothing", "Give --epochs, or --freeze-epochs too to train the head only")
    choices |= choose_framing(
        inputs.tag,
        inputs.fingerprint.shapes if inputs.fingerprint else (),
        choices,
        is_size_chosen="image_size" in user_choices,
    )
    choices.setdefault("batch_size", choose_batch_size(inputs.counts.train, choices["epochs"].value))
    choices |= _choose_learning_rates(choices, user_choices, rows, inputs.recipe)
    if "grad_checkpointing" not in user_choices:
        choices["grad_checkpointing"] = choose_grad_checkpointing(inputs.model, choices, inputs.machine)
    choices.setdefault("micro_batch_size", choose_micro_batch_size(inputs.model, choices, inputs.machine))
    choices["warmup_epochs"] = shorten_warmup(choices["warmup_epochs"], choices["epochs"].value)
    return Plan(
        model=_name_model(inputs),
        weights=inputs.weights,
        teacher=inputs.teacher,
        choices={name: choices[name] for name in declare_settings()},
    )


def _choose_defaults(inputs: PlanInputs) -> dict[str, Choice]:
    """Return the defaults that the recipe's rows override."""
    default_fit = DEFAULT_FIT if inputs.recipe == DEFAULT_RECIPE else WEIGHTS
    fit = inputs.choices.get("fit", Choice(value=default_fit, source="default"))
    side = 0
    if inputs.fingerprint:  # squashed and padded images fill the input with their whole area
        is_cropped = fit.value in ("crop", WEIGHTS)
        side = inputs.fingerprint.median_side if is_cropped else inputs.fingerprint.mean_side
    return {
        **{name: Choice(value=value, source="default") for name, value in default_settings().items()},
        "image_size": choose_image_size(inputs.tag, side),
        "fit": fit,
        "crop_pct": Choice(value=AUTO, source="default"),
        **read_preset(inputs.augment or USUAL_AUGMENTATION),
        "freeze_epochs": Choice(value=0, source="default"),
        "layer_decay": Choice(value=1.0, source="default", reason="the specification has none"),
    }


def _choose_learning_rates(
    choices: Mapping[str, Choice], user_choices: Mapping[str, Choice], rows: RecipeRows, recipe: str
) -> dict[str, Choice]:
    """Return the choices of the peak and the last learning rate, which depend on the batch size."""
    lr, min_lr = choices["lr"], choices["min_lr"]
    is_measured = "lr" in user_choices and lr.value == AUTO
    if "lr" not in user_choices or is_measured:
        lr = scale_lr(rows.choices["lr"], choices["batch_size"].value, rows)
    if "min_lr" not in user_choices:
        min_lr = choose_min_lr(recipe, lr.value) or min_lr
    if min_lr.value > lr.value:
        if "min_lr" in user_choices:
            raise UsageError(f"min_lr {min_lr.value:g} is above lr {lr.value:g}", "Give --min-lr of at most --lr")
        reason = "a hundredth of lr, which is below the default"
        min_lr = Choice(value=float(f"{lr.value / 100:.4g}"), source="rule", reason=reason)
    if is_measured:
        reason = f"a range test before training replaces {lr.value:g}"
        lr = Choice(value=lr.value, source=AUTO, reason=reason)
    return {"lr": lr, "min_lr": min_lr}


def _name_model(inputs: PlanInputs) -> str:
    """Return the model's name with its tag.

    With random initialisation, a tag other than the default is kept for its preprocessing.
    """
    model, tag = inputs.model, inputs.tag
    if tag is None or (inputs.weights == "none" and tag == model.default_tag):
        return model.name
    return f"{model.name}.{tag.name}"
