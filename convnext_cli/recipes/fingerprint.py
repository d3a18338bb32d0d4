"""The fingerprint of a data set: counts from its index, sizes and colours from a sample of its files."""

import math
from dataclasses import dataclass, field
from pathlib import Path, PurePosixPath
from statistics import median_high

from convnext_cli.data.index import Index
from convnext_cli.data.unseen import Shape
from convnext_cli.errors import ImageError
from convnext_cli.images.formats import DICOM_SUFFIXES, identify_file, open_regular_file
from convnext_cli.recipes.settings import default_settings
from convnext_cli.text import format_count

SAMPLE = 200  # images whose headers are read
MEDICAL_SIDE = 96  # px; smallest shorter side of grey images that may be X-rays, as digits and icons are smaller
COLOUR_SAMPLE = 40  # of the sample, decoded to detect colour


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """Counts, sizes and colours of a data set."""

    images: int
    classes: int
    task: str = "single"
    groups: int
    """Number of groups (patients or other sources shared by images); 0 if unknown."""
    smallest_class: tuple[str, int]
    largest_class: tuple[str, int]
    sampled: int
    """Number of sampled images, for the following fields."""
    median_size: tuple[int, int]
    """Width and height in pixels; (0, 0) if no sampled image could be read."""
    is_grey: bool
    """True if no sampled image has colour."""
    unreadable: int
    """Sampled images that could not be opened."""
    dicom: int = 0
    """Sampled DICOM files."""
    shapes: tuple[Shape, ...] = field(default=(), repr=False)
    """Class, width and height of the sampled images."""

    @property
    def median_side(self) -> int:
        """The shorter side of the median size in pixels; 0 if unknown."""
        return min(self.median_size)

    @property
    def mean_side(self) -> int:
        """Side of the square with the area of the median size in pixels; 0 if unknown."""
        return math.isqrt(self.median_size[0] * self.median_size[1])

    @property
    def imbalance(self) -> float:
        """Ratio of the largest to the smallest class."""
        return self.largest_class[1] / max(1, self.smallest_class[1])


@dataclass(frozen=True, kw_only=True, slots=True)
class DataCounts:
    """The numbers of images that decide on a fine-tuning's settings and duration."""

    images: int
    """All images, test split included."""
    train: int
    val: int
    pixels: int = 0
    """Median pixels of an image file; 0 if unknown."""

    @classmethod
    def from_index(cls, index: Index, fingerprint: Fingerprint | None) -> "DataCounts":
        """Return the counts of a data set with a split."""
        width, height = fingerprint.median_size if fingerprint else (0, 0)
        return cls(images=len(index), train=len(index.rows("train")), val=len(index.rows("val")), pixels=width * height)

    @classmethod
    def from_total(cls, images: int) -> "DataCounts":
        """Return the counts after the default split of `images` images."""
        defaults = default_settings()
        val, test = (round(images * defaults[f"{split}_fraction"]) for split in ("val", "test"))
        return cls(images=images, train=max(1, images - val - test), val=val)


