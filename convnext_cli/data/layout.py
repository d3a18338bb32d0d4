"""From the folders of a data set to its classes and splits: recognised, or questioned with what was seen.

A layout is taken as it stands only where its names leave no doubt. Recognised are `<class>/**`, splits above or below
the classes in simple and composite names (`train`, `seg_train`, `Training Set`), one folder around it all, a folder
that repeats its own name, unlabelled folders beside a training folder, and masks beside their pictures. What looks like
something else (splits or folds without classes, a detection or segmentation set) is a `DataError` that names the way
out.
"""

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from difflib import get_close_matches

from convnext_cli.data.encoding import decode_name, normalise_name
from convnext_cli.data.tree import Folder
from convnext_cli.errors import DataError

SPLIT_NAMES = {
    "train": "train", "training": "train", "trainset": "train", "trainingset": "train", "traindata": "train",
    "val": "val", "valid": "val", "validation": "val", "dev": "val", "valset": "val", "validset": "val",
    "validationset": "val",
    "test": "test", "testing": "test", "tests": "test", "holdout": "test", "testset": "test", "testdata": "test",
    "eval": "test", "evaluation": "test",
}  # fmt: skip
UNLABELLED = "unlabelled"
_UNLABELLED_NAMES = dict.fromkeys(
    ("pred", "preds", "predict", "prediction", "predictions", "inference", "unlabelled", "unlabeled", "unsup"),
    UNLABELLED,
)
_IMAGE_HASHES = frozenset(
    ("image", "images", "img", "imgs", "picture", "pictures", "pics", "photo", "photos", "scans", "jpegs", "pngs")
)
_PLAIN = frozenset(("image", "images", "img", "imgs"))
_GENERIC = _IMAGE_HASHES | frozenset(
    (
        "data",
        "dataset",
        "datasets",
        "files",
        "raw",
        "all",
        "archive",
        "original",
        "originals",
        "classes",
        "jpg",
        "jpeg",
        "png",
    )
)
_UNKNOWN = frozenset(("unknown", "unknowns", "none", UNLABELLED, "unlabeled"))
_MASKS = frozenset(
    (
        "mask", "masks", "segmentation", "segmentations", "segmented", "annotation", "annotations", "label", "labels",
        "gt", "groundtruth", "truth", "contour", "contours", "trimap", "trimaps", "overlay", "overlays", "superpixels",
    )
)  # fmt: skip
_ANY_SPLIT = re.compile("train|val|test|dev|holdout|pred|infer|unlabel|unsup")
_ANY_MASK = re.compile("mask|segm|annot|label|gt|truth|contour|trimap|overlay|superpixel")
_NEGATIONS = frozenset(("no", "not", "non", "with", "without", "un"))
_MASK_FILE = re.compile(
    r"(?:[ _.\-]|(?<=\)))(?:mask|masks|segmentation|seg|gt|groundtruth|superpixels?)(?:[ _\-]?\d+)?$", re.IGNORECASE
)
_MASK_START = re.compile(r"(?:mask|segmentation|seg|gt)([ _.\-])", re.IGNORECASE)
_FOLD = re.compile(r"(?:cv|k?folds?|split)[ _\-]*\d+|\d+[ _\-]*(?:folds?|split)", re.IGNORECASE)
_VARIANTS = frozenset(
    (
        "augmented", "augmentation", "aug", "processed", "preprocessed", "resized", "cropped", "enhanced", "color",
        "colour", "gray", "grey", "grayscale", "greyscale", "segmented", "rgb",
    )
)  # fmt: skip
"""What is done to a whole set of images."""
_PATIENT = re.compile(r"patient[ _\-]*(?:id)?[ _\-]*\d+", re.IGNORECASE)
MAX_VIEWS = 4
"""More folders that all classes have are no views of one thing."""
PAIRED = 0.9
"""The fraction of a folder's masks that must have a picture of the same name."""
MIN_MASKS = 3
MASK_FRACTION = 0.1
"""Of a folder's images: with fewer files that end in `_mask` beside their picture, the names may be chance."""
EXAMPLES = 5


