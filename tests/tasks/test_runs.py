"""A run of each task from table to report, and everything between."""

import csv
import json
import shutil
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import timm
import torch
from msgspec import structs

from convnext_cli import compare, cross_validate, evaluate, export, finetune, predict
from convnext_cli.data.groups import group_index
from convnext_cli.data.index import Index
from convnext_cli.data.sources import scan_data
from convnext_cli.data.split import split_index
from convnext_cli.errors import DataError, UsageError
from convnext_cli.exports.model_card import find_license, render_card
from convnext_cli.inference.calibration import read_calibration
from convnext_cli.inference.classifier import Classifier
from convnext_cli.inference.recalibration import keep_labels
from convnext_cli.inference.run_checks import check_comparable
from convnext_cli.inference.teacher import open_teacher
from convnext_cli.metrics.registry import METRICS
from convnext_cli.reports.report import write_report
from convnext_cli.runs.files import CALIBRATION, CALIBRATION_ARRAYS
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.multilabel import Multilabel
from convnext_cli.tasks.reading import TableOptions
from convnext_cli.tasks.registry import TASKS as KINDS
from convnext_cli.tasks.regression import Regression
from convnext_cli.tasks.task import Scaling
from convnext_cli.training import step
from tests.conftest import Convnext, change_json
from tests.tasks.conftest import SETTINGS, TASKS, list_images, options_of, write_set
from tests.training.conftest import make_request, resume, stop_after, train

Runs = Callable[[str], RunFolder]
HEADLINES = {"multilabel": ("macro_roc_auc", 0.9), "ordinal": ("quadratic_kappa", 0.3), "regression": ("r2", 0.6)}


