"""The framing of images: its choice from the images' proportions, and its application to a model's preprocessing."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import replace
from statistics import median

from convnext_cli.data.unseen import Shape, Unseen, measure_unseen_area
from convnext_cli.images.preprocessing import (
    CROP_MODES,
    REDUCTION,
    ImageSize,
    Preprocessing,
    format_size,
    join_size,
    split_size,
)
from convnext_cli.models.catalog import UNTAGGED, Tag
from convnext_cli.options import AUTO
from convnext_cli.recipes.settings import WEIGHTS, Choice
from convnext_cli.text import format_percent

MAX_DISTORTION = 3 / 2  # of proportions: photos of 3:2 in a square; benchmarks/recipes/README.md has the measurement
SAME = 1.01  # factor of equal proportions: sides are whole pixels
MIN_WITHIN = 0.9  # fraction of images that are squashed by at most that; with fewer, images are padded
MIN_RECTANGLE_SIDE = 64  # px; the last feature map then has two positions
RECTANGLE_AREA = (0.75, 1.25)  # of the square's, so that training takes about as long
MIN_FILLED = 1 / 8  # of the input's shorter side, that the shorter side of most images must fill
SEES_ALL = "evaluation sees the whole image"


def apply_framing(base: Preprocessing, image_size: ImageSize, fit: str, crop_pct: float | str) -> Preprocessing:
    """Return a model's preprocessing with the framing that three settings of the same names have.

    Args:
        base: preprocessing of the pretrained weights.
        image_size: side of a square, or `HxW`.
        fit: any but `auto`.
        crop_pct: a number, or `auto` for plans older than this setting.
    """
    return replace(
        base,
        image_size=join_size(*split_size(image_size)),
        crop_mode=base.crop_mode if fit == WEIGHTS else CROP_MODES[fit],
        crop_pct=crop_pct if isinstance(crop_pct, float | int) else base.crop_pct,
    )


def choose_framing(
    tag: Tag | None, shapes: Sequence[Shape], choices: Mapping[str, Choice], *, is_size_chosen: bool
) -> dict[str, Choice]:
    """Choose `fit`, `crop_pct` and `image_size`, and give their reasons.

    `auto` sees the whole image. Where `MIN_WITHIN` of the images have nearly one proportion (within `MAX_DISTORTION`),
    the input gets it, by a rectangle of about the square's area, and images are squashed to it; else they are padded.

    Args:
        tag: the weights; None for random initialisation.
        shapes: of a sample of the images; empty if unknown: `auto` then stays as it is.
        choices: of the three settings so far.
        is_size_chosen: True if the user or a plan file chose the size, which is kept.
    """
    fit, size = choices["fit"], choices["image_size"]
    if fit.value == AUTO:
        if not shapes:
            return {}
        if not is_size_chosen:
            size = _choose_rectangle(size, shapes)
        fit = _choose_fit(size.value, shapes)
    base = tag.preprocessing if tag else UNTAGGED
    crop_pct = choices["crop_pct"]
    if crop_pct.value == AUTO:
        crop_pct = _choose_crop_pct(fit.value, base, tag)
    framing = apply_framing(base, size.value, fit.value, crop_pct.value)
    if (fit.is_chosen or fit.source == "default") and (unseen := measure_unseen_area(shapes, framing)):
        fit = replace(fit, reason=SEES_ALL if unseen.rounds_to_none else f"evaluation never sees {unseen}")
    return {"image_size": size, "fit": fit, "crop_pct": crop_pct}


def warn_unseen(unseen: Unseen | None) -> str | None:
    """Return a warning where evaluation never sees a notable part of the images, else None."""
    if unseen is None or not unseen.is_notable:
        return None
    return (
        f"evaluation never sees {unseen}: what lies at the edge has no effect on a prediction. --fit pad, --fit squash "
        "or --fit auto shows the model whole images"
    )


def warn_padding(shapes: Sequence[Shape], image_size: ImageSize, fit: str) -> str | None:
    """Return a warning where half of the images become strips of less than `MIN_FILLED` of the input's side."""
    if fit != "pad" or not shapes:
        return None
    rows, columns = split_size(image_size)
    strips = sorted(
        (min(width, height) * min(rows / height, columns / width), width, height) for _, width, height in shapes
    )
    shorter, width, height = strips[len(strips) // 2]
    if shorter >= MIN_FILLED * min(rows, columns):
        return None
    best = _find_rectangle(round(math.sqrt(rows * columns) / REDUCTION) * REDUCTION, width / height)
    larger = f", or give --image-size {format_size(*best)}" if best != (rows, columns) else ""
    return (
        f"images of {width} x {height} px become strips of {max(1, round(shorter))} px in an input of "
        f"{rows} x {columns} px: small details are lost. Cut them into parts{larger}"
    )


def _find_rectangle(side: int, proportions: float) -> tuple[int, int]:
    """Return the size (H, W) of about a square's area that is nearest to an image's proportions."""
    return min(_list_sizes(side), key=lambda rows_columns: _measure_distortion(rows_columns, proportions))


def _choose_rectangle(size: Choice, shapes: Sequence[Shape]) -> Choice:
    """Return the size of the proportions that nearly all images have, or the square if they have several."""
    proportions = math.exp(median(math.log(width / height) for _, width, height in shapes))
    side = split_size(size.value)[0]
    best = _find_rectangle(side, proportions)
    if best == (side, side) or _count_within(best, shapes) < MIN_WITHIN:
        return size
    reason = f"about the area of {side} x {side} px ({size.reason}), at the images' proportions of {proportions:.2f}"
    return Choice(value=format_size(*best), source="rule", reason=reason)


def _list_sizes(side: int) -> list[tuple[int, int]]:
    """Return the square (H, W) of a side, and the rectangles of about its area, the largest first."""
    low, high = (fraction * side**2 for fraction in RECTANGLE_AREA)
    sides = range(MIN_RECTANGLE_SIDE, int(high) // MIN_RECTANGLE_SIDE + 1, REDUCTION)
    rectangles = [(rows, columns) for rows in sides for columns in sides if low <= rows * columns <= high]
    return [(side, side), *sorted(rectangles, key=lambda size: -size[0] * size[1])]


def _choose_fit(size: ImageSize, shapes: Sequence[Shape]) -> Choice:
    """Return `squash` if it changes the proportions of nearly all images little, else `pad`."""
    height, width = split_size(size)
    within = _count_within((height, width), shapes)
    text = f"within 3:2 of the proportions of {height} x {width} px"
    images = f"{format_percent(within)}% of the images are"
    if all(_measure_distortion((height, width), size[1] / size[2]) <= SAME for size in shapes):
        return Choice(value="squash", source="rule", reason=f"{SEES_ALL}; the images have the input's proportions")
    if within >= MIN_WITHIN:
        return Choice(value="squash", source="rule", reason=f"{SEES_ALL}; {images} stretched by at most 3:2")
    few = f"only {images}" if within else "no image is"
    return Choice(value="pad", source="rule", reason=f"{SEES_ALL}, at its own proportions: {few} {text}")


def _choose_crop_pct(fit: str, base: Preprocessing, tag: Tag | None) -> Choice:
    if fit == WEIGHTS or (fit == "crop" and base.crop_mode == CROP_MODES["crop"]):
        return Choice(value=base.crop_pct, source="rule", reason=f"that of {tag.name}" if tag else "timm's usual")
    return Choice(value=1.0, source="rule", reason="whole images" if fit != "crop" else "the largest central part")


def _measure_distortion(size: tuple[int, int], proportions: float) -> float:
    """Return the factor, 1 and above, by which squashing to a size (H, W) changes proportions, width to height."""
    factor = size[1] / size[0] / proportions
    return max(factor, 1 / factor)


def _count_within(size: tuple[int, int], shapes: Sequence[Shape]) -> float:
    """Return the fraction of images whose proportions change by at most `MAX_DISTORTION`."""
    limit = MAX_DISTORTION * SAME
    return sum(_measure_distortion(size, width / height) <= limit for _, width, height in shapes) / len(shapes)
