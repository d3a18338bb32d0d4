"""The gallery of a report: the most confident errors and the least confident predictions, with heat maps."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

from PIL import Image

from convnext_cli.images.raster import Pixels
from convnext_cli.inference.classifier import Outputs, load_for_eval
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.inference.heat_maps import overlay_heat
from convnext_cli.inference.torch_classifier import TorchClassifier, open_classifier
from convnext_cli.runs.folds import open_folder

IMAGES = 12  # of each kind
SIDE = 176  # px, twice the size in the report
QUALITY = 80  # JPEG; about 6 kB per image


@dataclass(frozen=True, kw_only=True, slots=True)
class GalleryImage:
    """One image of the gallery."""

    path: str
    lines: tuple[str, ...]
    """The prediction beside the label: `predicted VIRUS (92%), labelled BACTERIA`."""
    is_correct: bool
    image: str
    """A data URI."""
    heat: str
    """The image with the heat map over it, a data URI."""


def pick_images(evaluation: Evaluation) -> tuple[list[int], list[int]]:
    """Return the most confident errors and the least confident predictions, as positions among the evaluated images."""
    targets, scaling = evaluation.images.targets, evaluation.calibration
    worst, unsure = evaluation.task.rank_errors(evaluation.probabilities, targets, scaling)
    return worst[:IMAGES], unsure[:IMAGES]


def draw_images(evaluation: Evaluation, positions: Sequence[int]) -> dict[int, GalleryImage]:
    """Return gallery images by position; images whose files are gone are left out."""
    evaluated = evaluation.images
    index, rows = evaluation.test_set.index, evaluation.test_set.rows
    classifier = open_classifier(open_folder(evaluation.run))
    read = load_for_eval(index, classifier.preprocessing, cache=False)
    images: dict[int, Pixels] = {}

    def load(position: int) -> Pixels:
        images[position] = read(rows[position])
        return images[position]

    def explain() -> Iterator[Outputs]:
        if isinstance(classifier, TorchClassifier):
            yield from classifier.classify_batches(positions, load, heat=True)
        else:  # out of fold, each image has a classifier of its own
            for position in positions:
                single = classifier.choose_classifier(index, rows[position])
                yield from single.classify_batches([position], load, heat=True)

    task, probabilities, scaling = evaluation.task, evaluation.probabilities, evaluation.calibration
    decisions = task.decide(probabilities, scaling)
    gallery = {}
    remaining = iter(positions)
    for outputs in explain():
        for heat, position in zip(outputs.heat, remaining, strict=False):
            if position not in images:
                continue
            outcome = task.summarise(probabilities[position], evaluated.classes, scaling)
            target = evaluated.targets[position]
            gallery[position] = GalleryImage(
                path=index.paths[rows[position]],
                lines=tuple(task.list_differences(outcome, target, evaluated.classes, scaling)),
                is_correct=task.is_correct(decisions[position], target),
                image=_encode(images[position]),
                heat=_encode(overlay_heat(images[position], heat)),
            )
    return gallery


def _encode(pixels: Pixels) -> str:
    image = Image.fromarray(pixels)
    image.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    image.save(data, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
