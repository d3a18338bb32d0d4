"""Detection of GPUs and CPUs, with files and drivers of other machines."""

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pynvml
import pytest

from convnext_cli import machine
from convnext_cli.errors import UsageError
from convnext_cli.machine import (
    GIB,
    count_cpus,
    count_local_processes,
    count_processes,
    count_restarts,
    count_shards,
    detect_machine,
    find_compiler,
    get_rank,
    has_gpu,
    read_gpu_memory,
)


class Driver:
    """NVML of a machine with two GPUs, the second of which is split into parts (MIG)."""

    def __init__(self, *, reports_memory: bool = True) -> None:
        self.reports_memory = reports_memory

    def get_mig_mode(self, handle: str) -> list[int]:
        if handle == "GPU-aaaa":
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        return [pynvml.NVML_DEVICE_MIG_ENABLE] * 2

    def get_memory(self, handle: str) -> SimpleNamespace:
        if not self.reports_memory:
            raise pynvml.NVMLError(pynvml.NVML_ERROR_NOT_SUPPORTED)
        free = {"GPU-aaaa": 20, "GPU-bbbb": 79, "MIG-cccc": 9}[handle]
        return SimpleNamespace(free=free * GIB, total=80 * GIB)

    def install(self, patch: pytest.MonkeyPatch) -> None:
        handles = ["GPU-aaaa", "GPU-bbbb"]
        functions: dict[str, Any] = {
            "nvmlInit": lambda: None,
            "nvmlDeviceGetCount": lambda: 2,
            "nvmlDeviceGetHandleByIndex": handles.__getitem__,
            "nvmlDeviceGetHandleByUUID": lambda uuid: uuid,
            "nvmlDeviceGetUUID": lambda handle: handle,
            "nvmlDeviceGetName": lambda handle: f"NVIDIA {handle}",
            "nvmlDeviceGetMigMode": self.get_mig_mode,
            "nvmlDeviceGetMigDeviceHandleByIndex": lambda _, number: ["MIG-cccc"][number],
            "nvmlDeviceGetMemoryInfo": self.get_memory,
        }
        for name, function in functions.items():
            patch.setattr(pynvml, name, function)
        patch.setattr(machine, "_driver_is_loaded", lambda: True)


@pytest.mark.parametrize(
    ("visible", "rank", "name"),
    [
        (None, 0, "GPU-aaaa"),
        ("0", 0, "GPU-aaaa"),
        ("0", 3, "GPU-aaaa"),  # Slurm gives each task one GPU, which all call 0
        ("1,0", 1, "GPU-aaaa"),
        ("1", 0, "MIG-cccc"),  # CUDA takes the first part, whose memory counts
        ("GPU-aa", 0, "GPU-aaaa"),
        ("MIG-cccc", 0, "MIG-cccc"),
    ],
)
def test_gpu_of_this_process_is_planned_for(
    visible: str | None, rank: int, name: str, launched: pytest.MonkeyPatch, monkeypatch: pytest.MonkeyPatch
) -> None:
    Driver().install(monkeypatch)
    launched.setenv("LOCAL_RANK", str(rank))
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    detected = detect_machine()
    assert detected.is_gpu
    assert detected.name == f"NVIDIA {name}"
    assert detected.memory == {"GPU-aaaa": 20, "MIG-cccc": 9}[name] * GIB
    assert read_gpu_memory() == (detected.memory, 80 * GIB)


@pytest.mark.parametrize("visible", ["", "-1", "GPU-ffff"])
def test_hidden_and_unknown_gpus_are_not_planned_for(visible: str, monkeypatch: pytest.MonkeyPatch) -> None:
    Driver().install(monkeypatch)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert not detect_machine().is_gpu
    assert not has_gpu()
    assert read_gpu_memory() is None


def test_gpu_that_shares_the_cpus_memory_is_planned_for(monkeypatch: pytest.MonkeyPatch) -> None:
    """Jetson and GB10: NVML does not report their memory."""
    Driver(reports_memory=False).install(monkeypatch)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    monkeypatch.setattr(machine, "_available_memory", lambda: 60 * GIB)
    detected = detect_machine()
    assert detected.is_gpu
    assert detected.memory == 60 * GIB
    assert read_gpu_memory() is None


def test_driver_of_windows_subsystem_for_linux_is_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/dxg")
    assert machine._driver_is_loaded()


