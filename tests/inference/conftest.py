import shutil
from dataclasses import replace
from pathlib import Path

import pytest

from convnext_cli.data.index import Index
from convnext_cli.runs.folder import RunFolder


@pytest.fixture
def mine(run: RunFolder, tmp_path: Path) -> RunFolder:
    """A copy of the small run that a test may write to, not evaluated yet."""
    shutil.copytree(run.path, tmp_path / "mine", ignore=shutil.ignore_patterns("tests.jsonl"))
    return RunFolder(tmp_path / "mine")


def shrink_validation(run: RunFolder, images: int) -> Index:
    """Let all but some validation images of a run's split be training images; return the split before."""
    index = run.read_split()
    more = set(index.rows("val")[images:])
    run.write_split(replace(index, splits=tuple("train" if r in more else s for r, s in enumerate(index.splits))))
    return index
