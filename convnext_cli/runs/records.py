"""The files of a run that hold JSON: each one's schema, and the reader that refuses what does not fit it.

A field without a default must be there. A field that is not named here is passed over, so that a run of a later version
can be read; where an unknown field would change what is built (`ModelArguments`), it is refused.
"""

import json
import math
import re
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from msgspec import Meta, Struct, ValidationError, convert

from convnext_cli.errors import RunError

MAX_BYTES = 256 * 2**20  # of a file; a real one has a few kB, a split's table of a million images 100 MB
MAX_SIDE = 4096  # px, of a model's input

Fraction = Annotated[float, Meta(ge=0, le=1)]
Count = Annotated[int, Meta(ge=0)]
Text = Annotated[str, Meta(min_length=1)]
Positive = Annotated[float, Meta(gt=0)]
Kind = TypeVar("Kind")


class Data(Struct, frozen=True, kw_only=True):
    """`data.json`: where the images are, and the classes in the order of the model's outputs."""

    data: Annotated[str, Meta(pattern=r"^[^\x00]+$")]
    classes: Annotated[tuple[Text, ...], Meta(min_length=1)]
    skipped: dict[str, Count]


class Preprocessing(Struct, frozen=True, kw_only=True):
    """`pretrained_cfg` of `config.json`, timm's: how images are prepared."""

    input_size: tuple[Literal[1, 3], Annotated[int, Meta(ge=32, le=MAX_SIDE)], Annotated[int, Meta(ge=32, le=MAX_SIDE)]]
    mean: Annotated[tuple[Annotated[float, Meta(ge=-1, le=2)], ...], Meta(min_length=1, max_length=3)]
    std: Annotated[tuple[Annotated[float, Meta(gt=0, le=10)], ...], Meta(min_length=1, max_length=3)]
    crop_pct: Annotated[float, Meta(gt=0, le=1)]
    interpolation: Literal["bicubic", "bilinear"]
    crop_mode: Literal["center", "squash"] = "center"
    license: str | None = None


