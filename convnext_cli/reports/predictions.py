"""The predictions of an evaluation as CSV: a row for each image or group, with its label."""

import csv
import io
from collections.abc import Sequence
from itertools import chain
from typing import Any

import numpy as np

from convnext_cli.inference.evaluated_images import EvaluatedImages
from convnext_cli.inference.evaluation import Evaluation
from convnext_cli.inference.per_group import GroupEvaluation
from convnext_cli.runs.split import format_target, list_target_columns
from convnext_cli.text import guard_cell, title_probabilities

MAX_CLASSES = 100  # classes up to which each has a column; the file would grow with images times classes


def format_predictions(evaluation: Evaluation) -> str:
    """Return the text of `predictions.csv`: a row for each image, the wrong predictions first."""
    index, rows, images = evaluation.test_set.index, evaluation.test_set.rows, evaluation.images
    groups = images.groups or [""] * len(rows)
    units = [(index.paths[row], group) for row, group in zip(rows, groups, strict=True)]
    return _format(("path", "group"), units, images)


def format_group_predictions(groups: GroupEvaluation) -> str:
    """Return the text of `predictions-groups.csv`: a row for each group, the wrong predictions first."""
    units = list(zip(groups.names, groups.sizes, strict=True))
    return _format(("group", "images"), units, groups.pooled)


def _format(names: Sequence[str], units: Sequence[Sequence[Any]], images: EvaluatedImages) -> str:
    """Return CSV with the columns `names`, the label, the prediction and the probability of each class.

    Wrong predictions come first, the most confident first; then the others, the least confident first.
    """
    task, classes, scaling, scores = images.task, images.classes, images.calibration, images.probabilities
    outcomes = [task.summarise(row, classes, scaling) for row in scores]
    shown = classes if outcomes[0].classes and len(classes) <= MAX_CLASSES else ()
    targets = list_target_columns(classes) if task.has_values else ["label"]
    text = io.StringIO()
    table = csv.writer(text, lineterminator="\n")
    table.writerow(map(guard_cell, [*names, *targets, *task.columns, *title_probabilities(shown)]))
    for i in dict.fromkeys(chain(*task.rank_errors(scores, images.targets, scaling))):
        target = np.atleast_1d(images.targets[i]).tolist()
        label = map(format_target, target) if task.has_values else [guard_cell(classes[target[0]])]
        prediction = map(guard_cell, task.list_cells(outcomes[i]))
        table.writerow([*map(guard_cell, units[i]), *label, *prediction, *(scores[i].tolist() if shown else ())])
    return text.getvalue()
