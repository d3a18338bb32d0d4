"""Multi-label classification: each image has any number of labels, and some may be unknown.

Targets are 1, 0, -1 (uncertain) or nan (unknown). Uncertain and unknown ones do not count in evaluation.
"""

import math
import re
from collections import Counter
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
from numpy.typing import NDArray

from convnext_cli.encoding import normalise_name
from convnext_cli.errors import DataError
from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.multilabel import (
    MultilabelCalculator,
    MultilabelMetrics,
    binary_cross_entropy,
    count_together,
    logit,
    sigmoid,
    summarise_labels,
)
from convnext_cli.metrics.pooling import RULES, Rule, pool_scores
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.scaling import choose_threshold, fit_platt
from convnext_cli.metrics.summary import MetricSet
from convnext_cli.options import AUTO
from convnext_cli.tasks.reading import LIST, OtherTaskError, RawTargets, Table, TableOptions, is_missing, parse_flag
from convnext_cli.tasks.task import Chance, Display, Outcome, Pad, Scaling, Targets, Task
from convnext_cli.text import Advice, format_count, format_part, format_percent, quote, shorten, shorten_names

MIN_TO_CALIBRATE = 10  # positive and negative validation images of a label; with fewer its probability stays as it is
_BRACKETS = re.compile(r"\[.*\]|\([^()]*\)|\{[^{}]*\}")
"""A printed list, tuple or set, but not `(left) mass|mass (right)`."""
IDENTITY = 1.0, 0.0  # factor and offset of a label that is not calibrated
MIN_TO_EXCLUDE = 5  # training images that would have both labels by chance, from which on none is a sign of exclusion


