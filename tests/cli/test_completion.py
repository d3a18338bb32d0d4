import os
import subprocess
import sys
from pathlib import Path

import pytest

from convnext_cli.cli.completion import complete_model, complete_run


def test_completion_lists_models_then_tags() -> None:
    assert complete_model("convnextv2_ti") == ["convnextv2_tiny"]
    assert complete_model("convnext_atto.") == ["convnext_atto.d2_in1k"]
    assert complete_model("resnet") == []


@pytest.fixture
def _runs(tmp_path: Path) -> None:
    for name in ("runs/mine", "runs/other", "elsewhere/third"):
        (tmp_path / name).mkdir(parents=True)
        (tmp_path / name / "plan.toml").touch()
    (tmp_path / "runs/none").mkdir()


@pytest.mark.usefixtures("_runs")
def test_completion_lists_runs_and_folders() -> None:
    assert complete_run("runs/m") == ["runs/mine", "runs/mine/"]
    assert complete_run("elsewhere/")[0] == "elsewhere/third"
    assert "runs/none" not in complete_run("runs/")
    assert complete_run("")[:2] == ["runs/mine", "runs/other"]
    assert complete_run("nowhere/x") == []


@pytest.mark.usefixtures("_runs")
@pytest.mark.parametrize(
    ("words", "offered"),
    [
        ("convnext finetune --model convnextv2_ti", "convnextv2_tiny"),
        ("convnext predict a.png --run runs/o", "runs/other"),
        ("convnext eval runs/m", "runs/mine"),
        ("convnext export runs/m", "runs/mine"),
        ("convnext list convnext_zep", "convnext_zepto_rms"),
    ],
)
def test_shell_completion_works(words: str, offered: str) -> None:
    number = str(len(words.split()) - 1)
    env = os.environ | {"_CONVNEXT_COMPLETE": "complete_bash", "COMP_WORDS": words, "COMP_CWORD": number}
    command = [sys.executable, "-m", "convnext_cli"]
    done = subprocess.run(command, env=env, capture_output=True, text=True, check=True)
    assert offered in done.stdout.split()
