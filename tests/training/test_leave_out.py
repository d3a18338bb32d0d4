"""A fold for each value of a column, tested on it."""

import csv
import json
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest

from convnext_cli import cross_validate, evaluate, finetune
from convnext_cli.data.index import Index
from convnext_cli.data.split import choose_fold, leave_out
from convnext_cli.errors import DataError, UsageError
from convnext_cli.reports.performance import show_calibration
from convnext_cli.reports.report import collect_data
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder
from convnext_cli.training.crossvalidation import cross_validate_steps, train_steps
from convnext_cli.training.events import CrossValidationResult, FoldDone, Planned, StepDone
from convnext_cli.training.planning import prepare
from convnext_cli.training.request import TrainRequest
from tests.conftest import SMALL, Convnext, run_all
from tests.training.conftest import list_texts, make_request

SITES = ("Bonn", "Oslo", "Rome")
SETTINGS: dict[str, Any] = SMALL | {"leave_out": "site", "group_from": "none", "val_fraction": 0.3, "save_every": 3}
left_out_request = partial(make_request, SETTINGS)


def write_table(digits: Path, folder: Path, *, images: int = 40) -> Path:
    """Write the digits' table with a site for each image; the last has none."""
    paths = [path for digit in "012" for path in sorted((digits / digit).glob("*.png"))[:images]]
    with (folder / "table.csv").open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["path", "label", "site"])
        rows = [[str(path), path.parent.name, SITES[number % 3]] for number, path in enumerate(paths)]
        writer.writerows([*rows[:-1], [*rows[-1][:2], ""]])
    return folder / "table.csv"


