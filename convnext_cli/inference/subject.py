"""Which images a run is judged on, and what makes them less of a test than they seem."""

import json
import unicodedata
from collections.abc import Generator
from dataclasses import dataclass, replace
from pathlib import Path

from convnext_cli.data.audit.summary import Audit, audit_index
from convnext_cli.data.groups import Grouping, group_index
from convnext_cli.data.scan import AUTO, NONE, Index, scan_data
from convnext_cli.data.split import is_fold
from convnext_cli.data.text import normalise_name
from convnext_cli.errors import ConvnextError, DataError, RunError
from convnext_cli.folds import open_folder
from convnext_cli.progress import Progress
from convnext_cli.recipes.machine import count_cpus
from convnext_cli.recipes.plan import read_plan
from convnext_cli.records import AuditRecord, convert_record
from convnext_cli.runs import RunFolder


@dataclass(frozen=True, kw_only=True, slots=True)
class Subject:
    """Rows of an index."""

    index: Index
    split: str
    """`train`, `val`, `test`, or `all`; of a cross-validation `test`, or `val` for all images of its folds."""
    rows: list[int]

    @property
    def groups(self) -> list[str] | None:
        """The group of each row, or None where groups are not known."""
        return [self.index.groups[row] for row in self.rows] if self.index.groups else None


def choose_subject(run: RunFolder, data: Path | None, split: str | None) -> tuple[Subject, list[str]]:
    """The images to judge a run on, and what the user should know of them.

    Args:
        run: whose own data and split are taken where `data` is None or the same folder.
        data: a folder of images.
        split: None takes `test` where there is one, else `val`, else all.

    Raises:
        RunError: the run cannot be read.
        DataError: the data has no such split.
    """
    index = _find_index(run, run.read_split(), data)
    own = set(index.splits) - {""}
    if any(map(is_fold, own)):
        return _choose_of_folds(index, split)
    if split == "all" or (split is None and not own):
        return Subject(index=index, split="all", rows=list(range(len(index)))), list(index.notes)
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
        "val": ["the best epoch and the calibration were chosen on these images, so the figures are a little too good"],
        "train": ["the model was trained on these images: the figures say nothing of new ones"],
    }
    return Subject(index=index, split=split, rows=rows), [*index.notes, *notes[split]]


def audit_steps(run: RunFolder, notes: list[str]) -> Generator[Progress, None, AuditRecord | None]:
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
        measured: Audit | None = None
        for event in audit_index(index, grouping, threads=count_cpus()):
            if isinstance(event, Audit):
                measured = event
            else:
                yield event
        assert measured is not None
        plain = json.loads(json.dumps(measured.as_dict(), default=str))
        return convert_record(plain, AuditRecord, run.path / "audit.json", error.remedy)
    if audit is None:
        notes.append("the run has no audit.json: whether images leak between splits was not checked")
    return audit


def find_overlap(run: RunFolder, subject: Subject, audit: AuditRecord | None) -> list[str]:
    """Say what of the images the model was shown in training: by the run's audit, or by their paths."""
    trained_on, index = run.read_split(), subject.index
    if (index.paths, index.splits) == (trained_on.paths, trained_on.splits):
        findings = audit.findings if audit else ()
        return [f"{found.count:,} x {found.title}: {found.effect}" for found in findings if found.falsifies]
    shown = [row for row, split in enumerate(trained_on.splits) if split == "train" or is_fold(split)]
    seen = {(trained_on.root / trained_on.paths[row]).resolve() for row in shown}
    again = sum((index.root / index.paths[row]).resolve() in seen for row in subject.rows)
    if not again:
        return []
    return [f"{again} of these {len(subject.rows)} images were trained on: the figures are too good"]


def _choose_of_folds(index: Index, split: str | None) -> tuple[Subject, list[str]]:
    """The images to judge a cross-validation on: those that no member, or not the one that answers, was trained on."""
    tested = index.rows("test")
    if split in ("train", "all") or (split == "test" and not tested):
        why = "has no test split" if split == "test" else f"has models that were trained on images of --split {split}"
        raise DataError(
            f"the cross-validation of {index.root} {why}",
            "Give --split val: each image is then answered by the one model that was not trained on it",
        )
    if tested and split != "val":
        return Subject(index=index, split="test", rows=tested), []
    note = (
        "out of fold: each image is answered by the one model that was not trained on it. That model's best epoch and "
        "calibration were chosen on it, so the figures are a little too good"
    )
    rows = [row for row, name in enumerate(index.splits) if is_fold(name)]
    return Subject(index=index, split="val", rows=rows), [note]


def _find_index(run: RunFolder, trained_on: Index, data: Path | None) -> Index:
    """The run's own index where its own data folder is meant, so that its split holds there too."""
    if data is not None and data.resolve() != trained_on.root.resolve():
        index, _ = group_index(_scan_as(run, trained_on.classes, data), "auto")
        left_out = sum(trained_on.skipped.get(what, 0) for what in ("unreadable image", "excluded image"))
        places = {_compose(path): path for path in index.paths}  # a copy may have names in another Unicode form
        paths = tuple(places.get(_compose(path), "") for path in trained_on.paths)
        classes = {normalise_name(name) for name in trained_on.classes}
        moved = all(paths) and len(index) <= len(trained_on) + left_out and classes == set(index.classes)
        return replace(trained_on, root=index.root, paths=paths) if moved else index
    if not trained_on.root.is_dir():
        raise DataError(f"the run's data folder {trained_on.root} is gone", "Give the folder of images to evaluate on")
    return trained_on


def _scan_as(run: RunFolder, classes: tuple[str, ...], data: Path) -> Index:
    """Scan data; where they cannot be read by themselves, as the run read its own (`--image-root`, `--exclude`)."""
    try:
        return scan_data(data, known=classes)
    except DataError as error:
        try:
            settings = read_plan(open_folder(run.path).plan)[2]
            options = {name: settings.get(name, default) for name, default in (("image_root", AUTO), ("exclude", NONE))}
            return scan_data(data, **options, known=classes)
        except ConvnextError:
            raise error from None


def _compose(path: str) -> str:
    return unicodedata.normalize("NFC", path)
