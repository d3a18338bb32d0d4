import errno
import inspect
import json
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Callable, Generator, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

import numpy as np
import pytest
import torch
from accelerate.state import AcceleratorState
from safetensors.numpy import load_file, save_file

import convnext_cli
from convnext_cli import (
    check,
    compare,
    cross_validate,
    evaluate,
    export,
    finetune,
    list_models,
    predict,
    recommend,
    write_report,
)
from convnext_cli.api import TrainOptions, make_train_request
from convnext_cli.errors import DataError, UsageError
from convnext_cli.exports.export import FileOptions, HubOptions
from convnext_cli.exports.hub import HubFolder
from convnext_cli.exports.request import ExportRequest
from convnext_cli.inference.evaluation import EvalOptions
from convnext_cli.inference.prediction import PredictOptions
from convnext_cli.inference.request import EvalRequest, PredictRequest
from convnext_cli.locks import check_unlocked
from convnext_cli.options import describe_options
from convnext_cli.progress import Progress, finish
from convnext_cli.recipes.settings import READING_SETTINGS, DataOptions, SettingsDict, SettingSources, declare_settings
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.request import TrainRequest
from tests.conftest import SMALL, Convnext, save_image

LONG = (check, compare, cross_validate, evaluate, export, finetune, predict, write_report)


def test_the_typed_settings_are_the_fields_of_settings() -> None:
    expected = {
        name: Union[entry.kind, Literal[entry.option.words]] if entry.option.words else entry.kind  # noqa: UP007  (made at run time)
        for name, entry in declare_settings().items()
    } | {"image_size": int | str, "image_root": Path | str, "exclude": Path | str}
    assert get_type_hints(SettingsDict) == expected
    assert not SettingsDict.__required_keys__


def test_the_typed_options_of_a_training_are_the_fields_of_its_requests() -> None:
    declared = describe_options(TrainRequest) | describe_options(SettingSources)
    hints = {name: hint for name, hint in get_type_hints(TrainOptions).items() if name not in declare_settings()}
    assert hints.keys() == declared.keys() - {"data"}
    for name, declaration in declared.items():
        if name == "data":
            continue
        accepted = {part for part in (get_args(hints[name]) or (hints[name],)) if part is not type(None)}
        kind = declaration.kind
        if get_origin(kind) is Literal:
            assert set(get_args(kind)) == {word for part in accepted for word in get_args(part) or (part,)}, name
        elif declaration.is_repeated:
            assert hints[name] == Sequence[str], name
        elif kind is Path or name in ("weights", "teacher"):
            assert accepted == {Path, str}, name
        else:
            assert accepted == {kind}, name


def test_the_typed_options_of_a_check_are_settings() -> None:
    hints = get_type_hints(SettingsDict)
    assert get_type_hints(DataOptions) == {name: hints[name] for name in READING_SETTINGS}


@pytest.mark.parametrize(
    ("options", "request_class"),
    [
        (PredictOptions, PredictRequest),
        (EvalOptions, EvalRequest),
        (FileOptions, ExportRequest),
        (HubOptions, ExportRequest),
    ],
)
def test_typed_options_are_fields_of_the_request(options: type, request_class: type) -> None:
    names = {field.name for field in fields(request_class)}
    assert get_type_hints(options).keys() <= names
    if options is not HubOptions:
        assert describe_options(request_class).keys() <= get_type_hints(options).keys() | {"data", "push"}


def test_python_options_have_the_bounds_of_the_command_line(digits: Path, convnext: Convnext) -> None:
    with pytest.raises(UsageError, match=r"max_time = -1 is not above 0. Give max_time above 0"):
        finetune(digits, max_time=-1)
    with pytest.raises(UsageError, match=r"max_time = 'long' must be a number"):
        finetune(digits, max_time="long")  # type: ignore[arg-type]
    assert "--top-k 0 is below 1" in convnext("predict", "x.png", "--top-k", 0).err


