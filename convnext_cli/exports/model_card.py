"""The model card: what a stranger needs to know before using a model, made of what the run knows."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from convnext_cli.data.index import Index
from convnext_cli.inference.calibration import read_calibration
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.metrics.intervals import Interval
from convnext_cli.models.catalog import BUILTIN
from convnext_cli.models.licenses import NON_COMMERCIAL_LICENSES
from convnext_cli.models.weights import read_weights_license
from convnext_cli.recipes.plan import read_plan, read_reasons
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.records import Preprocessing
from convnext_cli.text import make_visible

HUB_LICENSES = frozenset({"apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-4.0"})  # those that the Hub has a key for
DATA_LICENSE = "Whether the licence of the training images allows this use is for their owner to say."
LIMITS = (
    "The figures hold for images like those they were measured on. Nothing is known of other sources, devices or "
    "populations. Not a medical device."
)
FIGURES = {
    "balanced_accuracy": "balanced accuracy", "top1": "accuracy", "macro_f1": "macro F1",
    "macro_roc_auc": "macro ROC AUC", "ece": "calibration error",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class License:
    """What the base weights allow, as far as it is known."""

    name: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.name or 'unknown'} ({self.reason})"

    @property
    def is_unknown(self) -> bool:
        """Whether somebody has to find out."""
        return self.name is None


def find_license(run: RunFolder) -> License:
    """The licence that follows from the weights that a run began with."""
    model, weights, _ = read_plan(run.plan) if run.plan.exists() else (None, None, {})
    if name := read_weights_license(run.path):
        return License(name, f"that of the base weights {model}" if weights == "auto" else "that of the base weights")
    if weights == "none":
        return License(None, "trained from random weights, so that none follows from them; its owner decides")
    return License(None, "the licence of the base weights is not known")


def write_card(run: RunFolder, found: Evaluation | None, license: License) -> str:
    """The card as Markdown with the Hub's own head. It holds no path and no image of the data."""
    config = run.read_config()
    model, weights, settings = read_plan(run.plan) if run.plan.exists() else (None, None, {})
    index = run.read_split()
    name = str(model or config.architecture)
    parts = (
        _head(license, name if weights == "auto" and not name.endswith(f".{BUILTIN}") else None),
        f"# {escape_markdown(name)}, fine-tuned to tell {len(index.classes)} classes apart",
        f"**Licence: {escape_markdown(str(license))}.** {_warn(license)}{DATA_LICENSE}",
        f"## Data\n\n{_describe_data(index)}",
        f"## Figures\n\n{_describe_figures(run, found)}",
        f"## How to use it\n\n{_describe_use(run)}",
        f"## Settings\n\n{_describe_settings(run, settings)}",
        f"## Limits\n\n{LIMITS}",
    )
    return "\n\n".join(parts) + "\n"


def _head(license: License, base: str | None) -> str:
    lines = ["---", "library_name: timm", "pipeline_tag: image-classification", "tags:", "- image-classification"]
    lines += ["- timm", "- transformers"]
    if license.name in HUB_LICENSES:
        lines.append(f"license: {license.name}")
    elif license.name:
        lines += ["license: other", f"license_name: {_as_yaml(license.name)}"]
    else:
        lines.append("license: unknown")
    if base:
        lines.append(f"base_model: {_as_yaml(f'timm/{base}')}")
    return "\n".join([*lines, "---"])


def _warn(license: License) -> str:
    if license.name in NON_COMMERCIAL_LICENSES:
        return "Not for commercial use. "
    return "Find it out before you pass the model on. " if license.is_unknown else ""


def _describe_data(index: Index) -> str:
    splits = [split for split in ("train", "val", "test") if split in index.splits]
    counts = [index.count_classes(split) for split in splits]
    rows = [
        (name, *(f"{n:,}" for n in row)) for name, row in zip(index.classes, zip(*counts, strict=True), strict=True)
    ]
    groups = len(set(index.groups) - {""})
    kept = f"{groups:,} groups, such as patients" if groups else "Groups, such as patients, are not known"
    return f"{_table(('class', *splits), rows)}\n\n{len(index):,} images. {kept}."


