"""The classifier interface: outputs for images, batch by batch, with torch or ONNX Runtime."""

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.index import Index
from convnext_cli.encoding import find_name
from convnext_cli.errors import DataError, ImageError, RunError, UsageError, suggest
from convnext_cli.images.cache import open_for_eval
from convnext_cli.images.loaders import cut_batches, load_batches
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.images.raster import Pixels
from convnext_cli.images.transforms import pad_image
from convnext_cli.machine import count_cpus
from convnext_cli.metrics.drift import measure_corners
from convnext_cli.metrics.novelty import measure_pixels
from convnext_cli.progress import Progress, Steps
from convnext_cli.tasks.task import Targets, Task
from convnext_cli.text import format_count

BATCH_SIZE = 32  # images per forward pass
Heat = bool | tuple[int, ...]
"""The heat maps to compute: True for that of each image's most probable class; numbers for those of these classes."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Outputs:
    """Outputs of a model for N images."""

    logits: NDArray[np.float32]
    """(N, K)."""
    features: NDArray[np.float32]
    """(N, D), before the classifier; width 0 if not requested."""
    statistics: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """(N, 6) of the pixels, from `measure_pixels`; empty if features are not requested."""
    corners: NDArray[np.float32] = field(default_factory=lambda: np.empty((0, 0), np.float32))
    """(N, 4) detail of the corners, from `measure_corners`; empty if features are not requested."""
    heat: NDArray[np.float32]
    """(N, h, w) Grad-CAM at the last stage, or (N, M, h, w) of M classes; width 0 if not requested."""
    probabilities: NDArray[np.float32] | None = None
    """(N, K) scores, calibrated; only of an exported file, which computes them itself."""
    novelty: NDArray[np.float32] | None = None
    """(N,) OOD scores; only where the classifier computes them itself."""
    failed: dict[int, ImageError] = field(default_factory=dict)
    """Images that cannot be read, by their position in the batch; their rows are meaningless."""
    frames: frozenset[int] = frozenset()
    """Images that are one of several frames of their files, by their position in the batch."""


class Classifier(ABC):
    """A trained model that classifies images."""

    classes: tuple[str, ...]
    preprocessing: Preprocessing
    task: Task
    cache: bool = True
    """True if preprocessed images of an index are cached."""
    batch_size: int = BATCH_SIZE

    @abstractmethod
    def run_batch(self, images: NDArray[np.uint8], *, features: bool, heat: Heat) -> Outputs:
        """Return the outputs for preprocessed images, (B, H, W, 3)."""

    def classify_batches(
        self, rows: Sequence[int], load: Callable[[int], Pixels], *, features: bool = False, heat: Heat = False
    ) -> Iterator[Outputs]:
        """Yield the outputs of rows, batch by batch.

        `load` returns a row's preprocessed image, (H, W, 3) uint8. A row fails where it raises `ImageError`.

        Raises:
            RunError: the model's outputs are not finite.
        """
        failed: dict[int, ImageError] = {}

        def try_load(row: int) -> Pixels:
            try:
                return load(row)
            except ImageError as error:
                failed[row] = error
                return np.zeros((*self.preprocessing.size, 3), np.uint8)

        for batch, images in load_batches(cut_batches(rows, self.batch_size), try_load, threads=count_cpus()):
            outputs = self.run_batch(images, features=features, heat=heat)
            if not np.isfinite(outputs.logits).all():
                raise RunError(
                    "the model's outputs are not finite: its training diverged, or its weights are damaged",
                    "Train again with a lower --lr or a longer --warmup-epochs, or use another run",
                )
            if features:
                fill = self.preprocessing.fill
                outputs = replace(
                    outputs, statistics=measure_pixels(images, fill), corners=measure_corners(images, fill)
                )
            yield replace(outputs, failed={i: failed.pop(row) for i, row in enumerate(batch) if row in failed})

    def classify_rows(
        self, index: Index, rows: Sequence[int], *, features: bool = False, activity: str = "evaluating"
    ) -> Steps[Outputs]:
        """Return the outputs of rows of an index.

        Raises:
            DataError: there is no row.
            ImageError: an image cannot be read.
        """
        if not rows:
            raise DataError(f"no images to evaluate in {index.location}", "Choose another folder or split")
        parts: list[Outputs] = []
        done = 0
        load = load_for_eval(index, self.preprocessing, cache=self.cache)
        for outputs in self.classify_batches(rows, load, features=features):
            for error in outputs.failed.values():
                raise error
            parts.append(outputs)
            done += len(outputs.logits)
            yield Progress(done=done, total=len(rows), activity=activity)
        return Outputs(
            logits=np.concatenate([part.logits for part in parts]),
            features=np.concatenate([part.features for part in parts]),
            statistics=np.concatenate([part.statistics for part in parts]),
            corners=np.concatenate([part.corners for part in parts]),
            heat=np.empty((len(rows), 0), np.float32),
        )

    def read_targets(self, index: Index, rows: Sequence[int]) -> Targets:
        """Return the targets of rows of an index, as this model numbers its classes.

        Raises:
            DataError: the index has a class that the run does not know, or targets of another task.
        """
        source = index.location
        if type(index.task) is not type(self.task):
            raise DataError(
                f"{source} has {index.task.title}, and the run was trained on {self.task.title}",
                f"Give data with {self.task.title}",
            )
        positions = {name: find_name(name, self.classes) for name in index.classes}
        if self.task.is_continuous and index.table is None:  # class folders do not name the number
            positions = dict.fromkeys(positions, 0)
        images = (1,) * len(positions) if index.values else index.count_classes()  # an empty folder changes nothing
        unknown = [
            name for (name, position), n in zip(positions.items(), images, strict=True) if position is None and n
        ]
        if unknown:
            drop = "remove them from the table" if self.task.has_values else "leave out their images"
            raise DataError(
                f"{source} has {format_count(len(unknown), self.task.display.target_word)} that the run does not know: "
                f"{', '.join(unknown[:5])}",
                f"Name them as in training: {', '.join(self.classes[:10])}"
                + (f"; or {drop}" if len(unknown) < len(positions) else ""),
            )
        numbers = [position or 0 for position in positions.values()]
        return self.task.align(index.targets(rows), numbers, len(self.classes))


def load_for_eval(index: Index, preprocessing: Preprocessing, *, cache: bool) -> Callable[[int], Pixels]:
    """Return a function from a row to its image preprocessed for evaluation, (H, W, 3) uint8."""
    images = open_for_eval(index.root, preprocessing, cache=cache)
    return lambda row: pad_image(images.read(index.paths[row]), preprocessing)


def find_class(name: str, classes: tuple[str, ...], option: str, *, is_repeated: bool = True) -> int:
    """Return the number of a class that the user names in an option, which may be repeated or not.

    Raises:
        UsageError: the model has no such class.
    """
    position = find_name(name, classes)
    if position is None:
        remedy = f"{suggest(name, classes)}Known are {', '.join(classes[:20])}"
        if all(find_name(part.strip(), classes) is not None for part in name.split(",")):
            remedy = f"Give one class with {'each ' if is_repeated else ''}{option}"
        raise UsageError(f"unknown class {name!r} in {option}", remedy)
    return position
