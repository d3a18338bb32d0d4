import json
import re
from pathlib import Path

import pytest

from tests.conftest import Convnext


def test_doctor_shows_versions_and_a_passed_self_test(
    convnext: Convnext, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setitem(__import__("sys").modules, "onnxscript", None)  # the export has its own tests
    outcome = convnext("doctor", "--offline", "--json")
    assert outcome.code == 0, outcome.err
    result = json.loads(outcome.out)
    assert result["packages"]["torch"]
    assert result["hub"] == "not contacted: offline"
    assert result["self_test"]["kernels for training"].startswith(("ok", "skipped: a C compiler"))
    assert result["self_test"]["fine-tune"].startswith("ok")
    assert result["self_test"]["predict, torch"].startswith("ok")
    assert "pip install" in result["self_test"]["export and predict, ONNX Runtime"]
    assert result["caches"]["weights (Hub)"]["bytes"] >= 0
    assert result["works"]
    assert not list(tmp_path.iterdir()), "nothing is left behind"


def test_doctor_reports_a_broken_installation_and_fails(convnext: Convnext, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_args: object, **_options: object) -> None:
        raise ImportError("libcudart.so is missing")

    monkeypatch.setattr("convnext_cli.api.finetune", fail)
    monkeypatch.delenv("HF_HUB_OFFLINE")
    monkeypatch.setenv("HF_ENDPOINT", "http://127.0.0.1:9")
    outcome = convnext("doctor")
    assert outcome.code == 1
    assert "fine-tune: ImportError: libcudart.so is missing" in outcome.out
    assert "Hub       " in outcome.out
    hub = next(line for line in outcome.out.splitlines() if line.startswith("Hub  "))
    assert re.search(r"http\S+ gives no weights \(.*\); --weights PATH works without it$", hub)
    assert "It works" not in outcome.out
