"""Prediction for new images: probabilities, decisions, abstention and heat maps."""

import os
from collections.abc import Iterable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass, field, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.index import check_outside_data
from convnext_cli.errors import ImageError, RunError, UsageError, check_word
from convnext_cli.files import check_output, check_outside, replace_output, resolve_links
from convnext_cli.images.decode import Pixels
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.images.transforms import locate_frame, transform_for_eval
from convnext_cli.inference.calibration import (
    Calibration,
    describe_unreliable_ood,
    find_class,
    load_calibration,
    read_calibration,
    read_novelty,
)
from convnext_cli.inference.classifier import Classifier, Heat, Outputs
from convnext_cli.inference.ensemble import Ensemble, Member
from convnext_cli.inference.onnx_classifier import ONNX_SUFFIX, OnnxClassifier, find_onnx_classifier
from convnext_cli.inference.operating_points import find_missed
from convnext_cli.inference.pooling import Pooling, name_groups, open_poolable, open_pooling, read_pooling
from convnext_cli.inference.request import ENGINES, PredictRequest
from convnext_cli.inference.sources import ImageInput, Source, list_sources
from convnext_cli.machine import has_gpu
from convnext_cli.metrics.novelty import NoveltyModel
from convnext_cli.metrics.thresholds import Threshold, describe_unreachable
from convnext_cli.options import make_request
from convnext_cli.progress import OnEvent, Progress, Steps, finish
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder, find_newest_run, open_folder
from convnext_cli.tasks.task import Outcome, Task
from convnext_cli.text import quote

CAPTION_CLASSES = 3  # in the caption of a heat map
MAX_MAPS = 6  # side by side in a picture; --explain-class draws any others
MAX_STEM = 200  # bytes; a file name has room for 255
GPU_FROM = 200  # images from which on a GPU outweighs the seconds that torch takes to start


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction:
    """Prediction for one image, or for one group. If no image can be read, `error` is set and the rest is empty."""

    path: Path | None
    """The file; None for an image in memory, and for a group."""
    index: int = 0
    """Position of the input, from 0."""
    item: int | None = None
    """Position in an (N, H, W, 3) array, from 0; None for other inputs."""
    task: Task | None = None
    """The task of the run; None if the image cannot be read."""
    outcome: Outcome = field(default_factory=Outcome)
    """The model's prediction for the image."""
    decisions: dict[str, bool] = field(default_factory=dict)
    """For each target of the run, True if the probability is at or above its threshold."""
    missed_targets: dict[str, str] = field(default_factory=dict)
    """Targets of the run that the test split did not meet, with what it reached: `sensitivity 91.2%`."""
    novelty: float | None = None
    """OOD score; None if not requested."""
    abstained: bool | None = None
    """True if the OOD score is above the run's threshold: the prediction should not be used."""
    explanation: Path | None = None
    """The heat map, if requested."""
    error: ImageError | None = None
    group: str | None = None
    """Name of the group; None for a single image."""
    images: int = 1
    """Number of images that the prediction is pooled from."""
    unreadable: tuple[ImageError, ...] = ()
    """Of the group's images, those that cannot be read."""

    @property
    def classes(self) -> tuple[str, ...]:
        """All class or label names, the most probable first."""
        return self.outcome.classes

    @property
    def probabilities(self) -> tuple[float, ...]:
        """The probabilities of `classes`."""
        return self.outcome.probabilities

    @property
    def labels(self) -> tuple[str, ...] | None:
        """The predicted labels, the most probable first; None where each image has exactly one class."""
        return self.outcome.labels

    @property
    def value(self) -> float | None:
        """The predicted number, or the mean grade; None for classes and labels."""
        return self.outcome.value

    @property
    def interval(self) -> tuple[float, float] | None:
        """The 90% prediction interval of `value`; None where there is none."""
        return self.outcome.interval

    @property
    def inputs(self) -> int:
        """The number of input images, readable or not."""
        return 1 if self.group is None else self.images + len(self.unreadable)


class PredictOptions(TypedDict, total=False):
    """Options of `predict`, for type checkers and editors."""

    raw: bool
    calibration: Path | str | None
    abstain: bool
    explain: Path | str | None
    explain_class: Sequence[str]
    overwrite: bool
    tta: bool
    engine: str
    per: Literal["image", "group"]
    group_from: str


