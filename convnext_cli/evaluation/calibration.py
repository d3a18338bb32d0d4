"""Temperature scaling: one number that makes the probabilities honest without changing any answer."""

import numpy as np

from convnext_cli.evaluation.figures import Floats, Ints, log_softmax

COLDEST, HOTTEST = 0.05, 20.0  # beyond, the validation images are told apart without an error, or not at all


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """Finds the temperature T that minimises the log loss of softmax(logits / T).

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks (arXiv:1706.04599), section 4.2. The loss is
    convex in 1/T, so its derivative, mean(expected logit - true logit), rises and is bisected.

    Args:
        logits: (N, K) of images that the model was not trained on.
        labels: (N,) true classes.

    Returns:
        T, within `COLDEST` and `HOTTEST`.
    """
    true = logits[np.arange(len(labels)), labels]

    def slope(scale: float) -> float:
        return float(((np.exp(log_softmax(logits * scale)) * logits).sum(axis=1) - true).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(50):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / np.sqrt(low * high))
