"""Stored values of an image, of any type and range, and their conversion to 8 bits."""

import math
from collections.abc import Iterator
from enum import StrEnum
from typing import Any, NamedTuple

import numpy as np
from numpy.typing import NDArray

from convnext_cli.errors import ImageError

ORIENTATION_TAG = 274  # of EXIF and TIFF
_PART = 1 << 22  # pixels to convert at a time


Pixels = NDArray[np.uint8]
"""An image, (H, W, 3), RGB."""


class StepKind(StrEnum):
    """The kinds of steps that the audit asks for."""

    OTHER = ""
    FRAME = "frame"
    """One of several frames is read."""
    STRETCH = "stretch"
    """The image's own range becomes 0 to 255."""
    FEW_LEVELS = "few levels"
    """Of a stretched image, few grey levels are left."""


class Step(NamedTuple):
    """A step of the decoding of an image."""

    words: str
    kind: StepKind = StepKind.OTHER


class Decoded(NamedTuple):
    """An image, and the steps of its decoding."""

    pixels: Pixels
    """(H, W, 3) RGB, upright."""
    mode: str
    """Pillow's name of the file's own pixels, such as `L`, `RGB`, `I;16`; `DICOM …` for DICOM."""
    bits: int
    """Bits per value in the file."""
    steps: tuple[Step, ...]
    """Windowed, first frame, turned upright … The audit counts images with the same ones."""


class Raster(NamedTuple):
    """The stored values of an image, upright or not, before they become 8 bits."""

    values: NDArray[Any]
    """(H, W) grey or (H, W, 3) RGB, larger is brighter."""
    alpha: NDArray[Any] | None
    """(H, W), from 0 to 1; None if the file has none."""
    mode: str
    bits: int
    steps: tuple[Step, ...] = ()


def check_orientation(value: Any) -> int:
    """Return an EXIF or TIFF orientation, 1 to 8; 1 (upright) for a missing or invalid value."""
    return int(value) if value in range(1, 9) else 1


def turn_upright(raster: Raster, orientation: int) -> Raster:
    """Rotate and mirror a raster by its EXIF orientation, 1 to 8."""
    if orientation == 1:
        return raster
    alpha = None if raster.alpha is None else orient(raster.alpha, orientation)
    values = orient(raster.values, orientation)
    return raster._replace(values=values, alpha=alpha, steps=(*raster.steps, Step("turned upright")))


def orient(pixels: NDArray[Any], orientation: int) -> NDArray[Any]:
    """Rotate and mirror pixels, (H, W) or (H, W, C), by an EXIF orientation, 1 to 8. They are not copied."""
    if orientation >= 5:  # the stored rows are columns
        pixels = pixels.swapaxes(0, 1)
    pixels = pixels[:, ::-1] if orientation in (2, 3, 6, 7) else pixels
    return pixels[::-1] if orientation in (3, 4, 7, 8) else pixels


def choose_frame(place: int, count: int, *, are_copies: bool = False) -> Step:
    """Return the step that reads one of several frames; `are_copies` if the others are smaller copies of it."""
    words = f"frame {place + 1} of {count}" if place else f"first of {count} frames"
    return Step(words, StepKind.OTHER if are_copies else StepKind.FRAME)


def scale_alpha(alpha: NDArray[Any], full: float) -> NDArray[np.float32] | None:
    """Scale a deep image's opacity to 0..1; None if it is nowhere full, because then it is not opacity."""
    scaled: NDArray[np.float32] = (alpha / np.float32(full)).clip(0, 1).astype(np.float32)
    return scaled if alpha.max() == full else None


def find_range(values: NDArray[Any], shown: NDArray[np.bool_] | None = None) -> tuple[float, float] | None:
    """Return the lowest and the highest finite value; None if there is none."""
    low, high = math.inf, -math.inf
    for rows in cut_rows(values.shape):
        part = values[rows]
        if shown is not None:
            part = part[shown[rows]]
        if part.dtype.kind == "f":
            part = part[np.isfinite(part)]
        if part.size:
            low, high = min(low, part.min().item()), max(high, part.max().item())  # exact, also of 64 bits
    return (low, high) if low <= high else None


def stretch_between(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    """Map (H, W) or (H, W, 3) to uint8 (H, W, 3), `low` to 0 and `high` to 255."""
    result = np.empty((*values.shape[:2], 3), np.uint8)
    table = None
    if values.dtype.kind in "ui" and high - low < 1 << 16:
        table = _scale(np.arange(high - low + 1), 0, high - low)
    for rows in cut_rows(values.shape):
        part = values[rows]
        if table is None:
            eight = _scale(part, low, high)
        else:  # the same numbers, each computed once
            inside = np.clip(part, part.dtype.type(low), part.dtype.type(high))
            eight = table[inside.astype(np.uint64) - np.uint64(int(low) % 2**64)]  # modulo 2**64, right for every type
        result[rows] = eight if values.ndim == 3 else eight[..., None]
    return result


def _scale(values: NDArray[Any], low: float, high: float) -> NDArray[np.uint8]:
    with np.errstate(all="ignore"):  # NaN and infinity are handled below
        wide = values.astype(np.float64)
        if math.isinf(high - low):
            wide, low, high = wide / 4, low / 4, high / 4
        scaled = np.nan_to_num((wide - low) / (high - low or 1.0), nan=0.0, posinf=1.0, neginf=0.0)
        eight: NDArray[np.uint8] = np.rint(scaled.clip(0, 1) * 255).astype(np.uint8)
    return eight


def is_grey(image: Pixels) -> bool:
    """Return True if the three channels of (H, W, 3) are equal."""
    return all(
        bool((part[..., 0] == part[..., 1]).all() and (part[..., 1] == part[..., 2]).all())
        for part in (image[::16, ::16], image)  # a few pixels show most colours
    )


def cut_rows(shape: tuple[int, ...]) -> Iterator[slice]:
    """Cut an image into slices of rows that are small enough to convert beside the whole image."""
    step = max(1, _PART // max(1, shape[1]))
    for top in range(0, shape[0], step):
        yield slice(top, min(top + step, shape[0]))


def finish_raster(raster: Raster, path: object) -> Decoded:
    """Stretch deep values to 8 bits, and blend transparent parts with white.

    Raises:
        ImageError: no value is finite.
    """
    values, alpha, mode, bits, steps = raster
    if values.dtype == np.uint8:
        pixels = values if values.ndim == 3 else np.repeat(values[..., None], 3, axis=2)
    else:
        shown = None if alpha is None else alpha > 0
        ends = find_range(values, shown if shown is not None and shown.any() else None)
        if ends is None:
            raise ImageError(f"{path} has no finite values", "Replace or remove the file")
        pixels = stretch_between(values, *ends)
        steps = (*steps, Step(f"{bits}-bit colour stretched" if values.ndim == 3 else "stretched", StepKind.STRETCH))
    if alpha is not None and alpha.min() < 1:
        for rows in cut_rows(values.shape):
            opaque = alpha[rows][..., None]
            pixels[rows] = np.rint(pixels[rows] * opaque + 255 * (1 - opaque))
        steps = (*steps, Step("composited on white"))
    return Decoded(pixels, mode, bits, steps)
