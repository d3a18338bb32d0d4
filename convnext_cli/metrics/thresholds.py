"""Operating points: decision thresholds that reach targets, and what they reach on other images.

A target bounds one or several of sensitivity, specificity, PPV and NPV from below. `metrics.confidence` has the
confidence that the true values reach the bounds.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Any, Literal, cast, get_args

import numpy as np
from msgspec import Meta, Struct
from numpy.typing import NDArray

from convnext_cli.errors import UsageError
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.confidence import Rate, count_independent, measure_confidence
from convnext_cli.metrics.curves import count_down, list_thresholds
from convnext_cli.metrics.decision import complement, estimate_likelihood_ratios, update_prevalence
from convnext_cli.metrics.intervals import Interval, estimate_fraction
from convnext_cli.metrics.registry import METRICS, MISSING, format_ci
from convnext_cli.metrics.summary import Fraction, none_if_nan
from convnext_cli.text import format_count, format_inside, format_percent

TargetMetric = Literal["sensitivity", "specificity", "ppv", "npv"]
TARGET_METRICS: tuple[TargetMetric, ...] = get_args(TargetMetric)
PREDICTIVE = ("ppv", "npv")
"""Target metrics that depend on the prevalence."""
_TARGET = re.compile(r"(?P<bounds>[^:]+):(?P<name>.+?)(?:@(?P<extras>(?:prevalence|confidence)=[^@]*))?", re.DOTALL)
_FALLING = ("sensitivity", "npv")  # with a rising threshold; the others rise


class Bound(Struct, frozen=True, rename={"metric": "figure"}):
    """A metric that is to be at least `value`."""

    metric: TargetMetric
    value: Annotated[float, Meta(gt=0, le=1)]

    @property
    def title(self) -> str:
        """The metric's name in a sentence."""
        return METRICS[self.metric].title if self.metric in PREDICTIVE else self.metric

    @property
    def least(self) -> float:
        """The smallest value of the metric that reaches the bound: rounding of 19 / 20 must not miss 0.95."""
        return self.value - 1e-9

    def format(self, value: float | None) -> str:
        """Return a value of the metric in percent; one below the bound is not rounded up to it: `>94.9`."""
        if value is None:
            return MISSING
        return format_inside(100 * value, 1, 0, 100 * self.value if value < self.least else 100)

    def describe(self, value: float | None) -> str:
        """Return a value of the metric with its name and unit: `PPV 31.2%`, or `PPV -` where it is not defined."""
        return f"{self.title} {self.format(value)}{'%' * (value is not None)}"

    def __str__(self) -> str:
        return f"{self.metric}={self.value:g}"


class Target(Struct, frozen=True, rename={"metric": "figure"}):
    """A metric of at least `value` for the class `name`, and further bounds. `severe+` is this grade and higher ones.

    The field names are keys of `calibration.json`; the metric's key is `figure`.
    """

    metric: TargetMetric
    value: Annotated[float, Meta(gt=0, le=1)]
    name: str
    also: tuple[Bound, ...] = ()
    """Further bounds, which the same threshold is to reach."""
    prevalence: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """Fraction of the class where the model is used, for PPV and NPV; None for that of the images."""
    confidence: Annotated[float, Meta(gt=0, lt=1)] | None = None
    """Confidence that the threshold is chosen with; None: the bounds hold on the images that it is set on."""

    @property
    def bounds(self) -> tuple[Bound, ...]:
        """All bounds, in their order."""
        return (Bound(self.metric, self.value), *self.also)

    def list_positive(self, classes: Sequence[str]) -> list[int]:
        """Return the classes that count as positive: one, or a grade and all higher ones; empty for an unknown name."""
        if self.name in classes:
            return [classes.index(self.name)]
        lowest = self.name.removesuffix("+")
        is_range = lowest != self.name and lowest in classes
        return list(range(classes.index(lowest), len(classes))) if is_range else []

    def score(self, probabilities: Floats, classes: Sequence[str]) -> Floats:
        """Return the probability of the positive classes, (...), from that of each class, (..., K)."""
        total: Floats = probabilities[..., self.list_positive(classes)].sum(axis=-1)
        return total

    def describe_score(self, classes: Sequence[str]) -> str:
        """Return which probability a threshold is for, in words."""
        *others, last = (classes[k] for k in self.list_positive(classes))
        return f"sum of the probabilities of {', '.join(others)} and {last}" if others else f"probability of {last}"

    def __str__(self) -> str:
        extras = {"prevalence": self.prevalence, "confidence": self.confidence}
        extra = ",".join(f"{name}={value:g}" for name, value in extras.items() if value is not None)
        return f"{','.join(map(str, self.bounds))}:{self.name}{'@' * bool(extra)}{extra}"


