"""Which formulation of the model is the faster one here: measured on real steps, and remembered."""

import hashlib
import json
import platform
import time
from collections.abc import Mapping
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path
from typing import TypeAlias

import torch
import torch.nn.functional as F
from accelerate import Accelerator
from accelerate.utils import broadcast_object_list
from torch import nn

from convnext_cli.files import find_cache, write_text
from convnext_cli.models.fast import speed_up
from convnext_cli.training.devices import is_out_of_memory, is_plain_processor

TIMM, FAST = "timm", "fast"  # as State.formulation keeps them
MIN_STEPS = 300  # of a run that is measured for: the probe takes as long as eight steps, 3% of that at the most
BUDGET = 20.0  # seconds after which no further round is begun
ROUNDS = 3  # of one step in each formulation, after one that is not counted

Shape: TypeAlias = tuple[int, int, int, int]


@dataclass(frozen=True, kw_only=True, slots=True)
class Found:
    """What a run computes with, and why."""

    formulation: str
    gain: float | None = None
    """Images per second, over those of timm's own formulation; None where nothing was measured."""

    def __str__(self) -> str:
        if self.formulation == TIMM:
            return "timm's own blocks" + (", the faster ones here" if self.gain else "")
        return "blocks in a faster formulation" + (f", measured {self.gain:.2f} x timm's" if self.gain else "")


def choose_formulation(
    network: nn.Module, shape: Shape, *, name: str, steps: int, accelerator: Accelerator, measure: bool
) -> Found:
    """Chooses what a new run computes with. All ranks call it; the first one's answer holds.

    Args:
        network: the model, on the processor, in its memory format.
        shape: of a forward pass's input, (B, C, S, S).
        name: the model's name, which the answer is remembered by.
        steps: optimizer steps of the whole run.
        accelerator: knows the device and the ranks.
        measure: whether to measure; without, and in runs too short to pay for it, the usually faster one is taken.
    """
    if not is_plain_processor(accelerator):
        return Found(formulation=TIMM)
    if not measure or steps < MIN_STEPS:
        return Found(formulation=FAST)
    path = _find_answer(name, shape, accelerator.num_processes)
    seconds = _read_answer(path)
    [is_known] = broadcast_object_list([seconds is not None])
    if not is_known:
        try:
            seconds = _measure(network, shape)
        except RuntimeError as error:
            if not is_out_of_memory(error):
                raise
            seconds = None
        if accelerator.is_main_process and seconds:
            _keep_answer(path, seconds)
    [seconds] = broadcast_object_list([seconds])
    if not seconds:
        return Found(formulation=FAST)
    gain = seconds[TIMM] / seconds[FAST]
    return Found(formulation=FAST if gain > 1 else TIMM, gain=max(1.0, gain))


def _measure(network: nn.Module, shape: Shape) -> dict[str, float]:
    """Seconds of a step in each formulation, the least of several taken in turn. Touches no random state."""
    models = {TIMM: deepcopy(network).train(), FAST: deepcopy(network).train()}
    speed_up(models[FAST])
    seconds = dict.fromkeys(models, float("inf"))
    with torch.random.fork_rng(devices=[]):
        inputs = torch.randn(shape).to(memory_format=torch.channels_last)
        began = time.perf_counter()
        for i in range(ROUNDS + 1):
            for name, model in models.items():
                taken = _time_step(model, inputs)
                seconds[name] = min(seconds[name], taken) if i else float("inf")
            if i and time.perf_counter() - began > BUDGET:
                break
    return seconds


def _time_step(model: nn.Module, inputs: torch.Tensor) -> float:
    started = time.perf_counter()
    logits = model(inputs)
    torch.autograd.backward(F.cross_entropy(logits, torch.zeros(len(logits), dtype=torch.long)))
    model.zero_grad(set_to_none=True)
    return time.perf_counter() - started


def _find_answer(name: str, shape: Shape, processes: int) -> Path:
    """The file that an answer for this machine, torch, model and shape is kept in."""
    key = (_name_processor(), torch.__version__, torch.get_num_threads(), processes, name, shape)
    return find_cache() / "probes" / f"{hashlib.blake2b(repr(key).encode(), digest_size=12).hexdigest()}.json"


def _name_processor() -> str:
    """What `/proc/cpuinfo` calls it (Linux), or the platform does."""
    try:
        lines = Path("/proc/cpuinfo").read_text(errors="replace").splitlines()
    except OSError:
        lines = []
    return next((line for line in lines if line.startswith("model name")), platform.processor())


def _read_answer(path: Path) -> dict[str, float] | None:
    try:
        kept = json.loads(path.read_text())
        return {name: float(kept[name]) for name in (TIMM, FAST)}
    except (OSError, ValueError, KeyError, TypeError):  # none yet, or a damaged one
        return None


def _keep_answer(path: Path, seconds: Mapping[str, float]) -> None:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(seconds))
    except OSError:  # then the next run measures again
        return
