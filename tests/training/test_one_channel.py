"""A model of one input channel: its stem, its images, and every place that its run goes to."""

import json
from pathlib import Path

import numpy as np
import pytest
import timm
import torch
from PIL import Image
from safetensors.torch import load_file
from timm.data import create_transform, resolve_model_data_config

from convnext_cli import evaluate, finetune, predict
from convnext_cli.errors import UsageError, WeightsError
from convnext_cli.exports.hub import hub_steps
from convnext_cli.exports.request import ExportRequest
from convnext_cli.inference.onnx_classifier import OnnxClassifier
from convnext_cli.inference.saved_model import RunMetadata, load_model, write_model
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.models.build import ModelOptions, build_model, read_preprocessing
from convnext_cli.models.catalog import find_model
from convnext_cli.models.forward import prepare_input, to_luminance
from convnext_cli.models.weights import fit_weights
from convnext_cli.recipes.settings import check_settings
from convnext_cli.runs.folder import RunFolder
from tests.conftest import SHALLOW, SMALL, Convnext, draw_picture, export

CPU = torch.device("cpu")


@pytest.fixture(scope="module")
def grey_run(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("grey") / "run"
    finetune(digits, output=folder, **SMALL | {"in_chans": 1})  # type: ignore[arg-type]
    return RunFolder(folder)


def draw(images: int, mode: str) -> list[Image.Image]:
    return [draw_picture(seed, (64, 64)).convert(mode) for seed in range(images)]


def stack(images_drawn: list[Image.Image]) -> np.ndarray:
    """Return the images as decoding does: three channels, equal for grey images."""
    return np.stack([np.asarray(image.convert("RGB")) for image in images_drawn])


def compute_logits(model: torch.nn.Module, images: np.ndarray) -> torch.Tensor:
    preprocessing = read_preprocessing(model)
    with torch.inference_mode():
        logits: torch.Tensor = model.eval()(prepare_input(images, preprocessing, CPU))
    return logits


@pytest.mark.parametrize("name", ["convnext_atto", "convnextv2_atto", "convnext_zepto_rms", "convnext_zepto_rms_ols"])
def test_one_channel_model_gives_grey_images_the_same_logits(name: str) -> None:
    torch.manual_seed(0)
    colour = timm.create_model(name, num_classes=3)
    for parameter in colour.parameters():
        torch.nn.init.normal_(parameter, std=0.1)  # also biases and scales, which are initially 0 or nearly
    grey = timm.create_model(name, num_classes=3, in_chans=1)
    assert fit_weights(grey, colour.state_dict(), "here") == []
    images = stack(draw(4, "L"))
    expected = compute_logits(colour, images)
    assert expected.std() > 1e-2
    torch.testing.assert_close(compute_logits(grey, images), expected, rtol=1e-4, atol=1e-4)


def test_builtin_weights_give_grey_images_the_same_features() -> None:
    model, tag = find_model("convnext_zepto_rms.builtin")
    (colour, _), (grey, new) = (
        build_model(model, tag, ModelOptions(num_classes=0, in_chans=channels), offline=True) for channels in (3, 1)
    )
    assert new == []
    assert grey.state_dict()["stem.0.weight"].shape == (32, 1, 4, 4)
    images = stack(draw(4, "L"))
    torch.testing.assert_close(compute_logits(grey, images), compute_logits(colour, images), rtol=1e-4, atol=1e-4)


def test_one_channel_stem_accounts_for_mean_and_std() -> None:
    """timm's plain sum over the channels is not enough."""
    torch.manual_seed(0)
    colour = timm.create_model("convnext_atto", num_classes=3)
    grey = timm.create_model("convnext_atto", num_classes=3, in_chans=1)
    fit_weights(grey, colour.state_dict(), "here")
    plain = colour.state_dict()["stem.0.weight"].sum(1, keepdim=True)
    assert not torch.allclose(grey.state_dict()["stem.0.weight"], plain, rtol=1e-3)
    images = stack(draw(2, "L"))
    stems = [m.stem[0](prepare_input(images, read_preprocessing(m), CPU)) for m in (colour, grey)]
    torch.testing.assert_close(stems[1], stems[0], rtol=1e-4, atol=1e-5)


def test_colour_is_converted_to_pillows_luminance() -> None:
    rng = np.random.default_rng(0)
    colours = rng.integers(0, 256, (4, 256, 256, 3), dtype=np.uint8)
    expected = np.stack([np.asarray(Image.fromarray(image).convert("L")) for image in colours])
    result = to_luminance(torch.from_numpy(colours).permute(0, 3, 1, 2).float())
    assert np.array_equal(result[:, 0].numpy(), expected)


def test_one_channel_weights_are_refused_by_a_three_channel_model() -> None:
    grey = timm.create_model("convnext_atto", in_chans=1).state_dict()
    assert fit_weights(timm.create_model("convnext_atto", in_chans=1), grey, "here") == []
    with pytest.raises(WeightsError, match=r"its input has 1 channel, not 3\. Give --in-chans 1"):
        fit_weights(timm.create_model("convnext_atto"), grey, "here")
    resnet = timm.create_model("resnet18").state_dict()
    with pytest.raises(WeightsError, match="does not fit convnext_atto"):
        fit_weights(timm.create_model("convnext_atto", in_chans=1), resnet, "here")


@pytest.mark.parametrize("value", [2, True, 1.0, "1"])
def test_in_chans_must_be_one_or_three(value: object) -> None:
    with pytest.raises(UsageError, match=r"in_chans = .* must be one of 1, 3"):
        check_settings({"in_chans": value})


def test_in_chans_option_is_a_number(digits: Path, convnext: Convnext) -> None:
    words = ("finetune", digits, "--weights", "builtin", "--in-chans", 1, "--dry-run", "--json")
    outcome = convnext(*words)
    assert outcome.code == 0, outcome.err
    assert json.loads(outcome.out)["settings"]["in_chans"]["value"] == 1
    assert convnext(*words[:5], 2).code == 2


def test_one_channel_run_learns_and_its_config_has_one_channel(grey_run: RunFolder) -> None:
    assert load_file(grey_run.path / "model.safetensors")["stem.0.weight"].shape[1] == 1
    config = json.loads((grey_run.path / "config.json").read_text())
    assert config["model_args"]["in_chans"] == 1
    cfg = config["pretrained_cfg"]
    assert (cfg["input_size"], len(cfg["mean"]), len(cfg["std"])) == ([1, 32, 32], 1, 1)
    _, _, preprocessing = load_model(grey_run.path)
    assert preprocessing.is_grey
    assert evaluate(grey_run.path).metrics.top1 > 0.9


def test_one_channel_model_round_trips(grey_run: RunFolder, tmp_path: Path) -> None:
    model, classes, preprocessing = load_model(grey_run.path)
    write_model(
        model, tmp_path, model.state_dict(), RunMetadata(classes=classes, preprocessing=preprocessing, license=None)
    )
    again, _, how_again = load_model(tmp_path)
    images = stack(draw(3, "RGB"))[:, :32, :32]
    assert how_again == preprocessing
    assert torch.equal(compute_logits(again, images), compute_logits(model, images))


def test_colour_and_its_luminance_get_the_same_prediction(grey_run: RunFolder, tmp_path: Path) -> None:
    [image] = draw(1, "RGB")
    image = image.resize((36, 36))  # the side before the crop, so that nothing is scaled
    image.save(tmp_path / "colour.png")
    image.convert("L").save(tmp_path / "grey.png")
    colour, grey = predict([tmp_path / "colour.png", tmp_path / "grey.png"], grey_run.path)
    assert colour.probabilities == grey.probabilities


def test_timm_transformers_and_the_hub_load_it(grey_run: RunFolder, tmp_path: Path) -> None:
    *_, _ = hub_steps(grey_run, ExportRequest(format="hub", output=tmp_path / "hub"))
    theirs = timm.create_model(f"local-dir:{tmp_path / 'hub'}", pretrained=True).eval()
    transform = create_transform(**resolve_model_data_config(theirs))
    images_drawn = draw(2, "RGB")
    inputs = torch.stack([transform(image.convert("L")) for image in images_drawn])
    assert inputs.shape == (2, 1, 32, 32)
    for seed, image in enumerate(images_drawn):
        image.convert("L").save(tmp_path / f"{seed}.png")
    own = predict([tmp_path / "0.png", tmp_path / "1.png"], grey_run.path, raw=True, engine="torch")
    with torch.inference_mode():
        expected = theirs(inputs)
        for row, prediction in zip(expected.softmax(1).tolist(), own, strict=True):
            recorded = dict(zip(prediction.classes, prediction.probabilities, strict=True))
            assert [recorded[name] for name in "012"] == pytest.approx(row, abs=1e-4)
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "hub").eval()
        assert torch.allclose(loaded(inputs).logits, expected, atol=1e-6)
    assert 'luminance alone (Pillow\'s `convert("L")`), 32 x 32 px' in (tmp_path / "hub/README.md").read_text()


