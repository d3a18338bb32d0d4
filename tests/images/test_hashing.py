import os
import shutil
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from convnext_cli.data.audit.measurements import measure_images
from convnext_cli.data.sources import scan_data
from convnext_cli.images import hashing as contents
from convnext_cli.images.cache import ImageCache
from convnext_cli.images.decode import decode_image
from convnext_cli.images.hashing import ContentDigests, find_file_system, hash_file, make_key
from convnext_cli.inference.evaluation import evaluate
from convnext_cli.progress import finish
from convnext_cli.runs.folder import RunFolder


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CONVNEXT_CACHE", str(tmp_path / "cache"))


def fill(root: Path) -> Path:
    """Make two class folders of BMP files with equal names, sizes and modification times, as unzip leaves them."""
    for seed, name in enumerate("ab"):
        (root / name).mkdir(parents=True)
        for k in range(3):
            pixels = np.random.default_rng((seed, k)).integers(0, 256, (12, 10, 3), dtype=np.uint8)
            Image.fromarray(pixels).save(root / name / f"{k}.bmp")
            os.utime(root / name / f"{k}.bmp", (1e9, 1e9))
    return root


def swap_folders(root: Path) -> None:
    (root / "a").rename(root / "c")
    (root / "b").rename(root / "a")
    (root / "c").rename(root / "b")


def swap_files(root: Path) -> None:
    for k in range(3):
        one, two = (root / name / f"{k}.bmp" for name in "ab")
        one.rename(root / "c")
        two.rename(one)
        (root / "c").rename(two)


def overwrite(root: Path) -> None:
    """Swap the bytes in place, so that path, inode, size and modification time are unchanged."""
    for k in range(3):
        files = [root / name / f"{k}.bmp" for name in "ab"]
        for file, data in zip(files, [file.read_bytes() for file in reversed(files)], strict=True):
            file.write_bytes(data)
            os.utime(file, (1e9, 1e9))


def copy_over(root: Path) -> None:
    swap_folders(root)
    shutil.copytree(root, root.parent / "copy")  # with its modification times
    shutil.rmtree(root)
    (root.parent / "copy").rename(root)


CHANGES = [swap_folders, swap_files, overwrite, copy_over]


def read_thumbs(root: Path) -> list[bytes]:
    """Return the digests in the audit's cache, as a new process reads them."""
    contents._open.cache_clear()
    measurements = finish(measure_images(scan_data(root)))
    return [bytes(row["digest"]) for row in measurements.measures]


@pytest.mark.parametrize("racy", [0.0, contents.RACY])
@pytest.mark.parametrize("change", CHANGES)
def test_swapped_files_of_one_size_and_time_are_distinguished(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, change: Callable[[Path], None], racy: float
) -> None:
    monkeypatch.setattr(contents, "RACY", racy)  # 0: as if the files were older than that, so that states are trusted
    root = fill(tmp_path / "data")
    paths = scan_data(root).paths
    time.sleep(0.02)  # more than a tick of the kernel's clock
    thumbs = read_thumbs(root)
    cached = ImageCache(root, "test", decode_image)
    before = [cached.read(path) for path in paths]
    cached.flush()
    change(root)
    contents._open.cache_clear()
    for after in (cached, ImageCache(root, "test", decode_image)):
        for path, old in zip(paths, before, strict=True):
            np.testing.assert_array_equal(after.read(path), decode_image(root / path))
            assert (after.read(path) != old).any()
    assert read_thumbs(root) == thumbs[3:] + thumbs[:3]


def test_eval_of_swapped_class_folders_equals_eval_without_a_cache(run: RunFolder, tmp_path: Path) -> None:
    index = run.read_split()
    for row in index.rows("test"):
        path = tmp_path / "data" / index.classes[index.labels[row]] / f"{row}.bmp"
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.open(index.root / index.paths[row]).convert("RGB").save(path)
        os.utime(path, (1e9, 1e9))
    data = tmp_path / "data"
    names = sorted(path.name for path in data.iterdir())
    for k, path in enumerate(sorted((data / names[1]).iterdir())):  # the same names in each folder
        path.rename(path.with_name(f"{k}.bmp"))
    for k, path in enumerate(sorted((data / names[0]).iterdir())):
        path.rename(path.with_name(f"{k}.bmp"))
    first = evaluate(run.path, data, split="all").metrics.top1
    (data / names[0]).rename(data / "swapped")
    (data / names[1]).rename(data / names[0])
    (data / "swapped").rename(data / names[1])
    second = evaluate(run.path, data, split="all").metrics.top1
    assert second == evaluate(run.path, data, split="all", cache=False).metrics.top1
    assert second is not None
    assert first is not None
    assert second < first - 0.3


def test_bytes_are_read_once_per_file_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    root = fill(tmp_path / "data")
    paths = scan_data(root).paths
    hashed: list[str] = []

    def hash_and_note(path: Path) -> bytes:
        hashed.append(path.name)
        return hash_file(path)

    monkeypatch.setattr(contents, "hash_file", hash_and_note)

    def read(device: int = 0) -> int:
        hashed.clear()
        digests = ContentDigests(root, tmp_path / "digests")
        digests._device += device
        for path in (*paths, *paths):
            assert digests.digest(path) == hash_file(root / path)
        digests.flush()
        return len(hashed)

    assert read() == 12, "files of this moment may change once more within a tick: always read"
    monkeypatch.setattr(contents, "RACY", 0.0)
    time.sleep(0.02)
    assert read(device=1) == 6, "a file on another file system: read by each process"
    assert read() == 6
    assert read() == 0
    (root / "a/0.bmp").touch()
    time.sleep(0.02)
    assert read() == 1
    (tmp_path / "digests").rename(tmp_path / "gone")
    assert read() == 6
    [stored] = (tmp_path / "digests").iterdir()
    stored.write_bytes(b"damaged" * 1000)
    assert read() == 6
    assert read() == 0
    moved = root.rename(tmp_path / "moved")
    assert ContentDigests(moved, tmp_path / "digests").digest(paths[0]) == hash_file(moved / paths[0])


def test_nearest_and_last_mount_names_the_file_system() -> None:
    mounts = [
        ("/", "rootfs"),
        ("/", "ext4"),
        ("/data", "nfs4"),
        ("/data/usb stick", "vfat"),
        ("/data/usb stick", "exfat"),
    ]
    for path, kind in (("/home", "ext4"), ("/data/a", "nfs4"), ("/database", "ext4"), ("/data/usb stick/a", "exfat")):
        assert find_file_system(Path(path), mounts) == kind
    assert find_file_system(Path("/home"), mounts[2:]) is None
    assert {"ext4", "nfs4", "overlay", "tmpfs"} <= contents._KEEPS_STATE
    assert not {"exfat", "vfat", "squashfs", "fuse.sshfs", "9p", "cifs"} & contents._KEEPS_STATE


def test_special_file_has_no_digest(tmp_path: Path) -> None:
    (tmp_path / "folder.png").mkdir()
    os.mkfifo(tmp_path / "pipe.png")
    digests = ContentDigests(tmp_path, tmp_path / "digests")
    for name in ("folder.png", "pipe.png", "gone.png"):
        assert make_key(digests, name) is None
