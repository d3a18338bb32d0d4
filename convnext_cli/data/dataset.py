"""Load a data set: scan it, leave images out, group and audit it."""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path

from convnext_cli.data.audit.findings import Kind
from convnext_cli.data.audit.summary import Audit, audit_index
from convnext_cli.data.groups import Grouping, group_steps
from convnext_cli.data.index import NONE, UNREADABLE, Index, select_rows
from convnext_cli.data.scan import scan_unlabelled
from convnext_cli.data.sources import scan_data
from convnext_cli.data.split import release_val
from convnext_cli.errors import DataError, ImageError, UsageError
from convnext_cli.images.decode import decode_image
from convnext_cli.options import AUTO, name_flag
from convnext_cli.progress import Notice, Steps
from convnext_cli.tasks.reading import COLUMN_OPTIONS, TableOptions
from convnext_cli.text import capitalise, format_count

REPLACED: dict[str, dict[str, str]] = {  # settings without effect beside others, with the reason
    "resplit_val": {
        "resplit": "all splits are drawn again",
        "folds": "each fold is the validation split in turn",
        "leave_out": "the data's own splits are not used",
    },
    "split_column": {"resplit": "all splits are drawn again", "leave_out": "the data's own splits are not used"},
    "group_column": {"group_from": "it is the source of the groups"},
    "label_column": {"label_columns": "they are the labels"},
    "label_from": {"unlabelled": "the teacher's predictions are the labels"},
}


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRequest(TableOptions):
    """The data to load, and the options for reading it, a table's among them."""

    data: Path
    """A folder, a table, or a zip file."""
    exclude: str = NONE
    """A list of images to leave out, as `convnext check --fix-list` writes it or with one path, folder or pattern per
    line; or one folder or pattern; or `none`."""
    group_from: str = AUTO
    """The source of groups: `auto`, `none`, `dicom:KEYWORD`, or a regular expression on the relative path."""
    resplit: bool = False
    """True if new splits replace the data's own."""
    resplit_val: bool = False
    """True if a new validation split replaces the data's own; the test split stays."""
    unlabelled: bool = False
    """True if all images below the folder are taken as one class."""
    chosen: tuple[str, ...] = ()
    """Names of the settings, of reading and others, that the user set: those without effect are refused."""
    audit: bool = True
    """True if every image is checked."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """A data set that is scanned, grouped and checked."""

    index: Index
    """All images, except unreadable ones if the data set was checked."""
    grouping: Grouping
    audit: Audit | None
    duplicate_sets: tuple[tuple[int, ...], ...]
    """Sets of rows to keep in one split: duplicates, near-duplicates and very similar images."""

    def list_notices(self) -> list[Notice]:
        """Return what the user should know before training: the layout, the groups and the findings."""
        grouping, notices = self.grouping, [Notice(str(note)) for note in self.index.notes]
        findings = self.audit.findings if self.audit else ()
        if grouping.groups:
            example = f", such as {grouping.examples[0][1]} of {grouping.examples[0][0]}" if grouping.examples else ""
            is_in_finding = any(capitalise(grouping.evidence) in finding.evidence for finding in findings)
            doubt = "a guess" if is_in_finding else f"{grouping.certainty}: {grouping.evidence}"
            guess = f" ({doubt}); --group-from none ignores them" if grouping.is_guess else ""
            number = format_count(grouping.groups, "group (patient?)", "groups (patients?)")
            notices.append(Notice(f"{number} by {grouping.rule}{example}{guess}"))
        for finding in findings:
            if finding.kind is Kind.UNSEEN_AREA:  # of a centre crop; the plan says what its own framing leaves out
                continue
            sentences = (finding.title, capitalise(finding.explanation), capitalise(finding.action))
            notices.append(Notice(". ".join(sentences), finding.severity))
        return notices


def load_dataset(request: DatasetRequest) -> Steps[Dataset]:
    """Scan, group and audit the data of a request.

    Raises:
        DataError: the data or the list of images to leave out cannot be used.
        UsageError: the pattern for groups is invalid, or a chosen setting has no effect.
    """
    index, grouping = yield from group_steps(read_index(request), request.group_from)
    return (yield from audit_steps(request, index, grouping))


def audit_steps(request: DatasetRequest, index: Index, grouping: Grouping) -> Steps[Dataset]:
    """Return the data set of an index and its groups, audited if the request says so.

    Raises:
        DataError: no image can be read.
    """
    if not request.audit:
        return Dataset(index=index, grouping=grouping, audit=None, duplicate_sets=())
    audit = yield from audit_index(index, grouping)
    return _leave_out_unreadable(audit)


def read_index(request: DatasetRequest) -> Index:
    """Scan data, without opening an image.

    Raises:
        DataError: the data or the list of images to leave out cannot be used.
        UsageError: a chosen setting has no effect.
    """
    if request.unlabelled:
        index = scan_unlabelled(request.data, exclude=request.exclude)
    else:
        index = scan_data(request.data, exclude=request.exclude, table_options=request)
    _check_effects(request.chosen, index)
    if request.resplit:
        index = replace(index, splits=("",) * len(index), folds=())
    elif request.resplit_val:
        index = release_val(index)
    return replace(index, notes=(*index.notes, *_list_unused_fractions(request.chosen, index)))


def _check_effects(chosen: Sequence[str], index: Index) -> None:
    for name in chosen:
        flag, reason = name_flag(name), (index.ignored | index.task.ignored).get(name)
        if reason:
            raise UsageError(f"{flag} has no effect on {index.task.title}: {reason}", "Leave it out")
        for other, reason in REPLACED.get(name, {}).items():
            if other in chosen:
                problem = f"{flag} has no effect with {name_flag(other)}: {reason}"
                raise UsageError(problem, "Leave it out")
        if name == "resplit_val" and "val" not in index.splits:
            raise UsageError(f"{flag} has no effect: {index.location} has no val split", "Leave it out")
        if name in COLUMN_OPTIONS and index.table is None:
            remedy = "Leave it out, or give the table itself"
            raise UsageError(f"{flag} has no effect: {index.location} is not read from a table", remedy)
        if name == "label_from" and index.table is not None:
            raise UsageError(f"{flag} has no effect: {index.location} is read from a table", "Leave it out")


def _list_unused_fractions(chosen: Sequence[str], index: Index) -> list[str]:
    """Return a note for each chosen fraction that is not used, because of the data's own splits or of folds."""
    splits = index.list_splits()
    again = "which --resplit draws again" + ", --resplit-val only val" * ("val" in splits)
    own = f"the data have their own splits ({', '.join(splits)}), {again}"
    reasons = {"val_fraction": own * ("val" in splits), "test_fraction": own * bool(splits)}
    if "folds" in chosen:
        reasons["val_fraction"] = REPLACED["resplit_val"]["folds"]
    if "leave_out" in chosen:
        reasons = {"test_fraction": "the images of each value of the column are a test split"}
    names = [name for name in chosen if reasons.get(name)]
    return [f"{name_flag(name)} has no effect: {reasons[name]}" for name in names]


def _leave_out_unreadable(audit: Audit) -> Dataset:
    index, unreadable = audit.index, set(audit.unreadable)
    if len(unreadable) == len(index):
        number = format_count(len(index), "image")
        reason = next(finding.examples[0] for finding in audit.findings if finding.kind is Kind.UNREADABLE)
        remedy = "Replace them, or give another folder"
        try:
            decode_image(index.root / index.paths[min(unreadable)])
        except ImageError as error:
            remedy = error.remedy
        raise DataError(f"none of the {number} in {index.location} can be read, such as: {reason}", remedy)
    rows = [row for row in range(len(index)) if row not in unreadable]
    new_row = {row: number for number, row in enumerate(rows)}
    duplicate_sets = tuple(tuple(new_row[row] for row in rows) for rows in audit.duplicate_sets)
    index = select_rows(index, rows)
    if unreadable:
        index = replace(index, skipped=index.skipped | {UNREADABLE: len(unreadable)})
    grouping = replace(audit.grouping, groups=len(set(index.groups)))
    return Dataset(index=index, grouping=grouping, audit=audit, duplicate_sets=duplicate_sets)
