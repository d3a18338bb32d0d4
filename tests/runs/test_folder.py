import os
from dataclasses import replace
from pathlib import Path

import pytest

from convnext_cli.data.scan import scan_folder
from convnext_cli.data.split import split_index
from convnext_cli.errors import RunError
from convnext_cli.files import replace_file, write_text
from convnext_cli.runs.folder import RunFolder
from convnext_cli.runs.folds import find_newest_run
from tests.conftest import save_image


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
    with pytest.raises(RunError, match="no run under"):
        find_newest_run()
    for age, name in enumerate(("old", "new", "unfinished")):
        folder = tmp_path / "runs" / name
        folder.mkdir(parents=True)
        if name != "unfinished":
            (folder / "model.safetensors").touch()
            os.utime(folder / "model.safetensors", (age, age))
    assert find_newest_run().path.name == "new"


def test_damaged_split_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match=r"is not a run: it has no data\.json"):
        RunFolder(tmp_path).read_split()
    (tmp_path / "data.json").write_text("{}")
    (tmp_path / "split.csv").write_text("path,label,group,split\n")
    for text in ("path,label,group,split\n", "path,label\na,b\n", "path,label,group,split\na,b,,exam\n"):
        (tmp_path / "data.json").write_text('{"data": "d", "classes": ["b"], "skipped": {}}')
        (tmp_path / "split.csv").write_text(text)
        with pytest.raises(RunError, match=r"split\.csv cannot be read"):
            RunFolder(tmp_path).read_split()
    (tmp_path / "data.json").write_text("{}")
    with pytest.raises(RunError, match=r"data\.json cannot be read: Object missing required field data"):
        RunFolder(tmp_path).read_split()


def test_missing_run_is_refused(tmp_path: Path) -> None:
    with pytest.raises(RunError, match="gone does not exist"):
        RunFolder(tmp_path / "gone").read_split()
    with pytest.raises(RunError, match=r"is not a run: it has no data\.json"):
        RunFolder(tmp_path).read_split()
