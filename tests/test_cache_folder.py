import os
import stat
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from convnext_cli import cache_folder
from convnext_cli.cache_folder import (
    NULL_FOLDER,
    clear_cache,
    explain_cache_location,
    find_cache_folder,
    list_cache,
    redirect_library_caches,
)
from convnext_cli.runs.folder import RunFolder
from tests.conftest import Convnext, save_image


@pytest.fixture
def homeless(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[pytest.MonkeyPatch]:
    """No variable names a cache, and temporary files have a folder of their own."""
    for name in ("CONVNEXT_CACHE", "XDG_CACHE_HOME", "MPLCONFIGDIR"):
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "tmp").mkdir()
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "tmp"))
    cache_folder._make_private_folder.cache_clear()
    yield monkeypatch
    cache_folder._make_private_folder.cache_clear()


def test_cache_folder_follows_variables_else_the_home_folder(homeless: pytest.MonkeyPatch, tmp_path: Path) -> None:
    homeless.setenv("HOME", str(tmp_path))
    assert (find_cache_folder(), explain_cache_location()) == (tmp_path / ".cache/convnext", None)
    homeless.setenv("XDG_CACHE_HOME", "/xdg")
    assert (find_cache_folder(), explain_cache_location()) == (Path("/xdg/convnext"), None)
    homeless.setenv("CONVNEXT_CACHE", "/own")
    assert (find_cache_folder(), explain_cache_location()) == (Path("/own"), None)


@pytest.mark.parametrize("home", [os.devnull, "file"])
def test_cache_folder_without_a_home_is_private_and_temporary(
    homeless: pytest.MonkeyPatch, tmp_path: Path, home: str
) -> None:
    (tmp_path / "file").touch()
    homeless.setenv("HOME", str(tmp_path / home))
    folder = find_cache_folder()
    assert folder == tmp_path / f"tmp/convnext-{os.getuid()}/convnext"
    assert stat.S_IMODE(folder.parent.stat().st_mode) == 0o700
    assert str(folder) in (explain_cache_location() or "")


@pytest.mark.parametrize("own", [None, "own", f"{os.devnull}/own"])
def test_libraries_write_to_a_cache_folder_if_the_home_is_not_writable(
    homeless: pytest.MonkeyPatch, tmp_path: Path, own: str | None
) -> None:
    homeless.setenv("HOME", os.devnull)
    homeless.setenv("XDG_CACHE_HOME", "")
    homeless.setenv("MPLCONFIGDIR", "before")
    homeless.delenv("MPLCONFIGDIR")  # restored afterwards
    if own:
        homeless.setenv("CONVNEXT_CACHE", own)
    redirect_library_caches()
    base = Path(own).absolute() if own == "own" else tmp_path / f"tmp/convnext-{os.getuid()}"
    assert [os.environ["XDG_CACHE_HOME"], os.environ["MPLCONFIGDIR"]] == [str(base), str(base / "matplotlib")]


def test_temporary_folder_writable_by_others_is_not_used(homeless: pytest.MonkeyPatch, tmp_path: Path) -> None:
    homeless.setenv("HOME", os.devnull)
    foreign = tmp_path / f"tmp/convnext-{os.getuid()}"
    foreign.mkdir()
    foreign.chmod(0o777)
    assert foreign not in find_cache_folder().parents
    cache_folder._make_private_folder.cache_clear()
    foreign.rmdir()
    foreign.symlink_to(tmp_path)
    assert find_cache_folder().parent.resolve() != tmp_path


def test_nothing_is_cached_without_a_writable_folder(homeless: pytest.MonkeyPatch, tmp_path: Path) -> None:
    homeless.setenv("HOME", os.devnull)
    homeless.setattr(tempfile, "tempdir", str(Path.cwd()))  # Python's last resort, which may be the user's data
    assert find_cache_folder() == NULL_FOLDER / "convnext"
    assert "nothing is cached" in (explain_cache_location() or "")
    assert list(tmp_path.iterdir()) == [tmp_path / "tmp"]
    assert [part.entries for part in list_cache()] == [0] * 8


