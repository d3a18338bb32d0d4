"""Cache decoded images in the user's cache folder for later epochs and runs.

There is one SQLite file for each data folder and each kind of preparation. SQLite keeps a file intact under several
processes at once and under a kill. It uses a journal, not a write-ahead log: by measurement, images are then written
once instead of twice. Each set is one file, so that removing the file removes the set.

The key of an image is the content of its file (`hashing.py` has the rule and its cost), Pillow's version and the
version of the decoding rules. The cache never stops a run: images that cannot be read are decoded again, images that
cannot be written are not cached, and `failure` has the reason.
"""

import os
import sqlite3
import threading
import time
import weakref
import zlib
from collections.abc import Callable, Iterator
from contextlib import closing, contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path
from shutil import disk_usage

import numpy as np
import PIL
from PIL import Image

from convnext_cli.cache_folder import IMAGES, SPARED, find_cache_folder, name_entry
from convnext_cli.images.decode import RULES, decode_image
from convnext_cli.images.hashing import make_key, open_digests
from convnext_cli.images.preprocessing import Preprocessing, describe_size
from convnext_cli.images.raster import Pixels, is_grey
from convnext_cli.images.transforms import fit_image

LIMIT = "CONVNEXT_CACHE_GIB"  # environment variable: GiB that all cached images together may take
DEFAULT_LIMIT = 32.0  # GiB: 200,000 grey X-rays of 400 px, or 60,000 photos of 366 x 488
IN_USE = 900.0  # seconds after its last use in which a set is never removed
PENDING = 8 << 20  # bytes that are written at a time: a kill loses no more
WRITE_TIMEOUT = 10.0  # seconds to wait for another run's write
_PAGE = 16384  # bytes; an image then takes few pages
_SCHEMA = """
CREATE TABLE IF NOT EXISTS about (root TEXT, purpose TEXT);
CREATE TABLE IF NOT EXISTS pictures (
    content BLOB PRIMARY KEY, height INTEGER, width INTEGER, crc INTEGER, pixels BLOB
);
"""


@dataclass(frozen=True, kw_only=True, slots=True)
class CachedSet:
    """The cached images of one data folder, prepared in one way."""

    path: Path
    root: str
    purpose: str
    images: int
    size: int
    """Bytes on disk."""
    used: float
    """Time of the last use, in seconds since the epoch."""


class ImageCache:
    """Prepared images of a data folder, each prepared once.

    Args:
        root: the data folder.
        purpose: description of `make`; different preparations need different descriptions.
        make: prepares the image at a path, (H, W, 3) uint8.
        keep: False prepares every image again and uses no cache.
    """

    def __init__(self, root: Path, purpose: str, make: Callable[[Path], Pixels], *, keep: bool = True) -> None:
        self.root, self.make = root, make
        self.store = _Store(root, purpose) if keep else None
        if self.store is not None:
            self.digests = open_digests(root)
            weakref.finalize(self, self.store.close)
            weakref.finalize(self, self.digests.flush)

    @property
    def failure(self) -> str | None:
        """The reason why no more images are cached; None if there is none."""
        return self.store.failure if self.store is not None else None

    def read(self, path: str) -> Pixels:
        """Return the prepared image, (H, W, 3) uint8, from the cache if it is there. Thread-safe.

        Raises:
            ImageError: as `make` does.
        """
        file = self.root / path
        if self.store is None or not self.store.is_open:
            return self.make(file)
        content = make_key(self.digests, path)
        if content is None:
            return self.make(file)  # raises the error that names the cause
        pixels = self.store.find(content)
        if pixels is None:
            pixels = self.make(file)
            if make_key(self.digests, path) == content:  # unless the file was changed meanwhile
                self.store.add(content, pixels)
        return pixels

    def flush(self) -> None:
        """Write the images that wait to be cached."""
        if self.store is not None:
            self.store.flush()
            self.digests.flush()


def open_for_eval(root: Path, preprocessing: Preprocessing, *, cache: bool) -> ImageCache:
    """Return the cache of a data folder's images preprocessed for evaluation, without padding: (h, w, 3) uint8."""
    crop = f"{preprocessing.crop_mode} crop of {preprocessing.crop_pct}"
    return ImageCache(
        root,
        f"evaluation at {describe_size(preprocessing)} px, {crop}, {preprocessing.interpolation}",
        lambda path: fit_image(decode_image(path), preprocessing),
        keep=cache,
    )


