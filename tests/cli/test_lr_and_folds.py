import json
from pathlib import Path

from convnext_cli.runs.folds import FoldsFolder
from tests.conftest import Convnext
from tools.kill_test import copy_images


def test_lr_accepts_auto_and_no_other_word(convnext: Convnext, digits: Path) -> None:
    flags = ["finetune", digits, "--weights", "builtin", "--dry-run", "--json"]
    lr = json.loads(convnext(*flags, "--lr", "auto").out)["settings"]["lr"]
    assert lr["source"] == "auto"
    assert "a range test before training replaces" in lr["reason"]
    Path("plan.toml").write_text('[settings]\nlr = "auto"\n')
    assert json.loads(convnext(*flags, "--config", "plan.toml").out)["settings"]["lr"] == lr
    assert json.loads(convnext(*flags, "--lr", "0.5").out)["settings"]["lr"]["value"] == 0.5
    wrong = convnext(*flags, "--lr", "fast")
    assert wrong.code == 2
    assert "'fast' is not a number; write one, or auto" in wrong.err
    assert len(wrong.err.strip().splitlines()) == 1


def test_all_folds_in_turn_and_then_as_one(convnext: Convnext, digits: Path) -> None:
    data = copy_images(digits, Path("data"), 12)
    flags = "--weights builtin --img-size 32 --epochs 1 -b 8 --lr 0.001 --test-fraction 0.25 --no-check --folds 2"
    dry = convnext("finetune", data, *flags.split(), "--dry-run")
    assert "in the first of 2 folds" in dry.out
    done = convnext("finetune", data, *flags.split(), "-o", "runs/cv")
    assert done.code == 0, done.err
    assert done.err.count("fold 2 of 2") == 1
    assert "The metrics are before calibration, on the validation images that chose the best epoch" in done.out
    rows = {line.split()[0]: line.split() for line in done.out.splitlines() if line.split()}
    metrics = json.loads(FoldsFolder(Path("runs/cv")).metrics.read_text())
    for row, values in (("mean", "mean"), ("sd", "sd")):
        assert rows[row][3] == f"{100 * metrics['spread']['balanced_accuracy'][values]:.1f}"
    result = json.loads(convnext("eval", "--json", "--no-report").out)
    assert (result["run"], result["split"], result["metrics"]["images"]) == ("runs/cv", "test", 9)
    assert "out of fold" in convnext("eval", "runs/cv", "--split", "val", "--no-report").err
    image = next(data.rglob("*.png"))
    assert "run: runs/cv (the newest)" in convnext("predict", image).err
    assert convnext("export", "runs/cv").code == 2
    again = convnext("finetune", "--resume", "runs/cv")
    assert "has finished" in again.err
