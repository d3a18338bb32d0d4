"""The Grad-CAM heat maps of a prediction: which classes they explain, and how they are drawn over the image."""

import os
import re
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from convnext_cli.data.outside import check_outside_data
from convnext_cli.errors import RunError, UsageError
from convnext_cli.files import check_output, check_outside, replace_output, resolve_links
from convnext_cli.images.augmentation import Box
from convnext_cli.images.formats import has_image_suffix
from convnext_cli.images.raster import Pixels
from convnext_cli.images.transforms import locate_frame
from convnext_cli.inference.classifier import Classifier, Heat, Outputs, find_class
from convnext_cli.inference.request import PredictRequest
from convnext_cli.inference.sources import Source
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.task import Outcome

CAPTION_CLASSES = 3  # in the caption of a heat map
MAX_MAPS = 6  # side by side in a picture; --explain-class draws any others
MAX_STEM = 200  # bytes; a file name has room for 255
# From transparent over violet and orange to pale yellow (matplotlib's inferno at 0, 1/4, 1/2, 3/4 and 1).
_COLOURS = np.array([(0, 0, 4), (87, 16, 110), (188, 55, 84), (249, 142, 9), (252, 255, 164)], np.float64)
OPACITY = 0.65  # at the maximum of the heat map
_HEAT_MAP = re.compile(r"\d{5,}-.*\.png", re.DOTALL)  # as `_name_file` names them
FRAME = (255, 176, 0)  # colour of the frame around the model's crop


@dataclass(frozen=True, kw_only=True, slots=True)
class HeatMaps:
    """The heat maps that a request asks for."""

    folder: Path
    overwrite: bool
    classifier: Classifier
    heat: Heat
    """The maps that the classifier computes of each image."""
    are_all_drawn: bool
    """True to draw all of these; False to draw those of the predicted labels only."""

    def draw(self, row: int, source: Source, outputs: Outputs, place: int, outcome: Outcome) -> Path:
        """Draw the heat maps of an image into a file, and return its path.

        `row` is the number of the image, from 1, and `place` that in its batch of `outputs`, from 0.
        """
        maps = self._choose(outputs.heat[place], outputs.logits[place], outcome)
        parts = self.classifier.task.list_parts(outcome, CAPTION_CLASSES, lambda name: name)
        side = "right" if len(maps) == 1 else "from the left, after the image"
        caption = f"{'   '.join(' '.join(part.split()) for part in parts)}   ({side}: Grad-CAM of {', '.join(maps)})"
        image, _ = source.read()
        frame = locate_frame(image.shape[1], image.shape[0], self.classifier.preprocessing)
        path = self.folder / _name_file(row, source)
        with replace_output(path, "--explain", overwrite=self.overwrite) as temporary:
            draw_explanation(image, list(maps.values()), frame, caption).save(temporary, format="PNG")
        return path

    def _choose(
        self, maps: NDArray[np.float32], logits: NDArray[np.float32], outcome: Outcome
    ) -> dict[str, NDArray[np.float32]]:
        """Return the maps to draw of an image, by class; without a predicted label, that of the most probable one.

        Args:
            maps: (h, w) of the most probable class, or (M, h, w) of the classes in `heat`.
            logits: (K,).
            outcome: the prediction.
        """
        classes = self.classifier.classes
        most_probable = classes[int(logits.argmax())]
        if not isinstance(self.heat, tuple):
            return {most_probable: maps}
        by_class = {classes[number]: part for number, part in zip(self.heat, maps, strict=True)}
        if self.are_all_drawn or outcome.labels is None:
            return by_class
        return {name: by_class[name] for name in (outcome.labels or (most_probable,))[:MAX_MAPS]}


def prepare_heat_maps(
    run: Path, sources: Sequence[Source], request: PredictRequest, classifier: Classifier
) -> HeatMaps | None:
    """Make the folder of the heat maps that a request asks for; None if it asks for none.

    They are of the named classes, else of all that an image may have.

    Raises:
        UsageError: a named class is unknown, no folder is given; or the folder lies in the data of the run or among
            the images, or has heat maps of these names already.
    """
    if request.explain is None:
        if request.explain_class:
            raise UsageError("--explain-class needs a folder for the heat maps", "Add --explain DIR")
        return None
    heat: Heat = True
    if request.explain_class:
        heat = tuple(find_class(name, classifier.classes, "--explain-class") for name in request.explain_class)
    elif classifier.task.has_several:
        heat = tuple(range(len(classifier.classes)))
    _make_folder(request.explain, run, sources, overwrite=request.overwrite)
    return HeatMaps(
        folder=request.explain,
        overwrite=request.overwrite,
        classifier=classifier,
        heat=heat,
        are_all_drawn=bool(request.explain_class),
    )


