import json
import re
import shutil
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
from msgspec import structs
from safetensors.numpy import load_file, save_file

from convnext_cli import compare, evaluate
from convnext_cli.data.index import select_rows
from convnext_cli.errors import DataError, ImageError, RunError, UsageError
from convnext_cli.files import replace_file
from convnext_cli.inference.calibration import ABSTAIN_RATE, read_calibration
from convnext_cli.inference.evaluation import evaluate_all_steps, evaluate_steps
from convnext_cli.inference.prediction import list_run_notes, predict
from convnext_cli.inference.request import EvalRequest, PredictRequest
from convnext_cli.progress import Progress, finish
from convnext_cli.runs.files import CALIBRATION, CALIBRATION_ARRAYS, ORIGIN
from convnext_cli.runs.folder import RunFolder
from tests.conftest import Convnext, change_json
from tests.inference.conftest import shrink_validation


def read_folder(path: Path) -> dict[Path, bytes]:
    return {file: file.read_bytes() for file in path.rglob("*") if file.is_file()}


def test_fine_tuned_run_is_calibrated(run: RunFolder) -> None:
    calibration = read_calibration(run)
    assert calibration is not None
    assert (calibration.unfitted_reason, calibration.images, calibration.training_images) == (None, 60, 195)
    assert calibration.log_loss is not None
    assert calibration.log_loss[1] <= calibration.log_loss[0]
    assert 0.05 < calibration.temperature < 20
    assert calibration.novelty_rate == ABSTAIN_RATE


def test_metrics_have_intervals_and_test_evaluations_are_counted(run_copy: RunFolder) -> None:
    first = evaluate(run_copy.path)
    assert (first.split, first.test_number, first.intervals.clustered) == ("test", 1, False)
    assert evaluate(run_copy.path, split="val").test_number is None
    assert evaluate(run_copy.path).test_number == 2
    lines = [json.loads(line) for line in run_copy.tests.read_text().splitlines()]
    assert [line["images"] for line in lines] == [45, 45]
    assert lines[0]["top1"] == first.metrics.top1
    interval = first.intervals.overall["balanced_accuracy"]
    assert interval is not None
    assert interval.low < first.metrics.balanced_accuracy < interval.high + 1e-9
    record = json.loads(json.dumps(first.to_dict(), default=str))
    assert record["intervals"]["overall"]["top1"].keys() == {"low", "high"}
    assert record["calibration"]["temperature"] == read_calibration(run_copy).temperature  # type: ignore[union-attr]
    assert "cases" not in record


def test_evaluation_that_cannot_be_recorded_fails(run_copy: RunFolder) -> None:
    run_copy.tests.mkdir()
    with pytest.raises(RunError, match=r"cannot write .*tests\.jsonl"):
        evaluate(run_copy.path)


def test_images_that_the_epoch_was_chosen_by_give_a_warning(run_copy: RunFolder) -> None:
    def list_warnings(split: str) -> list[str]:
        return [note.text for note in evaluate(run_copy.path, split=split).notes if note.severity == "warning"]

    assert any("metrics may be slightly too high" in text for text in list_warnings("val"))
    assert not any("too high" in text for text in list_warnings("test"))


def test_evaluation_whose_thresholds_cannot_be_written_is_not_recorded(
    run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch
) -> None:
    def fail(*_arguments: object) -> None:
        raise RunError("no room", "Free some")

    monkeypatch.setattr(RunFolder, "write_calibration", fail)
    with pytest.raises(RunError, match="no room"):
        evaluate(run_copy.path, targets=["sensitivity=0.9:1"])
    assert not run_copy.read_tests()


def test_damaged_record_still_counts_as_an_evaluation(run_copy: RunFolder) -> None:
    assert run_copy.record_test({"images": 1}) == 1
    with run_copy.tests.open("a") as file:
        file.write('{"ima\n')
    assert run_copy.record_test({"images": 2}) == 3


