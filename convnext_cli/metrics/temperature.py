"""Temperature scaling: one number that makes the probabilities honest without changing any answer."""

import numpy as np

from convnext_cli.metrics.formulas import Floats, Ints, log_softmax
from convnext_cli.metrics.summary import Metrics

COLDEST, HOTTEST = 0.05, 20.0  # beyond, the logits' own scale is out of all proportion


def describe_worse_calibration(temperature: float, before: Metrics, after: Metrics) -> str | None:
    """Return a warning where a temperature makes the probabilities of these images worse, else None.

    Args:
        temperature: as fitted on validation.
        before: metrics of the model's own probabilities.
        after: of those that the temperature gives.
    """
    if after.log_loss <= before.log_loss:
        return None
    return (
        f"the temperature {temperature:.2f}, fitted on validation, makes calibration worse on these images: log loss "
        f"{before.log_loss:.4f} -> {after.log_loss:.4f}, ECE {before.ece:.1%} -> {after.ece:.1%}. Do not rely on the "
        "probabilities here; these images may differ from the validation images"
    )


def fit_temperature(logits: Floats, labels: Ints) -> float:
    """Finds the temperature T that minimises the log loss of softmax(logits / T).

    Source: Guo et al. 2017, On Calibration of Modern Neural Networks (arXiv:1706.04599), section 4.2. The loss is
    convex in 1/T, so its derivative, mean(expected logit - target logit), rises and is bisected. The target is the true
    class to (N + 1) / (N + 2) and the others to the rest, as in Platt 1999, Probabilistic Outputs for Support Vector
    Machines, section 2.2: a few images without an error are no proof that there are none.

    Args:
        logits: (N, K) of images that the model was not trained on.
        labels: (N,) true classes.

    Returns:
        T, within `COLDEST` and `HOTTEST`.
    """
    true, total = logits[np.arange(len(labels)), labels], logits.sum(axis=1)
    doubt = 1 / (len(labels) + 2)
    target = (1 - doubt) * true + doubt * (total - true) / max(1, logits.shape[1] - 1)

    def slope(scale: float) -> float:
        return float(((np.exp(log_softmax(logits * scale)) * logits).sum(axis=1) - target).mean())

    low, high = 1 / HOTTEST, 1 / COLDEST
    for _ in range(50):
        middle = float(np.sqrt(low * high))
        low, high = (middle, high) if slope(middle) < 0 else (low, middle)
    return float(1 / np.sqrt(low * high))
