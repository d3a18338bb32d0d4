"""Measure the audit: the planted faults it detects, and time and memory as a data set grows.

    python -m benchmarks.audit plant              5,000 distinct images with 450 planted faults
    python -m benchmarks.audit copies FOLDER      changed copies of 200 images of a folder, by kind of change
    python -m benchmarks.audit copies FOLDER 5000 CHANGE    one kind of change, 200 copies among 5,000 images
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
from collections.abc import Callable, Sequence
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


def crop(image: Image.Image, fraction: float) -> Image.Image:
    """Return the upper left part of an image, `fraction` of its width and height."""
    return image.crop((0, 0, round(fraction * image.width), round(fraction * image.height)))


def turn(image: Image.Image, degrees: float) -> Image.Image:
    """Return an image turned about its centre, at its size, with black corners."""
    return image.rotate(degrees, Image.Resampling.BILINEAR)


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
    "crop of 90%": partial(crop, fraction=0.9),
    "crop of 70%": partial(crop, fraction=0.7),
    "turned by 5 degrees": partial(turn, degrees=5),
    "turned by 30 degrees": partial(turn, degrees=30),
    "mirrored, turned by 10 degrees, x 0.8": lambda image: change_tones(turn(ImageOps.mirror(image), 10), gain=0.8),
    "shifted by 20%, zoomed by 1.2": lambda image: crop(image, 0.8).resize(image.size),
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


def find_copies(folder: Path, images: int = COPIED, changes: Sequence[str] = tuple(CHANGES)) -> None:
    """Print for each change how many changed copies of real images are found, and how many different ones are joined.

    The originals are the training images, and their copies the test images, under the names of their numbers. With
    all images of a folder, duplicates among them are joined too.
    """
    index = scan_data(folder)
    rows = [number * len(index) // images for number in range(images)]
    for name in changes:
        with tempfile.TemporaryDirectory() as temporary:
            os.environ["CONVNEXT_CACHE"] = f"{temporary}/cache"
            for number, row in enumerate(rows):
                with Image.open(folder / index.paths[row]) as opened:
                    opened.thumbnail((400, 400))
                    image = opened.convert("RGB")
                is_copied = number * COPIED // images != (number - 1) * COPIED // images
                for split, written in (("train", image), ("test", CHANGES[name](image) if is_copied else None)):
                    if written:
                        path = Path(temporary) / "data" / split / "ab"[number % 2] / f"{number}.jpg"
                        path.parent.mkdir(parents=True, exist_ok=True)
                        written.save(path, quality=85)
            audit = finish(audit_index(*group_index(scan_data(Path(temporary) / "data"), "none")))
        paths = [[Path(audit.index.paths[row]) for row in rows] for rows in audit.clusters]
        detected = sum(
            path.parts[0] == "test" and Path("train", *path.parts[1:]) in cluster
            for cluster in paths
            for path in cluster
        )
        wrong = sum(len({path.stem for path in cluster}) > 1 for cluster in paths)
        print(f"{name:<38} {detected:>4} of {COPIED}; different images joined: {wrong}", flush=True)


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
        case ["copies", folder, images, change]:
            find_copies(Path(folder), int(images), [change])
        case ["grow", folder]:
            grow(Path(folder))
        case ["one", folder]:
            print(json.dumps(measure(Path(folder))))
        case _:
            print(__doc__)
