"""The short form of the two scripts that try what is wrong: `tools/damage_runs.py` and `tools/wrong_options.py`."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest

from convnext_cli.runs.folder import RunFolder
from tools.commands import Outcome, call
from tools.damage_runs import FINISHED, STOPPED, classify, try_damages
from tools.wrong_options import list_baselines, list_options, try_options

ROOT = Path(__file__).parents[2]


@pytest.mark.parametrize(("command", "number"), [("predict", 14), ("eval", 6), ("export hub", 3), ("resume", 1)])
def test_a_damaged_run_gives_the_right_answer_or_a_clear_word(
    command: str, number: int, run: RunFolder, digits: Path, tmp_path: Path
) -> None:
    made_by_others = shutil.ignore_patterns("plots", "report.html", "tests.jsonl")  # the draw is over all files
    whole = shutil.copytree(run.path, tmp_path / "whole", ignore=made_by_others)
    other = shutil.copytree(whole, tmp_path / "other")
    (other / "metrics.json").write_text("{}")
    stopped = RunFolder(shutil.copytree(whole, tmp_path / "stopped"))
    for path in (stopped.metrics, stopped.list_checkpoints()[0]):
        path.unlink()
    runs = {FINISHED: whole, STOPPED: stopped.path}
    results = list(try_damages(tmp_path, runs, other, digits, seed=0, limit=number, only=command))
    assert len(results) == number
    assert [result for result in results if result[2] == "WRONG"] == []
    assert any(outcome == "refused" for _, _, outcome, _ in results) or number < 10


@pytest.mark.parametrize(
    ("done", "outcome"),
    [
        (Outcome(code=1, out="", err="error: KeyError: 'a'. This is a bug"), "WRONG"),
        (Outcome(code=0, out='{"probability": NaN}', err=""), "WRONG"),
        (Outcome(code=0, out="", err="", crash="more than 30 s"), "WRONG"),
        (Outcome(code=3, out="", err=""), "WRONG"),
        (Outcome(code=3, out="", err="error: config.json cannot be read"), "refused"),
        (Outcome(code=0, out='{"p": 0.5000001}', err=""), "same"),
        (Outcome(code=0, out='{"p": 0.6}', err=""), "allowed"),
        (Outcome(code=0, out='{"p": 0.6}', err="note: not calibrated"), "noticed"),
        (Outcome(code=4, out="", err="error: out of memory"), "WRONG"),
    ],
)
def test_outcomes_are_told_apart(done: Outcome, outcome: str) -> None:
    whole = Outcome(code=0, out='{"p": 0.5}', err="")
    assert classify(done, whole, Path("none"), Path("none"), "config.json: x") == outcome


@pytest.mark.slow
def test_wrong_values_of_options_are_refused(run: RunFolder, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    shutil.copytree(digits, tmp_path / "data")
    (tmp_path / "few").symlink_to(digits)
    for command in ("list", "recommend", "finetune", "predict", "cache"):
        words = list_baselines(str(sorted(Path("data/1").iterdir())[0]))[command]
        assert call(command, *words).code == 0, "the call without a wrong value fails"
    results = list(try_options(seed=1, limit=40))
    assert [(words, done) for words, done, outcome in results if outcome == "WRONG"] == []
    assert sum(outcome == "clear" for _, _, outcome in results) > 20
    taking, flags = list_options("finetune")
    assert {"--epochs", "--weights", "--exclude"} <= set(taking)
    assert {"--offline", "--json"} <= set(flags)


def test_changed_data_are_wrong(digits: Path, tmp_path: Path) -> None:
    shutil.copytree(digits, tmp_path / "data")

    def write(*_: str, **__: int) -> Outcome:
        (tmp_path / "data/new").write_text("")
        return Outcome(code=0, out="", err="")

    [(_, done, outcome)] = try_options(seed=1, limit=1, caller=write)
    assert outcome == "WRONG"
    assert done.crash == "the data are not what they were"


def test_a_crash_in_a_fork_is_an_outcome() -> None:
    script = """
import ctypes
from convnext_cli.cli import app
from tools.commands import call_apart
app.make_app = lambda _: lambda words, **_: ctypes.string_at(0) if words == ["crash"] else print("answer")
print([call_apart(word).crash for word in ("crash", "ends")], call_apart("ends").out)
"""
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, cwd=ROOT)
    assert done.stdout == "['signal 11', ''] answer\n\n"


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    monkeypatch.setattr("convnext_cli.cli.app.make_app", lambda _: lambda *_, **__: spin(20))
    assert call("list", seconds=1).crash == "more than 1 s"