def parse_target(text: str) -> Target:
    """Parse `sensitivity=0.95:CLASS`, `sensitivity=0.9,specificity=0.8:CLASS` or `ppv=0.8:CLASS@prevalence=0.02`.

    Raises:
        UsageError: the text has another form, or a PPV or NPV no prevalence.
    """
    match = _TARGET.fullmatch(text)
    bounds = _read_numbers(match["bounds"], TARGET_METRICS) if match else None
    extras = _read_numbers(match["extras"], ("prevalence", "confidence")) if match and match["extras"] else {}
    if match is None or not bounds or extras is None or any(value >= 1 for value in extras.values()):
        raise UsageError(
            f"cannot read the target {text!r}",
            "Write it as sensitivity=0.95:CLASS, sensitivity=0.9,specificity=0.8:CLASS or "
            "ppv=0.8:CLASS@prevalence=0.02; values are fractions above 0, or percentages such as 95%",
        )
    if "prevalence" not in extras and any(metric in PREDICTIVE for metric in bounds):
        raise UsageError(
            f"the target {text!r} depends on how frequent the class is where the model is used",
            f"State it, such as {text}{',' if extras else '@'}prevalence=0.02",
        )
    first, *also = (Bound(cast("Any", metric), value) for metric, value in bounds.items())
    return Target(first.metric, first.value, match["name"], tuple(also), **extras)


def _read_numbers(text: str, names: Sequence[str]) -> dict[str, float] | None:
    """Return the numbers of `name=0.95,name=95%`, above 0 and up to 1; None if the text has another form."""
    numbers: dict[str, float] = {}
    for part in text.split(","):
        name, _, value = part.partition("=")
        try:
            number = float(value.removesuffix("%")) / (100 if value.endswith("%") else 1)
        except ValueError:
            return None
        if name not in names or name in numbers or not 0 < number <= 1:
            return None
        numbers[name] = number
    return numbers


class Reached(Struct, frozen=True, kw_only=True, rename={"value": "reached"}):
    """The value of a bound's metric on the images that a threshold was set on."""

    value: Fraction | None
    """None where it is not defined, as a PPV without a positive result."""
    images: Annotated[int, Meta(ge=0)]
    """Number of these images that the metric depends on."""
    confidence: Fraction | None = None
    """Confidence that the true value is at least the bound; None in runs of earlier versions, or if not known."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Threshold:
    """A target and the decision threshold set for it."""

    target: Target
    threshold: Annotated[float, Meta(ge=0)]
    """Images with at least this probability are positive."""
    reached: Fraction
    """The target's first metric on the images that the threshold was set on."""
    images: Annotated[int, Meta(ge=0)]
    """Number of these images in the denominator: those of the class for a sensitivity, all others for a specificity."""
    confidence: Fraction | None = None
    """Confidence that the true value of the first metric is at least the target."""
    also: tuple[Reached, ...] = ()
    """Of the target's further bounds."""

    def __post_init__(self) -> None:
        if len(self.also) != len(self.target.also):
            values, bounds = format_count(1 + len(self.also), "value"), format_count(len(self.target.bounds), "bound")
            raise ValueError(f"{values} for {bounds}")

    @property
    def reached_bounds(self) -> tuple[tuple[Bound, Reached], ...]:
        """Each bound of the target with its value on the images that the threshold was set on."""
        first = Reached(value=self.reached, images=self.images, confidence=self.confidence)
        return tuple(zip(self.target.bounds, (first, *self.also), strict=True))

    @property
    def unreachable(self) -> tuple[Bound, ...]:
        """The bounds that this threshold does not reach on the images that it was set on."""
        asked = self.target.confidence or 0.0
        return tuple(
            bound
            for bound, reached in self.reached_bounds
            if reached.value is None or reached.value < bound.least or (reached.confidence or 0.0) < asked
        )


