import errno
import os
import socket
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest

from convnext_cli.errors import UsageError
from convnext_cli.files import (
    DISK_FULL,
    append_json_line,
    check_output,
    list_leftovers,
    read_json_lines,
    replace_file,
    replace_output,
    write_output,
    write_text,
)


def make_link(path: Path) -> None:
    path.with_name("target").write_text("the target")
    path.symlink_to("target")


def make_dangling_link(path: Path) -> None:
    path.symlink_to("gone")


def make_socket(path: Path) -> None:
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        socket.socket(socket.AF_UNIX).bind(f"/proc/self/fd/{folder}/{path.name}")  # a path of at most 107 bytes
    finally:
        os.close(folder)


@pytest.mark.parametrize("overwrite", [False, True])
@pytest.mark.parametrize("make", [make_link, make_dangling_link, make_socket, os.mkfifo, Path.mkdir])
@pytest.mark.filterwarnings("ignore::ResourceWarning")  # the socket
def test_links_pipes_sockets_and_folders_are_never_replaced(tmp_path: Path, make, overwrite: bool) -> None:  # type: ignore[no-untyped-def]
    path = tmp_path / "out"
    make(path)
    before = path.lstat()
    with pytest.raises(UsageError, match=r"never replaced|is a folder"):
        write_output(path, "new", overwrite=overwrite)
    assert path.lstat() == before
    assert not list(tmp_path.glob(".*"))
    if make is make_link:
        assert (tmp_path / "target").read_text() == "the target"


def test_devices_are_never_replaced() -> None:
    with pytest.raises(UsageError, match="a device"):
        check_output(Path(os.devnull), overwrite=True)