@dataclass(frozen=True, kw_only=True, slots=True)
class Multilabel(Task):
    """Any number of labels per image, by a sigmoid for each."""

    name: ClassVar[str] = "multilabel"
    title: ClassVar[str] = "several labels per image"
    loss: ClassVar[str] = "binary_cross_entropy"
    activation: ClassVar[str] = "sigmoid"
    problem_type: ClassVar[str | None] = "multi_label_classification"
    metrics: ClassVar[type[MetricSet]] = MultilabelMetrics
    columns: ClassVar[tuple[str, ...]] = ("labels",)
    has_values: ClassVar[bool] = True
    has_several: ClassVar[bool] = True
    has_negative: ClassVar[bool] = True
    pooling: ClassVar[tuple[Rule, ...]] = RULES
    unsupported: ClassVar[dict[str, str]] = {
        "sampler": "an image belongs to several labels",
        "logit_adjustment": "it is for classes that exclude each other",
        "teacher": "its probabilities are of classes that exclude each other",
    }
    ignored: ClassVar[dict[str, str]] = {name: Task.ignored[name] for name in ("log_target", "grades")}
    display: ClassVar[Display] = Display(
        headline="macro_roc_auc",
        loss="log_loss",
        epoch=("macro_pr_auc", "macro_roc_auc"),
        folds=("macro_roc_auc", "macro_pr_auc", "macro_f1", "exact_match", "log_loss"),
        table=(
            "macro_roc_auc", "macro_pr_auc", "macro_f1", "macro_recall", "macro_specificity", "exact_match",
            "macro_ece", "macro_brier", "log_loss",
        ),
        class_counts=(("images", "positive"), ("negative", "negative"), ("unknown", "unknown")),
        class_estimates=("roc_auc", "recall", "specificity"),
        class_values=("pr_auc", "precision", "f1", "label_ece", "label_brier"),
        compared=("macro_roc_auc", "macro_f1", "log_loss"),
        subgroups=("macro_roc_auc", "macro_recall", "macro_specificity", "macro_ece"),
        card=("macro_roc_auc", "macro_pr_auc", "macro_f1", "exact_match", "macro_ece"),
        plots=("roc", "pr", "reliability", "frequency"),
        target_word="label",
        target_words="labels",
        strata="combinations of labels",
        class_order="roc_auc",
        confidence_axes=("probability of a label", "fraction of images with the label"),
        confidence_note="The probabilities of all known labels together are sorted into 15 bins of equal size; the ECE "
        "is the mean over the single labels. On the dotted line, probability equals frequency. Above it probabilities "
        "are too low, below it too high.",
        calibration=(("log_loss", "log_loss"), ("ece", "macro_ece")),
    )  # fmt: skip

    # Reading

    @classmethod
    def recognises(cls, table: Table, name: str, options: TableOptions) -> bool:
        """Return True if a cell has several labels."""
        return bool(_choose_separator(table.columns[name], options))

    @classmethod
    def read_cells(cls, table: Table, name: str, options: TableOptions) -> RawTargets:
        """Return several labels per image: from cells such as `cat|dog`, or a label in each of its rows."""
        cells = ["" if is_missing(cell) else cell for cell in table.columns[name]]
        separator = _choose_separator(cells, options)
        labels = {normalise_name(cell) for cell in cells if cell}
        are_known = bool(labels) and labels <= set(options.known_labels)
        if not separator and not table.has_repeats and not are_known:
            raise OtherTaskError(
                f"--task multilabel: no cell of column {name!r} of {table.path} has several labels",
                "Name the sign between labels with --label-sep, or a column per label with --label-columns",
            )
        split = [_split_labels(cell, separator) if separator else list(filter(None, [cell])) for cell in cells]
        names = tuple(sorted({label for labels in split for label in labels}))
        values = tuple(tuple(1.0 if name in labels else 0.0 for name in names) for labels in map(set, split))
        separated = f"cells of {name!r} separated by {separator!r}" if separator else f"a label of {name!r} in each row"
        if separator == LIST:
            separated = f"lists in {name!r}"
        notes: list[str] = [Advice(f"{separated}: read as several labels per image", "; --task single overrides this")]
        if blank := cells.count(""):
            number = format_count(blank, f"blank cell of {name!r} is", f"blank cells of {name!r} are")
            notes.append(f"{number} read as none of the labels")
        return RawTargets(
            task=cls(),
            columns=(name,),
            classes=names,
            values=values,
            notes=tuple(notes),
            ignored=dict.fromkeys(("blank", "uncertain"), "it is for a column per label"),
            join=lambda rows: tuple(map(max, zip(*rows, strict=True))),
            join_rule="an image has the labels of all its rows",
        )

    @classmethod
    def read_columns(
        cls, table: Table, names: Sequence[str], options: TableOptions, *, has_label: bool = False
    ) -> RawTargets:
        """Return the labels of each row; another column that may hold a class goes first where no task is named."""
        if has_label and options.task == AUTO:
            raise OtherTaskError(f"{table.path} has columns of labels beside a label", "Name them with --label-columns")
        labels = {name: _read_flags(table, name) for name in names}
        notes = [f"{format_count(len(names), 'column')} of labels: read as several labels per image"]
        if set(chain.from_iterable(labels.values())) == {1.0, -1.0}:
            labels = {name: [max(value, 0.0) for value in labels[name]] for name in names}
            notes.append("every label is 1 or -1, so -1 is read as 0")
        without_zero = [name for name in names if 0.0 not in labels[name] and any(map(math.isnan, labels[name]))]
        if without_zero and options.blank != "negative":
            notes.append(f"{shorten_names(without_zero)}: no cell is 0, so blank cells are read as 0")
        for name in names if options.blank == "negative" else without_zero:
            labels[name] = [0.0 if math.isnan(value) else value for value in labels[name]]
        unknown = sum(map(math.isnan, chain.from_iterable(labels.values())))
        uncertain = sum(column.count(-1.0) for column in labels.values())
        if unknown:
            blank = format_count(unknown, "blank label counts", "blank labels count")
            advice = f" (--blank negative reads {'it' if unknown == 1 else 'them'} as 0)"
            notes.append(Advice(f"{blank} as unknown", advice))
        if uncertain:
            number = format_count(uncertain, "label is -1, which counts", "labels are -1, which count")
            advice = " (--uncertain sets their training target)"
            notes.append(Advice(f"{number} as unknown in evaluation", advice))
        return RawTargets(
            task=cls(),
            columns=tuple(names),
            classes=tuple(normalise_name(name) for name in names),
            values=tuple(zip(*labels.values(), strict=True)),
            notes=tuple(notes),
            ignored={"label_sep": "each label has a column of its own"},
            join=_count_votes,
            join_rule="a label is the majority of an image's rows (readers), and -1 (uncertain) in a tie",
        )

    @classmethod
    def read_folders(
        cls, folder: Path, classes: Sequence[str], labels: Sequence[str], options: TableOptions
    ) -> RawTargets:
        """Refuse class folders: an image lies in one of them."""
        raise DataError(
            f"{folder} has one class folder per image, not {cls.title}",
            "Give a CSV file with the targets, or to train on the classes, leave out --task",
        )

    # Targets

    def stack_targets(self, labels: Sequence[int], values: Sequence[tuple[float, ...]]) -> Targets:
        """Return the labels of each image, (N, K) float32: 1, 0, -1 or nan."""
        return np.array(values, np.float32)

    @classmethod
    def advise_imbalance(cls, rare: str) -> str:
        """Return the metrics and the correction that suit a data set with few images of a label."""
        return f"judge by the ROC AUC and the recall of {rare}; --imbalance asymmetric is for rare labels"

    def number_strata(self, values: Sequence[tuple[float, ...]]) -> list[int]:
        """Return a number for each combination of positive labels."""
        numbers: dict[tuple[int, ...], int] = {}
        combinations = [tuple(k for k, value in enumerate(row) if value == 1) for row in values]
        return [numbers.setdefault(combination, len(numbers)) for combination in combinations]

    def describe_classes(self, classes: Sequence[str]) -> str:
        """Return the number of labels."""
        return format_count(len(classes), "label")

    def count(self, targets: Targets, num_classes: int) -> list[int]:
        """Return the number of positive images of each label, (K,)."""
        rows = targets.reshape(-1, num_classes)  # without images, `stack_targets` does not know the number
        return [int(n) for n in (rows == 1).sum(axis=0)]

    def list_strata(self, targets: Targets) -> list[tuple[int, ...]]:
        """Return the positive labels of each image; K for an image without any."""
        num_labels = targets.shape[1]
        return [tuple(int(k) for k in np.flatnonzero(row == 1)) or (num_labels,) for row in targets]

    def describe_values(self, values: tuple[float, ...], classes: Sequence[str]) -> str:
        """Return the positive labels of an image, and those that are unknown."""
        positive = [name for name, value in zip(classes, values, strict=True) if value == 1]
        unknown = sum(value not in (0, 1) for value in values)
        parts = [", ".join(positive) or "no label", f"{unknown} unknown" if unknown else ""]
        return "; ".join(filter(None, parts))

    def find_conflict(self, targets: Targets) -> bool:
        """Return True if a label is 1 for one of the images and 0 for another."""
        return bool(((targets == 1).any(axis=0) & (targets == 0).any(axis=0)).any())

    def align(self, targets: Targets, positions: Sequence[int], num_classes: int) -> Targets:
        """Return the columns in another order: k moves to `positions[k]`; labels without a column are unknown."""
        aligned = np.full((len(targets), num_classes), np.nan, targets.dtype)
        aligned[:, list(positions)] = targets
        return aligned

    def explain_untrainable(self, targets: Targets, classes: Sequence[str]) -> tuple[str, str] | None:
        """Return which labels have no positive or no negative training image, and the remedy; None if all have both."""
        for value, word in ((1, "positive"), (0, "negative")):
            empty = [name for name, n in zip(classes, (targets == value).sum(axis=0), strict=True) if not n]
            if empty:
                number = format_part(len(empty), len(classes), "label", "has", "have")
                return (
                    f"{number} no {word} training image: {', '.join(empty[:5])}",
                    "Leave them out with --label-columns, or add images",
                )
        return None

    def explain_small_validation(self, targets: Targets, classes: Sequence[str]) -> str:
        """Return which labels have too few validation images, if most have; rare ones must not hold up the others."""
        counts = np.minimum((targets == 1).sum(axis=0), (targets == 0).sum(axis=0))
        few = self._list_few(classes, counts.tolist())
        return self._describe_few(few) if 2 * len(few) > len(classes) else ""

    # Model outputs

    def activate(self, logits: Floats) -> NDArray[np.float64]:
        """Return the probability of each label, (N, K): sigmoid."""
        return sigmoid(logits)

    def calibrate(self, logits: Floats, scaling: Scaling | None) -> Floats:
        """Return the logits scaled and shifted label by label, (N, K)."""
        affine = self.list_affine(scaling)
        return logits if affine is None else logits * np.asarray(affine[0]) + np.asarray(affine[1])

    def list_affine(self, scaling: Scaling | None) -> tuple[Sequence[float], Sequence[float]] | None:
        """Return factor and offset of each label's logit; None without a calibration."""
        return (scaling.label_scale, scaling.label_offset) if scaling and scaling.label_scale else None

    def describe_calibration(self, scaling: Scaling) -> str:
        """Return the number of labels that were calibrated."""
        fitted = sum(pair != IDENTITY for pair in zip(scaling.label_scale, scaling.label_offset, strict=True))
        return f"Platt scaling of {fitted} of {format_count(len(scaling.label_scale), 'label')}"

    def describe_scores(self, scaling: Scaling | None) -> str:
        """Return the sigmoid with each label's factor and offset."""
        affine = self.list_affine(scaling)
        if affine is None:
            return "sigmoid(logits)"
        factors, offsets = (", ".join(f"{value:.6g}" for value in part) for part in affine)
        return f"sigmoid(logits * [{factors}] + [{offsets}])"

    def describe_decision(self, scaling: Scaling | None) -> str:
        """Return the threshold of each label."""
        thresholds = scaling.label_thresholds if scaling else ()
        values = f"[{', '.join(f'{value:.6g}' for value in thresholds)}]" if thresholds else "0.5"
        return f"The labels with probabilities >= {values} are predicted."

    def fit_calibration(self, logits: Floats, targets: Targets, groups: Sequence[str] | None) -> Scaling:
        """Fit Platt scaling for each label, and the threshold with the highest F1 on its calibrated probability."""
        rows: list[tuple[float, float, float]] = []
        for k in range(logits.shape[1]):
            known = _is_known(targets[:, k])
            z, positive = logits[known, k].astype(np.float64), targets[known, k] == 1
            if min(positive.sum(), (~positive).sum()) >= MIN_TO_CALIBRATE:
                scale, offset = fit_platt(z, positive)
                rows.append((scale, offset, choose_threshold(sigmoid(z * scale + offset), positive)))
            else:
                rows.append((*IDENTITY, 0.5))
        scales, offsets, thresholds = zip(*rows, strict=True)
        return Scaling(label_scale=scales, label_offset=offsets, label_thresholds=thresholds)

    def list_uncalibrated(self, scaling: Scaling, classes: Sequence[str]) -> list[str]:
        """Return the labels whose probability is the model's own."""
        pairs = zip(classes, scaling.label_scale, scaling.label_offset, strict=False)
        return [name for name, scale, offset in pairs if (scale, offset) == IDENTITY]

    def average(self, logits: Sequence[Floats]) -> Floats:
        """Return the logits of the mean of the members' probabilities, (N, K)."""
        return logit(np.mean([sigmoid(part) for part in logits], axis=0))

    def select_known(self, targets: Targets, k: int) -> tuple[NDArray[np.bool_], NDArray[np.bool_]]:
        """Return which images have label k, and for which images that is known, both (N,)."""
        positive = targets[:, k] == 1
        return positive, positive | (targets[:, k] == 0)

    def decide(self, scores: Floats, scaling: Scaling | None) -> NDArray[Any]:
        """Return True for each label whose probability reaches its threshold, (N, K)."""
        return scores >= np.asarray(self._get_thresholds(scores.shape[1], scaling))

    def _get_thresholds(self, num_labels: int, scaling: Scaling | None) -> Sequence[float]:
        return scaling.label_thresholds if scaling and scaling.label_thresholds else (0.5,) * num_labels

    def is_correct(self, decision: Any, target: Any) -> bool:
        """Return True if all known labels are predicted correctly."""
        known = _is_known(target)
        return bool((decision[known] == (target[known] == 1)).all())

    def list_confidences(self, logits: Floats, targets: Targets) -> tuple[Floats, NDArray[np.bool_]]:
        """Return the probability of each known label, and whether the image has it, both (M,)."""
        known = _is_known(targets)
        return self.activate(logits)[known], targets[known] == 1

    def rank_errors(
        self, scores: NDArray[np.float64], targets: Targets, scaling: Scaling | None
    ) -> tuple[list[int], list[int]]:
        """Return images with a wrong label, the most confident error first, and all images, the least confident first.

        The confidence of an image's error is the largest difference of a wrong label's probability from its target; an
        image's confidence is the least difference of a probability from its threshold.
        """
        known, thresholds = _is_known(targets), self._get_thresholds(scores.shape[1], scaling)
        is_wrong = known & (self.decide(scores, scaling) != (targets == 1))
        errors = np.where(is_wrong, np.abs(scores - (targets == 1)), -1).max(axis=1)
        margins = np.abs(scores - np.asarray(thresholds)).min(axis=1)
        worst = [int(i) for i in np.argsort(-errors, kind="stable") if errors[i] >= 0]
        return worst, [int(i) for i in np.argsort(margins, kind="stable")]

    def summarise(self, scores: NDArray[np.float64], classes: Sequence[str], scaling: Scaling | None) -> Outcome:
        """Return the labels of one image by falling probability, and which of them are predicted."""
        order = np.argsort(-scores, kind="stable")
        decided = self.decide(scores[None], scaling)[0]
        return Outcome(
            classes=tuple(classes[k] for k in order),
            probabilities=tuple(float(scores[k]) for k in order),
            labels=tuple(classes[k] for k in order if decided[k]),
        )

    def list_differences(
        self, outcome: Outcome, target: Any, classes: Sequence[str], scaling: Scaling | None
    ) -> list[str]:
        """Return a line for each wrong label, the most confident error first, and one that counts the others.

        Without a wrong label, the first line is that of the least certain one.
        """
        targets = dict(zip(classes, target, strict=True))
        thresholds = dict(zip(classes, self._get_thresholds(len(classes), scaling), strict=True))
        probabilities = dict(zip(outcome.classes, outcome.probabilities, strict=True))
        predicted = set(outcome.labels or ())
        known = [name for name in outcome.classes if targets[name] in (0, 1)]
        wrong = [name for name in known if (targets[name] == 1) != (name in predicted)]
        shown = wrong or sorted(known, key=lambda name: abs(probabilities[name] - thresholds[name]))[:1]
        lines = [
            f"{'predicted' if name in predicted else 'did not predict'} {name} "
            f"({format_percent(probabilities[name])}%), labelled {'present' if targets[name] == 1 else 'absent'}"
            for name in sorted(shown, key=lambda name: -abs(probabilities[name] - (targets[name] == 1)))
        ]
        others = {"correct": len(known) - len(shown), "unknown": len(classes) - len(known)}
        counts = [f"{number} {word}" for word, number in others.items() if number]
        return [*lines, f"{'other ' if lines else ''}labels: {', '.join(counts)}"] if counts else lines

    # Groups

    def pool(self, logits: Floats, units: Ints, rule: Rule, negative: int | None = None) -> NDArray[np.float64]:
        """Return the logits of the groups' pooled probabilities, (G, K). Of `negative`, its absence is pooled."""
        signs = _list_signs(logits, negative)
        return signs * logit(pool_scores(self.activate(signs * logits), units, rule))

    def pool_targets(self, targets: Targets, units: Ints, negative: int | None) -> Targets:
        """Return the labels of each group, (G, K): 1 if any of its images has it, 0 if all lack it, else unknown.

        The label `negative` is 0 if any image lacks it, and 1 if all have it.
        """
        shape = (int(units.max()) + 1, targets.shape[1])
        decisive = np.where(_list_signs(targets, negative) > 0, 1, 0)
        has_one, have_other = np.zeros(shape, np.bool_), np.ones(shape, np.bool_)
        np.logical_or.at(has_one, units, targets == decisive)
        np.logical_and.at(have_other, units, targets == 1 - decisive)
        return np.where(has_one, decisive, np.where(have_other, 1 - decisive, np.nan)).astype(targets.dtype)

    def describe_pooled_target(self, negative: str | None) -> str:
        """Return that one positive image suffices, and which label all images must have."""
        text = "a label is positive if any image has it, and unknown if none has it and one is unknown"
        return text if negative is None else f"{text}; {negative} is negative if any image lacks it"

    def measure_losses(self, logits: Floats, targets: Targets) -> NDArray[np.float64]:
        """Return the binary cross-entropy of each image, (N,), over known labels; the mean is the log loss."""
        known = _is_known(targets)
        losses = np.where(known, binary_cross_entropy(logits, targets == 1), 0).sum(axis=1)
        scaled: NDArray[np.float64] = losses * len(targets) / max(1, known.sum())
        return scaled

    # Metrics

    def make_calculator(self, logits: Floats, targets: Targets, scaling: Scaling | None = None) -> MultilabelCalculator:
        """Return the calculator of multi-label metrics."""
        return MultilabelCalculator(logits, targets, self._get_thresholds(logits.shape[1], scaling))

    def summarise_metrics(self, calculator: Any, classes: Sequence[str]) -> MultilabelMetrics:
        """Return the multi-label metrics of a calculator."""
        return summarise_labels(calculator, classes)

    def describe_results(self, metrics: MetricSet, scores: Floats, targets: Targets) -> list[str]:
        """Return the labels that are recognised best and worst, missed most, and falsely predicted most."""
        roc_auc = METRICS["roc_auc"]
        ranked = sorted(
            (entry for entry in metrics.per_class if entry.roc_auc is not None), key=lambda entry: -entry.roc_auc
        )
        sentences = []
        if ranked:
            best, worst = (
                f"{e.name} ({roc_auc.title} {roc_auc.format_with_unit(e.roc_auc)})" for e in (ranked[0], ranked[-1])
            )
            is_alike = ranked[0].roc_auc == ranked[-1].roc_auc
            sentences.append(f"It recognises {best} best{'' if is_alike else f', {worst} worst'}.")
        for key, count, text in (
            ("recall", "images", "Most often missed: {} in {:,} of {} with it ({}%)."),
            ("specificity", "negative", "Most often predicted without the label: {} in {:,} of {} ({}%)."),
        ):
            rates = [(1 - getattr(e, key), e) for e in metrics.per_class if getattr(e, key) is not None]
            rate, entry = max(rates, key=lambda pair: pair[0], default=(0.0, None))
            if entry and rate > 0:
                total = getattr(entry, count)
                images = format_count(total, "image")
                sentences.append(text.format(entry.name, round(rate * total), images, format_percent(rate)))
        return sentences

    def measure_chance(self, metrics: MetricSet, targets: Targets) -> Chance:
        """Return the ROC AUC of guessing, 50%."""
        return Chance(value=0.5, text=f"guessing gives {METRICS['macro_roc_auc'].format_with_unit(0.5)}")

    def list_warnings(
        self, training: Targets, scores: Floats, classes: Sequence[str], scaling: Scaling | None
    ) -> list[str]:
        """Return warnings on labels that are predicted together though no training image has both."""
        together = count_together(training == 1)
        predicted = count_together(self.decide(scores, scaling))
        by_chance = np.outer(np.diag(together), np.diag(together)) / max(1, len(training))
        pairs = np.argwhere(np.triu((together == 0) & (predicted > 0) & (by_chance >= MIN_TO_EXCLUDE), 1))
        return [
            f"{classes[i]} and {classes[j]} are predicted together in {format_count(predicted[i, j], 'image')}, though "
            "no training image has both"
            for i, j in pairs.tolist()
        ]

    # Text

    def to_row(self, outcome: Outcome, top_k: int) -> dict[str, Any]:
        """Return the predicted labels and all probabilities."""
        ranked = dict(zip(outcome.classes, outcome.probabilities, strict=True))
        return {"labels": list(outcome.labels or ()), "probabilities": ranked}

    def list_cells(self, outcome: Outcome) -> list[Any]:
        """Return the predicted labels, separated by `|`."""
        return ["|".join(outcome.labels or ())]

    def list_parts(self, outcome: Outcome, top_k: int, pad: Pad) -> list[str]:
        """Return the predicted labels with their probabilities; without any, the most probable one."""
        ranked = list(zip(outcome.classes, outcome.probabilities, strict=True))
        predicted = [
            f"{name} {format_percent(probability, 1)}%"
            for name, probability in ranked
            if name in (outcome.labels or ())
        ]
        return predicted or [f"no label (highest: {ranked[0][0]} {format_percent(ranked[0][1], 1)}%)"]


