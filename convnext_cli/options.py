"""Options: annotated fields of request classes. Command line, plan files and Python functions are made from them."""

import math
import os
import re
import types
from collections.abc import Callable, Iterable, Mapping
from dataclasses import KW_ONLY, MISSING, dataclass, fields
from functools import cache, partial
from numbers import Integral, Real
from pathlib import Path
from typing import Any, Literal, TypeVar, Union, get_args, get_origin, get_type_hints

from convnext_cli.errors import UsageError, check_kind, suggest
from convnext_cli.text import shorten

AUTO = "auto"  # the value of an option that is chosen by what is known of data, model and machine
GROUPS = ("Data", "Model", "Training", "Imbalance and augmentation", "Run")
DATA, MODEL, TRAINING, AUGMENTATION, RUN = GROUPS
LONGEST_VALUE = 60  # characters of a wrong value in a message
ALL_OPTIONS = "`convnext COMMAND --help` and `--help-all` list the options with their units"

Request = TypeVar("Request")


@dataclass(frozen=True, slots=True)
class Option:
    """The metadata of one option: its help, its values, and its names on the command line."""

    help: str
    _: KW_ONLY
    unit: str = ""
    group: str = RUN
    """The heading that it stands under in the help."""
    is_common: bool = False
    """True if `--help` shows it; `--help-all` shows every option."""
    low: float | None = None
    high: float | None = None
    is_open: bool = False
    """True if the bounds themselves are excluded."""
    words: tuple[str, ...] = ()
    """Words that may replace a number, such as `auto`; the value is then determined before training."""
    name: str = ""
    """The long flag without its dashes; empty for the field's name in kebab case."""
    flags: tuple[str, ...] = ()
    """Further flags, such as `-b`."""
    env: str = ""
    """An environment variable that sets it."""
    metavar: str = ""
    parse: Callable[[str], Any] | None = None
    """Reads the text of the command line; raises `ValueError` with the reason."""
    completion: Literal["", "model", "run"] = ""
    """The kind of names that the shell completes."""
    is_argument: bool = False
    """True for a positional argument."""
    has_negation: bool | None = None
    """True if `--no-NAME` exists too; None if it exists where the default is not False."""
    is_shared: bool = False
    """True if it may be changed when a run is resumed."""

    def explain_bound(self, value: float) -> str | None:
        """Return which bound a number exceeds, or None."""
        if not math.isfinite(value):
            return "is not a finite number"
        if self.low is not None and (value < self.low or (self.is_open and value == self.low)):
            return f"is {'not above' if self.is_open else 'below'} {_format_bound(self.low)}"
        if self.high is not None and (value > self.high or (self.is_open and value == self.high)):
            return f"is {'not below' if self.is_open else 'above'} {_format_bound(self.high)}"
        return None

    def describe_range(self) -> str:
        """Return the allowed numbers, and the words that may replace one; an empty string if it has no bounds."""
        low, high = (None if bound is None else _format_bound(bound) for bound in (self.low, self.high))
        if self.is_open:
            text = " and ".join(f"{word} {bound}" for word, bound in (("above", low), ("below", high)) if bound)
        elif low and high:
            text = f"from {low} to {high}"
        else:
            text = f"of at least {low}" if low else f"of at most {high}" if high else ""
        return ", or ".join([f"{text} {self.unit}".rstrip(), *self.words]) if text else ""


DataOption, ModelOption, TrainingOption, AugmentationOption = (partial(Option, group=group) for group in GROUPS[:4])
"""Options of these groups; a plain `Option` is of the last one, `RUN`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Declaration:
    """One option as a request class declares it."""

    field: str
    kind: Any
    """The type without None: a class, a `Literal`, or `tuple[str, ...]`; of `int | str`, the first."""
    takes_text: bool
    """True if a text that `Option.parse` accepts may stand for a number."""
    is_optional: bool
    default: Any
    """`MISSING` for a required option, and for a setting whose default comes from a recipe."""
    option: Option

    @property
    def flag(self) -> str:
        """The long flag."""
        return f"--{self.option.name}" if self.option.name else name_flag(self.field)

    @property
    def word(self) -> str:
        """The option as the command line names it: its flag, or an argument's word in the usage line."""
        return (self.option.metavar or self.field.upper()) if self.option.is_argument else self.flag

    @property
    def is_repeated(self) -> bool:
        """True if the option may be given several times."""
        return get_origin(self.kind) is tuple

    @property
    def has_negation(self) -> bool:
        """True if `--no-NAME` exists too."""
        negation = self.option.has_negation
        return self.kind is bool and (self.default is not False if negation is None else negation)


