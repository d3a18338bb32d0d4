"""Measure the audit: the planted faults it detects, and time and memory as a data set grows.

    python -m benchmarks.audit plant              5,000 distinct images with 400 planted faults
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
from pathlib import Path
from typing import Any

from convnext_cli.data.audit.summary import audit_index
from convnext_cli.data.groups import group_index
from convnext_cli.data.sources import scan_data
from convnext_cli.progress import finish
from tests.data.audit.planting import plant, score_duplicates


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


def find_planted() -> None:
    """Print the numbers of planted and of detected faults."""
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVNEXT_CACHE"] = str(Path(folder) / "cache")
        planted = plant(
            Path(folder) / "data", distinct=5000, exact=200, encoded=50, resized=50, turned=50, conflicts=20, leaked=30
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
        case ["grow", folder]:
            grow(Path(folder))
        case ["one", folder]:
            print(json.dumps(measure(Path(folder))))
        case _:
            print(__doc__)
