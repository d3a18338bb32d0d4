import math
import os
from dataclasses import replace
from datetime import datetime
from itertools import islice
from pathlib import Path

import numpy as np
import pytest

from convnext_cli.data.scan import scan_folder
from convnext_cli.data.split import split_index
from convnext_cli.errors import ConvnextError, RunError, UsageError
from convnext_cli.files import replace_file, write_text
from convnext_cli.runs.files import AUDIT, ORIGIN
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import FoldsFolder, find_newest_run, name_runs, open_folder
from convnext_cli.runs.records import AuditRecord
from convnext_cli.runs.split import format_target
from tests.conftest import limit_files, save_image


def test_failed_write_leaves_the_old_file_only(tmp_path: Path) -> None:
    path = tmp_path / "plan.toml"
    write_text(path, "old")

    def write_half() -> None:
        with replace_file(path) as temporary:
            temporary.write_text("half")
            raise RuntimeError("killed")

    with pytest.raises(RuntimeError, match="killed"):
        write_half()
    assert path.read_text() == "old"
    assert list(tmp_path.iterdir()) == [path]


def test_written_files_are_readable_by_others(tmp_path: Path) -> None:
    mask = os.umask(0o022)
    try:
        write_text(tmp_path / "plan.toml", "text")
    finally:
        os.umask(mask)
    assert (tmp_path / "plan.toml").stat().st_mode & 0o777 == 0o644


def test_split_round_trips_with_odd_names(tmp_path: Path) -> None:
    save_image(tmp_path / "data/a,b/x\ny.png")
    save_image(tmp_path / 'data/"c"/z 😀.png')
    save_image(tmp_path / "data/a,b/carriage\rreturn\r\n.png")
    odd = os.fsdecode(bytes(tmp_path / "data/a,b") + b"/\xff.png")
    Path(odd).write_bytes((tmp_path / "data/a,b/x\ny.png").read_bytes())
    index = split_index(scan_folder(tmp_path / "data"), val_fraction=0.0, test_fraction=0.0, seed=0)
    run = RunFolder(tmp_path / "run")
    run.create(overwrite=False)
    run.write_split(index)
    assert run.read_split() == index
    assert run.read_split().root.is_absolute()
    grouped = replace(index, groups=("p1", "", 'a "quoted", one', "p1"))
    run.write_split(grouped)
    assert run.read_split() == grouped