class ModelArguments(Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`model_args` of `config.json`: what timm builds the model with besides its name."""

    in_chans: Literal[1, 3] = 3
    num_classes: Count | None = None
    global_pool: Literal["avg"] = "avg"
    head_hidden_size: Annotated[int, Meta(ge=1, le=2**16)] | None = None
    drop_rate: Fraction = 0.0
    drop_path_rate: Fraction = 0.0


class Config(Struct, frozen=True, kw_only=True):
    """`config.json`: the model, as timm and the Hub keep it."""

    architecture: Text
    label_names: Annotated[tuple[Text, ...], Meta(min_length=1)]
    pretrained_cfg: Preprocessing
    model_args: ModelArguments
    num_classes: Count | None = None


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
    """`metrics.json` of a run: the epoch that was kept and its metrics on the validation split."""

    epoch: Count
    selected_by: str
    val: dict[str, Any] | None


class FoldsResult(Struct, frozen=True, kw_only=True):
    """`metrics.json` of a cross-validation."""

    folds: tuple[dict[str, Any], ...]
    spread: dict[str, dict[str, Any]]


class AuditFinding(Struct, frozen=True, kw_only=True):
    """One thing that the audit found in the data."""

    kind: str
    falsifies: bool
    title: str
    count: Count
    examples: tuple[str, ...]
    effect: str
    action: str
    severity: str = ""
    """`warning` or `note`; empty in older runs, whose titles lack the count."""


class AuditGroups(Struct, frozen=True, kw_only=True):
    """Where the audit knew groups from."""

    rule: str = ""
    number: Count = 0
    certainty: str = ""
    """`given`, `supported` or `unsure`; empty in older runs."""
    evidence: str = ""


class AuditRecord(Struct, frozen=True, kw_only=True):
    """`audit.json`: what was found in the data."""

    findings: tuple[AuditFinding, ...]
    groups: AuditGroups = AuditGroups()


class Environment(Struct, frozen=True, kw_only=True):
    """`environment.json`: what the run was made with."""

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
    balanced_accuracy: Fraction | None = None
    targets: dict[str, Fraction | None] = {}


class RangeTest(Struct, frozen=True, kw_only=True):
    """`lr.json`: the learning-rate range test, a value for each step."""

    chosen: Positive | None
    lr: Annotated[tuple[Positive, ...], Meta(min_length=1)]
    loss: tuple[float | None, ...]
    smoothed: tuple[float | None, ...]
    rule: str = ""

    def __post_init__(self) -> None:
        """Check that each step has its values."""
        if not len(self.lr) == len(self.loss) == len(self.smoothed):
            raise ValueError(f"{len(self.lr)} rates, {len(self.loss)} losses, {len(self.smoothed)} smoothed losses")


def read_record(path: Path, kind: type[Kind], remedy: str) -> Kind:
    """Read a file of a run that holds one JSON object.

    Raises:
        FileNotFoundError: there is none.
        RunError: it does not fit its schema; says the file, the field and the value.
    """
    return convert_record(read_json(path, remedy), kind, path, remedy)


def read_json(path: Path, remedy: str, *, nan_is_none: bool = False) -> Any:
    """Read JSON without a schema; numbers in it are finite.

    Raises:
        FileNotFoundError: there is none.
        RunError: it is no JSON, is not finite, or is too large.
    """
    return parse_json(read_text(path, remedy), path, remedy, nan_is_none=nan_is_none)


def read_text(path: Path, remedy: str) -> str:
    """Read a text file of a run; bytes of odd file names pass through.

    Raises:
        FileNotFoundError: there is none.
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
    except OSError as error:
        raise RunError(f"{path} cannot be read: {error.strerror}", remedy) from error


def parse_json(text: str, source: object, remedy: str, *, nan_is_none: bool = False) -> Any:
    """Read JSON text whose numbers must be finite.

    `nan_is_none` takes NaN and Infinity for values that are not known, as logs of former versions may have them.

    Raises:
        RunError: it is something else.
    """
    try:
        value = json.loads(text, parse_constant=(lambda _: None) if nan_is_none else None)
    except (ValueError, RecursionError) as error:
        why = f"no JSON ({error})" if isinstance(error, json.JSONDecodeError) else "no JSON"
        raise RunError(f"{source} cannot be read: {why if text.strip() else 'it is empty'}", remedy) from error
    if (place := _find_not_finite(value)) is not None:
        raise RunError(f"{source} cannot be read: {place[0] or 'its value'}: {place[1]} is not finite", remedy)
    return value


def convert_record(value: Any, kind: type[Kind], source: object, remedy: str) -> Kind:
    """Convert plain values to a record.

    Raises:
        RunError: they do not fit its schema; says the source, the field and the value.
    """
    try:
        return convert(value, kind)
    except ValidationError as error:
        problem, _, place = str(error).replace("`", "").partition(" - at ")
        place = place.removeprefix("$").removeprefix(".")
        told = _describe(_look_up(value, place))
        what = f"{place}: {problem}" if place else problem
        known = "" if "missing required" in problem or "unknown field" in problem else f" (it is {told})"
        raise RunError(f"{source} cannot be read: {what}{known}", remedy) from error


def _look_up(value: Any, place: str) -> Any:
    """Return the value at a place such as `findings[0].count`; the one above where the place has `[...]`."""
    for name, number in re.findall(r"([^.\[\]]+)|\[(\d+)\]", place):
        if name == "...":
            return value
        try:
            value = value[int(number) if number else name]
        except (KeyError, IndexError, TypeError):
            return value
    return value


def _describe(value: Any) -> str:
    text = json.dumps(value, ensure_ascii=True, default=str)
    return text if len(text) <= 60 else text[:59] + "…"


def _find_not_finite(value: Any, place: str = "") -> tuple[str, float] | None:
    """Return place and value of the first number that is not finite."""
    if isinstance(value, float) and not math.isfinite(value):
        return place, value
    parts: Any = ()
    if isinstance(value, dict):
        parts = ((f"{place}.{key}" if place else str(key), part) for key, part in value.items())
    elif isinstance(value, list):
        parts = ((f"{place}[{at}]", part) for at, part in enumerate(value))
    return next((found for at, part in parts if (found := _find_not_finite(part, at)) is not None), None)