def test_amd_gpu_is_read_from_its_driver(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for number, (total, used) in enumerate([(512 << 20, 1 << 20), (24 * GIB, GIB)]):  # the first is part of the CPU
        device = tmp_path / f"class/drm/card{number}/device"
        device.mkdir(parents=True)
        (device / "mem_info_vram_total").write_text(f"{total}\n")
        (device / "mem_info_vram_used").write_text(f"{used}\n")
    monkeypatch.setattr(machine, "SYSTEM", tmp_path)
    monkeypatch.setattr(machine, "_driver_is_loaded", lambda: False)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    assert machine._first_amd_gpu() is None, "without its device file, PyTorch cannot use it"
    exists = Path.exists
    monkeypatch.setattr(Path, "exists", lambda path: str(path) == "/dev/kfd" or exists(path))
    detected = detect_machine()
    assert (detected.name, detected.memory) == ("AMD GPU", 23 * GIB)


def write_groups(folder: Path, files: dict[str, str]) -> None:
    for name, text in files.items():
        path = folder / "fs/cgroup" / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


def write_quota(folder: str, quota: int) -> dict[str, str]:
    """Return the files of a quota in version 1 of control groups."""
    return {f"{folder}/cpu.cfs_quota_us": f"{quota}\n", f"{folder}/cpu.cfs_period_us": "100000\n"}


@pytest.mark.parametrize(
    ("groups", "files", "cpus"),
    [
        ("0::/\n", {"cpu.max": "max 100000\n"}, 16),
        ("0::/\n", {"cpu.max": "250000 100000\n"}, 3),
        ("0::/a/b\n", {"cpu.max": "max 100000", "a/cpu.max": "100000 100000", "a/b/cpu.max": "400000 100000"}, 1),
        ("0::/not/mounted\n", {"cpu.max": "200000 100000"}, 2),
        ("4:cpu,cpuacct:/c\n", write_quota("cpu,cpuacct/c", 300_000), 3),
        ("4:cpu:/\n", write_quota("cpu", -1), 16),
        ("0::/\n", {"cpu.max": "nonsense"}, 16),
    ],
)  # fmt: skip
def test_quotas_of_control_groups_limit_the_cpus(
    groups: str, files: dict[str, str], cpus: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "groups").write_text(groups)
    write_groups(tmp_path, files)
    monkeypatch.setattr(machine, "SYSTEM", tmp_path)
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "groups")
    monkeypatch.setattr("os.sched_getaffinity", lambda _: set(range(16)))
    assert count_cpus() == cpus


@pytest.mark.parametrize(
    ("group", "folder", "names"),
    [
        ("0::/job\n", "job", ("max", "current", "inactive_file")),
        ("9:memory:/job\n", "memory/job", ("limit_in_bytes", "usage_in_bytes", "total_inactive_file")),
    ],
)
def test_memory_limit_of_a_control_group_counts(
    group: str, folder: str, names: tuple[str, str, str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "groups").write_text(group)
    limit, used, cached = names
    write_groups(
        tmp_path,
        {
            f"{folder}/memory.{limit}": str(3 << 20),
            f"{folder}/memory.{used}": str(2 << 20),
            f"{folder}/memory.stat": f"anon 5\n{cached} {1 << 20}\n",
        },
    )
    monkeypatch.setattr(machine, "SYSTEM", tmp_path)
    monkeypatch.setattr(machine, "CONTROL_GROUPS", tmp_path / "groups")
    assert detect_machine(use_gpu=False).memory == 2 << 20


NUMBERS: dict[str, tuple[Callable[[], int], str]] = {  # with a value out of its bounds
    "RANK": (get_rank, "2"),
    "WORLD_SIZE": (count_processes, "0"),
    "LOCAL_WORLD_SIZE": (count_local_processes, "0"),
    "TORCHELASTIC_RESTART_COUNT": (count_restarts, "-1"),
}


@pytest.mark.parametrize("name", NUMBERS)
def test_a_launchers_senseless_number_is_refused_and_without_a_launcher_ignored(
    name: str, launched: pytest.MonkeyPatch
) -> None:
    read, beyond = NUMBERS[name]
    for value in ("junk", "1.0", beyond):
        launched.setenv(name, value)
        with pytest.raises(UsageError, match=f"{name} is '{value}', not a whole number .*torchrun .*unset RANK"):
            read()
    launched.delenv("MASTER_ADDR")
    assert read() == (name in ("WORLD_SIZE", "LOCAL_WORLD_SIZE"))


@pytest.mark.parametrize("command", ["", "cc -m64", "no-such-compiler"])
def test_compiler_is_that_of_the_environment_or_a_usual_one(
    command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("gcc", "cc") if command else ("gcc",):
        (tmp_path / name).touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setenv("CC", command)
    expected = {"": [str(tmp_path / "gcc")], "cc -m64": ["cc", "-m64"], "no-such-compiler": None}
    assert find_compiler() == expected[command]


def test_shards_are_counted_from_the_launcher(launched: pytest.MonkeyPatch) -> None:
    launched.setenv("WORLD_SIZE", "4")
    assert count_shards() == 1
    launched.setenv("ACCELERATE_USE_FSDP", "true")
    assert count_shards() == 4
    Driver().install(launched)
    assert detect_machine().shards == 4
