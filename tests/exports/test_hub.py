import base64
import http.server
import json
import shutil
import threading
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch

from convnext_cli import evaluate
from convnext_cli.exports.hub import HubFolder, hub_steps
from convnext_cli.exports.model_card import escape_markdown, find_license, render_card
from convnext_cli.exports.request import ExportRequest
from convnext_cli.inference.saved_model import load_model
from convnext_cli.progress import finish
from convnext_cli.runs.folder import RunFolder
from tests.conftest import Convnext, change_json

FILES = {"README.md", "calibration.json", "config.json", "model.safetensors"}


def export(run: RunFolder, output: Path, **options: Any) -> HubFolder:
    return finish(hub_steps(run, ExportRequest(format="hub", output=output, **options)))


@pytest.fixture(scope="module")
def mine(run: RunFolder, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("hub") / "run"
    shutil.copytree(run.path, folder)
    evaluate(folder, split="val", targets=["sensitivity=0.9:1"])
    return RunFolder(folder)


def give_base(run: RunFolder, tmp_path: Path, *, license: str | None, weights: str, model: str) -> RunFolder:
    """A copy of the run that says it began with other weights."""
    shutil.copytree(run.path, tmp_path / "based")
    based = RunFolder(tmp_path / "based")
    change_json(based.path / "config.json", "pretrained_cfg.license", license)
    plan = based.plan.read_text()
    based.plan.write_text(
        plan.replace('weights = "auto"', f'weights = "{weights}"').replace(
            'model = "convnext_zepto_rms.builtin"', f'model = "{model}"'
        )
    )
    return based


BASES = [
    ("cc-by-nc-4.0", "auto", "convnextv2_tiny.fcmae", "license: cc-by-nc-4.0", "Not for commercial use"),
    ("apache-2.0", "auto", "convnext_tiny.in12k", "license: apache-2.0", "that of the base weights"),
    ("dinov3-license", "auto", "convnext_tiny.d", "license: other\nlicense_name: dinov3-license", "dinov3-license"),
    (
        "imagenet-noncommercial", "auto", "convnext_zepto_rms.builtin",
        "license: other\nlicense_name: imagenet-noncommercial", "Not for commercial use",
    ),
    (None, "none", "convnext_tiny", "license: unknown", "trained from random weights"),
    (None, "my.pth", "convnext_tiny", "license: unknown", "the licence of the base weights is not known"),
]  # fmt: skip


@pytest.mark.parametrize(("license", "weights", "model", "head", "words"), BASES, ids=[base[2] for base in BASES])
def test_licence_is_that_of_the_base_weights_or_unknown(
    mine: RunFolder, tmp_path: Path, license: str | None, weights: str, model: str, head: str, words: str
) -> None:
    based = give_base(mine, tmp_path, license=license, weights=weights, model=model)
    shutil.move(mine.read_split().root, tmp_path / "hidden")  # no figures are needed here
    try:
        exported = export(based, tmp_path / "out")
    finally:
        shutil.move(tmp_path / "hidden", mine.read_split().root)
    card = (tmp_path / "out/README.md").read_text()
    assert head in card.split("---")[1]
    assert words in card
    assert ("apache" in card) == (license == "apache-2.0")
    assert exported.license == find_license(based)
    assert ("base_model: timm/" + model in card) == (weights == "auto" and ".builtin" not in model)
    assert "before calibration and without 95% CIs: the data were not available at export" in card


def test_model_card_has_metrics_data_settings_and_use(mine: RunFolder, convnext: Convnext, tmp_path: Path) -> None:
    outcome = convnext("export", mine.path, "--format", "hub", "-o", tmp_path / "out")
    assert outcome.code == 0, outcome.err
    assert "Nothing was uploaded" in outcome.out
    assert {path.name for path in (tmp_path / "out").iterdir()} == FILES
    card = (tmp_path / "out/README.md").read_text()
    for words in ("| balanced accuracy |", "95% CI", "45 images of the test split", "| epochs | 1 |",
                  "sensitivity=0.9:1", "| 0 | 65 | 20 | 15 |", "This was evaluation", "interpolation bi",
                  "set on 60 validation images",
                  "95% CIs: from the variance of 2,000 bootstrap resamples of single images"):  # fmt: skip
        assert words in card, words
    assert str(mine.read_split().root) not in card
    again = convnext("export", mine.path, "--format", "hub", "-o", tmp_path / "out")
    assert again.code == 2
    assert "exists already" in again.err
    (tmp_path / "out/mine.txt").write_text("kept")
    assert convnext("export", mine.path, "--format", "hub", "-o", tmp_path / "out", "--overwrite").code == 2


def test_model_card_has_no_path_of_the_data(mine: RunFolder, tmp_path: Path) -> None:
    shutil.copytree(mine.path, tmp_path / "run")
    run = RunFolder(tmp_path / "run")
    plan = run.plan.read_text().replace('image_root = "auto"', 'image_root = "/clinic/patients"')
    assert "/clinic" in plan
    run.plan.write_text(plan)
    assert "/clinic" not in render_card(run, None, find_license(run))


def test_what_a_killed_export_left_does_not_block_the_next(mine: RunFolder, tmp_path: Path) -> None:
    output = tmp_path / "out"
    output.mkdir()
    (output / ".model.safetensors.abcd1234.tmp").write_text("half")
    export(mine, output)
    assert {path.name for path in output.iterdir()} == FILES


def test_hub_folder_keeps_calibration_and_thresholds(mine: RunFolder, tmp_path: Path, convnext: Convnext) -> None:
    run, output, image = tmp_path / "run", tmp_path / "out", next(mine.read_split().root.rglob("*.png"))
    shutil.copytree(mine.path, run)
    change_json(run / "calibration.json", "temperature", 0.5)
    export(RunFolder(run), output)
    expected = convnext("predict", image, "--run", run, "--engine", "torch", "--json")
    [prediction] = json.loads(convnext("predict", image, "--run", output, "--json").out)
    assert prediction.items() <= json.loads(expected.out)[0].items()
    assert "sensitivity=0.9:1" in json.dumps(prediction)
    outcome = convnext("predict", image, "--run", output, "--abstain")
    assert outcome.code == 3
    assert "is missing. Give the run itself if this is an exported folder" in outcome.err

    (run / "calibration.json").unlink()
    assert set(export(RunFolder(run), output, overwrite=True).files) == FILES - {"calibration.json"}
    assert {path.name for path in output.iterdir()} == FILES - {"calibration.json"}
    assert "calibration.json is missing. Export the run again" in convnext("predict", image, "--run", output).err


def test_hub_folder_loads_in_timm_and_transformers(mine: RunFolder, tmp_path: Path) -> None:
    export(mine, tmp_path / "out")
    inputs = torch.rand(2, 3, 32, 32)
    with torch.inference_mode():
        expected = load_model(mine.path)[0](inputs)
        assert torch.equal(timm.create_model(f"local-dir:{tmp_path / 'out'}", pretrained=True).eval()(inputs), expected)
        transformers = pytest.importorskip("transformers", reason="transformers is not installed")
        loaded = transformers.AutoModelForImageClassification.from_pretrained(tmp_path / "out").eval()
        assert torch.allclose(loaded(inputs).logits, expected, atol=1e-6)
    assert loaded.config.id2label == {0: "0", 1: "1", 2: "2"}


def test_changed_row_of_the_split_is_noted(run_copy: RunFolder, tmp_path: Path) -> None:
    index = run_copy.read_split()
    labels = ((index.labels[0] + 1) % 3, *index.labels[1:])
    run_copy.write_split(replace(index, labels=labels, root=tmp_path / "gone"))
    changed, metrics = export(run_copy, tmp_path / "hub").notes[:2]
    assert changed.startswith("split.csv was changed since the training, and counts as it is now: 1 row differs")
    assert metrics.startswith("the model card has validation metrics only")


def test_moved_data_are_named_as_in_eval(run_copy: RunFolder, tmp_path: Path, convnext: Convnext) -> None:
    index = run_copy.read_split()
    moved = tmp_path / "moved"
    shutil.copytree(index.root, moved)
    run_copy.write_split(replace(index, root=tmp_path / "gone"))
    [note] = export(run_copy, tmp_path / "without").notes[:1]
    assert note.endswith(f"the run's data folder {tmp_path / 'gone'} is gone; --data names moved data")
    shutil.copyfile(moved / index.paths[0], moved / index.paths[1])
    command = ("export", run_copy.path, "--format", "hub", "--data")
    done = convnext(*command, moved, "-o", tmp_path / "out")
    assert done.code == 0, done.err
    card = (tmp_path / "out/README.md").read_text()
    assert "45 images of the test split" in card
    assert "of the images differ from those that the run was trained on" in card
    assert str(tmp_path) not in card

    assert convnext(*command, moved, "-o", moved / "out").code == 2
    for name in ("0", "1", "2"):
        shutil.copytree(moved / name, tmp_path / "other" / name.replace("2", "two"))
    refused = convnext(*command, tmp_path / "other", "-o", tmp_path / "none")
    assert refused.code == 3
    assert "1 class that the run does not know: two" in refused.err
    shutil.rmtree(moved / "2")
    refused = convnext(*command, moved, "-o", tmp_path / "none")
    assert refused.code == 2
    assert "moved is no copy of the data that the run was trained with" in refused.err
    assert not (tmp_path / "none").exists()
    assert "--data goes with --format hub" in convnext("export", run_copy.path, "--data", moved).err


@pytest.fixture
def hub(monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Any]]:
    """A Hub on this machine: it keeps what it is asked for, and refuses everyone but `me`."""
    got: dict[str, Any] = {}

    class Server(http.server.BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            path = self.path.partition("?")[0]
            content = got[path] = self.rfile.read(int(self.headers["Content-Length"]))
            if path == "/api/repos/create":
                mine = json.loads(content).get("organization", "me") == "me"
                self.answer({"url": f"{url}/me/xrays"}, 200 if mine else 403)
            elif path.endswith("/preupload/main"):
                files = [{"path": file["path"], "shouldIgnore": False} for file in json.loads(content)["files"]]
                self.answer({"files": [file | {"uploadMode": "regular"} for file in files]}, got.get("status", 200))
            else:
                self.answer({"commitUrl": f"{url}/me/xrays/commit/1", "commitOid": "1", "success": True})

        def do_GET(self) -> None:
            self.answer({"sha": "0", "id": "me/xrays", "siblings": []}, 404 if "not/mine" in self.path else 200)

        def answer(self, body: dict[str, Any], status: int = 200) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(json.dumps(body).encode())

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Server) as server:
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr("huggingface_hub.constants.ENDPOINT", url)
        monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield got
        server.shutdown()


