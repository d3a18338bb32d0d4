"""`--devices N`: run this command in N processes, with torchrun's launcher."""

import logging
import os
import sys
import uuid
from dataclasses import fields
from typing import Any

import torch
from torch.distributed.elastic.multiprocessing import SignalException
from torch.distributed.elastic.multiprocessing.errors import ChildFailedError
from torch.distributed.launcher.api import LaunchConfig, elastic_launch

from convnext_cli.errors import UsageError
from convnext_cli.machine import count_cpus
from convnext_cli.text import format_count
from convnext_cli.training.compute.signals import list_signals

SHUTDOWN_TIMEOUT = 600  # seconds for stopped processes to finish their step and save


def launch(processes: int) -> int:
    """Run this command line in `processes` processes, and return the first failure's exit code, or 0.

    Raises:
        UsageError: there are fewer GPUs or, without a GPU, fewer CPU cores; two processes are always allowed.
    """
    if torch.cuda.is_available() and torch.cuda.device_count() < processes:
        raise UsageError(
            f"--devices {processes}, but this machine has {format_count(torch.cuda.device_count(), 'GPU')}",
            f"Use at most --devices {torch.cuda.device_count()}",
        )
    if not torch.cuda.is_available() and processes > (most := max(2, count_cpus())):
        raise UsageError(
            f"--devices {processes}, but this machine has no GPU and {format_count(count_cpus(), 'CPU core')}",
            f"Use at most --devices {most}",
        )
    logging.disable(logging.ERROR)  # each process reports its own errors
    os.environ.setdefault(
        "TORCHELASTIC_SIGNALS_TO_HANDLE", ",".join(["SIGQUIT", *(number.name for number in list_signals())])
    )
    os.environ.setdefault("OMP_NUM_THREADS", str(max(1, count_cpus() // processes)))
    config = LaunchConfig(
        min_nodes=1,
        max_nodes=1,
        nproc_per_node=processes,
        run_id=uuid.uuid4().hex,
        rdzv_backend="c10d",
        rdzv_endpoint="localhost:0",  # any free port
        max_restarts=0,
        **choose_shutdown_timeout(),
    )
    os.environ["PYTHONPATH"] = os.pathsep.join(sys.path)  # not the working folder, whose modules could hide Python's
    try:
        elastic_launch(config, sys.executable)("-P", "-m", "convnext_cli", *sys.argv[1:])
    except ChildFailedError as error:
        _, failure = error.get_first_failure()
        return failure.exitcode if failure.exitcode > 0 else 128 - failure.exitcode
    except SignalException as error:
        return 128 + int(error.sigval)
    return 0


def choose_shutdown_timeout() -> dict[str, Any]:
    """Return the setting `shutdown_timeout`; none in older PyTorch (2.11), which kills processes after 30 seconds."""
    name = "shutdown_timeout"
    return {name: SHUTDOWN_TIMEOUT} if name in {field.name for field in fields(LaunchConfig)} else {}