@pytest.fixture(scope="module")
def table(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_table(digits, tmp_path_factory.mktemp("sites"))


@pytest.fixture(scope="module")
def trained(table: Path, tmp_path_factory: pytest.TempPathFactory) -> tuple[FoldsFolder, CrossValidationResult]:
    """A training for each site, without interruptions."""
    folder = tmp_path_factory.mktemp("runs") / "sites"
    return FoldsFolder(folder), cross_validate(table, output=folder, **SETTINGS)


def read_sites(table: Path, index: Index) -> list[str]:
    with table.open(newline="") as file:
        site_of = {Path(row["path"]).name + row["label"]: row["site"] for row in csv.DictReader(file)}
    return [site_of[Path(path).name + index.name_class(row)] for row, path in enumerate(index.paths)]


def test_each_fold_tests_on_one_site_and_trains_on_the_others(
    table: Path, trained: tuple[FoldsFolder, CrossValidationResult]
) -> None:
    folder, _ = trained
    validating: list[set[int]] = []
    for site, run in zip(SITES, folder.list_runs(), strict=True):
        index = run.read_split()
        sites = read_sites(table, index)
        assert {sites[row] for row in index.rows("test")} == {site}
        assert site not in {sites[row] for split in ("train", "val") for row in index.rows(split)}
        assert len(index.rows("test")) == sites.count(site)
        assert len(index.rows("train")) + len(index.rows("val")) == len(index) - sites.count(site)
        validating.append(set(index.rows("val")))
        unknown = sites.index("")
        assert index.splits[unknown] in ("train", "val")
    assert all(60 * 0.3 < len(rows) < 90 * 0.3 for rows in validating)
    assert validating[0] - set(folder.run(2).read_split().rows("test")) <= validating[1]


def test_result_puts_internal_beside_external(trained: tuple[FoldsFolder, CrossValidationResult]) -> None:
    folder, result = trained
    assert [entry.name for entry in result.left_out] == list(SITES)
    record = json.loads(folder.metrics.read_text())
    for entry, written in zip(result.left_out, record["left_out"], strict=True):
        index = folder.run(entry.fold).read_split()
        assert entry.internal.images == len(index.rows("val"))
        assert entry.external.images == len(index.rows("test"))
        again = evaluate(folder.run(entry.fold).path, split="test")
        assert again.metrics.balanced_accuracy == entry.external.values["balanced_accuracy"]
        assert again.test_number == 2, "the first evaluation is recorded"
        assert written["external"]["values"]["balanced_accuracy"] == entry.external.values["balanced_accuracy"]
        assert written["internal"]["intervals"]["balanced_accuracy"].keys() == {"low", "high"}


def test_eval_of_all_folds_is_external_and_compares_the_sites(
    trained: tuple[FoldsFolder, CrossValidationResult],
) -> None:
    folder, result = trained
    evaluation = evaluate(folder.path, subgroups="site")
    assert evaluation.split == "test"
    assert evaluation.metrics.images == sum(entry.external.images for entry in result.left_out)
    assert any(note.text.startswith("external: each image is predicted by the one model") for note in evaluation.notes)
    sentences = show_calibration(collect_data(evaluation)).sentences
    assert "Each image is predicted by the one model that was not trained on it (out of fold)." in sentences
    assert evaluation.subgroups is not None
    [site] = evaluation.subgroups.groupings
    for subgroup, entry in zip(site.subgroups, result.left_out, strict=True):
        assert subgroup.name == entry.name
        assert subgroup.metrics[0].key == "balanced_accuracy"
        assert subgroup.metrics[0].estimate.value == pytest.approx(entry.external.values["balanced_accuracy"])
    with pytest.raises(DataError, match="leaves out Bonn, Oslo, Rome in turn"):
        evaluate(folder.path, split="val")


@pytest.mark.slow
@pytest.mark.parametrize("steps", [2, 7])  # in the first fold, in the second
def test_killed_training_resumes_to_the_same_bytes(
    table: Path, trained: tuple[FoldsFolder, CrossValidationResult], steps: int
) -> None:
    folder, _ = trained
    events = cross_validate_steps(left_out_request(table, "sites"))
    for event in events:
        steps -= isinstance(event, StepDone)
        if not steps:
            break
    events.close()  # like a kill
    recorded = run_all(train_steps(TrainRequest(resume=Path("sites"))))
    assert sum(isinstance(event, FoldDone) for event in recorded) >= 2
    for fold in (1, 2, 3):
        weights = [(path / f"fold-{fold}/model.safetensors").read_bytes() for path in (Path("sites"), folder.path)]
        assert weights[0] == weights[1]
    first, second = (json.loads((path / "metrics.json").read_text()) for path in (Path("sites"), folder.path))
    assert first["left_out"] == second["left_out"]
    assert (Path("sites") / "split.csv").read_text() == (folder.path / "split.csv").read_text()


def test_one_fold_alone_and_the_plan_of_all_equal_the_folds(
    table: Path, trained: tuple[FoldsFolder, CrossValidationResult]
) -> None:
    folder, _ = trained
    finetune(table, output="alone", fold=2, **SETTINGS)
    assert Path("alone/model.safetensors").read_bytes() == (folder.run(2).path / "model.safetensors").read_bytes()
    choices = prepare(make_request({}, table, "again", **SETTINGS)).plan.choices
    assert (choices["folds"].value, choices["folds"].source) == (3, "rule")


def test_a_small_validation_split_is_a_warning_with_the_fraction_that_sets_it(table: Path, tmp_path: Path) -> None:
    notices = prepare(left_out_request(table, tmp_path / "run", val_fraction=0.1)).notices
    [text] = [notice.text for notice in notices if notice.text.startswith("the validation split has only")]
    assert text.endswith("Collect more images, or raise --val-fraction (now 0.1)")


def test_group_in_two_sites_is_a_warning(digits: Path, tmp_path: Path) -> None:
    table = write_table(digits, tmp_path)
    rows = table.read_text().splitlines()
    table.write_text("\n".join([f"{rows[0]},patient", *(f"{row},p{n // 2}" for n, row in enumerate(rows[1:]))]) + "\n")
    request = left_out_request(table, "sites", group_from="auto")
    planned = next(event for event in cross_validate_steps(request) if isinstance(event, Planned))
    [warning] = [notice.text for notice in planned.notices if "two values of site" in notice.text]
    assert warning.startswith("leakage: ")
    (tmp_path / "written").mkdir()
    prepare(request).write_data(RunFolder(tmp_path / "written"))
    [finding] = [f for f in json.loads((tmp_path / "written/audit.json").read_text())["findings"] if f["falsifies"]]
    assert warning.startswith(finding["title"]), "`eval` states it too, and does not call the run free of leakage"
    assert any("1 image without a value of site" in text for text in list_texts(list(planned.notices)))


@pytest.mark.parametrize(
    ("changes", "problem"),
    [
        ({"leave_out": "hospital"}, "has no column 'hospital'"),
        ({"leave_out": "site,label"}, "names 2 columns"),
        ({"folds": 3}, "both choose the folds"),
        ({"fold": 4}, "3 values"),
        ({"val_fraction": 0.0}, "--val-fraction is 0"),
        ({"leave_out": "path"}, "path has 120 values"),
    ],
)
def test_wrong_requests_are_refused_before_the_images_are_checked(
    table: Path, changes: dict[str, Any], problem: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext_cli.data.dataset.audit_index", None)
    with pytest.raises((UsageError, DataError), match=problem):
        prepare(left_out_request(table, "sites", **changes))


def test_a_column_that_is_left_out_counts_as_used(table: Path) -> None:
    plain, by_site = (prepare(left_out_request(table, "run", leave_out=name)) for name in ("none", "site"))
    assert "columns that are not used: site" in list_texts(list(plain.notices))
    assert not any("not used" in text for text in list_texts(list(by_site.notices)))


def test_a_value_without_a_readable_image_is_named(digits: Path, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    table = write_table(digits, tmp_path / "data")
    (tmp_path / "data/torn.png").write_bytes(b"\x89PNG\r\n\x1a\n torn")
    table.write_text(f"{table.read_text()}torn.png,0,Turin\n")
    with pytest.raises(DataError, match="no image of Turin can be read"):
        prepare(left_out_request(table, "sites"))


def test_command_shows_internal_and_external(convnext: Convnext, digits: Path, tmp_path: Path) -> None:
    table = write_table(digits, tmp_path, images=20)
    small = (
        "--model",
        "test_convnext2",
        "--weights",
        "none",
        "--epochs",
        1,
        "--image-size",
        32,
        "--group-from",
        "none",
    )
    outcome = convnext("finetune", table, "--leave-out", "site", "-o", "sites", *small)
    assert outcome.code == 0
    assert "fold 2 of 3 (left out: site Oslo)" in outcome.err
    assert "Internal and external" in outcome.out
    assert "which were left out of training" in outcome.out


@pytest.mark.slow
def test_command_lists_what_was_left_out_as_json(convnext: Convnext, table: Path) -> None:
    small = (
        "--model",
        "test_convnext2",
        "--weights",
        "none",
        "--epochs",
        1,
        "--image-size",
        32,
        "--group-from",
        "none",
    )
    result = json.loads(convnext("finetune", table, "--leave-out", "site", "-o", "again", *small, "--json").out)
    assert [entry["name"] for entry in result["left_out"]] == list(SITES)


def test_validation_images_are_drawn_once_and_round_trip(digits: Path, tmp_path: Path) -> None:
    preparation = prepare(left_out_request(write_table(digits, tmp_path), "sites"))
    assert preparation.fold_index is not None
    run = RunFolder(tmp_path / "run")
    run.path.mkdir()
    run.write_split(preparation.fold_index)
    again = run.read_split()
    assert (again.fold_names, again.validation) == (SITES, preparation.fold_index.validation)
    for fold in (1, 2, 3):
        assert choose_fold(again, fold).splits == choose_fold(preparation.fold_index, fold).splits
        assert choose_fold(again, fold).validation == ()
    folds = tuple("fold-1" if number % 2 else "fold-2" for number in range(len(again)))
    redrawn = leave_out(replace(again, folds=folds), val_fraction=0.3, seed=0)
    assert sum(redrawn.validation) == pytest.approx(0.3 * len(again), abs=4)


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (
            "--leave-out site",
            "leaving out site A leaves no training image of 0. Join this value of site with another one in the table",
        ),
        (
            "--leave-out dose",
            "leaving out dose < 30 leaves no training image of 0. Cut it elsewhere, as in --leave-out dose:NUMBER",
        ),
        ("--leave-out dose:5,25", "leaving out dose >= 25 leaves no training image of 1, 2. Cut it elsewhere"),
        (
            "--folds 3",
            "leaving out fold 1 leaves no training image of 0. Correct the table's folds, or draw new ones with --res",
        ),
        ("--folds 3 --fold 3", "leaving out fold 3 leaves no training image of 2."),
        (
            "--task regression --label-column dose --leave-out label",
            "leaving out label 0: dose is 30 for all training images.",
        ),
    ],
)
def test_a_part_that_holds_all_images_of_a_class_is_named(
    digits: Path, convnext: Convnext, words: str, error: str
) -> None:
    lines = ["path,label,site,dose,fold"]
    for digit in range(3):
        for number, path in enumerate(sorted((digits / str(digit)).glob("*.png"))[:30]):
            dose = number if not digit else 30
            lines.append(f"{path},{digit},{'A' if not digit else 'BC'[number % 2]},{dose},{digit + 1}")
    Path("table.csv").write_text("\n".join([*lines, ""]))
    tiny = "--model test_convnext2 --weights none --group-from none --no-check -o run"
    outcome = convnext("finetune", "table.csv", *words.split(), *tiny.split())
    assert outcome.code == 3
    assert f"error: {error}" in outcome.err
    assert not Path("run").exists()