@dataclass(frozen=True, slots=True)
class Placement:
    """A folder whose images, however deep, are of one class and split."""

    folder: Folder
    name: str
    split: str


@dataclass(kw_only=True, slots=True)
class Layout:
    """What the folders mean."""

    tree: Folder
    start: Folder
    """Where classes, splits and tables begin: the folder itself, or the one inside its wrappers."""
    placements: list[Placement] = field(default_factory=list)
    skipped: Counter[str] = field(default_factory=Counter)
    notes: list[str] = field(default_factory=list)
    doubt: DataError | None = None
    """Why the folders alone do not say the classes; None where they do."""

    @property
    def classes(self) -> list[str]:
        """The classes, with or without images."""
        return sorted({placement.name for placement in self.placements})


def recognise(tree: Folder, name: str, known: Iterable[str] = ()) -> Layout:
    """Recognise the layout of a folder. Masks that are found beside their pictures are taken out of `tree`.

    Args:
        tree: all that is in the folder.
        name: of the folder or of the zip file that it came in.
        known: classes of a run, whose names are in no doubt.
    """
    classes = {normalise_name(one) for one in known}
    layout = Layout(tree=tree, start=tree)
    try:
        _drop_masks(tree, layout)
        if not classes & {normalise_name(top.name) for top in tree.filled}:
            layout.start = _enter_wrappers(tree, name, layout)
        _place(layout, classes)
        if not layout.doubt:
            if not classes:
                _question_patients(layout)
            _join_names(layout)
            _note_common_folders(layout)
    except _DoubtError as doubt:
        layout.placements = []
        layout.doubt = DataError(doubt.problem, doubt.remedy)
    return layout


class _DoubtError(DataError):
    """What is seen could mean several things."""


def find_split(name: str) -> tuple[str, tuple[str, ...]] | None:
    """Return the split that a folder's or file's name means and the name's other words; None where it means none.

    A split's name is one of its words: `seg_train`, `Training Set`, `1_train`; not `trainer`, `test-free` of two.
    """
    if not _ANY_SPLIT.search(name.casefold()):
        return None
    words = _list_words(name)
    known = SPLIT_NAMES | _UNLABELLED_NAMES
    found = [word for word in words if word in known]
    if len(found) != 1:
        return None
    return known[found[0]], tuple(word for word in words if word != found[0] and not word.isdigit())


def _list_words(name: str) -> list[str]:
    """`JPEGImages_2` -> jpeg, images, 2."""
    apart = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", normalise_name(name))
    return [word for word in re.findall(r"[^\W\d_]+|\d+", apart.casefold()) if word not in ("set", "the")]


def _place(layout: Layout, known: set[str]) -> None:
    """Find the class folders and their splits."""
    start = layout.start
    layout.skipped["image outside any class folder"] += len(start.images)
    own = _find_family(start.folders)
    if own:
        _place_splits(own, layout)
        return
    _drop_copies(start, layout)
    tops = start.filled
    if not known & {normalise_name(top.name) for top in tops}:
        _question_tops(start, layout)
    below = {top.path: family if len(family := _find_family(top.folders)) > 1 else {} for top in tops}
    having = [top for top in tops if below[top.path]]
    if not having:
        layout.placements = [Placement(folder, folder.name, "") for folder in start.folders]
    elif len(having) < len(tops):
        plain = next(top for top in tops if not below[top.path])
        raise _DoubtError(
            f"{_name(having[0])} has folders of splits ({_list_family(below[having[0].path])}) and {_name(plain)} has "
            "none, so it is not clear whether these are classes",
            f"Give the folder that has the classes, such as {having[0].path}, or a CSV file with path, label and split",
        )
    else:
        _place_splits_below(tops, below, layout)
    _question_deeper(layout)