def test_upload_needs_push_and_is_private(mine: RunFolder, tmp_path: Path, hub: dict[str, Any]) -> None:
    export(mine, tmp_path / "one")
    assert not hub
    result = export(mine, tmp_path / "two", push="me/xrays")
    assert result.url is not None
    assert "/me/xrays" in result.url
    created = json.loads(hub["/api/repos/create"])
    assert created.get("private") is True or created["visibility"] == "private"
    lines = map(json.loads, hub["/api/models/me/xrays/commit/main"].splitlines())
    sent = {line["value"]["path"]: line["value"] for line in lines if line["key"] == "file"}
    assert sent.keys() == FILES
    assert base64.b64decode(sent["model.safetensors"]["content"]) == (mine.path / "model.safetensors").read_bytes()


def test_refused_upload_evaluates_nothing(
    mine: RunFolder, tmp_path: Path, hub: dict[str, Any], convnext: Convnext
) -> None:
    outcome = convnext("export", mine.path, "--format", "hub", "-o", tmp_path / "one", "--push", "not/mine")
    assert outcome.code == 1
    assert "cannot upload to not/mine (it answered with HTTP status 403" in outcome.err
    assert not (tmp_path / "one").exists()

    hub["status"] = 409  # a status at which huggingface_hub does not try again for 23 s
    outcome = convnext("export", mine.path, "--format", "hub", "-o", tmp_path / "two", "--push", "me/xrays")
    assert outcome.code == 1
    assert "(it answered with HTTP status 409)" in outcome.err
    assert f"is complete: `hf upload me/xrays {tmp_path / 'two'}` tries again" in outcome.err
    assert (tmp_path / "two/README.md").exists()


