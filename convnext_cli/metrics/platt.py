"""Calibration and threshold of one label: Platt scaling, and the threshold with the highest F1."""

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.curves import count_down, list_thresholds
from convnext_cli.metrics.multilabel import binary_cross_entropy, sigmoid

MAX_SCALE = 20.0
MAX_OFFSET = 20.0


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