def _place_splits(own: dict[str, list[Folder]], layout: Layout) -> None:
    """`train/<class>`, in whatever words and however nested."""
    start = layout.start
    members = {folder.path for folders in own.values() for folder in folders}
    for folder in start.folders:
        if folder.path not in members:
            layout.skipped[f"folder beside train, val and test ({decode_name(folder.name)!r})"] += 1
    entered = [(split, folder, _enter_split(folder)) for split, folders in own.items() for folder in folders]
    train = [inner for split, _, inner in entered if split == "train"]
    known = {normalise_name(folder.name) for inner in train for folder in inner.filled}
    if sum(inner.count for inner in train) and not known:
        raise _DoubtError(
            f"{_list_family(own)} are folders of splits without a folder for each class{_see_others(layout)}",
            _explain_table(start),
        )
    for split, folder, inner in entered:
        names = {normalise_name(inside.name) for inside in inner.filled}
        is_unlabelled = not names or (
            not names & known and names <= _GENERIC | _UNKNOWN | {normalise_name(folder.name)}
        )
        if split == UNLABELLED or (split != "train" and inner.count and is_unlabelled):
            layout.skipped[f"image without a class, in {_name(folder)}"] += inner.count
            continue
        layout.skipped["image outside any class folder"] += len(inner.images)
        if inner is not folder:
            layout.notes.append(f"the classes of the {split} split are the folders in {_below(start, inner)}")
        layout.placements += [Placement(inside, inside.name, split) for inside in inner.folders]
    if any(normalise_name(folder.name).casefold() not in SPLIT_NAMES for folders in own.values() for folder in folders):
        layout.notes.append(f"splits by the names of folders: {_list_family(own)}")
    _question_deeper(layout)


def _place_splits_below(tops: Sequence[Folder], below: dict[str, dict[str, list[Folder]]], layout: Layout) -> None:
    """`<class>/train`; not `<site>/train/<class>`."""
    inside: dict[str, set[str]] = {}
    for top in tops:
        inners = [_enter_split(folder) for folders in below[top.path].values() for folder in folders]
        inside[top.path] = {normalise_name(folder.name) for inner in inners for folder in inner.filled}
    common = set.intersection(*inside.values())
    if len(common) > 1:
        first = tops[0]
        raise _DoubtError(
            f"{_list_names(tops)} each have folders of splits ({_list_family(below[first.path])}) and in these the "
            f"same folders ({_shorten(sorted(common))}), so those seem to be the classes",
            f"Give one of them, such as {first.path}, or a CSV file with path, label and split",
        )
    for top in tops:
        layout.skipped["image outside any split folder"] += len(top.images)
        members = {folder.path for folders in below[top.path].values() for folder in folders}
        for folder in top.folders:
            if folder.path not in members and folder.count:
                layout.skipped[f"folder beside train, val and test ({decode_name(folder.name)!r})"] += 1
        for split, folders in below[top.path].items():
            for folder in folders:
                if split == UNLABELLED:
                    layout.skipped[f"image without a class, in {_name(folder)}"] += folder.count
                else:
                    layout.placements.append(Placement(folder, top.name, split))
    layout.notes.append(f"splits by the folders inside the classes: {_list_family(below[tops[0].path])}")


