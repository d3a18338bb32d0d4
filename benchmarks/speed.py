"""Compare the speed of training and inference, from a folder of images, with the limit of the machine.

    python -m benchmarks.speed FOLDER [--images 960] [--model convnext_atto] [--image-size 224] [--batch-size 32]
                               [--rounds 3] [--only WORD ...] [--load 3]

FOLDER has `train/<class>/` folders; `--images` of its images are linked into a temporary folder. Each candidate is a
process that prepares and then waits for its turn; a turn is one pass over the images. The turns of a round are in
random order, so that a drift of the machine's speed affects all candidates. Memory is the maximum proportional set
size (Linux) of a candidate's process with its children. On a shared machine, images per second of CPU time are more
reliable than images per second. Ratios are to the fastest limit in the same round; the table has their median,
minimum and maximum. `--load` adds other processes that each keep a core busy, as on a shared machine.

    limit …         a training step on one batch that stays in memory: timm's model in three modes, and ours
    ours, first     the first epoch of `finetune`, nothing cached
    ours, steady    its later epochs
    plain           plain torch: ImageFolder, DataLoader with two workers, RandomResizedCrop, AdamW
    plain, alone    the same without workers
    infer limit …   the forward pass on one batch that stays in memory
    eval, first     `eval` without its metrics, nothing cached
    eval, again     the same from the cache
    predict         `predict` on the same images
"""

import argparse
import itertools
import os
import random
import statistics
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from multiprocessing import get_context
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any, NamedTuple

RESIDENT = 10  # batches, at most, in a turn on one batch in memory


class Task(NamedTuple):
    """Data, model and sizes that all candidates use."""

    folder: Path
    """Linked images in `train/<class>/` and `val/<class>/`; cache and runs are beside it."""
    images: int
    model: str
    image_size: int
    batch_size: int


class Speed(NamedTuple):
    """Images per second of a turn."""

    wall: float
    processor: float


class Watch:
    """A clock of wall and CPU time that starts when it is made."""

    def __init__(self) -> None:
        self.started = time.perf_counter(), sum(os.times()[:4])

    def stop(self, images: int) -> Speed:
        """Return the speed at which `images` images were processed since the start."""
        wall, processor = self.started
        return Speed(images / (time.perf_counter() - wall), images / (sum(os.times()[:4]) - processor))


Turns = Iterator[Speed]
"""A candidate: it prepares, then yields the speed of each turn."""


def train_resident(task: Task, mode: str) -> Turns:
    """Do training steps on one batch in memory."""
    import torch
    import torch.nn.functional as F

    model, optimizer, inputs = make_resident(task, mode)
    labels = torch.arange(task.batch_size) % 2
    while True:
        steps = count_batches(task)
        for count in (1, steps):  # the first warms up
            watch = Watch()
            for _ in range(count):
                torch.autograd.backward(F.cross_entropy(model(inputs), labels))
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
        yield watch.stop(steps * task.batch_size)


def train_ours(task: Task, mode: str) -> Turns:
    """Train with `finetune`; a turn is an epoch."""
    from convnext_cli.progress import Notice
    from convnext_cli.training.events import EpochDone, Started, StepDone
    from convnext_cli.training.finetuning import finetune_steps

    request = make_request(task, f"run-{os.getpid()}", {"epochs": 1000, "min_crop_area": 0.5})
    events = finetune_steps(request)
    watch = Watch()
    for event in events:
        if isinstance(event, Notice):
            print(f"ours: {event.text}", file=sys.stderr)
        if isinstance(event, Started):
            print(f"ours: {event.compute_config}", file=sys.stderr)
        if isinstance(event, StepDone) and event.step == event.steps:
            speed = watch.stop(task.images)
        if isinstance(event, EpochDone) and (event.epoch == 1) == (mode == "first"):
            yield speed
        if isinstance(event, EpochDone | Started):
            watch = Watch()


