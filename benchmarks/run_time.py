"""Compare the durations that `recommend` and `--dry-run` estimate with those of whole runs.

    python -m benchmarks.run_time [NAME ...]

Each configuration is a generated data set, its `--dry-run`, and one run of the same command in a new process. On an
idle machine, elapsed time counts. On a busy one, the elapsed time of an idle machine lies between the run's processor
time divided by the number of cores (perfectly parallel) and the whole processor time (serial).
"""

import json
import os
import resource
import shlex
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np
from PIL import Image

CONFIGURATIONS = {  # images, px of their side, flags
    "builtin": (600, 96, "--weights builtin --epochs 10"),
    "builtin-photos": (400, 600, "--weights builtin --epochs 5 --freeze-epochs 0"),
    "atto-128": (300, 160, "--model convnext_atto --weights none --epochs 3 --image-size 128"),
    "nano-224": (160, 256, "--model convnext_nano --weights none --epochs 2"),
    "v2-tiny-160": (120, 160, "--model convnextv2_tiny --weights none --epochs 2 --image-size 160"),
}


def main() -> None:
    """Run the named configurations, or all, and print estimate, elapsed time and ratio."""
    print(f"{'configuration':16}{'estimate s':>12}{'clock s':>10}{'ratio':>8}{'processor s':>13}{'over cores':>12}")
    for name in sys.argv[1:] or CONFIGURATIONS:
        images, side, flags = CONFIGURATIONS[name]
        with tempfile.TemporaryDirectory() as folder:
            data = _draw(Path(folder) / "data", images, side)
            words = [sys.executable, "-m", "convnext_cli", "finetune", str(data), *shlex.split(flags)]
            environment = os.environ | {"CONVNEXT_CACHE": f"{folder}/cache", "OMP_WAIT_POLICY": "passive"}
            planned = subprocess.run(
                [*words, "--dry-run", "--json"], env=environment, check=True, capture_output=True, text=True
            )
            estimate = json.loads(planned.stdout)["seconds"]
            before, began = resource.getrusage(resource.RUSAGE_CHILDREN), time.perf_counter()
            subprocess.run([*words, "--output", f"{folder}/run"], env=environment, check=True, capture_output=True)
            clock, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
        used = after.ru_utime - before.ru_utime + after.ru_stime - before.ru_stime
        cores = len(os.sched_getaffinity(0))
        print(
            f"{name:16}{estimate:>12.0f}{clock:>10.0f}{estimate / clock:>8.2f}{used:>13.0f}{used / cores:>12.0f}",
            flush=True,
        )


def _draw(folder: Path, images: int, side: int) -> Path:
    """Write JPEG images of smooth noise in two classes, one brighter."""
    random = np.random.default_rng(0)
    for i in range(images):
        name = "ab"[i % 2]
        (folder / name).mkdir(parents=True, exist_ok=True)
        small = random.integers(0, 200, (12, 12, 3)) + 55 * (i % 2)
        large = Image.fromarray(small.astype(np.uint8)).resize((side, side), Image.Resampling.BICUBIC)
        large.save(folder / name / f"{chr(97 + i % 26)}{random.integers(1 << 40):x}.jpg", quality=90)
    return folder


if __name__ == "__main__":
    main()