def test_python_arguments_of_another_type_are_usage_errors(digits: Path) -> None:
    wrong: Any = 5
    calls: dict[str, Callable[[], Any]] = {
        "evaluation = 5 must be of the class Evaluation": lambda: write_report(wrong),
        "on_event = 5 cannot be called": lambda: check(digits, on_event=wrong),
        "machine = 5 must be of the class Machine": lambda: recommend(100, machine=wrong),
        "max_images = '9' must be of the class int": lambda: export("run", max_images="9"),  # type: ignore[call-overload]
        "tier = 9 is above 6. Give tier from 1 to 6": lambda: list_models(tier=9),
        "pattern = 5 must be Unicode text": lambda: list_models(wrong),
        "weights = None must be": lambda: finetune(digits, weights=None),  # type: ignore[arg-type]
        "max_params = 'x' must be a number": lambda: list_models(max_params="x"),  # type: ignore[arg-type]
    }
    for problem, call in calls.items():
        with pytest.raises(UsageError, match=problem):
            call()


def test_arrays_and_tables_in_place_of_other_arguments_are_usage_errors_of_one_line() -> None:
    table: Any = np.zeros((40, 3))  # as of a DataFrame, its truth value is an error
    calls: list[Callable[[], Any]] = [
        lambda: finetune(table),
        lambda: check(table),
        lambda: evaluate("run", table),
        lambda: export(table),
        lambda: predict("a.png", table),
        lambda: predict("a.png", "run", explain=table),
        lambda: finetune("data", lr=table),
        lambda: finetune("data", head=table),
        lambda: finetune("data", model=table),
    ]
    for call in calls:
        with pytest.raises(UsageError, match=r" = array.*… must be ") as caught:
            call()
        assert "\n" not in str(caught.value)
        assert len(caught.value.problem) < 160


def test_empty_path_is_not_the_current_folder(monkeypatch: pytest.MonkeyPatch, digits: Path, run: RunFolder) -> None:
    monkeypatch.chdir(digits)
    calls: list[Callable[[], Any]] = [lambda: check(""), lambda: recommend(""), lambda: compare(run.path, run.path, "")]
    for call in calls:
        with pytest.raises(UsageError, match="data is empty"):
            call()
    with pytest.raises(UsageError, match=r"images\[1\] is empty"):
        predict([run.path / "curves.png", ""], run.path)
    for call in (lambda: predict([], ""), lambda: evaluate(""), lambda: export("")):
        with pytest.raises(UsageError, match="run is empty"):
            call()


def test_imbalance_sets_the_settings_that_it_stands_for() -> None:
    request = make_train_request({"imbalance": "effective", "epochs": 3})
    values = {name: choice.value for name, choice in request.choices.items()}
    assert values == {"epochs": 3, "sampler": "shuffle", "class_weights": "effective", "logit_adjustment": 0.0}
    with pytest.raises(UsageError, match="imbalance and sampler both set"):
        make_train_request({"imbalance": "weights", "sampler": "balanced"})


def test_a_type_checker_knows_the_settings(digits: Path) -> None:
    """mypy reports each of the ignored errors; an ignore that has none is an error too."""
    with pytest.raises(UsageError, match="image_size"):
        recommend(6000, image_size=1.5)  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="head = 'conv' must be one of linear, mlp"):
        recommend(digits, head="conv")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="imagesize is not a setting"):
        recommend(6000, imagesize=64)  # type: ignore[call-arg]
    with pytest.raises(UsageError, match="epochs = 'many'"):
        finetune(digits, epochs="many")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="lr = 'fast'"):
        cross_validate(digits, lr="fast")  # type: ignore[arg-type]


@pytest.mark.parametrize("function", LONG)
def test_long_functions_have_a_documented_on_event(function: Callable[..., Any]) -> None:
    parameter = inspect.signature(function).parameters["on_event"]
    assert (parameter.kind, parameter.default) == (inspect.Parameter.KEYWORD_ONLY, None)
    text = inspect.getdoc(function) or ""
    assert "on_event: " in text
    assert "Raises:" in text
    for name in inspect.signature(function).parameters:
        assert f"{name}: " in text, name


