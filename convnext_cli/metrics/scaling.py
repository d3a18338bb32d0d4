"""Calibration fitted on validation images: a temperature, Platt scaling, the margin of intervals."""

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.curves import count_down, list_thresholds
from convnext_cli.metrics.formulas import log_softmax
from convnext_cli.metrics.intervals import number_units
from convnext_cli.metrics.multilabel import binary_cross_entropy, sigmoid

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
MAX_SCALE, MAX_OFFSET = 20.0, 20.0


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """Return the temperature T that minimises the log loss of softmax(logits / T).

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks (arXiv:1706.04599), section 4.2. The loss is
    convex in 1/T. Its derivative, mean(expected logit - target logit), is therefore monotonic, and bisection finds
    its root. Targets are smoothed as in Platt 1999, Probabilistic Outputs for Support Vector Machines, section 2.2:
    (N + 1) / (N + 2) for the true class, so that a few images without errors do not give probabilities of 1.

    Args:
        logits: (N, K) of images that the model was not trained on.
        labels: (N,) true classes.

    Returns:
        T, from `MIN_TEMPERATURE` to `MAX_TEMPERATURE`.
    """
    true, total = logits[np.arange(len(labels)), labels], logits.sum(axis=1)
    smoothing = 1 / (len(labels) + 2)
    target = (1 - smoothing) * true + smoothing * (total - true) / max(1, logits.shape[1] - 1)

    def slope(scale: float) -> float:
        return float(((np.exp(log_softmax(logits * scale)) * logits).sum(axis=1) - target).mean())

    low, high = 1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE
    for _ in range(50):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / np.sqrt(low * high))


def fit_bias_corrected_temperature(logits: Floats, labels: Ints, weights: Floats) -> tuple[float, NDArray[np.float64]]:
    """Return temperature T and offsets b, (K,), that minimise the log loss of softmax(logits / T + b).

    Source: bias-corrected temperature scaling, Alexandari et al. 2020 (arXiv:1901.06852), section 3. Pooling shifts
    the scores of all groups, which a temperature alone cannot undo. Targets are smoothed as in `fit_temperature`.

    Args:
        logits: (N, K) of groups that the model was not trained on.
        labels: (N,) true classes.
        weights: (N,), how much each group counts.
    """
    from scipy.optimize import minimize  # half a second to import

    number, classes = logits.shape
    smoothing = 1 / (number + 2)
    target = np.full((number, classes), smoothing / max(1, classes - 1))
    target[np.arange(number), labels] = 1 - smoothing
    fractions = (weights / weights.sum())[:, None]

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        log_probabilities = log_softmax(logits * parameters[0] + parameters[1:])
        slope = (np.exp(log_probabilities) - target) * fractions
        value = -float((target * log_probabilities * fractions).sum())
        return value, np.concatenate([[float((slope * logits).sum())], slope.sum(axis=0)])

    bounds = [(1 / MAX_TEMPERATURE, 1 / MIN_TEMPERATURE), *[(-MAX_OFFSET, MAX_OFFSET)] * classes]
    start = np.concatenate([[1.0], np.zeros(classes)])
    result = minimize(loss, start, jac=True, method="L-BFGS-B", bounds=bounds)
    return 1 / float(result.x[0]), np.asarray(result.x[1:], np.float64)


def fit_platt(logits: NDArray[np.float64], positive: NDArray[np.bool_]) -> tuple[float, float]:
    """Return factor and offset that minimise the log loss of sigmoid(factor * logit + offset).

    Source: Platt 1999, Probabilistic Outputs for Support Vector Machines, with its smoothed targets (section 2.2), so
    that separable images do not give probabilities of 0 and 1.

    Args:
        logits: (N,) of images that the model was not trained on.
        positive: (N,) true for images with the label.
    """
    from scipy.optimize import minimize  # half a second to import

    positives, negatives = int(positive.sum()), int((~positive).sum())
    target = np.where(positive, (positives + 1) / (positives + 2), 1 / (negatives + 2))

    def loss(parameters: NDArray[np.float64]) -> tuple[float, NDArray[np.float64]]:
        z = parameters[0] * logits + parameters[1]
        slope = sigmoid(z) - target
        return float(binary_cross_entropy(z, target).mean()), np.array([(slope * logits).mean(), slope.mean()])

    bounds = [(0.0, MAX_SCALE), (-MAX_OFFSET, MAX_OFFSET)]
    result = minimize(loss, np.array([1.0, 0.0]), jac=True, method="L-BFGS-B", bounds=bounds)
    return float(result.x[0]), float(result.x[1])


def choose_threshold(probabilities: NDArray[np.float64], positive: NDArray[np.bool_]) -> float:
    """Return the threshold with the highest F1, halfway between two scores; 0.5 without positives.

    Arguments as `fit_platt`, with probabilities for the logits.
    """
    if not positive.any():
        return 0.5
    true, false = count_down(probabilities, positive)
    best = int((2 * true / (true + false + positive.sum())).argmax())
    return float(list_thresholds(probabilities)[best + 1])


def fit_margin(errors: NDArray[np.float64], groups: Sequence[str] | None, coverage: float) -> float | None:
    """Return the half length of prediction intervals; None where there are too few images or groups for the coverage.

    With n independent images, the ceil((n + 1) coverage)-th smallest absolute error covers a new image with at least
    that probability (Papadopoulos et al. 2002; Lei et al. 2018, arXiv:1604.04173, section 2.2). Images of one group are
    not independent: each group counts once, by a weight of 1 / (its images) for each of its images, so that n is the
    number of groups (Dunn et al. 2022, arXiv:1809.07441, who average over groups).

    Args:
        errors: (N,) absolute errors on images that the model was not trained on.
        groups: (N,) names; None where groups are not known. An empty name is a group of its own.
        coverage: the fraction to cover.
    """
    units = number_units(len(errors), groups)
    sizes = np.bincount(units)
    n = len(sizes)
    order = np.argsort(errors, kind="stable")
    cumulated = np.cumsum(1 / sizes[units[order]])
    needed = math.ceil((n + 1) * coverage - 1e-9)
    if needed > n:
        return None
    place = int(np.searchsorted(cumulated, needed - 1e-9))
    return float(errors[order[min(place, len(errors) - 1)]])
