import csv
import io
import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext_cli import evaluate, predict
from convnext_cli.cli.app import main
from convnext_cli.data.split import MORE_VALIDATION
from convnext_cli.errors import RunError, UsageError
from convnext_cli.images import decode
from convnext_cli.images.raster import Decoded
from convnext_cli.inference import sources
from convnext_cli.inference.calibration import read_calibration
from convnext_cli.inference.prediction import list_run_notes, predict_images
from convnext_cli.inference.request import PredictRequest
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.metrics.formulas import log_softmax
from convnext_cli.runs.files import CALIBRATION
from convnext_cli.runs.folder import RunFolder
from tests.conftest import Convnext, change_json, list_images, save_image


def test_temperature_is_applied_unless_raw(run: RunFolder) -> None:
    fitted = read_calibration(run)
    assert fitted is not None
    image = list_images(run, "test")[0]
    [raw], [calibrated] = predict(image, run.path, raw=True), predict(image, run.path)
    assert raw.classes == calibrated.classes
    scaled = np.exp(log_softmax(np.log([raw.probabilities]) / fitted.temperature))[0]
    assert calibrated.probabilities == pytest.approx(scaled, rel=1e-5)
    assert raw.probabilities != calibrated.probabilities


def test_tta_averages_the_logits_of_the_image_and_four_shifted_ones(run: RunFolder) -> None:
    pixels = np.random.default_rng(0).integers(0, 256, (32, 32, 3), dtype=np.uint8)
    padded = np.pad(pixels, ((2, 2), (2, 2), (0, 0)), mode="reflect")
    views = [padded[top : top + 32, left : left + 32] for top, left in ((2, 2), (0, 0), (0, 4), (4, 0), (4, 4))]
    plain = TorchClassifier(run.path).run_batch(np.stack(views), features=False, heat=False).logits
    [augmented] = TorchClassifier(run.path, tta=True).run_batch(pixels[None], features=False, heat=False).logits
    assert augmented == pytest.approx(plain.mean(axis=0), abs=1e-4)
    assert np.ptp(plain, axis=0).min() > 0.01, "the views differ"


def test_threshold_of_the_run_decides(run_copy: RunFolder) -> None:
    result = evaluate(run_copy.path, targets=["sensitivity=0.9:1"])
    [point] = result.operating_points
    predictions = predict(list_images(run_copy, "test"), run_copy.path)
    decided = [p.decisions["sensitivity=0.9:1"] for p in predictions]
    of_class = np.array([path.parent.name == "1" for path in list_images(run_copy, "test")])
    assert np.mean(np.array(decided)[of_class]) == pytest.approx(point.sensitivity), "as eval said"
    for p in predictions:
        own = dict(zip(p.classes, p.probabilities, strict=True))["1"]
        assert p.decisions["sensitivity=0.9:1"] == (own >= point.threshold.threshold)
    assert predict(list_images(run_copy, "test")[0], run_copy.path, raw=True)[0].decisions == {}


def test_ood_images_are_flagged(run: RunFolder, tmp_path: Path) -> None:
    own = predict(list_images(run, "test"), run.path, abstain=True)
    assert np.mean([p.abstained for p in own]) < 0.2, "stated: about one in twenty"
    stripes = np.zeros((32, 32, 3), np.uint8)
    stripes[:, ::4] = 255
    others = [save_image(tmp_path / f"noise/{i}.png", size=(32, 32), seed=i) for i in range(20)]
    for i, picture in enumerate((stripes, stripes.swapaxes(0, 1), 255 - stripes, np.full_like(stripes, 128))):
        Image.fromarray(picture).save(tmp_path / f"{i}.png")
        others.append(tmp_path / f"{i}.png")
    flagged = predict(others, run.path, abstain=True)
    assert np.mean([p.abstained for p in flagged]) > 0.9
    assert min(p.novelty or 0 for p in flagged) > np.median([p.novelty or 0 for p in own])
    assert predict(others[0], run.path)[0].abstained is None


def test_uncalibrated_run_cannot_abstain(run_copy: RunFolder) -> None:
    (run_copy.path / "calibration.json").unlink()
    with pytest.raises(UsageError, match="it was never calibrated"):
        predict(list_images(run_copy, "test")[0], run_copy.path, abstain=True)
    assert predict(list_images(run_copy, "test")[0], run_copy.path)[0].error is None
    [note] = list_run_notes(run_copy.path, PredictRequest(abstain=True))
    assert "is not calibrated: calibration.json is missing" in note


