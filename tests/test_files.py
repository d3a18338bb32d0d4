import os
import socket
import stat
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from convnext_cli import files
from convnext_cli.errors import UsageError
from convnext_cli.files import (
    NULL_FOLDER,
    append_json_line,
    check_output,
    clear_cache,
    explain_cache_location,
    find_cache_folder,
    list_cache,
    read_json_lines,
    replace_file,
    replace_output,
    write_output,
    write_text,
)

limits_file_size = pytest.mark.skipif(sys.platform == "win32", reason="RLIMIT_FSIZE stands for a full disk")


def make_link(path: Path) -> None:
    path.with_name("target").write_text("the target")
    path.symlink_to("target")


def make_dangling_link(path: Path) -> None:
    path.symlink_to("gone")


def make_socket(path: Path) -> None:
    place = os.open(path.parent, os.O_RDONLY)
    try:
        socket.socket(socket.AF_UNIX).bind(f"/proc/self/fd/{place}/{path.name}")  # a path of at most 107 bytes
    finally:
        os.close(place)


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


def test_a_device_is_never_replaced() -> None:
    with pytest.raises(UsageError, match="a device"):
        check_output(Path(os.devnull), overwrite=True)


def test_a_file_is_replaced_with_overwrite_only(tmp_path: Path) -> None:
    path = tmp_path / "out"
    write_output(path, "one")
    with pytest.raises(UsageError, match=r"exists already\. Choose another --fix-list, or add --overwrite"):
        write_output(path, "two", "--fix-list")
    assert path.read_text() == "one"
    write_output(path, "two", overwrite=True)
    assert path.read_text() == "two"
    with pytest.raises(UsageError, match="a folder that exists"):
        write_output(tmp_path / "gone/out", "three")
    with pytest.raises(UsageError, match="cannot write"):
        write_output(path / "out", "three")
    with pytest.raises(UsageError, match="cannot write"):
        write_output(tmp_path / ("n" * 300), "three")


def test_what_comes_there_while_it_is_written_is_not_replaced(tmp_path: Path) -> None:
    def write() -> None:
        with replace_output(tmp_path / "out") as temporary:
            temporary.write_text("ours")
            (tmp_path / "out").write_text("theirs")

    with pytest.raises(UsageError, match="exists already"):
        write()
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert (tmp_path / "out").read_text() == "theirs"


def test_a_long_name_is_written_too(tmp_path: Path) -> None:
    write_text(tmp_path / ("é" * 127), "text")
    assert [len(os.fsencode(path.name)) for path in tmp_path.iterdir()] == [254]


def run_with_small_files(code: str, size: int, folder: Path) -> subprocess.CompletedProcess[str]:
    """Run code in a process whose files may have `size` bytes: writing more fails as on a full disk."""
    limited = f"import resource; resource.setrlimit(resource.RLIMIT_FSIZE, ({size}, {size}))\n{code}"
    return subprocess.run(
        [sys.executable, "-c", limited], cwd=folder, capture_output=True, text=True, timeout=60, check=False
    )


@limits_file_size
def test_where_there_is_no_room_a_file_is_as_it_was_and_nothing_is_left(tmp_path: Path) -> None:
    (tmp_path / "old").write_text("old")
    for name in ("old", "new"):
        code = f"from convnext_cli.files import write_text, Path; write_text(Path('{name}'), 'x' * 5000)"
        done = run_with_small_files(code, 1000, tmp_path)
        assert f"no room on the disk for this file, of which nothing is left: '{name}'" in done.stderr
    assert [path.name for path in tmp_path.iterdir()] == ["old"]
    assert (tmp_path / "old").read_text() == "old"


