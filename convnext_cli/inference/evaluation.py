"""Evaluation of runs: metrics with 95% CIs on a test set, and comparisons of runs."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any, Literal, TypedDict, Unpack

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.index import Index
from convnext_cli.data.outside import check_outside_data
from convnext_cli.data.split import list_trained_rows, name_fold
from convnext_cli.errors import DataError, ImageError, UsageError
from convnext_cli.files import check_output
from convnext_cli.inference.calibration import Calibration, describe_unreliable_ood, read_calibration, save_calibration
from convnext_cli.inference.calibration_fit import calibrate_steps
from convnext_cli.inference.classifier import Classifier, Outputs
from convnext_cli.inference.drift import Drift, measure_drift
from convnext_cli.inference.ensemble import Ensemble
from convnext_cli.inference.evaluated_images import EvaluatedImages, describe_shift, describe_worse_calibration
from convnext_cli.inference.image_notes import check_images, read_audit
from convnext_cli.inference.operating_points import TEST_TARGETS, add_targets, measure_points, trace_curves
from convnext_cli.inference.overlap import Overlap
from convnext_cli.inference.per_group import GroupEvaluation, check_groups, check_negative, evaluate_groups
from convnext_cli.inference.recalibration import (
    Recalibration,
    divide_test_set,
    measure_recalibration,
    refit_calibration,
)
from convnext_cli.inference.request import EVAL_RUN, EvalRequest
from convnext_cli.inference.run_checks import check_comparable, check_records, check_split, describe_progress
from convnext_cli.inference.subgroups import SubgroupEvaluation, measure_subgroups, read_subgroups
from convnext_cli.inference.test_set import TestSet, choose_test_set
from convnext_cli.inference.torch_classifier import TorchClassifier, open_classifier
from convnext_cli.metrics.comparison import Comparison
from convnext_cli.metrics.decision import DecisionCurve
from convnext_cli.metrics.intervals import Intervals
from convnext_cli.metrics.novelty import SCORE_NAME
from convnext_cli.metrics.summary import MetricSet, describe_absent
from convnext_cli.metrics.thresholds import OperatingPoint, Target, describe_missed, describe_unreachable, parse_target
from convnext_cli.options import make_path, make_request
from convnext_cli.progress import Notice, OnEvent, Progress, Steps, finish
from convnext_cli.runs.files import CALIBRATION, MODEL, POOLING
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder, find_newest_run, open_folder
from convnext_cli.runs.records import AuditRecord, to_plain
from convnext_cli.tasks.task import Targets, Task
from convnext_cli.text import format_count, quote, shorten_names


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationGain:
    """Cost and gain of test-time augmentation."""

    time_ratio: float
    """Its time divided by that of a plain evaluation, decoding included."""
    gain: Comparison
    """Augmented minus plain."""


_LEFT_OUT = ("audit", "own_calibration", "test_set", "images", "per_group")
"""Fields that the JSON output lacks, or has in another form."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """Metrics of a run on a test set."""

    run: Path
    """The run folder."""
    data: Path
    """The folder or file of the images."""
    split: str
    """`train`, `val`, `test`, or `all`."""
    metrics: MetricSet
    """Of the calibrated probabilities where the run is calibrated."""
    intervals: Intervals
    """Their 95% CIs: `overall` by key, and a dictionary for each class in `per_class`."""
    uncalibrated: MetricSet
    """Of the uncalibrated probabilities."""
    calibration: Calibration | None
    own_calibration: Calibration | None
    """The run's own calibration, with the thresholds of new targets; None for a cross-validation."""
    operating_points: tuple[OperatingPoint, ...]
    """The threshold of each target, and what it reaches."""
    augmentation: AugmentationGain | None
    """Cost and gain of test-time augmentation; None if not requested."""
    test_number: int | None = None
    """Number of this evaluation among those of the run on a test split, from 1; None for other splits."""
    notes: tuple[Notice, ...] = ()
    """Everything that limits the validity of the metrics."""
    overlap: Overlap | None
    """Images that the run has used; None for its own split, or where that is not known."""
    decision_curves: tuple[DecisionCurve, ...]
    """Of each class that has a target."""
    per_group: GroupEvaluation | None
    """Metrics of groups; None where not requested."""
    audit: AuditRecord | None
    """Audit of the data that the run was trained on; None where that is not known."""
    subgroups: SubgroupEvaluation | None
    """Metrics of subgroups; None where none are asked for."""
    drift: Drift | None
    """Differences from the run's validation images; None for its own data, or where that is not known."""
    recalibration: Recalibration | None
    """Effect of a calibration on a part of the images on the others; None if not requested."""
    test_set: TestSet
    """The images, as rows of an index."""
    images: EvaluatedImages
    """The images with their outputs and the calibration."""

    @property
    def task(self) -> Task:
        """The task of the run."""
        return self.images.task

    @property
    def is_own(self) -> bool:
        """True if the images are of the run's own split."""
        return self.test_set.is_own

    @property
    def fitted_on(self) -> str:
        """The kind of images that calibration and thresholds were fitted on: `validation` or `recalibration`."""
        return "validation" if self.recalibration is None else "recalibration"

    @property
    def probabilities(self) -> NDArray[np.float64]:
        """The calibrated probabilities, (N, K); of a number, its prediction (N, 1)."""
        return self.images.probabilities

    def compare(self, other: "Evaluation") -> Comparison:
        """Compare the metrics with those of another run on the same images, and name what limits both."""
        notes = (f"{one.run}: {note.text}" for one in (self, other) for note in one.notes)
        return replace(self.images.compare(other.images), notes=tuple(notes))

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the audit and the single images, for JSON; notes as strings."""
        kept = [field.name for field in fields(self) if field.name not in _LEFT_OUT]
        return {name: to_plain(getattr(self, name)) for name in kept} | {
            "per_group": self.per_group and self.per_group.to_dict(),
            "notes": [note.text for note in self.notes],
        }


class EvalOptions(TypedDict, total=False):
    """Options of `evaluate`, for type checkers and editors."""

    split: str | None
    targets: Sequence[str]
    subgroups: str | None
    subgroup_table: Path | str | None
    recalibrate: int | None
    save_calibration: Path | str | None
    overwrite: bool
    tta: bool
    cache: bool
    per: Literal["image", "group"]
    group_from: str
    group_column: str
    negative_class: str | None


def evaluate(
    run: Path | str | None = None,
    data: Path | str | None = None,
    *,
    on_event: OnEvent = None,
    **options: Unpack[EvalOptions],
) -> Evaluation:
    """Evaluate a run: metrics with 95% CIs, calibration, operating points.

    Args:
        run: the run folder; None takes the newest under `runs/`.
        data: a folder of images; None takes the run's own data and its split.
        on_event: called with each `Progress`.
        **options: `split`, one of `train`, `val`, `test` and `all` (default: `test` if there is one, else `val`, else
            all); `targets`, such as `sensitivity=0.95:CLASS`, whose thresholds are set on validation and kept in the
            run; `subgroups`, such as `sex,age:18,65`, whose gaps are tested, and `subgroup_table`, a table with
            these columns; `recalibrate`, the number of these images to fit the calibration on, which are then not
            evaluated; `save_calibration`, a file for this calibration, which `predict` takes, and `overwrite`; `tta`,
            test-time augmentation, whose cost and gain are measured; `cache`, False to keep no preprocessed images in
            the user's cache folder; `per`, `group` for metrics of groups (patients) beside those of images;
            `group_from` and `group_column`, the source of the groups; `negative_class`, the class that any other class
            of a group's images outweighs.

    Raises:
        RunError: the run cannot be read.
        DataError: the data has no such split, classes that the run does not know, or no known label.
        ImageError: an image cannot be read.
        UsageError: a target cannot be parsed, or has no class or validation split to be set on; or `per` is `group`
            and the groups are not known.
    """
    folder = find_newest_run(EVAL_RUN) if run is None else open_folder(make_path("run", run))
    request = make_request(EvalRequest, {**options, "data": data})
    return finish(evaluate_steps(folder, request), on_event)


def evaluate_all_steps(request: EvalRequest) -> Steps[list[Evaluation]]:
    """Evaluate all runs of a request on the images of the first; the newest run where it names none.

    All runs are evaluated before anything is written into the first.
    """
    runs = [open_folder(path) for path in request.runs] or [find_newest_run(EVAL_RUN)]
    if len(runs) > 1:
        if request.recalibrate is not None:
            raise UsageError("--recalibrate is for one run", "Evaluate each run by itself")
        for run in runs:
            _check_targets(run, request)
            check_records(run)
            check_comparable(runs[0], run)
    evaluations: list[Evaluation] = []
    for run in runs:
        test_set = evaluations[0].test_set if evaluations else None
        evaluations.append((yield from _measure_steps(run, request, test_set)))
    return [_record(run, request, evaluation) for run, evaluation in zip(runs, evaluations, strict=True)]


def compare(
    first: Path | str,
    second: Path | str,
    data: Path | str | None = None,
    *,
    split: str | None = None,
    cache: bool = True,
    on_event: OnEvent = None,
) -> Comparison:
    """Compare two runs image by image: paired differences with 95% CIs, and McNemar's test.

    Both are evaluated on the same images. On a test split, the evaluation is recorded in both runs.

    Args:
        first: a run folder.
        second: a run folder; a difference is its metric minus that of `first`.
        data: as in `evaluate`; None takes the data and the split of `first`.
        split: as in `evaluate`.
        cache: as in `evaluate`.
        on_event: called with each `Progress`.

    Raises:
        RunError: a run cannot be read.
        DataError: the data has no such split, or the runs differ in their task or classes.
        ImageError: an image cannot be read.
    """
    runs = (make_path("first", first), make_path("second", second))
    request = make_request(EvalRequest, {"runs": runs, "data": data, "split": split, "cache": cache})

    def compare_steps() -> Steps[Comparison]:
        first, second = yield from evaluate_all_steps(request)
        return first.compare(second)

    return finish(compare_steps(), on_event)


def evaluate_steps(run: RunFolder, request: EvalRequest, *, test_set: TestSet | None = None) -> Steps[Evaluation]:
    """Evaluate a run, as `evaluate` does, on the images of the request, or those that another run was evaluated on."""
    return _record(run, request, (yield from _measure_steps(run, request, test_set)))


def _measure_steps(run: RunFolder, request: EvalRequest, test_set: TestSet | None) -> Steps[Evaluation]:
    """Evaluate a run as `evaluate_steps` does, without recording it in the run."""
    # 1. The images, and what is known about them.
    operating_targets = [parse_target(text) for text in request.targets]
    trained_on = run.read_split()
    run.drop_leftovers()
    test_set, data_notes = yield from _choose_images(run, trained_on, request, test_set)
    audit, audit_notes = read_audit(run)
    classifier = open_classifier(run, cache=request.cache)
    image_notes, overlap = yield from check_images(run, trained_on, test_set, audit, classifier.preprocessing)
    fit_set, test_set = yield from divide_test_set(test_set, request.recalibrate)
    attributes = yield from read_subgroups(request, test_set)

    # 2. The calibration.
    targets = _read_targets(classifier, test_set)  # first: it refuses data of another task
    own, calibration_notes = yield from _prepare_calibration(run, classifier, operating_targets, fit_set)
    calibration, refit_notes = yield from refit_calibration(classifier, fit_set, own, run, operating_targets)

    # 3. Its outputs.
    outputs, seconds = yield from _classify(classifier, test_set, "evaluating", features=not test_set.is_own)
    images = EvaluatedImages(
        task=classifier.task,
        classes=classifier.classes,
        logits=outputs.logits,
        targets=targets,
        calibration=calibration,
        groups=test_set.groups,
    )
    drift, drift_notes = yield from measure_drift(classifier, own, test_set, outputs, fit_set)
    augmentation = None
    if request.tta:
        images, augmentation = yield from _augment(run, test_set, images, seconds, cache=request.cache)

    # 4. The metrics.
    yield Progress(done=0, total=1, activity="bootstrapping the 95% CIs")
    points = measure_points(images, calibration.thresholds if calibration else ())
    is_per_group = request.per == "group"
    evaluation = Evaluation(
        run=run.path,
        data=test_set.index.location,
        split=test_set.split,
        metrics=images.compute_metrics(),
        intervals=images.compute_intervals(),
        uncalibrated=replace(images, calibration=None).compute_metrics(),
        calibration=calibration,
        own_calibration=own,
        operating_points=points,
        augmentation=augmentation,
        overlap=overlap,
        decision_curves=trace_curves(images, points),
        per_group=evaluate_groups(classifier, test_set, images, calibration, request) if is_per_group else None,
        audit=audit,
        subgroups=(yield from measure_subgroups(images, attributes)) if attributes else None,
        drift=drift,
        recalibration=measure_recalibration(images, own, fit_set),
        test_set=test_set,
        images=images,
    )
    notes = data_notes + audit_notes + image_notes + calibration_notes + refit_notes + drift_notes
    return replace(evaluation, notes=(*notes, *_list_warnings(evaluation, trained_on)))


def _check_targets(run: RunFolder, request: EvalRequest) -> None:
    if request.targets and request.recalibrate is None and isinstance(run, FoldsFolder):
        raise UsageError(
            f"{run.path} is a cross-validation, which has no validation images of its own to set a threshold on",
            f"Leave out --target, add --recalibrate, or evaluate one fold: {run.path / name_fold(1)}",
        )


def _check_calibration_file(request: EvalRequest, test_set: TestSet) -> None:
    path, option = request.save_calibration, "--save-calibration"
    if path is None:
        return
    if request.recalibrate is None:
        raise UsageError(f"{option} needs --recalibrate", "Add --recalibrate N")
    check_outside_data(path, test_set.index, option=option)
    check_output(path, option, overwrite=request.overwrite)


def _augment(
    run: RunFolder, test_set: TestSet, images: EvaluatedImages, seconds: float, *, cache: bool
) -> Steps[tuple[EvaluatedImages, AugmentationGain]]:
    """Return images with the logits of test-time augmentation, with its cost and gain.

    `seconds` is the time that the evaluation without augmentation took.
    """
    classifier = open_classifier(run, tta=True, cache=cache)
    outputs, augmented_seconds = yield from _classify(classifier, test_set, "evaluating shifted views")
    augmented = replace(images, logits=outputs.logits)
    return augmented, AugmentationGain(time_ratio=augmented_seconds / seconds, gain=images.compare(augmented))


def _choose_images(
    run: RunFolder, trained_on: Index, request: EvalRequest, test_set: TestSet | None
) -> Steps[tuple[TestSet, list[Notice]]]:
    """Return the images to evaluate, those of another run if there are some, with notes, after checks of the run."""
    check_negative(request, trained_on)
    _check_targets(run, request)
    notes: list[Notice] = []
    if test_set is None:
        test_set, notes = yield from choose_test_set(run, trained_on, request)
    else:
        test_set = replace(test_set, is_own=test_set.index.has_split_of(trained_on))
    if request.per == "group":
        check_groups(request, test_set)
    _check_calibration_file(request, test_set)
    check_records(run)
    notes += check_split(run, trained_on)
    unfinished = describe_progress(run)
    return test_set, [Notice(unfinished), *notes] if unfinished is not None else notes


def _list_warnings(evaluation: Evaluation, trained_on: Index) -> list[Notice]:
    images, metrics, points = evaluation.images, evaluation.metrics, evaluation.operating_points
    task, calibration, fitted_on = images.task, evaluation.calibration, evaluation.fitted_on
    worse = describe_worse_calibration(images, evaluation.uncalibrated, metrics, fitted_on) if calibration else None
    texts = []
    if absent := describe_absent(metrics, task.describe_name):
        texts.append(absent)
    training = trained_on.targets(list_trained_rows(trained_on))
    texts += task.list_warnings(training, images.probabilities, images.classes, calibration)
    texts += [text for point in points if (text := describe_unreachable(point.threshold, f"{fitted_on} images"))]
    texts += [describe_missed(point) for point in points if point.is_missed]
    warnings = [Notice(text, "warning") for text in texts]
    return [*filter(None, [worse, describe_shift(images)]), *warnings]


def _read_targets(classifier: Classifier, test_set: TestSet) -> Targets:
    """Return the targets of the evaluated images.

    Raises:
        DataError: the data is of another task, or no label is known.
    """
    targets = classifier.read_targets(test_set.index, test_set.rows)
    task, labels = classifier.task, range(len(classifier.classes))
    if not task.is_continuous and not any(task.select_known(targets, k)[1].any() for k in labels):
        problem = f"{test_set.index.location}: no label of the {format_count(len(targets), 'image')} is known"
        raise DataError(problem, "Give images with known labels; `convnext predict` needs no labels")
    return targets


def _prepare_calibration(
    run: RunFolder, classifier: TorchClassifier | Ensemble, targets: Sequence[Target], fit_set: TestSet | None
) -> Steps[tuple[Calibration | None, list[Notice]]]:
    """Return the calibration of a run with the thresholds of all targets, and notes; None for a cross-validation.

    Thresholds that only the images of `fit_set` allow are set by `refit_calibration`.
    """
    if isinstance(classifier, TorchClassifier):
        calibration, notes = yield from _calibrate(classifier)
        before = calibration.thresholds if calibration else ()
        if calibration and (calibration.is_fitted or fit_set is None):
            calibration = add_targets(run, calibration, classifier, targets)
        if calibration and calibration.thresholds != before and run.exported("onnx").exists():
            remedy = f"`convnext export {quote(run.path)}` writes it again"
            notes.append(Notice(f"{run.exported('onnx').name} does not have these thresholds; {remedy}"))
        return calibration, notes
    names = classifier.list_uncalibrated()
    text = f"not calibrated: {shorten_names(names)} (too few validation images, or changed weights)"
    return None, [Notice(text)] if names else []


def _calibrate(classifier: TorchClassifier) -> Steps[tuple[Calibration | None, list[Notice]]]:
    """Return the calibration of a run, fitted if it is missing or outdated, with notes on what it lacks."""
    run, notes = classifier.run, list[Notice]()
    uncalibrated = classifier.task.display.uncalibrated
    calibration = read_calibration(run)
    is_outdated = calibration is not None and calibration.is_fitted and calibration.novelty_score != SCORE_NAME
    if calibration is None or is_outdated:
        if calibration is None and CALIBRATION.path(run.path).exists():
            text = f"{CALIBRATION.name} was fitted for other weights than {MODEL.name}; it is fitted again"
            notes.append(Notice(text))
        try:
            thresholds = calibration.thresholds if calibration else ()
            calibration = yield from calibrate_steps(classifier, run, thresholds=thresholds)
        except ImageError as error:
            notes.append(Notice(f"{uncalibrated}, because images of the run are gone: {error.problem}", "warning"))
    if calibration is None:
        return None, notes
    if not calibration.is_fitted:
        notes.append(Notice(f"{uncalibrated}, because {calibration.unfitted_reason}", "warning"))
    if names := classifier.task.list_uncalibrated(calibration, classifier.classes):
        text = f"not calibrated, because validation has too few positive or negative images: {shorten_names(names)}"
        notes.append(Notice(text))
    if unreliable := describe_unreliable_ood(calibration):
        notes.append(Notice(unreliable, "warning"))
    return calibration, notes


def _classify(
    classifier: Classifier, test_set: TestSet, activity: str, *, features: bool = False
) -> Steps[tuple[Outputs, float]]:
    """Return the outputs of the images, and the seconds that these took."""
    started = time.perf_counter()
    outputs = yield from classifier.classify_rows(test_set.index, test_set.rows, features=features, activity=activity)
    return outputs, time.perf_counter() - started


def _record(run: RunFolder, request: EvalRequest, evaluation: Evaluation) -> Evaluation:
    """Write what an evaluation has fitted; return it, with its number if it is on a test split, which is recorded."""
    calibration, own, groups = evaluation.calibration, evaluation.own_calibration, evaluation.per_group
    if request.save_calibration is not None and calibration is not None:
        save_calibration(request.save_calibration, calibration, overwrite=request.overwrite)
    if request.targets and own is not None and own.is_fitted:
        run.write_calibration(own.to_dict(), run.read_calibration_arrays())
    if groups is not None and groups.keeps_pooling:
        run.write(POOLING, to_plain(groups.pooling))
    if evaluation.split == "test":  # last: an evaluation that cannot be written does not count
        return replace(evaluation, test_number=_record_test(run, evaluation))
    return evaluation


def _record_test(run: RunFolder, evaluation: Evaluation) -> int:
    """Record an evaluation on a test split in the run, and return its number."""
    points = {"image": evaluation.operating_points}
    if evaluation.per_group is not None:
        points["group"] = evaluation.per_group.operating_points
    recalibration = evaluation.recalibration
    return run.record_test(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": str(evaluation.data),
            "images": evaluation.metrics.images,
            **({"recalibrated_on": recalibration.images} if recalibration is not None else {}),
            **{key: getattr(evaluation.metrics, key) for key in reversed(evaluation.task.display.epoch)},
            "tta": evaluation.augmentation is not None,
            **{
                TEST_TARGETS[unit]: {str(point.threshold.target): point.to_record() for point in of_unit}
                for unit, of_unit in points.items()
            },
        }
    )