def _find_family(folders: Iterable[Folder]) -> dict[str, list[Folder]]:
    """The folders that are one set of splits, by split; empty where they are none.

    One set has the same words beside the split's: `seg_train` and `seg_test`. It has a training folder and another
    split, or nothing else lies beside it. Composite names beside other folders of images are ordinary names, unless
    the training folder has classes inside.
    """
    if not (listed := list(folders)):
        return {}
    families: dict[tuple[str, ...], dict[str, list[Folder]]] = {}
    simple: dict[str, list[Folder]] = {}
    for folder in sorted(listed, key=lambda folder: folder.name):
        plain = normalise_name(folder.name).casefold()
        if plain in SPLIT_NAMES:
            simple.setdefault(SPLIT_NAMES[plain], []).append(folder)
        if found := find_split(folder.name):
            families.setdefault(found[1], {}).setdefault(found[0], []).append(folder)
    size = sum(map(len, simple.values()))
    if ("train" in simple and (len(simple) > 1 or size == len(listed))) or (len(simple) == len(listed) == 1):
        unlabelled = families.get((), {}).get(UNLABELLED, [])
        return simple | ({UNLABELLED: unlabelled} if unlabelled else {})
    complete = [
        family
        for family in families.values()
        if "train" in family
        and any(folder.count for folder in family["train"])
        and (len(family) > 1 or sum(map(len, family.values())) == len(listed) == 1)
    ]
    if len(complete) > 1:
        raise _DoubtError(
            f"{' and '.join(_list_family(family) for family in complete[:2])} are two sets of splits",
            "Give a folder that has one of them, or a CSV file with path, label and split",
        )
    for family in complete:
        members = {folder.path for folders in family.values() for folder in folders}
        beside = [folder for folder in listed if folder.count and folder.path not in members]
        has_classes = any(len(_enter_split(folder).filled) > 1 for folder in family["train"])
        if not beside:
            return family
        if has_classes:
            raise _DoubtError(
                f"{_list_family(family)} look like splits, and {_list_names(beside)} lies beside them",
                "Move the one or the other away, leave folders out by --exclude, or give a CSV file with path, label "
                "and split",
            )
    return {}


def _enter_split(folder: Folder) -> Folder:
    """`seg_train/seg_train/<class>`: go inside while the one folder in it says nothing new."""
    name, split = normalise_name(folder.name).casefold(), find_split(folder.name)
    while not folder.images and len(folder.filled) == 1:
        [only] = folder.filled
        own = find_split(only.name)
        words = set(_list_words(only.name))
        says_nothing = normalise_name(only.name).casefold() == name or words <= _GENERIC
        if not says_nothing and not (own and split and own[0] == split[0]):
            break
        folder = only
    return folder


def _enter_wrappers(tree: Folder, name: str, layout: Layout) -> Folder:
    """Many data sets have one folder around it all: go inside it, where there are classes or splits."""
    folder = tree
    while len(folder.filled) == 1:
        [only] = folder.filled
        own = normalise_name(only.name).casefold()
        is_same = own == normalise_name(name).casefold()
        split = find_split(only.name)
        if split and not is_same and (split[0] == "train" or own in SPLIT_NAMES):
            break  # a split alone
        beside = [other for other in folder.folders if other is not only]
        are_bare = all(not inner.others and not inner.folders for inner in beside)  # classes without images, rather
        is_generic = set(_list_words(only.name)) <= _GENERIC
        if not _has_classes(only) or (beside and are_bare and not is_generic):
            break
        inner = [inside.name for inside in only.filled]
        shapes = {re.sub(r"\d+", "#", text) for text in inner}
        is_named_like_a_set = is_same or set(_list_words(only.name)) & _GENERIC
        if len(inner) > 1 and len(shapes) == 1 and "#" in min(shapes) and not is_named_like_a_set:
            raise _DoubtError(
                f"{folder.path} has one class only ({_name(only)}), or the folders in it are the classes "
                f"({_shorten(inner)})",
                f"Give {only.path} itself if they are; else give two class folders or more to tell apart",
            )
        layout.skipped["image outside any class folder"] += len(folder.images)
        folder = only
        for other in beside:
            layout.skipped[f"folder without images ({decode_name(other.name)!r})"] += 1
    if folder is not tree:
        layout.notes.append(f"the classes and splits are the folders in {_below(tree, folder)}")
    return folder


def _drop_copies(start: Folder, layout: Layout) -> None:
    """Take out a folder that has all its neighbours once more: `yes/`, `no/` and `dataset/{yes,no}/`."""
    tops = start.filled
    names = {normalise_name(top.name).casefold() for top in tops}
    for top in tops:
        own = normalise_name(top.name).casefold()
        inner = {normalise_name(folder.name).casefold() for folder in top.filled}
        if len(names) > 2 and not top.images and inner - {own} == names - {own}:
            start.folders.remove(top)
            layout.skipped[f"image in a folder that repeats the classes ({decode_name(top.name)!r})"] += top.count
            return