def predict(
    images: Iterable[ImageInput] | ImageInput,
    run: Path | str | None = None,
    *,
    on_event: OnEvent = None,
    **options: Unpack[PredictOptions],
) -> list[Prediction]:
    """Classify one image or several with a run: classes, probabilities and decisions for each.

    Args:
        images: one or several paths, PIL images and NumPy arrays, in any mixture. Arrays are uint8, 0 to 255: (H, W)
            grey, (H, W, 3) RGB, or (N, H, W, 3) for N images. A PIL image is read like its file: turned upright by
            its EXIF orientation, transparent pixels composited on white.
        run: the run folder, or an exported ONNX file; None takes the newest run under `runs/`. For a cross-validation,
            probabilities are the mean over its models.
        on_event: called with each `Progress`.
        **options: `raw`, leave out the run's temperature and thresholds; `calibration`, a file of `evaluate`'s
            `save_calibration` to use in their place; `abstain`, flag images that are out-of-distribution (OOD);
            `explain`, a folder for Grad-CAM heat maps, outside of the data; `explain_class`,
            the classes or labels to explain, whatever is predicted; `overwrite`, replace existing heat maps there;
            `tta`, test-time augmentation; `engine`, `onnx` (ONNX Runtime, without torch), `torch`, or `auto` (default):
            ONNX Runtime where the run has an up-to-date `model.onnx` and no other option needs torch (`explain`,
            `tta`); `per`, `group` for one prediction for each group (patient) of image files; `group_from`, the source
            of the groups.

    Returns:
        A `Prediction` for each image, in their order. `index` is the input that it is of, and `item` the image of an
        (N, H, W, 3) array. With `per="group"` one for each group, in the order of their first images.

    Raises:
        RunError: the run cannot be read. An image that cannot be read is no error: its prediction has `error` set.
        UsageError: an input is neither path nor image, the run has no OOD score, or the engine does not support an
            option.
    """
    folder = find_newest_run().path if run is None else Path(run)
    sources = list_sources(images)
    request = make_request(PredictRequest, {**options, "explain": options.get("explain") or None})

    def predict_all() -> Steps[list[Prediction]]:
        predictions: list[Prediction] = []
        done = 0
        for prediction in _predict(folder, sources, request):
            predictions.append(prediction)
            done += prediction.inputs
            yield Progress(done=done, total=len(sources), activity="predicting")
        return predictions

    return finish(predict_all(), on_event)


def list_run_notes(run: Path, request: PredictRequest) -> list[str]:
    """Return notes on a run's predictions: an unreliable OOD score, targets that are out of reach or were missed."""
    folder = RunFolder(run)
    if not run.is_dir() or isinstance(open_folder(run), FoldsFolder):
        return []
    if not request.abstain and not (folder.read_calibration() or {}).get("thresholds"):
        return []  # the weights need not be read
    calibration = read_calibration(folder)
    if calibration is None:
        return []
    unreliable = describe_unreliable_ood(calibration) if request.abstain else None
    notes = [unreliable] if unreliable else []
    if request.raw or request.calibration is not None:
        return notes
    fitted = read_pooling(folder) if request.per == "group" else calibration
    thresholds = fitted.thresholds if fitted else ()
    notes += [text for threshold in thresholds if (text := describe_unreachable(threshold))]
    missed = find_missed(folder, thresholds, request.per)
    return [*notes, *(f"target {name} was not met on the test split: {text}" for name, text in missed.items())]


def predict_steps(
    run: Path, images: Iterable[ImageInput] | ImageInput, request: PredictRequest
) -> Iterator[Prediction]:
    """Yield the prediction of each image, as `predict` computes it, in constant memory."""
    yield from _predict(run, list_sources(images), request)


@dataclass(frozen=True, kw_only=True, slots=True)
class _Model:
    """A classifier with what was fitted on validation images."""

    classifier: Classifier
    calibration: Calibration | None = None
    """None for a cross-validation, whose members are calibrated one by one."""
    novelty: NoveltyModel | None = None
    """The OOD model; None if not requested, or if the classifier computes the score itself."""
    threshold: float | None = None
    """Of the OOD score; None if not requested."""
    missed_targets: dict[str, str] = field(default_factory=dict)
    """Targets that the test split did not meet, with what it reached."""

    def score_ood(self, outputs: Outputs) -> NDArray[np.floating[Any]] | None:
        """Return the OOD scores of a batch, (B,); None if not requested."""
        if self.threshold is None:
            return None
        return outputs.novelty if self.novelty is None else self.novelty.score(outputs.features, outputs.statistics)

    def abstain(self, novelty: float | None) -> bool | None:
        """Return whether an OOD score is above the threshold; None without one."""
        return None if novelty is None or self.threshold is None else novelty > self.threshold


