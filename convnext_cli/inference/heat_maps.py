"""The heat maps of a prediction: which classes they explain, and the files that they are drawn into."""

import os
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.outside import check_outside_data
from convnext_cli.errors import RunError, UsageError
from convnext_cli.files import check_output, check_outside, replace_output, resolve_links
from convnext_cli.images.transforms import locate_frame
from convnext_cli.inference.classifier import Classifier, Heat, Outputs, find_class
from convnext_cli.inference.request import PredictRequest
from convnext_cli.inference.sources import Source
from convnext_cli.runs.folder import RunFolder
from convnext_cli.tasks.task import Outcome

CAPTION_CLASSES = 3  # in the caption of a heat map
MAX_MAPS = 6  # side by side in a picture; --explain-class draws any others
MAX_STEM = 200  # bytes; a file name has room for 255


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
        from convnext_cli.inference.explain import draw_explanation  # torch, which is imported by now

        maps = self._choose(outputs.heat[place], outputs.logits[place], outcome)
        parts = self.classifier.task.list_parts(outcome, CAPTION_CLASSES, lambda name: name)
        side = "right" if len(maps) == 1 else "from the left, after the image"
        caption = f"{'   '.join(' '.join(part.split()) for part in parts)}   ({side}: Grad-CAM of {', '.join(maps)})"
        image = source.read()
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
    """Make the folder for heat maps."""
    parents = sorted(
        {resolve_links(path).parent for path in (source.path for source in sources) if path and os.path.lexists(path)}
    )
    for data in (*parents, *_find_data_folder(parents)):
        check_outside(folder, data, option="--explain")
    with suppress(RunError):  # an exported file, or a run whose data are not known
        check_outside_data(folder, RunFolder(run).read_split(), option="--explain")
    for row, source in enumerate(sources, start=1):
        heat_map = folder / _name_file(row, source)
        if os.path.lexists(heat_map):
            check_output(heat_map, "--explain", overwrite=overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}", "Choose another --explain") from error


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