@limits_file_size
def test_of_a_line_that_has_no_room_nothing_stays(tmp_path: Path) -> None:
    path = tmp_path / "lines.jsonl"
    append_json_line(path, {"number": 1})
    code = "from convnext_cli.files import add_line, Path; add_line(Path('lines.jsonl'), {'text': 'x' * 5000})"
    done = run_with_small_files(code, 1000, tmp_path)
    assert "no room on the disk for another line" in done.stderr
    append_json_line(path, {"number": 2})
    assert [line["number"] for line in read_json_lines(path)] == [1, 2]
    assert len(path.read_text().splitlines()) == 2


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No variable names a cache, and temporary files have a folder of their own."""
    for name in ("CONVNEXT_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    files._make_private_folder.cache_clear()
    yield monkeypatch
    files._make_private_folder.cache_clear()


def test_the_cache_is_where_variables_say_else_below_the_home(homeless: pytest.MonkeyPatch, tmp_path: Path) -> None:
    homeless.setenv("HOME", str(tmp_path))
    assert (find_cache_folder(), explain_cache_location()) == (tmp_path / ".cache/convnext", None)
    homeless.setenv("XDG_CACHE_HOME", "/xdg")
    assert (find_cache_folder(), explain_cache_location()) == (Path("/xdg/convnext"), None)
    homeless.setenv("CONVNEXT_CACHE", "/own")
    assert (find_cache_folder(), explain_cache_location()) == (Path("/own"), None)


@pytest.mark.parametrize("home", [os.devnull, "file"])
def test_without_a_home_the_cache_is_a_private_temporary_folder(
    homeless: pytest.MonkeyPatch, tmp_path: Path, home: str
) -> None:
    (tmp_path / "file").touch()
    homeless.setenv("HOME", str(tmp_path / home))
    place = find_cache_folder()
    assert place == tmp_path / f"tmp/convnext-{os.getuid()}/convnext"
    assert stat.S_IMODE(place.parent.stat().st_mode) == 0o700
    assert str(place) in (explain_cache_location() or "")


def test_a_temporary_folder_that_others_can_write_is_not_used(homeless: pytest.MonkeyPatch, tmp_path: Path) -> None:
    homeless.setenv("HOME", os.devnull)
    foreign = tmp_path / f"tmp/convnext-{os.getuid()}"
    foreign.mkdir()
    foreign.chmod(0o777)
    assert foreign not in find_cache_folder().parents
    files._make_private_folder.cache_clear()
    foreign.rmdir()
    foreign.symlink_to(tmp_path)
    assert find_cache_folder().parent.resolve() != tmp_path


def test_without_any_folder_to_write_nothing_is_kept(homeless: pytest.MonkeyPatch, tmp_path: Path) -> None:
    homeless.setenv("HOME", os.devnull)
    homeless.setattr(tempfile, "tempdir", str(Path.cwd()))  # Python's last resort, which may be the user's data
    assert find_cache_folder() == NULL_FOLDER / "convnext"
    assert "nothing is kept" in (explain_cache_location() or "")
    assert list(tmp_path.iterdir()) == [tmp_path / "tmp"]
    assert [part.entries for part in list_cache()] == [0] * 6


def test_clearing_removes_leftovers_of_kills_and_nothing_that_is_not_ours(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path))
    ours = [
        "pictures/a.sqlite", "pictures/a.sqlite-journal", "audit/a.npz", "audit/.a.npz.x1.tmp", "digests/a.sqlite",
        f"unpacked/set-{'0a' * 12}/cat/1.png", "unpacked/.unpacking-x1/cat/1.png", "probes/a.json",
        "probes/.a.json.x1.tmp", "kernels/a.so", "kernels/.a.so.x1.tmp",
    ]  # fmt: skip
    theirs = ["unpacked/my own/1.png", "pictures/holiday.jpg", "thesis.txt", "target/1.png"]
    for name in (*ours, *theirs):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 10)
    (tmp_path / f"unpacked/link-{'0b' * 12}").symlink_to(tmp_path / "target")
    parts = {part.name: (part.entries, part.bytes) for part in list_cache()}
    assert parts == {
        "pictures": (2, 20), "audit": (2, 20), "digests": (1, 10), "unpacked": (3, 20), "probes": (2, 20),
        "kernels": (2, 20),
    }  # fmt: skip
    assert clear_cache() == []
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(theirs)
    assert sum(part.entries for part in list_cache()) == 0


def test_an_error_in_the_block_leaves_nothing(tmp_path: Path) -> None:
    def write() -> None:
        with replace_file(tmp_path / "out") as temporary:
            temporary.write_text("half")
            raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        write()
    assert list(tmp_path.iterdir()) == []
