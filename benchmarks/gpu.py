"""Check that `convnext` works on a GPU, and measure how near it is to the GPU's limit. One JSON line per check.

    python -m benchmarks.gpu [--data FOLDER] [--work FOLDER] [--only a,c] [--limit-s 560] [--jobs 5] [--timm-train FILE]
    python -m benchmarks.gpu --cpu-smoke          # the script's own logic, on a CPU, in about four minutes

It needs the installed package (`python -m convnext_cli` must work) and of this repository only this file. Without
--data it makes 3,000 JPEGs of 500 x 400 px in 4 classes. Each part is a process of its own with a time limit of its
own, and is killed with all that it started; its output until then is kept. If $OUT is set, results and logs go there.

    s  speed: finetune convnext_tiny, compiled as in a long run, from JPEG files, against the same step on a resident
       batch (plain and compiled), and against timm's train.py if its file is given; each image four times
    a  finetune convnext_tiny, 224 px, bf16: completes, loss falls, what the data path alone delivers by threads and
       processes, peak memory against the estimate, time between epochs, synchronising calls per step
    b  a step that does not fit halves its micro-batch and goes on (`b.bound`); a GPU that another process has filled
       gives a one-line error (`b.full`)
    c  SIGTERM and --resume end in the same bytes as an uninterrupted run: bf16, --deterministic
    d  eval and predict agree between GPU and CPU; speed of eval in float32 and in bf16
    e  ONNX export of a run made on the GPU; its outputs against the GPU's
    f  convnext_base with gradient checkpointing
    g  measured memory of tiny and base at several micro-batches against recipes/costs.py
    h  NCCL with one process (`--devices 1`), and FSDP with one process
    k  CUDA graphs: a pass is recorded once, as two; the loss is that of an uncompiled run, also after a step that did
       not fit; runs repeat and resume in the same bytes; the memory of the graphs is free in the end
    t  more of s: cuDNN's search, no compilation, the processor's part of a step, timm's train.py compiled, and what
       autotuning chooses
    w  compiles what part s measures, which needs no quiet machine

A check's `ok` is true, false, or null if it only measures.
"""

import argparse
import json
import math
import os
import re
import signal
import statistics
import subprocess
import sys
import tempfile
import threading
import time
import traceback
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import Any, TypeAlias, cast

PARTS = {  # seconds it may take, and what it needs
    "w": (150, ()), "s": (200, ()), "t": (240, ()), "a": (150, ()), "c": (150, ()), "d": (110, ("a",)),
    "e": (110, ("a",)), "f": (110, ()), "b": (110, ()), "g": (120, ()), "h": (110, ()), "k": (150, ()),
    "full": (90, ("s",)),
}  # fmt: skip
# Parts of a stage run side by side; what only measures comes last.
STAGES = (("w", "k", "c", "b", "h", "f", "g"), ("a",), ("d", "e"), ("s",), ("full",), ("t",))
SMOKE = "CONVNEXT_BENCHMARK_SMOKE"  # environment variable of the smoke test
TIMM_TRAIN = "CONVNEXT_BENCHMARK_TIMM_TRAIN"  # environment variable of --timm-train
LOCK = threading.Lock()  # of the output
Row: TypeAlias = dict[str, Any]
Step: TypeAlias = tuple[float, int, int, int]  # time, epoch, step, images of the epoch so far


def print_check(check: str, ok: "bool | None", **values: object) -> None:
    """Print the result of a check as a JSON line."""
    print(json.dumps({"check": check, "ok": ok, **values}, default=str), flush=True)


def is_smoke() -> bool:
    """Return True in the smoke test."""
    return os.environ.get(SMOKE) == "1"


def choose_sizes() -> SimpleNamespace:
    """Return models and sizes of the checks: for a GPU, or small ones for the smoke test."""
    if is_smoke():
        return SimpleNamespace(
            small="test_convnext2", large="test_convnext2", size=32, batch=16, images=160, side=(50, 40), epochs=3,
            repeats=1, memory=((("test_convnext2", 8), ("test_convnext2", 16)), 32), subset=64,
            amp="no", steps=3, threads=(1, 2), workers=2,
        )  # fmt: skip
    cases = (
        ("convnext_tiny", 32), ("convnext_tiny", 128), ("convnextv2_tiny", 64), ("convnextv2_base", 32),
        ("convnext_base", 16), ("convnext_base", 64), ("convnext_large", 32),
    )  # fmt: skip
    return SimpleNamespace(
        small="convnext_tiny", large="convnext_base", size=224, batch=128, images=3000, side=(500, 400), epochs=5,
        repeats=4, memory=(cases, 224), subset=256, amp="bf16", steps=20, threads=(1, 2, 4, 8, 16),
        workers=max(1, (os.cpu_count() or 1) - 2),
    )  # fmt: skip


def make_command(*words: object) -> list[str]:
    """Return the command line of a `convnext` command."""
    return [sys.executable, "-m", "convnext_cli", *(str(word) for word in words)]


def run_command(
    *words: object, timeout: float = 100, env: "dict[str, str] | None" = None
) -> "subprocess.CompletedProcess[str]":
    """Run a `convnext` command and return its output."""
    environment = {**os.environ, **(env or {})}
    return subprocess.run(
        make_command(*words), capture_output=True, text=True, timeout=timeout, env=environment, check=False
    )


def find_error(done: "subprocess.CompletedProcess[str]") -> str:
    """Return the error line of a command's output, or its last line."""
    lines = [line for line in (done.stderr + "\n" + done.stdout).splitlines() if line.strip()]
    errors = [line for line in lines if "error" in line.lower()]
    return (errors or lines or [""])[-1][:400]


def read_log(run: Path) -> list[Row]:
    """Return the epochs of a run."""
    return [json.loads(line) for line in (run / "metrics.jsonl").read_text().splitlines() if line.strip()]


