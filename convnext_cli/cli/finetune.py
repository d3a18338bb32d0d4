"""`convnext finetune`: train a model on a folder of images."""

import os
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convnext_cli.cli import console
from convnext_cli.cli.check import DATA_HELP
from convnext_cli.cli.completion import complete_model, complete_run
from convnext_cli.cli.options import describe_sizes, given, list_decided, parse_duration, repeat_command, with_settings
from convnext_cli.cli.streams import stop_by_signals, survive_lost_reader
from convnext_cli.cli.training_view import count_splits, describe_splits, follow, show_finished
from convnext_cli.progress import Notice
from convnext_cli.recipes.settings import DEFAULT_RECIPE

if TYPE_CHECKING:
    from convnext_cli.training.preparation import Preparation


@with_settings()
def finetune(
    context: typer.Context,
    data: Annotated[Path | None, typer.Argument(help=DATA_HELP, show_default=False)] = None,
    model: Annotated[
        str | None,
        typer.Option(
            "--model",
            "-m",
            help="Model, with or without .tag; the recommended one if not given.",
            autocompletion=complete_model,
        ),
    ] = None,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Run folder; runs/<time>-<model>/ if not given.")
    ] = None,
    config: Annotated[
        Path | None,
        typer.Option("--config", "-c", help="Plan file, from `recommend -o` or a run; flags win over it."),
    ] = None,
    weights: Annotated[
        str | None,
        typer.Option(
            help="auto (the Hub or its cache), builtin (small, in the package), none (random), a file or folder, or "
            "timm/NAME."
        ),
    ] = None,
    audit: Annotated[bool, typer.Option("--check/--no-check", help="Look at every image first.")] = True,
    recipe: Annotated[
        str,
        typer.Option(help="Tables that settings come from: measured, specification, or published (the authors')."),
    ] = DEFAULT_RECIPE,
    augment: Annotated[
        str | None,
        typer.Option(
            help="How training images vary: none, light (the usual), medical, natural (photos) or strong. The settings "
            "that it gives values to win over it."
        ),
    ] = None,
    offline: Annotated[bool, typer.Option("--offline", help="Never ask the Hub.", envvar="HF_HUB_OFFLINE")] = False,
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace a run that is at --output.")] = False,
    resume: Annotated[
        Path | None,
        typer.Option(
            "--resume", help="Continue this run, with the settings and the split it has.", autocompletion=complete_run
        ),
    ] = None,
    max_time: Annotated[
        float | None,
        typer.Option(
            parser=parse_duration,
            metavar="<time>",
            help="Plan no more epochs than this has room for: 90m, 2h, 1h30m. Measured before training.",
        ),
    ] = None,
    cache: Annotated[
        bool, typer.Option("--cache/--no-cache", help="Keep decoded images for later epochs and runs.")
    ] = True,
    autotune: Annotated[
        bool,
        typer.Option(
            "--autotune/--no-autotune",
            "--probe/--no-probe",
            help="Begin a long run by measuring which compute configuration is fastest.",
        ),
    ] = True,
    compile: Annotated[
        bool | None,
        typer.Option(
            "--compile/--no-compile",
            help="Compile the model, on a processor: a minute or two, for faster steps. Long runs try it unasked.",
        ),
    ] = None,
    devices: Annotated[
        int | None, typer.Option(min=1, help="Processes on this machine, one per GPU; starts torchrun.")
    ] = None,
    track: Annotated[
        list[str] | None, typer.Option(help="Send the figures to tensorboard, wandb or mlflow too; may be repeated.")
    ] = None,
    onnx: Annotated[
        bool, typer.Option(help="Write model.onnx at the end, by which `predict` does without torch.")
    ] = True,
    dry_run: Annotated[
        bool, typer.Option("--dry-run", help="Show the plan with its memory and time, and stop.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the result as JSON.")] = False,
    **settings: Any,
) -> None:
    """Fine-tune a ConvNeXt on a folder of images. What is not set comes from the recommendation."""
    from convnext_cli.recipes.plan import override_choices, read_choices, read_plan
    from convnext_cli.recipes.settings import Choice
    from convnext_cli.training.request import TrainRequest

    if devices is not None and "RANK" not in os.environ:
        from convnext_cli.training.compute.launcher import launch

        raise typer.Exit(launch(devices))
    planned_model, planned_weights, _ = read_plan(config) if config else (None, None, {})
    choices = {name: Choice(value=value, source="flag") for name, value in given(settings).items()}
    if config:
        choices = override_choices(read_choices(config), choices, same_model=model in (None, planned_model))
    request = TrainRequest(
        data=data,
        audit=audit,
        model=planned_model if model is None else model,
        output=output,
        weights=weights if weights is not None else planned_weights or "auto",
        offline=offline,
        overwrite=overwrite,
        recipe=recipe,
        augment=augment,
        choices=choices,
        resume=resume,
        max_time=max_time,
        cache=cache,
        autotune=autotune,
        compile=compile,
        track=tuple(track or ()),
    )
    if dry_run:
        from convnext_cli.training.preparation import prepare_steps

        command = repeat_command(context, leave_out=("dry_run", "as_json"))
        preparation = console.run("checking images", prepare_steps(request))
        _show_dry_run(preparation, command, check=audit, onnx=onnx, as_json=as_json)
        return

    with stop_by_signals():
        finished = follow(request, onnx=onnx)
    with survive_lost_reader():
        if as_json:
            console.show_json(asdict(finished))
        else:
            show_finished(finished)


