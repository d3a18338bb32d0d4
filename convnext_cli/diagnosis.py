"""What this installation has, and whether it works: from synthetic images to a model's answer."""

import platform
import tempfile
import time
from collections.abc import Callable
from dataclasses import dataclass
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from convnext_cli.cache_folder import find_cache_folder, measure_size
from convnext_cli.errors import shorten_error
from convnext_cli.machine import count_cpus, detect_machine
from convnext_cli.progress import Progress, Steps, finish

PACKAGES = (
    "convnext-cli", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "safetensors", "huggingface-hub",
    "onnxruntime", "onnx", "onnxscript", "pydicom", "transformers",
)  # fmt: skip
HUB_TIMEOUT = 3.0  # seconds
PICTURES = 60  # of the self-test


@dataclass(frozen=True, kw_only=True, slots=True)
class Cache:
    """A folder of what can be fetched or computed again."""

    path: Path
    bytes: int


@dataclass(frozen=True, kw_only=True, slots=True)
class Diagnosis:
    """What was found."""

    python: str
    platform: str
    packages: dict[str, str | None]
    """Versions; None where a package is not installed, as extras may be."""
    devices: tuple[str, ...]
    caches: dict[str, Cache]
    hub: str
    """Whether the Hub answers, in words."""
    self_test: dict[str, str]
    """Each part of it: `ok` and its seconds, or what went wrong."""
    works: bool


def diagnose_steps(*, offline: bool) -> Steps[Diagnosis]:
    """Check the installation. Never raises for what it finds.

    Args:
        offline: never ask the Hub.
    """
    yield Progress(done=0, total=3, activity="caches")
    caches = {"weights (Hub)": _find_hub_cache(), "images and measures": find_cache_folder()}
    sizes = {name: Cache(path=path, bytes=measure_size(path)) for name, path in caches.items()}
    yield Progress(done=1, total=3, activity="asking the Hub")
    hub = "not asked: offline" if offline else _ask_hub()
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
    names = [str(processor), f"{count_cpus()} processors may be used"]
    return (str(gpu), *names) if gpu.is_gpu else tuple(names)


def _find_hub_cache() -> Path:
    from huggingface_hub.constants import HF_HUB_CACHE

    return Path(HF_HUB_CACHE)


def _ask_hub() -> str:
    from huggingface_hub import constants, get_hf_file_metadata, hf_hub_url

    started = time.perf_counter()
    try:
        get_hf_file_metadata(hf_hub_url("timm/convnext_atto.d2_in1k", "config.json"), timeout=HUB_TIMEOUT)
    except Exception as error:  # the client raises its HTTP library's errors, its own, and OSError
        return f"{constants.ENDPOINT} does not answer ({shorten_error(error)}); --weights PATH does without it"
    return f"{constants.ENDPOINT} answers, {time.perf_counter() - started:.1f} s"


def _test_all() -> dict[str, str]:
    """Compiles the kernels, fine-tunes on generated images, predicts by torch, exports and predicts by ONNX Runtime."""
    results: dict[str, str] = {}
    with tempfile.TemporaryDirectory() as folder:
        run = Path(folder) / "run"
        parts: dict[str, Callable[[], str]] = {
            "kernels for training": _load_kernels,
            "fine-tune": lambda: _fine_tune(Path(folder), run),
            "predict, torch": lambda: _predict(run, "torch"),
            "export and predict, ONNX Runtime": lambda: _export(run),
        }
        for name, part in parts.items():
            started = time.perf_counter()
            try:
                results[name] = part() or f"ok, {time.perf_counter() - started:.1f} s"
            except Exception as error:  # whatever is wrong here is what was looked for
                results[name] = f"{type(error).__name__}: {' '.join(str(error).split())[:200]}"
                break
    return results


def _load_kernels() -> str:
    from convnext_cli.training.compute.compute_config import explain_missing_kernels

    missing = explain_missing_kernels()
    return f"skipped: {missing}" if missing else ""


def _fine_tune(folder: Path, run: Path) -> str:
    import numpy as np
    from PIL import Image

    from convnext_cli.api import finetune

    for number in range(PICTURES):
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


def _predict(run: Path, engine: str) -> str:
    from convnext_cli.inference.prediction import predict

    for name in ("bright", "dark"):
        [told] = predict(sorted((run.parent / "images" / name).iterdir())[:1], run, engine=engine)
        if told.error:
            raise told.error
        if told.classes[0] != name:
            raise ValueError(f"a {name} picture was taken for a {told.classes[0]} one")
    return ""


def _export(run: Path) -> str:
    from convnext_cli.errors import ConvnextError
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
