import multiprocessing
import os
import shutil
import stat
import struct
import zipfile
from pathlib import Path

import pytest

from convnext_cli.data import archive as module
from convnext_cli.data.archive import unpack
from convnext_cli.data.sources import scan_data
from convnext_cli.errors import DataError
from tests.conftest import save_image

pytestmark = pytest.mark.filterwarnings("ignore:Duplicate name:UserWarning")  # zipfile's, where a test writes one


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache/unpacked"


def entry(name: str, mode: int = 0, system: int = 3) -> zipfile.ZipInfo:
    member = zipfile.ZipInfo("x")
    member.filename, member.external_attr, member.create_system = name, mode << 16, system
    return member


def pack(path: Path, *members: tuple[zipfile.ZipInfo | str, bytes]) -> Path:
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as opened:
        for member, content in members:
            opened.writestr(member, content)
    return path


def files_in(folder: Path) -> list[str]:
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


REFUSED = {
    "a file outside of itself": ["../x.png", "/x.png", "a/../../x.png", "a\\..\\..\\x.png", "C:\\x.png"],
    "a name that is too long": ["x" * 256 + ".png", "ü" * 130 + ".png", "d/" * 1500 + "x.png"],
    "a file without a name": [".", "./."],
}


@pytest.mark.parametrize(("problem", "name"), [(problem, name) for problem, names in REFUSED.items() for name in names])
def test_path_outside_the_archive_is_refused(problem: str, name: str, tmp_path: Path, cache: Path) -> None:
    packed = pack(tmp_path / "x.zip", ("a.png" if "\\" not in name else "b.png", b"1"), (entry(name), b"2"))
    with pytest.raises(DataError, match=problem):
        unpack(packed)
    assert not cache.exists()


@pytest.mark.parametrize("kind", [stat.S_IFLNK, stat.S_IFIFO, stat.S_IFCHR, stat.S_IFSOCK])
def test_link_or_special_file_is_refused(kind: int, tmp_path: Path) -> None:
    packed = pack(tmp_path / "x.zip", (entry("a/link.png", kind | 0o777), b"/etc/passwd"))
    with pytest.raises(DataError, match="a link or a special file"):
        unpack(packed)


@pytest.mark.parametrize("second", ["a/x.png", "./a/x.png", "a//x.png", "a\\x.png"])
def test_repeated_file_is_refused(second: str, tmp_path: Path) -> None:
    system = 0 if "\\" in second else 3
    packed = pack(tmp_path / "x.zip", ("a/x.png", b"1"), (entry(second, system=system), b"2"))
    with pytest.raises(DataError, match="a file twice"):
        unpack(packed)


def test_file_and_folder_of_one_name_are_refused(tmp_path: Path) -> None:
    with pytest.raises(DataError, match="a file and a folder of one name"):
        unpack(pack(tmp_path / "x.zip", ("a", b"1"), ("a/x.png", b"2")))


def test_encrypted_file_is_refused(tmp_path: Path) -> None:
    packed = pack(tmp_path / "x.zip", ("a.png", b"1" * 50))
    raw = bytearray(packed.read_bytes())
    place = raw.index(b"PK\1\2") + 8  # the flags in the central directory
    raw[place] |= 1
    packed.write_bytes(raw)
    with pytest.raises(DataError, match="an encrypted file"):
        unpack(packed)


def test_backslashes_separate_folders(tmp_path: Path) -> None:
    members = [(entry(f"d\\{name}\\{at}.png"), b"x") for at, name in enumerate("aabb")]
    assert files_in(unpack(pack(tmp_path / "x.zip", *members))) == ["d/a/0.png", "d/a/1.png", "d/b/2.png", "d/b/3.png"]
    mixed = pack(tmp_path / "y.zip", (entry("a/0.png"), b"x"), (entry("a/back\\slash.png"), b"y"))
    assert files_in(unpack(mixed)) == ["a/0.png", "a/back\\slash.png"], "a name that Linux allows"


def test_names_in_utf_8_without_the_flag(tmp_path: Path) -> None:
    packed = pack(tmp_path / "x.zip", ("Müll/é.png", b"1"), ("Büro/開.png", b"2"))
    raw = packed.read_bytes()
    for mark, offset in ((b"PK\3\4", 6), (b"PK\1\2", 8)):
        parts = raw.split(mark)
        raw = mark.join([parts[0], *(p[: offset - 4] + b"\0\0" + p[offset - 2 :] for p in parts[1:])])
    packed.write_bytes(raw)
    assert files_in(unpack(packed)) == ["Büro/開.png", "Müll/é.png"]


@pytest.mark.parametrize(
    ("raw", "name"),
    [(b"M\x81ll", "Müll"), (b"M\xfcll", ""), (b"pulm\xc6o", ""), (b"\xad\xae", ""), (b"\x83\x6c\x83\x52", "")],
)
def test_names_in_code_pages(raw: bytes, name: str, tmp_path: Path) -> None:
    """Code page 437 as the format defines, and 1252, 850, 866 and 932, which differ from it."""
    packed = pack(tmp_path / "x.zip", ("a/1.png", b"1"), (f"{'b' * len(raw)}/2.png", b"2"))
    packed.write_bytes(packed.read_bytes().replace(b"b" * len(raw), raw))
    if name:
        assert files_in(unpack(packed)) == [f"{name}/2.png", "a/1.png"]
    else:
        with pytest.raises(DataError, match=r"x\.zip has a folder name that is neither UTF-8 nor code page 437"):
            unpack(packed)


