import json
import logging
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image

from convnext_cli import evaluate, finetune, predict
from convnext_cli.data.split import MORE_VALIDATION
from convnext_cli.errors import ConvnextError, RunError, UsageError
from convnext_cli.exports import quantisation
from convnext_cli.exports.export import INT8_TOLERANCE, _choose_tolerance, export_steps
from convnext_cli.exports.onnx_file import write_metadata
from convnext_cli.exports.parity import Parity, ParityError, Tolerance
from convnext_cli.exports.request import ExportRequest
from convnext_cli.inference.calibration import Calibration
from convnext_cli.inference.metadata import Metadata
from convnext_cli.inference.onnx_classifier import OnnxClassifier, find_onnx_classifier
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.regression import Regression
from convnext_cli.tasks.single import Single
from tests.conftest import SMALL, Convnext, change_json, draw_picture, export, list_images, list_imported

pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
import onnx
import onnxruntime

from convnext_cli.progress import finish


def test_quantisation_leaves_the_logging_of_the_program_as_it_was(monkeypatch: pytest.MonkeyPatch) -> None:
    metadata: Any = None
    monkeypatch.setattr(quantisation, "_list_comparisons", lambda _: [])
    monkeypatch.setattr(quantisation, "write_metadata", lambda *_: None)
    monkeypatch.setattr("onnxruntime.quantization.quantize_static", lambda *_, **__: logging.warning("pre-process"))
    monkeypatch.setattr(logging.root, "handlers", [])
    logging.disable(logging.DEBUG)
    try:
        quantisation.quantise(Path("model.onnx"), metadata, [])
        assert (logging.root.handlers, logging.root.manager.disable) == ([], logging.DEBUG)
    finally:
        logging.disable(logging.NOTSET)