def test_targets_go_to_the_device_encoded(tables: dict[str, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    """Numbers are float64, which not every GPU has."""
    moved: set[torch.dtype] = set()

    def move(values: torch.Tensor, device: torch.device) -> torch.Tensor:
        moved.add(values.dtype)
        return values.to(device)

    monkeypatch.setattr(step, "move_to_device", move)
    stop_after(make_request(SETTINGS, tables["regression"], "run"), 1)
    assert moved == {torch.float32}


@pytest.mark.parametrize("kind", TASKS)
def test_a_run_learns_and_is_evaluated(kind: str, task_run: Runs) -> None:
    run = task_run(kind)
    evaluation = evaluate(run.path)
    key, least = HEADLINES[kind]
    assert evaluation.task.name == kind
    assert getattr(evaluation.metrics, key) > least
    interval = evaluation.intervals.overall[key]
    assert interval is not None
    assert interval.low <= getattr(evaluation.metrics, key) <= interval.high
    assert evaluation.intervals.clustered
    assert evaluation.calibration is not None
    assert evaluation.calibration.is_fitted
    json.dumps(evaluation.to_dict(), default=str)
    text = write_report(evaluation).read_text()
    assert f"Metrics by {evaluation.task.display.target_word}" in text or not evaluation.metrics.per_class


def test_uncalibrated_labels_have_the_threshold_of_the_training(task_run: Runs, tmp_path: Path) -> None:
    """Thresholds of calibrated probabilities do not suit uncalibrated ones."""
    run = RunFolder(shutil.copytree(task_run("multilabel").path, tmp_path / "run"))
    calibration, result = read_calibration(run), run.read_result()
    assert calibration is not None
    assert result is not None
    assert result.val is not None
    changed = structs.replace(calibration, label_thresholds=(0.999,) * 4)
    run.write_calibration(changed.to_dict(), run.read_calibration_arrays())
    evaluation = evaluate(run.path, split="val")
    assert evaluation.metrics.exact_match < result.val["exact_match"]
    assert evaluation.uncalibrated.exact_match == result.val["exact_match"]


@pytest.mark.parametrize("kind", TASKS)
def test_command_line_shows_the_task(kind: str, task_run: Runs, tables: dict[str, Path], convnext: Convnext) -> None:
    run, images = task_run(kind), [str(path) for path in list_images(tables[kind], 3)]
    shown = convnext("eval", str(run.path), "--no-report")
    assert shown.code == 0
    assert METRICS[KINDS[kind].display.headline].title in shown.out
    rows = json.loads(convnext("predict", *images, "--run", str(run.path), "--json").out)
    predictions = predict(list_images(tables[kind], 3), run.path)
    keys = {"multilabel": "labels", "ordinal": "grade", "regression": "value"}
    assert len(rows) == 3
    assert all(keys[kind] in row for row in rows)
    if kind == "regression":
        assert predictions[0].interval is not None
        assert rows[0]["low"] == pytest.approx(predictions[0].interval[0])
        assert rows[0]["low"] < rows[0]["value"] < rows[0]["high"]
    table = convnext("predict", *images, "--run", str(run.path), "--csv").out.splitlines()
    assert len(table) == 4
    assert len({line.count(",") for line in table}) == 1
    assert convnext("predict", *images, "--run", str(run.path)).out.count("images/") == 3


@pytest.mark.parametrize("kind", TASKS)
def test_patients_are_evaluated_and_predicted(kind: str, task_run: Runs, convnext: Convnext) -> None:
    """Each patient has two images."""
    run = task_run(kind)
    evaluation = evaluate(run.path, per="group")
    groups, index = evaluation.per_group, run.read_split()
    assert groups is not None
    assert groups.images_per_group == (2, 2, 2)
    assert groups.groups == len({index.groups[row] for row in index.rows("test")})
    assert getattr(groups.metrics, HEADLINES[kind][0]) > HEADLINES[kind][1] - 0.1
    losses = {"multilabel": ["mean", "max", "noisy-or"], "ordinal": [], "regression": ["mean"]}
    assert list(groups.pooling.losses) == losses[kind]
    assert groups.pooling.is_fitted == (kind != "ordinal"), "too few patients of the highest grade"
    paths = [str(index.root / index.paths[row]) for row in index.rows("test")[:4]]
    pattern = r"\d\d(?=\d\.png)"  # names count images, not patients: ten images share it
    rows = json.loads(
        convnext("predict", *paths, "--run", run.path, "--per", "group", "--group-from", pattern, "--json").out
    )
    assert sum(row["images"] for row in rows) == 4
    shown = convnext("eval", run.path, "--per", "group", "--no-report")
    assert shown.code == 0, shown.err
    assert "Pooled by" in shown.out


def test_a_number_of_a_patient_is_the_mean_of_the_outputs(task_run: Runs) -> None:
    run = task_run("regression")
    evaluation = evaluate(run.path, per="group")
    groups, index = evaluation.per_group, run.read_split()
    assert groups is not None
    names = [index.groups[row] for row in index.rows("test")]
    values = index.targets(index.rows("test"))
    for name, predicted, target in zip(
        groups.names, groups.pooled.probabilities[:, 0], groups.pooled.targets, strict=True
    ):
        rows = [row for row, group in enumerate(names) if group == name]
        assert predicted == pytest.approx(evaluation.probabilities[rows, 0].mean(), rel=1e-5)
        assert target == pytest.approx(values[rows].mean())
    assert groups.pooling.margin is not None
    assert evaluation.calibration is not None
    assert groups.pooling.margin != evaluation.calibration.margin, "fitted on patients"


@pytest.mark.parametrize("kind", TASKS)
def test_split_is_read_back_as_it_was(kind: str, task_run: Runs, tables: dict[str, Path]) -> None:
    index = scan_data(tables[kind], table_options=TableOptions(**options_of(kind)))
    again = task_run(kind).read_split()
    assert (again.classes, again.paths, again.task.name) == (index.classes, index.paths, kind)
    np.testing.assert_array_equal(again.targets(), index.targets())
    assert not again.groups or len(set(zip(again.groups, again.splits, strict=True))) == 120


@pytest.mark.parametrize("kind", TASKS)
def test_stopped_run_resumes_to_the_same_bytes(kind: str, tables: dict[str, Path], tmp_path: Path) -> None:
    settings = {**SETTINGS, "epochs": 2, "mixup": 0.4, "save_every": 3}
    whole = make_request(settings, tables[kind], tmp_path / "whole", **options_of(kind))
    train(whole)
    stop_after(make_request(settings, tables[kind], tmp_path / "stopped", **options_of(kind)), 5)
    resume(tmp_path / "stopped", onnx=False, autotune=False)
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


@pytest.mark.parametrize("kind", TASKS)
def test_timm_loads_the_model(kind: str, task_run: Runs) -> None:
    run = task_run(kind)
    model = timm.create_model(f"local-dir:{run.path}", pretrained=True).eval()
    config = json.loads((run.path / "config.json").read_text())
    assert config["task"]["name"] == kind
    problems = {"multilabel": "multi_label_classification", "regression": "regression"}  # transformers' names
    assert config.get("problem_type") == problems.get(kind)
    with torch.inference_mode():
        outputs = model(torch.zeros(2, 3, 32, 32))
    assert outputs.shape == (2, KINDS[kind]().count_outputs(len(run.read_config().label_names)))


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_exported_file_gives_the_same_scores(
    kind: str, format: Any, task_run: Runs, tables: dict[str, Path], tmp_path: Path
) -> None:
    run, images = task_run(kind), list_images(tables[kind], 8)
    file = export(run.path, format=format, output=tmp_path / f"model.{format}")
    assert file.parity.difference < 1e-4
    assert file.parity.same_top1 == (None if kind == "regression" else file.parity.images)
    if format == "onnx":
        ours, theirs = predict(images, run.path, engine="torch"), predict(images, file.path)
        for one, two in zip(ours, theirs, strict=True):
            assert one.labels == two.labels
            assert one.classes == two.classes
            assert two.probabilities == pytest.approx(one.probabilities, abs=1e-4)
            if one.value is not None:
                assert two.value == pytest.approx(one.value, abs=1e-3)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
def test_hub_folder_has_the_task_and_its_metrics(kind: str, task_run: Runs, tmp_path: Path) -> None:
    folder = export(task_run(kind).path, format="hub", output=tmp_path / "hub")
    card = (folder.path / "README.md").read_text()
    assert "95% CI" in card
    assert json.loads((folder.path / "config.json").read_text())["task"]["name"] == kind
    assert timm.create_model(f"local-dir:{folder.path}", pretrained=True)


def test_model_card_counts_positive_negative_and_unknown_images_of_labels(task_run: Runs, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(task_run("multilabel").path, tmp_path / "run"))
    evaluation = evaluate(run.path)
    card = render_card(run, evaluation, find_license(run))
    assert "| label | positive | negative | unknown | ROC AUC % |" in card
    first = evaluation.metrics.per_class[0]
    assert f"| {first.name} | {first.images} | {first.negative} | {first.unknown} |" in card
    index = run.read_split()
    counts = " | ".join(str(len(index.rows(split))) for split in index.list_splits())
    assert f"| images | {counts} |" in card


@pytest.mark.parametrize("kind", TASKS)
def test_model_card_leads_from_logits_to_the_prediction(kind: str, task_run: Runs) -> None:
    run = task_run(kind)
    card, task = render_card(run, None, find_license(run)), run.read_config().read_task(run.path)
    calibration = read_calibration(run)
    assert f"Prediction: `{task.scores}` = {task.describe_scores(calibration)}, in the order of `label_names`" in card
    assert task.describe_decision(calibration) in card
    assert ("There is no calibration: " in card) == (calibration is None or not calibration.is_fitted)


@pytest.mark.slow
@pytest.mark.parametrize("kind", TASKS)
def test_folds_are_averaged_in_evaluation(kind: str, tables: dict[str, Path], tmp_path: Path) -> None:
    settings = {**SETTINGS, "epochs": 1, "folds": 2}
    result = cross_validate(tables[kind], output=tmp_path / "folds", **settings, **options_of(kind))
    assert len(result.folds) == 2
    assert KINDS[kind].display.headline in result.spread
    evaluation = evaluate(tmp_path / "folds")
    assert evaluation.metrics.images > 0
    predictions = predict(list_images(tables[kind], 2), tmp_path / "folds", explain=tmp_path / "heat")
    assert predictions[1].task is not None
    assert all(prediction.explanation and prediction.explanation.is_file() for prediction in predictions)


@pytest.mark.parametrize("kind", TASKS)
def test_terminal_compares_two_runs(kind: str, task_run: Runs, tmp_path: Path, convnext: Convnext) -> None:
    """By a test only where an image is right or wrong; the data have groups."""
    run = task_run(kind)
    shutil.copytree(run.path, tmp_path / "other")
    shown = convnext("eval", run.path, tmp_path / "other", "--split", "val", "--no-report").out
    [_, comparison] = shown.split(f"compared with {run.path}\n")
    title = METRICS[KINDS[kind].display.compared[0]].title
    assert comparison.startswith(f"{title} +0.0"), comparison
    assert ("exact sign-flip test over groups: p = 1" in comparison) == (kind == "ordinal")


def test_comparison_does_not_depend_on_the_order_of_the_labels(task_run: Runs) -> None:
    """Each run has its labels in the order of its own table, and a threshold for each."""
    first = evaluate(task_run("multilabel").path, split="val")
    assert first.calibration is not None
    kept = structs.replace(first.calibration, label_thresholds=(0.0, 0.5, 0.5, 1.0))
    turned = {key: getattr(kept, key)[::-1] for key in ("label_scale", "label_offset", "label_thresholds")}
    images = replace(first.images, calibration=kept)
    other = replace(
        images,
        classes=images.classes[::-1],
        logits=images.logits[:, ::-1],
        targets=images.targets[:, ::-1],
        calibration=structs.replace(kept, **turned),
    )
    differences = images.compare(other).differences
    assert {key: d.value for key, d in differences.items() if d} == pytest.approx(dict.fromkeys(differences, 0.0))


def test_data_of_another_task_are_refused(task_run: Runs, tables: dict[str, Path]) -> None:
    with pytest.raises(DataError, match="multilabel"):
        evaluate(task_run("multilabel").path, tables["regression"])
    with pytest.raises(DataError, match="needs one column"):
        evaluate(task_run("regression").path, tables["multilabel"])
    index, regression = scan_data(tables["multilabel"]), Regression()
    model: Any = SimpleNamespace(classes=("brightness",), task=regression)
    words = rf"table\.csv has {Multilabel.title}, and the run was trained on {Regression.title}\. Give data with"
    with pytest.raises(DataError, match=words):
        Classifier.read_targets(model, index, [0])


def test_target_of_a_grade_and_all_higher_ones(task_run: Runs, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(task_run("ordinal").path, tmp_path / "run"))
    with pytest.raises(UsageError, match=r"unknown class 'x' in --target\. Known are 0, 1, 2, 3"):
        evaluate(run.path, targets=["sensitivity=0.9:x+"])
    with pytest.raises(UsageError, match=r"0\+: the validation split has no other images"):
        evaluate(run.path, targets=["sensitivity=0.9:0+"])
    result = evaluate(run.path, targets=["sensitivity=0.9:2+", "sensitivity=0.9:3"])
    point, top = result.operating_points
    scores, is_positive = result.images.probabilities[:, 2:].sum(axis=1), result.images.targets >= 2
    predicted = scores >= point.threshold.threshold
    assert point.sensitivity == pytest.approx(predicted[is_positive].mean())
    assert point.specificity == pytest.approx((~predicted[~is_positive]).mean())
    assert top.threshold.target.list_positive(result.images.classes) == [3]
    paths = [run.read_split().root / result.test_set.index.paths[row] for row in result.test_set.rows]
    decided = [one.decisions["sensitivity=0.9:2+"] for one in predict(paths, run.path)]
    assert decided == predicted.tolist()
    assert "calibrated sum of the probabilities of 2 and 3 of at least" in render_card(run, None, find_license(run))


def test_grades_in_another_order_are_not_compared(task_run: Runs, tmp_path: Path) -> None:
    run, other = task_run("ordinal"), RunFolder(tmp_path / "other")
    other.path.mkdir()
    index = run.read_split()
    other.write_split(replace(index, classes=index.classes[::-1]))
    check_comparable(run, run)
    orders = " and ".join(", ".join(names) for names in (index.classes, index.classes[::-1]))
    with pytest.raises(DataError, match=f"differ in the order of the grades: {orders}"):
        check_comparable(run, other)


def test_runs_of_different_tasks_are_not_compared(task_run: Runs) -> None:
    runs = [task_run(kind) for kind in ("multilabel", "regression")]
    before = runs[0].read_tests()
    words = rf"differ in their task: {Multilabel.title} and {Regression.title}\. Evaluate each by itself"
    with pytest.raises(DataError, match=words):
        compare(*(run.path for run in runs))
    assert runs[0].read_tests() == before


def test_run_of_values_is_no_teacher(task_run: Runs) -> None:
    with pytest.raises(UsageError, match=r"was trained on .*\. Give a teacher of one class per image"):
        open_teacher(str(task_run("regression").path))


def test_label_of_no_validation_group_has_no_threshold_on_groups(task_run: Runs, tmp_path: Path) -> None:
    run = RunFolder(shutil.copytree(task_run("multilabel").path, tmp_path / "mine"))
    targets = ["sensitivity=0.8:NW", "sensitivity=0.8:NE"]
    evaluate(run.path, targets=targets)
    arrays = run.read_calibration_arrays()
    arrays["val_labels"][:, 0] = 0
    run.write_arrays(CALIBRATION_ARRAYS, arrays, {"weights": run.fingerprint_weights()})
    groups = evaluate(run.path, per="group").per_group
    assert groups is not None
    assert groups.pooling.is_fitted
    assert [str(threshold.target) for threshold in groups.pooling.thresholds] == targets[1:]


def test_another_table_may_have_more_labels_or_fewer(task_run: Runs, tables: dict[str, Path]) -> None:
    """Columns that the run does not know are not labels; labels without a column are unknown."""
    lines = tables["multilabel"].read_text().splitlines()
    other = tables["multilabel"].parent / "other.csv"
    head, *rows = [line.rpartition(",")[0] for line in lines]
    other.write_text("\n".join([f"{head},Other", *(f"{row},{number % 2}" for number, row in enumerate(rows))]) + "\n")
    evaluation = evaluate(task_run("multilabel").path, other, split="all")
    assert [entry.name for entry in evaluation.metrics.per_class] == ["NW", "NE", "SW", "SE"]
    assert evaluation.metrics.per_class[3].unknown == evaluation.metrics.images == len(rows)
    assert evaluation.metrics.per_class[0].roc_auc is not None


def test_images_without_any_known_label_are_not_evaluated(task_run: Runs, tables: dict[str, Path]) -> None:
    head, *rows = tables["multilabel"].read_text().splitlines()
    other = tables["multilabel"].parent / "unknown.csv"
    names = [f"{row.partition(',')[0]}{',-1' * head.count(',')}" for row in rows]
    other.write_text("\n".join([head, *names]) + "\n")
    with pytest.raises(DataError, match=rf"no label of the {len(rows)} images is known\. Give images with known"):
        evaluate(task_run("multilabel").path, other, split="all")


def test_other_data_of_a_number_may_be_folders(task_run: Runs, tables: dict[str, Path], tmp_path: Path) -> None:
    """Class folders do not name the number; a column has to."""
    run = task_run("regression").path
    for row, image in enumerate(list_images(tables["regression"], 4)):
        (tmp_path / f"data/{row % 2} mm").mkdir(parents=True, exist_ok=True)
        shutil.copy(image, tmp_path / f"data/{row % 2} mm/{row}.png")
    assert evaluate(run, tmp_path / "data", split="all").metrics.images == 4
    table = tmp_path / "other.csv"
    table.write_text("path,width\n" + "".join(f"data/{row % 2} mm/{row}.png,{row + 0.5}\n" for row in range(4)))
    with pytest.raises(DataError, match=r"has 1 number that the run does not know: width\. Name them as in training: "):
        evaluate(run, table)


def test_a_number_without_calibration_has_no_interval_and_says_so(
    task_run: Runs, tables: dict[str, Path], tmp_path: Path, convnext: Convnext
) -> None:
    run = shutil.copytree(task_run("regression").path, tmp_path / "run")
    change_json(CALIBRATION.path(run), "margin", None)
    change_json(CALIBRATION.path(run), "weak", "the validation split has only 9 images")
    shown = convnext("predict", list_images(tables["regression"], 1)[0], "--run", run)
    assert "note: no prediction intervals, because the validation split has only 9 images" in shown.err
    assert "interval" not in shown.out


def test_a_recalibrated_number_has_another_coverage(
    task_run: Runs, tables: dict[str, Path], convnext: Convnext
) -> None:
    shown = convnext(
        "eval", str(task_run("regression").path), str(tables["regression"]), "--recalibrate", "30", "--no-report"
    )
    assert (
        "change from the run's own calibration, on the other images: coverage of 90% prediction intervals" in shown.out
    )
    assert "MAE +0.0000" not in shown.out


def test_a_number_has_no_thresholds(task_run: Runs) -> None:
    run = task_run("regression")
    with pytest.raises(UsageError, match=r"--target does not apply to a number per image\. Leave it out"):
        evaluate(run.path, targets=[f"sensitivity=0.9:{run.read_config().label_names[0]}"])


def test_grades_in_words_keep_their_order_in_other_data(tmp_path: Path) -> None:
    words = ("none", "mild", "severe", "grave")
    table = write_set(tmp_path, "ordinal", 40)
    head, *rows = table.read_text().splitlines()
    named = [f"{row[:-1]}{words[int(row[-1])]}" for row in rows]
    table.write_text("\n".join([head, *named]) + "\n")
    finetune(table, output=tmp_path / "run", **SETTINGS | {"epochs": 1}, task="ordinal", grades=",".join(words))
    assert RunFolder(tmp_path / "run").read_config().label_names == words
    other = tmp_path / "other.csv"
    other.write_text("\n".join([head, *(row for row in named if not row.endswith("grave"))]) + "\n")
    evaluation = evaluate(tmp_path / "run", other)
    images = {entry.name: entry.images for entry in evaluation.metrics.per_class}
    assert images == {name: sum(row.endswith(name) for row in named) for name in words} | {"grave": 0}
    other.write_text("\n".join([head, *named]).replace("grave", "fatal") + "\n")
    with pytest.raises(
        DataError, match=r"does not know: fatal\. Name them as in training: none, mild, severe, grave; or"
    ):
        evaluate(tmp_path / "run", other)


def test_folders_of_patients_are_groups_for_any_targets(tmp_path: Path) -> None:
    """Images of one patient may have different labels; they stay in one split."""
    table = write_set(tmp_path, "multilabel", 120)
    lines = ["path,NW,NE,SW,SE"]
    for number, line in enumerate(table.read_text().splitlines()[1:]):
        path, _, *cells = line.split(",")
        target = tmp_path / f"train/patient{number // 2:05}/study{number % 2 + 1}/view.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / path).rename(target)
        lines.append(",".join([str(target.relative_to(tmp_path)), *cells]))
    table.write_text("\n".join(lines) + "\n")
    index, grouping = group_index(scan_data(table), "auto")
    assert grouping.groups == 60
    assert {index.groups[row].rpartition("patient")[2] for row in range(120)} == {f"{k:05}" for k in range(60)}


@pytest.mark.parametrize(
    ("kind", "options", "flag"),
    [
        ("multilabel", {"sampler": "balanced"}, "--imbalance sampler"),
        ("regression", {"class_weights": "balanced"}, "--imbalance weights does not go with a number per image"),
        (
            "ordinal",
            {"imbalance": "asymmetric", "task": "ordinal"},
            "--imbalance asymmetric .*: it is for several labels",
        ),
    ],
)
def test_settings_that_do_not_apply_are_refused(
    kind: str, options: dict[str, Any], flag: str, tables: dict[str, Path], tmp_path: Path
) -> None:
    with pytest.raises(UsageError, match=flag):
        finetune(tables[kind], output=tmp_path / "run", **SETTINGS, **options)
    assert not (tmp_path / "run").exists()


def test_labels_without_positive_or_negative_images_are_refused(tmp_path: Path) -> None:
    table = write_set(tmp_path, "multilabel", 12)
    lines = table.read_text().splitlines()
    table.write_text("\n".join([lines[0], *(line.rpartition(",")[0] + ",0" for line in lines[1:])]) + "\n")
    with pytest.raises(DataError, match="1 of 4 labels has no positive training image: SE"):
        finetune(table, output=tmp_path / "run", **SETTINGS, label_columns="NW,NE,SW,SE")


def test_a_rare_label_does_not_hold_up_the_others(tables: dict[str, Path], tmp_path: Path) -> None:
    """Its probability stays as it is; the others are calibrated, and the best epoch is chosen."""
    with tables["multilabel"].open() as file:
        head, *rows = csv.reader(file)
    rare = [[*row, str(int(number % 80 < 2))] for number, row in enumerate(rows)]  # of three patients
    with (tables["multilabel"].parent / "rare.csv").open("w", newline="") as file:
        csv.writer(file).writerows([[*head, "rare"], *rare])
    result = finetune(tables["multilabel"].parent / "rare.csv", output=tmp_path / "run", **SETTINGS)
    assert result.selected_by == "best macro ROC AUC on the validation split"
    calibration = read_calibration(RunFolder(tmp_path / "run"))
    assert calibration is not None
    assert calibration.unfitted_reason is None
    pairs = list(zip(calibration.label_scale, calibration.label_offset, strict=True))
    assert pairs[4] == (1.0, 0.0)
    assert (1.0, 0.0) not in pairs[:4]
    assert calibration.label_thresholds[4] == 0.5
    evaluation = evaluate(tmp_path / "run", split="val")
    text = "not calibrated, because validation has too few positive or negative images: rare"
    assert text in [note.text for note in evaluation.notes]
    assert Multilabel().describe_calibration(calibration) == "Platt scaling of 4 of 5 labels"


@pytest.mark.parametrize(
    ("positive", "few"),
    [((9, 9, 9, 2), ""), ((9, 9, 3, 2), ""), ((9, 4, 3, 20), "4 of b, 3 of c, 0 of d; 5 of each are needed")],
)
def test_validation_is_small_if_most_labels_have_few_images(positive: tuple[int, ...], few: str) -> None:
    targets = np.array([[float(row < n) for n in positive] for row in range(20)])
    assert Multilabel().explain_small_validation(targets, tuple("abcd")) == few


def test_recalibration_keeps_the_parameters_of_a_label_with_few_images() -> None:
    random = np.random.default_rng(0)
    targets = np.stack([random.random(100) < 0.5, np.arange(100) < 3], axis=1).astype(np.float32)
    logits = (2 * targets - 1 + random.normal(size=(100, 2))).astype(np.float32)
    previous = Scaling(label_scale=(3.0, 2.5), label_offset=(1.0, -0.5), label_thresholds=(0.4, 0.3))
    fitted = Multilabel().fit_calibration(logits, targets, None)
    assert Multilabel().list_uncalibrated(fitted, ("a", "b")) == ["b"]
    joined = keep_labels(fitted, previous, [1])
    assert (joined.label_scale[1], joined.label_offset[1], joined.label_thresholds[1]) == (2.5, -0.5, 0.3)
    assert joined.label_scale[0] == fitted.label_scale[0] != 3.0
    assert keep_labels(fitted, Scaling(), [1]) == fitted


def test_split_is_stratified_by_label_and_keeps_patients_together(tables: dict[str, Path]) -> None:
    index: Index = scan_data(tables["multilabel"])
    split = split_index(index, val_fraction=0.25, test_fraction=0.25, seed=0)
    whole = np.nanmean(np.where(np.isin(index.targets(), (0, 1)), index.targets(), np.nan), axis=0)
    for name in ("train", "val", "test"):
        targets = split.targets(split.rows(name))
        fractions = np.nanmean(np.where(np.isin(targets, (0, 1)), targets, np.nan), axis=0)
        assert fractions == pytest.approx(whole, abs=0.08)
    by_patient = {
        group: {s for g, s in zip(split.groups, split.splits, strict=True) if g == group} for group in split.groups
    }
    assert all(len(splits) == 1 for splits in by_patient.values())
