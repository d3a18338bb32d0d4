"""`convnext list`: which models there are."""

from dataclasses import asdict
from typing import Annotated, Any

import typer

from convnext_cli.cli import console
from convnext_cli.cli.completion import complete_model
from convnext_cli.errors import UsageError, check_word, suggest
from convnext_cli.models.catalog import (
    BUILTIN,
    Architecture,
    Reference,
    Tag,
    check_license,
    find_model,
    list_models,
    list_tags,
    load_builtin,
    load_catalog,
    load_ranking,
    load_references,
)
from convnext_cli.models.licenses import license_matches
from convnext_cli.models.names import FAMILIES, GRAMMAR, MODIFIERS, NORMS, SIZES

_ORDERS = {
    "catalog": None,
    "name": lambda m: m.name,
    "params": lambda m: m.params,
    "gmacs": lambda m: m.gmacs,
    "top1": lambda m: -(m.top1 or 0),
    "tier": lambda m: _rank(m.name)["position"] or 99,
}


def list_(
    pattern: Annotated[
        str,
        typer.Argument(
            help="Part of a name, or a shell pattern. A whole name shows the model's card.",
            autocompletion=complete_model,
        ),
    ] = "*",
    family: Annotated[str | None, typer.Option(help=f"One of {', '.join(FAMILIES)}.")] = None,
    size: Annotated[str | None, typer.Option(help="zepto to huge.")] = None,
    tier: Annotated[int | None, typer.Option(help="The specification's tier, 1 to 6.", min=1, max=6)] = None,
    max_params: Annotated[float | None, typer.Option(help="At most so many parameters, in millions.", min=0)] = None,
    license: Annotated[str | None, typer.Option(help="A licence of the weights, or 'permissive'.")] = None,
    pretrained: Annotated[bool, typer.Option("--pretrained", help="Only models that have weights.")] = False,
    sort: Annotated[str, typer.Option(help=f"One of {', '.join(_ORDERS)}.")] = "catalog",
    tags: Annotated[bool, typer.Option("--tags", help="One row per set of weights.")] = False,
    compare: Annotated[bool, typer.Option("--compare", help="Add well-known models of other kinds.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print JSON.")] = False,
    as_csv: Annotated[bool, typer.Option("--csv", help="Print CSV.")] = False,
) -> None:
    """List the ConvNeXt models, or show one model's card."""
    filters = {
        "--family": family, "--size": size, "--tier": tier, "--max-params": max_params, "--license": license,
        "--pretrained": pretrained, "--tags": tags, "--compare": compare, "--csv": as_csv,
        "--sort": sort != "catalog",
    }  # fmt: skip
    used = [name for name, value in filters.items() if value not in (None, False)]
    if "." in pattern and used:
        find_model(pattern)
        raise UsageError(f"{', '.join(used)} cannot be used with one set of weights", "Leave it out, or leave out .tag")
    if "." in pattern or (pattern in load_catalog() and not used):
        _show_card(pattern, as_json=as_json)
        return
    check_word("family", family, tuple(FAMILIES))
    check_word("size", size, (*SIZES, "convnext", "convnext2", "convnext3"))
    check_word("order", sort, tuple(_ORDERS))
    if license is not None:
        check_license(license)
    models = list_models(
        pattern,
        family=family,
        size=size,
        tier=tier,
        max_params=max_params,
        license=license,
        pretrained=pretrained,
    )
    if pattern in load_catalog():
        models = [model for model in models if model.name == pattern]
    if order := _ORDERS[sort]:
        models.sort(key=order)
    rows = [row for model in models for row in (_tag_rows(model, license) if tags else _model_rows(model, license))]
    if compare and not tags:
        rows += [_reference_row(reference) for reference in load_references()]
    if as_json:
        console.show_json(rows)
    elif as_csv:
        _show_csv(rows)
    elif not rows:
        near = "" if list_models(pattern) else suggest(pattern, load_catalog())
        filtered = f" and {', '.join(used)}" if used else ""
        raise UsageError(f"no model matches {pattern!r}{filtered}", f"{near}`convnext list` shows all models")
    else:
        _show_rows(rows, tags=tags, compare=compare)


