"""Fine-tune one model."""

from threading import Thread

from convnext_cli.errors import UsageError
from convnext_cli.machine import get_local_rank
from convnext_cli.progress import Progress, map_events
from convnext_cli.runs.folder import RunFolder
from convnext_cli.training.events import Complete, FinetuneResult, TrainSteps
from convnext_cli.training.planning import Scan, check_sources, fetch_weights, plan_scan, prepare_steps, scan_request
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
    if request.resume is not None:
        return (yield from prepare_steps(request))
    scan = scan_request(request)
    fetches = get_local_rank() == 0
    if fetches:
        yield from fetch_weights(scan.request, scan.model)
    failures: list[Exception] = []
    importing = Thread(target=_import_libraries, args=[scan, failures], name="import")

    def start(event: Progress) -> Progress:
        if importing.ident is None:
            importing.start()
        if failures:
            raise failures[0]
        return event

    preparation = yield from map_events(plan_scan(scan), start)
    if importing.is_alive():
        yield Progress(done=0, total=1, activity="loading PyTorch")
        importing.join()
    if failures:
        raise failures[0]
    if fetches:  # where unreadable images or the images' size change what is recommended
        yield from fetch_weights(preparation.request, preparation.plan.model)
    return preparation


def _import_libraries(scan: Scan, failures: list[Exception]) -> None:
    """Import what a training needs, and check with it what the request names.

    An error is kept: a second import of PyTorch would fail for another reason.
    """
    try:
        import convnext_cli.training.lifecycle  # noqa: F401

        check_sources(scan.request, scan.model)
    except Exception as error:
        failures.append(error)
