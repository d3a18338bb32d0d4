import math
from dataclasses import replace
from pathlib import Path

import pytest

from convnext_cli.machine import GIB, Machine
from convnext_cli.models.catalog import find_model
from convnext_cli.recipes.costs import ROUGH, Workload, estimate_epoch
from convnext_cli.recipes.fingerprint import DataCounts
from convnext_cli.recipes.plan import PlanInputs, make_plan
from convnext_cli.recipes.speeds import FAR, estimate_time_here, remember_speed

MACHINE = Machine(name="NVIDIA H100", is_gpu=True, memory=80 * GIB, cores=16)


@pytest.fixture(autouse=True)
def empty_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path))
    return tmp_path


def make_workload(name: str, machine: Machine = MACHINE) -> Workload:
    model, tag = find_model(name)
    counts = DataCounts(images=20_000, train=14_000, val=3_000)
    plan = make_plan(PlanInputs(model=model, tag=tag, counts=counts, machine=machine))
    return Workload(model=model, settings=plan.settings, counts=counts, machine=machine)


def test_measured_epoch_makes_later_estimates_of_its_model_and_machine() -> None:
    tiny = make_workload("convnext_tiny")
    rough = estimate_time_here(tiny)
    assert rough.basis == ROUGH
    remember_speed(tiny, 2.5 * estimate_epoch(tiny))
    measured = estimate_time_here(replace(tiny, check=False))
    assert measured.epochs == pytest.approx(2.5 * rough.epochs)
    assert (measured.basis, measured.check) == ("by an earlier run of this model here", 0)
    other = make_workload("convnext_tiny", replace(MACHINE, name="NVIDIA L4"))
    assert estimate_time_here(other).basis == ROUGH


def test_other_models_take_the_median_of_the_machine_the_less_the_more_the_work_differs() -> None:
    base = make_workload("convnext_base")
    rough = estimate_time_here(base)
    for name, factor in (("convnext_tiny", 2.0), ("convnext_small", 3.0), ("convnextv2_nano", 9.0)):
        workload = make_workload(name)
        remember_speed(workload, factor * estimate_epoch(workload))
    time = estimate_time_here(base)
    assert time.basis == "by earlier runs of other models here"
    ratio = base.model.gmacs / make_workload("convnext_small").model.gmacs
    assert time.epochs == pytest.approx(3 ** (1 - math.log(ratio, FAR)) * rough.epochs)


@pytest.mark.parametrize("factor", [0.05, 20.0])
@pytest.mark.parametrize("measured", ["convnextv2_atto", "convnext_tiny", "convnext_large"])
def test_no_model_is_estimated_slower_than_one_with_more_work(measured: str, factor: float) -> None:
    machine = Machine(name="CPU", is_gpu=False, memory=8 * GIB, cores=2)
    small = make_workload(measured, machine)
    small = replace(small, settings=replace(small.settings, image_size=96))
    remember_speed(small, factor * estimate_epoch(small))
    names = ("atto", "femto", "pico", "nano", "tiny", "small", "base", "large")
    workloads = [make_workload(f"convnext_{name}", machine) for name in names]
    assert len({workload.settings.epochs for workload in workloads}) == 1
    times = [estimate_time_here(workload).epochs for workload in workloads]
    assert times == sorted(times)


def test_much_smaller_trainings_say_nothing_of_a_large_one(empty_cache: Path) -> None:
    base, atto = make_workload("convnext_base"), make_workload("convnext_atto")
    small = replace(atto, settings=replace(atto.settings, image_size="32x64"))
    rough = estimate_time_here(base)
    remember_speed(small, 9 * estimate_epoch(small))
    assert estimate_time_here(base) == rough
    remember_speed(atto, 9 * estimate_epoch(atto))
    assert estimate_time_here(base).basis == ROUGH
    assert estimate_time_here(base).epochs < 3 * rough.epochs
    assert estimate_time_here(make_workload("convnext_nano")).basis == "by earlier runs of other models here"
    [kept] = empty_cache.rglob("*.json")
    kept.write_text('{"test_convnext 32 auto": 20.0, "unreadable": 3}')
    assert estimate_time_here(base).basis == ROUGH


def test_impossible_speeds_and_damaged_files_are_ignored(empty_cache: Path) -> None:
    tiny = make_workload("convnext_tiny")
    remember_speed(tiny, 1e4 * estimate_epoch(tiny))
    assert not list(empty_cache.rglob("*.json"))
    remember_speed(tiny, estimate_epoch(tiny))
    [kept] = empty_cache.rglob("*.json")
    for damaged in ("", "[]", '{"x": "fast"}', '{"x": -1, "y": NaN}'):
        kept.write_text(damaged)
        assert estimate_time_here(tiny).basis == ROUGH
