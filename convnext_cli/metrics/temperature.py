"""Temperature scaling: one number that calibrates the probabilities without changing the most probable class."""

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.formulas import log_softmax

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0
MAX_OFFSET = 20.0


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
