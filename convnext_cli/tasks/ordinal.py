"""Ordinal classification: each image has one of several grades, which have an order.

The model gives a probability for each grade, as in classification. The predicted grade is the median of that
distribution, which has the least expected absolute error.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from convnext_cli.encoding import normalise_name
from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.formulas import log_softmax
from convnext_cli.metrics.ordinal import GradeMetrics, OrdinalCalculator, OrdinalMetrics
from convnext_cli.metrics.pooling import MEAN, Rule
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.summary import Metrics, MetricSet, summarise
from convnext_cli.options import AUTO
from convnext_cli.tasks.reading import (
    EXAMPLES,
    NUMBER,
    OtherTaskError,
    RawTargets,
    Table,
    TableOptions,
    explain_columns,
    find_number,
    fold_column,
    read_names,
    sort_by_number,
)
from convnext_cli.tasks.single import GRADE_WORDS, Single, describe_constant, describe_mistakes
from convnext_cli.tasks.task import Chance, Display, Outcome, Pad, Scaling, Targets
from convnext_cli.text import Advice, format_count, quote, shorten_names

MAX_NUMBERS = 6  # folders of more numbers are digits or codes
_WORD = re.compile(r"[A-Z]?[a-z]+|[A-Z]+(?![a-z])")
_SEVERITY = (
    dict.fromkeys(("no", "non", "none", "normal", "healthy", "absent"), 0)
    | dict.fromkeys(("minimal", "doubtful"), 1)
    | dict.fromkeys(("mild", "slight", "minor", "low"), 2)
    | dict.fromkeys(("moderate", "medium"), 3)
    | dict.fromkeys(("severe", "major", "high"), 4)
    | dict.fromkeys(("proliferative", "proliferate", "extreme"), 5)
)
"""The order of words that name grades; `very` moves a word away from `moderate`."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Ordinal(Single):
    """One of several ordered grades per image."""

    name: ClassVar[str] = "ordinal"
    title: ClassVar[str] = "ordered grades"
    metrics: ClassVar[type[MetricSet]] = OrdinalMetrics
    columns: ClassVar[tuple[str, ...]] = (*Single.columns, "mean_grade")
    pooling: ClassVar[tuple[Rule, ...]] = (MEAN,)
    has_negative: ClassVar[bool] = False
    has_order: ClassVar[bool] = True
    ignored: ClassVar[dict[str, str]] = {name: reason for name, reason in Single.ignored.items() if name != "grades"}
    display: ClassVar[Display] = replace(
        Single.display,
        headline="quadratic_kappa",
        epoch=("grade_mae", "quadratic_kappa"),
        folds=("quadratic_kappa", "grade_mae", "within_one", "top1", "log_loss"),
        table=(
            "quadratic_kappa", "grade_mae", "within_one", "top1", "balanced_accuracy", "macro_roc_auc", "ece", "brier",
            "log_loss",
        ),
        class_estimates=("recall", "class_mae"),
        class_values=("precision", "specificity", "f1", "roc_auc"),
        compared=("quadratic_kappa", "grade_mae", "top1"),
        target_word="grade",
        target_words="grades",
        strata="grades",
        subgroups=("quadratic_kappa", "grade_mae", "ece"),
        subgroups_of_two=(),
        card=("quadratic_kappa", "grade_mae", "within_one", "top1", "ece"),
    )  # fmt: skip

    # Reading

    @classmethod
    def recognises(cls, table: Table, name: str, options: TableOptions) -> bool:
        """Return False: whether numbers are an order cannot be told from them."""
        return False

    @classmethod
    def read_cells(cls, table: Table, name: str, options: TableOptions) -> RawTargets:
        """Return the grade of each row, in the order of `--grades` or of the numbers in their names."""
        cells, notes = read_names(table, name, options.known_labels)
        names = sorted({normalise_name(cell) for cell in cells})
        grades = _sort_grades(names, f"column {name!r} of {table.path}", options)
        return RawTargets(task=cls(), columns=(name,), labels=tuple(cells), classes=grades, notes=tuple(notes))

    @classmethod
    def read_columns(
        cls, table: Table, names: Sequence[str], options: TableOptions, *, has_label: bool = False
    ) -> RawTargets:
        """Refuse a column per class."""
        raise explain_columns(cls.name, table, names)

    @classmethod
    def read_folders(
        cls, folder: Path, classes: Sequence[str], labels: Sequence[str], options: TableOptions
    ) -> RawTargets:
        """Return the folder of each image as its grade, in the order of `--grades` or of the numbers in their names."""
        grades = _sort_grades(classes, f"the folders of {folder}", options)
        return RawTargets(task=cls(), labels=tuple(labels), classes=grades)

    @classmethod
    def suggest(cls, classes: Sequence[str], *, from_folders: bool) -> str:
        """Return a note if the classes are words of severity, or numbers that follow each other.

        Numbers alone are often codes of classes in a table: they count for folders.
        """
        order = sort_by_number(classes) or ()
        texts = {fold_column(NUMBER.sub("", name)) for name in order}
        are_graded = texts <= GRADE_WORDS or (texts == {""} and from_folders)
        counted = [[first + step for step in range(len(order))] for first in (0, 1)]
        if are_graded and 2 < len(order) <= MAX_NUMBERS and [find_number(name) for name in order] in counted:
            return Advice(f"{order[0]} to {order[-1]} are read as classes", "; if they are grades: --task ordinal")
        if len(classes) > 2 and (ranked := _sort_by_severity(classes)):
            advice = f"; if they are grades: --task ordinal --grades {quote(','.join(ranked))}"
            return Advice("the names are read as classes", advice)
        return ""

    # Targets

    def describe_classes(self, classes: Sequence[str]) -> str:
        """Return the number of grades, with the first and the last."""
        return f"{format_count(len(classes), 'grade')} from {classes[0]} to {classes[-1]}"

    def describe_decision(self, scaling: Scaling | None) -> str:
        """Return that the median grade is predicted, and the definition of the mean grade."""
        return (
            "The median grade is predicted: the first at which the sum of the probabilities, from the lowest grade on, "
            "reaches 0.5. The mean grade is the mean of 0, 1, 2 and so on, weighted by the probabilities."
        )

    def decide(self, scores: Floats, scaling: Scaling | None) -> NDArray[Any]:
        """Return the median grade of each image, (N,)."""
        grades: NDArray[np.int64] = (np.cumsum(scores, axis=1) < 0.5 - 1e-9).sum(axis=1)
        return np.asarray(np.minimum(grades, scores.shape[1] - 1), np.int64)

    def rank_errors(
        self, scores: NDArray[np.float64], targets: Targets, scaling: Scaling | None
    ) -> tuple[list[int], list[int]]:
        """Return wrong predictions, the furthest off first, and all predictions, the least confident first."""
        decisions = self.decide(scores, scaling)
        errors, confidence = np.abs(decisions - targets), scores[np.arange(len(scores)), decisions]
        worst = [int(i) for i in np.lexsort((-confidence, -errors)) if errors[i]]
        return worst, [int(i) for i in np.argsort(confidence, kind="stable")]

    def summarise(self, scores: NDArray[np.float64], classes: Sequence[str], scaling: Scaling | None) -> Outcome:
        """Return the median grade first, then the others by falling probability; and the mean grade, from 0."""
        grade = int(self.decide(scores[None], scaling)[0])
        order = [grade, *(int(k) for k in np.argsort(-scores, kind="stable") if k != grade)]
        return Outcome(
            classes=tuple(classes[k] for k in order),
            probabilities=tuple(float(scores[k]) for k in order),
            value=float(scores @ np.arange(len(scores))),
        )

    def list_differences(
        self, outcome: Outcome, target: Any, classes: Sequence[str], scaling: Scaling | None
    ) -> list[str]:
        """Return the predicted grade beside the true one, with the number of grades between them."""
        [line] = Single.list_differences(self, outcome, target, classes, scaling)
        steps = classes.index(outcome.classes[0]) - int(target)
        if not steps:
            return [line]
        return [f"{line}: {format_count(abs(steps), 'grade')} too {'high' if steps > 0 else 'low'}"]

    def describe_results(self, metrics: MetricSet, scores: Floats, targets: Targets) -> list[str]:
        """Return how far predictions are off, and the most frequent mistake."""
        exact, near = (METRICS[key].format_with_unit(getattr(metrics, key)) for key in ("top1", "within_one"))
        return [
            f"It gives the exact grade for {exact} of the images, at most one grade off for {near}.",
            describe_mistakes(metrics, targets, self.decide(scores, None)),
        ]

    def measure_chance(self, metrics: MetricSet, targets: Targets) -> Chance:
        """Return the kappa of guessing, 0, and the accuracy of always giving the most frequent grade."""
        return Chance(value=0.0, text=f"guessing gives 0; {describe_constant(metrics)}")

    def pool_targets(self, targets: Targets, units: Ints, negative: int | None) -> Targets:
        """Return the median grade of each group's images, (G,); of an even number, the upper one."""
        order = np.lexsort((targets, units))
        sizes = np.bincount(units)
        return np.asarray(targets[order][np.cumsum(sizes) - sizes + sizes // 2])

    def describe_pooled_target(self, negative: str | None) -> str:
        """Return that the median counts."""
        return "the median grade counts, of an even number of images the upper one"

    def make_calculator(self, logits: Floats, targets: Targets, scaling: Scaling | None = None) -> OrdinalCalculator:
        """Return the calculator of ordinal metrics."""
        return OrdinalCalculator(logits, targets, self.decide(np.exp(log_softmax(logits)), scaling))

    def summarise_metrics(self, calculator: Any, classes: Sequence[str]) -> Metrics:
        """Return the ordinal metrics of a calculator."""
        return summarise(calculator, classes, OrdinalMetrics, GradeMetrics)

    def to_row(self, outcome: Outcome, top_k: int) -> dict[str, Any]:
        """Return the grade, the mean grade and all probabilities."""
        return {"grade": outcome.classes[0], "mean_grade": outcome.value, **Single.to_row(self, outcome, top_k)}

    def list_cells(self, outcome: Outcome) -> list[Any]:
        """Return the grade, its probability and the mean grade."""
        return [*Single.list_cells(self, outcome), outcome.value]

    def list_parts(self, outcome: Outcome, top_k: int, pad: Pad) -> list[str]:
        """Return the grade with its probability, the other grades, and the mean grade."""
        return [*Single.list_parts(self, outcome, top_k, pad), f"mean grade {outcome.value:.2f}"]


def _find_severity(name: str) -> float | None:
    """Return the rank of the word of severity in a name, `VeryMildDemented` or `No_DR`; None without exactly one."""
    words = [word.casefold() for word in _WORD.findall(normalise_name(name))]
    ranks = [_SEVERITY[word] for word in words if word in _SEVERITY]
    if len(ranks) != 1:
        return None
    return ranks[0] + ("very" in words) * (0.5 if ranks[0] > 2 else -0.5)


def _sort_by_severity(names: Sequence[str]) -> list[str]:
    """Return names in the order of their words of severity; empty unless each has another one, and none has a comma."""
    ranks = {name: rank for name in names if (rank := _find_severity(name)) is not None and "," not in name}
    return sorted(names, key=ranks.__getitem__) if len(names) == len(set(ranks.values())) else []


def _sort_grades(names: Sequence[str], source: str, options: TableOptions) -> tuple[str, ...]:
    """Return grades in the order of `--grades`, else in that of the first number in each.

    `source` is where the names are, for errors.
    """
    if options.known_labels:
        return tuple(names)  # the order is that of the run's grades
    more = ",..." if len(names) > EXAMPLES else ""
    remedy = f"Put these names in order, the lowest grade first: --grades {quote(','.join(names[:EXAMPLES]) + more)}"
    if ranked := _sort_by_severity(names):
        remedy = f"Give the order, the lowest grade first: --grades {quote(','.join(ranked))}"
    if options.grades == AUTO:
        order = sort_by_number(names)
        if order is None:
            raise OtherTaskError(f"the grades in {source} have no order: {shorten_names(names)}", remedy)
        return order
    given = [normalise_name(name.strip()) for name in options.grades.split(",")]
    if repeated := [name for name in given if given.count(name) > 1]:
        raise OtherTaskError(f"--grades has {repeated[0]!r} twice", remedy)
    name_of = {normalise_name(name): name for name in names}
    if missing := sorted(name_of.keys() - set(given)):
        raise OtherTaskError(f"--grades has no {shorten_names(missing)}, which is in {source}", remedy)
    return tuple(name_of[name] for name in given if name in name_of)
