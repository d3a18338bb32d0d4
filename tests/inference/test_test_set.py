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
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.inference.calibration import Calibration
from convnext_cli.inference.classifier import Classifier
from convnext_cli.inference.image_notes import check_images
from convnext_cli.inference.operating_points import add_targets
from convnext_cli.inference.request import EvalRequest
from convnext_cli.inference.test_set import choose_test_set
from convnext_cli.metrics.thresholds import parse_target
from convnext_cli.progress import Notice, finish
from convnext_cli.runs.files import AUDIT
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.records import AuditRecord
from convnext_cli.tasks.registry import SINGLE
from tests.conftest import save_image

FRAMING = Preprocessing(
    image_size=32, crop_pct=1.0, crop_mode="squash", interpolation="bicubic", mean=(0.5,), std=(0.5,)
)
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
    calibration = Calibration(weights=run.fingerprint_weights(), images=40)
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


def choose(run: RunFolder, **options: Any) -> tuple[Any, list[Notice]]:
    return finish(choose_test_set(run, run.read_split(), EvalRequest(**options)))


def test_split_without_images_is_refused_with_those_there_are(run: RunFolder) -> None:
    with pytest.raises(DataError, match=r"data has no val split\. It has test, train; or use --split all"):
        choose(run, split="val")


def test_a_remedy_with_a_path_like_an_option_is_left_as_it_is(run: RunFolder, tmp_path: Path) -> None:
    (tmp_path / "my--set.tar.gz").touch()
    with pytest.raises(DataError, match=r"only zip files are unpacked") as caught:
        choose(run, data=tmp_path / "my--set.tar.gz")
    assert caught.value.remedy == f"Run: tar -xf {tmp_path / 'my--set.tar.gz'}"


def test_remedies_and_notes_name_no_options_that_eval_lacks(run: RunFolder, tmp_path: Path) -> None:
    table = tmp_path / "new/t.csv"
    for name in "abc":
        save_image(table.parent / f"{name}.png")
    table.write_text("path,sex,kind\na.png,f,a\nb.png,m,b\n")
    with pytest.raises(DataError, match=r"`convnext eval` has no --label-column or --label-columns: give a CSV file"):
        choose(run, data=table)
    table.write_text("path,split,label\na.png,odd,a\nb.png,test,b\n")
    with pytest.raises(DataError, match=r"another column, or none\. `convnext eval` has no --split-column: give"):
        choose(run, data=table)
    table.write_text("path,a,b,c\na.png,1,0,0\nb.png,0,1,0\nc.png,0,0,1\n")
    _, notes = choose(run, data=table)
    assert [note.text for note in notes][-1] == "each row has exactly one 1 in 3 columns: read as classes"
    table.write_text("path,label,test\na.png,a,0\nb.png,b,0\nc.png,b,1\n")
    _, notes = choose(run, data=table)
    assert "column 'test' has 0 and 1" in [note.text for note in notes]


def test_training_images_are_evaluated_with_a_warning(run: RunFolder) -> None:
    for split, rows, images in (
        ("train", [0, 2], "these images"),
        ("all", [0, 1, 2, 3], "2 of these 4 images"),
        ("test", [1, 3], ""),
    ):
        test_set, notes = choose(run, split=split)
        assert (test_set.split, test_set.rows, notes) == (split, rows, [])
        leakage = finish(check_images(run, run.read_split(), test_set, None, FRAMING))[0]
        expected = f"the model was trained on {images}: the metrics do not show its performance on new images"
        assert [(note.text, note.severity) for note in leakage] == ([(expected, "warning")] if images else [])


@pytest.mark.parametrize(
    ("split", "problem"),
    [("test", "has no test split"), ("train", "has models that were trained on images of --split")],
)
def test_cross_validation_is_evaluated_on_images_that_a_model_has_not_seen(
    run: RunFolder, split: str, problem: str
) -> None:
    run.write_split(replace(run.read_split(), splits=("fold-1", "fold-2") * 2))
    with pytest.raises(DataError, match=rf"the cross-validation of .* {problem}.* Use --split val: each image"):
        choose(run, split=split)
    assert choose(run, split="val")[0].rows == [0, 1, 2, 3]


def test_guessed_groups_and_leakage_of_the_audit_are_noted(run: RunFolder) -> None:
    finding = {
        "kind": "duplicates", "falsifies": True, "title": "2 duplicates", "count": 2, "examples": [], "action": "none",
        "effect": "the scores are too high", "severity": "warning",
    }  # fmt: skip
    guess = {"certainty": "unsure", "evidence": "2 names of 4"}
    run.write_split(replace(run.read_split(), groups=("p1", "p1", "p2", "p3")))
    run.write(AUDIT, {"findings": [finding, finding | {"falsifies": False}], "groups": guess})
    audit = run.read(AUDIT, AuditRecord)
    guessed, leakage = finish(check_images(run, run.read_split(), choose(run)[0], audit, FRAMING))[0]
    assert guessed.text == "the 95% CIs rely on guessed groups: 2 names of 4; --group-from none ignores them"
    assert (leakage.text, leakage.severity) == ("2 duplicates. The scores are too high", "warning")
    ungrouped, _ = choose(run, group_from="none")
    assert finish(check_images(run, run.read_split(), ungrouped, audit, FRAMING))[0] == [leakage]


