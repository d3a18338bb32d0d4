import runpy
import sys
import tempfile
from pathlib import Path

import pytest

from tests.conftest import ROOT

SCRIPT = str(ROOT / "examples/distillation.py")


@pytest.mark.slow
def test_the_example_of_a_distillation_runs_without_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runpy.run_path(SCRIPT, run_name="__main__")
    output = capsys.readouterr().out
    for words in ("against the large model: ", "without a teacher: ", "95% CI [", "time per image: "):
        assert words in output
    assert not list(tmp_path.iterdir()), "it removes what it made"


@pytest.mark.parametrize(
    ("words", "problem"), [(["nowhere", "x"], "nowhere does not exist"), (["nowhere"], "usage: python examples/dist")]
)
def test_a_failure_of_the_example_is_one_line(words: list[str], problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT, *words])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert str(caught.value.code).startswith(problem)
