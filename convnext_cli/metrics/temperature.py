"""Temperature scaling: one number that calibrates the probabilities without changing any prediction."""

from collections.abc import Sequence

import numpy as np

from convnext_cli.metrics.calculator import Floats, Ints
from convnext_cli.metrics.formulas import log_softmax
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.summary import MetricSet

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def describe_worse_calibration(keys: Sequence[str], before: MetricSet, after: MetricSet) -> str | None:
    """Return a warning where calibration makes the first of some metrics worse on these images, else None.

    Args:
        keys: metrics that calibration changes, of which lower is better.
        before: metrics of the uncalibrated probabilities.
        after: metrics of the calibrated probabilities.
    """
    if not keys or getattr(after, keys[0]) <= getattr(before, keys[0]):
        return None
    changes = (
        f"{METRICS[key].title} {METRICS[key].format_with_unit(getattr(before, key))} -> "
        f"{METRICS[key].format_with_unit(getattr(after, key))}"
        for key in keys
    )
    return (
        f"the calibration that was fitted on validation images makes the probabilities worse on these images: "
        f"{', '.join(changes)}. Do not rely on them; the images may differ from the validation images"
    )


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
