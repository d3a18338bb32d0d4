import threading
import time
from collections.abc import Generator

import numpy as np
import pytest

from convnext_cli.errors import ImageError
from convnext_cli.images.loaders import (
    AHEAD,
    balance_rows,
    cut_batches,
    load_ahead,
    load_batches,
    seed_image,
    shuffle_rows,
)
from convnext_cli.images.raster import Pixels


def image(row: int) -> Pixels:
    return np.full((2, 2, 3), row, np.uint8)


def test_epoch_has_every_row_once() -> None:
    rows = list(range(100, 145))
    order = shuffle_rows(rows, seed=0, epoch=0)
    assert [len(batch) for batch in cut_batches(order, 16)] == [16, 16, 13]
    assert sorted(order) == rows
    assert order == shuffle_rows(rows, seed=0, epoch=0)
    assert order != shuffle_rows(rows, seed=0, epoch=1)
    assert order != shuffle_rows(rows, seed=1, epoch=0)


@pytest.mark.parametrize("extra", [0, 1, 2])
def test_balanced_sampler_draws_classes_equally_often(extra: int) -> None:
    labels = [0] * 200 + [1] * 20 + [2] * (5 + extra)
    rows = [row for row in range(len(labels)) if row % 10 != 3]  # the others are for validation
    draws = balance_rows(rows, labels, seed=0, epoch=0)
    assert len(draws) == len(set(draws)) == len(rows), "no draw is augmented as another is"
    drawn = [draw % len(labels) for draw in draws]
    assert set(drawn) <= set(rows)
    counts = np.bincount([labels[row] for row in drawn])
    assert counts.max() - counts.min() <= 1
    for label in (1, 2):  # a class's images are all drawn before one is drawn again
        times = np.bincount([row for row in drawn if labels[row] == label], minlength=len(labels))
        of_class = times[[row for row in rows if labels[row] == label]]
        assert of_class.max() - of_class.min() <= 1
    assert draws == balance_rows(rows, labels, seed=0, epoch=0)
    assert draws != balance_rows(rows, labels, seed=0, epoch=1)


def test_fewer_rows_than_a_batch_are_one_batch() -> None:
    assert cut_batches([3, 4], 32) == [[3, 4]]


@pytest.mark.parametrize("threads", [1, 4])
def test_batches_come_in_order(threads: int) -> None:
    def load(row: int) -> Pixels:
        time.sleep(0.001 * (row % 3))
        return image(row)

    got = list(load_batches(cut_batches(range(20), 6), load, threads=threads))
    assert [rows for rows, _ in got] == cut_batches(range(20), 6)
    for rows, images in got:
        assert images.shape == (len(rows), 2, 2, 3)
        assert images[:, 0, 0, 0].tolist() == rows


def test_few_batches_are_decoded_ahead() -> None:
    loaded = 0
    lock = threading.Lock()

    def load(row: int) -> Pixels:
        nonlocal loaded
        with lock:
            loaded += 1
        return image(row)

    batches = load_batches(cut_batches(range(100), 5), load, threads=2)
    next(batches)
    time.sleep(0.1)
    assert loaded == 5 * (AHEAD + 1)


def test_error_of_a_thread_is_raised_unchanged() -> None:
    def load(row: int) -> Pixels:
        if row == 7:
            raise ImageError("bad", "Replace it")
        return image(row)

    batches = load_batches(cut_batches(range(10), 5), load, threads=2)
    assert next(batches)[0] == [0, 1, 2, 3, 4]
    with pytest.raises(ImageError, match="bad"):
        next(batches)


def test_one_item_is_computed_ahead_and_the_source_is_closed() -> None:
    computed, closed, event = [], [], threading.Event()

    def count() -> Generator[int, None, None]:
        try:
            for number in range(5):
                computed.append((number, threading.current_thread()))
                if number == 1:
                    event.set()
                yield number
        finally:
            closed.append(True)

    assert list(load_ahead(count())) == [0, 1, 2, 3, 4]
    assert closed == [True]
    assert threading.current_thread() not in {thread for _, thread in computed}
    computed.clear()
    event.clear()
    items = load_ahead(count())
    assert next(items) == 0
    assert event.wait(10), "the next one is computed"
    items.close()
    assert [number for number, _ in computed] == [0, 1]
    assert closed == [True, True]


def test_an_error_ahead_is_raised_when_its_item_is_due() -> None:
    def fail() -> Generator[int, None, None]:
        yield 1
        raise ImageError("bad", "Replace it")

    items = load_ahead(fail())
    assert next(items) == 1
    with pytest.raises(ImageError, match="bad"):
        next(items)


def test_random_numbers_depend_on_seed_epoch_and_row_only() -> None:
    draws = {(s, e, r): seed_image(s, e, r).random() for s in (0, 1) for e in (0, 1) for r in (0, 1)}
    assert len(set(draws.values())) == 8
    assert seed_image(1, 0, 1).random() == draws[1, 0, 1]
