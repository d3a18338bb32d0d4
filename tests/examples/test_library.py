import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

from tests.test_house import ROOT


def test_the_example_of_the_library_runs(digits: Path, tmp_path: Path) -> None:
    command = [sys.executable, str(ROOT / "examples/library.py"), str(digits), str(tmp_path)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    for words in ("convnext_atto", "images: convnextv2_tiny", "95%", "sensitivity=0.9:1"):
        assert words in done.stdout
    assert (tmp_path / "run/report.html").exists()
    assert ("digits.onnx: differs by" in done.stdout) == bool(find_spec("onnxscript"))
    done = subprocess.run([*command[:2], "nowhere", "x"], capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert "nowhere does not exist" in done.stderr
    assert "Traceback" not in done.stderr
