"""Processes that load training images, for a GPU that trains faster than the threads of one process load.

Threads share Python's lock, which augmentation needs. Each process has its own. A thread of the training sends it the
draws of a part of a batch, and the process writes their images into memory that both share. It is a file without a
name (memfd), as many containers limit /dev/shm to 64 MB; on systems that have none, a temporary file. A process is
started as a program, not by `multiprocessing`, which would import the user's script again, and with `-P`, as modules in
the working folder could hide Python's own. An image depends on its draw only, so a run is the same with any number of
processes.
"""

import os
import pickle
import signal
import subprocess
import sys
import tempfile
import traceback
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from functools import partial
from itertools import accumulate
from queue import SimpleQueue
from typing import IO, Any, TypeAlias

import numpy as np
from numpy.typing import NDArray

from convnext_cli.errors import ConvnextError
from convnext_cli.images.loaders import AHEAD, cut_parts, run_tasks
from convnext_cli.training.views import Batches, Draw, OpenViews, TrainingViews

Part: TypeAlias = tuple[int, int, Sequence[Draw]]
"""The number of a batch in the shared memory, the first image, and the draws of this one and the next."""


class ProcessLoader:
    """Loads views in processes, as `ThreadLoader` does in threads.

    Args:
        views: what they load.
        workers: their number, at least 1.
        batch_size: images of a batch, at most.
    """

    def __init__(self, views: TrainingViews, workers: int, batch_size: int) -> None:
        environment = os.environ | {"PYTHONPATH": os.pathsep.join(sys.path)}
        shape = AHEAD + 2, batch_size, *views.preprocessing.size, 3
        self._file = _make_file()
        self._images = map_batches(self._file, shape)
        self.processes = [
            subprocess.Popen(
                [sys.executable, "-P", "-m", __name__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment,
                pass_fds=[self._file.fileno()],
            )
            for _ in range(workers)
        ]  # fmt: skip
        self._idle: SimpleQueue[subprocess.Popen[bytes]] = SimpleQueue()
        try:
            for process in self.processes:
                _send(process, (views, self._file.fileno(), shape))
                self._idle.put(process)
        except ConvnextError:
            self.close()
            raise

    def load(self, batches: Iterable[Sequence[Draw]]) -> Batches:
        """Yield the batches; their images may be overwritten when the second batch after them is asked for.

        Raises:
            ConvnextError: a process was killed.
        """
        drawn, images = [list(draws) for draws in batches], self._images
        tasks = [self._plan_tasks(number, draws) for number, draws in enumerate(drawn)]
        loaded = run_tasks(tasks, threads=len(self.processes))
        for number, (draws, _) in enumerate(zip(drawn, loaded, strict=True)):
            yield draws, images[number % len(images), : len(draws)]

    def _plan_tasks(self, number: int, draws: Sequence[Draw]) -> list[Callable[[], None]]:
        """Return the tasks that load a batch into its place in the shared memory."""
        parts = cut_parts(draws, len(self.processes))
        starts = accumulate(map(len, parts), initial=0)
        place = number % len(self._images)
        return [partial(self._load_part, (place, start, part)) for start, part in zip(starts, parts, strict=False)]

    def _load_part(self, part: Part) -> None:
        """Have a part of a batch loaded by an idle process. Thread-safe."""
        process = self._idle.get()
        try:
            _ask(process, part)
        finally:
            self._idle.put(process)

    def flush(self) -> str | None:
        """Write the images that wait to be cached, and return why no more are."""
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
        self._file.close()
        del self._images


def _make_file() -> IO[bytes]:
    """Return a file without a name: in memory, or where the system has no such files, a temporary one."""
    if hasattr(os, "memfd_create"):
        return os.fdopen(os.memfd_create("convnext-batches"), "r+b")
    return tempfile.TemporaryFile()


def map_batches(file: IO[bytes], shape: tuple[int, ...]) -> NDArray[np.uint8]:
    """Return the array (batches, images of a batch, H, W, 3) whose memory is a file, which is made large enough."""
    return np.memmap(file, np.uint8, "r+", shape=shape)


@contextmanager
def _name_killed() -> Iterator[None]:
    """Name the cause where a process has gone. A lost pipe alone would be taken for that of the output."""
    try:
        yield
    except (EOFError, BrokenPipeError, pickle.UnpicklingError) as error:
        raise ConvnextError(
            "a process that loads images was killed", "Use fewer --workers if the memory was full, and --resume"
        ) from error


def _send(process: "subprocess.Popen[bytes]", message: object) -> None:
    assert process.stdin is not None
    with _name_killed():
        pickle.dump(message, process.stdin, pickle.HIGHEST_PROTOCOL)
        process.stdin.flush()


def _ask(process: "subprocess.Popen[bytes]", message: object) -> Any:
    """Send a message and return the answer; an exception is raised."""
    _send(process, message)
    assert process.stdout is not None
    with _name_killed():
        answer = pickle.load(process.stdout)  # noqa: S301  # from a process of this program
    if isinstance(answer, Exception):
        raise answer
    return answer


def work(source: IO[bytes], target: IO[bytes]) -> None:
    """Answer the messages of a `ProcessLoader` until it closes the pipe.

    The first one has the `TrainingViews` and the shared memory. Then a `Part` is answered by None once its images are
    there, or by an error; None, which writes the images that wait to be cached, by the cache's failure.
    """
    views, number, shape = pickle.load(source)  # noqa: S301  # from the process that started this one
    with os.fdopen(number, "r+b") as file:
        batches = map_batches(file, shape)
    opened = OpenViews(views)
    while True:
        try:
            part = pickle.load(source)  # noqa: S301
        except EOFError:
            return
        answer: object = None
        if part is None:
            opened.images.flush()
            answer = opened.images.failure
        else:
            batch, start, draws = part
            try:
                for place, draw in enumerate(draws, start):
                    batches[batch, place] = opened.load(draw)
            except Exception as error:  # raised where the batch is due; any other's traceback would be lost
                is_own = isinstance(error, ConvnextError | MemoryError)
                answer = error if is_own else RuntimeError(traceback.format_exc())
        pickle.dump(answer, target)
        target.flush()


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # the training saves, and closes the pipe
    pipe, sys.stdout = sys.stdout, sys.stderr  # a library's print would go into the pipe
    with open(pipe.fileno(), "wb", closefd=False) as output:
        work(sys.stdin.buffer, output)
