"""The model card of a run, for the Hugging Face Hub."""

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass

from convnext_cli.data.index import Index
from convnext_cli.inference.calibration import read_calibration
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.inference.metadata import DECODING
from convnext_cli.inference.operating_points import find_missed
from convnext_cli.metrics.registry import METRICS
from convnext_cli.models.catalog import BUILTIN
from convnext_cli.models.licenses import is_non_commercial
from convnext_cli.models.weights import read_weights_license
from convnext_cli.recipes.plan import read_optional_plan
from convnext_cli.recipes.settings import UNKNOWN
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.records import PretrainedCfg
from convnext_cli.text import format_count, format_inside, make_visible

HUB_LICENSES = frozenset({"apache-2.0", "mit", "bsd-3-clause", "cc-by-nc-4.0"})  # the Hub has a key for these
PATHS = frozenset({"exclude", "image_root"})  # settings that may hold a path of the data
DATA_LICENSE = "The licence of the training images may restrict the use further; ask their owner."
LIMITATIONS = (
    "The metrics hold for images like those of the evaluation. Performance on other sources, devices or populations is "
    "unknown; test it before use. The model gives a prediction for any image, also for one of something else. It "
    "is not a medical device."
)


TRANSFORMERS = (
    "With transformers, `AutoModelForImageClassification.from_pretrained(…)` gives the same logits. Its `pipeline` "
    "applies a softmax, to several labels a sigmoid and to a number nothing, without the calibration below."
)


@dataclass(frozen=True, slots=True)
class License:
    """The licence of a run's weights, as far as it is known."""

    name: str | None
    reason: str

    def __str__(self) -> str:
        return f"{self.name or 'unknown'} ({self.reason})"

    @property
    def is_unknown(self) -> bool:
        """True if the licence is not known."""
        return self.name is None


def find_license(run: RunFolder) -> License:
    """Return the licence of a run: that of the weights that it started from, of its teacher and of its images."""
    plan = read_optional_plan(run.plan)
    base = f"the base weights {plan.model}" if plan.weights == "auto" else "the base weights"
    sources = [base] * (plan.weights != "none")
    if plan.teacher is not None:
        sources.append("the teacher")
    if plan.settings.get("data_license", UNKNOWN) != UNKNOWN:
        sources.append("the images")
    if name := read_weights_license(run.path):
        return License(name, f"that of {' and '.join(sources) or 'the base weights'}")
    if not sources:
        return License(None, "trained from random weights, which imply no licence; the owner decides")
    if sources[0].startswith("the base weights"):
        sources[0] = "the base weights"
    return License(None, f"the licence of {' or '.join(sources)} is not known")


def render_card(run: RunFolder, evaluation: Evaluation | None, license: License) -> str:
    """Return the model card as Markdown with the Hub's YAML header. It has no path and no image of the data.

    There is no evaluation where the data of the run are gone.
    """
    plan = read_optional_plan(run.plan)
    index = run.read_split()
    name = str(plan.model or run.read_config().architecture)
    is_from_hub = plan.weights == "auto" and not name.endswith(f".{BUILTIN}")
    restriction = "Find out the licence before you share the model. " if license.is_unknown else ""
    if is_non_commercial(license.name):
        restriction = "Not for commercial use. "
    settings = [row for row in plan.rows if row[0] not in PATHS]
    parts = (
        _render_header(license, base=name if is_from_hub else None),
        f"# {escape_markdown(name)}, fine-tuned for {index.task.describe_classes(index.classes)}",
        "An image model fine-tuned with `convnext`. It uses the architecture and the file format of timm.",
        f"**Licence: {escape_markdown(str(license))}.** {restriction}{DATA_LICENSE}",
        f"## How to use\n\n{_describe_use(run)}",
        f"## Training data\n\n{_describe_data(index)}",
        f"## Evaluation\n\n{_describe_evaluation(evaluation) if evaluation else _describe_validation(run)}",
        f"## Limitations\n\n{LIMITATIONS}",
        f"## Training settings\n\n{_render_table(('setting', 'value', 'source'), settings)}",
    )
    return "\n\n".join(parts) + "\n"


def _render_header(license: License, base: str | None) -> str:
    lines = ["---", "library_name: timm", "pipeline_tag: image-classification", "tags:", "- image-classification"]
    lines += ["- timm", "- transformers"]
    if license.name in HUB_LICENSES:
        lines.append(f"license: {license.name}")
    elif license.name:
        lines += ["license: other", f"license_name: {_quote_yaml(license.name)}"]
    else:
        lines.append("license: unknown")
    if base:
        lines.append(f"base_model: {_quote_yaml(f'timm/{base}')}")
    return "\n".join([*lines, "---"])


def _describe_data(index: Index) -> str:
    splits = index.list_splits()
    counts = [index.count_classes(split) for split in splits]
    rows = [
        (name, *(f"{n:,}" for n in row)) for name, row in zip(index.classes, zip(*counts, strict=True), strict=True)
    ]
    if len(rows) > 1:
        rows.append(("images", *(f"{len(index.rows(split)):,}" for split in splits)))
    num_groups = len(set(index.groups) - {""})
    groups = "Groups, such as patients, are not known"
    if num_groups:
        groups = format_count(num_groups, "group, such as a patient", "groups, such as patients")
    table = _render_table((index.task.display.target_word, *splits), rows)
    return f"{table}\n\n{format_count(len(index), 'image')}. {groups}."


