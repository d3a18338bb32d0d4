"""Kill a training at random moments, resume it each time, and compare its end with that of an undisturbed run.

    python tools/kill_test.py DATA [--during export] [--kills 30] [--processes 2] [--images 16] [--seed 0]

One run is undisturbed. Then the same run is killed with SIGKILL, which no process can catch, at moments drawn uniformly
over its length, and resumed with `finetune --resume` until it ends; and so on, until `--kills` kills are done. After
each kill every file under a final name must be readable, and checkpoints must have their checksum. Each finished run
must have the files of the undisturbed one: model, calibration and metrics to the byte, metrics.jsonl without times. No
temporary file and no lock may be left.

`--during` draws the moments from one phase: cache (until the end of the first epoch, with the cache that kills have
left), calibration, or export (of model.onnx, which is otherwise left out). Calibration and export come after the
epochs, so one run is killed where the phase begins, and each further run starts as a copy of it.

DATA is a folder of <class>/ or {train,val}/<class>/ folders of real images; `--images` of each class are used. The
processes are forked from one that has imported torch, so that most of their time is training.
"""

import argparse
import csv
import json
import multiprocessing
import os
import random
import shutil
import socket
import sys
import tempfile
import time
import tomllib
from collections import Counter
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

from convnext_cli.data.scan import scan_folder
from convnext_cli.runs.folder import RunFolder

EPOCHS = 6
SETTINGS = (
    f"--model test_convnext2 --weights none --epochs {EPOCHS} --image-size 32 --batch-size 8 --micro-batch-size 4 "
    "--lr 0.002 --mixup 0.2 --drop-path 0.1 --val-fraction 0.25 --save-every 3"
)

_processes = multiprocessing.get_context("forkserver")
_processes.set_forkserver_preload(["convnext_cli.training.saving", "convnext_cli.cli.finetune", "accelerate.tracking"])


def copy_images(data: Path, folder: Path, images: int) -> Path:
    """Link the first `images` images of each class of `data` into class folders under `folder`; return it."""
    index = scan_folder(data)
    linked: Counter[int] = Counter()
    for path, label in zip(index.paths, index.labels, strict=True):
        if linked[label] < images:
            linked[label] += 1
            link = folder / index.classes[label] / path.replace("/", "_")
            link.parent.mkdir(parents=True, exist_ok=True)
            link.symlink_to((data / path).absolute())
    return folder


def start(words: Sequence[str], processes: int) -> Sequence[multiprocessing.process.BaseProcess]:
    """Start `convnext WORDS` in `processes` processes, which connect like those of torchrun."""
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = str(free.getsockname()[1])
    several = {"WORLD_SIZE": str(processes), "MASTER_ADDR": "localhost", "MASTER_PORT": port}
    started = []
    for rank in range(processes):
        own = {"RANK": str(rank), "LOCAL_RANK": str(rank), "LOCAL_WORLD_SIZE": str(processes)}
        environment = several | own if processes > 1 else {}
        environment = environment | {"CONVNEXT_CACHE": os.environ.get("CONVNEXT_CACHE", ""), "CONVNEXT_ONNX": "1"}
        started.append(_processes.Process(target=_work, args=(list(words), environment, str(Path.cwd()))))
        started[-1].start()
    return started


@contextmanager
def use_cache(name: str) -> Iterator[None]:
    """Give processes that are started in the block their own cache folder."""
    before = os.environ.get("CONVNEXT_CACHE")
    os.environ["CONVNEXT_CACHE"] = str(Path(name).absolute())
    try:
        yield
    finally:
        if before is None:
            del os.environ["CONVNEXT_CACHE"]
        else:
            os.environ["CONVNEXT_CACHE"] = before


def _work(words: list[str], environment: dict[str, str], folder: str) -> None:
    os.environ |= {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "passive", **environment}
    os.chdir(folder)
    for stream in (sys.stdout, sys.stderr):
        os.dup2(os.open("output.txt", os.O_WRONLY | os.O_APPEND | os.O_CREAT), stream.fileno())
    from convnext_cli.cli.app import main

    main(words)


@dataclass(frozen=True, slots=True)
class Phase:
    """A phase of a run, between the writing of two files; None is the start or end of the process."""

    begin: str | None = None
    end: str | None = None
    lines: int = 0
    """Lines of the first file when the phase begins."""


PHASES = {
    "all": Phase(),
    "cache": Phase(end="metrics.jsonl"),
    "calibration": Phase(begin="metrics.jsonl", end="calibration.json", lines=EPOCHS),
    "export": Phase(begin="calibration.json", end="metrics.json"),
}


def is_written(path: Path, since: float, lines: int = 0) -> bool:
    """Return True if a file was written after the time `since`, with at least `lines` lines."""
    try:
        return path.stat().st_mtime > since and (not lines or len(path.read_bytes().splitlines()) >= lines)
    except OSError:
        return False


def measure(words: Sequence[str], processes: int, run: RunFolder, phase: Phase) -> float:
    """Run `convnext WORDS` to its end, and return the duration of the phase in seconds."""
    since = began = time.time()
    workers, ended = start(words, processes), None
    has_begun = phase.begin is None
    while any(worker.is_alive() for worker in workers):
        if not has_begun and phase.begin and is_written(run.path / phase.begin, since, phase.lines):
            has_begun, began = True, time.time()
        if ended is None and phase.end and is_written(run.path / phase.end, since):
            ended = time.time()
        time.sleep(0.002)
    if any(worker.exitcode for worker in workers):
        raise SystemExit(f"convnext {' '.join(words)} failed:\n{Path('output.txt').read_text()[-3000:]}")
    return (ended or time.time()) - began