def test_what_a_killed_evaluation_left_is_removed(run_copy: RunFolder) -> None:
    run_copy.plots.mkdir(exist_ok=True)
    for place in (run_copy.path, run_copy.plots):
        (place / ".report.html.abcd1234.tmp").write_text("half")
    with replace_file(run_copy.report) as temporary:  # of another process
        temporary.write_text("whole")
        evaluate(run_copy.path)
        assert list(run_copy.path.rglob("*.tmp")) == [temporary]


def test_known_groups_are_resampled(run_copy: RunFolder) -> None:
    index = run_copy.read_split()
    groups = tuple(f"p{row // 5}" for row in range(len(index)))
    run_copy.write_split(replace(index, groups=groups))
    result = evaluate(run_copy.path)
    assert result.intervals.clustered
    assert result.intervals.units == len({groups[row] for row in index.rows("test")}) < 45


@pytest.mark.parametrize(("source", "target"), [("train", "test"), ("train", "val"), ("test", "train")])
def test_split_with_moved_images_is_refused(run_copy: RunFolder, source: str, target: str) -> None:
    index = run_copy.read_split()
    row = index.rows(source)[0]
    splits = tuple(target if place == row else split for place, split in enumerate(index.splits))
    run_copy.write_split(replace(index, splits=splits))
    problem = (
        rf"split\.csv was changed since the training: 1 image was in another split: {index.paths[row]} \({source}\)"
    )
    with pytest.raises(RunError, match=problem):
        evaluate(run_copy.path)
    assert not run_copy.tests.exists()


def test_split_in_another_order_is_refused(run_copy: RunFolder) -> None:
    table = run_copy.path / "split.csv"
    header, *rows = table.read_text().splitlines(keepends=True)
    table.write_text(header + "".join(reversed(rows)))
    with pytest.raises(RunError, match=r"split\.csv was changed since the training: its rows are in another order"):
        evaluate(run_copy.path)


def test_corrected_label_and_removed_row_of_the_split_count_with_a_warning(run_copy: RunFolder) -> None:
    index = run_copy.read_split()
    first, last = index.rows("test")[0], index.rows("test")[-1]
    labels = tuple((label + 1) % 3 if row == first else label for row, label in enumerate(index.labels))
    corrected = replace(index, labels=labels)
    run_copy.write_split(select_rows(corrected, [row for row in range(len(index)) if row != last]))
    result = evaluate(run_copy.path)
    assert result.metrics.images == 44
    [note] = [note for note in result.notes if "split.csv" in note.text]
    differences = f"1 row differs ({index.paths[first]}), 1 row is gone"
    assert note.text == f"split.csv was changed since the training, and counts as it is now: {differences}"
    assert note.severity == "warning"
    ORIGIN.path(run_copy.path).unlink()  # as in an older run
    assert not [note for note in evaluate(run_copy.path).notes if "split.csv" in note.text]


def test_replaced_image_of_the_run_counts_with_a_warning(run_copy: RunFolder, tmp_path: Path) -> None:
    index = run_copy.read_split()
    data = shutil.copytree(index.root, tmp_path / "data")
    run_copy.write_split(replace(index, root=data))
    first, second = (index.paths[row] for row in index.rows("test")[:2])
    assert not [note for note in evaluate(run_copy.path).notes if "changed" in note.text]
    (data / second).write_bytes((data / first).read_bytes())
    [note] = [note for note in evaluate(run_copy.path).notes if "changed" in note.text]
    text = f"1 of 45 image files was changed since the training, and counts as it is now: {second}"
    assert (note.text, note.severity) == (text, "warning")
    assert not [note for note in evaluate(run_copy.path, split="val").notes if "changed" in note.text]


def test_small_validation_split_is_not_calibrated(run_copy: RunFolder) -> None:
    shrink_validation(run_copy, 4)
    (run_copy.path / "calibration.json").unlink()
    result = evaluate(run_copy.path)
    assert result.calibration is not None
    assert result.calibration.temperature == 1
    assert any("not calibrated, because the validation split has only 4 images" in note.text for note in result.notes)
    assert result.metrics == result.uncalibrated
    with pytest.raises(UsageError, match="no threshold can be set: the validation split has only 4 images"):
        evaluate(run_copy.path, targets=["sensitivity=0.9:1"])


