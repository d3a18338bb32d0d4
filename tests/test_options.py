from dataclasses import dataclass
from pathlib import Path
from typing import Annotated, Any, Literal

import numpy as np
import pytest

from convnext_cli.errors import UsageError
from convnext_cli.exports.request import ExportRequest
from convnext_cli.inference.request import EvalRequest, PredictRequest
from convnext_cli.options import GROUPS, Option, describe_options, make_path, make_request, parse_duration
from convnext_cli.recipes.settings import Settings, SettingSources, expand_settings
from convnext_cli.training.request import TrainRequest

REQUESTS = (Settings, SettingSources, TrainRequest, EvalRequest, PredictRequest, ExportRequest)


@dataclass(frozen=True, kw_only=True, slots=True)
class Example:
    count: Annotated[int, Option(help="Count.", low=1, high=10)] = 1
    ratio: Annotated[float | None, Option(help="Ratio.", low=0, is_open=True, words=("auto",))] = None
    mode: Annotated[Literal["a", "b"], Option(help="Mode.")] = "a"
    paths: Annotated[tuple[str, ...], Option(help="Paths.")] = ()
    file: Annotated[Path | None, Option(help="File.")] = None
    plain: int = 0


def test_empty_path_is_not_the_current_folder() -> None:
    with pytest.raises(UsageError, match="file is empty"):
        make_request(Example, {"file": ""})
    assert make_request(Example, {"file": "."}).file == Path()


@pytest.mark.parametrize("request_class", REQUESTS)
def test_each_option_has_a_help_sentence_and_a_group(request_class: type) -> None:
    for name, declaration in describe_options(request_class).items():
        option = declaration.option
        assert option.help.endswith("."), name
        assert "  " not in option.help
        assert option.group in GROUPS
        assert len(option.help) <= 110, name


def test_flags_of_a_training_are_unique() -> None:
    declared = [
        entry for request in (TrainRequest, SettingSources, Settings) for entry in describe_options(request).values()
    ]
    flags = [flag for entry in declared for flag in (entry.flag, *entry.option.flags)]
    assert len(flags) == len(set(flags))


@pytest.mark.parametrize(
    ("values", "problem"),
    [
        ({"count": 0}, "count = 0 is below 1"),
        ({"count": 11}, "count = 11 is above 10"),
        ({"count": 1.5}, "must be a whole number"),
        ({"count": True}, "must be a whole number"),
        ({"ratio": 0}, "ratio = 0 is not above 0"),
        ({"ratio": float("nan")}, "ratio = nan is not a finite number"),
        ({"ratio": "many"}, "must be a number"),
        ({"mode": "c"}, "must be one of a, b"),
        ({"paths": 3}, "paths = 3 must be a list"),
        ({"paths": "x"}, "paths = 'x' must be a list"),
        ({"paths": ["x", 3]}, "paths = ('x', 3) must be a list of texts"),
        ({"paths": b"x"}, "paths = (120,) must be a list of texts"),
        ({"file": "a\0"}, "file = PosixPath('a\\x00') must be a path"),
        ({"file": b"a"}, "file = b'a' must be a path"),
        ({"count": np.int64(0)}, "count = 0 is below 1"),
        ({"count": np.float64(2)}, "count = 2.0 must be a whole number"),
        ({"count": np.True_}, "must be a whole number"),
        ({"file": 3}, "file = 3 must be a path"),
        ({"cuont": 3}, "cuont is not an option. Did you mean count?"),
        ({"count": 0, "ratio": 0}, "count = 0 is below 1; ratio = 0 is not above 0"),
    ],
)
def test_wrong_values_are_named_with_the_bound(values: dict[str, Any], problem: str) -> None:
    with pytest.raises(UsageError) as caught:
        make_request(Example, values)
    assert problem in str(caught.value)


class Link:
    """A path-like object."""

    def __fspath__(self) -> str:
        return "a/b"


def test_values_are_converted_to_the_declared_types() -> None:
    request = make_request(Example, {"file": "a/b", "paths": ["x"], "ratio": "auto", "plain": 4})
    assert request == Example(file=Path("a/b"), paths=("x",), ratio="auto", plain=4)  # type: ignore[arg-type]
    assert make_request(Example, {"file": Link()}).file == make_path("run", Link()) == Path("a/b")
    numbers = make_request(Example, {"count": np.int64(2), "ratio": np.float32(0.5)})
    assert (numbers, type(numbers.count), type(numbers.ratio)) == (Example(count=2, ratio=0.5), int, float)
    settings = expand_settings({"lr": np.float64(0.5), "epochs": np.int64(3), "image_root": Link()})
    assert (settings, type(settings["lr"])) == ({"lr": 0.5, "epochs": 3, "image_root": "a/b"}, float)


@pytest.mark.parametrize("value", [None, 3, b"x", ["a"], "a\0", ""])
def test_an_argument_that_is_no_path_is_a_usage_error(value: Any) -> None:
    with pytest.raises(UsageError, match=r"run (is empty|= .* must be a path)"):
        make_path("run", value)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("2h", 7200),
        ("90m", 5400),
        ("1h30m", 5400),
        ("1h30", 5400),
        ("1h30s", 3630),
        ("2m30", 150),
        ("45s", 45),
        ("1.5h", 5400),
        ("20", 20),
    ],
)
def test_a_duration_is_in_hours_minutes_or_seconds(text: str, seconds: float) -> None:
    assert parse_duration(text) == seconds


@pytest.mark.parametrize("text", ["", "0", "soon", "1d", "-5m"])
def test_other_durations_are_refused(text: str) -> None:
    with pytest.raises(ValueError, match="invalid duration"):
        parse_duration(text)
