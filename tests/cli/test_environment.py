"""Environment variables that have no meaning for this program, or a senseless one."""

import errno
import json
import os
import subprocess
import sys
import tempfile
from pathlib import Path
from unittest.mock import Mock

import pytest

import convnext_cli
from convnext_cli import __main__
from tests.conftest import Convnext, save_image


@pytest.mark.parametrize(
    "reason",
    [
        "invalid literal for int() with base 10: 'junk'",
        "Invalid settings: junk.\nTry SOME_LOGS=all",
        "The value of SOME_LOGS must be ON",
    ],
)
def test_a_variable_that_a_library_cannot_use_is_named(
    convnext: Convnext, monkeypatch: pytest.MonkeyPatch, reason: str
) -> None:
    monkeypatch.setattr("convnext_cli.cli.list.list_models", Mock(side_effect=ValueError(reason)))
    monkeypatch.setenv("SOME_LOGS", "junk")
    monkeypatch.setenv("LOGS", "jun")
    outcome = convnext("list")
    assert outcome.code == 2
    problem = f"a library cannot use the environment variable SOME_LOGS ({reason.splitlines()[0]})"
    assert outcome.err == f"error: {problem}. Correct or unset it\n"


@pytest.mark.parametrize(
    ("name", "value", "error"),
    [
        ("SHLVL", "1", KeyError("1")),
        ("PWD", "/a/b", ValueError("'/a/c' is not in the subpath of '/a/b'")),
        ("CUDA_LAUNCH_BLOCKING", "1", RuntimeError("CUDA error. For debugging pass CUDA_LAUNCH_BLOCKING=1")),
    ],
)
def test_an_error_that_does_not_complain_of_a_variable_is_a_bug(
    convnext: Convnext, monkeypatch: pytest.MonkeyPatch, name: str, value: str, error: Exception
) -> None:
    monkeypatch.setattr("convnext_cli.cli.list.list_models", Mock(side_effect=error))
    monkeypatch.setenv(name, value)
    outcome = convnext("list")
    assert outcome.code == 1
    assert f"{type(error).__name__}: {error}. This is a bug" in outcome.err


def test_a_read_only_container_is_told_of_tmpdir(convnext: Convnext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile._candidate_tempdir_list", list)
    monkeypatch.setattr("tempfile.tempdir", None)
    monkeypatch.setattr("convnext_cli.cli.list.list_models", lambda **_: tempfile.gettempdir())
    outcome = convnext("list")
    assert outcome.code == 1
    assert outcome.err == "error: no temporary folder is writable. Set TMPDIR to a folder that is\n"


def test_a_missing_module_is_no_bug(convnext: Convnext, monkeypatch: pytest.MonkeyPatch) -> None:
    error = ModuleNotFoundError("No module named 'torch'", name="torch")
    monkeypatch.setattr("convnext_cli.cli.list.list_models", Mock(side_effect=error))
    outcome = convnext("list")
    assert outcome.code == 1
    assert "error: the Python module torch is missing. Install convnext again" in outcome.err


@pytest.mark.parametrize("error", [RuntimeError("can't start new thread"), BlockingIOError(errno.EAGAIN, "Resource")])
def test_a_limit_of_processes_is_named(convnext: Convnext, monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    monkeypatch.setattr("convnext_cli.cli.list.list_models", Mock(side_effect=error))
    outcome = convnext("list")
    assert outcome.code == 1
    assert "too many processes and threads to start another one. Raise the limit" in outcome.err


def test_a_limit_of_memory_is_an_error_before_a_library_hangs(
    convnext: Convnext, monkeypatch: pytest.MonkeyPatch, digits: Path
) -> None:
    command = ["bash", "-c", 'ulimit -v 270000; exec "$0" -m convnext_cli check "$1"', sys.executable, str(digits)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, timeout=60)
    assert done.returncode == 4
    assert done.stderr == (
        "error: this process may have 264 MiB of memory (`ulimit -v`), which is too little. "
        "Raise the limit to 1 GiB, and for PyTorch to 8 GiB or more.\n"
    )
    monkeypatch.delenv("OPENBLAS_NUM_THREADS", raising=False)
    monkeypatch.setattr("resource.getrlimit", Mock(return_value=(2**40, -1)))
    assert convnext("list").code == 0
    assert "OPENBLAS_NUM_THREADS" not in os.environ
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "")  # so that it is unset again
    del os.environ["OPENBLAS_NUM_THREADS"]
    monkeypatch.setattr("resource.getrlimit", Mock(return_value=(2**30, -1)))
    assert convnext("list").code == 0
    assert os.environ["OPENBLAS_NUM_THREADS"] == "1"


def test_plots_need_no_backend(convnext: Convnext, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MPLBACKEND", "junk")
    assert convnext("list").code == 0
    assert "MPLBACKEND" not in os.environ


@pytest.mark.parametrize(("name", "value"), [("RANK", "3"), ("RANK", "junk"), ("WORLD_SIZE", "0")])
def test_a_variable_of_a_launcher_alone_does_not_silence_a_command(name: str, value: str) -> None:
    command = [sys.executable, "-m", "convnext_cli", "list", "--json"]
    done = subprocess.run(command, env=os.environ | {name: value}, capture_output=True, text=True, check=True)
    assert json.loads(done.stdout)


def test_names_are_the_same_in_any_locale() -> None:
    for number, name in enumerate(("grün", "猫")):
        save_image(Path(f"data/{name}/1.png"), seed=number)
    command = [sys.executable, "-m", "convnext_cli", "check", "data"]
    outputs = [
        subprocess.run(command, env=os.environ | locale, capture_output=True, check=True).stdout
        for locale in ({"PYTHONUTF8": "1"}, {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0"})
    ]
    assert "猫" in outputs[0].decode()
    assert outputs[0] == outputs[1]


def test_native_windows_is_refused_in_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "fcntl", None)  # as where there is no such module
    with pytest.raises(ImportError, match="WSL 2"):
        _ = convnext_cli.finetune
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert str(ended.value) == (
        "error: convnext does not run on native Windows. Install it in WSL 2, a Linux inside Windows"
    )


def test_ctrl_c_during_imports_is_one_line(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    class Interrupting:
        def __getattr__(self, name: str) -> None:
            raise KeyboardInterrupt

    monkeypatch.setitem(sys.modules, "convnext_cli.cli.app", Interrupting())
    with pytest.raises(SystemExit) as ended:
        __main__.main()
    assert ended.value.code == 130
    assert capsys.readouterr().err == "error: interrupted. Saved files are intact\n"
