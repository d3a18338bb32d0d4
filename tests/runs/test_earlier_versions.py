"""Runs of an earlier version can be evaluated, used for prediction, resumed and repeated."""

import hashlib
import json
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from convnext_cli import evaluate, finetune, predict
from convnext_cli.errors import RunError
from convnext_cli.kernels.library import describe_processor
from convnext_cli.runs.folder import RunFolder
from tests.conftest import Convnext
from tests.data_of_earlier_versions.make_runs import write_images

ARCHIVE = Path(__file__).parents[1] / "data_of_earlier_versions" / "runs.tar.xz"
DIGEST = "7b84613a543f5bdb7ec38149f1a281c9d43fe0461730c2c32366c746b7d189bd"
"""SHA-256 of the model in which the earlier version ended, both resumed and not."""


@pytest.fixture(scope="module")
def images(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return write_images(tmp_path_factory.mktemp("earlier") / "digits")


@pytest.fixture
def runs(tmp_path: Path, images: Path) -> Path:
    """A folder with the earlier version's runs, whose data folder is that of the images."""
    with tarfile.open(ARCHIVE) as archive:
        archive.extraction_filter = getattr(tarfile, "data_filter", None)  # Python before 3.11.4 has none
        archive.extractall(tmp_path)  # noqa: S202  # our own archive
    for name in ("finished", "stopped"):
        path = tmp_path / name / "data.json"
        path.write_text(json.dumps(json.loads(path.read_text()) | {"data": str(images)}))
    return tmp_path


def check_model(run: Path, runs: Path) -> None:
    """Check that a run ended in the earlier version's model: its bytes with the same CPU and torch, else its values."""
    machine = json.loads((runs / "machine.json").read_text())
    if machine == {"torch": torch.__version__, "cpu": describe_processor("model name")}:
        assert hashlib.sha256((run / "model.safetensors").read_bytes()).hexdigest() == DIGEST
    expected = load_file(runs / "finished/model.safetensors")
    for name, value in load_file(run / "model.safetensors").items():
        torch.testing.assert_close(value, expected[name], rtol=1e-3, atol=1e-4)


def test_earlier_run_is_evaluated_to_the_same_score(runs: Path) -> None:
    [earlier] = RunFolder(runs / "finished").read_tests()
    result = evaluate(runs / "finished")
    assert result.metrics.balanced_accuracy == pytest.approx(earlier["balanced_accuracy"])
    assert result.test_number == 2, "the earlier version's evaluation counts"


def test_earlier_run_predicts(runs: Path, images: Path) -> None:
    index = RunFolder(runs / "finished").read_split()
    rows = index.rows("test")
    predictions = predict([images / index.paths[row] for row in rows], runs / "finished", abstain=True)
    correct = [one.classes[0] == index.classes[index.labels[row]] for one, row in zip(predictions, rows, strict=True)]
    assert sum(correct) / len(correct) > 0.9
    assert all(prediction.novelty is not None for prediction in predictions)


def test_earlier_run_is_resumed_to_the_same_model(runs: Path) -> None:
    assert "formulation" in (next((runs / "stopped/last").glob("step-*")).read_bytes()[:20_000].decode(errors="ignore"))
    result = finetune(resume=runs / "stopped", onnx=False)
    assert result.epoch == 2
    check_model(runs / "stopped", runs)


def test_earlier_run_keeps_the_framing_of_its_weights(runs: Path) -> None:
    plan = runs / "stopped" / "plan.toml"
    plan.write_text(plan.read_text().replace("[settings]", '[settings]\nfit = "pad"'))
    with pytest.raises(RunError, match="fit = 'pad', the run began with 'weights'"):
        finetune(resume=runs / "stopped", onnx=False)


def test_earlier_plan_repeats_the_run(runs: Path, images: Path, convnext: Convnext) -> None:
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        outcome = convnext("finetune", images, "-c", "finished/plan.toml", "-o", "again")
    finally:
        torch.set_num_threads(threads)
    assert outcome.code == 0, outcome.err
    check_model(runs / "again", runs)
