"""`convnext list`: the models; a full name shows the card of one."""

from dataclasses import dataclass
from typing import Annotated, Any

from convnext_cli.cli import console
from convnext_cli.cli.card import show_card
from convnext_cli.cli.options import JsonFlag, OptionValues, with_options
from convnext_cli.errors import UsageError, check_word, suggest
from convnext_cli.models.catalog import (
    Architecture,
    ModelFilter,
    Reference,
    find_model,
    list_models,
    list_tags,
    load_catalog,
    load_references,
)
from convnext_cli.models.licenses import license_matches
from convnext_cli.options import Option, describe_options

_ORDERS = {
    "catalog": None,
    "name": lambda m: m.name,
    "params": lambda m: m.params,
    "gmacs": lambda m: m.gmacs,
    "top1": lambda m: -(m.top1 or 0),
    "tier": lambda m: m.rank.position if m.rank else 99,
}
TAG_LEGEND = (
    "accuracy: the best published on ImageNet-1k, at the size it was tested",
    "0 classes: a backbone without a classifier",
)
MODEL_LEGEND = (
    "names: <family>_<size>[_<modifier>...][.<tag>]; see `convnext list NAME`",
    "tier: the specification author's ranking, not a benchmark (docs/explanation/specification.md)",
    "GMACs at 224 px (FLOPs are twice that); accuracy: the default weights' best published on ImageNet-1k",
    "ImageNet's own terms may apply beside any licence",
    "builtin: small weights in this package, for use without the Hub (--weights builtin)",
)


@dataclass(frozen=True, kw_only=True, slots=True)
class ListFlags(ModelFilter):
    """Options of the command."""

    sort: Annotated[str, Option(f"Order: {', '.join(_ORDERS)}.", is_common=True, metavar="KEY")] = "catalog"
    tags: Annotated[bool, Option("One row per set of weights.", is_common=True)] = False
    compare: Annotated[bool, Option("Add well-known models of other families.", is_common=True)] = False
    as_json: JsonFlag = False
    as_csv: Annotated[bool, Option("Print CSV.", is_common=True, name="csv")] = False


@with_options(ListFlags)
def list_(values: OptionValues) -> None:
    """List the ConvNeXt models, or show one model's card."""
    flags = values.make(ListFlags)
    if flags.as_json and flags.as_csv:
        raise UsageError("--json and --csv exclude each other", "Give one of them")
    filters = [declared.flag for name, declared in describe_options(ListFlags).items() if _is_filter(name, values)]
    if "." in flags.pattern and filters:
        find_model(flags.pattern)
        raise UsageError(
            f"{', '.join(filters)} cannot be used with one set of weights", "Leave it out, or leave out .tag"
        )
    if "." in flags.pattern or (flags.pattern in load_catalog() and not filters):
        show_card(flags.pattern, as_json=flags.as_json)
        return
    rows = _make_rows(flags)
    if flags.as_json:
        console.show_json(rows)
    elif flags.as_csv:
        _show_csv(rows)
    elif not rows:
        near = "" if list_models(flags.pattern) else suggest(flags.pattern, load_catalog())
        conditions = [repr(flags.pattern)] * (flags.pattern != "*") + filters
        raise UsageError(f"no model matches {' and '.join(conditions)}", f"{near}`convnext list` shows all models")
    else:
        _show_rows(rows, flags)


def _is_filter(name: str, values: OptionValues) -> bool:
    """Return True for an option that is set, changes the list, and has no meaning for a card."""
    value = values.get(name)
    if name in ("pattern", "as_json") or value is None or value is False:  # 0 is set
        return False
    return name != "sort" or value != "catalog"


def _make_rows(flags: ListFlags) -> list[dict[str, Any]]:
    """Return the rows of the list: models or sets of weights.

    Raises:
        UsageError: a word is unknown.
    """
    check_word("order", flags.sort, tuple(_ORDERS))
    models = list_models(**{name: getattr(flags, name) for name in describe_options(ModelFilter)})
    if flags.pattern in load_catalog():
        models = [model for model in models if model.name == flags.pattern]
    if order := _ORDERS[flags.sort]:
        models.sort(key=order)
    make = _tag_rows if flags.tags else _model_rows
    rows = [row for model in models for row in make(model, flags.license)]
    return [*rows, *map(_reference_row, load_references())] if flags.compare and not flags.tags else rows


def _model_rows(model: Architecture, license: str | None) -> list[dict[str, Any]]:
    """Return the model's row, and one for the built-in weights if it has some."""
    tag = model.default_tag
    row = {
        "model": model.name,
        "tier": model.tier,
        "params_m": round(model.params / 1e6, 2),
        "gmacs_224": model.gmacs,
        "top1": model.top1,
        "image_size": tag.image_size if tag else None,
        "depths": list(model.depths),
        "dims": list(model.dims),
        "tags": len(model.tags),
        "licenses": list(model.licenses),
        "pretrained": bool(model.tags),
    }
    return [row] + [
        row
        | {"model": f"{model.name}.{own.name}", "tier": None, "top1": None, "tags": 1, "licenses": [own.license]}
        | {"image_size": own.image_size}
        for own in list_tags(model)[len(model.tags) :]
        if license is None or license_matches(own.license, license)
    ]


def _reference_row(reference: Reference) -> dict[str, Any]:
    return {
        "model": reference.name,
        "tier": None,
        "params_m": round(reference.params / 1e6, 2),
        "gmacs_224": reference.gmacs,
        "top1": reference.top1,
        "image_size": reference.image_size,
        "depths": None,
        "dims": None,
        "tags": 1,
        "licenses": [reference.license],
        "pretrained": True,
    }


def _tag_rows(model: Architecture, license: str | None) -> list[dict[str, Any]]:
    return [
        {
            "model": f"{model.name}.{tag.name}",
            "license": tag.license,
            "image_size": tag.image_size,
            "top1": tag.best_top1,
            "num_classes": tag.num_classes,
            "hub": tag.hub_id or "in the package",
        }
        for tag in list_tags(model)
        if license is None or license_matches(tag.license, license)
    ]


def _show_rows(rows: list[dict[str, Any]], flags: ListFlags) -> None:
    titles = {
        "model": "model", "tier": "tier", "params_m": "params (M)", "gmacs_224": "GMACs", "top1": "accuracy (%)",
        "image_size": "input (px)", "tags": "tags", "licenses": "licences of the weights", "license": "licence",
        "num_classes": "classes", "hub": "on the Hub",
    }  # fmt: skip
    shown = [key for key in rows[0] if key in titles]
    numbers = [titles[key] for key in shown if key not in ("model", "licenses", "license", "hub")]
    spare = ("tier", "tags", "gmacs_224", "num_classes", "image_size", "hub")
    console.show_table(
        [titles[key] for key in shown],
        ([_cell(row[key]) for key in shown] for row in rows),
        numbers=numbers,
        spare=[titles[key] for key in spare if key in shown],
    )
    console.say("")
    for line in TAG_LEGEND if flags.tags else MODEL_LEGEND:
        console.say(line, style="dim")
    if flags.compare:
        console.say("other families: timm's results-imagenet.csv at commit 0173a139", style="dim")
    console.say("Next: `convnext list MODEL` shows its card, `convnext recommend DATA` picks one for your images")


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.2f}"
    return ", ".join(value) or "no weights" if isinstance(value, list) else value


def _show_csv(rows: list[dict[str, Any]]) -> None:
    if rows:
        console.show_csv_row(rows[0].keys())
    for row in rows:
        console.show_csv_row(" ".join(map(str, value)) if isinstance(value, list) else value for value in row.values())