def _open_model(run: Path, request: PredictRequest, num_images: int) -> _Model:
    """Return the model of an exported file, a cross-validation or a run, with the calibration that is asked for."""
    if request.calibration is not None and request.raw:
        raise UsageError("--calibration and --raw exclude each other", "Give one of them")
    model = _open_calibrated(run, request, num_images)
    if request.calibration is None:
        return model
    classifier = model.classifier
    if isinstance(classifier, OnnxClassifier):
        weights = classifier.metadata.weights
    else:
        weights = open_folder(run).fingerprint_weights()
    calibration = load_calibration(request.calibration, weights, classifier.classes)
    return replace(model, calibration=calibration, missed_targets={})


def _open_calibrated(run: Path, request: PredictRequest, num_images: int) -> _Model:
    """Return a model with its own calibration."""
    if run.suffix == ONNX_SUFFIX and not run.is_dir():
        file = _open_file(run, request)
        calibration = file.metadata.calibration
        threshold = _get_ood_threshold(run, calibration) if request.abstain else None
        return _Model(classifier=file, calibration=calibration, threshold=threshold)
    folder = open_folder(run)
    if isinstance(folder, FoldsFolder):
        return _open_folds(folder, request, num_images)
    classifier, calibration = open_run(run, request, num_images), read_calibration(folder)
    missed = find_missed(folder, calibration.thresholds) if calibration and not request.raw else {}
    model = _Model(classifier=classifier, calibration=calibration, missed_targets=missed)
    if not request.abstain:
        return model
    return replace(model, novelty=read_novelty(folder), threshold=_get_ood_threshold(run, calibration))


def _predict(run: Path, sources: Sequence[Source], request: PredictRequest) -> Iterator[Prediction]:
    """Yield the prediction of each image, or of each group as soon as its last image is classified."""
    if request.per == "group":
        yield from _predict_groups(run, sources, request)
        return
    model = _open_model(run, request, len(sources))
    classifier, classes = model.classifier, model.classifier.classes
    calibration = None if request.raw else model.calibration
    heat = _choose_heat(request, classifier)
    if request.explain is not None:
        _make_folder(run, sources, request)

    def load(row: int) -> Pixels:
        return transform_for_eval(sources[row].read(), classifier.preprocessing)

    row = 0
    for outputs in classifier.classify_batches(
        range(len(sources)), load, features=model.novelty is not None, heat=heat
    ):
        scores = classifier.task.activate(classifier.task.calibrate(outputs.logits, calibration))
        ood_scores = model.score_ood(outputs)
        for i, image_scores in enumerate(scores):
            source = sources[row]
            row += 1
            if error := outputs.failed.get(i):
                yield Prediction(path=source.path, index=source.index, item=source.item, error=error)
                continue
            outcome = classifier.task.summarise(image_scores, classes, calibration)
            explanation = None
            if request.explain is not None:
                explanation = request.explain / _name_heat_map(row, source)
                labels = None if request.explain_class else outcome.labels
                maps = _choose_maps(heat, outputs.heat[i], outputs.logits[i], labels, classes)
                caption = _describe_outcome(classifier.task, outcome, list(maps))
                _draw_heat_map(explanation, source, list(maps.values()), classifier.preprocessing, caption, request)
            score = None if ood_scores is None else float(ood_scores[i])
            yield Prediction(
                path=source.path,
                index=source.index,
                item=source.item,
                task=classifier.task,
                outcome=outcome,
                decisions=_decide(calibration.thresholds if calibration else (), classes, image_scores),
                missed_targets=model.missed_targets,
                novelty=score,
                abstained=model.abstain(score),
                explanation=explanation,
            )


@dataclass(frozen=True, kw_only=True, slots=True)
class _Member:
    """An image of a group with its outputs, which are meaningless where it cannot be read."""

    row: int
    error: ImageError | None
    logits: NDArray[np.floating[Any]]
    """(K,), calibrated."""
    novelty: float | None
    """OOD score; None if not requested."""


