"""The short form of the two scripts that try what is wrong: `tools/damage_runs.py` and `tools/wrong_options.py`."""

import shutil
import time
from pathlib import Path

import pytest

from convnext_cli.runs import RunFolder
from tools.damage_runs import Outcome, call, classify, try_damages
from tools.wrong_options import list_options, try_options


@pytest.mark.parametrize(("command", "number"), [("predict", 14), ("eval", 6), ("export hub", 3), ("resume", 1)])
def test_a_damaged_run_gives_the_right_answer_or_a_clear_word(
    command: str, number: int, run: RunFolder, digits: Path, tmp_path: Path
) -> None:
    other = shutil.copytree(run.path, tmp_path / "other")
    (other / "metrics.json").write_text("{}")
    found = list(try_damages(tmp_path, run.path, other, digits, seed=0, limit=number, only=command))
    assert len(found) == number
    assert [told for told in found if told[2] == "WRONG"] == []
    assert any(outcome == "refused" for _, _, outcome, _ in found) or number < 6


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
        (Outcome(code=0, out='{"p": 0.6}', err="note: not calibrated"), "told"),
    ],
)
def test_outcomes_are_told_apart(done: Outcome, outcome: str) -> None:
    whole = Outcome(code=0, out='{"p": 0.5}', err="")
    assert classify(done, whole, Path("none"), Path("none"), "config.json: x") == outcome


def test_wrong_values_of_options_are_refused(run: RunFolder, digits: Path, tmp_path: Path) -> None:
    shutil.copytree(run.path, tmp_path / "run")
    shutil.copytree(digits, tmp_path / "data")
    found = list(try_options(seed=1, limit=40))
    assert [(words, done) for words, done, outcome in found if outcome == "WRONG"] == []
    assert sum(outcome == "clear" for _, _, outcome in found) > 20
    assert {"--epochs", "--weights", "--exclude"} <= {f"--{name.lstrip('-')}" for name in list_options("finetune")}


def test_a_command_that_hangs_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    def spin(seconds: float) -> None:
        end = time.process_time() + seconds
        while time.process_time() < end:
            pass

    monkeypatch.setattr("convnext_cli.cli.app.app", lambda *_, **__: spin(20))
    assert call("list", seconds=1).crash == "more than 1 s"
