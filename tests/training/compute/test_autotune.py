import gc
import json
import weakref
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from copy import deepcopy
from dataclasses import astuple, replace
from pathlib import Path
from types import MethodType, SimpleNamespace
from typing import Any

import pytest
import timm
import torch
from torch import nn

from convnext_cli.cache_folder import find_cache_folder
from convnext_cli.errors import ImageError
from convnext_cli.kernels.blocks import FusedBlock, NativeBlock, RecomputingBlock
from convnext_cli.kernels.depthwise import NativeDepthwise
from convnext_cli.kernels.library import load_kernels
from convnext_cli.progress import Progress
from convnext_cli.recipes.costs import AUTOTUNED_PASSES
from convnext_cli.recipes.plan import Plan
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training import lifecycle
from convnext_cli.training.checkpoint import read_checkpoint
from convnext_cli.training.compute import autotune, compute_config
from convnext_cli.training.compute.autotune import (
    COMPILE_FROM,
    COMPILING,
    MIN_NOTICE_PASSES,
    TunedPasses,
    choose_compute_config,
)
from convnext_cli.training.compute.compute_config import (
    FAST,
    NATIVE,
    TIMM,
    ComputeConfig,
    configure_model,
    draw_inputs,
)
from convnext_cli.training.compute.devices import make_accelerator
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import Started, StepDone
from convnext_cli.training.finetuning import finetune_steps
from convnext_cli.training.request import TrainRequest
from tests.training.conftest import small_request, tiny_request, train

Passes = list[tuple[str, int]]
UNTRAINED: dict[str, Any] = {"model": "test_convnext2", "weights": "none"}


@pytest.fixture
def passes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Passes]:
    """Blocks and threads in the order in which they were timed. Timm's blocks are twice as fast, two threads best."""
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(autotune, "THREADS", 4)
    monkeypatch.setattr(autotune, "_has_bf16", lambda: False)
    timed: Passes = []

    def time_pass(forward: Any, inputs: torch.Tensor, *, bf16: bool) -> float:
        if isinstance(
            forward, nn.Sequential
        ):  # a block, which is slower in wide ones if it computes its hidden values again
            return inputs.shape[1] / 40 if isinstance(forward[0], RecomputingBlock) else 1.0
        assert inputs.shape == (4, 3, 32, 32)
        if bf16:
            return 0.5
        kinds = {type(module) for module in forward.modules()}
        blocks = NATIVE if NativeDepthwise in kinds else FAST if FusedBlock in kinds else TIMM
        timed.append((blocks, torch.get_num_threads()))
        return SECONDS[timed[-1][1]] * SLOWER["compiled" if hasattr(forward, "is_compiled") else blocks]

    monkeypatch.setattr(autotune, "_time_pass", time_pass)
    before = torch.get_num_threads()
    yield timed
    torch.set_num_threads(before)


SECONDS = {4: 1.0, 2: 0.5, 1: 0.75}  # of a pass, by threads
SLOWER = {TIMM: 1, FAST: 2, NATIVE: 3}
ROUNDS = autotune.ROUNDS + 1


@pytest.fixture
def network() -> nn.Module:
    network: nn.Module = timm.create_model("test_convnext2", num_classes=2)
    return network


def choose(network: nn.Module, *, amp: str = "no", **changes: Any) -> autotune.AutotuneResult:
    names = {"model": changes.pop("model", "test"), "passes": changes.pop("passes", AUTOTUNED_PASSES)}
    tuned_passes = TunedPasses(shape=(4, 3, 32, 32), **names)
    options: dict[str, Any] = {"measure": True, **changes}
    return choose_compute_config(network, tuned_passes, accelerator=make_accelerator(amp), **options)


def test_autotune_chooses_the_fastest_and_remembers_it(network: nn.Module, passes: Passes) -> None:
    result = choose(network)
    assert result == autotune.AutotuneResult(compute_config=ComputeConfig(blocks=TIMM, threads=2), gain=2.0)
    blocks, half, quarter = [(TIMM, 4), (FAST, 4), (NATIVE, 4)], [(TIMM, 4), (TIMM, 2)], [(TIMM, 2), (TIMM, 1)]
    assert passes == blocks * ROUNDS + half * ROUNDS + quarter * ROUNDS
    assert not any(isinstance(module, FusedBlock) for module in network.modules()), "the model itself is unchanged"
    passes.clear()
    assert choose(network, passes=MIN_NOTICE_PASSES) == result, "a shorter run uses the measurement"
    assert not passes
    choose(network, model="another")
    assert passes