def _show_dry_run(prepared: "Preparation", command: str, *, check: bool, onnx: bool, as_json: bool) -> None:
    from convnext_cli.machine import GIB
    from convnext_cli.recipes.costs import Workload, estimate_time, training_bytes
    from convnext_cli.recipes.fingerprint import DataCounts
    from convnext_cli.recipes.recommendation import DAY, recommend, suggest_faster

    plan, machine = prepared.plan, prepared.machine
    chosen, index = plan.settings, prepared.index
    memory = training_bytes(
        prepared.architecture,
        chosen.micro_batch_size,
        chosen.image_size,
        grad_checkpointing=chosen.grad_checkpointing,
    )
    folds = chosen.folds if prepared.folds else 1
    counts = DataCounts.from_index(index, prepared.fingerprint)
    workload = Workload(model=prepared.architecture, settings=chosen, counts=counts, machine=machine)
    time = estimate_time(workload, check=check, onnx=onnx, folds=folds)
    faster = None
    if time.total > DAY:
        found = recommend(counts.images, machine=machine, counts=counts, fingerprint=prepared.fingerprint)
        faster = suggest_faster(time.total, [*found.candidates, *found.small_models])
    notices = [*prepared.notices, *([Notice(text=faster)] if faster else [])]
    splits = count_splits(index)
    if as_json:
        console.show_json(
            {
                "model": plan.model,
                "weights": plan.weights,
                "images": splits,
                "settings": {name: asdict(choice) for name, choice in plan.choices.items()},
                "machine": asdict(machine),
                "memory_bytes": memory,
                "seconds": time.total,
                "time": asdict(time),
                "notes": [f"{'warning: ' * (notice.severity == 'warning')}{notice.text}" for notice in notices],
                "next": command,
            }
        )
        return
    console.show(plan.model, style="bold")
    fold = f" in the first of {folds} folds" if prepared.folds else ""
    console.show(f"{index.root}: {len(index.classes)} classes; {describe_splits(splits)}{fold}")
    console.show(describe_sizes(prepared.architecture, chosen.image_size, chosen.in_chans, len(index.classes)))
    console.show(f"{machine}: about {memory / GIB:.1f} GiB; time, to a factor of two or three, about {time}")
    console.show_table(["setting", "value", "from", "because"], list_decided(plan))
    for notice in notices:
        console.notify(notice)
    console.show(f"Next: {command}")
