"""Batches of prepared images, decoded ahead by threads.

Threads and not processes: Pillow decodes and resizes outside Python's lock, nothing is copied between processes, and
an error arrives as itself. A thread takes several images at a time: with one each, handing over small images would take
longer than preparing them. What an image looks like depends on (seed, epoch, row) alone, never on a thread's timing,
so that a run can be repeated and continued from these three numbers.
"""

from collections import deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import Future, ThreadPoolExecutor

import numpy as np
from numpy.typing import NDArray

from convnext_cli.images.decode import Pixels

AHEAD = 2  # batches decoded before they are asked for


def shuffle_rows(rows: Sequence[int], *, seed: int, epoch: int) -> list[int]:
    """All rows in this epoch's order."""
    order = np.random.default_rng((seed, epoch)).permutation(len(rows))
    return [rows[i] for i in order]


def balance_rows(rows: Sequence[int], labels: Sequence[int], *, seed: int, epoch: int) -> list[int]:
    """As many draws as there are rows, from each class equally often (to within one), in this epoch's order.

    A class's images are all drawn before one of them is drawn again. The r-th repetition of a row is given as
    row + r * len(labels), so that it is augmented anew: `draw % len(labels)` is the row.

    Args:
        rows: the rows to draw from.
        labels: the class of every row of the index, whether it is drawn from or not.
        seed: of the run.
        epoch: which one.
    """
    random = np.random.default_rng((seed, epoch))
    members = [[row for row in rows if labels[row] == label] for label in sorted({labels[row] for row in rows})]
    extra = set(random.permutation(len(members))[: len(rows) % len(members)])  # whose turn it is for the remainder
    draws: list[int] = []
    for number, own in enumerate(members):
        wanted = len(rows) // len(members) + (number in extra)
        for repetition in range(-(-wanted // len(own))):
            chosen = random.permutation(own)[: wanted - repetition * len(own)]
            draws += [int(row) + repetition * len(labels) for row in chosen]
    return [draws[i] for i in random.permutation(len(draws))]


def cut_batches(rows: Sequence[int], batch_size: int) -> list[list[int]]:
    """The rows as they stand, in batches."""
    return [list(rows[start : start + batch_size]) for start in range(0, len(rows), batch_size)]


def seed_image(seed: int, epoch: int, row: int) -> np.random.Generator:
    """The random numbers that augment one image in one epoch."""
    return np.random.default_rng((seed, epoch, row))


def load_batches(
    batches: Iterable[Sequence[int]], load: Callable[[int], Pixels], *, threads: int
) -> Iterator[tuple[list[int], NDArray[np.uint8]]]:
    """Yields each batch's rows and its images, (B, S, S, 3) uint8, while the next ones are being decoded.

    Args:
        batches: the rows of each batch.
        load: gives a row's image, (S, S, 3) uint8; runs in a thread.
        threads: how many images are prepared at a time.

    Raises:
        ImageError: whatever `load` raised, when its batch is due.
    """
    pool = ThreadPoolExecutor(max_workers=max(1, threads), thread_name_prefix="decode")
    waiting: deque[tuple[list[int], list[Future[NDArray[np.uint8]]]]] = deque()

    def load_part(rows: Sequence[int]) -> NDArray[np.uint8]:
        return np.stack([load(row) for row in rows])

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


def _finish(rows: list[int], parts: list[Future[NDArray[np.uint8]]]) -> tuple[list[int], NDArray[np.uint8]]:
    return rows, np.concatenate([part.result() for part in parts])
