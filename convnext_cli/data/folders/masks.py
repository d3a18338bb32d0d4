"""Segmentation masks beside their images: `images/` and `masks/` in one folder, `x.png` and `x_mask.png`."""

import os
import re
from collections import Counter
from collections.abc import Iterator, Sequence

from convnext_cli.data.folders.splits import AmbiguousLayoutError
from convnext_cli.data.folders.words import IMAGE_WORDS, PLAIN_IMAGE_WORDS, list_words
from convnext_cli.data.tree import Folder
from convnext_cli.encoding import compose_name, decode_name
from convnext_cli.text import Advice, format_count, format_part

MASK_WORDS = frozenset((
    "mask", "masks", "segmentation", "segmentations", "segmented", "annotation", "annotations", "label", "labels",
    "gt", "groundtruth", "truth", "contour", "contours", "trimap", "trimaps", "overlay", "overlays", "superpixels",
    "maske", "masken", "masque", "masques", "máscara", "máscaras", "maschera", "maschere", "маска", "маски", "掩膜",
    "マスク", "마스크",
))  # fmt: skip
CERTAIN_MASK = re.compile(r"segmentations?|annotations?|ground ?truth|trimaps?|superpixels")
"""Names that no class has beside other classes; `mask`, `label` and `gt` may be classes."""
NEGATIONS = frozenset(("no", "not", "non", "with", "without", "un"))
_FILE_WORDS = MASK_WORDS | {"seg"}
_SHORTEST = [word for word in _FILE_WORDS if not any(other != word and other in word for other in _FILE_WORDS)]
_MASK_SUFFIX = re.compile(rf"(?:[ _.\-]|(?<=\)))(?:{'|'.join(sorted(_FILE_WORDS))})(?:[ _\-]?\d+)?$", re.IGNORECASE)
_MASK_PREFIX = re.compile(r"(?:mask|segmentation|seg|gt)([ _.\-])", re.IGNORECASE)
MIN_PAIRED = 0.9  # fraction of a folder's masks that must have an image of the same name
MIN_MASKS = 3
MASK_FRACTION = 0.1
"""Smallest fraction of a folder's images that are masks by name; with fewer, the names may be chance."""


def has_mask_words(words: set[str]) -> bool:
    """Return True if the words of a name mean masks: `masks`, not `without_mask`."""
    return bool(words & MASK_WORDS) and not words & NEGATIONS


def drop_masks(tree: Folder) -> tuple[Counter[str], list[str]]:
    """Remove masks that lie beside their images; return the number removed by reason, and notes.

    Raises:
        AmbiguousLayoutError: a folder looks like masks, and only some of its files have an image of the same name.
    """
    skipped: Counter[str] = Counter()
    notes: list[str] = []
    of_folder = [(folder, _drop_mask_folders(folder)) for folder in list(tree.walk())]
    if by_folder := sum(masks for _, masks in of_folder):
        skipped["mask of an image, by its folder"] = by_folder
    by_name = undecided = 0
    twins: list[tuple[str, str]] = []
    example = ""
    for folder in tree.walk():
        twins += _find_twins(folder.images)
        masks = _find_mask_files(folder.images)
        if not masks:
            continue
        example = example or min(masks)
        if len(masks) >= MIN_MASKS and len(masks) >= MASK_FRACTION * len(folder.images):
            folder.images = [name for name in folder.images if name not in masks]
            of_folder.append((folder, len(masks)))
            by_name += len(masks)
        else:
            undecided += len(masks)
    if by_name:
        skipped[f"mask of an image, by its name (as {decode_name(example)})"] = by_name
    if undecided:
        named = f"(as {decode_name(example)}) and"
        number = format_count(
            undecided,
            f"image is named like a mask of another {named} is",
            f"images are named like masks of others {named} are",
        )
        notes.append(Advice(f"{number} kept", "; --exclude '*_mask.*' leaves such files out"))
    parts = [(masked, len(folder.images)) for folder, masked in of_folder if masked]
    if len(parts) > 1 and all(masked < images for masked, images in parts):
        masked, images = map(sum, zip(*parts, strict=True))
        notes.append(
            f"{masked:,} of {format_count(images, 'image')} had a mask, and some in each folder had none: if masks "
            "mark what is to be recognised, such as defects, the folders are not the classes: give a CSV file with "
            "path and label"
        )
    if len(twins) >= max(MIN_MASKS, MASK_FRACTION * tree.count):
        one, other = map(decode_name, min(twins))
        fact = f"{len(twins):,} pairs of images differ in the suffix alone (as {one} and {other})"
        remedy = f"--exclude '*.{other.rpartition('.')[2]}' leaves it out"
        notes.append(Advice(fact, f"; if one of each is a mask or a copy, {remedy}"))
    if skipped:
        tree.recount()
    return skipped, notes