def compute_fingerprint(index: Index) -> Fingerprint:
    """Return a data set's fingerprint. The sample is spread evenly over the sorted paths, so it is reproducible."""
    counts = sorted(zip(index.count_classes(), index.classes, strict=True))
    rows = range(0, len(index), max(1, -(-len(index) // SAMPLE)))
    grey, shapes = [], list[Shape]()
    for at, row in enumerate(rows):
        if size := _read_size(index, row, detect_colour=at % (-(-len(rows) // COLOUR_SAMPLE)) == 0):
            width, height, is_grey = size
            grey.append(is_grey)
            shapes.append((index.name_class(row), width, height))
    widths, heights = [width for _, width, _ in shapes], [height for _, _, height in shapes]
    return Fingerprint(
        images=len(index),
        classes=len(index.classes),
        task=index.task.name,
        groups=len(set(index.groups)),
        smallest_class=(counts[0][1], counts[0][0]),
        largest_class=(counts[-1][1], counts[-1][0]),
        sampled=len(rows),
        median_size=(median_high(widths), median_high(heights)) if shapes else (0, 0),
        is_grey=bool(grey) and all(grey),
        unreadable=len(rows) - len(shapes),
        dicom=sum(PurePosixPath(index.paths[row]).suffix.lower() in DICOM_SUFFIXES for row in rows),
        shapes=tuple(shapes),
    )


def guess_domain(fingerprint: Fingerprint) -> str | None:
    """Guess the domain: `medical` for DICOM files and for grey images of the size of X-rays, else None."""
    is_like_xrays = fingerprint.is_grey and fingerprint.median_side >= MEDICAL_SIDE
    return "medical" if fingerprint.dicom > fingerprint.sampled / 2 or is_like_xrays else None


def explain_domain(fingerprint: Fingerprint, remedy: str) -> str:
    """Return a note that the images are treated as medical ones, with the reason and the remedy."""
    reason = "the images are DICOM" if fingerprint.dicom else "the images are grey, as X-rays are"
    return f"{reason}: the medical augmentation preset is used (no flips, small rotations). {remedy}"


def describe_fingerprint(fingerprint: Fingerprint) -> list[str]:
    """Return notes on unreadable images, class imbalance, groups and grey images."""
    from convnext_cli.tasks.registry import TASKS

    sentences = []
    if fingerprint.unreadable:
        sampled = format_count(fingerprint.sampled, "sampled image")
        sentences.append(f"{fingerprint.unreadable} of {sampled} cannot be opened")
    if fingerprint.imbalance >= 5:
        (rare, few), (common, many) = fingerprint.smallest_class, fingerprint.largest_class
        advice = TASKS[fingerprint.task].advise_imbalance(rare)
        sentences.append(f"most images are of {common} ({many:,}), fewest of {rare} ({few:,}): {advice}")
    if fingerprint.groups:
        groups = format_count(fingerprint.groups, "group (patient?)", "groups (patients?)")
        sentences.append(f"{groups}: a random split keeps each together; `convnext check` shows their source")
    if fingerprint.is_grey:
        sentences.append("the images are grey: the model gets them as RGB with three equal channels")
    return sentences


def _read_size(index: Index, row: int, *, detect_colour: bool) -> tuple[int, int, bool] | None:
    """Return width, height, and whether the image is grey (True if not checked); None if it cannot be read."""
    import numpy as np
    from PIL import Image

    from convnext_cli.images.decode import decode_image
    from convnext_cli.images.pillow import open_with_pillow

    path = index.root / index.paths[row]
    try:
        with open_regular_file(path) as file, open_with_pillow(file, path) as image:
            width, height, mode = *image.size, image.mode
        if not detect_colour or mode in ("1", "L", "LA", "I", "F", "I;16"):
            return width, height, True
    except Exception:  # DICOM, a TIFF that Pillow does not read, or a parser's error for a damaged file
        kind = identify_file(path)
        width, height = _read_dicom_size(path) if kind is not None and kind.name == "DICOM" else (0, 0)
        if width and height and not detect_colour:
            return width, height, True
    try:
        pixels = decode_image(path, at_least=64)
    except ImageError:
        return None
    if not width:
        height, width = pixels.shape[:2]
    small = np.asarray(Image.fromarray(pixels).resize((32, 32)), dtype=np.int16)
    is_grey = int(abs(small - small[..., :1]).max()) <= 8  # JPEG compression changes grey slightly
    return width, height, is_grey


def _read_dicom_size(path: Path) -> tuple[int, int]:
    """Return width and height from a DICOM header; (0, 0) if they cannot be read."""
    from convnext_cli.images.dicom import read_tag

    try:
        return int(read_tag(path, "Columns") or 0), int(read_tag(path, "Rows") or 0)
    except (ImageError, ValueError):
        return 0, 0
