"""From a folder to a finished run: scan, split, plan, build, train, keep the best.

What is wrong with the input is found before anything heavy is imported.
"""

import os
import platform
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_cli.data.scan import Index
from convnext_cli.evaluation.metrics import Metrics
from convnext_cli.recipes.plan import Plan
from convnext_cli.runs import RunFolder, name_run
from convnext_cli.training.preparation import Request, prepare

if TYPE_CHECKING:
    from convnext_cli.inference.fitting import Calibration
    from convnext_cli.inference.predictor import Progress
    from convnext_cli.training.loop import EpochDone, Job, StepDone


@dataclass(frozen=True, kw_only=True, slots=True)
class Started:
    """Training is about to begin: everything that was decided."""

    run: Path
    plan: Plan
    index: Index
    device: str
    num_processes: int
    precision: str
    params: int
    new_params: int
    """How many of `params` start from random values."""
    license: str | None
    """Licence of the base weights, where they have one."""
    notes: tuple[str, ...]
    """What the user should know before trusting the result."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Finished:
    """The run is on disk."""

    run: Path
    epoch: int
    """The epoch, counted from 0, whose weights were kept."""
    val: Metrics | None
    """That epoch's figures on the validation split; None where it is empty."""
    selected_by: str
    calibration: "Calibration | None"
    """What was fitted on the validation split afterwards; None in all processes but the first."""


def finetune_steps(request: Request) -> "Iterator[Started | StepDone | EpochDone | Progress | Finished]":
    """Fine-tunes, and yields what happens while it happens."""
    prepared = prepare(request)

    from convnext_cli.training import devices

    accelerator = devices.make_accelerator(prepared.plan.recipe.amp)
    if prepared.machine.is_gpu and accelerator.device.type == "cpu":  # a GPU that this torch cannot use
        prepared = prepare(request, use_gpu=False)
    accelerator.wait_for_everyone()  # all ranks have looked before one of them writes

    from convnext_cli.inference.forward import choose_memory_format
    from convnext_cli.models.build import build_model, count_parameters, read_preprocessing, seed_weights
    from convnext_cli.training.loop import Job
    from convnext_cli.training.optim import make_optimizer

    index, plan, tag = prepared.index, prepared.plan, prepared.tag
    recipe = plan.recipe
    seed_weights(recipe.seed)
    with accelerator.local_main_process_first():  # one download for all of a machine's processes
        network, new = build_model(
            prepared.architecture,
            tag,
            num_classes=len(index.classes),
            drop_path=recipe.drop_path,
            weights=request.weights,
            offline=request.offline,
        )
    how = read_preprocessing(network, recipe.image_size)
    network = network.to(memory_format=choose_memory_format(accelerator.device))
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    groups = make_optimizer(network, lr=recipe.lr, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay)
    model, optimizer = accelerator.prepare(network, groups)
    job = Job(model=model, optimizer=optimizer, accelerator=accelerator, recipe=recipe, index=index, how=how)

    run = RunFolder(request.output or name_run(plan.model, datetime.now()))
    device = devices.describe_device(accelerator.device)
    license = tag.license if tag and request.weights == "auto" else _read_license(request.weights)
    if accelerator.is_main_process:
        run.create(overwrite=request.overwrite)
        run.write_plan(plan.to_toml())
        run.write_split(index)
        run.write_environment(_describe_environment(device))
    yield Started(
        run=run.path,
        plan=plan,
        index=index,
        device=device,
        num_processes=accelerator.num_processes,
        precision="bf16" if accelerator.mixed_precision == "bf16" else "float32",
        params=count_parameters(network),
        new_params=sum(sizes[name] for name in new),
        license=license,
        notes=prepared.notes,
    )
    yield from _train_and_keep(job, run, license=license, weak=prepared.weak_validation)


def _train_and_keep(
    job: "Job", run: RunFolder, *, license: str | None, weak: str | None
) -> "Iterator[StepDone | EpochDone | Progress | Finished]":
    """Trains; after each epoch saves the state, and the model where it is the best so far. Then calibrates it."""
    from convnext_cli.inference.fitting import Calibration, fit_steps
    from convnext_cli.inference.predictor import Predictor
    from convnext_cli.models.build import write_model
    from convnext_cli.training.checkpoint import save_last
    from convnext_cli.training.loop import EpochDone, train

    selected_by = f"last epoch, because {weak}" if weak else "best balanced accuracy on the validation split"
    network = job.accelerator.unwrap_model(job.model)
    best: EpochDone | None = None
    log: list[dict[str, Any]] = []
    for event in train(job):
        if isinstance(event, EpochDone):
            is_best = best is None or weak is not None or _score(event) > _score(best)
            best = event if is_best else best
            log.append(_log_epoch(event, is_best))
            if job.accelerator.is_main_process:
                if is_best:
                    write_model(network, run.path, classes=job.index.classes, how=job.how, license=license)
                save_last(run, network, job.optimizer, {"epoch": event.epoch, "log": log})
                run.write_log(log)
        yield event
    assert best is not None
    calibration: Calibration | None = None
    if job.accelerator.is_main_process:
        val = None if best.val is None else asdict(best.val)
        run.write_metrics({"epoch": best.epoch + 1, "selected_by": selected_by, "val": val})
        for step in fit_steps(Predictor(run.path, job.accelerator.device)):
            if isinstance(step, Calibration):
                calibration = step
            else:
                yield step
    job.accelerator.wait_for_everyone()
    job.accelerator.end_training()
    yield Finished(run=run.path, epoch=best.epoch, val=best.val, selected_by=selected_by, calibration=calibration)


def _score(event: "EpochDone") -> tuple[float, float]:
    assert event.val is not None
    return event.val.balanced_accuracy, -event.val.log_loss


def _log_epoch(event: "EpochDone", is_best: bool) -> dict[str, Any]:
    val = event.val
    return {
        "epoch": event.epoch + 1,
        "train_loss": event.train_loss,
        "val_log_loss": val and val.log_loss,
        "val_top1": val and val.top1,
        "val_balanced_accuracy": val and val.balanced_accuracy,
        "lr": event.lr,
        "seconds": round(event.seconds, 3),
        "images_per_second": round(event.images / event.seconds, 1),
        "best": is_best,
    }


def _read_license(weights: str) -> str | None:
    """The licence that comes with the user's own weights: that of the run they are from."""
    from convnext_cli.models.weights import read_license

    return None if weights in ("auto", "none") else read_license(Path(weights))


def _describe_environment(device: str) -> dict[str, Any]:
    packages = ("convnext-cli", "torch", "timm", "accelerate", "numpy", "pillow")
    return {
        "command": sys.argv,
        "working_directory": str(Path.cwd()),
        "git": _describe_git(),
        "device": device,
        "num_processes": int(os.environ.get("WORLD_SIZE", "1")),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: version(name) for name in packages},
    }


def _describe_git() -> str | None:
    """Commit and cleanness of the working directory's repository, or None outside of one."""
    try:
        command = ["git", "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
        return subprocess.run(command, capture_output=True, text=True, check=True, timeout=10).stdout.strip()
    except (OSError, subprocess.SubprocessError):
        return None
