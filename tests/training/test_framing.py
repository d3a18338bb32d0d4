"""Framing in a run: what stands at the edge is seen, a rectangle trains and exports, earlier runs keep theirs."""

import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import timm
import torch
from numpy.typing import NDArray
from PIL import Image
from timm.data import create_transform, resolve_model_data_config

from convnext_cli import finetune
from convnext_cli.exports.export import ExportedFile, export_steps
from convnext_cli.exports.hub import hub_steps
from convnext_cli.exports.request import ExportRequest
from convnext_cli.images.cache import open_for_eval
from convnext_cli.images.decode import decode_image
from convnext_cli.images.transforms import transform_for_eval
from convnext_cli.inference.evaluation import evaluate
from convnext_cli.inference.heat_maps import draw_explanation
from convnext_cli.inference.prediction import predict
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.progress import finish
from convnext_cli.recipes.plan import read_plan
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.events import FinetuneResult
from tests.conftest import list_images
from tests.training.conftest import resume, stop_after, tiny_request, train

COLOURS = {"blue": (40, 60, 220), "red": (220, 60, 40)}
SETTINGS: dict[str, Any] = {
    "weights": "builtin", "image_size": 64, "epochs": 3, "freeze_epochs": 0, "batch_size": 16, "lr": 1e-3,
    "warmup_epochs": 0.2, "min_crop_area": 0.5, "val_fraction": 0.4, "test_fraction": 0.0, "cache": False,
    "onnx": False, "audit": False,
}  # fmt: skip


def write_strips(folder: Path, *, is_at_edge: bool, images: int = 50) -> Path:
    """Write 3:1 images of noise with a patch whose colour is the class, at the left or right edge or in the middle."""
    random = np.random.default_rng(0)
    for name, colour in COLOURS.items():
        (folder / name).mkdir(parents=True)
        for number in range(images):
            pixels = random.integers(60, 200, (48, 144, 3), dtype=np.uint8)
            left = 60 if not is_at_edge else int(random.choice([0, 120]))
            pixels[12:36, left : left + 24] = colour
            Image.fromarray(pixels).save(folder / name / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def strips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_strips(tmp_path_factory.mktemp("edge") / "data", is_at_edge=True)


def train_strips(data: Path, output: Path, **changes: Any) -> float:
    """Train, and return the balanced accuracy on validation images."""
    result = finetune(data, output=output, **(SETTINGS | changes))
    assert isinstance(result, FinetuneResult)
    assert result.val is not None
    return float(result.val.balanced_accuracy)


@pytest.mark.parametrize(
    "fit", [pytest.param("pad", marks=pytest.mark.slow), pytest.param("squash", marks=pytest.mark.slow), "auto"]
)
def test_a_class_at_the_edge_is_learned_where_the_whole_image_is_seen(fit: str, strips: Path, tmp_path: Path) -> None:
    assert train_strips(strips, tmp_path / "run", fit=fit) >= 0.95


@pytest.mark.slow
def test_a_class_at_the_edge_is_not_seen_by_a_crop(strips: Path, tmp_path: Path) -> None:
    assert abs(train_strips(strips, tmp_path / "run", fit="crop") - 0.5) < 0.16, "chance"
    middle = write_strips(tmp_path / "data", is_at_edge=False)
    assert train_strips(middle, tmp_path / "middle", fit="crop") >= 0.95


def test_a_crop_of_other_data_is_warned_of(strips: Path, tmp_path: Path) -> None:
    train_strips(strips, tmp_path / "run", fit="crop", epochs=1)
    other = write_strips(tmp_path / "data", is_at_edge=False, images=3)
    warning = "evaluation never sees"
    assert any(note.text.startswith(warning) for note in evaluate(tmp_path / "run", other).notes)
    assert not any(note.text.startswith(warning) for note in evaluate(tmp_path / "run").notes)


@pytest.fixture(scope="module")
def wide_run(strips: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    """A finished run with a padded rectangle, 32 x 64 px, whose images are wider than that."""
    output = tmp_path_factory.mktemp("wide") / "run"
    train(tiny_request(strips, output, fit="pad", image_size="32x64", epochs=1))
    return RunFolder(output)


def load_images(run: RunFolder) -> tuple[list[Path], NDArray[np.uint8]]:
    """Return image files of a run's validation split, and the images as its model gets them."""
    preprocessing = TorchClassifier(run.path, torch.device("cpu")).preprocessing
    paths = list_images(run, "val")[:4]
    return paths, np.stack([transform_for_eval(decode_image(path), preprocessing) for path in paths])


def test_a_rectangle_is_described_in_each_file_of_the_run(wide_run: RunFolder) -> None:
    settings = read_plan(wide_run.plan).settings
    assert (settings["image_size"], settings["fit"], settings["crop_pct"]) == ("32x64", "pad", 1.0)
    config = wide_run.read_config().pretrained_cfg
    assert (config.input_size, config.crop_mode, config.crop_pct) == ((3, 32, 64), "border", 1.0)
    paths, images = load_images(wide_run)
    assert images.shape == (4, 32, 64, 3)
    assert (images[0, :5] == images[0, 0, 0]).all(), "padded above: 3:1 in 2:1"
    index = wide_run.read_split()
    cached = open_for_eval(index.root, TorchClassifier(wide_run.path).preprocessing, cache=True)
    assert cached.read(index.paths[0]).shape == (21, 64, 3), "cached without the padding"
    assert len(paths) == 4


@pytest.mark.parametrize("fit", ["pad", *(pytest.param(fit, marks=pytest.mark.slow) for fit in ("crop", "squash"))])
def test_a_rectangle_resumes_to_the_same_bytes(fit: str, strips: Path, tmp_path: Path) -> None:
    changes = {"fit": fit, "image_size": "64x32", "epochs": 2, "save_every": 3}
    train(tiny_request(strips, tmp_path / "whole", **changes))
    stop_after(tiny_request(strips, tmp_path / "stopped", **changes), 5)
    resume(tmp_path / "stopped")
    weights = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "stopped")]
    assert weights[0] == weights[1]


