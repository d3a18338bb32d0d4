"""What a run says of new images: probabilities, decisions, whether it should say anything, and where it looked."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from convnext_cli.errors import ImageError, RunError, UsageError, check_word
from convnext_cli.files import check_output, check_outside, replace_output, resolve_links
from convnext_cli.images.decode import Pixels
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.images.transforms import locate_crop, transform_for_eval
from convnext_cli.inference.calibration import Calibration, describe_unreliable_ood, read_calibration, read_novelty
from convnext_cli.inference.classifier import Classifier
from convnext_cli.inference.ensemble import Ensemble, Member, get_temperature
from convnext_cli.inference.onnx_classifier import ONNX_SUFFIX, OnnxClassifier, find_onnx_classifier
from convnext_cli.inference.request import ENGINES, PredictRequest
from convnext_cli.inference.sources import ImageInput, Source, list_sources
from convnext_cli.machine import has_gpu
from convnext_cli.metrics.formulas import log_softmax
from convnext_cli.progress import OnEvent, Progress, Steps, finish
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder, find_newest_run, open_folder
from convnext_cli.text import quote

MAX_STEM = 200  # bytes; a file's name has room for 255
GPU_FROM = 200  # images from which on a GPU is worth the seconds that torch takes to start


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """What a model says of one image. `error` is set, and the rest empty, where the image cannot be read."""

    path: Path | None
    """The file; None for an image that was given in memory."""
    index: int = 0
    """Place of the input among those given, from 0."""
    item: int | None = None
    """Place in an (N, H, W, 3) array, from 0; None for other inputs."""
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


def predict(
    images: Iterable[ImageInput] | ImageInput,
    run: Path | str | None = None,
    *,
    raw: bool = False,
    abstain: bool = False,
    explain: Path | str | None = None,
    overwrite: bool = False,
    tta: bool = False,
    engine: str = "auto",
    on_event: OnEvent = None,
) -> list[Prediction]:
    """Classify one image or several with a run: classes, probabilities and decisions for each.

    Args:
        images: one or a sequence of paths, PIL images and NumPy arrays, mixed as you like. Arrays are uint8, 0 to 255:
            (H, W) grey, (H, W, 3) RGB, or (N, H, W, 3) for N images. A PIL image is read as its file would be: turned
            upright by its EXIF, laid on white where transparent.
        run: the run folder, or an exported ONNX file; None takes the newest run under `runs/`. With a
            cross-validation's folder, probabilities are the mean over its models.
        raw: leave out the temperature and the thresholds that the run keeps.
        abstain: flag images that are unlike the training images.
        explain: a folder to draw into where the model looked, outside of the data.
        overwrite: replace pictures that are in `explain` already.
        tta: average over shifted views.
        engine: `onnx` (ONNX Runtime, without torch), `torch`, or `auto`: ONNX Runtime where the run has a file for it
            that holds its weights, and nothing is asked for that needs torch (`explain`, `tta`).
        on_event: called with each `Progress`.

    Returns:
        A `Prediction` for each image, in their order. `index` says which input it is of, and `item` which image of an
        (N, H, W, 3) array.

    Raises:
        RunError: the run cannot be read. An image that cannot be read is no failure: its prediction has `error` set.
        UsageError: an input is neither path nor image, the run cannot tell what is unlike its images, or the engine
            cannot do what is asked.
    """
    folder = find_newest_run().path if run is None else Path(run)
    sources = list_sources(images)
    request = PredictRequest(
        raw=raw,
        abstain=abstain,
        explain=Path(explain) if explain else None,
        overwrite=overwrite,
        tta=tta,
        engine=engine,
    )

    def predict_all() -> Steps[list[Prediction]]:
        predictions: list[Prediction] = []
        for prediction in _predict(folder, sources, request):
            predictions.append(prediction)
            yield Progress(done=len(predictions), total=len(sources), activity="predicting")
        return predictions

    return finish(predict_all(), on_event)


def list_run_notes(run: Path, request: PredictRequest) -> list[str]:
    """Return a sentence for each thing that weakens a run's predictions: a missed target, an unreliable OOD score.

    A target is missed where the last evaluation on a test split measured less.
    """
    folder = RunFolder(run)
    if not run.is_dir() or isinstance(open_folder(run), FoldsFolder):
        return []
    tests = folder.read_tests()
    measured: dict[str, float | None] = tests[-1].get("targets", {}) if tests and not request.raw else {}
    calibration = read_calibration(folder) if measured or request.abstain else None
    weak = describe_unreliable_ood(calibration) if request.abstain and calibration else ""
    return [weak] * bool(weak) + [
        f"target {t.target} was not met on the test split: {t.target.figure} {100 * value:.1f}%"
        for t in (calibration.thresholds if calibration else ())
        if (value := measured.get(str(t.target))) is not None and value < t.target.value
    ]


def predict_steps(
    run: Path, images: Iterable[ImageInput] | ImageInput, request: PredictRequest
) -> Iterator[Prediction]:
    """Do what `predict` does, image by image, in constant memory."""
    yield from _predict(run, list_sources(images), request)


def _predict(run: Path, sources: Sequence[Source], request: PredictRequest) -> Iterator[Prediction]:
    model: Classifier
    if run.suffix == ONNX_SUFFIX and not run.is_dir():
        model = file = _open_file(run, request)
        calibration, novelty_model = file.about.calibration, None
        threshold = _find_threshold(run, calibration) if request.abstain else None
    elif isinstance(folder := open_folder(run), FoldsFolder):
        model, threshold = _open_folds(folder, request, len(sources))
        calibration = novelty_model = None
    else:
        model, calibration = open_run(run, request, len(sources)), read_calibration(RunFolder(run))
        threshold = _find_threshold(run, calibration) if request.abstain else None
        novelty_model = read_novelty(RunFolder(run)) if request.abstain else None
    if request.explain is not None:
        _make_folder(run, sources, request)
    use = None if request.raw else calibration

    def load(row: int) -> Pixels:
        return transform_for_eval(sources[row].read(), model.preprocessing)

    row = 0
    answers = model.classify_batches(
        range(len(sources)), load, features=novelty_model is not None, heat=request.explain is not None
    )
    for part in answers:
        probabilities = np.exp(log_softmax(part.logits / (use.temperature if use else 1.0)))
        novelty = novelty_model.score(part.features, part.statistics) if novelty_model else part.novelty
        for place in range(len(part.logits)):
            source = sources[row]
            row += 1
            if error := part.failed.get(place):
                yield Prediction(path=source.path, index=source.index, item=source.item, error=error)
                continue
            mine = probabilities[place]
            order = np.argsort(-mine, kind="stable")
            picture = None
            if request.explain is not None:
                caption = "   ".join(f"{model.classes[k]} {100 * mine[k]:.1f}%" for k in order[:3])
                caption += f"   (right: Grad-CAM of {model.classes[order[0]]})"
                picture = request.explain / _name_picture(row, source)
                _draw(picture, source, part.heat[place], model.preprocessing, caption, overwrite=request.overwrite)
            yield Prediction(
                path=source.path,
                index=source.index,
                item=source.item,
                classes=tuple(model.classes[k] for k in order),
                probabilities=tuple(float(mine[k]) for k in order),
                decisions=_decide(use, model.classes, mine),
                novelty=None if threshold is None or novelty is None else float(novelty[place]),
                abstained=None if threshold is None or novelty is None else bool(novelty[place] > threshold),
                explanation=picture,
            )


def _decide(calibration: Calibration | None, classes: tuple[str, ...], probabilities: np.ndarray) -> dict[str, bool]:
    thresholds = calibration.thresholds if calibration else ()
    return {str(t.target): bool(probabilities[classes.index(t.target.name)] >= t.threshold) for t in thresholds}


def open_run(run: Path, request: PredictRequest, images: int) -> Classifier:
    """The model of a run folder: its ONNX file where that serves, else torch.

    Args:
        run: the run folder.
        request: what to tell.
        images: how many there are; with many of them a GPU is worth torch's start.

    Raises:
        UsageError: the engine that is wished for cannot do it.
        RunError: the run cannot be read.
    """
    check_word("engine", request.engine, ENGINES)
    if request.engine != "torch":
        why = _needs_torch(request)
        if not why and request.engine == "auto" and images >= GPU_FROM and has_gpu():
            why = "the GPU is faster"
        found = why or find_onnx_classifier(RunFolder(run))
        if isinstance(found, OnnxClassifier):
            return found
        if request.engine == "onnx":
            raise UsageError(
                f"ONNX Runtime cannot do it: {found}", f"Use --engine auto, or `convnext export {quote(run)}`"
            )

    from convnext_cli.inference.torch_classifier import TorchClassifier  # torch: seconds

    return TorchClassifier(run, tta=request.tta)


def _open_file(path: Path, request: PredictRequest) -> OnnxClassifier:
    check_word("engine", request.engine, ENGINES)
    if why := "--engine torch needs torch" if request.engine == "torch" else _needs_torch(request):
        raise UsageError(f"{path} cannot do it: {why}", "Give the run folder")
    return OnnxClassifier(path)


def _open_folds(folder: FoldsFolder, request: PredictRequest, images: int) -> tuple[Ensemble, float | None]:
    """A cross-validation's models, and the mean of their thresholds of novelty, which is held against the mean score.

    The folds' thresholds of probability are left out: they hold for one model's probabilities, not for their mean.
    """
    runs = folder.list_runs()
    found = [read_calibration(run) for run in runs]
    thresholds = [_find_threshold(run.path, c) for run, c in zip(runs, found, strict=True)] if request.abstain else []
    members = [
        Member(
            model=open_run(run.path, request, images),
            temperature=1.0 if request.raw else get_temperature(calibration),
            novelty=read_novelty(run) if request.abstain else None,
        )
        for run, calibration in zip(runs, found, strict=True)
    ]
    return Ensemble(folder, members), float(np.mean(thresholds)) if thresholds else None


def _needs_torch(request: PredictRequest) -> str:
    return "--explain needs torch" if request.explain is not None else "--tta needs torch" if request.tta else ""


def _find_threshold(run: Path, calibration: Calibration | None) -> float:
    if calibration is None or calibration.novelty_threshold is None:
        why = calibration.weak if calibration else "it was never calibrated"
        raise UsageError(
            f"{run} cannot tell what is unlike its images: {why}",
            "Run `convnext eval` on it, fine-tune with more validation images, or leave out --abstain",
        )
    return calibration.novelty_threshold


def _make_folder(run: Path, sources: Sequence[Source], request: PredictRequest) -> None:
    """Make the folder for pictures, which must not lie in the data and not hold pictures of these names.

    The data are the run's own, the folders that the images lie in, and the folder that several of these lie in.

    Raises:
        UsageError: it does.
    """
    from convnext_cli.data.index import check_outside_data

    folder = request.explain
    assert folder is not None
    parents = sorted(
        {resolve_links(path).parent for path in (source.path for source in sources) if path and os.path.lexists(path)}
    )
    for data in (*parents, *_find_data_folder(parents)):
        check_outside(folder, data, option="--explain")
    with suppress(RunError):  # a file, or a run whose data are not known
        check_outside_data(folder, RunFolder(run).read_split(), option="--explain")
    for row, source in enumerate(sources, start=1):
        picture = folder / _name_picture(row, source)
        if os.path.lexists(picture):
            check_output(picture, "--explain", overwrite=request.overwrite)
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise UsageError(f"cannot write {folder}: {error.strerror}", "Choose another --explain") from error


def _find_data_folder(parents: Sequence[Path]) -> list[Path]:
    """Return the folder above class folders, or above splits with class folders; none where they lie farther apart."""
    if len(parents) < 2:
        return []
    above = Path(os.path.commonpath(parents))
    is_data = all(len(parent.relative_to(above).parts) <= 2 for parent in parents)  # <class>, or <split>/<class>
    return [above] if is_data and above != Path(above.anchor) else []


def _name_picture(row: int, source: Source) -> str:
    stem = source.stem.encode("utf-8", "surrogateescape")[:MAX_STEM].decode("utf-8", "ignore")
    return f"{row:05d}-{stem}.png"


def _draw(
    output: Path, source: Source, heat: np.ndarray, preprocessing: Preprocessing, caption: str, *, overwrite: bool
) -> None:
    from convnext_cli.inference.explain import draw_explanation  # torch: whoever explains has it by now

    image = source.read()
    drawn = draw_explanation(image, heat, locate_crop(image.shape[1], image.shape[0], preprocessing), caption)
    with replace_output(output, "--explain", overwrite=overwrite) as temporary:
        drawn.save(temporary, format="PNG")
