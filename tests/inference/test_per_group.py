"""Evaluation and prediction per group, from a table of X-ray-like bags to the command line."""

import csv
import io
import json
import shutil
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from msgspec import structs
from PIL import Image

from convnext_cli import cross_validate, evaluate, finetune, predict
from convnext_cli.errors import RunError, UsageError
from convnext_cli.inference.calibration import Pooling, read_pooling
from convnext_cli.inference.per_group import warn_of_ambiguous_groups
from convnext_cli.inference.pooling import choose_negative
from convnext_cli.inference.prediction import list_run_notes
from convnext_cli.inference.request import PredictRequest
from convnext_cli.metrics.pooling import pool_scores
from convnext_cli.progress import Notice
from convnext_cli.reports.report import write_report
from convnext_cli.reports.verdict import answer_questions
from convnext_cli.runs.files import AUDIT, POOLING
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.records import to_plain
from convnext_cli.tasks.multilabel import Multilabel
from convnext_cli.tasks.registry import SINGLE
from convnext_cli.tasks.regression import Regression
from tests.conftest import Convnext, list_images
from tests.images.dicom import XRAY, save_dicom
from tests.inference.conftest import shrink_validation

PATIENTS, IMAGES = 120, 5
SETTINGS: dict[str, Any] = {
    "model": "test_convnext", "weights": "none", "epochs": 3, "freeze_epochs": 0, "batch_size": 16, "lr": 2e-3,
    "image_size": 32, "min_crop_area": 1.0, "hflip": 0.0, "val_fraction": 0.4, "test_fraction": 0.3, "onnx": False,
    "audit": False, "autotune": False, "imbalance": "none",
}  # fmt: skip


def write_bags(folder: Path) -> Path:
    """Write patients of five images, of which one has a bright spot in half of the patients; return their table."""
    random = np.random.default_rng(0)
    rows = [["path", "patient", "label"]]
    for patient in range(PATIENTS):
        spotted = int(random.integers(IMAGES)) if patient % 2 else -1
        for image in range(IMAGES):
            pixels = random.integers(0, 60, (32, 32))
            if image == spotted:
                y, x = random.integers(4, 20, 2)
                pixels[y : y + 8, x : x + 8] += 190
            path = folder / f"images/p{patient:03}_{image}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(pixels.astype(np.uint8)).save(path)
            rows.append([f"images/{path.name}", f"p{patient:03}", "SPOT" if image == spotted else "NORMAL"])
    with (folder / "table.csv").open("w", newline="") as file:
        csv.writer(file).writerows(rows)
    return folder / "table.csv"


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_bags(tmp_path_factory.mktemp("bags"))


