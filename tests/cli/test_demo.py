import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from convnext_cli.cli.demo import SETTINGS, _check_folder
from convnext_cli.data.digits import MARK
from convnext_cli.data.layout import looks_like_data
from convnext_cli.runs.folder import RunFolder
from tests.conftest import Convnext, save_image
from tools.kill_test import copy_images


@pytest.mark.slow
def test_the_demo_runs_offline_and_compares_pretrained_with_newly_initialised() -> None:
    """The whole path as a user starts it, with every connection refused."""
    script = (
        "import socket, sys\n"
        "def refuse(*_): raise OSError('no network in this test')\n"
        "socket.socket.connect = refuse\n"
        "from convnext_cli.cli.app import main\n"
        "main(['demo', '--json'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    result = json.loads(done.stdout)
    right = {}
    for name in ("from-scratch", "run"):
        assert result[name]["split"] == "test"
        assert result[name]["metrics"]["images"] == 270
        right[name] = result[name]["metrics"]["balanced_accuracy"]
    assert right["run"] > 0.97
    assert right["run"] > right["from-scratch"] + 0.02


@pytest.fixture
def quick_demo(monkeypatch: pytest.MonkeyPatch, digits: Path) -> None:
    """Let the demo train for one epoch on a few digits."""

    def write_few(folder: Path) -> Path:
        if not folder.exists():
            copy_images(digits, folder, 20)
            (folder.parent / MARK).touch()
        return folder

    monkeypatch.setattr("convnext_cli.data.digits.write_digits", write_few)
    monkeypatch.setitem(SETTINGS, "epochs", 1)


@pytest.mark.slow
@pytest.mark.usefixtures("quick_demo")
def test_a_demo_can_be_repeated_and_keeps_runs_that_it_did_not_train(convnext: Convnext, digits: Path) -> None:
    for _ in range(2):
        outcome = convnext("demo", "-o", "own")
        assert outcome.code == 0, outcome.err
    words = ["--model", "test_convnext2", "--weights", "none", "--epochs", "1", "--image-size", "32", "--overwrite"]
    for name in ("run", "from-scratch"):
        assert convnext("finetune", digits, *words, "-o", f"own/{name}").code == 0
        before = RunFolder(Path("own") / name).fingerprint_weights()
        outcome = convnext("demo", "-o", "own")
        assert outcome.code == 2
        assert f"own/{name} is a run that was not trained by a demo. Choose another --output." in outcome.err
        assert RunFolder(Path("own") / name).fingerprint_weights() == before
        shutil.rmtree(Path("own") / name)


def list_tree(folder: Path) -> set[Path]:
    return set(folder.rglob("*"))


@pytest.mark.parametrize(
    ("output", "words"),
    [
        ("images", "images exists already, and was not written by a demo"),
        ("images/demo", "images/demo would lie in the data folder"),
        ("images/neg/a/b", "would lie in the data folder"),
        ("split/demo", "would lie in the data folder"),
        ("trained", "trained exists already, and was not written by a demo"),
        ("trained/demo", "trained/demo would lie in the run folder"),
        ("file.txt", "file.txt is a file"),
    ],
)
def test_a_demo_writes_into_no_data_set_and_no_run(convnext: Convnext, output: str, words: str) -> None:
    for part in ("images/neg", "images/pos", "split/train/a", "split/train/b", "split/val/a"):
        for number in range(2):
            save_image(Path(part, f"{number}.png"))
    Path("trained").mkdir()
    for name in ("plan.toml", "split.csv"):
        Path("trained", name).touch()
    Path("file.txt").touch()
    before = list_tree(Path())
    outcome = convnext("demo", "-o", output)
    assert (outcome.code, outcome.out) == (2, "")
    assert words in outcome.err
    assert list_tree(Path()) == before


def test_a_demo_may_lie_beside_the_plan_of_recommend() -> None:
    Path("plan.toml").touch()
    _check_folder(Path("demo"))


def test_a_folder_beside_data_and_runs_is_no_data_set() -> None:
    save_image(Path("images/neg/1.png"))
    save_image(Path("images/pos/1.png"))
    save_image(Path("runs/one/curves.png"))
    assert looks_like_data(Path("images"))
    assert not looks_like_data(Path())
