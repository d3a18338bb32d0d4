import json
import re
import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray
from PIL import Image
from safetensors.numpy import load_file, save_file

from convnext_cli import cross_validate, evaluate, export, predict
from convnext_cli.data.digits import write_digits
from convnext_cli.data.split import name_fold
from convnext_cli.errors import DataError, RunError, UsageError
from convnext_cli.inference.drift import CORNERS, ImageMeasures, compare_samples
from convnext_cli.inference.evaluation import evaluate_all_steps
from convnext_cli.inference.request import EvalRequest
from convnext_cli.progress import finish
from convnext_cli.reports.section import ReportData
from convnext_cli.reports.sites import show_drift
from convnext_cli.runs.files import IMAGE_HASHES
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.regression import Regression
from convnext_cli.tasks.single import Single
from tests.conftest import SHALLOW, SMALL, Convnext, change_json

Pixels = NDArray[np.uint8]


@pytest.fixture(scope="module")
def others(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Digits of the same three classes that the run has not seen, 40 of each, by other people."""
    everything, chosen = write_digits(tmp_path_factory.mktemp("all")), tmp_path_factory.mktemp("others")
    for digit in "012":
        (chosen / digit).mkdir()
        for path in sorted((everything / digit).glob("*.png"))[120:160]:
            shutil.copy(path, chosen / digit / path.name)
    return chosen


def change(source: Path, target: Path, function: Callable[[Pixels], Pixels]) -> Path:
    for path in source.rglob("*.png"):
        (target / path.parent.name).mkdir(parents=True, exist_ok=True)
        Image.fromarray(function(np.asarray(Image.open(path)))).save(target / path.parent.name / path.name)
    return target


def brighten(pixels: Pixels) -> Pixels:
    return (255 * (pixels / 255) ** 0.4).astype(np.uint8)


def test_images_of_the_same_kind_have_no_drift(run: RunFolder, tmp_path: Path) -> None:
    index = run.read_split()
    for number, row in enumerate(index.rows("test")):
        target = tmp_path / f"site/{index.name_class(row)}/{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(index.root / index.paths[row], target)
    result = evaluate(run.path, tmp_path / "site")
    assert result.drift is not None
    assert not result.drift.images_drifted
    assert [measure.key for measure in result.drift.measures if measure.is_drift] == []
    medians = {measure.key: measure.difference.here for measure in result.drift.measures}
    assert medians.keys() == {
        "ood",
        "brightness",
        "contrast",
        "colour",
        "sharpness",
        *CORNERS,
        "size",
        "aspect",
        *"012",
    }
    assert (medians["size"], medians["aspect"]) == (8, 1)
    assert (result.drift.validation_images, result.drift.images) == (60, 45)
    assert any(note.text.startswith("no drift found: 45 of these images") for note in result.notes)
    assert evaluate(run.path, split="val").drift is None, "its own images"


def test_few_images_are_not_said_to_have_no_drift(run: RunFolder, others: Path, tmp_path: Path) -> None:
    (tmp_path / "site/0").mkdir(parents=True)
    shutil.copy(next((others / "0").iterdir()), tmp_path / "site/0")
    result = evaluate(run.path, tmp_path / "site")
    assert result.drift is not None
    assert any(note.text.startswith("drift cannot be tested: 1 of these images and 60") for note in result.notes)
    cells = [measure.list_cells() for measure in result.drift.measures]
    assert {row[-1] for row in cells} == {"-"}
    assert all(float(row[3]) >= 0.5 for row in cells if row[0] == "brightness"), "a distance from one image"


def test_another_gamma_is_drift(run: RunFolder, others: Path, tmp_path: Path, convnext: Convnext) -> None:
    data = change(others, tmp_path / "site", brighten)
    outcome = convnext("eval", run.path, data, "--no-report")
    assert outcome.code == 0
    assert "warning: drift: these images differ from the run's validation images" in outcome.err
    assert "brightness" in outcome.out
    assert "images are above the OOD threshold; of validation images at most 5% are" in outcome.out
    drift = json.loads(convnext("eval", run.path, data, "--no-report", "--json").out)["drift"]
    assert {measure["key"] for measure in drift["measures"] if measure["is_drift"]} >= {"brightness", "ood"}
    assert "Kolmogorov-Smirnov distance of at least 0.2" in drift["criterion"]


def test_other_sizes_and_other_class_balance_are_drift(run: RunFolder, others: Path, tmp_path: Path) -> None:
    data = change(others, tmp_path / "site", lambda pixels: np.pad(pixels, ((0, 9), (0, 0))))
    for path in sorted((data / "2").iterdir())[:35]:
        path.unlink()
    result = evaluate(run.path, data)
    assert result.drift is not None
    drifted = {measure.key for measure in result.drift.measures if measure.is_drift}
    assert {"size", "aspect", "2"} <= drifted
    assert any(note.text.startswith("other targets than on validation: fraction of class 2") for note in result.notes)


@pytest.mark.parametrize("shift", [0.0, 1.0])
def test_shifted_numbers_are_drift_of_the_target(shift: float) -> None:
    random = np.random.default_rng(0)
    samples = [
        ImageMeasures(values={}, targets=random.normal(mean, 1, 200), groups=None) for mean in (5.0, 5.0 + shift)
    ]
    drift = compare_samples(Regression(), ("age",), *samples)
    assert "class" not in drift.criterion
    assert [(measure.title, measure.is_class, measure.is_drift) for measure in drift.measures] == [
        ("age", True, shift > 0)
    ]
    [age] = drift.measures
    assert (age.difference.validation, age.difference.here) == pytest.approx((5, 5 + shift), abs=0.2)
    assert not drift.images_drifted, "the images are of the same kind"


def test_of_two_classes_the_second_is_compared() -> None:
    samples = [
        ImageMeasures(values={}, targets=np.arange(200) % number // (number - 1), groups=None) for number in (2, 4)
    ]
    [measure] = compare_samples(Single(), ("a", "b"), *samples).measures
    assert (measure.title, measure.is_drift) == ("fraction of b", True)
    assert (measure.difference.validation, measure.difference.here) == (0.5, 0.25)


def test_run_without_measures_says_so_and_without_sizes_compares_the_others(
    run: RunFolder, others: Path, tmp_path: Path
) -> None:
    shutil.copytree(run.path, tmp_path / "old")
    old = RunFolder(tmp_path / "old")
    hashes = {name: array for name, array in (old.read_arrays(IMAGE_HASHES) or {}).items() if name != "size"}
    save_file(hashes, old.path / "image_hashes.safetensors")
    again, before = (evaluate(folder.path, others).drift for folder in (old, run))
    assert again is not None
    assert before is not None
    distances = {measure.key: measure.difference.distance for measure in before.measures}
    assert {measure.key: measure.difference.distance for measure in again.measures} == {
        key: distance for key, distance in distances.items() if key not in ("size", "aspect")
    }
    path = old.path / "calibration.safetensors"
    arrays = {name: array for name, array in load_file(path).items() if name != "val_corners"}
    save_file(arrays, path, metadata={"weights": old.fingerprint_weights()})
    result = evaluate(old.path, others)
    assert result.drift is None
    assert any("drift is not measured: the run keeps no measures" in note.text for note in result.notes)
    change_json(old.path / "calibration.json", "weak", "one class")
    notes = evaluate(old.path, others).notes
    assert any("drift is not measured: the run has too few validation images" in note.text for note in notes)


def test_drift_from_the_validation_images_of_all_folds(
    digits: Path, others: Path, tmp_path: Path, convnext: Convnext
) -> None:
    folds = cross_validate(digits, output=tmp_path / "folds", folds=2, **(SMALL | SHALLOW)).run  # type: ignore[arg-type]
    index = RunFolder(folds).read_split()
    same = evaluate(folds, others)
    assert same.drift is not None
    assert not same.drift.images_drifted
    assert same.drift.validation_images == len([split for split in index.splits if split.startswith("fold")])
    assert "ood" not in [measure.key for measure in same.drift.measures]
    assert any(note.text.endswith("images by pixels, size and targets") for note in same.notes)
    config = RunFolder(folds / name_fold(1)).read_config()
    section = show_drift(ReportData(evaluation=same, run=RunFolder(folds), config=config))
    assert section is not None
    assert section.sentences == ["These images are not found to differ from the run's validation images."]
    shown = convnext("eval", folds, others, "--no-report").out
    assert "Drift from the run's validation images" in shown
    assert "OOD threshold" not in shown, "each fold has one of its own"
    other = evaluate(folds, change(others, tmp_path / "site", brighten))
    assert other.drift is not None
    assert "brightness" in [measure.key for measure in other.drift.measures if measure.is_drift]


def test_recalibration_is_fitted_and_evaluated_on_different_images(
    run: RunFolder, run_copy: RunFolder, others: Path, tmp_path: Path, convnext: Convnext
) -> None:
    data = change(others, tmp_path / "site", brighten)
    for path in sorted((data / "0").glob("*.png"))[:6]:
        shutil.copy(path, path.with_name(f"copy-{path.name}"))
    change_json(run_copy.path / "calibration.json", "temperature", 30.0)
    evaluate(run_copy.path, split="val", targets=["sensitivity=0.9:1"])
    plain, result = evaluate(run_copy.path, data), evaluate(run_copy.path, data, recalibrate=40)
    old, new = (each.operating_points[0].threshold for each in (plain, result))
    assert [any("--recalibrate fits" in note.text for note in each.notes) for each in (plain, result)] == [True, False]
    assert old.target == new.target
    assert old.threshold != new.threshold
    assert new.reached >= 0.9
    assert result.recalibration is not None
    assert result.recalibration.images + result.metrics.images == 126
    assert abs(result.recalibration.images - 40) <= 3
    index, rows = result.test_set.index, result.test_set.rows
    contents = {path: (index.root / path).read_bytes() for path in index.paths}
    evaluated = {contents[index.paths[row]] for row in rows}
    fitted = {contents[path] for row, path in enumerate(index.paths) if row not in set(rows)}
    assert not evaluated & fitted, "no copy is on both sides"
    assert result.calibration is not None
    assert plain.calibration is not None
    assert result.calibration.temperature != plain.calibration.temperature
    assert evaluate(run_copy.path, data).calibration == plain.calibration, "the run keeps its own"
    difference = result.recalibration.gain.differences["log_loss"]
    assert difference is not None
    assert difference.value < 0
    file = tmp_path / "site.json"
    outcome = convnext("eval", run.path, data, "--recalibrate", 40, "--save-calibration", file, "--no-report")
    assert outcome.out.endswith(f"--calibration {file.name}\n")
    assert json.loads(file.read_text())["temperature"] == result.calibration.temperature
    images, loss = result.recalibration.images, json.loads(file.read_text())["log_loss"]
    assert loss[1] < loss[0]
    assert tuple(loss) != plain.calibration.log_loss, "it is of the images that the new calibration was fitted on"
    assert f"Recalibrated on {images} images" in outcome.out
    assert f" on {images} recalibration images; uncalibrated: log loss " in outcome.out
    assert "the other ones are evaluated. The run keeps its own calibration" in outcome.err


@pytest.mark.parametrize("engine", ["torch", pytest.param("onnx", marks=pytest.mark.slow)])
def test_predict_uses_a_saved_calibration(
    run: RunFolder, others: Path, tmp_path: Path, convnext: Convnext, engine: str
) -> None:
    """The images that it was not fitted on get the probabilities of the evaluation; the run's own stay as they were."""
    data, kept = change(others, tmp_path / "site", brighten), tmp_path / "site.json"
    result = evaluate(run.path, data, recalibrate=40, save_calibration=kept)
    index, rows = result.test_set.index, result.test_set.rows
    images = [index.root / index.paths[row] for row in rows[:5]]
    model = run.path if engine == "torch" else export(run.path, output=tmp_path / "model.onnx").path
    own, new = predict(images, model), predict(images, model, calibration=kept)
    if engine == "onnx":
        with pytest.raises(UsageError, match="needs --output"):
            export(run.path, calibration=kept)
        file = export(run.path, output=tmp_path / "site.onnx", calibration=kept).path
        assert [one.probabilities for one in predict(images, file)] == [one.probabilities for one in new]
    expected = result.probabilities[:5]
    for one, other, scores in zip(own, new, expected, strict=True):
        assert other.probabilities == pytest.approx(sorted(scores, reverse=True), abs=1e-4)
        assert one.probabilities != other.probabilities
    shown = convnext("predict", images[0], "--run", model, "--calibration", kept, "--json").out
    assert json.loads(shown)[0]["probability"] == pytest.approx(new[0].probabilities[0], abs=1e-6)
    text = re.sub(r'"temperature": [0-9.]+', '"temperature": 9.0', kept.read_text())
    kept.write_text(text)
    with pytest.raises(RunError, match=r"site\.json was changed since it was written.*delete its `digest`"):
        predict(images, model, calibration=kept)
    change_json(kept, "images", json.loads(text)["images"])  # without its digest
    assert predict(images, model, calibration=kept)[0].probabilities != new[0].probabilities


def test_calibration_of_another_model_or_no_calibration_is_refused(
    run: RunFolder, others: Path, tmp_path: Path
) -> None:
    image, path = next(others.rglob("*.png")), tmp_path / "site.json"
    evaluate(run.path, others, recalibrate=40, save_calibration=path)
    with pytest.raises(UsageError, match="exists already"):
        evaluate(run.path, others, recalibrate=40, save_calibration=path)
    evaluate(run.path, others, recalibrate=40, save_calibration=path, overwrite=True)
    with pytest.raises(UsageError, match="needs --recalibrate"):
        evaluate(run.path, others, save_calibration=tmp_path / "other.json")
    with pytest.raises(UsageError, match="would lie in"):
        evaluate(run.path, others, recalibrate=40, save_calibration=others / "0" / "site.json")
    for option in ("raw", "per"):
        with pytest.raises(UsageError, match="--calibration"):
            predict(image, run.path, calibration=path, **{option: "group" if option == "per" else True})  # type: ignore[arg-type]
    for problem, text in (
        ("is the calibration of another model", json.dumps(json.loads(path.read_text()) | {"weights": "00000000"})),
        ("cannot be read", "{}"),
        ("cannot be read", "no JSON"),
    ):
        path.write_text(text)
        with pytest.raises(RunError, match=problem):
            predict(image, run.path, calibration=path)
    with pytest.raises(RunError, match="cannot be read"):
        predict(image, run.path, calibration=tmp_path / "missing.json")


def test_recalibration_on_too_many_images_or_for_two_runs_is_refused(run: RunFolder, others: Path) -> None:
    with pytest.raises(DataError, match="leaves none of the 120 images to evaluate"):
        evaluate(run.path, others, recalibrate=120)
    with pytest.raises(UsageError, match="at least 2"):
        evaluate(run.path, others, recalibrate=1)
    request = EvalRequest(runs=(run.path, run.path), data=others, recalibrate=40)
    with pytest.raises(UsageError, match=r"--recalibrate is for one run\. Evaluate each run by itself"):
        finish(evaluate_all_steps(request))
    with pytest.raises(DataError, match=r"the 120 images have too few groups to recalibrate on 40 of them"):
        evaluate(run.path, others, group_from="png", recalibrate=40)  # all are one group


def test_recalibration_without_images_of_a_class_warns_and_keeps_its_threshold(
    run_copy: RunFolder, others: Path, tmp_path: Path
) -> None:
    evaluate(run_copy.path, split="val", targets=["sensitivity=0.9:1", "sensitivity=0.9:2"])
    data = shutil.copytree(others, tmp_path / "site")
    shutil.rmtree(data / "2")
    plain, result = evaluate(run_copy.path, data), evaluate(run_copy.path, data, recalibrate=40)
    (old_1, old_2), (new_1, new_2) = ([point.threshold for point in one.operating_points] for one in (plain, result))
    assert old_2 == new_2
    assert old_1 != new_1
    text = "recalibrated on few images of a class: 0 of class 2; 5 of each are needed; the calibration is uncertain"
    assert [note.text for note in result.notes if note.severity == "warning" and "of a class" in note.text] == [text]
    text = "the threshold of sensitivity=0.9:2 stays: all of these images are of its class, or none is"
    assert text in [note.text for note in result.notes]
    assert [curve.name for curve in result.decision_curves] == ["1"], "a class without images has no curve"


def test_120_training_images_given_as_a_folder_are_reported(
    run_copy: RunFolder, tmp_path: Path, convnext: Convnext
) -> None:
    """In the console, as JSON and in the report, whatever their names."""
    index = run_copy.read_split()
    for number, row in enumerate(index.rows("train")[:120]):
        target = tmp_path / f"site/{index.name_class(row)}/{number}.png"
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(index.root / index.paths[row], target)
    text = "leakage: 120 of 120 images were trained on; the scores are too high"
    outcome = convnext("eval", run_copy.path, tmp_path / "site")
    assert f"warning: {text}" in outcome.err
    assert text in (run_copy.path / "report.html").read_text()
    record = json.loads(convnext("eval", run_copy.path, tmp_path / "site", "--json").out)
    assert record["overlap"] == {"trained": 120, "trained_near": 0, "validated": 0, "alike": 0}
    assert any(text in note for note in record["notes"])
