"""Each file of a run is refused with the file, the field and the value where it does not fit, and never followed."""

import http.server
import json
import math
import os
import re
import shutil
import threading
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from convnext_cli.errors import RunError
from convnext_cli.inference.calibration import read_calibration, read_novelty
from convnext_cli.inference.evaluation import Evaluation, evaluate
from convnext_cli.inference.operating_points import add_targets
from convnext_cli.inference.prediction import list_run_notes, predict
from convnext_cli.inference.request import PredictRequest
from convnext_cli.inference.run_checks import check_records
from convnext_cli.inference.saved_model import load_model
from convnext_cli.metrics.thresholds import parse_target
from convnext_cli.runs.files import AUDIT, RANGE_TEST
from convnext_cli.runs.folder import MODEL_REMEDY, RUN_REMEDY, RunFolder
from convnext_cli.runs.records import MAX_BYTES, AuditRecord
from convnext_cli.tasks.registry import SINGLE
from tests.conftest import change_json
from tools.commands import call


def read_all(run: RunFolder) -> None:
    check_records(run)
    load_model(run.path)


NAN = math.nan
CHANGES = [
    ("config.json", "label_names", [1, None, {}], r"config\.json cannot be read: label_names\[0\]: Expected str"),
    ("config.json", "label_names", ["0", "1", "1"], "label_names: 2 class names for 3 outputs"),
    ("config.json", "label_names", ["2", "1", "0"], r"the classes in .* differ from those in data\.json"),
    ("config.json", "label_names", ..., "missing required field label_names"),
    ("config.json", "architecture", "resnet50", "model is convnext_zepto_rms in plan.toml and resnet50 in config.json"),
    ("config.json", "model_args.depths", [10**7, 1, 1, 1], "model_args: Object contains unknown field depths"),
    ("config.json", "model_args.pretrained", True, "unknown field pretrained"),
    ("config.json", "model_args.head_hidden_size", 10**9, r"head_hidden_size: Expected int <= 65536 \(it is 10000"),
    ("config.json", "pretrained_cfg.input_size", [3, 100000, 100000], r"input_size\[1\]: Expected int <= 4096"),
    ("config.json", "pretrained_cfg.input_size", [3, 32, 64], "image_size is 32 in plan.toml and 32x64 in config.json"),
    ("config.json", "pretrained_cfg.std", [NAN] * 3, r"pretrained_cfg\.std\[0\]: nan is not finite"),
    ("config.json", "pretrained_cfg.std", [0, 1, 1], r"std\[0\]: Expected float > 0"),
    ("config.json", "pretrained_cfg.mean", [0.5], "1 mean, 3 deviations"),
    ("config.json", "pretrained_cfg.crop_mode", "weird", r"crop_mode: Invalid enum value 'weird'"),
    (
        "config.json",
        "pretrained_cfg.crop_mode",
        "a - at b",
        r"pretrained_cfg\.crop_mode: Invalid .* \(it is \"a - at b",
    ),
    ("config.json", "pretrained_cfg.interpolation", "random", "interpolation: Invalid enum value 'random'"),
    ("config.json", "pretrained_cfg.crop_pct", 0, "crop_pct: Expected float > 0"),
    ("config.json", "pretrained_cfg.crop_pct", 1e400, r"crop_pct: inf is not finite"),
    ("calibration.json", "temperature", NAN, r"calibration\.json cannot be read: temperature: nan is not finite"),
    ("calibration.json", "temperature", "2", r"temperature: Expected float, got str \(it is \"2\"\)"),
    ("calibration.json", "temperature", 0, r"temperature: Expected float > 0"),
    ("calibration.json", "images", -1, "images: Expected int >= 0"),
    ("calibration.json", "weights", ..., "missing required field weights"),
    ("calibration.json", "thresholds", [{"target": {"figure": "x"}}], r"thresholds\[0\]\.target\.figure: Invalid"),
    (
        "calibration.json",
        "thresholds",
        [
            {
                "target": {"figure": "ppv", "value": 0.9, "name": "1", "also": [{"figure": "npv", "value": 0.9}]},
                "threshold": 0.5,
                "reached": 0.9,
                "images": 5,
            }
        ],
        r"thresholds\[0\]: 1 value for 2 bounds",
    ),
    ("data.json", "classes", "012", "classes: Expected array, got str"),
    ("data.json", "classes", ["0", "1", "1"], "classes: '1' appears twice"),
    ("data.json", "data", ..., r"data\.json cannot be read: Object missing required field data"),
    ("data.json", "data", None, "data: Expected str, got null"),
    ("data.json", "skipped", {"x": -1}, r"skipped\[\.\.\.\]: Expected int >= 0 \(it is \{\"x\": -1\}\)"),
    ("metrics.json", "epoch", "1", "epoch: Expected int, got str"),
    ("environment.json", "command", 1, "command: Expected array, got int"),
]


