"""The terminal's view of a plan: settings with their sources and reasons, the model's sizes, the images."""

from collections import Counter
from typing import TYPE_CHECKING

from convnext_cli.data.index import SPLITS, Index
from convnext_cli.models.catalog import BUILTIN, Architecture
from convnext_cli.options import AUTO
from convnext_cli.recipes.settings import UNCORRECTED, Settings, declare_settings
from convnext_cli.text import format_count

if TYPE_CHECKING:
    from convnext_cli.recipes.plan import Plan
    from convnext_cli.tasks.task import Task


def list_decided(plan: "Plan", task: "Task | None") -> list[tuple[str, str, str, str]]:
    """Return name, value with unit, source and reason of each setting that is not at its default, and a last line.

    Settings that have no effect on the task are left out.
    """
    ignored = task.ignored if task is not None else {}
    units = {name: declared.option.unit for name, declared in declare_settings().items()}
    rows = [
        (name, f"{choice.value} {units[name]}".strip(), choice.source, choice.reason)
        for name, choice in plan.non_default.items()
        if name not in ignored
    ]
    others = len(plan.choices) - len(plan.non_default)
    return [*rows, (f"{others} others", "", "default", "`convnext finetune --help-all` lists them")]


def describe_model(plan: "Plan") -> str:
    """Return the model's name, with the weights if they are the user's own."""
    own = "" if plan.weights in (AUTO, BUILTIN, "none") else f", weights from {plan.weights}"
    return f"{plan.model}{own}"


def describe_sizes(model: Architecture, settings: Settings, classes: int) -> str:
    """Return the shapes of input, features and output for one image."""
    height, width = settings.input_size
    features = model.feature_shape(height, width)
    return (
        f"input ({settings.in_chans}, {height}, {width}) -> features {features} -> pooled ({features[0]},) -> output "
        f"({classes},)"
    )


def list_main_settings(plan: "Plan") -> list[tuple[str, str]]:
    """Return the settings that matter most, each with its source."""
    choices, settings = plan.choices, plan.settings

    def describe(name: str) -> str:
        return f"{choices[name].value} ({choices[name].source})"

    on = [name for name, value in UNCORRECTED.items() if getattr(settings, name) != value]
    unit = declare_settings()["image_size"].option.unit
    views = format_count(settings.teacher_views, "view")
    return [
        ("epochs", describe("epochs")),
        ("batch size", describe("batch_size")),
        ("learning rate", describe("lr")),
        ("image size", f"{choices['image_size'].value} {unit} ({choices['image_size'].source})"),
        ("fit", _describe_fit(plan)),
        ("augmentation", _describe_augmentation(plan)),
        ("imbalance", ", ".join(f"{name} {getattr(settings, name)}" for name in on) or "no correction"),
        *([("teacher", f"{plan.teacher}, {views} of each image")] if plan.teacher else []),
    ]


def _describe_fit(plan: "Plan") -> str:
    """Return the fit of images to the input, its source, and what evaluation sees."""
    fit, crop_pct = plan.choices["fit"], plan.choices["crop_pct"]
    part = f" at {crop_pct.value:g}" if crop_pct.value not in (1, AUTO) else ""
    reason = f": {fit.reason}" if fit.reason else ""
    return f"{fit.value}{part} ({fit.source}){reason}"


def _describe_augmentation(plan: "Plan") -> str:
    """Return the preset or recipe of the augmentation, and the settings that override it."""
    from convnext_cli.recipes.tables import AUGMENTATION_SETTINGS

    choices = {name: plan.choices[name] for name in AUGMENTATION_SETTINGS}
    own = {name: f"{name} {choice.value}" for name, choice in choices.items() if choice.is_chosen}
    sources = Counter(choice.preset or choice.source for name, choice in choices.items() if name not in own)
    usual = [source for source, _ in sources.most_common(1)]
    return ", ".join([*usual, *own.values()])


def count_splits(index: Index) -> dict[str, int]:
    """Return the number of images by split."""
    return {name: len(index.rows(name)) for name in SPLITS}


def describe_splits(index: Index) -> str:
    """Return the number of images by split, in words."""
    return ", ".join(f"{name} {count:,}" for name, count in count_splits(index).items()) + " images"


def describe_data(index: Index) -> str:
    """Return the place of the images, the number of classes or what is predicted instead, and the splits."""
    return f"{index.location}: {index.task.describe_classes(index.classes)}; {describe_splits(index)}"
