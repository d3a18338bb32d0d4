"""The list of images to leave out that `convnext check --fix-list` writes."""

import csv
import io
from pathlib import Path

from convnext_cli.data.audit.summary import Audit
from convnext_cli.data.outside import check_outside_data
from convnext_cli.files import check_output, check_outside, write_output


def check_fix_list(path: Path, data: Path, *, overwrite: bool) -> None:
    """Check, before the audit, that a list of images to leave out can be written.

    Raises:
        UsageError: the file lies in the data, or exists and is not to be replaced.
    """
    check_outside(path, data, "--fix-list")
    check_output(path, "--fix-list", overwrite=overwrite)


def write_fix_list(audit: Audit, path: Path, *, overwrite: bool = False) -> int:
    """Write the paths to leave out so that an audit's findings are gone, with the reasons; return their number.

    Raises:
        UsageError: as `check_fix_list`.
    """
    check_outside_data(path, audit.index, "--fix-list")
    reasons = {row: finding.kind for finding in audit.findings for row in finding.leave_out}
    text = io.StringIO()
    rows = ((audit.index.paths[row], reasons[row]) for row in sorted(reasons))
    csv.writer(text).writerows([("path", "reason"), *rows])
    write_output(path, text.getvalue(), "--fix-list", overwrite=overwrite)
    return len(reasons)
