"""From what the user points at to an index that can be split: scan, leave out, group, audit."""

import csv
import io
from dataclasses import dataclass, replace
from pathlib import Path

from convnext_cli.data.audit.summary import Audit, audit_index
from convnext_cli.data.groups import Grouping, group_index
from convnext_cli.data.index import AUTO, NONE, Index, select_rows
from convnext_cli.data.sources import scan_data
from convnext_cli.errors import DataError
from convnext_cli.files import check_output, check_outside, write_output
from convnext_cli.progress import Steps


@dataclass(frozen=True, kw_only=True, slots=True)
class DatasetRequest:
    """What is taken in, and how."""

    data: Path
    """A folder, a CSV file, or a zip file."""
    image_root: str = AUTO
    """The folder that a manifest's paths begin in; `auto` looks beside and below the manifest."""
    exclude: str = NONE
    """A file that lists images to leave out, as `convnext check --fix-list` writes it or one path, folder or pattern a
    line; or one folder or pattern; or `none`."""
    group_from: str = "auto"
    """`auto`, `none`, `dicom:KEYWORD`, or a regular expression on the relative path."""
    resplit: bool = False
    """Whether the data's own splits are forgotten."""
    audit: bool = True
    """Whether every image is looked at."""


@dataclass(frozen=True, kw_only=True, slots=True)
class Dataset:
    """What was taken in."""

    index: Index
    """Without the files that cannot be read, where that is known."""
    grouping: Grouping
    audit: Audit | None
    together: tuple[tuple[int, ...], ...]
    """Rows of `index` that are one picture, or very similar: they stay in one split."""

    def describe(self) -> list[str]:
        """What the user should know of it, a line each."""
        found, lines = self.grouping, list(self.index.notes)
        findings = self.audit.findings if self.audit else ()
        if found.groups:
            example = f", such as {found.examples[0][1]} of {found.examples[0][0]}" if found.examples else ""
            told = any(found.evidence in finding.effect for finding in findings)  # it is said once
            doubt = "a guess" if told else f"{found.certainty}: {found.evidence}"
            guess = f" ({doubt}); --group-from none if they mean nothing"
            lines.append(
                f"{found.groups:,} groups (patients?) by {found.rule}{example}{guess if found.is_guess else ''}"
            )
        for finding in findings:
            sentences = (_capitalise(text) for text in (finding.effect, finding.action))
            lines.append(f"{finding.severity}: {finding.title}. {'. '.join(sentences)}")
        return lines


def _capitalise(text: str) -> str:
    return text[:1].upper() + text[1:]


def load_dataset(request: DatasetRequest, *, threads: int) -> Steps[Dataset]:
    """Scan, group and audit the data of a request.

    Raises:
        DataError: the data or the list of exclusions cannot be used.
        UsageError: the pattern for groups is wrong.
    """
    index, grouping = read_index(request)
    if not request.audit:
        return Dataset(index=index, grouping=grouping, audit=None, together=())
    audit = yield from audit_index(index, grouping, threads=threads)
    return _leave_out_unreadable(audit.index, audit.grouping, audit)


def read_index(request: DatasetRequest) -> tuple[Index, Grouping]:
    """Scan data and find its groups, without a look at the images.

    Raises:
        DataError: the data or the list of exclusions cannot be used.
        UsageError: the pattern for groups is wrong.
    """
    index = scan_data(request.data, image_root=request.image_root, exclude=request.exclude)
    if request.resplit:
        index = replace(index, splits=("",) * len(index), folds=())
    return group_index(index, request.group_from)


def check_apart(output: Path, index: Index, option: str = "--output") -> None:
    """Check that `output` does not lie in the data: in a folder that has images of `index`, or in the data folder.

    Beside a CSV file with paths it may lie: that folder is the user's, and no folder in it becomes a class.

    Raises:
        UsageError: it does.
    """
    folders = {(index.root / path).parent for path in index.paths}
    if not any(path.suffix.lower() in (".csv", ".tsv") for path in index.root.glob("*.*")):
        folders.add(index.root)
    for folder in sorted(folders):
        check_outside(output, folder, option)


def check_fix_list(path: Path, data: Path, *, overwrite: bool = False) -> None:
    """Check, before the audit, that a list of images to leave out can be written.

    Raises:
        UsageError: the file lies in the data, or exists and is not to be replaced.
    """
    check_outside(path, data, "--fix-list")
    check_output(path, "--fix-list", overwrite=overwrite)


def write_fix_list(audit: Audit, path: Path, *, overwrite: bool = False) -> int:
    """Write the paths without which an audit's findings are gone, with the reason; return how many.

    Raises:
        UsageError: as `check_fix_list`.
    """
    check_apart(path, audit.index, "--fix-list")
    reasons = {row: finding.kind for finding in audit.findings for row in finding.leave_out}
    text = io.StringIO()
    rows = ((audit.index.paths[row], reasons[row]) for row in sorted(reasons))
    csv.writer(text).writerows([("path", "reason"), *rows])
    write_output(path, text.getvalue(), "--fix-list", overwrite=overwrite)
    return len(reasons)


def _leave_out_unreadable(index: Index, grouping: Grouping, audit: Audit) -> Dataset:
    gone = set(audit.unreadable)
    if len(gone) == len(index):
        raise DataError(f"none of the {len(index)} images in {index.root} can be read", "Give another folder")
    rows = [row for row in range(len(index)) if row not in gone]
    place = {row: at for at, row in enumerate(rows)}
    together = tuple(tuple(place[row] for row in rows) for rows in audit.together)
    index = select_rows(index, rows)
    if gone:
        index = replace(index, skipped=index.skipped | {"unreadable image": len(gone)})
    return Dataset(index=index, grouping=grouping, audit=audit, together=together)