def _list_signs(rows: Floats | Targets, negative: int | None) -> NDArray[np.float64]:
    """Return 1 for each label, (K,), and -1 for `negative`."""
    return np.where(np.arange(rows.shape[1]) == negative, -1.0, 1.0)


def _is_known(targets: Targets) -> NDArray[np.bool_]:
    """Return True for each target that is neither uncertain nor unknown."""
    known: NDArray[np.bool_] = (targets == 0) | (targets == 1)
    return known


def _read_flags(table: Table, name: str) -> list[float]:
    """Return the cells of a column of labels: 1, 0, -1, or nan where it is unknown."""
    values = [parse_flag(cell) for cell in table.columns[name]]
    wrong = [row for row, value in enumerate(values) if value is None]
    remedy = f"Correct these rows; for a column of classes, give --label-column {quote(name)}"
    example = f", such as {shorten(table.columns[name][wrong[0]])!r}," if wrong else ""
    table.refuse(f"a cell in {name!r} that is not 1, 0, -1, yes, no or blank{example}", wrong, remedy=remedy)
    return [value for value in values if value is not None]


def _split_labels(cell: str, separator: str) -> list[str]:
    """Return the labels in a cell, without brackets and quotation marks of a list."""
    while _BRACKETS.fullmatch(cell):
        cell = cell[1:-1]
    return [normalise_name(name) for part in cell.split(separator) if (name := part.strip().strip("'\"").strip())]