def test_every_function_is_typed_and_documented() -> None:
    for name in convnext_cli.__all__:
        function = getattr(convnext_cli, name)
        assert inspect.signature(function).return_annotation not in (inspect.Signature.empty, Any)
        assert "Args:" in (inspect.getdoc(function) or ""), name


def test_a_generator_is_run_to_its_end_and_closed_after_an_error() -> None:
    closed: list[bool] = []

    def count() -> Generator[int, None, str]:
        try:
            yield 1
            yield 2
            return "result"
        finally:
            closed.append(True)

    events: list[Any] = []
    assert finish(count(), events.append) == "result"
    assert (events, closed) == ([1, 2], [True])
    assert finish(count()) == "result"
    with pytest.raises(ZeroDivisionError) as caught:
        finish(count(), lambda event: event / 0)
    assert caught.value.__traceback__ is not None  # which would hold the generator
    assert closed == [True] * 3


class StopError(Exception):
    pass


def stop_at(name: str) -> Callable[[Any], None]:
    def stop(event: Any) -> None:
        if type(event).__name__ == name:
            raise StopError(name)

    return stop


def test_a_training_yields_events_and_resumes_after_an_exception(digits: Path, tmp_path: Path) -> None:
    with pytest.raises(StopError) as caught:
        finetune(digits, output=tmp_path / "run", on_event=stop_at("StepDone"), **SMALL)  # type: ignore[arg-type]
    check_unlocked(tmp_path / "run")
    assert caught.value.__traceback__ is not None
    events: list[Any] = []
    finished = finetune(resume=tmp_path / "run", on_event=events.append)
    assert finished.run == tmp_path / "run"
    names = [type(event).__name__ for event in events]
    assert set(names) >= {"Started", "StepDone", "EpochDone", "Trained"}
    assert "Finished" not in names
    with pytest.raises(StopError):
        cross_validate(digits, output=tmp_path / "folds", on_event=stop_at("Planned"), **SMALL)  # type: ignore[arg-type]


@pytest.mark.parametrize("mean", [None, [0.4, 0.4, 0.4], "none", [0.4]])
def test_weights_of_another_normalisation_have_a_warning(
    mean: Any, digits: Path, run_copy: RunFolder, tmp_path: Path
) -> None:
    path = run_copy.path / "config.json"
    config = json.loads(path.read_text())
    config["pretrained_cfg"]["mean"] = config["pretrained_cfg"]["mean"] if mean is None else mean
    path.write_text(json.dumps(config))
    events: list[Any] = []

    def follow(event: Any) -> None:
        events.append(event)
        stop_at("Started")(event)

    with pytest.raises(StopError):
        finetune(digits, output=tmp_path / "run", audit=False, on_event=follow, **SMALL | {"weights": run_copy.path})  # type: ignore[arg-type]
    warned = [notice for notice in events[-1].notices if "are normalised by" in notice.text]
    assert len(warned) == (mean == [0.4, 0.4, 0.4])


def read_process_state() -> tuple[object, ...]:
    return (
        torch.get_rng_state().tolist(), torch.get_num_threads(), torch.get_float32_matmul_precision(),
        torch.are_deterministic_algorithms_enabled(), torch.get_default_dtype(), torch.is_grad_enabled(),
        torch.backends.cudnn.benchmark, dict(AcceleratorState._shared_state), signal.getsignal(signal.SIGINT),
        dict(os.environ),
    )  # fmt: skip