@pytest.mark.usefixtures("passes")
def test_damaged_measurement_is_measured_again(network: nn.Module, tmp_path: Path) -> None:
    result = choose(network)
    [kept] = (tmp_path / "cache/probes").iterdir()
    original = kept.read_text()
    for damaged in (original[:5], "[]", original.replace("timm 4", "timm"), original.replace("timm 2", "timm 64")):
        kept.write_text(damaged)
        assert choose(network) == result
        assert json.loads(kept.read_text()) == json.loads(original)


def test_short_runs_are_not_measured(network: nn.Module, passes: Passes) -> None:
    for changes in ({"passes": AUTOTUNED_PASSES - 1}, {"measure": False}):
        assert choose(network, **changes) == autotune.AutotuneResult(compute_config=ComputeConfig(blocks=NATIVE))
    assert choose(network, amp="bf16") == autotune.AutotuneResult(compute_config=ComputeConfig())
    assert not passes


def test_shortest_runs_use_the_kernels_and_no_measurement(network: nn.Module, passes: Passes) -> None:
    """So that a run does not depend on what earlier ones have left in the cache."""
    few = MIN_NOTICE_PASSES - 1
    expected = autotune.AutotuneResult(compute_config=ComputeConfig(blocks=NATIVE))
    assert choose(network, passes=few) == expected
    choose(network)
    passes.clear()
    assert choose(network, passes=few) == expected
    assert not passes


def test_missing_c_compiler_gives_a_notice_and_other_blocks_are_measured(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, passes: Passes
) -> None:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "empty"))
    monkeypatch.setenv("CC", "/nowhere/cc")
    load_kernels.cache_clear()
    for choice in (choose(network), choose(network, measure=False, model="another")):
        [notice] = choice.notices
        assert notice.text.startswith("a C compiler (gcc) would make training faster here: ")
        assert "/nowhere/cc" in notice.text
    assert choice.compute_config == ComputeConfig(blocks=FAST)
    assert {blocks for blocks, _ in passes} == {TIMM, FAST}
    network, compute_config = deepcopy(network), ComputeConfig(blocks=NATIVE)
    _, notices = configure_model(network, compute_config, (4, 3, 32, 32), make_accelerator("no"))
    assert notices == [notice], "a run that began with kernels resumes without them"
    assert any(isinstance(module, FusedBlock) for module in network.modules())
    load_kernels.cache_clear()