def _has_classes(folder: Folder) -> bool:
    """Return True where there are two folders of images or more in it, or in the one folder that it has."""
    while len(folder.filled) == 1:
        [folder] = folder.filled
    return len(folder.filled) > 1


def _question_tops(start: Folder, layout: Layout) -> None:
    """Raise where the folders that would be the classes mean something else."""
    tops = start.filled
    names = [normalise_name(top.name) for top in tops]
    words = [set(_list_words(name)) - {word for word in _list_words(name) if word.isdigit()} for name in names]
    if len(tops) == 1 and words[0] and words[0] <= _GENERIC:
        raise _DoubtError(
            f"{_name(tops[0])} is the only folder with images and has no folder for each class{_see_others(layout)}",
            _explain_table(start),
        )
    if len(tops) < 2:
        return
    pictures = [top for top, own in zip(tops, words, strict=True) if own and own <= _IMAGE_HASHES | {"jpeg"}]
    masks = [top for top, own in zip(tops, words, strict=True) if own & _MASKS and not own & _NEGATIONS]
    is_plain = any(own & _PLAIN for own in words if own <= _IMAGE_HASHES)
    if pictures and masks and (is_plain or len(pictures) + len(masks) == len(tops)):
        raise _DoubtError(
            f"{_name(pictures[0])} and {_name(masks[0])} look like pictures and their masks, not like two classes",
            f"Leave the masks out by --exclude {masks[0].name}, give a folder with one folder for each class, or a CSV "
            "file with path and label",
        )
    if all(_FOLD.fullmatch(name) for name in names):
        raise _DoubtError(
            f"{_list_names(tops)} look like folds, not like classes",
            "Give a folder with one folder for each class, or a CSV file with path, label and fold",
        )
    shapes = {re.sub(r"\d+", "#", name.casefold()) for name in names}
    if len(shapes) == 1 and all(own & _PLAIN for own in words):
        raise _DoubtError(
            f"{_list_names(tops)} look like parts of one set of images, not like classes{_see_others(layout)}",
            _explain_table(start),
        )
    inside = [{normalise_name(folder.name) for folder in top.filled} for top in tops]
    common = set.intersection(*inside)
    is_numbered = len(shapes) == 1 and all(re.search(r"\d{3}", name) for name in names)
    are_variants = all(own and own <= _GENERIC | _VARIANTS for own in words)
    is_same = all(own == common for own in inside)
    has_many = len(common) > max(MAX_VIEWS, len(tops)) and not all(re.search(r"\d", name) for name in common)
    if is_same and len(common) > 1 and (is_numbered or are_variants or has_many):
        raise _DoubtError(
            f"{_list_names(tops)} each have the same folders ({_shorten(sorted(common))}), so those seem to be the "
            "classes",
            f"Give one of them, such as {tops[0].path}, or a CSV file with path and label (and patient)",
        )
    near = [name for name in names if get_close_matches(name.casefold(), SPLIT_NAMES, cutoff=0.75)]
    if near and len(common) > 1:
        raise _DoubtError(
            f"{_list_names(tops)} look like splits, not like classes: each has the folders {_shorten(sorted(common))}",
            "Name them train, val and test, or give a CSV file with path, label and split",
        )


def _question_patients(layout: Layout) -> None:
    """Raise where the classes would be patients."""
    names = [normalise_name(placement.name) for placement in layout.placements]
    if len(set(names)) > 1 and all(map(_PATIENT.fullmatch, names)):
        raise _DoubtError(
            f"the folders ({_shorten(sorted(set(names)))}) look like patients, not like classes{_see_others(layout)}",
            _explain_table(layout.start),
        )


def _question_deeper(layout: Layout) -> None:
    """Raise where splits lie deeper than the classes that were found."""
    for placement in layout.placements:
        for folder in placement.folder.walk():
            if len(family := _find_family(folder.folders)) > 1:
                raise _DoubtError(
                    f"{_below(layout.start, folder)} has folders of splits ({_list_family(family)}) inside the class "
                    f"{normalise_name(placement.name)!r}",
                    "Give a folder of <class>/ or {train,val,test}/<class>/ folders, or a CSV file with path, label "
                    "and split",
                )


