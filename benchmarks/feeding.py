"""Time the loading of training images alone, without a model: threads of one process against several processes.

    python -m benchmarks.feeding FOLDER [--images 960] [--workers 1 2] [--rounds 3] [--size 224] [--batch-size 32]

FOLDER has `train/<class>/` folders. Threads are those of the training (`load_batches`). Processes decode their part of
each batch into shared memory, three batches ahead; each keeps its own connection to the cache. Both draw from (seed,
epoch, row), and their images are compared. A turn is an epoch; the ways take turns in random order. "first" decodes the
files into an empty cache, "steady" reads the cache.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import partial
from multiprocessing import get_context
from multiprocessing.connection import Connection
from multiprocessing.shared_memory import SharedMemory
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.speed import link_images
from convnext_cli.cache_folder import clear_cache
from convnext_cli.images.cache import ImageCache
from convnext_cli.images.decode import Pixels, decode_image
from convnext_cli.images.loaders import AHEAD, cut_batches, load_batches, seed_image, shuffle_rows
from convnext_cli.images.preprocessing import Augmentation, Preprocessing
from convnext_cli.images.transforms import find_training_side, prepare_for_training, transform_for_training
from convnext_cli.kernels.library import describe_processor
from convnext_cli.recipes.tables import load_augmentations

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)
Batches = Iterator[tuple[list[int], NDArray[np.uint8]]]


@dataclass(frozen=True, kw_only=True, slots=True)
class Views:
    """The training views of a folder's images. It can be sent to another process."""

    root: Path
    paths: tuple[str, ...]
    preprocessing: Preprocessing
    augmentation: Augmentation

    def open(self) -> Callable[[int, int], Pixels]:
        """Return a function from an epoch and a row to its view, (H, W, 3) uint8, that reads and fills the cache."""
        area = self.augmentation.min_crop_area
        side = find_training_side(self.preprocessing.height, area)

        def make(path: Path) -> Pixels:
            return prepare_for_training(decode_image(path, at_least=side), self.preprocessing, area)

        images = ImageCache(self.root, f"feeding, crops of {area} at {self.preprocessing.height} px", make)

        def load(epoch: int, row: int) -> Pixels:
            generator = seed_image(0, epoch, row)
            return transform_for_training(
                images.read(self.paths[row]), self.preprocessing, generator, self.augmentation
            )

        return load


