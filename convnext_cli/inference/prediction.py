"""Prediction for new images: probabilities, decisions, abstention and heat maps."""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field, fields, replace
from itertools import groupby
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from convnext_cli.errors import ImageError, UsageError
from convnext_cli.inference.calibrated_classifier import CalibratedClassifier, open_calibrated
from convnext_cli.inference.calibration import (
    Calibration,
    Pooling,
    describe_unreliable_ood,
    read_calibration,
    read_pooling,
)
from convnext_cli.inference.heat_maps import prepare_heat_maps
from convnext_cli.inference.operating_points import find_missed
from convnext_cli.inference.pooling import name_groups, open_pooling
from convnext_cli.inference.request import PREDICT_RUN, PredictRequest
from convnext_cli.inference.run_checks import describe_progress
from convnext_cli.inference.sources import ImageInput, Source, list_sources
from convnext_cli.metrics.thresholds import Threshold, describe_unreachable
from convnext_cli.options import AUTO, make_path, make_request
from convnext_cli.progress import OnEvent, Progress, Steps, finish
from convnext_cli.runs.files import CALIBRATION, MODEL, SPLIT
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder, find_newest_run, open_folder
from convnext_cli.tasks.task import Outcome, Task
from convnext_cli.text import quote


@dataclass(frozen=True, kw_only=True, slots=True)
class Prediction(Outcome):
    """Prediction for one image, or for one group. If no image can be read, `error` is set and the rest is empty."""

    path: Path | None
    """The file; None for an image in memory, and for a group."""
    index: int = 0
    """Position of the input, from 0."""
    item: int | None = None
    """Position in an (N, H, W, 3) array, or among the images of a folder, from 0; None for other inputs."""
    task: Task | None = None
    """The task of the run; None if the image cannot be read."""
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
    """The reason why the image cannot be read; None if it can."""
    group: str | None = None
    """Name of the group; None for a single image."""
    images: int = 1
    """Number of images that the prediction is pooled from."""
    unreadable: tuple[ImageError, ...] = ()
    """Of the group's images, those that cannot be read."""
    frames: tuple[Path, ...] = ()
    """Of its files, those with several frames or pages, of which one is read."""

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
    engine: Literal["auto", "onnx", "torch"]
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
        images: one or several paths of image files or folders, PIL images and NumPy arrays, in any mixture. Arrays are
            uint8, 0 to 255: (H, W) grey, (H, W, 3) RGB, or (N, H, W, 3) for N images. A PIL image is read like its
            file: turned upright by its EXIF orientation, transparent pixels composited on white.
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
        A `Prediction` for each image, in their order. `index` is the position of its input in `images`, and `item` the
        position of its image in an (N, H, W, 3) array or among the sorted images below a folder. With `per="group"`
        one for each group, in the order of their first images.

    Raises:
        RunError: the run cannot be read. An image that cannot be read is no error: its prediction has `error` set.
        UsageError: an input is neither path nor image, the run has no OOD score, or the engine does not support an
            option.
    """
    folder = find_newest_run(PREDICT_RUN).path if run is None else make_path("run", run)
    sources = list_sources(images)
    request = make_request(PredictRequest, options)

    def predict_all() -> Steps[list[Prediction]]:
        predictions: list[Prediction] = []
        done = 0
        for prediction in predict_images(folder, sources, request):
            predictions.append(prediction)
            done += prediction.inputs
            yield Progress(done=done, total=len(sources), activity="predicting")
        return predictions

    return finish(predict_all(), on_event)


def list_run_notes(run: Path, request: PredictRequest) -> list[str]:
    """Return notes on what weakens the predictions of a run, or of a cross-validation's runs.

    It has not finished or is not calibrated; its OOD score is unreliable; targets are out of reach or were missed.
    """
    if not run.is_dir():
        return []
    folder = open_folder(run)
    if isinstance(folder, FoldsFolder):
        notes = [_explain_uncalibrated(each, read_calibration(each), run, request) for each in folder.list_runs()]
        return list(dict.fromkeys(filter(None, notes)))
    calibration = read_calibration(folder)
    uncalibrated = _explain_uncalibrated(folder, calibration, run, request)
    progress = describe_progress(folder)
    if calibration is None:
        return list(filter(None, [progress or uncalibrated]))
    notes = list(filter(None, [progress, uncalibrated]))
    if request.abstain and (unreliable := describe_unreliable_ood(calibration)):
        notes.append(unreliable)
    if request.raw or request.calibration is not None:
        return notes
    is_per_group = request.per == "group"
    fitted = read_pooling(folder) if is_per_group else calibration
    thresholds = fitted.thresholds if fitted else ()
    fitted_on = "validation groups" if is_per_group else "validation images"
    notes += [text for threshold in thresholds if (text := describe_unreachable(threshold, fitted_on))]
    missed = find_missed(folder, thresholds, request.per, tta=request.tta)
    return [*notes, *(f"target {name} was not met on the test split: {text}" for name, text in missed.items())]


def _explain_uncalibrated(run: RunFolder, calibration: Calibration | None, path: Path, request: PredictRequest) -> str:
    """Return why a run is not calibrated, if it is not and its own calibration is to be used.

    `path` is its own, or that of its cross-validation.
    """
    if request.raw or request.calibration is not None:
        return ""
    if calibration is not None and calibration.is_fitted:
        return ""
    if calibration is not None:
        display = run.read_config().read_task(run.path).display
        return f"{display.uncalibrated}, because {calibration.unfitted_reason}"
    is_outdated = CALIBRATION.path(run.path).exists()
    reason = f"was fitted for other weights than {MODEL.name}" if is_outdated else "is missing"
    remedy = f"`convnext eval {quote(path)}` fits it again" if SPLIT.path(run.path).exists() else "Export the run again"
    return f"{run.path} is not calibrated: {CALIBRATION.name} {reason}. {remedy}"


def predict_images(run: Path, sources: Sequence[Source], request: PredictRequest) -> Iterator[Prediction]:
    """Yield the prediction of each image, or of each group as soon as its last image is classified.

    Images are decoded a few batches ahead, and not kept.
    """
    if request.per == "group":
        yield from _predict_groups(run, sources, request)
        return
    if request.group_from != AUTO:
        raise UsageError("--group-from needs --per group: it decides which images are a group", "Add --per group")
    model = open_calibrated(run, request, len(sources))
    classifier, classes = model.classifier, model.classifier.classes
    calibration = None if request.raw else model.calibration
    thresholds = calibration.thresholds if calibration else ()
    missed: dict[str, str] = {}
    if run.is_dir() and request.calibration is None:
        missed = find_missed(open_folder(run), thresholds, tta=request.tta)
    heat_maps = prepare_heat_maps(run, sources, request, classifier)
    row = 0
    for outputs in model.classify(sources, range(len(sources)), heat=heat_maps.heat if heat_maps else False):
        scores = classifier.task.activate(classifier.task.calibrate(outputs.logits, calibration))
        ood_scores = model.score_ood(outputs)
        for i, image_scores in enumerate(scores):
            source = sources[row]
            row += 1
            if error := outputs.failed.get(i):
                yield Prediction(path=source.path, index=source.index, item=source.item, error=error)
                continue
            outcome = classifier.task.summarise(image_scores, classes, calibration)
            score = None if ood_scores is None else float(ood_scores[i])
            yield Prediction(
                path=source.path,
                index=source.index,
                item=source.item,
                task=classifier.task,
                **_list_fields(outcome),
                decisions=_decide(thresholds, classes, image_scores),
                missed_targets=missed,
                novelty=score,
                abstained=model.abstain(score),
                explanation=heat_maps.draw(row, source, outputs, i, outcome) if heat_maps else None,
                frames=(source.path,) if source.path and i in outputs.frames else (),
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
    is_frame: bool
    """True if it is one of several frames of its file."""


def _predict_groups(run: Path, sources: Sequence[Source], request: PredictRequest) -> Iterator[Prediction]:
    """Yield the prediction of each group, in the order of their first images."""
    if request.explain is not None:
        raise UsageError("--explain draws single images", "Leave out --per group, or --explain")
    if not run.is_dir():
        raise UsageError(f"--per group: {run} has no pooling of its own", "Give the run folder with --run")
    folder = open_folder(run)
    if request.calibration is not None:
        raise UsageError("--calibration is for single images", "Leave out --per group")
    groups = name_groups(folder, [source.path for source in sources], request.group_from)
    model = open_calibrated(run, request, len(sources))
    pooling = open_pooling(folder, model.classifier, model.calibration, request.group_from)
    calibration = model.calibration
    if request.raw:
        pooling, calibration = Pooling(weights=pooling.weights, rule=pooling.rule), None
    missed = find_missed(folder, pooling.thresholds, per="group", tta=request.tta)
    first = {group: row for row, group in reversed(list(enumerate(groups)))}
    rows = sorted(range(len(sources)), key=lambda row: first[groups[row]])

    def classify() -> Iterator[_Member]:
        rest = iter(rows)
        for outputs in model.classify(sources, rows):
            ood_scores = model.score_ood(outputs)
            for i, logits in enumerate(model.classifier.task.calibrate(outputs.logits, calibration)):
                novelty = None if ood_scores is None else float(ood_scores[i])
                error, is_frame = outputs.failed.get(i), i in outputs.frames
                yield _Member(row=next(rest), error=error, logits=logits, novelty=novelty, is_frame=is_frame)

    for group, each in groupby(classify(), key=lambda member: groups[member.row]):
        members = list(each)
        prediction = _pool(members, model, pooling, missed)
        paths = tuple(path for member in members if member.is_frame and (path := sources[member.row].path))
        yield replace(prediction, group=group, index=sources[first[group]].index, frames=paths)


def _pool(
    members: Sequence[_Member], model: CalibratedClassifier, pooling: Pooling, missed: dict[str, str]
) -> Prediction:
    """Return the prediction of a group from the outputs for its images; those that cannot be read are left out."""
    task, classes = model.classifier.task, model.classifier.classes
    failures = tuple(member.error for member in members if member.error is not None)
    readable = [member for member in members if member.error is None]
    if not readable:
        return Prediction(path=None, images=0, unreadable=failures, error=failures[0])
    units = np.zeros(len(readable), np.int64)
    negative = None if pooling.negative_class is None else classes.index(pooling.negative_class)
    logits = task.pool(np.stack([member.logits for member in readable]), units, pooling.rule, negative)
    scores = task.activate(task.calibrate(logits, pooling))[0]
    ood_scores = [member.novelty for member in readable if member.novelty is not None]
    novelty = float(np.median(ood_scores)) if ood_scores else None
    return Prediction(
        path=None,
        images=len(readable),
        unreadable=failures,
        task=task,
        **_list_fields(task.summarise(scores, classes, pooling)),
        decisions=_decide(pooling.thresholds, classes, scores),
        missed_targets=missed,
        novelty=novelty,
        abstained=model.abstain(novelty),
    )


def _list_fields(outcome: Outcome) -> dict[str, Any]:
    """Return the fields by name; `asdict` would copy each class."""
    return {entry.name: getattr(outcome, entry.name) for entry in fields(outcome)}


def _decide(
    thresholds: Sequence[Threshold], classes: tuple[str, ...], probabilities: NDArray[np.float64]
) -> dict[str, bool]:
    return {str(t.target): bool(t.target.score(probabilities, classes) >= t.threshold) for t in thresholds}
