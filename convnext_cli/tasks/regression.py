"""Regression: a number for each image, with a prediction interval.

The model is trained on standardised targets, of their logarithm where they span several orders of magnitude. The
interval is split conformal: its half length is a quantile of the absolute errors on validation images.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar, Self

import numpy as np
from numpy.typing import NDArray

from convnext_cli.encoding import normalise_name
from convnext_cli.errors import DataError
from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.pooling import Rule, pool_scores
from convnext_cli.metrics.regression import RegressionCalculator, RegressionMetrics
from convnext_cli.metrics.scaling import fit_margin
from convnext_cli.metrics.summary import MetricSet, compute_once
from convnext_cli.options import AUTO
from convnext_cli.tasks.reading import (
    NUMBER,
    OtherTaskError,
    RawTargets,
    Table,
    TableOptions,
    find_number,
    is_measure,
    is_unknown,
    parse_numbers,
)
from convnext_cli.tasks.task import Chance, Display, Outcome, Pad, Scaling, Targets, Task
from convnext_cli.text import Advice, format_count, format_digits, format_part, shorten_names

COVERAGE = 0.9  # of prediction intervals
BINS = 10  # quantiles by which a split is stratified
LARGEST = 1e100  # number of a target, and inverse of the smallest range, whose squares can be summed
FAR = 10  # widths of the middle 80% of the numbers, from the median on; one in millions of normal values
LOG_RANGE = 20  # ratio of the 95% to the 5% quantile of skewed targets, from which on their logarithm is learned


@dataclass(frozen=True, kw_only=True, slots=True)
class Regression(Task):
    """A number for each image.

    Attributes:
        log: True if the logarithm of the targets is learned.
        mean: of the targets, or of their logarithm.
        std: their standard deviation.
    """

    log: bool = False
    mean: float = 0.0
    std: float = 1.0

    name: ClassVar[str] = "regression"
    title: ClassVar[str] = "a number per image"
    loss: ClassVar[str] = "huber"
    scores: ClassVar[str] = "value"
    problem_type: ClassVar[str | None] = "regression"
    metrics: ClassVar[type[MetricSet]] = RegressionMetrics
    columns: ClassVar[tuple[str, ...]] = ("value", "low", "high")
    has_values: ClassVar[bool] = True
    is_continuous: ClassVar[bool] = True
    unsupported: ClassVar[dict[str, str]] = dict.fromkeys(
        ("sampler", "class_weights", "logit_adjustment", "teacher"), "there are no classes"
    )
    ignored: ClassVar[dict[str, str]] = {
        **{name: reason for name, reason in Task.ignored.items() if name != "log_target"},
        "label_smoothing": "there are no classes",
    }
    display: ClassVar[Display] = Display(
        headline="mae",
        loss="rmse",
        epoch=("r2", "mae"),
        folds=("mae", "rmse", "r2", "pearson", "bias"),
        table=("mae", "rmse", "r2", "pearson", "bias", "limit_low", "limit_high", "coverage"),
        class_counts=(),
        class_estimates=(),
        class_values=(),
        compared=("mae", "rmse", "r2"),
        uncalibrated="no prediction intervals",
        subgroups=("mae", "bias", "coverage"),
        recalibrated=("coverage",),
        card=("mae", "rmse", "r2", "pearson", "coverage"),
        plots=("agreement", "bland_altman"),
        target_word="number",
        target_words="numbers",
        strata="tenths of the numbers",
        curves_heading="Agreement",
    )

    # Reading

    @classmethod
    def recognises(cls, table: Table, name: str, options: TableOptions) -> bool:
        """Return True if a column's numbers measure or count something."""
        return is_measure(table, name)

    @classmethod
    def read_cells(cls, table: Table, name: str, options: TableOptions) -> RawTargets:
        """Return the numbers of a column, and the choice of their logarithm."""
        cells = table.columns[name]
        values, comma = parse_numbers(cells)
        if wrong := [c for c, value in zip(cells, values, strict=True) if value is None and not is_unknown(c)]:
            number = format_part(len(wrong), len(cells), "cell", "is not a number", "are not numbers")
            raise OtherTaskError(
                f"--task {cls.name}: column {name!r} of {table.path}: {number}, such as {wrong[0]!r}",
                f"Correct these rows, or leave out --task {cls.name}",
            )
        table.refuse("no number", [row for row, cell in enumerate(cells) if is_unknown(cell)])
        numbers = [value for value in values if value is not None]
        if max(map(abs, numbers)) > LARGEST or 0 < max(numbers) - min(numbers) < 1 / LARGEST:
            raise DataError(
                f"column {name!r} of {table.path} has numbers from {min(numbers):g} to {max(numbers):g}, whose "
                "standard deviation cannot be computed",
                "Give them in another unit",
            )
        override = "; --task single or ordinal overrides this" if options.task == AUTO else ""
        span = f"{format_count(len(set(numbers)), 'value')} from {min(numbers):g} to {max(numbers):g}"
        notes: list[str] = [Advice(f"column {name!r} is a number ({span}): read as {cls.name}", override)]
        notes += [comma] if comma else []
        targets = cls._make_targets(numbers, normalise_name(name), options)
        return replace(targets, columns=(name,), notes=(*notes, *targets.notes))

    @classmethod
    def _make_targets(cls, numbers: Sequence[float], name: str, options: TableOptions) -> RawTargets:
        """Return targets, with notes on the choice of their logarithm and on outliers."""
        log = options.log_target == "yes" or (options.log_target == AUTO and _needs_logarithm(numbers))
        notes = [] if log else _note_outliers(numbers)
        if log and options.log_target == AUTO:
            low, high = _list_quantiles(numbers)
            fact = f"its 5% and 95% quantiles are {low:g} and {high:g}, and it is skewed: its logarithm is learned"
            notes.append(Advice(fact, "; --log-target no overrides this"))
        values = tuple((number,) for number in numbers)
        return RawTargets(task=cls(log=log), classes=(name,), values=values, notes=tuple(notes))

    @classmethod
    def read_folders(
        cls, folder: Path, classes: Sequence[str], labels: Sequence[str], options: TableOptions
    ) -> RawTargets:
        """Return the number in the name of each image's folder."""
        if wrong := [name for name in classes if len(NUMBER.findall(name)) != 1]:
            raise DataError(
                f"--task {cls.name} needs one number in the name of each class: {shorten_names(wrong)}",
                "Give a CSV file with a column of numbers",
            )
        numbers = {name: find_number(name) for name in classes}
        targets = cls._make_targets([numbers[label] for label in labels], "value", options)
        example = next((name for name in classes if not name.isdecimal()), classes[0])
        note = f"the names of the classes are read as numbers, such as {numbers[example]:g} for {example!r}"
        return replace(targets, notes=(note, *targets.notes))

    # Targets

    def stack_targets(self, labels: Sequence[int], values: Sequence[tuple[float, ...]]) -> Targets:
        """Return the number of each image, (N,) float64."""
        return np.array([row[0] for row in values], np.float64)

    def number_strata(self, values: Sequence[tuple[float, ...]]) -> list[int]:
        """Return the quantile that each number lies in, 0 to `BINS` - 1."""
        numbers = np.array([row[0] for row in values])
        edges = np.unique(np.quantile(numbers, np.linspace(0, 1, BINS + 1)[1:-1]))
        return [int(place) for place in np.searchsorted(edges, numbers, side="right")]

    def describe_classes(self, classes: Sequence[str]) -> str:
        """Return the name of the number."""
        return f"one number ({classes[0]})"

    def count(self, targets: Targets, num_classes: int) -> list[int]:
        """Return the number of images."""
        return [len(targets)]

    def list_strata(self, targets: Targets) -> list[tuple[int, ...]]:
        """Return the quantile that each number lies in."""
        return [(number,) for number in self.number_strata([(float(value),) for value in targets])]

    def explain_untrainable(self, targets: Targets, classes: Sequence[str]) -> tuple[str, str] | None:
        """Return that all numbers are equal, or that a logarithm does not exist; None if they can be learned."""
        if np.ptp(targets) == 0:
            return f"{classes[0]} is {targets[0]:g} for all training images", "Give images with different numbers"
        if self.log and targets.min() <= 0:
            return f"{classes[0]} has values of 0 or less, which have no logarithm", "Leave out --log-target yes"
        return None

    def explain_small_validation(self, targets: Targets, classes: Sequence[str]) -> str:
        """Return nothing: the number of images decides."""
        return ""

    def fit_targets(self, targets: Targets) -> Self:
        """Return the task with mean and standard deviation of targets."""
        values = np.log(targets) if self.log and targets.min() > 0 else targets
        return replace(self, mean=float(values.mean()), std=float(values.std()) or 1.0)

    # Model outputs

    def count_outputs(self, num_classes: int) -> int:
        """Return 1."""
        return 1

    @property
    def activation(self) -> str:
        """The name of the exponential, or of the identity."""
        return "exp" if self.log else "identity"

    @property
    def score_unit(self) -> float:
        """The standard deviation of the targets."""
        return math.exp(self.mean) * self.std if self.log else self.std

    def activate(self, logits: Floats) -> NDArray[np.float64]:
        """Return the predicted numbers (N, 1) of standardised outputs (N, 1)."""
        values = logits.astype(np.float64) * self.std + self.mean
        return np.exp(values) if self.log else values

    def calibrate(self, logits: Floats, scaling: Scaling | None) -> Floats:
        """Return the outputs as they are; a calibration gives intervals only."""
        return logits

    def list_affine(self, scaling: Scaling | None) -> tuple[Sequence[float], Sequence[float]] | None:
        """Return standard deviation and mean of the targets."""
        return (self.std,), (self.mean,)

    def describe_calibration(self, scaling: Scaling) -> str:
        """Return the ends of the intervals."""
        if scaling.margin is None:
            return "no prediction intervals, which need at least 9 images or groups"
        return f"90% prediction intervals from {self._describe_ends(scaling.margin * self.std, 3)}"

    def describe_scores(self, scaling: Scaling | None) -> str:
        """Return how the number follows from the output."""
        inner = f"logits * {self.std:.6g} + {self.mean:.6g}"
        return f"exp({inner})" if self.log else inner

    def describe_decision(self, scaling: Scaling | None) -> str:
        """Return the ends of the prediction interval."""
        if scaling is None or scaling.margin is None:
            return "There is no prediction interval."
        return f"The 90% prediction interval is {self._describe_ends(scaling.margin * self.std, 6)}."

    def _describe_ends(self, half: float, digits: int) -> str:
        """Return the ends of a prediction interval in words, in units of the targets."""
        size = format_digits(math.exp(half) if self.log else half, digits)
        return f"value / {size} to value * {size}" if self.log else f"value - {size} to value + {size}"

    def fit_calibration(self, logits: Floats, targets: Targets, groups: Sequence[str] | None) -> Scaling:
        """Fit the half length of the prediction intervals, in units of the model's output."""
        errors = np.abs(logits[:, 0].astype(np.float64) - self._standardise(targets))
        return Scaling(margin=fit_margin(errors, groups, COVERAGE))

    def _standardise(self, targets: Targets) -> NDArray[np.float64]:
        values: NDArray[np.float64] = np.log(np.maximum(targets, 1e-300)) if self.log else targets
        return (values - self.mean) / self.std

    def average(self, logits: Sequence[Floats]) -> Floats:
        """Return the mean of the members' outputs, (N, 1)."""
        mean: Floats = np.mean(logits, axis=0)
        return mean

    def select_known(self, targets: Targets, k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return no image: a number has no classes."""
        return np.zeros(len(targets), np.bool_), np.zeros(len(targets), np.bool_)

    def decide(self, scores: Floats, scaling: Scaling | None) -> NDArray[Any]:
        """Return True for each image: a number is predicted, not decided."""
        return np.ones(len(scores), np.bool_)

    def is_correct(self, decision: Any, target: Any) -> bool:
        """Return False, so that the true number is always shown."""
        return False

    def rank_errors(
        self, scores: NDArray[np.float64], targets: Targets, scaling: Scaling | None
    ) -> tuple[list[int], list[int]]:
        """Return all images, the largest error first; and none by confidence."""
        errors = np.abs(scores[:, 0] - targets)
        return [int(i) for i in np.argsort(-errors, kind="stable")], []

    def summarise(self, scores: NDArray[np.float64], classes: Sequence[str], scaling: Scaling | None) -> Outcome:
        """Return the predicted number of one image, with its 90% prediction interval."""
        value = float(scores[0])
        low, high = self._list_ends(scores[None], scaling) if scaling and scaling.margin is not None else (None, None)
        return Outcome(value=value, interval=None if low is None or high is None else (float(low[0]), float(high[0])))

    def _list_ends(self, scores: Floats, scaling: Scaling) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
        """Return both ends of the prediction intervals, each (N,)."""
        half = (scaling.margin or 0.0) * self.std
        values = scores[:, 0].astype(np.float64)
        if self.log:
            return values * math.exp(-half), values * math.exp(half)
        return values - half, values + half

    def list_differences(
        self, outcome: Outcome, target: Any, classes: Sequence[str], scaling: Scaling | None
    ) -> list[str]:
        """Return the predicted number beside the true one, and their difference."""
        assert outcome.value is not None
        interval = f" ({_show_interval(outcome.interval)})" if outcome.interval else ""
        error = outcome.value - float(target)
        size = f"{format_digits(abs(error), 3)} too {'high' if error > 0 else 'low'}"
        return [
            f"predicted {format_digits(outcome.value, 4)}{interval}, labelled {format_digits(float(target), 4)}: {size}"
        ]

    # Groups

    def pool(self, logits: Floats, units: Ints, rule: Rule, negative: int | None = None) -> NDArray[np.float64]:
        """Return the mean output of each group's images, (G, 1)."""
        return pool_scores(logits, units, rule)

    def pool_targets(self, targets: Targets, units: Ints, negative: int | None) -> Targets:
        """Return the mean number of each group's images, (G,)."""
        means: NDArray[np.float64] = np.bincount(units, targets) / np.bincount(units)
        return means

    def describe_pooled_target(self, negative: str | None) -> str:
        """Return that the mean counts."""
        return "the mean number counts"

    def measure_losses(self, logits: Floats, targets: Targets) -> NDArray[np.float64]:
        """Return the squared error of each standardised output, (N,)."""
        errors: NDArray[np.float64] = (logits[:, 0] - self._standardise(targets)) ** 2
        return errors

    # Metrics

    def make_calculator(self, logits: Floats, targets: Targets, scaling: Scaling | None = None) -> RegressionCalculator:
        """Return the calculator of regression metrics."""
        values = self.activate(logits)
        covered = None
        if scaling and scaling.margin is not None:
            low, high = self._list_ends(values, scaling)
            covered = (low <= targets) & (targets <= high)
        return RegressionCalculator(values[:, 0], targets, covered)

    def summarise_metrics(self, calculator: Any, classes: Sequence[str]) -> RegressionMetrics:
        """Return the regression metrics of a calculator."""
        return RegressionMetrics(images=calculator.images, **compute_once(calculator)[0])

    def describe_results(self, metrics: MetricSet, scores: Floats, targets: Targets) -> list[str]:
        """Return how far predictions are off, and for which third of the numbers most."""
        errors = np.abs(scores[:, 0] - targets)
        half, most = (format_digits(size, 3) for size in np.quantile(errors, [0.5, 0.9], method="inverted_cdf"))
        sentences = [f"Half of the predictions are off by at most {half}, 9 of 10 by at most {most}."]
        low, high = np.quantile(targets, [1 / 3, 2 / 3])
        first, second = (format_digits(end, 4) for end in (low, high))
        thirds = {
            f"up to {first}": targets <= low,
            f"between {first} and {second}": (targets > low) & (targets < high),
            f"from {second} on": targets >= high,
        }
        means = {name: errors[mask].mean() for name, mask in thirds.items() if mask.any()}
        worst = max(means, key=lambda name: means[name])
        return [*sentences, f"Least accurate for numbers {worst}: off by {format_digits(means[worst], 3)} on average."]

    def measure_chance(self, metrics: MetricSet, targets: Targets) -> Chance:
        """Return the mean absolute error of always giving the median, which has the smallest."""
        median = float(np.median(targets))
        value = float(np.abs(targets - median).mean())
        text = (
            f"always predicting {format_digits(median, 4)}, the median, is off by {format_digits(value, 3)} on average"
        )
        return Chance(value=value, text=text, logits=np.full((len(targets), 1), self._standardise(np.array(median))))

    # Text

    def to_row(self, outcome: Outcome, top_k: int) -> dict[str, Any]:
        """Return the number and its interval."""
        low, high = outcome.interval or (None, None)
        return {"value": outcome.value, "low": low, "high": high}

    def list_cells(self, outcome: Outcome) -> list[Any]:
        """Return the number and both ends of its interval."""
        return [outcome.value, *(outcome.interval or ("", ""))]

    def list_parts(self, outcome: Outcome, top_k: int, pad: Pad) -> list[str]:
        """Return the number with its interval."""
        assert outcome.value is not None
        interval = f"  {_show_interval(outcome.interval)}" if outcome.interval else ""
        return [f"{format_digits(outcome.value, 4)}{interval}"]


def _show_interval(interval: tuple[float, float]) -> str:
    low, high = (format_digits(end, 4) for end in interval)
    return f"90% interval [{low}, {high}]"


def _needs_logarithm(numbers: Sequence[float]) -> bool:
    """Return True if positive numbers span a wide range and their logarithm is less skewed."""
    low, high = _list_quantiles(numbers)
    if min(numbers) <= 0 or high / low < LOG_RANGE:
        return False
    return abs(_skewness(list(map(math.log, numbers)))) < abs(_skewness(numbers))


def _skewness(numbers: Sequence[float]) -> float:
    """Return the third standardised moment of different numbers."""
    mean, deviation = statistics.fmean(numbers), statistics.pstdev(numbers)
    return statistics.fmean(((number - mean) / deviation) ** 3 for number in numbers)


def _note_outliers(numbers: Sequence[float]) -> list[str]:
    """Return a note on numbers far from most others, as codes of missing values such as -999; empty if there are none.

    They determine the standard deviation by which the targets are divided.
    """
    low, high = _list_quantiles(numbers, 0.1)
    middle = statistics.median_low(numbers)
    far = [number for number in numbers if abs(number - middle) > FAR * (high - low) > 0]
    if not far:
        return []
    part = format_part(len(far), len(numbers), "number", "is", "are")
    note = (
        f"{part} far from the others (80% lie from {low:g} to {high:g}), such as {far[0]:g}, and would dominate the "
        "loss; correct or remove mistakes and codes of missing values"
    )
    return [note]


def _list_quantiles(numbers: Sequence[float], tail: float = 0.05) -> tuple[float, float]:
    ordered = sorted(numbers)
    return ordered[int(tail * (len(ordered) - 1))], ordered[int((1 - tail) * (len(ordered) - 1))]