@pytest.mark.parametrize(("file", "place", "value", "words"), CHANGES)
def test_changed_value_is_refused_with_file_field_and_value(
    file: str, place: str, value: Any, words: str, run_copy: RunFolder
) -> None:
    change_json(run_copy.path / file, place, value)
    with pytest.raises(RunError, match=words) as caught:
        read_all(run_copy)
    assert str(run_copy.path) in str(caught.value)


@pytest.mark.parametrize("depth", [600, 100_000])
def test_values_that_are_nested_too_deeply_are_named(depth: int, run_copy: RunFolder) -> None:
    path = run_copy.path / "config.json"
    path.write_text("[" * depth + "]" * depth)  # 600 levels are JSON to Python, which checks each value then
    with pytest.raises(RunError, match=r"config\.json cannot be read: its values are nested too deeply\. "):
        run_copy.read_config()


@pytest.mark.parametrize(
    ("place", "value"),
    [
        ("pretrained_cfg.mean", [0.4, 0.5, 0.5]),
        ("pretrained_cfg.std", [0.5, 0.5, 0.4]),
        ("pretrained_cfg.interpolation", "bilinear"),
        ("label_names", ["2", "1", "0"]),
        ("task", {"name": "ordinal"}),
    ],
)
def test_config_that_is_not_as_trained_is_refused(place: str, value: Any, run_copy: RunFolder) -> None:
    path = run_copy.path / "config.json"
    digest = json.loads(path.read_text())["digest"]
    change_json(path, place, value)
    change_json(path, "digest", digest)
    if place == "label_names":
        change_json(run_copy.path / "data.json", place := "classes", value)  # in both files that have them
    with pytest.raises(RunError, match=r"config\.json was changed since it was written\. Restore the original file"):
        run_copy.read_config()
    change_json(path, "pretrained_cfg.license", "mit")  # as in an older run, without the digest
    assert run_copy.read_config().pretrained_cfg.license == "mit"


@pytest.mark.parametrize(
    ("file", "former", "value"),
    [
        ("calibration.json", r'"temperature": [0-9.]+', '"temperature": 9.0'),
        ("calibration.json", r'"novelty_rate": 0.05', '"novelty_rate": 0.5'),
        ("metrics.json", r'"epoch": 1', '"epoch": 2'),
        ("audit.json", r'"images": 300', '"images": 30'),
    ],
)
def test_valid_value_changed_by_hand_is_refused(file: str, former: str, value: str, run_copy: RunFolder) -> None:
    path = run_copy.path / file
    text, number = re.subn(former, value, path.read_text(), count=1)
    assert number == 1
    path.write_text(text)

    def read() -> None:
        check_records(run_copy)
        run_copy.read(AUDIT, AuditRecord)

    with pytest.raises(RunError, match=rf"{re.escape(file)} was changed since it was written.*delete its `digest`"):
        read()
    change_json(path, "digest", "")
    with pytest.raises(RunError, match="was changed"):
        read()
    path.write_text(re.sub(r'"digest": ""', '"more": 1', path.read_text()))
    read()


def test_file_that_only_looks_different_is_read(run_copy: RunFolder) -> None:
    path = run_copy.path / "calibration.json"
    path.write_text(json.dumps(json.loads(path.read_text()), indent=8, sort_keys=True))
    check_records(run_copy)