def test_threshold_of_a_run_without_calibration_is_set_on_the_images_to_recalibrate_on(run_copy: RunFolder) -> None:
    shrink_validation(run_copy, 4)
    (run_copy.path / "calibration.json").unlink()
    result = evaluate(run_copy.path, targets=["sensitivity=0.9:1"], recalibrate=20)
    [point] = result.operating_points
    assert (str(point.threshold.target), result.calibration is not None) == ("sensitivity=0.9:1", True)
    own = read_calibration(run_copy)
    assert own is not None
    assert (own.is_fitted, own.thresholds) == (False, ()), "the run keeps its own"


def test_calibration_of_other_weights_is_fitted_again(run_copy: RunFolder) -> None:
    weights = load_file(run_copy.path / "model.safetensors")
    weights["head.fc.weight"] = weights["head.fc.weight"] * 3
    save_file(weights, run_copy.path / "model.safetensors", {"format": "pt"})
    assert read_calibration(run_copy) is None
    before = evaluate(run_copy.path)
    assert before.calibration is not None
    assert before.calibration.weights == run_copy.fingerprint_weights()
    assert before.metrics.confusion == before.uncalibrated.confusion
    assert read_calibration(run_copy) == before.calibration


def test_damaged_calibration_raises_an_error(run_copy: RunFolder) -> None:
    (run_copy.path / "calibration.json").write_text("{")
    with pytest.raises(RunError, match=r"calibration\.json cannot be read"):
        evaluate(run_copy.path)


def test_target_is_reached_on_validation_and_measured_on_test(run_copy: RunFolder) -> None:
    result = evaluate(run_copy.path, targets=["sensitivity=0.9:1", "specificity=0.95:2"])
    assert [str(point.threshold.target) for point in result.operating_points] == [
        "sensitivity=0.9:1",
        "specificity=0.95:2",
    ]
    for point in result.operating_points:
        assert point.threshold.reached >= point.threshold.target.value
        assert point.sensitivity_interval is not None
        assert point.sensitivity is not None
        assert point.sensitivity_interval.low <= point.sensitivity <= point.sensitivity_interval.high
    assert not any("model.onnx" in note.text for note in result.notes)
    again = evaluate(run_copy.path, targets=["sensitivity=0.9:1"])
    assert again.operating_points == result.operating_points, "kept, and asking twice changes nothing"


def test_target_of_several_bounds_is_kept_measured_and_recorded(run_copy: RunFolder) -> None:
    texts = [
        "sensitivity=0.9,specificity=0.99:1",
        "ppv=0.5,npv=0.9:2@prevalence=0.1",
        "specificity=0.6:0@confidence=0.8",
    ]
    result = evaluate(run_copy.path, targets=texts)
    assert [str(point.threshold.target) for point in result.operating_points] == texts
    assert [curve.name for curve in result.decision_curves] == ["1", "2", "0"]
    assert result.decision_curves[1].prevalence == 0.1
    again = evaluate(run_copy.path)
    assert again.operating_points == result.operating_points
    record = json.loads(run_copy.tests.read_text().splitlines()[-1])["targets"]
    both, predictive, asked = result.operating_points
    assert record[texts[0]] == {"sensitivity": both.sensitivity, "specificity": both.specificity}
    assert record[texts[1]] == {"ppv": predictive.ppv, "npv": predictive.npv}
    assert record[texts[2]] == asked.specificity
    assert asked.threshold.confidence is not None
    assert asked.threshold.confidence >= 0.8
    kept = json.loads((run_copy.path / "calibration.json").read_text())["thresholds"]
    assert kept[0]["target"].keys() == {"figure", "value", "name", "also"}
    assert kept[2]["target"].keys() == {"figure", "value", "name", "confidence"}
    plain = result.to_dict()["operating_points"][1]
    assert plain["results"][0]["confidence"] == predictive.results[0].confidence
    assert plain["positive_ratio_interval"].keys() == {"low", "high"}


