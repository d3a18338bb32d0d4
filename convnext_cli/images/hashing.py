"""Digests of the bytes of a data folder's files. What is cached of an image is known by them, and by nothing else.

Two equal-size files with one modification time, as unzip leaves them, differ in their bytes alone, so path, size and
modification time never decide. Reading the bytes takes time, so a digest is kept in the cache folder with the file's
state (inode, size, modification time, change time), and not computed again while that is the same. The change time
(ctime) is set by the kernel whenever the content, the times or the name change, and no program can set it back.
For 110,000 files of 40 kB (in memory, ext4, two cores) reading takes 6 to 10 s, asking for states and looking them up
1.0 to 1.2 s, and asking for size and modification time 0.8 to 0.9 s.

A state is not trusted, and the bytes are read again by each process, where
- the file system keeps no change time or no inode of its own (FAT, exFAT, SMB, FUSE, SquashFS, ISO 9660, 9P), or is not
  in `_KEEPS_STATE`, or the file lies on another one than its folder; and on Windows;
- the change time is less than `RACY` seconds old: the file may change once more within one tick of the clock.

A folder that is moved, copied or restored has new states or a new name: its bytes are read again, and the answer is
right.
"""

import hashlib
import os
import sqlite3
import stat
import threading
import time
from collections.abc import Sequence
from contextlib import closing, suppress
from functools import cache
from pathlib import Path

from convnext_cli.cache_folder import find_cache_folder

RACY = 2.0  # seconds; the coarsest clock of the file systems below (ext3) ticks every second
PENDING = 2000  # digests that are written at a time
PATIENCE = 10.0  # seconds to wait for another process's write
_KEEPS_STATE = frozenset(
    {"apfs", "bcachefs", "beegfs", "btrfs", "ceph", "ext2", "ext3", "ext4", "f2fs", "gpfs", "hfs", "jfs", "lustre"}
    | {"nfs", "nfs4", "overlay", "tmpfs", "ufs", "xfs", "zfs"}
)
_SCHEMA = "CREATE TABLE IF NOT EXISTS digests (path BLOB PRIMARY KEY, state TEXT, digest BLOB)"


class ContentDigests:
    """The digests of one data folder's files. Any thread may ask.

    Use `open_digests`, by which all of a process share what one of them has read.
    """

    def __init__(self, root: Path, folder: Path) -> None:
        self.root = root
        name = hashlib.blake2b(os.fsencode(root), digest_size=12).hexdigest()
        self.path = folder / f"{name}.sqlite"
        self._keeps_state, self._device = find_state_support(root)
        self._lock = threading.Lock()
        self._known = self._load()  # path -> (state, digest)
        self._waiting: dict[bytes, tuple[str, bytes]] = {}

    def digest(self, path: str) -> bytes | None:
        """Return the digest of a file's bytes, 16 bytes; None where it is no regular file that can be read.

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
            known = self._known.get(key)
            if known and known[0] == state and is_settled:
                return known[1]
            digest = hash_file(file)
        except OSError:
            return None
        if is_settled:
            self._known[key] = state, digest
            if self._keeps_state and status.st_dev == self._device:
                with self._lock:
                    self._waiting[key] = state, digest
                    is_due = len(self._waiting) >= PENDING
                if is_due:
                    self.flush()
        return digest

    def flush(self) -> None:
        """Write what is waiting. Where that is impossible, the next process reads the bytes again."""
        with self._lock:
            rows = [(path, *known) for path, known in self._waiting.items()]
            self._waiting = {}
        if rows:
            with suppress(OSError, sqlite3.Error):
                self._write(rows)

    def _load(self) -> dict[bytes, tuple[str, bytes]]:
        try:
            if not (self._keeps_state and self.path.exists()):
                return {}
            with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as connection:
                rows = connection.execute("SELECT path, state, digest FROM digests").fetchall()
            return {path: (state, digest) for path, state, digest in rows}
        except (OSError, sqlite3.Error, TypeError):  # damaged, or not ours to read: computed again
            return {}

    def _write(self, rows: list[tuple[bytes, str, bytes]]) -> None:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        for attempt in (1, 2):
            try:
                with closing(sqlite3.connect(self.path, timeout=PATIENCE)) as connection, connection:
                    connection.execute(_SCHEMA)
                    connection.executemany("INSERT OR REPLACE INTO digests VALUES (?, ?, ?)", rows)
                return
            except sqlite3.OperationalError:  # locked, full, read-only
                return
            except sqlite3.DatabaseError:  # damaged: made anew
                if attempt == 1:
                    self.path.unlink(missing_ok=True)


def open_digests(root: Path) -> ContentDigests:
    """Return the digests of a data folder's files, one object for each folder in a process."""
    return _open(root.resolve(), find_cache_folder() / "digests")


_open = cache(ContentDigests)


def make_key(digests: ContentDigests, path: str) -> bytes | None:
    """Return what a decoded image is cached by: its file's bytes and suffix, which choose the decoder."""
    digest = digests.digest(path)
    return None if digest is None else digest + os.fsencode(os.path.splitext(path)[1].lower())  # noqa: PTH122


def hash_file(path: Path) -> bytes:
    """Return a digest of a file's bytes, 16 bytes: BLAKE2b, which Python computes outside its lock."""
    digest = hashlib.blake2b(digest_size=16)
    with path.open("rb", buffering=0) as file:
        while part := file.read(1 << 20):
            digest.update(part)
    return digest.digest()


def find_state_support(root: Path) -> tuple[bool, int]:
    """Return whether the file system of a folder sets change time and inode itself, and the folder's device number."""
    import psutil

    try:
        device = root.stat().st_dev
        mounts = [] if os.name == "nt" else psutil.disk_partitions(all=True)
    except OSError:
        return False, 0
    return find_file_system(root, [(mount.mountpoint, mount.fstype) for mount in mounts]) in _KEEPS_STATE, device


def find_file_system(path: Path, mounts: Sequence[tuple[str, str]]) -> str | None:
    """Return the kind of file system that a path lies on; None where it lies on none of these.

    Args:
        path: absolute, without links.
        mounts: where each is mounted, and its kind; of several at one place the last is seen.
    """
    above = [(len(place), kind) for place, kind in mounts if path.is_relative_to(place)]
    return sorted(above, key=lambda mount: mount[0])[-1][1] if above else None
