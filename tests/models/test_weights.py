import http.server
import os
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import ClassVar

import pytest
import timm
import torch
from safetensors.torch import save_file

from convnext_cli.errors import RunError, WeightsError
from convnext_cli.inference.saved_model import load_model
from convnext_cli.models.build import ModelOptions, build_model
from convnext_cli.models.catalog import find_model
from convnext_cli.models.hub import find_weights
from convnext_cli.models.weights import fit_weights, read_weights
from convnext_cli.runs.folder import RunFolder


def make_atto(classes: int = 7, name: str = "convnext_atto") -> torch.nn.Module:
    model: torch.nn.Module = timm.create_model(name, num_classes=classes)
    return model


@pytest.mark.parametrize("suffix", [".safetensors", ".pth"])
def test_weights_file_fills_the_backbone_and_leaves_the_head_new(tmp_path: Path, suffix: str) -> None:
    source = make_atto()
    path = tmp_path / f"weights{suffix}"
    if suffix == ".pth":
        torch.save({"state_dict": {f"module.{k}": v for k, v in source.state_dict().items()}}, path)
    else:
        save_file(source.state_dict(), path)
    architecture, tag = find_model("convnext_atto")
    model, new = build_model(architecture, tag, ModelOptions(num_classes=4), weights=str(path), offline=True)
    assert new == ["head.fc.weight", "head.fc.bias"]
    assert torch.equal(model.state_dict()["stem.0.weight"], source.state_dict()["stem.0.weight"])
    assert torch.equal(model.state_dict()["head.norm.weight"], source.state_dict()["head.norm.weight"])


def test_weights_with_the_same_number_of_classes_fill_the_head() -> None:
    source, target = make_atto(7), make_atto(7)
    assert fit_weights(target, source.state_dict(), "here") == []
    assert torch.equal(target.state_dict()["head.fc.weight"], source.state_dict()["head.fc.weight"])


def test_v1_weights_are_refused_for_v2() -> None:
    with pytest.raises(WeightsError, match=r"does not fit convnextv2_atto: its weights are of convnext_atto \("):
        fit_weights(make_atto(name="convnextv2_atto"), make_atto().state_dict(), "here")


def test_weights_of_other_models_are_refused(tmp_path: Path) -> None:
    resnet = timm.create_model("resnet18").state_dict()
    with pytest.raises(WeightsError, match="does not fit convnext_atto: its weights are of another architecture"):
        fit_weights(make_atto(), resnet, "here")
    with pytest.raises(WeightsError, match="does not fit convnext_atto"):
        fit_weights(make_atto(), {}, "here")
    torch.save(resnet, tmp_path / "resnet.pth")
    with pytest.raises(WeightsError, match=r"holds no ConvNeXt with known parameter names; .* conv1\.weight"):
        read_weights(tmp_path / "resnet.pth")


def test_checkpoints_that_would_run_code_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "evil.pth"
    torch.save({"run": os.system}, path)
    with pytest.raises(WeightsError, match=r"holds Python objects \(.*system\), and making them would run code"):
        read_weights(path)


def test_damaged_missing_and_empty_files_are_refused(tmp_path: Path) -> None:
    torn = tmp_path / "torn.safetensors"
    torn.write_bytes(b"\x10\x00\x00")
    with pytest.raises(WeightsError, match="cannot be read as weights"):
        read_weights(torn)
    with pytest.raises(WeightsError, match="no weights at"):
        read_weights(tmp_path / "none.pth")
    torch.save([1, 2], tmp_path / "list.pth")
    with pytest.raises(WeightsError, match="no state dict"):
        read_weights(tmp_path / "list.pth")


