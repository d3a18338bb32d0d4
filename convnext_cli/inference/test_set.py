"""Which images a run is judged on, and what makes them less of a test than they seem."""

import json
import unicodedata
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TypeVar

from convnext_cli.data.audit.summary import audit_index
from convnext_cli.data.encoding import normalise_name
from convnext_cli.data.groups import Grouping, group_index
from convnext_cli.data.index import AUTO, NONE, Index, select_rows
from convnext_cli.data.sources import scan_data
from convnext_cli.data.split import is_fold
from convnext_cli.errors import ConvnextError, DataError, RunError
from convnext_cli.inference.overlap import Overlap, find_overlap, match_names, measure_thumbnails, read_image_hashes
from convnext_cli.machine import count_cpus
from convnext_cli.progress import Steps, finish
from convnext_cli.recipes.plan import read_plan
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import open_folder
from convnext_cli.runs.records import AuditRecord, convert_record

T = TypeVar("T")
MIN_SAME = 0.5  # of the images with the names of the run's own must be the same for the data to be its own

_CHOSEN = "where they are enough, the best epoch and the calibration are chosen by them"


@dataclass(frozen=True, kw_only=True, slots=True)
class TestSet:
    """Rows of an index."""

    index: Index
    split: str
    """`train`, `val`, `test`, or `all`; of a cross-validation `test`, or `val` for all images of its folds."""
    rows: list[int]

    @property
    def groups(self) -> list[str] | None:
        """The group of each row, or None where groups are not known."""
        return [self.index.groups[row] for row in self.rows] if self.index.groups else None


def choose_test_set(run: RunFolder, data: Path | None, split: str | None) -> tuple[TestSet, list[str]]:
    """The images to judge a run on, and what the user should know of them.

    Args:
        run: whose own data and split are taken where `data` is None or the same folder.
        data: a folder of images.
        split: None takes `test` where there is one, else `val`, else all.

    Raises:
        RunError: the run cannot be read.
        DataError: the data has no such split.
    """
    found: list[str] = []
    index = _find_index(run, run.read_split(), data, found)
    own = set(index.splits) - {""}
    if any(map(is_fold, own)):
        test_set, told = _choose_of_folds(index, split)
        return test_set, [*found, *told]
    if split == "all" or (split is None and not own):
        return TestSet(index=index, split="all", rows=list(range(len(index)))), [*found, *index.notes]
    if split is None:
        split = "test" if "test" in own else "val" if "val" in own else "train"
    rows = index.rows(split)
    if not rows:
        raise DataError(
            f"{index.root} has no {split} split",
            f"It has {', '.join(sorted(own)) or 'none'}; or use --split all",
        )
    notes = {
        "test": [],
        "val": [f"validation images: {_CHOSEN}; the figures may be a little too good"],
        "train": ["the model was trained on these images: the figures say nothing of new ones"],
    }
    return TestSet(index=index, split=split, rows=rows), [*found, *index.notes, *notes[split]]


def audit_steps(run: RunFolder, notes: list[str]) -> Steps[AuditRecord | None]:
    """Return the run's audit of its data; measure it again where `audit.json` is damaged, and note that.

    Returns:
        None where the run has no audit, or it can be neither read nor measured again.
    """
    try:
        audit = run.read_audit()
    except RunError as error:
        index = run.read_split()
        known = [row for row, path in enumerate(index.paths) if (index.root / path).is_file()]
        if len(known) < len(index):
            gone = len(index) - len(known)
            notes.append(
                f"{error.problem}. Whether images leak between splits is not known: {gone:,} of {len(index):,} images "
                "are gone, so it cannot be measured again"
            )
            return None
        notes.append(f"{error.problem}. The images were checked again")
        groups = len(set(index.groups) - {""})
        grouping = Grouping(source="split", rule="the groups of split.csv", groups=groups)
        measured = yield from audit_index(index, grouping, threads=count_cpus())
        plain = json.loads(json.dumps(measured.as_dict(), default=str))
        return convert_record(plain, AuditRecord, run.path / "audit.json", error.remedy)
    if audit is None:
        notes.append("the run has no audit.json: whether images leak between splits was not checked")
    return audit


