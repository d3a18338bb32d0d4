import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import timm
import torch
from torch import nn

from convnext_cli.models.fast import FastBlock
from convnext_cli.progress import Progress
from convnext_cli.runs import RunFolder
from convnext_cli.training import probe
from convnext_cli.training.checkpoint import read_checkpoint
from convnext_cli.training.devices import make_accelerator
from convnext_cli.training.finetuning import Started, finetune_steps
from convnext_cli.training.loop import StepDone
from convnext_cli.training.preparation import Request
from convnext_cli.training.probe import FAST, MIN_STEPS, TIMM, choose_formulation
from tests.training.test_finetuning import request_for


@pytest.fixture
def steps_taken(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The formulations in the order in which they were timed, by a clock for which timm's is twice as fast."""
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    taken: list[str] = []

    def time_step(model: nn.Module, inputs: torch.Tensor) -> float:
        assert inputs.shape == (4, 3, 32, 32)
        is_fast = any(isinstance(module, FastBlock) for module in model.modules())
        taken.append(FAST if is_fast else TIMM)
        return 2.0 if is_fast else 1.0

    monkeypatch.setattr(probe, "_time_step", time_step)
    return taken


@pytest.fixture
def network() -> nn.Module:
    network: nn.Module = timm.create_model("test_convnext", num_classes=2)
    return network


def choose(network: nn.Module, *, amp: str = "no", **changes: Any) -> probe.Found:
    options: dict[str, Any] = {"name": "test", "steps": MIN_STEPS, "measure": True}
    return choose_formulation(network, (4, 3, 32, 32), accelerator=make_accelerator(amp), **options | changes)


def test_the_faster_one_is_taken_and_remembered(network: nn.Module, steps_taken: list[str]) -> None:
    found = choose(network)
    assert (found.formulation, found.gain) == (TIMM, 1.0)
    assert steps_taken == [TIMM, FAST] * (1 + probe.ROUNDS)
    assert not any(isinstance(module, FastBlock) for module in network.modules()), "the model itself is as it was"
    assert choose(network) == found
    assert len(steps_taken) == 2 * (1 + probe.ROUNDS), "the second run measures nothing"
    choose(network, name="another")
    assert len(steps_taken) == 4 * (1 + probe.ROUNDS)


@pytest.mark.usefixtures("steps_taken")
def test_a_damaged_answer_is_measured_again(network: nn.Module, tmp_path: Path) -> None:
    found = choose(network)
    [kept] = (tmp_path / "cache/probes").iterdir()
    kept.write_text(kept.read_text()[:5])
    assert choose(network) == found
    assert json.loads(kept.read_text()) == {TIMM: 1.0, FAST: 2.0}


def test_nothing_is_measured_where_it_does_not_pay(network: nn.Module, steps_taken: list[str]) -> None:
    for changes in ({"steps": MIN_STEPS - 1}, {"measure": False}):
        assert choose(network, **changes) == probe.Found(formulation=FAST)
    assert choose(network, amp="bf16") == probe.Found(formulation=TIMM)
    assert not steps_taken


def test_measuring_draws_nothing(network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    before, weights = torch.get_rng_state(), {name: value.clone() for name, value in network.state_dict().items()}
    found = choose(network)
    assert found.gain is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


@pytest.mark.parametrize("formulation", [TIMM, FAST])
def test_a_run_goes_on_with_what_it_began_with(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, formulation: str
) -> None:
    def choose(*_args: Any, **_options: Any) -> probe.Found:
        return probe.Found(formulation=formulation)

    monkeypatch.setattr(probe, "choose_formulation", choose)
    request = replace(request_for(digits, tmp_path / "whole", epochs=1, save_every=5), audit=False)
    list(finetune_steps(request))
    events = finetune_steps(replace(request, output=tmp_path / "cut"))
    for event in events:
        if isinstance(event, StepDone) and event.step == 6:
            break
    events.close()  # type: ignore[attr-defined]
    monkeypatch.setattr(probe, "choose_formulation", None)  # not asked again
    went_on = [event for event in finetune_steps(Request(resume=tmp_path / "cut")) if not isinstance(event, Progress)]
    assert isinstance(went_on[0], Started)
    assert went_on[0].formulation.startswith({TIMM: "timm's", FAST: "blocks in a faster"}[formulation])
    _, words = read_checkpoint(RunFolder(tmp_path / "cut").list_checkpoints()[0])
    assert json.loads(words)["formulation"] == formulation
    ends = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert ends[0] == ends[1]