def _find_mask_files(images: Sequence[str]) -> set[str]:
    """Return the images whose name is that of another image in the folder, plus a word for a mask."""
    folded = compose_name("\n".join(images)).casefold()
    if not any(word in folded for word in _SHORTEST):  # quick, for a folder can have many files
        return set()
    stems = {name.rpartition(".")[0]: name for name in images}
    masks = {
        name for stem, name in stems.items() if (match := _MASK_SUFFIX.search(stem)) and stem[: match.start()] in stems
    }
    for stem, name in stems.items():
        if match := _MASK_PREFIX.match(stem):
            rest = stem[match.end() :]
            if rest in stems or any(f"{word}{match[1]}{rest}" in stems for word in ("image", "img")):
                masks.add(name)
    return masks


def _find_twins(images: Sequence[str]) -> list[tuple[str, str]]:
    """Return the pairs of images in a folder that differ in the suffix alone: a mask, or a copy."""
    if len({name.rpartition(".")[0] for name in images}) == len(images):
        return []
    first: dict[str, str] = {}
    pairs = ((first.setdefault(name.rpartition(".")[0], name), name) for name in sorted(images))
    return [(one, other) for one, other in pairs if one != other and "." in one]


def _drop_mask_folders(parent: Folder) -> int:
    """Remove the folders of masks from `parent`; return the number of masks in them."""
    masks, images = _find_mask_folders(parent)
    if not masks:
        return 0
    sources = [(folder.name, set(list_stems(folder))) for folder in images]
    if parent.images and not images and len(parent.filled) == len(masks):
        sources.append((parent.name, {os.path.splitext(name)[0].casefold() for name in parent.images}))  # noqa: PTH122
    others = {os.path.basename(stem) for folder in parent.filled if folder not in masks for stem in list_stems(folder)}  # noqa: PTH119
    dropped = 0
    for folder in masks:
        stems = [_MASK_SUFFIX.sub("", stem) for stem in list_stems(folder)]
        counts = [(sum(stem in names for stem in stems), source) for source, names in sources]
        paired, name = max(counts, default=(0, ""))
        most = paired
        if CERTAIN_MASK.search(" ".join(list_words(folder.name))):  # such as `segmentations/` beside the classes
            most = max(paired, sum(os.path.basename(stem) in others for stem in stems))  # noqa: PTH119
        if most >= MIN_PAIRED * len(stems):
            parent.folders.remove(folder)
            dropped += folder.count
        elif images and paired:
            number = format_part(paired, len(stems), "image", "has", "have")
            raise AmbiguousLayoutError(
                f"{folder.path} looks like masks, but only {number} the name of an image in {decode_name(name)!r}",
                f"Leave the masks out with --exclude {folder.name}, or give a CSV file with path and label",
            )
    return dropped


def _find_mask_folders(parent: Folder) -> tuple[list[Folder], list[Folder]]:
    named = [(folder, set(list_words(folder.name))) for folder in parent.filled]
    masks = [folder for folder, words in named if has_mask_words(words)]
    images = [folder for folder, words in named if words & IMAGE_WORDS and folder not in masks]
    if len(images) + len(masks) < len(named):  # among other names, `photo` may be a class
        images = [folder for folder, words in named if words & PLAIN_IMAGE_WORDS and folder not in masks]
    return masks, images


def list_stems(folder: Folder) -> Iterator[str]:
    """Yield the paths below a folder, without suffix and in lower case."""
    start = len(folder.path) + 1
    return (os.path.splitext(path[start:])[0].casefold() for path in folder.list_images())  # noqa: PTH122
