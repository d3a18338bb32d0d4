"""What is kept of a run while it trains: its state, to continue from, and the best model so far, for others."""

from dataclasses import asdict
from signal import SIGINT, SIGTERM, Signals

from convnext_cli.errors import ConvnextError, DivergedError, OutOfMemoryError, StoppedError
from convnext_cli.inference.saved_model import write_model
from convnext_cli.metrics.summary import Metrics
from convnext_cli.progress import Notice
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import find_resumable
from convnext_cli.text import quote
from convnext_cli.training.checkpoint import Tensors, gather_kept, load_checkpoint, save_checkpoint
from convnext_cli.training.compute.devices import is_lost_connection, is_out_of_memory
from convnext_cli.training.context import TrainingContext
from convnext_cli.training.events import EpochDone, StepDone, TrainSteps
from convnext_cli.training.loop import train
from convnext_cli.training.phases.soup import average_best, keep_candidate
from convnext_cli.training.state import TrainingState

MAX_HALVINGS = 2  # of the learning rate, where a loss or gradient is no finite number


def train_and_save(context: TrainingContext, state: TrainingState) -> TrainSteps[TrainingState]:
    """Train; save the state after each epoch and where else it is due, and the model where it is the best so far.

    The checkpoint is written first and decides: what a kill leaves unwritten after it, the next start writes.

    Args:
        context: the model, optimizer, data and devices.
        state: where the run stands.

    Returns:
        The state at the end.

    Raises:
        StoppedError: a signal asked for it; the state is saved.
        DivergedError: a loss or gradient is no finite number, at a quarter of the learning rate too.
        ConvnextError: another subclass: the memory, an image, the disk.
    """
    accelerator, run = context.accelerator, context.run

    def publish(weights: Tensors) -> None:
        if accelerator.is_main_process:
            if state.log[-1]["best"]:
                classes = context.index.classes
                write_model(
                    context.network,
                    run.path,
                    weights,
                    classes=classes,
                    preprocessing=context.preprocessing,
                    license=state.license,
                )
            run.write_log(state.log)
            if context.settings.average_best:
                keep_candidate(context, state, weights)

    if state.log and not state.loss_sums:  # an epoch's end, after which a kill may have left these unwritten
        publish(gather_kept(context))
    while True:
        try:
            for event in train(context, state):
                if isinstance(event, EpochDone):
                    note_epoch(state, event, always=context.weak_validation is not None)
                    publish(save_checkpoint(run, context, state))
                    accelerator.log({name: value for name, value in state.log[-1].items() if value is not None})
                yield event
                if isinstance(event, StepDone) and event.is_due:
                    save_checkpoint(run, context, state)
                    if event.signal:
                        raise _stopped(run, state.step, event.signal)
            if context.settings.average_best:
                remark, signal = average_best(context, state)
                if signal:
                    raise _stopped(run, state.step, signal)
                if remark is not None:
                    yield remark
            return state
        except RuntimeError as error:
            if is_out_of_memory(error):  # where no smaller micro-batch helps
                raise OutOfMemoryError(
                    "the device has not enough memory for the model, its optimizer and a validation batch",
                    "Try a smaller --model or --image-size, or more GPUs with FSDP",
                ) from error
            if not is_lost_connection(error):
                raise
            raise ConvnextError(
                "another process of this run has ended", f"Look for its own error. {describe_resume(run)}"
            ) from error
        except DivergedError as error:
            halvings = state.halvings + 1
            if halvings > MAX_HALVINGS:
                kept = "; the best epoch's model is kept" if state.log else ""
                raise DivergedError(f"{error.problem}, at a quarter of the lr too", f"{error.remedy}{kept}") from error
            state, _ = load_checkpoint(run, context)
            state.halvings = halvings
            again = " once more" if halvings > 1 else ""
            yield Notice(text=f"{error.problem}: back to step {state.step:,}, with the lr halved{again}")


def note_epoch(state: TrainingState, event: EpochDone, *, always: bool) -> None:
    """Adds the epoch's line to the log, and its figures where it is the best so far."""
    val, best = event.val, state.best
    is_best = always or best is None or _score(val) > (best["val_balanced_accuracy"], -best["val_log_loss"])
    if is_best:
        state.best_val = None if val is None else asdict(val)
    state.log.append(
        {
            "epoch": event.epoch,
            "train_loss": event.train_loss,
            "val_log_loss": val and val.log_loss,
            "val_top1": val and val.top1,
            "val_balanced_accuracy": val and val.balanced_accuracy,
            "lr": event.lr,
            "micro_batch_size": state.micro_batch_size,
            "seconds": round(event.seconds, 3),
            "images_per_second": round(event.images / event.seconds, 1),
            "best": is_best,
        }
    )


def _score(val: Metrics | None) -> tuple[float, float]:
    assert val is not None
    return val.balanced_accuracy, -val.log_loss


def _stopped(run: RunFolder, step: int, signal: int) -> StoppedError:
    name = "" if signal in (SIGINT, SIGTERM) else f" ({Signals(signal).name})"
    return StoppedError(f"stopped after step {step:,}, and saved{name}", describe_resume(run), signal=signal)


def describe_resume(run: RunFolder) -> str:
    """Return the sentence with the command that continues a run."""
    return f"Go on with `convnext finetune --resume {quote(find_resumable(run).path)}`"
