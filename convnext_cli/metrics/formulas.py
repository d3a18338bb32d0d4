"""Formulas of all metrics, over weighted images.

Weights of 1 give the metric, the weights of a bootstrap resample give a replicate. A metric that is not defined (no
image of a class, or no prediction of it) is nan.
"""

from collections.abc import Sequence
from typing import ClassVar

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics import registry
from convnext_cli.metrics.calculator import Calculator, Floats, Ints

ECE_BINS = 15  # as in Guo et al. 2017 (arXiv:1706.04599)


class ClassCalculator(Calculator):
    """Metrics of classification: one class per image.

    Args:
        logits: (N, K) scores before softmax.
        labels: (N,) true classes, 0 to K-1. Classes may be absent.
        predictions: (N,) predicted classes; None for the most probable ones.
    """

    overall: ClassVar[tuple[str, ...]] = tuple(metric.key for metric in registry.OVERALL)
    per_class: ClassVar[tuple[str, ...]] = tuple(metric.key for metric in registry.PER_CLASS)

    def __init__(self, logits: Floats, labels: Ints, predictions: Ints | None = None) -> None:
        num_images, self.num_classes = logits.shape
        self.images = num_images
        log_probabilities = log_softmax(logits)
        probabilities = np.exp(log_probabilities)
        self.labels = np.asarray(labels)
        self.predictions: Ints = logits.argmax(axis=1) if predictions is None else predictions
        self.correct = self.predictions == self.labels
        self.present = np.bincount(self.labels, minlength=self.num_classes) > 0
        squared = (probabilities**2).sum(axis=1) - 2 * probabilities[np.arange(num_images), self.labels] + 1
        # Columns: negative log-likelihood; Brier score, halved to lie in 0 to 1, which with two classes is the usual
        # binary score.
        self._sums = np.stack([-log_probabilities[np.arange(num_images), self.labels], squared / 2], axis=1)
        confidence = probabilities[np.arange(num_images), self.predictions]
        self.bins = bin_by_rank(confidence)
        self._gap_by_bin = np.zeros((num_images, ECE_BINS))
        self._gap_by_bin[np.arange(num_images), self.bins] = confidence - self.correct
        self.count_actual = GroupedSum(self.labels, self.num_classes)
        self.count_predicted = GroupedSum(self.predictions, self.num_classes)
        self._count_correct = GroupedSum(self.labels, self.num_classes, self.correct)
        self._rankings = {
            k: Ranking(probabilities[:, k], self.labels == k)
            for k in np.flatnonzero(self.present)
            if 0 < (self.labels == k).sum() < num_images
        }

    def compute(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        """Compute all metrics for C weightings at a time, as `Calculator.compute`."""
        dtype = weights.dtype
        total = weights.sum(axis=1)
        sums = weights @ self._sums.astype(dtype) / total[:, None]
        gaps = weights @ self._gap_by_bin.astype(dtype)
        overall, per_class = self._compute_from_counts(weights)
        overall |= {"log_loss": sums[:, 0], "brier": sums[:, 1], "ece": np.abs(gaps).sum(axis=1) / total}
        shape = (len(weights), self.num_classes)
        per_class |= {"roc_auc": np.full(shape, np.nan), "pr_auc": np.full(shape, np.nan)}
        for k, ranking in self._rankings.items():
            per_class["roc_auc"][:, k], per_class["pr_auc"][:, k] = ranking.areas(weights)
        for name in ("roc_auc", "pr_auc"):
            overall[f"macro_{name}"] = self._macro(per_class[name])
        return {n: overall[n] for n in ClassCalculator.overall}, {n: per_class[n] for n in ClassCalculator.per_class}

    def compute_gaps(self, weights: Floats) -> dict[str, Floats]:
        """Return confidence minus accuracy of each bin, as fractions of all images."""
        return {"ece": weights @ self._gap_by_bin.astype(weights.dtype) / weights.sum(axis=1)[:, None]}

    def list_denominators(self, key: str, k: int) -> Sequence[NDArray[np.bool_]]:
        """Return the sets of images that a metric of class k depends on, each (N,)."""
        actual, predicted = self.labels == k, self.predictions == k
        return {
            "precision": (predicted,), "recall": (actual,), "specificity": (~actual,),
            "f1": (actual | predicted,), "roc_auc": (actual, ~actual), "pr_auc": (actual,),
        }[key]  # fmt: skip

    def _compute_from_counts(self, weights: Floats) -> tuple[dict[str, Floats], dict[str, Floats]]:
        actual, predicted, correct = (
            sums(weights) for sums in (self.count_actual, self.count_predicted, self._count_correct)
        )
        total, hits = actual.sum(axis=1), correct.sum(axis=1)
        by_chance = (actual * predicted).sum(axis=1)
        with np.errstate(invalid="ignore", divide="ignore"):
            n = total[:, None]
            per_class = {
                "precision": correct / predicted,
                "recall": correct / actual,
                "specificity": (n - actual - predicted + correct) / (n - actual),
                # 2 TP / (2 TP + FP + FN) is defined where the class occurs
                "f1": np.where(actual > 0, 2 * correct / (actual + predicted), np.nan),
            }
            spread = (total**2 - (predicted**2).sum(axis=1)) * (total**2 - (actual**2).sum(axis=1))
            overall = {
                "top1": hits / total,
                "balanced_accuracy": self._macro(per_class["recall"]),
                # the mean takes 0 for a class that is never predicted
                "macro_precision": self._macro(np.where(predicted > 0, per_class["precision"], 0)),
                "macro_specificity": self._macro(per_class["specificity"]),
                "macro_f1": self._macro(per_class["f1"]),
                # Cohen 1960; of one class, chance agrees as often as any predictions
                "kappa": np.where(has_classes(actual), (total * hits - by_chance) / (total**2 - by_chance), np.nan),
                "mcc": (total * hits - by_chance) / np.sqrt(spread),  # Gorodkin 2004, for K classes
            }
        return overall, per_class

    def _macro(self, values: Floats) -> Floats:
        """Return the mean over the classes that occur in the data, without those that a resample lost."""
        values = values[:, self.present]
        defined = ~np.isnan(values)
        with np.errstate(invalid="ignore"):
            mean: Floats = np.where(defined, values, 0).sum(axis=1) / defined.sum(axis=1)
        return mean


def has_classes(actual: Floats) -> NDArray[np.bool_]:
    """Return True for the weightings with images of two classes or more, (C,), by those of each class, (C, K)."""
    is_plural: NDArray[np.bool_] = (actual > 0).sum(axis=1) > 1
    return is_plural


class GroupedSum:
    """Sums of weights by key, from (C, N) to (C, num).

    Args:
        keys: (N,), 0 to num - 1.
        num: number of keys.
        mask: (N,) the images to sum over; None takes all.
    """

    def __init__(self, keys: Ints, num: int, mask: NDArray[np.bool_] | None = None) -> None:
        rows = np.arange(len(keys)) if mask is None else np.flatnonzero(mask)
        self.order = rows[np.argsort(keys[rows], kind="stable")]
        self.keys, self.starts = np.unique(keys[self.order], return_index=True)
        self.num = num

    def __call__(self, weights: Floats) -> Floats:
        """Return the sum of each key's weights, (C, num)."""
        sums = np.zeros((len(weights), self.num))
        if len(self.keys):
            sums[:, self.keys] = np.add.reduceat(weights.take(self.order, axis=1), self.starts, axis=1)
        return sums


class Ranking:
    """One class against the rest: images by falling score, in blocks of equal scores."""

    def __init__(self, scores: Floats, positive: NDArray[np.bool_]) -> None:
        self.order = np.argsort(-scores, kind="stable").astype(np.int32)
        block = np.cumsum(np.concatenate([[0], np.diff(scores[self.order]) != 0]))
        places = np.flatnonzero(positive[self.order])
        self.positives = self.order[places]
        self.firsts = np.flatnonzero(np.concatenate([[True], np.diff(block[places]) != 0]))
        blocks = block[places[self.firsts]]  # only blocks with a positive contribute
        self.starts = np.searchsorted(block, blocks, side="left")
        self.ends = np.searchsorted(block, blocks, side="right") - 1

    def areas(self, weights: Floats) -> tuple[Floats, Floats]:
        """Return ROC AUC (ties count half) and average precision (one step per distinct score), both (C,)."""
        sorted_weights = weights.take(self.order, axis=1)
        upto = np.cumsum(sorted_weights, axis=1)
        all_end = upto.take(self.ends, axis=1)
        all_start = upto.take(self.starts, axis=1) - sorted_weights.take(self.starts, axis=1)
        positive = weights.take(self.positives, axis=1)
        if len(self.firsts) < len(self.positives):
            positive = np.add.reduceat(positive, self.firsts, axis=1)
        positive_end = np.cumsum(positive, axis=1)
        num_positive = positive_end[:, -1]
        num_negative = upto[:, -1] - num_positive
        negative_before = (all_start - positive_end + positive + all_end - positive_end) / 2
        with np.errstate(invalid="ignore", divide="ignore"):
            beaten = (positive * (num_negative[:, None] - negative_before)).sum(axis=1)
            roc = beaten / (num_positive * num_negative)
            # a block without weight contributes 0; the floor avoids 0 / 0
            pr = (positive * positive_end / np.maximum(all_end, 1e-9)).sum(axis=1) / num_positive
        return roc, pr


def log_softmax(logits: Floats) -> NDArray[np.float64]:
    """Return log-probabilities (N, K) in float64; subtracting the row's maximum avoids overflow."""
    shifted = logits.astype(np.float64) - logits.max(axis=1, keepdims=True)
    log_probabilities: NDArray[np.float64] = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return log_probabilities


def bin_by_rank(confidence: Floats) -> Ints:
    """Return the number of each image's bin, (N,): `ECE_BINS` equal-mass bins (Nixon et al., arXiv:1904.01685).

    Equal confidences share the bin of their middle rank, so that the order of the images does not matter.
    """
    _, places, counts = np.unique(confidence, return_inverse=True, return_counts=True)
    middles = np.cumsum(counts) - counts + (counts - 1) // 2
    bins: Ints = (middles * ECE_BINS // len(confidence))[places.reshape(-1)]
    return bins