@pytest.mark.parametrize("train", [finetune, cross_validate])
def test_a_training_works_in_a_changed_process_and_leaves_it_so(
    train: Callable[..., Any], digits: Path, run: RunFolder, tmp_path: Path
) -> None:
    """A notebook goes on after a training, an error, an interrupt."""
    options: dict[str, Any] = SMALL | {"output": tmp_path / "run", "deterministic": True, "audit": False}
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.no_grad():
            before = read_process_state()
            with pytest.raises(StopError):
                train(digits, on_event=stop_at("StepDone"), **options)
            assert read_process_state() == before
            predict(np.zeros((8, 8, 3), np.uint8), run.path, engine="torch")
            assert read_process_state() == before
    finally:
        torch.set_default_dtype(dtype)


def test_numpys_errors_of_a_program_do_not_end_an_operation() -> None:
    tiny = np.float32(1e-30)

    def square() -> Generator[int, None, float]:
        yield 1
        return float(tiny * tiny)

    with np.errstate(all="raise"):
        assert finish(square()) == 0
        with pytest.raises(FloatingPointError):
            tiny * tiny


@pytest.mark.parametrize("train", [finetune, cross_validate])
def test_two_trainings_at_once_in_a_process_would_disturb_each_other(
    train: Callable[..., Any], digits: Path, tmp_path: Path
) -> None:
    def train_too(event: Any) -> None:
        if type(event).__name__ == "Planned":
            finetune(digits, output=tmp_path / "second", audit=False, **SMALL)  # type: ignore[arg-type]

    for _ in range(2):  # the first gives its place back
        with pytest.raises(UsageError, match="another training runs in this process"):
            train(digits, output=tmp_path / "run", audit=False, on_event=train_too, **SMALL)