def link_subset(data: Path, work: Path, number: int, name: str) -> Path:
    """Link the first images of each class into a folder, and return it."""
    folder = work / name
    for kind in sorted(path for path in data.iterdir() if path.is_dir()):
        files = sorted(kind.iterdir())[: number // 4]
        (folder / kind.name).mkdir(parents=True, exist_ok=True)
        for file in files:
            link = folder / kind.name / file.name
            if not link.exists():
                os.link(file, link)
    return folder


def repeat_images(data: Path, work: Path, times: int) -> Path:
    """Link each image several times into a folder, for epochs of some seconds, and return it."""
    folder = work / "repeated"
    for file in data.glob("*/*"):
        for number in range(times):
            link = folder / file.parent.name / f"{number}_{file.name}"
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                os.link(file, link)
    return folder


def sync() -> None:
    """Wait for the GPU."""
    import torch

    if torch.cuda.is_available():
        torch.cuda.synchronize()


def free_memory() -> None:
    """Free the GPU memory of earlier work."""
    import gc

    import torch

    gc.collect()
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def peak_gib(*, reset: bool = False) -> "float | None":
    """Return the peak of allocated GPU memory, or reset it; None on a CPU."""
    import torch

    if not torch.cuda.is_available():
        return None
    if reset:
        torch.cuda.reset_peak_memory_stats()
        return 0.0
    return round(torch.cuda.max_memory_allocated() / 2**30, 2)


def estimate_gib(model: str, images: int, size: int, *, checkpointing: bool = False) -> float:
    """Return the planned memory of a training step, in the precision of these checks."""
    from convnext_cli.models.catalog import load_catalog
    from convnext_cli.recipes.costs import StepMemory, training_bytes

    half = choose_sizes().amp != "no"
    step = StepMemory(size=(size, size), grad_checkpointing=checkpointing, half=half, is_gpu=half)
    memory = training_bytes(load_catalog()[model], images, step)
    return round(memory / 2**30, 2)


def train(data: Path, run: Path, *, waits: bool = False, **options: Any) -> SimpleNamespace:
    """Fine-tune in this process with the options of most checks or others, and record when each step ends.

    `waited` are the milliseconds for which a step of the last epoch waits for its images, and the longest wait;
    `starting` are the milliseconds that the processor takes to start a step's work on the GPU, if each step `waits` for
    the GPU to be idle.
    """
    from convnext_cli.api import make_train_request
    from convnext_cli.progress import Notice
    from convnext_cli.training import loop
    from convnext_cli.training.events import EpochDone, Started, StepDone
    from convnext_cli.training.finetuning import finetune_steps

    sizes = choose_sizes()
    usual = {
        "model": sizes.small, "image_size": sizes.size, "batch_size": sizes.batch, "epochs": sizes.epochs,
        "amp": "auto", "val_fraction": 0.08, "test_fraction": 0.04, "weights": "none", "freeze_epochs": 0,
        "offline": True, "audit": False, "overwrite": True,
    }  # fmt: skip
    request = make_train_request({"data": data, "output": run, **usual, **options})
    waited: list[float] = []
    taken: list[float] = []
    load, take = (vars(loop)[name] for name in ("load_rank_batches", "take_step"))

    def load_timed(*args: Any, **options: Any) -> Any:
        with closing(load(*args, **options)) as batches:
            while True:
                before = time.perf_counter()
                batch = next(batches, None)
                if batch is None:
                    return
                waited.append(1000 * (time.perf_counter() - before))
                yield batch

    def take_timed(*args: Any) -> Any:
        if waits:
            sync()
        before = time.perf_counter()
        result = take(*args)
        taken.append(1000 * (time.perf_counter() - before))
        return result

    steps: list[Step] = []
    ends: list[float] = []
    notices: list[str] = []
    started, began = None, 0.0
    vars(loop).update(load_rank_batches=load_timed, take_step=take_timed)
    try:
        for event in finetune_steps(request):
            now = time.perf_counter()
            if isinstance(event, StepDone):
                steps.append((now, event.epoch, event.step, event.images))
            elif isinstance(event, EpochDone):
                ends.append(now)
            elif isinstance(event, Notice):
                notices.append(event.text)
            elif isinstance(event, Started):
                started, began = event, now
                notices += [notice.text for notice in event.notices]
    finally:
        vars(loop).update(load_rank_batches=load, take_step=take)
    last = -(-len(steps) // len(ends))
    first = [round(when - began, 1) for when, *_ in steps[:40]]  # seconds since the start, of early steps
    return SimpleNamespace(log=read_log(run), steps=steps, ends=ends, notices=notices, started=started, first=first,
        waited=[round(statistics.mean(waited[-last:]), 2), round(max(waited), 1)],
        starting=round(statistics.median(taken[-last:]), 1))  # fmt: skip


def measure_resident(
    name: str, batch: int, size: int, *, amp: bool, compiled: bool, steps: int, checkpointing: bool = False
) -> Row:
    """Measure a plain training step of timm's model on one batch that stays on the device."""
    import timm
    import torch
    import torch.nn.functional as F

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    model = timm.create_model(name, num_classes=4).to(device).to(memory_format=torch.channels_last).train()
    model.set_grad_checkpointing(checkpointing)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-4)
    inputs = torch.randn(batch, 3, size, size, device=device).to(memory_format=torch.channels_last)
    labels = torch.randint(4, (batch,), device=device)
    forward = torch.compile(model, dynamic=False) if compiled else model
    peak_gib(reset=True)

    def step() -> None:
        with torch.autocast(device.type, torch.bfloat16, enabled=amp):
            logits = forward(inputs)
        torch.autograd.backward(F.cross_entropy(logits.float(), labels))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)

    began = time.perf_counter()
    for _ in range(3 if not is_smoke() else 1):
        step()
    sync()
    warm = time.perf_counter() - began
    began = time.perf_counter()
    for _ in range(steps):
        step()
    sync()
    seconds = time.perf_counter() - began
    return {
        "images_per_second": round(batch * steps / seconds, 1), "ms_per_step": round(1000 * seconds / steps, 2),
        "first_steps_s": round(warm, 1), "peak_gib": peak_gib(),
    }  # fmt: skip