DAMAGES: dict[str, Callable[[bytes], bytes]] = {
    "cut": lambda content: content[: len(content) // 2],
    "emptied": lambda _: b"",
    "noise": lambda _: bytes(np.random.default_rng(0).integers(0, 256, 300, np.uint8)),
    "a number": lambda _: b"7",
    "deep": lambda _: b"[" * 200_000,
    "a long number": lambda _: b'{"epoch": ' + b"9" * 5000 + b"}",
}


@pytest.mark.parametrize("file", ["config.json", "data.json", "calibration.json", "metrics.json", "environment.json"])
@pytest.mark.parametrize("kind", DAMAGES)
def test_damaged_file_is_refused_by_name(kind: str, file: str, run_copy: RunFolder) -> None:
    path = run_copy.path / file
    path.write_bytes(DAMAGES[kind](path.read_bytes()))
    with pytest.raises(RunError, match=file):
        check_records(run_copy)


def test_folder_in_place_of_a_file_is_refused(run_copy: RunFolder) -> None:
    (run_copy.path / "config.json").unlink()
    (run_copy.path / "config.json").mkdir()
    with pytest.raises(RunError, match=r"config\.json cannot be read: it is not a regular file"):
        check_records(run_copy)


def test_file_that_may_not_be_read_is_not_to_be_deleted(run_copy: RunFolder, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(path: Path) -> bytes:
        raise PermissionError(13, "Permission denied", path)

    monkeypatch.setattr(Path, "read_bytes", refuse)
    with pytest.raises(RunError, match="Permission denied") as caught:
        run_copy.read_config()
    assert caught.value.remedy == "Check its permissions"


def test_endless_link_and_too_large_file_are_refused(run_copy: RunFolder) -> None:
    os.truncate(run_copy.path / "data.json", MAX_BYTES + 1)  # sparse: it takes no space
    with pytest.raises(RunError, match=r"data\.json cannot be read: it has 268,435,457 bytes") as caught:
        check_records(run_copy)
    (run_copy.path / "data.json").unlink()
    (run_copy.path / "data.json").symlink_to("data.json")
    with pytest.raises(RunError, match=r"data\.json cannot be read: Too many levels of symbolic links") as again:
        check_records(run_copy)
    assert caught.value.remedy == again.value.remedy == RUN_REMEDY


def test_range_test_of_unequal_lengths_is_refused(run_copy: RunFolder) -> None:
    run_copy.write(RANGE_TEST, {"chosen": 0.1, "lr": [0.1, 0.2], "loss": [1.0], "smoothed": [1.0, None]})
    words = "2 rates, 1 loss, 2 smoothed losses"
    with pytest.raises(RunError, match=rf"lr\.json cannot be read: {words} .*Delete it: lr\.json is only used"):
        check_records(run_copy)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("", "has no rows"),
        ("path,label,group,split\n", "has no rows"),
        ("path,label,group,split\na.png,7,,train\n", r"line 2: label: data\.json has no class '7'"),
        ("path,label,group,split\na.png,0,,exam\n", "line 2: split: no such split 'exam'"),
        ("path,label,group,split\na.png\n", "line 2: label, group, split missing"),
        ("path,label,group,split\n,0,,train\n", "line 2: path: '' is not a path"),
    ],
)
def test_changed_split_row_is_refused_with_its_line(text: str, words: str, run_copy: RunFolder) -> None:
    (run_copy.path / "split.csv").write_text(text)
    with pytest.raises(RunError, match=rf"split\.csv cannot be read: .*{words}"):
        run_copy.read_split()


def test_log_line_is_refused_with_its_number_and_old_logs_may_have_nan(run_copy: RunFolder) -> None:
    path = run_copy.path / "metrics.jsonl"
    [line] = path.read_text().splitlines()
    path.write_text(f"{line}\n{{}}\n")
    with pytest.raises(RunError, match=r"metrics\.jsonl, line 2, cannot be read: Object missing required field epoch"):
        run_copy.read_log()
    path.write_text('{"epoch": 1, "train_loss": NaN}\n')
    assert run_copy.read_log() == [{"epoch": 1, "train_loss": None}]


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("image_size = 32", "image_size is 64 in plan.toml and 32 in config.json"),
        ("in_chans = 3", "in_chans is 1 in plan.toml and 3 in config.json"),
        ("seed = 0", "seed = 'text' must be a whole number"),
    ],
)
def test_plan_of_another_model_is_refused(setting: str, words: str, run_copy: RunFolder) -> None:
    text = run_copy.plan.read_text()
    assert setting in text
    other = {"image_size = 32": "64", "in_chans = 3": "1", "seed = 0": '"text"'}[setting]
    run_copy.plan.write_text(text.replace(setting, f"{setting.partition(' ')[0]} = {other}"))
    with pytest.raises(RunError, match=words):
        check_records(run_copy)
    with pytest.raises(RunError, match=words):
        load_model(run_copy.path)  # for predict and export too


