"""Autotuning: measure which compute configuration trains fastest on this machine, and remember the result."""

import json
import math
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from convnext_cli.cache_folder import AUTOTUNING, find_cache_folder, name_entry
from convnext_cli.errors import shorten_error
from convnext_cli.files import write_text
from convnext_cli.kernels.blocks import pair_blocks, release_freed_memory
from convnext_cli.kernels.library import describe_processor
from convnext_cli.models.device_memory import free_memory, is_out_of_memory
from convnext_cli.progress import Notice
from convnext_cli.recipes.costs import AUTOTUNED_PASSES
from convnext_cli.training.compute.compute_config import (
    FAST,
    NATIVE,
    TIMM,
    ComputeConfig,
    Shape,
    can_record,
    compile_model,
    copy_model,
    describe_compile_failure,
    draw_inputs,
    drop_compiled_models,
    explain_missing_kernels,
    run_pass,
)
from convnext_cli.training.compute.devices import (
    THREADS,
    describe_device,
    is_plain_cpu,
    is_whole_on_gpu,
    wait_for_gpu,
)

MIN_NOTICE_PASSES = 100  # passes from which a run uses kept measurements, and names a missing compiler
COMPILE_FROM = 1_800.0  # seconds of passes from which compiling is tried: it takes one to two minutes
GPU_COMPILE_FROM = 300.0  # the same on a GPU, where compiling gains more: 1.3 to 2 times
COMPILING = 120.0  # seconds that a compiled model must save
BUDGET = 20.0  # seconds after which no further round begins
IMAGES = 16  # images of a measured pass, at most, so that timm's blocks need no more memory than the training
ROUNDS = 3  # measured passes of each candidate, after one that does not count


@dataclass(frozen=True, kw_only=True, slots=True)
class AutotuneResult:
    """The compute configuration of a run, with the measured gain."""

    compute_config: ComputeConfig
    gain: float | None = None
    """Images per second, relative to timm's blocks with all threads; None if nothing was measured."""
    notices: tuple[Notice, ...] = ()

    def __str__(self) -> str:
        if self.gain is None:
            return str(self.compute_config)
        if self.compute_config == ComputeConfig():
            return f"{self.compute_config}, the fastest here"
        reference = " with all threads" if self.compute_config.threads != THREADS else ""
        return f"{self.compute_config}, {self.gain:.2f} times as fast as timm's blocks{reference}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measurement:
    """Seconds of a forward and backward pass of the run's size, the minimum of several rounds."""

    plain: dict[str, float]
    """By `<blocks> <threads>`."""
    bf16: float | None = None
    """With autocast to bf16; None if the CPU has no instructions for it."""
    compiled: float | None = None
    """The fastest of `plain`, compiled; infinite if it cannot be compiled, None if it was not tried."""
    recomputed: list[int] | None = None
    """Channels of the native blocks that are faster if they compute their hidden values again; None if not measured."""

    @property
    def best(self) -> ComputeConfig:
        """The fastest of `plain`."""
        blocks, threads = min(self.plain, key=lambda name: self.plain[name]).split()
        recomputed = None if self.recomputed is None or blocks != NATIVE else tuple(self.recomputed)
        return ComputeConfig(blocks=blocks, threads=int(threads), recomputed=recomputed)

    @property
    def seconds(self) -> float:
        """Seconds of a pass with `best`."""
        return min(self.plain.values())


@dataclass(frozen=True, kw_only=True, slots=True)
class TunedPasses:
    """The passes of the run that a compute configuration is chosen for."""

    model: str
    """Name of the model, under which the measurement is kept."""
    shape: Shape
    """Input shape of a forward pass, (B, C, H, W)."""
    passes: int
    """Forward and backward passes of the whole run."""
    passes_per_step: int = 1
    """Passes of an optimizer step; several are not recorded as CUDA graphs."""


def choose_compute_config(
    network: nn.Module,
    tuned_passes: TunedPasses,
    *,
    accelerator: Accelerator,
    measure: bool,
    compile: bool | None = None,
) -> AutotuneResult:
    """Choose the compute configuration of a new run. All ranks call it; the first rank's choice holds.

    Args:
        network: the model, on its device, in its memory format.
        tuned_passes: the model, the input shape and the passes of the run.
        accelerator: the device and the ranks.
        measure: True to measure. Without, and in short runs, the blocks that are usually fastest are chosen.
        compile: True to compile the model, False not to; None to measure, in runs of `COMPILE_FROM` seconds.
    """
    is_gpu = is_whole_on_gpu(accelerator)
    if not is_gpu and not is_plain_cpu(accelerator):
        text = "--compile needs a whole model on a CUDA GPU, or in float32 on a CPU; the model is not compiled"
        return AutotuneResult(compute_config=ComputeConfig(), notices=(Notice(text),) if compile else ())
    [missing] = [""] if is_gpu else broadcast_object_list([explain_missing_kernels()])
    fused = FAST if is_gpu or missing else NATIVE
    default = ComputeConfig(blocks=TIMM if is_gpu else fused, compiled=bool(compile))
    if not is_gpu and tuned_passes.passes < MIN_NOTICE_PASSES:
        return AutotuneResult(compute_config=default)
    notices: tuple[Notice, ...] = (Notice(missing),) if missing else ()
    measurement = None
    if measure:
        measurement, more = _measure_all(network, tuned_passes, fused, accelerator, tries_compiling=compile is None)
        notices += more
    if measurement is None:
        return AutotuneResult(compute_config=default, notices=notices)
    saved = tuned_passes.passes * (measurement.seconds - (measurement.compiled or math.inf))
    compiles = saved > COMPILING if compile is None else compile
    seconds = measurement.compiled if compiles else measurement.seconds
    if measurement.bf16 is not None and measurement.bf16 < measurement.seconds and not compiles:
        notices += (Notice(f"--amp bf16 would be {measurement.seconds / measurement.bf16:.2f} times as fast here"),)
    return AutotuneResult(
        compute_config=replace(measurement.best, compiled=compiles),
        gain=measurement.plain[f"{TIMM} {THREADS}"] / seconds if seconds is not None else None,
        notices=notices,
    )