def train_plain(task: Task, mode: str) -> Turns:
    """Train with a plain torch loop; a turn is an epoch."""
    import torch
    import torch.nn.functional as F

    model, optimizer = make_torch_model(task)
    loader = open_images(task, workers=0 if mode == "alone" else 2)
    model.train()
    for epoch in itertools.count():
        watch = Watch()
        for inputs, labels in loader:
            loss = F.cross_entropy(model(inputs), labels)
            torch.autograd.backward(loss)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)
            loss.item()
        if epoch:  # the first one warms up
            yield watch.stop(task.images)


def infer_resident(task: Task, mode: str) -> Turns:
    """Do forward passes on one batch in memory."""
    import torch

    model, _, inputs = make_resident(task, mode)
    model.eval()
    with torch.inference_mode():
        while True:
            model(inputs)
            watch = Watch()
            batches = count_batches(task)
            for _ in range(batches):
                model(inputs)
            yield watch.stop(batches * task.batch_size)


def infer_ours(task: Task, mode: str) -> Turns:
    """Run the forward passes of `eval`, or `predict`, on all images."""
    from convnext_cli.cache_folder import clear_cache
    from convnext_cli.data.sources import scan_data
    from convnext_cli.inference.prediction import predict_images
    from convnext_cli.inference.request import PredictRequest
    from convnext_cli.inference.sources import list_sources
    from convnext_cli.inference.torch_classifier import TorchClassifier

    run = write_model_folder(task)
    index = scan_data(task.folder)
    rows = index.rows("train")
    classifier = TorchClassifier(run)
    if mode != "predict":
        list(classifier.classify_rows(index, rows))
    while True:
        if mode == "first":
            clear_cache()
        watch = Watch()
        if mode == "predict":
            sources = list_sources([index.root / index.paths[row] for row in rows])
            list(predict_images(run, sources, PredictRequest()))
        else:
            list(classifier.classify_rows(index, rows))
        yield watch.stop(task.images)


CANDIDATES: dict[str, tuple[Callable[[Task, str], Turns], str]] = {
    "limit, plain layout": (train_resident, "plain"),
    "limit, channels last": (train_resident, "channels last"),
    "limit, compiled": (train_resident, "compiled"),
    "limit, our blocks": (train_resident, "ours"),
    "ours, first": (train_ours, "first"),
    "ours, steady": (train_ours, "steady"),
    "plain": (train_plain, "workers"),
    "plain, alone": (train_plain, "alone"),
    "infer limit, plain layout": (infer_resident, "plain"),
    "infer limit, channels last": (infer_resident, "channels last"),
    "infer limit, compiled": (infer_resident, "compiled"),
    "infer limit, our blocks": (infer_resident, "ours"),
    "eval, first": (infer_ours, "first"),
    "eval, again": (infer_ours, "again"),
    "predict": (infer_ours, "predict"),
}


