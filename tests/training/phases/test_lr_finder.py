"""The learning-rate range test."""

import tomllib
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from convnext_cli import api, finetune
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
from tests.training.conftest import make_request, stop_after, train
from tools.kill_test import copy_images

SETTINGS: dict[str, Any] = SMALL | {"lr": "auto", "layer_decay": 0.8, "val_fraction": 0.2, "test_fraction": 0.0}
auto_lr_request = partial(make_request, SETTINGS)


@pytest.fixture(scope="module", autouse=True)
def _short() -> Iterator[None]:
    """Four steps per decade."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sweep, "MAX_STEPS", 24)
        yield


@pytest.fixture(scope="module")
def data(digits: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return copy_images(digits, tmp_path_factory.mktemp("some"), 30)


@pytest.fixture(scope="module")
def result(data: Path, tmp_path_factory: pytest.TempPathFactory) -> RunFolder:
    folder = tmp_path_factory.mktemp("auto") / "run"
    finetune(data, output=folder, **SETTINGS)
    return RunFolder(folder)


def curve(best: float, noise: float, seed: int) -> tuple[list[float], list[float]]:
    """Return learning rates, and losses that fall from 1.1 to a minimum at `best` and rise beyond, with noise."""
    lrs = np.geomspace(sweep.LOW, sweep.HIGH, 60)
    place = np.log10(lrs / best)
    losses = 1.1 - 0.5 * np.exp(-0.5 * (place / 0.7) ** 2) + np.exp(3 * (place - 1))
    losses += np.random.default_rng(seed).normal(0, noise, len(lrs))
    last = next((i for i, loss in enumerate(losses) if loss > 3), len(lrs))
    return lrs[:last].tolist(), losses[:last].tolist()


@pytest.mark.parametrize("best", [1e-4, 1e-3, 1e-2])
def test_range_test_rule_finds_the_lr_despite_noise(best: float) -> None:
    for seed in range(20):
        chosen = choose_lr(*curve(best, 0.1, seed))
        assert chosen is not None
        assert best / 3.5 < chosen < best * 3.5


def test_range_test_is_inconclusive_if_the_loss_never_decreases() -> None:
    lrs = np.geomspace(1e-6, 1, 30).tolist()
    assert choose_lr(lrs, np.linspace(1, 3, 30).tolist()) is None


def test_smoothing_is_symmetric_and_ignores_values_that_are_not_finite() -> None:
    assert smooth_losses([1.0] * 9 + [float("nan")]) == pytest.approx([1.0] * 10)
    line = np.linspace(2, 1, 31)
    assert smooth_losses(line.tolist())[12:-12] == pytest.approx(line[12:-12], abs=1e-3)  # no lag


def test_run_uses_the_measured_lr_and_its_plan_repeats_it(data: Path, result: RunFolder) -> None:
    recorded = result.read_range_test()
    assert recorded is not None
    settings = tomllib.loads(result.plan.read_text())["settings"]
    assert settings["lr"] == recorded["chosen"]
    assert 'source = "range test"' in result.plan.read_text()
    assert len(recorded["lr"]) == len(recorded["loss"]) <= sweep.MAX_STEPS
    assert (result.path / "lr.png").stat().st_size > 5000
    log = result.read_log()
    assert log[-1]["lr"] <= recorded["chosen"]  # the first epoch is the head's
    values = read_plan(result.plan).settings
    settings = {name: Choice(value=value, source="plan") for name, value in values.items()}
    train(TrainRequest(data=data, output=Path("again"), weights="builtin", choices=settings))
    assert Path("again/model.safetensors").read_bytes() == (result.path / "model.safetensors").read_bytes()
    assert not Path("again/lr.json").exists()


def test_resumed_run_draws_the_plot_that_a_kill_prevented(data: Path) -> None:
    stop_after(auto_lr_request(data, "run"), 1)
    run = RunFolder(Path("run"))
    assert run.read_range_test() is not None
    (run.path / "lr.png").unlink(missing_ok=True)
    for event in api.train(TrainRequest(resume=run.path)):
        if isinstance(event, Started):
            break
    assert (run.path / "lr.png").is_file()


def test_plan_of_an_earlier_version_keeps_the_name_of_its_source(result: RunFolder, tmp_path: Path) -> None:
    earlier = tmp_path / "plan.toml"
    earlier.write_text(result.plan.read_text().replace('source = "range test"', 'source = "lr sweep"'))
    choices = read_plan(result.plan).choices
    assert choices["lr"].source == "range test"
    assert read_plan(earlier).choices == choices | {"lr": replace(choices["lr"], source="lr sweep")}


def test_range_test_depends_on_the_seed(data: Path, result: RunFolder) -> None:
    for event in finetune_steps(auto_lr_request(data, "again")):
        if isinstance(event, Started):
            break
    assert RunFolder(Path("again")).read_range_test() == result.read_range_test()
    for event in finetune_steps(auto_lr_request(data, "other", seed=1)):
        if isinstance(event, Started):
            break
    assert RunFolder(Path("other")).read_range_test() != result.read_range_test()


def test_range_test_keeps_the_layer_wise_lr_scales(data: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    rates: list[set[float]] = []

    def watch(context: Any, state: Any, fraction: Any) -> Any:
        rate = sweep.LOW * (sweep.HIGH / sweep.LOW) ** (state.step / (sweep.MAX_STEPS - 1))
        rates.append({round(group["lr"] / (rate * group["lr_scale"]), 9) for group in context.optimizer.param_groups})
        return take_step(context, state, fraction)

    monkeypatch.setattr("convnext_cli.training.phases.lr_finder.take_step", watch)
    for event in finetune_steps(auto_lr_request(data, "run")):
        if isinstance(event, Started):
            break
    assert len(rates) > 10
    assert set().union(*rates) == {1.0}


def test_folds_share_one_range_test(data: Path) -> None:
    events = cross_validate_steps(auto_lr_request(data, "cv", folds=2))
    plans = [event.plan for event in events if isinstance(event, Started)]
    assert plans[0].choices["lr"] == plans[1].choices["lr"]
    assert plans[0].choices["lr"].source == "range test"
    assert Path("cv/fold-1/lr.json").exists()
    assert not Path("cv/fold-2/lr.json").exists()
    assert read_plan(Path("cv/folds.toml")).settings["lr"] == plans[0].settings.lr
