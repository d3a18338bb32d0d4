"""Batches of prepared images, decoded ahead by threads.

Threads are the default on a CPU, not processes: Pillow decodes and resizes without the GIL, nothing is copied, and
a process must start first. After that, two processes load 1.1 to 1.4 times as fast as two threads on two cores
(`benchmarks/feeding.py`). A task of a thread has several images; with one each, the hand-over of small images would
take longer than their preparation. An image depends on (seed, epoch, row) only, never on a thread's timing, so that a
run can be repeated and resumed from these three numbers.
"""

from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from typing import TypeVar, cast

import numpy as np
from numpy.typing import NDArray

from convnext_cli.images.decode import Pixels

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
    return load_parts(batches, lambda rows: np.stack([load(row) for row in rows]), threads=threads)


def load_parts(
    batches: Iterable[Sequence[Row]], load_part: Callable[[Sequence[Row]], NDArray[np.uint8]], *, threads: int
) -> Iterator[tuple[list[Row], NDArray[np.uint8]]]:
    """Yield batches as `load_batches` does; `load_part` returns the images of a part of a batch, (P, H, W, 3) uint8."""
    pool = ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="decode")
    waiting: deque[tuple[list[Row], list[Future[NDArray[np.uint8]]]]] = deque()
    try:
        for rows in batches:
            parts = cut_batches(rows, -(-len(rows) // max(1, threads)))
            waiting.append((list(rows), [pool.submit(load_part, part) for part in parts]))
            if len(waiting) > AHEAD:
                yield _finish(*waiting.popleft())
        while waiting:
            yield _finish(*waiting.popleft())
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


def _finish(rows: list[Row], parts: list[Future[NDArray[np.uint8]]]) -> tuple[list[Row], NDArray[np.uint8]]:
    return rows, np.concatenate([part.result() for part in parts])
