"""Words in the names of folders, and how messages show such names."""

import os
import re
from collections.abc import Iterable, Sequence

from convnext_cli.data.index import TABLE_SUFFIXES
from convnext_cli.data.names import VIEWS
from convnext_cli.data.patterns import DATE
from convnext_cli.data.tree import Folder
from convnext_cli.encoding import decode_name, normalise_name
from convnext_cli.text import shorten_names

PLAIN_IMAGE_WORDS = frozenset((
    "image", "images", "img", "imgs", "bild", "bilder", "imágenes", "imagenes", "immagini", "imagens",
    "изображения", "图像", "图片", "画像", "이미지",
))  # fmt: skip
"""The words that are never the name of a class; `photo` may be one."""
IMAGE_WORDS = PLAIN_IMAGE_WORDS | frozenset(
    ("picture", "pictures", "pics", "photo", "photos", "scans", "jpegs", "pngs")
)
GENERIC_WORDS = IMAGE_WORDS | frozenset((
    "data", "dataset", "datasets", "files", "raw", "all", "archive", "original", "originals", "classes", "jpg",
    "jpeg", "png",
))  # fmt: skip
UNKNOWN_WORDS = frozenset(("unknown", "unknowns", "none", "unlabelled", "unlabeled"))
VARIANT_WORDS = frozenset((
    "augmented", "augmentation", "aug", "processed", "preprocessed", "resized", "cropped", "enhanced", "color",
    "colour", "gray", "grey", "grayscale", "greyscale", "segmented", "rgb",
))  # fmt: skip
"""Words for a processed copy of a whole data set."""

FINDING_WORDS = frozenset((
    "normal", "abnormal", "healthy", "sick", "diseased", "positive", "negative", "pos", "neg", "benign",
    "malignant", "control", "tumor", "tumour", "cancer", "pneumonia", "covid", "good", "bad", "ok", "nok", "ng",
    "pass", "fail", "defect", "defects", "defective", "intact", "damaged", "infected", "uninfected", "infested",
))  # fmt: skip
"""Words for what is found in an image, not for where it comes from or how it was taken."""

_DATE = re.compile(
    rf"(?:{DATE}|(?:19|20)\d\d[-_. ](?:0[1-9]|1[0-2])|[0-3]?\d([-_. ])[01]?\d\2(?:19|20)\d\d)(?:[T _-][\d:._-]+)?"
)
PATIENT_FOLDER = re.compile(
    r"(?:p|pat|pt|sub|subj|subject|case|id|study|series|exam|scan|mrn|acc|participant)[ _.-]*\d{2,}", re.IGNORECASE
)
_MIN_PATIENTS = 3
_WELL = re.compile(r"([A-P])(?:0?[1-9]|1\d|2[0-4])")
_MIN_WELLS = 6
_UNITS = frozenset((
    "patient", "patients", "patientid", "subject", "participant", "proband", "paciente", "paziente", "study",
    "exam", "session", "mrn", "batch", "charge", "plate", "platte", "slide", "clip", "video", "sequence",
    "fold", "folds", "kfold", "cv", "split",
))  # fmt: skip
"""Words for what several images are of or from; with a number they name no class."""
_CLASS_WORDS = frozenset(("class", "cls", "cat", "category", "type", "grade", "stage", "level", "label", "kl"))
"""Words that name a class with a number; others rather count patients, objects, days or places."""


def describe_units(names: Iterable[str]) -> str:
    """Return the unit that all folders are named by, which is no class: dates, patients, `batch1`; "" if none."""
    names = set(map(normalise_name, names))
    if len(names) < 2:
        return ""
    if all(map(_DATE.fullmatch, names)):
        return "dates"
    if len(names) >= _MIN_PATIENTS and all(map(PATIENT_FOLDER.fullmatch, names)):
        return "patients or studies"
    word = _find_numbered_word(names)
    return f"{word} numbers" if word in _UNITS else ""


def describe_doubt(names: Iterable[str]) -> str:
    """Return what all folders are named by where it may be the class: wells, views, numbers as `day1`; "" if none."""
    names = set(map(normalise_name, names))
    if len(names) < 2:
        return ""
    wells = [match[1] for name in names if (match := _WELL.fullmatch(name))]
    if len(wells) == len(names) >= _MIN_WELLS and len(set(wells)) > 1:
        return "named as wells of a plate are"
    if {name.casefold() for name in names} <= VIEWS:
        return "named as views of one subject are"
    word = _find_numbered_word(names)
    is_unit = len(word) > 1 or all(map(PATIENT_FOLDER.fullmatch, names))  # other letters may be codes of classes
    return "numbered" if is_unit and word not in _CLASS_WORDS else ""


def _find_numbered_word(names: Iterable[str]) -> str:
    """Return the word of names that are all this word and a number, as `day1` and `2_day`; else ""."""
    words = {tuple(sorted(word for word in list_words(name) if word != "id" and not word.isdigit())) for name in names}
    numbers = {sum(map(str.isdigit, list_words(name))) for name in names}
    [word, *others] = words.pop() or ("",)
    return "" if words or others or numbers != {1} else word


def list_words(name: str) -> list[str]:
    """Return the words and numbers of a name in lower case: `JPEGImages_2` -> jpeg, images, 2."""
    spaced = re.sub(r"(?<=[a-z])(?=[A-Z])|(?<=[A-Z])(?=[A-Z][a-z])", " ", normalise_name(name))
    return [word for word in re.findall(r"[^\W\d_]+|\d+", spaced.casefold()) if word not in ("set", "the")]


def name_findings(names: Iterable[str]) -> set[str]:
    """Return the words for findings in names, as in `hamburg/normal`."""
    return set(FINDING_WORDS.intersection(list_words(" ".join(names))))


def is_table(name: str) -> bool:
    """Return True if a file name is that of a table."""
    return name.lower().endswith(TABLE_SUFFIXES)


def is_form(name: str) -> bool:
    """Return True if a file name is that of a competition's submission form, whose labels are dummies."""
    return "submission" in name.casefold()


def describe_joined(names: Iterable[str]) -> list[str]:
    """Return a note on the names that look the same, which are joined, if there are any."""
    spellings: dict[str, set[str]] = {}
    for name in set(names):
        spellings.setdefault(normalise_name(name), set()).add(name)
    joined = [name for name, forms in sorted(spellings.items()) if len(forms) > 1]
    if not joined:
        return []
    count = f"{len(joined)} classes" if len(joined) > 1 else "a class"
    return [
        f"{count} spelled in several ways that look the same (Unicode forms, blanks) joined: {shorten_names(joined)}"
    ]


def list_names(folders: Sequence[Folder]) -> str:
    """Return the names of the first few folders as text."""
    return shorten_names([decode_name(folder.name) for folder in folders])


def quote_name(folder: Folder) -> str:
    """Return the name of a folder in quotation marks."""
    return repr(decode_name(folder.name))


def relative_name(start: Folder, folder: Folder) -> str:
    """Return the path of a folder relative to another one."""
    return decode_name(os.path.relpath(folder.path, start.path))