@dataclass(frozen=True, kw_only=True, slots=True)
class BoundResult:
    """The value of a bound's metric on other images."""

    bound: Bound
    value: float | None
    """None where it is not defined."""
    interval: Interval | None
    confidence: float | None
    """Confidence that the true value is at least the bound."""

    @property
    def is_missed(self) -> bool:
        """True if the metric is below the bound."""
        return self.value is not None and self.value < self.bound.least

    def __str__(self) -> str:
        ci = f", 95% CI {format_ci(self.interval)}" if self.interval else ""
        return f"{self.bound.describe(self.value)}{ci}"


@dataclass(frozen=True, kw_only=True, slots=True)
class OperatingPoint:
    """Metrics of a threshold on other images; None where no image is of the class, or all are."""

    threshold: Threshold
    sensitivity: float | None
    sensitivity_interval: Interval | None
    specificity: float | None
    specificity_interval: Interval | None
    prevalence: float | None
    """Prevalence that PPV and NPV hold for: the target's, or the fraction of these images."""
    ppv: float | None
    ppv_interval: Interval | None
    npv: float | None
    npv_interval: Interval | None
    positive_ratio: float | None
    """Positive likelihood ratio; infinite without a false positive."""
    positive_ratio_interval: Interval | None
    negative_ratio: float | None
    """Negative likelihood ratio."""
    negative_ratio_interval: Interval | None
    results: tuple[BoundResult, ...]
    """Of each bound of the target."""

    @property
    def missed(self) -> tuple[BoundResult, ...]:
        """The bounds that these images do not reach."""
        return tuple(result for result in self.results if result.is_missed)

    @property
    def is_missed(self) -> bool:
        """True if the target is not met on these images."""
        return bool(self.missed)

    @property
    def is_met(self) -> bool:
        """True if all bounds of the target are reached on these images; False where one is not defined."""
        return not any(result.value is None or result.is_missed for result in self.results)

    def to_record(self) -> float | dict[str, float | None] | None:
        """Return the value of the target's metric, or of each where there are several, for `tests.jsonl`."""
        values = {result.bound.metric: result.value for result in self.results}
        return values if len(values) > 1 else self.results[0].value  # type: ignore[return-value]


@dataclass(frozen=True, slots=True)
class _Candidates:
    """Thresholds that decide differently, the highest first, and what each reaches."""

    thresholds: Floats
    sensitivity: Rate
    specificity: Rate

    def select(self, numbers: NDArray[np.int64]) -> "_Candidates":
        """Return some of the candidates."""
        rates = (Rate(rate.value[numbers], rate.effective) for rate in (self.sensitivity, self.specificity))
        return _Candidates(self.thresholds[numbers], *rates)

    def measure(self, metric: TargetMetric, prevalence: float) -> Floats:
        """Return a metric at each threshold; nan where it is not defined."""
        if metric == "sensitivity":
            return self.sensitivity.value
        if metric == "specificity":
            return self.specificity.value
        right, wrong = self.sensitivity.value * prevalence, (1 - self.specificity.value) * (1 - prevalence)
        if metric == "npv":
            right, wrong = self.specificity.value * (1 - prevalence), (1 - self.sensitivity.value) * prevalence
        with np.errstate(invalid="ignore"):
            return right / (right + wrong)

    def measure_confidence(self, bound: Bound, prevalence: float) -> Floats:
        """Return the confidence that the true metric is at least a bound, at each threshold."""
        return measure_confidence(bound.metric, bound.value, self.sensitivity, self.specificity, prevalence)


