"""The images that teach most about a model, with the places that it looked at."""

import base64
import io
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
from PIL import Image

from convnext_cli.images.decode import Pixels
from convnext_cli.inference.classifier import Outputs, load_for_eval
from convnext_cli.inference.evaluation import Evaluation, open_model
from convnext_cli.inference.explain import overlay_heat
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.metrics.formulas import log_softmax
from convnext_cli.runs.folder import RunFolder
from convnext_cli.text import make_visible

IMAGES = 12  # of each kind
SIDE = 176  # px, twice what the page shows
QUALITY = 80  # JPEG; about 6 kB a picture


@dataclass(frozen=True, kw_only=True, slots=True)
class Picture:
    """One image of the gallery."""

    path: str
    true: str
    predicted: str
    probability: float
    """Of the predicted class."""
    image: str
    """A data URI."""
    heat: str
    """The same with the heat map over it."""


def pick_images(found: Evaluation) -> tuple[list[int], list[int]]:
    """The worst mistakes (wrong and sure) and the least certain answers, as places in the evaluation's cases."""
    cases = found.evaluated
    temperature = found.calibration.temperature if found.calibration else 1.0
    confidence = np.exp(log_softmax(cases.logits / temperature)).max(axis=1)
    wrong = np.flatnonzero(cases.logits.argmax(axis=1) != cases.labels)
    worst = wrong[np.argsort(-confidence[wrong], kind="stable")][:IMAGES]
    unsure = np.argsort(confidence, kind="stable")[:IMAGES]
    return [int(i) for i in worst], [int(i) for i in unsure]


def draw_images(found: Evaluation, places: Sequence[int]) -> dict[int, Picture]:
    """Decodes cases again and draws where the model looked, by place. One whose file is gone since is left out."""
    if not places:
        return {}
    cases = found.evaluated
    index, model = cases.test_set.index, open_model(RunFolder(found.run), [])
    temperature = found.calibration.temperature if found.calibration else 1.0
    read = load_for_eval(index, model.preprocessing, cache=False)
    images: dict[int, Pixels] = {}

    def load(place: int) -> Pixels:
        images[place] = read(cases.test_set.rows[place])
        return images[place]

    def explain() -> Iterator[Outputs]:
        if isinstance(model, TorchClassifier):
            yield from model.classify_batches(places, load, heat=True)
        else:  # out of fold, each image has a model of its own
            for place in places:
                yield from model.choose(index, cases.test_set.rows[place]).classify_batches([place], load, heat=True)

    pictures = {}
    waiting = iter(places)
    for answers in explain():
        for heat, place in zip(answers.heat, waiting, strict=False):
            if place not in images:
                continue
            probabilities = np.exp(log_softmax(cases.logits[place : place + 1] / temperature))[0]
            pictures[place] = Picture(
                path=make_visible(index.paths[cases.test_set.rows[place]]),
                true=make_visible(cases.classes[cases.labels[place]]),
                predicted=make_visible(cases.classes[int(probabilities.argmax())]),
                probability=float(probabilities.max()),
                image=_encode(images[place]),
                heat=_encode(overlay_heat(images[place], heat)),
            )
    return pictures


def _encode(image: Pixels) -> str:
    picture = Image.fromarray(image)
    picture.thumbnail((SIDE, SIDE))
    data = io.BytesIO()
    picture.save(data, format="JPEG", quality=QUALITY)
    return f"data:image/jpeg;base64,{base64.b64encode(data.getvalue()).decode()}"
