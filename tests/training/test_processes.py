"""Two CPU processes under torchrun: a sharded model, and two trainings in one process."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

from convnext_cli.training.compute.ranks import RANK_TIMEOUT
from convnext_cli.training.events import FinetuneResult
from tests.training.conftest import make_request, resume, train

pytestmark = pytest.mark.slow
ROOT = Path(__file__).parents[2]
# 39 training images: slices of 4 and 3 of a batch, and in the last batch of 2 and 2; 13 validation images: 7 and 6
SETTINGS: dict[str, Any] = {
    "epochs": 2, "freeze_epochs": 2, "batch_size": 7, "micro_batch_size": 3, "lr": 2e-3, "image_size": 32,
    "val_fraction": 0.22, "ema_decay": 0.9,
}  # fmt: skip


def run_two(*words: str) -> str:
    """Run a script in two processes, and return what it prints."""
    launcher = ["-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2"]
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)}
    command = [sys.executable, *launcher, *words]
    done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-3000:]
    return done.stdout


def read_losses(run: str) -> list[tuple[float, float]]:
    lines = map(json.loads, Path(run, "metrics.jsonl").read_text().splitlines())
    return [(line["train_loss"], line["val_log_loss"]) for line in lines]


def test_sharded_training_is_that_of_one_process(few_digits: Path) -> None:
    """With the default plan: the head alone first, then all weights, with slices of different sizes."""
    options = [word for name, value in SETTINGS.items() for word in (f"--{name.replace('_', '-')}", str(value))]
    words = ["finetune", str(few_digits), "--model", "test_convnext2", "--weights", "none", "--no-check", *options]
    run_two(str(ROOT / "tools/fsdp_on_cpu.py"), *words, "-o", "sharded")
    train(make_request({"model": "test_convnext2", "weights": "none", "audit": False, **SETTINGS}, few_digits, "one"))
    losses = read_losses("one")
    assert len(losses) == 3, "the head alone is epoch 0"
    for one, other in zip(losses, read_losses("sharded"), strict=True):
        assert one == pytest.approx(other, rel=1e-5)
    saved = load_file("sharded/model.safetensors")
    for name, value in load_file("one/model.safetensors").items():
        assert saved[name].shape == value.shape
    Path("sharded/metrics.json").unlink()
    Path("sharded/metrics.jsonl").unlink()
    assert isinstance(resume("sharded")[-1], FinetuneResult), "its checkpoint is that of a whole model"


TWICE = """
import sys
import torch.distributed as dist
from convnext_cli import finetune
from convnext_cli.training.events import Started

def show(event):
    if isinstance(event, Started):
        backend = dist.group.WORLD._get_backend(__import__("torch").device("cpu"))
        print("timeout", backend.options._timeout.total_seconds(), flush=True)

for name in ("first", "second"):
    finetune(
        sys.argv[1], output=name, model="test_convnext2", weights="none", audit=False, onnx=False, offline=True,
        epochs=1, freeze_epochs=0, batch_size=8, image_size=32, lr=1e-3, on_event=show,
    )
"""


def test_two_trainings_in_one_process_and_ranks_wait_for_the_first(few_digits: Path) -> None:
    Path("twice.py").write_text(TWICE)
    output = run_two("twice.py", str(few_digits))
    assert read_losses("first") == read_losses("second")
    count = output.count(f" {RANK_TIMEOUT.total_seconds()}")  # the processes print at once, so that lines may mix
    assert count == 4, "a download or a calibration may take hours"