@pytest.mark.slow
def test_one_channel_exports_take_rgb_and_predict_like_the_run(digits: Path, tmp_path: Path) -> None:
    pytest.importorskip("onnxscript", reason="the extra onnx is not installed")
    run = RunFolder(tmp_path / "run")
    finetune(digits, output=run.path, **SMALL | SHALLOW | {"in_chans": 1})  # type: ignore[arg-type]
    (tmp_path / "images").mkdir()
    paths: list[Path] = []
    for seed, image in enumerate(draw(6, "RGB")):
        paths.append(tmp_path / "images" / f"{seed}.png")
        image.save(paths[-1])
    assert export(run).parity.holds
    assert export(run, format="pt2", images=tuple(paths)).parity.holds
    assert export(run, int8=True, tolerance=0.2).parity.holds
    file = OnnxClassifier(run.exported("onnx"))
    assert "The conversion to luminance" in "\n".join(file.metadata.to_strings()["steps"].splitlines())
    assert file.preprocessing.is_grey
    images = stack(draw(6, "RGB"))[:, :32, :32]
    recorded, expected = (
        m.run_batch(images, features=True, heat=False) for m in (file, TorchClassifier(run.path, CPU))
    )
    np.testing.assert_allclose(recorded.logits, expected.logits, atol=1e-4)
    np.testing.assert_allclose(recorded.features, expected.features, atol=1e-3)
    by_torch, by_onnx = (predict(paths, run.path, engine=engine, abstain=True) for engine in ("torch", "onnx"))
    for a, b in zip(by_torch, by_onnx, strict=True):
        assert a.probabilities == pytest.approx(b.probabilities, abs=1e-4)
        assert a.novelty == pytest.approx(b.novelty, rel=1e-3)
    assert predict(paths[:1], run.path, tta=True, explain=tmp_path / "heat")[0].error is None
    assert len(list((tmp_path / "heat").iterdir())) == 1
