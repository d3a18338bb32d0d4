"""How good a run is on some images, how sure that is, and which of several runs is better."""

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, fields
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.encoding import find_name
from convnext_cli.data.split import name_fold
from convnext_cli.errors import DataError, ImageError, UsageError
from convnext_cli.inference.agreement import check_records, describe_progress
from convnext_cli.inference.calibration import (
    Calibration,
    add_targets,
    calibrate_steps,
    describe_unreliable_ood,
    parse_target,
    read_calibration,
)
from convnext_cli.inference.classifier import Classifier
from convnext_cli.inference.ensemble import Ensemble, open_ensemble
from convnext_cli.inference.overlap import Overlap
from convnext_cli.inference.test_set import TestSet, audit_steps, choose_test_set, find_leakage
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.metrics import comparison
from convnext_cli.metrics.comparison import Comparison
from convnext_cli.metrics.formulas import log_softmax
from convnext_cli.metrics.intervals import Intervals, compute_intervals
from convnext_cli.metrics.novelty import SCORE_NAME
from convnext_cli.metrics.summary import Metrics, compute_metrics
from convnext_cli.metrics.temperature import describe_worse_calibration
from convnext_cli.metrics.thresholds import OperatingPoint, Target, apply_threshold
from convnext_cli.progress import OnEvent, Progress, Steps, finish
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder, find_newest_run, open_folder
from convnext_cli.runs.records import AuditRecord


@dataclass(frozen=True, kw_only=True, slots=True)
class EvaluatedImages:
    """The images of an evaluation and what the model said of each, for curves, galleries and comparisons."""

    test_set: TestSet
    classes: tuple[str, ...]
    logits: NDArray[np.float32]
    """(N, K), the model's own."""
    labels: NDArray[np.int64]
    """(N,)"""


@dataclass(frozen=True, kw_only=True, slots=True)
class AugmentationGain:
    """What test-time augmentation costs and gains on these images."""

    time_ratio: float
    """Its time over that of a plain evaluation, decoding included."""
    gain: Comparison
    """From plain to augmented."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Evaluation:
    """A run's figures on some images."""

    run: Path
    data: Path
    split: str
    """`train`, `val`, `test`, or `all`."""
    metrics: Metrics
    """Of the calibrated probabilities, where the run has a temperature."""
    intervals: Intervals
    uncalibrated: Metrics
    """Of the model's own probabilities."""
    calibration: Calibration | None
    operating_points: tuple[OperatingPoint, ...]
    augmentation: AugmentationGain | None
    test_number: int | None
    """The how-manieth evaluation of this run on a test split it is; None for other splits."""
    notes: tuple[str, ...]
    """What makes the figures less than they seem."""
    overlap: Overlap | None
    """How many of the images the run has used; None of its own split, or where that is not known."""
    audit: AuditRecord | None = None
    """What was found in the data that the run was trained on; None where that is not known."""
    evaluated: EvaluatedImages

    def to_dict(self) -> dict[str, Any]:
        """Return everything but the audit and the single images, for JSON."""
        return {f.name: _plain(getattr(self, f.name)) for f in fields(self) if f.name not in ("audit", "evaluated")}


def evaluate(
    run: Path | str | None = None,
    data: Path | str | None = None,
    *,
    split: str | None = None,
    targets: Sequence[str] = (),
    tta: bool = False,
    cache: bool = True,
    on_event: OnEvent = None,
) -> Evaluation:
    """Evaluate a run: metrics with 95% CIs, calibration, thresholds.

    Args:
        run: the run folder; None takes the newest under `runs/`.
        data: a folder of images; None takes the run's own data and its split.
        split: `train`, `val`, `test` or `all`; None takes `test` where there is one, else `val`, else all.
        targets: such as `sensitivity=0.95:CLASS`; their thresholds are found on validation and kept in the run.
        tta: average over shifted views, and say what that costs and gains.
        cache: keep prepared images in the user's cache folder for the next time.
        on_event: called with each `Progress`.

    Raises:
        RunError: the run cannot be read.
        DataError: the data has no such split, or classes that the run does not know.
        ImageError: an image cannot be read.
        UsageError: a target cannot be read, or has no class or validation split to be set on.
    """
    folder = find_newest_run() if run is None else RunFolder(Path(run))
    wanted = [parse_target(text) for text in targets]
    steps = evaluate_steps(folder, None if data is None else Path(data), split, targets=wanted, tta=tta, cache=cache)
    return finish(steps, on_event)