def change_weights(run: RunFolder, edit: Callable[[dict[str, Any]], dict[str, Any]]) -> None:
    path = run.path / "model.safetensors"
    save_file(edit(dict(load_file(path))), path, metadata={"format": "pt"})


@pytest.mark.parametrize(
    ("edit", "words"),
    [
        (
            lambda a: {**a, "stem.0.bias": a["stem.0.bias"] * np.float32(np.nan)},
            r"stem\.0\.bias has values",
        ),
        (
            lambda a: {name: a[name] for name in a if name != "stem.0.bias"},
            r"1 tensor does not fit .*, such as stem\.0",
        ),
        (lambda a: {**a, "extra": np.ones(3)}, "1 tensor does not fit .*, such as extra"),
        (lambda a: {**a, "head.fc.weight": a["head.fc.weight"][:2].copy()}, "3 class names for 2 outputs"),
    ],
)
def test_weights_that_do_not_fit_are_refused(edit: Any, words: str, run_copy: RunFolder) -> None:
    change_weights(run_copy, edit)
    with pytest.raises(RunError, match=rf"model\.safetensors cannot be read: {words}"):
        load_model(run_copy.path)


@pytest.mark.parametrize(
    ("place", "value", "words"),
    [
        ("architecture", "resnet50", "architecture: 'resnet50' is not a ConvNeXt of timm"),
        ("architecture", "convnext_tiny_hnf", "head_hidden_size: convnext_tiny_hnf takes no hidden layer"),
    ],
)
def test_model_that_cannot_be_built_is_refused_without_a_plan_too(
    place: str, value: str, words: str, run_copy: RunFolder
) -> None:
    run_copy.plan.unlink()  # only training needs it
    read_all(run_copy)
    change_json(run_copy.path / "config.json", "model_args.head_hidden_size", 8)
    change_json(run_copy.path / "config.json", place, value)
    with pytest.raises(RunError, match=rf"config\.json cannot be read: {words}") as caught:
        read_all(run_copy)
    assert caught.value.remedy == MODEL_REMEDY


def test_run_without_weights_is_not_finished(run_copy: RunFolder) -> None:
    (run_copy.path / "model.safetensors").unlink()
    with pytest.raises(RunError, match=r"mine is not a finished run: it has no model\.safetensors"):
        load_model(run_copy.path)


def test_calibration_arrays_that_do_not_fit_are_refused(run_copy: RunFolder) -> None:
    path = run_copy.path / "calibration.safetensors"
    arrays, metadata = dict(load_file(path)), {"weights": run_copy.fingerprint_weights()}
    calibration = read_calibration(run_copy)
    model: Any = SimpleNamespace(classes=("0", "1", "2"), task=SINGLE)
    assert calibration is not None

    def keep(metadata: dict[str, str] | None, **more: Any) -> None:
        save_file({**arrays, **more}, path, metadata=metadata)

    def fit() -> None:
        add_targets(run_copy, calibration, model, [parse_target("sensitivity=0.9:1")])

    keep({"weights": "00000000"})
    with pytest.raises(RunError, match="was fitted for other weights"):
        fit()
    keep(metadata, val_logits=arrays["val_logits"][:, :2].copy())
    with pytest.raises(RunError, match=r"val_logits \(60, 2\)"):
        fit()
    keep(metadata, bank=np.full_like(arrays["bank"], np.nan))
    with pytest.raises(RunError, match=r"bank has shape .*, or values that are not finite"):
        read_novelty(run_copy)
    keep(metadata, precision=arrays["precision"][:2].copy())
    with pytest.raises(RunError, match=r"mean and precision have shapes .* and \(2, \d+\).*Delete it"):
        read_novelty(run_copy)
    keep(None)  # as in runs of older versions
    fit()
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(RunError, match=r"cannot be read .*Delete calibration\.json there; `convnext eval` fits both"):
        fit()