def test_confidence_counts_groups_of_the_validation_split(run_copy: RunFolder) -> None:
    [alone] = evaluate(run_copy.path, targets=["sensitivity=0.5:1"]).operating_points
    index = run_copy.read_split()
    run_copy.write_split(replace(index, groups=tuple(f"p{row // 5}" for row in range(len(index)))))
    [grouped] = evaluate(run_copy.path, targets=["sensitivity=0.5:1"]).operating_points
    assert grouped.threshold.threshold == alone.threshold.threshold
    assert grouped.threshold.confidence != alone.threshold.confidence
    assert grouped.results[0].confidence != alone.results[0].confidence


def test_target_of_a_class_without_validation_images_is_an_error(run_copy: RunFolder) -> None:
    evaluate(run_copy.path)
    arrays = run_copy.read_calibration_arrays()
    arrays["val_labels"] = np.where(arrays["val_labels"] == 1, 0, arrays["val_labels"])
    run_copy.write_arrays(CALIBRATION_ARRAYS, arrays, {"weights": run_copy.fingerprint_weights()})
    with pytest.raises(UsageError, match=r"for sensitivity=0\.9:1: the validation split has no images of 1"):
        evaluate(run_copy.path, targets=["sensitivity=0.9:1"])


def test_a_new_threshold_that_the_exported_file_lacks_is_noted(run_copy: RunFolder) -> None:
    run_copy.exported("onnx").touch()
    once, again = (evaluate(run_copy.path, targets=["sensitivity=0.9:1"]) for _ in range(2))
    remedy = f"`convnext export {run_copy.path}` writes it again"
    assert f"model.onnx does not have these thresholds; {remedy}" in [note.text for note in once.notes]
    assert not any("model.onnx" in note.text for note in again.notes)


def test_an_unknown_class_of_a_target_is_the_first_error(run_copy: RunFolder) -> None:
    evaluate(run_copy.path)
    change_json(CALIBRATION.path(run_copy.path), "weak", "there is no validation split")
    with pytest.raises(UsageError, match="unknown class 'SICK' in --target"):
        evaluate(run_copy.path, targets=["sensitivity=0.9:SICK"])
    with pytest.raises(UsageError, match="no threshold can be set: there is no validation split"):
        evaluate(run_copy.path, targets=["sensitivity=0.9:1"])


def test_tta_reports_its_cost_and_gain_on_the_terminal(run: RunFolder, convnext: Convnext) -> None:
    shown = convnext("eval", run.path, "--split", "val", "--tta", "--no-report").out
    gain = r"difference: balanced accuracy [+-][\d.]+ points, 95% CI \["
    assert re.search(rf"Test-time augmentation took [\d.]+ times as long; {gain}", shown)


def test_tta_reports_its_cost_and_gain(run_copy: RunFolder) -> None:
    plain = evaluate(run_copy.path, split="val")
    events: list[Progress] = []
    result = finish(evaluate_steps(run_copy, EvalRequest(split="val", tta=True)), events.append)
    assert result.augmentation is not None
    gain = result.augmentation.gain.differences["log_loss"]
    assert gain is not None
    assert gain.value == pytest.approx(result.metrics.log_loss - plain.metrics.log_loss, abs=1e-9)
    assert not np.allclose(result.images.logits, plain.images.logits)
    assert {event.activity for event in events} >= {"evaluating", "evaluating shifted views"}