def _join_names(layout: Layout) -> None:
    """Give each class the one form of its name, and say which spellings were joined."""
    spellings: dict[str, set[str]] = {}
    for placement in layout.placements:
        spellings.setdefault(normalise_name(placement.name), set()).add(placement.name)
    layout.placements = [
        Placement(placement.folder, normalise_name(placement.name), placement.split) for placement in layout.placements
    ]
    layout.notes += describe_joined(spellings)


def describe_joined(spellings: dict[str, set[str]]) -> list[str]:
    """Say which names were joined: those that print alike."""
    joined = [name for name, raw in sorted(spellings.items()) if len(raw) > 1]
    if not joined:
        return []
    what = f"{len(joined)} classes" if len(joined) > 1 else "a class"
    return [f"{what} spelled in several ways that print alike (Unicode forms, blanks) joined: {_shorten(joined)}"]


def _note_common_folders(layout: Layout) -> None:
    """PlantVillage's `color/<class>` and `grayscale/<class>`: likely no classes, but it may be meant."""
    tops = [placement.folder for placement in layout.placements if placement.folder.count]
    if any(placement.split for placement in layout.placements) or len(tops) < 2:
        return
    common = set.intersection(*({normalise_name(folder.name) for folder in top.filled} for top in tops))
    if len(common) > 2 and not all(re.search(r"\d", name) for name in common):
        layout.notes.append(
            f"all classes ({_shorten([decode_name(top.name) for top in tops])}) have the same folders "
            f"({_shorten(sorted(common))}): if those are the classes, give one of the folders, such as {tops[0].path}"
        )
        return
    inner = [[folder for folder in top.filled if not re.search(r"\d", folder.name)] for top in tops]
    if sum(len(folders) > 1 for folders in inner) > 1:
        named = sorted({decode_name(folder.name) for folders in inner for folder in folders})
        layout.notes.append(f"folders inside the classes are parts of them, not classes: {_shorten(named)}")


# ---- masks


def _drop_masks(tree: Folder, layout: Layout) -> None:
    """Take out masks that lie beside their pictures: `images/` and `masks/` in one folder, `x.png` and `x_mask.png`."""
    dropped = 0
    for folder in list(tree.walk()):
        dropped += _drop_mask_folders(folder)
    if dropped:
        layout.skipped["mask of a picture, by its folder"] += dropped
    by_name = chance = 0
    example = ""
    for folder in tree.walk():
        masks = _find_mask_files(folder.images)
        if not masks:
            continue
        example = example or min(masks)
        if len(masks) >= MIN_MASKS and len(masks) >= MASK_FRACTION * len(folder.images):
            folder.images = [name for name in folder.images if name not in masks]
            by_name += len(masks)
        else:
            chance += len(masks)
    if by_name:
        layout.skipped[f"mask of a picture, by its name (as {decode_name(example)})"] += by_name
    if chance:
        layout.notes.append(
            f"{chance} images are named like masks of others (as {decode_name(example)}) and are kept; "
            "--exclude '*_mask.*' leaves such files out"
        )
    if dropped or by_name:
        tree.recount()


def _find_mask_files(images: Sequence[str]) -> set[str]:
    """The images whose name is that of another one in the folder, with a word for a mask behind or before it."""
    all_names = "\n".join(images).casefold()
    if not any(word in all_names for word in ("mask", "seg", "gt", "groundtruth", "superpixel")):
        return set()
    stems = {name.rpartition(".")[0]: name for name in images}
    found = {
        name for stem, name in stems.items() if (match := _MASK_FILE.search(stem)) and stem[: match.start()] in stems
    }
    for stem, name in stems.items():
        if match := _MASK_START.match(stem):
            rest = stem[match.end() :]
            if rest in stems or any(f"{word}{match[1]}{rest}" in stems for word in ("image", "img")):
                found.add(name)
    return found