def test_clear_cache_removes_leftovers_and_no_foreign_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path))
    cached = [
        "pictures/a.sqlite", "pictures/a.sqlite-journal", "audit/a.npz", "audit/.a.npz.x1.tmp", "teachers/a.npy",
        "teachers/.a.npy.1.tmp", "digests/a.sqlite",
        f"unpacked/set-{'0a' * 12}/cat/1.png", "unpacked/.unpacking-x1/cat/1.png", "probes/a.json",
        "probes/.a.json.x1.tmp", "speeds/a.json", "kernels/a.so", "kernels/.a.so.x1.tmp",
    ]  # fmt: skip
    foreign = ["unpacked/my own/1.png", "pictures/holiday.jpg", "thesis.txt", "target/1.png"]
    for name in (*cached, *foreign):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_bytes(b"x" * 10)
    (tmp_path / f"unpacked/link-{'0b' * 12}").symlink_to(tmp_path / "target")
    parts = {part.name: (part.entries, part.bytes) for part in list_cache()}
    assert parts == {
        "pictures": (2, 20), "audit": (2, 20), "teachers": (2, 20), "digests": (1, 10), "unpacked": (3, 20),
        "probes": (2, 20), "speeds": (1, 10), "kernels": (2, 20),
    }  # fmt: skip
    assert clear_cache() == []
    assert sorted(str(path.relative_to(tmp_path)) for path in tmp_path.rglob("*") if path.is_file()) == sorted(foreign)
    assert sum(part.entries for part in list_cache()) == 0


WHERE = "puts the cache folder into the data folder"


@pytest.mark.parametrize("variable", ["CONVNEXT_CACHE", "XDG_CACHE_HOME"])
def test_a_cache_folder_in_the_data_is_refused_before_anything_is_written(
    run: RunFolder, digits: Path, convnext: Convnext, monkeypatch: pytest.MonkeyPatch, variable: str
) -> None:
    table = [f"{path},{path.parent.name}\n" for path in sorted(digits.rglob("*.png"))]
    Path("table.csv").write_text("".join(["path,label\n", *table]))
    monkeypatch.setenv(variable, str(digits / "0/cache"))
    before = sorted(digits.rglob("*"))
    for words in (
        f"check {digits}", f"check {digits}/0", "check table.csv", f"recommend {digits}", "finetune table.csv -o new",
        f"finetune {digits} -o new", f"eval {run.path}", f"eval {run.path} {digits}", f"eval {run.path} table.csv",
        f"export {run.path} -o new.onnx", f"predict {digits} --run {run.path}",
        f"finetune {digits} --unlabelled --teacher {run.path} -o new",
    ):  # fmt: skip
        outcome = convnext(*words.split())
        assert (outcome.code, outcome.out) == (2, ""), words
        assert f"error: {variable} {WHERE}" in outcome.err, words
    assert sorted(digits.rglob("*")) == before
    assert not list(Path().glob("new*"))


def test_a_cache_folder_beside_a_table_and_the_default_one_are_accepted(
    homeless: pytest.MonkeyPatch, convnext: Convnext
) -> None:
    paths = [save_image(Path(f"images/{name}/{number}.png"), seed=number) for name in "ab" for number in range(2)]
    Path("table.csv").write_text("\n".join(["path,label", *(f"{path},{path.parent.name}" for path in paths), ""]))
    homeless.setenv("CONVNEXT_CACHE", "cache")
    assert WHERE not in convnext("check", "table.csv").err
    assert Path("cache").is_dir()
    homeless.delenv("CONVNEXT_CACHE")
    homeless.setenv("HOME", str(Path("images").absolute()))  # images in the home folder
    assert WHERE not in convnext("check", "images").err
