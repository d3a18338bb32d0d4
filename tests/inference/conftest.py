from dataclasses import replace

from convnext_cli.data.index import Index
from convnext_cli.runs.files import ORIGIN
from convnext_cli.runs.folder import RunFolder


def shrink_validation(run: RunFolder, images: int) -> Index:
    """Let all but some validation images of a run's split be training images; return the split before."""
    index = run.read_split()
    more = set(index.rows("val")[images:])
    ORIGIN.path(run.path).unlink(missing_ok=True)  # as if it was trained so
    run.write_split(replace(index, splits=tuple("train" if r in more else s for r, s in enumerate(index.splits))))
    return index