def _describe_validation(run: RunFolder) -> str:
    """Return the validation metrics of the training, for a run whose data are gone."""
    result = run.read_result()
    values = (result.val if result else None) or {}
    task = run.read_config().read_task(run.path)
    rows = [
        (metric.title, metric.format_with_unit(values[metric.key]))
        for metric in (METRICS[key] for key in task.display.card)
        if values.get(metric.key) is not None
    ]
    table = _render_table(("metric", "validation"), rows) + "\n\n" if rows else ""
    return (
        f"{table}Metrics on the validation images, on which the best epoch was chosen, before calibration and without "
        "95% CIs: the data were not available at export."
    )


def _describe_evaluation(evaluation: Evaluation) -> str:
    """Return the metrics of an evaluation, overall and by class, with 95% CIs."""
    metrics, intervals, display = evaluation.metrics, evaluation.intervals, evaluation.task.display
    estimates = [METRICS[key] for key in display.class_estimates]
    rows = [
        (
            metric.title,
            metric.format_with_unit(getattr(metrics, metric.key)),
            metric.format_ci(intervals.overall[metric.key]),
        )
        for metric in (METRICS[key] for key in display.card)
    ]
    class_rows = []
    for entry, class_intervals in zip(metrics.per_class, intervals.per_class, strict=True):
        cells = [entry.name, *(f"{getattr(entry, field):,}" for field, _ in display.class_counts)]
        for metric in estimates:
            cells += [metric.format(getattr(entry, metric.key)), metric.format_ci(class_intervals[metric.key])]
        class_rows.append(tuple(cells))
    count_heading = [heading for _, heading in display.class_counts]
    class_heading = [cell for metric in estimates for cell in (metric.heading, "95% CI")]
    location = str(evaluation.test_set.index.location)  # of a copy of the data; the card has no path
    number = f" This was evaluation {evaluation.test_number} on this split." if evaluation.test_number else ""
    parts = [
        f"{format_count(metrics.images, 'image')} of the {evaluation.split} split.{number}",
        _render_table(("metric", "value", "95% CI"), rows),
        *([_render_table((display.target_word, *count_heading, *class_heading), class_rows)] if class_rows else []),
        f"95% CIs: {intervals.method}.",
        *(
            f"{note.severity.capitalize()}: {escape_markdown(note.text.replace(location, 'the data'))}."
            for note in evaluation.notes
        ),
    ]
    return "\n\n".join(parts)


def _describe_use(run: RunFolder) -> str:
    """Return code that loads the model, its preprocessing, and the steps from logits to a prediction."""
    config, calibration = run.read_config(), read_calibration(run)
    task = config.read_task(run.path)
    order = "in the order of `label_names` in `config.json`"
    lines = [
        "```python",
        "import timm",
        "",
        'model = timm.create_model("hf-hub:OWNER/NAME", pretrained=True).eval()  # or "local-dir:FOLDER"',
        "transform = timm.data.create_transform(**timm.data.resolve_data_config(model=model))",
        "```",
        "",
        TRANSFORMERS,
        "",
        f"Preprocessing: {_describe_preprocessing(config.pretrained_cfg)}. {DECODING}",
        "",
        f"Prediction: `{task.scores}` = {task.describe_scores(calibration)}, {order}.",
        task.describe_decision(calibration),
    ]
    if calibration is None or not calibration.is_fitted:
        reason = "the run was never calibrated" if calibration is None else calibration.unfitted_reason
        lines += ["", f"There is no calibration: {reason}."]
    else:
        lines.append("")
        missed = find_missed(run, calibration.thresholds)
        for threshold in calibration.thresholds:
            name = str(threshold.target)
            warning = f" The test split did not meet it: {missed[name]}." if name in missed else ""
            lines.append(
                f"Operating point {_as_code(name)}: calibrated "
                f"{threshold.target.describe_score(config.label_names)} of at least "
                f"{format_inside(threshold.threshold, 6, 0, 1)}, set on "
                f"{format_count(calibration.images, 'validation image')}.{warning}"
            )
    return "\n".join(lines)


def _describe_preprocessing(preprocessing: PretrainedCfg) -> str:
    channels, height, width = preprocessing.input_size
    grey = 'luminance alone (Pillow\'s `convert("L")`), ' if channels == 1 else ""
    return (
        f"{grey}{height} x {width} px, crop_mode {preprocessing.crop_mode}, crop_pct {preprocessing.crop_pct},"
        f" interpolation {preprocessing.interpolation}, mean {list(preprocessing.mean)}, std {list(preprocessing.std)}"
    )


def _render_table(heading: tuple[str, ...], rows: Sequence[tuple[str, ...]]) -> str:
    lines = [heading, ("---",) * len(heading), *rows]
    return "\n".join(f"| {' | '.join(escape_markdown(cell) for cell in line)} |" for line in lines)


_MARKUP = re.compile(r"[\\`*\[\]<>|~&$!#:@]|(?<!\w)_|_(?!\w)|(?<=www)\.", re.IGNORECASE)


def escape_markdown(text: str) -> str:
    """Return text that Markdown shows literally: without emphasis, links, images, HTML and table borders."""
    return " ".join(_MARKUP.sub(r"\\\g<0>", make_visible(text)).split())


def _as_code(text: str) -> str:
    """Return text as inline code, between more backquotes than it has in a row."""
    fence = "`" * (1 + max(map(len, re.findall("`+", text)), default=0))
    space = " " if "`" in text else ""
    return f"{fence}{space}{make_visible(text)}{space}{fence}"


def _quote_yaml(word: str) -> str:
    return word if re.fullmatch(r"[A-Za-z][\w./-]*", word) else json.dumps(word)