class Utilisation:
    """Median GPU utilisation during a block, from NVML."""

    def __enter__(self) -> "Utilisation":
        self.samples: list[int] = []
        self.stop = threading.Event()
        self.thread = threading.Thread(target=self._sample, daemon=True)
        self.thread.start()
        return self

    def _sample(self) -> None:
        try:
            import pynvml

            pynvml.nvmlInit()
            handle = pynvml.nvmlDeviceGetHandleByIndex(0)
            while not self.stop.wait(0.1):
                self.samples.append(int(pynvml.nvmlDeviceGetUtilizationRates(handle).gpu))
        except Exception:  # no NVML: no figure
            return

    def __exit__(self, *_: object) -> None:
        self.stop.set()
        self.thread.join(1)

    @property
    def median(self) -> "int | None":
        """The median in %; None without NVML."""
        return sorted(self.samples)[len(self.samples) // 2] if self.samples else None


def write_image(job: tuple[str, int, int, tuple[int, int]]) -> None:
    """Write one photo-like JPEG whose class shows in the direction of its stripes and a little in its colour."""
    import numpy as np
    from PIL import Image

    path, kind, number, (width, height) = job
    random = np.random.default_rng((kind, number))
    coarse = random.integers(40, 216, (max(2, height // 20), max(2, width // 20), 3), dtype=np.uint8)
    smooth = np.asarray(Image.fromarray(coarse).resize((width, height), Image.Resampling.BICUBIC), np.float32)
    angle = np.pi * kind / 4 + random.normal(0, 0.05)
    y, x = np.mgrid[:height, :width]
    wave = np.sin((x * np.cos(angle) + y * np.sin(angle)) * 2 * np.pi / random.uniform(16, 32) + random.uniform(0, 6))
    tint = np.array([(18, 0, -18), (-18, 18, 0), (0, -18, 18), (12, 12, -12)], np.float32)[kind % 4]
    noise = random.normal(0, 10, (height, width, 1)).astype(np.float32)
    pixels = smooth * 0.6 + 45 + 35 * wave[..., None] + tint + noise
    Image.fromarray(pixels.clip(0, 255).astype(np.uint8)).save(path, quality=90)


def stop_and_resume(options: Row, steps: int) -> None:
    """Train for some steps, end as after a kill, and resume."""
    from convnext_cli.api import make_train_request
    from convnext_cli.training.events import StepDone
    from convnext_cli.training.finetuning import finetune_steps

    with closing(finetune_steps(make_train_request(options))) as events:
        for event in events:
            steps -= isinstance(event, StepDone)
            if not steps:
                break
    for _ in finetune_steps(make_train_request({"resume": options["output"]})):
        pass


def part_k(data: Path, work: Path) -> None:
    """Check runs that are recorded as CUDA graphs: their losses, their bytes and their memory."""
    import torch
    from torch._dynamo.utils import counters
    from torch._inductor.cudagraph_trees import CUDAGraphNode

    from convnext_cli.training import step

    sizes = choose_sizes()
    some, on_gpu = link_subset(data, work, sizes.subset, "some_k"), torch.cuda.is_available()
    options: Row = {
        "model": "test_convnext2", "image_size": 96 if on_gpu else 32, "batch_size": 24, "micro_batch_size": 24,
        "epochs": 3, "deterministic": True, "ema_decay": 0.99, "mixup": 0.2, "cutmix": 0.2, "drop_path": 0.0,
        "val_fraction": 0.1, "test_fraction": 0.0, "save_every": 4, "seed": 5,
    }  # fmt: skip

    def reserve() -> float:
        free_memory()
        return round(torch.cuda.memory_reserved() / 2**20, 1) if on_gpu else 0.0

    recordings: list[int] = []  # counters say nothing of a pass that is recorded in parts, or again
    record = CUDAGraphNode.__init__

    def record_counted(self: Any, *args: Any) -> None:
        recordings.append(1)
        record(self, *args)

    CUDAGraphNode.__init__ = record_counted  # type: ignore[assignment]
    plain, before = train(some, work / "run_k0", compile=False, **options), reserve()
    random = {**options, "drop_path": 0.3} if on_gpu else options  # a second model to compile
    first = train(some, work / "run_k1", compile=True, **random)
    compiled = dict(counters["stats"]) | dict(counters["inductor"])
    skipped = compiled.get("cudagraph_skips", 0)
    is_whole = compiled.get("unique_graphs") == 1 and (not on_gpu or (len(recordings) == 2 and not skipped))
    print_check(
        "k.recorded", is_whole and "compiled" in first.started.compute_config, graphs=compiled.get("unique_graphs"),
        recordings=len(recordings), skipped=skipped, mib_before_and_after=[before, reserve()],
        notices=first.notices,
    )  # fmt: skip
    train(some, work / "run_k2", compile=True, **random)
    usual = {"weights": "none", "freeze_epochs": 0, "offline": True, "audit": False, "overwrite": True, "amp": "auto"}
    cut = {**usual, **random, "data": some, "output": work / "run_k3", "compile": True}
    half = len(plain.steps) // 2
    stop_and_resume(cut, half)
    for check, other in (("k.repeatable", "run_k2"), ("k.resumed", "run_k3")):
        result = compare(work / "run_k1", work / other)
        print_check(check, result.pop("same"), **result)
    calls, accumulate = iter(range(10**9)), step._accumulate_gradients

    def fail_once(*args: Any) -> Any:
        if next(calls) == half:
            raise torch.OutOfMemoryError("CUDA out of memory.")
        return accumulate(*args)

    step._accumulate_gradients = cast("Any", fail_once)
    try:
        failed = train(some, work / "run_k4", compile=True, **options)
    finally:
        step._accumulate_gradients = accumulate
    losses = [[line["train_loss"] for line in result.log] for result in (plain, failed)]
    apart = max(abs(one - other) for one, other in zip(*losses, strict=True))
    after = reserve()
    print_check(
        "k.out_of_memory", apart < 0.02 and failed.log[-1]["micro_batch_size"] == 12 and after <= before + 64,
        train_loss=losses, notices=failed.notices, mib_before_and_after=[before, after],
    )  # fmt: skip


def make_data(folder: Path) -> Path:
    """Write the images, and return their folder."""
    from multiprocessing import get_context

    sizes = choose_sizes()
    jobs = [
        (str(folder / f"class_{kind}" / f"{kind}{number:05}.jpg"), kind, number, sizes.side)
        for kind in range(4)
        for number in range(sizes.images // 4)
    ]
    for kind in range(4):
        (folder / f"class_{kind}").mkdir(parents=True, exist_ok=True)
    with get_context("spawn").Pool(min(16, os.cpu_count() or 1)) as pool:
        for _ in pool.imap_unordered(write_image, jobs, chunksize=25):
            pass
    return folder


def part_s(data: Path, work: Path) -> None:
    """Compare the speed of a training as long runs have it with a resident batch and with timm's train.py."""
    import torch

    sizes = choose_sizes()
    on_gpu = torch.cuda.is_available()
    data = repeat_images(data, work, sizes.repeats)
    limits = {}
    for name, compiled in (("plain", False), ("compiled", True)):
        free_memory()
        row = measure_resident(sizes.small, sizes.batch, sizes.size, amp=on_gpu, compiled=compiled, steps=sizes.steps)
        limits[name] = row["images_per_second"]
        print_check(f"s.limit_{name}", None, **row)
    free_memory()
    result = train(data, work / "run_s", compile=True)
    best = steady_speed(result.steps)
    share = best / max(limits.values())
    print_check(
        "s.finetune", share >= 0.9 if on_gpu else None, steady=best, share_of_limit=round(share, 3),
        compute_config=result.started.compute_config, training_s=[line["seconds"] for line in result.log],
        first_steps=result.first[::3], ms_waited=result.waited, notices=result.notices,
    )  # fmt: skip
    if os.environ.get(TIMM_TRAIN):
        speed = measure_timm(data, work, compiled=False)
        print_check("s.timm", best >= 1.3 * speed if on_gpu else None, images_per_second=speed, ours=best,
            ratio=round(best / speed, 3))  # fmt: skip


def part_t(data: Path, work: Path) -> None:
    """Compare with more: cuDNN's search, no compilation, timm's train.py with it, and what autotuning chooses."""
    import torch

    sizes = choose_sizes()
    data = repeat_images(data, work, sizes.repeats)
    torch.backends.cudnn.benchmark = True  # before the first step: what cuDNN has chosen for a shape stays
    row = measure_resident(
        sizes.small, sizes.batch, sizes.size, amp=sizes.amp != "no", compiled=False, steps=sizes.steps
    )
    print_check("t.limit_cudnn_benchmark", None, **row)
    free_memory()
    result = train(data, work / "run_t", compile=False)
    print_check("t.finetune", None, compile=False, steady=steady_speed(result.steps), first_steps=result.first[::3])
    free_memory()
    starting = {
        f"compile={compiled}": train(data, work / "run_t", compile=compiled, epochs=2, waits=True).starting
        for compiled in (False, True)
    }
    print_check("t.starting", None, processor_ms_per_step=starting)
    free_memory()
    if os.environ.get(TIMM_TRAIN) and torch.cuda.is_available():
        print_check("t.timm", None, compile=True, images_per_second=measure_timm(data, work, compiled=True))
    tune(sizes)


def part_w(data: Path, work: Path) -> None:
    """Compile the model as part s does. The compiler keeps the result."""
    import torch

    sizes = choose_sizes()
    some = link_subset(data, work, 4 * sizes.batch, "some_w")
    train(some, work / "run_w", epochs=1, compile=True)
    free_memory()
    measure_resident(sizes.small, sizes.batch, sizes.size, amp=torch.cuda.is_available(), compiled=True, steps=1)


def tune(sizes: SimpleNamespace) -> None:
    """Autotune as a long run does, and print what it measured."""
    import timm
    import torch
    from accelerate import Accelerator

    from convnext_cli.cache_folder import find_cache_folder
    from convnext_cli.training.compute.autotune import TunedPasses, choose_compute_config
    from convnext_cli.training.compute.devices import spread_model
    from convnext_cli.training.parts.optimizer import make_optimizer

    accelerator = Accelerator(mixed_precision=sizes.amp, cpu=not torch.cuda.is_available())
    network = timm.create_model(sizes.small, num_classes=4).to(memory_format=torch.channels_last)
    optimizer = make_optimizer(network, lr=1e-3, weight_decay=0.05, layer_decay=1.0)
    model, _ = spread_model(accelerator, network, optimizer)
    tuned_passes = TunedPasses(model=sizes.small, shape=(sizes.batch, 3, sizes.size, sizes.size), passes=1_000_000)
    began = time.perf_counter()
    result = choose_compute_config(model, tuned_passes, accelerator=accelerator, measure=True)
    kept = [json.loads(path.read_text()) for path in find_cache_folder().rglob("*.json")]
    print_check("t.autotune", None, seconds=round(time.perf_counter() - began, 1), chosen=str(result),
        notices=[notice.text for notice in result.notices], kept=kept)  # fmt: skip


def measure_timm(data: Path, work: Path, *, compiled: bool) -> float:
    """Return the images/s of timm's train.py with our model, batch size and precision, as `steady_speed` has it."""
    sizes = choose_sizes()
    folder = work / "timm_data"
    for kind in sorted(path for path in data.iterdir() if path.is_dir()):
        for number, file in enumerate(sorted(kind.iterdir())):
            link = folder / ("val" if number % 12 == 0 else "train") / kind.name / file.name
            link.parent.mkdir(parents=True, exist_ok=True)
            if not link.exists():
                os.link(file, link)
    words = (
        f"--model {sizes.small} --img-size {sizes.size} --batch-size {sizes.batch} --num-classes 4 --opt adamw "
        f"--epochs {sizes.epochs} --lr 1e-4 --weight-decay 0.05 --warmup-epochs 0 --cooldown-epochs 0 --val-split val "
        f"--train-split train --workers {sizes.workers} --pin-mem --channels-last --log-interval 1"
    ).split()
    words += ["--amp", "--amp-dtype", "bfloat16"] if sizes.amp == "bf16" else ["--device", "cpu", "--no-prefetcher"]
    words += ["--torchcompile"] * compiled
    done = subprocess.run(
        [sys.executable, os.environ[TIMM_TRAIN], "--data-dir", str(folder), "--output", str(work / "timm"), *words],
        capture_output=True, text=True, timeout=200, check=False,
    )  # fmt: skip
    (work / f"timm-{compiled}.txt").write_text(done.stderr + done.stdout)
    if done.returncode:
        raise RuntimeError(f"timm's train.py: exit {done.returncode}: {find_error(done)}")
    found = re.findall(r"Train: (\d+) \[ *(\d+)/.*?Time: ([\d.]+)s, +([\d.]+)/s", done.stderr + done.stdout)
    best = 0.0
    for epoch in range(1, sizes.epochs):
        steps = [(float(s), float(rate)) for number, step, s, rate in found if int(number) == epoch and int(step) > 1]
        best = max(best, sum(s * rate for s, rate in steps) / sum(s for s, _ in steps))
    return round(best, 1)


def part_a(data: Path, work: Path) -> None:
    """Fine-tune, and compare its memory with the estimate."""
    import torch

    sizes = choose_sizes()
    run = work / "run_a"
    on_gpu = torch.cuda.is_available()
    peak_gib(reset=True)
    began = time.perf_counter()
    with Utilisation() as utilisation:
        result = train(data, run, drop_path=0.0)
    seconds = time.perf_counter() - began
    log = result.log
    losses = [round(line["train_loss"], 4) for line in log]
    speeds = [line["images_per_second"] for line in log]
    started = result.started
    micro = log[-1]["micro_batch_size"]
    print_check(
        "a.finetune", losses[-1] < losses[0] and (not on_gpu or started.precision == "bf16"), device=started.device,
        precision=started.precision, compute_config=started.compute_config, epochs=len(log), train_loss=losses,
        val_top1=[line["val_top1"] for line in log], images_per_second=speeds, micro_batch_size=micro,
        wall_s=round(seconds, 1), gpu_utilisation_median=utilisation.median, notices=result.notices,
        steady=steady_speed(result.steps),
    )  # fmt: skip
    gaps = [
        round(min(when for when, epoch, step, _ in result.steps if epoch == number + 2 and step == 1) - end, 2)
        for number, end in enumerate(result.ends[:-1])
    ]
    tails = [
        round(end - max(when for when, epoch, _, _ in result.steps if epoch == number + 1), 2)
        for number, end in enumerate(result.ends)
    ]
    print_check(
        "a.between_epochs", None, validation_s=tails, saving_and_first_step_s=gaps,
        training_s=[line["seconds"] for line in log],
    )  # fmt: skip
    measured, expected = peak_gib(), estimate_gib(sizes.small, micro, sizes.size)
    print_check("a.memory", measured is None or measured <= expected * 1.05, peak_gib=measured, estimate_gib=expected,
        ratio=measured and round(expected / measured, 2))  # fmt: skip
    feed(run, sizes)
    if on_gpu:
        count_syncs(link_subset(data, work, sizes.subset, "some_a"), work)


def steady_speed(steps: "list[Step]") -> float:
    """Return images/s within the fastest epoch after the first, without its first two steps."""
    best = 0.0
    for number in {epoch for _, epoch, _, _ in steps if epoch > 1}:
        own = [(when, images) for when, epoch, step, images in steps if epoch == number and step > 2]
        if len(own) > 1:
            best = max(best, (own[-1][1] - own[0][1]) / (own[-1][0] - own[0][0]))
    return round(best, 1)


def feed(run: Path, sizes: SimpleNamespace) -> None:
    """Measure the data path alone, from the cache, by preset, threads and processes, and the copy of a batch."""
    import numpy as np
    import torch

    from convnext_cli.images.loaders import cut_batches
    from convnext_cli.inference.saved_model import load_model
    from convnext_cli.models.forward import prepare_input
    from convnext_cli.recipes.plan import read_plan
    from convnext_cli.recipes.settings import Settings
    from convnext_cli.recipes.tables import load_augmentations
    from convnext_cli.runs.folder import RunFolder
    from convnext_cli.training.loading import ViewLoader, plan_views
    from convnext_cli.training.views import ThreadLoader
    from convnext_cli.training.workers import ProcessLoader

    folder = RunFolder(run)
    index, (_, _, preprocessing) = folder.read_split(), load_model(run)
    rows = index.rows("train")
    for preset in ("light", "medical", "natural"):
        values = {name: value for name, (value, _) in load_augmentations()[preset].items()}
        settings = Settings(**{**read_plan(folder.plan).settings, **values})
        context: Any = SimpleNamespace(
            settings=settings, index=index, preprocessing=preprocessing, cache=True, distillation=None
        )
        views, most = plan_views(context), sizes.threads[-1]
        some = rows if preset == "light" else rows[: len(rows) // 2]
        loaders: dict[Any, ViewLoader] = {most: ThreadLoader(views, most)}  # fills the cache
        loaders |= {threads: ThreadLoader(views, threads) for threads in sizes.threads if preset == "light"}
        loaders |= {f"{most} processes": ProcessLoader(views, most, sizes.batch), 1: ThreadLoader(views, 1)}
        speeds = {}
        for name, loader in [(most, loaders[most]), *loaders.items()]:
            part = some if name not in (1, 2) else some[: max(sizes.batch, len(some) // 4)]
            draws = cut_batches([(row, 1, row) for row in part], sizes.batch)
            for _ in loader.load(draws[:2]):  # a process takes a second to start
                pass
            began = time.perf_counter()
            for _ in loader.load(draws):
                pass
            speeds[name] = round(len(part) / (time.perf_counter() - began), 1)
            loader.flush()
        for loader in loaders.values():
            loader.close()
        print_check(f"a.feed_{preset}", None, images_per_second_by_threads=speeds)
    if torch.cuda.is_available():
        batch = np.zeros((sizes.batch, sizes.size, sizes.size, 3), np.uint8)
        device = torch.device("cuda")
        pinned = torch.from_numpy(batch).pin_memory()
        times = {}
        moves: dict[str, Callable[[], object]] = {
            "prepare_input": lambda: prepare_input(batch, preprocessing, device),
            "pinned": lambda: pinned.to(device, non_blocking=True),
        }
        for name, move in moves.items():
            move()
            sync()
            began = time.perf_counter()
            for _ in range(10):
                move()
            sync()
            times[name] = round((time.perf_counter() - began) * 100, 2)
        print_check("a.to_gpu", None, ms_per_batch=times, batch=sizes.batch)


def count_syncs(data: Path, work: Path) -> None:
    """Count the calls in a training step that wait for the GPU, by the line that makes them."""
    import warnings
    from collections import Counter

    import torch

    calls: Counter[str] = Counter()

    def note(message: Any, _: Any, filename: str, lineno: int, *__: Any) -> None:
        if "synchroniz" in str(message):
            calls[f"{Path(filename).parent.name}/{Path(filename).name}:{lineno}"] += 1

    warnings.simplefilter("always")
    before, warnings.showwarning = warnings.showwarning, cast("Any", note)
    torch.cuda.set_sync_debug_mode("warn")
    try:
        result = train(
            data, work / "run_sync", epochs=2, batch_size=16, val_fraction=0.1, test_fraction=0.0, ema_decay=0.99,
            mixup=0.2, cutmix=0.2,
        )  # fmt: skip
    finally:
        torch.cuda.set_sync_debug_mode("default")
        warnings.showwarning = before
    steps = len(result.steps)
    print_check("a.syncs", None, steps=steps, per_step=round(sum(calls.values()) / steps, 2),
        by_line={line: round(count / steps, 2) for line, count in calls.most_common(8)},
        steady_at_batch_16=steady_speed(result.steps))  # fmt: skip


def part_b(data: Path, work: Path) -> None:
    """Train in a memory that is too small for the batch."""
    import torch

    sizes = choose_sizes()
    some = link_subset(data, work, sizes.subset, "some_b")
    options = {
        "model": sizes.large, "epochs": 1, "drop_path": 0.0, "mixup": 0.0, "cutmix": 0.0, "seed": 3,
        "val_fraction": 0.1, "test_fraction": 0.0,
    }  # fmt: skip
    whole = train(some, work / "run_b_whole", micro_batch_size=max(1, sizes.batch // 8), **options)
    free_memory()
    if torch.cuda.is_available():
        total = torch.cuda.get_device_properties(0).total_memory
        torch.cuda.set_per_process_memory_fraction(min(1.0, 6.5 * 2**30 / total))
    else:
        from convnext_cli.training import step

        accumulate = step._accumulate_gradients

        def limited(context: Any, state: Any, batch: Any) -> Any:
            if state.micro_batch_size > sizes.batch // 4:
                raise torch.OutOfMemoryError("CUDA out of memory.")
            return accumulate(context, state, batch)

        step._accumulate_gradients = limited
    bound = train(some, work / "run_b", micro_batch_size=sizes.batch, **options)
    micro = bound.log[-1]["micro_batch_size"]
    apart = abs(bound.log[-1]["train_loss"] - whole.log[-1]["train_loss"])
    print_check(
        "b.bound", micro < sizes.batch and len(bound.notices) > 0 and apart < 0.02, micro_batch_size=micro,
        asked=sizes.batch, notices=[text[:160] for text in bound.notices], peak_gib=peak_gib(),
        train_loss=[whole.log[-1]["train_loss"], bound.log[-1]["train_loss"]],
        images_per_second=[whole.log[-1]["images_per_second"], bound.log[-1]["images_per_second"]],
    )  # fmt: skip


HOLD = """
import sys, time, torch
torch.zeros(1, device="cuda")
free, _ = torch.cuda.mem_get_info()
blocks = []
left = int(sys.argv[1])
while free > left:
    try: blocks.append(torch.empty(min(free - left, 1 << 30) or 1, dtype=torch.uint8, device="cuda"))
    except torch.OutOfMemoryError: break
    free, _ = torch.cuda.mem_get_info()
    if free - left < (1 << 24): break
print("held", flush=True)
time.sleep(120)
"""


def part_full(data: Path, work: Path) -> None:
    """Start commands while another process has nearly all of the GPU's memory."""
    import torch

    if not torch.cuda.is_available():
        print_check("b.full", None, skipped="no GPU")
        return
    some = link_subset(data, work, 64, "some_full")
    for left in (600, 250):  # MiB: enough for the CUDA context alone; not even for that
        holder = subprocess.Popen([sys.executable, "-c", HOLD, str(left << 20)], stdout=subprocess.PIPE, text=True)
        try:
            assert holder.stdout is not None
            holder.stdout.readline()
            images = sorted(path for path in some.rglob("*") if path.is_file())[:2]
            commands = {
                "predict": ("predict", *images, "--run", work / "run_s", "--engine", "torch"),
                "finetune": (
                    "finetune", some, "--model", "convnext_base", "--weights", "none", "--output",
                    work / f"run_full{left}", "--no-check", "--no-onnx", "--epochs", 1, "--offline",
                ),
            }  # fmt: skip
            with ThreadPoolExecutor(2) as pool:
                results = pool.map(lambda words: run_command(*words, timeout=60), commands.values())
                done = dict(zip(commands, results, strict=True))
            for name, result in done.items():
                line = find_error(result)
                print_check(
                    f"b.full.{name}", "This is a bug" not in line, free_mib=left, rc=result.returncode, output=line
                )
        finally:
            holder.kill()
            holder.wait()


def part_c(data: Path, work: Path) -> None:
    """Compare a run that was stopped and resumed with an uninterrupted one."""
    sizes = choose_sizes()
    some = link_subset(data, work, sizes.subset, "some_c")
    size = 96 if not is_smoke() else 32
    words = (
        "finetune", some, "--model", sizes.small, "--weights", "none", "--no-check", "--no-onnx", "--offline",
        "--epochs", 6, "--image-size", size, "--batch-size", 16, "--micro-batch-size", 8, "--freeze-epochs", 0,
        "--deterministic", "--amp", "bf16", "--ema-decay", 0.99, "--drop-path", 0.1, "--mixup", 0.2, "--seed", 5,
        "--val-fraction", 0.1, "--test-fraction", 0, "--hflip", 0.5,
    )  # fmt: skip

    def whole(name: str) -> Path:
        done = run_command(*words, "--output", work / name)
        if done.returncode:
            raise RuntimeError(f"{name}: exit {done.returncode}: {find_error(done)}")
        return work / name

    def stopped(name: str) -> tuple[Path, int, str]:
        run = work / name
        process = subprocess.Popen(
            make_command(*words, "--output", run), stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True
        )
        end = time.monotonic() + 80
        while time.monotonic() < end and process.poll() is None:
            log = run / "metrics.jsonl"
            if log.exists() and len(log.read_text().splitlines()) >= 3:
                break
            time.sleep(0.03)
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        _, output = process.communicate(timeout=60)
        return run, process.returncode, " ".join(output.split())[-200:]

    with ThreadPoolExecutor(1 if is_smoke() else 3) as pool:  # all read the images from one cache
        first = pool.submit(whole, "run_c1")
        again = pool.submit(whole, "run_c3")
        (interrupted, code, output) = pool.submit(stopped, "run_c2").result()
        first.result()
        again.result()
    done = run_command("finetune", "--resume", interrupted, "--no-onnx")
    print_check("c.stopped", code == 143, rc=code, output=output, resumed_rc=done.returncode)
    one, two, three = (work / f"run_c{number}" for number in (1, 2, 3))
    for check, other in (("c.repeatable", three), ("c.resumed", two)):
        result = compare(one, other)
        print_check(check, result.pop("same"), **result)


def compare(one: Path, two: Path) -> Row:
    """Compare all tensors of two runs' newest checkpoints, and the losses of their logs."""
    from safetensors import safe_open

    files = [sorted(run.glob("last/step-*.safetensors"))[-1] for run in (one, two)]
    worst, where, differing, number = 0.0, "", 0, 0
    with safe_open(files[0], "pt") as a, safe_open(files[1], "pt") as b:
        if set(a.keys()) != set(b.keys()) or files[0].name != files[1].name:
            return {"same": False, "why": f"{files[0].name} and {files[1].name} hold other tensors"}
        for name in a.keys():  # noqa: SIM118
            x, y = a.get_tensor(name), b.get_tensor(name)
            number += 1
            if not x.equal(y):
                differing += 1
                gap = float((x.double() - y.double()).abs().max())
                if gap > worst:
                    worst, where = gap, name
    logs = [[line["train_loss"] for line in read_log(run)] for run in (one, two)]
    unlike = next((i + 1 for i, pair in enumerate(zip(*logs, strict=False)) if pair[0] != pair[1]), None)
    return {
        "same": differing == 0, "tensors": number, "differing": differing, "largest_difference": worst,
        "of": where, "first_epoch_with_another_loss": unlike,
    }  # fmt: skip


def part_d(data: Path, work: Path) -> None:
    """Compare eval and predict on the GPU with the CPU, and measure their speed."""
    import numpy as np
    import torch

    sizes = choose_sizes()
    run = work / "run_a"
    paths = [path for kind in sorted(data.iterdir()) for path in sorted(kind.iterdir())[-sizes.subset // 8 :]]
    (work / "d_paths.json").write_text(json.dumps([str(path) for path in paths]))
    code = (
        "import json, sys, numpy as np\n"
        "from convnext_cli.inference.prediction import predict\n"
        "from convnext_cli.inference.evaluation import evaluate\n"
        "paths = json.loads(open(sys.argv[2]).read())\n"
        "predictions = predict(paths, sys.argv[1], engine='torch')\n"
        "order = sorted(predictions[0].classes)\n"
        "p = [[dict(zip(t.classes, t.probabilities))[name] for name in order] for t in predictions]\n"
        "m = evaluate(sys.argv[1], split='val').metrics\n"
        "print(json.dumps({'p': p, 'top1': m.top1, 'log_loss': m.log_loss}))\n"
    )
    results = {}
    environments: dict[str, dict[str, str]] = {"gpu": {}, "cpu": {"CUDA_VISIBLE_DEVICES": ""}}
    for name, env in environments.items():
        done = subprocess.run(
            [sys.executable, "-c", code, str(run), str(work / "d_paths.json")], capture_output=True, text=True,
            timeout=90, env={**os.environ, **env}, check=False,
        )  # fmt: skip
        if done.returncode:
            print_check("d.agreement", False, on=name, output=find_error(done))
            return
        results[name] = json.loads(done.stdout.splitlines()[-1])
    apart = float(np.abs(np.array(results["gpu"]["p"]) - np.array(results["cpu"]["p"])).max())
    recorded = json.loads((run / "metrics.json").read_text())["val"] or {}
    print_check(
        "d.agreement", apart < 1e-2, images=len(paths), largest_difference_of_a_probability=round(apart, 6),
        eval_log_loss={name: result["log_loss"] for name, result in results.items()},
        eval_top1={name: result["top1"] for name, result in results.items()},
        of_training={"log_loss": recorded.get("log_loss"), "top1": recorded.get("top1")},
    )  # fmt: skip
    from convnext_cli.inference.torch_classifier import TorchClassifier

    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    classifier = TorchClassifier(run, device)
    speeds = {}
    for size in (32, 128):
        images = np.zeros((size, sizes.size, sizes.size, 3), np.uint8)
        for name, classifier.bf16 in (("float32", False), ("bf16", True)):
            classifier.run_batch(images, features=True, heat=False)
            began = time.perf_counter()
            for _ in range(sizes.steps):
                classifier.run_batch(images, features=True, heat=False)
            seconds = time.perf_counter() - began
            speeds[f"{name}, batches of {size}"] = round(size * sizes.steps / seconds, 1)
    print_check("d.eval_speed", None, images_per_second=speeds)


def part_e(data: Path, work: Path) -> None:
    """Export a run made on the GPU to ONNX, and compare its outputs with the GPU's."""
    import numpy as np

    sizes = choose_sizes()
    try:
        import onnx  # noqa: F401
        import onnxruntime  # noqa: F401
        import onnxscript  # noqa: F401
    except ModuleNotFoundError as error:
        print_check("e.onnx", None, skipped=str(error))
        return
    from convnext_cli.exports.export import export
    from convnext_cli.inference.prediction import predict

    run = work / "run_a"
    began = time.perf_counter()
    done = export(run, output=work / "e.onnx", overwrite=True)
    seconds = time.perf_counter() - began
    paths = [path for kind in sorted(data.iterdir()) for path in sorted(kind.iterdir())[-sizes.subset // 16 :]]
    predictions = [predict(paths, run, engine="torch"), predict(paths, work / "e.onnx")]
    order = sorted(predictions[0][0].classes)
    values = [
        np.array([[dict(zip(one.classes, one.probabilities, strict=True))[name] for name in order] for one in part])
        for part in predictions
    ]
    apart = float(np.abs(values[0] - values[1]).max())
    print_check(
        "e.onnx", done.parity.holds and apart < 1e-2, seconds=round(seconds, 1), megabytes=round(done.bytes / 1e6, 1),
        parity_on_the_cpu=done.parity.difference, from_the_gpu=round(apart, 6), images=len(paths),
    )  # fmt: skip


def part_f(data: Path, work: Path) -> None:
    """Train the large model with gradient checkpointing, and without."""
    sizes = choose_sizes()
    some = link_subset(data, work, sizes.subset, "some_f")
    micro = sizes.batch // 2
    for checkpointing in (True, False):
        free_memory()
        peak_gib(reset=True)
        result = train(
            some, work / f"run_f{int(checkpointing)}", model=sizes.large, epochs=2, batch_size=micro,
            micro_batch_size=micro, grad_checkpointing=checkpointing, val_fraction=0.1, test_fraction=0.0,
        )  # fmt: skip
        measured = peak_gib()
        expected = estimate_gib(sizes.large, micro, sizes.size, checkpointing=checkpointing)
        losses = [round(line["train_loss"], 4) for line in result.log]
        name = f"f.{'with' if checkpointing else 'without'}_checkpointing"
        print_check(
            name, all(map(math.isfinite, losses)), train_loss=losses, micro_batch_size=micro, peak_gib=measured,
            estimate_gib=expected, ratio=measured and round(expected / measured, 2),
            steady=steady_speed(result.steps),
        )  # fmt: skip


def part_g(data: Path, work: Path) -> None:
    """Compare the peak memory of the plain bf16 step with the estimate that plans use."""
    import torch

    del data, work
    (cases, size), on_gpu = choose_sizes().memory, torch.cuda.is_available()
    rows = []
    for name, images in cases:
        for checkpointing in (False, True):
            free_memory()
            try:
                measured_step = measure_resident(
                    name, images, size, amp=on_gpu, compiled=False, steps=2, checkpointing=checkpointing
                )
            except torch.OutOfMemoryError:
                print_check(
                    "g.memory", None, model=name, images=images, checkpointing=checkpointing, out_of_memory=True
                )
                continue
            expected, measured = (
                estimate_gib(name, images, size, checkpointing=checkpointing),
                measured_step["peak_gib"],
            )
            rows.append((expected, measured))
            print_check(
                "g.memory", None, model=name, images=images, checkpointing=checkpointing, peak_gib=measured,
                estimate_gib=expected, ratio=measured and round(expected / measured, 2),
            )  # fmt: skip
    ratios = [expected / measured for expected, measured in rows if measured]
    within = all(0.85 <= ratio <= 1.15 for ratio in ratios)
    print_check("g.within_15_percent", within if ratios else None, least=ratios and round(min(ratios), 2),
        largest=ratios and round(max(ratios), 2))  # fmt: skip


def part_h(data: Path, work: Path) -> None:
    """Train with one process under torchrun (NCCL on a GPU), and one under FSDP."""
    import torch

    sizes = choose_sizes()
    some = link_subset(data, work, sizes.subset // 2, "some_h")
    words = (
        "finetune", some, "--model", sizes.small, "--weights", "none", "--no-check", "--no-onnx", "--offline",
        "--epochs", 1, "--image-size", 64 if not is_smoke() else 32, "--batch-size", 16, "--freeze-epochs", 0,
        "--val-fraction", 0.1, "--test-fraction", 0,
    )  # fmt: skip
    done = run_command(*words, "--output", work / "run_h1", "--devices", 1)
    print_check(
        "h.torchrun", done.returncode == 0, rc=done.returncode, output=find_error(done) if done.returncode else ""
    )
    if not torch.cuda.is_available():
        print_check("h.fsdp", None, skipped="Accelerate has FSDP on accelerators alone")
        return
    config = work / "fsdp.yaml"
    config.write_text(
        "compute_environment: LOCAL_MACHINE\ndistributed_type: FSDP\nfsdp_config:\n  fsdp_version: 2\n"
        "  fsdp_auto_wrap_policy: SIZE_BASED_WRAP\n  fsdp_min_num_params: 100000\n  fsdp_reshard_after_forward: true\n"
        "  fsdp_state_dict_type: FULL_STATE_DICT\n  fsdp_cpu_ram_efficient_loading: false\n"
        "mixed_precision: bf16\nnum_machines: 1\nnum_processes: 1\n"
    )
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--config_file", str(config), "-m", "convnext_cli"]
    done = subprocess.run(
        [*launch, *(str(word) for word in (*words, "--output", work / "run_h2"))], capture_output=True, text=True,
        timeout=90, check=False,
    )  # fmt: skip
    lines = [line for line in done.stderr.splitlines() if line.startswith("error")]
    print_check("h.fsdp", done.returncode == 0, rc=done.returncode, output=(lines or [find_error(done)])[0][:400])


def show_machine() -> None:
    """Print versions and device, and the machine that plans are made for."""
    from importlib.metadata import PackageNotFoundError, version

    packages: dict[str, str | None] = {}
    for name in (
        "convnext-cli", "torch", "torchvision", "timm", "accelerate", "numpy", "pillow", "typer", "onnxruntime",
    ):  # fmt: skip
        try:
            packages[name] = version(name)
        except PackageNotFoundError:
            packages[name] = None
    code = (
        "import json, torch; from convnext_cli.machine import detect_machine, count_cpus; c = torch.cuda;"
        "from convnext_cli.models.forward import choose_device;"
        "a = c.is_available(); print(json.dumps({'cuda': a, 'name': a and c.get_device_name(0),"
        "'capability': a and c.get_device_capability(0), 'bf16': a and c.is_bf16_supported(including_emulation=False),"
        "'used': choose_device().type, 'built_for': c.get_arch_list(),"
        "'planned_for': str(detect_machine()), 'cpus': count_cpus(), 'threads': torch.get_num_threads()}))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False)
    machine = json.loads(done.stdout.splitlines()[-1]) if done.returncode == 0 else {"output": find_error(done)}
    is_used = machine.get("used") == "cuda" and not str(machine.get("planned_for", "")).startswith("CPU")
    ok = done.returncode == 0 and (is_used or not machine.get("cuda"))
    print_check("machine", ok, python=sys.version.split()[0], packages=packages, **machine)


def run_part(name: str, args: argparse.Namespace, seconds: float, lines: list[Row], cores: str) -> None:
    """Run a part in a process of its own and pass its lines on; kill it, and all that it started, at its limit."""
    log = args.logs / f"log-{name}.txt"
    part = ["--part", name, "--data", args.data, "--work", args.work]
    words = ["taskset", "-c", cores, sys.executable, str(Path(__file__).resolve()), *part]
    began = time.monotonic()
    with log.open("w") as errors:
        process = subprocess.Popen(
            [str(word) for word in words], stdout=subprocess.PIPE, stderr=errors, text=True, start_new_session=True
        )
        late = threading.Timer(seconds, lambda: kill_group(process.pid))
        late.start()
        try:
            assert process.stdout is not None
            for line in process.stdout:
                if line.startswith('{"check"'):
                    lines.append(json.loads(line))
                    with LOCK:
                        print(line, end="", flush=True)
                        keep(args, line)
                else:
                    errors.write(line)
            process.wait()
        finally:
            late.cancel()
            kill_group(process.pid)
    took = time.monotonic() - began
    if process.returncode:
        why = "out of time" if took >= seconds - 0.5 else f"exit {process.returncode}"
        tail = [text for text in log.read_text(errors="replace").splitlines() if text.strip()][-1:]
        report(args, lines, f"{name}.part", False, why=why, seconds=round(took, 1), output=(tail or [""])[0][:300])
    else:
        report(args, lines, f"{name}.part", True, seconds=round(took, 1))


def report(args: argparse.Namespace, lines: list[Row], check: str, ok: "bool | None", **values: object) -> None:
    """Print a line of this process itself, and keep it with those of the parts."""
    line = {"check": check, "ok": ok, **values}
    lines.append(line)
    with LOCK:
        print(json.dumps(line, default=str), flush=True)
        keep(args, json.dumps(line, default=str) + "\n")


def keep(args: argparse.Namespace, line: str) -> None:
    """Add a line to `results.jsonl`."""
    with (args.logs / "results.jsonl").open("a") as file:
        file.write(line)


def kill_group(number: int) -> None:
    """Kill a process group, if it is still there."""
    with suppress(ProcessLookupError, PermissionError):
        os.killpg(number, signal.SIGKILL)


def parse_arguments() -> argparse.Namespace:
    """Return the command line's arguments."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, help="a folder with one folder of images per class; made if missing")
    parser.add_argument("--work", type=Path, help="folder of runs and caches; a temporary one if missing")
    parser.add_argument("--only", default="", help="parts, such as a,c; d and e need a, full needs s")
    parser.add_argument("--limit-s", type=float, default=560, help="seconds for everything")
    parser.add_argument("--jobs", type=int, default=5, help="parts at a time, where they may run side by side")
    parser.add_argument("--timm-train", type=Path, help="timm's train.py, from the tag of the installed version")
    parser.add_argument("--cpu-smoke", action="store_true", help="test this script's own logic on a CPU")
    parser.add_argument("--part", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.timm_train and not args.timm_train.is_file():
        parser.error(f"--timm-train {args.timm_train} is not a file")
    return args


def run_here(args: argparse.Namespace) -> None:
    """Run one part in this process; exit with 1 if it fails."""
    if is_smoke() and args.part != "k":  # the compiler would take minutes; part k tests it
        os.environ["TORCHDYNAMO_DISABLE"] = "1"
    try:
        globals()[f"part_{args.part}"](args.data, args.work)
    except BaseException as error:  # the parent prints it, and the log has the traceback
        traceback.print_exc()
        if not isinstance(error, SystemExit):
            text = " ".join(str(error).split())[:300]
            print_check(f"{args.part}.error", False, output=f"{type(error).__name__}: {text}")
        sys.exit(1)


def share_cores(jobs: int, parts: int) -> list[str]:
    """Return the cores of each part, as taskset has them: parts side by side must not wait for each other's threads."""
    own = sorted(os.sched_getaffinity(0))
    shares = [own[number::jobs] or own for number in range(jobs)]
    return [",".join(map(str, shares[number % jobs])) for number in range(parts)]


def run_all(args: argparse.Namespace, began: float) -> list[Row]:
    """Run the parts in their stages, and return all lines."""
    lines: list[Row] = []
    if args.data is None:
        args.data = make_data(args.work / "data")
        report(args, lines, "data", True, seconds=round(time.monotonic() - began, 1))
    args.data = args.data.resolve()
    chosen = [name for name in args.only.split(",") if name]
    failed: set[str] = set()

    def run_if_time(name: str, cores: str) -> None:
        left = args.limit_s - (time.monotonic() - began)
        if left < 15:
            report(args, lines, f"{name}.part", None, why="no time left")
        else:
            run_part(name, args, min(PARTS[name][0] * (3 if is_smoke() else 1), left), lines, cores)

    for stage in STAGES:
        names = [name for name in stage if not chosen or name in chosen]
        ready = [name for name in names if not failed & set(PARTS[name][1])]
        for name in set(names) - set(ready):
            report(args, lines, f"{name}.part", None, why="a part that it needs has failed")
        with ThreadPoolExecutor(args.jobs) as pool:
            list(pool.map(run_if_time, ready, share_cores(max(1, min(args.jobs, len(ready))), len(ready))))
        failed |= {name for name in {"a", "s"} & set(ready) if not (args.work / f"run_{name}/metrics.json").exists()}
    return lines


def main() -> None:
    """Run the chosen parts, and print a summary; exit with 1 if a check fails."""
    args = parse_arguments()
    if args.cpu_smoke:
        os.environ[SMOKE] = "1"
        os.environ["CUDA_VISIBLE_DEVICES"] = ""
        args.jobs, args.limit_s = 1, max(args.limit_s, 1500)
    if args.part:
        run_here(args)
        return
    if args.timm_train:
        os.environ[TIMM_TRAIN] = str(args.timm_train.resolve())
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="benchmarks_gpu_") as temporary:
        args.work = (args.work or Path(temporary)).resolve()
        args.work.mkdir(parents=True, exist_ok=True)
        args.logs = Path(os.environ.get("OUT") or args.work)
        os.environ.update(
            XDG_CACHE_HOME=str(args.work / "cache"), HF_HUB_OFFLINE="1", CONVNEXT_ONNX="0", PYTHONUNBUFFERED="1",
            TORCHINDUCTOR_CACHE_DIR=str(args.work / "inductor"), TRITON_CACHE_DIR=str(args.work / "triton"),
        )  # fmt: skip
        show_machine()
        lines = run_all(args, began)
        passed = sum(line["ok"] is True for line in lines)
        failed = [line["check"] for line in lines if line["ok"] is False]
        seconds = round(time.monotonic() - began, 1)
        report(args, lines, "summary", not failed, passed=passed, failed=failed, seconds=seconds)
    sys.exit(bool(failed))


if __name__ == "__main__":
    main()
