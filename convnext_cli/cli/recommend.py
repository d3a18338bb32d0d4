"""`convnext recommend`: which model, with which settings, and why."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from convnext_cli.cli import console
from convnext_cli.cli.completion import complete_model
from convnext_cli.cli.options import given, list_decided, name_flag, with_settings
from convnext_cli.errors import UsageError
from convnext_cli.recipes.settings import DEFAULT_RECIPE
from convnext_cli.text import quote

if TYPE_CHECKING:
    from convnext_cli.recipes.recommendation import Candidate, Recommendation


@with_settings("image_size", "image_root", "exclude")
def recommend(
    data: Annotated[
        Path | None, typer.Argument(help="Folder, CSV or zip of images, instead of --dataset-size.")
    ] = None,
    dataset_size: Annotated[int | None, typer.Option(help="Number of images, all splits together.")] = None,
    classes: Annotated[int | None, typer.Option(help="Number of classes.")] = None,
    vram: Annotated[float | None, typer.Option(help="Memory of the GPU, in GiB.")] = None,
    domain: Annotated[
        str | None,
        typer.Option(
            help="medical, natural or other; decides how training images vary. Guessed from the images if not given."
        ),
    ] = None,
    model: Annotated[
        str | None,
        typer.Option("--model", "-m", help="Plan for this model, with or without .tag.", autocompletion=complete_model),
    ] = None,
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
    overwrite: Annotated[bool, typer.Option("--overwrite", help="Replace what is at --output.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    **settings: Any,
) -> None:
    """Recommend a model and settings. Looks at the data and at this machine; each setting has its reason."""
    from convnext_cli.files import check_output, check_outside, write_output
    from convnext_cli.machine import detect_machine
    from convnext_cli.recipes.recommendation import recommend as make_recommendation

    if output is not None:
        if data is not None:
            check_outside(output, data)
        check_output(output, overwrite=overwrite)
    if data is not None and (dataset_size is not None or classes is not None):
        raise UsageError("--dataset-size and --classes are counted from the data", "Leave them out")
    test_set = dataset_size if data is None else data
    if test_set is None:
        raise UsageError("nothing to recommend for", "Give --dataset-size N, or a folder of images")
    found = make_recommendation(
        test_set,
        classes=classes,
        vram=vram,
        machine=detect_machine(),
        license=license,
        domain=domain,
        prefer=prefer,
        recipe=recipe,
        model=model,
        **given(settings),
    )
    notes = found.index.notes if found.index else ()
    if output is not None and found.index:
        from convnext_cli.data.index import check_outside_data

        check_outside_data(output, found.index)
    next_command = _build_next(found, data, output, recipe=recipe, settings=given(settings), elsewhere=vram is not None)
    if output is not None:
        write_output(output, found.plan.to_toml(), overwrite=overwrite)
        console.say(f"wrote the plan to {output}")
    if as_json:
        console.show_json(_as_json(found, next_command) | {"notes": list(notes)})
    else:
        for note in notes:
            console.warn(note)
        options = [f"{name_flag(name)} {quote(str(value))}" for name, value in given(settings).items()]
        _show(found, str(data or "DATA"), options, recipe, top)
        console.show(f"Next: {next_command}")


def _build_next(
    found: "Recommendation",
    data: Path | None,
    output: Path | None,
    *,
    recipe: str,
    settings: Mapping[str, Any],
    elsewhere: bool,
) -> str:
    """Return the command that trains with exactly the settings that were shown.

    Args:
        found: the recommendation.
        data: what it is for; None for a number of images.
        output: the file that the plan was written to.
        recipe: the recipe that was asked for.
        settings: the settings that were asked for.
        elsewhere: whether the plan is for another machine than this one.
    """
    start = f"convnext finetune {quote(data or 'DATA')}"
    if output is not None:
        return f"{start} --config {quote(output)}"
    tag, architecture = found.best.tag, found.best.model
    words = ["--model", architecture.name if tag == architecture.default_tag else found.plan.model]
    if recipe != DEFAULT_RECIPE:
        words += ["--recipe", recipe]
    if found.augment is not None:
        words += ["--augment", found.augment]
    for name, value in settings.items():
        words += [name_flag(name), quote(str(value))]
    if elsewhere:  # there, finetune would plan for the memory that it finds
        chosen = found.plan.settings
        words += ["--micro-batch-size", str(chosen.micro_batch_size)]
        words += ["--grad-checkpointing" if chosen.grad_checkpointing else "--no-grad-checkpointing"]
    return " ".join([start, *words])


def _as_json(found: "Recommendation", next_command: str) -> dict[str, Any]:
    return {
        "model": found.best.model.name,
        "weights": found.plan.model,
        "license": found.best.tag.license if found.best.tag else None,
        "dataset_size": found.dataset_size,
        "regime": found.regime,
        "machine": asdict(found.machine) if found.machine else None,
        "fingerprint": asdict(found.fingerprint) if found.fingerprint else None,
        "models": [
            {
                "model": candidate.model.name,
                "recommended": not candidate.rejection,
                "why_not": candidate.rejection or None,
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
        "settings": {name: asdict(choice) for name, choice in found.plan.choices.items()},
        "time": asdict(found.best.time) if found.best.time else None,
        "augment": found.augment,
        "warnings": list(found.warnings),
        "next": next_command,
    }


def _show(found: "Recommendation", data: str, options: list[str], recipe: str, top: int) -> None:
    from convnext_cli.models.catalog import BUILTIN, load_builtin
    from convnext_cli.recipes.tables import load_tables

    best = found.best
    assert best.tag is not None
    console.show(
        f"{best.model.name} ({best.reason}) for a {found.regime} data set: {found.dataset_size:,} images", style="bold"
    )
    console.show(
        f"{best.model.params / 1e6:.1f}M parameters, {best.model.gmacs} GMACs, weights under {best.tag.license}"
        f"{'' if best.tag.is_permissive else ' (not a permissive one; --license permissive avoids it)'}"
    )
    console.show(f"planned for: {found.machine}")
    if best.time is not None:
        console.show(f"time: about {best.time}, to a factor of two or three")
    if (fingerprint := found.fingerprint) is not None:
        width, height = fingerprint.median_size
        size = f"{width} x {height} px, " if width else ""
        console.show(
            f"{data}: {fingerprint.images:,} images in {fingerprint.classes} classes; {size}"
            f"{'grey' if fingerprint.is_grey else 'colour'} (from a sample of {fingerprint.sampled})"
        )
    for warning in found.warnings:
        console.warn(warning)
    console.show("")
    columns = ["model", "tier", "params (M)", "GMACs", "top-1 (%)", "memory (GiB)", "time", "licence", "why"]
    console.show_table(
        columns,
        (_row(candidate) for candidate in found.candidates[:top]),
        numbers=columns[1:7],
        spare=("tier", "GMACs", "params (M)", "memory (GiB)", "top-1 (%)"),
    )
    console.say(
        "tier and order: the specification author's ranking, not a benchmark (docs/specification.md)", style="dim"
    )
    console.show("")
    console.show_table(["setting", "value", "from", "because"], list_decided(found.plan))
    console.show("")
    if found.plan.choices["lr"].source.startswith("specification"):
        batch, rule = found.plan.settings.batch_size, load_tables().lr_rule
        rates = ", ".join(f"{size}: {rate:g}" for size, rate in rule.examples.items())
        console.show(
            f"The specification's rule for lr, {rule.lr:g} x batch / {rule.batch} (section 2), by batch: {rates}. "
            f"At batch {batch}: {rule.rate(batch):g}. The model's own row is used instead: {found.plan.settings.lr:g}"
        )
    if recipe != "specification":
        console.say(
            f"Without the Hub: convnext finetune {' '.join([quote(data), *options])} --weights {BUILTIN}. "
            f"{load_builtin().card['Rank']}",
            style="dim",
        )


def _row(candidate: "Candidate") -> tuple[Any, ...]:
    from convnext_cli.machine import GIB
    from convnext_cli.recipes.costs import describe_seconds

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
        f"no: {candidate.rejection}" if candidate.rejection else candidate.reason,
    )


def _tier(name: str) -> int | None:
    from convnext_cli.models.catalog import load_ranking

    rank = load_ranking()[1].get(name)
    return rank.tier if rank else None