@cache
def describe_options(request: Any) -> dict[str, Declaration]:
    """Return the declarations of a request class by field name, without fields that have no `Option`."""
    hints = get_type_hints(request, include_extras=True)
    declarations = {}
    for field in fields(request):
        kind, *metadata = get_args(hints[field.name]) if hasattr(hints[field.name], "__metadata__") else (None,)
        option = next((entry for entry in metadata if isinstance(entry, Option)), None)
        if option is not None:
            kind, takes_text, is_optional = _split_union(kind)
            declarations[field.name] = Declaration(
                field=field.name,
                kind=kind,
                takes_text=takes_text,
                is_optional=is_optional,
                default=field.default if field.default_factory is MISSING else field.default_factory(),
                option=option,
            )
    return declarations


def make_request(request: type[Request], values: Mapping[str, Any]) -> Request:
    """Return a request with these options, converted and checked.

    Raises:
        UsageError: an option is unknown, or its value has the wrong type or lies out of bounds; all are named. Or a
            field that is no option is of another class.
    """
    known = describe_options(request)  # type: ignore[arg-type]  # a class is hashable
    converted = {name: convert_value(known[name], value) if name in known else value for name, value in values.items()}
    plain = {field.name for field in fields(request)} - known.keys()  # type: ignore[arg-type]  # a dataclass
    check_options({name: value for name, value in converted.items() if name not in plain}, known, kind="option")
    hints = get_type_hints(request)
    for name in (name for name in values if name in plain):
        kind, _, is_optional = _split_union(hints[name])
        if not (is_optional and values[name] is None):
            check_kind(name, values[name], get_origin(kind) or kind)
    return request(**converted)


def make_path(name: str, value: Any) -> Path:
    """Return the path of an argument: text or a path-like object.

    Raises:
        UsageError: it is neither, or empty.
    """
    path = _to_path(value)
    if problem := _explain_path(path):
        raise UsageError(f"{name} {problem}", "Give a path")
    assert isinstance(path, Path)
    return path


def make_paths(name: str, values: Any) -> tuple[Path, ...]:
    """Return the paths of an argument that takes several.

    Raises:
        UsageError: it is no list of paths.
    """
    if isinstance(values, str | os.PathLike) or not isinstance(values, Iterable):
        raise UsageError(f"{name} = {values!r} must be a list of paths", "Give a list")
    return tuple(make_path(name, value) for value in values)


def _to_path(value: Any) -> Any:
    """Return text or a path-like object as a path; other values and empty text as they are, to be refused."""
    text = os.fspath(value) if isinstance(value, os.PathLike) else value
    return Path(text) if isinstance(text, str) and text else value  # `Path` takes an empty one for "."


def _explain_path(value: Any) -> str | None:
    """Return what is wrong with a path, or None."""
    if isinstance(value, str) and not value:
        return "is empty"
    return None if isinstance(value, Path) and "\0" not in str(value) else f"= {_show(value)} must be a path"


def _show(value: Any) -> str:
    """Return a value in one short line: a table or a result of another function may have hundreds."""
    return shorten(repr(value), LONGEST_VALUE)


def convert_value(declaration: Declaration, value: Any) -> Any:
    """Return an option's value in its type, where it has one of the forms that stand for it; others as they are.

    Text and path-like objects are paths; paths are texts, where a text is declared; a number may be NumPy's; and any
    iterable is a tuple.
    """
    kind = declaration.kind
    if kind is Path:
        return _to_path(value)
    if kind is str and isinstance(value, os.PathLike):
        return os.fspath(value)
    if kind in (int, float) and type(value) not in (bool, int, float):
        if isinstance(value, Integral):
            return int(value)
        return float(value) if isinstance(value, Real) else value
    if declaration.is_repeated and isinstance(value, Iterable) and not isinstance(value, str):
        return tuple(map(_to_path, value)) if Path in get_args(kind) else tuple(value)
    return value


