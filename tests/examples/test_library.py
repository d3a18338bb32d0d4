import runpy
import sys
import tempfile
from importlib.util import find_spec
from pathlib import Path

import pytest
from PIL import Image

from tests.conftest import ROOT

SCRIPT = str(ROOT / "examples/library.py")


@pytest.mark.slow
def test_the_example_of_the_library_runs_without_arguments(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT])
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    runpy.run_path(SCRIPT, run_name="__main__")
    output = capsys.readouterr().out
    for words in (
        "300 digits of 3 classes",
        "300 images, findings: ",
        "convnext_atto",
        "95% CI [",
        "sensitivity=0.9:1",
    ):
        assert words in output
    rows = dict(line.split(": ", 1) for line in output.splitlines() if line.startswith(("file: ", "PIL image: ")))
    assert rows["file"] == rows["PIL image"]
    assert ("model.onnx: differs by" in output) == bool(find_spec("onnxscript"))
    assert not list(tmp_path.glob("tmp*")), "it removes what it made"  # torch leaves a folder of its own


@pytest.mark.slow
def test_the_example_runs_on_photographs(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for path in (path for name in "012" for path in sorted((digits / name).glob("*.png"))[:100]):
        (tmp_path / "photos" / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.open(path).save(tmp_path / "photos" / path.parent.name / f"{path.stem}.jpg")
    monkeypatch.setattr(sys, "argv", [SCRIPT, str(tmp_path / "photos"), str(tmp_path / "out")])
    runpy.run_path(SCRIPT, run_name="__main__")
    assert "PIL image: " in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "problem"), [(["nowhere", "x"], "nowhere does not exist"), (["nowhere"], "usage: python examples/lib")]
)
def test_a_failure_of_the_example_is_one_line(words: list[str], problem: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "argv", [SCRIPT, *words])
    with pytest.raises(SystemExit) as caught:
        runpy.run_path(SCRIPT, run_name="__main__")
    assert str(caught.value.code).startswith(problem)
    assert "\n" not in str(caught.value.code)
