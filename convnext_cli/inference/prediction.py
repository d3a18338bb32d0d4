"""What a run says of new images: probabilities, decisions, whether it should say anything, and where it looked."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
from PIL import Image

from convnext_cli.data.decode import Pixels, decode_image
from convnext_cli.data.transforms import transform_for_eval
from convnext_cli.errors import ImageError, UsageError
from convnext_cli.evaluation.figures import log_softmax
from convnext_cli.evaluation.novelty import score_novelty
from convnext_cli.files import check_outside, replace_file
from convnext_cli.inference.explain import overlay_heat
from convnext_cli.inference.fitting import Calibration, read_bank, read_calibration
from convnext_cli.inference.predictor import Predictor
from convnext_cli.runs import find_newest_run


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a model says of one image. `error` is set, and the rest empty, where the image cannot be read."""

    path: Path
    classes: tuple[str, ...] = ()
    """All class names, the most probable first."""
    probabilities: tuple[float, ...] = ()
    decisions: dict[str, bool] = field(default_factory=dict)
    """For each target that the run keeps, whether the image is at or above its threshold."""
    novelty: float | None = None
    """How unlike the training images it is; None if not asked for."""
    abstained: bool | None = None
    """Whether the novelty is above the run's threshold, so that the answer should not be used."""
    explanation: Path | None = None
    """The picture of where the model looked, if asked for."""
    error: ImageError | None = None


@dataclass(frozen=True, kw_only=True, slots=True)
class Wishes:
    """What to tell beside the classes."""

    raw: bool = False
    """The model's own probabilities, without the temperature and the thresholds."""
    abstain: bool = False
    explain: Path | None = None
    """A folder for pictures of where the model looked."""
    tta: bool = False


def predict(
    images: Sequence[Path | str] | Path | str,
    run: Path | str | None = None,
    *,
    raw: bool = False,
    abstain: bool = False,
    explain: Path | str | None = None,
    tta: bool = False,
) -> list[Prediction]:
    """Classifies one or several image files with a run.

    Args:
        images: paths of image files.
        run: the run folder; None takes the newest under `runs/`.
        raw: leave out the temperature and the thresholds that the run keeps.
        abstain: flag images that are unlike the training images.
        explain: a folder to draw into where the model looked.
        tta: average over shifted views.

    Raises:
        RunError: the run cannot be read. A file that cannot be read is no failure: its prediction has `error` set.
        UsageError: the run cannot tell what is unlike its images.
    """
    folder = find_newest_run().path if run is None else Path(run)
    paths = [Path(image) for image in ([images] if isinstance(images, Path | str) else images)]
    wishes = Wishes(raw=raw, abstain=abstain, explain=Path(explain) if explain else None, tta=tta)
    return list(predict_steps(folder, paths, wishes))


def predict_steps(run: Path, paths: Sequence[Path], wishes: Wishes) -> Iterator[Prediction]:
    """Does what `predict` does, image by image, in constant memory."""
    predictor = Predictor(run, tta=wishes.tta)
    calibration = read_calibration(predictor.run)
    bank, threshold = _find_bank(predictor, calibration) if wishes.abstain else (None, None)
    if wishes.explain is not None:
        _make_folder(wishes.explain, paths)
    use = None if wishes.raw else calibration

    def load(row: int) -> Pixels:
        return transform_for_eval(decode_image(paths[row]), predictor.how)

    row = 0
    answers = predictor.answer(range(len(paths)), load, features=bank is not None, heat=wishes.explain is not None)
    for part in answers:
        probabilities = np.exp(log_softmax(part.logits / (use.temperature if use else 1.0)))
        novelty = None if bank is None else score_novelty(part.features, bank)
        for place in range(len(part.logits)):
            path = paths[row]
            row += 1
            if error := part.failed.get(place):
                yield Prediction(path=path, error=error)
                continue
            mine = probabilities[place]
            order = np.argsort(-mine, kind="stable")
            picture = None
            if wishes.explain is not None:
                picture = _draw(wishes.explain / f"{row:05d}-{path.stem[:80]}.png", load(row - 1), part.heat[place])
            yield Prediction(
                path=path,
                classes=tuple(predictor.classes[k] for k in order),
                probabilities=tuple(float(mine[k]) for k in order),
                decisions=_decide(use, predictor.classes, mine),
                novelty=None if novelty is None else float(novelty[place]),
                abstained=None if novelty is None or threshold is None else bool(novelty[place] > threshold),
                explanation=picture,
            )


def _decide(calibration: Calibration | None, classes: tuple[str, ...], probabilities: np.ndarray) -> dict[str, bool]:
    thresholds = calibration.thresholds if calibration else ()
    return {str(t.target): bool(probabilities[classes.index(t.target.name)] >= t.threshold) for t in thresholds}


def _find_bank(predictor: Predictor, calibration: Calibration | None) -> tuple[np.ndarray, float]:
    if calibration is None or calibration.novelty_threshold is None:
        why = calibration.weak if calibration else "it was never calibrated"
        raise UsageError(
            f"{predictor.run.path} cannot tell what is unlike its images: {why}",
            "Run `convnext eval` on it, fine-tune with more validation images, or leave out --abstain",
        )
    return read_bank(predictor.run), calibration.novelty_threshold


def _make_folder(folder: Path, paths: Sequence[Path]) -> None:
    """Makes the folder for pictures, which must not be one that images are read from."""
    for parent in {path.resolve().parent for path in paths}:
        check_outside(folder, parent, option="--explain")
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}", "Choose another --explain") from error


def _draw(path: Path, image: Pixels, heat: np.ndarray) -> Path:
    with replace_file(path) as temporary:
        Image.fromarray(overlay_heat(image, heat)).save(temporary, format="PNG")
    return path