def check_options(
    values: Mapping[str, Any], known: Mapping[str, Declaration], *, kind: str, is_command_line: bool = False
) -> None:
    """Check names, types and bounds of values by name.

    Args:
        values: by name.
        known: the declarations of all options.
        kind: the word for one of them in messages.
        is_command_line: name options by their flags.

    Raises:
        UsageError: one or more are wrong; all of them are named, with the allowed range of numbers.
    """
    problems, ranges = [], []
    for name, value in values.items():
        if name not in known:
            article = "an" if kind[0] in "aeiou" else "a"
            problems.append(f"{name} is not {article} {kind}. {suggest(name, known)}".rstrip(" ."))
        elif problem := explain_problem(known[name], value):
            word = known[name].word if is_command_line else name
            problems.append(f"{word} {problem.removeprefix('= ') if is_command_line else problem}")
            if allowed := known[name].option.describe_range():
                ranges.append(f"{word} {allowed}")
    if problems:
        raise UsageError("; ".join(problems), f"Give {'; '.join(ranges)}" if ranges else ALL_OPTIONS)


def explain_problem(declaration: Declaration, value: Any) -> str | None:
    """Return what is wrong with an option's value, or None."""
    option, kind = declaration.option, declaration.kind
    if (isinstance(value, str) and value in option.words) or (value is None and declaration.is_optional):
        return None
    if kind is Path:
        return _explain_path(value)
    if kind is str and isinstance(value, str) and not value:
        return "is empty"
    if declaration.takes_text and isinstance(value, str):
        return _explain_text(option, value)
    if get_origin(kind) is Literal:
        words = get_args(kind)
        is_known = (type(value), value) in [(type(word), word) for word in words]  # True is not 1
        return None if is_known else f"= {_show(value)} must be one of {', '.join(map(str, words))}"
    if kind is str:
        fits = isinstance(value, str) and "\0" not in value and is_unicode(value)
        return None if fits else f"= {_show(value)} must be Unicode text"
    if kind is bool:
        return None if isinstance(value, bool) else f"= {_show(value)} must be true or false"
    if get_origin(kind) is tuple:
        entry_type, *_ = get_args(kind)
        fits = isinstance(value, tuple) and all(isinstance(entry, entry_type) for entry in value)
        return None if fits else f"= {_show(value)} must be a list of {'paths' if entry_type is Path else 'texts'}"
    if isinstance(value, bool) or not isinstance(value, (int, float) if kind is float else int):
        return f"= {_show(value)} must be {'a number' if kind is float else 'a whole number'}"
    problem = option.explain_bound(value)
    return f"= {repr(value).removesuffix('.0')} {problem}" if problem else None


def _explain_text(option: Option, value: str) -> str | None:
    """Return what is wrong with a text that stands for a number, or None."""
    assert option.parse is not None
    try:
        return None if option.parse(value) == value else f"= {_show(value)} must be {option.parse(value)!r}"
    except ValueError as error:
        return f"= {error}"


def name_flag(field: str) -> str:
    """Return the long flag of a field that has no other name: its own in kebab case."""
    return f"--{field.replace('_', '-')}"


def is_unicode(text: str) -> bool:
    """Return True if UTF-8 can hold the text. A file name in another encoding has lone surrogates, which it cannot."""
    return not any("\ud800" <= sign <= "\udfff" for sign in text)


def parse_duration(text: str) -> float:
    """Return the seconds of `90m`, `2h`, `1h30m`, `45s` or a bare number of seconds.

    Raises:
        ValueError: it is none of these, or zero.
    """
    complete = re.sub(r"(?<=h)(\d+)$", r"\1m", text.strip())  # 1h30 is 1h30m
    match = re.fullmatch(r"(?:(\d+(?:\.\d+)?)h)?(?:(\d+(?:\.\d+)?)m(?:in)?)?(?:(\d+(?:\.\d+)?)s?)?", complete)
    parts = match.groups("0") if match else ()
    seconds = sum(float(part) * unit for part, unit in zip(parts, (3600, 60, 1), strict=False))
    if not seconds:
        raise ValueError(f"invalid duration {text!r}; write 90m, 2h or 1h30m")
    return seconds


def _split_union(kind: Any) -> tuple[Any, bool, bool]:
    """Return a type without None and alternative text, and whether text and None were part of it."""
    if get_origin(kind) not in (Union, types.UnionType):
        return kind, False, False
    first, *others = (part for part in get_args(kind) if part is not type(None))
    return first, str in others, type(None) in get_args(kind)


def _format_bound(bound: float) -> str:
    return f"{int(bound):,}" if bound == int(bound) else f"{bound:g}"