def count_batches(task: Task) -> int:
    """Return the batches of a turn on one batch in memory."""
    return min(RESIDENT, -(-task.images // task.batch_size))


def make_torch_model(task: Task) -> tuple[Any, Any]:
    """Return timm's model and AdamW with their defaults."""
    import timm
    import torch

    model = timm.create_model(task.model, num_classes=len(list((task.folder / "train").iterdir())))
    return model, torch.optim.AdamW(model.parameters(), lr=1e-4, weight_decay=0.05)


def open_images(task: Task, *, workers: int) -> Any:
    """Return torch's loader of random crops."""
    from timm.data.constants import IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD
    from torch.utils.data import DataLoader
    from torchvision import transforms
    from torchvision.datasets import ImageFolder

    crop = transforms.RandomResizedCrop(task.image_size, scale=(0.5, 1), interpolation=3)
    normalise = transforms.Normalize(IMAGENET_DEFAULT_MEAN, IMAGENET_DEFAULT_STD)
    images = ImageFolder(task.folder / "train", transforms.Compose([crop, transforms.ToTensor(), normalise]))
    return DataLoader(images, task.batch_size, shuffle=True, num_workers=workers)


def make_request(task: Task, run: str, settings: dict[str, Any]) -> Any:
    """Return a request for a fine-tuning from random weights; `run` names its folder, beside the images."""
    from convnext_cli.recipes.settings import Choice
    from convnext_cli.training.request import TrainRequest

    settings = settings | {"batch_size": task.batch_size, "image_size": task.image_size}
    return TrainRequest(
        data=task.folder,
        audit=False,
        model=task.model,
        weights="none",
        offline=True,
        output=task.folder.parent / run,
        choices={name: Choice(value=value, source="the benchmark") for name, value in settings.items()},
    )


def make_resident(task: Task, mode: str) -> tuple[Any, Any, Any]:
    """Return a model in training mode, its optimizer, and one batch of noise, (B, 3, S, S), in the layout of `mode`."""
    import torch

    from convnext_cli.kernels.blocks import keep_freed_memory, use_fused_blocks

    model, optimizer = make_torch_model(task)
    memory_format = torch.contiguous_format if mode == "plain" else torch.channels_last
    model = model.train().to(memory_format=memory_format)
    if mode == "ours":
        keep_freed_memory()
        use_fused_blocks(model, native=True)
    if mode == "compiled":
        model.compile(dynamic=False)
    inputs = torch.randn(task.batch_size, 3, task.image_size, task.image_size).to(memory_format=memory_format)
    return model, optimizer, inputs


def write_model_folder(task: Task) -> Path:
    """Write a model of random weights as `finetune` does, and return its folder."""
    from convnext_cli.inference.saved_model import RunMetadata, write_model
    from convnext_cli.models.build import read_preprocessing

    run = task.folder.parent / f"model-{os.getpid()}"
    run.mkdir()
    model, _ = make_torch_model(task)
    preprocessing = replace(read_preprocessing(model), image_size=task.image_size)
    write_model(
        model,
        run,
        model.state_dict(),
        RunMetadata(
            classes=sorted(folder.name for folder in (task.folder / "train").iterdir()),
            preprocessing=preprocessing,
            license=None,
        ),
    )
    return run


def take_turns(name: str, task: Task, pipe: Connection) -> None:
    """Run a candidate's process: for each message in the pipe take a turn, and send its speed and peak bytes."""
    os.environ["CONVNEXT_CACHE"] = str(task.folder.parent / f"cache-{os.getpid()}")
    make, mode = CANDIDATES[name]
    peak = [0]
    threading.Thread(target=watch_memory, args=(peak,), daemon=True).start()
    turns = make(task, mode)
    pipe.send(None)
    while pipe.recv():
        pipe.send((next(turns), peak[0]))


def watch_memory(peak: list[int]) -> None:
    """Keep the maximum proportional set size of this process and its children in `peak`."""
    while True:
        peak[0] = max(peak[0], sum(map(read_pss, list_family())))
        time.sleep(2.0)  # seldom, because reading it is as slow as copying the page table


def list_family() -> list[int]:
    """Return the ids of this process and its children."""
    mine = os.getpid()
    try:
        children = Path(f"/proc/{mine}/task/{mine}/children").read_text().split()
    except OSError:
        children = []
    return [mine, *map(int, children)]


def read_pss(process: int) -> int:
    """Return the proportional set size of a process, in bytes."""
    try:
        lines = Path(f"/proc/{process}/smaps_rollup").read_text().splitlines()
    except OSError:
        return 0
    return next((int(line.split()[1]) * 1024 for line in lines if line.startswith("Pss:")), 0)


def link_images(source: Path, target: Path, count: int) -> int:
    """Link `count` training images, evenly over the classes, and 32 for validation; return the number of the former."""
    files = [
        sorted(path for path in folder.iterdir() if path.is_file()) for folder in sorted((source / "train").iterdir())
    ]
    order = [
        path for row in zip(*(f * (1 + max(map(len, files)) // len(f)) for f in files), strict=False) for path in row
    ]
    chosen = list(dict.fromkeys(order))[: count + 32]
    for i, path in enumerate(chosen):
        link = target / ("train" if i < count else "val") / path.parent.name / path.name
        link.parent.mkdir(parents=True, exist_ok=True)
        link.symlink_to(path.resolve())
    return min(count, len(chosen))


def measure(task: Task, names: list[str], rounds: int) -> tuple[dict[str, list[Speed]], dict[str, int]]:
    """Return the speed of each turn, and peak bytes, by candidate."""
    spawn = get_context("spawn")
    speeds: dict[str, list[Speed]] = {name: [] for name in names}
    memory = dict.fromkeys(names, 0)
    waiting: dict[str, tuple[Any, Any]] = {}

    def start(name: str) -> tuple[Any, Any]:
        ours, theirs = spawn.Pipe()
        process = spawn.Process(target=take_turns, args=(name, task, theirs))
        process.start()
        ours.recv()
        return process, ours

    for number in range(rounds):
        for name in random.Random(number).sample(names, len(names)):  # noqa: S311
            process, pipe = waiting.pop(name) if name in waiting else start(name)
            pipe.send(True)
            speed, peak = pipe.recv()
            print(
                f"  round {number + 1}: {name:<28} {speed.wall:8.1f} images/s, {speed.processor:.1f} per CPU second",
                file=sys.stderr,
                flush=True,
            )
            speeds[name].append(speed)
            memory[name] = max(memory[name], peak)
            if name.startswith("ours, first"):  # a run has one first epoch
                process.kill()
            else:
                waiting[name] = process, pipe
    for process, _ in waiting.values():
        process.kill()
    return speeds, memory


@contextmanager
def keep_busy(processes: int) -> Iterator[None]:
    """Keep cores busy during the block, one for each process."""
    command = [sys.executable, "-c", "while True: sum(range(100_000))"]
    started = [subprocess.Popen(command) for _ in range(processes)]
    try:
        yield
    finally:
        for process in started:
            process.kill()


def main() -> None:
    """Measure, and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--model", default="convnext_atto")
    parser.add_argument("--image-size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--only", nargs="*", default=[""], help="candidates whose names begin with one of these")
    parser.add_argument("--load", type=int, default=0, help="other processes that keep a core busy")
    args = parser.parse_args()
    names = [name for name in CANDIDATES if name.startswith(tuple(args.only))]
    with tempfile.TemporaryDirectory() as work:
        images = link_images(args.data, Path(work, "data"), args.images)
        task = Task(Path(work, "data"), images, args.model, args.image_size, args.batch_size)
        with keep_busy(args.load):
            speeds, memory = measure(task, names, args.rounds)
    from convnext_cli.kernels.library import describe_processor

    processor = describe_processor("model name").partition(":")[2].strip()
    print(f"{processor}, {os.cpu_count()} cores, {args.load} other processes")
    print(f"{args.model}, {args.image_size} px, batches of {args.batch_size}, {images} images, n = {args.rounds}")
    print(f"{'':<27}{'images/s':>9}  of limit (least, most)  /s processor  of limit (least, most) {'PSS GiB':>8}")
    for name, turns in speeds.items():
        is_inference = CANDIDATES[name][0] in (infer_resident, infer_ours)
        limits = [turns for n, turns in speeds.items() if n.startswith("infer limit" if is_inference else "limit")]
        columns = [
            describe(part, turns, limits) for part in (Speed._fields.index("wall"), Speed._fields.index("processor"))
        ]
        print(f"{name:<27}{columns[0]}  {columns[1]} {memory[name] / 2**30:8.2f}")


def describe(part: int, turns: list[Speed], limits: list[list[Speed]]) -> str:
    """Return a candidate's median speed and its ratios to the fastest limit, as text."""
    speed = statistics.median(turn[part] for turn in turns)
    if not limits:
        return f"{speed:9.1f} {'':>22}"
    best = max(limits, key=lambda limit: statistics.median(turn[part] for turn in limit))
    ratios = [turn[part] / limit[part] for turn, limit in zip(turns, best, strict=True)]
    return f"{speed:9.1f}  {statistics.median(ratios):6.2f} ({min(ratios):4.2f}, {max(ratios):4.2f})  "


if __name__ == "__main__":
    main()
