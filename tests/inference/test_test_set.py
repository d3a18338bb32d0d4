"""Class names in other Unicode forms; data that are read with the options of the run."""

import unicodedata
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from convnext_cli.data.index import Index
from convnext_cli.data.sources import scan_data
from convnext_cli.errors import DataError, UsageError
from convnext_cli.inference.calibration import Calibration, add_targets, parse_target
from convnext_cli.inference.classifier import Classifier
from convnext_cli.inference.request import EvalRequest
from convnext_cli.inference.test_set import choose_test_set
from convnext_cli.progress import finish
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.registry import SINGLE
from tests.conftest import save_image

COMPOSED, DECOMPOSED = (unicodedata.normalize(form, "café") for form in ("NFC", "NFD"))


def make_index(*classes: str) -> Index:
    paths = tuple(f"{k}.png" for k in range(len(classes)))
    labels = tuple(range(len(classes)))
    return Index(root=Path(), classes=classes, paths=paths, labels=labels, splits=("",) * len(classes), skipped={})


@pytest.mark.parametrize("own", [COMPOSED, DECOMPOSED, f"{COMPOSED} "])
@pytest.mark.parametrize("other", [COMPOSED, DECOMPOSED])
def test_class_names_match_in_any_unicode_form(own: str, other: str) -> None:
    model = SimpleNamespace(classes=("bar", own), task=SINGLE)
    assert Classifier.read_targets(model, make_index(other, "bar"), [0, 1]).tolist() == [1, 0]  # type: ignore[arg-type]
    with pytest.raises(DataError, match="does not know: Bar"):
        Classifier.read_targets(model, make_index("Bar"), [0])  # type: ignore[arg-type]


def test_target_class_matches_in_any_unicode_form(tmp_path: Path) -> None:
    run = RunFolder(tmp_path)
    logits = np.random.default_rng(0).normal(size=(40, 2)).astype(np.float32)
    labels = np.arange(40) % 2
    (tmp_path / "model.safetensors").write_bytes(b"weights")
    calibration = Calibration(weights=run.fingerprint_weights(), images=40, weak=None)
    index = make_index(*map(str, range(40)))
    run.write_split(replace(index, classes=("bar", COMPOSED), labels=tuple(labels.tolist()), splits=("val",) * 40))
    run.write_calibration(calibration.to_dict(), {"val_logits": logits, "val_labels": labels})
    model: Any = SimpleNamespace(classes=("bar", COMPOSED), task=SINGLE)
    kept = add_targets(run, calibration, model, [parse_target(f"sensitivity=0.9:{DECOMPOSED}")])
    assert kept.thresholds[0].target.name == COMPOSED
    with pytest.raises(UsageError, match="unknown class"):
        add_targets(run, calibration, model, [parse_target("sensitivity=0.9:BAR")])


@pytest.fixture
def run(tmp_path: Path) -> RunFolder:
    """A run's split of a folder whose masks were excluded by hand; no model."""
    for number in range(4):
        save_image(tmp_path / f"data/{'ab'[number % 2]}/images/{COMPOSED}{number}.png", seed=number)
    save_image(tmp_path / f"data/a/masks/{COMPOSED}0.png")
    save_image(tmp_path / "data/a/masks/other.png")
    folder = RunFolder(tmp_path / "run")
    folder.create(overwrite=False)
    index = scan_data(tmp_path / "data", exclude="masks")
    folder.write_split(replace(index, splits=("train", "test", "train", "test")))
    folder.write_plan('model = "test_convnext"\n[settings]\nexclude = "masks"\n')
    return folder


def test_moved_folder_is_read_with_the_options_of_the_run(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="looks like masks"):
        scan_data(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")
    for path in sorted((tmp_path / "moved").rglob("*.png")):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))  # as a copy by way of a Mac has them
    test_set, _ = finish(choose_test_set(run, EvalRequest(data=tmp_path / "moved")))
    assert (test_set.split, len(test_set.rows)) == ("test", 2)
    assert all((test_set.index.root / path).is_file() for path in test_set.index.paths)
