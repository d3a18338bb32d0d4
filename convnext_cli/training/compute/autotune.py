"""What the model is computed with fastest here: measured on real passes, and remembered."""

import hashlib
import json
import math
import time
from collections.abc import Callable, Mapping
from copy import deepcopy
from dataclasses import asdict, dataclass, replace
from functools import partial
from pathlib import Path

import torch
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import Tensor, nn

from convnext_cli.errors import shorten_error
from convnext_cli.files import find_cache_folder, write_text
from convnext_cli.kernels.blocks import release_freed_memory
from convnext_cli.kernels.library import describe_processor
from convnext_cli.training.compute.compute_config import (
    FAST,
    NATIVE,
    TIMM,
    ComputeConfig,
    Shape,
    configured_copy,
    describe_failure,
    draw_inputs,
    explain_missing_kernels,
    run_pass,
)  # fmt: skip
from convnext_cli.training.compute.devices import THREADS, is_out_of_memory, is_plain_processor

MIN_PASSES = 1_000  # of a run that is measured for: the probe takes as long as 30 passes at the most, 3% of that
KERNEL_PASSES = 100  # of a run that the kernels are compiled for, which takes a second, once
COMPILE_FROM = 1_800.0  # seconds of passes that compiling is tried for: it takes one to two minutes of them
COMPILING = 120.0  # seconds that a compiled model must save
BUDGET = 20.0  # seconds after which no further round is begun
IMAGES = 16  # at a time, at most: more of timm's formulation would take more memory than the training after it
ROUNDS = 3  # of one pass in each formulation, after one that is not counted


@dataclass(frozen=True, kw_only=True, slots=True)
class AutotuneResult:
    """What a run computes with, and why."""

    compute_config: ComputeConfig
    gain: float | None = None
    """Images per second, over those of timm's own formulation with all threads; None where nothing was measured."""
    remarks: tuple[str, ...] = ()
    """What the user should know of it."""

    def __str__(self) -> str:
        if self.gain is None:
            return str(self.compute_config)
        if self.compute_config == ComputeConfig():
            return f"{self.compute_config}, the fastest here"
        others = " with all" if self.compute_config.threads != THREADS else ""
        return f"{self.compute_config}, measured {self.gain:.2f} x timm's{others}"


@dataclass(frozen=True, kw_only=True, slots=True)
class Measured:
    """Seconds of a forward and backward pass of the run's size, the least of several taken in turn."""

    plain: dict[str, float]
    """By `<blocks> <threads>`."""
    bf16: float | None = None
    """In bf16, where the processor has instructions for it."""
    compiled: float | None = None
    """The best of `plain` compiled; infinite where that cannot be done, None where it was not tried."""

    @property
    def best(self) -> ComputeConfig:
        """The fastest."""
        blocks, threads = min(self.plain, key=lambda name: self.plain[name]).split()
        return ComputeConfig(blocks=blocks, threads=int(threads))

    @property
    def seconds(self) -> float:
        """Of a pass in it."""
        return min(self.plain.values())


def choose_compute_config(
    network: nn.Module,
    shape: Shape,
    *,
    name: str,
    passes: int,
    accelerator: Accelerator,
    measure: bool,
    compile: bool | None = None,
) -> AutotuneResult:
    """Chooses what a new run computes with. All ranks call it; the first one's answer holds.

    Args:
        network: the model, on the processor, in its memory format.
        shape: of a forward pass's input, (B, C, S, S).
        name: the model's name, which the answer is remembered by.
        passes: forward and backward passes of the whole run.
        accelerator: knows the device and the ranks.
        measure: whether to measure; without, and in runs too short to pay for it, what is usually faster is taken.
        compile: whether to compile it as well; None where measuring decides, in runs long enough to try it.
    """
    if not is_plain_processor(accelerator):
        where = "--compile is for whole models in float32 on a processor, so the model runs as it is"
        return AutotuneResult(compute_config=ComputeConfig(), remarks=(where,) if compile else ())
    if passes < KERNEL_PASSES:
        return AutotuneResult(compute_config=ComputeConfig(blocks=FAST, compiled=bool(compile)))
    [missing] = broadcast_object_list([explain_missing_kernels()])
    usual = FAST if missing else NATIVE
    path = _find_answer(name, shape, accelerator.num_processes, usual)
    [measured] = broadcast_object_list([_read_answer(path) if measure else None])
    if measured is None and measure and passes >= MIN_PASSES:
        [measured] = broadcast_object_list([_measure(network, shape, usual)])
        _keep_answer(path, measured, accelerator)
    remarks: tuple[str, ...] = (missing,) if missing else ()
    if measured is None:
        return AutotuneResult(compute_config=ComputeConfig(blocks=usual, compiled=bool(compile)), remarks=remarks)
    if measure and compile is None and measured.compiled is None and passes * measured.seconds >= COMPILE_FROM:
        [(measured, problem)] = broadcast_object_list([_measure_compiled(network, shape, measured)])
        _keep_answer(path, measured, accelerator)
        remarks += (problem,) if problem else ()
    saved = passes * (measured.seconds - (measured.compiled or math.inf))
    compiles = saved > COMPILING if compile is None else compile
    if measured.bf16 is not None and measured.bf16 < measured.seconds and not compiles:
        remarks += (f"--amp bf16 would be {measured.seconds / measured.bf16:.2f} times as fast here",)
    seconds = measured.compiled if compiles else measured.seconds
    return AutotuneResult(
        compute_config=replace(measured.best, compiled=compiles),
        gain=measured.plain[f"{TIMM} {THREADS}"] / seconds if seconds is not None else None,
        remarks=remarks,
    )


