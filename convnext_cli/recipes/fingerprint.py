"""What a data set is like: counts from its index, sizes and colours from a bounded sample of its files."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from convnext_cli.data.index import Index
from convnext_cli.errors import ImageError
from convnext_cli.images.formats import DICOM_SUFFIXES
from convnext_cli.recipes.settings import default_settings

SAMPLE = 200  # images whose headers are read
MEDICAL_SIDE = 96  # px of the shorter side, from which on grey images may be X-rays; digits and icons are smaller
COLOUR_SAMPLE = 40  # of them decoded, small, to see whether there is any colour


@dataclass(frozen=True, kw_only=True, slots=True)
class Fingerprint:
    """A data set in a few numbers."""

    images: int
    classes: int
    groups: int
    """Patients or other sources that images share; 0 where none are known."""
    smallest_class: tuple[str, int]
    largest_class: tuple[str, int]
    sampled: int
    """Images that the next two figures are from."""
    median_size: tuple[int, int]
    """Width and height in pixels; (0, 0) where none of the sample could be read."""
    is_grey: bool
    """Whether no sampled image has any colour."""
    unreadable: int
    """Images of the sample that could not be opened."""
    dicom: int = 0
    """DICOM files of the sample."""

    @property
    def median_side(self) -> int:
        """The shorter side of the median size in pixels; 0 where none could be read."""
        return min(self.median_size)

    @property
    def imbalance(self) -> float:
        """Images of the largest class for one of the smallest."""
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
    """Takes a data set's fingerprint. The sample is spread evenly over the sorted paths, so it repeats."""
    counts = sorted(zip(index.count_classes(), index.classes, strict=True))
    rows = range(0, len(index), max(1, -(-len(index) // SAMPLE)))
    widths, heights, grey, failed = [], [], [], 0
    for at, row in enumerate(rows):
        if is_dicom(index.paths[row]):
            grey.append(True)
            continue
        found = _look(index, row, look_for_colour=at % (-(-len(rows) // COLOUR_SAMPLE)) == 0)
        if found is None:
            failed += 1
            continue
        width, height, is_grey = found
        widths.append(width)
        heights.append(height)
        grey.append(is_grey)
    return Fingerprint(
        images=len(index),
        classes=len(index.classes),
        groups=len(set(index.groups)),
        smallest_class=(counts[0][1], counts[0][0]),
        largest_class=(counts[-1][1], counts[-1][0]),
        sampled=len(rows),
        median_size=(_median(widths), _median(heights)),
        is_grey=bool(grey) and all(grey),
        unreadable=failed,
        dicom=sum(is_dicom(index.paths[row]) for row in rows),
    )


def guess_domain(found: Fingerprint) -> str | None:
    """Guess the domain: `medical` for DICOM, and for grey images as large as X-rays are; None for all else."""
    is_like_xrays = found.is_grey and found.median_side >= MEDICAL_SIDE
    return "medical" if found.dicom > found.sampled / 2 or is_like_xrays else None


def explain_domain(found: Fingerprint, overrule: str) -> str:
    """Say why the images are taken for medical ones, and how to overrule it."""
    why = "the images are DICOM" if found.dicom else "the images are grey, as X-rays are"
    return f"{why}: training images vary as medical ones should (no flips, small turns). {overrule}"


def describe_fingerprint(found: Fingerprint) -> list[str]:
    """What follows from a fingerprint, a sentence each."""
    sentences = []
    if found.unreadable:
        sentences.append(f"{found.unreadable} of {found.sampled} sampled images cannot be opened")
    if found.imbalance >= 5:
        (rare, few), (common, many) = found.smallest_class, found.largest_class
        sentences.append(
            f"{common} has {many:,} images, {rare} {few:,}: judge by balanced accuracy and the recall of {rare}, "
            "not by top-1; --sampler balanced draws it more often"
        )
    if found.groups:
        sentences.append(
            f"{found.groups:,} groups (patients?) by their names: a drawn split keeps each together; `convnext check` "
            "shows what they are taken from"
        )
    if found.is_grey:
        sentences.append("the images are grey: they are shown to the model as RGB with three equal channels")
    return sentences


def _look(index: Index, row: int, *, look_for_colour: bool) -> tuple[int, int, bool] | None:
    """Return width, height, and True where it is grey (as far as it was looked at); None where it cannot be read."""
    import numpy as np
    from PIL import Image

    from convnext_cli.images.decode import decode_image, open_with_pillow
    from convnext_cli.images.formats import identify_file, open_regular_file

    path = index.root / index.paths[row]
    try:
        with open_regular_file(path) as file, open_with_pillow(file, path) as image:
            width, height, mode = *image.size, image.mode
        if not look_for_colour or mode in ("1", "L", "LA", "I", "F", "I;16"):
            return width, height, True
    except Exception:  # DICOM, a TIFF that Pillow does not know, or what parsers raise for a damaged file
        kind = identify_file(path)
        width, height = _read_dicom_size(path) if kind is not None and kind.name == "DICOM" else (0, 0)
        if width and height and not look_for_colour:
            return width, height, True
    try:
        pixels = decode_image(path, at_least=64)
    except ImageError:
        return None
    if not width:
        height, width = pixels.shape[:2]
    small = np.asarray(Image.fromarray(pixels).resize((32, 32)), dtype=np.int16)
    is_grey = int(abs(small - small[..., :1]).max()) <= 8  # JPEG leaves a little difference in what was grey
    return width, height, is_grey


def _read_dicom_size(path: Path) -> tuple[int, int]:
    """Return width and height from a DICOM header; (0, 0) where they cannot be read."""
    from convnext_cli.images.dicom import read_tag

    try:
        return int(read_tag(path, "Columns") or 0), int(read_tag(path, "Rows") or 0)
    except (ImageError, ValueError):
        return 0, 0


def is_dicom(path: str) -> bool:
    """Return whether a file is DICOM by its suffix."""
    return PurePosixPath(path).suffix.lower() in DICOM_SUFFIXES


def _median(values: Sequence[int]) -> int:
    return sorted(values)[len(values) // 2] if values else 0
