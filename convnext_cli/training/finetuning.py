"""Fine-tune one model."""

from collections.abc import Iterator
from dataclasses import replace
from threading import Thread

from convnext_cli.errors import UsageError
from convnext_cli.machine import get_local_rank
from convnext_cli.progress import Progress, expand_events
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.events import Complete, FinetuneResult, TrainSteps
from convnext_cli.training.planning import check_sources, fetch_weights, prepare_steps
from convnext_cli.training.preparation import Preparation
from convnext_cli.training.request import TrainRequest
from convnext_cli.training.resumption import continue_if_restarted


def finetune_steps(request: TrainRequest, complete: Complete | None = None) -> TrainSteps[FinetuneResult]:
    """Fine-tune a model, or resume a run.

    Raises:
        StoppedError: a signal has arrived; a checkpoint is written.
        ConvnextError: another subclass, with the remedy.
    """
    preparation = yield from prepare_while_importing(request)
    if preparation.fold_index:
        raise UsageError("this trains one fold", "Use --fold, or call `cross_validate` to train all folds")
    from convnext_cli.training.compute.devices import keep_process_state
    from convnext_cli.training.compute.ranks import end_training
    from convnext_cli.training.lifecycle import run_training, start_training
    from convnext_cli.training.resources import guard_training, hold_folder, open_devices

    with keep_process_state():
        accelerator, preparation = open_devices(preparation)
        with guard_training(accelerator), hold_folder(preparation, accelerator) as (path, notices):
            training = yield from start_training(preparation, RunFolder(path), accelerator)
            result = yield from run_training(training, complete, notices)
            end_training()
    return result


def prepare_while_importing(request: TrainRequest) -> TrainSteps[Preparation]:
    """Prepare a training or continue a restarted one, while a thread imports torch and timm.

    The thread starts with the first event, after the request is checked: errors in it come at once. A process that
    ends earlier waits for it. Missing weights, and a wrong file of weights or teacher, end the preparation early too:
    checking the images may take long.
    """
    request = continue_if_restarted(request)
    failures: list[Exception] = []
    importing = Thread(target=_import_libraries, args=[request, failures], name="import")

    def start(event: Progress) -> Iterator[Progress]:
        if importing.ident is None:
            if get_local_rank() == 0:
                yield from fetch_weights(request)
            importing.start()
        if failures:
            raise failures[0]
        yield event

    preparation = yield from expand_events(prepare_steps(request), start)
    if importing.is_alive():
        yield Progress(done=0, total=1, activity="loading PyTorch")
        importing.join()
    if failures:
        raise failures[0]
    if get_local_rank() == 0:  # those of a recommended model; others are there
        yield from fetch_weights(replace(preparation.request, model=preparation.plan.model))
    return preparation


def _import_libraries(request: TrainRequest, failures: list[Exception]) -> None:
    """Import what a training needs, and check with it what the request names.

    An error is kept: a second import of PyTorch would fail for another reason.
    """
    try:
        import convnext_cli.training.lifecycle  # noqa: F401

        check_sources(request)
    except Exception as error:
        failures.append(error)
