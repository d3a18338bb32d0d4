"""Speeds of trainings on this machine, kept in the cache folder so that later estimates of time are nearer.

A speed is the measured time of an epoch divided by its estimate. A later estimate of the same model and image size is
multiplied by it, that of another model by the median over trainings on the same machine. A speed counts the less, the
more two trainings differ in the work per image: the time of small ones, such as the demo's, is mostly overhead. It
fades evenly: on a CPU, the model with more work then stays the slower one.
"""

import json
import math
import re
import statistics
from contextlib import suppress
from pathlib import Path

from convnext_cli.cache_folder import SPEEDS, find_cache_folder, name_entry
from convnext_cli.files import write_text
from convnext_cli.machine import Machine
from convnext_cli.models.catalog import load_catalog
from convnext_cli.recipes.costs import ROUGH, RunTime, Workload, estimate_epoch, estimate_time

LARGEST = 50.0  # a speed outside 1/50 to 50 is no measurement
FAR = 100.0  # ratio of the work per image from which a speed says nothing
NEAR = 10.0  # largest ratio of an estimate that is more than rough


def remember_speed(workload: Workload, seconds: float) -> None:
    """Keep the measured seconds of an epoch, of cached images and without validation, for later estimates.

    If that is not possible, they do without.
    """
    speed = seconds / estimate_epoch(workload)
    path = _find_file(workload.machine)
    if not 1 / LARGEST < speed < LARGEST:
        return
    with suppress(OSError):
        path.parent.mkdir(parents=True, exist_ok=True)
        write_text(path, json.dumps(_read_speeds(path) | {_describe(workload): speed}))


def estimate_time_here(workload: Workload) -> RunTime:
    """Estimate the duration of a fine-tuning, as `estimate_time` does, with the speed of earlier trainings here."""
    speeds = _read_speeds(_find_file(workload.machine))
    training = _describe(workload)
    ratios = {other: ratio for other in speeds if (ratio := _compare_work(training, other)) < FAR}
    speed, basis = 1.0, ROUGH
    if training in speeds:
        speed, basis = speeds[training], "by an earlier run of this model here"
    elif ratios:
        speed = statistics.median(speeds[other] ** (1 - math.log(ratio, FAR)) for other, ratio in ratios.items())
        basis = "by earlier runs of other models here" if min(ratios.values()) <= NEAR else ROUGH
    return estimate_time(workload, speed=speed, basis=basis)


def _find_file(machine: Machine) -> Path:
    """Return the file with the speeds of a machine."""
    key = machine.name, machine.cores, machine.processes, machine.shards
    return find_cache_folder() / SPEEDS / f"{name_entry(repr(key).encode())}.json"


def _describe(workload: Workload) -> str:
    """Return what decides the speed, besides the machine."""
    settings = workload.settings
    checkpointed = " checkpointed" * settings.grad_checkpointing
    return f"{workload.model.name} {settings.image_size} {settings.amp}{checkpointed}"


def _compare_work(one: str, two: str) -> float:
    """Return the ratio of the work per image of two trainings, as `_describe` has them; at least 1."""
    low, high = sorted((_count_work(one), _count_work(two)))
    return high / low if low else math.inf


def _count_work(training: str) -> float:
    """Return the multiply-adds of an image in proportion; 0 for a model that is not in the catalogue."""
    match = re.match(r"(\S+) (\d+)(?:x(\d+))? ", training)
    model = load_catalog().get(match[1]) if match else None
    return model.gmacs * int(match[2]) * int(match[3] or match[2]) if match and model else 0.0


def _read_speeds(path: Path) -> dict[str, float]:
    """Return the speeds by training; none where the file is missing or damaged."""
    try:
        speeds = json.loads(path.read_text(encoding="utf-8"))
        return {str(key): float(value) for key, value in speeds.items() if math.isfinite(value) and value > 0}
    except (OSError, ValueError, TypeError, AttributeError, RecursionError):
        return {}
