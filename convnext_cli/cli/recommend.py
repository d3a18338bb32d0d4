"""`convnext recommend`: which model, with which settings, and why."""

from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convnext_cli.cli import console
from convnext_cli.cli.settings import given, list_decided, with_settings
from convnext_cli.errors import UsageError
from convnext_cli.recipes.recipe import DEFAULT_RECIPE
from convnext_cli.text import quote

if TYPE_CHECKING:
    from convnext_cli.recipes.fingerprint import Fingerprint
    from convnext_cli.recipes.recommendation import Candidate, Recommendation


@with_settings("image_root", "exclude")
def recommend(
    data: Annotated[
        Path | None, typer.Argument(help="Folder, CSV or zip of images, instead of --dataset-size.")
    ] = None,
    dataset_size: Annotated[int | None, typer.Option(help="Number of images, all splits together.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.")] = None,
    vram: Annotated[float | None, typer.Option(help="Memory of the GPU, in GiB.")] = None,
    image_size: Annotated[int | None, typer.Option(help="Side of the square input (px).")] = None,
    domain: Annotated[str | None, typer.Option(help="medical or natural; decides how training images vary.")] = None,
    prefer: Annotated[
        str | None, typer.Option(help="accuracy, speed or size, in place of the specification's order.")
    ] = None,
    license: Annotated[str, typer.Option(help="any, permissive, or a licence of the weights.")] = "any",
    recipe: Annotated[
        str,
        typer.Option(help="Tables that settings come from: measured, specification, or published (the authors')."),
    ] = DEFAULT_RECIPE,
    top: Annotated[int, typer.Option(help="How many models to show.", min=1)] = 5,
    output: Annotated[
        Path | None, typer.Option("--output", "-o", help="Write the plan to this file, for `finetune --config`.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **settings: Any,
) -> None:
    """Recommend a model and settings. Looks at the data and at this machine; each setting has its reason."""
    from convnext_cli.files import check_outside, write_text
    from convnext_cli.recipes.machine import describe_machine
    from convnext_cli.recipes.recommendation import recommend as make_recommendation

    if output is not None and (output.is_dir() or not output.parent.is_dir()):
        raise UsageError(f"cannot write {output}", "Give a file in a folder that exists")
    if output is not None and data is not None:
        check_outside(output, data)
    fingerprint = None
    notes: tuple[str, ...] = ()
    if data is not None:
        from convnext_cli.data.groups import group_index
        from convnext_cli.data.scan import check_trainable, scan_data
        from convnext_cli.recipes.fingerprint import take_fingerprint

        index, _ = group_index(scan_data(data, **given(settings)), "auto")
        check_trainable(index)
        fingerprint = take_fingerprint(index)
        dataset_size, classes, notes = len(index), len(index.classes), index.notes
    if dataset_size is None:
        raise UsageError("nothing to recommend for", "Give --dataset-size N, or a folder of images")
    found = make_recommendation(
        dataset_size,
        classes=classes,
        vram=vram,
        machine=describe_machine(),
        license=license,
        domain=domain,
        prefer=prefer,
        recipe=recipe,
        settings=given(settings) | ({} if image_size is None else {"image_size": image_size}),
    )
    if output is not None:
        write_text(output, found.plan.to_toml())
        console.say(f"wrote {output}")
    if as_json:
        console.show_json(_as_json(found, fingerprint) | {"notes": list(notes)})
    else:
        for note in notes:
            console.warn(note)
        options = [f"--{name.replace('_', '-')} {quote(value)}" for name, value in given(settings).items()]
        _show(found, fingerprint, " ".join([quote(str(data or "DATA")), *options]), output, top)


def _as_json(found: "Recommendation", fingerprint: "Fingerprint | None") -> dict[str, Any]:
    return {
        "model": found.best.model.name,
        "weights": found.plan.model,
        "license": found.best.tag.license if found.best.tag else None,
        "dataset_size": found.dataset_size,
        "regime": found.regime,
        "machine": asdict(found.machine) if found.machine else None,
        "fingerprint": asdict(fingerprint) if fingerprint else None,
        "models": [
            {
                "model": candidate.model.name,
                "recommended": not candidate.refused,
                "why_not": candidate.refused or None,
                "reason": candidate.reason,
                "tier": _tier(candidate.model.name),
                "params_m": round(candidate.model.params / 1e6, 2),
                "gmacs_224": candidate.model.gmacs,
                "top1": candidate.model.top1,
                "license": candidate.tag.license if candidate.tag else None,
                "memory_bytes": candidate.memory,
                "seconds": candidate.seconds,
            }
            for candidate in found.candidates
        ],
        "settings": {name: asdict(choice) for name, choice in found.plan.settings.items()},
        "warnings": _warnings(found, fingerprint),
    }


def _show(found: "Recommendation", fingerprint: "Fingerprint | None", data: str, output: Path | None, top: int) -> None:
    from convnext_cli.models.catalog import BUILTIN, load_builtin

    best = found.best
    assert best.tag is not None
    console.show(
        f"{best.model.name}, {best.reason} for {found.regime} data sets: {found.dataset_size:,} images", style="bold"
    )
    console.show(
        f"{best.model.params / 1e6:.1f}M parameters, {best.model.gmacs} GMACs, weights under {best.tag.license}"
        f"{'' if best.tag.is_permissive else ' (not a permissive one; --license permissive avoids it)'}"
    )
    console.show(f"planned for: {found.machine}")
    if fingerprint is not None:
        width, height = fingerprint.median_size
        console.show(
            f"{data}: {fingerprint.images:,} images in {fingerprint.classes} classes; {width} x {height} px, "
            f"{'grey' if fingerprint.is_grey else 'colour'} (from a sample of {fingerprint.sampled})"
        )
    for warning in _warnings(found, fingerprint):
        console.warn(warning)
    console.show("")
    columns = ["model", "tier", "params (M)", "GMACs", "top-1 (%)", "memory (GiB)", "time", "licence", "why"]
    console.show_table(columns, (_row(candidate) for candidate in found.candidates[:top]), numbers=columns[1:7])
    console.show("")
    console.show_table(["setting", "value", "from", "because"], list_decided(found.plan))
    console.show("")
    option = f"--config {quote(output)}" if output else f"--model {best.model.name}"
    console.show(f"Next: convnext finetune {data} {option}")
    console.say(
        f"Without the Hub: convnext finetune {data} --weights {BUILTIN}. {load_builtin().card['Rank']}", style="dim"
    )
    console.say(
        "The order of the models and the specification's settings are its author's; evidence on model size for small "
        "data sets is mixed. Memory and time are estimates, time to a factor of two or three.",
        style="dim",
    )


def _row(candidate: "Candidate") -> tuple[Any, ...]:
    from convnext_cli.recipes.costs import GIB, describe_seconds

    model = candidate.model
    return (
        model.name,
        _tier(model.name),
        f"{model.params / 1e6:.1f}",
        f"{model.gmacs:.2f}",
        f"{model.top1:.1f}" if model.top1 else None,
        f"{candidate.memory / GIB:.1f}",
        None if candidate.seconds is None else describe_seconds(candidate.seconds),
        candidate.tag.license if candidate.tag else None,
        f"no: {candidate.refused}" if candidate.refused else candidate.reason,
    )


def _warnings(found: "Recommendation", fingerprint: "Fingerprint | None") -> list[str]:
    if fingerprint is None:
        return list(found.warnings)
    from convnext_cli.recipes.fingerprint import describe_fingerprint

    return [*found.warnings, *describe_fingerprint(fingerprint)]


def _tier(name: str) -> int | None:
    from convnext_cli.models.catalog import load_ranking

    rank = load_ranking()[1].get(name)
    return rank.tier if rank else None
