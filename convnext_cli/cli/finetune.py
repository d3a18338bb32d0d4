"""`convnext finetune`: train a model on a folder of images."""

import sys
from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Annotated, Any

from convnext_cli.cli import console
from convnext_cli.cli.options import OptionValues, repeat_command, with_options
from convnext_cli.cli.plan_view import count_splits, describe_data, describe_model, describe_sizes, list_decided
from convnext_cli.cli.streams import survive_lost_reader
from convnext_cli.cli.training_view import follow, show_finished
from convnext_cli.machine import GIB, is_launched
from convnext_cli.options import Option, describe_options
from convnext_cli.progress import Notice
from convnext_cli.recipes.settings import Settings, SettingSources
from convnext_cli.training.request import TrainRequest

if TYPE_CHECKING:
    from convnext_cli.recipes.costs import RunTime
    from convnext_cli.recipes.fingerprint import DataCounts
    from convnext_cli.training.preparation import Preparation


@dataclass(frozen=True, kw_only=True, slots=True)
class FinetuneFlags:
    """Options of the command alone."""

    devices: Annotated[int | None, Option("Processes on this machine, one per GPU.", is_common=True, low=1)] = None
    dry_run: Annotated[bool, Option("Show the plan with its memory and time, and stop.", is_common=True)] = False
    verbose: Annotated[
        bool, Option("Show every setting with its source and reason.", is_common=True, flags=("-v",))
    ] = False
    as_json: Annotated[bool, Option("Print the result as JSON.", is_common=True, name="json")] = False


@with_options(TrainRequest, SettingSources, Settings, FinetuneFlags)
def finetune(values: OptionValues) -> None:
    """Fine-tune a ConvNeXt on images. Options left out get recommended values."""
    flags = values.make(FinetuneFlags)
    if flags.devices is not None and not is_launched():
        from convnext_cli.training.compute.launcher import launch

        sys.exit(launch(flags.devices))  # the processes have said why, also with Ctrl-C's code

    from convnext_cli.api import make_train_request
    from convnext_cli.runs.records import to_plain

    request = make_train_request(values.select(values.keys() - describe_options(FinetuneFlags)))
    if flags.dry_run:
        _show_dry_run(request, repeat_command(values.context, leave_out=("dry_run", "as_json")), as_json=flags.as_json)
        return
    result = follow(request, is_verbose=flags.verbose)
    with survive_lost_reader():
        if flags.as_json:
            console.show_json(to_plain(result))
        else:
            show_finished(result)


def _show_dry_run(request: TrainRequest, command: str, *, as_json: bool) -> None:
    """Show the plan, its memory and its time."""
    from convnext_cli.api import prepare
    from convnext_cli.recipes.costs import StepMemory, Workload, training_bytes
    from convnext_cli.recipes.fingerprint import DataCounts
    from convnext_cli.recipes.speeds import estimate_time_here

    preparation = console.run("checking images", prepare(request))
    settings = preparation.plan.settings
    step = StepMemory.of(asdict(settings), preparation.machine)
    memory = training_bytes(preparation.architecture, settings.micro_batch_size, step)
    counts = DataCounts.from_index(preparation.index, preparation.fingerprint)
    workload = Workload(
        model=preparation.architecture,
        settings=settings,
        counts=counts,
        machine=preparation.machine,
        check=request.audit,
        onnx=request.onnx,
        folds=settings.folds if preparation.fold_index else 1,
    )
    time = estimate_time_here(workload)
    notices = [*preparation.notices, *_suggest_faster(preparation, counts, time)]
    if as_json:
        console.show_json(_describe_dry_run(preparation, memory, time, notices, command))
    else:
        _show_preparation(preparation, memory, time)
        for notice in notices:
            console.notify(notice)
        console.show(f"Next: {command}")


def _suggest_faster(preparation: "Preparation", counts: "DataCounts", time: "RunTime") -> list[Notice]:
    """Return a notice on a faster model where the run takes more than a day."""
    from convnext_cli.recipes.recommendation import DAY, recommend, suggest_faster

    if time.total <= DAY:
        return []
    result = recommend(counts.images, machine=preparation.machine, counts=counts, fingerprint=preparation.fingerprint)
    faster = suggest_faster(time.total, [*result.candidates, *result.small_models])
    return [Notice(faster)] if faster else []


def _describe_dry_run(
    preparation: "Preparation", memory: int, time: "RunTime", notices: list[Notice], command: str
) -> dict[str, Any]:
    plan = preparation.plan
    return {
        "model": plan.model,
        "weights": plan.weights,
        "images": count_splits(preparation.index),
        "settings": {name: asdict(choice) for name, choice in plan.choices.items()},
        "machine": asdict(preparation.machine),
        "memory_bytes": memory,
        "seconds": time.total,
        "time": time.to_dict(),
        "time_basis": time.basis,
        "notes": [f"{'warning: ' * (notice.severity == 'warning')}{notice.text}" for notice in notices],
        "next": command,
    }


def _show_preparation(preparation: "Preparation", memory: int, time: "RunTime") -> None:
    plan, index = preparation.plan, preparation.index
    settings, classes = plan.settings, len(index.classes)
    console.show(describe_model(plan), style="bold")
    fold = f" in the first of {settings.folds} folds" if preparation.fold_index else ""
    console.show(f"{describe_data(index)}{fold}")
    console.show(describe_sizes(preparation.architecture, settings, classes))
    console.show(f"{preparation.machine}: about {memory / GIB:.1f} GiB; time, {time.basis}: about {time}")
    console.show_table(["setting", "value", "from", "reason"], list_decided(plan, index.task))