def evaluate_all_steps(
    runs: Sequence[RunFolder],
    data: Path | None,
    split: str | None,
    *,
    targets: Sequence[Target] = (),
    tta: bool = False,
    cache: bool = True,
) -> Steps[list[Evaluation]]:
    """Evaluate several runs on the images of the first.

    All runs are read before the first evaluation on a test split is recorded.
    """
    if len(runs) > 1:
        for run in runs:
            check_records(run)
    evaluations: list[Evaluation] = []
    for run in runs:
        test_set = evaluations[0].evaluated.test_set if evaluations else None
        evaluation = yield from evaluate_steps(
            run, data, split, targets=targets, tta=tta, cache=cache, test_set=test_set
        )
        evaluations.append(evaluation)
    return evaluations


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
        cache: keep prepared images in the user's cache folder for the next time.
        on_event: called with each `Progress`.

    Raises:
        RunError: a run cannot be read.
        DataError: the data has no such split, or the runs have other classes.
        ImageError: an image cannot be read.
    """
    runs = [RunFolder(Path(first)), RunFolder(Path(second))]
    return finish(_compare_steps(runs, None if data is None else Path(data), split, cache=cache), on_event)


def _compare_steps(
    runs: Sequence[RunFolder], data: Path | None, split: str | None, *, cache: bool
) -> Steps[Comparison]:
    first, second = yield from evaluate_all_steps(runs, data, split, cache=cache)
    return compare_evaluations(first, second)


def evaluate_steps(
    run: RunFolder,
    data: Path | None,
    split: str | None,
    *,
    targets: Sequence[Target] = (),
    tta: bool = False,
    cache: bool = True,
    test_set: TestSet | None = None,
) -> Steps[Evaluation]:
    """Evaluate a run, as `evaluate` does.

    `test_set` names the images where they are decided already, because several runs are compared on them.
    """
    test_set, notes = (test_set, []) if test_set else choose_test_set(run, data, split)
    check_records(run)
    if (unfinished := describe_progress(run)) is not None:
        notes.insert(0, unfinished)
    audit = yield from audit_steps(run, notes)
    leakage, overlap = yield from find_leakage(run, test_set, audit)
    notes += leakage
    classifier = open_model(run, notes, cache=cache)
    labels = classifier.label_rows(test_set.index, test_set.rows)
    calibration: Calibration | None = None
    if isinstance(classifier, TorchClassifier):
        calibration = yield from _calibrate(classifier, notes)
        if calibration:
            calibration = add_targets(run, calibration, classifier.classes, targets)
    elif targets:
        raise UsageError(
            f"{run.path} is a cross-validation, which has no validation images of its own to set a threshold on",
            f"Leave out --target, or evaluate one fold: {run.path / name_fold(1)}",
        )
    logits, seconds = yield from _ask(classifier, test_set, "evaluating")
    temperature = calibration.temperature if calibration else 1.0
    augmentation = None
    if tta:
        plain = logits
        logits, longer = yield from _ask(
            open_model(run, [], tta=True, cache=cache), test_set, "evaluating shifted views"
        )
        gain = comparison.compare(plain / temperature, logits / temperature, labels, test_set.groups)
        augmentation = AugmentationGain(time_ratio=longer / seconds, gain=gain)
    yield Progress(done=0, total=1, activity="drawing resamples for the intervals")
    calibrated = logits / temperature
    metrics = compute_metrics(calibrated, labels, classifier.classes)
    uncalibrated = compute_metrics(logits, labels, classifier.classes)
    if warning := describe_worse_calibration(temperature, uncalibrated, metrics):
        notes.append(warning)
    if metrics.absent:
        notes.append(f"no image of {', '.join(metrics.absent)}: averages are over the other classes")
    probabilities = np.exp(log_softmax(calibrated))
    points = [
        apply_threshold(t, probabilities[:, k], labels == k, test_set.groups)
        for t in (calibration.thresholds if calibration else ())
        for k in [classifier.classes.index(t.target.name)]
    ]
    notes += [_describe_missed(point) for point in points if point.is_missed]
    return Evaluation(
        run=run.path,
        data=test_set.index.root,
        split=test_set.split,
        metrics=metrics,
        intervals=compute_intervals(calibrated, labels, test_set.groups),
        uncalibrated=uncalibrated,
        calibration=calibration,
        operating_points=tuple(points),
        augmentation=augmentation,
        test_number=_record(run, test_set, metrics, points, tta=tta) if test_set.split == "test" else None,
        notes=tuple(notes),
        audit=audit,
        overlap=overlap,
        evaluated=EvaluatedImages(test_set=test_set, classes=classifier.classes, logits=logits, labels=labels),
    )


def open_model(
    run: RunFolder, notes: list[str], *, tta: bool = False, cache: bool = True
) -> TorchClassifier | Ensemble:
    """The run's model, or all of a cross-validation's, whose weak points become notes."""
    folder = open_folder(run.path)
    if not isinstance(folder, FoldsFolder):
        return TorchClassifier(run.path, tta=tta, cache=cache)
    model, weak = open_ensemble(folder, tta=tta, cache=cache)
    notes += weak
    return model


def compare_evaluations(first: Evaluation, second: Evaluation) -> Comparison:
    """Compares two runs on the images that both were evaluated on.

    Raises:
        DataError: they have other classes.
    """
    a, b = first.evaluated, second.evaluated
    places = [find_name(name, b.classes) for name in a.classes]
    if len(a.classes) != len(b.classes) or None in places:
        raise DataError(
            f"{first.run} and {second.run} differ in classes: {', '.join(sorted(set(a.classes) ^ set(b.classes))[:5])}",
            "Compare runs that were trained on the same classes",
        )
    order = [place for place in places if place is not None]
    temperatures = [e.calibration.temperature if e.calibration else 1.0 for e in (first, second)]
    return comparison.compare(
        a.logits / temperatures[0], b.logits[:, order] / temperatures[1], a.labels, a.test_set.groups
    )


def _calibrate(classifier: TorchClassifier, notes: list[str]) -> Steps[Calibration | None]:
    """The run's calibration; fitted now where the run has none. What prevents it becomes a note."""
    found = read_calibration(classifier.run)
    is_old = found is not None and not found.weak and found.novelty_score != SCORE_NAME  # of an earlier version
    if found is None or is_old:
        thresholds = found.thresholds if found else ()
        if found is None and classifier.run.read_calibration() is not None:
            notes.append("calibration.json was fitted for other weights than model.safetensors; it is fitted again")
        try:
            found = yield from calibrate_steps(classifier, classifier.run, thresholds=thresholds)
        except ImageError as error:
            notes.append(f"not calibrated, because the run's own images are gone: {error.problem}")
    if found and found.weak:
        notes.append(f"not calibrated, because {found.weak}")
    if found and (weak := describe_unreliable_ood(found)):
        notes.append(weak)
    return found


