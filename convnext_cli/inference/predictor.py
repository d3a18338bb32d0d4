"""A trained run at work."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from convnext_cli.data.cache import Pictures
from convnext_cli.data.decode import Pixels, decode_image
from convnext_cli.data.scan import Index
from convnext_cli.data.transforms import Preprocessing, transform_for_eval
from convnext_cli.errors import DataError, ImageError
from convnext_cli.inference.explain import map_heat, split_model
from convnext_cli.inference.forward import choose_device, forward_batches, make_views
from convnext_cli.models.build import load_model
from convnext_cli.models.fast import keep_memory, speed_up
from convnext_cli.progress import Progress
from convnext_cli.recipes.machine import count_cpus
from convnext_cli.recipes.plan import read_plan
from convnext_cli.runs import RunFolder

BATCH_SIZE = 32  # images per forward pass


@dataclass(frozen=True, kw_only=True, slots=True)
class Answers:
    """What the model says of some images."""

    logits: NDArray[np.float32]
    """(N, K)."""
    features: NDArray[np.float32]
    """(N, D) before the classifier; of width 0 if not asked for."""
    heat: NDArray[np.float32]
    """(N, h, w) what speaks for the predicted class at the last stage; of width 0 if not asked for."""
    failed: dict[int, ImageError] = field(default_factory=dict)
    """The images, by their place in this batch, that could not be read; their rows mean nothing."""


class Predictor:
    """A run's model, ready to classify.

    Args:
        run: the run folder.
        device: where to run; the GPU where there is one.
        tta: average over the shifted views of each image, mirrored too where training mirrored.
        cache: keep prepared images of an index for the next time.

    Raises:
        RunError: the run cannot be read.
    """

    def __init__(self, run: Path, device: torch.device | None = None, *, tta: bool = False, cache: bool = True) -> None:
        self.run = RunFolder(run)
        self.device = device or choose_device()
        model, self.classes, self.how = load_model(run)
        self.model: nn.Module = model.to(self.device).to(memory_format=torch.channels_last)
        if self.device.type == "cpu":
            keep_memory()
            speed_up(self.model)
        self.tta, self.cache = tta, cache
        self.mirror = tta and self.run.plan.exists() and read_plan(self.run.plan)[2].get("hflip", 0) > 0

    def answer(
        self, rows: Sequence[int], load: Callable[[int], Pixels], *, features: bool = False, heat: bool = False
    ) -> Iterator[Answers]:
        """Asks the model, batch by batch.

        Args:
            rows: which images.
            load: gives a row's prepared image, (S, S, 3) uint8. Where it raises `ImageError`, the row has failed.
            features: whether to give the features before the classifier.
            heat: whether to explain the predicted class.
        """
        failed: dict[int, ImageError] = {}

        def try_load(row: int) -> Pixels:
            try:
                return load(row)
            except ImageError as error:
                failed[row] = error
                return np.zeros((self.how.image_size, self.how.image_size, 3), np.uint8)

        shape: list[tuple[int, ...]] = []

        def ask(inputs: Tensor) -> Tensor:
            """Logits, features and heat side by side, (B, K + D + hw)."""
            places, vectors, logits = split_model(self.model, inputs)
            if self.tta:
                views = make_views(inputs, mirror=self.mirror)[1:]  # the first is the image as it is
                logits = torch.stack([logits, *(self.model(view) for view in views)]).mean(dim=0)
            parts = [logits, vectors if features else vectors[:, :0]]
            heated = map_heat(self.model, places, logits.argmax(dim=1)) if heat else places[:, 0, :0]
            shape[:] = [(parts[1].shape[1],), tuple(heated.shape[1:])]
            return torch.cat([*parts, heated.flatten(1)], dim=1)

        batches = forward_batches(
            ask, rows, try_load, self.how, device=self.device, batch_size=BATCH_SIZE, threads=count_cpus()
        )
        for batch, told in batches:
            width = len(self.classes)
            (depth,), places = shape
            values = told.numpy()
            yield Answers(
                logits=values[:, :width],
                features=values[:, width : width + depth],
                heat=values[:, width + depth :].reshape(len(batch), *places),
                failed={place: failed.pop(row) for place, row in enumerate(batch) if row in failed},
            )

    def answer_all(
        self, index: Index, rows: Sequence[int], *, features: bool = False, what: str = "evaluating"
    ) -> Iterator[Progress | Answers]:
        """Asks the model about rows of an index: yields progress, and all answers at once at the end.

        Raises:
            DataError: there is no row.
            ImageError: an image cannot be read.
        """
        if not rows:
            raise DataError(f"no images to evaluate in {index.root}", "Give another folder or split")
        parts: list[Answers] = []
        done = 0
        for answers in self.answer(rows, load_for_eval(index, self.how, cache=self.cache), features=features):
            for error in answers.failed.values():
                raise error
            parts.append(answers)
            done += len(answers.logits)
            yield Progress(done=done, total=len(rows), what=what)
        yield Answers(
            logits=np.concatenate([part.logits for part in parts]),
            features=np.concatenate([part.features for part in parts]),
            heat=np.empty((len(rows), 0), np.float32),
        )

    def label_rows(self, index: Index, rows: Sequence[int]) -> NDArray[np.int64]:
        """The true classes of rows of an index as this model numbers them, (N,).

        Raises:
            DataError: the index has a class that the run does not know.
        """
        unknown = [name for name in index.classes if name not in self.classes]
        if unknown:
            raise DataError(
                f"{index.root} has classes that the run does not know: {', '.join(unknown[:5])}",
                f"Name its folders as in training: {', '.join(self.classes[:10])}",
            )
        number = [self.classes.index(name) for name in index.classes]
        return np.array([number[index.labels[row]] for row in rows], np.int64)


def load_for_eval(index: Index, how: Preprocessing, *, cache: bool) -> Callable[[int], Pixels]:
    """A function that gives a row's image, (S, S, 3) uint8, as evaluation sees it. `cache` keeps it for next time."""
    crop = f"{how.crop_mode} crop of {how.crop_pct}"
    pictures = Pictures(
        index.root,
        f"evaluation at {how.image_size} px, {crop}, {how.interpolation}",
        lambda path: transform_for_eval(decode_image(path), how),
        keep=cache,
    )
    return lambda row: pictures.read(index.paths[row])