def _count_votes(rows: Sequence[tuple[float, ...]]) -> tuple[float, ...]:
    """Return what most of an image's rows say about each label: 1 or 0; -1 for a tie, nan if no row says anything."""
    return tuple(map(_count_votes_of_label, zip(*rows, strict=True)))


def _count_votes_of_label(votes: tuple[float, ...]) -> float:
    balance = votes.count(1) - votes.count(0)
    if balance:
        return float(balance > 0)
    return -1.0 if any(vote == vote for vote in votes) else math.nan


def _choose_separator(cells: Sequence[str], options: TableOptions) -> str:
    """Return the sign that the user names, or the one that the cells have; an empty string if none."""
    if any(LIST in cell for cell in cells):
        return LIST
    return _find_separator(cells) if options.label_sep == AUTO else options.label_sep


def _find_separator(labels: Sequence[str]) -> str:
    """Return the sign that separates several labels in a cell; empty if each cell has one label.

    The parts must be labels elsewhere: most of them by themselves, for `|` in any other combination, and for blanks in
    many.
    """
    counts = Counter(labels)
    lists = [label for label in counts if label.startswith("[") and label.endswith("]")]
    if len(lists) == sum(not is_missing(label) for label in counts):
        return "," if any("," in label for label in lists) else ""
    return next((separator for separator in "|;, " if _separates(separator, counts)), "")


def _separates(separator: str, labels: Collection[str]) -> bool:
    """Return True if a sign separates several labels in some of the different cells; it may end a cell too."""
    parts = [[part.strip() for part in label.removesuffix(separator).split(separator)] for label in labels]
    cells = [names for names in parts if len(names) > 1]
    uses = Counter(chain.from_iterable(cells))
    if not cells or "" in uses:
        return False
    alone = len(uses.keys() & {names[0] for names in parts if len(names) == 1})
    if separator == "|":
        return alone > 0 or max(uses.values()) > 1
    if separator == " ":
        are_names = len(set(map(len, cells))) == 1  # such as of two words each
        is_mixed = 2 * len(uses) <= len(labels) and not are_names
        return is_mixed or (alone == len(uses) and len(cells) > 1)
    return alone > 1 and alone >= len(uses) / 2
