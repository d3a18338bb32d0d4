"""Measure how scanning and caching scale with the number of images, and that memory stays flat.

    python -m benchmarks.growth FOLDER [SIZES ...]

FOLDER has <class>/ or {train,val}/<class>/ folders of images. Sets of 1,000 and more of them are linked into separate
folders. Each size runs in a separate process. It scans, decodes every image into an empty cache on one thread, and
reads all images back. Seconds are processor time, which other work on the machine affects less. Memory is the peak
above that of the process after its imports.
"""

import json
import os
import subprocess
import sys
import tempfile
import time
from itertools import pairwise
from pathlib import Path

from benchmarks.memory import read_status
from convnext_cli.data.sources import scan_data
from convnext_cli.images.cache import ImageCache, list_cached_sets
from convnext_cli.images.decode import decode_image

SIZES = (1_000, 3_000, 10_000, 30_000, 110_000)


def measure(folder: Path) -> dict[str, float]:
    """Scan and cache `folder` in this process; return the measurements."""
    before = read_status("VmHWM")
    times = [time.process_time()]
    index = scan_data(folder)
    times.append(time.process_time())
    scanned = read_status("VmHWM")
    for _ in range(2):  # the first fills the cache, the second reads it
        cache = ImageCache(index.root, "growth", decode_image)
        for path in index.paths:
            cache.read(path)
        cache.flush()
        assert cache.failure is None
        times.append(time.process_time())
    [cached_set] = list_cached_sets()
    assert cached_set.images == len(index)
    scan, fill, read = (after - before for before, after in pairwise(times))
    return {
        "images": len(index),
        "scan": scan,
        "fill": fill,
        "read": read,
        "disk": cached_set.size,
        "index_memory": scanned - before,
        "memory": read_status("VmHWM") - before,
    }


def main(folder: Path, sizes: list[int]) -> None:
    """Print a row for each size."""
    index = scan_data(folder)
    print(
        "  images   scan s   fill s   read s   µs/image: scan   fill   read   disk MiB  B/image   peak MiB  of it index"
    )
    for size in sizes:
        with tempfile.TemporaryDirectory() as temporary:
            for row in range(0, len(index), max(1, len(index) // size)):
                link = Path(temporary, "data", index.classes[index.labels[row]], f"{row}.jpg")
                link.parent.mkdir(parents=True, exist_ok=True)
                link.symlink_to((index.root / index.paths[row]).resolve())
            command = [sys.executable, "-m", "benchmarks.growth", "one", f"{temporary}/data"]
            env = os.environ | {"CONVNEXT_CACHE": f"{temporary}/cache"}
            result = json.loads(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
        images = result["images"]
        each = [1e6 * result[stage] / images for stage in ("scan", "fill", "read")]
        print(
            f"{images:>8,} {result['scan']:>8.2f} {result['fill']:>8.2f} {result['read']:>8.2f} {each[0]:>16.1f} "
            f"{each[1]:>6.0f} {each[2]:>6.0f} {result['disk'] / 2**20:>10.1f} {result['disk'] / images:>8,.0f} "
            f"{result['memory'] / 2**20:>10.1f} {result['index_memory'] / 2**20:>12.1f}",
            flush=True,
        )


if __name__ == "__main__":
    match sys.argv[1:]:
        case ["one", folder]:
            print(json.dumps(measure(Path(folder))))
        case [folder, *sizes]:
            main(Path(folder), [int(size) for size in sizes] or list(SIZES))
        case _:
            print(__doc__)