@pytest.fixture(scope="module")
def mine(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A run with a threshold, and with its ONNX file."""
    folder = tmp_path_factory.mktemp("exported") / "run"
    shutil.copytree(run.path, folder)
    evaluate(folder, split="val", targets=["sensitivity=0.9:1"])
    (folder / ".model.onnx.abcd1234.tmp").write_text("what a killed export left")
    export(RunFolder(folder))
    return RunFolder(folder)


@pytest.fixture
def pictures(tmp_path: Path) -> list[Path]:
    """Photographs of several shapes."""
    sizes = [(96, 80), (50, 120), (32, 32), (333, 40)]
    for number, size in enumerate(sizes):
        draw_picture(number, size).save(tmp_path / f"{number}.png")
    return sorted(tmp_path.glob("?.png"))


def test_onnx_file_alone_gives_the_same_probabilities(mine: RunFolder, pictures: list[Path]) -> None:
    session = onnxruntime.InferenceSession(mine.exported("onnx"), providers=["CPUExecutionProvider"])
    metadata = session.get_modelmeta().custom_metadata_map
    preprocessing, classes = json.loads(metadata["preprocessing"]), json.loads(metadata["classes"])
    assert "Crop the centre, 32 x 32 px" in metadata["steps"]
    assert json.loads(metadata["thresholds"]).keys() == {"sensitivity=0.9:1"}
    assert metadata["license"] == "imagenet-noncommercial", "it follows the weights"
    batch = []
    for path in pictures:  # the words of `steps`, written anew
        picture = Image.open(path).convert("RGB")
        side = int(preprocessing["image_size"] / preprocessing["crop_pct"])
        scale = side / min(picture.size)
        size = tuple(side if n == min(picture.size) else int(n * scale) for n in picture.size)
        picture = picture.resize(size, Image.Resampling.BICUBIC)  # type: ignore[arg-type]
        left, top = (round((n - preprocessing["image_size"]) / 2) for n in size)
        batch.append(np.asarray(picture.crop((left, top, left + 32, top + 32))))
    [probabilities] = session.run(["probabilities"], {"pixels": np.stack(batch)})
    for row, expected in zip(probabilities, predict(pictures, mine.path, engine="torch"), strict=True):
        own = dict(zip(classes, row.tolist(), strict=True))
        assert own == pytest.approx(dict(zip(expected.classes, expected.probabilities, strict=True)), abs=1e-4)


@pytest.mark.slow
def test_onnx_files_of_a_run_are_the_same_bytes_without_paths_of_this_machine(mine: RunFolder, tmp_path: Path) -> None:
    finish(export_steps(mine, ExportRequest(output=tmp_path / "again.onnx")))
    content = (tmp_path / "again.onnx").read_bytes()
    assert content == mine.exported("onnx").read_bytes()
    assert b"wrapper.py" not in content
    assert str(Path(torch.__file__).parent).encode() not in content


def test_what_a_killed_export_left_is_removed_by_the_next(mine: RunFolder) -> None:
    assert not list(mine.path.glob(".*.tmp"))


def test_both_engines_give_the_same_predictions(mine: RunFolder, pictures: list[Path]) -> None:
    images = [*list_images(mine, "test"), *pictures]
    by_torch = predict(images, mine.path, engine="torch", abstain=True)
    for source in (mine.path, mine.exported("onnx")):
        by_onnx = predict(images, source, abstain=True)
        for a, b in zip(by_torch, by_onnx, strict=True):
            assert a.classes[0] == b.classes[0]
            assert dict(zip(a.classes, a.probabilities, strict=True)) == pytest.approx(
                dict(zip(b.classes, b.probabilities, strict=True)), abs=1e-4
            )
            assert b.novelty == pytest.approx(a.novelty, rel=1e-3)
            assert (a.abstained, a.decisions) == (b.abstained, b.decisions)
            assert b.decisions


@pytest.mark.slow
def test_file_of_padded_images_compares_floats(mine: RunFolder, pictures: list[Path], tmp_path: Path) -> None:
    """Older versions of ONNX Runtime have no comparison of uint8."""
    shutil.copytree(mine.path, tmp_path / "run")
    change_json(tmp_path / "run/config.json", "pretrained_cfg.crop_mode", "border")
    (tmp_path / "run/plan.toml").unlink()  # which has the other one
    file = export(RunFolder(tmp_path / "run"), output=tmp_path / "a.onnx", images=tuple(pictures)).path
    graph = onnx.shape_inference.infer_shapes(onnx.load(file)).graph
    types = {value.name: value.type.tensor_type.elem_type for value in (*graph.input, *graph.value_info)}
    [compared] = [node.input for node in graph.node if node.op_type == "Equal"]
    assert types[compared[0]] == onnx.TensorProto.FLOAT
    by_torch, by_onnx = (
        predict(pictures, tmp_path / "run", engine="torch", abstain=True),
        predict(pictures, file, abstain=True),
    )
    assert [p.novelty for p in by_onnx] == pytest.approx([p.novelty for p in by_torch], rel=1e-3)


def test_file_without_an_ood_score_says_why(mine: RunFolder, pictures: list[Path], tmp_path: Path) -> None:
    file, reason = tmp_path / "few.onnx", "the validation split has only 12 images"
    shutil.copy(mine.exported("onnx"), file)
    metadata = OnnxClassifier(file).metadata
    few = Calibration(weights=metadata.weights, images=12, unfitted_reason=reason)
    for calibration, problem, remedy in (
        (few, f"has no OOD score: {reason}", f"{MORE_VALIDATION}, or leave out --abstain"),
        (
            None,
            "its run was never calibrated",
            "Run `convnext eval` on the run and export it again, or leave out --abstain",
        ),
    ):
        write_metadata(file, replace(metadata, calibration=calibration))
        with pytest.raises(UsageError, match=problem) as caught:
            predict(pictures, file, abstain=True)
        assert caught.value.remedy == remedy


@pytest.mark.slow
def test_both_engines_agree_on_x_rays(mine: RunFolder, shared_data: Path) -> None:
    images = sorted((shared_data / "cxr3" / "test").rglob("*.jpeg"))
    assert len(images) == 624
    by_torch, by_onnx = (predict(images, mine.path, engine=engine) for engine in ("torch", "onnx"))
    assert [p.classes[0] for p in by_torch] == [p.classes[0] for p in by_onnx]
    apart = [abs(a.probabilities[0] - b.probabilities[0]) for a, b in zip(by_torch, by_onnx, strict=True)]
    assert max(apart) < 1e-4


@pytest.mark.slow
def test_prediction_with_onnx_does_not_import_torch(mine: RunFolder, pictures: list[Path]) -> None:
    modules, output = list_imported("predict", str(pictures[0]), "--run", str(mine.path), "--abstain", "--json")
    assert "onnxruntime" in modules
    assert not modules & {"torch", "timm", "torchvision", "accelerate", "sklearn", "matplotlib", "onnx"}
    assert json.loads(output)[0]["class"] in "012"


WRONG = {
    "crop": {"crop_pct": 0.5},
    "resize rule": {"crop_mode": "squash"},
    "filter": {"interpolation": "bilinear"},
}


@pytest.mark.parametrize("change", WRONG.values(), ids=WRONG)
def test_file_with_other_preprocessing_fails_the_parity_check(
    mine: RunFolder, pictures: list[Path], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: dict[str, object]
) -> None:
    def write_wrongly(classifier: TorchClassifier, metadata: Metadata, path: Path) -> None:
        del classifier
        shutil.copy(mine.exported("onnx"), path)
        write_metadata(path, replace(metadata, preprocessing=replace(metadata.preprocessing, **change)))  # type: ignore[arg-type]

    monkeypatch.setattr("convnext_cli.exports.export.write_graph", write_wrongly)
    (tmp_path / "out").mkdir()
    with pytest.raises(ParityError, match="parity check failed") as caught:
        export(mine, output=tmp_path / "out/model.onnx", images=tuple(pictures))
    assert caught.value.exit_code == 1
    assert caught.value.parity.difference > 1e-4
    assert not list((tmp_path / "out").iterdir())


def test_differences_of_numbers_are_said_in_standard_deviations() -> None:
    parity = Parity(images=4, same_top1=None, difference=1.25, worst=Path("a.png"), tolerance=Tolerance(1.0))
    assert not parity.holds
    assert ParityError(parity).problem == (
        "parity check failed: the exported model's numbers differ from the run's by up to 1.2 standard deviations "
        "(allowed 1), most on a.png"
    )


def test_failed_parity_states_what_is_not_allowed_only() -> None:
    parity = Parity(images=82, same_top1=77, difference=0.07, worst=Path("a.png"), tolerance=INT8_TOLERANCE)
    assert ParityError(parity).problem == "parity check failed: 5 of 82 images change their prediction (allowed 2%)"


def test_tolerance_of_8_bits_is_for_classes_or_for_numbers() -> None:
    request = ExportRequest(int8=True, tolerance=0.5)
    assert _choose_tolerance(request, Single()) == replace(INT8_TOLERANCE, changed=0.5)
    assert _choose_tolerance(request, Regression()) == replace(INT8_TOLERANCE, difference=0.5)
    assert _choose_tolerance(replace(request, int8=False), Single()).difference == 0.5


def test_outdated_onnx_file_is_not_used(mine: RunFolder, tmp_path: Path, pictures: list[Path]) -> None:
    shutil.copytree(mine.path, tmp_path / "changed")
    changed = RunFolder(tmp_path / "changed")
    assert find_onnx_classifier(changed)[0] is not None
    weights = bytearray((changed.path / "model.safetensors").read_bytes())
    weights[-1] ^= 1
    (changed.path / "model.safetensors").write_bytes(weights)
    assert find_onnx_classifier(changed) == (None, "its model.onnx was exported from other weights")
    with pytest.raises(UsageError, match="exported from other weights"):
        predict(pictures, changed.path, engine="onnx")
    assert predict(pictures, changed.path)[0].error is None, "torch answers"


def test_options_that_need_torch_use_it_or_raise_an_error(
    mine: RunFolder, tmp_path: Path, pictures: list[Path]
) -> None:
    (tmp_path / "heat").mkdir()
    shutil.copy(pictures[0], tmp_path / "heat/a.png")
    [prediction] = predict(tmp_path / "heat/a.png", mine.path, tta=True)
    assert prediction.error is None
    with pytest.raises(UsageError, match="--tta needs torch"):
        predict(pictures, mine.path, tta=True, engine="onnx")
    with pytest.raises(UsageError, match="Give the run folder"):
        predict(pictures, mine.exported("onnx"), tta=True)
    with pytest.raises(UsageError, match="engine = 'tensorflow' must be one of auto, onnx, torch"):
        predict(pictures, mine.path, engine="tensorflow")  # type: ignore[arg-type]


@pytest.mark.parametrize("options", [{"format": "onnx"}, {"format": "onnx", "int8": True}, {"format": "hub"}])
def test_split_with_moved_images_is_refused(run_copy: RunFolder, tmp_path: Path, options: dict[str, Any]) -> None:
    """The cost of 8 bits is measured on validation images, and the model card counts images."""
    index = run_copy.read_split()
    moved = index.rows("test")[0]
    splits = tuple("train" if row == moved else split for row, split in enumerate(index.splits))
    run_copy.write_split(replace(index, splits=splits, root=tmp_path / "gone"))
    with pytest.raises(RunError, match=r"split\.csv was changed since the training: 1 image was in another split"):
        finish(export_steps(run_copy, ExportRequest(output=tmp_path / "out", **options)))
    assert not (tmp_path / "out").exists()


def test_changed_label_of_the_split_is_noted(run_copy: RunFolder, convnext: Convnext) -> None:
    index = run_copy.read_split()
    run_copy.write_split(replace(index, labels=((index.labels[0] + 1) % 3, *index.labels[1:])))
    outcome = convnext("export", run_copy.path, "--format", "hub", "-o", "hub")
    assert outcome.code == 0, outcome.err
    assert "note: split.csv was changed since the training, and counts as it is now: 1 row differs" in outcome.err


@pytest.mark.parametrize("format", [pytest.param("onnx", marks=pytest.mark.slow), "hub"])
def test_export_of_an_unfinished_run_has_a_note(run_copy: RunFolder, convnext: Convnext, format: str) -> None:
    run_copy.metrics.unlink()
    outcome = convnext("export", run_copy.path, "--format", format, "-o", "out.onnx")
    assert outcome.code == 0, outcome.err
    assert "note: the run has not finished: results are for the best weights of the first 1 of 1 epoch" in outcome.err


def test_invalid_files_and_outputs_raise_errors(mine: RunFolder, tmp_path: Path, pictures: list[Path]) -> None:
    (tmp_path / "text.onnx").write_text("no model")
    with pytest.raises(RunError, match=r"text\.onnx cannot be read: it is damaged, or not an ONNX file"):
        predict(pictures, tmp_path / "text.onnx")
    (tmp_path / "loop.onnx").symlink_to("loop.onnx")
    with pytest.raises(RunError, match=r"loop\.onnx cannot be read: Too many levels of symbolic links"):
        predict(pictures, tmp_path / "loop.onnx")
    with pytest.raises(RunError, match=r"gone\.onnx does not exist"):
        predict(pictures, tmp_path / "gone.onnx")
    with pytest.raises(UsageError, match="exists already"):
        export(mine, output=tmp_path / "text.onnx")
    with pytest.raises(UsageError, match="would lie in the data folder"):
        export(mine, output=mine.read_split().root / "0" / "model.onnx")


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (lambda m: replace(m, preprocessing=replace(m.preprocessing, image_size=64)), "image_size 64 is not its input"),
        (lambda m: replace(m, classes=("0", "1", "2", "3"), calibration=None), "4 classes are not its outputs'"),
        (None, "it has a novelty_threshold and no output `novelty`"),
    ],
)
def test_onnx_file_whose_metadata_contradict_its_graph_is_refused(
    mine: RunFolder, tmp_path: Path, edit: Callable[[Metadata], Metadata] | None, words: str
) -> None:
    path = tmp_path / "other.onnx"
    shutil.copy(mine.exported("onnx"), path)
    if edit is None:
        model = onnx.load(path)
        assert model.graph.output.pop().name == "novelty"
        onnx.save(model, path)
    else:
        write_metadata(path, edit(OnnxClassifier(path).metadata))
    with pytest.raises(RunError, match=rf"other\.onnx cannot be read: {words}"):
        OnnxClassifier(path)


def test_onnx_file_and_config_that_differ_are_refused(mine: RunFolder, tmp_path: Path, pictures: list[Path]) -> None:
    run = RunFolder(shutil.copytree(mine.path, tmp_path / "changed"))
    change_json(run.path / "config.json", "pretrained_cfg.crop_pct", 0.5)
    words = r"model\.onnx and config\.json beside it differ in preprocessing\. Restore the original files"
    for engine in ("auto", "onnx"):
        with pytest.raises(RunError, match=words):
            predict(pictures, run.path, engine=engine)


def test_missing_extra_names_the_package_to_install(
    mine: RunFolder, convnext: Convnext, pictures: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("onnx", "onnxruntime"):
        monkeypatch.setitem(sys.modules, name, None)
    outcome = convnext("export", mine.path, "-o", "new.onnx")
    assert outcome.code == 1
    assert "pip install 'convnext-cli[onnx]'" in outcome.err
    assert convnext("predict", pictures[0], "--run", mine.path).code == 0, "torch answers"
    with pytest.raises(ConvnextError, match="not installed"):
        predict(pictures, mine.exported("onnx"))


def weigh_products(path: Path) -> int:
    """Return the bytes of float32 weights that products of an ONNX file take, computed ones included."""
    graph = onnx.load(path).graph
    sizes = {tensor.name: len(tensor.raw_data) for tensor in graph.initializer if tensor.data_type == 1}
    makers = {name: node for node in graph.node for name in node.output}

    def weigh(name: str) -> int:
        """Bytes of a constant, or of all that a value is computed from; 0 where it depends on the images."""
        if name in sizes:
            return sizes[name]
        node = makers.get(name)
        if node is None or node.op_type not in ("Reshape", "Transpose", "Mul"):
            return 0
        return sum(weigh(part) for part in node.input[:1])

    return sum(weigh(node.input[1]) for node in graph.node if node.op_type in ("Conv", "MatMul", "Gemm"))


def test_int8_file_is_smaller_and_has_its_cost(
    mine: RunFolder, convnext: Convnext, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(
        "convnext_cli.exports.export.write_graph",
        lambda _model, _about, path: shutil.copy(mine.exported("onnx"), path),
    )
    result = json.loads(convnext("export", mine.path, "--int8", "--tolerance", 0.2, "--json").out)
    assert result["precision"] == "int8"
    assert result["float32_bytes"] == mine.exported("onnx").stat().st_size
    assert weigh_products(mine.exported("onnx")) > 1e6
    assert weigh_products(Path(result["path"])) == 0, "no convolution and no product keeps weights of 32 bits"
    cost = result["cost"]["differences"]["balanced_accuracy"]
    if cost["interval"] is None:
        assert cost["value"] == 0, "only equal predictions give a difference without variance"
    else:
        assert cost["interval"]["low"] <= cost["value"] <= cost["interval"]["high"]
    metadata = OnnxClassifier(Path(result["path"])).metadata
    assert metadata.precision == "int8"
    assert metadata.measured is not None
    assert metadata.measured["balanced_accuracy_against_float32"]["value"] == cost["value"]
    classifier, _ = find_onnx_classifier(mine)
    assert classifier is not None
    assert classifier.metadata.precision == "float32", "predict goes on with full precision"


@pytest.mark.slow
@pytest.mark.parametrize("format", ["onnx", "pt2"])
def test_a_program_that_changed_torchs_defaults_exports(format: str, mine: RunFolder) -> None:
    dtype = torch.get_default_dtype()
    torch.set_default_dtype(torch.float64)
    try:
        with torch.device("meta"), torch.no_grad():
            assert export(mine, format=format, output=mine.path / f"again.{format}").parity.holds
    finally:
        torch.set_default_dtype(dtype)


@pytest.mark.slow
def test_pt2_file_runs_with_torch_alone_and_has_no_paths_of_this_machine(mine: RunFolder, convnext: Convnext) -> None:
    outcome = convnext("export", mine.path, "--format", "pt2", "-o", "model.pt2")
    assert outcome.code == 0, outcome.err
    assert "keep their prediction" in outcome.out
    with zipfile.ZipFile("model.pt2") as archive:
        content = b"".join(archive.read(name) for name in archive.namelist())
    assert b"wrapper.py" not in content
    assert str(Path(torch.__file__).parent).encode() not in content
    script = (
        "import sys, json, torch\n"
        "extra = {'description.json': ''}\n"
        "program = torch.export.load('model.pt2', extra_files=extra).module()\n"
        "logits, probabilities, *_ = program(torch.zeros(5, 32, 32, 3, dtype=torch.uint8))\n"
        "assert 'timm' not in sys.modules and 'convnext_cli' not in sys.modules\n"
        "print(list(probabilities.shape), json.loads(extra['description.json'])['classes'])\n"
    )
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == '[5, 3] ["0", "1", "2"]'


@pytest.mark.slow
def test_finetune_exports_onnx_and_notes_failures(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVNEXT_ONNX", "1")
    finetune(digits, output=tmp_path / "run", **SMALL | {"epochs": 1})  # type: ignore[arg-type]
    run = RunFolder(tmp_path / "run")
    assert find_onnx_classifier(run)[0] is not None
    assert not list(run.path.rglob(".*.tmp"))

    monkeypatch.setattr("convnext_cli.exports.export.write_graph", lambda *_: 1 / 0)
    finished = finetune(digits, output=run.path, overwrite=True, **SMALL | {"epochs": 1})  # type: ignore[arg-type]
    assert finished.run == run.path
    assert not run.exported("onnx").exists(), "the former run's file is gone with it"
    assert run.is_finished