def test_comparison_of_runs_finds_the_better_one(run_copy: RunFolder, run: RunFolder) -> None:
    weights = load_file(run_copy.path / "model.safetensors")
    weights["head.fc.weight"] = np.zeros_like(weights["head.fc.weight"])
    save_file(weights, run_copy.path / "model.safetensors", {"format": "pt"})
    good = evaluate(run.path, split="val")
    bad = finish(evaluate_steps(run_copy, EvalRequest(), test_set=good.test_set))
    compared = good.images.compare(bad.images)
    accuracy = compared.differences["top1"]
    assert accuracy is not None
    assert accuracy.value == pytest.approx(bad.metrics.top1 - good.metrics.top1)
    assert accuracy.interval is not None
    assert accuracy.interval.high < 0
    assert compared.p_value is not None
    assert compared.p_value < 0.01


def test_comparison_notes_images_that_a_run_was_trained_on(run: RunFolder, run_copy: RunFolder, tmp_path: Path) -> None:
    """Another seed draws another split: test images of one run are training images of the other."""
    index = run.read_split()
    data, other = tmp_path / "data", RunFolder(shutil.copytree(run_copy.path, tmp_path / "other"))
    for row in index.rows("train")[:20]:
        (data / index.paths[row]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(index.root / index.paths[row], data / index.paths[row])
    notes = compare(run_copy.path, other.path, data).notes
    for path in (run_copy.path, other.path):
        assert f"{path}: leakage: 20 of 20 images were trained on; the scores are too high" in notes


def test_comparison_that_a_later_run_refuses_is_recorded_in_none(run_copy: RunFolder, tmp_path: Path) -> None:
    other = RunFolder(shutil.copytree(run_copy.path, tmp_path / "other"))
    calibration = read_calibration(other)
    assert calibration is not None
    few = structs.replace(calibration, unfitted_reason="the validation split is small")
    other.write_calibration(few.to_dict(), {})
    before = read_folder(run_copy.path)
    request = EvalRequest(runs=(run_copy.path, other.path), split="test", targets=("sensitivity=0.9:1",))
    with pytest.raises(UsageError, match="no threshold can be set"):
        finish(evaluate_all_steps(request))
    assert read_folder(run_copy.path) == before


def test_evaluation_that_fails_writes_no_threshold_pooling_or_calibration(run_copy: RunFolder, tmp_path: Path) -> None:
    index, data = run_copy.read_split(), tmp_path / "data"
    for row in index.rows("test"):
        (data / index.paths[row]).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(index.root / index.paths[row], data / index.paths[row])
    damaged = sorted(data.rglob("*.png"))[0]
    damaged.write_bytes(damaged.read_bytes()[:60])
    before, kept = read_folder(run_copy.path), tmp_path / "site.json"
    for options in ({"per": "group", "group_from": "(.)[.]png"}, {"recalibrate": 20, "save_calibration": kept}):
        with pytest.raises(ImageError, match=str(damaged)):
            evaluate(run_copy.path, data, targets=["sensitivity=0.9:1"], **options)
        assert read_folder(run_copy.path) == before
    assert not kept.exists()


def test_runs_of_different_classes_are_not_compared(
    run_copy: RunFolder, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("convnext_cli.inference.evaluation.check_records", lambda _run: None)  # this one is made up
    shutil.copytree(run_copy.path, tmp_path / "other")
    other, index = RunFolder(tmp_path / "other"), run_copy.read_split()
    other.write_split(replace(index, classes=("0", "1", "two")))
    with pytest.raises(DataError, match=r"differ in classes: 2, two\. Compare runs that were trained on the same"):
        compare(run_copy.path, other.path)
    assert not run_copy.read_tests(), "no evaluation on the test split is recorded"


def test_uncalibrated_run_whose_images_are_gone_gives_a_warning(run_copy: RunFolder, tmp_path: Path) -> None:
    index = run_copy.read_split()
    shutil.copytree(index.root, tmp_path / "data")
    run_copy.write_split(replace(index, root=tmp_path / "gone"))
    (run_copy.path / "calibration.json").unlink()
    result = evaluate(run_copy.path, tmp_path / "data")
    assert result.calibration is None
    assert result.metrics == result.uncalibrated
    [warning] = [note for note in result.notes if "images of the run are gone" in note.text]
    assert warning.severity == "warning"
    assert str(tmp_path / "gone") in warning.text


def test_damaged_image_is_an_error_of_its_name(run_copy: RunFolder, tmp_path: Path) -> None:
    index = run_copy.read_split()
    data = shutil.copytree(index.root, tmp_path / "data")
    run_copy.write_split(replace(index, root=data))
    damaged = data / index.paths[index.rows("test")[3]]
    damaged.write_bytes(damaged.read_bytes()[:60])
    with pytest.raises(ImageError, match=str(damaged)):
        evaluate(run_copy.path)
    assert not run_copy.tests.exists(), "it does not count as an evaluation"


def test_training_images_of_another_run_give_a_leakage_warning(run_copy: RunFolder, run: RunFolder) -> None:
    index = run_copy.read_split()
    other = {"train": "test", "test": "train"}
    ORIGIN.path(run_copy.path).unlink()  # as if it was trained so
    run_copy.write_split(replace(index, splits=tuple(other.get(s, s) for s in index.splits)))
    test_set = evaluate(run.path).test_set
    result = finish(evaluate_steps(run_copy, EvalRequest(), test_set=test_set))
    [note] = [note for note in result.notes if note.text.startswith("leakage: 45 of 45 images were trained on")]
    assert note.severity == "warning"
    assert result.to_dict()["notes"] == [note.text for note in result.notes]


@pytest.mark.parametrize(("threshold", "sensitivity"), [(0.0, 100), (1.0, 0)])
def test_missed_target_is_noted_by_eval_and_predict(run_copy: RunFolder, threshold: float, sensitivity: int) -> None:
    evaluate(run_copy.path, targets=["sensitivity=0.9:1"])
    change_json(CALIBRATION.path(run_copy.path), "thresholds.0.threshold", threshold)  # every image is called, or none
    result = evaluate(run_copy.path)
    assert [point.sensitivity for point in result.operating_points] == [sensitivity / 100]
    missed = [note for note in result.notes if "is not met on these images: sensitivity 0.0%, 95% CI [" in note.text]
    notes = list_run_notes(run_copy.path, PredictRequest())
    if sensitivity == 100:
        assert not missed
        assert not notes
    else:
        assert missed
        assert notes == ["target sensitivity=0.9:1 was not met on the test split: sensitivity 0.0%"]
        assert list_run_notes(run_copy.path, PredictRequest(raw=True)) == [], "no threshold decides"
    index = run_copy.read_split()
    [prediction] = predict(index.root / index.paths[0], run_copy.path)
    assert prediction.missed_targets == ({} if sensitivity == 100 else {"sensitivity=0.9:1": "sensitivity 0.0%"})


def test_zip_file_and_csv_file_have_their_own_names_in_a_run(run_copy: RunFolder, tmp_path: Path) -> None:
    index = run_copy.read_split()
    archive, table = tmp_path / "pictures.zip", tmp_path / "list.csv"
    archive.touch()
    for changed in (replace(index, source=archive), replace(index, table=table), replace(index, source=index.root)):
        run_copy.write_split(changed)
        assert run_copy.read_split().location == evaluate(run_copy.path, split="val").data == changed.location
        assert run_copy.read_split().root == index.root


def test_recalibrated_evaluation_of_the_test_split_is_counted_but_does_not_reach_predict(run_copy: RunFolder) -> None:
    evaluate(run_copy.path, split="val", targets=["sensitivity=0.9:1"])
    recalibrated = evaluate(run_copy.path, recalibrate=20)
    assert recalibrated.recalibration is not None
    [record] = run_copy.read_tests()
    assert record["recalibrated_on"] == recalibrated.recalibration.images
    missed = {**record, "targets": {"sensitivity=0.9:1": 0.0}}
    run_copy.tests.write_text(json.dumps(missed) + "\n")
    with pytest.raises(RunError, match=r"tests\.jsonl, evaluation 1, was changed since it was written"):
        run_copy.read_tests()
    del missed["digest"]
    run_copy.tests.write_text(json.dumps(missed) + "\n")
    image = run_copy.read_split().root / run_copy.read_split().paths[0]
    assert predict(image, run_copy.path)[0].missed_targets == {}
    assert list_run_notes(run_copy.path, PredictRequest()) == []
    of_an_older_run = {key: value for key, value in missed.items() if key != "recalibrated_on"}
    run_copy.tests.write_text(json.dumps(of_an_older_run) + "\n")
    assert predict(image, run_copy.path)[0].missed_targets == {"sensitivity=0.9:1": "sensitivity 0.0%"}
    assert evaluate(run_copy.path).test_number == 2
    assert "recalibrated_on" not in run_copy.read_tests()[1]


def test_prediction_has_the_missed_targets_of_the_evaluation_with_its_augmentation(run_copy: RunFolder) -> None:
    target = "sensitivity=0.9:1"
    evaluate(run_copy.path, split="val", targets=[target])
    image = run_copy.read_split().root / run_copy.read_split().paths[0]

    def list_missed(*tests: Mapping[str, object]) -> list[dict[str, str]]:
        run_copy.tests.write_text("".join(json.dumps(test) + "\n" for test in tests))
        notes = [list_run_notes(run_copy.path, PredictRequest(tta=tta)) for tta in (False, True)]
        predictions = [predict(image, run_copy.path, tta=tta)[0].missed_targets for tta in (False, True)]
        assert [len(texts) for texts in notes] == [len(missed) for missed in predictions]
        return predictions

    plain: dict[str, object] = {"targets": {target: 0.5}}
    augmented: dict[str, object] = {"tta": True, "targets": {target: 0.7}}
    shown = [{target: "sensitivity 50.0%"}, {target: "sensitivity 70.0%"}]
    assert list_missed(plain, augmented) == list_missed(augmented, plain) == shown
    assert list_missed(plain) == [shown[0]] * 2, "better than none"
    assert list_missed(plain, augmented | {"targets": {target: 1.0}}) == [shown[0], {}]


def test_calibration_of_an_earlier_version_is_fitted_again_and_keeps_its_thresholds(run_copy: RunFolder) -> None:
    evaluate(run_copy.path, targets=["sensitivity=0.9:1"])
    kept, arrays = json.loads(CALIBRATION.path(run_copy.path).read_text()), run_copy.read_calibration_arrays()
    run_copy.write_calibration(
        {name: value for name, value in kept.items() if name != "novelty_detected"}
        | {"novelty_score": "cosine distance", "novelty_threshold": 0.2},
        {name: value for name, value in arrays.items() if name not in ("mean", "precision")},
    )
    image = run_copy.read_split().root / run_copy.read_split().paths[0]
    assert predict(image, run_copy.path)[0].decisions, "all else is as it was"
    with pytest.raises(RunError, match=r"earlier version.*convnext eval"):
        predict(image, run_copy.path, abstain=True)
    calibration = evaluate(run_copy.path).calibration
    assert calibration is not None
    assert [t.threshold for t in calibration.thresholds] == [kept["thresholds"][0]["threshold"]]
    assert calibration.novelty_threshold == pytest.approx(kept["novelty_threshold"])
    assert predict(image, run_copy.path, abstain=True)[0].abstained is not None


def test_ood_score_that_misses_scrambled_images_gives_a_warning(run_copy: RunFolder) -> None:
    assert json.loads(CALIBRATION.path(run_copy.path).read_text())["novelty_detected"] > 0.9
    assert not list_run_notes(run_copy.path, PredictRequest(abstain=True))
    change_json(CALIBRATION.path(run_copy.path), "novelty_detected", 0.25)
    [note] = list_run_notes(run_copy.path, PredictRequest(abstain=True))
    assert "not reliable for this model: its OOD score flags only 25% of scrambled validation images" in note
    assert note in [notice.text for notice in evaluate(run_copy.path).notes]