def _model_rows(model: Architecture, license: str | None) -> list[dict[str, Any]]:
    """The model's row, and one for the weights in the package where they are for this model."""
    tag = model.default_tag
    row = {
        "model": model.name,
        "tier": _rank(model.name)["tier"],
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


def _show_rows(rows: list[dict[str, Any]], *, tags: bool, compare: bool) -> None:
    titles = {
        "model": "model", "tier": "tier", "params_m": "params (M)", "gmacs_224": "GMACs", "top1": "top-1 (%)",
        "image_size": "input (px)", "tags": "tags", "licenses": "licences of the weights", "license": "licence",
        "num_classes": "classes", "hub": "on the Hub",
    }  # fmt: skip
    shown = [key for key in rows[0] if key in titles]
    numbers = [titles[key] for key in shown if key not in ("model", "licenses", "license", "hub")]
    console.show_table(
        [titles[key] for key in shown],
        ([_cell(row[key]) for key in shown] for row in rows),
        numbers=numbers,
        spare=[
            titles[key] for key in ("tier", "tags", "gmacs_224", "num_classes", "image_size", "hub") if key in shown
        ],
    )
    console.say("")
    if tags:
        legend = (
            "top-1: the best published on ImageNet-1k, at the size it was tested; 0 classes: a backbone without head."
        )
    else:
        legend = (
            "names: <family>_<size>[_<modifier>...][.<tag>]; a model's card has the grammar. tier: the specification "
            "author's ranking, no benchmark (docs/specification.md). GMACs at 224 px (FLOPs are twice that). top-1: "
            "the default weights' best published on ImageNet-1k. ImageNet's own terms may apply beside any licence. "
            "builtin: small weights in this package, for where the Hub is out of reach (--weights builtin)."
        )
    if compare:
        legend += " Models of other kinds: timm's results-imagenet.csv at commit 0173a139."
    console.say(legend, style="dim")
    console.say("Next: convnext list MODEL shows its card, convnext recommend DATA picks one for your images")


def _show_card(name: str, *, as_json: bool) -> None:
    model, tag = find_model(name)
    size = tag.image_size if tag else 224
    card: dict[str, Any] = {
        "model": name,
        "family": FAMILIES[model.parsed.family],
        "modifiers": {modifier: MODIFIERS[modifier] for modifier in model.parsed.modifiers},
        **_rank(model.name),
        "params": model.params,
        "backbone_params": model.backbone_params,
        "gmacs_224": model.gmacs,
        "input": [3, size, size],
        "feature_map": list(model.feature_shape(size)),
        "pooled": [model.dims[-1]],
        "output": [(tag.num_classes if tag else 1000) or model.dims[-1]],
        "name": {"family": model.parsed.family, "size": model.parsed.size, "modifiers": list(model.parsed.modifiers)},
        "grammar": GRAMMAR,
        "depths": list(model.depths),
        "dims": list(model.dims),
        "stages": [asdict(stage) for stage in model.stages(size)],
        "norm_formula": NORMS[model.norm],
        "stem": model.stem,
        "norm": model.norm,
        "layer_scale": model.layer_scale,
        "grn": model.grn,
        "head": model.head,
        "activation_mib_per_image_224": model.activation_mib,
        "tags": [entry.to_row() for entry in ([tag] if tag and "." in name else model.tags)],
    }
    if tag is not None and tag.hub_id is None:
        card["card"] = load_builtin().card
    if as_json:
        console.show_json(card)
        return
    parsed = model.parsed
    words = {
        "name": f"family {parsed.family}, size {parsed.size}, modifiers {', '.join(parsed.modifiers) or 'none'}",
        "family": card["family"],
        **{f"_{modifier}": meaning for modifier, meaning in card["modifiers"].items()},
        "specification": f"tier {card['tier']} of 6, place {card['position']}" if card["tier"] else "not ranked",
        "parameters": f"{model.params:,} with 1,000 classes, {model.backbone_params:,} without a classifier",
        "GMACs": f"{model.gmacs} at 224 px",
        "input": f"(B, 3, {size}, {size})",
        "feature map": f"(B, {', '.join(map(str, model.feature_shape(size)))})",
        "pooled": f"(B, {model.dims[-1]})",
        "output": f"{_describe_output(tag)}; finetune gives it a head for your classes",
        "blocks": f"{'-'.join(map(str, model.depths))} of width {'-'.join(map(str, model.dims))}",
        "stem": model.stem,
        "norm": NORMS[model.norm],
        "block": f"depthwise, norm, MLP; {'GRN after the activation' if model.grn else 'LayerScale at the end'}",
        "head": model.head,
        "training memory": f"{model.activation_mib:g} MiB of activations per image at 224 px, float32",
    }
    console.show(name, style="bold")
    console.show("")
    console.show_table(["", ""], words.items())
    console.show("")
    console.show(f"name grammar  {GRAMMAR}")
    console.show("")
    columns = ["stage", "resolution", "channels", "blocks", "drop path"]
    console.show_table(
        columns,
        (
            (
                stage.number,
                f"{stage.side_before}x{stage.side_before} -> {stage.side}x{stage.side}",
                stage.channels,
                stage.blocks,
                f"{stage.drop_path[0]:.2f} to {stage.drop_path[1]:.2f}",
            )
            for stage in model.stages(size)
        ),
        numbers=("stage", "channels", "blocks"),
    )
    console.say("drop path: of each stage's first and last block, times --drop-path", style="dim")
    for title, text in card.get("card", {}).items():
        console.show("")
        console.show(title, style="bold")
        console.show_lines(text)
    if not model.tags:
        console.show("No pretrained weights exist for it anywhere.")
        console.say(f"Next: convnext finetune DATA --model {name} --weights none")
        return
    rows = [
        (
            t["name"],
            t["license"],
            t["image_size"],
            ", ".join(f"{v} at {k}" for k, v in t["top1"].items()) or None,
        )
        for t in card["tags"]
    ]
    console.show("")
    console.show_table(["weights", "licence", "input (px)", "top-1 (%) at px"], rows, numbers=["input (px)"])
    is_builtin = tag is not None and tag.hub_id is None
    following = f"finetune DATA --weights {BUILTIN}" if is_builtin else f"recommend DATA --model {name}"
    console.say(f"Next: convnext {following}")


def _describe_output(tag: Tag | None) -> str:
    if tag is not None and tag.num_classes == 0:
        return "the pooled features: these weights have no classifier"
    return f"(B, {tag.num_classes if tag else 1000})"


def _rank(name: str) -> dict[str, int | None]:
    rank = load_ranking()[1].get(name)
    return {"tier": rank.tier, "position": rank.position} if rank else {"tier": None, "position": None}


def _cell(value: Any) -> Any:
    if isinstance(value, float):
        return f"{value:.2f}"
    return ", ".join(value) or "no weights" if isinstance(value, list) else value


def _show_csv(rows: list[dict[str, Any]]) -> None:
    if rows:
        console.show_csv_row(rows[0].keys())
    for row in rows:
        console.show_csv_row(" ".join(map(str, value)) if isinstance(value, list) else value for value in row.values())