class _Store:
    """The SQLite file of one set."""

    def __init__(self, root: Path, purpose: str) -> None:
        self.identity = (
            str(root.resolve()),
            f"{purpose}; by content, rules {RULES} and Pillow {PIL.__version__}",
        )
        name = name_entry(os.fsencode("\0".join(self.identity)))
        self.path = _folder() / f"{name}.sqlite"
        self.failure: str | None = None
        self._lock = threading.RLock()
        self._connection: sqlite3.Connection | None = None
        self._waiting: dict[bytes, tuple[object, ...]] = {}
        self._bytes = 0
        self._touched = 0.0
        with self._guarded():
            self._open()

    @property
    def is_open(self) -> bool:
        """True if there is a file to read from."""
        return self._connection is not None

    def find(self, content: bytes) -> Pixels | None:
        """Return the cached image of a file with this content; None if there is none, or it is damaged."""
        row = None
        with self._guarded():
            self._touch()
            if self._connection is not None:
                query = "SELECT height, width, crc, pixels FROM pictures WHERE content = ?"
                row = self._connection.execute(query, (content,)).fetchone()
        if row is None:
            return None
        height, width, crc, pixels = row
        if not isinstance(pixels, bytes) or _sum(height, width, pixels) != crc:
            return None
        flat = np.frombuffer(pixels, np.uint8)
        if len(flat) == height * width:
            return np.asarray(Image.fromarray(flat.reshape(height, width)).convert("RGB"))
        return flat.reshape(height, width, 3)

    def add(self, content: bytes, image: Pixels) -> None:
        """Cache an image; a grey one takes a third of the space."""
        if self.failure:
            return
        height, width, _ = image.shape
        pixels = np.ascontiguousarray(image[..., 0] if is_grey(image) else image).tobytes()
        with self._lock:
            self._waiting[content] = (content, height, width, _sum(height, width, pixels), pixels)
            self._bytes += len(pixels)
            if self._bytes >= PENDING:
                self.flush()

    def flush(self) -> None:
        """Write the waiting images in one transaction."""
        with self._guarded():
            rows, self._waiting, self._bytes = list(self._waiting.values()), {}, 0
            if not rows or self._connection is None or self.failure:
                return
            self.failure = self._make_room()
            if self.failure:
                return
            with self._connection as connection:
                connection.executemany("INSERT OR REPLACE INTO pictures VALUES (?, ?, ?, ?, ?)", rows)

    def close(self) -> None:
        """Write the waiting images and close the file."""
        self.flush()
        self._close()

    def _open(self) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        connection = sqlite3.connect(self.path, timeout=WRITE_TIMEOUT, check_same_thread=False)
        self._connection = connection
        connection.execute(f"PRAGMA page_size = {_PAGE}")
        connection.execute("PRAGMA synchronous = OFF")  # safe under a kill; checksums detect other damage
        connection.executescript(_SCHEMA)
        with connection:
            connection.execute("INSERT INTO about SELECT ?, ? WHERE NOT EXISTS (SELECT * FROM about)", self.identity)

    def _close(self) -> None:
        if self._connection is not None:
            with suppress(sqlite3.Error):
                self._connection.close()
        self._connection = None

    @contextmanager
    def _guarded(self) -> Iterator[None]:
        """Let one thread in at a time, and turn errors into `failure`."""
        with self._lock:
            try:
                yield
            except (OSError, sqlite3.OperationalError) as error:  # full, read-only, locked for long, removed
                self.failure = f"decoded images are not cached in {self.path.parent}: {error}"
                self._close()  # or each image would wait for a lock again
            except sqlite3.Error:  # damaged, or not a database: created again
                self._close()
                try:
                    self.path.unlink(missing_ok=True)
                    self._open()
                except (OSError, sqlite3.Error) as again:
                    self.failure = f"decoded images are not cached in {self.path.parent}: {again}"

    def _touch(self) -> None:
        """Update the time of last use, at intervals."""
        if time.monotonic() - self._touched > IN_USE / 3:
            self._touched = time.monotonic()
            with suppress(OSError):
                os.utime(self.path)

    def _make_room(self) -> str | None:
        """Remove sets that are not in use until this one may grow; return the reason if it may not."""
        unused = sorted((path for path in _files() if time.time() - _used(path) > IN_USE), key=_used, reverse=True)
        while True:
            disk = disk_usage(self.path.parent)
            is_disk_full = disk.free <= SPARED * disk.total
            if not is_disk_full and sum(map(_size, _files())) + PENDING < _limit():
                return None
            if not unused:
                break
            unused.pop().unlink(missing_ok=True)
        effect = "later images are decoded each time"
        if is_disk_full:
            return (
                f"the disk of the cache in {self.path.parent} is full (it leaves {SPARED:.0%} free): {effect}. "
                "$CONVNEXT_CACHE sets another folder"
            )
        return (
            f"the cache in {self.path.parent} is full ({_limit() / 2**30:g} GiB): {effect}. "
            f"`convnext cache` shows its content, ${LIMIT} sets its size"
        )


def list_cached_sets() -> list[CachedSet]:
    """Return all sets, the last used first. The purpose of an unreadable one is `damaged`."""
    sets = []
    for path in sorted(_files(), key=_used, reverse=True):
        try:
            address = f"{path.absolute().as_uri()}?mode=rw"
            with closing(sqlite3.connect(address, uri=True, timeout=WRITE_TIMEOUT)) as connection:
                root, purpose = connection.execute("SELECT root, purpose FROM about").fetchone()
                [images] = connection.execute("SELECT count(*) FROM pictures").fetchone()
        except (sqlite3.Error, TypeError):
            root, purpose, images = "?", "damaged", 0
        sets.append(CachedSet(path=path, root=root, purpose=purpose, images=images, size=_size(path), used=_used(path)))
    return sets


def _sum(height: int, width: int, pixels: bytes) -> int:
    return zlib.crc32(pixels, zlib.crc32(f"{height} {width}".encode()))


def _folder() -> Path:
    return find_cache_folder() / IMAGES


def _files() -> list[Path]:
    return list(_folder().glob("*.sqlite"))


def _limit() -> float:
    """Return the limit of the cache in bytes."""
    try:
        return float(os.environ[LIMIT]) * 2**30
    except (KeyError, ValueError):
        return DEFAULT_LIMIT * 2**30


def _size(path: Path) -> int:
    try:
        return path.stat().st_size
    except OSError:
        return 0


def _used(path: Path) -> float:
    try:
        return path.stat().st_mtime
    except OSError:
        return 0.0
