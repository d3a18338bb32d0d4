"""Make `runs.tar.xz`, with the code of the commit whose runs must stay readable.

    OMP_NUM_THREADS=1 PYTHONPATH=CHECKOUT python tests/data_of_earlier_versions/make_runs.py FOLDER

The archive is of commit f3b4f05. It has a finished run, the same run stopped after its first epoch, and
the weights that both start from. The blocks of these weights are zero, with zero gradients, so that checkpoints
compress well. The images are not in it; `tests/runs/test_earlier_versions.py` writes them again.
"""

import contextlib
import json
import os
import sys
import tarfile
from pathlib import Path
from typing import Any

import timm
import torch
from PIL import Image
from safetensors.torch import save_file

from convnext_cli import evaluate, finetune
from convnext_cli.data.digits import write_digits

OPTIONS: dict[str, Any] = {
    "model": "test_convnext", "weights": "weights.safetensors", "image_size": 32, "epochs": 2, "batch_size": 16,
    "micro_batch_size": 16, "lr": 1e-2, "mixup": 0.2, "val_fraction": 0.4, "test_fraction": 0.2, "seed": 3,
    "onnx": False,
}  # fmt: skip


class StoppedError(Exception):
    """Stops a training."""


def write_images(folder: Path) -> Path:
    """Write 60 digits of three classes as BMP, whose bytes depend on no library."""
    everything = write_digits(folder.with_name("all_digits"))
    for digit in "012":
        (folder / digit).mkdir(parents=True)
        for path in sorted((everything / digit).glob("*.png"))[:60]:
            Image.open(path).convert("L").save(folder / digit / f"{path.stem}.bmp")
    return folder


def write_weights(path: Path) -> None:
    """Write weights that are zero in all blocks, and multiples of 1/16 elsewhere."""
    torch.manual_seed(0)
    state = {}
    for name, value in timm.create_model("test_convnext", num_classes=3).state_dict().items():
        if ".blocks." in name or name.startswith("head.fc"):
            state[name] = torch.zeros_like(value)
        elif value.ndim > 1:
            state[name] = (torch.randn_like(value) * value[0].numel() ** -0.5 * 16).round() / 16
        else:
            state[name] = value.clone()
    save_file(state, path, {"format": "pt"})


def stop_after_first_epoch(event: object) -> None:
    """Raise at the end of the first epoch."""
    if type(event).__name__ == "EpochDone" and getattr(event, "epoch", 0) == 1:
        raise StoppedError


def replace_paths(run: Path) -> None:
    """Replace this machine's paths and name in a run's files."""
    for name, changes in {
        "data.json": {"data": "/data/digits"},
        "environment.json": {"command": ["convnext"], "working_directory": "/data", "platform": "Linux-x86_64"},
        "tests.jsonl": {"data": "/data/digits"},
    }.items():
        path = run / name
        if path.exists():
            path.write_text(json.dumps(json.loads(path.read_text()) | changes) + "\n")


def main(folder: Path) -> None:
    """Make the runs in a folder, and pack them."""
    folder.mkdir(parents=True)
    os.chdir(folder)
    data = write_images(Path("digits"))
    write_weights(Path("weights.safetensors"))
    finetune(data, output="finished", **OPTIONS)
    evaluate("finished")
    with contextlib.suppress(StoppedError):
        finetune(data, output="stopped", on_event=stop_after_first_epoch, **OPTIONS)
    cpu = next(line for line in Path("/proc/cpuinfo").read_text().splitlines() if line.startswith("model name"))
    Path("machine.json").write_text(json.dumps({"torch": torch.__version__, "cpu": cpu.partition(":")[2].strip()}))
    for run in (Path("finished"), Path("stopped")):
        replace_paths(run)
        (run / "curves.png").unlink()
    unused = [*Path("finished/last").glob("step-*"), *sorted(Path("stopped/last").glob("step-*"))[:-1]]
    for path in unused:
        path.unlink()
    with tarfile.open("runs.tar.xz", "w:xz", preset=9) as archive:
        for name in ("finished", "stopped", "weights.safetensors", "machine.json"):
            archive.add(name, filter=lambda entry: entry.replace(uid=0, gid=0, uname="", gname="", mtime=0, deep=False))


if __name__ == "__main__":
    main(Path(sys.argv[1]))
