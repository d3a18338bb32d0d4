"""Walk over a folder and list its images. Nothing is written."""

import os
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass, field

from convnext_cli.data.index import NOT_AN_IMAGE
from convnext_cli.images.formats import IMAGE_SUFFIXES, ImageFormat, has_image_suffix, identify_file

LINK = "not a regular file (a broken link, a pipe)"
CLOSED = "folder that cannot be read"
MAX_LINKS = 20  # times that links may lead into one folder; more would keep a walk going for ever
HIDDEN = "hidden or system file"

_NOT_DATA = frozenset({
    "__macosx", "thumbs.db", "desktop.ini", "$recycle.bin", "system volume information", "lost+found",
    "@eadir", "#recycle", "#snapshot", "@recycle", "@recently-snapshot",  # of Synology and QNAP storage
})  # fmt: skip
_KNOWN_SUFFIXES = frozenset({  # of files that are known not to be images without opening them
    ".txt", ".csv", ".tsv", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".md", ".html", ".htm", ".pdf",
    ".py", ".ipynb", ".log", ".zip", ".gz", ".tar", ".tgz", ".7z", ".rar", ".npy", ".npz", ".mat", ".pkl", ".h5",
    ".hdf5", ".pt", ".pth", ".onnx", ".xls", ".xlsx", ".ods", ".doc", ".docx", ".parquet", ".db", ".mp4", ".avi",
    ".mov",
})  # fmt: skip


@dataclass(slots=True)
class Folder:
    """A folder with the names of its images and other regular files, and its folders, all in the order of the disk."""

    path: str
    name: str
    folders: "list[Folder]" = field(default_factory=list)
    images: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)
    count: int = 0
    """Number of images in it and below."""

    @property
    def filled(self) -> "list[Folder]":
        """The folders that have images, sorted by name."""
        return sorted((folder for folder in self.folders if folder.count), key=lambda folder: folder.name)

    def walk(self) -> "Iterator[Folder]":
        """Yield this folder and all folders below, each before those inside it."""
        waiting = [self]
        while waiting:
            folder = waiting.pop()
            yield folder
            waiting.extend(folder.folders)

    def list_images(self) -> Iterator[str]:
        """Yield the path of each image in this folder and below."""
        for folder in self.walk():
            start = os.path.join(folder.path, "")  # noqa: PTH118  (strings throughout: a Path per file is slow)
            for name in folder.images:
                yield start + name

    def recount(self) -> None:
        """Update the counts after images were removed."""
        for folder in reversed(list(self.walk())):
            folder.count = len(folder.images) + sum(inner.count for inner in folder.folders)


def walk_folder(root: str, skipped: Counter[str]) -> Folder:
    """List the images below `root`. Files that are hidden, or no image by suffix or first bytes, count as `skipped`.

    A link to a folder above it is not entered, so that a loop of links ends. Unreadable folders and special files are
    counted too, and the first of each is named.

    Raises:
        OSError: `root` cannot be read.
    """
    top = Folder(root, os.path.basename(root.rstrip("/")))  # noqa: PTH119
    waiting: list[tuple[Folder, Folder | None, frozenset[tuple[int, int]]]] = [(top, None, frozenset())]
    entered: Counter[tuple[int, int]] = Counter()
    while waiting:
        folder, parent, above = waiting.pop()
        try:
            status = os.stat(folder.path)  # noqa: PTH116
            entries = os.scandir(folder.path)
        except OSError as error:
            if parent is None:
                raise
            _skip(skipped, f"{CLOSED} ({error.strerror})", folder.path)
            continue
        here = (status.st_dev, status.st_ino)
        entered[here] += 1
        with entries:
            if here in above or entered[here] > MAX_LINKS:
                continue
            if parent is not None:
                parent.folders.append(folder)
            inside = above | {here}
            for entry in entries:
                name = entry.name
                if name[name.rfind(".") :].lower() in IMAGE_SUFFIXES and name[0] != "." and is_file(entry):
                    folder.images.append(name)  # first, for there are many
                elif is_hidden(name):
                    skipped[HIDDEN] += 1
                elif is_folder(entry):
                    waiting.append((Folder(entry.path, name), folder, inside))
                elif has_image_suffix(name) or not is_file(entry):
                    _skip(skipped, LINK, entry.path)
                elif reason := _explain_other(entry):
                    skipped[reason] += 1
                    folder.others.append(name)
                else:
                    folder.images.append(name)
    top.recount()
    return top


def _skip(skipped: Counter[str], reason: str, path: str) -> None:
    """Count a skipped file, and name the first one for this reason."""
    key = next((text for text in skipped if text.startswith(reason)), f"{reason}, such as {path}")
    skipped[key] += 1


def is_hidden(name: str) -> bool:
    """Return True for files that every walk skips: hidden files, and those that systems and Excel leave in folders."""
    return name.startswith((".", "~$")) or name.lower() in _NOT_DATA


def _explain_other(entry: "os.DirEntry[str]") -> str:
    """Return the reason why a file without an image's suffix is no image; empty if its first bytes show an image."""
    if os.path.splitext(entry.name)[1].lower() in _KNOWN_SUFFIXES:  # noqa: PTH122
        return NOT_AN_IMAGE
    image_format = identify_file(entry.path)
    if image_format is None:
        return NOT_AN_IMAGE
    return "" if image_format.readable else explain_format(image_format)


def explain_format(image_format: ImageFormat) -> str:
    """Return the reason why images of a format are skipped."""
    return f"image in a format that cannot be read ({image_format.name})"


def is_folder(entry: "os.DirEntry[str]") -> bool:
    """Return True for a folder, or a link to one."""
    try:
        return entry.is_dir()
    except OSError:  # a link to itself
        return False


def is_file(entry: "os.DirEntry[str]") -> bool:
    """Return True for a regular file, or a link to one."""
    try:
        return entry.is_file()
    except OSError:
        return False
