"""How scanning and caching grow with the number of images, and whether memory stays flat.

    python -m benchmarks.growth FOLDER [SIZES ...]

FOLDER has <class>/ or {train,val}/<class>/ folders of images; sets of 1,000 and more of them are linked into a folder
of their own. Each size is a process of its own: it scans, decodes every image into an empty cache on one thread, and
reads all of them back. Seconds are of processor time, so that other work on the machine matters less; memory is the
peak above what the process held when its imports were done.
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
    """Scans and caches `folder` in this process."""
    before = read_status("VmHWM")
    times = [time.process_time()]
    index = scan_data(folder)
    times.append(time.process_time())
    scanned = read_status("VmHWM")
    for _ in range(2):  # the first fills the cache, the second reads it
        pictures = ImageCache(index.root, "growth", decode_image)
        for path in index.paths:
            pictures.read(path)
        pictures.flush()
        assert pictures.failure is None
        times.append(time.process_time())
    [kept] = list_cached_sets()
    assert kept.images == len(index)
    scan, fill, read = (after - before for before, after in pairwise(times))
    return {
        "images": len(index),
        "scan": scan,
        "fill": fill,
        "read": read,
        "disk": kept.size,
        "index_memory": scanned - before,
        "memory": read_status("VmHWM") - before,
    }


def main(folder: Path, sizes: list[int]) -> None:
    """Prints a row for each size."""
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
            found = json.loads(subprocess.run(command, env=env, capture_output=True, check=True).stdout)
        images = found["images"]
        each = [1e6 * found[stage] / images for stage in ("scan", "fill", "read")]
        print(
            f"{images:>8,} {found['scan']:>8.2f} {found['fill']:>8.2f} {found['read']:>8.2f} {each[0]:>16.1f} "
            f"{each[1]:>6.0f} {each[2]:>6.0f} {found['disk'] / 2**20:>10.1f} {found['disk'] / images:>8,.0f} "
            f"{found['memory'] / 2**20:>10.1f} {found['index_memory'] / 2**20:>12.1f}",
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
