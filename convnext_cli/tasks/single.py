"""Single-label classification: each image has exactly one class."""

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.formulas import ClassCalculator, log_softmax
from convnext_cli.metrics.pooling import RULES, Rule, pool_scores
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.scaling import fit_bias_corrected_temperature, fit_temperature
from convnext_cli.metrics.summary import Metrics, MetricSet, list_mistakes, summarise
from convnext_cli.options import AUTO
from convnext_cli.tasks.reading import (
    EXAMPLES,
    OtherTaskError,
    RawTargets,
    Table,
    TableOptions,
    fold_column,
    list_odd_numbers,
    list_values,
    parse_flag,
    read_names,
    unite_flags,
)
from convnext_cli.tasks.task import Chance, Display, Outcome, Pad, Scaling, Targets, Task
from convnext_cli.text import Advice, format_count, format_percent, quote, shorten_names

GRADE_WORDS = frozenset(("grade", "level", "severity", "stage", "diagnosis", "score", "rating", "kl", "birads"))
MAX_GRADES = 20
MIN_TO_OFFSET = 10  # validation groups of each class; with fewer, pooled logits get no offsets


@dataclass(frozen=True, kw_only=True, slots=True)
class Single(Task):
    """One class per image, by softmax."""

    name: ClassVar[str] = "single"
    title: ClassVar[str] = "one class per image"
    loss: ClassVar[str] = "cross_entropy"
    activation: ClassVar[str] = "softmax"
    metrics: ClassVar[type[MetricSet]] = Metrics
    columns: ClassVar[tuple[str, ...]] = ("class", "probability")
    pooling: ClassVar[tuple[Rule, ...]] = RULES
    has_negative: ClassVar[bool] = True
    display: ClassVar[Display] = Display(
        headline="balanced_accuracy",
        loss="log_loss",
        epoch=("top1", "balanced_accuracy"),
        folds=("balanced_accuracy", "top1", "macro_f1", "macro_roc_auc", "log_loss"),
        table=(
            "balanced_accuracy", "top1", "macro_f1", "macro_roc_auc", "macro_pr_auc", "kappa", "mcc", "ece", "brier",
            "log_loss",
        ),
        class_counts=(("images", "images"),),
        class_estimates=("recall", "precision"),
        class_values=("specificity", "f1", "roc_auc", "pr_auc"),
        compared=("balanced_accuracy", "top1", "macro_roc_auc", "log_loss"),
        subgroups=("balanced_accuracy", "macro_roc_auc", "ece"),
        subgroups_of_two=("recall", "specificity", "roc_auc", "ece"),
        card=("balanced_accuracy", "top1", "macro_f1", "macro_roc_auc", "ece"),
        plots=("roc", "pr", "reliability", "frequency", "confusion"),
        calibration=(("log_loss", "log_loss"), ("ece", "ece")),
        recalibrated=("log_loss", "ece", "balanced_accuracy", "top1"),
    )  # fmt: skip

    # Reading

    @classmethod
    def recognises(cls, table: Table, name: str, options: TableOptions) -> bool:
        """Return True: any text can be the name of a class."""
        return True

    @classmethod
    def read_cells(cls, table: Table, name: str, options: TableOptions) -> RawTargets:
        """Return the class of each row, with a note if it may be a grade."""
        cells, notes = read_names(table, name, options.known_labels)
        if options.task == AUTO or options.known_labels:
            cells, united = unite_flags(cells, options.known_labels)
            advice = "; --task single reads each as a class"
            notes += [Advice(f"column {name!r}: {note}", advice) for note in united]
        if options.task == AUTO:
            odd = list_odd_numbers(table, name)
            table.refuse(
                f"no plain number in column {name!r}",
                odd,
                sorted({repr(cells[row]) for row in odd})[:EXAMPLES],
                "Correct or remove these rows; or --task single reads each value as a class",
            )
        values = list_values(cells)
        are_graded = not GRADE_WORDS.isdisjoint(fold_column(name).split("_"))
        have_fractions = not all(value.is_integer() for value in values)
        if options.task == AUTO and 2 < len(values) <= MAX_GRADES and (are_graded or have_fractions):
            span = f"{min(values):g} to {max(values):g}"
            numbers = ", --task regression as numbers" * have_fractions
            advice = f"; --task ordinal reads them as grades{numbers}"
            notes.append(Advice(f"column {name!r} has the numbers {span}: read as classes", advice))
        if options.task == AUTO and not values and (separator := _find_possible_separator(name, set(cells))):
            advice = f"; --label-sep {quote(separator)} reads several labels per image"
            notes.append(Advice(f"cells of {name!r} contain {separator!r}: read as names of classes", advice))
        return RawTargets(task=cls(), columns=(name,), labels=tuple(cells), notes=tuple(notes))

    @classmethod
    def read_columns(
        cls, table: Table, names: Sequence[str], options: TableOptions, *, has_label: bool = False
    ) -> RawTargets:
        """Return the class of each row from columns of 1 and 0, of which each row has one 1."""
        least = 2 if options.task == cls.name else 3
        are_binary = all({parse_flag(cell) for cell in table.columns[name]} <= {0.0, 1.0} for name in names)
        one_hot = _read_one_hot(table, names, least=least) if are_binary else None
        if one_hot is None:
            raise OtherTaskError(
                f"{table.path} has not exactly one class in each row: its columns of labels ({shorten_names(names)}) "
                "have several labels per image",
                "Leave out --task single, or correct these rows",
            )
        labels, columns = one_hot
        fact = f"each row has exactly one 1 in {len(columns)} columns: read as classes"
        note = Advice(fact, "; --task multilabel overrides this")
        return RawTargets(task=cls(), columns=columns, labels=labels, notes=(note,))

    @classmethod
    def read_folders(
        cls, folder: Path, classes: Sequence[str], labels: Sequence[str], options: TableOptions
    ) -> RawTargets:
        """Return the folder of each image as its class."""
        return RawTargets(task=cls(), labels=tuple(labels), classes=tuple(classes))

    # Targets

    def stack_targets(self, labels: Sequence[int], values: Sequence[tuple[float, ...]]) -> Targets:
        """Return the class of each image, (N,)."""
        return np.array(labels, np.int64)

    def count(self, targets: Targets, num_classes: int) -> list[int]:
        """Return the number of images of each class, (K,)."""
        return [int(n) for n in np.bincount(targets, minlength=num_classes)]

    def list_strata(self, targets: Targets) -> list[tuple[int, ...]]:
        """Return the class of each image."""
        return [(int(target),) for target in targets]

    def align(self, targets: Targets, positions: Sequence[int], num_classes: int) -> Targets:
        """Return the classes numbered anew: class k becomes `positions[k]`."""
        return np.array([positions[target] for target in targets], np.int64)

    def activate(self, logits: Floats) -> NDArray[np.float64]:
        """Return probabilities (N, K): softmax."""
        return np.exp(log_softmax(logits))

    def calibrate(self, logits: Floats, scaling: Scaling | None) -> Floats:
        """Return the logits divided by the temperature, (N, K); those of groups are shifted class by class after it."""
        scaled: Floats = Task.calibrate(self, logits, scaling)
        return scaled + np.asarray(scaling.label_offset) if scaling and scaling.label_offset else scaled

    def describe_calibration(self, scaling: Scaling) -> str:
        """Return the temperature."""
        return f"temperature {scaling.temperature:.2f}{' and an offset for each class' * bool(scaling.label_offset)}"

    def describe_scores(self, scaling: Scaling | None) -> str:
        """Return the softmax with its temperature."""
        return f"softmax(logits / {scaling.temperature if scaling else 1.0:.6g})"

    def describe_decision(self, scaling: Scaling | None) -> str:
        """Return that the most probable class is predicted."""
        return "The class with the highest probability is predicted."

    def fit_calibration(self, logits: Floats, targets: Targets, groups: Sequence[str] | None) -> Scaling:
        """Fit a temperature."""
        return Scaling(temperature=fit_temperature(logits, targets))

    def average(self, logits: Sequence[Floats]) -> Floats:
        """Return the logarithm of the mean of the members' probabilities, (N, K).

        Source: Lakshminarayanan et al. 2017 (arXiv:1612.01474), section 2.4.
        """
        logs = [log_softmax(part) for part in logits]
        mean: NDArray[np.float64] = np.logaddexp.reduce(logs, axis=0) - np.log(len(logs))
        return mean.astype(np.float32)

    def decide(self, scores: Floats, scaling: Scaling | None) -> NDArray[Any]:
        """Return the most probable class of each image, (N,)."""
        decisions: NDArray[np.int64] = scores.argmax(axis=1)
        return decisions

    def is_correct(self, decision: Any, target: Any) -> bool:
        """Return True if the class is the true one."""
        return bool(decision == target)

    def rank_errors(
        self, scores: NDArray[np.float64], targets: Targets, scaling: Scaling | None
    ) -> tuple[list[int], list[int]]:
        """Return wrong predictions, the most confident first, and all predictions, the least confident first."""
        confidence = scores.max(axis=1)
        wrong = np.flatnonzero(scores.argmax(axis=1) != targets)
        worst = wrong[np.argsort(-confidence[wrong], kind="stable")]
        unsure = np.argsort(confidence, kind="stable")
        return [int(i) for i in worst], [int(i) for i in unsure]

    def summarise(self, scores: NDArray[np.float64], classes: Sequence[str], scaling: Scaling | None) -> Outcome:
        """Return the classes of one image by falling probability."""
        order = np.argsort(-scores, kind="stable")
        return Outcome(classes=tuple(classes[k] for k in order), probabilities=tuple(float(scores[k]) for k in order))

    def list_differences(
        self, outcome: Outcome, target: Any, classes: Sequence[str], scaling: Scaling | None
    ) -> list[str]:
        """Return the predicted class beside the true one."""
        probability = format_percent(outcome.probabilities[0])
        return [f"predicted {outcome.classes[0]} ({probability}%), labelled {classes[target]}"]

    # Groups

    def pool(self, logits: Floats, units: Ints, rule: Rule, negative: int | None = None) -> NDArray[np.float64]:
        """Return the logarithm of the groups' pooled probabilities, which are divided by their sum, (G, K)."""
        pooled = pool_scores(self.activate(logits), units, rule)
        fractions: NDArray[np.float64] = np.maximum(pooled / pooled.sum(axis=1, keepdims=True), 1e-7)
        return np.log(fractions)

    def pool_targets(self, targets: Targets, units: Ints, negative: int | None) -> Targets:
        """Return the most frequent class of each group's images, (G,).

        Any other class outweighs the negative one. Of equally frequent classes it is the rarer one of all images.
        """
        counts = np.zeros((int(units.max()) + 1, max(int(targets.max()), negative or 0) + 1), np.int64)
        np.add.at(counts, (units, targets), 1)
        rarity = np.argsort(np.argsort(-counts.sum(axis=0), kind="stable"), kind="stable")
        if negative is not None:
            is_only = counts.sum(axis=1) == counts[:, negative]
            counts[~is_only, negative] = 0
        labels: NDArray[np.int64] = (counts * counts.shape[1] + np.where(counts > 0, rarity, 0)).argmax(axis=1)
        return labels

    def describe_pooled_target(self, negative: str | None) -> str:
        """Return that the most frequent class counts, and which one any other outweighs."""
        if negative is None:
            return "the most frequent class counts; --negative-class names one that any other class outweighs"
        return f"any other class outweighs {negative}, and of several the most frequent counts"

    def measure_losses(self, logits: Floats, targets: Targets) -> NDArray[np.float64]:
        """Return the negative log-likelihood of each true class, (N,)."""
        losses: NDArray[np.float64] = -log_softmax(logits)[np.arange(len(targets)), targets]
        return losses

    def fit_pooled(self, logits: Floats, targets: Targets, weights: Floats) -> Scaling:
        """Fit a temperature, and an offset for each class where each has enough groups."""
        if np.bincount(targets, minlength=logits.shape[1]).min() < MIN_TO_OFFSET:
            return Scaling(temperature=fit_temperature(logits, targets))
        temperature, offsets = fit_bias_corrected_temperature(logits, targets, weights)
        return Scaling(temperature=temperature, label_offset=tuple(offsets.tolist()))

    # Metrics

    def make_calculator(self, logits: Floats, targets: Targets, scaling: Scaling | None = None) -> ClassCalculator:
        """Return the calculator of classification metrics."""
        return ClassCalculator(logits, targets)

    def summarise_metrics(self, calculator: Any, classes: Sequence[str]) -> Metrics:
        """Return the classification metrics of a calculator."""
        return summarise(calculator, classes)

    def describe_results(self, metrics: MetricSet, scores: Floats, targets: Targets) -> list[str]:
        """Return the classes that are recognised best and worst, and the most frequent mistake."""
        recall = METRICS["recall"]
        ranked = sorted((entry for entry in metrics.per_class if entry.images), key=lambda entry: -entry.recall)
        ends = ranked if len(ranked) < 3 else [ranked[0], ranked[-1]]
        parts = [
            f"{recall.format_with_unit(e.recall)} of the {format_count(e.images, 'image')} of {e.name}" for e in ends
        ]
        return [f"It recognises {' and '.join(parts)}.", describe_mistakes(metrics, targets, self.decide(scores, None))]

    def measure_chance(self, metrics: MetricSet, targets: Targets) -> Chance:
        """Return the balanced accuracy of always giving one class, and the accuracy if it is the most frequent one."""
        value = 1 / sum(entry.images > 0 for entry in metrics.per_class)
        metric = METRICS["balanced_accuracy"]
        text = f"always predicting one class gives a {metric.title} of at most {metric.format_with_unit(value)}"
        return Chance(value=value, text=f"{text}; {describe_constant(metrics)}")

    def to_row(self, outcome: Outcome, top_k: int) -> dict[str, Any]:
        """Return class, probability, the first `top_k` classes and all probabilities."""
        ranked = list(zip(outcome.classes, outcome.probabilities, strict=True))
        return {
            "class": ranked[0][0],
            "probability": ranked[0][1],
            "top": [{"class": name, "probability": probability} for name, probability in ranked[:top_k]],
            "probabilities": dict(ranked),
        }

    def list_cells(self, outcome: Outcome) -> list[Any]:
        """Return the class and its probability."""
        return [outcome.classes[0], outcome.probabilities[0]]

    def list_parts(self, outcome: Outcome, top_k: int, pad: Pad) -> list[str]:
        """Return the first `top_k` classes with their probabilities."""
        ranked = zip(outcome.classes[:top_k], outcome.probabilities[:top_k], strict=True)
        return [f"{pad(name)} {format_percent(probability, 1):>5}%" for name, probability in ranked]