@pytest.mark.slow
def test_a_rectangle_exports_with_parity(wide_run: RunFolder, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    shutil.copytree(wide_run.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    for format in ("onnx", "pt2"):
        exported = finish(export_steps(run, ExportRequest(format=format)))
        assert isinstance(exported, ExportedFile)
        assert exported.parity.difference <= 1e-4
    paths, _ = load_images(run)
    by_torch, by_onnx = (predict(paths, run.path, engine=engine) for engine in ("torch", "onnx"))
    for one, other in zip(by_torch, by_onnx, strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-4)


def test_timm_frames_images_as_the_run_does(wide_run: RunFolder, tmp_path: Path) -> None:
    *_, _ = hub_steps(wide_run, ExportRequest(format="hub", output=tmp_path / "hub"))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(theirs))
    paths, _ = load_images(wide_run)
    with torch.inference_mode():
        expected = theirs(torch.stack([transform(Image.open(path)) for path in paths])).softmax(1)
    for row, prediction in zip(expected.tolist(), predict(paths, wide_run.path, raw=True, engine="torch"), strict=True):
        recorded = dict(zip(prediction.classes, prediction.probabilities, strict=True))
        assert [recorded[name] for name in ("blue", "red")] == pytest.approx(row, abs=1e-5)
    assert "32 x 64 px, crop_mode border" in (tmp_path / "hub" / "README.md").read_text()


def test_a_rectangle_is_explained_on_the_whole_image(wide_run: RunFolder, tmp_path: Path) -> None:
    paths, _ = load_images(wide_run)
    [prediction] = predict(paths[:1], wide_run.path, explain=tmp_path / "heat", tta=True)
    assert prediction.explanation is not None
    with Image.open(prediction.explanation) as drawn:
        assert drawn.width >= 2 * 144
        assert drawn.height > 48
    image = np.full((48, 144, 3), 100, np.uint8)
    heat = np.zeros((1, 2), np.float32)
    heat[0, 1] = 1
    frame = (0.0, -12.0, 144.0, 60.0)  # 2:1 about a 3:1 image
    changed = np.asarray(draw_explanation(image, [heat], frame, "")).astype(int)[:48, -144:]
    left, right = (np.abs(part - 100).sum() for part in (changed[:, :36], changed[:, 108:]))
    assert right > 20 * max(1, left), "the right half of the input is the right half of the image"
