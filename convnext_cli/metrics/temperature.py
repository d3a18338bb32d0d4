"""Temperature scaling: one number that calibrates the probabilities without changing any prediction."""

import numpy as np

from convnext_cli.metrics.formulas import Floats, Ints, log_softmax
from convnext_cli.metrics.registry import METRICS
from convnext_cli.metrics.summary import Metrics

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.05, 20.0


def describe_worse_calibration(temperature: float, before: Metrics, after: Metrics) -> str | None:
    """Return a warning where the temperature increases the log loss on these images, else None.

    Args:
        temperature: fitted on validation images.
        before: metrics of the uncalibrated probabilities.
        after: metrics of the calibrated probabilities.
    """
    if after.log_loss <= before.log_loss:
        return None
    log_loss, ece = METRICS["log_loss"], METRICS["ece"]
    return (
        f"the temperature {temperature:.2f}, fitted on validation images, makes calibration worse on these images: log "
        f"loss {log_loss.format(before.log_loss)} -> {log_loss.format(after.log_loss)}, ECE "
        f"{ece.format_with_unit(before.ece)} -> {ece.format_with_unit(after.ece)}. Do not rely on these probabilities; "
        "the images may differ from the validation images"
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
