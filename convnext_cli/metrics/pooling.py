"""Pooling: one score for each group, such as a patient, from the scores of its images."""

import math
from collections.abc import Mapping
from typing import Literal, get_args

import numpy as np
from numpy.typing import NDArray

from convnext_cli.metrics.calculator import Floats, Ints

Rule = Literal["mean", "max", "noisy-or"]
MEAN, MAX, NOISY_OR = RULES = get_args(Rule)


def pool_scores(scores: Floats, units: Ints, rule: Rule) -> NDArray[np.float64]:
    """Return the score of each group and class, (G, K).

    - `mean`: the mean over the group's images.
    - `max`: the highest score of any image.
    - `noisy-or`: 1 - product(1 - score), the probability that at least one image is positive if the images were
      independent (Pearl 1988, Probabilistic Reasoning in Intelligent Systems, section 4.3.2; for bags of images Maron
      and Lozano-Perez 1998, A Framework for Multiple-Instance Learning).

    Args:
        scores: (N, K) probabilities, or for `mean` any numbers.
        units: (N,) number of each image's group, 0 to G-1; each occurs.
        rule: see above.
    """
    order = np.argsort(units, kind="stable")
    starts = np.searchsorted(units[order], np.arange(int(units.max()) + 1))
    sorted_scores = np.asarray(scores, np.float64)[order]
    if rule == MAX:
        highest: NDArray[np.float64] = np.maximum.reduceat(sorted_scores, starts, axis=0)
        return highest
    if rule == NOISY_OR:
        none = np.log1p(-np.minimum(sorted_scores, 1 - 1e-12))
        return -np.expm1(np.add.reduceat(none, starts, axis=0))
    mean: NDArray[np.float64] = np.add.reduceat(sorted_scores, starts, axis=0) / np.bincount(units)[:, None]
    return mean


def choose_rule(losses: Mapping[Rule, Floats]) -> Rule:
    """Return the rule with the lowest loss, or the mean if no other is better by more than a standard error.

    The standard error is that of the mean difference over groups. Of a few dozen groups, the lowest loss alone would
    often be chance; the simplest rule within one standard error is that of Breiman et al. 1984, Classification and
    Regression Trees, section 3.4.3.

    Args:
        losses: (G,) the loss of each group, by rule; has the mean.
    """

    def is_better(rule: Rule) -> bool:
        gain = losses[MEAN] - losses[rule]
        return float(gain.mean()) > float(gain.std(ddof=1)) / math.sqrt(len(gain))

    better = [rule for rule in losses if rule != MEAN and is_better(rule)]
    return min(better, key=lambda rule: float(losses[rule].mean())) if better else MEAN
