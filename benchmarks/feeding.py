"""Time the loading of training images alone, without a model: threads of one process against several processes.

    python -m benchmarks.feeding FOLDER [--images 960] [--workers 1 2] [--rounds 3] [--size 224] [--batch-size 32]

FOLDER has `train/<class>/` folders. Threads and processes (`--workers`) are those of the training. Both draw from
(seed, epoch, row), and their images are compared. A turn is an epoch; the ways take turns in random order. "first"
decodes the files into an empty cache, "steady" reads the cache.
"""

import argparse
import os
import random
import statistics
import tempfile
import time
from contextlib import closing
from pathlib import Path

import numpy as np

from benchmarks.speed import link_images
from convnext_cli.cache_folder import clear_cache
from convnext_cli.images.loaders import cut_batches, shuffle_rows
from convnext_cli.images.preprocessing import Augmentation, Preprocessing
from convnext_cli.kernels.library import describe_processor
from convnext_cli.recipes.tables import load_augmentations
from convnext_cli.training.loading import ViewLoader
from convnext_cli.training.views import Draw, ThreadLoader, TrainingViews
from convnext_cli.training.workers import ProcessLoader

MEAN, STD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


def draw_batches(views: TrainingViews, epoch: int, batch_size: int) -> list[list[Draw]]:
    """Return the draws of an epoch."""
    rows = shuffle_rows(range(len(views.paths)), seed=0, epoch=epoch)
    return cut_batches([(row, epoch, row) for row in rows], batch_size)


def measure(views: TrainingViews, workers: int, rounds: int, batch_size: int) -> dict[str, list[float]]:
    """Return the images per second of each epoch, by way: the first one, and the steady ones."""
    speeds: dict[str, list[float]] = {}

    def run(name: str, loader: ViewLoader, epoch: int) -> None:
        batches = draw_batches(views, epoch, batch_size)
        started = time.perf_counter()
        for _ in loader.load(batches):
            pass
        speeds.setdefault(name, []).append(len(views.paths) / (time.perf_counter() - started))
        loader.flush()

    clear_cache()
    run("threads, first", ThreadLoader(views, workers), 0)
    clear_cache()
    with closing(ProcessLoader(views, workers, batch_size)) as processes:
        processes.flush()  # waits until they have started
        run("processes, first", processes, 0)
        steady: dict[str, ViewLoader] = {
            "threads, steady": ThreadLoader(views, workers),
            "processes, steady": processes,
        }
        for epoch in range(rounds + 1):
            for name in random.Random(epoch).sample(sorted(steady), len(steady)):  # noqa: S311
                run(name, steady[name], epoch)
        for values in (speeds[name] for name in steady):
            del values[0]  # fills what the first epoch of the other way left out
        check_same(list(steady.values()), draw_batches(views, 7, batch_size)[:3])
    return speeds


def check_same(loaders: list[ViewLoader], batches: list[list[Draw]]) -> None:
    """Check that all load the same images, bit by bit."""
    for loaded in zip(*(loader.load(batches) for loader in loaders), strict=True):
        (draws, images), *others = loaded
        assert all(other == draws and np.array_equal(pixels, images) for other, pixels in others)


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
            views = TrainingViews(
                root=data,
                paths=paths,
                preprocessing=preprocessing,
                largest=preprocessing,
                augmentation=Augmentation(**values),
                seed=0,
                is_whole=False,
                cache=True,
            )
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