def _predict_groups(run: Path, sources: Sequence[Source], request: PredictRequest) -> Iterator[Prediction]:
    """Yield the prediction of each group, in the order of their first images."""
    folder = open_poolable(run, has_explanation=request.explain is not None)
    if request.calibration is not None:
        raise UsageError("--calibration is for single images", "Leave out --per group")
    groups = name_groups(folder, [source.path for source in sources], request.group_from)
    model = _open_model(run, request, len(sources))
    pooling = open_pooling(folder, model.classifier, model.calibration, request.group_from)
    calibration = model.calibration
    if request.raw:
        pooling, calibration = Pooling(weights=pooling.weights, rule=pooling.rule), None
    model = replace(model, missed_targets=find_missed(folder, pooling.thresholds, per="group"))
    first = {group: row for row, group in reversed(list(enumerate(groups)))}
    rows = sorted(range(len(sources)), key=lambda row: first[groups[row]])

    def load(row: int) -> Pixels:
        return transform_for_eval(sources[row].read(), model.classifier.preprocessing)

    def classify() -> Iterator[_Member]:
        rest = iter(rows)
        for outputs in model.classifier.classify_batches(rows, load, features=model.novelty is not None):
            ood_scores = model.score_ood(outputs)
            for i, logits in enumerate(model.classifier.task.calibrate(outputs.logits, calibration)):
                novelty = None if ood_scores is None else float(ood_scores[i])
                yield _Member(row=next(rest), error=outputs.failed.get(i), logits=logits, novelty=novelty)

    for group, members in groupby(classify(), key=lambda member: groups[member.row]):
        prediction = _pool(list(members), model, pooling)
        yield replace(prediction, group=group, index=sources[first[group]].index)


def _pool(members: Sequence[_Member], model: _Model, pooling: Pooling) -> Prediction:
    """Return the prediction of a group from the outputs for its images; those that cannot be read are left out."""
    task, classes = model.classifier.task, model.classifier.classes
    failures = tuple(member.error for member in members if member.error is not None)
    readable = [member for member in members if member.error is None]
    if not readable:
        return Prediction(path=None, images=0, unreadable=failures, error=failures[0])
    units = np.zeros(len(readable), np.int64)
    logits = task.pool(np.stack([member.logits for member in readable]), units, pooling.rule)
    scores = task.activate(task.calibrate(logits, pooling))[0]
    ood_scores = [member.novelty for member in readable if member.novelty is not None]
    novelty = float(np.median(ood_scores)) if ood_scores else None
    return Prediction(
        path=None,
        images=len(readable),
        unreadable=failures,
        task=task,
        outcome=task.summarise(scores, classes, pooling),
        decisions=_decide(pooling.thresholds, classes, scores),
        missed_targets=model.missed_targets,
        novelty=novelty,
        abstained=model.abstain(novelty),
    )


def _decide(
    thresholds: Sequence[Threshold], classes: tuple[str, ...], probabilities: NDArray[np.float64]
) -> dict[str, bool]:
    """Return the decision for each target."""
    return {str(t.target): bool(probabilities[classes.index(t.target.name)] >= t.threshold) for t in thresholds}


def open_run(run: Path, request: PredictRequest, num_images: int) -> Classifier:
    """Return the classifier of a run folder: its ONNX file where that is possible, else torch.

    Args:
        run: the run folder.
        request: its options decide whether torch is needed.
        num_images: number of images; for many, a GPU outweighs the start of torch.

    Raises:
        UsageError: the engine of the request does not support its options.
        RunError: the run cannot be read.
    """
    check_word("engine", request.engine, ENGINES)
    if request.engine != "torch":
        reason = _needs_torch(request)
        if not reason and request.engine == "auto" and num_images >= GPU_FROM and has_gpu():
            reason = "the GPU is faster"
        classifier = reason or find_onnx_classifier(RunFolder(run))
        if isinstance(classifier, OnnxClassifier):
            return classifier
        if request.engine == "onnx":
            raise UsageError(
                f"--engine onnx is not possible: {classifier}",
                f"Use --engine auto, or `convnext export {quote(run)}`",
            )

    from convnext_cli.inference.torch_classifier import TorchClassifier  # takes seconds to import

    return TorchClassifier(run, tta=request.tta)


def _open_file(path: Path, request: PredictRequest) -> OnnxClassifier:
    """Return the classifier of an exported file.

    Raises:
        UsageError: the request needs torch.
    """
    check_word("engine", request.engine, ENGINES)
    if reason := "--engine torch needs torch" if request.engine == "torch" else _needs_torch(request):
        raise UsageError(f"{path} does not support it: {reason}", "Give the run folder")
    return OnnxClassifier(path)


def _open_folds(folder: FoldsFolder, request: PredictRequest, num_images: int) -> _Model:
    """Return the ensemble of a cross-validation; its OOD threshold is the mean of those of the folds.

    The folds' decision thresholds do not hold for the mean of their probabilities, and are left out.
    """
    runs = folder.list_runs()
    pairs = [(run, read_calibration(run)) for run in runs]
    thresholds = [_get_ood_threshold(run.path, calibration) for run, calibration in pairs] if request.abstain else []
    members = [
        Member(
            classifier=open_run(run.path, request, num_images),
            calibration=None if request.raw else calibration,
            novelty=read_novelty(run) if request.abstain else None,
        )
        for run, calibration in pairs
    ]
    threshold = float(np.mean(thresholds)) if thresholds else None
    return _Model(classifier=Ensemble(folder, members), threshold=threshold)