def _make_folder(folder: Path, run: Path, sources: Sequence[Source], *, overwrite: bool) -> None:
    parents = sorted(
        {resolve_links(path).parent for path in (source.path for source in sources) if path and os.path.lexists(path)}
    )
    named = {source.folder for source in sources if source.folder is not None}
    for data in (*sorted(named), *parents, *_find_data_folder(parents)):
        check_outside(folder, data, option="--explain")
    with suppress(RunError):  # an exported file, or a run whose data are not known
        check_outside_data(folder, RunFolder(run).read_split(), option="--explain")
    if others := [name for name in _list_names(folder) if has_image_suffix(name) and not _HEAT_MAP.fullmatch(name)]:
        problem = f"{folder} has images, such as {others[0]}: heat maps may not lie among them"
        raise UsageError(problem, "Give another folder with --explain")
    for row, source in enumerate(sources, start=1):
        heat_map = folder / _name_file(row, source)
        if os.path.lexists(heat_map):
            check_output(heat_map, "--explain", overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}", "Choose another --explain") from error


def _list_names(folder: Path) -> list[str]:
    """Return the sorted names of what is in a folder; none if it does not exist or cannot be listed."""
    with suppress(OSError):
        return sorted(path.name for path in folder.iterdir())
    return []


def _find_data_folder(parents: Sequence[Path]) -> list[Path]:
    """Return the folder above class folders, or above splits with class folders; nothing if they lie farther apart."""
    if len(parents) < 2:
        return []
    common = Path(os.path.commonpath(parents))
    is_data = all(len(parent.relative_to(common).parts) <= 2 for parent in parents)  # <class>, or <split>/<class>
    return [common] if is_data and common != Path(common.anchor) else []


def _name_file(row: int, source: Source) -> str:
    """Return the file name of an image's heat map; `row` is from 1."""
    stem = source.stem.encode("utf-8", "surrogateescape")[:MAX_STEM].decode("utf-8", "ignore")
    return f"{row:05d}-{stem}.png"


def overlay_heat(image: Pixels, heat: NDArray[np.float32], box: Box | None = None) -> Pixels:
    """Return an image (H, W, 3) with a heat map (h, w) over it; the maximum is the brightest.

    `box` is the part of the heat map that covers the image: left, top, right, bottom, in its positions; None for all.
    """
    maximum = float(heat.max())
    scaled = heat / maximum if maximum > 0 else np.zeros_like(heat)
    size = (image.shape[1], image.shape[0])
    enlarged = Image.fromarray(scaled.astype(np.float32)).resize(size, Image.Resampling.BICUBIC, box=box)
    smooth = np.asarray(enlarged).clip(0, 1)
    stops = np.linspace(0, 1, len(_COLOURS))
    colours = np.stack([np.interp(smooth, stops, _COLOURS[:, c]) for c in range(3)], axis=-1)
    alpha = OPACITY * smooth[..., None]
    return np.rint(image * (1 - alpha) + colours * alpha).astype(np.uint8)


def draw_explanation(image: Pixels, maps: Sequence[NDArray[np.float32]], frame: Box, caption: str) -> Image.Image:
    """Draw an image (H, W, 3) at its own size, beside it the image with each heat map, and a caption below all.

    Args:
        image: the whole image.
        maps: heat maps (h, w), of the model's input.
        frame: the input: left, top, right, bottom, in pixels of the image; with padding beyond it. It is drawn where it
            is not the whole image.
        caption: one line.
    """
    caption = "".join(letter if letter.isprintable() else "?" for letter in caption)
    height, width = image.shape[:2]
    left, top = max(0, round(frame[0])), max(0, round(frame[1]))
    right, bottom = min(width, max(left + 1, round(frame[2]))), min(height, max(top + 1, round(frame[3])))
    gap = max(2, round(0.01 * max(width, height)))
    text_height = max(12, round(0.03 * max(width, height)))
    canvas = Image.new("RGB", (width + len(maps) * (width + gap), height + 2 * text_height), "white")
    canvas.paste(Image.fromarray(image), (0, 0))
    draw = ImageDraw.Draw(canvas)
    for number, heat in enumerate(maps, start=1):
        heated, x = image.copy(), number * (width + gap)
        heated[top:bottom, left:right] = overlay_heat(
            image[top:bottom, left:right], heat, _find_inside(frame, width, height, heat.shape)
        )
        canvas.paste(Image.fromarray(heated), (x, 0))
        if (left, top, right, bottom) != (0, 0, width, height):
            edge = (x + left, top, x + right - 1, bottom - 1)
            draw.rectangle(edge, outline=FRAME, width=max(1, gap // 4))
    while text_height > 8 and draw.textlength(caption, _load_font(text_height)) > canvas.width - 2 * gap:
        text_height -= 1
    draw.text((gap, height + text_height // 4), caption, fill="black", font=_load_font(text_height))
    return canvas


def _find_inside(frame: Box, width: int, height: int, shape: tuple[int, ...]) -> Box:
    """Return the part of a heat map of a shape (h, w) that lies inside the image, in its positions."""
    x, y = shape[1] / (frame[2] - frame[0]), shape[0] / (frame[3] - frame[1])
    left, top = max(0.0, -frame[0]) * x, max(0.0, -frame[1]) * y
    right, bottom = shape[1] - max(0.0, frame[2] - width) * x, shape[0] - max(0.0, frame[3] - height) * y
    return left, top, right, bottom


def _load_font(size: int) -> ImageFont.FreeTypeFont:
    """Return DejaVu Sans of matplotlib, which has Greek, Cyrillic and more; Pillow's own font has only Latin."""
    import matplotlib

    return ImageFont.truetype(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf", size)
