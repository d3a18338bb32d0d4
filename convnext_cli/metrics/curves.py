"""Points of the curves of a report: ROC, precision-recall, reliability."""

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.formulas import ECE_BINS, bin_by_rank


def trace_roc(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the false and true positive rates at each distinct score, from (0, 0) to (1, 1)."""
    true, false = count_down(scores, positive)
    return np.concatenate([[0.0], false / false[-1]]), np.concatenate([[0.0], true / true[-1]])


def trace_pr(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return recall and precision at each distinct score; the point at recall 0 repeats the first precision."""
    true, false = count_down(scores, positive)
    precision = true / (true + false)
    return np.concatenate([[0.0], true / true[-1]]), np.concatenate([precision[:1], precision])


def measure_reliability(confidence: Floats, correct: NDArray[np.bool_]) -> list[tuple[float, float, int]]:
    """Return mean confidence, accuracy and number of images in each bin of the ECE; empty bins are left out.

    Args:
        confidence: (N,) probabilities of the predictions.
        correct: (N,) true where the prediction is right.
    """
    bins = bin_by_rank(confidence)
    members = [np.flatnonzero(bins == number) for number in range(ECE_BINS)]
    return [(float(confidence[rows].mean()), float(correct[rows].mean()), len(rows)) for rows in members if len(rows)]


def count_down(scores: Floats, positive: NDArray[np.bool_]) -> tuple[Floats, Floats]:
    """Return the true and false positives at or above each distinct score, the highest score first."""
    order = np.argsort(-scores, kind="stable")
    last = np.append(np.flatnonzero(np.diff(scores[order])), len(scores) - 1)
    true = np.cumsum(positive[order])[last].astype(np.float64)
    return true, last + 1 - true


def list_thresholds(scores: Floats) -> NDArray[np.float64]:
    """Return all thresholds that decide differently, the highest first: above, between and below distinct scores.

    They lie halfway; between neighbouring floats there is nothing, and the threshold is the higher one.
    """
    distinct = np.unique(scores)[::-1].astype(np.float64)
    halfway = (np.append(1.0, distinct) + np.append(distinct, 0.0)) / 2
    thresholds: NDArray[np.float64] = np.maximum(halfway, np.nextafter(np.append(distinct, -1.0), 2.0))
    return thresholds