def run_and_kill(
    words: Sequence[str], processes: int, after: float | None, run: RunFolder | None = None, phase: Phase = Phase()
) -> bool:
    """Run `convnext WORDS` and kill it `after` seconds into the phase; return True if it was still running."""
    since = time.time()
    workers = start(words, processes)
    if run is not None and phase.begin:
        while any(worker.is_alive() for worker in workers):
            if is_written(run.path / phase.begin, since, phase.lines):
                break
            time.sleep(0.002)
    deadline = None if after is None else time.monotonic() + after
    for worker in workers:
        worker.join(None if deadline is None else max(0.0, deadline - time.monotonic()))
    killed = any(worker.is_alive() for worker in workers)
    for worker in workers:
        worker.kill()
        worker.join()
    if not killed and any(worker.exitcode for worker in workers):
        raise SystemExit(f"convnext {' '.join(words)} failed:\n{Path('output.txt').read_text()[-3000:]}")
    return killed


def check_files(run: RunFolder) -> int:
    """Read each file under a final name, and return their number.

    Raises:
        Exception: a file cannot be read.
    """
    from PIL import Image
    from safetensors.torch import load_file

    from convnext_cli.training.checkpoint import read_checkpoint

    paths = [path for path in run.path.rglob("*") if path.is_file() and not path.name.startswith(".")]
    for path in paths:
        if path.name.startswith("step-"):
            read_checkpoint(path)
        elif path.suffix == ".safetensors":
            load_file(path)
        elif path.suffix == ".onnx":
            import onnx

            onnx.checker.check_model(path)
        elif path.suffix == ".png":
            Image.open(path).verify()
        elif path.suffix == ".toml":
            tomllib.loads(path.read_text())
        elif path.suffix == ".csv":
            assert len({len(row) for row in csv.reader(path.read_text().splitlines())}) == 1
        else:
            for text in path.read_text().splitlines() if path.suffix == ".jsonl" else [path.read_text()]:
                json.loads(text)
    return len(paths)


def read_files(run: RunFolder) -> dict[str, bytes]:
    """Return the names of a run's files, with the content of those that are reproducible to the byte."""
    same = (
        "model.safetensors",
        "config.json",
        "calibration.json",
        "calibration.safetensors",
        "metrics.json",
        "split.csv",
    )
    return {
        str(path.relative_to(run.path)): path.read_bytes() if path.name in same else b""
        for path in run.path.rglob("*")
        if path.is_file()
    }


def read_final_files(run: RunFolder) -> tuple[bytes, list[dict[str, object]]]:
    """Return the bytes of a run's model, and its log without times."""
    lines = [json.loads(line) for line in (run.path / "metrics.jsonl").read_text().splitlines()]
    timeless = [
        {key: value for key, value in line.items() if key not in ("seconds", "images_per_second")} for line in lines
    ]
    return (run.path / "model.safetensors").read_bytes(), timeless


def compare(data: Path, *, kills: int, processes: int, seed: int, settings: str = SETTINGS, during: str = "all") -> str:
    """Do the test of this module in the working directory, and return its result in one line.

    Raises:
        AssertionError: a run ended in other files.
    """
    phase = PHASES[during]
    onnx = [] if during == "export" else ["--no-onnx"]
    words = ["finetune", str(data), *settings.split(), *onnx, "--output"]
    draw = random.Random(seed)  # noqa: S311
    whole = RunFolder(Path("whole"))
    run_and_kill(["--version"], 1, None)  # starts the process that the others are forked from
    with use_cache("whole-cache"):
        length = measure([*words, "whole"], processes, whole, phase)
    end, files = read_final_files(whole), read_files(whole)
    if phase.begin:
        with use_cache("begun-cache"):
            if not run_and_kill([*words, "begun"], processes, 0, RunFolder(Path("begun")), phase):
                raise SystemExit(f"the run ended before it could be killed at the beginning of {during}")
    done, ended, steps = 0, 0, set()
    while done < kills or ended == 0:
        name = f"killed-{ended}"
        run = RunFolder(Path(name))
        if phase.begin:
            shutil.copytree("begun", name)
        with use_cache(f"{name}-cache"):
            while not run.is_finished:
                begun = ["finetune", "--resume", name, *onnx]
                command = begun if run.is_begun else [*words, name]
                if run_and_kill(
                    command, processes, draw.uniform(0, 1.2 * length) if done < kills else None, run, phase
                ):
                    done += 1
                    check_files(run)
                    steps |= {path.stem for path in run.list_checkpoints()[:1]}
        assert read_final_files(run) == end, f"{name} has another model or log than {whole.path}"
        assert read_files(run) == files, f"{name} has other files than {whole.path}"
        ended += 1
        shutil.rmtree(run.path)
    several = "es" * (processes > 1)
    return (
        f"{done} kills, {processes} process{several}, in {length:.1f} s ({during}): {ended} runs, left at {len(steps)} "
        "different checkpoints, all ended in the same bytes and files; every file could be read after each kill"
    )


def main() -> None:
    """Run the script."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--during", choices=PHASES, default="all")
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("--processes", type=int, default=1)
    parser.add_argument("--images", type=int, default=16, help="of each class")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()
    data = args.data.absolute()
    with tempfile.TemporaryDirectory() as folder:
        os.chdir(folder)
        dataset = copy_images(data, Path(folder) / "data", args.images)
        print(compare(dataset, kills=args.kills, processes=args.processes, seed=args.seed, during=args.during))
        os.chdir("/")


if __name__ == "__main__":
    main()
