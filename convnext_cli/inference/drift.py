"""Drift: differences between the images of an evaluation and those that the run was calibrated on."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
from numpy.typing import NDArray

from convnext_cli.data.audit.measurements import measure_images
from convnext_cli.data.index import select_rows
from convnext_cli.inference.calibration import Calibration, read_calibration, read_novelty
from convnext_cli.inference.classifier import Classifier, Outputs
from convnext_cli.inference.ensemble import Ensemble
from convnext_cli.inference.test_set import TestSet
from convnext_cli.inference.torch_classifier import TorchClassifier
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.drift import (
    LEVEL,
    MIN_DIFFERENCE,
    MIN_DISTANCE,
    MIN_IMAGES,
    Shift,
    choose_one_per_group,
    compare_fractions,
    compare_values,
)
from convnext_cli.metrics.registry import MISSING
from convnext_cli.metrics.subgroups import correct_holm
from convnext_cli.progress import Notice, Steps
from convnext_cli.runs.files import IMAGE_HASHES
from convnext_cli.tasks.task import Targets, Task
from convnext_cli.text import format_count, format_digits, format_p, format_percent

OOD = "ood"
STATISTICS = {0: ("brightness", "brightness"), 1: ("contrast", "log contrast"), 2: ("colour", "log colourfulness"),
              3: ("sharpness", "log sharpness")}  # fmt: skip
"""Columns of `measure_pixels` that are compared, with key and title."""
CORNERS = {f"{side}_corner": f"log detail {side.replace('_', ' ')}" for side in (
    "upper_left", "upper_right", "lower_left", "lower_right",
)}  # fmt: skip
"""Columns of `measure_corners`, where a scanner's text would be: key and title."""
CRITERION = (
    f"one image per group; Kolmogorov-Smirnov distance of at least {MIN_DISTANCE:g} with Holm-corrected p < {LEVEL:g}"
)
CLASS_CRITERION = (
    f"{CRITERION}; for a class a difference of at least {100 * MIN_DIFFERENCE:.0f} points with Fisher's exact test"
)

COLUMNS = ("median, or fraction", "validation", "here", "distance", "p (Holm)", "drift")
"""Of a table of measures."""


