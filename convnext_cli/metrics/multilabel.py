"""Metrics of several labels per image, each against its absence. Unknown targets are left out, label by label."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Calculator, Floats
from convnext_cli.metrics.formulas import ECE_BINS, Ranking, bin_by_rank
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.summary import Fraction, MetricSet, compute_once, list_keys


@dataclass(frozen=True, kw_only=True, slots=True)
class LabelMetrics:
    """Metrics of one label; None where not defined (no positive, no negative, or no prediction of it)."""

    name: str
    images: int
    """Number of positive images."""
    negative: int
    unknown: int
    """Images of which the label is blank or uncertain; they do not count."""
    roc_auc: Fraction | None
    pr_auc: Fraction | None
    recall: Fraction | None
    """Sensitivity."""
    specificity: Fraction | None
    precision: Fraction | None
    f1: Fraction | None
    label_brier: Fraction | None
    label_ece: Fraction | None


@dataclass(frozen=True, kw_only=True, slots=True)
class MultilabelMetrics(MetricSet):
    """All metrics of one evaluation. Macro averages are over the labels for which a metric is defined."""

    images: int
    macro_roc_auc: Fraction | None
    macro_pr_auc: Fraction | None
    macro_f1: Fraction | None
    macro_recall: Fraction | None
    macro_specificity: Fraction | None
    exact_match: Fraction | None
    log_loss: float
    macro_brier: Fraction | None
    macro_ece: Fraction | None
    per_class: tuple[LabelMetrics, ...]
    confusion: tuple[tuple[int, ...], ...] = ()


class MultilabelCalculator(Calculator):
    """Metrics of K labels, of which each image has any number.

    Args:
        logits: (N, K) before the sigmoid.
        targets: (N, K): 1, 0, and anything else where a label is unknown.
        thresholds: (K,) probabilities from which on a label is predicted; None for 0.5.
    """

    overall: ClassVar[tuple[str, ...]] = list_keys(MultilabelMetrics)
    per_class: ClassVar[tuple[str, ...]] = list_keys(LabelMetrics)

    def __init__(self, logits: Floats, targets: Floats, thresholds: Sequence[float] | None = None) -> None:
        self.images, self.num_classes = logits.shape
        probabilities = sigmoid(logits)
        self.positive, self.negative = targets == 1, targets == 0
        self.predicted = probabilities >= (0.5 if thresholds is None else np.asarray(thresholds))
        known = self.positive | self.negative
        self.present = known.any(axis=0)
        self._has_known: NDArray[np.bool_] = known.any(axis=1)
        self._all_right = (~known | (self.predicted == self.positive)).all(axis=1) & self._has_known
        self.correct = None
        self._labels = [
            _Label(probabilities[:, k], self.positive[:, k], known[:, k], self.predicted[:, k])
            for k in range(self.num_classes)
        ]
        losses = binary_cross_entropy(logits, self.positive)
        self._loss_sums, self._loss_counts = (losses * known).sum(axis=1), known.sum(axis=1).astype(np.float64)

    def compute(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Compute all metrics for C weightings at a time, as `Calculator.compute`."""
        by_label = [label.compute(weights) for label in self._labels]
        per_class = {key: np.stack([values[key] for values in by_label], axis=1) for key in self.per_class}
        with np.errstate(invalid="ignore", divide="ignore"):
            overall = {
                "exact_match": weights @ self._all_right / (weights @ self._has_known),
                "log_loss": weights @ self._loss_sums / (weights @ self._loss_counts),
            }
            for key in self.overall:
                if name := METRICS[key].average_of:
                    defined = ~np.isnan(per_class[name])
                    overall[key] = np.where(defined, per_class[name], 0).sum(axis=1) / defined.sum(axis=1)
        return {key: overall[key] for key in self.overall}, per_class

    def compute_gaps(self, weights: Floats) -> dict[str, Floats]:
        """Return probability minus frequency of each bin, as fractions of the known images of each label."""
        return {"label_ece": np.stack([label.compute_gaps(weights) for label in self._labels], axis=1)}

    def select_counted(self) -> NDArray[np.bool_]:
        """Return the images of which at least one label is known, (N,)."""
        return self._has_known

    def list_denominators(self, key: str, k: int) -> Sequence[NDArray[np.bool_]]:
        """Return the sets of images that a metric of label k depends on, each (N,)."""
        positive, negative = self.positive[:, k], self.negative[:, k]
        predicted = self.predicted[:, k] & (positive | negative)
        return {
            "roc_auc": (positive, negative), "pr_auc": (positive,), "recall": (positive,), "specificity": (negative,),
            "precision": (predicted,), "f1": (positive | predicted,), "label_brier": (positive | negative,),
            "label_ece": (positive | negative,),
        }[key]  # fmt: skip