def find_threshold(
    scores: Floats, positive: NDArray[np.bool_], target: Target, groups: Sequence[str] | None = None
) -> Threshold:
    """Return the threshold that reaches a target at the least cost in the other metrics.

    It lies halfway between two scores, so that rounding does not change decisions. Where bounds pull to both sides, it
    is the one with the highest confidence in the less certain bound. Where no threshold reaches all bounds, the last
    ones give way; where none reaches the first, it is the nearest (`Threshold.unreachable`).

    Args:
        scores: (N,) probabilities of the class.
        positive: (N,) true for images of the class.
        target: the bounds to reach.
        groups: (N,) names, for the confidence; None where groups are not known.

    Raises:
        ValueError: no image is of the class, or all are.
    """
    if positive.all() or not positive.any():
        raise ValueError("a threshold needs images of the class and of others")
    prevalence = float(positive.mean()) if target.prevalence is None else target.prevalence
    candidates = _list_candidates(scores, positive, groups)
    chosen = candidates.select(np.array([_choose(candidates, target, prevalence)]))
    counts = {"sensitivity": int(positive.sum()), "specificity": int((~positive).sum())}
    first, *also = (
        Reached(
            value=none_if_nan(chosen.measure(bound.metric, prevalence)[0]),
            images=counts.get(bound.metric, len(positive)),
            confidence=float(chosen.measure_confidence(bound, prevalence)[0]),
        )
        for bound in target.bounds
    )
    return Threshold(
        target=target,
        threshold=float(chosen.thresholds[0]),
        reached=first.value or 0.0,  # it is defined at the chosen threshold
        images=first.images,
        confidence=first.confidence,
        also=tuple(also),
    )


def _list_candidates(scores: Floats, positive: NDArray[np.bool_], groups: Sequence[str] | None) -> _Candidates:
    """Return all thresholds that decide differently: above, between and below the distinct scores."""
    true, false = (np.append(0.0, counts) for counts in count_down(scores, positive))
    negative = ~positive
    return _Candidates(
        list_thresholds(scores),
        Rate(true / positive.sum(), count_independent(positive, groups)),
        Rate(1 - false / negative.sum(), count_independent(negative, groups)),
    )


def _choose(candidates: _Candidates, target: Target, prevalence: float) -> int:
    """Return the number of the candidate that reaches the bounds of a target at the least cost."""
    reaching = [_reach(candidates, bound, prevalence, target.confidence) for bound in target.bounds]
    for count in range(len(reaching), 0, -1):
        numbers = np.flatnonzero(np.all(reaching[:count], axis=0))
        if not len(numbers):
            continue
        bounds = target.bounds[:count]
        falling = {bound.metric in _FALLING for bound in bounds}
        if len(falling) == 1:
            return int(numbers[0] if falling == {True} else numbers[-1])
        selected = candidates.select(numbers)
        confidences = [selected.measure_confidence(bound, prevalence) for bound in bounds]
        return int(numbers[np.min(confidences, axis=0).argmax()])
    first = target.bounds[0]
    values = (
        candidates.measure(first.metric, prevalence)
        if target.confidence is None
        else candidates.measure_confidence(first, prevalence)
    )
    nearest = np.flatnonzero(np.nan_to_num(values, nan=-1.0) >= np.nanmax(values) - 1e-12)
    return int(nearest[0] if first.metric in _FALLING else nearest[-1])


def _reach(candidates: _Candidates, bound: Bound, prevalence: float, confidence: float | None) -> NDArray[np.bool_]:
    reached = candidates.measure(bound.metric, prevalence) >= bound.least
    if confidence is not None:
        numbers = np.flatnonzero(reached)
        reached[numbers] = candidates.select(numbers).measure_confidence(bound, prevalence) >= confidence
    return reached


