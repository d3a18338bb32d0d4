"""Digests of the bytes of a data folder's files, the keys of everything that is cached of an image.

Two files of equal size and modification time, as unzip leaves them, may differ in their bytes only. So path, size and
modification time are never the key. Reading the bytes takes time, so each digest is kept in the cache folder with the
file's state (inode, size, modification time, change time) and reused while the state is the same. The kernel sets the
change time (ctime) whenever the content, the times or the name change, and no program can set it back. For 110,000
files of 40 kB (in memory, ext4, two cores), reading takes 6 to 10 s, looking up states 1.0 to 1.2 s, and reading size
and modification time 0.8 to 0.9 s.

A state is not trusted, and each process reads the bytes again, in these cases:

- The file system has no change time or inode of its own (FAT, exFAT, SMB, FUSE, SquashFS, ISO 9660, 9P), or is not in
  `_KEEPS_STATE`, or the file is on another file system than its folder.
- The change time is less than `RACY` seconds old: the file may change once more within one tick of the clock.

A folder that is moved, copied or restored has new states or a new name, so its bytes are read again.
"""

import hashlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import cache, partial
from pathlib import Path

from convnext_cli.cache_folder import DIGESTS, find_cache_folder, name_entry

RACY = 2.0  # seconds; the coarsest clock of the file systems below (ext3) ticks every second
PENDING = 2000  # digests to write at a time
WRITE_TIMEOUT = 10.0  # seconds to wait for another process's write
_KEEPS_STATE = frozenset(
    {"apfs", "bcachefs", "beegfs", "btrfs", "ceph", "ext2", "ext3", "ext4", "f2fs", "gpfs", "hfs", "jfs", "lustre"}
    | {"nfs", "nfs4", "overlay", "tmpfs", "ufs", "xfs", "zfs"}
)
_SCHEMA = "CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, state TEXT, digest BLOB)"


class ContentDigests:
    """The digests of one data folder's files. Thread-safe.

    Use `open_digests` to share the digests within a process.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        self.path = folder / f"{name_entry(os.fsencode(root))}.sqlite"
        self._keeps_state, self._device = find_state_support(root)
        self._lock = threading.Lock()
        self._stored = self._load()  # path -> (state, digest)
        self._waiting: dict[bytes, tuple[str, bytes]] = {}

    def digest(self, path: str) -> bytes | None:
        """Return the digest of a file's bytes, 16 bytes; None if it is not a readable regular file.

        Args:
            path: relative to the folder.
        """
        file, key = self.root / path, os.fsencode(path)
        try:
            status = file.stat()
            if not stat.S_ISREG(status.st_mode):
                return None
            state = f"{status.st_ino} {status.st_size} {status.st_mtime_ns} {status.st_ctime_ns}"
            is_settled = time.time() - status.st_ctime > RACY
            stored = self._stored.get(key)
            if stored and stored[0] == state and is_settled:
                return stored[1]
            digest = hash_file(file)
        except OSError:
            return None
        if is_settled:
            self._stored[key] = state, digest
            if self._keeps_state and status.st_dev == self._device:
                with self._lock:
                    self._waiting[key] = state, digest
                    is_due = len(self._waiting) >= PENDING
                if is_due:
                    self.flush()
        return digest

    def flush(self) -> None:
        """Write the waiting digests. If that fails, the next process reads the bytes again."""
        with self._lock:
            rows = [(path, *stored) for path, stored in self._waiting.items()]
            self._waiting = {}
        if rows:
            with suppress(OSError, sqlite3.Error):
                self._write(rows)

    def _load(self) -> dict[bytes, tuple[str, bytes]]:
        try:
            if not (self._keeps_state and self.path.exists()):
                return {}
            with closing(sqlite3.connect(self.path, timeout=WRITE_TIMEOUT)) as connection:
                rows = connection.execute("SELECT path, state, digest FROM digests").fetchall()
            return {path: (state, digest) for path, state, digest in rows}
        except (OSError, sqlite3.Error, TypeError):  # damaged or not readable: computed again
            return {}

    def _write(self, rows: list[tuple[bytes, str, bytes]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in (1, 2):
            try:
                with closing(sqlite3.connect(self.path, timeout=WRITE_TIMEOUT)) as connection, connection:
                    connection.execute(_SCHEMA)
                    connection.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
                return
            except sqlite3.OperationalError:  # locked, full, read-only
                return
            except sqlite3.DatabaseError:  # damaged: created again
                if attempt == 1:
                    self.path.unlink(missing_ok=True)


def open_digests(root: Path) -> ContentDigests:
    """Return the digests of a data folder's files, one object for each folder in a process."""
    return _open(root.resolve(), find_cache_folder() / DIGESTS)


_open = cache(ContentDigests)


def make_key(digests: ContentDigests, path: str) -> bytes | None:
    """Return the cache key of a decoded image, its file's digest and suffix; None if the file cannot be read."""
    digest = digests.digest(path)
    return None if digest is None else digest + os.fsencode(os.path.splitext(path)[1].lower())  # noqa: PTH122


def hash_file(path: Path) -> bytes:
    """Return a digest of a file's bytes, 16 bytes. BLAKE2b, because Python computes it without the GIL."""
    with path.open("rb", buffering=0) as file:
        return hashlib.file_digest(file, partial(hashlib.blake2b, digest_size=16)).digest()


def find_state_support(root: Path) -> tuple[bool, int]:
    """Return True if the file system of a folder sets change time and inode, and the folder's device number."""
    import psutil

    try:
        device = root.stat().st_dev
        mounts = psutil.disk_partitions(all=True)
    except OSError:
        return False, 0
    return find_file_system(root, [(mount.mountpoint, mount.fstype) for mount in mounts]) in _KEEPS_STATE, device


def find_file_system(path: Path, mounts: Sequence[tuple[str, str]]) -> str | None:
    """Return the type of the file system of a path; None if it is on none of these.

    Args:
        path: absolute, without links.
        mounts: the mount point and type of each file system; of several at one point, the last counts.
    """
    above = [(len(place), kind) for place, kind in mounts if path.is_relative_to(place)]
    return sorted(above, key=lambda mount: mount[0])[-1][1] if above else None
