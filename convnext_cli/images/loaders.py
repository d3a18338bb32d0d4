"""Batches of prepared images, decoded ahead by threads.

Threads are the default on a CPU, not processes: Pillow decodes and resizes without the GIL, nothing is copied, and
a process must start first. After that, two processes load 1.3 to 1.9 times as fast as two threads on two cores
(`benchmarks/feeding.py`). A task of a thread has several images; with one each, the hand-over of small images would
take longer than their preparation. An image depends on (seed, epoch, row) only, never on a thread's timing, so that a
run can be repeated and resumed from these three numbers.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from convnext_cli.images.raster import Pixels

AHEAD = 2  # batches decoded in advance
Row = TypeVar("Row")  # a number, or a drawn image
T = TypeVar("T")


def shuffle_rows(rows: Sequence[int], *, seed: int, epoch: int) -> list[int]:
    """Return all rows in the order of an epoch."""
    order = np.random.default_rng((seed, epoch)).permutation(len(rows))
    return [rows[i] for i in order]


def balance_rows(rows: Sequence[int], labels: Sequence[int], *, seed: int, epoch: int) -> list[int]:
    """Return as many draws as there are rows, from each class equally often (to within one), in an epoch's order.

    All images of a class are drawn before one of them is repeated. The r-th repetition of a row is
    row + r * len(labels), so that each repetition is augmented differently; `draw % len(labels)` is the row.

    Args:
        rows: the rows to draw from.
        labels: the class of every row of the index, also of rows not in `rows`.
        seed: of the run.
        epoch: its number.
    """
    random = np.random.default_rng((seed, epoch))
    members = [[row for row in rows if labels[row] == label] for label in sorted({labels[row] for row in rows})]
    extra = set(random.permutation(len(members))[: len(rows) % len(members)])  # the classes that get the remainder
    draws: list[int] = []
    for number, of_class in enumerate(members):
        count = len(rows) // len(members) + (number in extra)
        for repetition in range(-(-count // len(of_class))):
            drawn = random.permutation(of_class)[: count - repetition * len(of_class)]
            draws += [int(row) + repetition * len(labels) for row in drawn]
    return [draws[i] for i in random.permutation(len(draws))]


def cut_batches(rows: Sequence[Row], batch_size: int) -> list[list[Row]]:
    """Cut the rows into batches, in their order."""
    return [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]


def seed_image(seed: int, epoch: int, row: int) -> np.random.Generator:
    """Return the random number generator that augments one image in one epoch."""
    return np.random.default_rng((seed, epoch, row))


def load_batches(
    batches: Iterable[Sequence[Row]], load: Callable[[Row], Pixels], *, threads: int
) -> Iterator[tuple[list[Row], NDArray[np.uint8]]]:
    """Yield each batch's rows and images, (B, H, W, 3) uint8, while the next batches are decoded.

    Args:
        batches: the rows of each batch.
        load: returns a row's image, (H, W, 3) uint8; runs in a thread.
        threads: number of images to prepare at a time.

    Raises:
        ImageError: as `load` does, when its batch is due.
    """
    listed = [list(rows) for rows in batches]
    tasks = [[partial(_load_part, load, part) for part in cut_parts(rows, threads)] for rows in listed]
    for rows, parts in zip(listed, run_tasks(tasks, threads=threads), strict=True):
        yield rows, np.concatenate(parts)


def cut_parts(rows: Sequence[Row], parts: int) -> list[list[Row]]:
    """Cut the rows of a batch into parts of about equal size, in their order."""
    return cut_batches(rows, -(-len(rows) // max(1, parts)))


def run_tasks(batches: Iterable[Sequence[Callable[[], T]]], *, threads: int) -> Generator[list[T], None, None]:
    """Yield the results of each batch's tasks, while threads run those of the next `AHEAD` batches.

    Raises:
        Exception: as a task does, when its batch is due.
    """
    pool = ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="decode")
    waiting: deque[list[Future[T]]] = deque()
    try:
        for tasks in batches:
            waiting.append([pool.submit(task) for task in tasks])
            if len(waiting) > AHEAD:
                yield [task.result() for task in waiting.popleft()]
        while waiting:
            yield [task.result() for task in waiting.popleft()]
    finally:
        pool.shutdown(wait=True, cancel_futures=True)


def load_ahead(items: Generator[T, None, None]) -> Generator[T, None, None]:
    """Yield items; a thread computes the next one while one is used."""
    end = object()
    with closing(items), ThreadPoolExecutor(max_workers=1, thread_name_prefix="ahead") as thread:
        upcoming = thread.submit(next, items, end)
        while (item := upcoming.result()) is not end:
            upcoming = thread.submit(next, items, end)
            yield cast("T", item)


def _load_part(load: Callable[[Row], Pixels], rows: Sequence[Row]) -> NDArray[np.uint8]:
    return np.stack([load(row) for row in rows])