@pytest.fixture(scope="module")
def trained(table: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("runs") / "bags"
    finetune(table, output=folder, **SETTINGS)
    return RunFolder(folder)


@pytest.fixture
def bags(trained: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the run that a test may write to."""
    shutil.copytree(trained.path, tmp_path / "run", ignore=shutil.ignore_patterns("tests.jsonl", "last"))
    return RunFolder(tmp_path / "run")


def test_metrics_per_group_are_those_of_the_pooled_probabilities(bags: RunFolder) -> None:
    result = evaluate(bags.path, per="group", targets=["sensitivity=0.9:SPOT"])
    groups, pooling = result.per_group, read_pooling(bags)
    assert groups is not None
    assert pooling == groups.pooling
    assert pooling is not None
    assert pooling.is_fitted
    assert pooling.negative_class == "NORMAL"
    assert groups.images_per_group == (5, 5, 5)
    index = bags.read_split()
    names = sorted({index.groups[row] for row in index.rows("test")})
    assert list(groups.names) == names
    assert groups.groups == groups.metrics.images == groups.intervals.units == len(names)
    truth = [int(name[1:]) % 2 for name in names]
    np.testing.assert_array_equal(groups.pooled.targets, truth)
    assert groups.mixed == sum(truth)
    # the direct formula, image by image
    test_groups = [index.groups[row] for row in index.rows("test")]
    units = np.array([names.index(group) for group in test_groups])
    pooled = pool_scores(result.probabilities, units, pooling.rule)
    pooled /= pooled.sum(axis=1, keepdims=True)
    raised = pooled ** (1 / pooling.temperature) * np.exp(pooling.label_offset)
    np.testing.assert_allclose(
        groups.pooled.probabilities, raised / raised.sum(axis=1, keepdims=True), rtol=1e-4, atol=1e-6
    )
    [point] = groups.operating_points
    decided = groups.pooled.probabilities[:, 1] >= point.threshold.threshold
    assert point.sensitivity == pytest.approx(decided[np.array(truth) == 1].mean())
    assert point.threshold != result.operating_points[0].threshold


def test_target_that_groups_missed_on_test_is_told_by_predict(bags: RunFolder, convnext: Convnext) -> None:
    groups = evaluate(bags.path, per="group", targets=["specificity=0.9:SPOT"]).per_group
    assert groups is not None
    [point] = groups.operating_points
    [record] = bags.read_tests()
    assert record["group_targets"] == {"specificity=0.9:SPOT": point.specificity}
    images, request = list_images(bags, "test")[:5], PredictRequest(per="group")
    assert predict(images, bags.path, per="group")[0].missed_targets == {}
    assert list_run_notes(bags.path, request) == []
    bags.record_test(record | {"targets": {}, "group_targets": {"specificity=0.9:SPOT": 0.25}})
    assert predict(images, bags.path)[0].missed_targets == {}
    assert predict(images, bags.path, per="group")[0].missed_targets == {"specificity=0.9:SPOT": "specificity 25.0%"}
    shown = convnext("predict", *images, "--run", bags.path, "--per", "group")
    assert "(missed on test: specificity 25.0%)" in shown.out
    assert "target specificity=0.9:SPOT was not met on the test split: specificity 25.0%" in shown.err


def test_target_that_no_threshold_reaches_on_validation_groups_is_a_warning(bags: RunFolder) -> None:
    groups = evaluate(bags.path, per="group", targets=["sensitivity=0.99:SPOT@confidence=0.9"]).per_group
    assert groups is not None
    start = (
        "target sensitivity=0.99:SPOT@confidence=0.9: no threshold reaches sensitivity=0.99 on the validation groups"
    )
    [warning] = [note.text for note in groups.notes if "no threshold" in note.text]
    assert warning.startswith(f"per group: {start}")
    [note] = [text for text in list_run_notes(bags.path, PredictRequest(per="group")) if "no threshold" in text]
    assert note.startswith(start)


def test_one_positive_image_in_five_is_pooled_by_more_than_the_mean(bags: RunFolder) -> None:
    groups = evaluate(bags.path, per="group").per_group
    assert groups is not None
    assert groups.pooling.rule != "mean"
    assert set(groups.pooling.losses) == {"mean", "max", "noisy-or"}
    assert groups.pooling.losses[groups.pooling.rule] < groups.pooling.losses["mean"]
    assert groups.metrics.balanced_accuracy > 0.8


def test_the_reason_for_a_rule_agrees_with_the_losses_beside_it(bags: RunFolder) -> None:
    result = evaluate(bags.path, per="group")
    assert result.per_group is not None
    assert "chosen by log loss" in result.per_group.describe_pooling(result.task)
    kept = structs.replace(result.per_group.pooling, rule="mean", losses={"mean": 0.52, "max": 0.51})
    assert (
        replace(result.per_group, pooling=kept)
        .describe_pooling(result.task)
        .startswith(
            "Pooled by mean, because no other rule is better by more than one standard error of the log loss on "
        )
    )


def test_images_are_evaluated_as_without_groups(bags: RunFolder) -> None:
    plain, result = evaluate(bags.path), evaluate(bags.path, per="group")
    assert plain.per_group is None
    assert (result.metrics, result.intervals) == (plain.metrics, plain.intervals)


def test_command_line_shows_both_side_by_side(bags: RunFolder, convnext: Convnext) -> None:
    shown = convnext("eval", bags.path, "--per", "group", "--target", "sensitivity=0.9:SPOT", "--no-report")
    assert shown.code == 0, shown.err
    assert "Per group: 36 groups of 5 images" in shown.out
    assert "validation groups (mean " in shown.out
    assert "per image" in shown.out
    assert "any other class outweighs NORMAL" in shown.err
    lines = [line for line in (shown.out + shown.err).splitlines() if "sensitivity=0.9:SPOT is " in line]
    assert len(lines) == 2, "met or not, per image and per group"
    assert sum("per group: target" in line.lower() for line in lines) == 1
    assert sum("sensitivity=0.9:SPOT" in line and line not in lines for line in shown.out.splitlines()) == 2
    record = json.loads(convnext("eval", bags.path, "--per", "group", "--json", "--no-report").out)
    assert record["metrics"]["images"] == 180
    assert record["per_group"]["metrics"]["images"] == record["per_group"]["groups"] == 36
    assert record["per_group"]["pooling"]["rule"] in ("max", "noisy-or")
    assert record["per_group"]["mixed"] == 18
    assert json.loads(convnext("eval", bags.path, "--json", "--no-report").out)["per_group"] is None


@pytest.mark.parametrize(
    ("targets", "negative", "several"),
    [
        ([0, 1, 0, 1, 0, 1], 0, None),  # a finding in one of two images
        ([1, 2, 1, 2, 0, 1], 0, "2 of 3 groups have several classes with a finding"),
        ([0, 1, 0, 1, 0, 0], None, "2 of 3 groups have several classes:"),
        ([0, 0, 1, 1, 2, 2], None, None),
        ([0, 0, 0, 0, 0, 0], 0, None),
    ],
)
def test_groups_of_several_classes_are_a_warning(targets: list[int], negative: int | None, several: str | None) -> None:
    notices = warn_of_ambiguous_groups(np.array([0, 0, 1, 1, 2, 2]), np.array(targets), negative)
    assert [notice.text[: len(several or "")] for notice in notices] == ([several] if several else [])


def test_report_shows_both_side_by_side(bags: RunFolder) -> None:
    result = evaluate(bags.path, per="group", targets=["sensitivity=0.9:SPOT"])
    text = write_report(result).read_text()
    assert "Metrics per image and per group" in text
    assert "Operating points per group" in text
    assert result.per_group is not None
    number = result.per_group.metrics.images
    assert f"95% CIs per group: from the variance of 2,000 bootstrap resamples of {number} groups." in text
    assert "18 of 36 groups have images with different targets" in text
    assert result.per_group is not None
    assert f"{100 * result.per_group.metrics.balanced_accuracy:.1f}" in text
    assert "Metrics per image and per group" not in write_report(evaluate(bags.path)).read_text()
    missed = Notice("per group: target missed", "warning")
    missing = replace(result, per_group=replace(result.per_group, notes=(missed,)))
    assert missed in answer_questions(missing)[2].sentences, "the first screen has it"


def test_terminal_names_the_test_of_two_runs_with_groups(bags: RunFolder, tmp_path: Path, convnext: Convnext) -> None:
    shutil.copytree(bags.path, tmp_path / "other")
    shown = convnext("eval", bags.path, tmp_path / "other", "--no-report").out
    assert "exact sign-flip test over groups: p = 1" in shown


def test_prediction_of_a_group_is_that_of_its_evaluation(bags: RunFolder) -> None:
    groups = evaluate(bags.path, per="group", targets=["sensitivity=0.9:SPOT"]).per_group
    assert groups is not None
    images = list_images(bags, "test")
    shuffled = [images[row] for row in np.random.default_rng(0).permutation(len(images))]
    predictions = {one.group: one for one in predict(shuffled, bags.path, per="group", engine="torch")}
    assert list(groups.names) == sorted(str(name) for name in predictions)
    for name, scores in zip(groups.names, groups.pooled.probabilities, strict=True):
        one = predictions[name]
        assert (one.images, one.path, one.unreadable) == (5, None, ())
        known = dict(zip(one.classes, one.probabilities, strict=True))
        assert [known["NORMAL"], known["SPOT"]] == pytest.approx(scores.tolist(), abs=1e-5)
        [threshold] = groups.pooling.thresholds
        assert one.decisions == {"sensitivity=0.9:SPOT": known["SPOT"] >= threshold.threshold}


@pytest.mark.parametrize("group_from", ["auto", r"p\d+_[0-2]?"])  # three images alone, the other two together
def test_prediction_without_an_evaluation_fits_the_pooling_and_keeps_nothing(bags: RunFolder, group_from: str) -> None:
    images = list_images(bags, "test")
    before = predict(images, bags.path, engine="torch", per="group", group_from=group_from)
    assert read_pooling(bags) is None
    evaluate(bags.path, per="group", group_from=group_from)
    kept = read_pooling(bags)
    assert kept is not None
    assert kept.groups == (48 if group_from == "auto" else 4 * 48)
    after = predict(images, bags.path, engine="torch", per="group", group_from=group_from)
    assert [one.probabilities for one in before] == [one.probabilities for one in after]


def test_raw_prediction_of_a_group_pools_uncalibrated_probabilities(bags: RunFolder) -> None:
    evaluate(bags.path, per="group", targets=["sensitivity=0.9:SPOT"])
    pooling, images = read_pooling(bags), list_images(bags, "test")[:5]
    assert pooling is not None
    alone = [dict(zip(one.classes, one.probabilities, strict=True)) for one in predict(images, bags.path, raw=True)]
    rows = np.array([[one["NORMAL"], one["SPOT"]] for one in alone])
    pooled = pool_scores(rows, np.zeros(5, np.int64), pooling.rule)[0]
    [group] = predict(images, bags.path, per="group", raw=True)
    known = dict(zip(group.classes, group.probabilities, strict=True))
    assert [known["NORMAL"], known["SPOT"]] == pytest.approx((pooled / pooled.sum()).tolist(), abs=1e-5)
    assert group.decisions == {}


def test_group_of_an_uncalibrated_run_has_the_mean_of_its_images(bags: RunFolder) -> None:
    (bags.path / "calibration.json").unlink()
    images = list_images(bags, "test")[:5]
    alone = [dict(zip(one.classes, one.probabilities, strict=True))["SPOT"] for one in predict(images, bags.path)]
    [group] = predict(images, bags.path, per="group")
    assert dict(zip(group.classes, group.probabilities, strict=True))["SPOT"] == pytest.approx(np.mean(alone), abs=1e-5)


def test_groups_of_dicom_files_are_patients_where_those_of_training_were(bags: RunFolder, tmp_path: Path) -> None:
    bags.write(AUDIT, {"findings": [], "groups": {"source": "dicom"}})
    files = [save_dicom(tmp_path / f"{n}.dcm", XRAY, PatientID=name) for n, name in enumerate(("Q1", "Q2", "Q1"))]
    predictions = predict(files, bags.path, per="group")
    assert [(one.group, one.images) for one in predictions] == [("Q1", 2), ("Q2", 1)]


def test_command_line_predicts_one_row_a_group(bags: RunFolder, convnext: Convnext, tmp_path: Path) -> None:
    images = list_images(bags, "test")[:10]
    (tmp_path / "images").mkdir()
    broken = tmp_path / "images" / images[0].name.replace("_", "_9")
    broken.write_bytes(b"no image")
    words = ["predict", *images, broken, "--run", bags.path, "--per", "group"]
    shown = convnext(*words)
    assert shown.code == 3
    assert len(shown.out.splitlines()) == 2
    assert "(5 images)" in shown.out
    rows = json.loads(convnext(*words, "--json").out)
    assert [row["images"] for row in rows] == [5, 5]
    assert rows[0]["group"] == images[0].name.partition("_")[0]
    assert set(rows[0]["probabilities"]) == {"NORMAL", "SPOT"}
    table = list(csv.DictReader(io.StringIO(convnext(*words, "--csv").out)))
    assert [(row["group"], row["images"], row["class"]) for row in table] == [
        (row["group"], str(row["images"]), row["class"]) for row in rows
    ]
    other = convnext(*words, "--group-from", images[0].name.partition("_")[0])
    assert "note: 5 of 11 images have no group by this rule: each is a group of its own" in other.err
    alone = json.loads(convnext("predict", broken, "--run", bags.path, "--per", "group", "--json").out)
    assert alone[0]["images"] == 0
    assert "cannot" in alone[0]["error"]


def test_groups_follow_another_rule_on_request(bags: RunFolder) -> None:
    pattern = r"p\d\d"  # ten patients
    groups = evaluate(bags.path, per="group", group_from=pattern).per_group
    assert groups is not None
    assert groups.groups <= 12
    assert groups.pooling.group_from == pattern
    assert any("possible leakage" in note.text for note in groups.notes)
    [one] = predict(list_images(bags, "test")[:5], bags.path, per="group")
    assert one.group is not None
    assert len(one.group) == 3, "the rule of the evaluation"
    [two] = predict(list_images(bags, "test")[:5], bags.path, per="group", group_from=r"p\d+")
    assert two.group is not None
    assert len(two.group) == 4


def test_a_column_of_a_table_has_the_groups(bags: RunFolder, table: Path) -> None:
    head, *rows = table.read_text().splitlines()
    other = table.parent / "visits.csv"  # a visit: two images of a patient, or three
    other.write_text("\n".join([f"{head},visit", *(f"{row},{row[:11]}{int(row[12]) // 2}" for row in rows)]))
    result = evaluate(bags.path, other, per="group", group_column="visit")
    assert result.per_group is not None
    assert result.split == "test"
    assert result.per_group.images_per_group == (1, 2, 2)
    assert result.per_group.groups == 3 * 36
    with pytest.raises(UsageError, match="--group-column needs a table"):
        evaluate(bags.path, per="group", group_column="visit")


def test_refusals_say_what_to_do(bags: RunFolder, run: RunFolder, tmp_path: Path) -> None:
    images = list_images(bags, "test")
    with pytest.raises(UsageError, match=r"the groups of .* are not known"):
        evaluate(run.path, per="group")
    with pytest.raises(UsageError, match="--recalibrate fits the probabilities of single images"):
        evaluate(bags.path, per="group", recalibrate=100)
    with pytest.raises(UsageError, match="do not follow from file names"):
        predict(list_images(run, "test"), run.path, per="group")
    with pytest.raises(UsageError, match="--explain draws single images"):
        predict(images, bags.path, per="group", explain=tmp_path / "heat")
    with pytest.raises(UsageError, match=r"model\.onnx has no pooling of its own\. Give the run folder with --run"):
        predict(images, tmp_path / "model.onnx", per="group")
    with pytest.raises(UsageError, match="images in memory have no group"):
        predict([np.zeros((32, 32), np.uint8)], bags.path, per="group")
    with pytest.raises(UsageError, match="unknown class 'SPOTS' in --negative-class"):
        evaluate(bags.path, per="group", negative_class="SPOTS")
    with pytest.raises(UsageError, match="does not apply to a number per image"):
        choose_negative(Regression(), ("a",), "a")


def test_negative_class_without_effect_is_refused(bags: RunFolder) -> None:
    with pytest.raises(UsageError, match="unknown class 'zebra' in --negative-class"):
        evaluate(bags.path, negative_class="zebra")
    with pytest.raises(UsageError, match="unknown class 'zebra' in --negative-class"):
        evaluate(bags.path, per="group", negative_class="zebra")
    with pytest.raises(UsageError, match=r"--negative-class needs --per group.*Add --per group"):
        evaluate(bags.path, negative_class="SPOT")
    assert not bags.tests.exists(), "it does not count as an evaluation"


def test_several_negative_classes_are_refused() -> None:
    with pytest.raises(UsageError, match=r"'a,b' in --negative-class\. Give one class with --negative-class\.$"):
        choose_negative(SINGLE, ("a", "b", "c"), "a,b")


def test_negative_class_is_recognised_by_its_name() -> None:
    assert choose_negative(SINGLE, ("BACTERIA", "NORMAL", "VIRUS"), None) == "NORMAL"
    assert choose_negative(SINGLE, ("No Finding", "Edema"), None) == "No Finding"
    assert choose_negative(Multilabel(), ("No Finding", "Edema", "Mass"), None) == "No Finding"
    assert choose_negative(SINGLE, ("cat", "dog"), None) is None
    assert choose_negative(SINGLE, ("healthy", "normal", "sick"), None) is None
    assert choose_negative(SINGLE, ("cat", "dog"), "dog") == "dog"


def test_few_validation_groups_are_pooled_by_the_mean(bags: RunFolder) -> None:
    index = bags.read_split()
    bags.write_split(replace(index, groups=tuple(group[:3] for group in index.groups)))
    result = evaluate(bags.path, per="group")
    assert result.per_group is not None
    pooling = result.per_group.pooling
    assert (pooling.rule, pooling.temperature, pooling.losses) == ("mean", 1.0, {})
    assert "the validation split has only" in str(pooling.unfitted_reason)
    assert any(note.severity == "warning" and "pooled by the mean" in note.text for note in result.per_group.notes)


@pytest.mark.parametrize(
    ("is_calibrated", "images", "reason"),
    [(True, 100, "the run's validation split was changed"), (False, 5, "the validation split has only 5 images")],
)
def test_groups_that_no_rule_can_be_fitted_on_are_pooled_by_the_mean(
    bags: RunFolder, is_calibrated: bool, images: int, reason: str
) -> None:
    shrink_validation(bags, images)
    if not is_calibrated:
        (bags.path / "calibration.json").unlink()
    groups = evaluate(bags.path, per="group").per_group
    assert groups is not None
    assert (groups.pooling.rule, groups.pooling.temperature, groups.pooling.thresholds) == ("mean", 1.0, ())
    assert str(groups.pooling.unfitted_reason).startswith(reason)
    [warning] = [note.text for note in groups.notes if note.severity == "warning"]
    assert warning.endswith(str(groups.pooling.unfitted_reason))


def test_other_images_of_a_run_without_groups_are_pooled_by_the_mean(
    bags: RunFolder, table: Path, tmp_path: Path
) -> None:
    bags.write_split(replace(bags.read_split(), groups=()))
    head, *rows = table.read_text().splitlines()
    lines = [f"{table.parent / row}" for row in rows if "_0.png" in row]  # an image of each patient
    (tmp_path / "site.csv").write_text("\n".join([head, *lines]))
    result = evaluate(bags.path, tmp_path / "site.csv", per="group")
    groups = result.per_group
    assert groups is not None
    assert (groups.groups, groups.images_per_group) == (PATIENTS, (1, 1, 1))
    assert groups.pooling.rule == "mean"
    assert groups.metrics.confusion == result.metrics.confusion
    assert groups.metrics.log_loss == pytest.approx(result.metrics.log_loss)
    texts = [note.text for note in groups.notes]
    assert "each group has one image: metrics per group are those per image" in texts
    assert any(text.endswith("the groups of the run's own images are not known") for text in texts)
    assert read_pooling(bags) is None, "a later run with groups must not find it"


@pytest.mark.parametrize(("class_weights", "expected"), [("none", 0.1), ("balanced", 0.5)])
def test_pooling_counts_classes_alike_where_training_did(bags: RunFolder, class_weights: str, expected: float) -> None:
    """The mean probability of a class is its fraction, one image in ten; of images that count by class it is half."""
    text = bags.plan.read_text()
    assert 'class_weights = "none"' in text
    bags.plan.write_text(text.replace('class_weights = "none"', f'class_weights = "{class_weights}"'))
    groups = evaluate(bags.path, per="group", group_from=r"p\d+_\d").per_group  # each image by itself
    assert groups is not None
    assert groups.pooling.groups == 240
    scores = groups.pooled.probabilities[:, 1]
    normal, spot = (scores[groups.pooled.targets == k].mean() for k in (0, 1))
    mean = scores.mean() if class_weights == "none" else (normal + spot) / 2
    assert mean == pytest.approx(expected, abs=0.05)


def test_pooling_of_other_weights_is_not_used(bags: RunFolder) -> None:
    evaluate(bags.path, per="group")
    kept = read_pooling(bags)
    assert kept is not None
    bags.write(POOLING, to_plain(structs.replace(kept, weights="00000000")))
    assert read_pooling(bags) is None
    bags.write(POOLING, to_plain(kept) | {"label_offset": [0.0]})
    with pytest.raises(RunError, match="label_offset: 1 value for 2 classes"):
        evaluate(bags.path)
    bags.write(POOLING, to_plain(kept) | {"rule": "median"})
    with pytest.raises(RunError, match=r"pooling\.json cannot be read: rule"):
        read_pooling(bags)


def test_cross_validation_is_pooled_by_the_mean(table: Path, tmp_path: Path) -> None:
    folds = cross_validate(table, output=tmp_path / "folds", folds=2, **(SETTINGS | {"epochs": 1})).run
    result = evaluate(folds, per="group", split="val")
    assert result.per_group is not None
    assert result.per_group.pooling == Pooling(
        weights="", unfitted_reason="a cross-validation has no validation groups of its own", negative_class="NORMAL"
    )
    predictions = predict(list_images(RunFolder(folds), "test")[:5], folds, per="group")
    assert [one.images for one in predictions] == [5]
    evaluate(folds, table, recalibrate=90, save_calibration=tmp_path / "site.json")
    [image] = list_images(RunFolder(folds), "test")[:1]
    own, new = predict(image, folds), predict(image, folds, calibration=tmp_path / "site.json")
    assert own[0].probabilities != new[0].probabilities
