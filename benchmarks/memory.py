"""Compare the memory estimate of `recommend` with the measured peak of a training step.

    python benchmarks/memory.py [--gpu]

For each model and image size, a new process builds the model and AdamW and takes two steps in float32 on random
images. On a CPU, the peak is the process's VmHWM minus its memory before the model was built. On a GPU, it is the
peak of torch's allocator. Nothing is timed.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path

from convnext_cli.machine import GIB
from convnext_cli.models.catalog import load_catalog
from convnext_cli.recipes.costs import StepMemory, training_bytes

CASES = [
    ("convnext_zepto_rms", 16),
    ("convnext_atto", 16),
    ("convnextv2_atto", 16),
    ("convnext_nano", 16),
    ("convnextv2_nano", 8),
    ("convnext_tiny", 8),
    ("convnextv2_tiny", 8),
    ("convnext_base", 4),
]
SIZES = (224, 320)


def measure(name: str, images: int, size: int, device: str) -> int:
    """Return the peak bytes of a training step in this process."""
    import timm
    import torch
    import torch.nn.functional as F

    from convnext_cli.training.parts.optimizer import make_optimizer

    with torch.no_grad():  # loads the libraries
        timm.create_model("test_convnext", num_classes=2)(torch.randn(1, 3, 32, 32))
    before = read_status("VmRSS")
    model = timm.create_model(name, num_classes=4).to(device)
    optimizer = make_optimizer(model, lr=1e-4, weight_decay=0.05, layer_decay=1.0)
    for _ in range(2):
        pixels = torch.randn(images, 3, size, size, device=device)
        loss = F.cross_entropy(model(pixels), torch.zeros(images, dtype=torch.long, device=device))
        torch.autograd.backward(loss)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    return torch.cuda.max_memory_allocated() if device == "cuda" else read_status("VmHWM") - before


def read_status(key: str) -> int:
    """Return the bytes of a field of /proc/self/status (Linux)."""
    lines = Path("/proc/self/status").read_text().splitlines()
    return next(int(line.split()[1]) * 1024 for line in lines if line.startswith(f"{key}:"))


def main() -> None:
    """Measure each case in a new process and print the table."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--gpu", action="store_true")
    parser.add_argument("--case", nargs=3)
    args = parser.parse_args()
    device = "cuda" if args.gpu else "cpu"
    if args.case:
        name, images, size = args.case
        print(json.dumps(measure(name, int(images), int(size), device)))
        return
    print(f"{'model':<20} {'images':>6} {'px':>4} {'measured GiB':>13} {'estimate GiB':>13} {'ratio':>6}   ({device})")
    for size in SIZES:
        for name, images in CASES:
            words = [sys.executable, __file__, "--case", name, str(images), str(size), *(["--gpu"] if args.gpu else [])]
            done = subprocess.run(words, capture_output=True, text=True, check=True)
            measured = json.loads(done.stdout)
            estimate = training_bytes(load_catalog()[name], images, StepMemory(size=(size, size)))
            numbers = f"{measured / GIB:>13.2f} {estimate / GIB:>13.2f} {estimate / measured:>6.2f}"
            print(f"{name:<20} {images:>6} {size:>4} {numbers}", flush=True)


if __name__ == "__main__":
    main()
