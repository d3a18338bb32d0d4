"""Versions, devices and caches of this installation, and a self-test on synthetic images."""

import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Literal

from convnext_cli.cache_folder import find_cache_folder, measure_size
from convnext_cli.errors import ConvnextError, WeightsError
from convnext_cli.machine import count_cpus, detect_machine
from convnext_cli.models.hub import ask_hub, report_failure
from convnext_cli.progress import Progress, Steps, finish
from convnext_cli.text import format_count

PACKAGES = (
    "convnext-cli", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "safetensors", "huggingface-hub",
    "onnxruntime", "onnx", "onnxscript", "pydicom", "pi-heif", "python-calamine", "transformers",
)  # fmt: skip
IMAGES = 60  # of the self-test


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """A folder of files that can be downloaded or computed again."""

    path: Path
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """The state of the installation."""

    python: str
    platform: str
    packages: dict[str, str | None]
    """Versions; None for a package that is not installed, such as an extra's."""
    devices: tuple[str, ...]
    caches: dict[str, Cache]
    hub: str
    """The reachability of the Hub, in words."""
    self_test: dict[str, str]
    """The result of each part, `ok` with its seconds or the error; the test ends at the first error."""
    works: bool


def diagnose_steps(*, offline: bool) -> Steps[Diagnosis]:
    """Check the installation; faults are part of the result. The Hub is not contacted if `offline`."""
    yield Progress(done=0, total=3, activity="caches")
    from huggingface_hub.constants import HF_HUB_CACHE

    caches = {"weights (Hub)": Path(HF_HUB_CACHE), "images and measurements": find_cache_folder()}
    sizes = {name: Cache(path=path, bytes=measure_size(path)) for name, path in caches.items()}
    yield Progress(done=1, total=3, activity="contacting the Hub")
    hub = "not contacted: offline" if offline else _ask_hub()
    yield Progress(done=2, total=3, activity="self-test")
    results = _test_all()
    return Diagnosis(
        python=platform.python_version(),
        platform=platform.platform(),
        packages={name: _find_version(name) for name in PACKAGES},
        devices=_list_devices(),
        caches=sizes,
        hub=hub,
        self_test=results,
        works=all(outcome.startswith(("ok", "skipped")) for outcome in results.values()),
    )


def _find_version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _list_devices() -> tuple[str, ...]:
    gpu = detect_machine()
    processor = detect_machine(use_gpu=False)
    names = [str(processor), f"{format_count(count_cpus(), 'CPU core')} available"]
    return (str(gpu), *names) if gpu.is_gpu else tuple(names)


def _ask_hub() -> str:
    from huggingface_hub.constants import ENDPOINT

    started = time.perf_counter()
    try:
        with report_failure(f"{ENDPOINT} gives no weights", "--weights PATH works without it"):
            ask_hub("timm/convnext_atto.d2_in1k")
    except WeightsError as error:
        return f"{error.problem}; {error.remedy}"
    return f"{ENDPOINT} responds, {time.perf_counter() - started:.1f} s"


def _test_all() -> dict[str, str]:
    """Compile the kernels, fine-tune on synthetic images, predict with torch, export, predict with ONNX Runtime."""
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        parts: dict[str, Callable[[], str]] = {
            "kernels for training": _load_kernels,
            "fine-tune": lambda: _fine_tune(Path(folder), run),
            "predict, torch": lambda: _predict(run, "torch"),
            "export and predict, ONNX Runtime": lambda: _export(run),
            "GPU": _test_gpu,
        }
        for name, part in parts.items():
            started = time.perf_counter()
            try:
                results[name] = part() or f"ok, {time.perf_counter() - started:.1f} s"
            except Exception as error:  # any failure is a result of the test
                results[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                break
    return results


def _test_gpu() -> str:
    """Compute a product on the GPU, if there is one."""
    import torch

    from convnext_cli.models.forward import choose_device
    from convnext_cli.training.compute.devices import explain_unusable_gpu

    device, machine = choose_device(), detect_machine()
    if device.type == "cpu":
        if machine.is_gpu:
            raise ValueError(explain_unusable_gpu(machine))
        return "skipped: no GPU"
    values = torch.arange(64.0).reshape(8, 8)
    if not torch.equal((values.to(device) @ values.to(device)).cpu(), values @ values):
        raise ValueError(f"a matrix product on {device} differs from the one on the CPU")
    return ""


def _load_kernels() -> str:
    from convnext_cli.training.compute.compute_config import explain_missing_kernels

    missing = explain_missing_kernels()
    return f"skipped: {missing}" if missing else ""


def _fine_tune(folder: Path, run: Path) -> str:
    import numpy as np
    from PIL import Image

    from convnext_cli.api import finetune

    for number in range(IMAGES):
        bright = number % 2
        pixels = np.random.default_rng(number).integers(0, 128, (32, 32, 3), dtype=np.uint8) + np.uint8(100 * bright)
        path = folder / "images" / ("bright" if bright else "dark") / f"{number}.png"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels).save(path)
    finetune(
        folder / "images", model="test_convnext", weights="none", output=run, audit=False, offline=True, onnx=False,
        epochs=2, image_size=32, batch_size=8, lr=1e-3, warmup_epochs=0.0,
    )  # fmt: skip
    return ""


def _predict(run: Path, engine: Literal["onnx", "torch"]) -> str:
    from convnext_cli.inference.prediction import predict

    for name in ("bright", "dark"):
        [prediction] = predict(sorted((run.parent / "images" / name).iterdir())[:1], run, engine=engine)
        if prediction.error:
            raise prediction.error
        if prediction.classes[0] != name:
            raise ValueError(f"a {name} image was classified as {prediction.classes[0]}")
    return ""


def _export(run: Path) -> str:
    from convnext_cli.exports.export import export_steps
    from convnext_cli.exports.onnx_file import check_installed
    from convnext_cli.exports.request import ExportRequest
    from convnext_cli.runs.folder import RunFolder

    try:
        check_installed()
    except ConvnextError as error:
        return f"skipped: {error.problem}; pip install 'convnext-cli[onnx]'"
    finish(export_steps(RunFolder(run), ExportRequest()))
    return _predict(run, "onnx")
