import os
import signal
import sqlite3
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
from PIL import Image

from convnext_cli.cache_folder import clear_cache
from convnext_cli.errors import ImageError
from convnext_cli.images.cache import IN_USE, LIMIT, PENDING, ImageCache, list_cached_sets
from convnext_cli.images.decode import decode_image
from convnext_cli.images.raster import Pixels
from tests.conftest import save_image


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))
    return tmp_path / "cache"


class Counted:
    """Decodes images and counts them."""

    def __init__(self) -> None:
        self.made: list[str] = []

    def __call__(self, path: Path) -> Pixels:
        self.made.append(path.name)
        return decode_image(path)


def fill(root: Path, count: int = 5, size: tuple[int, int] = (20, 16)) -> list[str]:
    for i in range(count):
        save_image(root / f"{i}.png", size, seed=i)
    return [f"{i}.png" for i in range(count)]


def read_all(root: Path, paths: list[str], purpose: str = "test") -> list[str]:
    """Read and check all images as one run would; return those that were prepared."""
    make = Counted()
    cached = ImageCache(root, purpose, make)
    for path in paths:
        np.testing.assert_array_equal(cached.read(path), decode_image(root / path))
    assert cached.failure is None
    cached.flush()
    return make.made


def test_cached_image_is_not_prepared_again(tmp_path: Path) -> None:
    paths = fill(tmp_path / "data")
    Image.fromarray(np.arange(60, dtype=np.uint8).reshape(6, 10)).save(tmp_path / "data/grey.png")
    paths.append("grey.png")
    assert read_all(tmp_path / "data", paths) == paths
    assert read_all(tmp_path / "data", paths) == []
    assert read_all(tmp_path / "data", paths, "another size") == paths
    [one, two] = list_cached_sets()
    assert (one.images, one.root) == (two.images, two.root) == (6, str(tmp_path / "data"))
    assert clear_cache() == []
    assert list_cached_sets() == []
    assert read_all(tmp_path / "data", paths) == paths


def test_changed_image_is_prepared_again(tmp_path: Path) -> None:
    paths = fill(tmp_path / "data")
    read_all(tmp_path / "data", paths)
    save_image(tmp_path / "data/3.png", (20, 16), seed=99)
    assert read_all(tmp_path / "data", paths) == ["3.png"]
    assert read_all(tmp_path / "data", paths) == []


def test_disabled_cache_writes_nothing(tmp_path: Path, cache: Path) -> None:
    [path] = fill(tmp_path / "data", 1)
    make = Counted()
    cached = ImageCache(tmp_path / "data", "test", make, keep=False)
    cached.read(path)
    cached.read(path)
    assert make.made == [path, path]
    assert not cache.exists()


def test_missing_image_is_an_error(tmp_path: Path) -> None:
    with pytest.raises(ImageError, match="does not exist"):
        ImageCache(tmp_path, "test", decode_image).read("gone.png")


@pytest.mark.parametrize("left", [0, 1, 99, 100, 5000, 16384, 60_000, -1])
def test_truncated_cache_is_rebuilt(tmp_path: Path, left: int) -> None:
    paths = fill(tmp_path / "data", 60, (40, 30))
    read_all(tmp_path / "data", paths)
    [entry] = list_cached_sets()
    size = entry.path.stat().st_size
    assert size > 60_000
    os.truncate(entry.path, left % size)
    read_all(tmp_path / "data", paths)
    assert read_all(tmp_path / "data", paths) == []


def test_flipped_bit_in_the_cache_is_detected(tmp_path: Path) -> None:
    paths = fill(tmp_path / "data", 60, (40, 30))
    read_all(tmp_path / "data", paths)
    [entry] = list_cached_sets()
    content = entry.path.read_bytes()
    for place in np.random.default_rng(0).integers(0, len(content), 25):
        hurt = bytearray(content)
        hurt[place] ^= 0x10
        entry.path.write_bytes(hurt)
        read_all(tmp_path / "data", paths)


SCRIPT = """
import sys
from pathlib import Path
from convnext_cli.images import cache
from convnext_cli.images.decode import decode_image
cache.PENDING = 10_000
cached = cache.ImageCache(Path(sys.argv[1]), "test", decode_image)
print("ready", flush=True)
for path in sorted(Path(sys.argv[1]).iterdir()):
    cached.read(path.name)
print(cached.failure, flush=True)
"""