@pytest.mark.parametrize(
    ("name", "escaped"),
    [
        ("cat", "cat"),
        ("min_crop_area 0.5 to 3.1e-05 (7%)", "min_crop_area 0.5 to 3.1e-05 (7%)"),
        ("![x](http://example.org/a.png)", r"\!\[x\](http\://example.org/a.png)"),
        ("<img src=x>|*b* _i_ `c` $m$", r"\<img src=x\>\|\*b\* \_i\_ \`c\` \$m\$"),
        ("www.example.org a@b.org", r"www\.example.org a\@b.org"),
        ("line\n# title\u202e", r"line\\n\# title\\u202e"),
    ],
)
def test_names_in_the_card_are_escaped(name: str, escaped: str) -> None:
    assert escape_markdown(name) == escaped


def test_edited_licence_stays_one_yaml_value(mine: RunFolder, tmp_path: Path) -> None:
    license = 'other"\nbase_model: x/y # <b>'
    based = give_base(mine, tmp_path, license=license, weights="auto", model="convnext_tiny.d")
    card = render_card(based, None, find_license(based))
    head = card.split("---")[1].strip().splitlines()
    assert [line for line in head if line.startswith("license_name: ")] == [f"license_name: {json.dumps(license)}"]
    assert [line for line in head if line.startswith("base_model")] == ["base_model: timm/convnext_tiny.d"]
    assert "<b>" not in card.split("---", 2)[2].replace(r"\<b", "")
