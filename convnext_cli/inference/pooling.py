"""Choose how the images of a group give one prediction, and calibrate it, on the validation groups of a run."""

import re
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
from msgspec.structs import asdict, replace

from convnext_cli.data.groups import group_index, group_like
from convnext_cli.data.index import NONE, Index
from convnext_cli.errors import UsageError
from convnext_cli.inference.calibration import Calibration, Pooling, read_pooling, read_validation
from convnext_cli.inference.classifier import Classifier, find_class
from convnext_cli.inference.evaluated_images import EvaluatedImages
from convnext_cli.inference.operating_points import fit_threshold
from convnext_cli.metrics.calculator import Floats
from convnext_cli.metrics.intervals import number_units
from convnext_cli.metrics.pooling import Rule, choose_rule
from convnext_cli.options import AUTO
from convnext_cli.recipes.plan import read_optional_plan
from convnext_cli.recipes.settings import UNCORRECTED
from convnext_cli.runs.files import AUDIT
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder
from convnext_cli.runs.records import AuditRecord
from convnext_cli.tasks.task import Targets, Task
from convnext_cli.text import format_count

NO_GROUPS_OF_OWN = "a cross-validation has no validation groups of its own"
MIN_GROUPS = 20  # validation groups to choose and calibrate a rule on
NEGATIVE_NAMES = frozenset((
    "0", "absent", "benign", "control", "controls", "healthy", "neg", "negative", "no", "nofinding", "nofindings",
    "none", "norm", "normal", "normals", "unremarkable",
))  # fmt: skip
"""Names of classes without a finding, in lower case and without separators."""


def fit_pooling(
    run: RunFolder, model: Classifier, calibration: Calibration | None, index: Index, blank: Pooling
) -> Pooling:
    """Choose a rule on the run's validation groups, as `choose_pooling` does, and set its thresholds for all targets.

    `index` is the run's split, with groups where these are known. `blank` has the weights, the source of the groups
    and the negative class.

    Raises:
        RunError: the validation logits in the run are damaged.
    """
    if not index.groups:
        return replace(blank, unfitted_reason="the groups of the run's own images are not known")
    rows = index.rows("val")
    if calibration is None or not calibration.is_fitted:
        reason = calibration.unfitted_reason if calibration else "the run is not calibrated"
        return replace(blank, unfitted_reason=reason)
    logits, labels = read_validation(run, calibration, model)
    task, classes = model.task, model.classes
    kept: dict[str, Any] = {"label_thresholds": calibration.label_thresholds, "margin": calibration.margin}
    if len(rows) != len(logits):
        return replace(blank, unfitted_reason="the run's validation split was changed", **kept)
    units = number_units(len(rows), [index.groups[row] for row in rows])
    negative = None if blank.negative_class is None else classes.index(blank.negative_class)
    targets = task.pool_targets(labels, units, negative)
    blank = replace(blank, groups=int(units.max()) + 1)
    few = task.explain_small_validation(targets, classes)
    if few or blank.groups < MIN_GROUPS:
        number = format_count(blank.groups, "group")
        reason = f"the validation split has only {number}{f' ({few})' if few else ''}"
        return replace(blank, unfitted_reason=reason, **kept)
    calibrated = task.calibrate(logits, calibration)
    pool = partial(task.pool, calibrated, units, negative=negative)
    pooling = choose_pooling(task, pool, targets, _weigh(run, task, targets), blank)
    pooled = EvaluatedImages(
        task=task,
        classes=classes,
        logits=pool(pooling.rule),
        targets=targets,
        calibration=pooling,
        groups=None,
    )
    thresholds = (fit_threshold(threshold.target, pooled) for threshold in calibration.thresholds)
    return replace(pooling, thresholds=tuple(filter(None, thresholds)))


def choose_pooling(
    task: Task, pool: Callable[[Rule], Floats], targets: Targets, weights: Floats, blank: Pooling
) -> Pooling:
    """Calibrate each rule on validation groups, and return the one with the lowest log loss.

    The log loss is a proper score of the calibrated probabilities, and it uses all of each probability. Balanced
    accuracy, by which the best epoch is chosen, changes only where a decision does: on a few dozen groups it cannot
    tell two rules apart.

    Args:
        task: of the run.
        pool: returns the logits of the groups, (G, K), by a rule.
        targets: of the G groups.
        weights: (G,), how much each group counts.
        blank: the other fields of the result.
    """
    poolings: dict[Rule, Pooling] = {}
    losses: dict[Rule, Floats] = {}
    for rule in task.pooling:
        pooled = pool(rule)
        scaling = task.fit_pooled(pooled, targets, weights)
        poolings[rule] = replace(blank, rule=rule, **asdict(scaling))
        losses[rule] = weights * task.measure_losses(task.calibrate(pooled, scaling), targets)
    means = {str(rule): float(loss.mean()) for rule, loss in losses.items()}
    return replace(poolings[choose_rule(losses)], losses=means)