def test_guessed_groups_of_other_images_are_noted_unless_the_request_has_others(run: RunFolder, tmp_path: Path) -> None:
    for number in range(40):
        save_image(tmp_path / f"other/{'ab'[number % 2]}/person{number // 4}_{number}.png", seed=number)
    assert any(
        "CIs rely on a guess: 10 groups by the repeated part of" in note.text
        for note in choose(run, data=tmp_path / "other")[1]
    )
    test_set, notes = choose(run, data=tmp_path / "other", group_from="none")
    assert (test_set.groups, notes) == (None, [])


def test_table_is_read_with_the_settings_of_the_run_and_other_groups(run: RunFolder, tmp_path: Path) -> None:
    settings = f'image_root = "{tmp_path / "data"}"\ngroup_column = "patient"\n'
    run.write_plan(f'model = "test_convnext"\n[settings]\n{settings}')
    table = tmp_path / "tables/new.csv"
    table.parent.mkdir()
    rows = [f"b/images/{COMPOSED}{number}.png,b,p1,visit{number}" for number in (1, 3)]
    table.write_text("\n".join(["path,label,patient,visit", *rows]))
    with pytest.raises(DataError, match="image"):
        scan_data(table)
    assert choose(run, data=table)[0].index.groups == ("p1", "p1")
    assert choose(run, data=table, group_column="visit")[0].index.groups == ("visit1", "visit3")


def test_moved_folder_is_read_with_the_options_of_the_run(run: RunFolder, tmp_path: Path) -> None:
    with pytest.raises(DataError, match="looks like masks"):
        scan_data(tmp_path / "data")
    (tmp_path / "data").rename(tmp_path / "moved")
    for path in sorted((tmp_path / "moved").rglob("*.png")):
        path.rename(path.with_name(unicodedata.normalize("NFD", path.name)))  # as a copy by way of a Mac has them
    test_set, _ = finish(choose_test_set(run, run.read_split(), EvalRequest(data=tmp_path / "moved")))
    assert (test_set.split, len(test_set.rows), test_set.is_own) == ("test", 2, True)
    assert test_set.index.has_split_of(run.read_split())
    assert all((test_set.index.root / path).is_file() for path in test_set.index.paths)


def test_table_of_the_runs_own_images_counts_with_its_targets_and_splits(run: RunFolder, tmp_path: Path) -> None:
    trained_on = run.read_split()
    table = tmp_path / "data/list.csv"

    def choose_from(labels: str, splits: str = "") -> tuple[Index, str]:
        cells = zip(trained_on.paths, labels, splits.replace("-", "").split(" ") if splits else [""] * 4, strict=True)
        table.write_text("\n".join(["path,label,split", *(",".join(row) for row in cells)]))
        test_set, notes = choose(run, data=table, split="all")
        return test_set.index, " ".join(note.text for note in notes)

    index, text = choose_from("aabb")
    assert (index.labels, index.splits) == (trained_on.labels, trained_on.splits)
    assert "differ" not in text
    index, text = choose_from("bbba")
    assert ([index.classes[label] for label in index.labels], index.splits) == (list("bbba"), trained_on.splits)
    assert (
        f"the targets of 3 of 4 images differ from those that the run was trained with: those of {table} count" in text
    )
    index, text = choose_from("aabb", "train test train test")
    assert (index.splits, "splits" in text) == (trained_on.splits, False)
    index, text = choose_from("aabb", "train train train test")
    assert (index.splits, "splits" in text) == (("train", "train", "train", "test"), True)
    index, text = choose_from("aabb", "train test - -")  # rows without a split
    assert (index.splits, "splits" in text) == (trained_on.splits, False)
    run.write_plan('model = "test_convnext"\n[settings]\nresplit = true\n')
    index, text = choose_from("aabb", "test train test train")
    assert (index.splits, "splits" in text) == (trained_on.splits, False)
    run.write_plan('model = "test_convnext"\n[settings]\nresplit_val = true\n')
    index, text = choose_from("aabb", "val test train test")
    assert (index.splits, "splits" in text) == (trained_on.splits, False)
    index, text = choose_from("aabb", "val test test train")
    assert (index.splits, "splits" in text) == (("val", "test", "test", "train"), True)


def test_table_is_read_by_the_columns_of_the_run(run: RunFolder, tmp_path: Path) -> None:
    trained_on = run.read_split()
    table = tmp_path / "data/list.csv"
    rows = (
        f"{path},{label},{'ab'[number % 2]}"
        for number, (path, label) in enumerate(zip(trained_on.paths, "aabb", strict=True))
    )
    table.write_text("\n".join(["path,grade,label", *rows]))
    run.write_plan('model = "test_convnext"\n[settings]\nlabel_column = "grade"\n')
    test_set, notes = choose(run, data=table)
    assert test_set.index.labels == trained_on.labels
    assert not any("differ" in note.text for note in notes)
