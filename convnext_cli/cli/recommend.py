"""`convnext recommend`: a model and settings for a data set, with reasons."""

from contextlib import nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

from convnext_cli.cli import console
from convnext_cli.cli.options import JsonFlag, OptionValues, quote_settings, with_options
from convnext_cli.cli.plan_view import list_decided
from convnext_cli.data.unseen import measure_centre_crops
from convnext_cli.files import check_output, check_outside, write_output
from convnext_cli.machine import GIB, detect_machine
from convnext_cli.models.catalog import BUILTIN, load_builtin
from convnext_cli.options import Option
from convnext_cli.recipes.request import RecommendRequest
from convnext_cli.recipes.settings import DEFAULT_RECIPE, TABLE_SETTINGS
from convnext_cli.text import format_count, format_percent, quote

if TYPE_CHECKING:
    from convnext_cli.recipes.recommendation import Candidate, Recommendation

SETTINGS = ("image_size", "fit", "crop_pct", "image_root", "exclude", *TABLE_SETTINGS)


@dataclass(frozen=True, kw_only=True, slots=True)
class RecommendFlags:
    """Options of the command alone."""

    top: Annotated[int, Option("Number of models to show.", is_common=True, low=1)] = 5
    output: Annotated[
        Path | None,
        Option("Write the plan to this file, for `finetune --config`.", is_common=True, flags=("-o",), metavar="FILE"),
    ] = None
    overwrite: Annotated[bool, Option("Replace what is at --output.", is_common=True)] = False
    as_json: JsonFlag = False


@with_options(RecommendRequest, RecommendFlags, settings=SETTINGS)
def recommend(values: OptionValues) -> None:
    """Recommend a model and settings for your images and machine. Each comes with its reason."""
    from convnext_cli.recipes.recommendation import make_recommendation

    request = values.make(RecommendRequest, machine=detect_machine(), settings=values.select(SETTINGS))
    flags = values.make(RecommendFlags)
    if flags.output is not None:
        if request.data is not None:
            check_outside(flags.output, request.data)
        check_output(flags.output, overwrite=flags.overwrite)
    with nullcontext() if request.data is None else console.progress("reading the data"):
        recommendation = make_recommendation(request)
    index = recommendation.index
    if flags.output is not None and index:
        from convnext_cli.data.outside import check_outside_data

        check_outside_data(flags.output, index)
    command = _build_next(recommendation, request, flags.output)
    if flags.output is not None:
        write_output(flags.output, recommendation.plan.to_toml(), overwrite=flags.overwrite)
        console.say(f"wrote the plan to {flags.output}")
    notes = index.notes if index else ()
    if flags.as_json:
        console.show_json(_describe_recommendation(recommendation, command) | {"notes": list(notes)})
        return
    for note in notes:
        console.note(note)
    _show(recommendation, request, flags.top)
    if request.recipe != "specification" and request.weights == "auto":
        words = [quote(request.data or "DATA"), *quote_settings(request.settings)]
        offline = f"Without the Hub: convnext finetune {' '.join(words)} --weights {BUILTIN}"
        console.say(f"{offline}. {load_builtin().card['Rank']}", style="dim")
    console.show(f"Next: {command}")


def _build_next(recommendation: "Recommendation", request: RecommendRequest, output: Path | None) -> str:
    """Return the command that trains with exactly the settings that are shown."""
    start = f"convnext finetune {quote(request.data or 'DATA')}"
    if output is not None:
        return f"{start} --config {quote(output)}"
    tag, architecture = recommendation.best.tag, recommendation.best.model
    words = ["--model", architecture.name if tag == architecture.default_tag else recommendation.plan.model]
    if request.weights != "auto":
        words += ["--weights", quote(request.weights)]
    if request.recipe != DEFAULT_RECIPE:
        words += ["--recipe", request.recipe]
    if recommendation.augment is not None:
        words += ["--augment", recommendation.augment]
    words += quote_settings(request.settings)
    if request.vram is not None:  # finetune would plan for the memory of this machine
        chosen = recommendation.plan.settings
        words += ["--micro-batch-size", str(chosen.micro_batch_size)]
        words += ["--grad-checkpointing" if chosen.grad_checkpointing else "--no-grad-checkpointing"]
    return " ".join([start, *words])


