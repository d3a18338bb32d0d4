"""A trained run at work."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import nn

from convnext_cli.data.decode import Pixels, decode_image
from convnext_cli.data.scan import Index
from convnext_cli.data.transforms import Preprocessing, transform_for_eval
from convnext_cli.errors import DataError, ImageError
from convnext_cli.evaluation.metrics import Metrics, compute_metrics, log_softmax
from convnext_cli.inference.forward import choose_device, choose_memory_format, forward_batches
from convnext_cli.models.build import load_model
from convnext_cli.recipes.machine import count_cpus
from convnext_cli.runs import find_newest_run

BATCH_SIZE = 32  # images per forward pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a model says of one image. `error` is set, and the rest empty, where the image cannot be read."""

    path: Path
    classes: tuple[str, ...] = ()
    """All class names, the most probable first."""
    probabilities: tuple[float, ...] = ()
    error: ImageError | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Progress:
    """How many of how many images are done."""

    done: int
    total: int


class Predictor:
    """A run's model, ready to classify.

    Args:
        run: the run folder.
        device: where to run; the GPU where there is one.

    Raises:
        RunError: the run cannot be read.
    """

    def __init__(self, run: Path, device: torch.device | None = None) -> None:
        self.device = device or choose_device()
        model, self.classes, self.how = load_model(run)
        self.model: nn.Module = model.to(self.device).to(memory_format=choose_memory_format(self.device))

    def predict(self, paths: Sequence[Path]) -> Iterator[Prediction]:
        """Classifies image files, in order. A file that cannot be read gives a prediction with its error."""
        failed: dict[int, ImageError] = {}

        def load(row: int) -> Pixels:
            try:
                return transform_for_eval(decode_image(paths[row]), self.how)
            except ImageError as error:
                failed[row] = error
                return np.zeros((self.how.image_size, self.how.image_size, 3), np.uint8)

        for rows, logits in self._forward(range(len(paths)), load):
            for row, probabilities in zip(rows, np.exp(log_softmax(logits)), strict=True):
                if error := failed.pop(row, None):
                    yield Prediction(path=paths[row], error=error)
                    continue
                order = np.argsort(-probabilities, kind="stable")
                yield Prediction(
                    path=paths[row],
                    classes=tuple(self.classes[k] for k in order),
                    probabilities=tuple(float(probabilities[k]) for k in order),
                )

    def evaluate(self, index: Index, rows: Sequence[int]) -> Iterator[Progress | Metrics]:
        """Classifies rows of an index: yields progress, and the metrics last.

        Raises:
            DataError: the index has a class that the run does not know, or no row.
            ImageError: an image cannot be read.
        """
        unknown = [name for name in index.classes if name not in self.classes]
        if unknown:
            raise DataError(
                f"{index.root} has classes that the run does not know: {', '.join(unknown[:5])}",
                f"Name its folders as in training: {', '.join(self.classes[:10])}",
            )
        if not rows:
            raise DataError(f"no images to evaluate in {index.root}", "Give another folder or split")
        labels = np.array([self.classes.index(index.classes[index.labels[row]]) for row in rows])
        load = load_for_eval(index, self.how)
        parts = []
        done = 0
        for batch, logits in self._forward(rows, load):
            parts.append(logits)
            done += len(batch)
            yield Progress(done=done, total=len(rows))
        yield compute_metrics(np.concatenate(parts), labels, self.classes)

    def _forward(
        self, rows: Sequence[int], load: Callable[[int], Pixels]
    ) -> Iterator[tuple[list[int], NDArray[np.float32]]]:
        batches = forward_batches(
            self.model, rows, load, self.how, device=self.device, batch_size=BATCH_SIZE, threads=count_cpus()
        )
        for batch, logits in batches:
            yield batch, logits.numpy()


def predict(images: Sequence[Path | str] | Path | str, run: Path | str | None = None) -> list[Prediction]:
    """Classifies one or several image files with a run; None takes the newest under `runs/`.

    Raises:
        RunError: the run cannot be read. A file that cannot be read is no failure: its prediction has `error` set.
    """
    folder = find_newest_run().path if run is None else Path(run)
    paths = [images] if isinstance(images, Path | str) else images
    return list(Predictor(folder).predict([Path(image) for image in paths]))


def load_for_eval(index: Index, how: Preprocessing) -> Callable[[int], Pixels]:
    """A function that gives a row's image, (S, S, 3) uint8, as evaluation sees it."""
    return lambda row: transform_for_eval(decode_image(index.root / index.paths[row]), how)
