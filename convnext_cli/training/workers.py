"""Processes that load training images, for a GPU that trains faster than the threads of one process load.

Threads share Python's lock, which augmentation needs. Each process has its own. A thread of the training sends it the
draws of a part of a batch, and reads the images through a pipe, without the lock. Shared memory would save that copy,
but is limited to 64 MB in many containers. A process is started as a program, not by `multiprocessing`, which would
import the user's script again, and with `-P`, as modules in the working folder could hide Python's own. An image
depends on its draw only, so a run is the same with any number of processes.
"""

import os
import pickle
import signal
import subprocess
import sys
import traceback
from collections.abc import Iterable, Sequence
from contextlib import suppress
from queue import SimpleQueue
from typing import IO, Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.errors import ConvnextError
from convnext_cli.images.loaders import load_parts
from convnext_cli.training.views import Batches, Draw, OpenViews, TrainingViews


class ProcessLoader:
    """Loads views in processes. The methods are those of `ViewLoader`.

    Args:
        views: what they load.
        workers: their number, at least 1.
    """

    def __init__(self, views: TrainingViews, workers: int) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        self._size = views.preprocessing.size
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment
            )
            for _ in range(workers)
        ]
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        for process in self.processes:
            _send(process, views)
            self._idle.put(process)

    def load(self, batches: Iterable[Sequence[Draw]]) -> Batches:
        """Yield the batches.

        Raises:
            ConvnextError: a process was killed.
        """
        return load_parts(batches, self._load_part, threads=len(self.processes))

    def _load_part(self, draws: Sequence[Draw]) -> NDArray[np.uint8]:
        """Return the images of a part of a batch from an idle process. Thread-safe."""
        images = np.empty((len(draws), *self._size, 3), np.uint8)
        process = self._idle.get()
        try:
            _ask(process, draws)
            _read_into(process, images.data.cast("B"))
            return images
        finally:
            self._idle.put(process)

    def flush(self) -> str | None:
        """Write the images that wait to be cached."""
        failures = [_ask(process, None) for process in self.processes]
        return next(filter(None, failures), None)

    def close(self) -> None:
        """End the processes."""
        for process in self.processes:
            assert process.stdin is not None
            assert process.stdout is not None
            with suppress(BrokenPipeError):  # it was killed
                process.stdin.close()
            process.stdout.close()
        for process in self.processes:
            process.wait()


def _send(process: "subprocess.Popen[bytes]", message: object) -> None:
    assert process.stdin is not None
    pickle.dump(message, process.stdin, pickle.HIGHEST_PROTOCOL)
    process.stdin.flush()


def _ask(process: "subprocess.Popen[bytes]", message: object) -> Any:
    """Send a message and return the answer; an exception is raised.

    Raises:
        ConvnextError: the process was killed.
    """
    try:
        _send(process, message)
        assert process.stdout is not None
        answer = pickle.load(process.stdout)  # noqa: S301  # from a process of this program
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
        raise _killed() from error
    if isinstance(answer, Exception):
        raise answer
    return answer


def _read_into(process: "subprocess.Popen[bytes]", buffer: memoryview) -> None:
    assert process.stdout is not None
    done = 0
    while done < len(buffer):
        count = process.stdout.readinto(buffer[done:])  # type: ignore[attr-defined]  # of a buffered reader
        if not count:
            raise _killed()
        done += count


def _killed() -> ConvnextError:
    return ConvnextError(
        "a process that loads images was killed", "Use fewer --workers if the memory was full, and --resume"
    )


def work(source: IO[bytes], target: IO[bytes]) -> None:
    """Answer the messages of a `ProcessLoader` until it closes the pipe.

    The first one is the `TrainingViews`. Then draws are answered by None, or an error, and the images; None, which
    writes the images that wait to be cached, by the cache's failure.
    """
    views = OpenViews(pickle.load(source))  # noqa: S301  # from the process that started this one
    while True:
        try:
            draws = pickle.load(source)  # noqa: S301
        except EOFError:
            return
        if draws is None:
            views.images.flush()
            pickle.dump(views.images.failure, target)
        else:
            try:
                images = np.stack([views.load(draw) for draw in draws])
            except Exception as error:  # raised where the batch is due; any other's traceback would be lost
                is_own = isinstance(error, ConvnextError | MemoryError)
                pickle.dump(error if is_own else RuntimeError(traceback.format_exc()), target)
            else:
                pickle.dump(None, target)
                target.write(images.data.cast("B"))
        target.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training saves, and closes the pipe
    pipe, sys.stdout = sys.stdout, sys.stderr  # a library's print would go into the pipe
    with open(pipe.fileno(), "wb", closefd=False) as output:
        work(sys.stdin.buffer, output)