def _needs_torch(request: PredictRequest) -> str:
    """Return the reason why torch is needed, or an empty string."""
    return "--explain needs torch" if request.explain is not None else "--tta needs torch" if request.tta else ""


def _get_ood_threshold(run: Path, calibration: Calibration | None) -> float:
    """Return the threshold of the OOD score.

    Raises:
        UsageError: the run has none.
    """
    if calibration is None or calibration.novelty_threshold is None:
        reason = calibration.weak if calibration else "it was never calibrated"
        raise UsageError(
            f"{run} has no OOD score: {reason}",
            "Run `convnext eval` on it, fine-tune with more validation images, or leave out --abstain",
        )
    return calibration.novelty_threshold


def _make_folder(run: Path, sources: Sequence[Source], request: PredictRequest) -> None:
    """Make the folder for heat maps.

    Raises:
        UsageError: it lies in the data of the run or among the images, or has heat maps of these names already.
    """
    folder = request.explain
    assert folder is not None
    parents = sorted(
        {resolve_links(path).parent for path in (source.path for source in sources) if path and os.path.lexists(path)}
    )
    for data in (*parents, *_find_data_folder(parents)):
        check_outside(folder, data, option="--explain")
    with suppress(RunError):  # an exported file, or a run whose data are not known
        check_outside_data(folder, RunFolder(run).read_split(), option="--explain")
    for row, source in enumerate(sources, start=1):
        heat_map = folder / _name_heat_map(row, source)
        if os.path.lexists(heat_map):
            check_output(heat_map, "--explain", overwrite=request.overwrite)
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


def _name_heat_map(row: int, source: Source) -> str:
    """Return the file name of an image's heat map; `row` is from 1."""
    stem = source.stem.encode("utf-8", "surrogateescape")[:MAX_STEM].decode("utf-8", "ignore")
    return f"{row:05d}-{stem}.png"


def _choose_heat(request: PredictRequest, classifier: Classifier) -> Heat:
    """Return the heat maps that a request needs: of the named classes, else of all that an image may have.

    Raises:
        UsageError: a named class is unknown, or no folder for heat maps is given.
    """
    if request.explain_class and request.explain is None:
        raise UsageError("--explain-class needs a folder for the heat maps", "Add --explain DIR")
    if request.explain_class:
        return tuple(find_class(name, classifier.classes, "--explain-class") for name in request.explain_class)
    if request.explain is not None and classifier.task.has_several:
        return tuple(range(len(classifier.classes)))
    return request.explain is not None


def _choose_maps(
    heat: Heat,
    maps: NDArray[np.float32],
    logits: NDArray[np.float32],
    labels: Sequence[str] | None,
    classes: tuple[str, ...],
) -> dict[str, NDArray[np.float32]]:
    """Return the heat maps to draw of an image, by class.

    Args:
        heat: what was asked for, as `_choose_heat` has it.
        maps: (h, w) of the most probable class, or (M, h, w) of the classes in `heat`.
        logits: (K,).
        labels: draw these only, or the most probable one if there are none; None for all in `heat`.
        classes: K names.
    """
    most_probable = classes[int(logits.argmax())]
    if not isinstance(heat, tuple):
        return {most_probable: maps}
    by_class = {classes[number]: part for number, part in zip(heat, maps, strict=True)}
    return by_class if labels is None else {name: by_class[name] for name in (labels or (most_probable,))[:MAX_MAPS]}


def _describe_outcome(task: Task, outcome: Outcome, explained: Sequence[str]) -> str:
    """Return the caption of heat maps: the prediction, and the classes that the maps explain."""
    parts = task.list_parts(outcome, CAPTION_CLASSES, lambda name, _: name)
    place = "right" if len(explained) == 1 else "from the left, after the image"
    return f"{'   '.join(' '.join(part.split()) for part in parts)}   ({place}: Grad-CAM of {', '.join(explained)})"


def _draw_heat_map(
    output: Path,
    source: Source,
    maps: Sequence[NDArray[np.float32]],
    preprocessing: Preprocessing,
    caption: str,
    request: PredictRequest,
) -> None:
    """Write the heat maps of an image."""
    from convnext_cli.inference.explain import draw_explanation  # torch, which is imported by now

    image = source.read()
    drawn = draw_explanation(image, maps, locate_frame(image.shape[1], image.shape[0], preprocessing), caption)
    with replace_output(output, "--explain", overwrite=request.overwrite) as temporary:
        drawn.save(temporary, format="PNG")