class ProcessLoader:
    """Processes that write the parts of batches into shared memory."""

    def __init__(self, views: Views, *, workers: int, batch_size: int) -> None:
        self._shape = AHEAD + 2, batch_size, *views.preprocessing.size, 3
        self._memory = SharedMemory(create=True, size=int(np.prod(self._shape)))
        self._ring: NDArray[np.uint8] = np.ndarray(self._shape, np.uint8, self._memory.buf)
        self._pipes: list[Connection] = []
        spawn = get_context("spawn")
        for _ in range(workers):
            ours, theirs = spawn.Pipe()
            spawn.Process(target=work, args=(views, self._memory.name, self._shape, theirs), daemon=True).start()
            theirs.close()
            ours.recv()
            self._pipes.append(ours)

    def load(self, batches: Sequence[Sequence[int]], epoch: int) -> Batches:
        """Yield each batch's rows and images, (B, H, W, 3) uint8. They are overwritten two batches later."""
        waiting: deque[tuple[int, list[int], int]] = deque()
        for number, rows in enumerate(batches):
            slot = number % len(self._ring)
            parts = cut_batches(rows, -(-len(rows) // len(self._pipes)))
            starts = np.cumsum([0, *map(len, parts)])
            for pipe, start, part in zip(self._pipes, starts, parts, strict=False):
                pipe.send((slot, int(start), part, epoch))
            waiting.append((slot, list(rows), len(parts)))
            if len(waiting) > AHEAD:
                yield self._finish(*waiting.popleft())
        while waiting:
            yield self._finish(*waiting.popleft())

    def _finish(self, slot: int, rows: list[int], parts: int) -> tuple[list[int], NDArray[np.uint8]]:
        for pipe in self._pipes[:parts]:
            if (error := pipe.recv()) is not None:
                raise error
        return rows, self._ring[slot, : len(rows)]

    def close(self) -> None:
        """End the processes and free the memory."""
        for pipe in self._pipes:
            pipe.close()
        del self._ring
        self._memory.close()
        self._memory.unlink()


def work(views: Views, memory_name: str, shape: tuple[int, ...], pipe: Connection) -> None:
    """Load what the pipe asks for into the ring, until the pipe is closed; send None for each part, or its error."""
    memory = SharedMemory(memory_name)
    ring: NDArray[np.uint8] = np.ndarray(shape, np.uint8, memory.buf)
    load = views.open()
    pipe.send(None)
    while True:
        try:
            slot, start, rows, epoch = pipe.recv()
        except EOFError:
            return
        try:
            for place, row in enumerate(rows, start):
                ring[slot, place] = load(epoch, row)
            pipe.send(None)
        except Exception as error:  # raised where the batch is due
            pipe.send(error)


def load_by_threads(load: Callable[[int, int], Pixels], batches: list[list[int]], epoch: int, workers: int) -> Batches:
    """Yield the batches that the training's threads load."""
    return load_batches(batches, partial(load, epoch), threads=workers)


def measure(views: Views, workers: int, rounds: int, batch_size: int) -> dict[str, list[float]]:
    """Return the images per second of each epoch, by way: the first one, and the steady ones."""
    rows = range(len(views.paths))
    speeds: dict[str, list[float]] = {}

    def run(name: str, load: Callable[[list[list[int]], int], Batches], epoch: int) -> None:
        batches = cut_batches(shuffle_rows(rows, seed=0, epoch=epoch), batch_size)
        started = time.perf_counter()
        for _ in load(batches, epoch):
            pass
        speeds.setdefault(name, []).append(len(rows) / (time.perf_counter() - started))

    clear_cache()
    run("threads, first", partial(load_by_threads, views.open(), workers=workers), 0)
    clear_cache()
    with closing(ProcessLoader(views, workers=workers, batch_size=batch_size)) as loader:
        run("processes, first", loader.load, 0)
        warm = views.open()
        steady: dict[str, Callable[[list[list[int]], int], Batches]] = {
            "threads, steady": partial(load_by_threads, warm, workers=workers),
            "processes, steady": loader.load,
        }
        for epoch in range(rounds + 1):
            for name in random.Random(epoch).sample(sorted(steady), len(steady)):  # noqa: S311
                run(name, steady[name], epoch)
        for values in (speeds[name] for name in steady):
            del values[0]  # fills what the first epoch of the other way left out
        check_same(views, loader, batch_size)
    return speeds


def check_same(views: Views, loader: ProcessLoader, batch_size: int) -> None:
    """Check that processes load the same images as threads, bit by bit."""
    batches = cut_batches(shuffle_rows(range(len(views.paths)), seed=0, epoch=7), batch_size)[:3]
    expected = list(load_by_threads(views.open(), batches, 7, 2))
    for (rows, images), (other_rows, other) in zip(expected, loader.load(batches, 7), strict=True):
        assert rows == other_rows
        assert np.array_equal(images, other)


def main() -> None:
    """Measure, and print a row per preset and number of workers."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("data", type=Path)
    parser.add_argument("--images", type=int, default=960)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 2])
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--size", type=int, default=224)
    parser.add_argument("--batch-size", type=int, default=32)
    parser.add_argument("--presets", nargs="+", default=["light", "medical", "natural", "strong"])
    args = parser.parse_args()
    with tempfile.TemporaryDirectory() as folder:
        os.environ["CONVNEXT_CACHE"] = f"{folder}/cache"
        data = Path(folder, "data")
        link_images(args.data, data, args.images)
        paths = tuple(str(path.relative_to(data)) for path in sorted(data.glob("train/*/*")))
        print(f"{describe_processor('model name').partition(':')[2].strip()}, {os.cpu_count()} cores")
        print(f"{len(paths)} images of {args.size} px, batches of {args.batch_size}, median of {args.rounds}; images/s")
        print(f"{'preset':<10}{'workers':>8}{'threads':>20}{'processes':>20}{'ratio (least, most)':>24}")
        for preset in args.presets:
            values = {name: value for name, (value, _) in load_augmentations()[preset].items()}
            preprocessing = Preprocessing(
                image_size=args.size, crop_pct=1.0, crop_mode="squash", interpolation="bicubic", mean=MEAN, std=STD
            )
            views = Views(root=data, paths=paths, preprocessing=preprocessing, augmentation=Augmentation(**values))
            for workers in args.workers:
                speeds = measure(views, workers, args.rounds, args.batch_size)
                for kind in ("first", "steady"):
                    threads, processes = speeds[f"threads, {kind}"], speeds[f"processes, {kind}"]
                    ratios = [two / one for one, two in zip(threads, processes, strict=True)]
                    columns = (f"{statistics.median(part):>13.0f} {kind:<6}" for part in (threads, processes))
                    ratio = f"{statistics.median(ratios):.2f} ({min(ratios):.2f}, {max(ratios):.2f})"
                    print(f"{preset:<10}{workers:>8}{''.join(columns)}{ratio:>24}", flush=True)


if __name__ == "__main__":
    main()
