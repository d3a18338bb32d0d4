"""Measure the audit: the planted faults it detects, and time and memory as a data set grows.

    python -m benchmarks.audit plant              5,000 distinct images with 450 planted faults
    python -m benchmarks.audit copies FOLDER      changed copies of 200 images of a folder, by kind of change
    python -m benchmarks.audit grow FOLDER        scan and audit of 1,000, 10,000 … and all images of a folder

Each size runs in a separate process, on links to the files. Memory is the peak above that of the previous size.
"""

import json
import os
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

from PIL import Image, ImageOps

from convnext_cli.data.audit.summary import audit_index
from convnext_cli.data.groups import group_index
from convnext_cli.data.sources import scan_data
from convnext_cli.progress import finish
from tests.conftest import change_tones
from tests.data.audit.planting import plant, score_duplicates

CHANGES: dict[str, Callable[[Image.Image], Image.Image]] = {
    "JPEG, quality 85": lambda image: image,
    "mirrored": ImageOps.mirror,
    "grey": lambda image: image.convert("L").convert("RGB"),
    "brightness x 0.6": partial(change_tones, gain=0.6),
    "brightness x 1.2": partial(change_tones, gain=1.2),
    "brightness x 1.4": partial(change_tones, gain=1.4),
    "brightness + 30": partial(change_tones, offset=30),
    "contrast x 0.6": partial(change_tones, gain=0.6, offset=51),
    "contrast x 1.5": partial(change_tones, gain=1.5, offset=-64),
    "gamma 0.7": partial(change_tones, gamma=0.7),
    "gamma 1.5": partial(change_tones, gamma=1.5),
    "histogram equalised": ImageOps.equalize,
    "mirrored, x 0.8": lambda image: change_tones(ImageOps.mirror(image), gain=0.8),
    "crop of 90%": lambda image: image.crop((0, 0, round(0.9 * image.width), round(0.9 * image.height))),
    "turned by 5 degrees": lambda image: image.rotate(5, Image.Resampling.BILINEAR),
}
COPIED = 200  # images


def measure(data: Path) -> dict[str, Any]:
    """Return the seconds to scan, group and audit a folder (twice), and the peak memory."""
    started = time.perf_counter()
    index = scan_data(data)
    scanned = time.perf_counter()
    index, grouping = group_index(index, "auto")
    grouped = time.perf_counter()
    audit = finish(audit_index(index, grouping))
    again = time.perf_counter()
    finish(audit_index(index, grouping))
    return {
        "images": len(index),
        "scan": scanned - started,
        "group": grouped - scanned,
        "audit": again - grouped,
        "cached": time.perf_counter() - again,
        "clusters": len(audit.clusters),
        "bytes": 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss,
    }


def grow(folder: Path) -> None:
    """Print a row for each size of a folder; memory is the increase per additional image."""
    print(
        f"{'images':>8} {'scan s':>7} {'group s':>8} {'audit s':>8} {'again s':>8} {'bytes/image':>12} {'clusters':>9}"
    )
    index = scan_data(folder)
    before: dict[str, Any] | None = None
    for size in [size for size in (1_000, 10_000, 30_000) if size < len(index)] + [len(index)]:
        with tempfile.TemporaryDirectory() as temporary:
            for row in (number * len(index) // size for number in range(size)):
                link = Path(temporary) / "data" / index.paths[row]
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((folder / index.paths[row]).resolve())
            command = [sys.executable, "-m", "benchmarks.audit", "one", f"{temporary}/data"]
            env = os.environ | {"CONVNEXT_CACHE": f"{temporary}/cache"}
            result = json.loads(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
        more = result["images"] - before["images"] if before else 0
        memory = f"{(result['bytes'] - before['bytes']) / more:.0f}" if before else "-"
        print(
            f"{result['images']:>8,} {result['scan']:>7.2f} {result['group']:>8.2f} {result['audit']:>8.1f} "
            f"{result['cached']:>8.1f} {memory:>12} {result['clusters']:>9}",
            flush=True,
        )
        before = result


def find_copies(folder: Path) -> None:
    """Print for each change how many changed copies of real images are found, and how many different ones are joined.

    The originals are the training images, and their copies the test images, under the names of their numbers.
    """
    index = scan_data(folder)
    rows = [number * len(index) // COPIED for number in range(COPIED)]
    for name, change in CHANGES.items():
        with tempfile.TemporaryDirectory() as temporary:
            os.environ["CONVNEXT_CACHE"] = f"{temporary}/cache"
            for number, row in enumerate(rows):
                with Image.open(folder / index.paths[row]) as opened:
                    opened.thumbnail((400, 400))
                    image = opened.convert("RGB")
                for split, written in (("train", image), ("test", change(image))):
                    path = Path(temporary) / "data" / split / "ab"[number % 2] / f"{number}.jpg"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    written.save(path, quality=85)
            audit = finish(audit_index(*group_index(scan_data(Path(temporary) / "data"), "none")))
        numbers = [{Path(audit.index.paths[row]).stem for row in rows} for rows in audit.clusters]
        detected = sum(len(joined) == 1 for joined in numbers)
        wrong = len(numbers) - detected
        print(f"{name:<20} {detected:>4} of {COPIED}; different images joined: {wrong}", flush=True)


def find_planted() -> None:
    """Print the numbers of planted and of detected faults."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVNEXT_CACHE"] = str(Path(folder) / "cache")
        planted = plant(
            Path(folder) / "data",
            distinct=5000,
            exact=200,
            encoded=50,
            resized=50,
            turned=50,
            toned=50,
            conflicts=20,
            leaked=30,
        )
        index, grouping = group_index(scan_data(planted.root), "auto")
        started = time.perf_counter()
        audit = finish(audit_index(index, grouping))
        seconds = time.perf_counter() - started
    hits, near, false = score_duplicates(planted, audit)
    kinds = {finding.kind.value: finding for finding in audit.findings}
    print(f"{len(index):,} images in {seconds:.0f} s")
    print(f"exact and conflicting pairs found: {len(hits)} of {len(planted.exact | planted.conflicts)}")
    print(f"near pairs found: {near:.0%} of {len(planted.near)}; wrongly paired: {false:.2%} of {planted.distinct:,}")
    print(f"conflicting labels: {kinds['conflicting labels'].count} of {len(planted.conflicts)}")
    print(f"leaked groups: {kinds['groups across splits'].count} of {len(planted.leaked)}")


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["plant"]:
            find_planted()
        case ["copies", folder]:
            find_copies(Path(folder))
        case ["grow", folder]:
            grow(Path(folder))
        case ["one", folder]:
            print(json.dumps(measure(Path(folder))))
        case _:
            print(__doc__)