def _measure_all(
    network: nn.Module, tuned_passes: TunedPasses, default: str, accelerator: Accelerator, *, tries_compiling: bool
) -> tuple[Measurement | None, tuple[Notice, ...]]:
    """Return the measurement that was kept, or a new one if the run is long enough; None if it is too short.

    In longer runs compiling is measured too, once; a notice says if it failed.
    """
    device = accelerator.device
    path = _find_measurement(tuned_passes, accelerator, default)
    [measurement] = broadcast_object_list([_read_measurement(path)])
    if measurement is None and tuned_passes.passes >= AUTOTUNED_PASSES:
        [measurement] = broadcast_object_list([_measure(network, tuned_passes.shape, default, device)])
        free_memory(device)  # of the measured copies, whose forward refers to them: only the collector frees them
        _keep_measurement(path, measurement, accelerator)
    if measurement is None or not tries_compiling or measurement.compiled is not None:
        return measurement, ()
    if tuned_passes.passes * measurement.seconds < (COMPILE_FROM if device.type == "cpu" else GPU_COMPILE_FROM):
        return measurement, ()
    [(measurement, notice)] = broadcast_object_list(
        [_measure_compiled(network, tuned_passes, measurement, accelerator)]
    )
    free_memory(device)
    _keep_measurement(path, measurement, accelerator)
    return measurement, (notice,) if notice else ()


def _measure(network: nn.Module, shape: Shape, default: str, device: torch.device) -> Measurement | None:
    """Measure timm's blocks, the fused ones, and those with native kernels if they can be compiled.

    Then, on a CPU, measure the fastest of them with half the threads, as long as that is faster. Of native blocks,
    measure for each width if they should keep their hidden values. Return None if the memory is too small to measure.
    """
    deadline = time.perf_counter() + BUDGET
    try:
        models = {blocks: copy_model(network, blocks) for blocks in dict.fromkeys((TIMM, FAST, default))}
        is_cpu = device.type == "cpu"
        inputs = draw_inputs((min(IMAGES, shape[0]) if is_cpu else shape[0], *shape[1:]), device)
        timer = partial(_make_timer, inputs=inputs, images=shape[0])
        candidates = {f"{blocks} {THREADS}": timer(model, threads=THREADS) for blocks, model in models.items()}
        if is_cpu and _has_bf16():
            candidates["bf16"] = timer(models[TIMM], threads=THREADS, bf16=True)
        plain = _time_in_turn(candidates, deadline)
        bf16 = plain.pop("bf16", None)
        if is_cpu:
            _time_fewer_threads(plain, models, timer, deadline)
        best, recomputed = Measurement(plain=plain).best, None
        if best.blocks == NATIVE:
            recomputed = _choose_recomputed(models[NATIVE], inputs, best.threads, deadline)
        return Measurement(plain=plain, bf16=bf16, recomputed=recomputed)
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
    finally:
        torch.set_num_threads(THREADS)
    return None