def test_a_picture_that_cannot_be_written_stops_no_training(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(_: object) -> None:
        raise OSError(errno.EDQUOT, "no room in plots")

    monkeypatch.setattr("convnext_cli.reports.plots.draw_curves", fail)
    events: list[Any] = []
    finetune(digits, output=tmp_path / "run", on_event=events.append, **SMALL)  # type: ignore[arg-type]
    assert (tmp_path / "run/metrics.json").exists()
    notices = [event.text for event in events if type(event).__name__ == "Notice"]
    assert sum("the curves are not drawn" in text and "no room in plots" in text for text in notices) == 1


def test_finetune_and_cross_validate_refuse_each_others_requests_before_training(digits: Path, tmp_path: Path) -> None:
    cases: tuple[tuple[Any, dict[str, int], str], ...] = (
        (finetune, {"folds": 2}, "one fold"),
        (cross_validate, {"folds": 2, "fold": 1}, "needs folds"),
    )
    for operation, options, words in cases:
        with pytest.raises(UsageError, match=words):
            operation(digits, output=tmp_path / "run", audit=False, on_event=stop_at("Planned"), **SMALL, **options)
    assert not (tmp_path / "run").exists()


def test_other_operations_yield_progress_only(run_copy: RunFolder, digits: Path) -> None:
    events: list[Any] = []
    result = evaluate(run_copy.path, on_event=events.append)
    assert {event.activity for event in events} >= {"evaluating", "bootstrapping the 95% CIs"}
    for call in (
        lambda: write_report(result, on_event=events.append),
        lambda: check(digits, on_event=events.append),
        lambda: predict([*digits.glob("0/*.png")][:40], run_copy.path, on_event=events.append),
        lambda: compare(run_copy.path, run_copy.path, on_event=events.append),
        lambda: export(run_copy.path, format="hub", output=run_copy.path / "hub", on_event=events.append),
    ):
        events.clear()
        call()
        assert events
        assert all(isinstance(event, Progress) and 0 <= event.done <= event.total for event in events)


def test_python_shows_results_without_a_value_for_each_image(run_copy: RunFolder, digits: Path) -> None:
    """A notebook shows the last result of a cell."""
    for result in (check(digits), recommend(digits), evaluate(run_copy.path), list_models()):
        assert len(repr(result)) < 20_000
        assert run_copy.read_split().paths[0] not in repr(result)


def test_predict_counts_images(run: RunFolder) -> None:
    events: list[Progress] = []
    predict(np.zeros((3, 8, 8, 3), np.uint8), run.path, on_event=events.append)
    assert events == [Progress(done=done, total=3, activity="predicting") for done in (1, 2, 3)]


@pytest.mark.parametrize(
    ("flags", "options"),
    [
        ("", {}),
        ("--image-size 96 --recipe published", {"image_size": 96, "recipe": "published"}),
        ("--model convnext_pico --domain natural --vram 4", {"model": "convnext_pico", "domain": "natural", "vram": 4}),
        ("--exclude 1", {"exclude": "1"}),
    ],
)
def test_recommend_equals_the_command(flags: str, options: dict[str, Any], digits: Path, convnext: Convnext) -> None:
    printed = json.loads(convnext("recommend", digits, *flags.split(), "--json").out)
    for data in (digits, str(digits)):
        result = recommend(data, **options)
        assert result.best.model.name == printed["model"]
        assert {name: choice.value for name, choice in result.plan.choices.items()} == {
            name: choice["value"] for name, choice in printed["settings"].items()
        }
        assert list(result.warnings) == printed["warnings"]
        assert result.dataset_size == printed["dataset_size"]
        assert result.fingerprint is not None
        assert result.machine is not None
        assert result.best.seconds == pytest.approx(printed["models"][0]["seconds"], rel=0.1)


def test_recommend_for_a_number_or_for_nothing(tmp_path: Path, digits: Path) -> None:
    result = recommend(6000)
    assert (result.dataset_size, result.machine, result.index, result.fingerprint) == (6000, None, None, None)
    assert recommend(np.int64(6000)).dataset_size == 6000  # type: ignore[arg-type]
    wrong: tuple[tuple[Any, str], ...] = (
        (1.5, "dataset_size = 1.5 must be a whole"),
        ([], r"data = \[\] must be a path"),
        (0, "dataset_size = 0 is below 1"),
    )
    for value, problem in wrong:
        with pytest.raises(UsageError, match=problem):
            recommend(value)
    for name in ("classes", "vram", "license", "domain", "prefer", "recipe", "model", "weights"):
        with pytest.raises(UsageError, match=name):
            recommend(600, **{name: ["a"]})  # type: ignore[arg-type]
    with pytest.raises(DataError, match="nowhere does not exist"):
        recommend("nowhere")
    with pytest.raises(UsageError, match="classes: counted from the data"):
        recommend(digits, classes=3)
    save_image(tmp_path / "one/only/a.png")
    with pytest.raises(DataError, match="one class only"):
        recommend(tmp_path / "one")


def test_check_equals_the_command(tmp_path: Path, convnext: Convnext) -> None:
    for split in ("train", "test"):
        for name in "ab":
            for i in range(3):
                save_image(tmp_path / f"data/{split}/{name}/{i}.png", size=(40, 40), seed=i + 10 * (name == "b"))
    outcome = convnext("check", "data", "--json")
    assert outcome.code == 3
    audit = check("data", fix_list=tmp_path / "out.csv")
    assert audit.falsifies
    assert json.loads(json.dumps(audit.to_dict())) == json.loads(outcome.out)
    assert (tmp_path / "out.csv").read_text().startswith("path,reason")
    assert not check("data", exclude=str(tmp_path / "out.csv")).falsifies
    assert not check("data", resplit=True).falsifies
    with pytest.raises(UsageError, match="exists already"):
        check("data", fix_list=tmp_path / "out.csv")
    with pytest.raises(UsageError, match="would lie in the data folder"):
        check("data", fix_list="data/out.csv")
    with pytest.raises(UsageError, match="resplit = 'yes'"):
        check("data", resplit="yes")  # type: ignore[arg-type]
    with pytest.raises(UsageError, match="epochs is not an option of check"):
        check("data", epochs=3)  # type: ignore[call-arg]
    with pytest.raises(DataError, match="nowhere does not exist"):
        check("nowhere")


def test_compare_equals_eval_of_two_runs(run_copy: RunFolder, tmp_path: Path, convnext: Convnext) -> None:
    other = RunFolder(tmp_path / "other")
    shutil.copytree(run_copy.path, other.path)
    weights = load_file(other.path / "model.safetensors")
    random = np.random.default_rng(0)
    noisy = {name: value + random.normal(0, value.std() / 2, value.shape) for name, value in weights.items()}
    save_file(
        {name: value.astype(weights[name].dtype) for name, value in noisy.items()}, other.path / "model.safetensors"
    )
    compared = compare(run_copy.path, other.path)
    difference = compared.differences["top1"]
    assert difference is not None
    first, second = (evaluate(folder.path).metrics.top1 for folder in (run_copy, other))
    assert difference.value == pytest.approx(second - first)
    assert difference.value != 0
    assert [len(folder.read_tests()) for folder in (run_copy, other)] == [2, 2], "once each, and once here"
    printed = json.loads(convnext("eval", run_copy.path, other.path, "--no-report", "--json").out)
    assert printed["comparisons"][0]["p_value"] == compared.p_value
    assert printed["comparisons"][0]["differences"]["top1"]["value"] == difference.value
    assert compare(run_copy.path, other.path, split="val") != compared
    with pytest.raises(DataError):
        compare(run_copy.path, tmp_path / "nowhere")
    assert len(run_copy.read_tests()) == 3, "no run was evaluated before all could be read"


@pytest.mark.slow
def test_export_returns_the_parity_of_its_file(run_copy: RunFolder, tmp_path: Path) -> None:
    program = export(run_copy.path, format="pt2", output=tmp_path / "a.pt2")
    assert program.path == tmp_path / "a.pt2"
    assert program.parity.holds


def test_export_makes_a_folder_for_the_hub(run_copy: RunFolder, tmp_path: Path) -> None:
    made = export(run_copy.path, format="hub", output=tmp_path / "hub")
    assert isinstance(made, HubFolder)
    assert {path.name for path in made.path.iterdir()} == set(made.files)
    with pytest.raises(UsageError, match="exists already"):
        export(run_copy.path, format="hub", output=tmp_path / "hub")
    for options, problem in (
        ({"format": "hub"}, "needs --output"),
        ({"format": "hub", "output": "x", "int8": True}, "have no effect with --format hub"),
        ({"format": "hub", "output": "x", "tolerance": 0.1}, "--int8, --images, --tolerance and --calibration have no"),
        ({"format": "pt2", "push": "me/mine"}, "--push goes with --format hub"),
        ({"format": "tflite"}, "must be one of onnx, pt2, hub"),
        ({"images": "a.png"}, "images = 'a.png' must be a list of paths"),
        ({"images": Path("a.png")}, "must be a list of paths"),
        ({"images": None}, "images = None must be a list of paths"),
    ):
        with pytest.raises(UsageError, match=problem):
            export(run_copy.path, **options)
    assert not Path("x").exists()


def test_operations_import_torch_after_their_progress_bar_stands() -> None:
    script = """
import sys
from convnext_cli.cli import console
def run(*_):
    assert "torch" not in sys.modules
    raise SystemExit(42)
console.run = run
from convnext_cli.cli.app import main
main(sys.argv[1:])
"""
    Path("run").mkdir()
    Path("run/plan.toml").touch()
    for command in ("eval", "export"):
        done = subprocess.run([sys.executable, "-c", script, command, "run"], check=False)
        assert done.returncode == 42


def test_errors_in_a_request_come_before_torch_is_imported() -> None:
    script = """
import sys
from convnext_cli.cli.app import main
for words in ("finetune missing", "finetune missing --folds 3", "finetune --resume missing", "check missing"):
    try:
        main(words.split())
    except SystemExit as end:
        assert end.code in (2, 3), words
    assert "torch" not in sys.modules, words
"""
    subprocess.run([sys.executable, "-c", script], check=True, capture_output=True)