def test_run_with_few_validation_images_has_no_ood_score_and_says_why(run_copy: RunFolder) -> None:
    reason = "the validation split has only 12 images"
    change_json(CALIBRATION.path(run_copy.path), "weak", reason)
    change_json(CALIBRATION.path(run_copy.path), "novelty_threshold", None)
    with pytest.raises(UsageError, match=f"has no OOD score: {reason}") as caught:
        predict(list_images(run_copy, "test")[0], run_copy.path, abstain=True)
    assert caught.value.remedy == f"{MORE_VALIDATION}, or leave out --abstain"
    assert list_run_notes(run_copy.path, PredictRequest()) == [f"not calibrated, because {reason}"]
    assert list_run_notes(run_copy.path, PredictRequest(raw=True)) == []


def test_run_whose_calibration_is_of_other_weights_cannot_abstain(run_copy: RunFolder) -> None:
    change_json(CALIBRATION.path(run_copy.path), "weights", "00000000")
    with pytest.raises(UsageError, match="its calibration is of other weights") as caught:
        predict(list_images(run_copy, "test")[0], run_copy.path, abstain=True)
    assert caught.value.remedy.startswith("Run `convnext eval")


def test_run_that_is_another_file_is_refused(run_copy: RunFolder) -> None:
    for name in ("model.safetensors", "config.json"):
        with pytest.raises(RunError, match=rf"{name} is neither a run folder nor an \.onnx file\. Give one of them"):
            predict(list_images(run_copy, "test")[0], run_copy.path / name)
        with pytest.raises(RunError, match=f"{name} is a file, not a run folder"):
            evaluate(run_copy.path / name)


def test_engine_without_an_option_is_not_exported_again(run_copy: RunFolder) -> None:
    with pytest.raises(UsageError, match="--tta needs torch") as caught:
        predict(list_images(run_copy, "test")[0], run_copy.path, tta=True, engine="onnx")
    assert caught.value.remedy == "Use --engine auto"
    with pytest.raises(UsageError, match=r"has no model\.onnx.*convnext export"):
        predict(list_images(run_copy, "test")[0], run_copy.path, engine="onnx")


def test_address_is_not_called_a_missing_file(run_copy: RunFolder, convnext: Convnext) -> None:
    address = "https://example.org/a.png"
    error = predict(address, run_copy.path)[0].error
    assert error is not None
    assert str(error) == f"{address} is an address, and images are not downloaded. Download it, and give the file."
    assert f"{address} is an address" in convnext("predict", address, "--run", run_copy.path).err


def test_heat_maps_are_written_to_their_folder(run: RunFolder, tmp_path: Path) -> None:
    images = list_images(run, "test")[:3]
    predictions = predict(images, run.path, explain=tmp_path / "heat")
    names = [p.explanation.name for p in predictions if p.explanation]
    assert names == [f"{i:05d}-{path.stem}.png" for i, path in enumerate(images, start=1)]
    for p in predictions:
        assert p.explanation is not None
        with Image.open(p.explanation) as picture:
            assert picture.mode == "RGB"
            assert picture.width >= 2 * 8, "the original and, beside it, the heat map"
    with pytest.raises(UsageError, match="would lie in the data folder"):
        predict(images, run.path, explain=images[0].parent / "heat")
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"cannot write .*/file/heat: Not a directory\. Choose another --explain"):
        predict(images, run.path, explain=tmp_path / "file/heat")


def test_heat_map_folder_must_lie_outside_the_data(run: RunFolder, tmp_path: Path) -> None:
    images = list_images(run, "test")
    data = run.read_split().root
    copied = tmp_path / "new"
    for path in images:
        (copied / "deep" / path.parent.name).mkdir(parents=True, exist_ok=True)
        shutil.copy(path, copied / "deep" / path.parent.name)
    copies = sorted(copied.rglob("*.png"))
    before = sorted([*data.rglob("*"), *tmp_path.rglob("*")])
    for chosen, folder in (
        (images, data / "heat"),  # beside the class folders
        (images[:1], data / "heat"),  # the run's own data, whichever of its images is asked about
        (copies[:1], data / "heat"),
        (copies, copied / "deep/heat"),  # other data in class folders
        (copies, copied / "deep/0/heat"),
        (copied, copied / "heat"),
    ):
        with pytest.raises(UsageError, match=r"would lie in the data .* Give a place outside of it with --explain"):
            predict(chosen, run.path, explain=folder)
    (tmp_path / "link").symlink_to(data)
    with pytest.raises(UsageError, match="would lie in the data folder"):
        predict(images[:1], run.path, explain=tmp_path / "link/heat")
    (tmp_path / "link").unlink()
    assert sorted([*data.rglob("*"), *tmp_path.rglob("*")]) == before
    assert predict(copies[:1], run.path, explain=tmp_path / "heat")[0].explanation is not None
    with pytest.raises(UsageError, match=r"has images, such as .*: heat maps may not lie among them"):
        predict(copies[:1], run.path, explain=copies[-1].parent)


