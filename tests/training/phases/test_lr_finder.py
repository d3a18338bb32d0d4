"""The learning-rate range test."""

import tomllib
from collections.abc import Iterator
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnext_cli import finetune
from convnext_cli.recipes.plan import read_plan
from convnext_cli.recipes.settings import Choice
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.crossvalidation import cross_validate_steps
from convnext_cli.training.events import Started
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.phases import lr_finder as sweep
from convnext_cli.training.phases.lr_finder import choose_lr, smooth_losses
from convnext_cli.training.request import TrainRequest
from convnext_cli.training.step import take_step
from tests.conftest import SMALL
from tests.training.conftest import make_request, train
from tools.kill_test import copy_images

SETTINGS: dict[str, Any] = SMALL | {"lr": "auto", "layer_decay": 0.8, "val_fraction": 0.2, "test_fraction": 0.0}
auto_lr_request = partial(make_request, SETTINGS)


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """Four steps a decade."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "MAX_STEPS", 24)
        yield


@pytest.fixture(scope="module")
def data(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_images(digits, tmp_path_factory.mktemp("some"), 30)


@pytest.fixture(scope="module")
def found(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("auto") / "run"
    finetune(data, output=folder, **SETTINGS)
    return RunFolder(folder)


def curve(best: float, noise: float, seed: int) -> tuple[list[float], list[float]]:
    """A loss that falls from 1.1 to its lowest at `best`, and rises beyond; with noise at every step."""
    lrs = np.geomspace(sweep.LOW, sweep.HIGH, 60)
    place = np.log10(lrs / best)
    losses = 1.1 - 0.5 * np.exp(-0.5 * (place / 0.7) ** 2) + np.exp(3 * (place - 1))
    losses += np.random.default_rng(seed).normal(0, noise, len(lrs))
    last = next((i for i, loss in enumerate(losses) if loss > 3), len(lrs))
    return lrs[:last].tolist(), losses[:last].tolist()


@pytest.mark.parametrize("best", [1e-4, 1e-3, 1e-2])
def test_the_rule_finds_the_rate_in_spite_of_noise(best: float) -> None:
    for seed in range(20):
        chosen = choose_lr(*curve(best, 0.1, seed))
        assert chosen is not None
        assert best / 3.5 < chosen < best * 3.5


def test_what_never_falls_says_nothing() -> None:
    lrs = np.geomspace(1e-6, 1, 30).tolist()
    assert choose_lr(lrs, np.linspace(1, 3, 30).tolist()) is None


def test_smoothing_looks_both_ways_and_over_what_is_no_number() -> None:
    assert smooth_losses([1.0] * 9 + [float("nan")]) == pytest.approx([1.0] * 10)
    line = np.linspace(2, 1, 31)
    assert smooth_losses(line.tolist())[12:-12] == pytest.approx(line[12:-12], abs=1e-3)  # nothing lags


def test_the_run_has_the_rate_and_its_plan_repeats_it_without_a_test(data: Path, found: RunFolder) -> None:
    told = found.read_range_test()
    assert told is not None
    settings = tomllib.loads(found.plan.read_text())["settings"]
    assert settings["lr"] == told["chosen"]
    assert 'source = "lr sweep"' in found.plan.read_text()
    assert len(told["lr"]) == len(told["loss"]) <= sweep.MAX_STEPS
    assert found.range_test.stat().st_size > 5000
    log = found.read_log()
    assert log[-1]["lr"] <= told["chosen"]  # the first is of the head alone
    values = read_plan(found.plan)[2]
    settings = {name: Choice(value=value, source="plan") for name, value in values.items()}
    train(TrainRequest(data=data, output=Path("again"), weights="builtin", choices=settings))
    assert Path("again/model.safetensors").read_bytes() == (found.path / "model.safetensors").read_bytes()
    assert not Path("again/lr.json").exists()


def test_the_seed_decides(data: Path, found: RunFolder) -> None:
    for event in finetune_steps(auto_lr_request(data, "again")):
        if isinstance(event, Started):
            break
    assert RunFolder(Path("again")).read_range_test() == found.read_range_test()
    for event in finetune_steps(auto_lr_request(data, "other", seed=1)):
        if isinstance(event, Started):
            break
    assert RunFolder(Path("other")).read_range_test() != found.read_range_test()


def test_the_groups_keep_their_share_of_the_rate(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[set[float]] = []

    def watch(context: Any, state: Any, share: Any) -> Any:
        rate = sweep.LOW * (sweep.HIGH / sweep.LOW) ** (state.step / (sweep.MAX_STEPS - 1))
        seen.append({round(group["lr"] / (rate * group["lr_scale"]), 9) for group in context.optimizer.param_groups})
        return take_step(context, state, share)

    monkeypatch.setattr("convnext_cli.training.phases.lr_finder.take_step", watch)
    for event in finetune_steps(auto_lr_request(data, "run")):
        if isinstance(event, Started):
            break
    assert len(seen) > 10
    assert set().union(*seen) == {1.0}


def test_the_folds_share_one_test(data: Path) -> None:
    events = cross_validate_steps(auto_lr_request(data, "cv", folds=2))
    plans = [event.plan for event in events if isinstance(event, Started)]
    assert plans[0].choices["lr"] == plans[1].choices["lr"]
    assert plans[0].choices["lr"].source == "lr sweep"
    assert Path("cv/fold-1/lr.json").exists()
    assert not Path("cv/fold-2/lr.json").exists()
    assert read_plan(Path("cv/folds.toml"))[2]["lr"] == plans[0].settings.lr
