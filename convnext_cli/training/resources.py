"""Resources of a training: its devices, and the folder that it locks and writes into."""

from collections.abc import Iterator
from contextlib import ExitStack, contextmanager, suppress
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from accelerate import Accelerator

from convnext_cli.errors import ConvnextError
from convnext_cli.locks import lock_folder
from convnext_cli.models.device_memory import guard_memory
from convnext_cli.models.forward import choose_device
from convnext_cli.progress import Notice
from convnext_cli.runs.folds import name_runs, open_folder, remove_aborted_start
from convnext_cli.training.compute import devices
from convnext_cli.training.compute.ranks import do_on_first_rank, is_lost_connection
from convnext_cli.training.planning import plan_again
from convnext_cli.training.preparation import Preparation
from convnext_cli.training.resumption import check_unfinished

SIMILAR = 0.1  # fraction by which a GPU's free memory may differ from that of the plan


@contextmanager
def hold_folder(preparation: Preparation, accelerator: Accelerator) -> Iterator[tuple[Path, tuple[Notice, ...]]]:
    """Choose the folder that a training writes into, and hold its lock during the block. All ranks call it.

    A training that fails before it has begun leaves no file, so that it can be tried again.

    Yields:
        The folder; and a notice if its file system has no locks.

    Raises:
        RunError: another process trains into the folder.
        UsageError: its run has finished, or another process has written into it, since it was checked.
    """
    request, model = preparation.request, preparation.plan.model
    with ExitStack() as stack:

        def lock() -> tuple[Path, bool]:
            path = request.resume or request.output
            if path is not None:
                is_held = stack.enter_context(lock_folder(path))
                if request.resume is not None:
                    check_unfinished(open_folder(path))
                return path, is_held
            for path in name_runs(model, datetime.now()):
                with suppress(FileExistsError):
                    return path, stack.enter_context(lock_folder(path, is_new=True))
            raise AssertionError("there is always a next name")

        path, is_held = do_on_first_rank(accelerator, lock)
        text = "the run folder's file system has no locks: do not start a second training there"
        try:
            yield path, () if is_held else (Notice(text),)
        except BaseException:
            if accelerator.is_main_process and request.resume is None:
                remove_aborted_start(path)
            raise


def open_devices(preparation: Preparation) -> tuple[Accelerator, Preparation]:
    """Return the accelerator, and the preparation for its device; wait until all ranks have prepared.

    The plan was made for the device that the driver names. If torch uses another one, the plan is made again for it,
    with a notice.

    Raises:
        OutOfMemoryError: other processes have filled the GPU.
    """
    request, settings = preparation.request, preparation.plan.settings
    with guard_memory("the GPU has too little memory to start on", "Use another one", choose_device()):
        accelerator = devices.make_accelerator(
            settings.amp,
            deterministic=settings.deterministic,
            track=request.track,
            folder=request.resume or request.output,
        )
        preparation = _plan_for_device(preparation, accelerator)
    accelerator.wait_for_everyone()
    return accelerator, preparation


@contextmanager
def guard_training(accelerator: Accelerator) -> Iterator[None]:
    """Report too little memory, where a smaller batch does not help, and the end of another process.

    Raises:
        OutOfMemoryError: the device has too little memory, at any point of the block.
        ConvnextError: another process has ended.
    """
    problem = "the device has too little memory for the model, its optimizer and a validation batch"
    remedy = "Try a smaller --model or --image-size, or more GPUs with FSDP"
    try:
        with guard_memory(problem, remedy, accelerator.device):
            yield
    except RuntimeError as error:
        if not is_lost_connection(error):
            raise
        raise ConvnextError("another process of this run has ended", "See its own error message") from error


def _plan_for_device(preparation: Preparation, accelerator: Accelerator) -> Preparation:
    """Return the preparation for the device that torch uses, with notices about it."""
    planned, used = preparation.machine, devices.find_torch_machine(accelerator)
    notices = []
    if planned.is_gpu and not used.is_gpu:
        notices.append(Notice(devices.explain_unusable_gpu(planned), "warning"))
    elif used.is_gpu and (not planned.is_gpu or abs(used.memory - planned.memory) > SIMILAR * planned.memory):
        notices.append(Notice(f"planned for the GPU that PyTorch uses: {used}, instead of {planned}"))
    if notices or (used.is_gpu and accelerator.num_processes > 1):  # then the same plan on all ranks
        preparation = plan_again(preparation, used)
    if slow := devices.explain_slow_precision(accelerator):
        notices.append(Notice(slow))
    return replace(preparation, device_notices=tuple(notices))