def test_offline_error_names_the_file_and_the_alternatives(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    architecture, tag = find_model("convnextv2_tiny")
    with pytest.raises(WeightsError) as caught:
        find_weights(architecture, tag, offline=True)
    for words in (
        "timm/convnextv2_tiny.fcmae_ft_in22k_in1k/resolve/main/model.safetensors",
        "--weights PATH",
        "--weights none",
    ):
        assert words in str(caught.value)


def test_models_without_weights_are_refused() -> None:
    with pytest.raises(WeightsError, match="no pretrained weights exist for convnextv2_small"):
        find_weights(*find_model("convnextv2_small"), offline=False)


FIND = """
import sys
from convnext_cli.errors import WeightsError
from convnext_cli.models.catalog import find_model
from convnext_cli.models.hub import find_weights_steps
from convnext_cli.progress import finish
try:
    steps = find_weights_steps(*find_model("test_convnext"), offline=False)
    print(finish(steps, lambda event: print(event, file=sys.stderr)))
except WeightsError as error:
    print(error)
    sys.exit(error.exit_code)
"""


def find_in_new_process(endpoint: str, cache: Path) -> subprocess.CompletedProcess[str]:
    """The Hub's client reads its endpoint once, at import."""
    env = {**os.environ, "HF_ENDPOINT": endpoint, "HF_HUB_CACHE": str(cache), "HF_HUB_OFFLINE": "0"}
    command = [sys.executable, "-c", FIND]
    return subprocess.run(command, env=env, capture_output=True, text=True, timeout=60, check=False)


@pytest.mark.slow
def test_unresponsive_hub_times_out(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as silent:  # takes connections, says nothing
        done = find_in_new_process(f"http://127.0.0.1:{silent.getsockname()[1]}", tmp_path)
    assert done.returncode == 1
    assert "cannot fetch the weights timm/test_convnext.r160_in1k" in done.stdout
    assert "--weights none" in done.stdout


@pytest.mark.slow
@pytest.mark.parametrize(
    ("status", "reason"),
    [
        (200, "the answer is not the Hub's: a proxy or a login page may stand between"),
        (
            401,
            "it answered with HTTP status 401: the token (HF_TOKEN, or of `hf auth login`) is wrong or has no access",
        ),
        (503, "it answered with HTTP status 503"),
    ],
)
def test_answers_without_weights_are_explained(tmp_path: Path, status: int, reason: str) -> None:
    class Portal(http.server.BaseHTTPRequestHandler):
        def do_HEAD(self) -> None:
            self.send_response(status)
            self.end_headers()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Portal) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        done = find_in_new_process(f"http://127.0.0.1:{server.server_port}", tmp_path)
        server.shutdown()
    assert f"from the Hub ({reason}" in done.stdout


def test_damaged_weights_of_the_cache_are_to_be_deleted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "model.safetensors"
    path.write_bytes(b"cut short")
    monkeypatch.setattr("convnext_cli.models.build.find_weights", lambda *_, **__: path)
    with pytest.raises(WeightsError, match=r"cannot be read as weights .* Delete it, and it is downloaded again"):
        build_model(*find_model("test_convnext"), ModelOptions(num_classes=2))


@pytest.mark.slow
def test_weights_are_downloaded_once_and_then_cached(tmp_path: Path) -> None:
    content = bytes(12_000_000)

    class Hub(http.server.BaseHTTPRequestHandler):
        asked: ClassVar[list[str]] = []

        def do_HEAD(self) -> None:
            self.answer(b"")

        def do_GET(self) -> None:
            self.answer(content[:11_000_000])
            time.sleep(2)
            self.wfile.write(content[11_000_000:])

        def answer(self, body: bytes) -> None:
            Hub.asked.append(self.path)
            self.send_response(200)
            self.send_header("X-Repo-Commit", "a" * 40)
            self.send_header("ETag", '"' + "b" * 64 + '"')
            self.send_header("Content-Length", str(len(content)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        endpoint = f"http://127.0.0.1:{server.server_port}"
        first = find_in_new_process(endpoint, tmp_path)
        asked = list(Hub.asked)
        second = find_in_new_process(endpoint, tmp_path)
        server.shutdown()
    assert first.returncode == 0, first.stdout + first.stderr
    assert Path(first.stdout.strip()).read_bytes() == content
    assert (
        "Progress(done=10, total=12, activity='MB of the weights')" in first.stderr
    )  # the client writes 10 MB at once
    assert set(asked) == {"/timm/test_convnext.r160_in1k/resolve/main/model.safetensors"}, "nothing but the weights"
    assert second.stdout == first.stdout
    assert Hub.asked == asked, "the second time must not ask the Hub at all"


def test_timm_loads_a_run_folder_with_the_same_logits(run: RunFolder) -> None:
    ours, classes, preprocessing = load_model(run.path)
    theirs = timm.create_model(f"local-dir:{run.path}", pretrained=True).eval()
    images = torch.randn(4, 3, *preprocessing.size)
    with torch.inference_mode():
        assert torch.equal(ours(images), theirs(images))
    assert classes == ("0", "1", "2")
    assert theirs.pretrained_cfg["input_size"] == (3, preprocessing.image_size, preprocessing.image_size)


def test_incomplete_run_folders_are_refused(tmp_path: Path, run: RunFolder) -> None:
    with pytest.raises(RunError, match=r"config\.json is missing"):
        load_model(tmp_path)
    (tmp_path / "config.json").write_bytes((run.path / "config.json").read_bytes())
    (tmp_path / "model.safetensors").write_bytes((run.path / "model.safetensors").read_bytes()[:-100])
    with pytest.raises(RunError, match="cannot be read"):
        load_model(tmp_path)