def _measure(network: nn.Module, shape: Shape, usual: str) -> Measured | None:
    """Timm's blocks against the faster ones, without the kernels and with them, where they can be compiled.

    Then the fastest of them with fewer threads, as long as fewer are faster. None where the memory is too small for it.
    """
    deadline = time.perf_counter() + BUDGET
    try:
        models = {blocks: configured_copy(network, blocks) for blocks in dict.fromkeys((TIMM, FAST, usual))}
        inputs = draw_inputs((min(IMAGES, shape[0]), *shape[1:]))
        timer = partial(_timer, inputs=inputs, images=shape[0])
        contenders = {f"{blocks} {THREADS}": timer(model, threads=THREADS) for blocks, model in models.items()}
        if _has_bf16():
            contenders["bf16"] = timer(models[TIMM], threads=THREADS, bf16=True)
        plain = _take_turns(contenders, deadline)
        bf16 = plain.pop("bf16", None)
        while True:
            best = Measured(plain=plain).best
            fewer = f"{best.blocks} {best.threads // 2}"
            if best.threads == 1 or fewer in plain or time.perf_counter() > deadline:
                return Measured(plain=plain, bf16=bf16)
            model = models[best.blocks]
            former = f"{best.blocks} {best.threads}"
            pair = {former: timer(model, threads=best.threads), fewer: timer(model, threads=best.threads // 2)}
            again = _take_turns(pair, deadline)
            # The ratio of these turns counts: the machine may have had more or less to give in those before.
            plain[fewer] = plain[former] * again[fewer] / again[former]
    except RuntimeError as error:
        if not is_out_of_memory(error):
            raise
        return None
    finally:
        torch.set_num_threads(THREADS)


def _measure_compiled(network: nn.Module, shape: Shape, measured: Measured) -> tuple[Measured, str]:
    """Adds the best formulation compiled, and says why where that cannot be done."""
    best = measured.best
    model, inputs = configured_copy(network, best.blocks), draw_inputs(shape)
    forward = torch.compile(deepcopy(model), dynamic=False)
    try:
        timer = partial(_timer, inputs=inputs, images=shape[0], threads=best.threads)
        seconds = _take_turns({"plain": timer(model), "compiled": timer(forward)}, math.inf)
        return replace(measured, compiled=measured.seconds * seconds["compiled"] / seconds["plain"]), ""
    except Exception as error:  # the compiler's errors share no base class
        return replace(measured, compiled=math.inf), describe_failure(shorten_error(error))
    finally:
        torch.set_num_threads(THREADS)


def _take_turns(contenders: Mapping[str, Callable[[], float]], deadline: float) -> dict[str, float]:
    """The least seconds of each."""
    seconds: dict[str, float] = {}
    for i in range(ROUNDS + 1):
        for name, take in contenders.items():
            measured = take()
            seconds[name] = measured if i < 2 else min(seconds[name], measured)  # the first round is replaced
        if i and time.perf_counter() > deadline:
            break
    return seconds


def _timer(
    forward: Callable[[Tensor], Tensor], *, inputs: Tensor, images: int, threads: int, bf16: bool = False
) -> Callable[[], float]:
    """What takes the time of a pass, for so many images."""

    def take() -> float:
        torch.set_num_threads(threads)
        return _time_pass(forward, inputs, bf16=bf16) * images / len(inputs)

    return take


def _time_pass(forward: Callable[[Tensor], Tensor], inputs: Tensor, *, bf16: bool) -> float:
    started = time.perf_counter()
    with torch.autocast("cpu", torch.bfloat16, enabled=bf16):
        run_pass(forward, inputs)
    seconds = time.perf_counter() - started
    release_freed_memory()  # or pieces of the contenders' different sizes would add up
    return seconds


def _find_answer(name: str, shape: Shape, processes: int, usual: str) -> Path:
    """The file that an answer for this machine, torch, model and shape is kept in."""
    key = (describe_processor("model name"), torch.__version__, THREADS, processes, name, shape, usual)
    return find_cache_folder() / "probes" / f"{hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest()}.json"


def _has_bf16() -> bool:
    flags = describe_processor("flags").split()
    return "amx_bf16" in flags or "avx512_bf16" in flags


def _read_answer(path: Path) -> Measured | None:
    try:
        measured = Measured(**json.loads(path.read_text()))
        assert measured.plain[f"{TIMM} {THREADS}"] > 0
        assert measured.best.threads <= THREADS
        assert measured.compiled is None or measured.compiled > 0
        return measured
    except (OSError, ValueError, KeyError, TypeError, AttributeError, AssertionError):  # none yet, or a damaged one
        return None


def _keep_answer(path: Path, measured: Measured | None, accelerator: Accelerator) -> None:
    if measured is None or not accelerator.is_main_process:
        return
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(asdict(measured)))
    except OSError:  # then the next run measures again
        return