@dataclass(frozen=True, kw_only=True, slots=True)
class DriftMeasure:
    """A property of the images, and how much it differs from that of the validation images."""

    key: str
    title: str
    is_class: bool
    """True for the fraction of a class, False for a measure of the images' pixels."""
    difference: Shift
    p_holm: float | None
    """Corrected for all measures (Holm 1979)."""
    is_drift: bool
    """True if the difference is significant and large."""

    def list_cells(self) -> tuple[str, ...]:
        """Return the cells of `COLUMNS`."""
        difference = self.difference
        return (
            self.title,
            format_digits(difference.validation, 3),
            format_digits(difference.here, 3),
            f"{difference.distance:.2f}",
            MISSING if self.p_holm is None else format_p(self.p_holm).removeprefix("= "),
            MISSING if self.p_holm is None else "yes" if self.is_drift else "no",
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class Drift:
    """Differences between evaluated images and the run's validation images."""

    measures: tuple[DriftMeasure, ...]
    validation_images: int
    """Number of validation images that are compared, one per group."""
    images: int
    """Number of evaluated images that are compared, one per group."""
    flagged: float | None
    """Fraction of all evaluated images whose OOD score is above the run's threshold."""
    expected: float
    """Largest fraction of validation images above it."""
    criterion: str

    @property
    def is_tested(self) -> bool:
        """True if there were enough images for a test."""
        return any(measure.p_holm is not None for measure in self.measures)

    @property
    def images_drifted(self) -> bool:
        """True if the pixels, the sizes or the OOD scores have drifted."""
        return any(measure.is_drift and not measure.is_class for measure in self.measures)

    def describe_flagged(self) -> str:
        """Return how many images are above the OOD threshold; empty where that is not known."""
        if self.flagged is None:
            return ""
        return (
            f"{format_percent(self.flagged)}% of the images are above the OOD threshold; of validation images at most "
            f"{format_percent(self.expected)}% are"
        )

    def describe_comparison(self) -> str:
        """Return the numbers of images that are compared, and the criterion."""
        return f"{format_count(self.images, 'image')} with {self.validation_images:,}; drift: {self.criterion}"


@dataclass(frozen=True, kw_only=True, slots=True)
class ImageMeasures:
    """Measures of images."""

    values: Mapping[str, Floats]
    """Each (N,), by key."""
    targets: Targets
    groups: Sequence[str] | None


def measure_drift(
    classifier: Classifier,
    calibration: Calibration | None,
    test_set: TestSet,
    outputs: Outputs,
    fit_set: TestSet | None,
) -> Steps[tuple[Drift | None, list[Notice]]]:
    """Compare the images of an evaluation with the run's validation images; the outputs of other data have features.

    Those of a cross-validation are the validation images of all folds. Their OOD scores are of different models, and
    are not compared. `fit_set` has the images that the calibration was fitted on again, if it was.

    Returns:
        The drift with notes on it; None for the run's own data; None with the reason where nothing can be compared.
    """
    if test_set.is_own:
        return None, []
    members = _list_members(classifier)
    is_single = len(members) == 1
    calibrations = [calibration] if is_single else [read_calibration(member.run) for member in members]
    if not all(each is not None and each.is_fitted for each in calibrations):
        return None, [Notice("drift is not measured: the run has too few validation images")]
    references: list[ImageMeasures] = []
    for member in members:
        reference = _read_reference(member)
        if reference is None:
            return None, [Notice("drift is not measured: the run keeps no measures of its validation images")]
        references.append(reference)
    measurements = yield from measure_images(select_rows(test_set.index, test_set.rows))
    sizes = measurements.list_sizes(range(len(test_set.rows)))
    scores = read_novelty(members[0].run).score(outputs.features, outputs.statistics) if is_single else None
    here = ImageMeasures(
        values=list_values(scores, outputs.statistics, outputs.corners, sizes),
        targets=classifier.read_targets(test_set.index, test_set.rows),
        groups=test_set.groups,
    )
    drift = compare_samples(classifier.task, classifier.classes, join_measures(references), here)
    if scores is not None and calibration is not None and calibration.novelty_threshold is not None:
        flagged = float((scores > calibration.novelty_threshold).mean())
        drift = replace(drift, flagged=flagged, expected=calibration.novelty_rate)
    return drift, describe_drift(drift, is_recalibrated=fit_set is not None)


def _list_members(classifier: Classifier) -> list[TorchClassifier]:
    """Return the models of a cross-validation, or the only one of a run."""
    members = [member.classifier for member in classifier.members] if isinstance(classifier, Ensemble) else [classifier]
    return [member for member in members if isinstance(member, TorchClassifier)]


def join_measures(parts: Sequence[ImageMeasures]) -> ImageMeasures:
    """Return the measures of all images; the OOD score only if there is one part, as others have other models."""
    if len(parts) == 1:
        return parts[0]
    keys = [key for key in parts[0].values if key != OOD and all(key in part.values for part in parts)]
    groups = [part.groups for part in parts if part.groups is not None]
    return ImageMeasures(
        values={key: np.concatenate([part.values[key] for part in parts]) for key in keys},
        targets=np.concatenate([part.targets for part in parts]),
        groups=[group for part in groups for group in part] if len(groups) == len(parts) else None,
    )


def _read_reference(classifier: TorchClassifier) -> ImageMeasures | None:
    """Return the measures of the run's validation images; None if it keeps none, as runs of earlier versions."""
    run = classifier.run
    index, arrays = run.read_split(), run.read_calibration_arrays()
    if "val_corners" not in arrays:
        return None
    rows = index.rows("val")
    scores, statistics, corners = (arrays[f"val_{name}"] for name in ("novelty", "statistics", "corners"))
    sizes = (run.read_arrays(IMAGE_HASHES) or {}).get("size")
    sizes = None if sizes is None or len(sizes) != len(index) else sizes[rows]
    return ImageMeasures(
        values=list_values(scores, statistics, corners, sizes),
        targets=classifier.read_targets(index, rows),
        groups=index.list_groups(rows),
    )


def list_values(
    scores: Floats | None, statistics: Floats, corners: Floats, sizes: NDArray[Any] | None
) -> dict[str, Floats]:
    """Return the measures of images by key, each (N,); without OOD scores or sizes where these are not known."""
    values: dict[str, Floats] = {} if scores is None else {OOD: scores}
    values |= {key: statistics[:, column] for column, (key, _) in STATISTICS.items()}
    values |= {key: corners[:, column] for column, key in enumerate(CORNERS)}
    if sizes is not None:
        width, height = sizes.astype(np.float64).T
        values |= {"size": np.sqrt(width * height), "aspect": width / np.maximum(height, 1)}
    return values


def compare_samples(task: Task, classes: Sequence[str], validation: ImageMeasures, here: ImageMeasures) -> Drift:
    """Return the differences between two samples of images."""
    titles = {OOD: "OOD score", "size": "size px", "aspect": "width / height"} | dict(STATISTICS.values()) | CORNERS
    one, two = (choose_one_per_group(len(sample.targets), sample.groups) for sample in (validation, here))
    entries = [  # key, title, is_class, least distance that is drift, shift
        (key, titles[key], False, MIN_DISTANCE, compare_values(validation.values[key][one], here.values[key][two]))
        for key in validation.values
    ]
    for k, name in enumerate(classes):
        parts = [
            positive[known]
            for sample, rows in ((validation, one), (here, two))
            for positive, known in [task.select_known(sample.targets[rows], k)]
        ]
        if all(map(len, parts)) and not (k == 0 and len(classes) == 2):  # of two classes, one tells both
            entries.append(
                (name, f"fraction of {task.describe_name(name)}", True, MIN_DIFFERENCE, compare_fractions(*parts))
            )
    if task.count_outputs(len(classes)) == 1 and validation.targets.ndim == 1:  # a number
        shift = compare_values(validation.targets[one], here.targets[two])
        entries.append((classes[0], classes[0], True, MIN_DISTANCE, shift))
    corrected = correct_holm([shift.p_value for *_, shift in entries])
    measures = [
        DriftMeasure(
            key=key,
            title=title,
            is_class=is_class,
            difference=shift,
            p_holm=p,
            is_drift=p is not None and p < LEVEL and shift.distance >= least,
        )
        for (key, title, is_class, least, shift), p in zip(entries, corrected, strict=True)
    ]
    return Drift(
        measures=tuple(measures),
        validation_images=len(one),
        images=len(two),
        flagged=None,
        expected=0.0,
        criterion=CRITERION if task.is_continuous else CLASS_CRITERION,
    )


def describe_drift(drift: Drift, *, is_recalibrated: bool) -> list[Notice]:
    """Return a warning for drift of the images, and one for another balance of the classes; else a note."""
    if not drift.is_tested:
        text = (
            f"drift cannot be tested: {drift.images:,} of these images and "
            f"{format_count(drift.validation_images, 'validation image')}, one per group; it needs {MIN_IMAGES} of each"
        )
        return [Notice(text)]
    notices = []
    images, balance = (
        ", ".join(
            f"{measure.title} ({format_digits(measure.difference.here, 3)} here, "
            f"{format_digits(measure.difference.validation, 3)} on validation)"
            for measure in drift.measures
            if measure.is_drift and measure.is_class == is_class
        )
        for is_class in (False, True)
    )
    if images:
        text = f"drift: these images differ from the run's validation images: {images}"
        if not is_recalibrated:
            text += (
                ". The run's calibration and thresholds may not hold here; --recalibrate fits the calibration on a few "
                "of them"
            )
        notices.append(Notice(text, "warning"))
    if balance:
        effect = "Metrics that depend on their distribution, such as predictive values and R2, do not carry over"
        notices.append(Notice(f"other targets than on validation: {balance}. {effect}", "warning"))
    if not notices:
        has_ood = any(measure.key == OOD for measure in drift.measures)
        text = (
            f"no drift found: {drift.images:,} of these images compared with {drift.validation_images:,} validation "
            f"images by {'OOD score, ' * has_ood}pixels, size and targets"
        )
        notices.append(Notice(text))
    return notices
