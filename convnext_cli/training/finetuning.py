"""From a folder to a finished run: scan, split, plan, build, train, keep the best.

What is wrong with the input is found before anything heavy is imported.
"""

import os
import platform
import subprocess
import sys
from collections import deque
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from importlib.metadata import version
from pathlib import Path
from typing import TYPE_CHECKING, Any

from convnext_cli.data.scan import Index, check_trainable, scan_folder
from convnext_cli.data.split import explain_weak_validation, split_index
from convnext_cli.evaluation.metrics import Metrics
from convnext_cli.models.catalog import Architecture, Tag, find_model
from convnext_cli.recipes.plan import Choice, Plan, make_plan
from convnext_cli.recipes.recipe import check_settings, default_settings
from convnext_cli.recipes.recommendation import recommend
from convnext_cli.runs import RunFolder, name_run

if TYPE_CHECKING:
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


def finetune(
    data: Path | str,
    *,
    model: str | None = None,
    output: Path | str | None = None,
    weights: str = "auto",
    offline: bool = False,
    overwrite: bool = False,
    **settings: Any,
) -> Finished:
    """Fine-tunes a ConvNeXt on a folder of images and returns where the run is and how good it is.

    Args:
        data: folder of `<class>/` or `{train,val,test}/<class>/` folders.
        model: an architecture, with or without a `.tag`; None takes the recommended one.
        output: the run folder; None makes `runs/<time>-<model>/`.
        weights: `auto`, `none`, or the path of a file or run folder.
        offline: never ask the Hub.
        overwrite: replace a run that is at `output` already.
        **settings: any field of `Recipe`.

    Raises:
        ConvnextError: a subclass says what is wrong and what to do.
    """
    given = {name: Choice(value=value, source="flag") for name, value in settings.items()}
    steps = finetune_steps(
        Path(data),
        model=model,
        output=Path(output) if output else None,
        weights=weights,
        offline=offline,
        overwrite=overwrite,
        given=given,
    )
    [last] = deque(steps, maxlen=1)
    assert isinstance(last, Finished)
    return last


def finetune_steps(
    data: Path,
    *,
    model: str | None,
    output: Path | None,
    weights: str,
    offline: bool,
    overwrite: bool,
    given: Mapping[str, Choice],
) -> "Iterator[Started | StepDone | EpochDone | Finished]":
    """Does what `finetune` does, and yields what happens while it happens."""
    values = default_settings() | {name: choice.value for name, choice in given.items()}
    check_settings(values)
    found = find_model(model) if model is not None else None
    if output is not None:
        RunFolder(output).check_free(overwrite=overwrite)
    index = scan_folder(data)
    check_trainable(index)
    index = split_index(
        index, val_fraction=values["val_fraction"], test_fraction=values["test_fraction"], seed=values["seed"]
    )
    check_trainable(index)
    if weights not in ("auto", "none"):
        _check_weights_path(Path(weights))

    from convnext_cli.training import devices

    accelerator = devices.make_accelerator(values["amp"])
    memory = devices.measure_memory(accelerator.device)
    on_cpu = accelerator.device.type == "cpu"
    images = len(index.rows("train"))
    architecture, tag = found or _recommended(len(index), memory)
    plan = make_plan(
        architecture,
        tag,
        weights=weights,
        images=images,
        memory=memory,
        max_micro_batch=devices.MAX_CPU_MICRO_BATCH if on_cpu else None,
        given=given,
    )
    accelerator.wait_for_everyone()  # all ranks have looked before one of them writes

    from convnext_cli.inference.forward import choose_memory_format
    from convnext_cli.models.build import build_model, count_parameters, read_preprocessing, seed_weights
    from convnext_cli.training.loop import Job
    from convnext_cli.training.optim import make_optimizer

    recipe = plan.recipe
    seed_weights(recipe.seed)
    with accelerator.local_main_process_first():  # one download for all of a machine's processes
        network, new = build_model(
            architecture,
            tag,
            num_classes=len(index.classes),
            drop_path=recipe.drop_path,
            weights=weights,
            offline=offline,
        )
    how = read_preprocessing(network, recipe.image_size)
    network = network.to(memory_format=choose_memory_format(accelerator.device))
    groups = make_optimizer(network, lr=recipe.lr, weight_decay=recipe.weight_decay, layer_decay=recipe.layer_decay)
    sizes = {name: parameter.numel() for name, parameter in network.named_parameters()}
    prepared, optimizer = accelerator.prepare(network, groups)
    job = Job(model=prepared, optimizer=optimizer, accelerator=accelerator, recipe=recipe, index=index, how=how)

    run = RunFolder(output or name_run(plan.model, datetime.now()))
    license = tag.license if tag and weights == "auto" else None
    weak = explain_weak_validation(index)
    if accelerator.is_main_process:
        run.create(overwrite=overwrite)
        run.write_plan(plan.to_toml())
        run.write_split(index)
        run.write_environment(_describe_environment(devices.describe_device(accelerator.device)))
    yield Started(
        run=run.path,
        plan=plan,
        index=index,
        device=devices.describe_device(accelerator.device),
        num_processes=accelerator.num_processes,
        precision="bf16" if accelerator.mixed_precision == "bf16" else "float32",
        params=count_parameters(network),
        new_params=sum(sizes[name] for name in new),
        license=license,
        notes=_notes(index, weak),
    )
    yield from _train_and_keep(job, run, license=license, weak=weak)


def _train_and_keep(
    job: "Job", run: RunFolder, *, license: str | None, weak: str | None
) -> "Iterator[StepDone | EpochDone | Finished]":
    """Trains; after each epoch saves the state, and the model where it is the best so far."""
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
    if job.accelerator.is_main_process:
        val = None if best.val is None else asdict(best.val)
        run.write_metrics({"epoch": best.epoch + 1, "selected_by": selected_by, "val": val})
    job.accelerator.wait_for_everyone()
    job.accelerator.end_training()
    yield Finished(run=run.path, epoch=best.epoch, val=best.val, selected_by=selected_by)


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


def _recommended(images: int, memory: int) -> tuple[Architecture, Tag | None]:
    best = recommend(images, vram=memory / 2**30).best
    return best.model, best.tag


def _check_weights_path(path: Path) -> None:
    from convnext_cli.errors import WeightsError

    if not path.exists():
        raise WeightsError(f"no weights at {path}", "Give auto, none, a .safetensors or .pth file, or a run folder")


def _notes(index: Index, weak: str | None) -> tuple[str, ...]:
    notes = []
    if weak:
        notes.append(
            f"{weak}: too few to choose the best epoch by, so the last one is kept. Move images from train to val; "
            "without a val folder, --val-fraction of them is drawn"
        )
    if not index.rows("test"):
        notes.append("there is no test split: figures on the validation split are a little too good")
    else:
        absent = [name for name, n in zip(index.classes, index.count_classes("test"), strict=True) if not n]
        if absent:
            notes.append(f"the test split has no image of {', '.join(absent)}")
    if index.skipped:
        what = ", ".join(f"{count} {reason}" for reason, count in index.skipped.items())
        notes.append(f"skipped in the data folder: {what}")
    return tuple(notes)


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