def _weigh(run: RunFolder, task: Task, targets: Targets) -> Floats:
    """Return how much each group counts, 1 on average, (G,).

    Offsets fit the probabilities to how frequent the classes are. Where the training evened the classes out, they count
    alike here too: else a group would be given the rare class less often than each of its images.
    """
    settings = read_optional_plan(run.plan).settings
    is_balanced = any(settings.get(name, value) != value for name, value in UNCORRECTED.items())
    if not is_balanced or task.has_values:
        return np.ones(len(targets))
    counts = np.bincount(targets)
    weights: Floats = len(targets) / (counts > 0).sum() / counts[targets]
    return weights


def choose_negative(task: Task, classes: tuple[str, ...], name: str | None) -> str | None:
    """Return the class that any other class of a group's images outweighs: the named one, else by its name.

    Raises:
        UsageError: the model has no such class, or its task has no negative class.
    """
    if not task.has_negative:
        if name is not None:
            raise UsageError(f"--negative-class does not apply to {task.title}", "Leave it out")
        return None
    if name is None:
        matching = [known for known in classes if re.sub(r"[\W_]+", "", known).casefold() in NEGATIVE_NAMES]
        return matching[0] if len(matching) == 1 else None
    return classes[find_class(name, classes, "--negative-class", is_repeated=False)]


def open_pooling(run: RunFolder, model: Classifier, calibration: Calibration | None, group_from: str) -> Pooling:
    """Return the pooling that is kept in a run; else the one that its validation groups give, without keeping it."""
    if isinstance(run, FoldsFolder):
        return Pooling(weights="", unfitted_reason=NO_GROUPS_OF_OWN)
    if (pooling := read_pooling(run)) is not None:
        return pooling
    index = run.read_split() if group_from == AUTO else group_index(run.read_split(), group_from)[0]
    negative = choose_negative(model.task, model.classes, None)
    blank = Pooling(weights=run.fingerprint_weights(), negative_class=negative, group_from=group_from)
    return fit_pooling(run, model, calibration, index, blank)


def name_groups(run: RunFolder, paths: Sequence[Path | None], group_from: str) -> list[str]:
    """Return the group of each image file.

    Args:
        run: the run folder.
        paths: of the files; None for an image in memory.
        group_from: as `data.groups.group_index` takes it; `auto` is the rule of the run's last `eval --per group`, else
            that of its training.

    Raises:
        UsageError: an image is in memory, or the rule does not apply to these files.
    """
    names = [str(path) for path in paths if path is not None]
    if len(names) < len(paths):
        raise UsageError("--per group needs image files: images in memory have no group", "Give paths")
    rule = _find_rule(run) if group_from == AUTO else group_from
    known = run.read_split()
    if rule in (AUTO, NONE):
        groups = group_like(known, [Path(name).as_posix() for name in names])
        if groups is None:
            raise UsageError(
                f"--per group: the groups of {run.path} do not follow from file names",
                r"Give --group-from, such as 'patient\d+' or dicom:PatientID",
            )
        return groups
    zeros = (0,) * len(names)
    files = Index(root=Path(), classes=("",), paths=tuple(names), labels=zeros, splits=("",) * len(names), skipped={})
    return list(group_index(files, rule)[0].groups)


def _find_rule(run: RunFolder) -> str:
    """Return the source of a run's groups as `--group-from` has it; `auto` where its names or folders gave them."""
    kept = None if isinstance(run, FoldsFolder) else read_pooling(run)
    if kept is not None and kept.group_from != AUTO:
        return kept.group_from
    settings = read_optional_plan(run.plan).settings
    audit = run.read(AUDIT, AuditRecord)
    if settings.get("group_from", AUTO) == AUTO and audit is not None and audit.groups.source == "dicom":
        return "dicom:PatientID"
    return str(settings.get("group_from", AUTO))
