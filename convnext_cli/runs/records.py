"""Schemas of the JSON files of a run, and the reader that refuses what does not fit them.

A field without a default is required. Unknown fields are ignored, so that runs of later versions can be read;
`ModelArguments` refuses them, because they would change the model.
"""

import hashlib
import json
import math
import re
from collections import Counter
from pathlib import Path, PurePath
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct, ValidationError, convert, to_builtins

from convnext_cli.data.audit.findings import DOUBTFUL
from convnext_cli.errors import RunError
from convnext_cli.images.preprocessing import Preprocessing, join_size
from convnext_cli.metrics.summary import Fraction
from convnext_cli.tasks.registry import read_task
from convnext_cli.tasks.task import Task
from convnext_cli.text import NESTED_TOO_DEEPLY, capitalise, format_count, shorten

MAX_BYTES = 256 * 2**20  # of a file; real ones have a few kB, the split of a million images 100 MB
MAX_SIDE = 4096  # px, of a model's input

Count = Annotated[int, Meta(ge=0)]
Text = Annotated[str, Meta(min_length=1)]
Positive = Annotated[float, Meta(gt=0)]
Record = TypeVar("Record")


class Data(Struct, frozen=True, kw_only=True):
    """`data.json`: the data folder, and the classes in the order of the model's outputs."""

    data: Annotated[str, Meta(pattern=r"^[^\x00]+$")]
    classes: Annotated[tuple[Text, ...], Meta(min_length=1)]
    skipped: dict[str, Count]
    task: dict[str, Any] | None = None
    """As `Task.to_dict` gives it; None for one class per image."""
    table: str | None = None
    """The table that the data were read from, or the folder of those of the splits; None for class folders."""
    source: str | None = None
    """The zip file that the data were unpacked from; None for others, and in older runs."""
    fold_names: tuple[Text, ...] = ()
    """The values that `finetune --leave-out` left out, in the order of their folds."""

    def find_problem(self) -> str | None:
        """Return what is wrong with the values, though they fit the schema; None if nothing is."""
        repeated = sorted(name for name, count in Counter(self.classes).items() if count > 1)
        return f"classes: {repeated[0]!r} appears twice" if repeated else None


class PretrainedCfg(Struct, frozen=True, kw_only=True):
    """`pretrained_cfg` of `config.json`, in timm's format: preprocessing."""

    input_size: tuple[Literal[1, 3], Annotated[int, Meta(ge=32, le=MAX_SIDE)], Annotated[int, Meta(ge=32, le=MAX_SIDE)]]
    mean: Annotated[tuple[Annotated[float, Meta(ge=-1, le=2)], ...], Meta(min_length=1, max_length=3)]
    std: Annotated[tuple[Annotated[float, Meta(gt=0, le=10)], ...], Meta(min_length=1, max_length=3)]
    crop_pct: Annotated[float, Meta(gt=0, le=1)]
    interpolation: Literal["bicubic", "bilinear"]
    crop_mode: Literal["center", "border", "squash"] = "center"
    license: str | None = None

    @property
    def preprocessing(self) -> Preprocessing:
        """The preprocessing of the model."""
        return Preprocessing(
            image_size=join_size(*self.input_size[1:]),
            crop_pct=self.crop_pct,
            crop_mode=self.crop_mode,
            interpolation=self.interpolation,
            mean=self.mean,
            std=self.std,
        )


