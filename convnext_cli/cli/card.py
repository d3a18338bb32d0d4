"""The card of one model, on the terminal."""

from dataclasses import asdict
from typing import Any

from convnext_cli.cli import console
from convnext_cli.models.catalog import BUILTIN, DEFAULT_IMAGE_SIZE, Architecture, Tag, find_model, load_builtin
from convnext_cli.models.names import FAMILIES, GRAMMAR, MODIFIERS, NORMS, SIZES

NAMING = (
    f"<family>_<size>[_<modifier>...][.<tag>]: family {', '.join(FAMILIES)}; size {', '.join(SIZES)}; modifiers "
    f"{', '.join(MODIFIERS)}; the tag names the weights"
)


def show_card(name: str, *, as_json: bool) -> None:
    """Show the card of a model, or of one set of its weights."""
    model, tag = find_model(name)
    builtin = load_builtin().card if tag is not None and tag.hub_id is None else {}
    if as_json:
        console.show_json(_describe_card(name, model, tag) | ({"card": builtin} if builtin else {}))
        return
    console.show(name, style="bold")
    console.show("")
    console.show_table(["", ""], _list_facts(model, tag).items())
    console.show("")
    _show_stages(model, tag)
    for title, text in builtin.items():
        console.show("")
        console.show(title, style="bold")
        console.show_lines(text)
    if not model.tags:
        console.show("No pretrained weights exist for it.")
        console.say(f"Next: convnext finetune DATA --model {name} --weights none")
        return
    _show_weights(_list_tags(name, model, tag))
    command = f"finetune DATA --weights {BUILTIN}" if builtin else f"recommend DATA --model {name}"
    console.say(f"Next: convnext {command}")


def _list_tags(name: str, model: Architecture, tag: Tag | None) -> list[Tag]:
    """Return the one that a name with `.tag` names, or all of the model."""
    return [tag] if tag and "." in name else list(model.tags)


def _describe_card(name: str, model: Architecture, tag: Tag | None) -> dict[str, Any]:
    """Return the card as plain values, for JSON."""
    size = tag.image_size if tag else DEFAULT_IMAGE_SIZE
    return {
        "model": name,
        "family": FAMILIES[model.parsed.family],
        "modifiers": {modifier: MODIFIERS[modifier] for modifier in model.parsed.modifiers},
        "tier": model.tier,
        "position": model.rank.position if model.rank else None,
        "params": model.params,
        "backbone_params": model.backbone_params,
        "gmacs_224": model.gmacs,
        "input": [3, size, size],
        "feature_map": list(model.feature_shape(size, size)),
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
        "tags": [entry.to_row() for entry in _list_tags(name, model, tag)],
    }


def _list_facts(model: Architecture, tag: Tag | None) -> dict[str, str]:
    """Return what the card says of the model, by title."""
    parsed, rank, size = model.parsed, model.rank, tag.image_size if tag else DEFAULT_IMAGE_SIZE
    return {
        "name": f"family {parsed.family}, size {parsed.size}, modifiers {', '.join(parsed.modifiers) or 'none'}",
        "names": NAMING,
        "family": FAMILIES[parsed.family],
        **{f"_{modifier}": MODIFIERS[modifier] for modifier in parsed.modifiers},
        "specification": f"tier {rank.tier} of 6, place {rank.position}" if rank else "not ranked",
        "parameters": f"{model.params:,} with 1,000 classes, {model.backbone_params:,} without a classifier",
        "GMACs": f"{model.gmacs} at 224 px",
        "input": f"(B, 3, {size}, {size})",
        "feature map": f"(B, {', '.join(map(str, model.feature_shape(size, size)))})",
        "pooled": f"(B, {model.dims[-1]})",
        "output": f"{_describe_output(tag)}; finetune gives it a head for your classes",
        "blocks": f"{'-'.join(map(str, model.depths))} of width {'-'.join(map(str, model.dims))}",
        "stem": model.stem,
        "norm": NORMS[model.norm],
        "block": f"depthwise, norm, MLP; {'GRN after the activation' if model.grn else 'LayerScale at the end'}",
        "head": model.head,
        "training memory": f"{model.activation_mib:g} MiB of activations per image at 224 px, float32",
    }


def _show_stages(model: Architecture, tag: Tag | None) -> None:
    console.show_table(
        ["stage", "resolution", "channels", "blocks", "drop path"],
        (
            (
                stage.number,
                f"{stage.side_before}x{stage.side_before} -> {stage.side}x{stage.side}",
                stage.channels,
                stage.blocks,
                f"{stage.drop_path[0]:.2f} to {stage.drop_path[1]:.2f}",
            )
            for stage in model.stages(tag.image_size if tag else DEFAULT_IMAGE_SIZE)
        ),
        numbers=("stage", "channels", "blocks"),
    )
    console.say("drop path: of each stage's first and last block, times --drop-path", style="dim")


def _show_weights(tags: list[Tag]) -> None:
    console.show("")
    console.show_table(
        ["weights", "licence", "input (px)", "accuracy (%) at px"],
        (
            (
                entry.name,
                entry.license,
                entry.image_size,
                ", ".join(f"{accuracy} at {size}" for size, accuracy in entry.top1.items()) or None,
            )
            for entry in tags
        ),
        numbers=["input (px)"],
    )


def _describe_output(tag: Tag | None) -> str:
    if tag is not None and tag.num_classes == 0:
        return "the pooled features: these weights have no classifier"
    return f"(B, {tag.num_classes if tag else 1000})"