def _ask(classifier: Classifier, test_set: TestSet, what: str) -> Steps[tuple[NDArray[np.float32], float]]:
    """The logits of all images (N, K), and the seconds they took."""
    started = time.perf_counter()
    outputs = yield from classifier.classify_rows(test_set.index, test_set.rows, what=what)
    return outputs.logits, time.perf_counter() - started


def _describe_missed(point: OperatingPoint) -> str:
    """Return one sentence about a target that these images do not meet."""
    target, measured, interval = point.threshold.target, point.measured, point.measured_interval
    assert measured is not None
    ci = f", 95% CI [{100 * interval.low:.1f}, {100 * interval.high:.1f}]" if interval else ""
    chance = ", which includes the target" if interval and interval.high >= target.value else ""
    return f"target {target} is not met on these images: {target.figure} {100 * measured:.1f}%{ci}{chance}"


def _record(run: RunFolder, test_set: TestSet, metrics: Metrics, points: Sequence[OperatingPoint], *, tta: bool) -> int:
    return run.record_test(
        {
            "time": datetime.now(UTC).isoformat(timespec="seconds"),
            "data": str(test_set.index.root),
            "images": metrics.images,
            "balanced_accuracy": metrics.balanced_accuracy,
            "top1": metrics.top1,
            "tta": tta,
            "targets": {str(point.threshold.target): point.measured for point in points},
        }
    )


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return [_plain(part) for part in value]
    return asdict(value) if hasattr(value, "__dataclass_fields__") else value