def _describe_recommendation(recommendation: "Recommendation", command: str) -> dict[str, Any]:
    """Return a recommendation for JSON, its fingerprint without the shape of each sampled image."""
    best, unseen = recommendation.best, recommendation.unseen
    fingerprint = recommendation.fingerprint and asdict(recommendation.fingerprint)
    return {
        "model": best.model.name,
        "weights": recommendation.plan.model,
        "license": best.license,
        "dataset_size": recommendation.dataset_size,
        "regime": recommendation.regime,
        "machine": asdict(recommendation.machine) if recommendation.machine else None,
        "fingerprint": fingerprint and {name: value for name, value in fingerprint.items() if name != "shapes"},
        "unseen_area": unseen and {"all": unseen.area, "classes": unseen.by_class},
        "models": [
            {
                "model": candidate.model.name,
                "recommended": not candidate.rejection,
                "why_not": candidate.rejection or None,
                "reason": candidate.reason,
                "tier": candidate.model.tier,
                "params_m": round(candidate.model.params / 1e6, 2),
                "gmacs_224": candidate.model.gmacs,
                "top1": candidate.top1,
                "license": candidate.license,
                "memory_bytes": candidate.memory,
                "seconds": candidate.seconds,
            }
            for candidate in recommendation.candidates
        ],
        "settings": {name: asdict(choice) for name, choice in recommendation.plan.choices.items()},
        "time": best.time and best.time.to_dict(),
        "time_basis": best.time and best.time.basis,
        "augment": recommendation.augment,
        "warnings": list(recommendation.warnings),
        "next": command,
    }


def _show(recommendation: "Recommendation", request: RecommendRequest, top: int) -> None:
    _show_best(recommendation, str(request.data or "DATA"))
    for warning in recommendation.warnings:
        console.note(warning)
    console.show("")
    columns = ["model", "tier", "params (M)", "GMACs", "accuracy (%)", "memory (GiB)", "time", "licence", "reason"]
    console.show_table(
        columns,
        (_list_cells(candidate) for candidate in recommendation.candidates[:top]),
        numbers=columns[1:7],
        spare=("tier", "GMACs", "params (M)", "memory (GiB)", "accuracy (%)"),
    )
    ranking = "the specification author's ranking, not a benchmark (docs/explanation/specification.md)"
    console.say(f"tier and order: {ranking}", style="dim")
    console.say("accuracy: the best published on ImageNet-1k", style="dim")
    console.show("")
    console.show_table(["setting", "value", "from", "reason"], list_decided(recommendation.plan, recommendation.task))
    console.show("")


def _show_best(recommendation: "Recommendation", data: str) -> None:
    """Show the best model, the machine, the time, and the data."""
    best = recommendation.best
    console.show(
        f"{best.model.name} ({best.reason}) for a {recommendation.regime} data set: "
        f"{format_count(recommendation.dataset_size, 'image')}",
        style="bold",
    )
    console.show(f"{best.model.params / 1e6:.1f}M parameters, {best.model.gmacs} GMACs, {_describe_weights(best)}")
    console.show(f"planned for: {recommendation.machine}")
    if best.time is not None:
        console.show(f"time, {best.time.basis}: about {best.time}")
    if (fingerprint := recommendation.fingerprint) is not None:
        width, height = fingerprint.median_size
        size = f"{width} x {height} px, " if width else ""
        assert recommendation.index is not None
        classes = recommendation.index.task.describe_classes(recommendation.index.classes)
        console.show(
            f"{data}: {format_count(fingerprint.images, 'image')}; {classes}; {size}"
            f"{'grey' if fingerprint.is_grey else 'colour'} (from a sample of {fingerprint.sampled})"
        )
    if recommendation.unseen is not None:
        assert fingerprint is not None
        crops = measure_centre_crops(fingerprint.shapes)
        others = [
            f"{format_percent(unseen.area)}% with a centre crop of {pct:g}"
            for pct, unseen in crops.items()
            if not unseen.rounds_to_none
        ]
        more = f" ({', '.join(others)})" if others else ""
        console.show(f"never seen by evaluation: {recommendation.unseen} with this plan{more}")


def _describe_weights(candidate: "Candidate") -> str:
    if candidate.plan.weights == "none":
        return "random initialisation"
    if candidate.license is None:
        return f"weights of {candidate.plan.weights}, with their own licence"
    avoid = "" if candidate.tag and candidate.tag.is_permissive else " (not permissive; --license permissive avoids it)"
    return f"licence of the weights: {candidate.license}{avoid}"


def _list_cells(candidate: "Candidate") -> tuple[Any, ...]:
    from convnext_cli.recipes.costs import describe_seconds

    model = candidate.model
    return (
        model.name,
        model.tier,
        f"{model.params / 1e6:.1f}",
        f"{model.gmacs:.2f}",
        f"{candidate.top1:.1f}" if candidate.top1 else None,
        f"{candidate.memory / GIB:.1f}",
        None if candidate.seconds is None else describe_seconds(candidate.seconds),
        candidate.license,
        f"no: {candidate.rejection}" if candidate.rejection else candidate.reason,
    )