class ModelArguments(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`model_args` of `config.json`: arguments of `timm.create_model`."""

    in_chans: Literal[1, 3] = 3
    num_classes: Count | None = None
    global_pool: Literal["avg"] = "avg"
    head_hidden_size: Annotated[int, Meta(ge=1, le=2**16)] | None = None
    drop_rate: Fraction = 0.0
    drop_path_rate: Fraction = 0.0


class Config(Struct, frozen=True, kw_only=True):
    """`config.json`: the model, in the format of timm and the Hub."""

    architecture: Text
    label_names: Annotated[tuple[Text, ...], Meta(min_length=1)]
    pretrained_cfg: PretrainedCfg
    model_args: ModelArguments
    num_classes: Count | None = None
    task: dict[str, Any] | None = None
    """As `Task.to_dict` gives it; None for one class per image."""
    digest: str | None = None
    """As `compute_digest` returned it when the file was written; None in older runs."""

    def compute_digest(self) -> str:
        """Return a digest of the values that change predictions and that no tensor shows."""
        preprocessing = to_plain(self.pretrained_cfg.preprocessing)
        return digest_values({"classes": self.label_names, "preprocessing": preprocessing, "task": self.task})

    def read_task(self, source: object) -> Task:
        """Return the task of the model; `source` is the file, for errors."""
        return read_task(self.task, source, "Restore the run's original files")

    def count_outputs(self, source: object) -> int:
        """Return the width of the model's output; `source` is the file, for errors."""
        return self.read_task(source).count_outputs(len(self.label_names))

    def find_problem(self, source: object) -> str | None:
        """Return which values contradict each other; None if none do. `source` is the file, for errors."""
        names, outputs = len(set(self.label_names)), self.count_outputs(source)
        if names != len(self.label_names) or self.num_classes not in (None, outputs):
            outputs = self.num_classes or outputs
            return f"label_names: {format_count(names, 'class name')} for {format_count(outputs, 'output')}"
        means, deviations = len(self.pretrained_cfg.mean), len(self.pretrained_cfg.std)
        channels, in_chans = self.pretrained_cfg.input_size[0], self.model_args.in_chans
        if {means, deviations} not in ({1}, {3}) or channels != in_chans:
            values = f"{format_count(means, 'mean')}, {format_count(deviations, 'deviation')} and in_chans = {in_chans}"
            return f"pretrained_cfg: {values} for {format_count(channels, 'channel')}"
        return None


class Epoch(Struct, frozen=True, kw_only=True):
    """A line of `metrics.jsonl`."""

    epoch: Count
    train_loss: float | None = None
    val_log_loss: float | None = None
    val_top1: Fraction | None = None
    val_balanced_accuracy: Fraction | None = None
    lr: Annotated[float, Meta(ge=0)] = 0.0
    best: bool = False


class Result(Struct, frozen=True, kw_only=True):
    """`metrics.json` of a run: the kept epoch and its validation metrics."""

    epoch: Count
    selected_by: str
    val: dict[str, Any] | None


class FoldsResult(Struct, frozen=True, kw_only=True):
    """`metrics.json` of a cross-validation."""

    folds: tuple[dict[str, Any], ...]
    spread: dict[str, dict[str, Any]]
    left_out: tuple[dict[str, Any], ...] = ()
    """Internal and external metrics of each value of the column of `--leave-out`."""


class AuditFinding(Struct, frozen=True, kw_only=True):
    """One finding of the audit."""

    kind: str
    falsifies: bool
    title: str
    count: Count
    examples: tuple[str, ...]
    effect: str
    evidence: tuple[str, ...] = ()
    """Sentences on how certain it is; older runs have them in the effect."""
    action: str
    severity: str = ""
    """`warning` or `note`; empty in older runs, whose titles lack the count."""

    @property
    def leaves_doubt(self) -> bool:
        """True if leakage is possible: images may be related to those of another split, or not all were compared."""
        return not self.falsifies and self.kind in DOUBTFUL

    def describe(self) -> str:
        """Return the title, with the number of cases, the effect and the evidence."""
        return ". ".join((self.counted_title, capitalise(self.effect), *self.evidence))

    @property
    def counted_title(self) -> str:
        """The title with the number of cases, which older runs have beside it."""
        return self.title if self.severity or not self.count else f"{self.count:,} x {self.title}"


class AuditGroups(Struct, frozen=True, kw_only=True):
    """The rule by which the audit found groups."""

    source: str = ""
    """`manifest`, `names`, `folders`, `pattern`, `dicom` or `none`."""
    rule: str = ""
    number: Count = 0
    certainty: str = ""
    """`given`, `supported` or `unsure`; empty in older runs."""
    evidence: str = ""


class AuditRecord(Struct, frozen=True, kw_only=True):
    """`audit.json`: the audit of the data."""

    findings: tuple[AuditFinding, ...]
    classes: dict[str, Any] = {}
    """Images of each class, by the data's own split; by `all` where they had none."""
    notes: tuple[str, ...] = ()
    """Notes on how the folders or the table were read."""
    groups: AuditGroups = AuditGroups()
    shortcuts: dict[str, Any] = {}
    """Scores of metadata alone, by name; empty where there were too few images to measure them."""


class Environment(Struct, frozen=True, kw_only=True):
    """`environment.json`: command line, versions and device of a run."""

    command: tuple[str, ...] = ()
    device: str = ""
    num_processes: int | None = None
    platform: str = ""
    python: str = ""
    git: str | None = None
    packages: dict[str, str] = {}
    images: str | None = None
    split: str | None = None


class Test(Struct, frozen=True, kw_only=True):
    """A line of `tests.jsonl`: one evaluation on the test split."""

    images: Count = 0
    recalibrated_on: Count = 0
    """Number of images of `eval --recalibrate`; with 0, as in older runs, the run's own calibration was evaluated."""
    balanced_accuracy: Fraction | None = None
    tta: bool = False
    """True for an evaluation with test-time augmentation."""
    targets: dict[str, Fraction | dict[str, Fraction | None] | None] = {}
    """The metric of each target; of a target with several bounds, each metric by its name."""
    group_targets: dict[str, Fraction | dict[str, Fraction | None] | None] = {}
    """The same of groups, such as patients, where they were evaluated."""


class RangeTest(Struct, frozen=True, kw_only=True):
    """`lr.json`: the learning-rate range test, a value for each step."""

    chosen: Positive | None
    lr: Annotated[tuple[Positive, ...], Meta(min_length=1)]
    loss: tuple[float | None, ...]
    smoothed: tuple[float | None, ...]
    rule: str = ""

    def __post_init__(self) -> None:
        """Check that all lists have the same length."""
        if not len(self.lr) == len(self.loss) == len(self.smoothed):
            parts = {"rate": self.lr, "loss": self.loss, "smoothed loss": self.smoothed}
            raise ValueError(", ".join(format_count(len(values), name) for name, values in parts.items()))


def to_plain(value: Any) -> Any:
    """Return dataclasses and structs as dictionaries by their JSON keys, also those inside others; paths as text."""
    return to_builtins(value, enc_hook=_simplify)


def _simplify(value: Any) -> Any:
    if isinstance(value, PurePath):
        return str(value)
    if hasattr(value, "item"):  # a number of NumPy's
        return value.item()
    raise NotImplementedError


def digest_values(content: dict[str, Any]) -> str:
    """Return a digest of plain values except for a digest among them, in hexadecimal digits."""
    text = json.dumps({name: value for name, value in content.items() if name != "digest"}, sort_keys=True)
    return hashlib.blake2b(text.encode(), digest_size=8).hexdigest()


def check_digest(digest: str | None, computed: str, source: object, remedy: str) -> None:
    """Compare a file's digest, if it has one, with that of its values.

    Raises:
        RunError: they differ: the file was changed by hand.
    """
    if digest not in (None, computed):
        raise RunError(
            f"{source} was changed since it was written", f"{remedy}. To use it as it is, delete its `digest`"
        )


def read_record(path: Path, kind: type[Record], remedy: str) -> Record:
    """Return the JSON object in a file of a run.

    Raises:
        FileNotFoundError: the file is missing.
        RunError: it does not fit its schema; names the file, the field and the value.
    """
    return convert_record(read_json(path, remedy), kind, path, remedy)


def read_json(path: Path, remedy: str, *, nan_is_none: bool = False) -> Any:
    """Return the JSON value in a file, without a schema.

    Raises:
        FileNotFoundError: the file is missing.
        RunError: it is not JSON, is too large, or has a number that is not finite.
    """
    return parse_json(read_text(path, remedy), path, remedy, nan_is_none=nan_is_none)


def read_text(path: Path, remedy: str) -> str:
    """Return the text of a file of a run. Bytes that are not UTF-8, as in file names, are kept as surrogates.

    Raises:
        FileNotFoundError: the file is missing.
        RunError: it cannot be read, or is too large.
    """
    try:
        if (size := path.stat().st_size) > MAX_BYTES:
            raise RunError(f"{path} cannot be read: it has {size:,} bytes", remedy)
        if not path.is_file():
            raise RunError(f"{path} cannot be read: it is not a regular file", remedy)
        return path.read_bytes().decode(errors="surrogateescape")
    except FileNotFoundError:
        raise
    except NotADirectoryError as error:
        raise RunError(f"{path.parent} is a file, not a run folder", remedy) from error
    except PermissionError as error:  # of another user's run: the file may be whole
        raise RunError(f"{path} cannot be read: {error.strerror}", "Check its permissions") from error
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", remedy) from error


def parse_json(text: str, source: object, remedy: str, *, nan_is_none: bool = False) -> Any:
    """Return the value of a JSON text whose numbers must be finite.

    Args:
        text: the JSON.
        source: the file, for errors.
        remedy: what the user can do about an error.
        nan_is_none: True to read NaN and Infinity as None; logs of older versions may have them.

    Raises:
        RunError: the text is not JSON, is nested too deeply, or has a number that is not finite.
    """
    try:
        value = json.loads(text, parse_constant=(lambda _: None) if nan_is_none else None)
        location = _find_not_finite(value)
    except (ValueError, RecursionError) as error:
        reason = f"not JSON ({error})" if isinstance(error, json.JSONDecodeError) else "not JSON"
        reason = NESTED_TOO_DEEPLY if isinstance(error, RecursionError) else reason
        raise RunError(f"{source} cannot be read: {reason if text.strip() else 'it is empty'}", remedy) from error
    if location is not None:
        raise RunError(f"{source} cannot be read: {location[0] or 'its value'}: {location[1]} is not finite", remedy)
    return value


def convert_record(value: Any, kind: type[Record], source: object, remedy: str) -> Record:
    """Convert plain values to a record.

    Raises:
        RunError: they do not fit its schema; names the source, the field and the value.
    """
    try:
        return convert(value, kind)
    except ValidationError as error:
        before, separator, after = str(error).rpartition(" - at `$")  # the last: a value may have the words too
        problem = (before if separator else after).replace("`", "")
        location = after.replace("`", "").removeprefix(".") if separator else ""
        field = f"{location}: " if location else ""
        has_value = "missing required" not in problem and "unknown field" not in problem
        actual = f" (it is {shorten(json.dumps(_look_up(value, location), default=str), 60)})" if has_value else ""
        raise RunError(f"{source} cannot be read: {field}{problem}{actual}", remedy) from error


def _look_up(value: Any, location: str) -> Any:
    """Return the value at a location such as `findings[0].count`; its parent if the location ends in `[...]`."""
    for name, number in re.findall(r"([^.\[\]]+)|\[(\d+)\]", location):
        value = value[int(number) if number else name]
    return value


def _find_not_finite(value: Any, location: str = "") -> tuple[str, float] | None:
    """Return location and value of the first number that is not finite; None if all are."""
    if isinstance(value, float) and not math.isfinite(value):
        return location, value
    parts: Any = ()
    if isinstance(value, dict):
        parts = ((f"{location}.{key}" if location else str(key), part) for key, part in value.items())
    elif isinstance(value, list):
        parts = ((f"{location}[{at}]", part) for at, part in enumerate(value))
    return next((number for at, part in parts if (number := _find_not_finite(part, at)) is not None), None)