def _time_fewer_threads(
    plain: dict[str, float],
    models: Mapping[str, nn.Module],
    timer: Callable[..., Callable[[], float]],
    deadline: float,
) -> None:
    """Add to `plain` the fastest candidate with half its threads, as long as that is faster."""
    while time.perf_counter() <= deadline:
        best = Measurement(plain=plain).best
        more, fewer = (f"{best.blocks} {threads}" for threads in (best.threads, best.threads // 2))
        if best.threads == 1 or fewer in plain:
            return
        model = models[best.blocks]
        pair = {more: timer(model, threads=best.threads), fewer: timer(model, threads=best.threads // 2)}
        seconds = _time_in_turn(pair, deadline)
        # The ratio within these rounds counts: the load of the machine may have changed since the earlier ones.
        plain[fewer] = plain[more] * seconds[fewer] / seconds[more]


def _choose_recomputed(model: nn.Module, inputs: Tensor, threads: int, deadline: float) -> list[int]:
    """Return the channels of the native blocks that train faster if they compute their hidden values again."""
    with torch.random.fork_rng(devices=[]):
        pairs = pair_blocks(model, inputs)
    chosen = []
    for width, (keeping, recomputing, x) in pairs.items():
        pool = nn.AdaptiveAvgPool2d(1), nn.Flatten()
        timer = partial(_make_timer, inputs=x, images=len(x), threads=threads)
        candidates = {"keep": timer(nn.Sequential(keeping, *pool)), "again": timer(nn.Sequential(recomputing, *pool))}
        seconds = _time_in_turn(candidates, deadline)
        chosen += [width] * (seconds["again"] < seconds["keep"])
    return chosen


def _measure_compiled(
    network: nn.Module, tuned_passes: TunedPasses, measurement: Measurement, accelerator: Accelerator
) -> tuple[Measurement, Notice | None]:
    """Return the measurement with the best configuration compiled; with a notice if it cannot be compiled."""
    best, shape, device = measurement.best, tuned_passes.shape, accelerator.device
    has_graphs = can_record(accelerator, tuned_passes.passes_per_step)
    model, inputs = copy_model(network, best.blocks, best.recomputed), draw_inputs(shape, device)
    forward = compile_model(deepcopy(model), has_graphs=has_graphs)
    try:
        timer = partial(_make_timer, inputs=inputs, images=shape[0], threads=best.threads)
        candidates = {"plain": timer(model), "compiled": timer(forward)}
        if has_graphs:  # not in turns: the memory of graphs serves nothing else
            seconds = _time_in_turn({"plain": candidates["plain"]}, math.inf)
            free_memory(device)
            seconds |= _time_in_turn({"compiled": candidates["compiled"]}, math.inf)
        else:
            seconds = _time_in_turn(candidates, math.inf)
        return replace(measurement, compiled=measurement.seconds * seconds["compiled"] / seconds["plain"]), None
    except Exception as error:  # the compiler's errors share no base class
        failed = measurement if is_out_of_memory(error) else replace(measurement, compiled=math.inf)
        return failed, describe_compile_failure(shorten_error(error))
    finally:
        torch.set_num_threads(THREADS)
        if has_graphs:
            drop_compiled_models(device)


def _time_in_turn(candidates: Mapping[str, Callable[[], float]], deadline: float) -> dict[str, float]:
    """Return the minimum seconds of each candidate, over rounds of one pass each."""
    seconds: dict[str, float] = {}
    for i in range(ROUNDS + 1):
        for name, time_once in candidates.items():
            latest = time_once()
            seconds[name] = latest if i < 2 else min(seconds[name], latest)  # the first round does not count
        if i and time.perf_counter() > deadline:
            break
    return seconds


def _make_timer(
    model: nn.Module, *, inputs: Tensor, images: int, threads: int, bf16: bool = False
) -> Callable[[], float]:
    """Return a function that times a pass and returns its seconds, scaled to `images` images."""

    def time_once() -> float:
        torch.set_num_threads(threads)
        seconds = _time_pass(model, inputs, bf16=bf16)
        model.zero_grad(set_to_none=True)  # as in training: the next pass of a CUDA graph overwrites its gradients
        return seconds * images / len(inputs)

    return time_once


def _time_pass(forward: Callable[[Tensor], Tensor], inputs: Tensor, *, bf16: bool) -> float:
    wait_for_gpu(inputs.device)
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        run_pass(forward, inputs)
    wait_for_gpu(inputs.device)
    seconds = time.perf_counter() - started
    release_freed_memory()  # else the candidates' blocks of different sizes would add up
    return seconds


def _find_measurement(tuned_passes: TunedPasses, accelerator: Accelerator, default: str) -> Path:
    """Return the file of the measurement for this machine, torch version, model and shape."""
    key: tuple[object, ...] = (describe_processor("model name"), torch.__version__, THREADS, accelerator.num_processes)
    key += (tuned_passes.model, tuned_passes.shape, default)
    if accelerator.device.type != "cpu":
        records = can_record(accelerator, tuned_passes.passes_per_step)
        key += (describe_device(accelerator.device), accelerator.mixed_precision, records)
    return find_cache_folder() / AUTOTUNING / f"{name_entry(repr(key).encode())}.json"


def _has_bf16() -> bool:
    """Return True if the CPU has instructions for bf16."""
    flags = describe_processor("flags").split()
    return "amx_bf16" in flags or "avx512_bf16" in flags


def _read_measurement(path: Path) -> Measurement | None:
    """Return the measurement in a file; None if there is none, or it is damaged."""
    try:
        measurement = Measurement(**json.loads(path.read_text()))
        assert measurement.plain[f"{TIMM} {THREADS}"] > 0
        assert measurement.best.threads <= THREADS
        assert measurement.compiled is None or measurement.compiled > 0
        return measurement
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError, RecursionError):
        return None


def _keep_measurement(path: Path, measurement: Measurement | None, accelerator: Accelerator) -> None:
    if measurement is None or not accelerator.is_main_process:
        return
    with suppress(OSError):  # then the next run measures again
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(measurement)))