def test_run_is_loaded_from_its_own_files_only(run_copy: RunFolder, run: RunFolder) -> None:
    requests: list[str] = []

    class Elsewhere(http.server.BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            requests.append(self.path)
            self.send_error(404)

        def do_HEAD(self) -> None:
            self.do_GET()

        def log_message(self, *_: object) -> None:
            pass

    with http.server.ThreadingHTTPServer(("127.0.0.1", 0), Elsewhere) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        url = f"http://127.0.0.1:{server.server_port}/weights.pth"
        for key, value in (
            ("url", url), ("hf_hub_id", "timm/convnext_tiny"), ("file", "/no/weights.pth"), ("source", "url"),
            ("state_dict", {}), ("custom_load", True), ("pretrained", True),
        ):  # fmt: skip
            change_json(run_copy.path / "config.json", f"pretrained_cfg.{key}", value)
        model, _, preprocessing = load_model(run_copy.path)
        original, _, same = load_model(run.path)
        for key in ("pretrained_cfg", "pretrained_cfg_overlay", "checkpoint_path", "cache_dir"):
            shutil.copyfile(run.path / "config.json", run_copy.path / "config.json")
            change_json(run_copy.path / "config.json", f"model_args.{key}", {"url": url})
            with pytest.raises(RunError, match=f"unknown field {key}"):
                load_model(run_copy.path)
        server.shutdown()
    assert requests == []
    assert preprocessing == same
    assert all((a == b).all() for a, b in zip(model.parameters(), original.parameters(), strict=True))


def list_texts(evaluation: Evaluation) -> list[str]:
    return [note.text for note in evaluation.notes]


def plant_leak(run: RunFolder) -> str:
    """Write a leakage finding into the audit; return the text of its notice."""
    finding = {
        "kind": "duplicates across splits", "falsifies": True, "title": "planted", "count": 2, "examples": [],
        "effect": "the score is too good", "action": "none",
    }  # fmt: skip
    change_json(run.path / "audit.json", "findings", [finding])
    return "2 x planted. The score is too good"


def test_damaged_audit_gives_a_warning(run_copy: RunFolder) -> None:
    assert plant_leak(run_copy) in [note.text for note in evaluate(run_copy.path).notes]
    (run_copy.path / "audit.json").write_bytes((run_copy.path / "audit.json").read_bytes()[:-40])
    result = evaluate(run_copy.path)
    assert result.audit is None
    assert any("audit.json cannot be read" in text and "leakage" in text for text in list_texts(result)), result.notes
    (run_copy.path / "audit.json").unlink()
    assert any("the run has no audit.json" in text for text in list_texts(evaluate(run_copy.path)))


def test_unfinished_run_gives_a_notice(run_copy: RunFolder) -> None:
    run_copy.metrics.unlink()
    words = "the run has not finished: results are for the best weights of the first 1 of 1 epoch"
    assert any(words in text for text in list_texts(evaluate(run_copy.path)))
    assert any(words in note for note in list_run_notes(run_copy.path, PredictRequest()))


def test_uncalibrated_probabilities_give_a_notice(run_copy: RunFolder) -> None:
    assert list_run_notes(run_copy.path, PredictRequest()) == []
    change_json(run_copy.path / "calibration.json", "weights", "00000000")
    assert "was fitted for other weights than model.safetensors" in list_run_notes(run_copy.path, PredictRequest())[0]
    (run_copy.path / "calibration.json").unlink()
    assert "calibration.json is missing" in list_run_notes(run_copy.path, PredictRequest())[0]
    assert list_run_notes(run_copy.path, PredictRequest(raw=True)) == []


def test_failed_evaluation_is_not_counted(run_copy: RunFolder) -> None:
    change_weights(run_copy, lambda a: {**a, "head.fc.bias": a["head.fc.bias"] * np.float32(np.inf)})
    with pytest.raises(RunError, match="values that are not finite"):
        evaluate(run_copy.path)
    assert not run_copy.tests.exists()


def test_comparison_with_a_damaged_run_counts_no_evaluation(run_copy: RunFolder, tmp_path: Path) -> None:
    other = RunFolder(shutil.copytree(run_copy.path, tmp_path / "other"))
    change_json(other.path / "calibration.json", "temperature", NAN)
    done = call("eval", str(run_copy.path), str(other.path))
    assert (done.code, done.crash) == (3, "")
    assert "temperature: nan is not finite" in done.err
    assert not run_copy.tests.exists()


def test_outputs_that_are_not_finite_are_refused(run_copy: RunFolder) -> None:
    change_weights(run_copy, lambda a: {name: value * np.float32(1e30) for name, value in a.items()})
    index = run_copy.read_split()
    with pytest.raises(RunError, match=r"outputs are not finite: its training diverged.* a lower --lr"):
        predict(index.root / index.paths[0], run_copy.path)
