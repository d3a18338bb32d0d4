"""Notes on the images of an evaluation: which of them the run was trained on, and what the model does not see."""

from collections import Counter

import numpy as np

from convnext_cli.data.audit.measurements import Measurements, measure_images, sign_files
from convnext_cli.data.index import Index, describe_frames, select_rows
from convnext_cli.data.split import list_trained_rows
from convnext_cli.data.unseen import measure_unseen_area
from convnext_cli.errors import RunError
from convnext_cli.images.preprocessing import Preprocessing
from convnext_cli.images.raster import StepKind
from convnext_cli.inference.overlap import Overlap, find_moved_copies, find_overlap, read_image_hashes
from convnext_cli.inference.test_set import TestSet
from convnext_cli.progress import Notice, Steps
from convnext_cli.runs.files import AUDIT, IMAGE_HASHES
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.records import AuditRecord
from convnext_cli.text import format_count, format_part, shorten_names

_SELECTION_BIAS = (
    "the best epoch and the calibration are chosen on them where there are enough; metrics may be slightly too high"
)


def read_audit(run: RunFolder) -> tuple[AuditRecord | None, list[Notice]]:
    """Return the run's audit of its data, and a note if it has none or one that cannot be read."""
    try:
        audit = run.read(AUDIT, AuditRecord)
    except RunError as error:
        return None, [Notice(f"{error.problem}: leakage between splits is unknown", "warning")]
    if audit is None:
        return None, [Notice(f"the run has no {AUDIT.name}: leakage between splits was not checked")]
    return audit, []


def check_images(
    run: RunFolder, trained_on: Index, test_set: TestSet, audit: AuditRecord | None, preprocessing: Preprocessing
) -> Steps[tuple[list[Notice], Overlap | None]]:
    """Return notes on the images of an evaluation, and the number of those that the model was trained on.

    The run's own split was checked by its audit. Other images are compared with those of the run by content, and have
    notes on what the model does not see of them.
    """
    index = test_set.index
    if test_set.is_own:
        has_own_groups = index.groups == trained_on.groups
        notes = _list_split_notes(test_set) + _list_audit_notes(audit, has_own_groups=has_own_groups)
        return notes + _list_changed_files(run, trained_on, test_set), None
    selected = select_rows(index, test_set.rows)
    measured = yield from measure_images(selected)
    notes = _list_unseen(selected, measured, preprocessing)
    known = yield from read_image_hashes(run, trained_on)
    if known is None:
        text = (
            f"not compared with the training images: the run has no digests of them, and {trained_on.root} is gone. "
            "Leakage is unknown"
        )
        return [*notes, Notice(text, "warning")], None
    moved = yield from find_moved_copies(trained_on, selected, measured.measures)
    overlap = find_overlap(known, trained_on, measured.measures, moved)
    near = overlap.trained_near
    trained = overlap.trained + near
    if trained:
        number = format_part(trained, len(selected), "image", "was", "were")
        of_these = f" ({format_count(near, 'as near-duplicate', 'as near-duplicates')})" if near else ""
        notes.append(Notice(f"leakage: {number} trained on{of_these}; the scores are too high", "warning"))
    if overlap.validated:
        number = format_part(
            overlap.validated, len(selected), "image", "is a validation image", "are validation images"
        )
        notes.append(Notice(f"{number}: {_SELECTION_BIAS}", "warning"))
    if overlap.alike:
        number = format_part(overlap.alike, len(selected), "image", "looks", "look")
        text = "like many images of the run, as frames of one camera do: near-duplicates among them are not recognised"
        notes.append(Notice(f"{number} {text}"))
    return notes + _list_group_notes(trained_on, selected, trained), overlap


def _list_unseen(index: Index, measured: Measurements, preprocessing: Preprocessing) -> list[Notice]:
    """Return notes on frames that are not read, and on a notable part of the images that the framing cuts off."""
    notes = []
    if rows := measured.list_rows(StepKind.FRAME):
        examples = shorten_names([index.paths[row] for row in rows])
        notes.append(Notice(f"{describe_frames(len(rows))}: {examples}"))
    sizes = measured.list_sizes(range(len(index))).tolist()
    shapes = [(index.name_class(row), width, height) for row, (width, height) in enumerate(sizes) if width]
    unseen = measure_unseen_area(shapes, preprocessing)
    if unseen is not None and unseen.is_notable:
        remedy = "`convnext finetune --fit auto` trains a model that sees whole images"
        text = f"evaluation never sees {unseen}: what lies at the edge has no effect. {remedy}"
        notes.append(Notice(text, "warning"))
    return notes


def _list_group_notes(trained_on: Index, selected: Index, trained: int) -> list[Notice]:
    """Return a warning of groups named as some in training, if they have more images than the `trained` ones."""
    known, here = (
        {row: group for row, group in enumerate(index.groups) if group != index.paths[row]}
        for index in (trained_on, selected)
    )
    names = {known[row] for row in list_trained_rows(trained_on) if row in known}
    shared = names.intersection(here.values())
    if sum(group in shared for group in here.values()) <= trained:
        return []
    number = format_part(len(shared), len(set(selected.groups)), "group", "has", "have")
    text = f"possible leakage: {number} the name of a group that was trained on ({shorten_names(sorted(shared))})"
    return [Notice(f"{text}: if these are the same patients, the scores are too high", "warning")]


def _list_changed_files(run: RunFolder, trained_on: Index, test_set: TestSet) -> list[Notice]:
    """Return a warning where image files of the run's own data are not those that its training began with."""
    index, rows = test_set.index, test_set.rows
    signatures = (run.read_arrays(IMAGE_HASHES) or {}).get("signature")  # older runs have none
    if signatures is None or len(signatures) != len(index) or index.root != trained_on.root:
        return []  # a copy was compared as it was read
    former = signatures[rows]
    changed = [index.paths[rows[i]] for i in np.flatnonzero((former != sign_files(index, rows)) & (former != 0))]
    number = format_part(len(changed), len(rows), "image file", "was", "were")
    now = "counts as it is" if len(changed) == 1 else "count as they are"
    text = f"{number} changed since the training, and {now} now: {shorten_names(changed)}"
    return [Notice(text, "warning")] if changed else []


def _list_split_notes(test_set: TestSet) -> list[Notice]:
    """Return a note where images of the run's own split were trained on, or chosen by."""
    counts, images = Counter(test_set.index.splits[row] for row in test_set.rows), len(test_set.rows)
    if counts["train"]:
        trained = "these images" if counts["train"] == images else f"{counts['train']:,} of these {images:,} images"
        text = f"the model was trained on {trained}: the metrics do not show its performance on new images"
        return [Notice(text, "warning")]
    return [Notice(f"validation images: {_SELECTION_BIAS}", "warning")] if counts["val"] else []


def _list_audit_notes(audit: AuditRecord | None, *, has_own_groups: bool) -> list[Notice]:
    """Return notes on guessed groups, where these are evaluated, and on findings that affect the metrics."""
    if audit is None:
        return []
    notes = []
    if has_own_groups and audit.groups.certainty == "unsure":
        text = f"the 95% CIs rely on guessed groups: {audit.groups.evidence}; --group-from none ignores them"
        notes.append(Notice(text))
    return notes + [
        Notice(finding.describe(), "warning" if finding.falsifies else "note")
        for finding in audit.findings
        if finding.falsifies or finding.leaves_doubt
    ]