def apply_threshold(
    threshold: Threshold, scores: Floats, positive: NDArray[np.bool_], groups: Sequence[str] | None
) -> OperatingPoint:
    """Return what a threshold reaches on other images, with 95% CIs.

    Arguments as `find_threshold`; the groups give clustered CIs.
    """
    predicted, target = scores >= threshold.threshold, threshold.target
    sensitivity = estimate_fraction(predicted, positive, groups)
    specificity = estimate_fraction(~predicted, ~positive, groups)
    prevalence = target.prevalence
    if prevalence is None and 0 < positive.sum() < len(positive):
        prevalence = float(positive.mean())
    ratios = estimate_likelihood_ratios(sensitivity, specificity)
    ppv, false_omission_rate = (update_prevalence(ratio, prevalence) for ratio in ratios)
    estimates = {
        "sensitivity": sensitivity,
        "specificity": specificity,
        "ppv": ppv,
        "npv": complement(false_omission_rate),
    }
    sensitivity_rate, specificity_rate = (
        Rate(np.array([estimate.value or 0.0]), count_independent(mask, groups))
        for estimate, mask in ((sensitivity, positive), (specificity, ~positive))
    )
    results = []
    for bound in target.bounds:
        estimate, confidence = estimates[bound.metric], None
        if estimate.value is not None:
            rates = sensitivity_rate, specificity_rate
            confidence = float(measure_confidence(bound.metric, bound.value, *rates, prevalence or 0.5)[0])
        results.append(
            BoundResult(bound=bound, value=estimate.value, interval=estimate.interval, confidence=confidence)
        )
    estimates |= {"positive_ratio": ratios[0], "negative_ratio": ratios[1]}
    values: dict[str, Any] = {name: estimate.value for name, estimate in estimates.items()}
    values |= {f"{name}_interval": estimate.interval for name, estimate in estimates.items()}
    return OperatingPoint(threshold=threshold, prevalence=prevalence, results=tuple(results), **values)


def describe_missed(point: OperatingPoint) -> str:
    """Return a sentence about the bounds of a target that other images do not reach."""
    parts = []
    for result in point.missed:
        is_included = result.interval and result.interval.high >= result.bound.value
        parts.append(f"{result}{', which includes the target' if is_included else ''}")
    return f"target {point.threshold.target} is not met on these images: {'; '.join(parts)}"


def show_missed(target: Target, record: float | dict[str, float | None] | None) -> str:
    """Return the bounds that a record of `OperatingPoint.to_record` does not reach; an empty string where it does."""
    values = record if isinstance(record, dict) else {target.metric: record}
    pairs = ((bound, values.get(bound.metric)) for bound in target.bounds)
    return ", ".join(b.describe(value) for b, value in pairs if value is not None and value < b.least)


def describe_met(point: OperatingPoint) -> str:
    """Return a sentence about a target that other images reach, with the confidence that it holds for new ones."""
    parts = [
        f"{result} (confidence that it is at least {100 * result.bound.value:g}%: {show_confidence(result.confidence)})"
        for result in point.results
    ]
    return f"target {point.threshold.target} is met on these images: {'; '.join(parts)}"


def describe_unreachable(threshold: Threshold, fitted_on: str = "validation images") -> str | None:
    """Return why a threshold does not reach its target on the images that it was set on; None if it does."""
    if not threshold.unreachable:
        return None
    target, asked = threshold.target, threshold.target.confidence
    parts = [
        bound.describe(reached.value) + (f" with confidence {show_confidence(reached.confidence)}" if asked else "")
        for bound, reached in threshold.reached_bounds
    ]
    missing = " and ".join(map(str, threshold.unreachable))
    together = " together with the others" if target.also else ""
    return f"target {target}: no threshold reaches {missing}{together} on the {fitted_on}; set to {', '.join(parts)}"


def show_confidence(confidence: float | None) -> str:
    """Return a confidence in whole percent; only what is exact is shown as 0% or 100%."""
    return MISSING if confidence is None else f"{format_percent(confidence)}%"