def _describe_figures(run: RunFolder, found: Evaluation | None) -> str:
    if found is None:
        result = run.read_result()
        kept = (result.val if result else None) or {}
        known = [(title, _percent(kept[name])) for name, title in FIGURES.items() if kept.get(name) is not None]
        return (_table(("figure (%)", "validation"), known) + "\n\n" if known else "") + (
            "On the images that the best epoch was chosen by, and without intervals: the data were not at hand."
        )
    values, sure = found.metrics, found.intervals
    rows = [(title, _percent(getattr(values, name)), _between(sure.overall[name])) for name, title in FIGURES.items()]
    classes = [
        (entry.name, f"{entry.images:,}", _percent(entry.recall), _between(own["recall"]), _percent(entry.precision),
         _between(own["precision"]))
        for entry, own in zip(values.per_class, sure.per_class, strict=True)
    ]  # fmt: skip
    drawn = f"{sure.units:,} groups" if sure.clustered else "single images"
    number = f" Evaluation number {found.test_number} on this split." if found.test_number else ""
    parts = [
        _table((f"figure (%) on {found.split}, {values.images:,} images", "", "95% interval"), rows),
        _table(("class", "images", "recall %", "95% interval", "precision %", "95% interval"), classes),
        f"Intervals from {sure.resamples:,} resamples of {drawn}.{number}",
        *(f"Note: {escape_markdown(note)}." for note in found.notes),
    ]
    return "\n\n".join(parts)


def _describe_use(run: RunFolder) -> str:
    preprocessing = run.read_config().pretrained_cfg
    steps = f"Images: {_describe_steps(preprocessing)}"
    fitted = read_calibration(run)
    lines = [
        "```python",
        "import timm",
        "",
        'model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()  # or "local-dir:FOLDER"',
        "transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))",
        "```",
        "",
        f"In transformers: `AutoModelForImageClassification.from_pretrained(…)`. {steps}.",
    ]
    if fitted and not fitted.weak:
        lines.append(f"Divide the logits by the temperature {fitted.temperature:.4f} before the softmax.")
        lines += [
            f"{_as_code(str(t.target))}: from a probability of {t.threshold:.4f} on, found on {t.images:,} validation "
            "images."
            for t in fitted.thresholds
        ]
    return "\n".join(lines)


def _describe_steps(preprocessing: Preprocessing) -> str:
    channels, size, _ = preprocessing.input_size
    grey = 'luminance alone (Pillow\'s `convert("L")`), ' if channels == 1 else ""
    return (
        f"{grey}{size} x {size} px, crop_mode {preprocessing.crop_mode}, crop_pct {preprocessing.crop_pct},"
        f" interpolation {preprocessing.interpolation}, mean {list(preprocessing.mean)}, std {list(preprocessing.std)}"
    )


def _describe_settings(run: RunFolder, settings: dict[str, Any]) -> str:
    reasons = read_reasons(run.plan) if settings else {}
    rows = [(name, str(value), reasons.get(name, "")) for name, value in settings.items() if name != "exclude"]
    return _table(("setting", "value", "from"), rows)


def _table(head: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [head, ("---",) * len(head), *rows]
    return "\n".join(f"| {' | '.join(escape_markdown(cell) for cell in line)} |" for line in lines)


_MARKUP = re.compile(r"[\\`*\[\]<>|~&$!#:@]|(?<!\w)_|_(?!\w)|(?<=www)\.", re.IGNORECASE)


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows as it is: no emphasis, link, image, HTML or table border of its own."""
    return " ".join(_MARKUP.sub(r"\\\g<0>", make_visible(text)).split())


def _as_code(text: str) -> str:
    """Return text between more backquotes than it holds in a row itself."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{make_visible(text)}{space}{fence}"


def _as_yaml(word: str) -> str:
    return word if re.fullmatch(r"[A-Za-z][\w./-]*", word) else json.dumps(word)


def _percent(share: float | None) -> str:
    return "-" if share is None else f"{100 * share:.1f}"


def _between(interval: Interval | None) -> str:
    return "" if interval is None else f"{100 * interval.low:.1f} to {100 * interval.high:.1f}"