def _drop_mask_folders(parent: Folder) -> int:
    """Take the folders of masks out of `parent`; return how many masks they had."""
    if not parent.folders or not any(_ANY_MASK.search(folder.name.casefold()) for folder in parent.folders):
        return 0
    filled = parent.filled
    named = [(folder, set(_list_words(folder.name))) for folder in filled]
    masks = [folder for folder, words in named if words & _MASKS and not words & _NEGATIONS]
    pictures = [folder for folder, words in named if words & _IMAGE_HASHES and folder not in masks]
    if not masks:
        return 0
    if len(pictures) + len(masks) < len(filled):  # among other names, `photo` may be a class
        pictures = [folder for folder, words in named if words & _PLAIN and folder not in masks]
    sources = [(folder.name, set(_list_stems(folder))) for folder in pictures]
    if parent.images and not pictures and len(filled) == len(masks):
        sources.append((parent.name, {os.path.splitext(name)[0].casefold() for name in parent.images}))  # noqa: PTH122
    dropped = 0
    for folder in masks:
        stems = [_strip_mask(stem) for stem in _list_stems(folder)]
        paired = [(sum(stem in own for stem in stems), name) for name, own in sources]
        if not paired:
            continue
        most, name = max(paired)
        if most >= PAIRED * len(stems):
            parent.folders.remove(folder)
            dropped += folder.count
        elif pictures and most:
            raise _DoubtError(
                f"{folder.path} looks like masks, but only {most} of its {len(stems)} images have the name of a "
                f"picture in {decode_name(name)!r}",
                f"Leave the masks out by --exclude {folder.name}, or give a CSV file with path and label",
            )
    return dropped


def _list_stems(folder: Folder) -> Iterator[str]:
    """The paths below a folder, without suffix."""
    start = len(folder.path) + 1
    return (os.path.splitext(path[start:])[0].casefold() for path in folder.list_images())  # noqa: PTH122


def _strip_mask(stem: str) -> str:
    return _MASK_FILE.sub("", stem)


# ---- words


def _explain_table(start: Folder) -> str:
    tables = [
        os.path.join(folder.path, name)  # noqa: PTH118
        for folder in start.walk()
        for name in folder.others
        if name.lower().endswith((".csv", ".tsv"))
    ]
    if tables:
        return (
            f"Give the table itself, such as {min(tables)}, with columns for path and label (--image-root DIR says "
            "where its paths begin)"
        )
    return "Give a folder with one folder for each class, or a CSV file with path and label"


def _see_others(layout: Layout) -> str:
    """What lies beside the images and tells what they are for."""
    start = layout.start
    suffixes = Counter(
        os.path.splitext(name)[1].lower()  # noqa: PTH122
        for folder in layout.tree.walk()
        for name in folder.others
    )
    if suffixes[".txt"] > 2 or suffixes[".xml"] > 1 or suffixes[".json"]:
        kinds = [suffix for suffix in (".txt", ".xml", ".json") if suffixes[suffix]]
        return (
            f". With its {' and '.join(kinds)} files it looks like a detection or segmentation set, which this program "
            "does not train on"
        )
    tables = sorted(name for name in start.others if name.lower().endswith((".csv", ".tsv")))
    return f"; {_shorten(tables)} lies beside" if tables else ""


def _list_family(family: dict[str, list[Folder]]) -> str:
    return _list_names([folder for folders in family.values() for folder in folders])


def _list_names(folders: Sequence[Folder]) -> str:
    return _shorten([decode_name(folder.name) for folder in folders])


def _shorten(names: Sequence[str]) -> str:
    return ", ".join(names[:EXAMPLES]) + (" …" if len(names) > EXAMPLES else "")


def _name(folder: Folder) -> str:
    return repr(decode_name(folder.name))


def _below(start: Folder, folder: Folder) -> str:
    """A folder's path as seen from another one."""
    return decode_name(os.path.relpath(folder.path, start.path))
