"""What a model says of images, batch by batch, whatever runs it: torch or ONNX Runtime."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.encoding import find_name
from convnext_cli.data.index import Index
from convnext_cli.errors import DataError, ImageError, RunError
from convnext_cli.images.cache import ImageCache
from convnext_cli.images.decode import Pixels, decode_image
from convnext_cli.images.loaders import cut_batches, load_batches
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.images.transforms import transform_for_eval
from convnext_cli.machine import count_cpus
from convnext_cli.metrics.novelty import measure_pixels
from convnext_cli.progress import Progress, Steps

BATCH_SIZE = 32  # images per forward pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """What the model says of some images."""

    logits: NDArray[np.float32]
    """(N, K)."""
    features: NDArray[np.float32]
    """(N, D) before the classifier; of width 0 if not asked for."""
    statistics: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """(N, 6) of the prepared images' pixels, as `measure_pixels` gives them; empty if no features are asked for."""
    heat: NDArray[np.float32]
    """(N, h, w) what speaks for the predicted class at the last stage; of width 0 if not asked for."""
    probabilities: NDArray[np.float32] | None = None
    """(N, K) where the model itself gives them, after its temperature, as an exported file does."""
    novelty: NDArray[np.float32] | None = None
    """(N,) where the model itself tells how unlike its training images an image is, as an exported file may."""
    failed: dict[int, ImageError] = field(default_factory=dict)
    """The images, by their place in this batch, that could not be read; their rows mean nothing."""


class Classifier(ABC):
    """A model, ready to classify."""

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    cache: bool = True
    """Whether prepared images of an index are kept for the next time."""

    @abstractmethod
    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: bool) -> Outputs:
        """Asks the model about prepared images, (B, S, S, 3)."""

    def classify_batches(
        self, rows: Sequence[int], load: Callable[[int], Pixels], *, features: bool = False, heat: bool = False
    ) -> Iterator[Outputs]:
        """Ask the model, batch by batch.

        Args:
            rows: which images.
            load: gives a row's prepared image, (S, S, 3) uint8. Where it raises `ImageError`, the row has failed.
            features: whether to give the features before the classifier.
            heat: whether to explain the predicted class.

        Raises:
            RunError: the model's outputs are not finite.
        """
        failed: dict[int, ImageError] = {}

        def try_load(row: int) -> Pixels:
            try:
                return load(row)
            except ImageError as error:
                failed[row] = error
                return np.zeros((self.preprocessing.image_size, self.preprocessing.image_size, 3), np.uint8)

        for batch, images in load_batches(cut_batches(rows, BATCH_SIZE), try_load, threads=count_cpus()):
            told = self.run_batch(images, features=features, heat=heat)
            if not np.isfinite(told.logits).all():
                raise RunError("the model's outputs are not finite: its weights are damaged", "Give another run")
            if features:
                told = replace(told, statistics=measure_pixels(images))
            yield replace(told, failed={place: failed.pop(row) for place, row in enumerate(batch) if row in failed})

    def classify_rows(
        self, index: Index, rows: Sequence[int], *, features: bool = False, what: str = "evaluating"
    ) -> Steps[Outputs]:
        """Compute the outputs of rows of an index.

        Raises:
            DataError: there is no row.
            ImageError: an image cannot be read.
        """
        if not rows:
            raise DataError(f"no images to evaluate in {index.root}", "Give another folder or split")
        parts: list[Outputs] = []
        done = 0
        for answers in self.classify_batches(
            rows, load_for_eval(index, self.preprocessing, cache=self.cache), features=features
        ):
            for error in answers.failed.values():
                raise error
            parts.append(answers)
            done += len(answers.logits)
            yield Progress(done=done, total=len(rows), activity=what)
        return Outputs(
            logits=np.concatenate([part.logits for part in parts]),
            features=np.concatenate([part.features for part in parts]),
            statistics=np.concatenate([part.statistics for part in parts]),
            heat=np.empty((len(rows), 0), np.float32),
        )

    def label_rows(self, index: Index, rows: Sequence[int]) -> NDArray[np.int64]:
        """The true classes of rows of an index as this model numbers them, (N,).

        Raises:
            DataError: the index has a class that the run does not know.
        """
        places = {name: find_name(name, self.classes) for name in index.classes}
        unknown = [name for name, place in places.items() if place is None]
        if unknown:
            raise DataError(
                f"{index.root} has classes that the run does not know: {', '.join(unknown[:5])}",
                f"Name its folders as in training: {', '.join(self.classes[:10])}",
            )
        number = list(places.values())
        return np.array([number[index.labels[row]] for row in rows], np.int64)


def load_for_eval(index: Index, preprocessing: Preprocessing, *, cache: bool) -> Callable[[int], Pixels]:
    """A function that gives a row's image, (S, S, 3) uint8, as evaluation sees it. `cache` keeps it for next time."""
    pictures = open_for_eval(index, preprocessing, cache=cache)
    return lambda row: pictures.read(index.paths[row])


def open_for_eval(index: Index, preprocessing: Preprocessing, *, cache: bool) -> ImageCache:
    """An index's images, (S, S, 3) uint8, as evaluation sees them. `cache` keeps them for next time."""
    crop = f"{preprocessing.crop_mode} crop of {preprocessing.crop_pct}"
    return ImageCache(
        index.root,
        f"evaluation at {preprocessing.image_size} px, {crop}, {preprocessing.interpolation}",
        lambda path: transform_for_eval(decode_image(path), preprocessing),
        keep=cache,
    )