def test_kill_leaves_the_cache_intact(tmp_path: Path) -> None:
    paths = fill(tmp_path / "data", 300, (40, 30))
    for wait in (0.0, 0.02, 0.05, 0.1):
        process = subprocess.Popen([sys.executable, "-c", SCRIPT, tmp_path / "data"], stdout=subprocess.PIPE)
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        time.sleep(wait)
        process.send_signal(signal.SIGKILL)
        process.wait()
        process.stdout.close()
    read_all(tmp_path / "data", paths)
    assert read_all(tmp_path / "data", paths) == []


def test_two_processes_fill_one_cache(tmp_path: Path) -> None:
    paths = fill(tmp_path / "data", 200, (40, 30))
    command = [sys.executable, "-c", SCRIPT, str(tmp_path / "data")]
    processes = [subprocess.Popen(command, stdout=subprocess.PIPE, text=True) for _ in range(2)]
    assert [process.communicate()[0] for process in processes] == ["ready\nNone\n"] * 2
    assert read_all(tmp_path / "data", paths) == []


def test_threads_share_a_cache(tmp_path: Path) -> None:
    paths = fill(tmp_path / "data", 100)
    cached = ImageCache(tmp_path / "data", "test", decode_image)
    for _ in range(2):
        with ThreadPoolExecutor(8) as pool:
            for path, image in zip(paths, pool.map(cached.read, paths), strict=True):
                np.testing.assert_array_equal(image, decode_image(tmp_path / "data" / path))
        cached.flush()
    assert read_all(tmp_path / "data", paths) == []


def test_unwritable_cache_gives_a_reason_and_images(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = fill(tmp_path / "data")
    (tmp_path / "file").touch()
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "file"))
    cached = ImageCache(tmp_path / "data", "test", decode_image)
    for _ in range(2):
        for path in paths:
            np.testing.assert_array_equal(cached.read(path), decode_image(tmp_path / "data" / path))
    cached.flush()
    assert cached.failure is not None
    assert "are not cached" in cached.failure


def test_least_recently_used_set_is_removed_first(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = fill(tmp_path / "data", 20, (200, 150))  # 1.8 MB
    for purpose, ago in (("oldest", 3 * IN_USE), ("older", 2 * IN_USE), ("busy", 0.0)):
        read_all(tmp_path / "data", paths, purpose)
        newest = list_cached_sets()[0].path
        os.utime(newest, (time.time() - ago,) * 2)
    sizes = sum(cached.size for cached in list_cached_sets())
    monkeypatch.setenv(LIMIT, str((sizes + PENDING - 100) / 2**30))
    read_all(tmp_path / "data", paths, "new")
    assert {cached.purpose.split(";")[0] for cached in list_cached_sets()} == {"older", "busy", "new"}
    monkeypatch.setenv(LIMIT, "0.0001")
    cached = ImageCache(tmp_path / "data", "too much", decode_image)
    for path in paths:
        cached.read(path)
    cached.flush()
    assert "is full" in (cached.failure or "")
    assert {cached.purpose.split(";")[0] for cached in list_cached_sets()} == {"busy", "new", "too much"}


def test_full_disk_is_named_as_such(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("convnext_cli.images.cache.disk_usage", lambda _: SimpleNamespace(free=4, total=100))
    [path] = fill(tmp_path / "data", 1)
    cached = ImageCache(tmp_path / "data", "test", decode_image)
    cached.read(path)
    cached.flush()
    assert "the disk of the cache" in (cached.failure or "")
    assert LIMIT not in (cached.failure or ""), "a larger limit would not help"


def test_locked_cache_is_waited_for_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    paths = fill(tmp_path / "data")
    read_all(tmp_path / "data", paths)
    monkeypatch.setattr("convnext_cli.images.cache.WRITE_TIMEOUT", 0.1)
    make = Counted()
    other = sqlite3.connect(list_cached_sets()[0].path)
    other.execute("BEGIN EXCLUSIVE")
    cached = ImageCache(tmp_path / "data", "test", make)
    for path in paths:
        cached.read(path)
    other.close()
    assert "locked" in (cached.failure or "")
    assert [cached.read(path).shape for path in paths]
    assert make.made == paths * 2, "it is not asked again, or each image would wait"