def find_leakage(
    run: RunFolder, test_set: TestSet, audit: AuditRecord | None
) -> Steps[tuple[list[str], Overlap | None]]:
    """Return what the user should know of images that the model was trained on, and how many there are.

    Of the run's own split, its audit has told. Other images are compared with those of the run by their content.
    """
    trained_on, index = run.read_split(), test_set.index
    notes = _explain_guess(audit)
    if (index.paths, index.splits) == (trained_on.paths, trained_on.splits):
        findings = [found for found in audit.findings if found.falsifies] if audit else []
        titles = [f.title if f.severity else f"{f.count:,} x {f.title}" for f in findings]
        return [
            *notes,
            *(f"{t}. {f.effect[:1].upper()}{f.effect[1:]}" for t, f in zip(titles, findings, strict=True)),
        ], None
    notes = []
    known = yield from read_image_hashes(run, trained_on)
    if known is None:
        where = trained_on.root
        return [
            *notes,
            f"not compared with the training images: the run has no digests of them, and {where} is gone",
        ], None
    chosen = select_rows(index, test_set.rows)
    measured = yield from measure_thumbnails(chosen)
    overlap = find_overlap(known, trained_on, measured, range(len(chosen)))
    images = len(chosen)
    if overlap.trained or overlap.trained_near:
        near = f" ({overlap.trained_near:,} as near-duplicates)" if overlap.trained_near else ""
        notes.append(
            f"leakage: {overlap.trained + overlap.trained_near:,} of these {images:,} images were trained on{near}; "
            "the scores are too high"
        )
    if overlap.validated:
        notes.append(
            f"{overlap.validated:,} of these {images:,} images are validation images: {_CHOSEN}; the scores may be a "
            "little too high"
        )
    return notes, overlap


def _explain_guess(audit: AuditRecord | None) -> list[str]:
    """Say that the intervals rest on groups that the pictures do not bear out."""
    if audit is None or audit.groups.certainty != "unsure":
        return []
    return [f"the intervals rest on groups that are a guess: {audit.groups.evidence}; --group-from none drops them"]


def _choose_of_folds(index: Index, split: str | None) -> tuple[TestSet, list[str]]:
    """The images to judge a cross-validation on: those that no member, or not the one that answers, was trained on."""
    tested = index.rows("test")
    if split in ("train", "all") or (split == "test" and not tested):
        why = "has no test split" if split == "test" else f"has models that were trained on images of --split {split}"
        raise DataError(
            f"the cross-validation of {index.root} {why}",
            "Give --split val: each image is then answered by the one model that was not trained on it",
        )
    if tested and split != "val":
        return TestSet(index=index, split="test", rows=tested), []
    note = (
        "out of fold: each image is answered by the one model that was not trained on it. In a fold with enough "
        "images that model's best epoch and calibration were chosen on them; the figures may be a little too good"
    )
    rows = [row for row, name in enumerate(index.splits) if is_fold(name)]
    return TestSet(index=index, split="val", rows=rows), [note]


def _find_index(run: RunFolder, trained_on: Index, data: Path | None, notes: list[str]) -> Index:
    """The run's own index where its own data folder is meant, so that its split holds there too."""
    if data is not None and data.resolve() != trained_on.root.resolve():
        index, grouping = group_index(_scan_as(run, trained_on.classes, data), "auto")
        left_out = sum(trained_on.skipped.get(what, 0) for what in ("unreadable image", "excluded image"))
        places = {_compose(path): path for path in index.paths}  # a copy may have names in another Unicode form
        paths = tuple(places.get(_compose(path), "") for path in trained_on.paths)
        classes = {normalise_name(name) for name in trained_on.classes}
        moved = all(paths) and len(index) <= len(trained_on) + left_out and classes == set(index.classes)
        if moved:
            return _decide_by_content(run, trained_on, replace(trained_on, root=index.root, paths=paths), index, notes)
        if grouping.is_guess:
            notes.append(
                f"the intervals rest on {grouping.groups:,} groups that are a guess: {grouping.rule}. A CSV file with "
                "a column for the patient decides"
            )
        return index
    if not trained_on.root.is_dir():
        raise DataError(f"the run's data folder {trained_on.root} is gone", "Give the folder of images to evaluate on")
    return trained_on


def _decide_by_content(run: RunFolder, trained_on: Index, moved: Index, index: Index, notes: list[str]) -> Index:
    """Return the run's index in its new place, if the images of the same names are the same; else the new index."""
    known = finish(read_image_hashes(run, trained_on))
    if known is None:
        notes.append(
            f"{moved.root} is taken for the run's own data by its names; the contents could not be compared, because "
            "the run has no digests of its images. --split all evaluates every image"
        )
        return moved
    same = match_names(known, finish(measure_thumbnails(moved)))
    if same < MIN_SAME:
        notes.append(
            f"the names are those of the run's own data, the pictures are not ({same:.0%} are the same): all "
            f"{len(index):,} images are taken for new ones"
        )
        return index
    if same < 1:
        notes.append(f"{1 - same:.1%} of the images differ from those that the run was trained with")
    return moved


def _scan_as(run: RunFolder, classes: tuple[str, ...], data: Path) -> Index:
    """Scan data; where they cannot be read by themselves, as the run read its own (`--image-root`, `--exclude`)."""
    try:
        return scan_data(data, known_classes=classes)
    except DataError as error:
        try:
            settings = read_plan(open_folder(run.path).plan)[2]
            options = {name: settings.get(name, default) for name, default in (("image_root", AUTO), ("exclude", NONE))}
            return scan_data(data, **options, known_classes=classes)
        except ConvnextError:
            raise error from None


def _compose(path: str) -> str:
    return unicodedata.normalize("NFC", path)
