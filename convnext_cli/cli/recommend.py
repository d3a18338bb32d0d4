"""`convnext recommend`: which model, with which settings, and why."""

from dataclasses import asdict
from pathlib import Path
from typing import Annotated, Any

import typer

from convnext_cli.cli import console
from convnext_cli.errors import UsageError
from convnext_cli.files import write_text
from convnext_cli.recipes.memory import GIB
from convnext_cli.recipes.recipe import describe_settings
from convnext_cli.recipes.recommendation import Recommendation
from convnext_cli.recipes.recommendation import recommend as make_recommendation


def recommend(
    data: Annotated[Path | None, typer.Argument(help="Folder of images, to count instead of --dataset-size.")] = None,
    dataset_size: Annotated[int | None, typer.Option(help="Number of images, all splits together.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.")] = None,
    vram: Annotated[float | None, typer.Option(help="Memory of the GPU, in GiB.")] = None,
    license: Annotated[str, typer.Option(help="any, permissive, or a licence of the weights.")] = "any",
    output: Annotated[
        Path | None,
        typer.Option("--output", "-o", help="Write the plan to this file, for `finetune --config`."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
) -> None:
    """Recommend a model and settings for a data set, each with its reason."""
    if data is not None:
        from convnext_cli.data.scan import check_trainable, scan_folder

        index = scan_folder(data)
        check_trainable(index)
        dataset_size, classes = len(index), len(index.classes)
    if dataset_size is None:
        raise UsageError("nothing to recommend for", "Give --dataset-size N, or a folder of images")
    found = make_recommendation(dataset_size, classes=classes, vram=vram, license=license)
    if output is not None:
        write_text(output, found.plan.to_toml())
        console.say(f"wrote {output}")
    if as_json:
        console.show_json(_as_json(found))
    else:
        _show(found, str(data or "DATA"), output)


def _as_json(found: Recommendation) -> dict[str, Any]:
    return {
        "model": found.best.model.name,
        "weights": found.plan.model,
        "license": found.best.tag.license if found.best.tag else None,
        "dataset_size": found.dataset_size,
        "regime": found.regime,
        "models": [
            {
                "model": candidate.model.name,
                "recommended": not candidate.refused,
                "why_not": candidate.refused or None,
                "reason": candidate.reason,
                "params_m": round(candidate.model.params / 1e6, 2),
                "gmacs_224": candidate.model.gmacs,
                "top1": candidate.model.top1,
                "license": candidate.tag.license if candidate.tag else None,
            }
            for candidate in found.candidates
        ],
        "settings": {name: asdict(choice) for name, choice in found.plan.settings.items()},
        "warnings": list(found.warnings),
    }


def _show(found: Recommendation, data: str, output: Path | None) -> None:
    best = found.best
    assert best.tag is not None
    console.show(f"{best.model.name}, {best.reason}, for {found.dataset_size:,} images", style="bold")
    console.show(
        f"{best.model.params / 1e6:.1f}M parameters, {best.model.gmacs} GMACs, weights under {best.tag.license}"
        f"{'' if best.tag.is_permissive else ' (not a permissive one; --license permissive avoids it)'}"
    )
    for warning in found.warnings:
        console.warn(warning)
    rows = [
        (
            candidate.model.name,
            f"{candidate.model.params / 1e6:.1f}",
            f"{candidate.model.top1:.1f}" if candidate.model.top1 else None,
            f"{candidate.memory / GIB:.1f}",
            candidate.tag.license if candidate.tag else None,
            f"no: {candidate.refused}" if candidate.refused else candidate.reason,
        )
        for candidate in found.candidates
    ]
    console.show("")
    console.show_table(
        ["model", "params (M)", "top-1 (%)", "least memory (GiB)", "licence", "why"],
        rows,
        numbers=["params (M)", "top-1 (%)", "least memory (GiB)"],
    )
    units = {name: setting.unit for name, (_, setting) in describe_settings().items()}
    console.show("")
    console.show_table(
        ["setting", "value", "from", "because"],
        (
            (name, f"{choice.value} {units[name]}".strip(), choice.source, choice.reason)
            for name, choice in found.plan.settings.items()
        ),
    )
    console.show("")
    option = f"--config {output}" if output else f"--model {best.model.name}"
    console.show(f"Next: convnext finetune {data} {option}")
    console.say(
        "The order of the models and most settings are the specification author's; evidence on model size for small "
        "data sets is mixed. Memory is an estimate.",
        style="dim",
    )