def test_newest_run_is_the_one_written_last(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"no run under .*runs\. Name one with `convnext eval RUN`, or make one with"):
        find_newest_run("convnext eval RUN")
    for age, name in enumerate(("old", "new", "unfinished")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        if name != "unfinished":
            (folder / "model.safetensors").touch()
            os.utime(folder / "model.safetensors", (age, age))
    assert find_newest_run("").path.name == "new"


def test_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone does not exist"):
        RunFolder(tmp_path / "gone").read_split()
    with pytest.raises(RunError, match=r"is not a run: it has no data\.json"):
        RunFolder(tmp_path).read_split()


def test_folder_that_cannot_be_made_names_the_option(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("mine")
    with pytest.raises(UsageError, match=r"file is a file\. Choose another --output"):
        RunFolder(tmp_path / "file").create(overwrite=True)
    with pytest.raises(RunError, match=r"cannot write .*/file/run: Not a directory\. Choose another --output"):
        RunFolder(tmp_path / "file/run").create(overwrite=False)
    assert (tmp_path / "file").read_text() == "mine"


def test_cross_validation_killed_before_its_first_fold_may_begin_again(tmp_path: Path) -> None:
    save_image(tmp_path / "data/a/x.png")
    index = split_index(scan_folder(tmp_path / "data"), val_fraction=0.0, test_fraction=0.0, seed=0)
    folds = FoldsFolder(tmp_path / "cv")
    for folder in (folds, folds.run(1)):
        folder.create(overwrite=False)
        folder.write_split(index)
    folds.run(1).write_plan('model = "test_convnext"\n')
    folds.create(overwrite=False)
    assert not folds.run(1).is_begun, "nothing of the killed fold is left"
    (folds.run(1).path / "notes.txt").write_text("mine")
    with pytest.raises(UsageError, match=r"cv exists already\. Choose another --output\.$"):
        folds.create(overwrite=False)


def test_run_killed_as_it_replaced_an_evaluated_one_may_begin_again(tmp_path: Path) -> None:
    folds = FoldsFolder(tmp_path / "cv")
    for folder in (folds, folds.run(1), folds.run(2), RunFolder(tmp_path / "run")):
        folder.create(overwrite=False)
        folder.write_plan('model = "test_convnext"\n')
        folder.plots.mkdir()
        (folder.plots / "roc.png").touch()
        (folder.plots / ".pr.png.abc123.tmp").touch()  # of an `eval` that was killed
    for folder in (folds, RunFolder(tmp_path / "run")):
        folder.create(overwrite=True)
        folder.check_free(overwrite=False)
        assert not [path for path in folder.path.rglob("*") if path.is_file()]


def test_full_disk_is_named_as_the_origin_is_written(tmp_path: Path) -> None:
    run = RunFolder(tmp_path / "run")
    run.create(overwrite=False)
    with limit_files(1000), pytest.raises(ConvnextError, match=r"cannot write .*origin\.safetensors: [^/]*$") as caught:
        run.write_arrays(ORIGIN, {"rows": np.zeros(1000)})
    assert caught.value.remedy == "Check the disk's space and permissions"
    assert not [path for path in run.path.rglob("*") if path.is_file()]


def test_audit_is_copied_byte_for_byte_where_there_is_one(tmp_path: Path) -> None:
    audited, plain, fold = (RunFolder(tmp_path / name) for name in ("audited", "plain", "fold"))
    for folder in (audited, plain, fold):
        folder.create(overwrite=False)
    fold.copy_audit(plain)
    assert fold.read(AUDIT, AuditRecord) is None
    (audited.path / "audit.json").write_bytes(b'{"damaged')
    fold.copy_audit(audited)
    assert (fold.path / "audit.json").read_bytes() == b'{"damaged'


@pytest.mark.parametrize(
    "name", ["model.safetensors", "fold-2/plan.toml", "folds.toml", "last/step-00000001.safetensors"]
)
def test_pipe_in_place_of_a_file_is_refused(name: str, tmp_path: Path) -> None:
    (tmp_path / name).parent.mkdir(exist_ok=True)
    os.mkfifo(tmp_path / name)
    with pytest.raises(RunError, match=f"{name} cannot be read: it is not a regular file"):
        open_folder(tmp_path)


def test_second_run_of_a_second_has_a_number() -> None:
    names = name_runs("convnext_tiny.fb_in1k", datetime(2026, 7, 30, 12, 5, 9))
    first = "runs/2026-07-30_120509-convnext_tiny"
    assert [str(path) for path in islice(names, 3)] == [first, f"{first}-2", f"{first}-3"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        (
            "path,label,group,split,target: a\nx.png,,,train,1\ny.png,,,train,inf\n",
            "line 3: target: a: 'inf' is not a n",
        ),
        ("path,label,group,split,target: a\nx.png,,,train,high\n", "line 2: could not convert .* 'high'"),
        ("path,label,group,split\nx.png,,,train\n", "line 2: 'target: a'"),
        (f"path,label,group,split,target: a\n{'x' * 200_000},,,train,1\n", "field larger than field limit"),
    ],
)
def test_split_row_with_an_invalid_target_is_refused_with_its_line(tmp_path: Path, text: str, words: str) -> None:
    (tmp_path / "data.json").write_text(
        '{"data": "d", "classes": ["a"], "skipped": {}, "task": {"name": "regression"}}'
    )
    (tmp_path / "split.csv").write_text(text)
    with pytest.raises(RunError, match=rf"split\.csv cannot be read: .*{words}") as caught:
        RunFolder(tmp_path).read_split()
    assert caught.value.exit_code == 3


@pytest.mark.parametrize(
    ("value", "text"), [(90.62, "90.62"), (1.0, "1"), (-3.5, "-3.5"), (1 / 3, "0.3333333333333333"), (math.nan, "")]
)
def test_numbers_are_written_with_the_fewest_digits_that_give_them_again(value: float, text: str) -> None:
    assert format_target(value) == text