@pytest.fixture
def compiles(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The models that were compiled, by a compiler that halves the time of a pass."""
    monkeypatch.setitem(SLOWER, "compiled", 0.5)
    compiled_models: list[str] = []

    def compile(network: nn.Module, *, dynamic: bool, mode: str | None = None) -> nn.Module:
        assert not dynamic
        compiled_models.append(mode or "compiled")
        network.is_compiled = True  # type: ignore[assignment]
        return network

    monkeypatch.setattr(torch, "compile", compile)
    return compiled_models


def test_long_run_is_compiled_if_it_saves_time(network: nn.Module, passes: Passes, compiles: list[str]) -> None:
    seconds = SECONDS[2]  # of a pass
    short, middle, long = (round(duration / seconds) for duration in (COMPILE_FROM - 1, 2.5 * COMPILING, COMPILE_FROM))
    assert not choose(network, passes=short).compute_config.compiled
    assert not compiles
    assert not choose(network, passes=long, compile=False).compute_config.compiled
    assert not compiles
    result = choose(network, passes=long)
    assert compiles == ["compiled"]
    assert result == autotune.AutotuneResult(
        compute_config=ComputeConfig(blocks=TIMM, threads=2, compiled=True), gain=4.0
    )
    passes.clear()
    assert choose(network, passes=middle) == result, "the measurement is kept, so that shorter runs are compiled too"
    assert not choose(network, passes=middle // 2).compute_config.compiled
    assert not passes
    assert compiles == ["compiled"]


@pytest.mark.usefixtures("passes")
def test_failing_compiler_is_not_tried_again(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    tried: list[nn.Module] = []

    def compile(network: nn.Module, **_options: Any) -> Any:
        def forward(_inputs: torch.Tensor) -> None:
            raise RuntimeError("no C++ compiler")

        tried.append(network)
        forward.modules = network.modules  # type: ignore[attr-defined]
        return forward

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(autotune, "_time_pass", lambda forward, inputs, **_options: len(forward(inputs)) * 0.5)
    passes = round(COMPILE_FROM)
    result = choose(network, passes=passes)
    assert "(no C++ compiler)" in result.notices[0].text
    assert not result.compute_config.compiled
    assert choose(network, passes=passes) == replace(result, notices=())
    assert len(tried) == 1


@pytest.mark.usefixtures("passes")
def test_compile_option_is_obeyed(network: nn.Module) -> None:
    assert choose(network, compile=True).compute_config == ComputeConfig(blocks=TIMM, threads=2, compiled=True)
    unmeasured = choose(network, compile=True, model="another", measure=False)
    assert unmeasured.compute_config == ComputeConfig(blocks=NATIVE, compiled=True)
    [notice] = choose(network, amp="bf16", compile=True).notices
    assert notice.text.startswith("--compile needs a whole model on a CUDA GPU, or in float32 on a CPU")


@pytest.mark.usefixtures("passes")
def test_hidden_values_are_computed_again_where_that_is_faster(monkeypatch: pytest.MonkeyPatch) -> None:
    network: nn.Module = timm.create_model("test_convnext", num_classes=2, act_layer="gelu")
    monkeypatch.setitem(SLOWER, NATIVE, 0.5)
    for _ in range(2):  # the second is the measurement that was kept
        config = choose(network).compute_config
        assert config == ComputeConfig(blocks=NATIVE, threads=2, recomputed=(24, 32)), "of 24, 32, 48 and 64 channels"
    configure_model(network, config, (4, 3, 32, 32), make_accelerator("no"))
    stages = network.get_submodule("stages").children()
    kinds = [type(block) for stage in stages for block in stage.get_submodule("blocks").children()]
    assert kinds == [RecomputingBlock] * 3 + [NativeBlock] * 6


def test_bf16_is_suggested_but_not_chosen(network: nn.Module, passes: Passes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(autotune, "_has_bf16", lambda: True)
    monkeypatch.setitem(SECONDS, 2, 0.75)
    result = choose(network)
    assert passes
    assert result.compute_config == ComputeConfig(blocks=TIMM, threads=2)
    assert [notice.text for notice in result.notices] == ["--amp bf16 would be 1.50 times as fast here"]


def test_autotuning_leaves_random_state_and_weights_unchanged(
    network: nn.Module, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    before, weights = torch.get_rng_state(), {name: value.clone() for name, value in network.state_dict().items()}
    result = choose(network)
    assert result.gain is not None
    assert torch.equal(torch.get_rng_state(), before)
    assert all(torch.equal(value, weights[name]) for name, value in network.state_dict().items())


KINDS = (
    ComputeConfig(blocks=TIMM),
    ComputeConfig(blocks=FAST, threads=1),
    ComputeConfig(blocks=NATIVE),
    ComputeConfig(blocks=NATIVE, recomputed=(24, 64)),
)


@pytest.mark.parametrize("compute_config", KINDS, ids=str)
def test_resumed_run_keeps_its_compute_config(
    digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, compute_config: ComputeConfig
) -> None:
    def choose(*_args: Any, **_options: Any) -> autotune.AutotuneResult:
        return autotune.AutotuneResult(compute_config=compute_config)

    monkeypatch.setattr(lifecycle, "choose_compute_config", choose)
    request = replace(small_request(digits, tmp_path / "whole", save_every=5, **UNTRAINED), audit=False)
    train(request)
    events = finetune_steps(replace(request, output=tmp_path / "cut"))
    for event in events:
        if isinstance(event, StepDone) and event.step == 6:
            break
    events.close()
    monkeypatch.setattr(lifecycle, "choose_compute_config", None)  # must not be called again
    went_on = [
        event for event in finetune_steps(TrainRequest(resume=tmp_path / "cut")) if not isinstance(event, Progress)
    ]
    started = went_on[1]
    assert isinstance(started, Started)
    assert started.compute_config == str(compute_config)
    assert not [notice for notice in started.notices if "compiled" in notice.text]
    _, words = read_checkpoint(RunFolder(tmp_path / "cut").list_checkpoints()[0])
    kept = json.loads(words)
    recomputed = None if kept["recomputed"] is None else tuple(kept["recomputed"])
    assert (kept["blocks"], kept["threads"], kept["compiled"], recomputed) == astuple(compute_config)
    ends = [(tmp_path / name / "model.safetensors").read_bytes() for name in ("whole", "cut")]
    assert ends[0] == ends[1]


def test_only_whole_micro_batches_are_compiled(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []

    def compile(network: nn.Module, *, dynamic: bool, mode: str | None) -> Any:
        assert not dynamic
        assert mode is None

        def forward(inputs: torch.Tensor) -> Any:
            sizes.append(len(inputs))
            return network(inputs)

        return forward

    monkeypatch.setattr(torch, "compile", compile)
    request = replace(small_request(digits, tmp_path / "run", save_every=5, **UNTRAINED), audit=False)
    for event in (events := finetune_steps(replace(request, compile=True))):
        if isinstance(event, StepDone) and event.step == 6:
            break
    events.close()
    assert sizes == [16] * 7, "the first pass compiles"
    sizes.clear()
    went_on = [event for event in finetune_steps(TrainRequest(resume=tmp_path / "run")) if isinstance(event, Started)]
    assert "compiled" in went_on[0].compute_config
    assert sizes == [16] * 8, "195 images: the first pass, seven steps of 16 after the five saved, and one of three"
    sizes.clear()
    train(replace(request, output=tmp_path / "plain", compile=False))
    assert not sizes


@pytest.mark.parametrize("place", ["fit_epochs", "Started"])
def test_compiled_model_is_dropped_however_early_a_training_ends(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    """Its CUDA graphs would keep the memory of a pass until the process ends."""
    resets: list[bool] = []

    def fail(*_: object) -> None:
        raise ImageError("1.png cannot be read", "Remove it")

    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    request = replace(tiny_request(few_digits, tmp_path / "run"), compile=True, max_time=60.0)
    if place == "Started":
        with closing(finetune_steps(request)) as events:
            next(event for event in events if isinstance(event, Started))
    else:
        monkeypatch.setattr("convnext_cli.training.lifecycle.fit_epochs", fail)
        with pytest.raises(ImageError):
            train(request)
    assert resets == [True]


def test_header_says_how_the_model_computes_after_its_settings_were_measured(
    few_digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def run_out_of_memory(context: TrainingContext, *_: object) -> Plan:
        context.drop_compiled()
        return context.plan

    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    monkeypatch.setattr("convnext_cli.training.lifecycle.fit_epochs", run_out_of_memory)
    request = replace(tiny_request(few_digits, tmp_path / "run"), compile=True, max_time=60.0)
    with closing(finetune_steps(request)) as events:
        started = next(event for event in events if isinstance(event, Started))
    assert "compiled" not in started.compute_config


def test_failed_compilation_trains_uncompiled(digits: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_args: Any, **_options: Any) -> None:
        raise RuntimeError("no C++ compiler")

    chosen = autotune.AutotuneResult(compute_config=ComputeConfig(compiled=True), gain=2.0)
    monkeypatch.setattr(lifecycle, "choose_compute_config", lambda *_args, **_options: chosen)
    monkeypatch.setattr(torch, "compile", refuse)
    request = replace(small_request(digits, tmp_path / "run", **UNTRAINED), audit=False)
    started = next(event for event in finetune_steps(request) if isinstance(event, Started))
    assert any("(no C++ compiler)" in notice.text for notice in started.notices)
    assert started.compute_config == "timm's own blocks", "not compiled, and not twice as fast"


@pytest.mark.parametrize(
    ("device", "hip", "passes", "kind", "records"),
    [
        ("cuda", None, 1, "NO", True),
        ("cuda", None, 2, "NO", False),
        ("cuda", "6.4", 1, "NO", False),
        ("cuda", None, 1, "FSDP", False),
        ("cpu", None, 1, "NO", False),
    ],
)
def test_passes_on_a_cuda_gpu_are_recorded_if_a_step_has_one(
    network: nn.Module,
    monkeypatch: pytest.MonkeyPatch,
    *,
    device: str,
    hip: str | None,
    passes: int,
    kind: str,
    records: bool,
) -> None:
    modes, runs, resets = [], [], []

    def compile(network: nn.Module, *, dynamic: bool, mode: str | None) -> nn.Module:
        assert not dynamic
        modes.append(mode)
        return network

    def run_pass(_forward: Any, inputs: torch.Tensor) -> None:
        runs.append(len(inputs))
        if len(runs) > 4:
            raise RuntimeError("no graph")

    monkeypatch.setattr(torch, "compile", compile)
    monkeypatch.setattr(torch.version, "hip", hip)
    monkeypatch.setattr(torch.compiler, "reset", lambda: resets.append(True))
    monkeypatch.setattr(compute_config, "run_pass", run_pass)
    monkeypatch.setattr(compute_config, "draw_inputs", lambda shape, _device: torch.empty(shape))
    monkeypatch.setattr(compute_config, "free_memory", lambda _device: None)
    accelerator: Any = SimpleNamespace(device=torch.device(device), num_processes=1, distributed_type=kind)
    config = ComputeConfig(compiled=True)
    compiled, _ = configure_model(network, config, (4, 3, 32, 32), accelerator, passes=passes)
    assert compiled == compute_config.CompiledModel(forward=network, images=4, has_graphs=records)
    assert modes == ["reduce-overhead" if records else None]
    assert runs == [4] * (4 if records else 1), "one for cuDNN's search, three to record"
    assert not resets
    runs += [4] * 4
    compiled, [notice] = configure_model(network, config, (4, 3, 32, 32), accelerator, passes=passes)
    assert compiled is None
    assert "(no graph)" in notice.text
    assert resets == [True] * records, "the memory of graphs is freed"
    with ThreadPoolExecutor(1) as thread:
        assert not thread.submit(compute_config.can_record, accelerator, passes).result()


@pytest.mark.parametrize("records", [True, False])
def test_graphs_leave_memory_for_the_optimizer(monkeypatch: pytest.MonkeyPatch, *, records: bool) -> None:
    weights: list[int] = []  # tensors of the parameter's size in each pass

    def run_pass(*_: object) -> None:
        tensors = [value for value in gc.get_objects() if type(value) in (torch.Tensor, nn.Parameter)]
        weights.append(sum(value.shape == (7, 13) for value in tensors))

    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    monkeypatch.setattr(compute_config, "can_record", lambda *_: records)
    monkeypatch.setattr(compute_config, "run_pass", run_pass)
    config, accelerator = ComputeConfig(compiled=True), make_accelerator("no")
    configure_model(nn.Linear(13, 7), config, (4, 3, 32, 32), accelerator, copies=3)
    assert weights == ([1, 4, 4, 4] if records else [1])


def test_graphs_compute_smaller_batches_too(network: nn.Module) -> None:
    seen: list[tuple[tuple[int, ...], tuple[int, ...]]] = []

    def forward(inputs: torch.Tensor) -> torch.Tensor:
        seen.append((tuple(inputs.shape), inputs.stride()))
        result: torch.Tensor = network(inputs)
        return result

    plain, recorded = (compute_config.CompiledModel(forward=forward, images=4, has_graphs=has) for has in (False, True))
    assert [plain.takes(images) for images in (3, 4, 5)] == [False, True, False]
    assert [recorded.takes(images) for images in (3, 4, 5)] == [True, True, False]
    network.eval()
    inputs = torch.rand(4, 32, 32, 3).permute(0, 3, 1, 2)
    whole = recorded.compute(inputs)
    torch.testing.assert_close(recorded.compute(inputs[:3]), whole[:3])
    assert seen[0] == seen[1], "the same shape and strides, or it would be compiled again"


def test_compilation_for_which_memory_is_too_small_is_tried_again(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, passes: Passes, compiles: list[str]
) -> None:
    time_in_turn = autotune._time_in_turn

    def time_or_fail(candidates: dict[str, Any], deadline: float) -> dict[str, float]:
        if "compiled" in candidates:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return time_in_turn(candidates, deadline)

    monkeypatch.setattr(autotune, "_time_in_turn", time_or_fail)
    [notice] = choose_on_gpu(network, monkeypatch, passes=1_000_000).notices
    assert passes
    assert compiles
    assert "CUDA out of memory" in notice.text
    [kept] = find_cache_folder().glob("probes/*.json")
    assert json.loads(kept.read_text())["compiled"] is None


def test_autotune_measures_with_a_limited_number_of_images(
    network: nn.Module, passes: Passes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(autotune, "IMAGES", 4)  # as `passes` expects
    tuned_passes = TunedPasses(model="test", shape=(32, 3, 32, 32), passes=AUTOTUNED_PASSES)
    result = choose_compute_config(
        network, tuned_passes, accelerator=make_accelerator("no"), measure=True, compile=False
    )
    assert passes
    assert result == autotune.AutotuneResult(compute_config=ComputeConfig(blocks=TIMM, threads=2), gain=2.0)
    [kept] = find_cache_folder().glob("probes/*.json")
    assert json.loads(kept.read_text())["plain"]["timm 2"] == SECONDS[2] * 32 / 4, "seconds of a pass of the run's size"


def choose_on_gpu(network: nn.Module, monkeypatch: pytest.MonkeyPatch, **changes: Any) -> autotune.AutotuneResult:
    """Choose for a stub of a GPU, whose tensors lie on the CPU."""
    monkeypatch.setattr(autotune, "draw_inputs", lambda shape, _: draw_inputs(shape, torch.device("cpu")))
    monkeypatch.setattr(autotune, "describe_device", lambda _: "NVIDIA H100")
    monkeypatch.setattr(autotune, "free_memory", lambda _: gc.collect())
    accelerator: Any = SimpleNamespace(
        device=torch.device("cuda"),
        num_processes=1,
        is_main_process=True,
        mixed_precision="bf16",
        distributed_type="NO",
    )
    tuned_passes = TunedPasses(model="test", shape=(4, 3, 32, 32), passes=changes.pop("passes", AUTOTUNED_PASSES))
    options: dict[str, Any] = {"measure": True, **changes}
    return choose_compute_config(network, tuned_passes, accelerator=accelerator, **options)


def test_gpu_is_autotuned_with_all_threads(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, passes: Passes, compiles: list[str]
) -> None:
    monkeypatch.setitem(SLOWER, FAST, 0.8)
    few = choose_on_gpu(network, monkeypatch, passes=AUTOTUNED_PASSES - 1)
    assert few == autotune.AutotuneResult(compute_config=ComputeConfig())
    short = choose_on_gpu(network, monkeypatch, compile=False)
    assert short == autotune.AutotuneResult(compute_config=ComputeConfig(blocks=FAST, threads=4), gain=1 / 0.8)
    assert set(passes) == {(TIMM, 4), (FAST, 4)}, "no native kernels and no fewer threads"
    assert not compiles


def test_gpu_run_is_compiled_if_that_saves_more_than_it_takes(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, passes: Passes, compiles: list[str]
) -> None:
    long = choose_on_gpu(network, monkeypatch, passes=1_000)  # of one second; compiled, half a second
    assert long.compute_config.compiled
    assert long.gain == 2.0
    assert compiles == ["reduce-overhead"], "measured with CUDA graphs, as it trains"
    monkeypatch.setattr(autotune, "GPU_COMPILE_FROM", 1e9)
    assert choose_on_gpu(network, monkeypatch, passes=1_000) == long, "the measurement is kept"
    asked = choose_on_gpu(network, monkeypatch, measure=False, compile=True)
    assert asked.compute_config == ComputeConfig(compiled=True)
    assert passes


@pytest.mark.parametrize("fails", [False, True])
def test_measured_copies_of_the_model_leave_the_gpu(
    network: nn.Module, monkeypatch: pytest.MonkeyPatch, *, fails: bool
) -> None:
    """Accelerate's mixed precision gives a model a forward that refers to it, as to its copies."""
    network.forward = MethodType(type(network).forward, network)
    copies: list[weakref.ref[nn.Module]] = []

    def copy(*args: Any) -> nn.Module:
        copies.append(weakref.ref(model := compute_config.copy_model(*args)))
        return model

    def time_pass(*_: object, **__: object) -> float:
        if fails:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return 1.0

    monkeypatch.setenv("CONVNEXT_CACHE", "empty")
    monkeypatch.setattr(autotune, "copy_model", copy)
    monkeypatch.setattr(autotune, "_time_pass", time_pass)
    monkeypatch.setattr(torch, "compile", lambda network, **_: network)
    gc.disable()
    try:
        choose_on_gpu(network, monkeypatch, passes=1_000_000)
        assert [each() for each in copies] == [None] * (2 if fails else 3)
    finally:
        gc.enable()


def test_gpu_with_too_little_memory_is_not_autotuned(network: nn.Module, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object, **__: object) -> float:
        raise torch.OutOfMemoryError("CUDA out of memory.")

    monkeypatch.setattr(autotune, "_time_pass", fail)
    monkeypatch.setenv("CONVNEXT_CACHE", "empty")
    assert choose_on_gpu(network, monkeypatch) == autotune.AutotuneResult(compute_config=ComputeConfig())
