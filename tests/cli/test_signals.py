import os
import signal
import time
from collections.abc import Generator, Iterator
from pathlib import Path
from typing import Any
from unittest.mock import Mock

import pytest

from convnext_cli.cli.app import main
from convnext_cli.cli.signals import stop_by_signals
from convnext_cli.files import replace_file
from convnext_cli.training.events import Started

SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGUSR1", "SIGUSR2", "SIGXCPU")


@pytest.fixture
def python_handlers() -> Iterator[None]:
    """The handlers that Python starts with: a shell's background job, or nohup, starts it with ignored signals."""
    before: dict[signal.Signals, Any] = {}
    for number in map(signal.Signals.__getitem__, SIGNALS):
        handler = signal.default_int_handler if number == signal.SIGINT else signal.SIG_DFL
        before[number] = signal.signal(number, handler)
    yield
    for number, handler in before.items():
        signal.signal(number, handler)


@pytest.mark.usefixtures("python_handlers")
@pytest.mark.parametrize("name", SIGNALS)
def test_a_signal_stops_any_command_without_temporary_files(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    number = signal.Signals[name]
    handler = signal.getsignal(number)

    def write(*_: object) -> None:
        with replace_file(Path("file")) as temporary:
            temporary.write_text("half")
            os.kill(os.getpid(), number)
            time.sleep(10)

    monkeypatch.setattr("convnext_cli.cli.eval.run_evaluations", write)
    Path("run").mkdir()
    Path("run/plan.toml").touch()
    with pytest.raises(SystemExit) as ended:
        main(["eval", "run"])
    assert ended.value.code == 128 + number
    assert capsys.readouterr().err.endswith("interrupted. Saved files are intact\n")
    assert list(Path().iterdir()) == [Path("run")]
    assert signal.getsignal(number) == handler


@pytest.mark.usefixtures("python_handlers")
@pytest.mark.parametrize("words", [["data", "-o", "run"], ["--resume", "run"]])
@pytest.mark.parametrize("begun", [None, "run", "folds/fold-2"])
def test_an_interrupted_training_says_whether_it_resumes(
    words: list[str], begun: str | None, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def train(_: object) -> Generator[object, None, None]:
        if begun is not None:
            yield Mock(spec=Started, run=Path(begun))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(10)

    monkeypatch.setattr("convnext_cli.api.train", train)
    monkeypatch.setattr("convnext_cli.cli.training_view._show_started", lambda *_: None)
    Path("folds").mkdir()
    Path("folds/folds.toml").touch()
    with pytest.raises(SystemExit) as ended:
        main(["finetune", *words])
    assert ended.value.code == 128 + signal.SIGTERM
    [line] = capsys.readouterr().err.splitlines()
    resumed = "run" if "--resume" in words else begun and begun.partition("/")[0]
    remedy = "It had not begun; the same command starts it again"
    if resumed:
        remedy = f"Continue with `convnext finetune --resume {resumed}`"
    assert line == f"training interrupted. {remedy}."


def test_processes_that_were_interrupted_have_the_last_word(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.delenv("RANK", raising=False)
    monkeypatch.setattr("convnext_cli.training.compute.launcher.launch", lambda _: 130)
    with pytest.raises(SystemExit) as ended:
        main(["finetune", "data", "--devices", "2"])
    assert ended.value.code == 130
    assert capsys.readouterr().err == ""


def test_an_ignored_signal_stays_ignored() -> None:
    handler = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with stop_by_signals():
            os.kill(os.getpid(), signal.SIGHUP)
    finally:
        signal.signal(signal.SIGHUP, handler)