def _read_one_hot(table: Table, names: Sequence[str], *, least: int) -> tuple[tuple[str, ...], tuple[str, ...]] | None:
    """Return the one class of each row, and the columns that are classes; None if a row has no or several classes.

    One other column (a sign of the patient, for example) is tolerated beside `least` classes, and columns without any
    1. Two complementary columns beside a third, such as normal, abnormal and a finding, are three labels.
    """
    rows = [[name for name in names if parse_flag(table.columns[name][row]) == 1.0] for row in range(len(table))]
    odd = next((classes for classes in rows if len(classes) != 1), None)
    if odd is not None and (len(odd) != 2 or len(names) == 2):
        return None
    others: Sequence[str | None] = [None] if odd is None else odd
    for other in others:
        remaining = [[name for name in classes if name != other] for classes in rows]
        different = set(chain.from_iterable(remaining))
        if all(len(classes) == 1 for classes in remaining) and (other is None or len(different) >= least):
            columns = tuple(name for name in names if name in different)  # without ISIC's UNK, which has no images
            return tuple(name for [name] in remaining), columns
    return None


def _find_possible_separator(column: str, classes: Iterable[str]) -> str:
    """Return a sign that may separate labels in names of classes: two names share a part; else an empty string.

    A blank may do so in a column such as `tags`.
    """
    for separator in "|;,/+& " if fold_column(column) in ("tags", "labels", "keywords") else "|;,/+&":
        parts = [{part.strip() for part in name.split(separator)} - {""} for name in classes]
        if any(count > 1 for count in Counter(chain.from_iterable(parts)).values()):
            return separator
    return ""


def describe_mistakes(metrics: MetricSet, targets: Targets, decisions: Targets) -> str:
    """Return the most frequent confusion of two classes in a sentence."""
    mistakes = list_mistakes(targets, decisions)
    if not mistakes:
        these = "this" if metrics.images == 1 else "these"
        return f"It makes no mistake on {these} {format_count(metrics.images, 'image')}."
    true, predicted, number = mistakes[0]
    actual = metrics.per_class[true]
    return (
        f"Most frequent mistake: it predicted {metrics.per_class[predicted].name} for {number:,} of the "
        f"{format_count(actual.images, 'image')} of {actual.name} ({format_percent(number / actual.images)}%)."
    )


def describe_constant(metrics: MetricSet) -> str:
    """Return the accuracy of always giving the most frequent class, beside that of the model."""
    most, accuracy = max(metrics.per_class, key=lambda entry: entry.images), METRICS["top1"]
    constant, value = (accuracy.format_with_unit(part) for part in (most.images / metrics.images, metrics.top1))
    return f"always predicting {most.name} is right for {constant} of the images, the model for {value}"