def test_packing_of_windows_for_large_files_is_not_called_damage(tmp_path: Path) -> None:
    packed = pack(tmp_path / "x.zip", ("a/1.png", b"1"))
    raw = bytearray(packed.read_bytes())
    for mark, offset in ((b"PK\3\4", 8), (b"PK\1\2", 10)):
        raw[raw.index(mark) + offset] = 9  # Deflate64
    packed.write_bytes(raw)
    with pytest.raises(DataError, match=r"method is not supported\)\. Unpack it yourself"):
        unpack(packed)


def test_zip_bomb_is_refused_before_unpacking(tmp_path: Path, cache: Path) -> None:
    with zipfile.ZipFile(tmp_path / "x.zip", "w", zipfile.ZIP_DEFLATED) as opened, opened.open("a/x.bmp", "w") as file:
        for _ in range(300):
            file.write(bytes(1 << 20))
    with pytest.raises(DataError, match=r"would unpack to 0\.3 GiB, \d+ times its size"):
        unpack(tmp_path / "x.zip")
    assert not list(cache.iterdir())


def test_archive_larger_than_the_free_space_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(tmp_path / "x.zip", ("a/x.png", os.urandom(5000)))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr("shutil.disk_usage", lambda _: usage._replace(free=5000))
    with pytest.raises(DataError, match=r"would unpack to 0\.\d MB, and \S+ has 0\.0 MB free"):
        unpack(packed)


@pytest.mark.parametrize("declared", [10, 2**31, 2**62])
def test_false_size_is_refused(declared: int, tmp_path: Path, cache: Path) -> None:
    packed = pack(tmp_path / "x.zip", ("a/x.png", b"1" * 5000))
    raw = bytearray(packed.read_bytes())
    place = raw.index(b"PK\1\2")
    if declared < 2**32:
        struct.pack_into("<L", raw, place + 24, declared)
    else:  # zip64: the size in an extra field of the central directory
        struct.pack_into("<L", raw, place + 24, 2**32 - 1)
        struct.pack_into("<H", raw, place + 30, 12)
        extra = struct.pack("<HHQ", 1, 8, declared)
        raw[place + 46 + 7 : place + 46 + 7] = extra
        end = raw.index(b"PK\5\6")
        struct.pack_into("<L", raw, end + 12, 46 + 7 + 12)
    packed.write_bytes(raw)
    with pytest.raises(DataError, match=r"cannot be unpacked|would unpack"):
        unpack(packed)
    assert not cache.exists() or not list(cache.iterdir())


def test_damaged_archive_is_a_data_error(tmp_path: Path, cache: Path) -> None:
    whole = pack(tmp_path / "x.zip", ("a/x.png", b"12" * 20), ("b/y.png", b"34" * 20)).read_bytes()
    refused = 0
    for place in range(len(whole)):
        raw = bytearray(whole)
        raw[place] ^= 0xFF
        shutil.rmtree(cache, ignore_errors=True)
        (tmp_path / "x.zip").write_bytes(raw)
        try:
            unpack(tmp_path / "x.zip")
        except DataError:
            refused += 1
    assert refused > len(whole) / 3


@pytest.mark.parametrize("outside", ["up", "absolute", "by a folder", "beside"])
def test_table_that_names_images_outside_the_archive_is_refused(outside: str, tmp_path: Path, cache: Path) -> None:
    image = save_image(tmp_path / "private/1.png")
    content = image.read_bytes()
    save_image(cache / "near.png")
    path = {
        "up": f"{'../' * 30}{str(image).lstrip('/')}",
        "absolute": str(image),
        "by a folder": "a/../../../../private/1.png",
        "beside": "../near.png",
    }[outside]
    table = f"path,label\n{path},x\nown.png,y\n".encode()
    packed = pack(tmp_path / "x.zip", ("own.png", content), ("a/", b""), ("list.csv", table))
    with pytest.raises(DataError, match=r"names 1 image outside of the archive, such as"):
        scan_data(packed)


def test_leftover_of_a_killed_process_is_removed_after_a_day(tmp_path: Path, cache: Path) -> None:
    old, new = cache / ".unpacking-old", cache / ".unpacking-new"
    for folder in (old, new):
        folder.mkdir(parents=True)
    os.utime(old, (0, 0))
    target = unpack(pack(tmp_path / "x.zip", ("a/x.png", b"1")))
    assert set(cache.iterdir()) == {new, target}, "another process may unpack into the new one"


def test_two_processes_unpack_one_archive(tmp_path: Path, cache: Path) -> None:
    packed = pack(tmp_path / f"{'long' * 60}.zip", *((f"{name}/{at}.png", b"x") for name in "ab" for at in range(300)))
    with multiprocessing.get_context("fork").Pool(4) as pool:
        folders = pool.map(unpack, [packed] * 8, chunksize=1)
    assert len(set(folders)) == 1
    assert len(files_in(folders[0])) == 600
    assert len(list(cache.iterdir())) == 1


def test_of_two_processes_the_first_wins(tmp_path: Path, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    packed = pack(tmp_path / "x.zip", ("a/x.png", b"1"), ("b/y.png", b"2"))

    def unpack_meanwhile(*_: object) -> None:
        monkeypatch.undo()
        monkeypatch.setenv("CONVNEXT_CACHE", str(cache.parent))
        unpack(packed)

    monkeypatch.setattr(module, "_check_size", unpack_meanwhile)
    assert files_in(unpack(packed)) == ["a/x.png", "b/y.png"]
    assert len(list(cache.iterdir())) == 1