class _Label:
    """One label: its known images, sorted once."""

    def __init__(
        self,
        probabilities: NDArray[np.float64],
        positive: NDArray[np.bool_],
        known: NDArray[np.bool_],
        predicted: NDArray[np.bool_],
    ) -> None:
        self._rows = np.flatnonzero(known)
        scores, truth, predicted = probabilities[self._rows], positive[self._rows], predicted[self._rows]
        self._ranking = Ranking(scores, truth) if 0 < truth.sum() < len(truth) else None
        bins = bin_by_rank(scores)
        gaps = np.zeros((len(scores), ECE_BINS))
        gaps[np.arange(len(scores)), bins] = scores - truth
        # Columns: positives, true positives, predictions, squared errors, and the gaps of the ECE's bins.
        self._columns = np.column_stack([truth, truth & predicted, predicted, (scores - truth) ** 2, gaps])

    def compute_gaps(self, weights: Floats) -> Floats:
        """Return the gaps of the ECE's bins for C weightings, (C, B); nan where no image counts."""
        weights = weights.take(self._rows, axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            gaps: Floats = weights @ self._columns[:, 4:].astype(weights.dtype) / weights.sum(axis=1)[:, None]
        return gaps

    def compute(self, weights: Floats) -> dict[str, Floats]:
        """Return the metrics of C weightings, each (C,)."""
        weights = weights.take(self._rows, axis=1)
        total = weights.sum(axis=1)
        sums = weights @ self._columns.astype(weights.dtype)
        actual, hits, predicted, squares = sums[:, 0], sums[:, 1], sums[:, 2], sums[:, 3]
        empty = np.full(len(weights), np.nan)
        roc, pr = self._ranking.areas(weights) if self._ranking else (empty, empty)
        with np.errstate(invalid="ignore", divide="ignore"):
            return {
                "roc_auc": roc,
                "pr_auc": pr,
                "recall": hits / actual,
                "specificity": (total - actual - predicted + hits) / (total - actual),
                "precision": hits / predicted,
                "f1": np.where(actual > 0, 2 * hits / (actual + predicted), np.nan),
                "label_brier": squares / total,
                "label_ece": np.abs(sums[:, 4:]).sum(axis=1) / total,
            }


def summarise_labels(calculator: MultilabelCalculator, classes: Sequence[str]) -> MultilabelMetrics:
    """Return the metrics of a calculator, all images counted once; `classes` are K names."""
    values, entries = compute_once(calculator)
    positive, negative = calculator.positive, calculator.negative
    return MultilabelMetrics(
        images=calculator.images,
        **values,
        per_class=tuple(
            LabelMetrics(
                name=name,
                images=int(positive[:, k].sum()),
                negative=int(negative[:, k].sum()),
                unknown=int((~positive[:, k] & ~negative[:, k]).sum()),
                **entries[k],
            )
            for k, name in enumerate(classes)
        ),
    )


def count_together(labels: NDArray[np.bool_]) -> NDArray[np.int64]:
    """Return the number of images with each pair of labels, (K, K), of labels (N, K)."""
    return labels.T.astype(np.int64) @ labels.astype(np.int64)


def logit(probabilities: Floats) -> NDArray[np.float64]:
    """Return the logits of probabilities of any shape, which are kept 1e-7 away from 0 and 1."""
    inner = probabilities.clip(1e-7, 1 - 1e-7)
    logits: NDArray[np.float64] = np.log(inner) - np.log1p(-inner)
    return logits


def sigmoid(logits: Floats) -> NDArray[np.float64]:
    """Return probabilities of logits of any shape, without overflow."""
    z = logits.astype(np.float64)
    small = np.exp(-np.abs(z))
    probabilities: NDArray[np.float64] = np.where(z >= 0, 1 / (1 + small), small / (1 + small))
    return probabilities


def binary_cross_entropy(logits: Floats, targets: Floats | NDArray[np.bool_]) -> NDArray[np.float64]:
    """Return the binary cross-entropy of logits and targets (0 to 1) of one shape, without overflow."""
    z = logits.astype(np.float64)
    losses: NDArray[np.float64] = np.maximum(z, 0) - z * targets + np.log1p(np.exp(-np.abs(z)))
    return losses
