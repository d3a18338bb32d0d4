"""How unlike the training images an image is: the cosine distance to its k-th nearest training image.

Source: Sun et al. 2022, Out-of-Distribution Detection with Deep Nearest Neighbors (arXiv:2204.06507). It needs no
assumption on how features are spread, and no image of another kind to set it up.
"""

import math

import numpy as np

from convnext_cli.evaluation.figures import Floats

NEIGHBOUR = 10  # the tenth, so that one odd training image vouches for nothing
ABOUT = f"cosine distance to the {NEIGHBOUR}th nearest training image, in the features before the classifier"


def normalise(features: Floats) -> Floats:
    """Scales each row of (N, D) to length 1."""
    scaled: Floats = features / np.maximum(np.linalg.norm(features, axis=1, keepdims=True), 1e-12)
    return scaled


def score_novelty(features: Floats, bank: Floats) -> Floats:
    """The distance, 0 (the same) to 2, of each image, (N,).

    Args:
        features: (N, D), not normalised.
        bank: (M, D) normalised features of training images.
    """
    likeness = normalise(features).astype(np.float32) @ bank.astype(np.float32).T
    kth = min(NEIGHBOUR, len(bank))
    distance: Floats = 1 - np.partition(likeness, len(bank) - kth, axis=1)[:, len(bank) - kth]
    return distance


def choose_novelty_threshold(scores: Floats, rate: float) -> float:
    """The score above which at most about `rate` of images like those with `scores` lie: a conformal quantile."""
    rank = min(len(scores), math.ceil((len(scores) + 1) * (1 - rate)))
    return float(np.sort(scores)[rank - 1])