def test_files_are_replaced_with_overwrite_only(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_output(path, "one")
    with pytest.raises(UsageError, match=r"exists already\. Choose another --fix-list, or add --overwrite"):
        write_output(path, "two", "--fix-list")
    assert path.read_text() == "one"
    write_output(path, "two", overwrite=True)
    assert path.read_text() == "two"
    with pytest.raises(UsageError, match="cannot write"):
        write_output(path / "out", "three")
    with pytest.raises(UsageError, match="cannot write"):
        write_output(tmp_path / ("n" * 300), "three")


def test_the_folder_of_a_file_is_made_and_removed_again_if_the_file_is_not_written(tmp_path: Path) -> None:
    write_output(tmp_path / "new/sub/out", "text")
    assert (tmp_path / "new/sub/out").read_text() == "text"
    with pytest.raises(ValueError, match="stop"), replace_output(tmp_path / "other/sub/out"):
        raise ValueError("stop")
    assert [path.name for path in tmp_path.iterdir()] == ["new"]
    (tmp_path / "gone").symlink_to(tmp_path / "nothing")
    with pytest.raises(UsageError, match=r"cannot write .*gone: .*gone is not a folder. Choose another --fix-list"):
        write_output(tmp_path / "gone/out", "text", "--fix-list")


def test_file_of_another_program_written_meanwhile_is_not_replaced(tmp_path: Path) -> None:
    def write() -> None:
        with replace_output(tmp_path / "out") as temporary:
            temporary.write_text("ours")
            (tmp_path / "out").write_text("theirs")

    with pytest.raises(UsageError, match="exists already"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "theirs"


def test_what_a_killed_process_left_is_told_from_other_files(tmp_path: Path) -> None:
    code = f"""
import os, pathlib, signal
from convnext_cli.files import replace_output
with replace_output(pathlib.Path({str(tmp_path)!r}, "out"), overwrite=True) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""
    subprocess.run([sys.executable, "-c", code], check=False)
    [leftover] = tmp_path.iterdir()
    (tmp_path / ".out.onnx.abcd1234.tmp").write_text("of another file")
    with replace_file(tmp_path / "out"):  # a process that lives
        assert list_leftovers(tmp_path / "out") == [leftover]


def test_a_folder_that_may_be_written_and_not_listed_is_written(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(path: object, flags: int, mode: int = 0o777) -> int:
        if path == tmp_path:
            raise PermissionError(errno.EACCES, os.strerror(errno.EACCES), str(path))
        return os_open(path, flags, mode)  # type: ignore[arg-type]

    os_open = os.open
    monkeypatch.setattr(os, "open", refuse)
    write_text(tmp_path / "out", "text")
    assert (tmp_path / "out").read_text() == "text"


def test_long_file_names_are_written(tmp_path: Path) -> None:
    write_text(tmp_path / ("é" * 127), "text")
    assert [len(os.fsencode(path.name)) for path in tmp_path.iterdir()] == [254]


def run_with_small_files(code: str, size: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose files may have `size` bytes: writing more fails as on a full disk."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n{code}"
    return subprocess.run(
        [sys.executable, "-c", limited], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


def test_full_disk_leaves_the_old_file_and_no_partial_file(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        code = f"from convnext_cli.files import write_text, Path; write_text(Path('{name}'), 'x' * 5000)"
        done = run_with_small_files(code, 1000, tmp_path)
        assert f"{DISK_FULL}: '{name}'" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


def test_errors_name_the_file_instead_of_its_temporary_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    code = """
from convnext_cli.files import replace_file, write_text, Path
with replace_file(Path("outer")) as temporary:
    write_text(temporary, "x" * 5000)
"""
    assert f"{DISK_FULL}: 'outer'" in run_with_small_files(code, 1000, tmp_path).stderr.splitlines()[-1]
    for number, method in ((errno.EIO, "replace"), (errno.EACCES, "chmod")):

        def fail(path: Path, *_: object, number: int = number) -> None:
            raise OSError(number, os.strerror(number), str(path))

        with monkeypatch.context() as patch:
            patch.setattr(Path, method, fail)
            with pytest.raises(OSError, match=os.strerror(number)) as caught:
                write_text(tmp_path / "file", "text")
        assert caught.value.filename == str(tmp_path / "file")
    with pytest.raises(FileNotFoundError) as gone:
        write_text(tmp_path / "gone/file", "text")
    assert gone.value.filename == str(tmp_path / "gone/file")
    with pytest.raises(FileNotFoundError) as other, replace_file(tmp_path / "file"):
        (tmp_path / "another").read_text()
    assert other.value.filename == str(tmp_path / "another")
    assert not list(tmp_path.iterdir())


def test_full_disk_leaves_no_partial_line(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"number": 1})
    code = "from convnext_cli.files import append_json_line as add, Path; add(Path('lines.jsonl'), {'a': 'x' * 5000})"
    done = run_with_small_files(code, 1000, tmp_path)
    assert DISK_FULL in done.stderr
    append_json_line(path, {"number": 2})
    assert [line["number"] for line in read_json_lines(path)] == [1, 2]
    assert len(path.read_text().splitlines()) == 2


def test_error_of_an_append_is_the_systems_own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def fail(*_: object) -> int:
        raise OSError(errno.EIO, "input/output error")

    monkeypatch.setattr("os.write", fail)
    with pytest.raises(OSError, match="input/output error"):
        append_json_line(tmp_path / "lines.jsonl", {"number": 1})
    assert not list(tmp_path.iterdir())


def test_threads_that_write_leave_the_umask_alone(tmp_path: Path) -> None:
    before = os.umask(0o027)
    os.umask(before)
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: write_text(tmp_path / f"{number}.txt", "x"), range(400)))
    after = os.umask(before)
    assert after == before
    assert {path.stat().st_mode & 0o777 for path in tmp_path.iterdir()} == {0o666 & ~before}


def test_error_in_the_block_leaves_no_file(tmp_path: Path) -> None:
    def write() -> None:
        with replace_file(tmp_path / "out") as temporary:
            temporary.write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write()
    assert list(tmp_path.iterdir()) == []
