"""Saving during training: checkpoints to resume from, and the best model so far for other programs."""

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from contextlib import closing
from functools import partial
from signal import SIGINT, SIGTERM, Signals

from convnext_cli.errors import ConvnextError, DivergedError, ImageError, StoppedError
from convnext_cli.progress import Notice
from convnext_cli.runs.folds import describe_resume
from convnext_cli.training.checkpoint import (
    Snapshot,
    Tensors,
    gather_result,
    load_checkpoint,
    save_checkpoint,
    save_model,
    take_snapshot,
    write_checkpoint,
)
from convnext_cli.training.compute.ranks import is_lost_connection
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import EpochDone, StepDone, TrainSteps
from convnext_cli.training.loop import train
from convnext_cli.training.phases.soup import average_best, keep_candidate
from convnext_cli.training.state import TrainingState

MAX_HALVINGS = 2  # of the learning rate, after losses or gradients that are not finite


def train_and_save(context: TrainingContext, state: TrainingState) -> TrainSteps[TrainingState]:
    """Train to the end; write a checkpoint after each epoch and where one is due, and the model if it is the best.

    The checkpoint is written first. What a kill leaves unwritten after it, the next start writes. At an epoch's end a
    thread writes, from a copy: checksum and disk would take as long as an epoch of a small data set on a GPU.

    Returns:
        The state at the end.

    Raises:
        StoppedError: a signal has arrived; the checkpoint is written.
        DivergedError: a loss or gradient is not finite, even at a quarter of the learning rate.
        ConvnextError: another subclass, about memory, an image or the disk.
    """
    if state.log and not state.loss_sums:  # an epoch's end: a kill may have come before the model was written
        _write_epoch(context, state, gather_result(context))
    while True:
        try:
            with Writer() as writer:
                yield from _train_and_save_once(context, state, writer)
            return state
        except RuntimeError as error:
            if not is_lost_connection(error):
                raise
            remedy = f"See its own error message. {describe_resume(context.run)}"
            raise ConvnextError("another process of this run has ended", remedy) from error
        except ImageError as error:  # removing the file, its own remedy, would leave a run that cannot be resumed
            remedy = f"Restore the file. {describe_resume(context.run)}, or start a new run without it"
            raise ImageError(error.problem, remedy) from error
        except DivergedError as error:
            state, notice = _go_back(context, state, error)
            yield notice


class Writer:
    """Writes in a thread, one piece of work at a time, while the training goes on. As a context it waits at the end."""

    def __init__(self) -> None:
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="save")
        self._work: Future[None] | None = None

    def start(self, work: Callable[[], None]) -> None:
        """Start `work` after that before it.

        Raises:
            ConvnextError: the work before it has failed.
        """
        self.wait()
        self._work = self._pool.submit(work)

    def wait(self) -> None:
        """Wait for the work to end.

        Raises:
            ConvnextError: it has failed.
        """
        work, self._work = self._work, None
        if work is not None:
            work.result()

    def __enter__(self) -> "Writer":
        return self

    def __exit__(self, *_: object) -> None:
        with self._pool:
            self.wait()


def _train_and_save_once(context: TrainingContext, state: TrainingState, writer: Writer) -> TrainSteps[None]:
    """Train and save as `train_and_save` does, until the end or the first failure."""
    with closing(train(context, state)) as events:
        for event in events:
            if isinstance(event, EpochDone):
                state.add_epoch(event, context.index.task, keeps_last=context.keeps_last)
                writer.wait()  # before a second snapshot takes memory
                snapshot = take_snapshot(context, state)
                if context.accelerator.is_main_process:
                    writer.start(partial(_write_snapshot, context, snapshot))
                entry = {name: value for name, value in state.log[-1].items() if value is not None}
                context.accelerator.log(entry, step=event.epoch)
            yield event
            if isinstance(event, StepDone) and event.is_due:
                writer.wait()
                save_checkpoint(context, state)
                _check_signal(context, state, event.signal)
    writer.wait()
    if context.settings.average_best:
        notice, signal = average_best(context, state)
        _check_signal(context, state, signal)
        if notice is not None:
            yield notice


def _write_snapshot(context: TrainingContext, snapshot: Snapshot) -> None:
    """Write the checkpoint of an epoch's end, and what follows it. The first rank calls it."""
    write_checkpoint(context.run, snapshot)
    _write_epoch(context, snapshot.state, snapshot.weights)


def _write_epoch(context: TrainingContext, state: TrainingState, weights: Tensors) -> None:
    """Write what follows an epoch's checkpoint: the model if it is the best, the log, and weights to average."""
    if not context.accelerator.is_main_process:
        return
    if state.log[-1]["best"]:
        save_model(context, state, weights)
    context.run.write_log(state.log)
    if context.settings.average_best:
        keep_candidate(context, state, weights)


def _check_signal(context: TrainingContext, state: TrainingState, signal: int) -> None:
    """Check that no signal has arrived."""
    if signal:
        name = "" if signal in (SIGINT, SIGTERM) else f" ({Signals(signal).name})"
        problem = f"stopped after step {state.step:,}, and saved{name}"
        raise StoppedError(problem, describe_resume(context.run), signal=signal)


def _go_back(context: TrainingContext, state: TrainingState, error: DivergedError) -> tuple[TrainingState, Notice]:
    """Load the last checkpoint and halve its learning rate; return its state and a warning."""
    halvings = state.halvings + 1
    if halvings > MAX_HALVINGS:
        kept = "; the best epoch's model is kept" if state.log else ""
        raise DivergedError(
            f"{error.problem}, at a quarter of the learning rate too", f"{error.remedy}{kept}"
        ) from error
    state, _ = load_checkpoint(context.run, context)
    state.halvings = halvings
    again = " once more" if halvings > 1 else ""
    text = f"{error.problem}: back to step {state.step:,}, with the learning rate halved{again}"
    return state, Notice(text, "warning")