def test_heat_maps_replace_files_only_with_overwrite(run: RunFolder, tmp_path: Path) -> None:
    image = list_images(run, "test")[0]
    picture = tmp_path / f"00001-{image.stem}.png"
    picture.write_text("mine")
    with pytest.raises(UsageError, match=r"exists already\. Choose another --explain, or add --overwrite"):
        predict(image, run.path, explain=tmp_path)
    assert picture.read_text() == "mine"
    predict(image, run.path, explain=tmp_path, overwrite=True)
    with Image.open(picture) as drawn:
        assert drawn.format == "PNG"
    picture.unlink()
    picture.symlink_to("gone.png")
    with pytest.raises(UsageError, match="symbolic link, which is never replaced"):
        predict(image, run.path, explain=tmp_path, overwrite=True)
    assert not (tmp_path / "gone.png").exists()


def test_prediction_needs_constant_memory(run: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    opened = []

    def counted(path: Path) -> Decoded:
        opened.append(path)
        return decode.read_image(path)

    monkeypatch.setattr(sources, "read_image", counted)
    images = list_images(run, "test") * 10
    steps = predict_images(run.path, sources.list_sources(images), PredictRequest())
    next(steps)
    assert len(opened) <= 4 * 32, "the batch at work and those decoded ahead"
    assert sum(1 for _ in steps) == len(images) - 1


def test_json_and_csv_have_one_row_per_image(
    run: RunFolder, digits: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bad, odd = tmp_path / "bad.png", tmp_path / 'comma, "quote"\nline.png'
    bad.write_text("no picture")
    odd.write_bytes((digits / "1" / sorted(path.name for path in (digits / "1").iterdir())[0]).read_bytes())
    pattern = f"{digits}/1/*.png"
    with pytest.raises(SystemExit) as caught:
        main(["predict", "--run", str(run.path), "--abstain", "--csv", "--exact", str(bad), str(odd), pattern])
    assert caught.value.code == 3
    rows = list(csv.DictReader(io.StringIO(capsys.readouterr().out)))
    assert len(rows) == 102
    assert "cannot be read" in rows[0]["error"]
    assert rows[1]["path"] == str(odd)
    assert sum(float(rows[1][f"p({name})"]) for name in "012") == pytest.approx(1)
    assert rows[1]["abstained"] in ("True", "False")


def test_paths_are_read_from_standard_input(
    run: RunFolder, digits: Path, tmp_path: Path, convnext: Convnext, monkeypatch: pytest.MonkeyPatch
) -> None:
    good = sorted((digits / "1").glob("*.png"))[:2]
    odd = os.fsencode(tmp_path) + b"/no text \xff.png"
    Path(os.fsdecode(odd)).write_bytes(good[0].read_bytes())
    names = b"".join(path + b"\n" for path in (bytes(good[0]), b"gone.png", odd, bytes(good[1])))
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(names)))
    outcome = convnext("predict", "--run", run.path, "--json", "-")
    assert outcome.code == 3
    rows = json.loads(outcome.out)
    assert [("error" in row) for row in rows] == [False, True, False, False]
    assert rows[0]["path"] == str(good[0])
    assert rows[0]["class"] == rows[2]["class"]
    assert rows[0]["probabilities"].keys() == set("012")


def test_group_from_without_per_group_is_refused(run: RunFolder, digits: Path) -> None:
    with pytest.raises(UsageError, match="--group-from needs --per group"):
        predict(sorted(digits.rglob("*.png"))[:1], run.path, group_from=r"\d+")


def test_files_of_which_one_frame_is_read_are_noted_once(
    run: RunFolder, tmp_path: Path, convnext: Convnext, monkeypatch: pytest.MonkeyPatch
) -> None:
    frames = [Image.fromarray(np.full((32, 32, 3), level, np.uint8)) for level in (40, 90, 200)]
    for name in ("a.gif", "b.tif", "c.png"):
        frames[0].save(tmp_path / name, save_all=True, append_images=frames[1:])
    frames[0].save(tmp_path / "d.png")
    named = [tmp_path / name for name in ("a.gif", "b.tif", "c.png")]
    assert [prediction.frames for prediction in predict(tmp_path, run.path)] == [*((path,) for path in named), ()]
    grouped = predict(tmp_path, run.path, per="group", group_from="^(.)")
    assert [prediction.frames for prediction in grouped] == [tuple(named)]

    monkeypatch.chdir(tmp_path)
    outcome = convnext("predict", ".", "--run", run.path, "--json")
    assert len(json.loads(outcome.out)) == 4
    note = "note: 3 files have several frames or pages, of which one is read: a.gif, b.tif, c.png"
    assert [line for line in outcome.err.splitlines() if "frames" in line] == [note]
