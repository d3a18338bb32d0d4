"""Speeds of trainings on this machine, kept in the cache folder so that later estimates of time are nearer.

A speed is the measured time of an epoch divided by its estimate. A later estimate of the same model and image size is
multiplied by it, that of another model by the median over trainings on the same machine of about as much work per
image. The speed of much smaller ones, such as the demo's, says little: their time is mostly overhead.
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
NEAR = 10.0  # largest ratio of the work per image


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
    own = speeds.get(_describe(workload))
    near = [speed for training, speed in speeds.items() if _is_near(training, _describe(workload))]
    speed, basis = 1.0, ROUGH
    if own is not None:
        speed, basis = own, "by an earlier run of this model here"
    elif near:
        speed, basis = statistics.median(near), "by earlier runs of other models here"
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


def _is_near(one: str, two: str) -> bool:
    """Return True if two trainings, as `_describe` has them, do about as much work per image."""
    works = [_count_work(training) for training in (one, two)]
    return 0 < max(works) <= NEAR * min(works)


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
    except (OSError, ValueError, TypeError, AttributeError):
        return {}
