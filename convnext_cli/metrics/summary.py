"""Classification metrics from logits and labels."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from typing import TYPE_CHECKING, Annotated, Any

import numpy as np
from msgspec import Meta

from convnext_cli.metrics.calculator import Calculator, Ints
from convnext_cli.metrics.formulas import ClassCalculator
from convnext_cli.metrics.registry import METRICS
from convnext_cli.text import shorten_names

Fraction = Annotated[float, Meta(ge=0, le=1)]

MAX_MATRIX = 1000
"""Classes of a confusion matrix: its size is their square, and of more the files could not be read."""

ALWAYS_DEFINED = frozenset(("log_loss", "mae", "rmse", "bias"))
"""Keys of metrics that any image has: nan if the model has diverged."""


class MetricSet:
    """Metrics of one evaluation, of any task: attributes by the keys of `metrics.registry`, and those below."""

    __slots__ = ()
    images: int
    """Number of images."""
    per_class: tuple[Any, ...]
    """Metrics of each class, label or grade; empty for a number."""
    confusion: tuple[tuple[int, ...], ...]
    """Number of images by true class (row) and predicted class (column); empty without classes, and above 1,000."""

    if TYPE_CHECKING:

        def __getattr__(self, key: str) -> Any:
            """Return a metric by its key."""

    @property
    def absent(self) -> tuple[str, ...]:
        """The classes without images."""
        return tuple(entry.name for entry in self.per_class if not entry.images)


@dataclass(frozen=True, kw_only=True, slots=True)
class ClassMetrics:
    """Metrics of one class against the rest; None where not defined (no image or no prediction of the class)."""

    name: str
    images: int
    """Number of images of the class."""
    precision: Fraction | None
    recall: Fraction | None
    """Sensitivity."""
    specificity: Fraction | None
    f1: Fraction | None
    roc_auc: Fraction | None
    pr_auc: Fraction | None
    """Average precision."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Metrics(MetricSet):
    """All metrics of a classification, as fractions; `metrics.registry` says what each is.

    Macro averages are over the classes that occur. None where a metric is not defined: one class or one prediction
    only.
    """

    images: int
    """Number of images."""
    top1: Fraction
    """Accuracy."""
    balanced_accuracy: Fraction
    macro_precision: Fraction
    macro_specificity: Fraction | None
    macro_f1: Fraction
    macro_roc_auc: Fraction | None
    macro_pr_auc: Fraction | None
    kappa: float | None
    mcc: float | None
    log_loss: float
    brier: Fraction
    ece: Fraction
    per_class: tuple[ClassMetrics, ...]
    confusion: tuple[tuple[int, ...], ...]
    """Number of images by true class (row) and predicted class (column); empty above `MAX_MATRIX` classes."""


def list_keys(kind: type[Any]) -> tuple[str, ...]:
    """Return the keys of the metrics that are fields of a class, in their order."""
    return tuple(field.name for field in fields(kind) if field.name in METRICS)


def compute_once(calculator: Calculator) -> tuple[dict[str, Any], list[dict[str, Any]]]:
    """Return all metrics, and those of each class, each image counted once; None where a metric is not defined."""
    overall, per_class = calculator.compute(np.ones((1, calculator.images)))
    values: dict[str, Any] = {key: none_if_nan(value[0]) for key, value in overall.items()}
    values |= {key: float(overall[key][0]) for key in ALWAYS_DEFINED & values.keys()}
    classes = range(calculator.num_classes)
    return values, [{key: none_if_nan(value[0, k]) for key, value in per_class.items()} for k in classes]


def summarise(
    calculator: ClassCalculator,
    classes: Sequence[str],
    kind: type[Metrics] = Metrics,
    kind_of_class: type[ClassMetrics] = ClassMetrics,
) -> Metrics:
    """Return the metrics of a calculator as a `kind`, all images counted once; `classes` are K names."""
    values, entries = compute_once(calculator)
    images = np.bincount(calculator.labels, minlength=len(classes))
    confusion: list[list[int]] = []
    if (side := len(classes)) <= MAX_MATRIX:
        cells = np.bincount(calculator.labels * side + calculator.predictions, minlength=side**2)
        confusion = cells.reshape(side, side).tolist()
    return kind(
        images=calculator.images,
        **values,
        per_class=tuple(
            kind_of_class(name=name, images=int(number), **entry)
            for name, number, entry in zip(classes, images, entries, strict=True)
        ),
        confusion=tuple(map(tuple, confusion)),
    )


def describe_absent(metrics: MetricSet, describe_name: Callable[[str], str], unit: str = "image") -> str:
    """Return which classes have no image (or other unit), and what follows; an empty string if all have some.

    `describe_name` returns the name of a class for a sentence.
    """
    if not metrics.absent:
        return ""
    effect = "over the other classes" if len(metrics.absent) < len(metrics.per_class) else "not defined"
    are_labels = not isinstance(metrics, Metrics)  # a label has a specificity without positive images too
    averages = "averages of sensitivity, F1, ROC AUC and PR AUC" if are_labels else "averages"
    return f"no {unit} of {shorten_names([*map(describe_name, metrics.absent)])}: {averages} are {effect}"


def list_mistakes(labels: Ints, predictions: Ints) -> list[tuple[int, int, int]]:
    """Return true class, predicted class and number of images of each confusion, the most frequent first."""
    wrong = np.flatnonzero(labels != predictions)
    pairs, counts = np.unique(np.stack([labels[wrong], predictions[wrong]], axis=1), axis=0, return_counts=True)
    order = np.argsort(-counts, kind="stable")
    return [
        (int(true), int(predicted), int(n)) for (true, predicted), n in zip(pairs[order], counts[order], strict=True)
    ]


def none_if_nan(value: float) -> float | None:
    """Return None for a metric that is not defined."""
    return None if np.isnan(value) else float(value)
